"""Simulation-based calibration: whether q(z|x) is p(z|x) on data drawn from the model."""

__all__ = ["simulation_based_calibration", "Calibration"]

from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation.simulation import simulate
from pyro_vae.execution import Program
from pyro_vae.log_weights import Latents, check_data, draw_latents, own_parameters, weigh
from pyro_vae.seeding import derive_seed, seeded

NUM_BINS = 20
FEWEST_DATA = 5 * NUM_BINS  # five expected counts a bin: below, chi-square is no good limit
CHUNK = 3200  # z evaluated at once
LOG_JOINT = "log p(x, z)"


@dataclass(frozen=True)
class Calibration:
    """Simulation-based calibration of q on data drawn from the model."""

    num_data: int
    num_draws: int
    """L, of q a datum; a rank is one of 0 … L."""
    sites: list[str]
    """Name of each coordinate, such as ``z[3]``, the last one ``log p(x, z)``."""
    p_values: list[float]
    """Of uniform ranks, a coordinate each, not yet corrected for their number."""
    histograms: list[list[int]]
    """Counts of the ranks in equal bins, a coordinate each."""
    verdict: str
    """``calibrated``, ``overconfident``, ``underconfident``, ``biased`` or ``miscalibrated``."""
    sentence: str
    level: float = 0.05
    """The probability that an exact posterior is called anything but calibrated, at most."""


class _Ranks(NamedTuple):
    """How the ranks of one coordinate differ from uniform ones."""

    name: str
    histogram: list[int]
    shift: float
    """Of their mean, in standard errors."""
    spread: float
    """Of their mean squared distance from the middle, in standard errors."""
    shape: float
    """p-value of χ² over bins."""
    coverage: float
    """Share of the data whose z* lies among the middle half of the draws."""
    above: float
    """Share of the data whose z* lies above the middle of the draws."""

    @property
    def directional(self) -> float:
        """The smaller p-value of shift and spread."""
        from scipy.stats import norm  # type: ignore[import-untyped]

        return 2 * float(norm.sf(max(abs(self.shift), abs(self.spread))))

    @property
    def p_value(self) -> float:
        """Of the three tests together."""
        return min(1.0, 3 * min(self.directional, self.shape))

    def kind(self, level: float) -> str:
        """Return what is wrong with ranks whose p-value is below ``level``."""
        if 3 * self.directional > level:
            return "miscalibrated"
        if abs(self.shift) > abs(self.spread):
            return "biased"
        return "overconfident" if self.spread > 0 else "underconfident"


