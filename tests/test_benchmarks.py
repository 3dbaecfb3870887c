"""The speed benchmarks start, check their contestants, and count what they say they count."""

import json
import runpy
import sys
from itertools import cycle
from pathlib import Path

import pytest
import torch

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"
NAMES = ("step", "likelihood", "growth", "end_to_end")

if not SPEED.is_dir():
    pytest.skip("the benchmarks are in a checkout only", allow_module_level=True)


@pytest.fixture
def speed(monkeypatch):
    """Import a file of benchmarks/speed by its stem; gone again afterwards."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(SPEED)
    yield lambda stem: runpy.run_path(str(SPEED / f"{stem}.py"), run_name=stem)
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == SPEED:
            del sys.modules[name]


@pytest.fixture
def run(speed, tmp_path):
    """Run a benchmark and return what it saved."""

    def run(stem: str, *arguments: str) -> list[dict]:
        out = tmp_path / f"{stem}.json"
        code = speed(stem)["main"]([*arguments, "--seconds", "0.001", "--out", str(out)])
        assert code == 0
        return json.loads(out.read_text())

    return run


@pytest.mark.parametrize("name", NAMES)
def test_help(name, speed, capsys):
    with pytest.raises(SystemExit) as stopped:
        speed(name)["main"](["--help"])
    assert stopped.value.code == 0
    assert "--repeats" in capsys.readouterr().out


def test_step_of_eager_contestants(run):
    only = [word for name in ("pyro", "hand_eager") for word in ("--only", name)]
    network = ["--network", "784-400-z20", "--batch", "4", "--objective", "elbo"]
    (record,) = run("step", *network, "--repeats", "1", "--check-steps", "10", *only)
    assert [row["name"] for row in record["rows"]] == ["pyro", "hand_eager"]
    assert all(row["milliseconds"] > 0 for row in record["rows"])
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_likelihood_of_eager_contestants(run):
    names = ("ours", "products_mm", "pyro_renyi")
    only = [word for name in names for word in ("--only", name)]
    (record,) = run("likelihood", "--data", "2", "-K", "200", "--repeats", "1", *only)
    assert {row["name"] for row in record["rows"]} == set(names)
    assert set(record["estimates"]) == {"ours", "pyro_renyi"}


def test_growth_with_eager_steps(run):
    few = ["--engine", "eager", "--batch", "2", "--repeats", "1"]
    (record,) = run("growth", "prior", *few)
    normal, mixture, vamp = (row["milliseconds"] for row in record["rows"][:3])
    found = record["predictions"]
    assert found["mixture / standard_normal"]["median"] == pytest.approx(mixture / normal)
    P, Q = (row["milliseconds"] for row in record["rows"][-2:])
    strict = vamp / (normal + Q - P)
    assert found["vamp / (t + difference of products)"]["median"] == pytest.approx(strict)


def test_end_to_end_with_an_eager_engine(run):
    data = ["--data", "digits(values=binary)", "--hidden", "8", "--latent-dim", "2"]
    one = ["--repeats", "1", "--only", "eager", "--bound", "-1000"]
    (record,) = run("end_to_end", *data, *one)
    (trained,) = record["runs"]
    assert trained["reached"]
    assert trained["epochs"] == 1


@pytest.mark.parametrize("prior", ["standard_normal", "vamp(components=500)"])
def test_products_are_those_of_a_step(prior, speed):
    """Exactly the floating-point operations that torch counts in a real step's products."""
    from torch.utils.flop_counter import FlopCounterMode

    growth = speed("growth")
    setting = growth["Setting"](batch=7, latent_dim=3, prior=prior, hidden=(11, 5))
    model, guide = speed("_pyro_programs")["workbench_pair"](
        setting.network(), None, "cpu", prior=prior
    )
    x = torch.zeros(7, 784)
    with FlopCounterMode(display=False) as of_step:
        setting.loss().differentiable_loss(model, guide, x).backward()
    with FlopCounterMode(display=False) as of_products:
        growth["products"](setting)()
    assert of_products.get_total_flops() == of_step.get_total_flops()


class Fake:
    """A contestant whose losses are given."""

    def __init__(self, *losses: float):
        self.batches = [torch.zeros(1, 1)]
        self.losses = cycle(losses)

    def evaluate(self, x: torch.Tensor) -> float:
        return next(self.losses)


def test_a_contestant_with_another_loss_is_found(speed):
    check_start = speed("step")["check_start"]
    right = {name: Fake(99.0, 101.0) for name in ("a", "b", "c")}
    found = check_start({**right, "shifted": Fake(104.0, 106.0), "fixed": Fake(100.0)}, 16)
    assert {row["name"]: row["varies"] for row in found}["fixed"] is False
    agrees = {row["name"]: row["agrees"] for row in found}
    assert not agrees["shifted"]
    found = check_start({**right, "same": Fake(100.2, 101.2)}, 16)
    assert all(row["agrees"] and row["varies"] for row in found)


def test_a_contestant_that_learns_otherwise_is_found(speed):
    check_gains = speed("step")["check_gains"]
    gains = {"hand_eager": 60.0, "hand_compiled": 62.0, "numpyro_mean_field": 0.0, "pyro": 50.0}
    agrees = check_gains(gains)
    assert agrees == {**dict.fromkeys(gains, True), "numpyro_mean_field": False}


def test_ratios_are_medians_of_paired_rounds(speed):
    side_by_side = speed("_side_by_side")
    one, other = [1.0, 4.0, 9.0], [1.0, 2.0, 3.0]
    assert side_by_side["ratio"](one, other) == {"median": 2.0, "quartiles": (1.5, 2.5)}


class Clock:
    """Time that passes as it is told."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return 2 * self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


def test_windows_give_seconds_a_call(speed, monkeypatch):
    side_by_side, clock = speed("_side_by_side"), Clock()
    monkeypatch.setitem(side_by_side["side_by_side"].__globals__, "time", clock)
    costs = {"a": 0.001, "b": 0.003, "slow": 0.5}
    contestants = [
        side_by_side["Contestant"](name, lambda cost=cost: clock.spend(cost))
        for name, cost in costs.items()
    ]
    timings = side_by_side["side_by_side"](contestants, repeats=3, seconds=0.03)
    assert {t.name: t.median for t in timings} == pytest.approx(costs)
    assert [t.calls for t in timings] == [30, 10, 1]
    assert [t.cores for t in timings] == pytest.approx([2, 2, 2])
    (_, b, _) = side_by_side["rows"](timings, ["a"])
    assert b["ratios"]["a"]["median"] == pytest.approx(3)
