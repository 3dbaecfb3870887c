import io
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.io import savemat

from pyro_vae.data import datasets, describe_data, load_data
from pyro_vae.errors import InputError


def rows(split):
    return {x.numpy().tobytes() for x in split.scored()}


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = load_data("digits(values=levels)")
    assert [len(s) for s in (data.train, data.valid, data.test)] == [1297, 200, 300]
    assert (data.event_shape, data.measure, data.num_levels) == ((8, 8), "levels", 17)
    label_of = {
        x.astype(np.float32).tobytes(): int(y)
        for x, y in zip(bunch.images, bunch.target, strict=True)
    }
    seen = set()
    for split in (data.train, data.valid, data.test):
        assert split.labels.dtype == torch.int64
        for x, label in zip(split.scored(), split.labels.tolist(), strict=True):
            assert label_of[x.numpy().tobytes()] == label
        assert not seen & rows(split)
        seen |= rows(split)
    assert seen == set(label_of)


def test_mnist(data_root):
    data = load_data("mnist(values=levels)", data_root)
    assert [len(s) for s in (data.train, data.valid, data.test)] == [50_000, 10_000, 10_000]
    assert (data.event_shape, data.num_levels, data.ordered) == ((28, 28), 256, False)
    # The published mean pixel of the 60,000 training images is 0.1307 of white.
    mean = (5 * data.train.mean() + data.valid.mean()) / 6 / 255
    assert float(mean.mean()) == pytest.approx(0.1307, abs=5e-5)
    counts = torch.bincount(torch.cat([data.train.labels, data.valid.labels]))
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(data.test.labels)[0] == 980
    assert not rows(data.valid) & rows(data.train.subset(5000))


def write_idx(path, array):
    """The format of MNIST's raw files: a magic number, big-endian sizes, bytes."""
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4")
    path.write_bytes(header.tobytes() + array.tobytes())


@pytest.mark.parametrize(
    ("name", "folder"), [("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_mnists_relatives_are_read_from_their_own_folder(tmp_path, name, folder):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    made = {}
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0] = 20 * labels + (part == "t10k")
        images[:, 27, 3] = np.arange(count) % 251
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
        made[part] = images
    data = load_data(f"{name}(values=levels)", tmp_path)
    assert data.spec.startswith(f"{name}(")
    assert [len(s) for s in (data.train, data.valid, data.test)] == [50_000, 10_000, 10_000]
    for split, test in ((data.train, 0), (data.valid, 0), (data.test, 1)):
        x = split.scored(slice(0, 500))
        assert (x[:, 0, 0] == 20 * split.labels[:500] + test).all()
    first = data.test.scored(slice(0, 300))[:, 27, 3].int().numpy()
    assert (first == made["t10k"][:300, 27, 3]).all()


def test_mnist_binarized_dynamically(data_root):
    data = load_data("mnist", data_root)
    assert data.spec == "mnist(values=binary, binarize=dynamic)"
    x, p = data.valid.scored().double(), data.valid.mean().double()
    # Σ_pixels of the mean: variance at most Σ p(1 − p) / N, conditional on the grey levels.
    error = float((p * (1 - p)).sum() / len(x)) ** 0.5
    assert abs(float(x.mean(0).sum() - p.sum())) < 4 * error  # seed 102
    assert set(x.unique().tolist()) == {0.0, 1.0}


def test_binarized_mnist(data_root):
    data = load_data("binarized_mnist", data_root)
    assert data.spec == "binarized_mnist(values=binary, binarize=none)"
    assert [len(s) for s in (data.train, data.valid, data.test)] == [50_000, 10_000, 10_000]
    assert data.train.labels is data.test.labels is None
    packed = np.load(data_root / "binarized_mnist" / "static.npz")["test"]
    x = data.test.scored(torch.tensor([1234])).numpy().reshape(784)
    assert np.array_equal(np.packbits(x.astype(np.uint8)), packed[1234])


def test_frey_faces_are_split_in_blocks(data_root):
    data = load_data("frey_faces(values=levels)", data_root)
    assert data.ordered
    assert (data.event_shape, data.num_levels) == ((28, 20), 256)
    assert [len(s) for s in (data.train, data.valid, data.test)] == [1441, 262, 262]
    film = torch.from_numpy(np.load(data_root / "frey_faces" / "frey_faces.npz")["images"])
    blocks = film.float().split(131)
    assert torch.equal(data.valid.scored(), torch.cat([blocks[3], blocks[10]]))
    assert torch.equal(data.test.scored(), torch.cat([blocks[6], blocks[13]]))
    assert torch.equal(data.train.scored(slice(3 * 131)), film[: 3 * 131].float())


def test_root_comes_from_the_environment(data_root, monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_VAE_DATA", str(data_root))
    assert len(load_data("frey_faces").train) == 1441


def no_network(*args, **kwargs):
    raise URLError("Name or service not known\nno route")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST"),
        ("fashion_mnist", "FashionMNIST"),
        ("kmnist", "KMNIST"),
        ("binarized_mnist", "binarized_mnist"),
        ("frey_faces", "frey_faces"),
    ],
)
def test_no_data_and_no_network_is_one_line(name, folder, tmp_path, offline):
    with pytest.raises(InputError) as caught:
        load_data(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (name, str(tmp_path / folder), "Name or service not known", "network"):
        assert part in message


@pytest.mark.parametrize("damage", ["truncated", "empty", "other magic"])
def test_damaged_mnist_is_one_line(damage, tmp_path, data_root, offline):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (data_root / "MNIST" / "raw").iterdir():
        head = file.read_bytes()[:5000]
        (raw / file.name).write_bytes(
            {"truncated": head, "empty": b"", "other magic": b"\x00" * 40}[damage]
        )
    with pytest.raises(
        InputError, match=r"mnist in .* is damaged .*: delete that folder"
    ) as caught:
        load_data("mnist", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["binarized_mnist/static.npz", "frey_faces/frey_faces.npz"])
@pytest.mark.parametrize("content", ["truncated", "other"])
def test_damaged_npz_is_one_line(name, content, tmp_path):
    path = tmp_path / name
    path.parent.mkdir()
    np.savez(path, train=np.zeros((3, 98), np.uint8), images=np.zeros((3, 28, 20), np.uint8))
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"is damaged: expected .*; delete it") as caught:
        load_data(path.parent.name, tmp_path)
    assert "\n" not in str(caught.value)


def serve(monkeypatch, pages):
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(pages(url)))


