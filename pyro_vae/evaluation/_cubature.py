"""Adaptive integration over ℝ or ℝ², a datum: the rule, which knows of no program."""

__all__ = ["integrate", "Integral", "Integrand", "check_tolerance"]

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation._chunks import default_chunk

FIRST_CELLS = {1: 64, 2: 256}
ORDERS = {1: (5, 7), 2: (3, 4)}  # Gauss–Legendre nodes a side, of the lower and the higher rule
LARGEST_SHARE = 0.02  # of the draws in one of the first cells
LARGEST_RISE = 3.0  # nats by which U exceeds all nodes of a cell that is resolved
SMALLEST_DISTANCE = 1e-15  # of a node from the end of (−1, 1): z stays below 10⁸ scales

Integrand = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(z ``[P, C, D]``, data ``[C]``) → log f ``[P, C]`` and g ``[P, C, M]`` or None, float64.

Column c holds z of the datum whose index stands at c.
"""


@dataclass(frozen=True)
class Integral:
    """∫ f(z) dz and ∫ f g dz / ∫ f dz, a datum, float64."""

    log_integral: Tensor
    """log ∫ f(z) dz, ``[B]``."""
    error: Tensor
    """Of log_integral, in nats, ``[B]``."""
    mean: Tensor
    """∫ f g dz / ∫ f dz, ``[B, M]``."""
    mean_error: Tensor
    """Of the mean, absolute, ``[B, M]``."""
    converged: Tensor
    """Whether all errors are below the tolerance, boolean ``[B]``."""
    evaluations: Tensor
    """The number of z, ``[B]``."""


def integrate(
    integrand: Integrand,
    draws: list[Tensor],
    *,
    tolerance: float,
    max_evaluations: int = 200_000,
    chunk_size: int | None = None,
    controlled: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Integral:
    """Integrate f ≥ 0, and g under f, over all of ℝ or ℝ², adaptively for each datum.

    z_d = m_d + s_d t_d/√(1 − t_d²) maps (−1, 1) onto ℝ, m and s the median and spread of
    the first draws: nothing is cut off, however heavy the tails. Cells of t start
    as a grid over the whole square, split where many draws fall in one. In each, tensor
    Gauss–Legendre rules of two orders estimate the integral; the higher one counts.
    Cells with the largest errors are halved along the side on which log f varies more.

    The error is the sum over all cells of

    - |higher − lower rule|, where log f is resolved;
    - elsewhere the volume times exp(U). U is log f at a node plus what its
      secants, continued, rise beside it, along each axis; log f is resolved where
      U exceeds no node's value by more than 3 nats. So a mode between the nodes counts
      before any node has met it. It covers quadratic and nearly all conic peaks of log f,
      however narrow; what it can miss is a spike beside which another mode takes
      over within two nodes, on a flat background above all. That is why the draws place
      the first cells. A spike which they do not show either is not in the error.

    to which the change of the last refinement, one of all cells that carry mass, and the
    rounding of log f are added. No cell is ever dropped. The largest error is split first, so
    that the search climbs every mode whose bound says that it matters.

    Arguments:
        integrand: log f and g.
        draws: one or more samples ``[N, B, D]`` from what f is made of; the first one
            gives the map.
        tolerance: of log ∫ f dz and of each mean, in nats or g's units.
        max_evaluations: the largest number of z a datum.
        chunk_size: how many z are evaluated at once.
        controlled: whether the means have to reach the tolerance too.
        dtype: what log f was computed in.

    Raises:
        InputError: the draws of a latent are all the same.
    """
    check_tolerance(tolerance, max_evaluations)
    quadrature = _Quadrature(integrand, draws, chunk_size, controlled, dtype)
    return quadrature.run(tolerance, max_evaluations)


class _Cells(NamedTuple):
    """Boxes in t ∈ (−1, 1)^D, with what the rules say of f and g in each, a row a cell."""

    datum: Tensor
    """``[C]``."""
    center: Tensor
    half: Tensor
    """Half the sides, ``[C, D]``."""
    scale: Tensor
    """log (volume · max f), the unit of the following."""
    mass: Tensor
    """The higher rule's ∫ f."""
    gap: Tensor
    """The higher minus the lower rule."""
    bound: Tensor
    """log (volume · exp U) where log f is not resolved, −∞ where it is."""
    axis: Tensor
    """The one to halve."""
    moment: Tensor
    """The higher rule's ∫ f g, ``[C, M]``."""
    moment_gap: Tensor
    low: Tensor
    """The smallest and the largest g at a node with f > 0, ``[C, M]``."""
    high: Tensor
    rounding: Tensor
    """The largest |log f| within 50 nats of the cell's maximum."""

    def where(self, mask: Tensor) -> "_Cells":
        return _Cells(*(field[mask] for field in self))

    def plus(self, other: "_Cells") -> "_Cells":
        return _Cells(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


class _Totals(NamedTuple):
    """Sums over the cells of each datum."""

    log_integral: Tensor
    mean: Tensor
    error: Tensor
    """Relative to the integral, ``[B]``."""
    mean_error: Tensor
    """``[B, M]``."""
    log_errors: Tensor
    """Of each cell, all that counts to the tolerance together, ``[C]``."""


class _Quadrature:
    """The state of one integration."""

    def __init__(
        self,
        integrand: Integrand,
        draws: list[Tensor],
        chunk_size: int | None,
        controlled: bool,
        dtype: torch.dtype,
    ):
        self.integrand, self.controlled = integrand, controlled
        self.epsilon = torch.finfo(dtype).eps
        self.size, self.dim = draws[0].shape[1:]
        self.device = draws[0].device
        self.center, self.spread = _map(draws[0])
        orders = ORDERS[self.dim]
        lower, higher = (_tensor_rule(order, self.dim, self.device) for order in orders)
        self.line = _line_rule(orders[1], self.device)[0]
        self.nodes = torch.cat([higher[0], lower[0]])
        self.higher, self.lower = higher[1], lower[1]
        default = default_chunk(self.device)
        self.cells_at_once = max(1, (chunk_size or default) // len(self.nodes))
        self.draws = [self._to_unit(z) for z in draws]

    def run(self, tolerance: float, max_evaluations: int) -> Integral:
        cells = self._evaluate(*self._first_cells())
        used = len(self.nodes) * cells.datum.bincount(minlength=self.size)
        totals, change = self._totals(cells), torch.full_like(self.center[:, 0], math.inf)
        done = confirmed = torch.zeros_like(change, dtype=torch.bool)
        while True:
            worst = self._worst(totals)
            done = done | (confirmed & (worst + change < tolerance)) | (used >= max_evaluations)
            # Both rules of a cell overlook a kink beside its edge: no error is believed
            # before all cells that carry mass were halved once more.
            confirmed = (worst < tolerance) & ~done
            carries = self._shares(cells, totals) > 1e-4 * tolerance
            split = self._chosen(cells, totals, ~done & ~confirmed)
            split |= confirmed[cells.datum] & carries
            if not bool(split.any()):
                break
            parents, kept = cells.where(split), cells.where(~split)
            children = self._evaluate(parents.datum.repeat(2), *_halves(parents))
            used += len(self.nodes) * children.datum.bincount(minlength=self.size)
            cells, before = kept.plus(children), totals
            totals = self._totals(cells)
            change = torch.where(done, change, self._change(before, totals))
        rounding = self._rounding(cells, totals)
        worst = worst + change + rounding
        return Integral(
            totals.log_integral,
            totals.error + change + rounding,
            totals.mean,
            totals.mean_error + change.unsqueeze(-1),
            worst < tolerance,
            used,
        )

    # Places.

    def _to_unit(self, z: Tensor) -> Tensor:
        """t = y/√(1 + y²), y = (z − m)/s."""
        y = (z - self.center) / self.spread
        return y / (1 + y**2).sqrt()

    def _from_unit(self, t: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        """z = m + s t/√(1 − t²) and log |dz/dt| = Σ_d log s_d (1 − t_d²)^(−3/2)."""
        end = 1 - SMALLEST_DISTANCE
        t = t.clamp(-end, end)
        rest = (1 - t) * (1 + t)
        spread = self.spread[data]
        z = self.center[data] + spread * t / rest.sqrt()
        return z, (spread.log() - 1.5 * rest.log()).sum(-1)

    def _first_cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """A grid over all of space, halved where more than 2 % of a sample fall in a cell."""
        side = round(FIRST_CELLS[self.dim] ** (1 / self.dim))
        middles = (torch.arange(side, device=self.device).double() * 2 + 1) / side - 1
        center = torch.cartesian_prod(*[middles] * self.dim).reshape(-1, self.dim)
        datum = torch.arange(self.size, device=self.device).repeat_interleave(len(center))
        center = center.repeat(self.size, 1)
        half = torch.full_like(center, 1 / side)
        settled = []
        for _ in range(20 * self.dim):
            crowded = self._crowded(datum, center, half)
            settled.append((datum[~crowded], center[~crowded], half[~crowded]))
            datum, center, half = datum[crowded], center[crowded], half[crowded]
            if not len(datum):
                break
            # The side of the larger share of its cell's first size, in turn.
            center, half = _halved(center, half, half.argmax(-1))
            datum = datum.repeat(2)
        settled.append((datum, center, half))
        datum, center, half = (torch.cat(parts) for parts in zip(*settled, strict=True))
        return datum, center, half

    def _crowded(self, datum: Tensor, center: Tensor, half: Tensor) -> Tensor:
        crowded = torch.zeros_like(datum, dtype=torch.bool)
        for draws in self.draws:
            limit = LARGEST_SHARE * len(draws)
            for start in range(0, len(datum), 2000):
                part = slice(start, start + 2000)
                inside = (draws[:, datum[part]] - center[part]).abs() <= half[part]
                crowded[part] |= inside.all(-1).sum(0) > limit
        return crowded

    # Values.

    def _evaluate(self, datum: Tensor, center: Tensor, half: Tensor) -> _Cells:
        parts = []
        for rows in torch.arange(len(datum), device=self.device).split(self.cells_at_once):
            t = center[rows] + half[rows] * self.nodes.unsqueeze(1)
            z, log_jacobian = self._from_unit(t, datum[rows])
            log_f, g = self.integrand(z, datum[rows])
            g = log_f.new_zeros(*log_f.shape, 0) if g is None else g
            parts.append(self._cells(datum[rows], center[rows], half[rows], log_f, log_jacobian, g))
        return _Cells(*map(torch.cat, zip(*parts, strict=True)))

    def _cells(
        self,
        datum: Tensor,
        center: Tensor,
        half: Tensor,
        log_f: Tensor,
        log_jacobian: Tensor,
        g: Tensor,
    ) -> _Cells:
        L = log_f + log_jacobian
        top = L.max(0).values
        level = torch.where(top > -math.inf, top, 0.0)
        f = (L - level).exp()
        inside = f.unsqueeze(-1) > 0
        fg = torch.where(inside, f.unsqueeze(-1) * g, 0.0)
        log_volume = (2 * half).log().sum(-1)
        split = len(self.higher)
        mass, moment = self.higher @ f[:split], torch.einsum("p,pcm->cm", self.higher, fg[:split])
        reach = torch.maximum(top, _reach(L[:split], self.line, self.dim))
        near = torch.where(level - 50 < L, log_f.abs(), 0.0).amax(0)
        return _Cells(
            datum=datum,
            center=center,
            half=half,
            scale=log_volume + top,
            mass=mass,
            gap=mass - self.lower @ f[split:],
            bound=torch.where(reach - top > LARGEST_RISE, log_volume + reach, -math.inf),
            axis=_steepest(L[:split], level, len(self.line), self.dim),
            moment=moment,
            moment_gap=moment - torch.einsum("p,pcm->cm", self.lower, fg[split:]),
            low=torch.where(inside, g, math.inf).amin(0),
            high=torch.where(inside, g, -math.inf).amax(0),
            rounding=near,
        )

    # Sums.

    def _totals(self, cells: _Cells) -> _Totals:
        log_mass = cells.scale + cells.mass.log()
        log_integral = self._logsumexp(log_mass, cells.datum)
        share = (cells.scale - log_integral[cells.datum]).nan_to_num(-math.inf).exp()
        mean = self._sum(share.unsqueeze(-1) * cells.moment, cells.datum)
        own = mean[cells.datum]
        # What g adds to the error of its mean, g counted from that mean.
        gap = (cells.moment_gap - own * cells.gap.unsqueeze(-1)).abs()
        range_ = torch.maximum((cells.high - own).abs(), (cells.low - own).abs())
        range_ = torch.where(cells.high >= cells.low, range_, 0.0)
        log_error = torch.maximum(cells.scale + cells.gap.abs().log(), cells.bound)
        log_mean_error = torch.maximum(
            cells.scale.unsqueeze(-1) + gap.log(), cells.bound.unsqueeze(-1) + range_.log()
        )
        log_errors = log_error
        if self.controlled:
            log_errors = torch.cat([log_error.unsqueeze(-1), log_mean_error], -1).logsumexp(-1)
        relative = log_integral[cells.datum]
        return _Totals(
            log_integral,
            mean,
            self._sum((log_error - relative).exp(), cells.datum),
            self._sum((log_mean_error - relative.unsqueeze(-1)).exp(), cells.datum),
            log_errors,
        )

    def _worst(self, totals: _Totals) -> Tensor:
        if self.controlled and totals.mean_error.shape[-1]:
            return torch.maximum(totals.error, totals.mean_error.amax(-1))
        return totals.error

    def _change(self, before: _Totals, after: _Totals) -> Tensor:
        change = (after.log_integral - before.log_integral).abs()
        if self.controlled and after.mean.shape[-1]:
            change = torch.maximum(change, (after.mean - before.mean).abs().amax(-1))
        return change

    def _rounding(self, cells: _Cells, totals: _Totals) -> Tensor:
        """ε |log f| where the mass lies: what sums of as many nats lose in floating point."""
        share = self._shares(cells, totals)
        return self.epsilon * self._sum(share * cells.rounding, cells.datum)

    def _shares(self, cells: _Cells, totals: _Totals) -> Tensor:
        """Each cell's part of its datum's integral."""
        log_share = cells.scale - totals.log_integral[cells.datum]
        return log_share.nan_to_num(-math.inf).exp() * cells.mass

    def _chosen(self, cells: _Cells, totals: _Totals, open_: Tensor) -> Tensor:
        """The cells to halve: those of the largest errors, an eighth of a datum's cells."""
        count = cells.datum.bincount(minlength=self.size)
        rows = (open_[cells.datum] & (totals.log_errors > -math.inf)).nonzero().squeeze(-1)
        order = totals.log_errors[rows].argsort(descending=True)
        rows = rows[order[cells.datum[rows][order].argsort(stable=True)]]
        data = cells.datum[rows]
        per_datum = data.bincount(minlength=self.size)
        rank = torch.arange(len(rows), device=self.device) - (per_datum.cumsum(0) - per_datum)[data]
        chosen = torch.zeros_like(cells.datum, dtype=torch.bool)
        chosen[rows[rank < 8 + count[data] // 8]] = True
        return chosen

    def _sum(self, values: Tensor, datum: Tensor) -> Tensor:
        total = values.new_zeros(self.size, *values.shape[1:])
        return total.index_add_(0, datum, values)

    def _logsumexp(self, values: Tensor, datum: Tensor) -> Tensor:
        top = values.new_full((self.size,), -math.inf)
        top = top.scatter_reduce(0, datum, values, "amax")
        level = torch.where(top > -math.inf, top, 0.0)
        return level + self._sum((values - level[datum]).exp(), datum).log()


def _map(draws: Tensor) -> tuple[Tensor, Tensor]:
    """The median and twice the scale of the draws ``[N, B, D]``, each ``[B, D]``."""
    low, center, high = draws.quantile(draws.new_tensor([0.1587, 0.5, 0.8413]), dim=0)
    spread = high - low  # two standard deviations of a normal
    if not bool((spread > 0).all()):
        raise InputError("quadrature needs latents that vary; their draws are all the same")
    return center, spread


def _line_rule(order: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes in (−1, 1), and weights that sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    return torch.from_numpy(nodes).to(device), torch.from_numpy(weights / 2).to(device)


def _tensor_rule(order: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes ``[order^D, D]`` in (−1, 1)^D, the last axis fastest, and their weights."""
    grids = (torch.cartesian_prod(*[line] * dim) for line in _line_rule(order, device))
    nodes, weights = (grid.reshape(-1, dim) for grid in grids)
    return nodes, weights.prod(-1)


def _halves(cells: _Cells) -> tuple[Tensor, Tensor]:
    return _halved(cells.center, cells.half, cells.axis)


def _halved(center: Tensor, half: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of each cell along its axis."""
    step = torch.zeros_like(half).scatter(-1, axis.unsqueeze(-1), 0.5) * half
    new_half = half - step
    return torch.cat([center - step, center + step]), torch.cat([new_half, new_half])


def _reach(L: Tensor, nodes: Tensor, dim: int) -> Tensor:
    """U of L at the tensor grid of ``nodes`` ``[n]``, ``[C]``: the largest L plus its rises."""
    n = len(nodes)
    grid = L.reshape(*[n] * dim, -1)
    total = grid
    for axis in range(dim):
        rise = _rise(grid.movedim(axis, 0), nodes)
        # A node takes what the line rises on either of its sides.
        total = total + torch.maximum(rise[:-1], rise[1:]).movedim(0, axis)
    return total.reshape(len(L), -1).amax(0)


def _rise(L: Tensor, nodes: Tensor) -> Tensor:
    """By how much L ``[n, …]`` may exceed both neighbouring nodes, a gap of the line.

    ``[n + 1, …]``: before the first node, between each two, beyond the last one.

    Between two nodes the secants on either side, continued, bound a concave L by the point where
    they cross. The gaps at the ends have a secant on one side only, which in a steep tail
    says nothing. There it is ⅔ |ΔL| of the two nodes, or twice what a parabola through
    three nodes rises.
    """
    gaps = nodes.diff().reshape(-1, *[1] * (L.dim() - 1))
    step = L.diff(dim=0)
    slope = step / gaps
    left, right = slope[:-2] * gaps[1:-1], -slope[2:] * gaps[1:-1]  # rises over the whole gap
    # L_i + left u = L_j + right (1 − u) at u = (ΔL + right)/(left + right)
    crossing = ((step[1:-1] + right) / (left + right)).clamp(0, 1)
    height = torch.minimum(left * crossing, left * crossing - step[1:-1])
    inner = torch.where((left > 0) & (right > 0), height, 0.0)
    ends = [_end_rises(L[:3], nodes[:3].tolist(), -1.0)]
    ends.append(_end_rises(L[-3:].flip(0), (-nodes[-3:]).flip(0).tolist(), -1.0))
    (before, first), (beyond, last) = ends
    rises = torch.stack([before, first, *inner, last, beyond])
    return rises.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)


def _end_rises(L: Tensor, t: list[float], end: float) -> tuple[Tensor, Tensor]:
    """The rises between ``end`` and the first node, and between it and the second."""
    step = L[0] - L[1]
    beyond = step * (t[0] - end) / (t[1] - t[0])
    before = 2 * (_parabola_peak(L, t, end, t[0]) - L[0])
    between = 2 * (_parabola_peak(L, t, t[0], t[1]) - torch.maximum(L[0], L[1]))
    # A concave L that falls from the third node to the second has no peak before it.
    between = torch.where(L[1] > L[2], torch.maximum(between, step.abs() / 1.5), 0.0)
    return torch.where(step > 0, torch.maximum(before, beyond), 0.0), between


def _parabola_peak(L: Tensor, t: list[float], low: float, high: float) -> Tensor:
    """The maximum over [low, high] of the parabola through (t_i, L_i), i = 0, 1, 2."""
    slope = (L[1] - L[0]) / (t[1] - t[0])
    curvature = ((L[2] - L[1]) / (t[2] - t[1]) - slope) / (t[2] - t[0])

    def value(u: Tensor | float) -> Tensor:
        return L[0] + (u - t[0]) * (slope + curvature * (u - t[1]))

    vertex = 0.5 * (t[0] + t[1] - slope / curvature)
    at_ends = torch.maximum(value(low), value(high))
    within = (curvature < 0) & (vertex > low) & (vertex < high)
    return torch.where(within, value(vertex), at_ends)


def _steepest(L: Tensor, level: Tensor, order: int, dim: int) -> Tensor:
    """The axis along whose lines L varies most, the lines weighted by exp of their maximum."""
    if dim == 1:
        return torch.zeros(L.shape[1], dtype=torch.long, device=L.device)
    grid = torch.maximum(L, level - 1e6).reshape(*[order] * dim, -1)
    scores = []
    for axis in range(dim):
        top, bottom = grid.amax(axis), grid.amin(axis)
        weight = (top - level).exp()
        scores.append((weight * (top - bottom)).sum(0) / weight.sum(0))
    return torch.stack(scores).argmax(0)


def check_tolerance(tolerance: float, max_evaluations: int) -> None:
    """Refuse a tolerance or a limit that makes no sense.

    Raises:
        InputError: what was expected, what came.
    """
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance must lie between 0 and 1 nats, got {tolerance!r}")
    if type(max_evaluations) is not int or max_evaluations < 1:
        raise InputError(f"max_evaluations must be a whole number ≥ 1, got {max_evaluations!r}")
