"""Scores of a pair on a split: every mean with its errors, under a stated protocol."""

__all__ = ["evaluate", "Estimate", "Evaluation", "PerDatum", "pareto_summary", "versions"]

import dataclasses
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.errors import InputError
from pyro_vae.evaluation.adaptive import Refined, refine
from pyro_vae.evaluation.evidence import LogEvidence, log_evidence
from pyro_vae.evaluation.importance import (
    LARGEST_ERROR,
    LARGEST_SHAPE,
    LogLikelihood,
    log_likelihood,
)
from pyro_vae.execution import Program
from pyro_vae.log_weights import draw_latents, own_parameters, weigh
from pyro_vae.protocols import Facts
from pyro_vae.standard_error import standard_error_of_mean

# How many of the largest k̂ are listed.
WORST = 6
# Which data ``refine`` estimates anew.
ADAPTIVE = ("flagged", "all")
# By what ``log_evidence`` estimates log p(x).
EVIDENCE = ("best", "exact", "quadrature", "ais")
# What it calls a datum's method, in words.
METHODS = {
    "iwae": "IWAE",
    "defensive": "guide and prior mixed",
    "wide": "a wider Student-t",
    "adapted": "an adapted Student-t",
    "ais": "AIS",
}


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

    @property
    def error(self) -> float | None:
        """The error over data, which holds that over draws; over draws where it is none."""
        over_data = self.data_standard_error
        return self.standard_error if over_data is None else over_data


@dataclass(frozen=True)
class PerDatum:
    """log p(x) of each datum by one method, every field ``[B]``, float64, in nats."""

    log_px: Tensor
    standard_error: Tensor | None = None
    """Over draws; None of an exact log p(x), NaN where one draw tells none."""
    bias: Tensor | None = None
    """E log p̂ − log p(x), estimated; None of an exact log p(x)."""
    flagged: Tensor | None = None
    """Whose log p(x) cannot be trusted, boolean; None of an exact log p(x)."""
    understated: Tensor | None = None
    """Whose error and bias are lower limits, boolean; None of an exact log p(x)."""


