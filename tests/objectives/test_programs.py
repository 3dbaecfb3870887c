"""Users' own programs train in a user's own pyro.infer.SVI with every objective."""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyro_vae.components import build, find, names
from pyro_vae.errors import InputError
from pyro_vae.objectives._per_datum import PerDatum

ALL = names("objective")


def spec(name):
    return f"{name}(num_particles=5)"


class Functions:
    """Plain functions: an nn.Linear by pyro.module, the rest by pyro.param."""

    def __init__(self, p):
        torch.manual_seed(0)
        self.p = p
        self.encoder = nn.Linear(5, 2).double()

    def model(self, x):
        b = pyro.param("b", lambda: torch.zeros(5, dtype=x.dtype))
        zero = torch.zeros(2, dtype=x.dtype)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.p.W.T + b, self.p.sigma).to_event(1), obs=x)

    def guide(self, x):
        encoder = pyro.module("encoder", self.encoder)
        scale = pyro.param("scale", lambda: x.new_ones(2), constraint=constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    def parameters(self):
        return pyro.param("b"), self.encoder.weight, self.encoder.bias, pyro.param("scale")


class Model(PyroModule):
    def __init__(self, p):
        super().__init__("model")
        self.p, self.b = p, nn.Parameter(torch.zeros(5, dtype=p.W.dtype))

    def forward(self, x):
        zero = torch.zeros(2, dtype=x.dtype)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
            loc = z @ self.p.W.T + self.b
            return pyro.sample("x", dist.Normal(loc, self.p.sigma).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__("guide")
        self.encoder = PyroModule[nn.Linear](5, 2, dtype=torch.float64)
        self.scale = PyroParam(torch.ones(2, dtype=torch.float64), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", dist.Normal(self.encoder(x), self.scale).to_event(1))


class Modules:
    """The same two programs as PyroModules."""

    def __init__(self, p):
        torch.manual_seed(0)
        self.model, self.guide = Model(p), Guide()

    def parameters(self):
        encoder = self.guide.encoder
        return self.model.b, encoder.weight, encoder.bias, self.guide.scale


def gap(p, programs, x):
    """log p(x) at the truth minus the exact ELBO of what was learned, nats per datum."""
    b, weight, bias, scale = (t.detach() for t in programs.parameters())
    # ELBO at another b is that of data moved by it
    moved = x - b + p.b
    elbo = p.elbo(moved, x @ weight.T + bias, scale.expand(len(x), 2))
    return float((p.log_evidence(x) - elbo).mean())


@pytest.mark.parametrize("name", ALL)
def test_training_goes_towards_the_evidence(name, linear_gaussian):
    """40 steps of Adam on 64 data: the gap closes by nine tenths, and every parameter moves."""
    x = linear_gaussian.simulate(64, seed=2)
    pair = Functions(linear_gaussian)
    objective = build("objective", spec(name))
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.08}), objective)
    objective.loss(pair.model, pair.guide, x)
    before = [p.detach().clone() for p in pair.parameters()]
    first = gap(linear_gaussian, pair, x)
    losses = [svi.step(x) for _ in range(40)]
    assert all(map(math.isfinite, losses))
    for old, new in zip(before, pair.parameters(), strict=True):
        assert not torch.equal(old, new)
    assert gap(linear_gaussian, pair, x) < 0.1 * first
    assert losses[-1] < losses[0] - 64
    assert svi.evaluate_loss(x) < losses[0] - 64


