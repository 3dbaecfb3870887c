"""The bound against K: each point unbiased, all from the same draws."""

import itertools
import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation import log_likelihood
from pyro_vae.evaluation.bound_curve import CurveStream, MeanCurve, curve_sizes


def _groups(log_weights: Tensor, k: int) -> Tensor:
    """log p̂_k of consecutive groups, ``[K // k, B]``."""
    groups = log_weights[: len(log_weights) // k * k].unflatten(0, (-1, k))
    return groups.logsumexp(1) - math.log(k)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 64, 250])
@pytest.mark.parametrize("block", [1, 5, 128])
def test_streamed_points_are_means_over_groups(num_samples, block):
    generator = torch.Generator().manual_seed(0)
    log_weights = 3 * torch.randn(num_samples, 4, generator=generator, dtype=torch.float64)
    stream = CurveStream(num_samples, 4, torch.device("cpu"))
    for part in log_weights.split(block):
        stream.update(part)
    whole = _groups(log_weights, num_samples)[0]
    bound, error = stream.result(whole)
    sizes = curve_sizes(num_samples)
    assert sizes == sorted({*(2**i for i in range(8) if 2**i < num_samples), num_samples})
    assert bound.shape == error.shape == (len(sizes), 4)
    for k, values, errors in zip(sizes, bound, error, strict=True):
        groups = _groups(log_weights, k)
        torch.testing.assert_close(values, groups.mean(0), rtol=0, atol=1e-12)
        if len(groups) == 1:
            assert errors.isnan().all()
        else:
            expected = groups.std(0) / math.sqrt(len(groups))
            torch.testing.assert_close(errors, expected, rtol=1e-9, atol=1e-12)


def test_starts_at_the_elbo_ends_at_the_estimate(linear_gaussian):
    x = linear_gaussian.simulate(120, seed=0)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.5))
    for num_samples in (256, 300):
        result = log_likelihood(linear_gaussian.model, guide, x, num_samples, seed=1)
        curve = result.curve
        assert torch.equal(curve.bound[0], result.elbo)
        assert torch.equal(curve.standard_error[0], result.elbo_standard_error)
        assert torch.equal(curve.bound[-1], result.log_px)
        assert curve.standard_error[-1].isnan().all()
        torch.testing.assert_close(curve.mean, curve.bound.mean(1))
        combined = np.sqrt((curve.standard_error.numpy() ** 2).sum(1)) / 120
        np.testing.assert_allclose(curve.mean_standard_error, combined)


def _mean_of_two(v: float, shift: float, points: int = 200) -> float:
    """E log ½ (w₁ + w₂) − log p(x) for q = N(m + shift sd, v var), by Gauss-Hermite quadrature.

    In units of the posterior, z = shift + √v u: log w = ½ (u² − z²) + ½ log v + log p(x).
    """
    u, weight = np.polynomial.hermite_e.hermegauss(points)
    log_w = 0.5 * (u**2 - (shift + math.sqrt(v) * u) ** 2) + 0.5 * math.log(v)
    pairs = np.logaddexp(log_w[:, None], log_w[None, :]) - math.log(2)
    weight = weight / weight.sum()
    return float(weight @ pairs @ weight)


def test_two_draws_by_quadrature():
    """One latent: E log p̂_2 within four standard errors at 10,000 pairs a datum, seed 2."""
    a, sigma, v, shift = 1.3, 0.7, 0.6, 0.7
    precision = 1 + a**2 / sigma**2

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(a * z, sigma), obs=x)

    def guide(x: Tensor) -> None:
        sd = precision**-0.5
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(a * x / sigma**2 / precision + shift * sd, sd * v**0.5))

    x = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)
    curve = log_likelihood(model, guide, x, 20_000, seed=2).curve
    evidence = dist.Normal(0.0, math.hypot(a, sigma)).log_prob(x)
    assert curve.num_samples[:2] == [1, 2]
    exact = _mean_of_two(v, shift)
    assert exact == pytest.approx(_mean_of_two(v, shift, 150), abs=1e-4)
    z_scores = (curve.bound[1] - evidence - exact) / curve.standard_error[1]
    assert curve.standard_error[1].max() < 0.012
    assert z_scores.abs().max() < 4
    # −KL(q ‖ p) = ½ (log v + 1 − v − shift²)
    elbo = 0.5 * (math.log(v) + 1 - v - shift**2)
    z_scores = (curve.bound[0] - evidence - elbo) / curve.standard_error[0]
    assert z_scores.abs().max() < 4
    assert exact - elbo > 10 * float(curve.standard_error[1].max())


def test_rises_with_k(linear_gaussian):
    """Over 300 data every doubling gains, up to the evidence; seed 3."""
    x = linear_gaussian.simulate(300, seed=1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=1.0, variance=1.3))
    curve = log_likelihood(linear_gaussian.model, guide, x, 512, seed=3).curve
    evidence = float(linear_gaussian.log_evidence(x).mean())
    rise = curve.mean.diff()
    assert (rise[:5] > 3 * curve.mean_standard_error[:5]).all()
    for (low, low_error), (high, high_error) in itertools.pairwise(
        zip(curve.mean, curve.mean_standard_error.nan_to_num(0.005), strict=True)
    ):
        assert high - low > -3 * math.hypot(low_error, high_error)
    assert abs(float(curve.mean[-1]) - evidence) < 0.03


def test_weight_of_zero_makes_the_first_points_minus_infinite():
    stream = CurveStream(8, 1, torch.device("cpu"))
    log_weights = torch.tensor([[0.0], [-math.inf]] * 4, dtype=torch.float64)
    stream.update(log_weights)
    bound, _ = stream.result(_groups(log_weights, 8)[0])
    torch.testing.assert_close(
        bound[:, 0], torch.tensor([-math.inf, *[math.log(0.5)] * 3], dtype=torch.float64)
    )


def test_the_mean_curve_is_recorded(linear_gaussian):
    x = torch.randn(6, linear_gaussian.W.shape[0], dtype=torch.float64)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(0.5, 2.0))
    curve = log_likelihood(linear_gaussian.model, guide, x, 12, seed=3).curve
    mean = curve.over_data()
    known = json.loads(json.dumps(mean.to_json(), allow_nan=False))
    found = MeanCurve.from_json(known)
    assert found.num_samples == curve.num_samples == [1, 2, 4, 8, 12]
    assert found.mean == curve.bound.mean(1).tolist()
    assert found.count == 6
    errors = torch.tensor(found.mean_standard_error)
    torch.testing.assert_close(errors.double(), curve.mean_standard_error, equal_nan=True)
    assert errors[-1].isnan()
    for damage in ({}, known | {"mean": [1.0]}, known | {"count": "many"}, known | {"mean": None}):
        with pytest.raises(InputError, match="bound curve"):
            MeanCurve.from_json(damage)
