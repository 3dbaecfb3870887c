"""Hamiltonian Monte Carlo along a path of densities, all data and chains in one batch."""

__all__ = ["Density", "Kernel", "Noise", "Point", "pilot", "transition"]

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

TARGET_ACCEPTANCE = 0.75
JITTER = 0.2  # of the step size, uniform: one length of all trajectories can be a period of π
PILOT_CHAINS = 8
PILOT_KNOTS = 50
WARM_UP = 20  # updates at the first knot, where nothing is known of the step size
UPDATES = 6  # at every other one
FOLLOW = 0.3  # how far s moves from knot to knot to the spread of so few chains, in its logarithm
GAIN = 0.5  # of an update, in log step size; twice it at the first knot


class Point(NamedTuple):
    """Where the chains are, z ``[S, B, D]``, and the two ends of the path there, float64.

    log π_β = (1 − β) log f₀ + β log f₁
    """

    z: Tensor
    log_start: Tensor
    """log f₀, ``[S, B]``."""
    log_end: Tensor
    """log f₁."""
    grad_start: Tensor
    """∂ log f₀/∂z, ``[S, B, D]``."""
    grad_end: Tensor

    def log_prob(self, beta: float) -> Tensor:
        """log π_β, ``[S, B]``."""
        return _mix(beta, self.log_start, self.log_end)

    def grad(self, beta: float) -> Tensor:
        """∂ log π_β/∂z, ``[S, B, D]``."""
        return _mix(beta, self.grad_start, self.grad_end)

    @property
    def log_ratio(self) -> Tensor:
        """∂ log π_β/∂β = log f₁ − log f₀, ``[S, B]``; −∞ where f₁ is 0."""
        known = self.log_end > -math.inf
        return torch.where(known, self.log_end - self.log_start, -math.inf)


Density = Callable[[Tensor], Point]


class Noise:
    """Momenta, levels of acceptance and jitter from a generator of their own."""

    def __init__(self, seed: int, shape: torch.Size, device: torch.device):
        self.shape, self.device = shape, device
        self.generator = torch.Generator(device).manual_seed(seed)

    def momentum(self) -> Tensor:
        """N(0, I), ``[S, B, D]``."""
        return torch.randn(
            self.shape, dtype=torch.float64, device=self.device, generator=self.generator
        )

    def uniform(self) -> Tensor:
        """U(0, 1), ``[S, B]``."""
        return torch.rand(
            self.shape[:-1], dtype=torch.float64, device=self.device, generator=self.generator
        )


@dataclass(frozen=True)
class Kernel:
    """Step sizes of every datum along the path, frozen: a function of β's place and x alone."""

    log_step: Tensor
    """At evenly spaced places on the path, ``[J, B, D]``."""
    num_leapfrog: int

    def step(self, place: float) -> Tensor:
        """ε ``[B, D]`` at a place from 0 to 1 on the path, linear in log ε between the knots."""
        at = place * (len(self.log_step) - 1)
        left = min(int(at), len(self.log_step) - 2)
        share = at - left
        return ((1 - share) * self.log_step[left] + share * self.log_step[left + 1]).exp()


def transition(
    density: Density, point: Point, beta: float, step: Tensor, num_leapfrog: int, noise: Noise
) -> tuple[Point, Tensor]:
    """Return where the chains go by one HMC transition that leaves π_β invariant.

    Momentum p ~ N(0, I), ``num_leapfrog`` leapfrog steps of size ε (1 ± 0.2 U), drawn before,
    and acceptance with probability min(1, π_β(z') N(p')/π_β(z) N(p)). A trajectory that
    ends where log π_β is −∞ or NaN is rejected.

    References:
        MCMC using Hamiltonian dynamics (Neal, 2011), section 5.3
        https://arxiv.org/abs/1206.1901

    Arguments:
        step: ε of each dimension, ``[B, D]``; unequal ones are a diagonal mass matrix.

    Returns:
        The point, and the acceptance probabilities ``[S, B]``.
    """
    momentum = noise.momentum()
    jitter = 1 + JITTER * (2 * noise.uniform() - 1)
    level = noise.uniform().log()
    proposal, final = leapfrog(
        density, point, beta, momentum, step * jitter.unsqueeze(-1), num_leapfrog
    )
    log_ratio = _energy(proposal, final, beta) - _energy(point, momentum, beta)
    log_ratio = torch.where(log_ratio.isnan(), -math.inf, log_ratio)
    chosen = _where(level < log_ratio, proposal, point)
    return chosen, log_ratio.clamp(max=0).exp()


