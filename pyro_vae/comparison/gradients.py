"""Estimators' gradients side by side: bias, variance, signal-to-noise and cost a group."""

__all__ = ["compare_gradients", "DEFAULT_ESTIMATORS", "DEFAULT_PARTICLES"]

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_vae.checks import check_count
from pyro_vae.comparison._estimators import (
    ELBO,
    Candidate,
    Estimator,
    Target,
    at_each,
    candidates,
    gradient_target,
    one_line,
)
from pyro_vae.comparison._exact import exact_bound
from pyro_vae.comparison._moments import Average, Moments
from pyro_vae.comparison._parameters import Gradients, kept_buffers
from pyro_vae.comparison._summary import error, noise
from pyro_vae.comparison.per_datum import refusals
from pyro_vae.comparison.rows import GradientRow
from pyro_vae.components import find
from pyro_vae.execution import Program
from pyro_vae.log_weights import check_data, own_parameters
from pyro_vae.seeding import derive_seed, seeded

DEFAULT_ESTIMATORS = (
    "trace", "closed_form", "trace_mean_field", "trace_graph", "sticking_the_landing", "iwae",
    "dreg", "renyi(alpha=0.5)", "pyro_renyi", "tvo", "reweighted_wake_sleep",
)  # fmt: skip
ENUMERATING = "trace_enum"  # first where the model has discrete latents of its own
DEFAULT_PARTICLES = (1, 8, 64)