@pytest.mark.parametrize("name", ALL)
def test_functions_and_modules_are_the_same_pair(name, linear_gaussian):
    """Loss by loss over five steps."""
    x = linear_gaussian.simulate(8, seed=2)
    runs, weights = [], {}
    for programs in (Functions, Modules):
        with pyro.get_param_store().scope():
            pair = programs(linear_gaussian)
            svi = pyro.infer.SVI(
                pair.model,
                pair.guide,
                pyro.optim.Adam({"lr": 0.05}),
                build("objective", spec(name)),
            )
            torch.manual_seed(1)
            with torch.no_grad():
                if programs is Modules:
                    pair.guide.encoder.load_state_dict(weights)
                else:
                    weights |= {k: v.clone() for k, v in pair.encoder.state_dict().items()}
            runs.append([svi.step(x) for _ in range(5)])
    assert runs[0] == pytest.approx(runs[1], rel=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_as_an_nn_module(name, linear_gaussian):
    """elbo(model, guide)(x) with a torch optimizer; its gradient is that of loss_and_grads."""
    x = linear_gaussian.simulate(8, seed=2)
    pair = Modules(linear_gaussian)
    objective = build("objective", spec(name))
    module = objective(pair.model, pair.guide)
    torch.manual_seed(3)
    loss = module(x)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters()}
    assert len(gradients) == 4
    module.zero_grad()
    torch.manual_seed(3)
    value = objective.loss_and_grads(pair.model, pair.guide, x)
    assert value == pytest.approx(float(loss.detach()))
    for n, p in module.named_parameters():
        torch.testing.assert_close(p.grad, gradients[n], msg=n)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    optimizer.step()
    torch.manual_seed(3)
    assert float(module(x).detach()) < value


@pytest.mark.parametrize("name", ALL)
def test_further_arguments_reach_both_programs(name, linear_gaussian):
    """svi.step(x, y, scale=…), and programs closed over their data that take none."""
    x, y = linear_gaussian.simulate(4, seed=2), linear_gaussian.simulate(4, seed=3)
    seen = []

    def model(x, y, scale):
        seen.append(("model", scale))
        b = pyro.param("b", lambda: torch.zeros(5, dtype=x.dtype))
        zero = torch.zeros(2, dtype=x.dtype)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
            loc = z @ linear_gaussian.W.T + b
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(loc, scale).to_event(1), obs=y)

    def guide(x, y, scale):
        seen.append(("guide", scale))
        loc = pyro.param("loc", lambda: torch.zeros(2, dtype=x.dtype))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc + 0 * y[:, :2], scale).to_event(1))

    objective = build("objective", spec(name))
    optim = pyro.optim.Adam({"lr": 0.05})
    torch.manual_seed(0)
    loss = pyro.infer.SVI(model, guide, optim, objective).step(x, y, scale=0.7)
    assert {("model", 0.7), ("guide", 0.7)} == set(seen)
    assert pyro.param("b").abs().min() > 0
    assert pyro.param("loc").abs().min() > 0
    pyro.clear_param_store()

    torch.manual_seed(0)
    closed = pyro.infer.SVI(lambda: model(x, y, 0.7), lambda: guide(x, y, 0.7), optim, objective)
    assert closed.step() == pytest.approx(loss, rel=1e-12)
    if isinstance(objective, PerDatum):
        assert objective.per_datum(model, guide, x, y, scale=0.7).shape == (4,)


def test_dreams_need_the_first_argument(linear_gaussian):
    """A sleep update gives the guide a simulated x: programs without arguments have none."""
    x = linear_gaussian.simulate(4, seed=2)
    pair = Functions(linear_gaussian)
    objective = build("objective", "reweighted_wake_sleep(insomnia=0.5)")
    assert math.isfinite(objective.loss_and_grads(pair.model, pair.guide, x))
    with pytest.raises(InputError, match="must observe exactly the first argument") as error:
        objective.loss_and_grads(lambda: pair.model(x), lambda: pair.guide(x))
    assert "\n" not in str(error.value)


