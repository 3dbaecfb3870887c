"""The tables of a comparison: every number in its place, none cut, every mark explained."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from pyro_vae.comparison.rows import Check, Comparison, GradientRow, Truth, ValueRow
from pyro_vae.comparison_tables import (
    check_tables,
    gradient_notes,
    gradient_tables,
    paired,
    textbook_notes,
    textbook_tables,
    value_notes,
    value_tables,
)
from pyro_vae.textbook import TEXTBOOK_LOSSES
from pyro_vae.textbook_table import TextbookRow

TRACE = ValueRow(
    "trace", 1, True, mean=-103.21, standard_error=0.031, data_standard_error=2.1,
    difference=0.0123, difference_standard_error=0.0045, largest_difference=4.56789, bias=-6.01,
    bias_standard_error=0.12, analytic_kl={"z": False},
)  # fmt: skip
CLOSED = ValueRow(
    "closed_form", 1, True, mean=-103.2223, standard_error=0.022, data_standard_error=2.1,
    difference=0.0, difference_standard_error=0.0, largest_difference=0.0, bias=-6.02,
    bias_standard_error=0.11, analytic_kl={"z": True},
)  # fmt: skip
MEAN_FIELD = ValueRow(
    "trace_mean_field", 1, True, mean=-103.2223, standard_error=0.022, data_standard_error=2.1,
    difference=-1.25e-15, difference_standard_error=3e-16, largest_difference=2.8e-14, bias=-6.02,
    bias_standard_error=0.11, analytic_kl={"z1": True, "z2": False},
)  # fmt: skip
MAX = ValueRow(
    "renyi(alpha=max, num_particles=10)", 10, False, mean=-96.2, standard_error=0.3,
    data_standard_error=2.2, difference=7.0, difference_standard_error=0.31,
    largest_difference=12.0, bias=1.0, bias_standard_error=0.32, analytic_kl={"z": False},
)  # fmt: skip
REFUSED = ValueRow("sticking_the_landing", 1, True, refusal="needs log q(z|x) at any z")
CHECKS = [
    Check("trace − closed_form is the Monte Carlo error of the KL", True, 3e-12, 1e-8),
    Check("trace_mean_field equals closed_form", False, 0.25, 1e-8),
]


def comparison(rows=(TRACE, CLOSED, MEAN_FIELD, MAX, REFUSED), reference="closed_form", **options):
    truth = options.pop("truth", Truth("exact", -97.2, 0.0))
    return Comparison(list(rows), [], reference, truth, options.pop("checks", CHECKS), {})


def text_of(tables, width):
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        console.print(table, width=max(width, table.width or 0), crop=False)
    return console.file.getvalue()


def cells_of(text, label):
    """The cells of a row, which stand at least two spaces apart."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{label}  ")]
    return re.split(r"\s{2,}", line.strip())


def test_a_row_holds_every_number_to_the_digits_of_its_error():
    text = text_of(value_tables(comparison(), 200), 200)
    assert re.split(r"\s{2,}", text.splitlines()[1].strip()) == [
        "estimator", "estimate", "± draws", "± data", "Δ closed_form", "Δ ± draws", "Δ largest",
        "− log p(x)", "±", "KL",
    ]  # fmt: skip
    assert cells_of(text, "trace") == [
        "trace", "-103.210", "0.031", "2.100", "0.0123", "0.0045", "4.57", "-6.01", "0.12",
        "sampled",
    ]  # fmt: skip
    assert cells_of(text, "closed_form")[4:7] == ["–", "–", "–"]  # from itself


def test_a_difference_of_rounding_is_not_shown_as_zero():
    text = text_of(value_tables(comparison(), 200), 200)
    row = cells_of(text, "trace_mean_field")
    assert row[4:7] == ["-1.2e-15", "3e-16", "2.8e-14"]
    assert row[-1] == "z1 analytic, z2 sampled"


def test_what_is_no_lower_bound_is_marked_and_no_column_is_called_a_likelihood():
    text = text_of(value_tables(comparison(), 200), 200)
    assert "renyi(alpha=max, num_particles=10) ‡ " in text
    assert text.count("‡") == 1
    assert "likelihood" not in text
    assert any(
        line.startswith("‡ no lower bound on log p(x)") for line in value_notes(comparison())
    )
    plain = comparison([TRACE, CLOSED])
    assert "‡" not in text_of(value_tables(plain, 200), 200) + "".join(value_notes(plain))


