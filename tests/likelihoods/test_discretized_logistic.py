"""Discretized logistic: the edge levels take the tails, so that masses sum to one."""

import math
import time

import numpy as np
import pytest
import torch
from pyro_vae.models.likelihoods.discretized_logistic import DiscretizedLogistic
from scipy import stats

from pyro_vae.errors import InputError

MODES = ["per_pixel", "learned", 0.05, 3.0]
every_mode = pytest.mark.parametrize("scale", MODES)


def draw(scale, size, dim, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(size, dim, generator=generator, dtype=dtype)


def log_masses(p, n):
    """log P at every level, ``[n, *batch_shape]``."""
    x = torch.arange(n, dtype=p.mean.dtype)
    return p.log_prob(x.view(-1, *[1] * len(p.batch_shape)))


@every_mode
@pytest.mark.parametrize("n", [2, 17, 256])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_masses_sum_to_one(scale, n, size):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        likelihood = DiscretizedLogistic(n, scale=scale).to(dtype)
        params = draw(size, 50, likelihood.params_per_dim, dtype)
        total = log_masses(likelihood(params), n).detach().exp().sum(0)
        assert ((total - 1).abs() < tolerance).all()


@pytest.mark.parametrize("n", [2, 17, 256])
@pytest.mark.parametrize(("loc", "scale"), [(0.4, 0.07), (-0.2, 0.3), (1.1, 0.02), (0.0, 2.0)])
def test_against_scipy(n, loc, scale):
    """Differences of the distribution function at (x ± ½ − μ)/s, tails for the edges."""
    p = DiscretizedLogistic(n, scale=scale)(torch.tensor([[loc]], dtype=torch.float64))
    q = stats.logistic(loc * (n - 1), scale * (n - 1))
    edges = np.arange(n - 1) + 0.5
    upper, lower = np.append(q.cdf(edges), 1.0), np.append(0.0, q.cdf(edges))
    # Where both are near 1 the difference of the survival functions keeps its digits.
    survived = np.append(1.0, q.sf(edges)) - np.append(q.sf(edges), 0.0)
    mass = np.where(lower > 0.5, survived, upper - lower)
    got = log_masses(p, n).squeeze(-1)
    np.testing.assert_allclose(got.exp(), mass, rtol=1e-9, atol=1e-300)
    x = np.arange(n)
    mean = (mass * x).sum()
    assert float(p.mean) == pytest.approx(mean, rel=1e-9)
    assert float(p.variance) == pytest.approx((mass * (x - mean) ** 2).sum(), rel=1e-9)


@every_mode
def test_mean_and_variance_by_enumeration(scale):
    likelihood = DiscretizedLogistic(17, scale=scale).double()
    p = likelihood(draw(1.0, 20, likelihood.params_per_dim))
    mass, x = log_masses(p, 17).exp(), torch.arange(17).double().unsqueeze(-1)
    mean = (mass * x).sum(0)
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, (mass * x**2).sum(0) - mean**2)


def test_moments_are_the_same_in_many_blocks(monkeypatch):
    p = DiscretizedLogistic(256)(draw(1.0, 20, 2))
    mean, variance = p.mean, p.variance
    monkeypatch.setattr("pyro_vae.models.likelihoods._levels.BLOCK", 60)
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, variance)


def test_per_pixel_takes_location_and_scale_from_the_decoder():
    """Location and scale in units of the interval: 0.02/(n−1) + softplus(output)."""
    params = draw(1.0, 6, 2)
    scale = 0.02 / 16 + torch.log1p(params[:, 1].exp())
    p = DiscretizedLogistic(17)(params)
    for i in range(6):
        q = DiscretizedLogistic(17, scale=float(scale[i]))(params[i : i + 1, :1])
        torch.testing.assert_close(log_masses(p, 17)[:, i], log_masses(q, 17)[:, 0])


def test_learned_is_one_scale_for_all_dimensions():
    likelihood = DiscretizedLogistic(256, scale="learned").double()
    (parameter,) = likelihood.parameters()
    assert (parameter.numel(), likelihood.params_per_dim) == (1, 1)
    params = draw(1.0, 6, 1)
    fixed = DiscretizedLogistic(256, scale=0.1)(params)
    with torch.no_grad():
        masses = log_masses(likelihood(params), 256)
        torch.testing.assert_close(masses, log_masses(fixed, 256), rtol=1e-5, atol=1e-5)
    likelihood(params).log_prob(torch.ones(6)).sum().backward()
    assert parameter.grad != 0
    assert not hasattr(likelihood, "learns_scale")  # a mass is bounded: atoms do no harm


