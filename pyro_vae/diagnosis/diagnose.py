"""Every part of a diagnosis in turn, on random subsets of training and test data."""

__all__ = ["diagnose", "check_parts", "PARTS", "Settings", "Watch", "data_of"]

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.data.noise import permutation
from pyro_vae.defaults import Settings
from pyro_vae.diagnosis.bounds import simulated_bounds
from pyro_vae.diagnosis.fit import predictive_checks
from pyro_vae.diagnosis.gap import gap
from pyro_vae.diagnosis.latents import latent_use
from pyro_vae.diagnosis.rows import Diagnosis, Reliability
from pyro_vae.diagnosis.space import latent_space_report
from pyro_vae.errors import InputError, suggest
from pyro_vae.evaluation.calibration import FEWEST_DATA, simulation_based_calibration
from pyro_vae.evaluation.evidence import LogEvidence, log_evidence
from pyro_vae.evaluation.importance import LogLikelihood, log_likelihood
from pyro_vae.evaluation.scores import evaluate, versions
from pyro_vae.execution import Program
from pyro_vae.protocols import Facts

OnStep = Callable[[int, int], None]
Watch = Callable[[str], AbstractContextManager[OnStep]]

# Those that speak of q(z|x) as a distribution, which a guide that is a point is not.
_NEED_A_BOUND = ("gap", "reliability", "latents", "calibration")
NUM_SIMULATED = 20  # data of ``bounds``: each costs as much AIS as two of the gap
_NEIGHBOURS = 10_000  # training data among which the nearest is looked for
_POINT = "the guide is a point: it has no density, and with it no ELBO, no gap and no KL"

_NOT_NEEDED = {
    "exact": "not needed, log p(x) is known in closed form",
    "quadrature": "not needed, log p(x) is known by quadrature",
}


@contextmanager
def _unwatched(part: str) -> Iterator[OnStep]:
    yield lambda done, total: None


def diagnose(
    model: Program,
    guide: Program,
    train: Split,
    test: Split,
    facts: Facts,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    parts: Sequence[str] | None = None,
    asked: bool | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    protocol: dict[str, Any] | None = None,
    watch: Watch = _unwatched,
    on_part: Callable[[str, Diagnosis], None] = lambda part, diagnosis: None,
) -> Diagnosis:
    """Say where a pair loses log p(x), what its latents carry, and whether the model fits.

    ======================  ==================================================================
    ``gap``                 log p(x) − ELBO on training and test data, and its two parts
    ``bounds``              how far AIS may fall short of log p(x), on 20 data from the model
    ``reliability``         k̂ of IWAE-K on test data
    ``latents``             rate, distortion, mutual information, KL by dimension, collapse
    ``calibration``         of q(z|x), on data drawn from the model
    ``checks``              statistics of test data against draws from the model
    ``space``               completeness, smoothness, classification from z
    ======================  ==================================================================

    A part that does not apply to the pair is None or empty, and a line in ``notes`` says why.

    Arguments:
        model, guide: Pyro programs of ``x``, on ``device``, modules in evaluation mode.
        train, test: random subsets of them are looked at, always the same.
        facts: the data's measure.
        settings: sizes and the seed.
        parts: which of the above; None is all.
        asked: whether the parts were named, so that ``bounds`` is done also where log p(x) is known
            in closed form or by quadrature and AIS is not needed; None: where ``parts`` is given.
        device, dtype: where the data are put, and in what precision.
        protocol: what to record of the pair and the data.
        watch: ``with watch(part) as on_step`` is told (steps done, steps in all).
        on_part: told of each part when it is done, with the diagnosis so far.

    Raises:
        InputError: an unknown part.
    """
    chosen = check_parts(parts)
    asked = parts is not None if asked is None else asked
    pair = _Pair(model, guide, train, test, facts, settings, torch.device(device), dtype, asked)
    diagnosis = Diagnosis([], None, None, None, [], None, [], {})
    diagnosis = replace(diagnosis, protocol=_protocol(pair, chosen, protocol or {}))
    for i, part in enumerate(chosen):
        with watch(part) as on_step:
            done = _part(part, pair, on_step)
        notes = [*diagnosis.notes, *done.pop("notes", [])]
        diagnosis = replace(diagnosis, **done, notes=notes)
        waiting = [f"{later}: not reached" for later in chosen[i + 1 :]]
        on_part(part, replace(diagnosis, notes=[*notes, *waiting]))
    return diagnosis


