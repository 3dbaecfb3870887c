"""What a person sees while a command runs: progress, tables, and a Ctrl-C that waits its turn."""

__all__ = [
    "TrainingDisplay",
    "evaluation_table",
    "sweep_line",
    "sweep_tables",
    "sweep_verdict",
    "counting",
    "graceful_stop",
]

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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

from pyro_vae.comparability import describe
from pyro_vae.evaluation.scores import Estimate, Evaluation
from pyro_vae.sweep.plan import FACTORS
from pyro_vae.sweep.results import LEVEL, ConfigurationResult, Pair, Result, Results, Summary
from pyro_vae.training import Trainer

LINE_INTERVAL = 2.0  # seconds between plain lines
REFRESH_INTERVAL = 0.1  # seconds between updates of the bar
_LABEL_WIDTH = 20  # of a configuration in a table, at least
_SCORE_COLUMNS = 7  # of a sweep's table, up to bits/dim

TITLES = {
    "elbo": "ELBO",
    "log_joint": "log p(x, z(x))",
    "reconstruction": "  E_q log p(x|z)",
    "kl": "  KL(q(z|x) ‖ p(z))",
    "log_likelihood": "log p(x)",
    "log_evidence": "log p(x), exact",
    "bits_per_dim": "bits/dim",
}


class TrainingDisplay:
    """A progress bar on a terminal, plain lines elsewhere; ``title`` stands before the bar."""

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
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
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
            self.task = self.bar.add_task(self.title, total=self.total, **self._fields())
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
        criterion = self.trainer.criterion
        self.valid = f"{row[f'valid_{criterion}']:.2f}"
        now = time.perf_counter()
        if self.console.is_terminal:
            return
        if now - self.last_line >= LINE_INTERVAL or self.trainer.finished:
            self.last_line = now
            error = row[f"valid_{criterion}_standard_error"]
            self.console.print(
                f"epoch {row['epoch']}/{self.trainer.epochs}  step {row['step']}  "
                f"{self._bound} {row[criterion]:.2f}  valid {self.valid}"
                f"{'' if math.isnan(error) else f' ± {error:.2f}'}  β {row['beta']:.2f}  "
                f"{self._rate():,.0f} data/s" + ("  best" if row["best"] else ""),
                highlight=False,
                soft_wrap=True,
            )

    @property
    def _bound(self) -> str:
        annealed = self.trainer.beta != 1 or self.trainer.progress.epoch < self.trainer.warm_up
        title = TITLES[self.trainer.criterion]
        return f"β-{title}" if annealed else title

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
    digits = _digits(errors[:2])
    cells = ["–" if v is None else f"{v:.{digits}f}" for v in (estimate.value, *errors)]
    if estimate.understated:
        limit = "≤" if (estimate.bias or 0) < 0 else "≥"
        cells[1], cells[3] = f"≥{cells[1]}", f"{limit}{cells[3]}"
    return cells


def _digits(errors: Sequence[float | None]) -> int:
    nonzero = [abs(error) for error in errors if error]
    return min(6, max(2, 1 - math.floor(math.log10(min(nonzero))))) if nonzero else 4


def sweep_line(results: Results, result: Result) -> str:
    """Say in one line what became of a run."""
    run = result.run
    place = f"[{len(results.results)}/{len(results.plan.runs)}]"
    what = f"trained {result.seconds:.0f} s" if result.trained else "found"
    if result.scored and not result.trained:
        what += ", scored"
    line = f"{place} {run.configuration.label}, seed {run.seed}: "
    if result.failure is not None:
        return line + result.failure
    shown = [what]
    for name in ("elbo", "log_likelihood") if run.configuration.has_bound else ("reconstruction",):
        estimate = result.estimates[name]
        value, error, _, _ = _cells(estimate)
        shown.append(f"{TITLES[name].strip()} {value}{'' if error == '–' else f' ± {error}'}")
    return line + ", ".join(shown)


def sweep_tables(results: Results, width: int) -> list[Table]:
    """Lay a sweep out, a row a configuration: in one table, or in two where one is too wide."""
    rows = [_sweep_row(results, each) for each in results.configurations]
    heading, labels = _short_labels(results)
    fixed = {key: max(len(key), *(len(row[key]) for row in rows)) + 2 for key in rows[0]}
    parts = [list(fixed)]
    if _LABEL_WIDTH + sum(fixed.values()) > width:
        parts = [list(fixed)[:_SCORE_COLUMNS], list(fixed)[_SCORE_COLUMNS:]]
    tables = []
    for keys in parts:
        # Never narrower than its numbers: a line too long loses no digit.
        needed = _LABEL_WIDTH + sum(fixed[key] for key in keys)
        widest = max(map(len, labels)) + 4 + needed - _LABEL_WIDTH
        table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.width = max(needed, min(width, widest))
        table.add_column(heading, overflow="fold", ratio=1)
        for key in keys:
            table.add_column(key, justify="right", no_wrap=True, width=fixed[key] - 2)
        for label, row in zip(labels, rows, strict=True):
            table.add_row(Text(label), *(row[key] for key in keys))
        tables.append(table)
    return tables