def test_a_constant_level_can_have_all_the_mass():
    """1 − 2 σ(−25) at the smallest scale, 0.02 level."""
    params = torch.tensor([[100 / 255, -1e4]], dtype=torch.float64)
    log_prob = DiscretizedLogistic(256)(params).log_prob(torch.tensor([100.0]))
    assert float(log_prob) == pytest.approx(-2 * math.exp(-25), rel=1e-3)


@pytest.mark.parametrize(("loc", "scale"), [(0.3, 0.1), (-0.1, 0.4), (0.95, 0.02)])
def test_samples_have_the_masses(loc, scale):
    """χ² at false-alarm rate 1e-6, seed 0; levels of fewer than 5 expected are pooled."""
    torch.manual_seed(0)
    p = DiscretizedLogistic(17, scale=scale)(torch.tensor([[loc]]))
    draws = p.sample((100_000,))
    assert draws.dtype == torch.float32
    counts = torch.bincount(draws.squeeze().long(), minlength=17).double()
    expected = 100_000 * log_masses(p, 17).exp().double().squeeze()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    statistic = float(((counts - expected) ** 2 / expected.clamp(min=1)).sum())
    assert statistic < stats.chi2.isf(1e-6, len(counts) - 1)


@every_mode
@pytest.mark.parametrize("output", [-1e4, 1e4])
def test_float32_stays_finite_at_large_outputs(scale, output):
    likelihood = DiscretizedLogistic(256, scale=scale)
    for sign in (1, -1):  # location and scale at the same end, and at opposite ends
        params = torch.tensor([[output, sign * output]])[:, : likelihood.params_per_dim]
        params = params.expand(3, -1).clone().requires_grad_()
        p = likelihood(params)
        log_prob = p.log_prob(torch.tensor([0.0, 128.0, 255.0]))
        log_prob.sum().backward()
        assert torch.isfinite(log_prob).all()
        assert all(torch.isfinite(t.grad).all() for t in (params, *likelihood.parameters()))
        assert torch.isfinite(p.mean + p.variance).all()
        assert p.support.check(p.sample((100,))).all()


@every_mode
def test_gradient_against_finite_differences(scale):
    likelihood = DiscretizedLogistic(17, scale=scale).double()
    params = draw(1.0, 4, likelihood.params_per_dim).requires_grad_()
    x = torch.tensor([0.0, 7.0, 15.0, 16.0]).double()
    assert torch.autograd.gradcheck(lambda params: likelihood(params).log_prob(x), params)


@every_mode
@pytest.mark.parametrize("n", [2, 17, 256])
def test_params_at_the_mean(scale, n):
    likelihood = DiscretizedLogistic(n, scale=scale).double()
    unit = torch.tensor([[0.0, 0.3, 0.5], [0.7, 0.9, 1.0]], dtype=torch.float64)
    params = likelihood.params_at(unit * (n - 1))
    assert params.shape == (2, 3, likelihood.params_per_dim)
    assert not params.requires_grad
    mean = likelihood(params).mean.detach()
    torch.testing.assert_close(mean, unit.clamp(0.01, 0.99) * (n - 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", ["per_pixel", 1e-6, 0.05])
def test_params_at_the_mean_of_many_levels_is_quick_and_within_half_a_level(scale):
    """The sum over 65,536 levels at each of the steps would be 3e9 terms."""
    likelihood = DiscretizedLogistic(65_536, scale)
    unit = torch.linspace(0.02, 0.98, 784)
    start = time.perf_counter()
    params = likelihood.params_at(unit * 65_535)
    assert time.perf_counter() - start < 0.5
    mean = likelihood.double()(params[::157].double()).mean
    torch.testing.assert_close(mean, unit[::157].double() * 65_535, rtol=0, atol=0.55)


def test_shapes():
    p = DiscretizedLogistic(5, scale="learned")(torch.zeros(7, 3, 1))
    assert (p.batch_shape, p.event_shape) == ((7, 3), ())
    assert p.to_event(1).expand((2, 7)).sample((4,)).shape == (4, 2, 7, 3)
    assert p.log_prob(torch.zeros(4, 7, 3)).shape == (4, 7, 3)
    assert p.expand((6, 7, 3)).mean.shape == p.expand((6, 7, 3)).variance.shape == (6, 7, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_levels": None}, "needs data with levels, such as values=levels"),
     ({"num_levels": 1}, "num_levels must be an integer above 1, got 1"),
     ({"scale": -1}, "scale must be positive and in .*, got -1"),
     ({"scale": math.nan}, "scale must be positive and in .*, got nan"),
     ({"scale": "learn"}, "scale must be a positive number, .* got 'learn'"),
     ({"scale": 1e-5}, r"scale must be positive and in \[7.84.*e-05, 1e\+12\], got 1e-05")],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=f"^discretized_logistic: {message}$"):
        DiscretizedLogistic(**{"num_levels": 256} | arguments)
