"""β and other scales: every estimator's value is its definition with log w_β, on given noise."""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.annealing import Beta
from pyro_vae.components import build, names
from pyro_vae.errors import InputError
from pyro_vae.log_weights import log_weight_terms
from pyro_vae.objectives._per_datum import PerDatum

K = 4
ALL = names("objective")
WITHOUT_BETA = ["reweighted_wake_sleep", "tvo"]
WITH_BETA = [name for name in ALL if name not in WITHOUT_BETA]
SCALES = [poutine.scale(scale=3.0), poutine.scale(scale=torch.tensor(3.0))]


class Pair:
    """The linear-Gaussian p and a diagonal q off its posterior; the scale of x is learned."""

    def __init__(self, p, wrap=lambda body: body, plate=None):
        self.p, self.wrap = p, wrap
        self.x = p.simulate(6, seed=1)
        self.parameters = p.diagonal_guide(shift=0.5, variance=0.6)
        self.plate = plate or (lambda: pyro.plate("data", len(self.x), dim=-1))
        self.log_sigma = torch.tensor(math.log(p.sigma), dtype=p.W.dtype, requires_grad=True)

    def model(self, x):
        zero = torch.zeros(2, dtype=x.dtype)
        with self.plate():
            z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
            fit = dist.Normal(z @ self.p.W.T + self.p.b, self.log_sigma.exp()).to_event(1)
            self.wrap(pyro.sample)("x", fit, obs=x)

    def guide(self, x):
        with self.plate():
            pyro.sample("z", dist.Normal(*self.parameters(x)).to_event(1))

    def loss(self, name, *wraps, options=""):
        """In both programs the wraps, the last outermost."""
        model, guide = self.model, self.guide
        for wrap in wraps:
            model, guide = wrap(model), wrap(guide)
        torch.manual_seed(2)
        objective = build("objective", f"{name}(num_particles={K}{options})")
        return objective.loss(model, guide, self.x)

    def by_hand(self, name, beta=1.0):
        """The definition of the estimator on the same draws, minus its sum over the data."""
        torch.manual_seed(2)
        terms = log_weight_terms(self.model, self.guide, self.x, K)
        loc, scale = self.parameters(self.x)
        kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum(-1)
        log_w = terms.log_likelihood + beta * (terms.log_prior - terms.log_guide)

        def log_mean_exp(v):
            return v.exp().mean(0).log()

        def left_sum():
            nodes = [0.0, *(0.03 ** ((4 - i) / 4) for i in range(5))]
            total = torch.zeros_like(log_w[0])
            for low, high in pairwise(nodes):
                weights = (low * log_w).exp()
                total = total + (high - low) * (weights * log_w).sum(0) / weights.sum(0)
            return total

        value = {
            "closed_form": lambda: terms.log_likelihood.mean(0) - beta * kl,
            "trace_mean_field": lambda: terms.log_likelihood.mean(0) - beta * kl,
            "renyi": lambda: 2 * log_mean_exp(log_w / 2),
            "tvo": left_sum,
            **dict.fromkeys(
                ["trace", "trace_enum", "trace_graph", "sticking_the_landing"],
                lambda: log_w.mean(0),
            ),
        }.get(name, lambda: log_mean_exp(log_w))()
        return -float(value.detach().sum())


@pytest.fixture(scope="module")
def pair(linear_gaussian):
    return Pair(linear_gaussian)


