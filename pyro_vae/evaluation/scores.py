"""Scores of a pair on a split: every mean with its errors, under a stated protocol."""

__all__ = ["evaluate", "Estimate", "Evaluation", "versions"]

import dataclasses
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.evaluation.importance import LARGEST_ERROR, LogLikelihood, log_likelihood
from pyro_vae.execution import Program
from pyro_vae.log_weights import draw_latents, own_parameters, weigh
from pyro_vae.protocols import Facts
from pyro_vae.standard_error import standard_error_of_mean


@dataclass(frozen=True)
class Estimate:
    """A mean over data, with what is known of its errors, each kept apart."""

    value: float
    standard_error: float | None
    """Over Monte Carlo draws, the data held fixed; None where one or none was made."""
    data_standard_error: float | None
    """Over data; over blocks of neighbours where data are ordered; None for one datum."""
    count: int
    """How many data."""
    bias: float | None = None
    """What the estimate misses of its target in expectation, where an estimate is known."""
    unit: str = "nats/datum"
    note: str | None = None
    understated: bool = False
    """Whether standard_error and bias are lower limits, or None, for want of effective samples."""


@dataclass(frozen=True)
class Evaluation:
    """Named estimates and the protocol they stand under."""

    estimates: dict[str, Estimate]
    protocol: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, numbers and strings."""
        estimates = {name: dataclasses.asdict(e) for name, e in self.estimates.items()}
        return {"protocol": self.protocol, "estimates": estimates}


def evaluate(
    model: Program,
    guide: Program,
    split: Split,
    facts: Facts,
    *,
    num_samples: int = 5000,
    chunk_size: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    data_protocol: dict[str, Any] | None = None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a pair on a split: ELBO, its two terms, IWAE-K and bits/dim where it applies.

    All from the same K draws a datum; ELBO = reconstruction − KL. Where the model
    has ``log_evidence``, log p(x) stands beside them exactly. A guide without a
    bound is scored by its reconstruction log p(x|z(x)) alone. Bits/dim are
    −log₂ p(x)/D of the mass on levels, of the exact log p(x) where there is one; for
    dequantized values y = (level + u)/n, log P(level) ≥ E_u log p(y) − D log n, so
    they are an upper bound there.

    Arguments:
        model, guide: the pair, on ``device``, in evaluation mode.
        split: the data to score, all of it.
        facts: the data's measure.
        num_samples: K of IWAE-K.
        chunk_size, seed, on_block: as for ``log_likelihood``.
        device, dtype: where the data are put, and in what precision.
        data_protocol: what to record of the data; see ``DataSplits.protocol``.
    """
    x = split.scored().to(device, dtype)
    if getattr(guide, "has_bound", True):
        result = log_likelihood(
            model, guide, x, num_samples, chunk_size=chunk_size, seed=seed, on_block=on_block
        )
        estimates = _estimates(result, facts)
        if hasattr(model, "log_evidence"):
            with torch.no_grad():
                estimates["log_evidence"] = _exact(model.log_evidence(x).double(), facts)
        if facts.measure in ("binary", "levels") or facts.dequantized:
            log_px = estimates.get("log_evidence", estimates["log_likelihood"])
            estimates["bits_per_dim"] = _bits_per_dim(log_px, facts)
    else:
        num_samples = 1
        estimates = {"reconstruction": _exact(_reconstruction(model, guide, x, chunk_size), facts)}
    protocol = {
        **(data_protocol or {}),
        "count": len(split),
        "content_hash": split.content_hash,
        "num_samples": num_samples,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.device(device).type,
        "versions": versions(),
    }
    return Evaluation(estimates, protocol)


def _estimates(result: LogLikelihood, facts: Facts) -> dict[str, Estimate]:
    def estimate(values: Tensor, errors: Tensor, **extra: Any) -> Estimate:
        return Estimate(
            value=float(values.mean()),
            standard_error=_mean_error(errors),
            data_standard_error=standard_error_of_mean(values, facts.ordered),
            count=len(values),
            **extra,
        )

    return {
        "elbo": estimate(result.elbo, result.elbo_standard_error),
        "reconstruction": estimate(result.reconstruction, result.reconstruction_standard_error),
        "kl": estimate(result.kl, result.kl_standard_error),
        "log_likelihood": estimate(
            result.log_px,
            result.standard_error,
            bias=None if result.num_samples == 1 else float(result.bias.mean()),
            note=f"IWAE-{result.num_samples}, a lower bound in expectation{_ess_note(result)}",
            understated=bool(result.understated.any()),
        ),
    }


def _exact(values: Tensor, facts: Facts) -> Estimate:
    """The mean of numbers without an error over draws."""
    return Estimate(
        value=float(values.mean()),
        standard_error=None,
        data_standard_error=standard_error_of_mean(values, facts.ordered),
        count=len(values),
    )


@torch.no_grad()
def _reconstruction(model: Program, guide: Program, x: Tensor, chunk_size: int | None) -> Tensor:
    """log p(x|z) at the guide's one z a datum, ``[B]``."""
    with own_parameters(model, guide):
        parts = [
            weigh(model, part, draw_latents(guide, part, 1, allow_points=True)).log_likelihood[0]
            for part in x.split(chunk_size or 1000)
        ]
    return torch.cat(parts).double()


def _bits_per_dim(log_px: Estimate, facts: Facts) -> Estimate:
    unit = facts.num_dims * math.log(2)
    # dy = 1/n in each dimension: log p(level + u) = log p(y) − D log n
    jacobian = facts.num_dims * math.log(facts.num_levels or 1) if facts.dequantized else 0.0

    def scaled(value: float | None, sign: int = 1) -> float | None:
        return None if value is None else sign * value / unit

    return Estimate(
        value=-(log_px.value - jacobian) / unit,
        standard_error=scaled(log_px.standard_error),
        data_standard_error=scaled(log_px.data_standard_error),
        count=log_px.count,
        bias=scaled(log_px.bias, -1),
        unit="bits/dim",
        note=_bits_note(log_px, facts),
        understated=log_px.understated,
    )


def _bits_note(log_px: Estimate, facts: Facts) -> str | None:
    """Of a bound on log p(x), or of a density in place of a mass, bits are an upper bound."""
    if facts.dequantized:
        return "of dequantized values, an upper bound"
    return "an upper bound" if log_px.note else None


def _ess_note(result: LogLikelihood) -> str:
    if result.num_samples == 1:
        return ", the ELBO: one draw a datum tells neither its error over draws nor its bias"
    share = float(result.understated.double().mean())
    if share == 0:
        return ""
    return (
        f"; {share:.1%} of the data have an error over draws above {LARGEST_ERROR:.2f} (median "
        f"effective sample size of all: {float(result.ess.median()):.0f}), where the delta method "
        "understates error and bias: both are lower limits"
    )


def _mean_error(errors: Tensor) -> float | None:
    """The standard error of a mean of independent estimates."""
    error = float(errors.square().sum().sqrt() / len(errors))
    return None if math.isnan(error) else error


def versions() -> dict[str, str]:
    """Return what a protocol states of this installation."""
    from pyro_vae import __version__

    installed = {name: version(name) for name in ("torch", "pyro-ppl")}
    return {"pyro-vae": __version__, "python": platform.python_version(), **installed}