@dataclass(frozen=True)
class Evaluation:
    """Named estimates and the protocol they stand under."""

    estimates: dict[str, Estimate]
    protocol: dict[str, Any]
    pareto_k: dict[str, Any] | None = None
    """How far k̂ trusts IWAE-K, see ``pareto_summary``; None for K = 1 and of a point."""
    per_datum: dict[str, PerDatum] = field(default_factory=dict)
    """Estimate → what it is the mean of; of those of log p(x)."""
    result: LogLikelihood | None = None
    refined: Refined | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, numbers and strings, nothing of a datum but the worst k̂."""
        estimates = {name: dataclasses.asdict(e) for name, e in self.estimates.items()}
        entry = {"protocol": self.protocol, "estimates": estimates}
        if self.result is not None:
            entry["bound_curve"] = self.result.curve.over_data().to_json()
        return entry if self.pareto_k is None else entry | {"pareto_k": self.pareto_k}


def evaluate(
    model: Program,
    guide: Program,
    split: Split,
    facts: Facts,
    *,
    num_samples: int = 5000,
    adaptive: str | None = None,
    evidence: str | None = None,
    chunk_size: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    data_protocol: dict[str, Any] | None = None,
    positions: Sequence[int] | None = None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
    on_refine: Callable[[int, int], None] = lambda done, total: None,
    on_evidence: Callable[[int, int], None] = lambda done, total: None,
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
        adaptive: which data to estimate again, those that k̂ ``flagged`` or ``all``, see
            ``refine``; the estimate ``log_likelihood_adaptive`` stands beside IWAE-K.
        evidence: by what to estimate log p(x) beside IWAE-K: ``quadrature``, ``ais``, from the
            prior and so for a point too, ``exact``, or ``best`` of these, see ``log_evidence``.
        chunk_size, seed, on_block: as for ``log_likelihood``.
        device, dtype: where the data are put, and in what precision.
        data_protocol: what to record of the data; see ``DataSplits.protocol``.
        positions: what the data are called where they are listed; None counts from 0.
        on_refine, on_evidence: told (steps done, steps in all) of these estimates.

    Raises:
        InputError: what ``log_likelihood`` and ``log_evidence`` refuse; ``adaptive`` for a
            point or K = 1, or another than these.
    """
    has_bound = getattr(guide, "has_bound", True)
    if adaptive not in (None, *ADAPTIVE):
        raise InputError(f"adaptive must be one of {', '.join(ADAPTIVE)} or None, got {adaptive!r}")
    if adaptive and (not has_bound or num_samples == 1):
        raise InputError(
            "--adaptive estimates log p(x) again after k̂ of its draws, and "
            + ("one draw has none; give K above 1" if has_bound else "a point has no draws")
        )
    if evidence not in (None, *EVIDENCE):
        raise InputError(f"evidence must be one of {', '.join(EVIDENCE)} or None, got {evidence!r}")
    x = split.scored().to(device, dtype)
    protocol = {
        **(data_protocol or {}),
        "count": len(split),
        "content_hash": split.content_hash,
        "num_samples": num_samples if has_bound else 1,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.device(device).type,
        "versions": versions(),
    }
    found = None
    if evidence:
        protocol["evidence"] = evidence
        method = None if evidence == "best" else evidence
        found = log_evidence(
            model, None, x, method=method, seed=seed, chunk_size=chunk_size, on_step=on_evidence
        )
    if not has_bound:
        estimates = {"reconstruction": _exact(_reconstruction(model, guide, x, chunk_size), facts)}
        per_datum = {}
        if found is not None:
            estimates[_name_of(found)] = _evidence(found, facts)
            per_datum[_name_of(found)] = _evidence_per_datum(found)
        return Evaluation(estimates, protocol, per_datum=per_datum)
    result = log_likelihood(
        model, guide, x, num_samples, chunk_size=chunk_size, seed=seed, on_block=on_block
    )
    estimates = _estimates(result, facts)
    per_datum = {
        "log_likelihood": PerDatum(
            result.log_px,
            result.standard_error,
            result.bias,
            result.flagged,
            result.understated,
        )
    }
    refined = None
    if adaptive:
        protocol["adaptive"] = adaptive
        refined = refine(
            model,
            guide,
            x,
            result,
            only_flagged=adaptive == "flagged",
            seed=seed,
            chunk_size=chunk_size,
            on_step=on_refine,
        )
        estimates["log_likelihood_adaptive"] = _adaptive(refined, adaptive, facts)
        per_datum["log_likelihood_adaptive"] = PerDatum(
            refined.log_px,
            refined.standard_error,
            refined.bias,
            refined.flagged,
            refined.understated,
        )
    if found is not None and found.method != "exact":
        estimates[_name_of(found)] = _evidence(found, facts)
        per_datum[_name_of(found)] = _evidence_per_datum(found)
    if hasattr(model, "log_evidence"):
        with torch.no_grad():
            per_datum["log_evidence"] = PerDatum(model.log_evidence(x).double())
        estimates["log_evidence"] = _exact(per_datum["log_evidence"].log_px, facts)
    if facts.measure in ("binary", "levels") or facts.dequantized:
        log_px = estimates.get("log_evidence", estimates["log_likelihood"])
        estimates["bits_per_dim"] = _bits_per_dim(log_px, facts)
    summary = None if num_samples == 1 else pareto_summary(result, positions)
    return Evaluation(estimates, protocol, summary, per_datum, result, refined)


def pareto_summary(result: LogLikelihood, positions: Sequence[int] | None = None) -> dict[str, Any]:
    """Return how many data k̂ flags, and the worst of them: what a record keeps of k̂.

    ``threshold``, ``pilot_samples`` (a datum), ``flagged``, ``unknown`` (those of them whose
    k̂ is not known), ``constant`` (whose weights are all one: exact), ``share`` (flagged of
    all), and ``worst``, the ``WORST`` largest k̂ above the threshold, each with ``position``,
    ``pareto_k`` and ``log_px``.
    """
    flagged, k = result.flagged, result.pareto_k
    unknown = flagged & ~k.isfinite()
    order = k.masked_fill(~flagged | unknown, -math.inf).argsort(descending=True, stable=True)
    worst = [i for i in order[:WORST].tolist() if bool(flagged[i] & ~unknown[i])]
    return {
        "threshold": result.threshold,
        "pilot_samples": result.pilot_samples,
        "flagged": int(flagged.sum()),
        "unknown": int(unknown.sum()),
        "constant": int(result.constant.sum()),
        "share": float(flagged.double().mean()),
        "worst": [
            {
                "position": i if positions is None else positions[i],
                "pareto_k": float(k[i]),
                "log_px": float(result.log_px[i]),
            }
            for i in worst
        ],
    }


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
            note=f"IWAE-{result.num_samples}, a lower bound in expectation{_error_note(result)}",
            understated=bool((result.understated | _known_to_be_flagged(result)).any()),
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


