"""The composition of a diagnosis: every part in its turn, none silently missing."""

import contextlib
import importlib
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.data import load_data
from pyro_vae.diagnosis.diagnose import (
    NUM_SIMULATED,
    PARTS,
    Settings,
    check_parts,
    data_of,
    diagnose,
    positions,
)
from pyro_vae.errors import InputError
from pyro_vae.evaluation.simulation import simulate
from pyro_vae.protocols import Facts
from pyro_vae.seeding import derive_seed
from pyro_vae.standard_error import standard_error_of_mean

module = importlib.import_module("pyro_vae.diagnosis.diagnose")  # not the function
FACTS = Facts((8, 8), "binary")
FEW = Settings(count=100, gap_count=3, num_samples=40)
BOUNDS = ["bounds"]
WEIGHT = torch.linspace(-1, 1, 64)


def model(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        logits = (z * WEIGHT).unflatten(-1, (8, 8))
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)


def guide(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(0.1 * x.flatten(1).sum(-1, True), 0.9).to_event(1))


class Point(torch.nn.Module):
    """A guide of one z a datum."""

    has_bound = has_density = False

    def __call__(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Delta(0.1 * x.flatten(1).sum(-1, True)).to_event(1))


@pytest.fixture(scope="module")
def data():
    return load_data("digits(values=binary)")


def run(data, settings=FEW, q=guide, **options):
    return diagnose(model, q, data.train, data.test, FACTS, settings, **options)


@pytest.fixture
def refusing(monkeypatch):
    """Every part refuses, and tells that it was asked."""
    asked = []

    def part(name):
        def refuse(pair, on_step):
            asked.append(name)
            on_step(1, 2)
            raise InputError(f"no {name} here")

        return refuse

    monkeypatch.setattr(module, "_PARTS", {name: part(name) for name in PARTS})
    return asked


def test_what_refuses_is_a_note_with_its_reason(data, refusing):
    diagnosis = run(data)
    assert refusing == list(PARTS)
    assert diagnosis.notes == [f"{part}: no {part} here" for part in PARTS]
    assert (diagnosis.gaps, diagnosis.checks) == ([], [])
    assert diagnosis.reliability is diagnosis.latents is diagnosis.calibration is None


def test_each_part_is_told_when_it_is_done_and_what_is_still_to_come(data, refusing):
    seen, steps = [], []

    @contextlib.contextmanager
    def watch(part):
        steps.append(part)
        yield lambda done, total: steps.append((done, total))

    run(
        data, parts=["space", "gap", "latents"], watch=watch,
        on_part=lambda part, diagnosis: seen.append((part, diagnosis.notes)),
    )  # fmt: skip
    assert seen == [
        ("gap", ["gap: no gap here", "latents: not reached", "space: not reached"]),
        ("latents", ["gap: no gap here", "latents: no latents here", "space: not reached"]),
        ("space", ["gap: no gap here", "latents: no latents here", "space: no space here"]),
    ]
    assert steps == ["gap", (1, 2), "latents", (1, 2), "space", (1, 2)]


def test_a_point_is_asked_only_what_applies(data, refusing):
    diagnosis = run(data, q=Point())
    assert refusing == ["bounds", "checks", "space"]
    for part in ("gap", "reliability", "latents", "calibration"):
        assert any(note.startswith(f"{part}: the guide is a point") for note in diagnosis.notes)
    x = data_of(data.test, FEW.count, torch.device("cpu"), torch.float32)
    logits = 0.1 * x.flatten(1).sum(-1, True) * WEIGHT
    expected = dist.Bernoulli(logits=logits).to_event(1).log_prob(x.flatten(1)).double()
    found = diagnosis.reconstruction
    assert found.value == pytest.approx(float(expected.mean()), abs=1e-4)
    assert found.data_standard_error == pytest.approx(standard_error_of_mean(expected), rel=1e-4)


class ThreeLatents(torch.nn.Module):
    """x ~ N(W z, 1), z ~ N(0, I₃): too many latents for quadrature."""

    WEIGHT = torch.stack([torch.sin(i * torch.linspace(0, 6, 64)) for i in (1, 2, 3)])

    def __call__(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            loc = (z @ self.WEIGHT.to(z.dtype)).unflatten(-1, (8, 8))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(2), obs=x)

    def exact(self, like, seed=0):
        """The mean of log N(x; 0, I + WᵀW) over the data that the bounds of a seed are of."""
        weight = self.WEIGHT.double()
        covariance = torch.eye(64).double() + weight.T @ weight
        marginal = dist.MultivariateNormal(torch.zeros(64).double(), covariance)
        x = simulate(self, like, derive_seed(seed, "bidirectional")).x
        return float(marginal.log_prob(x.flatten(1).double()).mean())


class KnownEvidence(ThreeLatents):
    def log_evidence(self, x):
        return x.new_zeros(len(x))


def bounds_of(data, p, settings=FEW, q=guide, **options):
    return diagnose(p, q, data.train, data.test, FACTS, settings, **options)


