"""``pyro-vae report``: runs in, a page out; first, if asked, what the page would lack."""

__all__ = ["complete_run", "default_place"]

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pyro_vae.compare_command import Options as Comparing
from pyro_vae.compare_command import compare_subject
from pyro_vae.comparison.subject import run_subject as compared
from pyro_vae.defaults import Settings
from pyro_vae.diagnose_command import diagnose_subject
from pyro_vae.diagnose_command import run_subject as diagnosed
from pyro_vae.diagnosis.diagnose import PARTS
from pyro_vae.evaluate_command import Options as Evaluating
from pyro_vae.evaluate_command import evaluate_run
from pyro_vae.evaluation.record import Entry
from pyro_vae.report.subject import Subject
from pyro_vae.runs import Run

PARTICLES = (1, 8, 64)
QUICK_PARTS = ("gap", "latents", "checks", "space")
QUICK_REPEATS = 30
QUICK_GAP_COUNT = 6


def complete_run(
    console: Console, run: Run, seed: int, *, allow_code: bool = False, quick: bool = False
) -> None:
    """Score, compare and diagnose a run, by each command's defaults, where it is not done yet.

    ``quick`` leaves out gradients and the slow parts of the diagnosis, and takes few data of its
    gap: a quarter of a minute for a small run.

    Raises:
        InputError: as these commands.
    """
    subject = Subject(run, str(run.path), "")
    place: dict[str, Any] = {
        "weights": run.weights,
        "device": str(run.device),
        "data_root": run.config.data_root,
        "allow_code": allow_code,
    }
    if not any(map(_is_whole(subject), subject.scores)):
        evaluate_run(console, run, Evaluating(seed=seed))
    if subject.comparison is None and subject.has_bound:
        repeats = QUICK_REPEATS if quick else None
        options = Comparing(None, PARTICLES, repeats, not quick, textbook=False, seed=seed)
        compare_subject(
            console, compared(run.path, split="test", count=None, **place), run.path, options
        )
    if subject.diagnosis is None:
        gap_count = QUICK_GAP_COUNT if quick else Settings.gap_count
        settings = Settings(seed=seed, gap_count=gap_count)
        parts = QUICK_PARTS if quick else PARTS
        diagnose_subject(
            console, diagnosed(run.path, **place), run.path, settings, parts, asked=False
        )


def _is_whole(subject: Subject) -> Callable[[tuple[Path, Entry]], bool]:
    """Whether a score is of all test data, and each of theirs is kept, so that it can be paired."""
    count = len(subject.run.data.test)

    def is_whole(score: tuple[Path, Entry]) -> bool:
        _, entry = score
        protocol = entry["protocol"]
        kept = "per_datum" in entry or not subject.has_bound
        return protocol["split"] == "test" and protocol["count"] == count and kept

    return is_whole


def default_place(runs: Sequence[Path]) -> Path:
    """Return RUN/report.html, or for several runs the report.html of the folder they share."""
    if len(runs) == 1:
        return runs[0] / "report.html"
    return Path(os.path.commonpath([run.resolve() for run in runs])) / "report.html"