def _error_note(result: LogLikelihood) -> str:
    """Where error and bias cannot be trusted, by k̂ and by their own size."""
    if result.num_samples == 1:
        return ", the ELBO: one draw a datum tells neither its error over draws nor its bias"
    note = ""
    flagged = float(_known_to_be_flagged(result).double().mean())
    unknown = float(result.flagged.double().mean()) - flagged
    if flagged > 0:
        note += (
            f"; {flagged:.1%} of the data have k̂ above {result.threshold:.2f}: they may lie "
            "below log p(x) by far more than error and bias say, which are lower limits"
        )
    if unknown > 0:
        note += f"; of {unknown:.1%} of the data k̂ is not known"
    share = float(result.understated.double().mean())
    if share > 0:
        note += (
            f"; {share:.1%} of the data have an error over draws above {LARGEST_ERROR:.2f} or k̂ "
            f"above {LARGEST_SHAPE} (median effective sample size of all: "
            f"{float(result.ess.median()):.0f}), where the delta method understates error and "
            "bias: both are lower limits"
        )
    return note


def _known_to_be_flagged(result: LogLikelihood) -> Tensor:
    """Whose k̂ is above the threshold; of few draws it is not known."""
    return result.flagged & result.pareto_k.isfinite()


def _adaptive(refined: Refined, adaptive: str, facts: Facts) -> Estimate:
    counts = ", ".join(f"{count} by {METHODS[name]}" for name, count in refined.counts.items())
    remaining = int(refined.flagged.sum())
    note = f"{adaptive} data anew: {counts}; {remaining} of {len(refined.method)} remain flagged"
    return Estimate(
        value=refined.mean,
        standard_error=_mean_error(refined.standard_error),
        data_standard_error=standard_error_of_mean(refined.log_px, facts.ordered),
        count=len(refined.method),
        bias=float(refined.bias.mean()),
        note=note + (": their error and bias are lower limits" if remaining else ""),
        understated=bool((refined.flagged | refined.understated).any()),
    )


def _name_of(found: LogEvidence) -> str:
    return "log_evidence" if found.method == "exact" else f"log_evidence_{found.method}"


def _evidence(found: LogEvidence, facts: Facts) -> Estimate:
    if found.method == "exact":
        return _exact(found.log_px, facts)
    untrusted = int((~found.trusted).sum())
    count = len(found.log_px)
    if found.method == "ais":
        note = "annealed importance sampling from the prior, a lower bound in expectation"
        mark = "have so few effective chains that error and bias are lower limits"
    else:
        note = "adaptive quadrature, its error its own estimate, added over the data"
        mark = "have not converged"
    if untrusted:
        note += f"; {untrusted} of {count} data {mark}"
    return Estimate(
        value=found.mean,
        standard_error=found.mean_error,
        data_standard_error=standard_error_of_mean(found.log_px, facts.ordered),
        count=count,
        bias=float(found.bias.mean()) if found.method == "ais" else None,
        note=note if found.note is None else f"{note}; {found.note}",
        understated=untrusted > 0,
    )


def _evidence_per_datum(found: LogEvidence) -> PerDatum:
    if found.method == "exact":
        return PerDatum(found.log_px)
    return PerDatum(found.log_px, found.error, found.bias, ~found.trusted, ~found.trusted)


def _mean_error(errors: Tensor) -> float | None:
    """The standard error of a mean of independent estimates."""
    error = float(errors.square().sum().sqrt() / len(errors))
    return None if math.isnan(error) else error


def versions() -> dict[str, str]:
    """Return what a protocol states of this installation."""
    from pyro_vae import __version__

    installed = {name: version(name) for name in ("torch", "pyro-ppl")}
    return {"pyro-vae": __version__, "python": platform.python_version(), **installed}
