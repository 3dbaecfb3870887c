"""Log-likelihoods of the data that the guide cannot be trusted on, by wider proposals or AIS."""

__all__ = ["refine", "Refined"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation._proposals import (
    Block,
    Mixture,
    adapted,
    defensive,
    ess,
    num_prior,
    pilot,
    wide,
)
from pyro_vae.evaluation.ais import annealed_importance_sampling
from pyro_vae.evaluation.importance import (
    DATA_BLOCK,
    LARGEST_ERROR,
    LARGEST_SHAPE,
    SAMPLE_BLOCK,
    LogLikelihood,
)
from pyro_vae.evaluation.pareto import pareto_k, threshold
from pyro_vae.execution import Program
from pyro_vae.log_weights import check_data, own_parameters
from pyro_vae.seeding import derive_seed

METHODS = ("iwae", "defensive", "wide", "adapted", "ais")
PILOT = 1000
LEAST = 100  # draws below which no tail is judged
SMALLEST_ESS = 1 / LARGEST_ERROR**2
# A pilot whose log p̂ is so many standard errors below another's has missed what that one found.
MISSED = 3.0


@dataclass(frozen=True)
class Refined:
    """log p(x) of each datum, of flagged data from other draws than the guide's; nats.

    Where ``method`` is ``iwae`` a datum's numbers are those of the result that was refined.
    """

    num_samples: int
    """K of the proposals."""
    log_px: Tensor
    """``[B]``, float64; in expectation a lower bound on log p(x), by each method."""
    standard_error: Tensor
    """Of log_px over draws or chains, by the delta method, ``[B]``."""
    bias: Tensor
    """E log_px − log p(x) ≈ −½ standard_error², ``[B]``; log_px is not corrected."""
    pareto_k: Tensor
    """k̂ of the proposal that was used, from its pilot alone, ``[B]``; NaN of ``ais``."""
    method: list[str]
    """Of each datum: ``iwae``, ``defensive``, ``wide``, ``adapted`` or ``ais``."""
    flagged: Tensor
    """Which data's estimate is still not to be trusted, boolean ``[B]``: those estimated anew
    with an error that is ``understated``, and of a proposal those whose pilot says so.

    The first are known from the estimate's own draws, which it does not change: only the
    mark depends on them.
    """

    @property
    def counts(self) -> dict[str, int]:
        """How many data each method was used for, those used for none left out."""
        return {name: n for name in METHODS if (n := self.method.count(name))}

    @property
    def understated(self) -> Tensor:
        """Which data's ``standard_error`` and ``bias`` are lower limits, boolean ``[B]``.

        As of ``LogLikelihood``: the error is above 1/√30 = 0.18 nats, or k̂ above ½.
        """
        return ~(self.standard_error <= LARGEST_ERROR) | (self.pareto_k > LARGEST_SHAPE)

    @property
    def mean(self) -> float:
        """The mean of log_px over data."""
        return float(self.log_px.mean())

    @property
    def mean_monte_carlo_error(self) -> float:
        """The standard error of ``mean`` over draws, the data held fixed."""
        return float(self.standard_error.square().sum().sqrt() / len(self.log_px))


def refine(
    model: Program,
    guide: Program,
    x: Tensor,
    result: LogLikelihood,
    *,
    num_samples: int | None = None,
    only_flagged: bool = True,
    num_chains: int = 100,
    num_temperatures: int = 1000,
    seed: int = 0,
    chunk_size: int | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Refined:
    """Estimate log p(x) anew where ``result`` is flagged, by wider proposals or AIS.

    For each such datum, over all latents as one real vector, r(z) = α p(z) + (1 − α) s(z|x)
    with α = 0.1 and s one of

    - ``defensive``: the guide q(z|x), where it has a density at any z;
    - ``wide``: a Student-t at the moments of draws of the guide, its spread × 1.5;
    - ``adapted``: a Student-t that three rounds of adaptive importance sampling, from the
      draws of the two before, have moved to p(z|x).

    Each is judged by a pilot of 1,000 draws of its own. Of those whose k̂ is below the
    threshold of K draws, and whose pilot promises K draws an effective sample size of 30, the
    one with the largest is used; where there is none, annealed importance sampling from
    the prior (``ais``).

    The estimate is from K draws, or chains, that nothing else has seen: neither those of
    ``result`` nor any pilot's, moments' or other method's. What is chosen depends on
    pilots alone, which are independent of these, so that the choice does not bias it.

    Arguments:
        model, guide, x: as given to ``log_likelihood``.
        result: what it returned.
        num_samples: K of the proposals, at least 100; None is that of ``result``, or 100
            where that is less.
        only_flagged: whether unflagged data keep their result. k̂ knows nothing of a mode that
            the guide never draws, and passes it; the prior's share may find it.
        num_chains, num_temperatures: of AIS; no chains leave AIS out: then such data take the
            best proposal and stay flagged.
        seed: of the noise; torch's global random state is left as it was. The one that
            ``result`` has will do.
        chunk_size: how many z the model weighs at once; None is 3,200 on a CPU and 2¹⁸
            elsewhere. It changes the answer by rounding alone. Draws of the prior run the
            model too, in blocks that it does not change.
        on_step: told (steps done, steps in all): two a block of data; when AIS
            begins its own are added to both.

    Raises:
        InputError: ``result`` is of other data; a number makes no sense; a latent is
            discrete and not enumerated; log p(x, z) is NaN or +∞.
    """
    num_samples = _check_arguments(x, result, num_samples, num_chains, chunk_size)
    anew = result.flagged if only_flagged else torch.ones_like(result.flagged)
    places = anew.nonzero().flatten()
    table = _Table.of(result)
    steps = 2 * math.ceil(len(places) / DATA_BLOCK)
    left = [places[:0]]
    with own_parameters(model, guide), torch.no_grad():
        for i, place in enumerate(places.split(DATA_BLOCK) if steps else ()):
            block = Block(model, guide, x[place], chunk_size)
            own = derive_seed(seed, "refine", i)
            rungs = _ladder(block, own, num_samples)
            on_step(2 * i + 1, steps)
            choice, good = _choose(rungs)
            left.append(place[~good])
            for r, rung in enumerate(rungs):
                index = ((choice == r) & (good | (num_chains == 0))).nonzero().flatten()
                if len(index):
                    estimate = _estimate(block, rung, index, own, num_samples)
                    low = ~(estimate[1] <= LARGEST_ERROR)
                    table.put(place[index], rung.method, *estimate, low | ~good[index])
            on_step(2 * i + 2, steps)
    rest = torch.cat(left)
    if num_chains and len(rest):
        annealed = annealed_importance_sampling(
            model,
            x[rest],
            num_chains=num_chains,
            num_temperatures=num_temperatures,
            seed=derive_seed(seed, "refine", "ais"),
            chunk_size=chunk_size,
            on_step=lambda done, total: on_step(steps + done, steps + total),
        )
        unknown = torch.full_like(annealed.log_px, math.nan)
        columns = annealed.log_px, annealed.standard_error, unknown
        table.put(rest, "ais", *columns, annealed.understated)
    error = table.standard_error
    bias = torch.where(anew, -error.square() / 2, result.bias)
    return Refined(
        num_samples, table.log_px, error, bias, table.pareto_k, table.method, table.flagged
    )


@dataclass(frozen=True)
class _Table:
    """What is known of each datum so far."""

    log_px: Tensor
    standard_error: Tensor
    pareto_k: Tensor
    flagged: Tensor
    method: list[str]

    @classmethod
    def of(cls, result: LogLikelihood) -> "_Table":
        columns = result.log_px, result.standard_error, result.pareto_k, result.flagged
        log_px, error, k, flagged = (column.clone() for column in columns)
        return cls(log_px, error, k, flagged, ["iwae"] * len(log_px))

    def put(
        self, at: Tensor, method: str, log_px: Tensor, error: Tensor, k: Tensor, flagged: Tensor
    ) -> None:
        """Set some data's rows."""
        self.log_px[at], self.standard_error[at] = log_px, error
        self.pareto_k[at], self.flagged[at] = k, flagged
        for place in at.tolist():
            self.method[place] = method


@dataclass(frozen=True)
class _Rung:
    """A proposal and what its pilot says of it."""

    method: str
    mixture: Mixture
    pareto_k: Tensor
    """``[B]``."""
    share: Tensor
    """Effective draws a draw, ``[B]``."""
    log_mean: Tensor
    """log p̂ of the pilot, ``[B]``."""
    good: Tensor
    """Whether it can be trusted, boolean ``[B]``."""


def _ladder(block: Block, seed: int, num_samples: int) -> list[_Rung]:
    mixtures = {"wide": wide(block, derive_seed(seed, "moments"), PILOT)}
    if getattr(block.guide, "has_density", True):
        mixtures = {"defensive": defensive(), **mixtures}
    pilots = {
        name: pilot(block, mixture, derive_seed(seed, "pilot", name), PILOT)
        for name, mixture in mixtures.items()
    }
    z, log_weights = (torch.cat(parts) for parts in zip(*pilots.values(), strict=True))
    moved = adapted(block, z, log_weights, derive_seed(seed, "adapted"), PILOT)
    mixtures["adapted"] = moved
    pilots["adapted"] = pilot(block, moved, derive_seed(seed, "pilot", "adapted"), PILOT)
    return [_judge(n, m, pilots[n][1], num_samples) for n, m in mixtures.items()]


def _judge(method: str, mixture: Mixture, log_weights: Tensor, num_samples: int) -> _Rung:
    k = pareto_k(log_weights)
    # NaN where all weights are 0: no draw counts, and argmax would take it for the largest.
    share = (ess(log_weights) / len(log_weights)).nan_to_num(nan=0.0)
    good = (k <= threshold(num_samples)) & (share * num_samples >= SMALLEST_ESS)
    log_mean = log_weights.logsumexp(0) - math.log(len(log_weights))
    return _Rung(method, mixture, k, share, log_mean, good)


def _choose(rungs: list[_Rung]) -> tuple[Tensor, Tensor]:
    """Return each datum's rung, and whether any could be trusted: of those the most efficient."""
    share = torch.stack([rung.share for rung in rungs])
    good = torch.stack([rung.good for rung in rungs])
    good &= ~_missed(torch.stack([rung.log_mean for rung in rungs]), share)
    return torch.where(good, share + 1, share).argmax(0), good.any(0)


def _missed(log_mean: Tensor, share: Tensor) -> Tensor:
    """Which pilots lie below another by more than their errors allow, boolean ``[R, B]``.

    A proposal that never draws a mode has small weights, many of them effective, and a p̂
    without that mode: p̂_i − p̂_j > 3 √(e_i² + e_j²), e² = p̂² (S/ESS − 1)/S.
    """
    mean = (log_mean - log_mean.amax(0)).exp().nan_to_num(nan=0.0)
    variance = (mean.square() * (1 / share - 1).clamp(min=0) / PILOT).nan_to_num(0.0, 0.0, 0.0)
    above = mean.unsqueeze(1) - mean.unsqueeze(0)  # [i, j, B]
    error = (variance.unsqueeze(1) + variance.unsqueeze(0)).sqrt()
    return (above > MISSED * error).any(0)


def _estimate(
    block: Block, rung: _Rung, index: Tensor, seed: int, num_samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p̂, its standard error and k̂ of some of a block's data, from fresh draws."""
    block, mixture = block.take(index), rung.mixture.take(index)
    share = num_prior(num_samples) / num_samples
    strata = [_Sums(len(index), index.device) for _ in range(2)]
    for j, start in enumerate(range(0, num_samples, SAMPLE_BLOCK)):
        end = min(start + SAMPLE_BLOCK, num_samples)
        few = num_prior(end) - num_prior(start)
        own = derive_seed(seed, "estimate", rung.method, j)
        log_weights = mixture.log_weights(block, mixture.draw(block, own, few, end - start), share)
        for sums, part in zip(strata, log_weights.tensor_split([few]), strict=True):
            sums.update(part)
    log_sum = torch.stack([sums.log_sum for sums in strata]).logsumexp(0)
    # Var Σw = Σ_c n_c σ_c², c the strata: the prior's draws and the others.
    variance = torch.stack([sums.relative_variance(log_sum) for sums in strata]).sum(0)
    return log_sum - math.log(num_samples), variance.sqrt(), rung.pareto_k[index]


class _Sums:
    """Σ w and Σ w² of one stratum, ``[B]``, as logarithms."""

    def __init__(self, size: int, device: torch.device):
        self.count = 0
        self.log_sum = torch.full((size,), -math.inf, dtype=torch.float64, device=device)
        self.log_sum_squares = self.log_sum.clone()

    def update(self, log_weights: Tensor) -> None:
        self.count += len(log_weights)
        if len(log_weights):
            self.log_sum = torch.logaddexp(self.log_sum, log_weights.logsumexp(0))
            squares = (2 * log_weights).logsumexp(0)
            self.log_sum_squares = torch.logaddexp(self.log_sum_squares, squares)

    def relative_variance(self, log_total: Tensor) -> Tensor:
        """n s²/(Σ w)² with (Σ w) that of all strata; s² = (Σ w² − (Σ w)²/n)/(n − 1)."""
        n = self.count
        squares = (self.log_sum_squares - 2 * log_total).exp()
        mean_square = (2 * (self.log_sum - log_total)).exp() / n
        return (squares - mean_square).clamp(min=0) * n / (n - 1)


def _check_arguments(
    x: Tensor,
    result: LogLikelihood,
    num_samples: int | None,
    num_chains: int,
    chunk_size: int | None,
) -> int:
    """Return K."""
    if num_samples is None:
        num_samples = max(result.num_samples, LEAST)
    check_data(x, num_samples)
    if len(x) != len(result.log_px):
        raise InputError(
            f"expected the data of the result, {len(result.log_px)}, got {len(x)}; give the x "
            "that log_likelihood was given"
        )
    if num_samples < LEAST:
        raise InputError(f"refine needs num_samples of at least {LEAST}, got {num_samples}")
    if type(num_chains) is not int or num_chains < 0 or num_chains == 1:
        raise InputError(f"num_chains must be a whole number, 0 or at least 2, got {num_chains!r}")
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise InputError(f"chunk_size must be a whole number, at least 1, got {chunk_size!r}")
    return num_samples
