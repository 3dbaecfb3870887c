"""The importance-weighted bound against the number of samples, all from the same draws."""

__all__ = ["BoundCurve", "MeanCurve"]

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation._moments import Moments


@dataclass(frozen=True)
class MeanCurve:
    """A ``BoundCurve``'s mean over data: what a record keeps of it."""

    num_samples: list[int]
    """k, J of them."""
    mean: list[float]
    """Nats per datum, ``[J]``."""
    mean_standard_error: list[float]
    """Over draws, the data held fixed, ``[J]``; NaN where it is not known."""
    count: int
    """How many data."""

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, None for what is not known."""
        errors = [error if math.isfinite(error) else None for error in self.mean_standard_error]
        return dataclasses.asdict(self) | {"mean_standard_error": errors}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "MeanCurve":
        """Return what ``to_json`` made the mapping of.

        Raises:
            InputError: it lacks a field, or has lists of other lengths.
        """
        try:
            curve = cls(
                [int(k) for k in mapping["num_samples"]],
                [float(value) for value in mapping["mean"]],
                [math.nan if e is None else float(e) for e in mapping["mean_standard_error"]],
                int(mapping["count"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError("expected a bound curve of this version") from None
        sizes = {len(curve.num_samples), len(curve.mean), len(curve.mean_standard_error)}
        if len(sizes) > 1 or any(error < 0 for error in curve.mean_standard_error):
            raise InputError("expected a bound curve of this version")
        return curve


@dataclass(frozen=True)
class BoundCurve:
    """E log p̂_k for k = 1, 2, 4, … and K, estimated from K draws a datum; nats.

    bound_k = (1/G) Σ_g log (1/k) Σ_{j in group g} w_j,  G = ⌊K/k⌋ groups of k draws in a row

    Each is unbiased for E log p̂_k, which rises from the ELBO, k = 1, towards log p(x).
    Points of one curve share their draws: their errors are not independent.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016), theorem 1
        https://arxiv.org/abs/1509.00519
    """

    num_samples: list[int]
    """k, J of them."""
    bound: Tensor
    """``[J, B]``, float64; the last is log p̂_K."""
    standard_error: Tensor
    """Over groups, ``[J, B]``; NaN for one group, from the largest k that fits twice on."""

    @property
    def mean(self) -> Tensor:
        """The mean of each point over data, ``[J]``."""
        return self.bound.mean(1)

    @property
    def mean_standard_error(self) -> Tensor:
        """Of ``mean`` over draws, the data held fixed, ``[J]``; NaN for one group a datum."""
        return self.standard_error.square().sum(1).sqrt() / self.bound.shape[1]

    @property
    def count(self) -> int:
        """How many data."""
        return self.bound.shape[1]

    def over_data(self) -> MeanCurve:
        """Return the mean over data with its errors, as plain numbers."""
        errors = self.mean_standard_error.tolist()
        return MeanCurve(list(self.num_samples), self.mean.tolist(), errors, self.count)


class CurveStream:
    """What the curve of one block of data accumulates over its samples, in float64.

    A level ℓ holds groups of 2^ℓ draws; two in a row make one of the next level.
    """

    def __init__(self, num_samples: int, size: int, device: torch.device):
        levels = num_samples.bit_length()
        self.num_samples = num_samples
        self.moments = [Moments(size, device) for _ in range(levels)]
        self.pending = [torch.empty(0, size, dtype=torch.float64, device=device)] * levels

    def update(self, log_weights: Tensor) -> None:
        """Take in some more draws, ``[s, B]``, in their order."""
        log_sums = log_weights
        for level, moments in enumerate(self.moments):
            moments.update(log_sums - level * math.log(2))
            waiting = torch.cat([self.pending[level], log_sums])
            paired = len(waiting) // 2 * 2
            self.pending[level] = waiting[paired:].clone()
            if paired == 0:
                return
            log_sums = torch.logaddexp(waiting[0:paired:2], waiting[1:paired:2])

    def result(self, log_px: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds and errors, each ``[J, B]``; ``log_px`` is the last point."""
        sizes = curve_sizes(self.num_samples)
        levels = self.moments[: len(sizes) - 1]
        unknown = torch.full_like(log_px, math.nan)
        bounds = [*(m.mean for m in levels), log_px]
        errors = [*(m.standard_error() for m in levels), unknown]
        return torch.stack(bounds), torch.stack(errors)


def curve_sizes(num_samples: int) -> list[int]:
    """Return 1, 2, 4, … and K."""
    return [2**level for level in range((num_samples - 1).bit_length())] + [num_samples]
