"""``pyro-vae evaluate``: a run's scores, or two runs' difference; tables, records and figures."""

__all__ = ["evaluate_run", "evaluate_pair", "Options"]

import contextlib
import dataclasses
import json
import math
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
from pyro_vae.comparability import Scored, describe, levels_hash
from pyro_vae.comparison.rows import Truth
from pyro_vae.data import Split
from pyro_vae.data.noise import permutation
from pyro_vae.digits import digits_of
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Evaluation, evaluate
from pyro_vae.evaluation.paired import (
    LEVEL,
    PairedDifference,
    check_same_protocol,
    paired_difference,
)
from pyro_vae.evaluation.record import read_record, replace_entry, weights_hash, write_record
from pyro_vae.evaluation_figures import bound_curve, pareto_k_over_data
from pyro_vae.figures import save
from pyro_vae.runs import Run
from pyro_vae.terminal import (
    POINT_NOTE,
    TITLES,
    counting,
    evaluation_table,
    paired_table,
    pareto_table,
)

# The estimates of log p(x), the most trusted first.
EVIDENCE = ("log_evidence", "log_evidence_quadrature", "log_evidence_ais")
LOG_PX = (*EVIDENCE, "log_likelihood_adaptive", "log_likelihood")
NOTED = ("log_likelihood", "log_likelihood_adaptive", *EVIDENCE, "bits_per_dim")
UNLIKE = "the two runs cannot be compared datum by datum: "


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

    @property
    def scored(self) -> Scored:
        """What its log p(x) speaks of."""
        return Scored(self.run.config.likelihood, self.run.facts, self.split)


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
    shifts = _check_comparable(a, b, options)
    _check_place(out)
    found = [_score(console, a, options)]
    _show(console, a, found[0])
    if first.path.resolve() != second.path.resolve():
        found.append(_score(console, b, options))
        _show(console, b, found[1])
    differences = _differences(found[0], found[-1], shifts, first.facts.ordered)
    lines = _verdict(differences, options, shifts)
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
    entry = evaluation.to_json() | {"weights_hash": weights_hash(run.path, run.weights)}
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
    run, estimates = subject.run, evaluation.estimates
    split, data = evaluation.protocol["split"], run.config.data
    _say(console, f"{run.path}, {split}, {len(subject.split)} data of {data}", style="bold")
    _print(console, evaluation_table(evaluation))
    for name in NOTED:
        if name in estimates and estimates[name].note:
            _say(console, f"{TITLES[name]}: {estimates[name].note}")
    if evaluation.pareto_k is not None:
        _say(console, _pareto_line(evaluation.pareto_k, len(subject.split)))
        if evaluation.pareto_k["worst"]:
            _print(console, pareto_table(evaluation.pareto_k["worst"]))
    if estimates.keys() == {"reconstruction"}:
        _say(console, POINT_NOTE)
    drawn = any(estimate.standard_error is not None for estimate in estimates.values())
    errors = "errors over draws of z and" if drawn else "error"
    _say(console, f"± standard {errors} over data; {subject.record}")
    for path in _draw(subject, evaluation):
        _say(console, str(path))


def _pareto_line(summary: Mapping[str, Any], count: int) -> str:
    """How many data k̂ flags, and of how many the estimate is exact."""
    flagged, unknown, constant = (summary[name] for name in ("flagged", "unknown", "constant"))
    parts = []
    if flagged > unknown or unknown + constant < count:
        parts.append(f"{flagged - unknown} of {count} data above {summary['threshold']:.2f}")
    if unknown:
        parts.append(f"not known of {unknown} of {count} data")
    if constant:
        parts.append(
            f"{constant} of {count} data exact, all weights being equal: q(z|x) is the posterior"
        )
    worst = ", the worst:" if summary["worst"] else ""
    return f"k̂, from {summary['pilot_samples']} draws of its own: {'; '.join(parts)}{worst}"


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


