"""What a person sees of a diagnosis: a part in, its tables and the lines below them out."""

__all__ = [
    "Report",
    "TITLES_OF_PARTS",
    "part_report",
    "gap_report",
    "bounds_report",
    "reliability_report",
    "latents_report",
    "calibration_report",
    "checks_report",
    "space_report",
]

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from pyro_vae.diagnosis.rows import (
    Calibration,
    Diagnosis,
    Gap,
    LatentSpaceReport,
    LatentUse,
    PredictiveCheck,
    Probe,
    Reliability,
    SimulatedBounds,
)
from pyro_vae.digits import at_least, error_text, value_and_error
from pyro_vae.evaluation.scores import Estimate
from pyro_vae.evaluation_tables import cells

SHOWN = 10  # rows of a list that may be long; figures and diagnosis.json hold all
_LEAST_LABEL = 16  # letters that a label is folded to at most
_HEIGHTS = "▁▂▃▄▅▆▇█"
_METHODS = {
    "exact": "in closed form",
    "quadrature": "by quadrature",
    "ais": "by annealed importance sampling (AIS)",
}
_ERRORS = "± draws: standard error over draws, the data held fixed; ± data: over data"


TITLES_OF_PARTS = {
    "gap": "gap",
    "bounds": "bounds, AIS",
    "reliability": "k̂, blocks",
    "latents": "latents",
    "calibration": "calibration",
    "checks": "predictive checks",
    "space": "latent space",
}


class Report(NamedTuple):
    """One part of a diagnosis, to be printed."""

    tables: list[Table]
    notes: list[str]


def part_report(part: str, diagnosis: Diagnosis, width: int) -> Report:
    """Lay one part out; nothing where the diagnosis has none of it."""
    if part == "gap":
        return gap_report(diagnosis.gaps, width)
    if part == "bounds" and diagnosis.bounds is not None:
        return bounds_report(diagnosis.bounds, width)
    if part == "reliability" and diagnosis.reliability is not None:
        return reliability_report(diagnosis.reliability, width)
    if part == "latents" and diagnosis.latents is not None:
        return latents_report(diagnosis.latents, width)
    if part == "latents" and diagnosis.reconstruction is not None:
        value, _, error, _ = cells(diagnosis.reconstruction)
        unit, count = diagnosis.reconstruction.unit, diagnosis.reconstruction.count
        line = f"log p(x|z(x)), a reconstruction and no bound: {value} ± {error} {unit}"
        return Report([], [f"{line}, {count:,} data"])
    if part == "calibration" and diagnosis.calibration is not None:
        return calibration_report(diagnosis.calibration, width)
    if part == "checks":
        return checks_report(diagnosis.checks, width)
    if part == "space" and diagnosis.space is not None:
        return space_report(diagnosis.space, width)
    return Report([], [])


def gap_report(gaps: Sequence[Gap], width: int) -> Report:
    """log p(x) − ELBO of each split and its two parts, side by side where there is room."""
    if not gaps:
        return Report([], [])
    columns = [_gap_columns(gap) for gap in gaps]
    labels = [
        label for label in columns[0][1] if any(_gap_rows(gap)[label] is not None for gap in gaps)
    ]
    title = "Where the ELBO loses log p(x), nats/datum"
    groups = [
        {heading: [rows[label][i] for label in labels] for i, heading in enumerate(headings)}
        for headings, rows in columns
    ]
    tables = _tables(title, "", labels, groups, width)
    notes = [_ERRORS]
    if any(gap.approximation is not None for gap in gaps):
        notes += [
            "approximation: what the best q of the guide's family for each datum loses too; "
            "amortization: what the encoder loses besides"
        ]
    notes += [
        f"log p(x) of {gap.split}: {_METHODS.get(gap.method, gap.method)}{_counted(gap.total)}"
        for gap in gaps
    ]
    notes += _limits({label: e for gap in gaps for label, e in _gap_rows(gap).items()})
    for gap in gaps:
        if gap.residual is not None:
            gained, error = _with_error(gap.residual)
            notes.append(
                f"search for the best q, {gap.split}: its last half gained {gained} ± {error}"
            )
    notes += [f"{gap.split}: {gap.note}" for gap in gaps if gap.note]
    return Report(tables, list(dict.fromkeys(notes)))


