import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.data import load_data
from pyro_vae.data.folder import FolderImages
from pyro_vae.data.images import TensorImages
from pyro_vae.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Thirty 6×5 grey images in two classes, whose top left pixel is 100 · class + number."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(["cats", "dogs"]):
        (tmp_path / name).mkdir()
        for i in range(15):
            pixels = rng.integers(0, 256, (6, 5)).astype(np.uint8)
            pixels[0, 0] = 100 * label + i
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_images_and_labels(folder):
    data = load_data(f"{folder}(values=levels)")
    assert (data.event_shape, data.measure, data.num_levels) == ((6, 5), "levels", 256)
    assert [len(s) for s in (data.train, data.valid, data.test)] == [24, 3, 3]
    corners = []
    for split in (data.train, data.valid, data.test):
        assert torch.equal(split.labels, (split.scored()[:, 0, 0] >= 100).long())
        corners += split.scored()[:, 0, 0].int().tolist()
    assert sorted(corners) == [*range(15), *range(100, 115)]


@pytest.mark.parametrize("values", ["binary", "levels", "continuous"])
def test_read_when_needed_equals_in_memory(folder, values):
    memory = load_data(f"{folder}(values={values})")
    lazy = load_data(f"{folder}(values={values}, memory_limit=100)")
    assert isinstance(memory.train._images, TensorImages)
    assert isinstance(lazy.train._images, FolderImages)
    for name in ("train", "valid", "test"):
        one, other = memory.split(name), lazy.split(name)
        assert torch.equal(one.scored(), other.scored())
        assert torch.equal(one.labels, other.labels)
        assert one.content_hash == other.content_hash
    index = torch.tensor([20, 3, 3])
    assert torch.equal(lazy.train.scored(index), memory.train.scored()[index])
    assert torch.equal(lazy.train.subset(5).scored(), memory.train.subset(5).scored())
    assert torch.equal(lazy.data_mean, memory.data_mean)
    assert lazy.protocol("test") == memory.protocol("test")
    before = torch.get_rng_state()
    one, other = (
        list(data.train.batches(10, torch.Generator().manual_seed(1))) for data in (memory, lazy)
    )
    assert [len(x) for x in other] == [10, 10, 4]
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_limit_counts_decoded_bytes(folder):
    kinds = [
        type(load_data(f"{folder}(memory_limit={limit})").train._images) for limit in (899, 900)
    ]
    assert kinds == [FolderImages, TensorImages]  # 30 · 6 · 5 bytes


def test_size_and_channels(tmp_path):
    for i, (height, width) in enumerate([(8, 8), (16, 16), (8, 12)]):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:] = (200, 100, 50)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    data = load_data(f"{tmp_path}(size=4)")
    assert (data.event_shape, data.measure) == ((3, 4, 4), "levels")
    assert data.train.labels is None
    assert torch.equal(data.train.scored()[0, :, 1, 2], torch.tensor([200.0, 100.0, 50.0]))
    grey = load_data(f"{tmp_path}(size=(4, 6), channels=1, values=levels)")
    assert grey.event_shape == (4, 6)
    assert grey.train.scored().unique().tolist() == [124.0]  # 0.299 R + 0.587 G + 0.114 B


def test_a_damaged_image_is_one_line_wherever_it_is_read(folder, generator):
    file = folder / "cats" / "3.png"
    file.write_bytes(file.read_bytes()[:60])  # the header alone
    with pytest.raises(InputError, match=r"cannot read the image .*3\.png"):
        load_data(str(folder))
    data = load_data(f"{folder}(memory_limit=0)")
    for read in (
        lambda: [list(data.split(s).batches(4, generator)) for s in ("train", "valid", "test")],
        lambda: [data.split(s).scored() for s in ("train", "valid", "test")],
    ):
        with pytest.raises(InputError, match=r"cannot read the image .*3\.png") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_unequal_sizes_are_refused(folder):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "cats" / "odd.png")
    with pytest.raises(InputError, match=r"unequal sizes .* set size=28"):
        load_data(str(folder))


def test_sixteen_bits_are_refused(folder):
    Image.fromarray(np.zeros((6, 5), np.uint16)).save(folder / "cats" / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits"):
        load_data(str(folder))
