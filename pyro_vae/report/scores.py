"""The scores of each run with their errors, and of each two the difference datum by datum."""

__all__ = ["scores_topic", "differences_topic"]

import itertools
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from pyro_vae.comparison.rows import Truth
from pyro_vae.errors import InputError
from pyro_vae.evaluation.bound_curve import MeanCurve
from pyro_vae.evaluation.per_datum_record import read_per_datum
from pyro_vae.evaluation.record import Entry
from pyro_vae.evaluation.scores import Estimate, Evaluation, PerDatum
from pyro_vae.evaluation_figures import bound_curve
from pyro_vae.evaluation_tables import (
    POINT_NOTE,
    errors_note,
    evaluation_notes,
    evaluation_table,
    paired_table,
    pareto_table,
)
from pyro_vae.paired_runs import (
    EVIDENCE,
    Side,
    check_comparable,
    paired_differences,
    paired_verdict,
)
from pyro_vae.report.content import Block, Topic, figure, note, notes
from pyro_vae.report.markup import chart_svg, table_html
from pyro_vae.report.subject import Subject

OTHER_DATA = "These are scores of other data than the run's data set now holds."
_METHODS = dict(zip(EVIDENCE, ("exact", "quadrature", "AIS"), strict=True))


def scores_topic(subjects: Sequence[Subject]) -> Topic:
    """Every score that is recorded of the weights of each run, each with its errors."""
    blocks = []
    for subject in subjects:
        parts = [
            part
            for i, (_, entry) in enumerate(subject.scores)
            for part in _entry_parts(subject, entry, f"{subject.key}-bound{i}")
        ]
        blocks.append(Block(subject.name, parts or [note(_missing(subject))]))
    return Topic("scores", "Scores", blocks)


def _missing(subject: Subject) -> str:
    command = f"pyro-vae evaluate {shlex.quote(str(subject.run.path))}"
    if subject.entries:
        return f"the scores in the folder are of other weights; anew: {command}"
    return f"not scored yet: {command}"


def _entry_parts(subject: Subject, entry: Entry, key: str) -> list[Markup]:
    estimates = {name: Estimate(**fields) for name, fields in entry["estimates"].items()}
    evaluation = Evaluation(estimates, entry["protocol"], entry.get("pareto_k"))
    parts = [
        Markup("<h4>{}</h4>").format(_protocol_line(entry["protocol"])),
        *([] if subject.scored_split(entry["protocol"]) else [note(OTHER_DATA)]),
        table_html(evaluation_table(evaluation)),
        notes([errors_note(evaluation), *evaluation_notes(evaluation)]),
    ]
    if evaluation.pareto_k is not None and evaluation.pareto_k["worst"]:
        parts.append(table_html(pareto_table(evaluation.pareto_k["worst"])))
    return [*parts, *_curve(subject, entry, estimates, key)]


def _protocol_line(protocol: dict[str, Any]) -> str:
    parts = [protocol["split"].capitalize(), f"{protocol['count']:,} data"]
    if protocol.get("content_hash"):
        parts.append(f"content {protocol['content_hash'][:8]}")
    if protocol.get("num_samples", 1) > 1:
        parts.append(f"K = {protocol['num_samples']:,}")
    if "seed" in protocol:
        parts.append(f"seed = {protocol['seed']}")
    parts += [protocol.get("dtype"), protocol.get("device")]
    return ", ".join(str(part) for part in parts if part)


def _curve(
    subject: Subject, entry: Entry, estimates: dict[str, Estimate], key: str
) -> Iterator[Markup]:
    """The bound against K, where it was recorded and has a point with an error."""
    if "bound_curve" not in entry or entry["protocol"].get("num_samples", 1) == 1:
        return
    truth = next(
        (
            Truth(method, estimates[name].value, estimates[name].standard_error or 0.0)
            for name, method in _METHODS.items()
            if name in estimates
        ),
        None,
    )
    last = estimates["log_likelihood"].standard_error
    try:
        drawn = bound_curve(MeanCurve.from_json(entry["bound_curve"]), last_error=last, truth=truth)
    except InputError:
        return
    yield figure(chart_svg(drawn, key, f"Bound on log p(x) against K, {subject.name}"))


class _Scored(NamedTuple):
    side: Side
    entry: Entry
    per_datum: dict[str, PerDatum]


def differences_topic(subjects: Sequence[Subject]) -> Topic | None:
    """log p_A(x) − log p_B(x) over the same data, of every two runs; None of one run."""
    pairs = list(itertools.combinations(subjects, 2))
    if not pairs:
        return None
    lead = "The mean over data of log p(x) of A minus that of B."
    if len(pairs) > 1:
        lead += " The intervals hold for all pairs together."
    found = {subject.key: list(_scored(subject)) for subject in subjects}
    blocks = [
        Block(
            f"A: {a.name}, B: {b.name}",
            _difference(found[a.key], found[b.key], _points(a, b), len(pairs)),
        )
        for a, b in pairs
    ]
    return Topic("differences", "Differences, datum by datum", blocks, lead)


def _points(a: Subject, b: Subject) -> list[str]:
    """Which of the two have no estimate of log p(x) to begin with."""
    return [
        name
        for name, each in (("A", a), ("B", b))
        if not each.has_bound and not list(_scored(each))
    ]


def _scored(subject: Subject) -> Iterator[_Scored]:
    """Entries of the data as they now are: of test data, of most data and draws, the latest."""
    run = subject.run
    latest_first = reversed(subject.scores)
    for record, entry in sorted(latest_first, key=lambda each: _rank(each[1]), reverse=True):
        per_datum = read_per_datum(record, entry)
        split = subject.scored_split(entry["protocol"])
        if per_datum and split is not None:
            yield _Scored(
                Side(run.config.likelihood, run.facts, split, entry["protocol"]), entry, per_datum
            )


def _rank(entry: Entry) -> tuple[bool, int, int]:
    protocol = entry["protocol"]
    return protocol["split"] == "test", protocol["count"], protocol.get("num_samples", 1)


def _difference(
    a: Sequence[_Scored], b: Sequence[_Scored], points: Sequence[str], num_pairs: int
) -> list[Markup]:
    """The first two entries that may be compared; if none may, why the latest may not."""
    if points:
        return [note(f"{' and '.join(points)}: {POINT_NOTE}; nothing to subtract")]
    if not (a and b):
        which = " and ".join(name for name, side in (("A", a), ("B", b)) if not side)
        return [note(f"{which}: no log p(x) of each datum, of these weights and data, is recorded")]
    reason = ""
    for one, other in itertools.product(a, b):
        try:
            shifts = check_comparable(one.side, other.side)
        except InputError as error:
            reason = reason or str(error)
            continue
        return _told(one, other, shifts, num_pairs)
    return [note(reason)]


def _told(a: _Scored, b: _Scored, shifts: tuple[float, float], num_pairs: int) -> list[Markup]:
    protocol = a.entry["protocol"]
    differences = paired_differences(
        a.per_datum, b.per_datum, shifts, ordered=a.side.facts.ordered, num_pairs=num_pairs
    )
    if not differences:
        return [note("A and B have no estimate of log p(x) in common")]
    num_samples = protocol.get("num_samples", 1)
    lines = paired_verdict(
        differences, num_samples, protocol.get("seed", 0), shifts,
        adaptive="adaptive" in protocol, num_pairs=num_pairs,
    )  # fmt: skip
    return [
        Markup('<p class="verdict">{}</p>').format(lines[0]),
        table_html(paired_table(differences, num_samples)),
        notes([_protocol_line(protocol), *lines[1:]]),
    ]
