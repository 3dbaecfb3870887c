import numpy as np
import pytest
import torch

from pyro_vae.data import load_data
from pyro_vae.errors import InputError
from pyro_vae.specs import parse_spec


def save(folder, suffix, arrays):
    path = folder / f"data{suffix}"
    if suffix == ".npy":
        np.save(path, arrays["x"])
    elif suffix == ".npz":
        np.savez(path, **arrays)
    else:
        torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path)
    return path


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(0, 256, (50, 4, 5)).astype(np.uint8)


def everything(data):
    return torch.cat([data.train.scored(), data.valid.scored(), data.test.scored()])


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_one_array_is_cut_80_10_10(suffix, grey, tmp_path):
    data = load_data(f"{save(tmp_path, suffix, {'x': grey})}(values=levels)")
    assert [len(s) for s in (data.train, data.valid, data.test)] == [40, 5, 5]
    found = {x.numpy().tobytes() for x in everything(data)}
    assert found == {x.astype(np.float32).tobytes() for x in grey}
    assert not torch.equal(everything(data), torch.from_numpy(grey).float())
    assert data.train.labels is None


def test_a_tensor_alone(grey, tmp_path):
    torch.save(torch.from_numpy(grey), tmp_path / "x.pt")
    assert len(load_data(str(tmp_path / "x.pt")).train) == 40


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
@pytest.mark.parametrize("key", ["labels", "y"])
def test_labels_stay_beside_their_images(suffix, key, grey, tmp_path):
    labels = grey[:, 0, 0].astype(np.int32)
    data = load_data(f"{save(tmp_path, suffix, {'images': grey, key: labels})}(values=levels)")
    for split in (data.train, data.valid, data.test):
        assert torch.equal(split.labels, split.scored()[:, 0, 0].long())


def test_own_splits_are_kept(grey, tmp_path):
    arrays = {
        "train": grey[:30],
        "valid": grey[30:40],
        "test": grey[40:],
        "test_labels": np.arange(10),
    }
    data = load_data(f"{save(tmp_path, '.npz', arrays)}(values=levels)")
    assert torch.equal(everything(data), torch.from_numpy(grey).float())
    assert data.train.labels is None
    assert torch.equal(data.test.labels, torch.arange(10))


def test_a_missing_split_is_cut_from_training(grey, tmp_path):
    arrays = {"train": grey[:40], "test": grey[40:], "train_labels": np.arange(40)}
    data = load_data(f"{save(tmp_path, '.npz', arrays)}(values=levels)")
    assert [len(s) for s in (data.train, data.valid, data.test)] == [36, 4, 10]
    assert torch.equal(data.test.scored(), torch.from_numpy(grey[40:]).float())
    assert sorted([*data.train.labels.tolist(), *data.valid.labels.tolist()]) == list(range(40))


def test_three_data_are_enough(tmp_path, grey):
    data = load_data(str(save(tmp_path, ".npy", {"x": grey[:3]})))
    assert [len(s) for s in (data.train, data.valid, data.test)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("array", "spec", "expected"),
    [
        (np.array([[0, 1], [1, 0], [1, 1]], np.uint8), "", ("binary", None, False)),
        (np.array([[0, 1], [1, 0], [1, 1]], bool), "", ("binary", None, False)),
        (np.array([[0, 1], [1, 0], [1, 1]], np.float64), "", ("binary", None, False)),
        (np.array([[0, 1], [1, 0], [1, 1]]), "(num_levels=4, values=levels)", ("levels", 4, False)),
        (np.array([[0, 9], [1, 0], [1, 255]]), "(values=levels)", ("levels", 256, False)),
        (np.array([[0, 9.0], [1, 0], [1, 255]]), "(values=levels)", ("levels", 256, False)),
        (np.array([[0, 9], [1, 0], [1, 2]]), "(values=continuous)", ("continuous", 256, True)),
        (np.array([[0, 9], [1, 0], [1, 2]]), "(num_levels=10)", ("binary", None, False)),
        (np.array([[0, 0.5], [1, 0], [1, 2]]), "", ("continuous", None, False)),
        (np.array([[0, -3.0], [1, 0], [1, 2]]), "", ("continuous", None, False)),
        (np.array([[0, 999], [1, 0], [1, 2]]), "(num_levels=1000, values=levels)",
         ("levels", 1000, False)),
        (np.array([[0, 9], [1, 0], [1, 2]], np.uint8), "(values=counts)", ("counts", None, False)),
        (np.array([[0, 255], [1, 0], [1, 2]]), "(values=counts)", ("counts", None, False)),
        (np.array([[0, 256], [1, 0], [1, 2]]), "(values=counts)", ("counts", None, False)),
        (np.array([[0, 5000], [1, 0], [1, 2]]), "(values=counts)", ("counts", None, False)),
        (np.array([[0, 2**24], [1, 0], [1, 2]], np.uint64), "(values=counts)",
         ("counts", None, False)),
        (np.array([[0, 2.0**24], [1, 0], [1, 2]]), "(values=counts)", ("counts", None, False)),
        (np.array([[0, 1], [1, 0], [1, 1]]), "(values=counts)", ("counts", None, False)),
        (np.array([[0, 0], [0, 0], [0, 0.0]]), "(values=counts)", ("counts", None, False)),
        (np.array([[0, 1], [1, 0], [1, 1]]), "(values=counts, num_levels=3)",
         ("counts", None, False)),
        (np.array([[0, 999.0], [1, 0], [1, 2]]), "", ("continuous", None, False)),
    ],
)  # fmt: skip
def test_what_kind_of_values_an_array_holds(array, spec, expected, tmp_path):
    data = load_data(f"{save(tmp_path, '.npy', {'x': array})}{spec}")
    assert (data.measure, data.num_levels, data.dequantized) == expected
    if data.train.values.num_ranks is None:
        assert sorted(everything(data).flatten().tolist()) == sorted(array.flatten().tolist())


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.float32, np.float64])
def test_a_table_of_counts(suffix, dtype, tmp_path):
    """Genes [N, D] up to 5,000 and no num_levels, in integers or floats."""
    x = np.random.default_rng(1).negative_binomial(0.3, 0.001, (60, 7)).clip(max=5000)
    x[3, 2] = 5000
    data = load_data(f"{save(tmp_path, suffix, {'x': x.astype(dtype)})}(values=counts)")
    assert (data.event_shape, data.measure, data.num_levels) == ((7,), "counts", None)
    found = {row.numpy().tobytes() for row in everything(data)}
    assert found == {row.astype(np.float32).tobytes() for row in x}
    mean = data.train.scored().double().mean(0)
    torch.testing.assert_close(data.data_mean.double(), mean, rtol=1e-6, atol=0)
    batch = next(data.train.batches(48, torch.Generator().manual_seed(0)))
    assert torch.equal(batch.sort(0).values, data.train.scored().sort(0).values)
    assert load_data(data.spec).protocol("test") == data.protocol("test")


