"""What a person sees of a comparison: tables of values and gradients, and what they mean."""

__all__ = [
    "value_tables",
    "value_notes",
    "check_tables",
    "gradient_tables",
    "gradient_notes",
    "textbook_tables",
    "textbook_notes",
]

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pyro_vae.comparison.rows import Check, Comparison, GradientRow, ValueRow
from pyro_vae.terminal import digits_of, error_text
from pyro_vae.textbook import TextbookRow

NOT_A_BOUND = "‡"
AT_THE_FLOOR = "°"
BEYOND = "!"
GROUPS = {"guide": "q, the encoder", "model": "p, the decoder"}
_SMALL = 1e-5  # nats: below it a number is written with its exponent
_LABEL_WIDTH = 20  # of an estimator in a table, at least
_MINUS_LOG_PX = "− log p(x)"


def value_tables(comparison: Comparison, width: int) -> list[Table]:
    """Lay the values out, a row an estimator: in one table, or in two where one is too wide."""
    rows = [row for row in comparison.values if row.refusal is None]
    if not rows:
        return []
    labels = [row.estimator + ("" if row.is_lower_bound else f" {NOT_A_BOUND}") for row in rows]
    cells = [_value_cells(row, comparison) for row in rows]
    whole = _table("", "estimator", labels, cells, width)
    differences = [key for key in cells[0] if key.startswith("Δ")]
    if (whole.width or 0) <= width or not differences:
        return [whole]
    parts = [[key for key in cells[0] if key not in differences], differences]
    return [
        _table("", "estimator", labels, [{key: row[key] for key in part} for row in cells], width)
        for part in parts
    ]


def check_tables(checks: Sequence[Check], width: int) -> list[Table]:
    """Lay out which identities hold on every draw and datum, or what broke."""
    if not checks:
        return []
    cells = [
        {
            "holds": "yes" if check.holds else "NO",
            "largest violation": f"{check.largest:.1e}" if check.largest else "0",
            "tolerance": f"{check.tolerance:.0e}",
        }
        for check in checks
    ]
    title = "What must hold on every draw and datum, in nats"
    return [_table(title, "identity", [check.name for check in checks], cells, width)]


def value_notes(comparison: Comparison) -> list[str]:
    """Say what the values mean, what log p(x) is, and which estimators refuse the pair."""
    rows = [row for row in comparison.values if row.refusal is None]
    lines = []
    if rows:
        lines.append(
            "nats/datum, on noise that all rows share; ± draws: standard error over draws of z, "
            "the data held fixed; ± data: over data"
            + (
                f"; Δ: the estimate minus that of {comparison.reference} at the same K, draw by "
                "draw, and the largest of one datum and draw"
                if comparison.reference
                else ""
            )
        )
    if not all(row.is_lower_bound for row in rows):
        lines.append(f"{NOT_A_BOUND} no lower bound on log p(x): its mean may lie above")
    if comparison.truth is not None:
        value, error = paired(comparison.truth.log_px, comparison.truth.error)
        known = "exact" if comparison.truth.method == "exact" else f"± {error}, by quadrature"
        lines.append(f"log p(x) = {value} ({known})")
    return lines + _refusals(comparison.values)


def gradient_tables(rows: Sequence[GradientRow], width: int) -> list[Table]:
    """Lay the gradients out, a table a group of parameters, a row an estimator and K."""
    tables = []
    for group in dict.fromkeys(row.group for row in rows if row.refusal is None):
        own = [row for row in rows if row.group == group and row.refusal is None]
        names = [row.estimator for row in own]
        labels = [
            name if i == 0 or names[i - 1] != name else "" for i, name in enumerate(names)
        ]  # an estimator's rows stand together
        title = f"Gradient, parameters of {GROUPS.get(group, group)}"
        cells = list(map(_gradient_cells, own))
        tables.append(_table(title, "estimator", labels, cells, width))
    return tables


