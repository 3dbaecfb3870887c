"""Seeds derived from a seed and what they are for, and torch's global generators under them."""

__all__ = ["derive_seed", "seeded"]

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed below 2⁶³ for one purpose, unrelated to that of any other.

    The first eight bytes of the SHA-256 of the words, so that it is the same on
    every platform and in every version.

    Example:
        >>> derive_seed(0, "epoch", 3) == derive_seed(0, "epoch", 3)
        True
        >>> derive_seed(0, "epoch", 3) == derive_seed(0, "epoch", 4)
        False
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global generators of the CPU and of ``device``; restore them afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
