"""A run as a report reads it: what was trained, and what was found out since."""

__all__ = ["Subject", "subjects_of"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyro_vae.comparison.record import read_comparison
from pyro_vae.comparison.rows import Comparison
from pyro_vae.data import Split
from pyro_vae.diagnosis.record import read_diagnosis
from pyro_vae.diagnosis.rows import Diagnosis
from pyro_vae.errors import InputError
from pyro_vae.evaluation.record import Entry, read_record, weights_hash
from pyro_vae.runs import Run

SPLITS = ("test", "valid", "train")


@dataclass(frozen=True)
class Subject:
    """A run, what it is called in the page, and the records in its folder."""

    run: Run
    name: str
    key: str
    """Unique in the page."""

    @cached_property
    def weights_hash(self) -> str:
        """Of the weights that are shown; records of others are out of date."""
        return weights_hash(self.run.path, self.run.weights)

    @cached_property
    def scores(self) -> list[tuple[Path, Entry]]:
        """The entries of every split that are of these weights, each with its record.

        Raises:
            InputError: a record is damaged.
        """
        return [
            (record, entry)
            for record, entry in self.entries
            if entry.get("weights_hash") == self.weights_hash
        ]

    @cached_property
    def entries(self) -> list[tuple[Path, Entry]]:
        """Those of other weights too, the test split's first."""
        folder = self.run.path / "evaluation"
        records = [folder / f"{split}.json" for split in SPLITS]
        return [
            (record, entry)
            for record in records
            for entry in read_record(record)
            if {"split", "count", "content_hash"} <= entry["protocol"].keys()
            and entry["protocol"]["split"] == record.stem
        ]

    def scored_split(self, protocol: Mapping[str, Any]) -> Split | None:
        """The data that a protocol speaks of; None where the data set now holds others."""
        try:
            split = self.run.data.split(protocol["split"])
            split = split if protocol["count"] == len(split) else split.subset(protocol["count"])
        except (InputError, KeyError, TypeError):
            return None
        return split if split.content_hash == protocol.get("content_hash") else None

    @cached_property
    def comparison(self) -> Comparison | None:
        """``comparison.json``, if there is one of these data and weights, or the untrained ones.

        Raises:
            InputError: the file is damaged.
        """
        file = self.run.path / "comparison.json"
        found = read_comparison(file) if file.exists() else None
        if found is None or not self._is_fresh(found.protocol):
            return None
        return None if self.scored_split(found.protocol) is None else found

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        """``diagnosis.json``, if there is one of these data and weights.

        Raises:
            InputError: the file is damaged.
        """
        file = self.run.path / "diagnosis.json"
        found = read_diagnosis(file) if file.exists() else None
        if found is None or not self._is_fresh(found.protocol):
            return None
        splits = found.protocol.get("splits")
        test = splits.get("test") if isinstance(splits, dict) else None
        known = isinstance(test, dict) and self.scored_split({"split": "test", **test}) is not None
        return found if known else None

    @property
    def has_bound(self) -> bool:
        """Whether the guide has a density; a point has no ELBO and no likelihood."""
        return bool(getattr(self.run.guide, "has_bound", True))

    def _is_fresh(self, protocol: dict[str, Any]) -> bool:
        untrained = protocol.get("weights") == "untrained"
        return untrained or protocol.get("weights_hash") == self.weights_hash


def subjects_of(runs: Sequence[Run]) -> list[Subject]:
    """Name runs by their folders, as long as it takes to tell them apart.

    Raises:
        InputError: no run, or one given twice.
    """
    if not runs:
        raise InputError("a report is of at least one run")
    paths = [run.path.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        again = next(path for path in paths if paths.count(path) > 1)
        raise InputError(f"'{again.name}' is given twice; a report has each run once")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath(paths)
        names = [str(path.relative_to(common)) for path in paths]
    return [
        Subject(run, name, f"run{i}") for i, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