def test_binarized_mnist_is_converted_on_download(tmp_path, monkeypatch):
    counts = {"train": 6, "valid": 3, "test": 2}
    monkeypatch.setattr(datasets, "_BINARIZED_MNIST_COUNTS", counts)
    bits = {k: np.random.default_rng(n).integers(0, 2, (n, 784)) for k, n in counts.items()}
    lines = {k: "".join(" ".join(map(str, row)) + " \n" for row in x) for k, x in bits.items()}
    serve(monkeypatch, lambda url: lines[url.split("_")[-1].removesuffix(".amat")].encode())
    data = load_data("binarized_mnist", tmp_path)
    for name in counts:
        assert np.array_equal(data.split(name).scored().view(-1, 784).numpy(), bits[name])
    assert [p.name for p in (tmp_path / "binarized_mnist").iterdir()] == ["static.npz"]
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    again = load_data("binarized_mnist", tmp_path)
    assert again.test.content_hash == data.test.content_hash


def test_frey_faces_are_converted_on_download(tmp_path, monkeypatch):
    film = np.random.default_rng(0).integers(0, 256, (1965, 28, 20)).astype(np.uint8)
    file = io.BytesIO()
    savemat(file, {"ff": film.reshape(1965, 560).T})
    serve(monkeypatch, lambda url: file.getvalue())
    data = load_data("frey_faces(values=levels)", tmp_path)
    assert np.array_equal(data.train.scored(slice(131)).numpy(), film[:131])


@pytest.mark.parametrize("name", ["binarized_mnist", "frey_faces"])
def test_a_page_that_is_not_the_data(name, tmp_path, monkeypatch):
    serve(monkeypatch, lambda url: b"<html>404 gone</html>")
    with pytest.raises(InputError, match=f"{name}: .*try again later") as caught:
        load_data(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.npz"))


def test_a_root_that_cannot_be_written(tmp_path, monkeypatch):
    film = np.zeros((560, 1965), np.uint8)
    file = io.BytesIO()
    savemat(file, {"ff": film})
    serve(monkeypatch, lambda url: file.getvalue())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .* choose another data root"):
        load_data("frey_faces", tmp_path / "file")


def test_describe_data():
    described = {name: (arguments, line) for name, arguments, line in describe_data()}
    assert described["digits"][0] == "values=binary, binarize=dynamic"
    assert described["binarized_mnist"][0] == "values=binary, binarize=none"
    assert "size=None" in described["path/to/folder"][0]
    file = described["path/to/images.npy, .npz or .pt"][0]
    assert file == "values=binary, binarize=dynamic, num_levels=None"
    assert all(line.endswith(".") for _, line in described.values())
