"""Annealed importance sampling of log p(x), by Hamiltonian Monte Carlo on the latents."""

__all__ = ["annealed_importance_sampling", "Annealed"]

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation import _hmc
from pyro_vae.evaluation._chunks import default_chunk
from pyro_vae.evaluation._hmc import Kernel, Noise, Point
from pyro_vae.evaluation.importance import LARGEST_ERROR
from pyro_vae.evaluation.latent_space import (
    check_function,
    draws_of,
    in_double,
    latent_space,
    log_guide,
    log_terms,
)
from pyro_vae.execution import Program, execute
from pyro_vae.log_weights import check_data, own_parameters
from pyro_vae.seeding import derive_seed, forked

DATA_BLOCK = 100  # noise is drawn for so many data under one seed
STEEPNESS = 4.0  # δ of the schedule
FARTHEST = 1e18  # |z| beyond which a trajectory has diverged: its square overflows float32


@dataclass(frozen=True)
class Annealed:
    """AIS estimates a datum, each ``[B]``, float64, in nats.

    With w_s the weight of chain s and p̂ = (1/S) Σ_s w_s, E p̂ = p(x): ``log_px`` = log p̂ is a
    lower bound on log p(x) in expectation.
    """

    start: str
    """``prior`` or ``guide``: where the chains start."""
    num_chains: int
    """S."""
    num_temperatures: int
    num_leapfrog: int
    log_px: Tensor
    """log p̂."""
    standard_error: Tensor
    """Of log_px over chains, by the delta method: sd(w)/(√S p̂); NaN for S = 1.

    It never exceeds 1: where few chains carry the estimate the true error is larger, see
    ``understated``.
    """
    bias: Tensor
    """E log p̂ − log p(x) ≈ −½ standard_error², by the delta method; log_px is not corrected."""
    ess: Tensor
    """Effective number of chains, (Σ w)²/Σ w², between 1 and S."""
    acceptance: Tensor
    """Mean acceptance probability of the transitions; NaN where there are none."""
    log_weights: Tensor
    """log w, ``[S, B]``."""

    @property
    def understated(self) -> Tensor:
        """Which data's ``standard_error`` and ``bias`` are lower limits, boolean ``[B]``.

        Their ``standard_error`` is above 1/√30 = 0.18 nats, or there is none, for S = 1. (A
        smaller one is no proof: all chains may have missed a mode.)
        """
        return ~(self.standard_error <= LARGEST_ERROR)


