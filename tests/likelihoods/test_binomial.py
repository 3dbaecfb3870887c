"""Binomial levels: scipy's mass, also where probabilities round to 0 or 1."""

import math

import numpy as np
import pytest
import torch
from pyro_vae.models.likelihoods.bernoulli import Bernoulli
from pyro_vae.models.likelihoods.binomial import Binomial
from scipy import stats

from pyro_vae.errors import InputError


def draw(scale, size, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(size, 1, generator=generator, dtype=dtype)


def log_masses(p, n):
    """log P at every level, ``[n, *batch_shape]``."""
    x = torch.arange(n, dtype=p.mean.dtype)
    return p.log_prob(x.view(-1, *[1] * len(p.batch_shape)))


@pytest.mark.parametrize("n", [2, 17, 256])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_masses_sum_to_one(n, scale):
    # In float32, log C(255, x) alone, up to 173, is rounded by up to 8e-6.
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 3e-5 if n == 256 else 1e-5)):
        total = log_masses(Binomial(n)(draw(scale, 50, dtype)), n).exp().sum(0)
        assert ((total - 1).abs() < tolerance).all()


@pytest.mark.parametrize("n", [2, 17, 256])
@pytest.mark.parametrize("logit", [-4.0, 0.0, 1.5])
def test_against_scipy(n, logit):
    p = Binomial(n)(torch.tensor([logit], dtype=torch.float64))
    q = stats.binom(n - 1, 1 / (1 + math.exp(-logit)))
    np.testing.assert_allclose(log_masses(p, n), q.logpmf(np.arange(n)), rtol=1e-9, atol=1e-9)
    assert float(p.mean) == pytest.approx(q.mean(), rel=1e-12)
    assert float(p.variance) == pytest.approx(q.var(), rel=1e-12)


@pytest.mark.parametrize("n", [256, 65_536])
def test_float32_is_float64_rounded(n):
    """Summed over 784 dimensions the error is rounding alone, 1e-6 of the largest terms' result.

    Summed in float32 it is a bias of 0.03 nat at 65,536 levels, most of it of one sign.
    """
    generator = torch.Generator().manual_seed(3)
    logits = (2 * torch.randn(784, 1, generator=generator)).double()
    x = stats.binom(n - 1, torch.sigmoid(logits[:, 0]).numpy()).ppf(0.7)
    expected = Binomial(n)(logits.float().double()).log_prob(torch.from_numpy(x))
    got = Binomial(n)(logits.float()).log_prob(torch.from_numpy(x).float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-7, atol=0)
    q = stats.binom(n - 1, torch.sigmoid(logits[:, 0].float().double()).numpy())
    np.testing.assert_allclose(expected, q.logpmf(x), rtol=1e-8, atol=1e-8)


def test_rare_failures_are_drawn():
    """65,535 flips of failure probability e⁻¹⁷: in float32 all of them would succeed.

    The number of failures in 40,000 draws is Poisson of mean 109; five standard deviations, seed 4.
    """
    torch.manual_seed(4)
    for sign in (-1.0, 1.0):
        draws = Binomial(65_536)(torch.tensor([sign * 17.0])).sample((40_000,))
        assert draws.dtype == torch.float32
        rare = (65_535 - draws if sign > 0 else draws).sum()
        expected = 40_000 * 65_535 * math.exp(-17)
        assert abs(float(rare) - expected) < 5 * math.sqrt(expected)


def test_two_levels_are_the_bernoulli():
    logits, x = draw(3.0, 6), torch.tensor([0.0, 1, 0, 1, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(Binomial(2)(logits).log_prob(x), Bernoulli()(logits).log_prob(x))


def test_samples_have_the_masses():
    """χ² at false-alarm rate 1e-6, seed 0; levels of fewer than 5 expected are pooled."""
    torch.manual_seed(0)
    p = Binomial(17)(torch.tensor([0.4]))
    draws = p.sample((100_000,))
    assert draws.dtype == torch.float32
    counts = torch.bincount(draws.long(), minlength=17).double()
    expected = 100_000 * log_masses(p, 17).exp().double()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < stats.chi2.isf(1e-6, len(counts) - 1)


@pytest.mark.parametrize("output", [-1e4, 1e4])
def test_float32_stays_finite_and_exact_at_large_outputs(output):
    params = torch.full((3, 1), output, requires_grad=True)
    log_prob = Binomial(256)(params).log_prob(torch.tensor([0.0, 128.0, 255.0]))
    log_prob.sum().backward()
    log_choose = math.lgamma(256) - math.lgamma(129) - math.lgamma(128)
    expected = torch.tensor([-255e4, log_choose - 127e4, 0.0])
    if output < 0:
        expected = torch.tensor([0.0, log_choose - 128e4, -255e4])
    torch.testing.assert_close(log_prob, expected)
    assert torch.isfinite(params.grad).all()


def test_gradient_against_finite_differences():
    params, x = draw(2.0, 3).requires_grad_(), torch.tensor([0.0, 7.0, 16.0]).double()
    assert torch.autograd.gradcheck(lambda params: Binomial(17)(params).log_prob(x), params)


@pytest.mark.parametrize("n", [2, 17, 256])
def test_params_at_the_mean(n):
    unit = torch.tensor([[0.0, 0.3, 0.5], [0.7, 0.9, 1.0]], dtype=torch.float64)
    params = Binomial(n).params_at(unit * (n - 1))
    assert params.shape == (2, 3, 1)
    torch.testing.assert_close(Binomial(n)(params).mean, unit.clamp(0.01, 0.99) * (n - 1))


def test_shapes():
    p = Binomial(5)(torch.zeros(7, 3, 1))
    assert (p.batch_shape, p.event_shape) == ((7, 3), ())
    assert p.to_event(1).expand((2, 7)).sample((4,)).shape == (4, 2, 7, 3)
    assert p.log_prob(torch.zeros(4, 7, 3)).shape == (4, 7, 3)
    assert p.expand((6, 7, 3)).mean.shape == p.expand((6, 7, 3)).variance.shape == (6, 7, 3)
    assert Binomial(5).support.check(torch.tensor([0.0, 4.0, 5.0, 0.5])).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_levels": None}, "needs data with levels, such as values=levels"),
     ({"num_levels": 1}, "num_levels must be an integer above 1, got 1")],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=f"^binomial: {message}$"):
        Binomial(**arguments)
