"""What was found out of a run: its estimators compared, and its diagnosis."""

__all__ = ["estimators_topic", "diagnosis_topic"]

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence

from markupsafe import Markup
from matplotlib.figure import Figure
from rich.table import Table

from pyro_vae.comparison.rows import Comparison
from pyro_vae.comparison_figures import estimator_values, signal_to_noise
from pyro_vae.comparison_tables import (
    check_tables,
    gradient_notes,
    gradient_tables,
    value_notes,
    value_tables,
)
from pyro_vae.diagnosis.diagnose import PARTS, data_of
from pyro_vae.diagnosis.rows import Diagnosis
from pyro_vae.diagnosis_gallery import Diagnosed, part_figure
from pyro_vae.diagnosis_tables import TITLES_OF_PARTS, part_report
from pyro_vae.errors import InputError
from pyro_vae.evaluation_tables import POINT_NOTE
from pyro_vae.report.content import Block, Topic, figure, note, notes
from pyro_vae.report.markup import chart_svg, picture_img, table_html
from pyro_vae.report.subject import Subject

WIDE = 1000  # letters: a table in one piece
_OF_DOTS = ("reliability", "space")  # figures of thousands of points, or of images


def estimators_topic(subjects: Sequence[Subject]) -> Topic:
    """Every estimator of the bound of each run, by value and by gradient."""
    blocks = []
    for subject in subjects:
        missing = _missing(subject, "compare", "comparison", "not compared yet")
        if not subject.has_bound:
            missing = POINT_NOTE
        found = subject.comparison
        parts = [note(missing)] if found is None else list(_estimators(subject, found))
        blocks.append(Block(subject.name, parts, wide=found is not None))
    return Topic("estimators", "Estimators of the bound", blocks)


def _missing(subject: Subject, command: str, record: str, never: str) -> str:
    """The command that makes what is not there, or not of these data and weights."""
    line = f"pyro-vae {command} {shlex.quote(str(subject.run.path))}"
    if (subject.run.path / f"{record}.json").exists():
        return f"the {record} in the folder is of other weights or data; anew: {line}"
    return f"{never}: {line}"


def _estimators(subject: Subject, found: Comparison) -> Iterator[Markup]:
    protocol = found.protocol
    yield Markup("<h4>{}</h4>").format(
        f"{protocol.get('split')}, {protocol.get('count')} data, "
        f"weights: {protocol.get('weights')}, seed = {protocol.get('seed')}"
    )
    yield from _tables(value_tables(found, WIDE), value_notes(found))
    values = [row.mean for row in found.values]
    yield from _chart(
        values, lambda: estimator_values(found.values, found.truth), f"{subject.key}-values",
        f"Estimates of the bound, {subject.name}",
    )  # fmt: skip
    yield from _tables(check_tables(found.checks, WIDE), [])
    yield from _tables(gradient_tables(found.gradients, WIDE), gradient_notes(found.gradients))
    ratios = [row.signal_to_noise or None for row in found.gradients]
    yield from _chart(
        ratios, lambda: signal_to_noise(found.gradients), f"{subject.key}-ratio",
        f"Signal-to-noise ratio of gradients against K, {subject.name}",
    )  # fmt: skip


def _tables(tables: Iterable[Table], lines: Iterable[str]) -> Iterator[Markup]:
    for table in tables:
        yield table_html(table)
    yield notes(lines)


def _chart(
    values: Iterable[float | None], draw: Callable[[], Figure], key: str, alt: str
) -> Iterator[Markup]:
    """A chart, where there is a number to draw."""
    if any(value is not None and math.isfinite(value) for value in values):
        yield figure(chart_svg(draw(), key, alt))


def diagnosis_topic(subjects: Sequence[Subject]) -> Topic:
    """Where the ELBO of each run loses log p(x), what its latents carry, and what fits."""
    blocks = []
    for subject in subjects:
        found = subject.diagnosis
        missing = _missing(subject, "diagnose", "diagnosis", "not diagnosed yet")
        parts = [note(missing)] if found is None else list(_parts(subject, found))
        blocks.append(Block(subject.name, parts, wide=found is not None))
    return Topic("diagnosis", "Diagnosis", blocks)


def _parts(subject: Subject, found: Diagnosis) -> Iterator[Markup]:
    pair = _diagnosed(subject, found)
    for part in PARTS:
        report = part_report(part, found, WIDE)
        own = [line for line in found.notes if line.startswith((f"{part}:", f"{part},"))]
        if not (report.tables or report.notes or own):
            continue
        yield Markup("<h4>{}</h4>").format(part.capitalize())
        yield from _tables(report.tables, [*report.notes, *own])
        yield from _part_figure(subject, part, found, pair)


def _diagnosed(subject: Subject, found: Diagnosis) -> Diagnosed:
    run = subject.run
    count = found.protocol["splits"]["test"]["count"]
    x = data_of(run.data.test, count, run.device, run.config.torch_dtype())
    return Diagnosed(run.model, run.guide, x, run.facts)


def _part_figure(
    subject: Subject, part: str, found: Diagnosis, pair: Diagnosed
) -> Iterator[Markup]:
    try:
        drawn = part_figure(part, found, pair, found.protocol.get("seed", 0))
    except InputError as error:
        yield note(str(error))
        return
    if drawn is None:
        return
    alt = f"{TITLES_OF_PARTS[part]}, {subject.name}"
    if part in _OF_DOTS:
        yield figure(picture_img(drawn, alt))
    else:
        yield figure(chart_svg(drawn, f"{subject.key}-{part}", alt))
