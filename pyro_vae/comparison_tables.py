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
import re
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pyro_vae.comparison.rows import Check, Comparison, GradientRow, ValueRow
from pyro_vae.digits import digits_of, error_text
from pyro_vae.textbook_table import TextbookRow

NOT_A_BOUND = "‡"
AT_THE_FLOOR = "°"
BEYOND = "!"
GROUPS = {"guide": "q, the encoder", "model": "p, the decoder"}
_SMALL = 1e-5  # nats: below it a number is written with its exponent
_FOLDS = "( "  # what a label is folded after; where that is not enough, after _ and / too
_FRAME = 3  # of a table around its columns, and the margin of the first
_MINUS_LOG_PX = "− log p(x)"
FEW_DRAWS = 20  # below it a note says what errors from so few are worth
# Columns that stay together where a table is split.
_GRADIENT_PARTS = (
    ("bias", "bias|±", "worst"),
    ("variance", "variance|± %"),
    ("SNR", "SNR|± %"),
    ("var × time", "var × time|± %", "ms"),
)
_TEXTBOOK_PARTS = (
    ("loss", "± draws", "± data", "constant"),
    ("σ", "β at σ² = ½", "β at this σ"),
    ("broken by",),
)


def value_tables(comparison: Comparison, width: int) -> list[Table]:
    """Lay the values out, a row an estimator: in one table, or in several where it is too wide."""
    rows = [row for row in comparison.values if row.refusal is None]
    if not rows:
        return []
    labels = [row.estimator + ("" if row.is_lower_bound else f" {NOT_A_BOUND}") for row in rows]
    cells = [_value_cells(row, comparison) for row in rows]
    starts = ("estimate", "± "), ("Δ",), (_MINUS_LOG_PX, "KL")
    parts = [[key for key in cells[0] if key.startswith(each)] for each in starts]
    return _tables("", "estimator", labels, cells, width, [], parts)


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
    labels = [check.name for check in checks]
    return _tables(title, "identity", labels, cells, width, [], [list(cells[0])])


def value_notes(comparison: Comparison) -> list[str]:
    """Say what the values mean, what log p(x) is, and which estimators refuse the pair."""
    rows = [row for row in comparison.values if row.refusal is None]
    lines = []
    if rows:
        lines += [
            "nats/datum, on noise that all rows share",
            "± draws: standard error over draws of z, the data held fixed; ± data: over data",
        ]
    if rows and comparison.reference:
        lines += [
            f"Δ: the estimate minus that of {comparison.reference} at the same K, draw by draw; "
            "0: the same to the last digit",
            "Δ largest: of one datum under one draw",
        ]
    if not all(row.is_lower_bound for row in rows):
        lines.append(f"{NOT_A_BOUND} no lower bound on log p(x): its mean may lie above")
    if comparison.truth is not None:
        value, error = paired(comparison.truth.log_px, comparison.truth.error)
        known = "exact"
        if comparison.truth.method != "exact":
            known = f"± {error} by its own estimate, by {comparison.truth.method}"
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
        tables += _tables(title, "estimator", labels, cells, width, ["K"], _GRADIENT_PARTS)
    return tables


def gradient_notes(rows: Sequence[GradientRow]) -> list[str]:
    """Say what the columns mean, what each bias is against, and which estimators refuse."""
    shown = [row for row in rows if row.refusal is None]
    lines = _column_lines(shown) if shown else []
    alarms = sum(_worst(row).endswith(BEYOND) for row in shown)
    if alarms:
        tested = sum(row.largest_z is not None for row in shown)
        lines += [
            f"{BEYOND} beyond what an unbiased normal gradient reaches with probability 5 %: "
            "biased, or of heavy tails",
            f"{BEYOND} by chance: at most {0.05 * tested:.1f} of these {tested} rows on average; "
            "rows that share noise share the alarm",
        ]
    if any(at_the_floor(row) for row in shown):
        floor = max(row.noise_floor or 0.0 for row in shown)
        lines.append(
            f"{AT_THE_FLOOR} below twice what a gradient of mean 0 reads after as many draws, "
            f"{floor:.2g}: larger --num-repeats would tell more"
        )
    return lines + _reference_lines(shown) + _refusals(rows)


def _column_lines(rows: Sequence[GradientRow]) -> list[str]:
    """A line a column; the times' error, and that of errors from few draws."""
    repeats = max(row.num_repeats for row in rows)
    lines = [
        f"gradients of the mean over the batch, {repeats:,} draws a row",
        "±: standard errors over draws, ± %: in percent; of var × time as if rows shared no noise",
        "bias: |E g − reference| in units of |reference|, the noise of both subtracted "
        "(0 where that leaves nothing)",
        "worst: the largest |E g − reference| of one parameter in its standard errors",
        "variance: summed over parameters",
        "SNR: the mean over parameters of |E g|/sd(g)",
        "var × time: variance × ms over that of the first row of the same target; – where none "
        "shares it",
    ]
    if repeats < FEW_DRAWS:
        lines.append(
            f"from {repeats} draws each ± is itself uncertain, by "
            f"{_percent(_error_of_error(repeats))} % and more"
        )
    times = [
        row.milliseconds_standard_error / row.milliseconds
        for row in rows
        if row.milliseconds and row.milliseconds_standard_error is not None
    ]
    of_times = f", to ± {_percent(max(times))} % at most" if times else ""
    return [*lines, f"ms: the median time of a draw, loss and gradients{of_times}"]


