"""The beta likelihood by mean and concentration, against scipy up to κ at the floor."""

import math

import numpy as np
import pytest
import torch
from pyro_vae.models.likelihoods.beta import Beta
from scipy import stats
from scipy.special import expit

from pyro_vae.errors import InputError

MODES = [8.0, "learned", "per_pixel"]
FLOOR = 0.1 / 256
CASES = [(0.0, 2.0), (-1.0, 0.05), (3.0, 0.3), (0.5, 30.0), (-4.0, 2e3), (1.0, 1e5), (2.0, 1.6e6)]


def make(**kwargs):
    return Beta(**kwargs).double()


def concentrations(logit, kappa):
    """a = m κ and b = (1 − m) κ, m within 1e-6 of 0 and 1."""
    return tuple((1e-6 + (1 - 2e-6) * expit(sign * logit)) * kappa for sign in (1, -1))


def some_x(a, b):
    return torch.from_numpy(stats.beta(a, b).ppf([0.01, 0.3, 0.5, 0.8, 0.99]).clip(1e-30, 1 - 1e-9))


@pytest.mark.parametrize(
    ("logit", "kappa"), [(0.0, 4.0), (-3.0, 1.2), (-1.0, 30.0), (2.0, 1e4), (0.0, 1.6e6)]
)
def test_integrates_to_one(logit, kappa):
    """By the trapezoidal rule in t = logit x, dx = x (1 − x) dt."""
    a, b = concentrations(logit, kappa)
    center, width = math.log(a / b), math.sqrt(1 / a + 1 / b)  # to 1e-16 of either tail
    low = center - max(12 * width, 38 / a)
    high = min(center + max(12 * width, 38 / b), 36.0)  # 1 − x is 0 beyond
    t = torch.linspace(low, high, 40_001, dtype=torch.float64)
    x = t.sigmoid()
    p = make(concentration=kappa)(torch.tensor([[logit]], dtype=torch.float64))
    density = (p.log_prob(x) + x.log() + torch.nn.functional.logsigmoid(-t)).exp()
    assert float(torch.trapezoid(density, t)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("logit", "kappa"), CASES)
def test_is_scipys(logit, kappa):
    """In float32 too: a float32 log B(a, b) would be off by 3 nats at κ = 1.6e6."""
    a, b = concentrations(logit, kappa)
    x = some_x(a, b)
    p = make(concentration=kappa)(torch.full((5, 1), logit, dtype=torch.float64))
    np.testing.assert_allclose(p.log_prob(x), stats.beta(a, b).logpdf(x.numpy()), rtol=1e-8)
    np.testing.assert_allclose(p.mean, a / (a + b), rtol=1e-14)
    np.testing.assert_allclose(p.variance, stats.beta(a, b).var(), rtol=1e-9)
    x = x.float().clamp(max=1 - 2.0**-21)
    p = Beta(concentration=kappa)(torch.full((5, 1), logit))
    assert p.log_prob(x).dtype == p.mean.dtype == torch.float32
    expected = stats.beta(a, b).logpdf(x.numpy().astype(float))
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("output", [-5.0, 0.0, 1.5])
@pytest.mark.parametrize("mode", ["learned", "per_pixel"])
def test_concentration_from_the_standard_deviation_at_one_half(mode, output):
    likelihood = make(concentration=mode, num_levels=256)
    params = torch.zeros(1, likelihood.params_per_dim, dtype=torch.float64)
    if mode == "learned":
        likelihood.raw_sd.data.fill_(output)
    else:
        params[0, 1] = output
    sd = FLOOR + (0.4995 - FLOOR) * expit(output)
    assert float(likelihood(params).variance.detach()) == pytest.approx(sd**2)


@pytest.mark.parametrize(("num_levels", "floor"), [(256, 0.1 / 256), (17, 0.1 / 17), (None, 1e-3)])
def test_standard_deviation_stays_above_a_tenth_of_a_level(num_levels, floor):
    likelihood = make(concentration="per_pixel", num_levels=num_levels)
    p = likelihood(torch.tensor([[0.0, -1e4]], dtype=torch.float64))
    assert float(p.stddev) == pytest.approx(floor)
    assert float(p.concentration1 + p.concentration0) == pytest.approx(0.25 / floor**2 - 1)


def test_concentrations_stay_away_from_zero():
    outputs = torch.tensor([[m, s] for m in (-1e4, 1e4) for s in (-1e4, 1e4)])
    p = Beta(num_levels=256)(outputs)
    assert float(torch.stack([p.concentration1, p.concentration0]).min()) > 1e-9


@pytest.mark.parametrize("mode", MODES)
def test_float32_stays_finite_at_large_outputs(mode):
    likelihood = Beta(concentration=mode, num_levels=256)
    x = torch.tensor([1e-9, 2.0**-30, 1e-3, 0.5, 1 - 2.0**-21])
    for mean in (-1e4, 1e4):
        for other in (-1e4, 1e4):
            outputs = torch.tensor([mean, other])[: likelihood.params_per_dim]
            params = outputs.repeat(5, 1).requires_grad_()
            log_prob = likelihood(params).log_prob(x)
            assert torch.isfinite(log_prob).all()
            log_prob.sum().backward()
            assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("output", [-6.0, 0.0, 3.0])
