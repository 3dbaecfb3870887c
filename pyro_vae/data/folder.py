"""A folder of images: decoded into memory where it fits, read through a DataLoader else."""

__all__ = ["FolderImages", "load_folder"]

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_vae.data.downloads import one_line
from pyro_vae.data.images import Images, TensorImages
from pyro_vae.data.source import Source, partition, partition_sizes
from pyro_vae.errors import InputError

MEMORY_LIMIT = 2 * 2**30
"""Bytes of decoded images above which a folder is read from disk in every epoch."""

_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def load_folder(
    path: Path,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
    workers: int = 0,
) -> Source:
    """Your own folder of .png, .jpg, … images; subfolders become labels, in alphabetical order.

    A fixed shuffle gives 80 % training, 10 % validation and 10 % test images.

    Arguments:
        path: the folder.
        size: height and width, or one number for both, that every image is cropped about its
            centre and resized to; without it all images must have one size.
        channels: 1 or 3; by default 3 if any image has colour.
        memory_limit: bytes of decoded images above which they are read when needed.
        workers: processes that decode them then.

    Raises:
        InputError: the arguments make no sense, or the images cannot be read.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    height_width = (size, size) if isinstance(size, int) else size
    if height_width is not None and not (
        isinstance(height_width, tuple)
        and len(height_width) == 2
        and all(type(side) is int and side >= 1 for side in height_width)
    ):
        raise InputError(f"size must be a number of pixels or (height, width), got {size!r}")
    if channels not in (None, 1, 3):
        raise InputError(f"channels must be 1 or 3, got {channels!r}")
    if type(memory_limit) is not int or memory_limit < 0:
        raise InputError(f"memory_limit must be a number of bytes, got {memory_limit!r}")
    if type(workers) is not int or workers < 0:
        raise InputError(f"workers must be 0 or more, got {workers!r}")

    paths = sorted(
        p
        for p in path.rglob("*")
        if p.suffix.lower() in IMG_EXTENSIONS and not p.name.startswith(".")
    )
    if not paths:
        raise InputError(f"{path} holds no images: expected files such as .png or .jpg")
    sizes = partition_sizes(str(path), len(paths))
    headers = [_read_header(p) for p in paths]
    if height_width is None:
        height_width = headers[0][1]
        for p, (_, other) in zip(paths, headers, strict=True):
            if other != height_width:
                raise InputError(
                    f"{path} holds images of unequal sizes ({paths[0].name} {height_width}, "
                    f"{p.name} {other}, as height and width): set size=28 or another size"
                )
    if channels is None:
        channels = 1 if all(grey for grey, _ in headers) else 3
    event_shape = height_width if channels == 1 else (3, *height_width)
    images: Images = FolderImages(paths, event_shape, workers)
    if len(paths) * math.prod(event_shape) <= memory_limit:
        images = TensorImages(images.take(torch.arange(len(paths))))
    return Source.select(images, _folder_labels(path, paths), partition(sizes), num_levels=256)


class FolderImages(Dataset[Tensor | InputError]):
    """Image files, decoded when needed to uint8 ``event_shape``, (H, W) or (3, H, W)."""

    def __init__(self, paths: list[Path], event_shape: tuple[int, ...], workers: int):
        self._paths = paths
        self._event_shape = event_shape
        self._workers = workers

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self._event_shape

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor | InputError:
        # Returned, not raised: a worker process would wrap it in its traceback.
        try:
            return _decode(self._paths[index], self._event_shape)
        except InputError as error:
            return error

    def take(self, index: Tensor) -> Tensor:
        """Return the images ``index``, uint8 ``[len(index), *event_shape]``."""
        images = torch.empty(len(index), *self._event_shape, dtype=torch.uint8)
        for row, i in enumerate(index.tolist()):
            images[row] = _decode(self._paths[i], self._event_shape)
        return images

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Yield on ``device`` the images of each batch of indices."""
        loader = DataLoader(
            self,
            batch_sampler=[index.tolist() for index in batches],
            num_workers=self._workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        for images in loader:
            if isinstance(images, InputError):
                raise images
            yield images.to(device, non_blocking=True)

    def select(self, index: Tensor) -> "FolderImages":
        """Return the images ``index`` as a folder of their own."""
        paths = [self._paths[i] for i in index.tolist()]
        return FolderImages(paths, self._event_shape, self._workers)


def _collate(items: list[Tensor | InputError]) -> Tensor | InputError:
    tensors = [item for item in items if isinstance(item, Tensor)]
    errors = [item for item in items if isinstance(item, InputError)]
    return errors[0] if errors else torch.stack(tensors)


def _read_header(path: Path) -> tuple[bool, tuple[int, int]]:
    """Whether the image is grey, and its height and width."""
    try:
        with Image.open(path) as image:
            mode, width, height = image.mode, image.width, image.height
    except _UNREADABLE as error:
        raise InputError(f"cannot read the image {path}: {one_line(error)}") from None
    if mode[0] in "IF":
        raise InputError(f"{path} has more than 8 bits a pixel (mode {mode}): save it with 8")
    return mode in ("1", "L", "LA"), (height, width)


def _decode(path: Path, event_shape: tuple[int, ...]) -> Tensor:
    height, width = event_shape[-2:]
    try:
        with Image.open(path) as file:
            image = file.convert("L" if len(event_shape) == 2 else "RGB")
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(image))
    except _UNREADABLE as error:
        raise InputError(f"cannot read the image {path}: {one_line(error)}") from None
    return pixels if len(event_shape) == 2 else pixels.permute(2, 0, 1)


def _folder_labels(root: Path, paths: list[Path]) -> Tensor | None:
    """The number of each image's subfolder; None unless every image lies in one."""
    parts = [path.relative_to(root).parts for path in paths]
    if any(len(part) == 1 for part in parts):
        return None
    numbers = {name: i for i, name in enumerate(sorted({part[0] for part in parts}))}
    return torch.tensor([numbers[part[0]] for part in parts])