@pytest.mark.parametrize("width", [30, 60, 80, 100, 110, 120, 160])
def test_no_number_is_cut_at_any_width(width):
    text = text_of(value_tables(comparison(), width), width)
    assert "…" not in text
    for number in ("-103.210", "0.0045", "2.8e-14", "12.00", "-6.01", "z1 analytic, z2 sampled"):
        assert number in text, number
    tables = value_tables(comparison(), width)
    assert len(tables) == (1 if width >= 130 else 2 if width >= 100 else 3)


def test_without_a_reference_and_a_truth_there_are_no_such_columns():
    text = text_of(value_tables(comparison([TRACE], None, truth=None), 200), 200)
    assert cells_of(text, "trace") == ["trace", "-103.210", "0.031", "2.100", "sampled"]
    notes = " ".join(value_notes(comparison([TRACE], None, truth=None)))
    assert "Δ" not in notes
    assert "log p(x) =" not in notes


def test_what_holds_and_what_broke():
    text = text_of(check_tables(CHECKS, 120), 120)
    kl, mean_field = CHECKS
    assert cells_of(text, kl.name) == [kl.name, "yes", "3.0e-12", "1e-08"]
    assert cells_of(text, mean_field.name) == [mean_field.name, "NO", "2.5e-01", "1e-08"]
    assert check_tables([], 120) == []
    assert "…" not in text_of(check_tables(CHECKS, 60), 60)


def test_the_notes_tell_the_truth_and_who_refuses():
    notes = value_notes(comparison())
    assert "log p(x) = -97.2000 (exact)" in notes
    assert notes[-1] == "sticking_the_landing refuses: needs log q(z|x) at any z"
    notes = value_notes(comparison(truth=Truth("quadrature", -97.2, 0.0021)))
    assert "log p(x) = -97.2000 (± 0.0021 by its own estimate, by quadrature)" in notes


def test_where_all_refuse_there_is_no_table():
    assert value_tables(comparison([REFUSED]), 80) == []
    assert value_notes(comparison([REFUSED], None, truth=None, checks=[])) == [
        "sticking_the_landing refuses: needs log q(z|x) at any z"
    ]


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (1.23456, 0.0321, ("1.235", "0.032")),
        (0.0, 0.0, ("0", "0")),
        (-0.0, None, ("0", "–")),
        (0.0, 0.021, ("0.000", "0.021")),
        (1e-15, 0.0, ("1.0e-15", "0")),
        (-0.5, None, ("-0.5000", "–")),
        (None, None, ("–", "–")),
        (float("inf"), float("nan"), ("inf", "nan")),
        (1.0, 1e-15, ("1.000000", "<0.000001")),
    ],
)
def test_pairs(value, error, expected):
    assert paired(value, error) == expected


def gradient(estimator, K, group="guide", **changes):
    values = {
        "target": "elbo", "reference": "80 × closed_form(num_particles=64)", "bias": 0.0123,
        "bias_standard_error": 0.021, "largest_z": 2.34, "largest_z_limit": 4.0,
        "variance": 1234.567, "signal_to_noise": 0.5678, "noise_floor": 0.13,
        "milliseconds": 1.234, "variance_at_equal_compute": 12.5, "num_repeats": 40,
        "variance_standard_error": 123.4567, "signal_to_noise_standard_error": 0.0111,
        "milliseconds_standard_error": 0.0123, "variance_at_equal_compute_standard_error": 2.5,
    }  # fmt: skip
    return GradientRow(estimator, K, group, **{**values, **changes})


GRADIENTS = [
    gradient("trace", 1),
    gradient("trace", 64, variance=0.00012345, variance_at_equal_compute=0.0,
             variance_standard_error=0.0, signal_to_noise=None),
    gradient("dreg", 64, target="iwae-64", reference="exact", signal_to_noise=0.2),
    gradient("iwae", 64, target="iwae-64", reference="exact", largest_z=5.0, bias=None),
    GradientRow("tvo", 1, "guide", "tvo-1", refusal="tvo: num_particles must be at least 2"),
    gradient("tvo", 64, target="tvo-64", reference=None, bias=None, bias_standard_error=None,
             largest_z=None, largest_z_limit=None),
    gradient("trace", 1, "model"),
    GradientRow("closed_form", 1, "model", "elbo", refusal="no closed form"),
    GradientRow("closed_form", 64, "model", "elbo", refusal="no closed form"),
]  # fmt: skip


