"""log p(x) − ELBO, and whether the family of q or its encoder is to blame."""

__all__ = ["gap"]

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.diagnosis._local import (
    DATA_BLOCK,
    BestOutputs,
    best_outputs,
    local_guide,
    log_weight_draws,
    why_fixed,
)
from pyro_vae.diagnosis.rows import Gap
from pyro_vae.errors import InputError
from pyro_vae.evaluation.evidence import LogEvidence, log_evidence
from pyro_vae.evaluation.scores import Estimate
from pyro_vae.execution import Program
from pyro_vae.log_weights import check_data, own_parameters
from pyro_vae.seeding import derive_seed
from pyro_vae.standard_error import standard_error_of_mean

LARGEST_RESIDUAL = 0.05  # of the approximation gap
NO_RESIDUAL = 0.01  # nats: below it none is spoken of
RESIDUAL = "what the last half of the search gained"


def gap(
    model: Program,
    guide: Any,
    x: Tensor,
    *,
    split: str = "test",
    ordered: bool = False,
    seed: int = 0,
    num_samples: int = 1000,
    num_steps: int = 400,
    num_particles: int = 8,
    learning_rate: float = 0.1,
    second_start: bool = True,
    evidence: LogEvidence | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Gap:
    """Split log p(x) − ELBO into what the family of q costs and what the encoder costs.

    total = log p(x) − ELBO(q) = KL(q(z|x) ‖ p(z|x))
    approximation = log p(x) − ELBO(q*),  q* the best q of the family for each datum
    amortization = ELBO(q*) − ELBO(q)

    The model and all shared weights, those of a flow among them, are held; q* differs from
    q in the encoder's outputs alone (see ``best_outputs``). ELBOs are means of
    ``num_samples`` fresh draws a datum, those of q and q* under common noise: the error of the
    amortization gap is that of the paired difference. q* is only approached, so that
    the approximation gap is an upper limit and the amortization gap a lower one; ``residual``,
    what the last half of the search gained, tells how near, but not of a better optimum
    elsewhere: the second start finds some of these. Estimates of AIS fall short of
    log p(x), which makes total and approximation lower limits by its bias. Nothing is
    clipped at 0: a gap may be negative within its error.

    References:
        Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018), section 3
        https://arxiv.org/abs/1801.03558

    Arguments:
        model, guide: Pyro programs of ``x``, run as they are, in evaluation mode or not; no
            parameter is changed, nor given a gradient.
        x: ``[B, *event_shape]``, on the programs' device.
        split: what the data are called.
        ordered: whether neighbours are alike, as the frames of a video.
        seed: of all noise; torch's global random state is left as it was.
        num_samples: draws a datum for each ELBO, at least 2.
        num_steps, num_particles, learning_rate, second_start: of the search, see
            ``best_outputs``.
        evidence: log p(x) of the same data; None is ``log_evidence(model, guide, x)``. IWAE,
            which understates it where q is bad, will not do.
        on_step: told (steps done, steps in all), of log p(x) and then of the search.

    Returns:
        Means over data in nats; their standard errors over draws, that of log p(x) included,
        and over data. Where the guide has no ``outputs`` and ``distribution``, no split.

    Raises:
        InputError: the guide is a point, or has no density at its own draws; a log-weight is NaN.
    """
    _check(guide, x, num_samples, evidence)
    if evidence is None:
        evidence = log_evidence(
            model, guide, x, seed=derive_seed(seed, "gap evidence"), on_step=on_step
        )
    fixed = why_fixed(model, guide, x)
    reason = None if fixed is None else f"no split of the gap: {fixed}"
    best = None
    if fixed is None:
        best = best_outputs(
            model,
            guide,
            x,
            num_steps=num_steps,
            num_particles=num_particles,
            learning_rate=learning_rate,
            second_start=second_start,
            seed=seed,
            on_step=on_step,
        )
    elbo, *rest = _bounds(model, guide, x, best, num_samples, seed)
    log_px, error = evidence.log_px.to(x.device).double(), _error(evidence)
    short = {
        "bias": float(evidence.bias.mean()) if evidence.method == "ais" else None,
        "understated": not bool(evidence.trusted.all()),
    }
    total = _estimate(log_px - elbo.mean, ordered, elbo.error, error, **short)
    split_of_it: dict[str, Any] = {"best_elbo": None, "approximation": None, "amortization": None}
    if best is not None:
        best_elbo, amortization, gain = rest
        residual = _estimate(gain.mean, ordered, gain.error, note=RESIDUAL)
        approximation = _estimate(log_px - best_elbo.mean, ordered, best_elbo.error, error, **short)
        reason = _unconverged(residual, approximation.value)
        split_of_it = {
            "best_elbo": _estimate(best_elbo.mean, ordered, best_elbo.error),
            "approximation": approximation,
            "amortization": _estimate(amortization.mean, ordered, amortization.error),
            "residual": residual,
        }
    return Gap(
        split=split,
        method=evidence.method,
        log_px=_estimate(log_px, ordered, None, error, **short),
        elbo=_estimate(elbo.mean, ordered, elbo.error),
        total=total,
        **split_of_it,
        note=_note(evidence, reason),
    )


class _Bound(NamedTuple):
    """A mean over draws and its standard error, ``[B]`` each."""

    mean: Tensor
    error: Tensor


def _bounds(
    model: Program, guide: Any, x: Tensor, best: BestOutputs | None, num_samples: int, seed: int
) -> list[_Bound]:
    """The ELBO; and of the best q: its ELBO, the difference, and the gain since halfway."""
    ends = None if best is None else torch.stack([best.encoder, best.outputs, best.halfway])
    parts: list[Tensor] = []
    with own_parameters(model, guide):
        for i, start in enumerate(range(0, len(x), DATA_BLOCK)):
            block = slice(start, start + DATA_BLOCK)
            guides = [guide] if ends is None else [local_guide(guide, o) for o in ends[:, block]]
            seed_of_block = derive_seed(seed, "gap", i)
            draws = log_weight_draws(model, guides, x[block], num_samples, seed_of_block)
            if ends is not None:
                q, best_q, halfway = draws
                draws = torch.stack([q, best_q, best_q - q, best_q - halfway])
            parts.append(torch.stack([draws.mean(1), draws.std(1) / math.sqrt(num_samples)]))
    means, errors = torch.cat(parts, dim=-1)
    return [_Bound(*pair) for pair in zip(means, errors, strict=True)]


def _estimate(
    values: Tensor,
    ordered: bool,
    errors: Tensor | None,
    other: float | None = None,
    **extra: Any,
) -> Estimate:
    """The mean of ``values`` over data; ``errors`` of each and ``other`` of the mean go over draws.

    Both None: the mean has no error over draws.
    """
    own = None if errors is None else float(errors.square().sum().sqrt() / len(errors))
    known = [error for error in (own, other) if error is not None]
    return Estimate(
        value=float(values.mean()),
        standard_error=math.hypot(*known) if known else None,
        data_standard_error=standard_error_of_mean(values, ordered),
        count=len(values),
        **extra,
    )


def _error(evidence: LogEvidence) -> float | None:
    """The error of the mean of log p(x); None where it is exact."""
    return None if evidence.method == "exact" else evidence.mean_error


def _unconverged(residual: Estimate, approximation: float) -> str | None:
    """Of a large total the residual may be a trifle and still all of the approximation gap."""
    error = residual.standard_error or 0.0
    if residual.value <= max(2 * error, LARGEST_RESIDUAL * abs(approximation), NO_RESIDUAL):
        return None
    return (
        f"the search for the best q has not converged: the last half of its steps "
        f"gained {residual.value:.3f} ± {error:.3f} nats, so that the approximation gap is an "
        "upper limit and the amortization gap a lower one"
    )


def _note(evidence: LogEvidence, reason: str | None) -> str | None:
    """What limits the numbers: of log p(x), and of the search."""
    parts = [evidence.note, reason]
    doubtful = int((~evidence.trusted).sum())
    if doubtful:
        parts.append(
            f"the error of log p(x) is not trusted at {doubtful} of {len(evidence.trusted)} data"
        )
    if evidence.method == "ais":
        # The bias is from the spread over chains, as the error is, and no better known.
        short, much = ("at least", "more") if doubtful else ("some", "as much")
        parts.append(
            f"AIS falls short of log p(x) by {short} {-float(evidence.bias.mean()):.2g} nats in "
            f"expectation: total and approximation gap are lower limits by {much}"
        )
    return "; ".join(part for part in parts if part) or None


def _check(guide: Any, x: Tensor, num_samples: int, evidence: LogEvidence | None) -> None:
    if not getattr(guide, "has_bound", True):
        raise InputError(
            "this guide is a point without a density (has_bound is False): it has no ELBO, and "
            "log p(x) − ELBO no value; take another guide"
        )
    check_data(x, num_samples)
    if num_samples < 2:
        raise InputError(f"num_samples must be at least 2, for an error, got {num_samples}")
    if evidence is not None and len(evidence.log_px) != len(x):
        raise InputError(
            f"expected evidence of the same {len(x)} data, got that of {len(evidence.log_px)}"
        )