def gradient_notes(rows: Sequence[GradientRow]) -> list[str]:
    """Say what the columns mean, what each bias is against, and which estimators refuse."""
    shown = [row for row in rows if row.refusal is None]
    lines = []
    if shown:
        repeats = max(row.num_repeats for row in shown)
        lines.append(
            f"of the mean over the batch, {repeats:,} draws a row; bias: |E g − reference| in "
            "units of |reference|; worst: the largest |E g − reference| of one parameter in its "
            "standard errors; variance: summed over parameters; SNR: the mean over parameters of "
            "|E g|/sd(g); var × time: variance at equal compute, variance × ms over the first row's"
        )
    if any(_worst(row).endswith(BEYOND) for row in shown):
        lines.append(
            f"{BEYOND} beyond what an unbiased gradient reaches with probability 5 %: biased, or "
            "of heavy tails"
        )
    if any(_at_the_floor(row) for row in shown):
        floor = max(row.noise_floor or 0.0 for row in shown)
        lines.append(
            f"{AT_THE_FLOOR} below twice what a gradient of mean 0 reads after as many draws, "
            f"{floor:.2g}: larger --num-repeats would tell more"
        )
    return lines + _reference_lines(shown) + _refusals(rows)


def _reference_lines(rows: Sequence[GradientRow]) -> list[str]:
    """What each bias is against, a line a target; and the estimators that have nothing beside."""
    references: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.reference is not None:
            references.setdefault(row.target, {})[row.reference] = None
    lines = [f"bias for {target}: against {' or '.join(own)}" for target, own in references.items()]
    if any(row.reference is not None and row.bias is None for row in rows):
        lines.append("bias –: the reference is not told from 0, and is no unit")
    alone = {row.estimator: None for row in rows if row.reference is None}
    if alone:
        lines.append(f"no other estimator of the same quantity: {', '.join(alone)}")
    return lines


def _refusals(rows: Sequence[ValueRow | GradientRow]) -> list[str]:
    """A line an estimator and reason, with the K where it takes others."""
    reasons: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row.refusal is not None:
            reasons.setdefault((row.estimator, row.refusal), []).append(row.num_particles)
    taken = {row.estimator for row in rows if row.refusal is None}
    lines = []
    for (estimator, reason), particles in reasons.items():
        K = f" K = {', '.join(map(str, sorted(set(particles))))}" if estimator in taken else ""
        name = estimator.partition("(")[0]
        lines.append(f"{estimator} refuses{K}: {reason.removeprefix(f'{name}: ')}")
    return lines


def paired(value: float | None, error: float | None) -> tuple[str, str]:
    """A value and its error to the digits of the error, with an exponent where both are small."""
    finite = [abs(v) for v in (value, error) if v is not None and math.isfinite(v)]
    if finite and 0 < max(finite) < _SMALL:
        return ("–" if value is None else f"{value:.1e}", "–" if error is None else f"{error:.0e}")
    digits = digits_of([error if error is not None and math.isfinite(error) else None])
    return ("–" if value is None else f"{value:.{digits}f}", error_text(error, digits))


def _value_cells(row: ValueRow, comparison: Comparison) -> dict[str, str]:
    errors = [e for e in (row.standard_error, row.data_standard_error) if e and math.isfinite(e)]
    digits = digits_of(errors)
    cells = {
        "estimate": "–" if row.mean is None else f"{row.mean:.{digits}f}",
        "± draws": error_text(row.standard_error, digits),
        "± data": error_text(row.data_standard_error, digits),
    }
    if comparison.reference is not None:
        name = row.estimator.partition("(")[0]
        own = name == comparison.reference and row.largest_difference == 0
        value, error = paired(row.difference, row.difference_standard_error)
        cells[f"Δ {comparison.reference}"] = "–" if own else value
        cells["Δ ± draws"] = "–" if own else error
        largest = row.largest_difference
        cells["Δ largest"] = "–" if own or largest is None else paired(largest, largest)[0]
    if comparison.truth is not None:
        cells[_MINUS_LOG_PX], cells["±"] = paired(row.bias, row.bias_standard_error)
    cells["KL"] = _kl(row.analytic_kl)
    return cells


def _kl(analytic: dict[str, bool]) -> str:
    words = {name: "analytic" if known else "sampled" for name, known in analytic.items()}
    if len(set(words.values())) <= 1:
        return next(iter(words.values()), "–")
    return ", ".join(f"{name} {word}" for name, word in words.items())


def _gradient_cells(row: GradientRow) -> dict[str, str]:
    bias, error = paired(row.bias, row.bias_standard_error)
    floor = AT_THE_FLOOR if _at_the_floor(row) else ""
    return {
        "K": str(row.num_particles),
        "bias": bias,
        "±": error,
        "worst": _worst(row),
        "variance": _significant(row.variance),
        "SNR": _significant(row.signal_to_noise) + floor,
        "var × time": _significant(row.variance_at_equal_compute),
        "ms": "–" if row.milliseconds is None else f"{row.milliseconds:.2f}",
    }


