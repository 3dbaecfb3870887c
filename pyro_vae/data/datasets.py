"""The named data sets: each function takes the data root and returns the raw splits."""

__all__ = ["binarized_mnist", "digits", "fashion_mnist", "frey_faces", "kmnist", "mnist"]

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.data.downloads import download, one_line, save_npz
from pyro_vae.data.files import read_arrays
from pyro_vae.data.images import TensorImages
from pyro_vae.data.source import SPLITS, Source, partition
from pyro_vae.errors import InputError

_BINARIZED_MNIST = (
    "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_{}.amat"
)
_BINARIZED_MNIST_COUNTS = {"train": 50_000, "valid": 10_000, "test": 10_000}
_FREY_FACES = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
_FREY_FACES_SHAPE = (1965, 28, 20)
_FREY_FACES_BLOCKS = "tttvttetttvttet"  # 131 frames each to train, validate or evaluate

# torchvision's reader asserts, indexes and reshapes whatever the bytes are.
_UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AssertionError,
)  # fmt: skip


def digits(root: Path) -> Source:
    """Scikit-learn's 1,797 handwritten digits, 8×8, 17 levels; needs no network.

    A fixed shuffle gives 1,297 training, 200 validation and 300 test images.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = TensorImages(torch.from_numpy(bunch.images.astype(np.uint8)))
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    rows = partition({"train": 1297, "valid": 200, "test": 300})
    return Source.select(images, labels, rows, num_levels=17)


def mnist(root: Path) -> Source:
    """Handwritten digits, 28×28, 256 levels (LeCun et al., 1998).

    A fixed shuffle cuts the 60,000 training images into 50,000 and 10,000 for validation.
    """
    from torchvision.datasets import MNIST

    return _torchvision("mnist", MNIST, root)


def fashion_mnist(root: Path) -> Source:
    """Articles of clothing, 28×28, 256 levels (Xiao et al., 2017); split as mnist."""
    from torchvision.datasets import FashionMNIST

    return _torchvision("fashion_mnist", FashionMNIST, root)


def kmnist(root: Path) -> Source:
    """Cursive Japanese characters, 28×28, 256 levels (Clanuwat et al., 2018); split as mnist."""
    from torchvision.datasets import KMNIST

    return _torchvision("kmnist", KMNIST, root)


def binarized_mnist(root: Path) -> Source:
    """MNIST binarized once and for all (Larochelle & Murray, 2011), 28×28, no labels.

    Its own splits: 50,000 training, 10,000 validation and 10,000 test images.
    """
    path = root / "binarized_mnist" / "static.npz"
    if not path.exists():
        save_npz(path, **{name: _read_amat(name, path) for name in SPLITS})
    arrays = _read_stored(path, {k: (n, 98) for k, n in _BINARIZED_MNIST_COUNTS.items()})
    images = {
        name: TensorImages(torch.from_numpy(np.unpackbits(packed, axis=1).reshape(-1, 28, 28)))
        for name, packed in arrays.items()
    }
    return Source(images, dict.fromkeys(SPLITS), num_levels=2)


def frey_faces(root: Path) -> Source:
    """1,965 video frames of one face, 28×20, 256 levels (Roweis); neighbours are dependent.

    Fifteen contiguous blocks of 131 frames: the 4th and 11th validate, the 7th and 14th test,
    the others train (1,441, 262 and 262 frames), each split in the order of the film.
    """
    path = root / "frey_faces" / "frey_faces.npz"
    if not path.exists():
        save_npz(path, images=_read_frey_mat(path))
    frames = _read_stored(path, {"images": _FREY_FACES_SHAPE})["images"]
    uses = np.repeat(list(_FREY_FACES_BLOCKS), 131)
    rows = {
        name: torch.from_numpy(np.flatnonzero(uses == use))
        for name, use in zip(SPLITS, "tve", strict=True)
    }
    images = TensorImages(torch.from_numpy(frames))
    return Source.select(images, None, rows, num_levels=256, ordered=True)


def _torchvision(name: str, dataset: Any, root: Path) -> Source:
    folder = root / dataset.__name__ / "raw"
    files = [folder / archive.removesuffix(".gz") for archive, _ in dataset.resources]
    complete = all(file.is_file() for file in files)
    try:
        parts = [dataset(root, train=train, download=not complete) for train in (True, False)]
        for part, count in zip(parts, (60_000, 10_000), strict=True):
            if part.data.shape != (count, 28, 28) or part.targets.shape != (count,):
                raise ValueError(f"expected {count} images 28×28, got {tuple(part.data.shape)}")
    except _UNREADABLE as error:
        reason = one_line(error)
        raise InputError(
            f"{name} in {folder} is damaged ({reason}): delete that folder to download it again"
            if complete
            else f"{name} is not in {folder}, and downloading it failed ({reason}): "
            f"put its files there, or try again with a network"
        ) from None
    full, test = parts
    source = Source.select(
        TensorImages(full.data), full.targets, partition({"train": 50_000, "valid": 10_000}), 256
    )
    return Source(
        {**source.images, "test": TensorImages(test.data)},
        {**source.labels, "test": test.targets},
        num_levels=256,
    )


def _read_stored(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The uint8 arrays of these names and shapes, and no others."""
    try:
        arrays = read_arrays(path)
    except InputError:
        arrays = {}
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape or arrays[name].dtype != np.uint8:
            raise InputError(
                f"{path} is damaged: expected {name!r} as uint8 {list(shape)}; "
                f"delete it to download it again"
            )
    return {name: arrays[name] for name in shapes}


def _read_amat(split: str, target: Path) -> np.ndarray:
    """Lines of 784 characters 0 or 1 between spaces, packed as [N, 98]."""
    url = _BINARIZED_MNIST.format(split)
    text = np.frombuffer(download("binarized_mnist", url, target), dtype=np.uint8)
    bits = text[(text == ord("0")) | (text == ord("1"))] - ord("0")
    count = _BINARIZED_MNIST_COUNTS[split]
    if bits.size != count * 784:
        raise InputError(
            f"binarized_mnist: expected {count} lines of 784 zeros and ones at {url}, "
            f"got {bits.size} of them; try again later"
        )
    return np.packbits(bits.reshape(count, 784), axis=1)


def _read_frey_mat(target: Path) -> np.ndarray:
    from scipy.io import loadmat  # type: ignore[import-untyped]

    data = download("frey_faces", _FREY_FACES, target)
    try:
        frames = loadmat(io.BytesIO(data))["ff"]  # [560, 1965], a column a frame
        return np.ascontiguousarray(frames.T, dtype=np.uint8).reshape(_FREY_FACES_SHAPE)
    except (*_UNREADABLE, AttributeError) as error:
        raise InputError(
            f"frey_faces: {_FREY_FACES} is not the expected file ({one_line(error)}); "
            f"try again later"
        ) from None
