"""Dataclasses from JSON and to it, every value of its field's type."""

__all__ = ["decoded", "in_words"]

import dataclasses
import math
import types
import typing
from dataclasses import MISSING
from typing import Any

from pyro_vae.errors import InputError


def in_words(value: Any) -> Any:
    """Write what is not finite as the word ``nan``, ``inf`` or ``-inf``: JSON has no number for it.

    In nested dictionaries and sequences.
    """
    if isinstance(value, dict):
        return {key: in_words(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [in_words(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def decoded(kind: Any, value: Any, where: str) -> Any:
    """Return a value of type ``kind`` from JSON; where a number is expected a word is not finite.

    Raises:
        InputError: a value of another type, a field that is missing or unknown; ``where`` names it.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (each for each in inner if each is not type(None))
        return None if value is None else decoded(kind, value, where)
    if dataclasses.is_dataclass(kind):
        return _row(kind, value, where)
    if origin is list and isinstance(value, list):
        return [decoded(inner[0], each, f"{where}[{i}]") for i, each in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: decoded(inner[1], each, f"{where}[{key!r}]") for key, each in value.items()}
    if kind is Any:
        return value
    if kind is float and (type(value) in (int, float) or value in ("nan", "inf", "-inf")):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise InputError(f"{where} is {str(value)[:40]!r}")


def _row(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {str(value)[:40]!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(value.keys() - hints.keys())
    if unknown:
        raise InputError(f"{where} has {unknown[0]!r}")
    fields = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            fields[field.name] = decoded(hints[field.name], value[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where} lacks {field.name!r}")
    return kind(**fields)