def test_gradients_stand_in_a_table_a_group():
    tables = gradient_tables(GRADIENTS, 120)
    assert [table.title for table in tables] == [
        "Gradient, parameters of q, the encoder", "Gradient, parameters of p, the decoder"
    ]  # fmt: skip
    text = text_of(tables[:1], 120)
    assert cells_of(text, "estimator") == [
        "estimator", "K", "bias", "±", "worst", "variance", "± %", "SNR", "± %", "var × time",
        "± %", "ms",
    ]  # fmt: skip
    assert cells_of(text, "trace") == [
        "trace", "1", "0.012", "0.021", "2.3", "1230", "10", "0.568", "2.0", "12.5", "20", "1.23"
    ]  # fmt: skip
    assert cells_of(text, "64")[4:] == ["1.23e-04", "0", "–", "–", "0", "–", "1.23"]
    assert cells_of(text, "dreg")[7] == "0.2°"  # below twice the floor
    assert cells_of(text, "iwae")[4] == "5.0!"
    assert cells_of(text, "tvo")[2:5] == ["–", "–", "–"]
    assert [row[0] for row in map(str.split, text.splitlines()) if row and row[0] == "tvo"]


@pytest.mark.parametrize("width", [30, 60, 80, 100, 120])
def test_no_gradient_is_cut_at_any_width(width):
    tables = gradient_tables(GRADIENTS, width)
    assert all((table.width or 0) <= max(width, 40) for table in tables)
    text = text_of(tables, width)
    assert "…" not in text
    assert all(number in text for number in ("1.23e-04", "0.568", "0.2°", "5.0!", "1.23"))


NAMES = ["pyro_renyi(num_particles=10)", "tvo(num_particles=10, side=right) ‡", "trace"]


@pytest.mark.parametrize("width", range(50, 130, 7))
def test_estimators_are_folded_between_words_and_fit(width):
    """After a parenthesis or a comma; every line of the first column is whole pieces."""
    rows = [
        gradient(name, K, variance_standard_error=1.0) for name in NAMES[:2] for K in (1, 64)
    ] + [gradient(NAMES[2], 1)]  # fmt: skip
    tables = gradient_tables(rows, width)
    assert all(table.width <= width for table in tables)
    pieces = {"pyro_renyi(", "num_particles=10)", "tvo(", "num_particles=10,", "side=right)", "‡"}
    for table in tables:
        shown = [str(cell) for cell in table.columns[0].cells]
        assert [" ".join(label.split("\n")).replace("( ", "(") for label in shown] == [
            NAMES[0], "", NAMES[1], "", NAMES[2]
        ]  # fmt: skip
        lines = [line for label in shown for line in label.split("\n")]
        assert max(map(len, lines)) <= table.columns[0].width  # longer ones would be cut
        words = {word for line in lines for word in re.findall(r"\w+\($|\w+\((?=\w)|[^ (]+", line)}
        assert words <= {*pieces, "trace"}


def test_as_few_tables_as_there_is_room_for():
    def headings(width):
        return [
            [column.header for column in table.columns][1:]
            for table in gradient_tables(GRADIENTS[:2], width)
        ]

    assert len(headings(120)) == 1
    first, second = headings(70)
    assert first == ["K", "bias", "±", "worst", "variance", "± %", "SNR", "± %"]
    assert second == ["K", "var × time", "± %", "ms"]
    assert all(each[0] == "K" for each in headings(40))
    together = [
        ("bias", "±", "worst"),
        ("variance", "± %"),
        ("SNR", "± %"),
        ("var × time", "± %", "ms"),
    ]
    for part in together:
        assert sum(" ".join(part) in " ".join(each) for each in headings(40)) == 1


def test_no_note_is_longer_than_a_line():
    rows = [replace(row, num_repeats=12) for row in GRADIENTS]
    notes = gradient_notes(rows) + value_notes(comparison())
    assert max(map(len, notes)) <= 110, max(notes, key=len)


