"""What a comparison says beside its numbers: bounds, tolerances, units; what it leaves alone."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import JitTraceEnum_ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_vae import objectives
from pyro_vae.annealing import Beta
from pyro_vae.comparison import compare_estimators, compare_gradients, compare_values
from pyro_vae.objectives import IWAE, DReG, Renyi, StickingTheLanding

X = torch.tensor([0.3, -0.2], dtype=torch.float64)


def model(x):
    """z ~ N(0, 1), x|z ~ N(0.1 z, 1)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(0.1 * z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.full_like(x, 0.5), 1.0))


def log_px(x):
    return dist.Normal(0.0, math.sqrt(1.01)).log_prob(x).mean()


ESTIMATORS = ["trace", "closed_form", "iwae(num_particles=100)", "renyi(num_particles=100)",
              "renyi(alpha=2, num_particles=100)", "iwae(num_particles=1)"]  # fmt: skip


@pytest.mark.parametrize(
    ("beta", "bounds"),
    [(0.5, set()), (1.0, set(ESTIMATORS)),
     (4.0, {"trace", "closed_form", "renyi(alpha=2, num_particles=100)", "iwae(num_particles=1)"})],
)  # fmt: skip
def test_which_are_bounds_under_beta(beta, bounds):
    """At β = 4 IWAE lies 1.35 nats above log p(x), seed 0: a mean of weights w_β is no bound."""
    scale = Beta(torch.tensor(beta, dtype=torch.float64))
    rows = compare_estimators(scale(model), scale(guide), X, estimators=ESTIMATORS, num_repeats=100)
    assert {row.estimator for row in rows if row.is_lower_bound} == bounds
    for row in rows:
        above = row.mean - float(log_px(X))
        assert not row.is_lower_bound or above < 4 * row.standard_error
    if beta == 4:
        assert rows[2].mean - float(log_px(X)) > 1


def test_a_scale_in_one_program_alone_makes_no_bound():
    def scaled(x):
        with pyro.plate("data", len(x), dim=-1):
            with poutine.scale(scale=0.1):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(0.1 * z, 1.0), obs=x)

    (row,) = compare_estimators(scaled, guide, X, estimators=["trace"], num_repeats=50)
    assert row.mean - float(log_px(X)) > 1
    assert not row.is_lower_bound


def test_an_outlier_does_not_loosen_the_checks_of_the_others(monkeypatch):
    """float32, one x of 3,000: an IWAE a nat off on the two other data is named."""
    estimate = IWAE.estimate

    def wrong(self, call):
        result = estimate(self, call)
        return result._replace(value=result.value + torch.tensor([1.0, -1.0, 0.0]))

    x = torch.tensor([0.3, -0.2, 3000.0])
    iwae = ["iwae(num_particles=10)"]
    assert all(c.holds for c in compare_values(model, guide, x, estimators=iwae).checks)
    monkeypatch.setattr(IWAE, "estimate", wrong)
    checks = compare_values(model, guide, x, estimators=iwae, num_repeats=5).checks
    (broken,) = [check for check in checks if not check.holds]
    assert broken.name.startswith("iwae")
    assert broken.largest == pytest.approx(1, abs=1e-3)
    assert broken.tolerance < 1e-3


class Halved(Trace_ELBO):
    """A user's, which is no bound."""

    def loss(self, *args, **kwargs):
        return 0.5 * super().loss(*args, **kwargs)


def mixture(x):
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Categorical(x.new_tensor([0.3, 0.7])),
                        infer={"enumerate": "parallel"})  # fmt: skip
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0], dtype=torch.float64))
        pyro.sample("x", dist.Normal(loc[c], 1.0), obs=x)


def nothing(x):
    """A guide of no latents."""


def test_a_users_subclass_is_taken_for_no_bound_and_pyros_own_for_one():
    (row,) = compare_estimators(model, guide, X, estimators=[Halved()], num_repeats=2)
    assert not row.is_lower_bound
    pyros = [TraceEnum_ELBO(max_plate_nesting=1), JitTraceEnum_ELBO(max_plate_nesting=1)]
    rows = compare_estimators(mixture, nothing, X, estimators=["trace_enum", *pyros], num_repeats=2)
    assert all(row.is_lower_bound for row in rows)


