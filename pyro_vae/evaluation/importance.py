"""IWAE-K: importance-weighted log-likelihood, streamed over data and samples."""

__all__ = ["log_likelihood", "LogLikelihood"]

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.execution import Program
from pyro_vae.log_weights import (
    Latents,
    LogWeights,
    check_data,
    draw_latents,
    own_parameters,
    weigh,
)
from pyro_vae.seeding import derive_seed, seeded
from pyro_vae.standard_error import standard_error_of_mean

# Noise is drawn in blocks of this size, each under a seed of its own.
DATA_BLOCK = 100
SAMPLE_BLOCK = 128
# Above this standard error, 1/√30 nats, few draws carry the estimate (an effective
# sample size below 30 for large K) and the delta method understates error and bias.
LARGEST_ERROR = 30**-0.5
# How many z a CPU decodes at once by default: what fits its caches, 20 % faster than a block.
CPU_CHUNK = 3200


@dataclass(frozen=True)
class LogLikelihood:
    """Importance-sampling estimates a datum, each field ``[B]``, float64, in nats.

    With w_k = p(x, z_k)/q(z_k|x), z_k ~ q(z|x) and p̂ = (1/K) Σ_k w_k:
    ``log_px`` = log p̂ is a lower bound on log p(x) in expectation.
    """

    num_samples: int
    """K."""
    log_px: Tensor
    """IWAE-K, log p̂."""
    standard_error: Tensor
    """Of log_px over draws, by the delta method: sd(w)/(√K p̂); NaN for K = 1.

    It never exceeds 1: where few draws carry the estimate the true error is
    larger, see ``understated``.
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

    @property
    def understated(self) -> Tensor:
        """Which data's ``standard_error`` and ``bias`` are lower limits, boolean ``[B]``.

        Their ``standard_error`` is above 1/√30 = 0.18 nats, for large K an ``ess``
        below 30, or there is none, for K = 1. (A smaller one is no proof: the draws
        that would carry more weight may not have been made.)
        """
        return ~(self.standard_error <= LARGEST_ERROR)

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
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> LogLikelihood:
    """Estimate log p(x) of every datum by K importance samples from the guide (IWAE-K).

    log p̂_K(x) = log (1/K) Σ_k p(x, z_k)/q(z_k|x),  z_k ~ q(z|x)

    E log p̂_K ≤ log p(x), non-decreasing in K. Exactly K samples a datum are
    drawn, in blocks of 100 data × 128 samples under seeds of their own: neither
    memory nor the answer depends on how many there are or on ``chunk_size``.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016), equation 8
        https://arxiv.org/abs/1509.00519

    Arguments:
        model, guide: Pyro programs of ``x``; modules are run as they are, in
            training mode if they are in it.
        x: ``[B, *event_shape]``, on the programs' device.
        num_samples: K.
        chunk_size: how many z the model evaluates at once; None is 3,200 on a CPU
            and all of a block elsewhere. It bounds memory and never changes the answer.
        seed: of the noise; torch's global random state is left as it was.
        on_block: told (blocks done, blocks in all).

    Raises:
        InputError: K, ``chunk_size`` or ``x`` make no sense; a site has no
            weight per datum; a log-weight is NaN or +∞.
    """
    _check_arguments(x, num_samples, chunk_size)
    data_starts = range(0, len(x), DATA_BLOCK)
    sample_starts = range(0, num_samples, SAMPLE_BLOCK)
    total = len(data_starts) * len(sample_starts)
    done = 0
    streams: list[_Stream] = []
    with own_parameters(model, guide), torch.no_grad():
        for i, data_start in enumerate(data_starts):
            block = x[data_start : data_start + DATA_BLOCK]
            stream = _Stream(len(block), x.device)
            for j, sample_start in enumerate(sample_starts):
                size = min(SAMPLE_BLOCK, num_samples - sample_start)
                with seeded(derive_seed(seed, "importance", i, j), x.device):
                    latents = draw_latents(guide, block, size)
                    stream.update(_weigh_in_chunks(model, block, latents, chunk_size))
                done += 1
                on_block(done, total)
            streams.append(stream)
    columns = [stream.result(num_samples) for stream in streams]
    return LogLikelihood(num_samples, *map(torch.cat, zip(*columns, strict=True)))


class _Moments:
    """Running mean and variance over samples, ``[B]``, merged by block (Chan et al., 1983)."""

    def __init__(self, size: int, device: torch.device):
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.sum_squares = torch.zeros_like(self.mean)  # Σ (value − mean)²

    def update(self, values: Tensor) -> None:
        count = values.shape[0]
        mean = values.mean(dim=0)
        total = self.count + count
        shift = mean - self.mean
        self.sum_squares += (values - mean).square().sum(dim=0)
        self.sum_squares += shift.square() * (self.count * count / total)
        # An infinite mean (some weight was 0) stays what it is; its shift is NaN.
        updated = self.mean + shift * (count / total)
        self.mean = torch.where(updated.isnan(), self.mean + mean, updated)
        self.count = total

    def standard_error(self) -> Tensor:
        if self.count < 2:
            return torch.full_like(self.mean, math.nan)
        return (self.sum_squares / (self.count - 1) / self.count).sqrt()


class _Stream:
    """What one block of data accumulates over its samples, in float64."""

    def __init__(self, size: int, device: torch.device):
        self.elbo = _Moments(size, device)
        self.reconstruction = _Moments(size, device)
        self.kl = _Moments(size, device)
        self.log_sum = torch.full((size,), -math.inf, dtype=torch.float64, device=device)
        self.log_sum_squares = self.log_sum.clone()

    def update(self, terms: LogWeights) -> None:
        log_weight = terms.log_weight.double()
        if bool((log_weight.isnan() | (log_weight == math.inf)).any()):
            raise InputError(
                "a log-weight is NaN or +infinity: check the model and the guide for this data, "
                "or evaluate in float64"
            )
        self.elbo.update(log_weight)
        self.reconstruction.update(terms.log_likelihood.double())
        self.kl.update(terms.kl.double())
        self.log_sum = torch.logaddexp(self.log_sum, log_weight.logsumexp(0))
        self.log_sum_squares = torch.logaddexp(self.log_sum_squares, (2 * log_weight).logsumexp(0))

    def result(self, num_samples: int) -> tuple[Tensor, ...]:
        ess = (2 * self.log_sum - self.log_sum_squares).exp()
        # sd(w)²/(K p̂²) = (K Σ w²/(Σ w)² − 1)/(K − 1)
        relative = (num_samples / ess - 1).clamp(min=0) / max(num_samples - 1, 1)
        error = relative.sqrt() if num_samples > 1 else torch.full_like(relative, math.nan)
        columns = [self.log_sum - math.log(num_samples), error, -error.square() / 2, ess]
        for moments in (self.elbo, self.reconstruction, self.kl):
            columns += [moments.mean, moments.standard_error()]
        return tuple(columns)


def _weigh_in_chunks(
    model: Program, x: Tensor, latents: Latents, chunk_size: int | None
) -> LogWeights:
    """Weigh a block, at most ``chunk_size`` z at a time."""
    num_samples, num_data = latents.log_guide.shape
    if chunk_size is None:
        chunk_size = CPU_CHUNK if x.device.type == "cpu" else num_samples * num_data
    data_step = min(chunk_size, num_data)
    sample_step = max(1, chunk_size // data_step)
    rows = []
    for samples in _slices(num_samples, sample_step):
        parts = []
        for data in _slices(num_data, data_step):
            values = {name: value[samples, data] for name, value in latents.values.items()}
            part = Latents(values, latents.log_guide[samples, data])
            parts.append(weigh(model, x[data], part))
        rows.append([torch.cat(terms, dim=1) for terms in zip(*parts, strict=True)])
    return LogWeights(*(torch.cat(terms, dim=0) for terms in zip(*rows, strict=True)))


def _slices(total: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def _check_arguments(x: Tensor, num_samples: int, chunk_size: int | None) -> None:
    check_data(x, num_samples)
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise InputError(f"chunk_size must be a whole number, at least 1, got {chunk_size!r}")
