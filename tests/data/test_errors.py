import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.data import load_data
from pyro_vae.errors import InputError


def check(spec, told):
    with pytest.raises(InputError) as caught:
        load_data(spec)
    message = str(caught.value)
    assert told in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("digit", "did you mean 'digits'"),
        ("minst", "did you mean 'mnist'"),
        ("fashion", "Valid: binarized_mnist, digits"),
        ("digits(value=levels)", "unknown argument 'value' of digits; did you mean 'values'"),
        ("digits(size=28)", "Valid: binarize, values"),
        ("digits(values=binry)", "did you mean 'binary'"),
        ("digits(values=3)", "unknown values=3"),
        ("digits(binarize=dynamical)", "did you mean 'dynamic'"),
        ("digits(values=levels, binarize=dynamic)", "drop binarize=dynamic"),
        ("digits(values=continuous, binarize=threshold)", "or write values=binary"),
        ("digits(values=counts, binarize=dynamic)", "values=counts are not binarized: drop"),
        ("digits(values=counts, binarize=threshold)", "or write values=binary"),
        ("digits(values=cuonts)", "did you mean 'counts'"),
        ("digits(counts=True)", "unknown argument 'counts'"),
        ("digits(values=binary, binarize=none)", "write values=levels"),
        ("digits(values=binary, binarize=None)", "write values=levels"),
        ("digits(levels)", "expected key=value"),
        ("nowhere/x.npy", "no such file or folder"),
    ],
)
def test_specs(spec, told):
    check(spec, told)


def zeros(*shape):
    return np.zeros(shape, np.uint8)


def grey(count):
    return np.arange(count * 4, dtype=np.uint8).reshape(count, 4)


