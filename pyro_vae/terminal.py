"""What a person sees while a command runs: its progress, and a Ctrl-C that waits its turn."""

__all__ = [
    "TrainingDisplay",
    "objective_name",
    "counting",
    "graceful_stop",
]

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from pyro.infer import ELBO
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pyro_vae.components import PACKAGES
from pyro_vae.evaluation_tables import POINT, TITLES
from pyro_vae.training import Trainer

LINE_INTERVAL = 2.0  # seconds between plain lines
REFRESH_INTERVAL = 0.1  # seconds between updates of the bar
PATIENCE = 3.0  # seconds of compiling before a plain line says so
COMPILING = "compiling the step"


class TrainingDisplay:
    """A progress bar on a terminal, plain lines elsewhere; ``title`` stands before the bar.

    It says that the first step is being compiled, and why steps are eager where they were
    meant to be compiled.
    """

    def __init__(self, console: Console, trainer: Trainer, title: str = ""):
        self.console = console
        self.trainer = trainer
        self.valid = "–"
        self.last_line = -math.inf
        self.last_refresh = 0.0
        self.started_at = time.perf_counter()
        self.started_step = trainer.progress.step
        total = trainer.epochs * trainer.steps_per_epoch
        self.total = min(total, trainer.max_steps or total)
        self.title = title
        self.told: str | None = None
        self.compiling = trainer.engine == "compiled" and not trainer.finished
        self.timer = threading.Timer(PATIENCE, self._print, [f"{COMPILING} …"])
        self.timer.daemon = True
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[bound]} [bold]{task.fields[value]}[/]"),
            TextColumn("valid [bold]{task.fields[valid]}[/]"),
            TextColumn("β {task.fields[beta]}"),
            TextColumn("{task.fields[rate]} data/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> "TrainingDisplay":
        if self.console.is_terminal:
            title = f"{self.title} {COMPILING}".strip() if self.compiling else self.title
            self.task = self.bar.add_task(title, total=self.total, **self._fields())
            self.bar.start()
        elif self.compiling:
            self.timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.timer.cancel()
        if self.console.is_terminal:
            self.bar.stop()

    def on_step(self, trainer: Trainer) -> None:
        """Move the bar, ten times a second at most."""
        now = time.perf_counter()
        if self.compiling:
            self._end_of_compiling(now)
        if trainer.reason != self.told:
            self.told = trainer.reason
            self._print(f"training eagerly: {trainer.reason}")
        if self.console.is_terminal and now - self.last_refresh > REFRESH_INTERVAL:
            self.last_refresh = now
            self.bar.update(self.task, completed=trainer.progress.step, **self._fields())

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Show a new validation bound; off a terminal print a line, every two seconds at most."""
        criterion = self.trainer.criterion
        self.valid = f"{row[f'valid_{criterion}']:.2f}"
        now = time.perf_counter()
        if self.console.is_terminal:
            return
        if now - self.last_line >= LINE_INTERVAL or self.trainer.finished:
            self.last_line = now
            error = row[f"valid_{criterion}_standard_error"]
            self._print(
                f"epoch {row['epoch']}/{self.trainer.epochs}  step {row['step']}  "
                f"{self._bound} {row[self.trainer.training_criterion]:.2f}  valid {self.valid}"
                f"{'' if math.isnan(error) else f' ± {error:.2f}'}  β {row['beta']:.2f}  "
                f"{self._rate():,.0f} data/s" + ("  best" if row["best"] else "")
            )

    def _end_of_compiling(self, now: float) -> None:
        """Count speed from here."""
        self.compiling = False
        self.timer.cancel()
        self.started_at, self.started_step = now, self.trainer.progress.step
        if self.console.is_terminal:
            self.bar.update(self.task, description=self.title)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @property
    def _bound(self) -> str:
        """What is maximized, marked where it is not what its name or place would say."""
        trainer = self.trainer
        criterion = trainer.training_criterion
        annealed = trainer.beta != 1 or trainer.progress.epoch < trainer.warm_up
        if criterion == "reconstruction":
            return POINT
        title = TITLES.get(criterion) or objective_name(trainer.objective)
        unbounded = criterion != "log_joint" and not trainer.is_lower_bound
        return f"{'β-' if annealed else ''}{title}{' (no lower bound)' if unbounded else ''}"

    def _rate(self) -> float:
        elapsed = max(time.perf_counter() - self.started_at, 1e-9)
        steps = self.trainer.progress.step - self.started_step
        return steps / elapsed * len(self.trainer.data.train) / self.trainer.steps_per_epoch

    def _fields(self) -> dict[str, Any]:
        progress = self.trainer.progress
        value = f"{-progress.loss_sum / progress.count:.2f}" if progress.count else "–"
        return {
            "epoch": min(progress.epoch + 1, self.trainer.epochs),
            "epochs": self.trainer.epochs,
            "bound": self._bound,
            "value": value,
            "valid": self.valid,
            "beta": f"{self.trainer.current_beta:.2f}",
            "rate": f"{self._rate():,.0f}",
        }


def objective_name(objective: ELBO) -> str:
    """What the command line calls an objective; one from a user's file has its class's name."""
    package, _, name = type(objective).__module__.rpartition(".")
    return name if package == PACKAGES["objective"] else type(objective).__name__


@contextlib.contextmanager
def counting(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback ``(done, total)`` that moves a bar; silent off a terminal."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Elapsed(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Elapsed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.elapsed or 0:.0f} s")


@contextlib.contextmanager
def graceful_stop() -> Iterator[Callable[[], bool]]:
    """Yield ``stop()``: True once Ctrl-C or SIGTERM came; a second one interrupts at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
