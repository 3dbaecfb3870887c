"""The Rényi bound: its order in α, its limits, its mean and gradient by quadrature."""

import math

import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.objectives.renyi import Renyi
from pyro_vae.objectives.trace import Trace

ALPHAS = ("max", -100.0, -2.0, -0.5, 0.0, 0.3, 0.9, 1.0, 1.1, 2.0, 5.0, 100.0)


@pytest.fixture(scope="module")
def pair(linear_gaussian, linear_pair, near_posterior):
    x = linear_gaussian.simulate(4, seed=2)
    return linear_pair(near_posterior(linear_gaussian, 0.5, 1.6), x, 2000)


def test_decreases_in_alpha_on_the_same_draws(pair):
    """Every draw of 8,000 × 6 weights, max first."""
    values = torch.stack([pair.values(Renyi(alpha, 6), seed=0) for alpha in ALPHAS])
    assert (values.diff(dim=0) <= 1e-9).all()
    assert (values.diff(dim=0).mean((1, 2)) < -1e-4).all()


def test_limits(pair):
    """α = 1 is the ELBO, α = 0 IWAE, α → 1 and α → −∞ are continuous, on the same noise."""
    torch.manual_seed(0)
    loss = Trace(6).loss(pair.model, pair.guide, pair.x)
    elbo = pair.values(Renyi(1.0, 6), seed=0)
    assert -float(elbo.sum()) == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(
        pair.values(Renyi(0.0, 6), seed=0), pair.values(IWAE(6), seed=0), rtol=0, atol=1e-12
    )
    for alpha in (1 - 1e-6, 1 + 1e-6):
        close = pair.values(Renyi(alpha, 6), seed=0)
        assert float((close - elbo).abs().max()) < 1e-3
    largest = pair.values(Renyi("max", 6), seed=0)
    gap = largest - pair.values(Renyi(-1e5, 6), seed=0)
    assert (gap >= 0).all()
    assert float(gap.max()) < 1e-4


@pytest.mark.parametrize("alpha", [1 - 1e-6, 1 - 1e-4, 1 + 1e-5])
def test_close_to_one_in_float32(pair, alpha):
    """log-mean-exp of nearly equal numbers, over their difference: no digits are lost."""
    torch.manual_seed(0)
    log_weight = torch.randn(50, 200, dtype=torch.float64) - 80
    exact = (log_weight.mul(1 - alpha).exp().mean(0)).log() / (1 - alpha)
    got = Renyi(alpha, 50)._bound(log_weight.float())
    assert float((got - exact).abs().max()) < 1e-3


def test_which_are_lower_bounds(pair, linear_gaussian, deviation):
    """Means against log p(x): below for α ≥ 0, above beyond six standard errors where marked."""
    log_px = linear_gaussian.log_evidence(pair.x[:4])
    for alpha in ALPHAS:
        objective = Renyi(alpha, 6)
        values = pair.values(objective, seed=1)
        error = values.std(0) / math.sqrt(len(values))
        assert objective.is_lower_bound is (alpha != "max" and alpha >= 0)
        if objective.is_lower_bound:
            assert (values.mean(0) < log_px + 4 * error).all()
        elif alpha != -0.5:
            assert (values.mean(0) > log_px + 6 * error).all()


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0])
def test_value_and_gradient_of_two_particles_by_quadrature(
    one_latent, two_data, linear_pair, near_posterior, mean_of_two, exact_gradient, deviation,
    deviations, alpha,
):  # fmt: skip
    """E L_α and ∂/∂ of every parameter, within four standard errors; 100,000 repeats."""

    def bound(log_w):
        return ((1 - alpha) * log_w).exp().mean(0).log() / (1 - alpha)

    parameters = near_posterior(one_latent, 0.4, 0.7)
    mean = mean_of_two(bound, two_data)
    pair = linear_pair(parameters, two_data, 100_000)
    objective = Renyi(alpha, 2)
    assert deviation(pair.values(objective, seed=2), mean(parameters)) < 4
    _, gradient = exact_gradient(lambda p: mean(p).sum(), parameters)
    gradients = pair.gradients(objective, seed=3)
    found = deviations(gradients, gradient)
    assert max(found.values()) < 4, found
    elbo = mean_of_two(lambda log_w: log_w.mean(0), two_data)
    _, wrong = exact_gradient(lambda p: elbo(p).sum(), parameters)
    assert max(deviations(gradients, wrong).values()) > 6


def test_many_particles_reach_the_renyi_bound(
    one_latent, two_data, linear_pair, near_posterior, densities, deviation
):
    """K = 4,000: L_α = 1/(1 − α) log ∫ q^α p(x, z)^(1−α) dz on a grid, α = ½; seed 4."""
    parameters = near_posterior(one_latent, 0.5, 1.6)
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None, None]
    log_p, log_q = densities(parameters, two_data, z)
    exact = 2 * ((0.5 * log_p + 0.5 * log_q).logsumexp(0) + math.log(18 / 4000))
    values = linear_pair(parameters, two_data, 100).values(Renyi(0.5, 4000), seed=4)
    assert float(values.std(0).max()) / 10 < 2e-3
    assert deviation(values, exact) < 4


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.0, 2.0, "max"])
def test_same_noise_same_value(keeps_one_value, alpha):
    keeps_one_value(Renyi(alpha, 4))


@pytest.mark.parametrize("alpha", [0.5])
def test_trains_in_svi(lands_on_the_posterior, alpha):
    lands_on_the_posterior(Renyi(alpha, 3), within=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": "min"}, "alpha must be a number from -1e.06 to 1e.06, or max, got 'min'"),
        ({"alpha": math.nan}, "alpha must be a number"),
        ({"alpha": math.inf}, "alpha must be a number"),
        ({"alpha": True}, "alpha must be a number"),
        ({"alpha": None}, "alpha must be a number"),
        ({"num_particles": 0}, "num_particles must be a whole number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        Renyi(**arguments)
    assert "\n" not in str(error.value)
