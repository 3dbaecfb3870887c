"""Seeded randomness that is the same for a datum whatever else is asked, on any version.

Words come from Philox, a counter-based generator whose raw stream NumPy keeps stable.
"""

__all__ = ["NOISE_SEEDS", "permutation", "seeded_ranks"]

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NOISE_SEEDS = {"train": 101, "valid": 102, "test": 103}
"""The seed of the one draw in which each split is scored."""

_PERMUTATION, _NOISE = 0, 1  # the high word of the key: the two uses never share a stream


def permutation(count: int, seed: int) -> Tensor:
    """Return a random permutation of 0 … count−1, int64 ``[count]``."""
    words = _philox(seed, _PERMUTATION).random_raw(count)
    return torch.from_numpy(np.argsort(words, kind="stable"))


def seeded_ranks(seed: int, ids: Tensor, shape: Sequence[int], num_ranks: int) -> Tensor:
    """Return integers uniform on 0 … num_ranks−1, int32 ``[len(ids), *shape]``.

    Row i depends on ``seed``, ``ids[i]``, ``shape`` and ``num_ranks`` (at most 2²⁴) alone.
    """
    size = math.prod(shape)
    stride = -(-size // 4)  # a counter yields four 64-bit words
    numbers = ids.numpy()
    ranks = np.empty((len(numbers), size), dtype=np.int32)
    starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
    for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=False):
        counter = int(numbers[start]) * stride
        words = _philox(seed, _NOISE, counter).random_raw((stop - start) * stride * 4)
        scaled = (words >> np.uint64(24)) * np.uint64(num_ranks) >> np.uint64(40)
        ranks[start:stop] = scaled.reshape(stop - start, -1)[:, :size]
    return torch.from_numpy(ranks).view(len(numbers), *shape)


def _philox(seed: int, use: int, counter: int = 0) -> np.random.Philox:
    return np.random.Philox(key=(use << 64) + seed % 2**64, counter=counter)