def _short_labels(results: Results) -> tuple[str, list[str]]:
    """Where one setting varies its name is the heading, and the labels are its values."""
    configs = [each.configuration.config for each in results.configurations]
    varying = [name for name in FACTORS if len({getattr(c, name) for c in configs}) > 1]
    labels = [each.label for each in results.configurations]
    if len(varying) != 1:
        return "", labels
    return varying[0], [label.removeprefix(f"{varying[0]}=") for label in labels]


def _sweep_row(results: Results, each: ConfigurationResult) -> dict[str, str]:
    scores = each.summaries
    mark = "†" if results.is_lower_bound(each.configuration) else ""
    value = {name: _summary_cells(summary)[0] for name, summary in scores.items()}
    errors = ["–"] * 3
    if "log_likelihood" in scores:
        errors = _summary_cells(scores["log_likelihood"])[1:]
    seeds, failed = len(each.finished), len(each.results) - len(each.finished)
    units = each.active_units

    def bound(name: str) -> str:
        return value[name] + mark if name in value else "–"

    return {
        "seeds": f"{seeds}" if not failed else f"{seeds}/{seeds + failed}",
        "ELBO": bound("elbo"),
        "log p(x)": bound("log_likelihood"),
        "± draws": errors[0],
        "± data": errors[1],
        "± seeds": errors[2],
        "bits/dim": bound("bits_per_dim"),
        "KL": value.get("kl", "–"),
        "active": "–" if units is None else f"{units:.1f}".removesuffix(".0"),
        "parameters": f"{each.configuration.num_parameters:,}",
        "time": "–" if each.seconds is None else f"{each.seconds:.0f} s",
    }


def _summary_cells(summary: Summary) -> list[str]:
    """Value, ± draws, ± data, ± seeds, to the digits of the smallest."""
    digits = _digits(summary[1:4])
    cells = ["–" if v is None else f"{v:.{digits}f}" for v in summary[:4]]
    if summary.understated:
        cells[1] = f"≥{cells[1]}"
    return cells


def sweep_verdict(results: Results) -> list[str]:
    """Say what the best configuration is better than, and what the numbers mean."""
    pairs = results.pairs
    configurations = results.configurations
    shown = [pair for pair in pairs if pair.first.label == configurations[0].label]
    lines = []
    if shown:
        lines.append(f"highest mean log p(x): {shown[0].first.label}")
    lines += [f"  vs {pair.second.label}: {_verdict(results, pair)}" for pair in shown]
    if any(pair.verdict.interval for pair in shown):
        lines.append(
            "Intervals are over seeds (Welch's t, "
            f"{100 * LEVEL:.0f} % jointly for {results.comparisons} "
            f"{'pair' if results.comparisons == 1 else 'pairs'}), on these test data and with this "
            "training budget; they say nothing of longer training."
        )
    if any(results.is_lower_bound(each.configuration) for each in configurations):
        lines.append(
            "† a density of dequantized values, brought to the mass on levels by its Jacobian: a "
            "lower bound on log P(level), so bits/dim are an upper bound"
        )
    elif results.plan.measure == "dequantized":
        lines.append("bits/dim of dequantized values are an upper bound")
    if any(summary.understated for c in configurations for summary in c.summaries.values()):
        lines.append("≥ few draws carry some estimates of log p(x): their error is a lower limit")
    lines += [
        f"failed: {r.run.configuration.label}, seed {r.run.seed}, {r.failure}"
        for r in results.failures
    ]
    notes = {r.units.note for r in results.results if r.units and r.units.note}
    lines += [f"active units: {note}" for note in sorted(notes)]
    if not all(each.configuration.has_bound for each in configurations):
        lines.append("– a guide that is a point has no bound on log p(x), so no place in a verdict")
    lines.append(
        f"ELBO, log p(x) by IWAE-{results.plan.num_samples} and KL in nats/datum, of "
        f"{describe(results.plan.measure)}; ± standard errors of log p(x) over draws of z, over "
        "data, and over seeds (which contains that over draws); active: dimensions with "
        "Var_x(E_q[z|x]) > 0.01 Var_p(z)"
    )
    return lines


def _verdict(results: Results, pair: Pair) -> str:
    interval, winner = pair.verdict.interval, pair.verdict.winner
    numbers = ""
    if interval is not None:
        digits = _digits([interval.standard_error])
        low, high = (f"{v:+.{digits}f}" for v in (interval.low, interval.high))
        numbers = f"{interval.difference:+.{digits}f} nats, interval [{low}, {high}]"
    if winner == "unresolved":
        return f"unresolved ({pair.verdict.reason})" + (f"; {numbers}" if numbers else "")
    caveat = ""
    if results.is_lower_bound(pair.second.configuration) > results.is_lower_bound(
        pair.first.configuration
    ):
        caveat = "; of its lower bound: its log P(level) may be higher"
    return f"better by {numbers.removeprefix('+')}{caveat}"


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
