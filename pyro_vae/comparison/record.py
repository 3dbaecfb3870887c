"""A comparison on disk: its rows, truth and checks as JSON, and back."""

__all__ = ["write_comparison", "read_comparison", "to_json", "from_json"]

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_vae.checkpoint import write_atomically
from pyro_vae.comparison.rows import Comparison
from pyro_vae.decoded import decoded, in_words
from pyro_vae.errors import InputError
from pyro_vae.textbook_table import TextbookRow


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return plain dictionaries, numbers and strings, the protocol first.

    JSON has no number for what is not finite: it is the word ``nan``, ``inf`` or ``-inf``.
    """
    mapping = dataclasses.asdict(comparison)
    plain: dict[str, Any] = in_words({"protocol": mapping.pop("protocol"), **mapping})
    return plain


def from_json(mapping: Any) -> Comparison:
    """Return the comparison that ``to_json`` made the mapping of.

    Raises:
        InputError: it lacks a field, or has one of another version.
    """
    if isinstance(mapping, dict):
        mapping = {name: each for name, each in mapping.items() if name != "textbook"}
    try:
        comparison: Comparison = decoded(Comparison, mapping, "the file")
    except InputError as error:
        raise InputError(f"expected a comparison of this version: {error}") from None
    return comparison


def write_comparison(
    path: Path, comparison: Comparison, textbook: Sequence[TextbookRow] = ()
) -> None:
    """Write a comparison as JSON, whole or not at all; textbook losses beside it, if any.

    Raises:
        InputError: the folder cannot be written.
    """
    mapping = to_json(comparison)
    if textbook:
        mapping["textbook"] = in_words([dataclasses.asdict(row) for row in textbook])
    text = json.dumps(mapping, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_comparison(path: Path) -> Comparison:
    """Read what ``write_comparison`` wrote.

    Raises:
        InputError: there is no such file, or it is damaged or of another version.
    """
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise InputError(f"cannot read '{path}': {reason}") from None
    try:
        return from_json(mapping)
    except InputError as error:
        raise InputError(f"cannot read '{path}': {error}") from None