def _error_of_error(num_draws: int) -> float:
    """The relative error of a standard deviation of R normal draws, 1/√(2(R − 1))."""
    return 1 / math.sqrt(2 * (num_draws - 1))


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
    """A line a reason, with all estimators that give it, and the K where one takes others."""
    particles: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row.refusal is not None:
            particles.setdefault((row.estimator, row.refusal), []).append(row.num_particles)
    taken = {row.estimator for row in rows if row.refusal is None}
    estimators: dict[tuple[str, str], list[str]] = {}
    for (estimator, refusal), refused in particles.items():
        K = f" K = {', '.join(map(str, sorted(set(refused))))}" if estimator in taken else ""
        reason = refusal.removeprefix(f"{estimator.partition('(')[0]}: ")
        estimators.setdefault((reason, K), []).append(estimator)
    return [
        f"{_listed(names)} {'refuses' if len(names) == 1 else 'refuse'}{K}: {reason}"
        for (reason, K), names in estimators.items()
    ]


def _listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def paired(value: float | None, error: float | None) -> tuple[str, str]:
    """A value and its error to the digits of the error, with an exponent where both are small.

    What is 0 without error is 0, and no rounded number.
    """
    if value == 0 and not error:
        return "0", "–" if error is None else "0"
    finite = [abs(v) for v in (value, error) if v is not None and math.isfinite(v)]
    if finite and 0 < max(finite) < _SMALL:
        return _exponent(value, 1), _exponent(error, 0)
    digits = digits_of([error if error is not None and math.isfinite(error) else None])
    return ("–" if value is None else f"{value:.{digits}f}", error_text(error, digits))


def _exponent(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}e}" if value else "0"


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
        bias = paired(row.bias, row.bias_standard_error)
        cells[_MINUS_LOG_PX], cells[f"{_MINUS_LOG_PX}|±"] = bias
    cells["KL"] = _kl(row.analytic_kl)
    return cells


def _kl(analytic: dict[str, bool]) -> str:
    words = {name: "analytic" if known else "sampled" for name, known in analytic.items()}
    if len(set(words.values())) <= 1:
        return next(iter(words.values()), "–")
    return ", ".join(f"{name} {word}" for name, word in words.items())


def _gradient_cells(row: GradientRow) -> dict[str, str]:
    bias, error = paired(row.bias, row.bias_standard_error)
    return {
        "K": str(row.num_particles),
        "bias": bias,
        "bias|±": error,
        "worst": _worst(row),
        "variance": _significant(row.variance),
        "variance|± %": _relative(row.variance, row.variance_standard_error),
        "SNR": _significant(row.signal_to_noise) + (AT_THE_FLOOR if at_the_floor(row) else ""),
        "SNR|± %": _relative(row.signal_to_noise, row.signal_to_noise_standard_error),
        "var × time": _significant(row.variance_at_equal_compute),
        "var × time|± %": _relative(
            row.variance_at_equal_compute, row.variance_at_equal_compute_standard_error
        ),
        "ms": "–" if row.milliseconds is None else f"{row.milliseconds:.2f}",
    }


def _worst(row: GradientRow) -> str:
    if row.largest_z is None:
        return "–"
    beyond = row.largest_z_limit is not None and row.largest_z > row.largest_z_limit
    return f"{row.largest_z:.1f}{BEYOND if beyond else ''}"


def at_the_floor(row: GradientRow) -> bool:
    """Whether the signal-to-noise ratio is below twice what it reads at mean 0."""
    ratio, floor = row.signal_to_noise, row.noise_floor
    return ratio is not None and floor is not None and ratio < 2 * floor


def _relative(value: float | None, error: float | None) -> str:
    """An error in percent of its value."""
    if error is None or value is None:
        return "–"
    return _percent(error / value) if value else "–"


def _percent(ratio: float) -> str:
    """Two digits, no more than are known of an error; 0 for none."""
    if not 0 < ratio < 10:
        return "0" if ratio == 0 else f"{100 * ratio:.0e}"  # nan and inf as they are
    return f"{100 * ratio:.{0 if ratio >= 0.0995 else 1 if ratio >= 0.00095 else 2}f}"


def _significant(value: float | None) -> str:
    """Three significant digits, without an exponent from 0.001 to 99999."""
    if value is None:
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{float(f'{value:.3g}'):g}"


