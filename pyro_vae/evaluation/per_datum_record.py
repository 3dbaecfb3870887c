"""What each datum scored, on disk: RUN/evaluation/SPLIT-<hash>.safetensors, one a protocol."""

__all__ = ["keep_per_datum", "write_per_datum", "read_per_datum"]

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.checkpoint import load_weights, save_weights
from pyro_vae.errors import InputError
from pyro_vae.evaluation.scores import Evaluation, PerDatum

_FIELDS = {field.name for field in dataclasses.fields(PerDatum)}
_BOOLEAN = ("flagged", "understated")


def keep_per_datum(record: Path, evaluation: Evaluation, weights: str) -> dict[str, Any]:
    """Write what each datum scored; return the entry of the record, which names it.

    Raises:
        InputError: the folder cannot be written.
    """
    entry = evaluation.to_json() | {"weights_hash": weights}
    if not all(math.isfinite(each.value) for each in evaluation.estimates.values()):
        return entry  # which no record takes
    name = write_per_datum(record, evaluation.protocol, evaluation.per_datum)
    return entry if name is None else entry | {"per_datum": name}


def write_per_datum(
    record: Path, protocol: Mapping[str, Any], per_datum: Mapping[str, PerDatum]
) -> str | None:
    """Write every field of every estimate beside ``record``; return the file's name.

    The name holds a hash of the protocol: the same one is written over, another stands beside it.
    None where nothing has a log p(x) of each datum.

    Raises:
        InputError: the folder cannot be written.
    """
    tensors = {
        f"{name}.{field}": value
        for name, each in per_datum.items()
        for field, value in vars(each).items()
        if value is not None
    }
    if not tensors:
        return None
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
    file = record.with_name(f"{record.stem}-{digest[:12]}.safetensors")
    save_weights(file, tensors, {})
    return file.name


def read_per_datum(record: Path, entry: Mapping[str, Any]) -> dict[str, PerDatum]:
    """Read what the entry of a record names; nothing where it names none.

    Raises:
        InputError: the file is missing, damaged, or of other data or numbers than the entry.
    """
    name = entry.get("per_datum")
    if name is None:
        return {}
    if not isinstance(name, str) or not re.fullmatch(r"[a-z]+-[0-9a-f]{12}\.safetensors", name):
        raise InputError(f"'{record}' names no file of its own folder: {name!r}")
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in load_weights(record.with_name(name)).items():
        estimate, _, field = key.rpartition(".")
        count = entry["protocol"].get("count")
        wanted = torch.bool if field in _BOOLEAN else torch.float64
        if field not in _FIELDS or value.shape != (count,) or value.dtype != wanted:
            raise InputError(f"'{record.with_name(name)}' is of other data than '{record}' says")
        found.setdefault(estimate, {})[field] = value
    if not all("log_px" in fields for fields in found.values()):
        raise InputError(f"'{record.with_name(name)}' is damaged: it lacks log p(x)")
    for estimate, fields in found.items():
        value = entry["estimates"].get(estimate, {}).get("value", math.nan)
        if not math.isclose(float(fields["log_px"].mean()), value, rel_tol=1e-9, abs_tol=1e-9):
            raise InputError(
                f"'{record.with_name(name)}' is of another evaluation than '{record}' says; "
                "evaluate again"
            )
    return {estimate: PerDatum(**fields) for estimate, fields in found.items()}
