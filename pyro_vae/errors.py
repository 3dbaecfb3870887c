"""The one exception that means: the input was wrong, and this line says how to mend it."""

__all__ = ["InputError", "suggest"]

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A user's mistake, told in one line: what was expected, what came, and the fix.

    The command line prints the message and exits with status 2; no traceback.
    """


def suggest(word: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? Valid: a, b, x"`` for an unknown ``word``.

    Example:
        >>> suggest("bernuolli", ["bernoulli", "normal"])
        "; did you mean 'bernoulli'? Valid: bernoulli, normal"
        >>> suggest("q", [])
        '; it takes none'
    """
    valid = sorted(valid)
    if not valid:
        return "; it takes none"
    nearest = difflib.get_close_matches(word, valid, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"{hint} Valid: {', '.join(valid)}"
