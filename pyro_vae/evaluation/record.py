"""The scores of a run on disk: RUN/evaluation/SPLIT.json, a list, one entry a protocol."""

__all__ = ["read_record", "write_record", "find_entry", "replace_entry", "weights_hash"]

import hashlib
import json
from pathlib import Path
from typing import Any

from pyro_vae.checkpoint import write_atomically
from pyro_vae.errors import InputError

Entry = dict[str, Any]

# What moves a number by rounding only.
_PLACE = ("device", "versions")


def read_record(path: Path) -> list[Entry]:
    """Read the entries; none where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and "protocol" in entry for entry in entries
    ):
        raise InputError(f"'{path}' is damaged; move it away and evaluate again")
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
    """Return the SHA-256 (hex) of the file that holds a run's ``best`` or ``last`` weights."""
    name = "best.safetensors" if weights == "best" else "last.pt"
    return hashlib.sha256((run / name).read_bytes()).hexdigest()
