"""β means the same in every estimator: it scales the latent sites of both programs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.annealing import Beta, linear_warm_up
from pyro_vae.objectives.trace import Trace
from pyro_vae.objectives.trace_mean_field import TraceMeanField

OBJECTIVES = [Trace, TraceMeanField]


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.4, 0.7))


def beta_elbo(x, beta):
    """E_q log p(x|z) − β KL(q ‖ p) in closed form for the pair above."""
    fit = dist.Normal(0.4, 1.0).log_prob(x) - 0.7**2 / 2
    kl = torch.distributions.kl_divergence(dist.Normal(0.4, 0.7), dist.Normal(0.0, 1.0))
    return float((fit - beta * kl).sum())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0, 3.0])
def test_value_is_the_beta_elbo(objective, beta):
    """Within four standard errors over 300 draws of 200 particles, seed 0."""
    x = torch.tensor([-1.0, 0.5, 2.0])
    scale = Beta(torch.tensor(beta))
    torch.manual_seed(0)
    losses = [objective(200).loss(scale(model), scale(guide), x) for _ in range(300)]
    losses = torch.tensor(losses)
    error = losses.std() / len(losses) ** 0.5
    assert abs(float(losses.mean()) + beta_elbo(x, beta)) < 4 * float(error)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_annealed_in_place(objective):
    """β is read at every run, not frozen at the first."""
    value = torch.tensor(0.0)
    scale = Beta(value)
    x = torch.tensor([1.0])
    scaled = scale(model), scale(guide)

    def loss():
        torch.manual_seed(3)
        return objective(50).loss(*scaled, x)

    without = loss()
    value.fill_(1.0)
    with_kl = loss()
    value.fill_(2.0)
    assert loss() - with_kl == pytest.approx(with_kl - without, rel=1e-4)
    assert with_kl > without + 0.05


def test_observed_sites_and_plates_keep_their_scale():
    trace = poutine.trace(Beta(torch.tensor(0.5))(model)).get_trace(torch.zeros(3))
    assert trace.nodes["x"]["scale"] == 1.0
    assert trace.nodes["z"]["scale"] == 0.5
    assert trace.nodes["data"]["scale"] == 1.0


def test_warm_up_reaches_beta_and_stays():
    values = [linear_warm_up(step, 10, beta=0.5) for step in range(15)]
    assert values == pytest.approx([0.05 * (s + 1) for s in range(10)] + [0.5] * 5)
