"""A split: the same data drawn afresh for training, and drawn once to be scored."""

__all__ = ["DataSplits", "Split"]

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.images import Images
from pyro_vae.data.noise import permutation, seeded_ranks
from pyro_vae.data.values import Values
from pyro_vae.errors import InputError, suggest
from pyro_vae.specs import Spec, parse_spec

_CHUNK = 2**22  # pixels drawn at once when scoring


class Split:
    """The training, validation or test part of a data set.

    Arguments:
        images: the raw images, N of them.
        labels: int64 ``[N]``, or None.
        values: what becomes of the raw images.
        seed: the seed of the one draw that is scored.
        ids: int64 ``[N]``, what each datum's scored draw is keyed by (default 0 … N−1).
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor | None,
        values: Values,
        seed: int,
        ids: Tensor | None = None,
    ):
        self.labels = labels
        self.values = values
        self.seed = seed
        self._images = images
        self._ids = torch.arange(len(images)) if ids is None else ids

    def __len__(self) -> int:
        return len(self._images)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return self._images.event_shape

    def scored(self, index: slice | Tensor = slice(None)) -> Tensor:
        """Return the data ``index`` as they are evaluated, float32 ``[n, *event_shape]`` (CPU).

        Binarization or dequantization is drawn once, keyed by the split's seed and the datum.
        """
        rows = self._rows(index)
        values = torch.empty(len(rows), *self.event_shape)
        for start, part in self._scored_parts(rows):
            values[start : start + len(part)] = part
        return values

    def scored_chunks(self, size: int = 1000) -> Iterator[Tensor]:
        """Yield ``scored()`` in order, ``size`` data at a time."""
        for start in range(0, len(self), size):
            yield self.scored(slice(start, start + size))

    @cached_property
    def content_hash(self) -> str:
        """The SHA-256 (hex) of shape, dtype and little-endian bytes of ``scored()``."""
        shape = (len(self), *self.event_shape)
        digest = hashlib.sha256(f"{shape} float32".encode())
        for _, part in self._scored_parts(self._rows(slice(None))):
            digest.update(part.numpy().astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    def batches(
        self, batch_size: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Iterator[Tensor]:
        """Yield one epoch: every datum once, shuffled and drawn afresh by ``generator``.

        Batches are ``[batch_size, *event_shape]`` (the last one may be smaller) in ``dtype``,
        on the generator's device.

        Raises:
            InputError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, got {batch_size}")
        return self._batches(batch_size, generator, dtype)

    def _batches(
        self, batch_size: int, generator: torch.Generator, dtype: torch.dtype
    ) -> Iterator[Tensor]:
        device, num_ranks = generator.device, self.values.num_ranks
        order = torch.randperm(len(self), generator=generator, device=device)
        for raw in self._images.stream(order.split(batch_size), device):
            ranks = None
            if num_ranks is not None:
                ranks = torch.randint(
                    num_ranks, raw.shape, generator=generator, device=device, dtype=torch.int32
                )
            yield self.values.draw(raw, ranks, dtype)

    def subset(self, count: int, seed: int = 0) -> "Split":
        """Return ``count`` data drawn at random without replacement, each scored as it is here.

        They keep the order they have here, so that neighbours in a video stay neighbours.

        Raises:
            InputError: ``count`` is below 1 or above the number of data.
        """
        if not 1 <= count <= len(self):
            raise InputError(f"a subset of {len(self)} data takes 1 to {len(self)}, got {count}")
        index = permutation(len(self), seed)[:count].sort().values
        labels = None if self.labels is None else self.labels[index]
        images = self._images.select(index)
        return Split(images, labels, self.values, self.seed, self._ids[index])

    def mean(self) -> Tensor:
        """Return the mean of the expected values, float32 ``event_shape``."""
        total = torch.zeros(self.event_shape, dtype=torch.float64)
        for rows in self._rows(slice(None)).split(self._rows_at_once):
            total += self.values.expectation(self._images.take(rows)).sum(0)
        return (total / len(self)).float()

    @property
    def _rows_at_once(self) -> int:
        return max(1, _CHUNK // math.prod(self.event_shape))

    def _rows(self, index: slice | Tensor) -> Tensor:
        return torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]

    def _scored_parts(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        num_ranks = self.values.num_ranks
        for start in range(0, len(rows), self._rows_at_once):
            part = rows[start : start + self._rows_at_once]
            ranks = None
            if num_ranks is not None:
                ranks = seeded_ranks(self.seed, self._ids[part], self.event_shape, num_ranks)
            yield start, self.values.draw(self._images.take(part), ranks, torch.float32)


@dataclass(frozen=True)
class DataSplits:
    """A data set in its three splits.

    Arguments:
        spec: the canonical spec, every choice of values resolved.
        train, valid, test: the splits.
        event_shape: (H, W) for one grey channel, (C, H, W) for colour, (D,) for vectors.
        measure: ``binary``, ``levels``, ``counts`` or ``continuous``.
        num_levels: n for levels and for dequantized data; None for binary data, counts and reals.
        dequantized: the values are (level + uniform) / n, strictly inside (0, 1).
        ordered: neighbouring data depend on each other (video frames).
    """

    spec: str
    train: Split
    valid: Split
    test: Split
    event_shape: tuple[int, ...]
    measure: str
    num_levels: int | None
    dequantized: bool
    ordered: bool

    @cached_property
    def data_mean(self) -> Tensor:
        """The mean of the training data, float32 ``event_shape``, in the units of the values.

        Binarization and dequantization enter by their expectation, not by a draw.
        """
        return self.train.mean()

    def split(self, name: str) -> Split:
        """Return ``train``, ``valid`` or ``test`` by name.

        Raises:
            InputError: there is no such split.
        """
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        if name not in splits:
            raise InputError(f"unknown split {name!r}{suggest(name, splits)}")
        return splits[name]

    def protocol(self, split_name: str, subset: Split | None = None) -> dict[str, Any]:
        """Return what a result must state about its data; ``subset`` is what was scored, if less.

        Raises:
            InputError: there is no such split.
        """
        split = subset or self.split(split_name)
        data = parse_spec(self.spec)
        # How files are read says nothing about the data.
        told = {k: v for k, v in data.arguments.items() if k not in ("memory_limit", "workers")}
        binarize = split.values.binarize
        return {
            "data": str(Spec(data.name, told)),
            "split": split_name,
            "count": len(split),
            "content_hash": split.content_hash,
            "binarization": binarize,
            "binarization_seed": split.seed if binarize == "dynamic" else None,
        }
