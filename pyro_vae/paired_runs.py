"""Two runs, datum by datum: whether they may be compared, by how much they differ, in words."""

__all__ = [
    "Side",
    "check_comparable",
    "paired_differences",
    "paired_verdict",
    "EVIDENCE",
    "LOG_PX",
]

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pyro_vae.comparability import Scored, describe, levels_hash
from pyro_vae.data import Split
from pyro_vae.digits import digits_of
from pyro_vae.errors import InputError
from pyro_vae.evaluation.paired import (
    LEVEL,
    PairedDifference,
    check_same_protocol,
    paired_difference,
)
from pyro_vae.evaluation.scores import PerDatum
from pyro_vae.evaluation_tables import TITLES
from pyro_vae.protocols import Facts

# The estimates of log p(x), the most trusted first.
EVIDENCE = ("log_evidence", "log_evidence_quadrature", "log_evidence_ais")
LOG_PX = (*EVIDENCE, "log_likelihood_adaptive", "log_likelihood")
UNLIKE = "the two runs cannot be compared datum by datum: "


class Side(NamedTuple):
    """What the log p(x) of one of two runs speaks of."""

    likelihood: str
    facts: Facts
    split: Split
    """The data that are scored."""
    protocol: dict[str, Any]

    @property
    def kind(self) -> str:
        """The measure; of a density, whether its data are dequantized levels."""
        return Scored(self.likelihood, self.facts, self.split).kind


def check_comparable(a: Side, b: Side) -> tuple[float, float]:
    """Refuse what has no difference; return what to add to the nats of each side.

    log P(level) ≥ E log p((level + u)/n) − D log n: a dequantized density beside a mass on the
    same levels is brought to levels, as a lower bound.

    Raises:
        InputError: unlike protocols, or measures whose nats cannot be subtracted, naming what
            differs.
    """
    kinds = {a.kind: a, b.kind: b}
    mixed = kinds.keys() == {"levels", "dequantized"}
    if len(kinds) > 1 and not mixed:
        raise InputError(f"{UNLIKE}measure ({describe(a.kind)} and {describe(b.kind)})")
    check_same_protocol(a.protocol, b.protocol, same_levels=mixed)
    if not mixed:
        return 0.0, 0.0
    shapes = {(each.facts.event_shape, each.facts.num_levels) for each in (a, b)}
    hashes = {levels_hash(each.split, each.facts) for each in (a, b)}
    if len(shapes) > 1 or len(hashes) > 1:
        raise InputError(
            f"{UNLIKE}levels (a mass on some, a density of others, so that no Jacobian makes "
            "one of the other)"
        )
    return _jacobian(a.facts), _jacobian(b.facts)


def paired_differences(
    a: Mapping[str, PerDatum],
    b: Mapping[str, PerDatum],
    shifts: tuple[float, float],
    *,
    ordered: bool,
    num_pairs: int = 1,
) -> dict[str, PairedDifference]:
    """Estimate of log p(x) → its difference, of those that both sides have; the best first.

    Intervals are of 95 % for ``num_pairs`` pairs together, by Bonferroni's correction.
    """
    level = 1 - (1 - LEVEL) / num_pairs
    found = {}
    for name in LOG_PX:
        if name in a and name in b:
            sides = [
                dataclasses.replace(side, log_px=side.log_px + shift)
                for side, shift in zip((a[name], b[name]), shifts, strict=True)
            ]
            found[name] = paired_difference(*sides, ordered=ordered, level=level)
    return found


def paired_verdict(
    differences: Mapping[str, PairedDifference],
    num_samples: int,
    seed: int,
    shifts: Sequence[float],
    *,
    adaptive: bool = False,
    num_pairs: int = 1,
) -> list[str]:
    """What the most trusted difference says, what limits it, and what none of them says."""
    name = next(iter(differences))
    found = differences[name]
    title = f"IWAE-{num_samples}" if name == "log_likelihood" else TITLES[name]
    of_guides = found.may_be_the_guides and name not in EVIDENCE
    lines = [f"{title}: {_conclusion(found, num_pairs, of_guides)}"]
    if of_guides:
        lines.append(_guides(found, adaptive))
    for side, shift in zip("AB", shifts, strict=True):
        if shift:
            lines.append(
                f"{side} is a density of dequantized values, here less D log n: a lower bound on "
                f"log P(level), so that {side} may lie higher"
            )
    if not any(each.is_exact or each.is_same for each in differences.values()):
        limit = "an upper limit, however their draws are correlated"
        if found.understated:
            limit = "≥, because they are lower limits"
        lines.append(
            f"± draws is the sum of the errors of A and B, which share the noise of seed {seed}: "
            f"{limit}; ± data contains what the draws add"
        )
    lines.append(
        "This compares two trained networks; of two priors or architectures it says nothing: "
        "those take five seeds a side, see pyro-vae sweep"
    )
    return lines


def _jacobian(facts: Facts) -> float:
    """−D log n of dequantized values, 0 of levels."""
    return -facts.num_dims * math.log(facts.num_levels or 1) if facts.dequantized else 0.0


def _conclusion(found: PairedDifference, num_pairs: int, of_guides: bool) -> str:
    if found.is_same:
        return "A and B agree on every datum to the last bit"
    if found.low is None or found.high is None:
        return "unresolved: one datum has no error over data"
    digits = digits_of([found.data_standard_error])
    interval = f"{found.low:.{digits}f} to {found.high:.{digits}f}, the 95 % interval over data"
    if num_pairs > 1:
        interval += f" of {num_pairs} pairs together"
    if found.winner == "unresolved":
        return f"unresolved, A − B is {interval}"
    winner = "A" if found.winner == "first" else "B"
    higher = (
        f"the estimate of {winner} is higher, log p(x) need not be"
        if of_guides
        else (f"{winner} is higher")
    )
    return f"{higher}; A − B is {interval}"


def _guides(found: PairedDifference, adaptive: bool) -> str:
    """Why a difference of the estimates need not be one of log p(x)."""
    lower, flagged, bias = "B", found.second_flagged, found.second_bias
    if found.difference < 0:
        lower, flagged, bias = "A", found.first_flagged, found.first_bias
    reasons = []
    if bias is None:
        reasons.append("one draw a datum tells no bias")
    elif -bias >= abs(found.difference):
        reasons.append("its bias is as large")
    if flagged:
        reasons.append(f"{flagged} of its {found.count} data are flagged")
    hint = "" if adaptive or not flagged or bias is None else "; see --adaptive"
    return (
        f"It may be a difference of the guides: the estimate of {lower} may miss as much of "
        f"log p(x) as A and B differ by ({' and '.join(reasons)}){hint}"
    )
