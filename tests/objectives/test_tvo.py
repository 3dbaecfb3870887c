"""The thermodynamic objective: its place between the bounds, its gradient on a grid."""

import pytest
import torch

from pyro_vae.annealing import Beta
from pyro_vae.errors import InputError
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.objectives.trace import Trace
from pyro_vae.objectives.tvo import TVO

GRID = torch.linspace(-9, 9, 3001, dtype=torch.float64)[:, None, None]


def riemann(objective, log_p, log_q):
    """Σ_i Δ_i E_{π_βi}[log w] with π_β ∝ q^(1−β) p^β on a grid, its first dimension."""
    betas = objective.betas.double()
    nodes = betas[:-1] if objective.side == "left" else betas[1:]
    total = 0.0
    for width, beta in zip(betas.diff(), nodes, strict=True):
        density = (beta * log_p + (1 - beta) * log_q).softmax(0)
        total = total + width * (density * (log_p - log_q)).sum(0)
    return total


@pytest.mark.parametrize("partitions", [1, 2, 5, 40])
def test_between_the_elbo_and_iwae_on_the_same_draws(
    linear_gaussian, linear_pair, near_posterior, partitions
):
    """On every draw: ELBO ≤ left ≤ IWAE-K ≤ right."""
    x = linear_gaussian.simulate(4, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.8, 1.6), x, 500)
    elbo = pair.values(TVO(1, 8), seed=0)
    left = pair.values(TVO(partitions, 8), seed=0)
    iwae = pair.values(IWAE(8), seed=0)
    right = pair.values(TVO(partitions, 8, side="right"), seed=0)
    assert (elbo <= left + 1e-9).all()
    assert (left < iwae).all()
    assert (iwae < right).all()
    if partitions > 1:
        assert (elbo < left).all()
    torch.manual_seed(0)
    loss = Trace(8).loss(pair.model, pair.guide, pair.x)
    assert -float(elbo.sum()) == pytest.approx(loss, rel=1e-12)


def test_left_sums_grow_with_partitions_that_halve(linear_gaussian, linear_pair, near_posterior):
    """β of P partitions are among those of 2 P − 1: geometric from first = r^(P−1) to 1."""
    x = linear_gaussian.simulate(2, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.8, 1.6), x, 200)
    coarse = pair.values(TVO(3, 8, first=0.01), seed=0)
    fine = pair.values(TVO(5, 8, first=0.01), seed=0)
    assert (coarse < fine).all()
    coarse = pair.values(TVO(3, 8, first=0.01, side="right"), seed=0)
    fine = pair.values(TVO(5, 8, first=0.01, side="right"), seed=0)
    assert (coarse > fine).all()


def test_only_the_left_sum_is_a_lower_bound(linear_gaussian, linear_pair, near_posterior):
    """With K large the right sum lies above log p(x) by more than six standard errors, seed 1."""
    x = linear_gaussian.simulate(2, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.8, 1.6), x, 100)
    log_px = linear_gaussian.log_evidence(x)
    assert TVO(3).is_lower_bound
    assert not TVO(3, side="right").is_lower_bound
    for side, sign in (("left", -1), ("right", 1)):
        values = pair.values(TVO(3, 500, side=side), seed=1)
        error = values.std(0) / 10
        assert (sign * (values.mean(0) - log_px) > 6 * error).all()


