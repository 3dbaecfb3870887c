"""What the values of the data are: binary, levels, counts or continuous; how they are drawn."""

__all__ = ["BINARIZATIONS", "MEASURES", "Values", "check_choices", "resolve_values"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import InputError, suggest

MEASURES = ("binary", "levels", "counts", "continuous")
BINARIZATIONS = ("dynamic", "threshold", "none")


@dataclass(frozen=True)
class Values:
    """How raw levels 0 … n−1, raw counts or reals become the values that a model sees.

    Arguments:
        measure: ``binary``, ``levels``, ``counts`` or ``continuous``.
        binarize: ``dynamic``, ``threshold`` or ``none``.
        num_levels: n of the raw data: 2 where they are binary already, None for counts and reals.
    """

    measure: str
    binarize: str
    num_levels: int | None

    @property
    def dequantized(self) -> bool:
        """Whether the values are (level + uniform) / n."""
        return self.measure == "continuous" and self.num_levels is not None

    @property
    def num_ranks(self) -> int | None:
        """A draw needs ranks, integers uniform on 0 … num_ranks−1; None: nothing is drawn."""
        if self.num_levels is None:
            return None
        if self.binarize == "dynamic":
            return self.num_levels - 1
        if self.dequantized:
            # l + u stays exact in float32, and (l + u) / n strictly inside its cell with
            # two bits to spare for devices that divide by multiplying with 1/n.
            return int(2 ** (21 - (self.num_levels - 1).bit_length()))
        return None

    def draw(self, raw: Tensor, ranks: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the values of ``raw`` for these ``ranks`` (shaped as ``raw``) in ``dtype``."""
        n, m = self.num_levels, self.num_ranks
        if n is not None and m is not None and ranks is not None:
            if self.binarize == "dynamic":
                return (ranks < raw).to(dtype)  # P(rank < l) = l / (n−1), exactly
            wide = torch.promote_types(dtype, torch.float32)
            u = (ranks.to(wide) + 0.5) / m
            return ((raw.to(wide) + u) / n).to(dtype)
        if n is not None and self.binarize == "threshold":
            return (2 * raw.int() >= n - 1).to(dtype)  # l / (n−1) ≥ ½
        return raw.to(dtype)

    def expectation(self, raw: Tensor) -> Tensor:
        """Return the expected value of a draw, float64, shaped as ``raw``."""
        if self.num_levels is not None and self.binarize == "dynamic":
            return raw.double() / (self.num_levels - 1)
        if self.num_levels is not None and self.dequantized:
            return (raw.double() + 0.5) / self.num_levels
        return self.draw(raw, None, torch.float64)


def check_choices(arguments: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the ``values`` and ``binarize`` asked for, None where not given.

    Raises:
        InputError: a word is unknown, or the two contradict each other.
    """
    values = _choice(arguments, "values", MEASURES)
    binarize = _choice(arguments, "binarize", BINARIZATIONS)
    if values in ("levels", "counts", "continuous") and binarize in ("dynamic", "threshold"):
        raise InputError(
            f"values={values} are not binarized: drop binarize={binarize}, or write values=binary"
        )
    return values, binarize


def resolve_values(
    name: str, values: str | None, binarize: str | None, num_levels: int | None, colour: bool
) -> Values:
    """Complete the choice for the data ``name``: grey levels are binarized dynamically.

    Colour data stay levels unless asked; data that are binary or real already stay as they are.

    Raises:
        InputError: these data cannot have these values.
    """
    if num_levels is None or num_levels == 2:
        if num_levels == 2 and values == "counts":  # of which none exceeds 1
            return Values("counts", "none", None)
        kept = Values("continuous" if num_levels is None else "binary", "none", num_levels)
        if values in (None, kept.measure) and binarize in (None, "none"):
            return kept
        asked = f"values={values}" if values not in (None, kept.measure) else f"binarize={binarize}"
        raise InputError(
            f"{name} holds real numbers, which stay values=continuous: for {asked} "
            f"store whole {'numbers' if values == 'counts' else 'grey levels 0 … 255 (uint8)'}"
            if num_levels is None
            else f"{name} holds only 0 and 1, which stay values=binary, binarize=none: "
            f"for {asked} use the grey data (such as mnist), or drop it"
        )
    if values is None:
        values = "levels" if binarize == "none" or (colour and binarize is None) else "binary"
    if binarize is None:
        binarize = "dynamic" if values == "binary" else "none"
    if values == "binary" and binarize == "none":
        raise InputError(
            f"{name} holds grey levels, which binarize=none leaves: "
            f"write values=levels, or binarize=dynamic"
        )
    return Values(values, binarize, None if values == "counts" else num_levels)


def _choice(arguments: Mapping[str, Any], key: str, valid: tuple[str, ...]) -> str | None:
    if key not in arguments:
        return None
    word = str(arguments[key]).lower()
    if word not in valid:
        raise InputError(f"unknown {key}={arguments[key]}{suggest(word, valid)}")
    return word
