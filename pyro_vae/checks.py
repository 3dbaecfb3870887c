"""Checks of the numbers that options give: one line, or the number."""

__all__ = ["check_count", "check_number"]

from reprlib import repr as shorten
from typing import Any

from pyro_vae.errors import InputError


def check_number(
    name: str,
    key: str,
    value: Any,
    low: float = 1e-12,
    high: float = 1e12,
    *,
    ends: str = "[]",
    words: tuple[str, ...] = (),
) -> None:
    """Refuse what is neither a number between ``low`` and ``high`` nor one of ``words``.

    Within the default bounds a number and its square are finite and positive in float32.

    Arguments:
        name: the component.
        key: its option.
        value: what was given.
        low, high: the bounds, both positive.
        ends: ``[`` and ``]`` where they belong to the interval, ``(`` and ``)`` where not.
        words: what may stand in place of a number.

    Raises:
        InputError: what was expected, what came.

    Example:
        >>> check_number("normal", "scale", "learned", words=("learned",))
        >>> check_number("normal", "floor", 1, 1e-6, 1, ends="[)")
        Traceback (most recent call last):
        pyro_vae.errors.InputError: normal: floor must be positive and in [1e-06, 1), got 1
    """
    if isinstance(value, str) and value in words:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        wanted = " or ".join([", ".join(["a positive number", *words[:-1]]), *words[-1:]])
        raise InputError(f"{name}: {key} must be {wanted}, got {shorten(value)}")
    above = low <= value if ends[0] == "[" else low < value
    below = value <= high if ends[1] == "]" else value < high
    if not (above and below):  # NaN too
        raise InputError(
            f"{name}: {key} must be positive and in {ends[0]}{low:g}, {high:g}{ends[1]}, "
            f"got {shorten(value)}"
        )


def check_count(name: str, key: str, value: Any, high: int = 1_000_000, *, low: int = 1) -> None:
    """Refuse what is not a whole number from ``low`` to ``high``.

    Raises:
        InputError: what was expected, what came.

    Example:
        >>> check_count("mixture", "components", 2.5, high=9)
        Traceback (most recent call last):
        pyro_vae.errors.InputError: mixture: components must be a whole number from 1 to 9, got 2.5
    """
    if type(value) is not int or not low <= value <= high:
        raise InputError(
            f"{name}: {key} must be a whole number from {low} to {high}, got {shorten(value)}"
        )
