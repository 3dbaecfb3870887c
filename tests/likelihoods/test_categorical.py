"""Categorical: masses sum to one, any shape of mass, levels as floats."""

import math

import pytest
import torch
from pyro_vae.models.likelihoods.categorical import Categorical
from scipy import stats

from pyro_vae.errors import InputError


def draw(scale, n, size, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(size, n, generator=generator, dtype=dtype)


def log_masses(p, n):
    """log P at every level, ``[n, *batch_shape]``."""
    x = torch.arange(n, dtype=p.mean.dtype)
    return p.log_prob(x.view(-1, *[1] * len(p.batch_shape)))


@pytest.mark.parametrize("n", [2, 17, 256])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_masses_sum_to_one(n, scale):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        total = log_masses(Categorical(n)(draw(scale, n, 50, dtype)), n).exp().sum(0)
        assert ((total - 1).abs() < tolerance).all()


def test_log_mass_is_the_formula():
    """l_x − log Σ_k exp l_k."""
    logits = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    total = math.log(math.exp(0.5) + math.exp(-1.0) + math.exp(2.0))
    for x, logit in enumerate([0.5, -1.0, 2.0]):
        log_prob = Categorical(3)(logits).log_prob(torch.tensor([float(x)]))
        assert float(log_prob) == pytest.approx(logit - total, abs=1e-12)


def test_mean_and_variance_by_enumeration():
    p = Categorical(17)(draw(2.0, 17, 20))
    mass, x = log_masses(p, 17).exp(), torch.arange(17).double().unsqueeze(-1)
    mean = (mass * x).sum(0)
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, (mass * x**2).sum(0) - mean**2)


def test_samples_have_the_masses():
    """χ² at false-alarm rate 1e-6, seed 0."""
    torch.manual_seed(0)
    p = Categorical(8)(draw(1.0, 8, 1, torch.float32))
    draws = p.sample((100_000,))
    assert draws.dtype == torch.float32
    counts = torch.bincount(draws.squeeze().long(), minlength=8)
    expected = 100_000 * log_masses(p, 8).exp().squeeze().double()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < stats.chi2.isf(1e-6, 7)


def test_float32_stays_finite_at_large_outputs():
    signs = torch.tensor([[1.0, -1, -1], [-1, 1, 1], [1, 1, 1], [-1, -1, -1]])
    params = (1e4 * signs).requires_grad_()
    for x in (0.0, 1.0, 2.0):
        log_prob = Categorical(3)(params).log_prob(torch.full((4,), x))
        (gradient,) = torch.autograd.grad(log_prob.sum(), params)
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(gradient).all()


def test_gradient_against_finite_differences():
    params = draw(2.0, 5, 4).requires_grad_()
    x = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda params: Categorical(5)(params).log_prob(x), params)


@pytest.mark.parametrize("n", [2, 17, 256])
def test_params_at_the_mean(n):
    likelihood = Categorical(n)
    unit = torch.tensor([[0.0, 0.3, 0.5], [0.7, 0.9, 1.0]], dtype=torch.float64)
    params = likelihood.params_at(unit * (n - 1))
    assert params.shape == (2, 3, n)
    torch.testing.assert_close(likelihood(params).mean, unit.clamp(0.01, 0.99) * (n - 1))


def test_params_at_the_middle_are_uniform():
    params = Categorical(9).params_at(torch.tensor([4.0]).double())
    torch.testing.assert_close(params, torch.full((1, 9), -math.log(9)).double())


def test_shapes():
    p = Categorical(5)(torch.zeros(7, 3, 5))
    assert (p.batch_shape, p.event_shape) == ((7, 3), ())
    assert p.to_event(1).expand((2, 7)).sample((4,)).shape == (4, 2, 7, 3)
    assert p.log_prob(torch.zeros(4, 7, 3)).shape == (4, 7, 3)
    assert p.expand((6, 7, 3)).mean.shape == p.expand((6, 7, 3)).variance.shape == (6, 7, 3)
    assert p.support.check(torch.tensor([0.0, 4.0, 5.0, 0.5])).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_levels": None}, "needs data with levels, such as values=levels"),
     ({"num_levels": 1}, "num_levels must be an integer above 1, got 1")],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=f"^categorical: {message}$"):
        Categorical(**arguments)