def bounds_report(bounds: SimulatedBounds, width: int) -> Report:
    """log p(x) of simulated data from both sides, and how far AIS may fall short."""
    rows = {
        "lower, forward AIS": cells(bounds.lower)[:3],
        "upper, reverse AIS": cells(bounds.upper)[:3],
        "upper − lower": cells(bounds.gap)[:3],
    }
    title = f"Bounds on log p(x) of simulated data, nats/datum{_counted(bounds.gap)}"
    path = f"AIS: {bounds.num_chains} chains each way × {bounds.num_temperatures} temperatures"
    if math.isfinite(bounds.acceptance):
        path += f", acceptance {100 * bounds.acceptance:.0f} %"
    kept = "± data: over data, chains included"
    errors = f"± draws: standard error over chains, the data held fixed; {kept}"
    notes = [errors, path, _shortfall(bounds.gap), bounds.note]
    return Report([_table(title, "", list(rows), _columns(rows), width)], notes)


def _shortfall(gap: Estimate) -> str:
    """What upper − lower says of AIS, whose error decides."""
    value, error = _with_error(gap)
    twice = math.nan if gap.data_standard_error is None else 2 * gap.data_standard_error
    if gap.value > twice:
        return f"AIS may understate log p(x) of such data by up to {value} ± {error} nats/datum"
    if gap.value < -twice:
        return "upper − lower is at least 0 in expectation: below it by chance, or too few data"
    if abs(gap.value) <= twice:
        return f"upper − lower is within two errors of 0, {value} ± {error}: no shortfall is seen"
    return "upper − lower has no error: nothing can be said of how far AIS falls short"


def reliability_report(reliability: Reliability, width: int) -> Report:
    """How many data importance sampling cannot be trusted on, and which are the worst."""
    k = reliability.pareto_k
    flagged = reliability.flagged
    iwae = f"IWAE-{reliability.num_samples}"
    found = f"{len(flagged)} of {len(k)} data ({_percent(len(flagged), len(k))}) have k̂ above "
    found += f"{reliability.threshold:.2f}"
    notes = [
        f"{found}: their {iwae} and its error are not to be trusted" if flagged else found,
        f"k̂: Pareto shape of the largest weights of {reliability.pilot_samples} draws apart from "
        "those of the estimate",
    ]
    if any(each == -math.inf for each in k):
        notes.append(f"of constant weights, exact: {sum(each == -math.inf for each in k)}")
    if any(map(math.isnan, k)):
        notes.append(f"without k̂ for want of draws, so flagged: {sum(map(math.isnan, k))}")
    if not flagged:
        return Report([], notes)
    shown = flagged[:SHOWN]
    columns = {
        "k̂": ["–" if math.isnan(k[i]) else f"{k[i]:.2f}" for i in shown],
        iwae: [f"{reliability.log_px[i]:.2f}" for i in shown],
    }
    title = "Importance sampling of log p(x): the worst"
    positions = reliability.positions
    labels = [str(positions[i] if positions else i) for i in shown]
    place = "in the test split" if positions else "among those looked at"
    notes.append(f"datum: its position {place}, from 0")
    return Report([_table(title, "datum", labels, columns, width)], notes)


def latents_report(use: LatentUse, width: int) -> Report:
    """What the latents carry in all, and each of them."""
    rows = {"rate, E KL(q(z|x) ‖ p(z))": cells(use.rate)[:3]}
    rows["distortion, −E log p(x|z)"] = cells(use.distortion)[:3]
    for name, estimate, mark in (
        ("mutual information I(x; z)", use.mutual_information, "≥"),
        ("KL(q(z) ‖ p(z))", use.marginal_kl, "≤"),
    ):
        if estimate is not None:
            texts = cells(estimate)[:3]
            rows[name] = [at_least(texts[0], mark) if use.at_cap else texts[0], *texts[1:]]
    title = f"What the latents carry, nats/datum{_counted(use.rate)}"
    tables = [_table(title, "", list(rows), _columns(rows), width)]
    notes = [use.sentence, _ERRORS]
    if use.mutual_information is not None and use.estimator:
        notes.append(f"mutual information: {use.estimator}")
    if use.mutual_information_cap is not None and use.mutual_information is not None:
        cap = (
            f"log N = {use.mutual_information_cap:.2f} nats, which no estimate from N data exceeds"
        )
        notes.append(f"≥ ≤: limits alone, near the cap {cap}" if use.at_cap else f"its cap: {cap}")
    tables += _dimension_tables(use, width)
    if len(use.kl_per_dim or use.activity) > SHOWN:
        notes.append(f"the first {SHOWN} dimensions; all are in diagnosis.json")
    return Report(tables, notes + use.notes)