def leapfrog(
    density: Density, point: Point, beta: float, momentum: Tensor, step: Tensor, num_leapfrog: int
) -> tuple[Point, Tensor]:
    """Return the point and the momentum at the end of a trajectory, by one gradient a step."""
    momentum = momentum + 0.5 * step * point.grad(beta)
    for i in range(num_leapfrog):
        point = density(point.z + step * momentum)
        last = i == num_leapfrog - 1
        momentum = momentum + (0.5 if last else 1.0) * step * point.grad(beta)
    return point, momentum


def pilot(
    density: Density,
    point: Point,
    beta_at: Callable[[float], float],
    num_leapfrog: int,
    noise: Noise,
    on_step: Callable[[], None] = lambda: None,
) -> Kernel:
    """Return step sizes for every datum along the path, learned on chains of their own.

    ε_d = ε s_d: the chains go along a coarse path, log ε of a datum moving by the difference of
    its mean acceptance probability from 0.75 (Robbins & Monro, 1951), and s_d following the
    standard deviation of z_d. Of each place the mean of the later values of log ε is kept.

    Arguments:
        point: draws of the start, ``[S, B, D]``.
        beta_at: β at a place from 0 to 1 on the path.
    """
    log_scale = _log_spread(point.z)
    # D^(−1/4) standard deviations: the order of ε at which acceptance does not depend on D.
    log_step = torch.full_like(log_scale[:, :1], -0.25 * math.log(log_scale.shape[-1]))
    knots = []
    for j in range(PILOT_KNOTS):
        beta = beta_at(j / (PILOT_KNOTS - 1))
        updates, gain = (UPDATES, GAIN) if j else (WARM_UP, 2 * GAIN)
        sizes, places = [], []
        for _ in range(updates):
            step = (log_step + log_scale).exp()
            point, acceptance = transition(density, point, beta, step, num_leapfrog, noise)
            log_step = log_step + gain * (acceptance.mean(dim=0) - TARGET_ACCEPTANCE).unsqueeze(-1)
            sizes.append(log_step)
            places.append(point.z)
            on_step()
        log_step = torch.stack(sizes[updates // 2 :]).mean(dim=0)
        knots.append(log_step + log_scale)
        change = FOLLOW * (_log_spread(torch.cat(places)) - log_scale)
        # The mean size of a step stays what acceptance has made it.
        log_scale, log_step = log_scale + change, log_step - change.mean(dim=-1, keepdim=True)
    return Kernel(torch.stack(knots), num_leapfrog)


def pilot_steps() -> int:
    """The number of transitions of a pilot."""
    return WARM_UP + UPDATES * (PILOT_KNOTS - 1)


def _log_spread(z: Tensor) -> Tensor:
    """The logarithm of the standard deviation over chains, ``[B, D]``; 0 it never is."""
    return z.std(dim=0).clamp(min=1e-6).log()


def _mix(beta: float, start: Tensor, end: Tensor) -> Tensor:
    """(1 − β) start + β end, where 0 · ∞ is 0."""
    if beta == 0:
        return start
    return end if beta == 1 else (1 - beta) * start + beta * end


def _energy(point: Point, momentum: Tensor, beta: float) -> Tensor:
    """log π_β(z) − ½ |p|², ``[S, B]``."""
    return point.log_prob(beta) - 0.5 * momentum.square().sum(-1)


def _where(accept: Tensor, proposal: Point, point: Point) -> Point:
    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(accept if new.dim() == 2 else accept.unsqueeze(-1), new, old)

    return Point(*(choose(new, old) for new, old in zip(proposal, point, strict=True)))
