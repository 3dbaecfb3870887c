"""TraceMeanField_ELBO by name: an analytic KL and a Monte Carlo reconstruction."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.errors import InputError
from pyro_vae.objectives.trace import Trace
from pyro_vae.objectives.trace_mean_field import TraceMeanField


def test_kl_is_analytic(linear_gaussian):
    """On given noise: the reconstruction at z, minus ½ Σ (μ² + σ² − 1 − log σ²)."""
    x = linear_gaussian.simulate(6, seed=1)
    parameters = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)
    loc, scale = parameters(x)
    torch.manual_seed(0)
    loss = TraceMeanField().loss(linear_gaussian.model, linear_gaussian.guide_of(parameters), x)
    torch.manual_seed(0)
    z = dist.Normal(loc, scale).to_event(1).rsample()
    fit = dist.Normal(z @ linear_gaussian.W.T + linear_gaussian.b, 0.8).log_prob(x).sum()
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum()
    assert -loss == pytest.approx(float(fit - kl), rel=1e-10)


def test_mean_is_the_exact_elbo(linear_gaussian):
    """Within four standard errors over 400 draws of 100 particles, seed 0."""
    x = linear_gaussian.simulate(6, seed=1)
    parameters = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)
    guide = linear_gaussian.guide_of(parameters)
    torch.manual_seed(0)
    objective = TraceMeanField(100)
    losses = torch.tensor([objective.loss(linear_gaussian.model, guide, x) for _ in range(400)])
    error = float(losses.std()) / 20
    exact = float(linear_gaussian.elbo(x, *parameters(x)).sum())
    assert abs(float(losses.mean()) + exact) < 4 * error


def normal(name, loc, scale):
    return pyro.sample(name, dist.Normal(loc, scale, validate_args=False).to_event(1))


def chain(x):
    """p(z2) = N(0, 1), p(z1|z2) = N(z2, ¼), p(x|z1) = N(z1, 1)."""
    zero = torch.zeros(len(x), 1, dtype=x.dtype)
    with pyro.plate("data", len(x), dim=-1):
        z1 = normal("z1", normal("z2", zero, 1.0), 0.5)
        pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)


def top_down(x):
    with pyro.plate("data", len(x), dim=-1):
        normal("z1", 0.3 * normal("z2", 0.4 * x, 0.8), 0.6)


def bottom_up(x):
    with pyro.plate("data", len(x), dim=-1):
        normal("z2", 0.3 * normal("z1", 0.4 * x, 0.8), 0.6)


def test_latents_in_the_models_order_agree_with_monte_carlo():
    """Within four standard errors of Trace_ELBO over 400 draws of 200 particles, seed 0."""
    x = torch.tensor([[1.3]], dtype=torch.float64)
    means, errors = [], []
    for objective in (TraceMeanField(200), Trace(200)):
        torch.manual_seed(0)
        losses = torch.tensor([objective.loss(chain, top_down, x) for _ in range(400)])
        means.append(float(losses.mean()))
        errors.append(float(losses.std()) / 20)
    assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)


def test_latents_in_another_order_are_refused():
    """Pyro's analytic KL would take z2 as independent of the z1 that it was drawn from."""
    x = torch.tensor([[1.3]], dtype=torch.float64)
    with pytest.raises(InputError, match="draws its latents in another order than the model"):
        TraceMeanField().loss(chain, bottom_up, x)


def unscaled(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.4 * x, 0.8))


def one_latent(wrap):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = wrap(pyro.sample)("z", dist.Normal(0 * x, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def test_pyro_reads_the_guides_scale_alone_and_ours_refuses():
    """β on the model's latent: Pyro's loss does not change by it; ours names the site."""
    x = torch.tensor([0.3, -1.1], dtype=torch.float64)
    losses = []
    for beta in (1.0, 5.0):
        torch.manual_seed(0)
        own = pyro.infer.TraceMeanField_ELBO()
        losses.append(own.loss(one_latent(poutine.scale(scale=beta)), unscaled, x))
    assert losses[0] == losses[1]
    with pytest.raises(InputError, match="'z' has another scale in the guide than in the model"):
        TraceMeanField().loss(one_latent(poutine.scale(scale=5.0)), unscaled, x)


def test_pyro_reads_the_guides_mask_alone_and_ours_refuses():
    x = torch.tensor([0.3, -1.1], dtype=torch.float64)
    masked = one_latent(poutine.mask(mask=torch.tensor([True, False])))
    own, losses = pyro.infer.TraceMeanField_ELBO(), []
    for model in (masked, one_latent(lambda sample: sample)):
        torch.manual_seed(0)
        losses.append(own.loss(model, unscaled, x))
    assert losses[0] == losses[1]
    with pytest.raises(InputError, match="'z' has another mask in the guide than in the model"):
        TraceMeanField().loss(masked, unscaled, x)


@pytest.mark.parametrize("validate", [True, False])
def test_a_discrete_latent_is_refused_with_and_without_validation(validate):
    """Without validation Pyro takes a gradient that misses the score term."""

    def discrete(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Poisson(1.0 + 0 * x))

    def counted(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Poisson(2.0 + 0 * x))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with (
        pyro.validation_enabled(validate),
        pytest.raises(InputError, match=r"^trace_mean_field: latent site 'z' of the g") as error,
    ):
        TraceMeanField().loss_and_grads(counted, discrete, torch.zeros(2))
    assert "\n" not in str(error.value)


def test_says_which_kl_is_analytic():
    """Normal against Normal, and Laplace against a mixture."""

    def model(x):
        mixture = dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-1.0, 1.0]), torch.ones(2))
        )
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0 * x, 1.0)) + pyro.sample("w", mixture)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0 * x, 1.0))
            pyro.sample("w", dist.Laplace(0 * x, 1.0))

    known = TraceMeanField().analytic_kl(model, guide, torch.zeros(3))
    assert known == {"z": True, "w": False}


def test_bad_number_of_particles():
    with pytest.raises(InputError, match="num_particles must be a whole number"):
        TraceMeanField(0)
