"""Which scores may stand in one column: log p(x) means something under its measure alone."""

__all__ = ["Scored", "common_measure", "to_measure", "describe", "levels_hash"]

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pyro_vae.data import Split
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate
from pyro_vae.protocols import Facts

# What changes by the Jacobian; bits/dim contain it already, and a KL has no measure of x.
_LOG_DENSITIES = ("elbo", "reconstruction", "log_likelihood", "log_evidence", "log_joint")


@dataclass(frozen=True)
class Scored:
    """What a score speaks of: a likelihood on exactly these data."""

    likelihood: str
    facts: Facts
    split: Split

    @property
    def kind(self) -> str:
        """The measure; of a density, whether its data are dequantized levels."""
        return "dequantized" if self.facts.dequantized else self.facts.measure


def common_measure(scored: Sequence[Scored]) -> str:
    """Return the measure under which all the scores can stand in one column.

    ``binary``, ``counts``, ``levels`` (masses), ``dequantized`` or ``continuous``
    (densities): the one that all have. Only dequantized densities and masses on
    the same levels may differ; then it is ``levels``, see ``to_measure``.

    Raises:
        InputError: the scores speak of different things, and why.
    """
    distinct = {(each.kind, _sizes(each), each.split.content_hash): each for each in scored}
    for one, other in itertools.combinations(distinct.values(), 2):
        if {one.kind, other.kind} == {"levels", "dequantized"}:
            _check_same_levels(one, other)
        elif one.kind != other.kind:
            raise InputError(_explain(one, other))
        else:
            raise InputError(
                f"{one.likelihood} and {other.likelihood} are scored on different data (content "
                f"hashes {one.split.content_hash[:8]} and {other.split.content_hash[:8]}), by "
                "another draw or from another source; sweep them apart"
            )
    kinds = {each.kind for each in scored}
    return "levels" if len(kinds) > 1 else kinds.pop()


def to_measure(estimates: dict[str, Estimate], facts: Facts, measure: str) -> dict[str, Estimate]:
    """Return estimates under a common measure; only dequantized densities to levels change.

    Of y = (level + u)/n, u uniform on (0, 1)^D, by Jensen's inequality

    log P(level) = log E_u p(y) n^−D ≥ E_u log p(y) − D log n

    so that what bounds log p(y) from below bounds log P(level) from below too.
    """
    if measure != "levels" or not facts.dequantized:
        return estimates
    shift = facts.num_dims * math.log(facts.num_levels or 1)
    return {
        name: dataclasses.replace(estimate, value=estimate.value - shift)
        if name in _LOG_DENSITIES
        else estimate
        for name, estimate in estimates.items()
    }


def describe(measure: str) -> str:
    """Return what log p(x) is the logarithm of, in words."""
    return {
        "binary": "a mass on binary data",
        "levels": "a mass on levels",
        "counts": "a mass on counts",
        "dequantized": "a density on dequantized values in (0, 1)",
        "continuous": "a density on real values",
    }[measure]


def levels_hash(split: Split, facts: Facts) -> str:
    """Return the SHA-256 (hex) of the levels behind a split, dequantized or not.

    A dequantized value lies strictly inside its cell: level = ⌊n y⌋.
    """
    digest = hashlib.sha256(f"{(len(split), *split.event_shape)} of {facts.num_levels}".encode())
    for x in split.scored_chunks():
        levels = (x.double() * (facts.num_levels or 1)).floor() if facts.dequantized else x
        digest.update(levels.to(torch.int32).numpy().astype("<i4", copy=False).tobytes())
    return digest.hexdigest()


def _check_same_levels(one: Scored, other: Scored) -> None:
    if _sizes(one) != _sizes(other):
        raise InputError(
            f"{one.likelihood} and {other.likelihood} are scored on {_shown(one)} and "
            f"{_shown(other)}: different data; sweep them apart"
        )
    if levels_hash(one.split, one.facts) != levels_hash(other.split, other.facts):
        raise InputError(
            f"{one.likelihood} and {other.likelihood} are scored on different levels, so that no "
            "Jacobian makes one of the other; sweep them apart"
        )


def _sizes(scored: Scored) -> tuple[object, ...]:
    return scored.facts.event_shape, scored.facts.num_levels, len(scored.split)


def _shown(scored: Scored) -> str:
    facts = scored.facts
    return f"{len(scored.split)} data of shape {facts.event_shape} and {facts.num_levels} levels"


def _explain(one: Scored, other: Scored) -> str:
    kinds = {one.kind, other.kind}
    if kinds == {"continuous", "dequantized"}:
        why = "they speak of different data"
    elif "continuous" in kinds:
        why = "a density changes with the unit of x and a mass does not"
    elif "binary" in kinds:
        why = "binary pixels hold less than the values they were made from"
    else:
        why = "counts have no largest value and levels have one"
    return (
        f"{one.likelihood} gives {describe(one.kind)}, {other.likelihood} "
        f"{describe(other.kind)}: {why}, so their nats cannot stand in one column; sweep them apart"
    )
