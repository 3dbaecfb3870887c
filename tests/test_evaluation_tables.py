"""An evaluation's tables, as a terminal shows them."""

import dataclasses
import io

import pytest
from rich.console import Console

from pyro_vae.digits import digits_of
from pyro_vae.evaluation import Estimate, Evaluation
from pyro_vae.evaluation.paired import PairedDifference
from pyro_vae.evaluation_tables import cells, evaluation_table, paired_table, pareto_table


def test_a_table_row_has_the_digits_of_its_error_and_marks_lower_limits():
    estimates = {
        "elbo": Estimate(-103.123456, 0.0123, 0.31, 100),
        "log_likelihood": Estimate(-97.123456, 0.25, 0.31, 100, bias=-0.4, understated=True),
    }
    console = Console(file=io.StringIO(), width=100)
    console.print(evaluation_table(Evaluation(estimates, {"num_samples": 7})))
    rows = [line.split() for line in console.file.getvalue().splitlines() if "nats" in line]
    assert rows[0] == ["ELBO", "-103.123", "0.012", "0.310", "–", "nats/datum"]
    assert rows[1][-5:] == ["-97.12", "≥0.25", "0.31", "≤-0.40", "nats/datum"]


def test_errors_that_are_not_known_have_no_limit():
    """One draw a datum."""
    assert cells(Estimate(-97.1, None, 0.31, 100, understated=True)) == [
        "-97.10", "–", "0.31", "–"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "digits"),
    [
        ([0.31, 0.0123], 3),
        ([0.31, 4e-4], 5),
        ([0.31, 3e-4], 2),  # below 1/1000 of the other: as good as none
        ([0.31, 1e-12, None, 0.0], 2),
        ([1e-12], 6),
        ([None, 0.0], 4),
        ([12.0, 3.0], 2),
    ],
)
def test_digits_are_those_of_the_smallest_error_that_counts(errors, digits):
    assert digits_of(errors) == digits


def test_a_point_has_no_draws():
    estimates = {"reconstruction": Estimate(-33.123456, None, 0.31, 100)}
    console = Console(file=io.StringIO(), width=100)
    console.print(evaluation_table(Evaluation(estimates, {"num_samples": 1})))
    text = console.file.getvalue()
    assert "log p(x|z(x)) -33.12 0.31 nats/datum" in " ".join(text.split())
    for word in ("draws", "E_q", "bias"):
        assert word not in text


def test_an_error_that_is_not_zero_is_never_shown_as_zero():
    estimate = Estimate(-81.6, 5.4e-5, 1.51, 300, bias=-1e-9)
    assert cells(estimate) == ["-81.60", "<0.01", "1.51", ">-0.01"]
    exact = Estimate(-81.6, 0.0, 1.51, 300, bias=0.0)
    assert cells(exact)[1] == "0.00"


def paired_lines(**changes) -> list[str]:
    found = PairedDifference(
        count=9, first=-97.123456, second=-98.5, difference=1.376544, standard_error=0.0123,
        data_standard_error=0.31, low=0.7, high=2.0, first_bias=-0.004, second_bias=-0.0202,
        first_flagged=0, second_flagged=0, understated=False, is_exact=False,
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=80)
    console.print(paired_table({"log_likelihood": dataclasses.replace(found, **changes)}, 5000))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_a_difference_stands_with_its_biases_and_flags():
    lines = paired_lines()
    assert "log p(x), IWAE-5000 -97.123 -98.500 1.377 0.012 0.310" in lines
    assert "its bias -0.004 -0.020 0.016" in lines
    assert "flagged 0 0" in lines


def test_limits_of_a_difference_are_marked():
    lines = paired_lines(understated=True, second_flagged=3)
    assert "log p(x), IWAE-5000 -97.123 -98.500 1.377 ≥0.012 0.310" in lines
    assert "its bias ≤-0.004 ≤-0.020 –" in lines  # of two limits no difference
    assert "flagged 0 3" in lines


def test_an_exact_difference_has_neither_draws_nor_bias():
    lines = paired_lines(is_exact=True, standard_error=0.0)
    assert "log p(x), IWAE-5000 -97.12 -98.50 1.38 – 0.31" in lines
    assert not any("bias" in line or "flagged" in line for line in lines)


def test_the_worst_data_are_listed():
    console = Console(file=io.StringIO(), width=80)
    console.print(pareto_table([{"position": 8815, "pareto_k": 2.836, "log_px": -253.21}]))
    assert "8815 2.84 -253.21" in " ".join(console.file.getvalue().split())