def calibration_report(calibration: Calibration, width: int) -> Report:
    """Whether q has the posterior's width and place on data drawn from the model."""
    p = calibration.p_values
    order = sorted(range(len(p)), key=lambda i: (not math.isnan(p[i]), p[i]))[:SHOWN]
    title = f"Is q calibrated: {calibration.verdict}"
    columns = {
        "p-value": [_p_value(p[i]) for i in order],
        "ranks, from 0 up": [_bars(calibration.histograms[i]) for i in order],
    }
    labels = [calibration.sites[i] for i in order]
    notes = [
        calibration.sentence,
        f"on {calibration.num_data} data drawn from the model: ranks of the true latents among "
        f"{calibration.num_draws} draws of q; uniform if q is the posterior",
        "p-values of single latents; the verdict allows for their number, "
        f"{100 * calibration.level:g} % over all",
    ]
    if len(p) > SHOWN:
        notes.append(f"the {SHOWN} smallest p-values of {len(p)} coordinates")
    return Report([_table(title, "latent", labels, columns, width)], notes)


def checks_report(checks: Sequence[PredictiveCheck], width: int) -> Report:
    """Statistics of data against those of draws from the model."""
    if not checks:
        return Report([], [])
    rows = {
        f"{check.statistic}, {check.against}": {
            "data": cells(check.data)[0],
            "data|± data": cells(check.data)[2],
            **_cells_of("model", check.simulated),
            **_cells_of("difference", check.difference),
            "KS": f"{check.distance:.3f}",
            "p": _p_value(check.p_value),
        }
        for check in checks
    }
    columns = {key: [row[key] for row in rows.values()] for key in next(iter(rows.values()))}
    columns = {key: column for key, column in columns.items() if set(column) != {"–"}}
    parts = (("data",), ("model",), ("difference",), ("KS", "p"))
    groups = [
        {key: column for key, column in columns.items() if key.partition("|")[0] in part}
        for part in parts
    ]
    title = "Does the model fit: data against draws from the model"
    tables = _tables(title, "statistic", list(rows), groups, width)
    notes = [
        _ERRORS,
        "difference: model − data; its ± data against the posterior predictive is of the pairs, "
        "draws included",
        "KS: largest distance between the two distribution functions, 0 to 1",
        "p: of a true model, each check alone",
    ]
    return Report(tables, notes)


def space_report(space: LatentSpaceReport, width: int) -> Report:
    """Whether the latent space is complete and continuous, and what can be read from it."""
    rows = {
        name: cells(estimate)[:3]
        for name, estimate in (
            ("share of prior draws near q(z)", space.prior_near_posterior),
            ("largest step over mean step", space.smoothness),
            ("path over distance of its ends", space.straightness),
        )
        if estimate is not None
    }
    tables = []
    if rows:
        title = "Is the latent space complete and continuous"
        tables.append(_table(title, "", list(rows), _columns(rows), width))
    notes = [_ERRORS] if rows else []
    if space.region is not None:
        share = "" if space.posterior_share is None else f"; of q(z) {space.posterior_share:.2f}"
        notes.append(f"near q(z): {space.region}{share}")
        notes.append(
            "its ± draws: of draws of the prior and of q, and of subsets of the data; ± data: over "
            "held-out data too"
        )
    if space.segments is not None:
        notes.append(f"steps and paths of the decoder's mean: {space.segments}; 1 is a steady walk")
    if space.probes:
        labels = [_probe_label(probe) for probe in space.probes]
        accuracy = [_with_error(probe.accuracy) for probe in space.probes]
        columns = {"accuracy": [a for a, _ in accuracy], "±": [e for _, e in accuracy]}
        title = f"Held-out classification{_counted(space.probes[0].accuracy)}"
        tables.append(_table(title, "classifier", labels, columns, width))
        notes.append("z: the posterior's mean; accuracy ± standard error over data")
    return Report(tables, notes + space.notes)


def _probe_label(probe: Probe) -> str:
    """A classifier and what it is given; the most frequent label is given nothing."""
    idle = probe.classifier == "most frequent label"
    return probe.classifier if idle else f"{probe.classifier} of {probe.features}"


def _gap_rows(gap: Gap) -> dict[str, Estimate | None]:
    return {
        "log p(x)": gap.log_px,
        "ELBO": gap.elbo,
        "gap, log p(x) − ELBO": gap.total,
        "ELBO of the best q": gap.best_elbo,
        "approximation gap": gap.approximation,
        "amortization gap": gap.amortization,
    }