@pytest.mark.parametrize("name", WITH_BETA)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 2.5])
def test_value_is_the_definition_with_log_w_beta(pair, name, beta):
    scale = Beta(torch.tensor(beta, dtype=torch.float64))
    assert pair.loss(name, scale) == pytest.approx(pair.by_hand(name, beta), rel=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_value_is_the_definition_without_beta(pair, name):
    assert pair.loss(name) == pytest.approx(pair.by_hand(name), rel=1e-6)  # tvo's β are float32


@pytest.mark.parametrize("name", WITHOUT_BETA)
@pytest.mark.parametrize("beta", [0.3, 1.0, 2.5])
def test_estimators_that_have_no_beta_say_so(pair, name, beta):
    """At β = 1 too: a tensor may be annealed."""
    with pytest.raises(InputError, match=f"^{name} has no β: leave out --beta") as error:
        pair.loss(name, Beta(torch.tensor(beta)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WITH_BETA)
def test_beta_annealed_in_place_changes_the_next_loss(pair, name):
    value = torch.tensor(0.2, dtype=torch.float64)
    scale = Beta(value)
    objective = build("objective", f"{name}(num_particles={K})")
    for beta in (0.2, 0.9, 1.6):
        value.fill_(beta)
        torch.manual_seed(2)
        got = objective.loss(scale(pair.model), scale(pair.guide), pair.x)
        assert got == pytest.approx(pair.by_hand(name, beta), rel=1e-10)


@pytest.mark.parametrize("name", [n for n in WITH_BETA if n != "pyro_renyi"])
@pytest.mark.parametrize("num_data", [60, 7])
def test_beta_in_a_subsampled_plate(linear_gaussian, name, num_data):
    """N/B = 10, and 7/6, which is no binary fraction."""
    plate = lambda: pyro.plate("data", num_data, subsample=torch.arange(6), dim=-1)  # noqa: E731
    got = Pair(linear_gaussian, plate=plate).loss(name, Beta(torch.tensor(0.3).double()))
    expected = num_data / 6 * Pair(linear_gaussian).by_hand(name, 0.3)
    assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", SCALES, ids=["number", "tensor"])
def test_a_scale_of_both_programs_stands_outside_the_bound(pair, name, scale):
    if name == "pyro_renyi":
        with pytest.raises(InputError, match="puts the scale of site 'x' inside the logarithm"):
            pair.loss(name, scale)
        return
    assert pair.loss(name, scale) == pytest.approx(3 * pair.loss(name), rel=1e-6)


@pytest.mark.parametrize("name", [n for n in ALL if n != "pyro_renyi"])
def test_a_scale_per_datum_weighs_the_data(pair, name):
    """As data that stand for several: the loss is Σ_i s_i times minus the bound of datum i."""
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.5], dtype=torch.float64)
    objective = build("objective", f"{name}(num_particles={K})")
    got = pair.loss(name, poutine.scale(scale=weights))
    if isinstance(objective, PerDatum):
        torch.manual_seed(2)
        expected = -(weights * objective.per_datum(pair.model, pair.guide, pair.x)).sum()
        assert got == pytest.approx(float(expected), rel=1e-10)
    else:
        eye = torch.eye(6, dtype=torch.float64)
        each = [pair.loss(name, poutine.mask(mask=row > 0)) for row in eye]
        assert got == pytest.approx(sum(w * v for w, v in zip(weights, each, strict=True)))


@pytest.mark.parametrize("name", [n for n in WITH_BETA if n != "pyro_renyi"])
def test_a_scale_of_the_likelihood_is_one_over_beta(linear_gaussian, name):
    """s log p(x|z) + log p(z) − log q = s log w_{1/s}."""
    scaled = Pair(linear_gaussian, wrap=poutine.scale(scale=4.0))
    expected = 4 * Pair(linear_gaussian).by_hand(name, 0.25)
    assert scaled.loss(name) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", WITHOUT_BETA)
def test_a_scale_of_the_likelihood_is_refused_where_beta_is(linear_gaussian, name):
    with pytest.raises(InputError, match=f"^{name} has no β"):
        Pair(linear_gaussian, wrap=poutine.scale(scale=4.0)).loss(name)


@pytest.mark.parametrize("name", ["closed_form", "trace_mean_field"])
@pytest.mark.parametrize("scaled", ["model", "guide"])
def test_beta_in_one_program_alone_has_no_kl(pair, name, scaled):
    scale = Beta(torch.tensor(0.5))
    programs = {"model": pair.model, "guide": pair.guide}
    programs[scaled] = scale(programs[scaled])
    with pytest.raises(InputError, match=f"^{name}: latent site 'z' has another scale") as error:
        build("objective", name).loss(programs["model"], programs["guide"], pair.x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("closed_form", "trace_mean_field")])
def test_beta_in_one_program_alone_scales_that_density(pair, name):
    """β log p(z) − log q: what was asked for, where a sample can show it."""
    objective = build("objective", f"{name}(num_particles=1)") if name != "tvo" else None
    if objective is None or name == "reweighted_wake_sleep":
        with pytest.raises(InputError, match="has no β"):
            build("objective", name).loss(Beta(torch.tensor(0.5))(pair.model), pair.guide, pair.x)
        return
    torch.manual_seed(2)
    terms = log_weight_terms(pair.model, pair.guide, pair.x, 1)
    expected = -(terms.log_likelihood + 0.5 * terms.log_prior - terms.log_guide).sum()
    torch.manual_seed(2)
    scale = Beta(torch.tensor(0.5, dtype=torch.float64))
    loss = objective.loss(scale(pair.model), pair.guide, pair.x)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_observed_sites_of_unlike_scale_have_no_weight(name):
    """One scale of all observations stands outside; two cannot."""
    x = torch.zeros(3)

    def guide(x):
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    def model(x):
        with pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            with poutine.scale(scale=2.0):
                pyro.sample("y", dist.Normal(z, 1.0), obs=x)

    objective = build("objective", name)
    if isinstance(objective, PerDatum):
        with pytest.raises(InputError, match="observed site 'y' of the model has another scale"):
            objective.loss(model, guide, x)
    elif name == "pyro_renyi":
        with pytest.raises(InputError, match="scale of site 'y' inside the logarithm"):
            objective.loss(model, guide, x)
    else:
        assert math.isfinite(objective.loss(model, guide, x))