def _tables(
    title: str,
    heading: str,
    labels: Sequence[str],
    rows: Sequence[dict[str, str]],
    width: int,
    keys: Sequence[str],
    parts: Sequence[Sequence[str]],
) -> list[Table]:
    """As few tables as there is room for, of the columns ``keys`` each and of parts unbroken."""
    kept = [*keys]
    tables = []
    for part in parts:
        if len(kept) > len(keys) and _needed(heading, labels, rows, [*kept, *part]) > width:
            tables.append(_table(title, heading, labels, rows, width, kept))
            kept = [*keys]
        kept += part
    return [*tables, _table(title, heading, labels, rows, width, kept)]


def _table(
    title: str,
    heading: str,
    labels: Sequence[str],
    rows: Sequence[dict[str, str]],
    width: int,
    keys: Sequence[str],
) -> Table:
    """Labels, folded where they must be, and cells that are never cut: print it with its width.

    Of a key ``of|shown`` the heading is what is shown.
    """
    fixed = _widths(rows, keys)
    marks = _FOLDS if _needed(heading, labels, rows, keys) <= width else _FOLDS + "_/"
    room = max(_longest_piece([heading, *labels], marks), width - _FRAME - sum(fixed.values()))
    room = min(room, max(map(len, [heading, *labels])))
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title, table.title_style, table.title_justify = title or None, "bold", "left"
    table.width = room + _FRAME + sum(fixed.values())
    table.add_column(heading, no_wrap=True, width=room)
    for key in keys:
        justify: Any = "left" if key == "KL" else "right"  # words read from the left
        shown = key.rpartition("|")[2]
        table.add_column(shown, justify=justify, no_wrap=True, width=fixed[key] - 2)
    for label, row in zip(labels, rows, strict=True):
        table.add_row(Text(_folded(label, room, marks)), *(row[key] for key in keys))
    return table


def _needed(
    heading: str, labels: Sequence[str], rows: Sequence[dict[str, str]], keys: Sequence[str]
) -> int:
    return _longest_piece([heading, *labels], _FOLDS) + _FRAME + sum(_widths(rows, keys).values())


def _widths(rows: Sequence[dict[str, str]], keys: Sequence[str]) -> dict[str, int]:
    """Of columns with their margins."""
    return {
        key: max(len(key.rpartition("|")[2]), *(len(row[key]) for row in rows)) + 2 for key in keys
    }


def _longest_piece(labels: Sequence[str], marks: str) -> int:
    return max(len(piece.rstrip()) for label in labels for piece in _pieces(label, marks))


def _pieces(label: str, marks: str) -> list[str]:
    """What a label may be folded into: after a mark."""
    return re.findall(f"[^{marks}]*[{marks}]|[^{marks}]+$", label) or [label]


def _folded(label: str, width: int, marks: str) -> str:
    """A label in lines of at most so many letters, if its pieces are no longer."""
    lines = [""]
    for piece in _pieces(label, marks):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


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
        words = (row.name, row.formula, row.optimizes, factor + row.constant_formula)
        meaning.add_row(*map(Text, words))
    shown = [row for row in rows if row.refusal is None]
    if not shown:
        return [meaning]
    labels = [row.name for row in shown]
    cells = list(map(_textbook_cells, shown))
    return [meaning, *_tables("", "", labels, cells, width, [], _TEXTBOOK_PARTS)]


def textbook_notes(rows: Sequence[TextbookRow]) -> list[str]:
    """Say what the columns mean, and which losses the run has no place for."""
    first = rows[0]
    lines = [
        "loss = factor · (−ELBO) + constant, nats/datum; "
        f"D = {first.num_dims}, B = {first.batch_size}, L = {first.num_latents}",
        f"loss: of {first.scaling} and the decoder's mean",
        "β at this σ: of the same loss read as a β-VAE's at the run's own scale",
        "broken by: the largest |loss − factor · (−ELBO) − constant| of a datum",
    ]
    for row in rows:
        if row.log_normalizer is not None:
            value, error = paired(row.log_normalizer, row.log_normalizer_standard_error)
            lines.append(
                f"{row.name}: above the −ELBO of the continuous Bernoulli by E Σ log C(λ) = "
                f"{value} ± {error}, no constant"
            )
        elif row.sigma is None and row.loss is not None:
            lines.append(f"{row.name}: x is binary, and this the −ELBO of the Bernoulli itself")
    return lines + [f"{row.name} refuses: {row.refusal}" for row in rows if row.refusal]


def _textbook_cells(row: TextbookRow) -> dict[str, str]:
    errors = [e for e in (row.standard_error, row.data_standard_error) if e and math.isfinite(e)]
    digits = digits_of(errors)
    return {
        "loss": "–" if row.loss is None else f"{row.loss:.{digits}f}",
        "± draws": error_text(row.standard_error, digits),
        "± data": error_text(row.data_standard_error, digits),
        "constant": f"{row.constant:.4f}" if row.constant else "0",
        "σ": _significant(row.sigma),
        "β at σ² = ½": _significant(row.beta_at_half),
        "β at this σ": _significant(row.beta_at_model_sigma),
        "broken by": paired(row.largest_difference, row.largest_difference)[0],
    }
