"""``pyro-vae evaluate``: a run's scores, or two runs' difference; tables, records and figures."""

__all__ = ["evaluate_run", "evaluate_pair", "Options"]

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from pyro_vae.checkpoint import write_atomically
from pyro_vae.comparison.rows import Truth
from pyro_vae.data import Split
from pyro_vae.data.noise import permutation
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Evaluation, evaluate
from pyro_vae.evaluation.paired import LEVEL, PairedDifference
from pyro_vae.evaluation.per_datum_record import keep_per_datum
from pyro_vae.evaluation.record import read_record, replace_entry, weights_hash, write_record
from pyro_vae.evaluation_figures import bound_curve, pareto_k_over_data
from pyro_vae.evaluation_tables import (
    errors_note,
    evaluation_notes,
    evaluation_table,
    paired_table,
    pareto_table,
)
from pyro_vae.figures import save
from pyro_vae.paired_runs import (
    EVIDENCE,
    Side,
    check_comparable,
    paired_differences,
    paired_verdict,
)
from pyro_vae.runs import Run
from pyro_vae.terminal import counting


@dataclass(frozen=True)
class Options:
    """What the command line chooses."""

    split: str = "test"
    num_samples: int = 5000
    count: int | None = None
    chunk_size: int | None = None
    seed: int = 0
    adaptive: str | None = None
    """Which data are estimated again, ``flagged`` or ``all``."""
    evidence: str | None = None
    """By what else log p(x) is estimated: ``best``, ``exact``, ``quadrature`` or ``ais``."""


class Subject(NamedTuple):
    """A run and the data it is scored on."""

    run: Run
    split: Split
    positions: list[int]
    """Of the data in the whole split."""
    protocol: dict[str, Any]
    """What of the protocol is known before any work."""
    record: Path


def evaluate_run(console: Console, run: Run, options: Options) -> None:
    """Score, record, print and draw.

    Raises:
        InputError: options that make no sense, or a damaged record; before any work where it
            can be known.
    """
    subject = _subject(run, options)
    _show(console, subject, _score(console, subject, options))


def evaluate_pair(
    console: Console, first: Run, second: Run, options: Options, out: Path | None = None
) -> None:
    """Score two runs on the same data; print, and write to ``out``, their paired difference.

    Each run is recorded and drawn as by ``evaluate_run``.

    Raises:
        InputError: unlike protocols, or measures whose nats cannot be subtracted, naming what
            differs; before any work.
    """
    a, b = (_subject(run, options) for run in (first, second))
    _check_bounds(a, b, options)
    shifts = check_comparable(_side(a), _side(b))
    _check_place(out)
    found = [_score(console, a, options)]
    _show(console, a, found[0])
    if first.path.resolve() != second.path.resolve():
        found.append(_score(console, b, options))
        _show(console, b, found[1])
    sides = found[0].per_datum, found[-1].per_datum
    differences = paired_differences(*sides, shifts, ordered=first.facts.ordered)
    lines = paired_verdict(
        differences, options.num_samples, options.seed, shifts, adaptive=bool(options.adaptive)
    )
    _say(console, f"\nA: {first.path}", style="bold")
    _say(console, f"B: {second.path}", style="bold")
    _print(console, paired_table(differences, options.num_samples))
    for line in lines:
        _say(console, line)
    if out is not None:
        _write(out, [(a, found[0]), (b, found[-1])], differences, lines)
        _say(console, str(out))


def _subject(run: Run, options: Options) -> Subject:
    """Load the data and read the record: what may fail does so before the work."""
    split = run.data.split(options.split)
    positions = list(range(len(split)))
    if options.count is not None:
        # ``subset`` takes the first of this permutation, in the split's order.
        order = permutation(len(split), 0)[: options.count]
        split, positions = split.subset(options.count), sorted(order.tolist())
    record = run.path / "evaluation" / f"{options.split}.json"
    read_record(record)
    protocol = {"weights": run.weights, **run.data.protocol(options.split, split)}
    return Subject(run, split, positions, protocol, record)


def _side(subject: Subject) -> Side:
    run = subject.run
    protocol = subject.protocol | {"dtype": run.config.dtype}
    return Side(run.config.likelihood, run.facts, subject.split, protocol)


def _score(console: Console, subject: Subject, options: Options) -> Evaluation:
    """Score a run and record it; an interruption leaves the record as it was."""
    run = subject.run
    with _following(console, options) as (on_block, on_refine, on_evidence):
        evaluation = evaluate(
            run.model,
            run.guide,
            subject.split,
            run.facts,
            num_samples=options.num_samples,
            adaptive=options.adaptive,
            evidence=options.evidence,
            chunk_size=options.chunk_size,
            seed=options.seed,
            device=run.device,
            dtype=run.config.torch_dtype(),
            data_protocol=subject.protocol,
            positions=subject.positions,
            on_block=on_block,
            on_refine=on_refine,
            on_evidence=on_evidence,
        )
    entry = keep_per_datum(subject.record, evaluation, weights_hash(run.path, run.weights))
    write_record(subject.record, replace_entry(read_record(subject.record), entry))
    return evaluation


