"""What R draws of a gradient say: noise, signal-to-noise, and the distance from a reference."""

__all__ = ["noise", "error"]

import math
from typing import Any

from scipy.special import stdtrit  # type: ignore[import-untyped]
from torch import Tensor

from pyro_vae.comparison._moments import Average, distance

ROUNDING = 64 * 2.0**-23  # a spread this small against the mean is float32's
FALSE_ALARM = 0.05
RESOLVED = 3.0  # standard errors of |reference| above 0


def noise(average: Average) -> dict[str, Any]:
    """Return ``variance``, ``signal_to_noise`` and ``noise_floor``, as of a ``GradientRow``."""
    return {
        "variance": float(average.variance.sum()),
        "signal_to_noise": _signal_to_noise(average.mean, average.variance),
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


def _signal_to_noise(mean: Tensor, variance: Tensor) -> float | None:
    noisy = variance > (ROUNDING * mean).square()
    if not bool(noisy.any()):
        return None
    return float((mean[noisy].abs() / variance[noisy].sqrt()).mean())


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
    variance = average.error + reference.error
    count = int((variance > 0).sum())
    if count == 0:
        return {"largest_z": None, "largest_z_limit": None}
    difference = (average.mean - reference.mean).abs()
    z = difference / (variance + rounding**2).sqrt()
    degrees = min(a.num_draws - 1 for a in (average, reference) if a.num_draws > 1)
    limit = -float(stdtrit(degrees, FALSE_ALARM / (2 * count)))
    return {"largest_z": float(z.nan_to_num(0.0).max()), "largest_z_limit": limit}