def _check_comparable(a: Subject, b: Subject, options: Options) -> tuple[float, float]:
    """Refuse what has no difference; return what to add to the nats of each side.

    log P(level) ≥ E log p((level + u)/n) − D log n: a dequantized density beside a mass on the
    same levels is brought to levels, as a lower bound.
    """
    for each in (a, b):
        if not getattr(each.run.guide, "has_bound", True) and options.evidence is None:
            raise InputError(
                f"the guide of '{each.run.path}' is a point, which has no estimate of log p(x) but "
                "from the prior; give --evidence ais"
            )
    kinds = {a.scored.kind: a, b.scored.kind: b}
    mixed = kinds.keys() == {"levels", "dequantized"}
    if len(kinds) > 1 and not mixed:
        raise InputError(
            f"{UNLIKE}measure ({describe(a.scored.kind)} and {describe(b.scored.kind)})"
        )
    one, other = (each.protocol | {"dtype": each.run.config.dtype} for each in (a, b))
    check_same_protocol(one, other, same_levels=mixed)
    if not mixed:
        return 0.0, 0.0
    shapes = {(each.run.facts.event_shape, each.run.facts.num_levels) for each in (a, b)}
    hashes = {levels_hash(each.split, each.run.facts) for each in (a, b)}
    if len(shapes) > 1 or len(hashes) > 1:
        raise InputError(
            f"{UNLIKE}levels (a mass on some, a density of others, so that no Jacobian makes "
            "one of the other)"
        )
    return _jacobian(a), _jacobian(b)


def _jacobian(subject: Subject) -> float:
    """−D log n of dequantized values, 0 of levels."""
    facts = subject.run.facts
    return -facts.num_dims * math.log(facts.num_levels or 1) if facts.dequantized else 0.0


def _check_place(out: Path | None) -> None:
    if out is None:
        return
    if out.is_dir() or any(parent.is_file() for parent in out.parents):
        raise InputError(f"cannot write '{out}': expected the name of a file for the difference")


def _differences(
    a: Evaluation, b: Evaluation, shifts: tuple[float, float], ordered: bool
) -> dict[str, PairedDifference]:
    """Estimate of log p(x) → its difference; of those that both sides have."""
    found = {}
    for name in LOG_PX:
        if name in a.per_datum and name in b.per_datum:
            sides = [
                dataclasses.replace(side, log_px=side.log_px + shift)
                for side, shift in zip((a.per_datum[name], b.per_datum[name]), shifts, strict=True)
            ]
            found[name] = paired_difference(*sides, ordered=ordered)
    return found


def _verdict(
    differences: Mapping[str, PairedDifference], options: Options, shifts: Sequence[float]
) -> list[str]:
    """What the most trusted difference says, what limits it, and what none of them says."""
    name = next(iter(differences))
    found = differences[name]
    title = f"IWAE-{options.num_samples}" if name == "log_likelihood" else TITLES[name]
    lines = [f"{title}: {_conclusion(found)}"]
    if found.may_be_the_guides and name not in EVIDENCE:
        lines.append(_guides(found, options))
    for side, shift in zip("AB", shifts, strict=True):
        if shift:
            lines.append(
                f"{side} is a density of dequantized values, here less D log n: a lower bound on "
                f"log P(level), so that {side} may lie higher"
            )
    if not any(each.is_exact or each.is_same for each in differences.values()):
        limit = "lower limits themselves, hence ≥" if found.understated else "an upper limit"
        lines.append(
            f"± draws adds the errors of A and B, which share the noise of seed {options.seed}, "
            f"whatever correlates them ({limit}); ± data contains what the draws add"
        )
    lines.append(
        "This compares two trained networks; of two priors or architectures it says nothing: "
        "those take five seeds a side, see pyro-vae sweep"
    )
    return lines


def _conclusion(found: PairedDifference) -> str:
    if found.is_same:
        return "A and B agree on every datum to the last bit"
    if found.low is None or found.high is None:
        return "unresolved: one datum has no error over data"
    digits = digits_of([found.data_standard_error])
    interval = f"{found.low:.{digits}f} to {found.high:.{digits}f}, the 95 % interval over data"
    if found.winner == "unresolved":
        return f"unresolved, A − B is {interval}"
    return f"{'A' if found.winner == 'first' else 'B'} is higher, A − B is {interval}"


def _guides(found: PairedDifference, options: Options) -> str:
    """Why a difference of the estimates need not be one of log p(x)."""
    lower, flagged, bias = "B", found.second_flagged, found.second_bias
    if found.difference < 0:
        lower, flagged, bias = "A", found.first_flagged, found.first_bias
    reasons = []
    if bias is None:
        reasons.append("one draw a datum tells no bias")
    elif -bias >= abs(found.difference):
        reasons.append("its bias is as large")
    if flagged:
        reasons.append(f"{flagged} of its {found.count} data are flagged")
    hint = "" if options.adaptive or not flagged else "; see --adaptive"
    return (
        f"It may be a difference of the guides: the estimate of {lower} may miss as much of "
        f"log p(x) as A and B differ by ({' and '.join(reasons)}){hint}"
    )


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
