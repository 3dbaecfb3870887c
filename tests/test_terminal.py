"""The progress bar and the table, as a terminal shows them."""

import dataclasses
import io
import re
import time

import pytest
import torch
from pyro.infer import Trace_ELBO
from rich.console import Console

from pyro_vae import terminal
from pyro_vae.assembly import build_pair
from pyro_vae.capture import Graph
from pyro_vae.components import build
from pyro_vae.config import Config
from pyro_vae.data import load_data
from pyro_vae.evaluation import Estimate, Evaluation
from pyro_vae.evaluation.paired import PairedDifference
from pyro_vae.run_training import facts_of
from pyro_vae.terminal import (
    TrainingDisplay,
    cells,
    digits_of,
    evaluation_table,
    objective_name,
    paired_table,
    pareto_table,
)
from pyro_vae.training import Trainer


def train(is_terminal: bool, title: str = "", **options) -> str:
    data = load_data("digits")
    torch.manual_seed(0)
    pair = build_pair(Config(encoder="mlp(hidden=(8,))", latent_dim=2), facts_of(data))
    trainer = Trainer(*pair, data, epochs=3, **options)
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120, color_system=None)
    with TrainingDisplay(console, trainer, title) as display:
        trainer.fit(display.on_epoch, display.on_step)
        if is_terminal:
            display.bar.refresh()
    return console.file.getvalue()


def test_the_bar_shows_bounds_beta_speed_and_time_left(monkeypatch):
    monkeypatch.setattr(terminal, "REFRESH_INTERVAL", 0.0)
    shown = train(is_terminal=True)
    for part in (
        r"epoch 3/3",
        r"ELBO -\d+\.\d\d valid -\d+\.\d\d",
        r"β 1\.00",
        r"\d data/s \d:\d\d:",
    ):
        assert re.search(part, shown), part


@pytest.mark.parametrize("is_terminal", [True, False])
def test_it_says_that_the_step_is_being_compiled(monkeypatch, is_terminal):
    """Off a terminal in a line of its own, where it takes long; speed counts from there."""
    monkeypatch.setattr(Graph, "compile", lambda graph: time.sleep(0.3) or graph)
    monkeypatch.setattr(terminal, "PATIENCE", 0.1)
    shown = train(is_terminal=is_terminal, title="[1/2]", engine="compiled")
    assert shown.count("compiling the step …\n") == (not is_terminal)
    assert ("[1/2] compiling the step epoch 1/3" in shown) == is_terminal
    assert "compiling" not in train(is_terminal=is_terminal, engine="eager")


def test_a_title_stands_before_the_bar_as_it_is(monkeypatch):
    monkeypatch.setattr(terminal, "REFRESH_INTERVAL", 0.0)
    shown = train(is_terminal=True, title="[3/20] prior={x}[bold], seed 2")
    assert "[3/20] prior={x}[bold], seed 2 epoch 3/3" in shown


def test_plain_lines_off_a_terminal():
    lines = train(is_terminal=False, beta=0.5, warm_up=2).splitlines()
    assert lines[0].startswith("epoch 1/3  step 11  β-ELBO (no lower bound) -")
    assert lines[-1].startswith("epoch 3/3  step 33  β-ELBO (no lower bound) -")
    assert "β 0.50" in lines[-1]
    assert "data/s" in lines[-1]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("objective", "options", "expected"),
    [
        ("sticking_the_landing", {}, "ELBO -"),
        ("iwae(num_particles=2)", {}, "iwae -"),
        ("iwae(num_particles=2)", {"beta": 2.0}, "β-iwae (no lower bound) -"),
        ("renyi(alpha=-1, num_particles=2)", {}, "renyi (no lower bound) -"),
        ("tvo(num_particles=2, side=right)", {}, "tvo (no lower bound) -"),
        ("closed_form", {"warm_up": 3}, "β-ELBO -"),
    ],
)
def test_a_line_names_the_objective_and_what_is_no_bound(objective, options, expected):
    lines = train(is_terminal=False, objective=build("objective", objective), **options)
    assert lines.startswith(f"epoch 1/3  step 11  {expected}")
    assert re.search(r"  valid -\d+\.\d\d ± ", lines)


def test_an_objective_of_ones_own_has_its_class_name():
    class Mine(Trace_ELBO):
        pass

    assert objective_name(Mine()) == "Mine"
    assert objective_name(build("objective", "dreg")) == "dreg"


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
