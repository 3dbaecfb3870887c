"""A diagnosis on disk: RUN/diagnosis.json, the protocol first, and back."""

__all__ = ["write_diagnosis", "read_diagnosis", "to_json", "from_json"]

import dataclasses
import json
from pathlib import Path
from typing import Any

from pyro_vae.checkpoint import write_atomically
from pyro_vae.decoded import decoded, in_words
from pyro_vae.diagnosis.rows import Diagnosis
from pyro_vae.errors import InputError


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return plain dictionaries, numbers and strings, the protocol first.

    JSON has no number for what is not finite: it is the word ``nan``, ``inf`` or ``-inf``.
    """
    mapping = dataclasses.asdict(diagnosis)
    plain: dict[str, Any] = in_words({"protocol": mapping.pop("protocol"), **mapping})
    return plain


def from_json(mapping: Any) -> Diagnosis:
    """Return the diagnosis that ``to_json`` made the mapping of.

    Raises:
        InputError: it lacks a field, or has one of another version.
    """
    try:
        diagnosis: Diagnosis = decoded(Diagnosis, mapping, "the file")
    except InputError as error:
        raise InputError(f"expected a diagnosis of this version: {error}") from None
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
