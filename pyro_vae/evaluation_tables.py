"""What a person sees of an evaluation: its tables and the lines below them."""

__all__ = [
    "TITLES",
    "POINT",
    "POINT_NOTE",
    "evaluation_table",
    "evaluation_notes",
    "errors_note",
    "pareto_line",
    "pareto_table",
    "paired_table",
    "is_bound",
    "cells",
]

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from pyro_vae.digits import at_least, digits_of, error_text
from pyro_vae.evaluation.paired import PairedDifference
from pyro_vae.evaluation.scores import Estimate, Evaluation

TITLES = {
    "elbo": "ELBO",
    "log_joint": "log p(x, z(x))",
    "reconstruction": "  E_q log p(x|z)",
    "kl": "  KL(q(z|x) ‖ p(z))",
    "log_likelihood": "log p(x)",
    "log_likelihood_adaptive": "log p(x), adaptive",
    "log_evidence": "log p(x), exact",
    "log_evidence_quadrature": "log p(x), quadrature",
    "log_evidence_ais": "log p(x), AIS",
    "bits_per_dim": "bits/dim",
}
POINT = "log p(x|z(x))"  # the reconstruction of a guide that is a point
POINT_NOTE = f"the guide is a point: no ELBO and no likelihood, only a reconstruction, {POINT}"
# Whose notes stand below the table, the bound first.
NOTED = (
    "log_likelihood",
    "log_likelihood_adaptive",
    "log_evidence",
    "log_evidence_quadrature",
    "log_evidence_ais",
    "bits_per_dim",
)


def evaluation_table(evaluation: Evaluation) -> Table:
    """Lay an evaluation out: each value with its errors apart."""
    table = _table()
    table.add_column("", no_wrap=True)
    headings = ["estimate", "± draws", "± data", "bias"]
    only_a_point = evaluation.estimates.keys() == {"reconstruction"}
    shown = [0, 2] if only_a_point else [0, 1, 2, 3]
    for i in shown:
        table.add_column(headings[i], justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for name, estimate in evaluation.estimates.items():
        is_point = name == "reconstruction" and not is_bound(evaluation.estimates)
        title = POINT if is_point else TITLES.get(name, name)
        if name == "log_likelihood":
            title += f", IWAE-{evaluation.protocol['num_samples']}"
        texts = cells(estimate)
        table.add_row(title, *(texts[i] for i in shown), estimate.unit)
    return table


def evaluation_notes(evaluation: Evaluation) -> list[str]:
    """Say what each estimate of log p(x) is, whom k̂ does not trust, and what a point lacks."""
    estimates = evaluation.estimates
    lines = [
        f"{TITLES[name]}: {estimates[name].note}"
        for name in NOTED
        if name in estimates and estimates[name].note
    ]
    if evaluation.pareto_k is not None:
        lines.append(pareto_line(evaluation.pareto_k, evaluation.protocol["count"]))
    if estimates.keys() == {"reconstruction"}:
        lines.append(POINT_NOTE)
    return lines


def errors_note(evaluation: Evaluation) -> str:
    """Say what the errors are over."""
    drawn = any(each.standard_error is not None for each in evaluation.estimates.values())
    return f"± standard {'errors over draws of z and' if drawn else 'error'} over data"


def pareto_line(summary: Mapping[str, Any], count: int) -> str:
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


def pareto_table(worst: Sequence[Mapping[str, Any]]) -> Table:
    """Lay out the data of the largest k̂: where they are, and what IWAE makes of them."""
    table = _table()
    for heading in ("datum", "k̂", "log p(x)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in worst:
        table.add_row(str(row["position"]), f"{row['pareto_k']:.2f}", f"{row['log_px']:.2f}")
    return table


def paired_table(differences: Mapping[str, PairedDifference], num_samples: int) -> Table:
    """Lay out log p_A(x) − log p_B(x) by each method, its biases and flagged data below it."""
    table = _table()
    table.add_column("nats/datum", no_wrap=True)
    for heading in ("A", "B", "A − B", "± draws", "± data"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, each in differences.items():
        title = TITLES[name] + (f", IWAE-{num_samples}" if name == "log_likelihood" else "")
        errors = [each.standard_error, each.data_standard_error]
        digits = digits_of(errors)
        means = [f"{value:.{digits}f}" for value in (each.first, each.second, each.difference)]
        over_draws, over_data = (error_text(error, digits) for error in errors)
        if each.is_exact:
            over_draws = "–"
        elif each.understated and not each.is_same:
            over_draws = at_least(over_draws)
        table.add_row(title, *means, over_draws, over_data)
        if each.is_exact:
            continue
        biases = [error_text(b, digits) for b in (each.first_bias, each.second_bias, each.bias)]
        if each.understated:
            limits = [at_least(text, "≤") for text in biases[:2]]
            biases = [*limits, biases[2] if each.is_same else "–"]  # of two limits, none
        table.add_row("  its bias", *biases, "", "")
        table.add_row("  flagged", str(each.first_flagged), str(each.second_flagged), "", "", "")
    return table


def _table() -> Table:
    return Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def is_bound(estimates: Mapping[str, Estimate]) -> bool:
    """Whether the scores are those of draws of z; a point has a reconstruction alone."""
    return "elbo" in estimates


def cells(estimate: Estimate) -> list[str]:
    """Value, ± draws, ± data, bias; ≥ and ≤ mark lower limits of errors."""
    errors = [estimate.standard_error, estimate.data_standard_error, estimate.bias]
    digits = digits_of(errors[:2])
    texts = [f"{estimate.value:.{digits}f}", *(error_text(error, digits) for error in errors)]
    if estimate.understated:
        texts[1] = at_least(texts[1])
        texts[3] = at_least(texts[3], "≤" if (estimate.bias or 0) < 0 else "≥")
    return texts
