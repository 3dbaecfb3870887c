"""How many digits of a number its errors leave, and how an error is written."""

__all__ = ["digits_of", "error_text", "value_and_error", "at_least"]

import math
from collections.abc import Sequence


def error_text(error: float | None, digits: int) -> str:
    """An error to so many digits; one that is not 0 is never shown as 0."""
    if error is None:
        return "–"
    text, least = f"{error:.{digits}f}", f"{10.0**-digits:.{digits}f}"
    if error != 0 and float(text) == 0:
        return f"<{least}" if error > 0 else f">-{least}"
    return text


def at_least(text: str, mark: str = "≥") -> str:
    """Mark an error as a limit of what it is, where there is one."""
    return text if text[0] in "–<>" else mark + text


def digits_of(errors: Sequence[float | None]) -> int:
    """Digits down to the second of the smallest error; one below 1/1000 of another is as none."""
    known = [abs(error) for error in errors if error and math.isfinite(error)]
    known = [error for error in known if error >= 1e-3 * max(known)]
    return min(6, max(2, 1 - math.floor(math.log10(min(known))))) if known else 4


def value_and_error(value: float, error: float | None) -> tuple[str, str]:
    """A value to as many digits as its error leaves, and the error."""
    known = error if error is not None and math.isfinite(error) else None
    digits = digits_of([known])
    return f"{value:.{digits}f}", error_text(known, digits)