def annealed_importance_sampling(
    model: Program,
    x: Tensor,
    guide: Program | None = None,
    *,
    start: str = "prior",
    num_chains: int = 100,
    num_temperatures: int = 1000,
    num_leapfrog: int = 2,
    seed: int = 0,
    chunk_size: int | None = None,
    double: bool = False,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Annealed:
    """Estimate log p(x) of every datum by annealed importance sampling.

    From the prior log π_β = log p(z) + β log p(x|z), from the guide
    log π_β = (1 − β) log q(z|x) + β log p(x, z); 0 = β₀ < … < β_T = 1, z₀ ~ π₀ and

        log w = Σ_t (log π_{β_t} − log π_{β_{t−1}})(z_{t−1}),  z_t from z_{t−1} by HMC under π_{β_t}

    E w = p(x) exactly, for any number of temperatures. Step sizes are adapted for every datum
    along the path in a pilot run under a seed of its own and then held: within the chains they
    would break what the weights rely on. All latents of any program, as one real vector; those
    that are discrete and enumerated in parallel are summed out.

    References:
        Annealed importance sampling (Neal, 2001) https://arxiv.org/abs/physics/9803008
        On the quantitative analysis of decoder-based generative models (Wu et al., 2017)
        https://arxiv.org/abs/1611.04273

    Arguments:
        model: a Pyro program of ``x`` with latents inside ``pyro.plate("data", B, dim=-1)``.
        x: ``[B, *event_shape]``, on the program's device.
        guide: the same for q; only ``start="guide"`` asks it.
        start: ``prior`` or ``guide``.
        num_chains: S, of each datum.
        num_temperatures: T + 1, both ends counted; 2 is plain importance sampling.
        num_leapfrog: gradient evaluations of each HMC transition.
        seed: of the noise; torch's global random state is left as it was.
        chunk_size: how many z the model evaluates at once; None is 3,200 on a CPU and 2¹⁸
            elsewhere. It bounds memory and changes the answer by rounding alone.
        double: whether modules are copied and run in float64.
        on_step: told (transitions done, transitions in all), the pilot's among them.

    Raises:
        InputError: a number or ``x`` makes no sense; a latent is discrete and not enumerated;
            ``start="guide"`` without a guide that has a density; log p(x, z) is not a number at
            a draw of the start, or not the same at each call with one z.
    """
    check_path(x, guide, start, num_chains, num_temperatures, num_leapfrog, chunk_size)
    if start == "prior":
        guide = None
    if double:
        model, guide, x = doubled(model, guide, x)
    blocks = x.split(DATA_BLOCK)
    step = counted(on_step, len(blocks) * num_transitions(num_temperatures))
    parts = []
    with running(model, guide, x):
        for i, block in enumerate(blocks):
            own = derive_seed(seed, "ais", start, i)
            bridge = Bridge(model, guide, block, chunk_size)
            kernel = bridge.kernel(derive_seed(own, "pilot"), num_leapfrog, step)
            z = bridge.draws(derive_seed(own, "start"), num_chains)
            noise = Noise(derive_seed(own, "chains"), z.shape, z.device)
            parts.append(anneal(bridge, z, kernel, noise, schedule(num_temperatures), step))
    log_weights, acceptance = (torch.cat(columns, dim=-1) for columns in zip(*parts, strict=True))
    return Annealed(
        start,
        num_chains,
        num_temperatures,
        num_leapfrog,
        *summary(log_weights),
        acceptance,
        log_weights,
    )


class Bridge:
    """The densities between a start, the prior or q(z|x), and p(x, z) for one block of data."""

    def __init__(self, model: Program, guide: Program | None, x: Tensor, chunk_size: int | None):
        self.model, self.guide, self.x = model, guide, x
        self.chunk_size = chunk_size or default_chunk(x.device)
        self.space = latent_space(model, x)
        self.terms = log_terms(model, x, self.space)
        check_function(self.terms, x, self.space)

    def draws(self, seed: int, num: int) -> Tensor:
        """Return draws of the start, z ``[num, B, D]``."""
        program, kind = (self.model, "model") if self.guide is None else (self.guide, "guide")
        return self.checked(draws_of(program, kind, self.x, self.space, seed, num))

    def checked(self, z: Tensor) -> Tensor:
        """Return z ``[S, B, D]``, at each of which both densities are numbers.

        Raises:
            InputError: one is NaN or +∞, or q(z|x) is a point mass.
        """
        for chains, data in self._chunks(z):
            index = torch.arange(len(self.x), device=z.device)[data]
            self.terms(z[chains, data], index)
            if self.guide is not None:
                name = "AIS from the guide"
                log_guide(self.guide, self.x, self.space, name)(z[chains, data], index)
        return z

    def density(self, z: Tensor) -> Point:
        """Return both ends of the path at z ``[S, B, D]`` and their gradients.

        Where either is not a number or +∞, as on a trajectory that diverges, it is −∞.
        """
        inside = (z.abs() < FARTHEST).all(-1)
        safe = torch.where(inside.unsqueeze(-1), z, 0.0)
        ends, grads = torch.empty(2, *z.shape[:-1]).to(z), torch.empty(2, *z.shape).to(z)
        for chains, data in self._chunks(z):
            ends[:, chains, data], grads[:, chains, data] = self._chunk(safe[chains, data], data)
        ends = torch.where(inside & ends.isfinite(), ends, -math.inf)
        return Point(z, *ends, *grads.nan_to_num(0.0, 0.0, 0.0))

    def kernel(self, seed: int, num_leapfrog: int, on_step: Callable[[], None]) -> Kernel:
        """Return step sizes along the path from a pilot run under a seed of its own."""
        z = self.draws(derive_seed(seed, "start"), _hmc.PILOT_CHAINS)
        noise = Noise(derive_seed(seed, "chains"), z.shape, z.device)
        return _hmc.pilot(self.density, self.density(z), beta_at, num_leapfrog, noise, on_step)

    def _chunk(self, z: Tensor, data: slice) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.requires_grad_()
            pair = self._ends(z, self.x[data])
            grads = [_gradient(end, z) for end in pair]
        return torch.stack([end.detach() for end in pair]), torch.stack(grads)

    def _ends(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        values, num = self.space.values(z), (len(z), (x,))
        log_det = self.space.log_det(z)
        run = execute(self.model, "model", *num, values=values, num_data=len(x))
        latents = run.latent | run.enumerated
        end = run.total([run.log_prob(s) for s in (latents | run.observed).values()])
        if self.guide is not None:
            run = execute(self.guide, "guide", *num, values=values, num_data=len(x))
            latents = run.latent
        start = run.total([run.log_prob(site) for site in latents.values()])
        return start.double() + log_det, end.double() + log_det

    def _chunks(self, z: Tensor) -> Iterator[tuple[slice, slice]]:
        """Slices of chains and data, at most ``chunk_size`` z together."""
        num_chains, num_data = z.shape[:2]
        data_step = min(self.chunk_size, num_data)
        chain_step = max(1, self.chunk_size // data_step)
        for i in range(0, num_chains, chain_step):
            for j in range(0, num_data, data_step):
                yield slice(i, i + chain_step), slice(j, j + data_step)


def anneal(
    bridge: Bridge,
    z: Tensor,
    kernel: Kernel,
    noise: Noise,
    betas: list[float],
    on_step: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Return Σ_t (log π_{β_t} − log π_{β_{t−1}})(z_{t−1}) of each chain, and its acceptance.

    Along falling β, from a draw of π₁, it is the log-weight of the reverse chains, log 1/w.

    Arguments:
        z: draws of π at the first β, ``[S, B, D]``.
        betas: all of the path, the first and the last 0 and 1 or 1 and 0.

    Returns:
        ``[S, B]`` and ``[B]``.
    """
    point = bridge.density(z)
    log_weight = torch.zeros_like(point.log_end)
    accepted: list[Tensor] = []
    last = len(betas) - 1
    for t in range(1, last + 1):
        log_weight = log_weight + (betas[t] - betas[t - 1]) * point.log_ratio
        if t == last:
            break
        place = t / last if betas[0] == 0 else 1 - t / last
        step = kernel.step(place)
        point, acceptance = _hmc.transition(
            bridge.density, point, betas[t], step, kernel.num_leapfrog, noise
        )
        accepted.append(acceptance.mean(dim=0))
        on_step()
    mean = (
        torch.stack(accepted).mean(dim=0)
        if accepted
        else log_weight.new_full(z.shape[1:2], math.nan)
    )
    return log_weight, mean


def summary(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log mean w, its delta-method error, its bias and the ESS of log w ``[S, B]``."""
    num = len(log_weights)
    log_sum = log_weights.logsumexp(0)
    ess = (2 * log_sum - (2 * log_weights).logsumexp(0)).exp()
    # sd(w)²/(S p̂²) = (S Σ w²/(Σ w)² − 1)/(S − 1)
    relative = (num / ess - 1).clamp(min=0) / max(num - 1, 1)
    error = relative.sqrt() if num > 1 else torch.full_like(relative, math.nan)
    return log_sum - math.log(num), error, -error.square() / 2, ess


def beta_at(place: float) -> float:
    """The sigmoidal path (Grosse et al., 2015): β = (σ(δ(2u − 1)) − σ(−δ))/(σ(δ) − σ(−δ)).

    Exactly 0 and 1 at u = 0 and 1; δ = 4.
    """
    if place in (0, 1):
        return float(place)
    # σ(y) = ½ (1 + tanh ½y)
    return 0.5 * (1 + math.tanh(0.5 * STEEPNESS * (2 * place - 1)) / math.tanh(0.5 * STEEPNESS))


def schedule(num_temperatures: int) -> list[float]:
    """Return β from 0 to 1, evenly spaced in u of ``beta_at``."""
    return [beta_at(t / (num_temperatures - 1)) for t in range(num_temperatures)]


def num_transitions(num_temperatures: int) -> int:
    """Of the pilot and of one run of chains."""
    return _hmc.pilot_steps() + num_temperatures - 2


@contextmanager
def running(model: Program, guide: Program | None, x: Tensor) -> Iterator[None]:
    """Run the programs beside the global parameter store, the global RNG, and unchecked.

    A trajectory that diverges gives a distribution NaN for a parameter: it is rejected, not
    an error of the user's.
    """
    programs = (model,) if guide is None else (model, guide)
    unchecked = pyro.validation_enabled(False)
    with own_parameters(*programs), forked(x.device), unchecked, torch.no_grad():
        yield


def check_path(
    x: Tensor,
    guide: Program | None,
    start: str,
    num_chains: int,
    num_temperatures: int,
    num_leapfrog: int,
    chunk_size: int | None,
) -> None:
    """Refuse what makes no path.

    Raises:
        InputError: what was expected, and what came.
    """
    check_data(x, 1)
    counts = {
        "num_chains": (num_chains, 1),
        "num_temperatures": (num_temperatures, 2),
        "num_leapfrog": (num_leapfrog, 1),
        "chunk_size": (1 if chunk_size is None else chunk_size, 1),
    }
    for name, (value, least) in counts.items():
        if type(value) is not int or value < least:
            raise InputError(f"{name} must be a whole number, at least {least}, got {value!r}")
    if start not in ("prior", "guide"):
        raise InputError(f"start must be 'prior' or 'guide', got {start!r}")
    if start == "prior":
        return
    if guide is None:
        raise InputError("start='guide' needs a guide, got None; use start='prior'")
    if not getattr(guide, "has_density", True) or not getattr(guide, "has_bound", True):
        raise InputError(
            "start='guide' needs log q(z|x) at any z, which this guide does not have; "
            "use start='prior'"
        )


def _gradient(value: Tensor, z: Tensor) -> Tensor:
    """∂ Σ value/∂z, zero where it does not depend on z."""
    if not value.requires_grad:
        return torch.zeros_like(z)
    (grad,) = torch.autograd.grad(
        value.sum(), z, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return grad


def doubled(
    model: Program, guide: Program | None, x: Tensor
) -> tuple[Program, Program | None, Tensor]:
    """Return float64 copies of modules, and x; see ``in_double``."""
    programs, x = in_double((model,) if guide is None else (model, guide), x)
    return programs[0], (None if guide is None else programs[1]), x


def counted(on_step: Callable[[int, int], None], total: int) -> Callable[[], None]:
    """Return what tells ``on_step`` how many of ``total`` are done, each time it is called."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        on_step(done, total)

    return step