def check_parts(parts: Sequence[str] | None) -> tuple[str, ...]:
    """Return the parts in their order, all for None.

    Raises:
        InputError: an unknown one, or none.
    """
    if parts is None:
        return PARTS
    for part in parts:
        if part not in PARTS:
            raise InputError(f"a diagnosis has no part {part!r}{suggest(part, PARTS)}")
    if not parts:
        raise InputError(f"no part is left; valid: {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in parts)


def data_of(split: Split, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the same random ``count`` data of a split each time, all where there are fewer."""
    return _some(split, count).scored().to(device, dtype)


def positions(split: Split, count: int) -> list[int]:
    """Return where the data of ``data_of`` stand in their split."""
    return sorted(permutation(len(split), 0)[:count].tolist())  # as Split.subset takes them


@dataclass(frozen=True)
class _Pair:
    model: Program
    guide: Program
    train: Split
    test: Split
    facts: Facts
    settings: Settings
    device: torch.device
    dtype: torch.dtype
    asked: bool

    def x(self, split: Split, count: int | None = None) -> Tensor:
        return data_of(split, count or self.settings.count, self.device, self.dtype)

    @property
    def is_point(self) -> bool:
        return not getattr(self.guide, "has_bound", True)


def _some(split: Split, count: int) -> Split:
    return split.subset(min(count, len(split)))


def _part(part: str, pair: _Pair, on_step: OnStep) -> dict[str, Any]:
    """Fields of the diagnosis; where the part refuses the pair, a note with its reason."""
    if pair.is_point and part in _NEED_A_BOUND:
        point = {"notes": [f"{part}: {_POINT}"]}
        return point if part != "latents" else {**point, **_reconstruction(pair)}
    try:
        return _PARTS[part](pair, on_step)
    except InputError as error:
        return {"notes": [f"{part}: {error}"]}


def _gap(pair: _Pair, on_step: OnStep) -> dict[str, Any]:
    """log p(x) of both splits at once: a step of AIS hardly takes longer for twice the data."""
    settings = pair.settings
    splits = {"train": pair.train, "test": pair.test}
    x = {name: pair.x(split, settings.gap_count) for name, split in splits.items()}
    evidence = log_evidence(
        pair.model,
        pair.guide,
        torch.cat(list(x.values())),
        num_chains=settings.num_chains,
        num_temperatures=settings.num_temperatures,
        seed=settings.seed,
        on_step=on_step,
    )
    ends = {"train": slice(0, len(x["train"])), "test": slice(len(x["train"]), None)}
    rows = [
        gap(
            pair.model,
            pair.guide,
            part,
            split=name,
            ordered=pair.facts.ordered,
            seed=settings.seed,
            evidence=_evidence_of(evidence, ends[name]),
            on_step=on_step,
        )
        for name, part in x.items()
    ]
    return {"gaps": rows}


def _evidence_of(evidence: LogEvidence, index: slice) -> LogEvidence:
    return replace(
        evidence,
        log_px=evidence.log_px[index],
        error=evidence.error[index],
        bias=evidence.bias[index],
        trusted=evidence.trusted[index],
    )


def _bounds(pair: _Pair, on_step: OnStep) -> dict[str, Any]:
    """The AIS of the gap, on simulated data; passed over where the gap needs none."""
    settings = pair.settings
    one = pair.x(pair.test, 1)
    if not pair.asked and (method := _method(pair, one)) != "ais":
        return {"notes": [f"bounds: {_NOT_NEEDED[method]}; --only bounds does them anyway"]}
    bounds = simulated_bounds(
        pair.model,
        one.expand(NUM_SIMULATED, *one.shape[1:]),
        num_chains=settings.num_chains,
        num_temperatures=settings.num_temperatures,
        seed=settings.seed,
        on_step=on_step,
    )
    return {"bounds": bounds}


def _method(pair: _Pair, one: Tensor) -> str:
    """What log p(x) is from, by the model alone: tried on one datum with the least of AIS."""
    return log_evidence(pair.model, None, one, num_chains=2, num_temperatures=2).method


def _reliability(pair: _Pair, on_step: OnStep) -> dict[str, Any]:
    settings = pair.settings
    result = log_likelihood(
        pair.model,
        pair.guide,
        pair.x(pair.test),
        settings.num_samples,
        seed=settings.seed,
        on_block=on_step,
    )
    return {"reliability": _reliability_of(result, positions(pair.test, settings.count))}


def _reliability_of(result: LogLikelihood, positions: list[int]) -> Reliability:
    k = result.pareto_k.tolist()
    flagged = [int(i) for i in result.flagged.nonzero().flatten()]
    flagged.sort(key=lambda i: -math.inf if math.isnan(k[i]) else -k[i])
    return Reliability(
        num_samples=result.num_samples,
        pilot_samples=result.pilot_samples,
        threshold=result.threshold,
        pareto_k=k,
        flagged=flagged,
        log_px=result.log_px.tolist(),
        positions=positions,
    )


def _latents(pair: _Pair, on_step: OnStep) -> dict[str, Any]:
    use = latent_use(
        pair.model,
        pair.guide,
        pair.x(pair.test),
        seed=pair.settings.seed,
        ordered=pair.facts.ordered,
    )
    return {"latents": use}


def _reconstruction(pair: _Pair) -> dict[str, Any]:
    split = _some(pair.test, pair.settings.count)
    scores = evaluate(
        pair.model, pair.guide, split, pair.facts, device=pair.device, dtype=pair.dtype
    )
    return {"reconstruction": scores.estimates["reconstruction"]}


def _calibration(pair: _Pair, on_step: OnStep) -> dict[str, Any]:
    like = pair.x(pair.test)
    calibration = simulation_based_calibration(
        pair.model,
        pair.guide,
        like,
        num_data=max(len(like), FEWEST_DATA),  # simulated: a small test split is no limit
        seed=pair.settings.seed,
    )
    return {"calibration": calibration}


def _checks(pair: _Pair, on_step: OnStep) -> dict[str, Any]:
    levels = pair.facts.num_levels if pair.facts.measure == "levels" else None
    checks = predictive_checks(
        pair.model,
        pair.guide,
        pair.x(pair.test),
        pair.x(pair.train, _NEIGHBOURS),
        midpoint=None if levels is None else (levels - 1) / 2,
        ordered=pair.facts.ordered,
        seed=pair.settings.seed,
    )
    return {"checks": checks}


def _space(pair: _Pair, on_step: OnStep) -> dict[str, Any]:
    space = latent_space_report(
        pair.model,
        pair.guide,
        pair.train,
        pair.test,
        seed=pair.settings.seed,
        ordered=pair.facts.ordered,
        device=pair.device,
        dtype=pair.dtype,
    )
    return {"space": space}


_PARTS: dict[str, Callable[[_Pair, OnStep], dict[str, Any]]] = {
    "gap": _gap,
    "bounds": _bounds,
    "reliability": _reliability,
    "latents": _latents,
    "calibration": _calibration,
    "checks": _checks,
    "space": _space,
}
PARTS = tuple(_PARTS)


def _protocol(pair: _Pair, parts: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
    settings = pair.settings
    splits = {"train": pair.train, "test": pair.test}
    protocol: dict[str, Any] = {**given, "parts": list(parts)}
    for key, count in (("splits", settings.count), ("gap_splits", settings.gap_count)):
        if key == "gap_splits" and "gap" not in parts:
            continue
        subsets = {name: _some(split, count) for name, split in splits.items()}
        protocol[key] = {
            name: {"count": len(subset), "content_hash": subset.content_hash}
            for name, subset in subsets.items()
        }
    return {
        **protocol,
        "num_samples": settings.num_samples,
        "num_chains": settings.num_chains,
        "num_temperatures": settings.num_temperatures,
        "seed": settings.seed,
        "dtype": str(pair.dtype).removeprefix("torch."),
        "device": pair.device.type,
        "versions": versions(),
    }
