"""A comparison on disk: its rows, truth and checks as JSON, and back."""

__all__ = ["write_comparison", "read_comparison", "to_json", "from_json"]

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyro_vae.checkpoint import write_atomically
from pyro_vae.comparison.rows import Check, Comparison, GradientRow, Truth, ValueRow
from pyro_vae.errors import InputError
from pyro_vae.textbook_table import TextbookRow


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return plain dictionaries, numbers and strings, the protocol first.

    JSON has no number for what is not finite: it is the word ``nan``, ``inf`` or ``-inf``.
    """
    mapping = dataclasses.asdict(comparison)
    return {"protocol": _each(_word, mapping.pop("protocol")), **_each(_word, mapping)}


def from_json(mapping: dict[str, Any]) -> Comparison:
    """Return the comparison that ``to_json`` made the mapping of.

    Raises:
        InputError: it lacks a field, or has one of another version.
    """
    try:
        truth = mapping["truth"]
        return Comparison(
            values=[_row(ValueRow, each) for each in mapping["values"]],
            gradients=[_row(GradientRow, each) for each in mapping["gradients"]],
            reference=mapping["reference"],
            truth=None if truth is None else _row(Truth, truth),
            checks=[_row(Check, each) for each in mapping["checks"]],
            protocol=dict(mapping["protocol"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"expected a comparison of this version: {reason}") from None


def write_comparison(
    path: Path, comparison: Comparison, textbook: Sequence[TextbookRow] = ()
) -> None:
    """Write a comparison as JSON, whole or not at all; textbook losses beside it, if any.

    Raises:
        InputError: the folder cannot be written.
    """
    mapping = to_json(comparison)
    if textbook:
        mapping["textbook"] = _each(_word, [dataclasses.asdict(row) for row in textbook])
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


def _row(kind: Callable[..., Any], fields: dict[str, Any]) -> Any:
    """A row from its fields; where a number is expected a word is one that is not finite."""
    numbers = {
        each.name
        for each in dataclasses.fields(kind)  # type: ignore[arg-type]
        if each.type in (float, float | None)
    }
    return kind(**{k: float(v) if k in numbers and v is not None else v for k, v in fields.items()})


def _word(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to every leaf of nested dictionaries and sequences."""
    if isinstance(value, dict):
        return {key: _each(function, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_each(function, each) for each in value]
    return function(value)