def test_where_everything_is_summed_out_every_value_is_the_evidence():
    weights = X.new_tensor([0.3, 0.7])
    densities = dist.Normal(X.new_tensor([-1.0, 1.0]), 1.0).log_prob(X[:, None])
    exact = float((weights.log() + densities).logsumexp(-1).mean())
    rows = compare_estimators(mixture, nothing, X, num_repeats=3)
    taken = {row.estimator: row.mean for row in rows if row.refusal is None}
    assert {"trace_enum", "iwae(num_particles=10)", "tvo(num_particles=10)"} <= taken.keys()
    assert taken == pytest.approx(dict.fromkeys(taken, exact), rel=1e-9)
    gradients = compare_gradients(mixture, nothing, X, particles=(1, 4), num_repeats=4)
    variances = [row.variance for row in gradients if row.refusal is None]
    assert len(variances) > 10
    assert max(variances) < 1e-25


class Network(PyroModule):
    """p or q of two latents and five dimensions of data, with a layer under test."""

    def __init__(self, name: str, layer: nn.Module):
        super().__init__(name)
        ends = (2, 5) if name == "model" else (5, 4)
        self.net = nn.Sequential(nn.Linear(ends[0], 8), layer, nn.Tanh(), nn.Linear(8, ends[1]))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            if self._pyro_name == "guide":
                loc, log_scale = self.net(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            else:
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                loc = self.net(z.reshape(-1, 2)).reshape(*z.shape[:-1], 5)
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


@pytest.fixture
def data():
    return torch.randn(30, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(8), lambda: nn.Dropout(0.5)],
                         ids=["batch norm", "dropout"])  # fmt: skip
def test_modules_in_training_mode_and_the_generator_are_left_as_they_were(make, data):
    pair = Network("model", make()), Network("guide", make())
    buffers = [buffer for module in pair for buffer in module.buffers()]
    before, state = [buffer.clone() for buffer in buffers], torch.get_rng_state()
    compare_values(*pair, data, estimators=["trace", "iwae"], num_repeats=2)
    compare_gradients(*pair, data, estimators=["trace", "dreg"], particles=(2,), num_repeats=4)
    assert all(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(8), lambda: nn.Dropout(0.5)],
                         ids=["batch norm", "dropout"])  # fmt: skip
def test_in_training_mode_log_px_is_not_known(make, data):
    """log p(x, z) is then no function of z: it varies with each call, or with the z beside."""
    pair = Network("model", make()), Network("guide", nn.Identity())
    x = data[:3]
    assert compare_values(*pair, x, estimators=["trace"], num_repeats=2).truth is None
    pair[0].eval()
    truth = compare_values(*pair, x, estimators=["trace"], num_repeats=2).truth
    assert truth.method == "quadrature"


def test_a_common_scale_changes_no_unit(data):
    """Both programs under 1/N: values and gradients are still those of a datum."""
    pair = [Network("model", nn.Identity()), Network("guide", nn.Identity())]
    scaled = [poutine.scale(program, scale=1 / 30) for program in pair]
    found = []
    for programs in (pair, scaled):
        values = compare_estimators(*programs, data, estimators=["trace"], num_repeats=2)
        with pyro.get_param_store().scope():
            gradients = compare_gradients(
                *programs, data, estimators=["trace"], particles=(1,), num_repeats=4
            )
        found.append([values[0].mean, *(row.variance for row in gradients)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_an_estimator_that_fails_leaves_the_others_their_rows():
    """Whatever it raises: here torch's RuntimeError, for gammainc has no derivative in a."""

    def model(x):
        power = pyro.param("power", torch.tensor(2.0, dtype=torch.float64))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(0.1 * z, 1.0), obs=x)
            pyro.factor("f", torch.special.gammainc(power, torch.ones_like(z)))

    rows = compare_gradients(model, guide, X, estimators=["trace"], particles=(1,), num_repeats=4)
    assert [("igamma" in row.refusal, row.variance) for row in rows] == [(True, None)]


@pytest.mark.parametrize("objective", [IWAE(2), DReG(2), StickingTheLanding(2), Renyi(2.0, 2),
                                       objectives.TVO(num_particles=2)])  # fmt: skip
def test_data_of_density_zero_lose_infinitely(objective):
    """x outside the support of p(x|z) for every z: the loss is +∞, and never NaN."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Uniform(0.0, 1.0, validate_args=False), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc.expand(len(x)), 1.0))

    loss = objective.differentiable_loss(model, guide, torch.tensor([2.0, 0.5]).double())
    assert float(loss.detach()) == math.inf
