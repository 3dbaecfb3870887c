"""Where raw images lie: one interface for tensors in memory and for files read when needed."""

__all__ = ["Images", "TensorImages"]

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Images(Protocol):
    """Raw images (levels, or reals), each of shape ``event_shape``."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one image: (H, W), (C, H, W) or (D,)."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor:
        """Return the images ``index``, ``[len(index), *event_shape]``, on the CPU."""

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Yield on ``device`` the images of each batch of indices."""

    def select(self, index: Tensor) -> "Images":
        """Return the images ``index`` as images of their own."""


class TensorImages:
    """Images in memory, moved to each device once.

    Arguments:
        raw: ``[N, *event_shape]``, uint8 or int32 levels, or float32 reals, on the CPU.
    """

    def __init__(self, raw: Tensor):
        self._raw = raw
        self._on_device = {raw.device: raw}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return tuple(self._raw.shape[1:])

    def __len__(self) -> int:
        return len(self._raw)

    def take(self, index: Tensor) -> Tensor:
        """Return the images ``index``, ``[len(index), *event_shape]``."""
        return self._raw[index]

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Yield on ``device`` the images of each batch of indices, which lie there too."""
        if device not in self._on_device:
            self._on_device[device] = self._raw.to(device)
        raw = self._on_device[device]
        return (raw[index] for index in batches)

    def select(self, index: Tensor) -> "TensorImages":
        """Return a copy of the images ``index``."""
        return TensorImages(self._raw[index])
