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
    """Images in memory, moved to each device once, as they are stored, where they fit.

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
        """Yield on ``device`` the images of each batch of indices, which lie there too.

        The host waits for the device once at most, never for each batch.
        """
        if device not in self._on_device:
            if not _fits(self._raw, device):
                return self._sent(batches, device)
            self._on_device[device] = self._raw.to(device)
        raw = self._on_device[device]
        return (raw.index_select(0, index) for index in batches)

    def _sent(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Gather each batch here, and send it while the device works on."""
        indices = torch.cat(list(batches)).cpu().split([len(index) for index in batches])
        for index in indices:
            images = self._raw[index]
            pinned = images.pin_memory() if device.type == "cuda" else images
            yield pinned.to(device, non_blocking=True)

    def select(self, index: Tensor) -> "TensorImages":
        """Return a copy of the images ``index``."""
        return TensorImages(self._raw[index])


def _fits(raw: Tensor, device: torch.device) -> bool:
    """Whether the images take at most half of what is free on the device."""
    return device.type != "cuda" or raw.nbytes <= torch.cuda.mem_get_info(device)[0] // 2
