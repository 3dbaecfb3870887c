"""IWAE-K: importance-weighted log-likelihood, streamed over data and samples."""

__all__ = ["log_likelihood", "LogLikelihood"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.evaluation._compiled import Weigher
from pyro_vae.evaluation._moments import Moments
from pyro_vae.evaluation.bound_curve import BoundCurve, CurveStream, curve_sizes
from pyro_vae.evaluation.pareto import Tail, threshold
from pyro_vae.execution import Program
from pyro_vae.log_weights import (
    Latents,
    LogWeights,
    check_data,
    draw_latents,
    own_parameters,
)
from pyro_vae.seeding import derive_seed, seeded
from pyro_vae.standard_error import standard_error_of_mean

# Noise is drawn in blocks of this size, each under a seed of its own.
DATA_BLOCK = 100
SAMPLE_BLOCK = 128
# Above this standard error, 1/√30 nats, few draws carry the estimate (an effective
# sample size below 30 for large K) and the delta method understates error and bias.
LARGEST_ERROR = 30**-0.5
# Weights have a variance, and the delta method a basis, where the shape of their tail is below it.
LARGEST_SHAPE = 0.5
# Log-weights that differ by no more than this many roundings of their largest term are one
# value, but never a range r that would make a standard error, r/(2 √K), of any weight.
ROUNDINGS = 256
LARGEST_RANGE = 1e-3
PILOT_SAMPLES = 1000


@dataclass(frozen=True)
class LogLikelihood:
    """Importance-sampling estimates a datum, each field ``[B]``, float64, in nats.

    With w_k = p(x, z_k)/q(z_k|x), z_k ~ q(z|x) and p̂ = (1/K) Σ_k w_k:
    ``log_px`` = log p̂ is a lower bound on log p(x) in expectation.

    No number here knows of what q does not reach: a mode of p(z|x) of which q makes no
    draw is missing from log_px, its error and k̂ alike.
    """

    num_samples: int
    """K."""
    log_px: Tensor
    """IWAE-K, log p̂."""
    standard_error: Tensor
    """Of log_px over draws, by the delta method: sd(w)/(√K p̂); NaN for K = 1.

    It never exceeds 1: where few draws carry the estimate the true error is
    larger, see ``understated`` and ``flagged``. 0 where the weights are ``constant``.
    """
    bias: Tensor
    """E log p̂ − log p(x) ≈ −½ standard_error², by the delta method; log_px is not corrected.

    It never falls below −½: where few draws carry the estimate, the true bias is larger.
    """
    ess: Tensor
    """Effective sample size, (Σ w)²/Σ w², between 1 and K."""
    elbo: Tensor
    """(1/K) Σ log w_k."""
    elbo_standard_error: Tensor
    """Of elbo over draws; NaN for K = 1."""
    reconstruction: Tensor
    """(1/K) Σ log p(x|z_k)."""
    reconstruction_standard_error: Tensor
    kl: Tensor
    """(1/K) Σ log q(z_k|x) − log p(z_k)."""
    kl_standard_error: Tensor
    pareto_k: Tensor
    """k̂, the shape of the weights' upper tail, from the pilot's draws alone; see ``pareto_k``.

    −∞ where the weights are constant, NaN where it is not known: without a pilot, from
    one of fewer than 21 draws, or where fewer than five of its weights make the tail.
    """
    constant: Tensor
    """Whether all weights are equal but for rounding, boolean ``[B]``: q = p(z|x), log_px is exact.

    Equal weights of one z drawn over and over, as of a discrete latent, do not count.
    """
    pilot_samples: int
    """How many draws of its own k̂ is from; 0 without a pilot."""
    curve: BoundCurve
    """The bound against the number of samples, from the K draws."""

    @property
    def threshold(self) -> float:
        """The k̂ up to which K draws suffice, min(0.7, 1 − 1/log₁₀ K); see ``threshold``."""
        return threshold(self.num_samples)

    @property
    def flagged(self) -> Tensor:
        """Which data's estimate is not to be trusted, boolean ``[B]``: k̂ above its threshold.

        The flag is independent of the estimate's own draws, so that it does not select
        the lucky ones among them. All are flagged for K = 1 and without a pilot, whose k̂ is
        not known, but for data with constant weights.
        """
        return ~(self.pareto_k <= self.threshold) & ~self.constant

    @property
    def understated(self) -> Tensor:
        """Which data's ``standard_error`` and ``bias`` are lower limits, boolean ``[B]``.

        Their ``standard_error`` is above 1/√30 = 0.18 nats, for large K an ``ess``
        below 30, or there is none, for K = 1; or k̂ is above ½, from where on weights have
        no variance. (A smaller error is no proof: the draws that would carry more weight
        may not have been made.)
        """
        return ~(self.standard_error <= LARGEST_ERROR) | (self.pareto_k > LARGEST_SHAPE)

    @property
    def mean(self) -> float:
        """The mean of log_px over data."""
        return float(self.log_px.mean())

    @property
    def mean_standard_error(self) -> float:
        """The standard error of ``mean`` over data, taken as independent; NaN for one datum."""
        error = standard_error_of_mean(self.log_px)
        return math.nan if error is None else error

    @property
    def mean_monte_carlo_error(self) -> float:
        """The standard error of ``mean`` over draws of z, the data held fixed."""
        return float(self.standard_error.square().sum().sqrt() / len(self.log_px))


def log_likelihood(
    model: Program,
    guide: Program,
    x: Tensor,
    num_samples: int = 5000,
    *,
    chunk_size: int | None = None,
    seed: int = 0,
    pilot_samples: int | None = None,
    engine: str = "auto",
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> LogLikelihood:
    """Estimate log p(x) of every datum by K importance samples from the guide (IWAE-K).

    log p̂_K(x) = log (1/K) Σ_k p(x, z_k)/q(z_k|x),  z_k ~ q(z|x)

    E log p̂_K ≤ log p(x), non-decreasing in K. Exactly K samples a datum are
    drawn, in blocks of 100 data × 128 samples under seeds of their own: neither
    memory nor the answer depends on how many there are or on ``chunk_size``.

    Beside them a pilot is drawn, under other seeds, which tells by k̂ where the estimate
    and its error cannot be trusted; it does not enter the estimate. (k̂ of the estimate's
    own draws would pass those that happen to lack their largest weights.)

    References:
        Importance Weighted Autoencoders (Burda et al., 2016), equation 8
        https://arxiv.org/abs/1509.00519
        Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao & Gabry, 2024)
        https://arxiv.org/abs/1507.02646

    Arguments:
        model, guide: Pyro programs of ``x``; modules are run as they are, in
            training mode if they are in it.
        x: ``[B, *event_shape]``, on the programs' device.
        num_samples: K.
        chunk_size: how many z the model evaluates at once; None is what a CPU's caches hold
            and elsewhere what free memory does. It bounds memory and changes the answer by
            rounding alone.
        seed: of the noise; torch's global random state is left as it was.
        pilot_samples: how many draws k̂ is from; None is min(K, 1,000), and none for K = 1;
            0 makes no pilot. Memory is that of 3 √(pilot_samples) weights a datum.
        engine: ``eager`` runs the model in Pyro for every chunk; ``compiled`` captures it
            as one graph, checks that against Pyro and runs it, or warns why it cannot;
            ``auto`` does so where it repays 5 to 20 s of compilation: from 5·10⁹ numbers on
            that are weighed, (K + pilot) × B × the size of a datum, on a CPU. The draws are
            the same, and the answers, up to rounding. A graph serves later evaluations of
            the same model too.
        on_block: told (blocks done, blocks in all), those of the pilot among them.

    Raises:
        InputError: K, ``chunk_size``, ``pilot_samples`` or ``x`` make no sense; a site has no
            weight per datum; a log-weight is NaN or +∞.
    """
    _check_arguments(x, num_samples, chunk_size, pilot_samples)
    if pilot_samples is None:
        pilot_samples = min(num_samples, PILOT_SAMPLES) if num_samples > 1 else 0
    data_starts = range(0, len(x), DATA_BLOCK)
    sizes = {"pilot": _block_sizes(pilot_samples), "importance": _block_sizes(num_samples)}
    total = len(data_starts) * sum(map(len, sizes.values()))
    weigh_block = Weigher(
        model,
        x,
        num_samples + pilot_samples,
        largest=max(sizes["importance"] + sizes["pilot"]),
        block=DATA_BLOCK,
        chunk_size=chunk_size,
        engine=engine,
        own_store=isinstance(model, nn.Module) and isinstance(guide, nn.Module),
    )
    done = 0
    columns: list[dict[str, Tensor]] = []
    curves = []
    with own_parameters(model, guide), torch.no_grad():
        for i, data_start in enumerate(data_starts):
            block = x[data_start : data_start + DATA_BLOCK]
            pilot = _Pilot(pilot_samples, len(block), x.device)
            stream = _Stream(num_samples, len(block), x.device)
            for purpose, update in (("pilot", pilot.update), ("importance", stream.update)):
                for j, size in enumerate(sizes[purpose]):
                    with seeded(derive_seed(seed, purpose, i, j), x.device):
                        latents = draw_latents(guide, block, size)
                        update(latents, weigh_block(block, latents))
                    done += 1
                    on_block(done, total)
            constant = pilot.confirms(stream.constancy.found())
            estimates = stream.result(constant)
            k = {"pareto_k": pilot.pareto_k(constant), "constant": constant}
            columns.append(estimates | k)
            curves.append(stream.curve.result(estimates["log_px"]))
    fields = {name: torch.cat([column[name] for column in columns]) for name in columns[0]}
    bounds, errors = (torch.cat(parts, dim=1) for parts in zip(*curves, strict=True))
    curve = BoundCurve(curve_sizes(num_samples), bounds, errors)
    return LogLikelihood(num_samples, pilot_samples=pilot_samples, curve=curve, **fields)


class _Stream:
    """What one block of data accumulates over its samples, in float64."""

    def __init__(self, num_samples: int, size: int, device: torch.device):
        self.num_samples = num_samples
        self.elbo = Moments(size, device)
        self.reconstruction = Moments(size, device)
        self.kl = Moments(size, device)
        self.log_sum = torch.full((size,), -math.inf, dtype=torch.float64, device=device)
        self.log_sum_squares = self.log_sum.clone()
        self.constancy = _Constancy(size, device)
        self.curve = CurveStream(num_samples, size, device)

    def update(self, latents: Latents, terms: LogWeights) -> None:
        log_weight = _checked(terms)
        self.elbo.update(log_weight)
        self.reconstruction.update(terms.log_likelihood.double())
        self.kl.update(terms.kl.double())
        self.log_sum = torch.logaddexp(self.log_sum, log_weight.logsumexp(0))
        self.log_sum_squares = torch.logaddexp(self.log_sum_squares, (2 * log_weight).logsumexp(0))
        self.constancy.update(latents, terms)
        self.curve.update(log_weight)

    def result(self, constant: Tensor) -> dict[str, Tensor]:
        """Return the fields of ``LogLikelihood``, with no error where weights are constant."""
        K = self.num_samples
        ess = (2 * self.log_sum - self.log_sum_squares).exp()
        # sd(w)²/(K p̂²) = (K Σ w²/(Σ w)² − 1)/(K − 1)
        relative = (K / ess - 1).clamp(min=0) / max(K - 1, 1)
        relative = relative.masked_fill(constant, 0.0)
        error = relative.sqrt() if K > 1 else torch.full_like(relative, math.nan)
        columns = {
            "log_px": self.log_sum - math.log(K),
            "standard_error": error,
            "bias": -error.square() / 2,
            "ess": ess,
        }
        for name in ("elbo", "reconstruction", "kl"):
            moments = getattr(self, name)
            columns |= {name: moments.mean, f"{name}_standard_error": moments.standard_error()}
        return columns


class _Pilot:
    """What one block of data keeps of the pilot's draws."""

    def __init__(self, num_samples: int, size: int, device: torch.device):
        self.num_samples = num_samples
        self.tail = Tail(num_samples, size, device)
        self.constancy = _Constancy(size, device)

    def update(self, latents: Latents, terms: LogWeights) -> None:
        self.tail.update(_checked(terms))
        self.constancy.update(latents, terms)

    def confirms(self, constant: Tensor) -> Tensor:
        """Return whether the pilot's weights are constant too; one draw tells nothing."""
        return constant & self.constancy.found() if self.num_samples > 1 else constant

    def pareto_k(self, constant: Tensor) -> Tensor:
        k = self.tail.pareto_k()
        if self.num_samples < 2:
            return k
        # A pilot that happened on equal weights does not know the tail.
        k = k.masked_fill(self.constancy.equal(), math.nan)
        return k.masked_fill(constant, -math.inf)


class _Constancy:
    """Whether a datum's log-weights are all one value, ``[B]``."""

    def __init__(self, size: int, device: torch.device):
        self.count = 0
        self.low = torch.full((size,), math.inf, dtype=torch.float64, device=device)
        self.high = -self.low
        self.rounding = torch.zeros_like(self.low)
        self.first: dict[str, Tensor] = {}
        self.varied = torch.zeros(size, dtype=torch.bool, device=device)
        """Whether the draws are not all one z: equal weights of one z tell nothing."""

    def update(self, latents: Latents, terms: LogWeights) -> None:
        log_weight = terms.log_weight.double()
        self.low = torch.minimum(self.low, log_weight.amin(0))
        self.high = torch.maximum(self.high, log_weight.amax(0))
        largest = torch.stack([term.abs().amax(0) for term in terms]).amax(0).double()
        rounding = ROUNDINGS * torch.finfo(terms.log_weight.dtype).eps * largest
        self.rounding = torch.maximum(self.rounding, rounding)
        if self.count == 0:
            self.first = {name: value[0].clone() for name, value in latents.values.items()}
        self.count += len(log_weight)
        if bool((self.equal() & ~self.varied).any()):
            self.varied |= self._differs(latents)

    def equal(self) -> Tensor:
        return self.high - self.low <= self.rounding.clamp(max=LARGEST_RANGE)

    def found(self) -> Tensor:
        return self.equal() & self.varied if self.count > 1 else torch.zeros_like(self.varied)

    def _differs(self, latents: Latents) -> Tensor:
        """Whether a draw differs from the first; True where there is nothing to draw."""
        if not latents.values:
            return torch.ones_like(self.varied)
        num_data = len(self.varied)
        differs = [value != self.first[name] for name, value in latents.values.items()]
        flat = [d.reshape(len(d), num_data, -1).any(-1).any(0) for d in differs]
        return torch.stack(flat).any(0)


def _checked(terms: LogWeights) -> Tensor:
    """Return the log-weights in float64.

    Raises:
        InputError: one is NaN or +∞.
    """
    log_weight = terms.log_weight.double()
    if bool((log_weight.isnan() | (log_weight == math.inf)).any()):
        raise InputError(
            "a log-weight is NaN or +infinity: check the model and the guide for this data, "
            "or evaluate in float64"
        )
    return log_weight


def _block_sizes(num_samples: int) -> list[int]:
    starts = range(0, num_samples, SAMPLE_BLOCK)
    return [min(SAMPLE_BLOCK, num_samples - start) for start in starts]


def _check_arguments(
    x: Tensor, num_samples: int, chunk_size: int | None, pilot_samples: int | None
) -> None:
    check_data(x, num_samples)
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise InputError(f"chunk_size must be a whole number, at least 1, got {chunk_size!r}")
    if pilot_samples is not None and (type(pilot_samples) is not int or pilot_samples < 0):
        raise InputError(f"pilot_samples must be a whole number, at least 0, got {pilot_samples!r}")
