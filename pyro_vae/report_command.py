"""``pyro-vae report``: runs in, a page out; first, if asked, what the page would lack."""

__all__ = ["complete_run", "default_place"]

import os
from collections.abc import Sequence
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
from pyro_vae.report.subject import Subject
from pyro_vae.runs import Run

PARTICLES = (1, 8, 64)


def complete_run(console: Console, run: Run, seed: int, *, allow_code: bool = False) -> None:
    """Score, compare and diagnose a run, by each command's defaults, where it is not done yet.

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
    if not subject.scores:
        evaluate_run(console, run, Evaluating(seed=seed))
    if subject.comparison is None and subject.has_bound:
        options = Comparing(None, PARTICLES, None, gradients=True, textbook=False, seed=seed)
        compare_subject(
            console, compared(run.path, split="test", count=None, **place), run.path, options
        )
    if subject.diagnosis is None:
        diagnose_subject(
            console, diagnosed(run.path, **place), run.path, Settings(seed=seed), PARTS, asked=False
        )


def default_place(runs: Sequence[Path]) -> Path:
    """Return RUN/report.html, or for several runs the report.html of the folder they share."""
    if len(runs) == 1:
        return runs[0] / "report.html"
    return Path(os.path.commonpath([run.resolve() for run in runs])) / "report.html"