def test_bounds_ask_no_guide_and_enclose_the_exact_evidence(data):
    """Of 5 temperatures, seed 0, log p(x) of the same data exact; of 50 they are nearer."""
    settings = replace(FEW, num_chains=4, num_temperatures=5)
    found = bounds_of(data, ThreeLatents(), settings, parts=BOUNDS)
    assert found.notes == []
    bounds, exact = found.bounds, ThreeLatents().exact(torch.zeros(20, 8, 8))
    assert (bounds.num_chains, bounds.num_temperatures) == (4, 5)
    assert bounds.lower.count == bounds.upper.count == bounds.gap.count == NUM_SIMULATED == 20
    assert bounds.lower.value < exact < bounds.upper.value
    assert bounds.gap.value > 4 * bounds.gap.data_standard_error
    needed = bounds_of(data, ThreeLatents(), settings, Point(), parts=BOUNDS, asked=False)
    assert needed.bounds == bounds  # log p(x) of this model is from AIS
    many = replace(settings, num_temperatures=50)
    more = bounds_of(data, ThreeLatents(), many, parts=BOUNDS).bounds
    assert bounds.lower.value < more.lower.value < exact < more.upper.value < bounds.upper.value
    assert more.gap.value < bounds.gap.value / 5


@pytest.mark.parametrize(
    ("p", "reason"),
    [(model, "known by quadrature"), (KnownEvidence(), "known in closed form")],
    ids=["quadrature", "exact"],
)
def test_bounds_where_ais_is_not_needed_are_passed_over_unless_asked_for(data, p, reason):
    settings = replace(FEW, num_chains=2, num_temperatures=3)
    found = bounds_of(data, p, settings, parts=BOUNDS, asked=False)
    assert found.bounds is None
    assert found.notes == [
        f"bounds: not needed, log p(x) is {reason}; --only bounds does them anyway"
    ]
    asked = bounds_of(data, p, settings, parts=BOUNDS)
    assert (asked.notes, asked.bounds.num_chains) == ([], 2)


@pytest.mark.parametrize("asked", [True, False])
def test_bounds_of_a_model_that_cannot_be_annealed_are_a_note(data, asked):
    def positive(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Poisson(x.new_ones(3)).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(8, 8), 1.0).to_event(2), obs=x)

    found = bounds_of(data, positive, parts=BOUNDS, asked=asked)
    assert found.bounds is None
    assert len(found.notes) == 1
    assert found.notes[0].startswith("bounds: ")


def test_of_all_parts_bounds_come_after_the_gap_and_only_where_needed(data, refusing, monkeypatch):
    monkeypatch.setitem(module._PARTS, "bounds", module._bounds)
    found = bounds_of(data, KnownEvidence())
    assert found.notes[0] == "gap: no gap here"
    assert found.notes[1].startswith("bounds: not needed")
    assert found.bounds is None


def test_calibration_on_simulated_data_is_not_limited_by_few_data(data):
    diagnosis = run(data, replace(FEW, count=5), parts=["calibration"])
    assert diagnosis.notes == []
    assert diagnosis.calibration.num_data == 100


def test_the_protocol_states_the_data_and_the_sizes(data, refusing):
    settings = Settings(50, 7, 30, 5, 20, 3)
    protocol = run(data, settings, parts=["gap"], protocol={"run": "mine"}).protocol
    assert {
        "run": "mine", "parts": ["gap"], "num_samples": 30, "num_chains": 5,
        "num_temperatures": 20, "seed": 3, "dtype": "float32", "device": "cpu",
    }.items() <= protocol.items()  # fmt: skip
    for name, split in (("train", data.train), ("test", data.test)):
        for key, count in (("splits", 50), ("gap_splits", 7)):
            expected = {"count": count, "content_hash": split.subset(count).content_hash}
            assert protocol[key][name] == expected
    whole = run(data, Settings(count=10_000), parts=["latents"]).protocol
    assert whole["splits"]["test"] == {"count": 300, "content_hash": data.test.content_hash}
    assert "gap_splits" not in whole


def test_data_are_random_and_named_by_their_place(data):
    x = data_of(data.test, 20, torch.device("cpu"), torch.float64)
    places = positions(data.test, 20)
    assert places != list(range(20))
    assert torch.equal(x, data.test.scored()[places].double())
    assert positions(data.test, 10_000) == list(range(300))


def test_of_importance_sampling_the_worst_come_first(data):
    """The posterior of 64 pixels is far narrower than q: k̂ is large, and ordered."""
    reliability = run(data, parts=["reliability"]).reliability
    k = reliability.pareto_k
    assert len(k) == len(reliability.log_px) == len(reliability.positions) == 100
    assert reliability.num_samples == 40
    expected = [i for i in range(100) if not k[i] <= reliability.threshold]
    assert sorted(reliability.flagged) == expected
    shown = [math.inf if math.isnan(k[i]) else k[i] for i in reliability.flagged]
    assert shown == sorted(shown, reverse=True)


def test_parts_stand_in_their_order():
    assert check_parts(None) == PARTS
    assert check_parts(["space", "gap"]) == ("gap", "space")
    with pytest.raises(InputError, match=r"no part 'gaps'; did you mean 'gap'\?"):
        check_parts(["gaps"])
    with pytest.raises(InputError, match="no part is left"):
        check_parts([])


@pytest.mark.parametrize(
    "name", ["count", "gap_count", "num_samples", "num_chains", "num_temperatures"]
)
def test_sizes_that_are_none_are_refused(data, name):
    with pytest.raises(InputError, match=f"{name} must be at least"):
        Settings(**{name: 0})


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(InputError, match="seed must be from 0"):
        Settings(seed=seed)