def _gap_columns(gap: Gap) -> tuple[list[str], dict[str, list[str]]]:
    """Headings, the split's name first, and a row a quantity."""
    rows = {
        label: ["–", "–", "–"] if estimate is None else cells(estimate)[:3]
        for label, estimate in _gap_rows(gap).items()
    }
    return [gap.split, f"{gap.split}|± draws", f"{gap.split}|± data"], rows


def _limits(estimates: Mapping[str, Estimate | None]) -> list[str]:
    """What ≥ says, where it stands."""
    if any(estimate is not None and estimate.understated for estimate in estimates.values()):
        return ["≥: a lower limit of the error, for want of effective draws"]
    return []


def _columns(rows: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Value, ± draws and ± data; an error that no row has is left out."""
    columns = {
        heading: [row[i] for row in rows.values()]
        for i, heading in enumerate(["estimate", "± draws", "± data"])
    }
    return {key: column for key, column in columns.items() if set(column) != {"–"}}


def _dimension_tables(use: LatentUse, width: int) -> list[Table]:
    """KL and activity a dimension, the largest first."""
    size = len(use.kl_per_dim or use.activity)
    if size == 0:
        return []
    key = use.kl_per_dim or use.activity
    order = sorted(range(size), key=lambda d: -key[d])[:SHOWN]
    columns: dict[str, list[str]] = {}
    if use.kl_per_dim is not None:
        errors = use.kl_per_dim_errors or [math.nan] * size
        pairs = [value_and_error(use.kl_per_dim[d], errors[d]) for d in order]
        columns |= {"KL, nats": [value for value, _ in pairs], "±": [e for _, e in pairs]}
    if use.activity:
        columns["activity"] = [error_text(use.activity[d], 4) for d in order]
    labels = [f"{use.site}[{d}]" for d in order]
    return [_table("Each latent dimension", "", labels, columns, width)]


def _cells_of(name: str, estimate: Estimate) -> dict[str, str]:
    value, draws, data, _ = cells(estimate)
    return {name: value, f"{name}|± draws": draws, f"{name}|± data": data}


def _with_error(estimate: Estimate) -> tuple[str, str]:
    return value_and_error(estimate.value, estimate.error)


def _bars(counts: Sequence[int]) -> str:
    """A histogram in a line, full height the largest count."""
    top = max(counts, default=0) or 1
    return "".join(_HEIGHTS[round((len(_HEIGHTS) - 1) * count / top)] for count in counts)


def _p_value(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _counted(estimate: Estimate) -> str:
    return f", {estimate.count:,} data"


def _needed(columns: Mapping[str, Sequence[str]]) -> int:
    return _LEAST_LABEL + 3 + sum(_width(key, column) + 2 for key, column in columns.items())


def _width(key: str, column: Sequence[str]) -> int:
    return max(len(key.rpartition("|")[2]), *map(len, column))


def _tables(
    title: str,
    heading: str,
    labels: Sequence[str],
    groups: Sequence[dict[str, list[str]]],
    width: int,
) -> list[Table]:
    """As few tables as there is room for, groups of columns unbroken; the first has the title."""
    packed: list[dict[str, list[str]]] = []
    for group in groups:
        if packed and _needed(packed[-1] | group) <= width:
            packed[-1] = packed[-1] | group
        else:
            packed.append(group)
    return [
        _table("" if i else title, heading, labels, columns, width)
        for i, columns in enumerate(packed)
    ]


def _table(
    title: str,
    heading: str,
    labels: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    width: int,
) -> Table:
    """Labels, folded where they must be, and cells that are never cut: print it with its width.

    Of a key ``of|shown`` the heading is what is shown.
    """
    taken = sum(_width(key, column) + 2 for key, column in columns.items()) + 3
    room = min(max(map(len, [heading, *labels])), max(_LEAST_LABEL, width - taken))
    room = max(room, min(len(title), width) - taken)  # a title wraps at its table's width
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title, table.title_style, table.title_justify = title or None, "bold", "left"
    table.width = room + taken
    table.add_column(heading, no_wrap=True, width=room)
    for key, column in columns.items():
        shown = key.rpartition("|")[2]
        table.add_column(shown, justify="right", no_wrap=True, width=_width(key, column))
    rows = zip(*columns.values(), strict=True)
    for label, row in zip(labels, rows, strict=True):
        table.add_row(Text("\n".join(textwrap.wrap(label, room))), *row)
    return table