def test_counts_have_one_hash_whatever_holds_them(tmp_path):
    """The same counts in integers and in floats are the same data; one count more is not."""
    x = np.random.default_rng(2).integers(0, 900, (30, 4))
    hashes = []
    for i, array in enumerate((x, x.astype(np.float32), x + (np.arange(4) == 2))):
        np.save(tmp_path / f"{i}.npy", array)
        hashes.append(load_data(f"{tmp_path / f'{i}.npy'}(values=counts)").test.content_hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("shape", "event_shape"),
    [
        ((6, 8, 9), (8, 9)),
        ((6, 1, 8, 9), (8, 9)),
        ((6, 3, 8, 9), (3, 8, 9)),
    ],
)
def test_event_shape(shape, event_shape, tmp_path):
    data = load_data(str(save(tmp_path, ".npy", {"x": np.full(shape, 7, np.uint8)})))
    assert data.event_shape == event_shape == tuple(data.test.scored().shape[1:])
    assert data.measure == ("levels" if len(event_shape) == 3 else "binary")


def test_vectors_of_whole_numbers_say_what_they_are(tmp_path):
    """Gene counts would be read as grey levels and binarized, silently."""
    path = save(tmp_path, ".npy", {"x": np.full((6, 7), 7, np.uint8)})
    with pytest.raises(InputError, match=r"vectors of whole numbers: write values=counts for"):
        load_data(str(path))
    for told, measure in (("values=counts", "counts"), ("values=levels", "levels"),
                          ("binarize=dynamic", "binary"), ("num_levels=9", "binary")):  # fmt: skip
        data = load_data(f"{path}({told})")
        assert (data.event_shape, data.measure) == ((7,), measure)


def test_float_formats_become_float32(tmp_path):
    x = torch.tensor([[0.5, 1.25], [2.5, -3.0], [0.0, 1.0]])
    for i, dtype in enumerate([torch.float64, torch.float16, torch.bfloat16]):
        torch.save(x.to(dtype), tmp_path / f"{i}.pt")
        assert torch.equal(everything(load_data(str(tmp_path / f"{i}.pt"))).sum(), x.sum())
    np.save(tmp_path / "big.npy", x.numpy().astype(">f8"))
    assert torch.equal(everything(load_data(str(tmp_path / "big.npy"))).sum(), x.sum())


def test_spec_is_canonical_and_loads_the_same(grey, tmp_path, monkeypatch):
    save(tmp_path, ".npz", {"x": grey})
    monkeypatch.chdir(tmp_path)
    data = load_data("./data.npz(binarize=threshold)")
    arguments = {"values": "binary", "binarize": "threshold"}
    assert parse_spec(data.spec).arguments == arguments
    monkeypatch.chdir("/")
    assert load_data(data.spec).protocol("test") == data.protocol("test")
