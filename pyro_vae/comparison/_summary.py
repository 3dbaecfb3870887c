"""What R draws of a gradient say: noise, signal-to-noise, and the distance from a reference."""

__all__ = ["noise", "error"]

import math
from typing import Any

from torch import Tensor

from pyro_vae.comparison._moments import Average, distance

ROUNDING = 64 * 2.0**-23  # a spread this small against the mean is float32's
FALSE_ALARM = 0.05
RESOLVED = 3.0  # standard errors of |reference| above 0


def noise(average: Average) -> dict[str, Any]:
    """Return ``variance``, ``signal_to_noise``, their errors and the floor of a ``GradientRow``."""
    return {
        "variance": float(average.variance.sum()),
        "variance_standard_error": average.total_variance_error,
        **_signal_to_noise(average),
        "noise_floor": noise_floor(average.num_draws),
    }


def error(average: Average, reference: Average, rounding: float) -> dict[str, Any]:
    """Return ``bias`` and ``largest_z`` with what they are read against.

    Arguments:
        average, reference: of independent draws.
        rounding: the error of each number of the means that no repetition removes.
    """
    return {**_bias(average, reference, rounding), **_largest_z(average, reference, rounding)}


def noise_floor(num_draws: int) -> float:
    """E |ḡ|/s of R draws of N(0, σ²): E |t_ν|/√R = 2 √(ν/R)/((ν − 1) B(½, ν/2)), ν = R − 1.

    √(2/(πR)) for large R.

    Example:
        >>> round(noise_floor(10_000), 5), round(math.sqrt(2 / (math.pi * 10_000)), 5)
        (0.00798, 0.00798)
    """
    nu = num_draws - 1
    log_beta = math.lgamma(0.5) + math.lgamma(nu / 2) - math.lgamma((nu + 1) / 2)
    return 2 * math.sqrt(nu / num_draws) / (nu - 1) * math.exp(-log_beta)


def _signal_to_noise(average: Average) -> dict[str, float | None]:
    """Of all numbers with noise; the error of it is that of those in the sample."""
    noisy = _is_noisy(average.mean, average.variance)
    value = _mean_ratio(average.mean, average.variance, noisy) if bool(noisy.any()) else None
    sampled = noisy[average.sample.chosen]
    spread = None
    if bool(sampled.any()):
        spread = average.sample.jackknife(lambda mean, var: _mean_ratio(mean, var, sampled))
    return {
        "signal_to_noise": None if value is None else float(value),
        "signal_to_noise_standard_error": spread,
    }


def _mean_ratio(mean: Tensor, variance: Tensor, noisy: Tensor) -> Tensor:
    """The mean over ``noisy`` of |mean|/sd, 0 where a block took all the noise with it."""
    ratio = mean.abs() / variance.sqrt()
    return ratio.where(_is_noisy(mean, variance), 0.0)[noisy].mean()


def _is_noisy(mean: Tensor, variance: Tensor) -> Tensor:
    return variance > (ROUNDING * mean).square()


def _bias(average: Average, reference: Average, rounding: float) -> dict[str, float | None]:
    size = distance(reference, Average.zero_like(reference))
    slack = rounding * math.sqrt(len(reference.mean))
    if size.value <= max(RESOLVED * size.standard_error, slack):
        return {"bias": None, "bias_standard_error": None}
    off = distance(average, reference)
    return {
        "bias": off.value / size.value,
        "bias_standard_error": (off.standard_error + slack) / size.value,
    }


def _largest_z(average: Average, reference: Average, rounding: float) -> dict[str, float | None]:
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    variance = average.error + reference.error
    count = int((variance > 0).sum())
    if count == 0:
        return {"largest_z": None, "largest_z_limit": None}
    difference = (average.mean - reference.mean).abs()
    z = difference / (variance + rounding**2).sqrt()
    degrees = min(a.num_draws - 1 for a in (average, reference) if a.num_draws > 1)
    limit = -float(stdtrit(degrees, FALSE_ALARM / (2 * count)))
    return {"largest_z": float(z.nan_to_num(0.0).max()), "largest_z_limit": limit}