@contextlib.contextmanager
def _following(
    console: Console, options: Options
) -> Iterator[tuple[Callable[[int, int], None], ...]]:
    """A bar for the blocks of IWAE-K, in its place one for data estimated again, one for AIS."""
    with contextlib.ExitStack() as stack:
        bars: dict[str, Callable[[int, int], None]] = {}

        def follow(title: str) -> Callable[[int, int], None]:
            def show(done: int, total: int) -> None:
                if title not in bars:
                    stack.close()
                    bars[title] = stack.enter_context(counting(console, title))
                bars[title](done, total)

            return show

        again = f"{options.adaptive} data again, steps"
        titles = (f"IWAE-{options.num_samples}, blocks", again, "AIS, steps")
        yield tuple(map(follow, titles))


def _show(console: Console, subject: Subject, evaluation: Evaluation) -> None:
    run = subject.run
    split, data = evaluation.protocol["split"], run.config.data
    _say(console, f"{run.path}, {split}, {len(subject.split)} data of {data}", style="bold")
    _print(console, evaluation_table(evaluation))
    for note in evaluation_notes(evaluation):
        _say(console, note)
    if evaluation.pareto_k is not None and evaluation.pareto_k["worst"]:
        _print(console, pareto_table(evaluation.pareto_k["worst"]))
    _say(console, f"{errors_note(evaluation)}; {subject.record}")
    for path in _draw(subject, evaluation):
        _say(console, str(path))


def _draw(subject: Subject, evaluation: Evaluation) -> list[Path]:
    """Draw what there is to draw; remove what an earlier evaluation drew."""
    figures = {
        "bound_curve.png": _curve_figure(evaluation),
        "pareto_k.png": _pareto_figure(subject, evaluation),
    }
    paths = []
    for name, figure in figures.items():
        path = subject.run.path / "figures" / name
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            paths.append(save(figure, path))
    return paths


def _curve_figure(evaluation: Evaluation) -> Figure | None:
    result = evaluation.result
    if result is None or result.num_samples == 1:
        return None
    truth = None
    for name, method in zip(EVIDENCE, ("exact", "quadrature", "AIS"), strict=True):
        known = evaluation.estimates.get(name)
        if known is not None and truth is None:
            truth = Truth(method, known.value, known.standard_error or 0.0)
    return bound_curve(result.curve, last_error=result.mean_monte_carlo_error, truth=truth)


def _pareto_figure(subject: Subject, evaluation: Evaluation) -> Figure | None:
    result, summary = evaluation.result, evaluation.pareto_k
    if result is None or summary is None or not bool(result.pareto_k.isfinite().any()):
        return None
    worst = [row["position"] for row in summary["worst"]]
    places = [subject.positions.index(position) for position in worst]
    x = subject.split.scored(torch.tensor(places, dtype=torch.long))
    facts = subject.run.facts
    levels = not (facts.measure == "counts" or facts.is_real)
    return pareto_k_over_data(
        result.pareto_k,
        result.threshold,
        positions=subject.positions,
        worst=places,
        images=x if worst and x.dim() > 2 else None,
        vmin=0.0 if levels else None,
        vmax=facts.unit if levels else None,
    )


def _check_bounds(a: Subject, b: Subject, options: Options) -> None:
    """Refuse a point whose log p(x) nothing else estimates."""
    for each in (a, b):
        if not getattr(each.run.guide, "has_bound", True) and options.evidence is None:
            raise InputError(
                f"the guide of '{each.run.path}' is a point, which has no estimate of log p(x) but "
                "from the prior; give --evidence ais"
            )


def _check_place(out: Path | None) -> None:
    if out is None:
        return
    if out.is_dir() or any(parent.is_file() for parent in out.parents):
        raise InputError(f"cannot write '{out}': expected the name of a file for the difference")


def _write(
    out: Path,
    sides: Sequence[tuple[Subject, Evaluation]],
    differences: Mapping[str, PairedDifference],
    lines: Sequence[str],
) -> None:
    runs = [
        {
            "path": str(subject.run.path),
            "weights_hash": weights_hash(subject.run.path, subject.run.weights),
            "protocol": evaluation.protocol,
        }
        for subject, evaluation in sides
    ]
    rows = {name: each.to_json() for name, each in differences.items()}
    content = {"runs": runs, "level": LEVEL, "differences": rows, "notes": list(lines)}
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(out, lambda file: file.write(text.encode()))


def _print(console: Console, table: Table) -> None:
    """Print a table whole: a number cut short would be another number."""
    wide = console.options.update(width=1000)
    width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table, width=width, crop=False)


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, soft_wrap=True)
