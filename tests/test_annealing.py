"""β means the same in every estimator: it scales the latent sites of both programs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.annealing import Beta, linear_warm_up
from pyro_vae.components import build, names
from pyro_vae.errors import InputError

# Those whose mean over draws is the β-ELBO, for any number of particles.
ELBOS = [
    "closed_form",
    "sticking_the_landing",
    "trace",
    "trace_enum",
    "trace_graph",
    "trace_mean_field",
]


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


@pytest.mark.parametrize("objective", ELBOS)
@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0, 3.0])
def test_value_is_the_beta_elbo(objective, beta):
    """Within four standard errors over 100 draws of 600 particles, seed 0."""
    x = torch.tensor([-1.0, 0.5, 2.0])
    scale = Beta(torch.tensor(beta))
    torch.manual_seed(0)
    elbo = build("objective", f"{objective}(num_particles=600)")
    losses = torch.tensor([elbo.loss(scale(model), scale(guide), x) for _ in range(100)])
    error = losses.std() / len(losses) ** 0.5
    assert abs(float(losses.mean()) + beta_elbo(x, beta)) < 4 * float(error)


@pytest.mark.parametrize("objective", ELBOS)
def test_annealed_in_place(objective):
    """β is read at every run, not frozen at the first."""
    value = torch.tensor(0.0)
    scale = Beta(value)
    x = torch.tensor([1.0])
    scaled = scale(model), scale(guide)

    def loss():
        torch.manual_seed(3)
        return build("objective", f"{objective}(num_particles=50)").loss(*scaled, x)

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


@pytest.mark.parametrize("plates", [3, 40])
def test_the_scale_is_the_tensor_itself_or_its_product_with_the_plates(plates):
    """Unscaled sites carry β itself, so that a KL sees one β on both sides without comparing."""
    value = torch.tensor(0.5)

    def in_plate(x):
        with pyro.plate("data", plates, subsample=torch.arange(3), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    site = poutine.trace(Beta(value)(in_plate)).get_trace(torch.zeros(3)).nodes["z"]
    if plates == 3:
        assert site["scale"] is value
    torch.testing.assert_close(site["scale"], torch.tensor(0.5 * plates / 3))


def test_beta_passes_gradients_to_itself():
    """A learned β: dL/dβ = −KL for the closed form."""
    value = torch.tensor(0.5, requires_grad=True)
    scale = Beta(value)
    x = torch.tensor([-1.0, 0.5])
    loss = build("objective", "closed_form").differentiable_loss(scale(model), scale(guide), x)
    (slope,) = torch.autograd.grad(loss, value)
    kl = torch.distributions.kl_divergence(dist.Normal(0.4, 0.7), dist.Normal(0.0, 1.0))
    torch.testing.assert_close(slope, 2 * kl)


@pytest.mark.parametrize("name", names("objective"))
def test_every_objective_takes_a_beta_or_says_that_it_has_none(name):
    scale, x = Beta(torch.tensor(0.5)), torch.tensor([0.3, 1.0])
    objective = build("objective", name)
    if name in ("reweighted_wake_sleep", "tvo"):
        with pytest.raises(InputError, match=f"^{name} has no β"):
            objective.loss(scale(model), scale(guide), x)
    else:
        assert torch.tensor(objective.loss(scale(model), scale(guide), x)).isfinite()


def test_warm_up_reaches_beta_and_stays():
    values = [linear_warm_up(step, 10, beta=0.5) for step in range(15)]
    assert values == pytest.approx([0.05 * (s + 1) for s in range(10)] + [0.5] * 5)
