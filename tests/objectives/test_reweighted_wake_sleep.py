"""Reweighted wake-sleep: each of its three updates against the divergence it lowers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.annealing import Beta
from pyro_vae.errors import InputError
from pyro_vae.objectives._per_datum import Estimate
from pyro_vae.objectives._weights import log_mean_exp
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.objectives.reweighted_wake_sleep import ReweightedWakeSleep

GRID = torch.linspace(-9, 9, 3001, dtype=torch.float64)[:, None, None]


class BatchNormalized(ReweightedWakeSleep):
    """One set of weights for the whole batch, as Pyro's: the likeliest datum takes all."""

    def estimate(self, call):
        guide, model = call.fixed_runs()
        terms = call.terms(guide, model)
        log_weight = terms.log_weight.detach()
        K, B = log_weight.shape
        weights = B * log_weight.flatten().softmax(0).reshape(K, B)
        surrogate = (weights * (terms.log_joint + terms.log_guide)).sum(0)
        return Estimate(log_mean_exp(log_weight), surrogate, terms.factor)


def wake(log_p, log_q):
    """log p(x), whose gradient p climbs, and −KL(p(z|x) ‖ q) up to H(p), which q climbs."""
    return log_p.logsumexp(0) + (log_p.softmax(0).detach() * log_q).sum(0)


def sleep(p, num_data):
    """num_data × E_p[log q(z|x)] in closed form, p held: z − A x − c is normal.

    mean −A b − c, covariance (I − A W)(I − A W)ᵀ + σ² A Aᵀ
    """
    W, b, sigma = (p[name].detach() for name in ("W", "b", "log_sigma"))
    A, c = p["A"], p["c"]
    rest = torch.eye(len(c), dtype=W.dtype) - A @ W
    second = (A @ b + c) ** 2 + (rest @ rest.T + (2 * sigma).exp() * A @ A.T).diagonal()
    log_q = -0.5 * second / (2 * p["log_s"]).exp() - p["log_s"] - 0.5 * math.log(2 * math.pi)
    return num_data * log_q.sum()


@pytest.mark.parametrize("insomnia", [1.0, 0.3, 0.0])
def test_updates_against_exact_gradients(
    one_latent, two_data, linear_pair, near_posterior, densities, exact_gradient, deviations,
    insomnia,
):  # fmt: skip
    """K = 4,000 × 100 repeats: every parameter within four standard errors, seed 1.

    The wake part is exact on a grid, the sleep part in closed form.
    """
    parameters = near_posterior(one_latent, 0.5, 1.5)

    def awake(p):
        return wake(*densities(p, two_data, GRID)).sum()

    _, waking = exact_gradient(awake, parameters)
    _, sleeping = exact_gradient(lambda p: sleep(p, 2), parameters)
    pair = linear_pair(parameters, two_data, 100)
    exact = {
        name: insomnia * g + (1 - insomnia) * sleeping[name] if name in pair.guide_names else g
        for name, g in waking.items()
    }
    gradients = pair.gradients(ReweightedWakeSleep(4000, insomnia), seed=1)
    found = deviations(gradients, exact)
    assert max(found.values()) < 4, found
    upside_down = {n: -g if n in pair.guide_names else g for n, g in exact.items()}
    assert max(deviations(gradients, upside_down).values()) > 6


@pytest.mark.parametrize("insomnia", [0.0, 0.6])
def test_sleep_of_two_latents_without_bias(
    linear_gaussian, linear_pair, near_posterior, exact_gradient, deviations, insomnia
):
    """K = 1: (1 − insomnia) ∇ E_p[log q(z|x)], the wake part zero on average; 40,000 repeats."""
    parameters = near_posterior(linear_gaussian, 0.5, 1.5)
    x = linear_gaussian.simulate(1, seed=0)
    _, exact = exact_gradient(lambda p: (1 - insomnia) * sleep(p, 1), parameters)
    pair = linear_pair(parameters, x, 40_000)
    gradients = pair.gradients(ReweightedWakeSleep(1, insomnia), seed=2)
    found = deviations({n: gradients[n] for n in pair.guide_names}, exact)
    assert max(found.values()) < 4, found
    wrong = {name: 1.1 * g + 0.05 for name, g in exact.items()}
    assert max(deviations({n: gradients[n] for n in pair.guide_names}, wrong).values()) > 6


