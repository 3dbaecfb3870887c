"""Absolute fit: a few statistics of data against those of draws from the model."""

__all__ = ["predictive_checks", "nearest_distance", "AGAINST"]

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from scipy.stats import ks_2samp, t  # type: ignore[import-untyped]
from torch import Tensor

from pyro_vae.diagnosis.rows import PredictiveCheck
from pyro_vae.errors import InputError
from pyro_vae.evaluation.scores import Estimate
from pyro_vae.evaluation.simulation import replicate, simulate
from pyro_vae.execution import Program
from pyro_vae.log_weights import check_data
from pyro_vae.seeding import derive_seed
from pyro_vae.standard_error import standard_error_of_mean

PRIOR, POSTERIOR = "prior predictive", "posterior predictive"
AGAINST = (PRIOR, POSTERIOR)
NEAREST = "distance to the nearest training datum"
NUM_SWAPS = 999
BLOCKS = "Student's t over blocks"
FEWEST_DATA = 4  # two blocks of ordered data
CHUNK = 2**24  # distances held at once

Statistic = Callable[[Tensor], Tensor]


@torch.no_grad()
def predictive_checks(
    model: Program,
    guide: Program,
    x: Tensor,
    train_x: Tensor,
    *,
    num_draws: int = 2,
    against: Sequence[str] = AGAINST,
    midpoint: float | None = None,
    ordered: bool = False,
    seed: int = 0,
) -> list[PredictiveCheck]:
    """Hold three statistics of held-out data against those of data drawn from the model.

    - mean intensity: the mean over the dimensions of a datum;
    - active pixels: the share of its dimensions above ``midpoint``; for binary data that is
      the mean intensity, and stands once;
    - distance to the nearest training datum, Euclidean, in the data's units: smaller for
      draws than for held-out data where a model repeats its training data.

    Against each of
    - the prior predictive, x̃ ~ p(x), drawn independently of the data;
    - the posterior predictive, x̃_n ~ p(x|z), z ~ q(z|x_n), paired with x_n. It has seen
      x_n, so it misses what the prior predictive finds, and it blames p and q together.

    ``data`` has an error over data only. ``simulated`` and ``difference`` have a
    ``standard_error`` over draws, the data held fixed; a ``data_standard_error`` only
    as far as the data move them: ``simulated`` of the prior predictive has none, and in
    the posterior predictive that of ``difference`` is of the pairs' differences, over
    data and draws together.

    ``distance`` is Kolmogorov and Smirnov's between the statistic of each datum and
    that of its first draw. ``p_value`` is of a true model (and q = p(z|x)), by ``test``:

    - prior predictive, two independent samples: the two-sample test of that distance,
      conservative where a statistic has ties;
    - posterior predictive: x_n and x̃_n are then exchangeable, both draws of p(x|z), so
      that the distance is held against 999 of it in which every pair is swapped by the toss
      of a coin; 0.001 at least. (A test of independent samples would be wrong for pairs.)
    - ordered data, whose neighbours are alike, in place of both: Student's t of the
      difference of means, its error over √B blocks, with √B − 1 degrees of freedom.

    The p-values are of single checks, not corrected for their number. Enough data tell every
    trained model from the truth: look at the size of the difference.

    References:
        Posterior Predictive Assessment of Model Fitness via Realized Discrepancies (Gelman,
        Meng & Stern, 1996) https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n41/j6n41.htm
        Sampling and Bayes' Inference in Scientific Modelling and Robustness (Box, 1980), the
        prior predictive check https://doi.org/10.2307/2982063

    Arguments:
        model, guide: a pair of Pyro programs of ``x``; modules are run as they are.
        x: held-out data ``[B, *event_shape]``, at least 4. Training data have a distance of 0
            to themselves: the share of such data is told in the note of the distance.
        train_x: the training data ``[N, *event_shape]``, on the same device.
        num_draws: draws a datum of each kind; from one the posterior predictive has no
            error over draws.
        against: which of ``AGAINST``.
        midpoint: of active pixels, such as (n − 1)/2 of levels 0 … n − 1; None is ½ where the
            training data lie in [0, 1], else their mean.
        ordered: whether neighbours in x are alike, as in a video.
        seed: of the noise; torch's global random state is left as it was.

    Raises:
        InputError: data, counts or names that make no sense; or as for ``simulate`` and
            ``replicate``.
    """
    _check_arguments(x, train_x, num_draws, against)
    statistics = _statistics(train_x.to(x), midpoint)
    observed = {name: statistic(x) for name, statistic in statistics.items()}
    checks = []
    for kind in against:
        drawn: dict[str, list[Tensor]] = {name: [] for name in statistics}
        for i in range(num_draws):
            y = _draw(kind, model, guide, x, derive_seed(seed, kind, i))
            for name, statistic in statistics.items():
                drawn[name].append(statistic(y))
        compare = _independent if kind == PRIOR else _paired
        for name, values in observed.items():
            draws, noise = torch.stack(drawn[name]), derive_seed(seed, kind, name)
            checks.append(compare(name, values, draws, ordered, noise))
    return checks


