"""Files are written whole or not at all, and what is damaged is refused unread."""

import os
import pickle
import stat

import pytest
import torch

from pyro_vae.checkpoint import (
    load_state,
    load_weights,
    save_state,
    save_weights,
    write_atomically,
)
from pyro_vae.errors import InputError


def refused(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


STATE = {
    "number": 3,
    "infinity": -float("inf"),
    "none": None,
    "text": "β",
    "list": [1, (2, "x"), {"deep": torch.arange(3)}],
    "tensor": torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "random": torch.get_rng_state(),
    "by number": {0: {"step": torch.tensor(5.0)}},
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_state_round_trip(tmp_path):
    save_state(tmp_path / "last.pt", STATE)
    assert same(load_state(tmp_path / "last.pt"), STATE)


def test_weights_round_trip(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    weights = {"a": base.T, "b.c": base.double(), "n": torch.tensor(3)}
    save_weights(tmp_path / "best.safetensors", weights, {"epoch": "3"})
    loaded = load_weights(tmp_path / "best.safetensors")
    assert same(loaded, {k: v.contiguous() for k, v in weights.items()})


def test_writes_make_folders_and_replace(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for content in (b"one", b"two"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444  # not mkstemp's private mode


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), RuntimeError()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(write_atomically, tmp_path / "file" / "x", lambda file: None)
    assert message.startswith("cannot write")


@pytest.fixture
def good(tmp_path):
    save_state(tmp_path / "last.pt", STATE)
    save_weights(tmp_path / "best.safetensors", {"a": torch.randn(50)}, {})
    return tmp_path


LOADERS = {"last.pt": load_state, "best.safetensors": load_weights}


@pytest.mark.parametrize("name", LOADERS)
def test_truncated_anywhere(good, name):
    path = good / name
    whole = path.read_bytes()
    for size in sorted({0, 1, 4, 8, 9, 30, len(whole) // 2, len(whole) - 20, len(whole) - 1}):
        path.write_bytes(whole[:size])
        message = refused(LOADERS[name], path)
        assert str(path) in message
        assert "damaged" in message


@pytest.mark.parametrize("name", LOADERS)
def test_garbage(good, name):
    path = good / name
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        noise = torch.randint(256, (200,), generator=generator, dtype=torch.uint8)
        path.write_bytes((b"\x80", b"PK\x03\x04", b"")[seed % 3] + noise.numpy().tobytes())
        assert "damaged" in refused(LOADERS[name], path)


@pytest.mark.parametrize("name", LOADERS)
def test_missing_or_a_folder(tmp_path, name):
    assert "no such file" in refused(LOADERS[name], tmp_path / name)
    (tmp_path / name).mkdir()
    assert "damaged" in refused(LOADERS[name], tmp_path / name)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_not_executed(tmp_path, zipped):
    victim, path = tmp_path / "executed", tmp_path / "last.pt"
    if zipped:
        torch.save({"trainer": Evil(victim)}, path)
    else:
        path.write_bytes(pickle.dumps({"trainer": Evil(victim)}))
    assert "pickled objects" in refused(load_state, path)
    assert not victim.exists()


def test_what_is_no_dictionary(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    assert "not a checkpoint" in refused(load_state, tmp_path / "list.pt")


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="no regular file"):
        write_atomically(pipe, lambda file: file.write(b"1"))
    assert stat.S_ISFIFO(pipe.stat().st_mode)
