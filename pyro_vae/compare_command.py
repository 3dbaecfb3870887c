"""``pyro-vae compare``: a subject in; tables, comparison.json and two figures out."""

__all__ = ["compare_subject", "Options", "check_specs", "parse_particles"]

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pyro_vae.comparison import Comparison, GradientRow, Values, compare_gradients, compare_values
from pyro_vae.comparison.record import write_comparison
from pyro_vae.comparison.subject import Subject
from pyro_vae.comparison_figures import estimator_values, signal_to_noise
from pyro_vae.comparison_tables import (
    check_tables,
    gradient_notes,
    gradient_tables,
    textbook_notes,
    textbook_tables,
    value_notes,
    value_tables,
)
from pyro_vae.components import build
from pyro_vae.defaults import GRADIENT_REPEATS, VALUE_REPEATS
from pyro_vae.errors import InputError
from pyro_vae.evaluation.scores import versions
from pyro_vae.figures import save
from pyro_vae.specs import parse_spec
from pyro_vae.terminal import counting
from pyro_vae.textbook_table import TextbookRow, textbook_table


class Options(NamedTuple):
    """What the command line chooses."""

    estimators: Sequence[str] | None
    """Specs; None for those of ``compare_values`` and ``compare_gradients``."""
    particles: Sequence[int]
    num_repeats: int | None
    gradients: bool
    textbook: bool
    seed: int


def compare_subject(console: Console, subject: Subject, out: Path, options: Options) -> None:
    """Compare, print and write to ``out``: the record first, then the figures.

    Raises:
        InputError: a pair that no estimator takes, or that has no textbook losses where these
            are asked for.
    """
    textbook = _textbook(subject, options) if options.textbook else []
    count, data = len(subject.x), subject.protocol["data"]
    split = subject.protocol["split"]
    _say(console, f"{subject.name}, {split}, {count} data of {data}", style="bold")
    rows, reference, truth, checks = _values(console, subject, options)
    if all(row.refusal for row in rows):
        raise InputError(f"no estimator takes this pair: {rows[0].estimator}: {rows[0].refusal}")
    comparison = Comparison(rows, [], reference, truth, checks, _protocol(subject, options))
    _print(console, value_tables(comparison, console.width), value_notes(comparison))
    _print(console, check_tables(checks, console.width), [])
    if options.gradients:
        write_comparison(out / "comparison.json", comparison, textbook)  # not lost at a Ctrl-C
        comparison.gradients.extend(_gradients(console, subject, out, options))
        tables = gradient_tables(comparison.gradients, console.width)
        _print(console, tables, gradient_notes(comparison.gradients))
    if textbook:
        _print(console, textbook_tables(textbook, console.width), textbook_notes(textbook))
    _write(console, out, comparison, textbook)


def check_specs(estimators: Sequence[str] | None) -> None:
    """Refuse an estimator that is none, or given twice, before anything is loaded.

    Raises:
        InputError: an unknown name or argument, with the nearest match.
    """
    seen: set[str] = set()
    for text in estimators or ():
        build("objective", text)
        spec = str(parse_spec(text))
        if spec in seen:
            raise InputError(f"--estimator {spec!r} is given twice")
        seen.add(spec)


def parse_particles(text: str) -> list[int]:
    """Return the K of ``--particles``, ascending.

    Raises:
        InputError: anything but whole numbers from 1.

    Example:
        >>> parse_particles("8,1, 64")
        [1, 8, 64]
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise InputError(f"--particles must be whole numbers from 1 such as 1,8,64, got {text!r}")
    return sorted({int(word) for word in words})


def _textbook(subject: Subject, options: Options) -> list[TextbookRow]:
    return textbook_table(
        subject.model,
        subject.guide,
        subject.x,
        num_samples=options.num_repeats or VALUE_REPEATS,
        batch_size=subject.batch_size,
        ordered=subject.ordered,
        seed=options.seed,
    )


def _values(console: Console, subject: Subject, options: Options) -> Values:
    with counting(console, "values, draws") as on_step:
        return compare_values(
            subject.model,
            subject.guide,
            subject.x,
            estimators=options.estimators,
            num_repeats=options.num_repeats or VALUE_REPEATS,
            seed=options.seed,
            ordered=subject.ordered,
            on_step=on_step,
        )


def _gradients(
    console: Console, subject: Subject, out: Path, options: Options
) -> list[GradientRow]:
    try:
        with counting(console, "gradients, draws") as on_step:
            return compare_gradients(
                subject.model,
                subject.guide,
                subject.x,
                estimators=options.estimators,
                particles=options.particles,
                num_repeats=options.num_repeats or GRADIENT_REPEATS,
                seed=options.seed,
                on_step=on_step,
            )
    except KeyboardInterrupt:
        _say(console, f"stopped at the gradients; the values are in {out / 'comparison.json'}")
        raise


def _protocol(subject: Subject, options: Options) -> dict[str, Any]:
    repeats: dict[str, Any] = {"num_repeats": options.num_repeats or VALUE_REPEATS}
    if options.gradients:
        repeats["gradient_repeats"] = options.num_repeats or GRADIENT_REPEATS
        repeats["particles"] = list(options.particles)
    return {
        **subject.protocol,
        "estimators": None if options.estimators is None else list(options.estimators),
        **repeats,
        "seed": options.seed,
        "dtype": str(subject.x.dtype).removeprefix("torch."),
        "device": subject.x.device.type,
        "versions": versions(),
    }


def _write(
    console: Console, out: Path, comparison: Comparison, textbook: Sequence[TextbookRow]
) -> None:
    record = out / "comparison.json"
    write_comparison(record, comparison, textbook)
    _say(console, str(record))
    figures = {
        "estimators.png": _drawn(
            [row.mean for row in comparison.values],
            lambda: estimator_values(comparison.values, comparison.truth),
        ),
        "signal_to_noise.png": _drawn(
            [row.signal_to_noise or None for row in comparison.gradients],
            lambda: signal_to_noise(comparison.gradients),
        ),
    }
    for name, figure in figures.items():
        path = out / "figures" / name
        if figure is None:
            path.unlink(missing_ok=True)  # of an earlier comparison
        else:
            _say(console, str(save(figure, path)))


def _drawn(values: Sequence[float | None], draw: Callable[[], Figure]) -> Figure | None:
    """The figure, where there is anything to draw."""
    return draw() if any(v is not None and math.isfinite(v) for v in values) else None


def _print(console: Console, tables: Sequence[Table], notes: Sequence[str]) -> None:
    for table in tables:
        console.print(table, width=max(console.width, table.width or 0), crop=False)
    for note in notes:
        _say(console, note)


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, soft_wrap=True)