def extra_latent(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0)) + pyro.sample("w", dist.Normal(0 * x, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def one_latent(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.1)) * x, 1.0))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("validate", [True, False])
def test_a_latent_of_one_program_alone(name, validate):
    """Pyro's own go on with log p(w) of a w that the model drew itself: no bound."""
    with (
        pyro.validation_enabled(validate),
        pytest.raises(
            InputError, match="latent site 'w' is in the model but not in the g"
        ) as error,
    ):
        build("objective", name).loss_and_grads(extra_latent, one_latent, torch.zeros(3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ALL)
def test_a_factor_in_the_guide_belongs_to_log_q(name):
    """As in Trace_ELBO: a factor f = 0.5 adds 0.5 to log q of each of three data."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0 * x, 1.0)), 1.0), obs=x)

    def factored(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0 * x, 0.8))
            pyro.factor("f", 0.5 + 0 * x, has_rsample=True)

    def plain(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0 * x, 0.8))

    objective, losses = build("objective", name), []
    if name == "closed_form":
        with pytest.raises(InputError, match=r"^closed_form: the guide has a factor, 'f'"):
            objective.loss(model, factored, torch.zeros(3))
        return
    for guide in (factored, plain):
        torch.manual_seed(0)
        losses.append(objective.loss(model, guide, torch.zeros(3)))
    assert losses[0] - losses[1] == pytest.approx(1.5, rel=1e-5)


def uniform_model(x):
    """x ~ U(z − s, z + s): a draw of z farther than s from x has weight 0."""
    s = pyro.param("s", lambda: torch.tensor(1.5, dtype=x.dtype))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
        pyro.sample("x", dist.Uniform(z - s, z + s, validate_args=False), obs=x)


def slope_guide(x):
    slope = pyro.param("slope", lambda: torch.tensor(0.3, dtype=x.dtype))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(slope * x, 1.2))


IMPORTANCE_WEIGHTED = ["dreg", "iwae", "pyro_renyi", "renyi", "reweighted_wake_sleep"]
X = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("name", [*IMPORTANCE_WEIGHTED, "tvo"])
def test_weights_of_zero(name):
    """The others carry value and gradient; s moves log p(x|z) = −log 2s alone, by −1/s a datum."""
    options = "num_particles=40, side=right" if name == "tvo" else "num_particles=40"
    objective = build("objective", f"{name}({options})")
    torch.manual_seed(0)
    value = objective.loss_and_grads(uniform_model, slope_guide, X)
    gradients = {n: p.grad for n, p in pyro.get_param_store().named_parameters()}
    assert math.isfinite(value)
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert float(gradients["s"]) == pytest.approx(3 / 1.5, rel=1e-5)
    torch.manual_seed(0)
    z = 0.3 * X + 1.2 * torch.randn(40, 3, dtype=torch.float64)
    inside = (z - X).abs() < 1.5
    assert 0.1 < float(inside.double().mean()) < 0.9
    log_w = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.3 * X, 1.2).log_prob(z) - math.log(3)
    log_w = torch.where(inside, log_w, -torch.inf)
    if name == "renyi":
        expected = 2 * (log_w / 2).exp().mean(0).log()
    elif name == "tvo":
        nodes = build("objective", "tvo").betas.double()
        expected = torch.zeros(3, dtype=torch.float64)
        for low, high in pairwise(nodes):
            weights = (high * log_w).softmax(0)
            at = (weights * log_w.masked_fill(~inside, 0.0)).sum(0)
            expected = expected + (high - low) * at
    else:
        expected = log_w.exp().mean(0).log()
    assert value == pytest.approx(-float(expected.sum()), rel=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_all_weights_zero_is_minus_infinity_and_no_number(name):
    """x = 90 is out of reach of every z: the bound is −∞, never NaN and never finite."""
    x = torch.tensor([0.5, 90.0], dtype=torch.float64)
    assert build("objective", name).loss(uniform_model, slope_guide, x) == math.inf


@pytest.mark.parametrize("name", [n for n in ALL if n not in (*IMPORTANCE_WEIGHTED, "tvo")])
def test_a_mean_of_log_weights_with_one_zero_is_minus_infinity(name):
    torch.manual_seed(0)
    objective = build("objective", f"{name}(num_particles=40)")
    assert objective.loss(uniform_model, slope_guide, X) == math.inf


@pytest.mark.parametrize("name", ALL)
def test_one_particle_and_one_datum(name, linear_gaussian):
    """K = 1: every importance-weighted bound is the ELBO of one draw, values and gradients."""
    pair, x = Modules(linear_gaussian), linear_gaussian.simulate(1, seed=4)
    if name == "tvo":
        with pytest.raises(InputError, match="num_particles must be a whole number from 2"):
            build("objective", "tvo(num_particles=1)")
        return
    losses = []
    for other in (name, "trace_mean_field" if name == "closed_form" else "trace"):
        torch.manual_seed(5)
        objective = build("objective", f"{other}(num_particles=1)")
        losses.append(objective.loss_and_grads(pair.model, pair.guide, x))
    if name != "trace_mean_field":
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert all(p.grad.isfinite().all() for p in pair.guide.parameters())


def test_every_objective_is_named_by_its_file():
    for name in ALL:
        constructor = find("objective", name).constructor
        assert constructor.__module__ == f"pyro_vae.objectives.{name}"
