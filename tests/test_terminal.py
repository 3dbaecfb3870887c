"""The progress bar, as a terminal shows it."""

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
from pyro_vae.run_training import facts_of
from pyro_vae.terminal import (
    TrainingDisplay,
    objective_name,
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
