"""Beta-binomial levels: scipy's mass, and the limits of a large and a small concentration."""

import math

import numpy as np
import pytest
import torch
from pyro_vae.models.likelihoods.beta_binomial import BetaBinomial
from pyro_vae.models.likelihoods.binomial import Binomial
from scipy import stats

from pyro_vae.errors import InputError


def draw(scale, size, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(size, 2, generator=generator, dtype=dtype)


def log_masses(p, n):
    """log P at every level, ``[n, *batch_shape]``."""
    x = torch.arange(n, dtype=p.mean.dtype)
    return p.log_prob(x.view(-1, *[1] * len(p.batch_shape)))


def concentration(raw):
    """κ = 2 exp(c tanh(raw/c)), c = log 10⁶."""
    c = math.log(1e6)
    return 2 * math.exp(c * math.tanh(raw / c))


@pytest.mark.parametrize("n", [2, 17, 256])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_masses_sum_to_one(n, scale):
    params = draw(scale, 50)
    # log Γ(κ) ≤ 2.7e7 at κ = 2e6, and float64 has 16 digits.
    tolerance = torch.where(params[:, 1] < 5, 1e-12, 2e-8)
    total = log_masses(BetaBinomial(n)(params), n).exp().sum(0)
    assert ((total - 1).abs() < tolerance).all()
    total = log_masses(BetaBinomial(n)(params.float()), n).exp().sum(0)
    assert ((total - 1).abs() < 1e-5).all()


@pytest.mark.parametrize("n", [2, 17, 256])
@pytest.mark.parametrize("logit", [-4.0, 0.0, 1.5])
@pytest.mark.parametrize("raw", [-3.0, 0.0, 4.0])
def test_against_scipy(n, logit, raw):
    p = BetaBinomial(n)(torch.tensor([[logit, raw]], dtype=torch.float64))
    mean, total = 1 / (1 + math.exp(-logit)), concentration(raw)
    q = stats.betabinom(n - 1, total * mean, total * (1 - mean))
    expected = q.logpmf(np.arange(n))[:, None]
    np.testing.assert_allclose(log_masses(p, n), expected, rtol=1e-8, atol=1e-8)
    assert float(p.mean) == pytest.approx(q.mean(), rel=1e-10)
    assert float(p.variance) == pytest.approx(q.var(), rel=1e-10)


def test_float32_is_float64_to_a_ten_thousandth_at_any_concentration():
    raw = torch.tensor([-8.0, -2.0, 0.0, 4.0, 9.0, 20.0])
    params = torch.stack([torch.linspace(-2, 2, 6), raw], dim=-1)
    single = log_masses(BetaBinomial(256)(params), 256)
    double = log_masses(BetaBinomial(256)(params.double()), 256)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-4)


def test_large_concentration_is_the_binomial():
    """log P = that of the binomial + O(n²/κ), κ = 2e6."""
    logits = torch.tensor([[-1.0], [0.0], [3.0]], dtype=torch.float64)
    params = torch.cat([logits, torch.full_like(logits, 1e4)], dim=-1)
    limit, p = Binomial(17)(logits), BetaBinomial(17)(params)
    torch.testing.assert_close(log_masses(p, 17), log_masses(limit, 17), rtol=0, atol=4e-3)
    torch.testing.assert_close(p.variance, limit.variance, rtol=1e-5, atol=0)


def test_small_concentration_is_all_or_nothing():
    """P(n − 1) → σ(l), P(0) → σ(−l)."""
    p = BetaBinomial(17)(torch.tensor([[0.7, -1e4]], dtype=torch.float64))
    mass = log_masses(p, 17).exp().squeeze(-1)
    assert float(mass[-1]) == pytest.approx(1 / (1 + math.exp(-0.7)), rel=1e-4)
    assert float(mass[0] + mass[-1]) == pytest.approx(1, abs=1e-4)


def test_outputs_of_zero_are_uniform():
    log_mass = log_masses(BetaBinomial(9)(torch.zeros(1, 2).double()), 9)
    torch.testing.assert_close(log_mass, torch.full((9, 1), -math.log(9)).double())


@pytest.mark.parametrize("raw", [-6.0, 0.0, 5.0, 1e4])
def test_samples_have_the_masses(raw):
    """χ² at false-alarm rate 1e-6, seed 0; levels of fewer than 5 expected are pooled."""
    torch.manual_seed(0)
    p = BetaBinomial(17)(torch.tensor([[0.4, raw]]))
    draws = p.sample((100_000,))
    assert draws.dtype == torch.float32
    counts = torch.bincount(draws.squeeze().long(), minlength=17).double()
    expected = 100_000 * log_masses(p, 17).exp().double().squeeze()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    statistic = float(((counts - expected) ** 2 / expected.clamp(min=1)).sum())
    assert statistic < stats.chi2.isf(1e-6, len(counts) - 1)


@pytest.mark.parametrize("logit", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("raw", [-1e4, 0.0, 1e4])
def test_float32_stays_finite_at_large_outputs(logit, raw):
    params = torch.tensor([[logit, raw]]).expand(3, 2).clone().requires_grad_()
    p = BetaBinomial(256)(params)
    log_prob = p.log_prob(torch.tensor([0.0, 128.0, 255.0]))
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(params.grad).all()
    assert p.support.check(p.sample((100,))).all()


def test_gradient_against_finite_differences():
    params, x = draw(2.0, 3).requires_grad_(), torch.tensor([0.0, 7.0, 16.0]).double()
    assert torch.autograd.gradcheck(lambda params: BetaBinomial(17)(params).log_prob(x), params)


@pytest.mark.parametrize("n", [2, 17, 256])
def test_params_at_the_mean(n):
    unit = torch.tensor([[0.0, 0.3, 0.5], [0.7, 0.9, 1.0]], dtype=torch.float64)
    params = BetaBinomial(n).params_at(unit * (n - 1))
    assert params.shape == (2, 3, 2)
    torch.testing.assert_close(BetaBinomial(n)(params).mean, unit.clamp(0.01, 0.99) * (n - 1))


def test_shapes():
    p = BetaBinomial(5)(torch.zeros(7, 3, 2))
    assert (p.batch_shape, p.event_shape) == ((7, 3), ())
    assert p.to_event(1).expand((2, 7)).sample((4,)).shape == (4, 2, 7, 3)
    assert p.log_prob(torch.zeros(4, 7, 3)).shape == (4, 7, 3)
    assert p.expand((6, 7, 3)).mean.shape == p.expand((6, 7, 3)).variance.shape == (6, 7, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_levels": None}, "needs data with levels, such as values=levels"),
     ({"num_levels": 1}, "num_levels must be an integer above 1, got 1")],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=f"^beta_binomial: {message}$"):
        BetaBinomial(**arguments)
