"""Monotone maps of single numbers: affine, and splines."""

__all__ = ["Elementwise", "Affine", "Spline"]

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_vae.flows.step import bounded


class Elementwise(Protocol):
    """A monotone map of numbers with ``params`` ``[*, params_per_dim]``, the identity at zero."""

    params_per_dim: int

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log dy/dx, each ``[*]``."""

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log dy/dx, each ``[*]``."""


class Affine:
    """y = m + eˢ x, with |s| < 3."""

    params_per_dim = 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log dy/dx = s."""
        m, s = params[..., 0], bounded(params[..., 1])
        y = m + s.exp() * x
        return y, s.expand_as(y)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log dy/dx = s."""
        m, s = params[..., 0], bounded(params[..., 1])
        x = (y - m) * (-s).exp()
        return x, s.expand_as(x)


class Spline:
    """A monotone rational-quadratic spline on [−bound, bound], the identity outside.

    References:
        Neural Spline Flows (Durkan et al., 2019), equations 4–8
        https://arxiv.org/abs/1906.04032
    """

    # The least width and height of a bin, in uniform bins. Durkan et al. take 1e-3 of the
    # interval; slopes between two knots then fall to 1e-7, where float32 cannot be inverted.
    FLOOR = 0.1

    def __init__(self, bins: int, bound: float):
        self.bins = bins
        self.bound = bound
        self.params_per_dim = 3 * bins - 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log dy/dx."""
        inner = x.clamp(-self.bound, self.bound)
        (x0, y0, d0), (x1, y1, d1) = self._bin(inner, params, 0)
        h, s = y1 - y0, (y1 - y0) / (x1 - x0)
        theta = (inner - x0) / (x1 - x0)
        # y = y0 + h (s θ² + d0 θ(1−θ)) / (s + (d1 + d0 − 2s) θ(1−θ))
        mix = theta * (1 - theta)
        y = y0 + h * (s * theta**2 + d0 * mix) / (s + (d1 + d0 - 2 * s) * mix)
        inside = x.abs() <= self.bound
        log_slope = torch.where(inside, _log_slope(theta, s, d0, d1), 0.0)
        return torch.where(inside, y, x), log_slope

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log dy/dx."""
        inner = y.clamp(-self.bound, self.bound)
        (x0, y0, d0), (x1, y1, d1) = self._bin(inner, params, 1)
        h, s = y1 - y0, (y1 - y0) / (x1 - x0)
        # a θ² + b θ + c = 0
        shared = (inner - y0) * (d1 + d0 - 2 * s)
        a, b, c = h * (s - d0) + shared, h * d0 - shared, s * (y0 - inner)
        root = (b**2 - 4 * a * c).clamp(min=torch.finfo(y.dtype).tiny).sqrt()
        theta = 2 * c / (-b - root)
        inside = y.abs() <= self.bound
        log_slope = torch.where(inside, _log_slope(theta, s, d0, d1), 0.0)
        return torch.where(inside, x0 + theta * (x1 - x0), y), log_slope

    def _bin(self, value: Tensor, params: Tensor, axis: int) -> tuple[tuple[Tensor, ...], ...]:
        """The knots (x, y, slope) to the left and right of a value on the x (0) or y (1) axis."""
        sizes = [self.bins, self.bins, self.bins - 1]
        widths, heights, slopes = bounded(params).exp().split(sizes, dim=-1)
        # At both ends, where the identity begins, the slope is 1.
        axes = [self._knots(widths), self._knots(heights), pad(slopes, (1, 1), value=1.0)]
        knots = torch.stack(axes, dim=-2)
        index = (value.unsqueeze(-1) >= knots[..., axis, 1:-1]).sum(-1)
        knots = knots.expand(*index.shape, -1, -1)
        index = index[..., None, None].expand(*index.shape, 3, 1)
        left, right = knots.gather(-1, index), knots.gather(-1, index + 1)
        return left.squeeze(-1).unbind(-1), right.squeeze(-1).unbind(-1)

    def _knots(self, lengths: Tensor) -> Tensor:
        # Not softmax, which torch computes three times slower over so few: lengths are bounded.
        shares = lengths * ((1 - self.FLOOR) / lengths.sum(-1, keepdim=True))
        shares = shares + self.FLOOR / self.bins
        inner = self.bound * (2 * shares[..., :-1].cumsum(-1) - 1)
        return pad(pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)


def _log_slope(theta: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """log s² (d1 θ² + 2s θ(1−θ) + d0 (1−θ)²) / (s + (d1 + d0 − 2s) θ(1−θ))²."""
    mix = theta * (1 - theta)
    numerator = d1 * theta**2 + 2 * s * mix + d0 * (1 - theta) ** 2
    return numerator.log() + 2 * (s / (s + (d1 + d0 - 2 * s) * mix)).log()