def _worst(row: GradientRow) -> str:
    if row.largest_z is None:
        return "–"
    beyond = row.largest_z_limit is not None and row.largest_z > row.largest_z_limit
    return f"{row.largest_z:.1f}{BEYOND if beyond else ''}"


def _at_the_floor(row: GradientRow) -> bool:
    ratio, floor = row.signal_to_noise, row.noise_floor
    return ratio is not None and floor is not None and ratio < 2 * floor


def _significant(value: float | None) -> str:
    """Three significant digits, without an exponent from 0.001 to 99999."""
    if value is None:
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{float(f'{value:.3g}'):g}"


def _table(
    title: str, heading: str, labels: Sequence[str], rows: Sequence[dict[str, str]], width: int
) -> Table:
    """Labels, folded where they must be, and cells that are never cut: print it with its width."""
    keys = list(rows[0])
    fixed = {key: max(len(key), *(len(row[key]) for row in rows)) + 2 for key in keys}
    longest = max(map(len, [heading, *labels]))
    least = min(_LABEL_WIDTH, longest) + 4
    needed = least + sum(fixed.values())
    widest = needed - least + longest + 4
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title, table.title_style, table.title_justify = title or None, "bold", "left"
    table.width = max(needed, min(width, widest))
    table.add_column(heading, overflow="fold", ratio=1)
    for key in keys:
        justify: Any = "left" if key == "KL" else "right"  # words read from the left
        table.add_column(key, justify=justify, no_wrap=True, width=fixed[key] - 2)
    for label, row in zip(labels, rows, strict=True):
        table.add_row(Text(label), *(row[key] for key in keys))
    return table


def textbook_tables(rows: Sequence[TextbookRow], width: int) -> list[Table]:
    """Lay textbook losses out: what each is a bound of, then its value and the check of that."""
    meaning = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    meaning.title, meaning.title_style, meaning.title_justify = "Textbook losses", "bold", "left"
    meaning.width = width
    meaning.add_column("", no_wrap=True)
    for heading, ratio in (("as written", 3), ("optimizes the ELBO of", 4), ("constant", 3)):
        meaning.add_column(heading, overflow="fold", ratio=ratio)
    for row in rows:
        factor = "" if row.factor_formula == "1" else f"{row.factor_formula} of it; "
        cells = (row.name, row.formula, row.optimizes, factor + row.constant_formula)
        meaning.add_row(*map(Text, cells))
    shown = [row for row in rows if row.refusal is None]
    if not shown:
        return [meaning]
    labels = [row.name for row in shown]
    return [meaning, _table("", "", labels, list(map(_textbook_cells, shown)), width)]


def textbook_notes(rows: Sequence[TextbookRow]) -> list[str]:
    """Say what the columns mean, and which losses the run has no place for."""
    first = rows[0]
    lines = [
        "loss = factor · (−ELBO) + constant, nats/datum; D = "
        f"{first.num_dims}, B = {first.batch_size}, L = {first.num_latents}; on {first.scaling} "
        "and the decoder's mean; broken by: the largest |loss − factor · (−ELBO) − constant| of "
        "a datum; β at this σ: of the same loss read as a β-VAE's at the run's own scale"
    ]
    for row in rows:
        if row.log_normalizer is not None:
            value, error = paired(row.log_normalizer, row.log_normalizer_standard_error)
            lines.append(
                f"{row.name}: above the −ELBO of the continuous Bernoulli by E Σ log C(λ) = "
                f"{value} ± {error} nats/datum, which depends on the decoder"
            )
    return lines + [f"{row.name} refuses: {row.refusal}" for row in rows if row.refusal]


def _textbook_cells(row: TextbookRow) -> dict[str, str]:
    errors = [e for e in (row.standard_error, row.data_standard_error) if e and math.isfinite(e)]
    digits = digits_of(errors)
    return {
        "loss": "–" if row.loss is None else f"{row.loss:.{digits}f}",
        "± draws": error_text(row.standard_error, digits),
        "± data": error_text(row.data_standard_error, digits),
        "constant": f"{row.constant:.{digits}f}",
        "σ": _significant(row.sigma),
        "β at σ² = ½": _significant(row.beta_at_half),
        "β at this σ": _significant(row.beta_at_model_sigma),
        "broken by": paired(row.largest_difference, row.largest_difference)[0],
    }