def test_p_climbs_iwae(linear_gaussian, linear_pair, near_posterior):
    """On the same noise p's gradient and the value are IWAE's; q's is another."""
    x = linear_gaussian.simulate(3, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.5, 1.3), x, 40)
    ours = pair.gradients(ReweightedWakeSleep(6), seed=0)
    iwae = pair.gradients(IWAE(6), seed=0)
    for name in pair.model_names:
        torch.testing.assert_close(ours[name], iwae[name])
    for name in pair.guide_names:
        assert not torch.allclose(ours[name], iwae[name], atol=1e-2)
    torch.testing.assert_close(
        pair.values(ReweightedWakeSleep(6), seed=0), pair.values(IWAE(6), seed=0)
    )


def test_weights_a_datum(
    one_latent, two_data, linear_pair, near_posterior, densities, exact_gradient, deviations
):
    """Two data whose log p(x) differ by 25 nats; weights over the whole batch are rejected."""
    x = two_data * torch.tensor([[1.0], [6.0]], dtype=torch.float64)
    log_px = one_latent.log_evidence(x)
    assert float(log_px[0] - log_px[1]) > 20
    parameters = near_posterior(one_latent, 0.3, 1.5)
    _, exact = exact_gradient(lambda p: wake(*densities(p, x, GRID)).sum(), parameters)
    pair = linear_pair(parameters, x, 1)
    chosen = ReweightedWakeSleep(2000), BatchNormalized(2000)
    ours, batch = (
        [pair.gradients(objective, seed) for seed in range(60)] for objective in chosen
    )  # one pair a call: a batch of two data

    def joined(rows):
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    found = deviations(joined(ours), exact)
    assert max(found.values()) < 4, found
    assert max(deviations(joined(batch), exact).values()) > 6


def test_no_gradient_leaks_through_an_earlier_latent(chain, held_too_late, deviation):
    """A guide z₁ → z₂, K = 4,000 × 100 repeats, seed 6; holding z too late is rejected."""
    exact = chain.exact_gradient(wake)
    assert deviation(chain.gradients(ReweightedWakeSleep(4000), seed=6), exact) < 4
    assert deviation(chain.gradients(held_too_late(ReweightedWakeSleep(4000)), seed=6), exact) > 6


@pytest.mark.parametrize("insomnia", [1.0, 0.5])
def test_same_noise_same_value(keeps_one_value, insomnia):
    keeps_one_value(ReweightedWakeSleep(4, insomnia))


def test_trains_in_svi(lands_on_the_posterior):
    lands_on_the_posterior(ReweightedWakeSleep(20), within=0.05)


def test_no_beta(linear_gaussian, linear_pair, near_posterior):
    pair = linear_pair(near_posterior(linear_gaussian), linear_gaussian.b[None], 2)
    beta = Beta(torch.tensor(0.5, dtype=torch.float64))
    with pytest.raises(InputError, match="reweighted_wake_sleep has no β"):
        ReweightedWakeSleep().loss(beta(pair.model), beta(pair.guide), pair.x)


def test_sleep_needs_a_model_of_its_first_argument(linear_gaussian, two_data):
    """Two observed sites: there is no one x to give the guide."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(z, 2.0).to_event(1), obs=-x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2, dtype=torch.float64))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc + 0 * x, 1.0).to_event(1))

    assert math.isfinite(ReweightedWakeSleep(3).loss_and_grads(model, guide, two_data))
    with pytest.raises(InputError, match="must observe exactly the first argument"):
        ReweightedWakeSleep(3, insomnia=0.5).loss_and_grads(model, guide, two_data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_particles": 0}, "num_particles must be a whole number ≥ 1"),
        (
            {"insomnia": 1.5},
            "reweighted_wake_sleep: insomnia must be a number from 0 to 1, got 1.5",
        ),
        ({"insomnia": -0.1}, "insomnia must be a number from 0 to 1"),
        ({"insomnia": math.nan}, "insomnia must be a number from 0 to 1"),
        ({"insomnia": "none"}, "insomnia must be a number from 0 to 1"),
        ({"insomnia": True}, "insomnia must be a number from 0 to 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        ReweightedWakeSleep(**arguments)
    assert "\n" not in str(error.value)
