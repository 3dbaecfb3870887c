"""Defaults that the command line's help shows, and that it must not wait for torch to know."""

__all__ = ["VALUE_REPEATS", "GRADIENT_REPEATS", "Settings"]

from dataclasses import dataclass

from pyro_vae.errors import InputError

VALUE_REPEATS, GRADIENT_REPEATS = 40, 100
"""Draws an estimator, of a comparison."""


@dataclass(frozen=True)
class Settings:
    """How much of the data a diagnosis looks at, and how closely.

    Raises:
        InputError: sizes or a seed that are none.
    """

    count: int = 2000
    """Data of each split, at most; of the gap ``gap_count``."""
    gap_count: int = 50
    num_samples: int = 1000
    """K of IWAE-K, whose k̂ are looked at."""
    num_chains: int = 16
    """Of AIS, where log p(x) of the gap is from it; of ``bounds``, so many each way."""
    num_temperatures: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"count": 2, "gap_count": 2, "num_samples": 1, "num_chains": 2}
        for name, minimum in {**least, "num_temperatures": 2}.items():
            value = getattr(self, name)
            if value < minimum:
                raise InputError(f"{name} must be at least {minimum}, got {value}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be from 0 to 2⁶³ − 1, got {self.seed}")