def nearest_distance(x: Tensor, train_x: Tensor) -> Tensor:
    """Return the Euclidean distance of each datum to the nearest of ``train_x``, ``[B]``, float64.

    Arguments:
        x: ``[B, *event_shape]``.
        train_x: ``[N, *event_shape]``, of the same dtype and on the same device.
    """
    center = train_x.mean(0).flatten()
    points, queries = train_x.flatten(1) - center, x.flatten(1) - center
    squares = points.square().sum(1)
    parts = []
    for part in queries.split(max(1, CHUNK // len(points))):
        # argmin ‖a − b‖² = argmin ‖b‖² − 2 aᵀb; the distance itself is taken without cancellation.
        nearest = torch.addmm(squares, part, points.T, alpha=-2).argmin(1)
        parts.append((part.double() - points[nearest].double()).norm(dim=1))
    return torch.cat(parts)


def _draw(kind: str, model: Program, guide: Program, x: Tensor, seed: int) -> Tensor:
    return simulate(model, x, seed).x if kind == PRIOR else replicate(model, guide, x, seed)


def _statistics(train_x: Tensor, midpoint: float | None) -> dict[str, Statistic]:
    nearest = partial(nearest_distance, train_x=train_x)
    if bool(((train_x == 0) | (train_x == 1)).all()):
        return {"mean intensity (share of active pixels)": _intensity, NEAREST: nearest}
    if midpoint is None:
        in_unit = float(train_x.min()) >= 0 and float(train_x.max()) <= 1
        midpoint = 0.5 if in_unit else float(train_x.double().mean())
    active = partial(_active, midpoint=midpoint)
    name = f"active pixels (above {midpoint:.3g})"
    return {"mean intensity": _intensity, name: active, NEAREST: nearest}


def _intensity(x: Tensor) -> Tensor:
    return x.double().flatten(1).mean(1)


def _active(x: Tensor, midpoint: float) -> Tensor:
    return _intensity(x > midpoint)


def _independent(
    name: str, data: Tensor, draws: Tensor, ordered: bool, seed: int
) -> PredictiveCheck:
    """Compare data ``[B]`` with draws ``[S, B]`` made without them."""
    over_draws = float(draws.std() / math.sqrt(draws.numel()))
    over_data = standard_error_of_mean(data, ordered)
    distance, p_value = _two_sample_test(data, draws[0])
    difference = float(draws.mean() - data.mean())
    test = "two-sample Kolmogorov–Smirnov"
    if ordered:
        error = math.hypot(over_draws, over_data or 0.0)
        p_value, test = _t_test(difference, error, len(data)), BLOCKS
    estimate = partial(Estimate, count=len(data), unit=_unit(name))
    return PredictiveCheck(
        statistic=name,
        against=PRIOR,
        data=_of_data(name, data, ordered),
        simulated=estimate(float(draws.mean()), over_draws, None),
        difference=estimate(difference, over_draws, over_data),
        distance=distance,
        p_value=p_value,
        data_values=data.tolist(),
        simulated_values=draws[0].tolist(),
        test=test,
    )


def _paired(name: str, data: Tensor, draws: Tensor, ordered: bool, seed: int) -> PredictiveCheck:
    """Compare data ``[B]`` with draws ``[S, B]`` made from them."""
    means = draws.mean(0)
    over_draws = None
    if len(draws) > 1:
        over_draws = float((draws.var(0) / len(draws)).sum().sqrt() / len(data))
    distance, p_value = _swap_test(data, draws[0], seed)
    difference, test = float((means - data).mean()), f"{NUM_SWAPS} swaps of pairs"
    over_data = standard_error_of_mean(means - data, ordered)
    if ordered:
        p_value, test = _t_test(difference, over_data or 0.0, len(data)), BLOCKS
    estimate = partial(Estimate, count=len(data), unit=_unit(name))
    return PredictiveCheck(
        statistic=name,
        against=POSTERIOR,
        data=_of_data(name, data, ordered),
        simulated=estimate(float(means.mean()), over_draws, standard_error_of_mean(means, ordered)),
        difference=estimate(difference, over_draws, over_data),
        distance=distance,
        p_value=p_value,
        data_values=data.tolist(),
        simulated_values=draws[0].tolist(),
        test=test,
    )


def _of_data(name: str, values: Tensor, ordered: bool) -> Estimate:
    zeros = int((values == 0).sum()) if name == NEAREST else 0
    note = f"{zeros} of {len(values)} are in the training data, at a distance of 0"
    return Estimate(
        value=float(values.mean()),
        standard_error=None,
        data_standard_error=standard_error_of_mean(values, ordered),
        count=len(values),
        unit=_unit(name),
        note=note if zeros else None,
    )


def _unit(name: str) -> str:
    return "share" if name.startswith("active") else "units of x"


def _two_sample_test(data: Tensor, draws: Tensor) -> tuple[float, float]:
    """Kolmogorov's distance of independent samples, and its p-value."""
    with warnings.catch_warnings():
        # Where the exact p-value rounds to above 1, scipy says that it takes the limit.
        warnings.simplefilter("ignore", RuntimeWarning)
        result = ks_2samp(data.cpu().numpy(), draws.cpu().numpy())
    return float(result.statistic), float(result.pvalue)


def _swap_test(data: Tensor, draws: Tensor, seed: int) -> tuple[float, float]:
    """Kolmogorov's distance of pairs ``[B]``, and its p-value under swaps within pairs."""
    count = len(data)
    values, order = torch.cat([data, draws]).cpu().sort()
    # F_data − F_draws at each value is a cumulative sum; ties count at their last member.
    last = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)])
    side = torch.where(order < count, 1, -1).int()
    generator = torch.Generator().manual_seed(seed)
    distance = side.cumsum(0)[last].abs().max()
    at_least = 0
    for rows in torch.arange(NUM_SWAPS).split(max(1, CHUNK // (16 * count))):
        toss = torch.randint(2, (len(rows), count), generator=generator, dtype=torch.int32)
        steps = side * (2 * toss - 1)[:, order % count]
        at_least += int((steps.cumsum(1)[:, last].abs().amax(1) >= distance).sum())
    return int(distance) / count, (1 + at_least) / (1 + NUM_SWAPS)


def _t_test(difference: float, error: float, count: int) -> float:
    """Two-sided p-value of a difference whose error is over √count blocks."""
    if error == 0:
        return float(difference == 0)
    return 2 * float(t.sf(abs(difference) / error, math.isqrt(count) - 1))


def _check_arguments(x: Tensor, train_x: Tensor, num_draws: int, against: Sequence[str]) -> None:
    check_data(x, num_draws)
    check_data(train_x, num_draws)
    if len(x) < FEWEST_DATA:
        raise InputError(f"predictive checks need at least {FEWEST_DATA} data, got {len(x)}")
    if x.shape[1:] != train_x.shape[1:]:
        raise InputError(
            f"expected training data of the shape of the data, {list(x.shape[1:])} each, got "
            f"{list(train_x.shape[1:])}"
        )
    for kind in against:
        if kind not in AGAINST:
            raise InputError(f"against must be among {', '.join(AGAINST)}, got {kind!r}")
