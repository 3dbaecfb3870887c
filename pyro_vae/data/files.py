"""A user's own arrays: ``.npy``, ``.npz`` and ``.pt`` files."""

__all__ = ["load_file", "read_arrays"]

import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.downloads import one_line
from pyro_vae.data.images import TensorImages
from pyro_vae.data.source import SPLITS, Source, partition, partition_sizes
from pyro_vae.errors import InputError, suggest

_WHOLE = ("x", "images")
_LABELS = ("labels", "y")
_MAX_COUNT = 2**24  # float32 holds every whole number up to here
_SPLIT_LABELS = tuple(f"{name}_labels" for name in SPLITS)
_UNREADABLE = (
    OSError, EOFError, ValueError, RuntimeError, LookupError, MemoryError,
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def load_file(path: Path, num_levels: int | None = None, *, counts: bool = False) -> Source:
    """Your own images: [N, H, W], [N, C, H, W] or vectors [N, D], in .npy, .npz or .pt.

    A ``.npz`` or a dict in a ``.pt`` holds ``train`` (and ``valid``, ``test``, ``train_labels``,
    …), or one array ``x`` or ``images`` (and ``labels`` or ``y``). A split that is missing is a
    tenth of the training data by a fixed shuffle. Whole numbers are levels (256 of them unless
    ``num_levels`` says otherwise), only 0 and 1 are binary, other floats are used as they are.

    Arguments:
        path: the file.
        num_levels: n, above the largest level.
        counts: the numbers are counts, in integers or floats, as many levels as the largest needs.

    Raises:
        InputError: the file cannot be read, or does not hold such arrays.
    """
    if num_levels is not None and not (type(num_levels) is int and 2 <= num_levels <= 65536):
        raise InputError(f"num_levels must be a whole number from 2 to 65536, got {num_levels!r}")
    images, labels = _name_arrays(path, read_arrays(path))
    images = {name: _check_images(f"{path}: {name!r}", array) for name, array in images.items()}
    shapes = {name: array.shape[1:] for name, array in images.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"{path}: the splits must have images of one shape, got {shapes}")
    levels = _count_levels(path, list(images.values()), num_levels, counts)
    dtype = np.float32 if levels is None else np.uint8 if levels <= 256 else np.int32
    raw = {name: TensorImages(torch.from_numpy(a.astype(dtype))) for name, a in images.items()}
    checked = {
        name: _check_labels(f"{path}: labels of {name!r}", labels.get(name), len(images[name]))
        for name in images
    }
    missing = tuple(name for name in SPLITS if name not in images)
    if not missing:
        return Source(raw, checked, levels)
    rows = partition(partition_sizes(f"{path}", len(raw["train"]), missing))
    cut = Source.select(raw["train"], checked["train"], rows, levels)
    return Source({**raw, **cut.images}, {**checked, **cut.labels}, levels)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the named arrays of a file; a lone array is called ``x``.

    Raises:
        InputError: the file is missing, truncated, or holds pickled objects.
    """
    try:
        return _read_torch(path) if path.suffix == ".pt" else _read_numpy(path)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except _UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError) or "pickle" in str(error):
            raise InputError(
                f"{path} holds pickled Python objects, which are refused, or is damaged: "
                f"save plain arrays with numpy.save, numpy.savez or torch.save"
            ) from None
        raise InputError(
            f"cannot read {path}, truncated or not a {path.suffix} file ({one_line(error)}): "
            f"write it again"
        ) from None


def _read_numpy(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        return {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    tensors = {"x": loaded} if isinstance(loaded, Tensor) else loaded
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise InputError(f"{path} must hold a tensor or a dict of tensors; save one of these")
    # NumPy has no bfloat16; float32 holds it exactly.
    return {
        str(key): (t.float() if t.dtype == torch.bfloat16 else t).detach().to_dense().numpy()
        for key, t in tensors.items()
    }


def _name_arrays(
    path: Path, arrays: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The images and the labels, by the name of their split."""
    others = [key for key in arrays if key not in (*_LABELS, *_SPLIT_LABELS)]
    if "train" in arrays:
        valid = (*SPLITS, *_SPLIT_LABELS)
        named = {name: arrays[name] for name in SPLITS if name in arrays}
        labels = {name: arrays[f"{name}_labels"] for name in SPLITS if f"{name}_labels" in arrays}
    else:
        valid = (*_WHOLE, *_LABELS)
        whole = [key for key in others if key in _WHOLE] or others
        if len(whole) != 1 or whole[0] in SPLITS:
            raise InputError(
                f"{path} must hold an array 'train' (and 'valid', 'test'), or one array "
                f"'x' or 'images'; got {', '.join(map(repr, arrays)) or 'none'}"
            )
        valid = (*valid, whole[0])
        named = {"train": arrays[whole[0]]}
        given = [arrays[key] for key in _LABELS if key in arrays]
        labels = {"train": given[0]} if given else {}
    for key in arrays:
        if key not in valid:
            raise InputError(f"{path}: unknown array {key!r}{suggest(key, valid)}")
    return named, labels


def _check_images(what: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise InputError(f"{what} must hold numbers (uint8 or float), got dtype {array.dtype}")
    if not 2 <= array.ndim <= 4:
        raise InputError(
            f"{what} must have shape [N, H, W], [N, C, H, W] or [N, D], got {array.shape}"
        )
    if array.size == 0:
        raise InputError(f"{what} is empty, of shape {array.shape}: it needs at least one image")
    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        raise InputError(
            f"{what} has channels last, shape {array.shape}: store [N, C, H, W], "
            f"as x.transpose(0, 3, 1, 2) does"
        )
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise InputError(f"{what} holds {bad} NaN or infinite values: remove or replace them")
    if array.dtype.kind == "f" and np.abs(array).max() > np.finfo(np.float32).max:
        raise InputError(f"{what} holds values beyond float32 (3.4e38): rescale them")
    return array[:, 0] if array.ndim == 4 and array.shape[1] == 1 else array


def _check_labels(what: str, labels: np.ndarray | None, count: int) -> Tensor | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "bui" or labels.shape != (count,):
        raise InputError(
            f"{what} must be {count} whole numbers, got {labels.dtype} of shape {labels.shape}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _count_levels(
    path: Path, arrays: list[np.ndarray], asked: int | None, counts: bool
) -> int | None:
    """The number of levels: 2 for data of 0 and 1 only, None for reals."""
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    whole = all(a.dtype.kind in "bui" or np.array_equal(a, np.rint(a)) for a in arrays)
    floats = any(a.dtype.kind == "f" for a in arrays)
    got = f"got values from {low} to {high}{'' if whole else ' with fractions'}"
    if asked is None and counts:
        if not whole or low < 0 or high > _MAX_COUNT:
            raise InputError(
                f"{path}: values=counts are whole numbers 0 … {_MAX_COUNT} (float32 skips some "
                f"of the larger ones), {got}: give others as values=continuous, in floats"
            )
        return max(2, int(high) + 1)
    if asked is None and floats and not (whole and low >= 0 and high <= 255):
        return None
    limit = asked or 256
    if not whole or low < 0 or high >= limit:
        raise InputError(
            f"{path}: expected whole levels 0 … {limit - 1}, {got}: set num_levels above the "
            f"largest level, write values=counts, or store floats without num_levels"
        )
    return 2 if asked is None and high <= 1 else limit
