"""The continuous Bernoulli against 60-digit arithmetic, through l = 0 and at l = ±1e4."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from pyro_vae.models.likelihoods.continuous_bernoulli import (
    ContinuousBernoulli,
    _LogitContinuousBernoulli,
)
from scipy import stats

LOGITS = [0.0, 1e-12, 1e-5, 1e-3, 0.005, 0.3, 0.4999, 0.5, 0.5001, 0.7, 2.0, 16.0, 30.0, 100.0, 1e4]
LOGITS = [*LOGITS, *(-logit for logit in LOGITS[1:])]
XS = [0.0, 1e-3, 0.3, 0.5, 0.75, 1 - 2.0**-21, 1.0]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 2e-15}


def exact(logit):
    """The log-normalizer log((exp l − 1)/l), its slope (the mean) and its curvature (variance)."""
    if logit == 0:
        return Decimal(0), Decimal(1) / 2, Decimal(1) / 12
    with localcontext() as context:
        context.prec = 90
        l = Decimal(logit)  # noqa: E741
        e = l.exp()
        return ((e - 1) / l).ln(), e / (e - 1) - 1 / l, 1 / l**2 - e / (e - 1) ** 2


def exact_log_prob(logit, x):
    with localcontext() as context:
        context.prec = 60
        return float(Decimal(x) * Decimal(logit) - exact(logit)[0])


def make(logit, dtype=torch.float64):
    return ContinuousBernoulli()(torch.tensor([logit], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", LOGITS)
def test_log_prob_is_the_formula(logit, dtype):
    """Within a few roundings of the largest term, a = |l| times the distance to the end."""
    l = torch.tensor(logit, dtype=dtype)  # noqa: E741
    x = torch.tensor(XS, dtype=dtype)
    got = ContinuousBernoulli()(l.reshape(1)).log_prob(x)
    for value, x_d in zip(got.tolist(), x.tolist(), strict=True):
        expected = exact_log_prob(l.item(), x_d)
        assert value == pytest.approx(expected, rel=TOLERANCE[dtype], abs=4 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", LOGITS)
def test_gradient_and_curvature_are_exact(logit, dtype):
    """d/dl log p = x − mean and d²/dl² log p = −variance."""
    l = torch.tensor(logit, dtype=dtype, requires_grad=True)  # noqa: E741
    p = ContinuousBernoulli()(l.reshape(1))
    _, mean, variance = (float(value) for value in exact(l.item()))
    tolerance = TOLERANCE[dtype]
    for x in (0.0, 0.3, 1.0):
        log_prob = p.log_prob(torch.tensor([x], dtype=dtype)).sum()
        (slope,) = torch.autograd.grad(log_prob, l, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, l)
        x_d = torch.tensor(x, dtype=dtype).item()
        assert slope.item() == pytest.approx(x_d - mean, rel=tolerance, abs=4 * tolerance)
        assert curvature.item() == pytest.approx(-variance, rel=0, abs=16 * tolerance)
    assert p.mean.item() == pytest.approx(mean, rel=4 * tolerance)
    # 1/l² − ¼/sinh²(l/2) loses a factor 50 at l = ½
    assert p.variance.item() == pytest.approx(variance, rel=100 * tolerance)
    for moment in (p.mean, p.variance):
        (gradient,) = torch.autograd.grad(moment.sum(), l)
        assert math.isfinite(gradient)


@pytest.mark.parametrize("logit", LOGITS)
def test_integrates_to_one(logit):
    """By Gauss and Legendre, on panels that halve towards both ends."""
    half = 0.5 ** np.arange(40, 0, -1)
    edges = np.concatenate([[0.0], half, 1 - half[-2::-1], [1.0]])
    nodes, weights = np.polynomial.legendre.leggauss(30)
    width = np.diff(edges)[:, None] / 2
    x = edges[:-1, None] + width * (nodes + 1)
    density = make(logit).log_prob(torch.from_numpy(x)).exp().numpy()
    assert float((width * weights * density).sum()) == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("probability", [0.1, 0.499, 0.73])
def test_is_the_density_of_the_paper(probability):
    """C(λ) λˣ (1 − λ)¹⁻ˣ, C(λ) = 2 artanh(1 − 2λ)/(1 − 2λ)."""
    skew = 1 - 2 * probability
    x = torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64)
    expected = probability**x * (1 - probability) ** (1 - x) * 2 * math.atanh(skew) / skew
    density = make(math.log(probability / (1 - probability))).log_prob(x).exp()
    torch.testing.assert_close(density, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [0.0, 0.005, 0.3, -0.3, 8.0, -50.0, 1e4, -1e4])
def test_samples_follow_the_density(logit, dtype):
    """Kolmogorov and Smirnov, 20,000 draws, seed 0; false alarms at 1e-5 a case."""
    torch.manual_seed(0)
    x = make(logit, dtype).sample((20_000,)).squeeze(-1)
    assert x.dtype == dtype
    assert x.min() >= 0
    assert x.max() <= 1
    a = abs(logit) or 1e-9
    distance = (1 - x if logit > 0 else x).double().numpy()
    assert distance.min() < 1e-3 / max(a, 1)  # false alarms at exp(−20)
    p_value = stats.kstest(distance, lambda d: np.expm1(-a * d) / np.expm1(-a)).pvalue
    assert p_value > 1e-5


@pytest.mark.parametrize("logit", [0.0, 0.003, -0.009, 0.011, -0.2, 3.0, -40.0])
def test_gradient_of_samples(logit):
    """d/dl of a draw, against central differences with the same u."""

    def draw(logits):
        torch.manual_seed(0)
        return _LogitContinuousBernoulli(logits).rsample()

    logits = torch.full((50,), logit, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(draw(logits).sum(), logits)
    step = 1e-4
    expected = (draw(logits + step) - draw(logits - step)) / (2 * step)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-6, atol=1e-9)


def test_draws_move_smoothly_from_the_series_to_the_formula():
    for bound in (0.01, -0.01):
        draws = []
        for logit in (bound * (1 - 1e-9), bound * (1 + 1e-9)):
            torch.manual_seed(0)
            logits = torch.full((100,), logit, dtype=torch.float64)
            draws.append(_LogitContinuousBernoulli(logits).sample())
        # 2e-11 · 1/8 for the step, and the first cumulant left out is 0.01⁵/6!/4 at most
        torch.testing.assert_close(*draws, rtol=0, atol=4e-12)


def test_float32_stays_finite_and_exact_at_large_outputs():
    logits = torch.tensor([1e4, -1e4]).repeat_interleave(len(XS)).requires_grad_()
    x = torch.tensor(XS).repeat(2)
    log_prob = ContinuousBernoulli()(logits[:, None]).log_prob(x)
    expected = ContinuousBernoulli()(logits.detach().double()[:, None]).log_prob(x.double())
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-6, atol=1e-5)
    log_prob.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_an_atom_at_an_end_has_no_maximum():
    """log p(0) = log |l| as l → −∞: such data have to be dequantized."""
    assert ContinuousBernoulli().learns_scale
    zero = torch.zeros(1, dtype=torch.float64)
    for logit in (-1e2, -1e3, -1e4):
        assert make(logit).log_prob(zero).item() == pytest.approx(math.log(-logit))


def test_params_at_the_mean():
    mean = torch.tensor([[0.0, 0.3, 0.499999], [0.5, 0.9, 1.0]]).double()
    params = ContinuousBernoulli().params_at(mean)
    assert params.shape == (2, 3, 1)
    got = ContinuousBernoulli()(params).mean
    torch.testing.assert_close(got, mean.clamp(0.01, 0.99), rtol=1e-12, atol=0)
    assert ContinuousBernoulli().params_at(mean.float()).dtype == torch.float32


def test_shapes_survive_expand_and_to_event():
    p = ContinuousBernoulli()(torch.zeros(3, 4, 1)).expand((2, 3, 4)).to_event(2)
    assert (p.batch_shape, p.event_shape) == ((2,), (3, 4))
    assert p.sample((5,)).shape == (5, 2, 3, 4)
    assert p.log_prob(torch.rand(3, 4)).shape == (2,)
    assert p.mean.shape == p.variance.shape == (2, 3, 4)


def test_support_is_the_closed_unit_interval():
    x = torch.tensor([-1e-6, 0.0, 0.5, 1.0, 1 + 1e-6, math.nan])
    assert ContinuousBernoulli.support.check(x).tolist() == [False, True, True, True, False, False]