def test_many_partitions_integrate_to_the_evidence(linear_gaussian, linear_pair, near_posterior):
    """200 partitions, K = 3,000: both sums within 0.02 nats of log p(x), it between them."""
    x = linear_gaussian.simulate(2, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.5, 1.4), x, 5)
    log_px = linear_gaussian.log_evidence(x)
    left, right = (
        pair.values(TVO(200, 3000, first=1e-3, side=side), seed=2).mean(0)
        for side in ("left", "right")
    )
    assert ((left - log_px).abs() < 0.02).all()
    assert ((right - log_px).abs() < 0.02).all()
    assert (left < right).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_value_and_gradient_on_a_grid(
    one_latent, two_data, linear_pair, near_posterior, densities, exact_gradient, deviation,
    deviations, side,
):  # fmt: skip
    """K = 4,000 × 100 repeats: every parameter within four standard errors, seeds 3 and 4."""
    parameters = near_posterior(one_latent, 0.5, 1.5)
    objective = TVO(3, 4000, first=0.2, side=side)

    def exact(p):
        return riemann(objective, *densities(p, two_data, GRID))

    pair = linear_pair(parameters, two_data, 100)
    assert deviation(pair.values(objective, seed=3), exact(parameters)) < 4
    _, gradient = exact_gradient(lambda p: exact(p).sum(), parameters)
    gradients = pair.gradients(objective, seed=4)
    found = deviations(gradients, gradient)
    assert max(found.values()) < 4, found
    _, other = exact_gradient(
        lambda p: riemann(TVO(1), *densities(p, two_data, GRID)).sum(), parameters
    )
    assert max(deviations(gradients, other).values()) > 6


def test_one_partition_of_two_particles_is_unbiased(
    linear_gaussian, linear_pair, near_posterior, exact_elbo, exact_gradient, deviations
):
    """P = 1: the ELBO's score-function gradient, K/(K − 1) and all; 40,000 repeats, seed 5."""
    x = linear_gaussian.simulate(2, seed=2)
    parameters = near_posterior(linear_gaussian, 0.6, 0.7)
    _, exact = exact_gradient(lambda p: exact_elbo(p, x).sum(), parameters)
    gradients = linear_pair(parameters, x, 40_000).gradients(TVO(1, 2), seed=5)
    found = deviations(gradients, exact)
    assert max(found.values()) < 4, found
    uncorrected = {name: g / 2 if name in ("A", "c", "log_s") else g for name, g in exact.items()}
    assert max(deviations(gradients, uncorrected).values()) > 6


def test_no_gradient_leaks_through_an_earlier_latent(chain, held_too_late, deviation):
    """A guide z₁ → z₂, K = 4,000 × 100 repeats, seed 6; holding z too late is rejected."""
    objective = TVO(3, 4000, first=0.2)
    exact = chain.exact_gradient(lambda log_p, log_q: riemann(objective, log_p, log_q))
    assert deviation(chain.gradients(objective, seed=6), exact) < 4
    assert deviation(chain.gradients(held_too_late(objective), seed=6), exact) > 6


@pytest.mark.parametrize("side", ["left", "right"])
def test_same_noise_same_value(keeps_one_value, side):
    keeps_one_value(TVO(4, 5, side=side))


def test_trains_in_svi(lands_on_the_posterior):
    lands_on_the_posterior(TVO(3, 10), within=0.05)


def test_no_beta(linear_gaussian, linear_pair, near_posterior):
    pair = linear_pair(near_posterior(linear_gaussian), linear_gaussian.b[None], 2)
    beta = Beta(torch.tensor(0.5, dtype=torch.float64))
    with pytest.raises(InputError, match="tvo has no β: leave out --beta and --warm-up"):
        TVO().loss(beta(pair.model), beta(pair.guide), pair.x)


def test_betas_grow_geometrically():
    torch.testing.assert_close(TVO(4, first=0.008).betas[1:], torch.tensor([0.008, 0.04, 0.2, 1.0]))
    assert TVO(1).betas.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"partitions": 0}, "tvo: partitions must be a whole number from 1"),
        ({"partitions": 2.0}, "tvo: partitions must be a whole number from 1"),
        ({"num_particles": 1}, "tvo: num_particles must be a whole number from 2"),
        ({"first": 0}, "tvo: first must be positive and in"),
        ({"first": 1.0}, "tvo: first must be positive and in"),
        ({"first": "small"}, "tvo: first must be a positive number, got 'small'"),
        ({"side": "middle"}, "tvo: side must be left or right, got 'middle'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        TVO(**arguments)
    assert "\n" not in str(error.value)
