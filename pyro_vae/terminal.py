"""What a person sees while a command runs: progress, tables, and a Ctrl-C that waits its turn."""

__all__ = ["TrainingDisplay", "evaluation_table", "counting", "graceful_stop"]

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from rich import box
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
from rich.table import Table
from rich.text import Text

from pyro_vae.evaluation.scores import Estimate, Evaluation
from pyro_vae.training import Trainer

LINE_INTERVAL = 2.0  # seconds between plain lines
REFRESH_INTERVAL = 0.1  # seconds between updates of the bar

TITLES = {
    "elbo": "ELBO",
    "reconstruction": "  E_q log p(x|z)",
    "kl": "  KL(q(z|x) ‖ p(z))",
    "log_likelihood": "log p(x)",
    "bits_per_dim": "bits/dim",
}


class TrainingDisplay:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, trainer: Trainer):
        self.console = console
        self.trainer = trainer
        self.valid = "–"
        self.last_line = -math.inf
        self.last_refresh = 0.0
        self.started_at = time.perf_counter()
        self.started_step = trainer.progress.step
        total = trainer.epochs * trainer.steps_per_epoch
        self.total = min(total, trainer.max_steps or total)
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[bound]} [bold]{task.fields[elbo]}[/]"),
            TextColumn("valid [bold]{task.fields[valid]}[/]"),
            TextColumn("β {task.fields[beta]}"),
            TextColumn("{task.fields[rate]} data/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> "TrainingDisplay":
        if self.console.is_terminal:
            self.task = self.bar.add_task("train", total=self.total, **self._fields())
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def on_step(self, trainer: Trainer) -> None:
        """Move the bar, ten times a second at most."""
        now = time.perf_counter()
        if self.console.is_terminal and now - self.last_refresh > REFRESH_INTERVAL:
            self.last_refresh = now
            self.bar.update(self.task, completed=trainer.progress.step, **self._fields())

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Show a new validation bound; off a terminal print a line, every two seconds at most."""
        self.valid = f"{row['valid_elbo']:.2f}"
        now = time.perf_counter()
        if self.console.is_terminal:
            return
        if now - self.last_line >= LINE_INTERVAL or self.trainer.finished:
            self.last_line = now
            error = row["valid_elbo_standard_error"]
            self.console.print(
                f"epoch {row['epoch']}/{self.trainer.epochs}  step {row['step']}  "
                f"{self._bound} {row['elbo']:.2f}  valid {row['valid_elbo']:.2f}"
                f"{'' if math.isnan(error) else f' ± {error:.2f}'}  β {row['beta']:.2f}  "
                f"{self._rate():,.0f} data/s" + ("  best" if row["best"] else ""),
                highlight=False,
                soft_wrap=True,
            )

    @property
    def _bound(self) -> str:
        annealed = self.trainer.beta != 1 or self.trainer.progress.epoch < self.trainer.warm_up
        return "β-ELBO" if annealed else "ELBO"

    def _rate(self) -> float:
        elapsed = time.perf_counter() - self.started_at
        steps = self.trainer.progress.step - self.started_step
        return steps / elapsed * len(self.trainer.data.train) / self.trainer.steps_per_epoch

    def _fields(self) -> dict[str, Any]:
        progress = self.trainer.progress
        elbo = f"{-progress.loss_sum / progress.count:.2f}" if progress.count else "–"
        return {
            "epoch": min(progress.epoch + 1, self.trainer.epochs),
            "epochs": self.trainer.epochs,
            "bound": self._bound,
            "elbo": elbo,
            "valid": self.valid,
            "beta": f"{self.trainer.current_beta:.2f}",
            "rate": f"{self._rate():,.0f}",
        }


def evaluation_table(evaluation: Evaluation) -> Table:
    """Lay an evaluation out: each value with its errors apart."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("estimate", "± draws", "± data", "bias"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for name, estimate in evaluation.estimates.items():
        title = TITLES.get(name, name)
        if name == "log_likelihood":
            title += f", IWAE-{evaluation.protocol['num_samples']}"
        table.add_row(title, *_cells(estimate), estimate.unit)
    return table


def _cells(estimate: Estimate) -> list[str]:
    """Digits down to the second of the smallest error; ≥ and ≤ mark lower limits of errors."""
    errors = [estimate.standard_error, estimate.data_standard_error, estimate.bias]
    nonzero = [abs(e) for e in errors[:2] if e]
    digits = min(6, max(2, 1 - math.floor(math.log10(min(nonzero))))) if nonzero else 4
    cells = ["–" if v is None else f"{v:.{digits}f}" for v in (estimate.value, *errors)]
    if estimate.understated:
        limit = "≤" if (estimate.bias or 0) < 0 else "≥"
        cells[1], cells[3] = f"≥{cells[1]}", f"{limit}{cells[3]}"
    return cells


@contextlib.contextmanager
def counting(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback ``(done, total)`` that moves a bar; silent off a terminal."""
    with Progress(
        TextColumn(title),
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
