"""The sizes of a flow, checked."""

__all__ = ["check_sizes"]

import math
from collections.abc import Sequence

from pyro_vae.errors import InputError


def check_sizes(
    name: str,
    *,
    layers: int,
    hidden: Sequence[int] = (1,),
    bins: int = 2,
    bound: float = 1.0,
) -> None:
    """Refuse sizes of which no flow can be made.

    Raises:
        InputError: what was expected, and what came.
    """
    if type(layers) is not int or layers < 1:
        raise InputError(f"{name}: layers must be a whole number, at least 1, got {layers!r}")
    widths = hidden if isinstance(hidden, tuple | list) else ()
    if not widths or any(type(width) is not int or width < 1 for width in widths):
        raise InputError(
            f"{name}: hidden must be widths of at least one layer, such as (128,), got {hidden!r}"
        )
    if type(bins) is not int or bins < 2:
        raise InputError(f"{name}: bins must be a whole number, at least 2, got {bins!r}")
    if isinstance(bound, bool) or not (isinstance(bound, int | float) and 0 < bound < math.inf):
        raise InputError(f"{name}: bound must be positive and finite, got {bound!r}")