@pytest.mark.parametrize(
    ("array", "arguments", "told"),
    [
        (grey(1), "", "needs at least 3 images, got 1"),
        (grey(2), "", "needs at least 3 images, got 2"),
        (zeros(0, 4, 4), "", "is empty"),
        (zeros(4, 0), "", "is empty"),
        (zeros(100), "", "[N, H, W], [N, C, H, W] or [N, D], got (100,)"),
        (zeros(2, 2, 2, 2, 2), "", "must have shape [N, H, W]"),
        (zeros(9, 8, 8, 3), "", "x.transpose(0, 3, 1, 2)"),
        (np.array([["a", "b"]] * 5), "", "must hold numbers (uint8 or float)"),
        (np.ones((5, 2), complex), "", "must hold numbers (uint8 or float)"),
        (np.full((5, 2), np.nan), "", "10 NaN or infinite values: remove or replace"),
        (np.full((5, 2), np.inf, np.float32), "", "NaN or infinite values"),
        (np.full((5, 2), 1e300), "", "beyond float32"),
        (np.full((5, 2), 256), "", "set num_levels above the largest level, write values=counts"),
        (np.full((5, 2), -1), "", "got values from -1 to -1"),
        (grey(5), "(num_levels=16)", "expected whole levels 0 … 15"),
        (np.full((5, 2), 0.5), "(num_levels=16)", "store floats without num_levels"),
        (grey(5), "(num_levels=1)", "from 2 to 65536"),
        (grey(5), "(num_levels=many)", "from 2 to 65536"),
        (np.eye(5), "(values=levels)", "use the grey data"),
        (np.eye(5), "(binarize=dynamic)", "binarize=none: for binarize=dynamic use the grey data"),
        (np.full((5, 2), 0.5), "(values=binary)", "store whole grey levels 0 … 255 (uint8)"),
        (np.full((5, 2), 0.5), "(binarize=threshold)", "which stay values=continuous"),
        (grey(5), "(size=28)", "Valid: binarize, num_levels, values"),
        (grey(5), "(counts=True)", "Valid: binarize, num_levels, values"),
        (np.eye(5), "(values=levels)", "binarize=none: for values=levels use the grey data"),
        (np.eye(5), "(values=counts, binarize=dynamic)", "values=counts are not binarized"),
        (np.full((5, 2), 0.5), "(values=counts)", "got values from 0.5 to 0.5 with fractions"),
        (np.full((5, 2), -1), "(values=counts)", "values=counts are whole numbers 0 … 16777216"),
        (np.full((5, 2), 2**24 + 1), "(values=counts)", "float32 skips some of the larger ones"),
        (np.full((5, 2), 2.0**24 + 2), "(values=counts)", "got values from 16777218.0"),
        (np.full((5, 2), np.nan), "(values=counts)", "NaN or infinite values"),
        (np.full((5, 2), 20), "(values=counts, num_levels=16)", "expected whole levels 0 … 15"),
        (np.full((5, 2), 300), "(values=counts, binarize=dynamic)", "are not binarized"),
    ],
)
def test_arrays(array, arguments, told, tmp_path):
    np.save(tmp_path / "x.npy", array)
    check(f"{tmp_path / 'x.npy'}{arguments}", told)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({}, "must hold an array 'train'"),
        ({"a": grey(5), "b": grey(5)}, "got 'a', 'b'"),
        ({"test": grey(5)}, "must hold an array 'train'"),
        ({"train": grey(5), "val": grey(5)}, "unknown array 'val'; did you mean 'valid'"),
        ({"x": grey(5), "images": grey(5)}, "one array 'x' or 'images'"),
        ({"x": grey(5), "lables": grey(5)}, "did you mean 'labels'"),
        ({"x": grey(5), "labels": np.arange(4)}, "must be 5 whole numbers"),
        ({"x": grey(5), "y": np.array(["a"] * 5)}, "must be 5 whole numbers"),
        ({"train": grey(5), "test": zeros(5, 3)}, "images of one shape"),
        ({"train": grey(1), "test": grey(5)}, "needs at least 2 images, got 1"),
        ({"train": grey(5), "test": grey(0)}, "'test' is empty"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_named_arrays(arrays, told, suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    elif any(a.dtype.kind == "U" for a in arrays.values()):
        pytest.skip("a tensor holds no strings")
    else:
        torch.save({k: torch.from_numpy(a) for k, a in arrays.items()}, path)
    check(str(path), told)


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


@pytest.mark.parametrize(
    ("name", "write", "told"),
    [
        ("x.npy", lambda p: np.save(p, np.array([{}] * 5), allow_pickle=True), "refused"),
        ("x.npy", lambda p: p.write_bytes(pickle.dumps(Evil())), "refused"),
        ("x.npz", lambda p: np.savez(p, x=np.array([Evil()] * 5)), "refused"),
        ("x.pt", lambda p: torch.save(Evil(), p), "refused"),
        ("x.pt", lambda p: torch.save([torch.ones(5, 5)], p), "a tensor or a dict of tensors"),
        ("x.pt", lambda p: torch.save({"x": 3}, p), "a tensor or a dict of tensors"),
        ("x.npy", lambda p: p.write_bytes(b""), "truncated"),
        ("x.npz", lambda p: p.write_bytes(b"PK\x03\x04 no"), "truncated"),
        ("x.pt", lambda p: p.write_bytes(b""), "truncated"),
        ("x.pt", lambda p: p.write_bytes(b"PK\x03\x04 no"), "truncated"),
        ("x.csv", lambda p: p.write_text("1,2"), "expected .npy, .npz, .pt or a folder"),
    ],
)
def test_files(name, write, told, tmp_path, capsys):
    write(tmp_path / name)
    check(str(tmp_path / name), told)
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_files(suffix, kept, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (50, 20, 20)).astype(np.uint8)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, x)
    elif suffix == ".npz":
        np.savez_compressed(path, x=x)
    else:
        torch.save(torch.from_numpy(x), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    check(str(path), str(path))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("(size=0)", "size must be"),
        ("(size=big)", "size must be"),
        ("(size=(1, 2, 3))", "size must be"),
        ("(channels=2)", "channels must be 1 or 3"),
        ("(memory_limit=lots)", "memory_limit must be"),
        ("(workers=-1)", "workers must be 0 or more"),
        ("(num_levels=16)", "Valid: binarize, channels, memory_limit, size, values, workers"),
        ("", "needs at least 3 images, got 2"),
    ],
)
def test_folders(arguments, told, tmp_path):
    for i in range(2):
        Image.fromarray(zeros(4, 4)).save(tmp_path / f"{i}.png")
    check(f"{tmp_path}{arguments}", told)


def test_folders_without_good_images(tmp_path, monkeypatch):
    (tmp_path / "faces").mkdir()
    check(str(tmp_path / "faces"), "holds no images")
    for i in range(3):
        (tmp_path / "faces" / f"{i}.png").write_bytes(b"no image")
    check(str(tmp_path / "faces"), "cannot read the image")
    monkeypatch.chdir(tmp_path)
    check("faces", "write ./faces for the folder")
