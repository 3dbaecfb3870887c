"""The scores of a run on disk: RUN/evaluation/SPLIT.json, a list, one entry a protocol."""

__all__ = ["read_record", "write_record", "find_entry", "replace_entry", "weights_hash"]

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from pyro_vae.checkpoint import write_atomically
from pyro_vae.errors import InputError
from pyro_vae.evaluation.active_units import ActiveUnits
from pyro_vae.evaluation.scores import Estimate

Entry = dict[str, Any]

# Where it was computed: another rounding, and between a CPU and CUDA other draws, so that a number
# moves within its error over draws.
_PLACE = ("device", "versions")
# What every entry has: a bound and its parts, or of a point the last alone.
_BOUND = {"elbo", "kl", "log_likelihood", "reconstruction"}
# And what it may have beside it.
_OF_A_POINT = {"reconstruction", "log_evidence", "log_evidence_quadrature", "log_evidence_ais"}


def read_record(path: Path) -> list[Entry]:
    """Read the entries; none where there is no file.

    Raises:
        InputError: the file is damaged, or has fields of another version.
    """
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise InputError(
            f"'{path}' is damaged, or of another version; move it away and evaluate again"
        )
    for entry in entries:
        if entry["protocol"].get("adaptive") is True:  # as it once was called
            entry["protocol"]["adaptive"] = "flagged"
    return entries


def write_record(path: Path, entries: list[Entry]) -> None:
    """Write the entries, whole or not at all.

    Raises:
        InputError: a score is not finite; nothing is written.
    """
    try:
        text = json.dumps(entries, indent=1, allow_nan=False)
    except ValueError:
        dtype = entries[-1]["protocol"].get("dtype", "this precision")
        raise InputError(
            f"the scores are not finite: some datum has probability 0 in {dtype}; "
            "nothing was recorded"
        ) from None
    write_atomically(path, lambda file: file.write(text.encode()))


def replace_entry(entries: list[Entry], entry: Entry) -> list[Entry]:
    """Return the entries with ``entry`` last, instead of the one of the same protocol."""
    return [*(each for each in entries if each["protocol"] != entry["protocol"]), entry]


def find_entry(entries: list[Entry], protocol: dict[str, Any], weights: str) -> Entry | None:
    """Return the entry of these weights under this protocol, by any device and version.

    Arguments:
        entries: as read.
        protocol: what determines the numbers: data, K, seed, dtype, ….
        weights: their ``weights_hash``; an entry of other weights is out of date.
    """
    for entry in reversed(entries):
        known = {k: v for k, v in entry["protocol"].items() if k not in _PLACE}
        if known == protocol and entry.get("weights_hash") == weights:
            return entry
    return None


def weights_hash(run: Path, weights: str = "best") -> str:
    """Return the SHA-256 (hex) of the file that holds a run's ``best`` or ``last`` weights.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    file = run / ("best.safetensors" if weights == "best" else "last.pt")
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read '{file}': {error.strerror}") from None


def _is_entry(entry: Any) -> bool:
    """Whether it has a protocol, estimates and, where it has them, active units and k̂."""
    try:
        protocol, fields = entry["protocol"], entry["estimates"]
        estimates = {name: Estimate(**each) for name, each in fields.items()}
        units = ActiveUnits(**entry["active_units"]) if "active_units" in entry else None
    except (KeyError, TypeError, AttributeError):
        return False
    return (
        isinstance(protocol, dict)
        and _is_protocol(protocol)
        and "reconstruction" in estimates
        and (estimates.keys() <= _OF_A_POINT or estimates.keys() >= _BOUND)
        and all(map(_is_estimate, estimates.values()))
        and (units is None or _is_units(units))
        and ("pareto_k" not in entry or _is_pareto(entry["pareto_k"]))
    )


def _is_protocol(protocol: dict[str, Any]) -> bool:
    """Whether what a reader relies on is of its kind, where it is there."""
    sizes = (protocol.get(name, 0) for name in ("count", "num_samples", "seed"))
    words = (protocol.get(name, "") for name in ("split", "content_hash", "dtype"))
    return all(type(size) is int for size in sizes) and all(isinstance(w, str) for w in words)


def _is_pareto(block: Any) -> bool:
    """Whether it is a ``pareto_summary``."""
    counts = ("pilot_samples", "flagged", "unknown", "constant")
    return (
        isinstance(block, dict)
        and block.keys() == {*counts, "threshold", "share", "worst"}
        and all(_is_number(block[name]) for name in ("threshold", "share"))
        and all(type(block[name]) is int for name in counts)
        and isinstance(block["worst"], list)
        and all(map(_is_worst, block["worst"]))
    )


def _is_worst(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and row.keys() == {"position", "pareto_k", "log_px"}
        and type(row["position"]) is int
        and all(_is_number(row[name]) for name in ("pareto_k", "log_px"))
    )


def _is_estimate(estimate: Estimate) -> bool:
    errors = (estimate.standard_error, estimate.data_standard_error)
    return (
        _is_number(estimate.value)
        and all(error is None or (_is_number(error) and error >= 0) for error in errors)
        and (estimate.bias is None or _is_number(estimate.bias))
        and type(estimate.count) is int
        and isinstance(estimate.unit, str)
        and isinstance(estimate.note, str | None)
        and type(estimate.understated) is bool
    )


def _is_units(units: ActiveUnits) -> bool:
    return (
        isinstance(units.activity, list)
        and all(map(_is_number, units.activity))
        and (units.count is None or type(units.count) is int)
        and isinstance(units.note, str | None)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