def compare_gradients(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    estimators: Sequence[Estimator] | None = None,
    particles: Sequence[int] = DEFAULT_PARTICLES,
    num_repeats: int = 40,
    reference_repeats: int | None = None,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[GradientRow]:
    """Compare the gradients of estimators of a pair's bound, for the guide's and other parameters.

    g = ∇ (1/N) Σ_x L̂(x), the sign that of the bound, with respect to unconstrained
    parameters, R draws an estimator and K. The r-th draws of all estimators share a seed:
    those that draw z alike have the same noise. Of R draws

    - ``variance``: Σ_p s_p², ``signal_to_noise``: the mean over p of |ḡ_p|/s_p. Parameters
      whose s_p is 0 up to rounding have no such ratio and are left out: dead units, and
      gradients in closed form. None where none is left. Both have standard errors: of
      the increments of Σ_p s_p² a draw, and of a jackknife over blocks of draws.
    - ``bias``: |E g − ∇L|/|∇L|, from an estimate of |E g − ∇L|² without bias. It is
      resolved where it is several of its standard errors, and an estimator is shown to be
      unbiased only up to a few of them. None where |∇L| itself is not 3 standard errors
      above 0: it is then no unit.
    - ``largest_z``: of the largest |ḡ_p − ∇L_p|, against ``largest_z_limit``, which an
      unbiased normal gradient exceeds with probability 5 % at most.

    The reference ∇L is exact for a linear-Gaussian model under a normal guide. Otherwise it
    is an average under seeds of its own by another estimator of the same target: for
    the ELBO ``closed_form`` with 64 particles (for itself ``trace_mean_field``, where they
    refuse ``trace``), for IWAE-K ``dreg`` (for itself ``iwae``). There is none for Rényi's
    bounds, TVO and the guide of reweighted wake-sleep, nor for a user's own estimator.

    Draws of all estimators are made in turn, so that what disturbs the clock hits all of
    them alike. Memory is 16 bytes a parameter and row, and at
    most 3 MB a row.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        equation 5, for the signal-to-noise ratio
        https://arxiv.org/abs/1802.04537

    Arguments:
        model, guide: Pyro programs of ``x``; modules are run as they are.
        x: ``[B, *event_shape]``, on the programs' device.
        estimators: specs of objectives, run at every K unless they give ``num_particles``;
            functions of K that return a ``pyro.infer.ELBO``, called by their name; such
            objects, run at their own K; or pairs of a label and one of the latter two. None
            is ``DEFAULT_ESTIMATORS``.
        particles: the K.
        num_repeats: R, at least 4.
        reference_repeats: how many draws a reference averages; twice R by default.
        seed: of the noise; torch's global random state is left as it was.
        on_step: told (draws done, draws in all).

    Returns:
        A row a group, estimator and K, in this order. An estimator that does not take the
        pair has rows that say why. A group without parameters has none.

    Raises:
        InputError: an argument that makes no sense, or an unknown estimator.
    """
    check_data(x, 1)
    check_count("compare_gradients", "num_repeats", num_repeats, low=4)
    reference_repeats = 2 * num_repeats if reference_repeats is None else reference_repeats
    check_count("compare_gradients", "reference_repeats", reference_repeats, low=4)
    with own_parameters(model, guide), kept_buffers(model, guide):
        gradients = Gradients(model, guide, x)
        if estimators is None:
            enumerating = (ENUMERATING,) if gradients.groups.enumerates else ()
            estimators = (*enumerating, *DEFAULT_ESTIMATORS)
        found = candidates(estimators, particles)
        with seeded(derive_seed(seed, "gradients", "exact"), x.device):
            bound = exact_bound(model, guide, x, gradients.groups.num_data)
        exact = None if bound is None else gradients.of_bound(bound)
        runs = [_Run(candidate, gradients, num_repeats, seed) for candidate in found]
        references = _References(gradients, exact, reference_repeats, seed)
        for run in runs:
            references.prepare(run)
        _draw([*runs, *references.judges], on_step)
    rows = [
        _row(run, group, references) for group in gradients.groups.leaves for run in runs
    ]  # fmt: skip
    return [_at_equal_compute(row, rows) for row in rows]


class _Run:
    """The draws of one estimator at one K. A first one, not counted, shows whether it refuses.

    Arguments:
        purpose: words that set its seeds apart from those of other draws.
    """

    def __init__(
        self,
        candidate: Candidate,
        gradients: Gradients,
        num_draws: int,
        seed: int,
        *purpose: str,
    ):
        self.candidate = candidate
        self.refusal = candidate.refusal
        self.num_draws = num_draws
        self.times: list[float] = []
        self._gradients = gradients
        self._seed, self._purpose = seed, purpose
        self._moments: dict[str, Moments] = {}
        self._averages: dict[str, Average] = {}
        self._warm_up()

    def draw(self, repeat: int) -> None:
        """Make one draw and take it into the moments."""
        drawn = self._attempt(repeat)
        if drawn is not None:
            vectors, milliseconds = drawn
            self.times.append(milliseconds)
            for group, vector in vectors.items():
                self._moments[group].update(vector)

    def average(self, group: str) -> Average:
        """What all draws say of a group."""
        if group not in self._averages:
            self._averages[group] = self._moments.pop(group).average()
        return self._averages[group]

    def _warm_up(self) -> None:
        drawn = None if self.refusal else self._attempt("warm_up")
        for group, vector in drawn[0].items() if drawn else ():
            sketch = self._gradients.sketches[group]
            self._moments[group] = Moments(sketch, self.num_draws, vector.device)

    def _attempt(self, repeat: int | str) -> tuple[dict[str, Tensor], float] | None:
        """One draw, or None and a refusal."""
        seed = derive_seed(self._seed, "gradients", *self._purpose, repeat)
        try:
            with refusals():
                drawn = self._gradients.draw(self.candidate.objective, seed)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the pair ran: what fails is the estimator on it
            self.refusal = one_line(error)
            return None
        if not all(bool(vector.isfinite().all()) for vector in drawn[0].values()):
            self.refusal = "its gradient is NaN or infinite"
            return None
        return drawn


def _draw(runs: list[_Run], on_step: Callable[[int, int], None]) -> None:
    """Make all draws, one of each estimator in turn."""
    total = sum(run.num_draws for run in runs if not run.refusal)
    done = 0
    for repeat in range(max((run.num_draws for run in runs), default=0)):
        for run in runs:
            if not run.refusal and repeat < run.num_draws:
                run.draw(repeat)
                done += run.num_draws - repeat if run.refusal else 1
                on_step(done, total)


class _References:
    """What gradients are held against: exact where known, else averages by other estimators."""

    def __init__(
        self, gradients: Gradients, exact: dict[str, Tensor] | None, repeats: int, seed: int
    ):
        self._gradients = gradients
        self._exact = exact
        self._repeats = repeats
        self._seed = seed
        self._judges: dict[tuple[str, int], _Run] = {}
        self._chosen: dict[tuple[_Run, str], tuple[str, int] | None] = {}

    @property
    def judges(self) -> list[_Run]:
        """Those that any run needs."""
        return [self._judges[key] for key in sorted({k for k in self._chosen.values() if k})]

    def prepare(self, run: _Run) -> None:
        """Find the judges of a run's targets."""
        for group in self._gradients.groups.leaves if not run.refusal else ():
            target = _target(run, group)
            if not (target == ELBO and self._exact):
                self._chosen[run, group] = self._judge(run, target)

    def of(self, run: _Run, group: str) -> tuple[Average, str, float] | None:
        """The reference of a run's gradient, what it is, and its rounding error."""
        if _target(run, group) == ELBO and self._exact:
            known = Average.exact(self._exact[group], self._gradients.sketches[group])
            return known, "exact", self._rounding(self._exact.values())
        key = self._chosen[run, group]
        if key is None or self._judges[key].refusal:
            return None
        judge = self._judges[key]
        averages = {name: judge.average(name) for name in self._gradients.groups.leaves}
        name = f"{self._repeats} × {key[0]}(num_particles={key[1]})"
        return averages[group], name, self._rounding(a.mean for a in averages.values())

    def _rounding(self, vectors: Iterable[Tensor]) -> float:
        """What sums of terms as large as the largest gradient may be off by."""
        return self._gradients.precision * max(float(vector.abs().max()) for vector in vectors)

    def _judge(self, run: _Run, target: Target) -> tuple[str, int] | None:
        """The first judge that takes the pair and is of another class than the estimator."""
        for name in target.judges:
            key = (name, target.num_particles)
            if find("objective", name).constructor is type(run.candidate.objective):
                continue
            if key not in self._judges:
                self._judges[key] = self._run(*key)
            if not self._judges[key].refusal:
                return key
        return None

    def _run(self, name: str, K: int) -> _Run:
        (candidate,) = at_each(name, (K,))
        return _Run(candidate, self._gradients, self._repeats, self._seed, "reference")


def _target(run: _Run, group: str) -> Target:
    return gradient_target(run.candidate.objective, group, run.candidate.label)


def _row(run: _Run, group: str, references: _References) -> GradientRow:
    label, K, objective, _ = run.candidate
    target = label if objective is None else _target(run, group).name
    row = GradientRow(label, K, group, target, run.refusal)
    if run.refusal:
        return row
    average = run.average(group)
    milliseconds, spread = _median(run.times)
    row = replace(
        row,
        milliseconds=milliseconds,
        milliseconds_standard_error=spread,
        num_repeats=len(run.times),
        **noise(average),
    )
    found = references.of(run, group)
    if found is None:
        return row
    reference, name, rounding = found
    return replace(row, reference=name, **error(average, reference, rounding))


def _at_equal_compute(row: GradientRow, rows: list[GradientRow]) -> GradientRow:
    """A row with its variance times its time over those of the first of its group and target.

    The square of the ratio's relative error is the sum of those of the four factors.
    """
    alike = [r for r in rows if (r.group, r.target) == (row.group, row.target) and not r.refusal]
    if row.refusal or len(alike) < 2 or not alike[0].variance:
        return row
    first, value = alike[0], _product(row) / _product(alike[0])
    errors = (_relative_error(row), _relative_error(first))
    return replace(
        row,
        variance_at_equal_compute=value,
        variance_at_equal_compute_standard_error=0.0
        if row is first
        else value * math.hypot(*errors),
    )


def _product(row: GradientRow) -> float:
    return (row.variance or 0.0) * (row.milliseconds or 0.0)


def _relative_error(row: GradientRow) -> float:
    """Of ``_product``."""
    factors = (
        (row.variance, row.variance_standard_error),
        (row.milliseconds, row.milliseconds_standard_error),
    )
    return math.hypot(*(error / value for value, error in factors if value and error))


def _median(times: list[float]) -> tuple[float, float]:
    """The median of R ≥ 2 times, and its standard error.

    The number of times below the true median is binomial, R/2 ± √R/2: times of these ranks
    are a standard error to its sides, whatever their distribution.
    """
    ranked, half = sorted(times), 0.5 * math.sqrt(len(times))
    low, high = (_at_rank(ranked, 0.5 * (len(times) - 1) + side) for side in (-half, half))
    return statistics.median(times), (high - low) / 2


def _at_rank(ranked: list[float], rank: float) -> float:
    """The value at a rank counted from 0, between two of them by proportion."""
    below = min(max(math.floor(rank), 0), len(ranked) - 2)
    return ranked[below] + (rank - below) * (ranked[below + 1] - ranked[below])
