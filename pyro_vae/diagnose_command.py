"""``pyro-vae diagnose``: a pair in; tables, diagnosis.json and figures out, a part at a time."""

__all__ = ["Subject", "run_subject", "program_subject", "diagnose_subject", "chosen_parts"]

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from pyro_vae import diagnosis_tables as tables
from pyro_vae.comparison.subject import program_subject as compared_program
from pyro_vae.data import DataSplits, load_data
from pyro_vae.diagnosis.diagnose import (
    PARTS,
    Settings,
    check_parts,
    data_of,
    diagnose,
)
from pyro_vae.diagnosis.record import write_diagnosis
from pyro_vae.diagnosis.rows import Diagnosis
from pyro_vae.diagnosis_gallery import Diagnosed, part_figure
from pyro_vae.errors import InputError
from pyro_vae.evaluation.record import weights_hash
from pyro_vae.execution import Program
from pyro_vae.figures import save
from pyro_vae.protocols import Facts
from pyro_vae.run_training import facts_of
from pyro_vae.runs import load_run
from pyro_vae.terminal import counting

_FIGURES = {
    "gap": ["gap.png"],
    "bounds": [],
    "reliability": ["reliability.png"],
    "latents": ["kl_per_dim.png"],
    "calibration": [],
    "checks": ["predictive_checks.png"],
    "space": ["aggregated_posterior.png"],
}


class Subject(NamedTuple):
    """What is diagnosed: a pair, its data, and where both come from."""

    name: str
    model: Program
    guide: Program
    data: DataSplits
    facts: Facts
    device: torch.device
    dtype: torch.dtype
    protocol: dict[str, Any]


def run_subject(
    path: Path, *, weights: str, device: str, data_root: str | None, allow_code: bool
) -> Subject:
    """Load a run, with its data.

    Raises:
        InputError: as ``load_run``.
    """
    run = load_run(path, allow_code=allow_code, device=device, weights=weights, data_root=data_root)
    which = {"run": str(path), "weights": weights, "weights_hash": weights_hash(path, weights)}
    dtype = run.config.torch_dtype()
    return Subject(
        str(path), run.model, run.guide, run.data, run.facts, run.device, dtype,
        {**which, **_data_protocol(run.data)},
    )  # fmt: skip


@contextlib.contextmanager
def program_subject(
    path: Path, data: str, *, seed: int, device: str, data_root: str | None
) -> Iterator[Subject]:
    """Execute a user's file and hold its programs, in a parameter store of their own.

    Raises:
        InputError: a file that fails or lacks a program, programs that do not fit the data.
    """
    splits = load_data(data, data_root)
    with compared_program(
        path, data, count=2, seed=seed, device=device, data_root=data_root
    ) as subject:
        which = {key: subject.protocol[key] for key in ("program", "program_hash")}
        yield Subject(
            subject.name, subject.model, subject.guide, splits, facts_of(splits),
            subject.x.device, subject.x.dtype, {**which, **_data_protocol(splits)},
        )  # fmt: skip


def chosen_parts(only: str | None, skip: str | None) -> tuple[str, ...]:
    """Return the parts that ``--only`` leaves and ``--skip`` does not.

    Raises:
        InputError: an unknown part, or none left.

    Example:
        >>> chosen_parts("latents, gap", None)
        ('gap', 'latents')
        >>> chosen_parts(None, "gap,calibration,checks,space")
        ('bounds', 'reliability', 'latents')
    """
    kept = PARTS if only is None else check_parts(_words(only))
    skipped = () if skip is None else check_parts(_words(skip))
    return check_parts([part for part in kept if part not in skipped])


def diagnose_subject(
    console: Console,
    subject: Subject,
    out: Path,
    settings: Settings,
    parts: Sequence[str],
    asked: bool = True,
) -> None:
    """Diagnose, print and write to ``out``: after each part the record, then its figure.

    ``asked`` is whether the parts were named, see ``diagnose``.

    Raises:
        InputError: the folder cannot be written.
    """
    _check_place(out)
    session = _Session(console, subject, out, settings)
    data = subject.protocol["data"]
    session.say(f"{subject.name}, train and test of {data}", style="bold")
    try:
        diagnose(
            subject.model,
            subject.guide,
            subject.data.train,
            subject.data.test,
            subject.facts,
            settings,
            parts=parts,
            asked=asked,
            device=subject.device,
            dtype=subject.dtype,
            protocol=subject.protocol,
            watch=session.watch,
            on_part=session.show,
        )
    except KeyboardInterrupt:
        session.interrupted()
        raise
    session.say(", ".join([str(session.record), *session.drawn]))


class _Session:
    """What is said, written and drawn as the parts are done."""

    def __init__(self, console: Console, subject: Subject, out: Path, settings: Settings):
        self.console = console
        self.subject = subject
        self.out = out
        self.settings = settings
        self.record = out / "diagnosis.json"
        x = data_of(subject.data.test, settings.count, subject.device, subject.dtype)
        self.pair = Diagnosed(subject.model, subject.guide, x, subject.facts)
        self.current = PARTS[0]
        self.done: list[str] = []
        self.drawn: list[str] = []

    def say(self, line: str, style: str | None = None) -> None:
        self.console.print(line, style=style, soft_wrap=True)

    @contextlib.contextmanager
    def watch(self, part: str) -> Iterator[Callable[[int, int], None]]:
        self.current = part
        with counting(self.console, tables.TITLES_OF_PARTS[part]) as on_step:
            yield on_step

    def show(self, part: str, diagnosis: Diagnosis) -> None:
        write_diagnosis(self.record, diagnosis)  # not lost at a Ctrl-C
        if not self.done:
            self.forget()
        self.done.append(part)
        report = tables.part_report(part, diagnosis, self.console.width)
        for table in report.tables:
            width = max(self.console.width, table.width or 0)
            self.console.print(table, width=width, crop=False)
        own = (f"{part}:", f"{part},")
        for note in [*report.notes, *(n for n in diagnosis.notes if n.startswith(own)), ""]:
            # Lines for a reader break between words, those for a file or a pipe do not.
            self.console.print(note, soft_wrap=not self.console.is_terminal)
        self.draw(part, diagnosis)

    def draw(self, part: str, diagnosis: Diagnosis) -> None:
        for name in _FIGURES[part]:
            path = self.out / "figures" / name
            try:
                figure = part_figure(part, diagnosis, self.pair, self.settings.seed)
            except InputError as error:
                self.say(f"{name}: {error}")
                figure = None
            if figure is not None:
                self.drawn.append(str(save(figure, path).relative_to(self.out)))

    def forget(self) -> None:
        """Remove the figures of an earlier diagnosis, whose record is no more."""
        for name in itertools.chain.from_iterable(_FIGURES.values()):
            path = self.out / "figures" / name
            if path.is_file():
                path.unlink()

    def interrupted(self) -> None:
        kept = f"{', '.join(self.done)}: in {self.record}" if self.done else "nothing is written"
        self.say(f"stopped at {self.current}; {kept}")


def _check_place(out: Path) -> None:
    """Refuse a folder that cannot be made now, not minutes later when there is what to write.

    Raises:
        InputError: the folder, or the nearest above it that exists, is none or not writable.
    """
    nearest = next(path for path in (out, *out.parents, Path()) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write to '{out}': '{nearest}' is no folder")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"cannot write to '{out}': '{nearest}' is not writable")


def _data_protocol(data: DataSplits) -> dict[str, Any]:
    """What both splits share."""
    protocol = data.protocol("test")
    return {key: protocol[key] for key in ("data", "binarization", "binarization_seed")}


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