def test_few_draws_say_what_their_errors_are_worth():
    """1/√(2 · 11) = 21 %; from 20 draws on nothing is said."""
    few, many = (gradient_notes([gradient("trace", 1, num_repeats=n)]) for n in (12, 20))
    assert "from 12 draws each ± is itself uncertain, by 21 % and more" in few
    assert not any("uncertain" in line for line in many)


def test_alarms_by_chance_are_counted():
    notes = gradient_notes(GRADIENTS)
    (line,) = [line for line in notes if "by chance" in line]
    assert "0.2 of these 5 rows" in line


def test_one_line_a_reason_for_all_who_give_it():
    reason = "needs z that is reparameterized; 'z' is not"
    rows = [
        GradientRow(name, K, "guide", "elbo", refusal=f"{name}: {reason}")
        for name in ("iwae", "dreg", "renyi")
        for K in (1, 8)
    ]
    rows += [gradient("tvo", 8), GradientRow("tvo", 1, "guide", "tvo-1", refusal=reason)]
    assert gradient_notes(rows)[-2:] == [
        f"iwae, dreg and renyi refuse: {reason}", f"tvo refuses K = 1: {reason}"
    ]  # fmt: skip


def test_the_notes_explain_marks_references_and_refusals():
    notes = gradient_notes(GRADIENTS)
    assert any(line.startswith("° below twice") and " 0.13:" in line for line in notes)
    assert any(line.startswith("! beyond") for line in notes)
    assert "bias for elbo: against 80 × closed_form(num_particles=64)" in notes
    assert "bias for iwae-64: against exact" in notes
    assert "no other estimator of the same quantity: tvo" in notes
    assert "tvo refuses K = 1: num_particles must be at least 2" in notes
    assert "closed_form refuses: no closed form" in notes  # at every K
    assert "40 draws a row" in notes[0]
    assert "ms: the median time of a draw, loss and gradients, to ± 1.0 % at most" in notes
    quiet = gradient_notes(GRADIENTS[:1])
    assert not any(line[0] in "°!" for line in quiet)


def test_only_refusals():
    rows = [row for row in GRADIENTS if row.refusal]
    assert gradient_tables(rows, 80) == []
    assert len(gradient_notes(rows)) == 2  # tvo's, and closed_form's at every K


def textbook_row(kind, /, **values):
    return TextbookRow(
        kind.name, kind.formula, kind.optimizes, kind.factor_formula, kind.constant_formula,
        factor=1.0, constant=-36.63141, scaling="x/16", num_dims=64, batch_size=128, num_latents=2,
        sigma=0.70711, beta_at_half=1.0, beta_at_model_sigma=8.125, **values,
    )  # fmt: skip


def test_textbook_losses_say_what_they_optimize():
    first, *_, last = TEXTBOOK_LOSSES
    rows = [
        textbook_row(
            first, loss=6.5224, standard_error=0.0084, data_standard_error=0.1,
            largest_difference=1.2e-14, count=100,
        ),
        textbook_row(last, loss=30.0, log_normalizer=1.5, log_normalizer_standard_error=0.01),
        textbook_row(TEXTBOOK_LOSSES[1], refusal="no probabilities"),
    ]  # fmt: skip
    text = text_of(textbook_tables(rows, 120), 120)
    assert re.search(rf"{first.name}\s+{re.escape(first.formula)}\s+normal, σ² = ½, β = 1", text)
    # The constant is exact, whatever the digits of the loss.
    numbers = ["6.5224", "0.0084", "0.1000", "-36.6314", "0.707", "1", "8.12", "1.2e-14"]
    assert [re.split(r"\s{2,}", line.strip())[1:] for line in text.splitlines()].count(numbers) == 1
    notes = textbook_notes(rows)
    assert notes[0].endswith("D = 64, B = 128, L = 2")
    assert notes[1] == "loss: of x/16 and the decoder's mean"
    assert notes[-2].endswith("E Σ log C(λ) = 1.500 ± 0.010, no constant")
    assert notes[-1] == "half_sse_kl refuses: no probabilities"
    binary = textbook_notes([replace(textbook_row(last, loss=30.0), sigma=None)])
    assert binary[-1] == "bce_kl: x is binary, and this the −ELBO of the Bernoulli itself"
    assert "…" not in text_of(textbook_tables(rows, 60), 60)
