"""The sizes of a flow, checked."""

__all__ = ["check_sizes"]

from collections.abc import Sequence

from pyro_vae.checks import check_count, check_number
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
    check_count(name, "layers", layers)
    widths = hidden if isinstance(hidden, tuple | list) else ()
    if not widths or any(type(width) is not int or width < 1 for width in widths):
        raise InputError(
            f"{name}: hidden must be widths of at least one layer, such as (128,), got {hidden!r}"
        )
    check_count(name, "bins", bins, low=2)
    check_number(name, "bound", bound)