def test_gradients_are_differences(output):
    likelihood = make(concentration="per_pixel")
    x = torch.tensor([0.1, 0.6], dtype=torch.float64)
    params = torch.tensor([[0.3, output], [-2.0, output]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: likelihood(r).log_prob(x), params)
    assert torch.autograd.gradgradcheck(lambda r: likelihood(r).log_prob(x), params)


@pytest.mark.parametrize(("logit", "kappa"), CASES)
def test_samples_follow_the_density(logit, kappa):
    """Kolmogorov and Smirnov, 20,000 draws, seed 0; false alarms at 1e-5 a case."""
    torch.manual_seed(0)
    a, b = concentrations(logit, kappa)
    p = make(concentration=kappa)(torch.tensor([[logit]], dtype=torch.float64))
    x = p.sample((20_000,)).squeeze(-1)
    assert Beta.support.check(x).all()
    if b > 0.5:  # else many draws round to the last number below 1
        assert stats.kstest(x.numpy(), stats.beta(a, b).cdf).pvalue > 1e-5
    above = float((x > 0.5).double().mean())
    expected = stats.beta(a, b).sf(0.5)
    assert abs(above - expected) <= 4.5 * math.sqrt(expected * (1 - expected) / 20_000)


def test_samples_of_almost_an_atom_at_each_end():
    """At κ = 0.002 both gammas underflow; P(x > ½) is m to 0.1 %. Seed 0, 4.5 standard errors."""
    torch.manual_seed(0)
    x = Beta(concentration=0.002)(torch.full((20_000, 1), -0.8)).sample()
    assert x.dtype == torch.float32
    assert Beta.support.check(x).all()
    m = expit(-0.8)
    assert abs(float((x > 0.5).float().mean()) - m) < 4.5 * math.sqrt(m * (1 - m) / 20_000) + 1e-3
    assert float(((x > 0.01) & (x < 0.99)).float().mean()) < 0.01


def test_gradient_of_samples():
    """E dx/dlogit = m (1 − m); 20,000 draws, seed 0, 4.5 standard errors."""
    torch.manual_seed(0)
    logit = torch.full((20_000, 1), 0.7, dtype=torch.float64, requires_grad=True)
    make(concentration=3.0)(logit).rsample().sum().backward()
    m = expit(0.7)
    error = float(logit.grad.std()) / math.sqrt(20_000)
    assert abs(float(logit.grad.mean()) - m * (1 - m)) < 4.5 * error


@pytest.mark.parametrize("mode", MODES)
def test_params_at_the_mean(mode):
    likelihood = make(concentration=mode)
    mean = torch.tensor([[0.0, 0.3], [0.5, 1.0]]).double()
    params = likelihood.params_at(mean)
    assert params.shape == (2, 2, likelihood.params_per_dim)
    p = likelihood(params)
    torch.testing.assert_close(p.mean, mean.clamp(0.01, 0.99), rtol=1e-12, atol=0)
    kappa = (p.concentration1 + p.concentration0).detach()
    assert float(kappa.max()) == pytest.approx(8 if mode == 8.0 else 3, rel=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_shapes_survive_expand_and_to_event(mode):
    likelihood = Beta(concentration=mode)
    p = likelihood(torch.zeros(3, 4, likelihood.params_per_dim)).expand((2, 3, 4)).to_event(2)
    assert (p.batch_shape, p.event_shape) == ((2,), (3, 4))
    assert p.sample((5,)).shape == (5, 2, 3, 4)
    assert p.log_prob(torch.full((3, 4), 0.5)).shape == (2,)
    assert p.mean.shape == p.variance.shape == (2, 3, 4)
    assert likelihood.learns_scale == isinstance(mode, str)


def test_the_smallest_floor_still_has_a_density():
    """sd = 1e-6 at ½: a normal's; log B(a, b) at κ = 2.5e11 errs by less than 0.01."""
    p = make(floor=1e-6)(torch.tensor([[0.0, -1e4]]).double())
    log_prob = float(p.log_prob(torch.tensor([0.5]).double()))
    assert log_prob == pytest.approx(-math.log(1e-6 * math.sqrt(2 * math.pi)), abs=0.01)
    # The default floor of very many levels is no smaller.
    assert make(num_levels=10**6).floor == 1e-6


def test_support_excludes_both_ends():
    x = torch.tensor([-1.0, 0.0, 1e-30, 0.5, 1 - 2.0**-21, 1.0, math.nan])
    assert Beta.support.check(x).tolist() == [False, False, True, True, True, False, False]
    assert str(Beta.support) == "0 < x < 1"


@pytest.mark.parametrize(
    "arguments",
    [{"concentration": 0.0}, {"concentration": -1.0}, {"concentration": math.inf},
     {"concentration": math.nan}, {"concentration": 2e9}, {"concentration": "learn"},
     {"concentration": None}, {"concentration": True}, {"floor": 0.0}, {"floor": 0.25},
     {"floor": math.nan}, {"floor": "small"}, {"floor": 1e-10}, {"floor": 1e39}],
)  # fmt: skip
def test_bad_arguments(arguments):
    with pytest.raises(InputError, match=r"^beta: .*got"):
        Beta(**arguments)
