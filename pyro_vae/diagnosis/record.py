"""A diagnosis on disk: RUN/diagnosis.json, the protocol first, and back."""

__all__ = ["write_diagnosis", "read_diagnosis", "to_json", "from_json"]

import dataclasses
import json
import math
import types
import typing
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from pyro_vae.checkpoint import write_atomically
from pyro_vae.diagnosis.rows import Diagnosis
from pyro_vae.errors import InputError


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return plain dictionaries, numbers and strings, the protocol first.

    JSON has no number for what is not finite: it is the word ``nan``, ``inf`` or ``-inf``.
    """
    mapping = dataclasses.asdict(diagnosis)
    plain: dict[str, Any] = _in_words({"protocol": mapping.pop("protocol"), **mapping})
    return plain


def from_json(mapping: Any) -> Diagnosis:
    """Return the diagnosis that ``to_json`` made the mapping of.

    Raises:
        InputError: it lacks a field, or has one of another version.
    """
    diagnosis: Diagnosis = _decoded(Diagnosis, mapping, "the file")
    return diagnosis


def write_diagnosis(path: Path, diagnosis: Diagnosis) -> None:
    """Write a diagnosis as JSON, whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    text = json.dumps(to_json(diagnosis), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_diagnosis(path: Path) -> Diagnosis:
    """Read what ``write_diagnosis`` wrote.

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


def _in_words(value: Any) -> Any:
    """What is not finite as a word, in nested dictionaries and lists."""
    if isinstance(value, dict):
        return {key: _in_words(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_in_words(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decoded(kind: Any, value: Any, where: str) -> Any:
    """A value of a field's type from JSON; where a number is expected a word is not finite."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (each for each in inner if each is not type(None))
        return None if value is None else _decoded(kind, value, where)
    if dataclasses.is_dataclass(kind):
        return _row(kind, value, where)
    if origin is list and isinstance(value, list):
        return [_decoded(inner[0], each, f"{where}[{i}]") for i, each in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return dict(value)
    if kind is float and (type(value) in (int, float) or value in ("nan", "inf", "-inf")):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise _other(f"{where} is {str(value)[:40]!r}")


def _row(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _other(f"{where} is {str(value)[:40]!r}")
    types_ = typing.get_type_hints(kind)
    unknown = sorted(value.keys() - types_.keys())
    if unknown:
        raise _other(f"{where} has {unknown[0]!r}")
    fields = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            fields[field.name] = _decoded(types_[field.name], value[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _other(f"{where} lacks {field.name!r}")
    return kind(**fields)


def _other(reason: str) -> InputError:
    return InputError(f"expected a diagnosis of this version: {reason}")
