"""Seeds derived from a seed and what they are for, and torch's global generators under them."""

__all__ = ["derive_seed", "seeded", "forked"]

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

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
    with forked(device):
        torch.default_generator.manual_seed(seed)
        if torch.device(device).type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def forked(device: torch.device | str = "cpu") -> AbstractContextManager[None]:
    """Restore the global generators of the CPU and of ``device`` at the end of the block."""
    device = torch.device(device)
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