@torch.no_grad()
def simulation_based_calibration(
    model: Program,
    guide: Program,
    like: Tensor,
    *,
    num_data: int | None = None,
    num_draws: int = 99,
    level: float = 0.05,
    seed: int = 0,
) -> Calibration:
    """Hold q(z|x) against the posterior on data whose latents are known, for they were drawn.

    z*, x ~ p(z) p(x|z);  z_1 … z_L ~ q(z|x);  r_d = #{l: z_l,d < z*_d}

    If q(z|x) = p(z|x), z* is one more draw of it and every r_d is uniform on {0 … L}. Ties,
    as of discrete latents, are broken at random, which keeps that exact. Three tests of each
    coordinate's ranks: their mean (a shift), their mean squared distance from L/2 (too
    large where q is too narrow, too small where it is too wide), and χ² over 20 bins
    for the rest. Its p-value is three times the smallest; a coordinate is flagged where
    that times the number of coordinates is below ``level``. So an exact posterior is
    called calibrated with a probability of at least 1 − level, up to the normal and χ²
    limits, for 100 data or more.

    The ranks of single coordinates miss wrong correlations, and are uniform for q(z|x) =
    p(z) too. Hence one more quantity is ranked, log p(x, z), which depends on all of
    z and on x (Modrák et al.). What calibration cannot see: it averages over data, so that errors
    which cancel over x stay hidden; and it speaks of data drawn from the model, not of yours.

    References:
        Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et
        al., 2018) https://arxiv.org/abs/1804.06788
        Validation of Software for Bayesian Models Using Posterior Quantiles (Cook, Gelman &
        Rubin, 2006) https://doi.org/10.1198/106186006X136976
        Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test
        Quantities Shapes Sensitivity (Modrák et al., 2023) https://arxiv.org/abs/2211.02383

    Arguments:
        model, guide: a pair of Pyro programs of ``x``; modules are run as they are.
        like: ``[B, *event_shape]``: shape, dtype and device of x; values do not matter.
        num_data: how many data are drawn, at least 100; None is B.
        num_draws: L; L + 1 must be a multiple of 20.
        level: of the verdict, over all coordinates together.
        seed: of the noise; torch's global random state is left as it was.

    Raises:
        InputError: too few data, an L or a level that makes no sense, a guide that is a point,
            latents that differ, or a model that cannot be simulated, see ``simulate``.
    """
    check_data(like, num_draws)
    num_data = len(like) if num_data is None else num_data
    _check_arguments(num_data, num_draws, level)
    if not getattr(guide, "has_bound", True):
        raise InputError("calibration is of the spread of q(z|x), and this guide draws a point")
    like = like[:1].expand(num_data, *like.shape[1:])
    simulated = simulate(model, like, derive_seed(seed, "calibration"))
    truth = simulated.latents | simulated.enumerated
    step = max(1, CHUNK // (num_draws + 1))
    parts = []
    with own_parameters(model, guide):
        for start in range(0, num_data, step):
            part = slice(start, start + step)
            latents = {name: value[part] for name, value in truth.items()}
            noise = derive_seed(seed, "ranks", start // step)
            parts.append(_ranks(model, guide, simulated.x[part], latents, num_draws, noise))
    ranks = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tested = [_test(name, values.cpu(), num_draws) for name, values in ranks.items()]
    verdict, sentence = _verdict(tested, num_data, level)
    return Calibration(
        num_data=num_data,
        num_draws=num_draws,
        sites=[t.name for t in tested],
        p_values=[t.p_value for t in tested],
        histograms=[t.histogram for t in tested],
        verdict=verdict,
        sentence=sentence,
        level=level,
    )


def _ranks(
    model: Program, guide: Program, x: Tensor, truth: dict[str, Tensor], num_draws: int, seed: int
) -> dict[str, Tensor]:
    """Return coordinate → ranks of the truth among draws of q, ``[C]``."""
    with seeded(seed, x.device):
        draws = draw_latents(guide, x, num_draws).values
        # The truth first, then the draws: [1 + L, C, *event].
        values = {n: torch.cat([v[None], draws[n]]) for n, v in truth.items() if n in draws}
        # A latent of the guide alone is refused by weigh.
        values |= {n: torch.cat([v[:1], v]) for n, v in draws.items() if n not in truth}
        zero = torch.zeros(num_draws + 1, len(x), dtype=torch.float64, device=x.device)
        weights = weigh(model, x, Latents(values, zero))
        columns = {LOG_JOINT: weights.log_likelihood + weights.log_prior}
        if bool(columns[LOG_JOINT].isnan().any()):
            raise InputError(
                "log p(x, z) is NaN at a draw: check the model, or calibrate in float64"
            )
        columns = _coordinates(values) | columns
        return {name: _rank(column) for name, column in columns.items()}


def _coordinates(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name and values ``[1 + L, C]`` of each number of the latents."""
    columns = {}
    for name, value in values.items():
        numbers = value.flatten(2).unbind(2) if value.dim() > 2 else (value,)
        for index, column in zip(product(*map(range, value.shape[2:])), numbers, strict=True):
            columns[f"{name}[{', '.join(map(str, index))}]" if index else name] = column
    return columns


def _rank(column: Tensor) -> Tensor:
    """Rank of the first row among the others, ties at random, ``[C]``."""
    truth, draws = column[0], column[1:]
    below = (draws < truth).sum(0)
    ties = (draws == truth).sum(0)
    # Uniform on {0 … ties}.
    return below + (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long()


def _test(name: str, ranks: Tensor, num_draws: int) -> _Ranks:
    """Test ranks ``[N]`` for being uniform on {0 … L}."""
    from scipy.stats import chi2

    count, levels = len(ranks), num_draws + 1
    # u = r − L/2 of a uniform r:  E u = 0,  E u² = (n² − 1)/12,
    # Var u² = (n² − 1)(n² − 4)/180,  n = L + 1;  u and u² are uncorrelated.
    u = ranks.double() - num_draws / 2
    variance = (levels**2 - 1) / 12
    shift = float(u.mean()) / (variance / count) ** 0.5
    spread = float(u.square().mean()) - variance
    spread /= (variance * (levels**2 - 4) / 15 / count) ** 0.5
    histogram = torch.bincount(ranks * NUM_BINS // levels, minlength=NUM_BINS)
    expected = count / NUM_BINS
    chi_square = float((histogram - expected).square().sum() / expected)
    return _Ranks(
        name=name,
        histogram=histogram.tolist(),
        shift=shift,
        spread=spread,
        shape=float(chi2.sf(chi_square, NUM_BINS - 1)),
        coverage=float((u.abs() < levels / 4).double().mean()),
        above=float((u > 0).double().mean()),
    )


def _verdict(ranks: list[_Ranks], count: int, level: float) -> tuple[str, str]:
    """Return the verdict over all coordinates, and a sentence."""
    each = level / len(ranks)
    flagged = sorted((r for r in ranks if r.p_value < each), key=lambda r: r.p_value)
    limits = "This is of data drawn from the model, not of yours, and on average over them."
    if not flagged:
        return "calibrated", (
            f"The ranks of {count} simulated data are uniform in all {len(ranks)} coordinates, as "
            f"far as a test of level {level:g} tells. {limits}"
        )
    latents = [r for r in flagged if r.name != LOG_JOINT]
    if not latents:
        return "miscalibrated", (
            f"The ranks of {LOG_JOINT} are not uniform ({_p(flagged[0].p_value)}, level "
            f"{level:g} over {len(ranks)} coordinates), those of each latent are: q is wrong in "
            f"how the latents go together or with x. {limits}"
        )
    kinds = Counter(r.kind(each) for r in latents)
    told = ", ".join(f"{kind} in {number}" for kind, number in kinds.most_common())
    return next(iter(kinds)) if len(kinds) == 1 else "miscalibrated", (
        f"The ranks of {len(flagged)} of {len(ranks)} coordinates are not uniform at level "
        f"{level:g} over all of them: {told}; most clearly {latents[0].name} "
        f"({_p(latents[0].p_value)}), where {_told(latents[0], each)}. {limits}"
    )


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.1g}"


def _told(ranks: _Ranks, level: float) -> str:
    """What is wrong with one coordinate, and how much."""
    kind = ranks.kind(level)
    if kind == "miscalibrated":
        return "neither a shift nor the width explains it"
    if kind == "biased":
        side = "low" if ranks.shift > 0 else "high"
        return f"q is too {side}: {ranks.above:.0%} of the true values lie above its median"
    width = "narrow" if kind == "overconfident" else "wide"
    return f"q is too {width}: its middle half holds {ranks.coverage:.0%} of the true values"


def _check_arguments(num_data: int, num_draws: int, level: float) -> None:
    if type(num_data) is not int or num_data < FEWEST_DATA:
        raise InputError(
            f"calibration needs at least {FEWEST_DATA} simulated data, got {num_data!r}; give "
            "num_data"
        )
    if (num_draws + 1) % NUM_BINS:
        raise InputError(
            f"num_draws + 1 must be a multiple of {NUM_BINS}, the number of bins, such as "
            f"num_draws=99; got {num_draws}"
        )
    if not 0 < level < 1:
        raise InputError(f"level must lie inside (0, 1), got {level!r}")
