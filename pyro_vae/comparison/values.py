"""Values of many estimators on common noise, against a closed form and against log p(x)."""

__all__ = ["compare_estimators", "compare_values", "Values", "DEFAULT_ESTIMATORS", "Estimator"]

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO, RenyiELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_vae import objectives
from pyro_vae.checks import check_count
from pyro_vae.comparison._identities import TRACES, identities
from pyro_vae.comparison._parameters import kept_buffers
from pyro_vae.comparison.per_datum import Draw, draw, particles_of, per_datum
from pyro_vae.comparison.rows import Check, Truth, ValueRow
from pyro_vae.comparison.truth import find_truth
from pyro_vae.components import build
from pyro_vae.errors import InputError
from pyro_vae.execution import Program
from pyro_vae.log_weights import check_data, own_parameters
from pyro_vae.objectives._kinds import PYRO_ELBOS, is_elbo
from pyro_vae.objectives._per_datum import name_of, relative_scale
from pyro_vae.seeding import derive_seed, seeded
from pyro_vae.specs import Spec, parse_spec
from pyro_vae.standard_error import standard_error_of_mean

DEFAULT_ESTIMATORS = (
    "trace",
    "closed_form",
    "trace_mean_field",
    "trace_graph",
    "sticking_the_landing",
    "iwae(num_particles=10)",
    "dreg(num_particles=10)",
    "renyi(alpha=0.5, num_particles=10)",
    "renyi(alpha=-1, num_particles=10)",
    "pyro_renyi(num_particles=10)",
    "tvo(num_particles=10)",
    "tvo(num_particles=10, side=right)",
    "reweighted_wake_sleep(num_particles=10)",
)
# Of a discrete latent that is summed out in the model.
ENUMERATING = "trace_enum"

Estimator = str | ELBO | tuple[str, ELBO]
"""A spec, an objective, or an objective and what to call it."""

# Noise is drawn in blocks, each under a seed of its own: this many data, and z, at most.
DATA_BLOCK = 100
LARGEST_BLOCK = 64_000

# What is no part of an estimator's meaning.
TECHNICAL = frozenset(
    (
        "max_plate_nesting", "vectorize_particles", "retain_graph", "ignore_jit_warnings",
        "jit_options", "strict_enumeration_warning", "max_iarange_nesting",
    )
)  # fmt: skip


class Values(NamedTuple):
    """What ``compare_values`` finds."""

    rows: list[ValueRow]
    """One an estimator, in the order given."""
    reference: str | None
    """What differences are taken from, at the same K: ``closed_form``, else ``trace``."""
    truth: Truth | None
    checks: list[Check]


def compare_estimators(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    estimators: Sequence[Estimator] | None = None,
    num_repeats: int = 20,
    seed: int = 0,
) -> list[ValueRow]:
    """Return the value of every estimator on common noise; see ``compare_values``.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0., 1.)), 1.), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5 ** 0.5))
        >>> rows = compare_estimators(model, guide, torch.tensor([0.3, 1.2]), num_repeats=3)
        >>> rows[5].estimator, round(rows[5].mean, 3)  # q is the posterior: the truth
        ('iwae(num_particles=10)', -1.457)
    """
    return compare_values(
        model, guide, x, estimators=estimators, num_repeats=num_repeats, seed=seed
    ).rows


def compare_values(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    estimators: Sequence[Estimator] | None = None,
    num_repeats: int = 20,
    seed: int = 0,
    ordered: bool = False,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Values:
    """Evaluate every estimator of the bound on common noise, and hold each against its identities.

    In repeat r all estimators run under one seed, so that those of equal K weigh the same
    z. The reference is ``closed_form`` at a row's own K, or ``trace`` where a KL has no closed
    form; both are evaluated whether or not they are rows. The identities are those of the
    log-weights w_k on each draw, datum by datum, to rounding: trace − closed_form is minus
    the Monte Carlo error of the KL, trace_mean_field is closed_form, iwae is the log of the mean
    weight, and so on. Data stream through in blocks of 100 at most.

    Arguments:
        model, guide: Pyro programs of ``x``; modules are run as they are, in
            training mode if they are in it. β is 1 unless they carry one.
        x: ``[B, *event_shape]``, on the programs' device.
        estimators: specs, ``pyro.infer.ELBO`` objects, or pairs of a label and an object;
            None is ``DEFAULT_ESTIMATORS``.
        num_repeats: how many draws of the noise; below two there is no standard error.
        seed: of the noise; torch's global random state is left as it was.
        ordered: whether neighbouring data are alike, as in a video.
        on_step: told (steps done, steps in all).

    Raises:
        InputError: an unknown estimator or two of one name, or an argument that makes no sense.
            An estimator that does not take the pair has a row that says why.
    """
    check_data(x, 1)
    check_count("compare", "num_repeats", num_repeats)
    entries = _entries(estimators)
    size = _block_size(entries)
    starts = range(0, len(x), size)
    total, done = num_repeats * len(starts), 0
    with own_parameters(model, guide), kept_buffers(model, guide), torch.no_grad():
        first = _first_draw(model, guide, x[:size], seed)
        if estimators is None and first is not None and first.model.enumerated:
            entries.insert(0, _Entry(ENUMERATING, objectives.TraceEnum()))
        tallies = [_Tally(entry, num_repeats, len(x)) for entry in entries]
        for repeat in range(num_repeats):
            for i, start in enumerate(starts):
                where = _Where(repeat, slice(start, start + size))
                block_seed = derive_seed(seed, "compare", repeat, i)
                _step(tallies, model, guide, x[where.data], block_seed, where)
                done += 1
                on_step(done, total)
    truth = find_truth(model, x, _num_latents(first), seed)
    reference = next(filter(None, (tally.reference for tally in tallies)), None)
    rows = [tally.row(truth, ordered, first) for tally in tallies if not tally.entry.hidden]
    return Values(rows, reference, truth, list(_checks(tallies)))


class _Entry(NamedTuple):
    """An estimator in the table, or hidden: a reference that no row asks for."""

    label: str
    objective: ELBO
    hidden: bool = False

    @property
    def num_particles(self) -> int:
        return particles_of(self.objective)

    def is_like(self, other: "_Entry") -> bool:
        """Whether both are the same reference at one K."""
        kinds = [_reference_kind(entry.objective) for entry in (self, other)]
        return kinds[0] == kinds[1] and self.num_particles == other.num_particles


class _Where(NamedTuple):
    """A repeat, and the data that are evaluated in it."""

    repeat: int
    data: slice


class _Tally:
    """What one estimator accumulates over repeats and data, in float64."""

    def __init__(self, entry: _Entry, num_repeats: int, num_data: int):
        self.entry = entry
        self.refusal: str | None = None
        self.reference: str | None = None
        self.no_reference = False
        self.analytic_kl: dict[str, bool] = {}
        self.identities: dict[str, tuple[float, float]] = {}
        self.largest = 0.0
        self.repeats = torch.zeros(num_repeats, dtype=torch.float64)  # Σ over data
        self.differences = torch.zeros(num_repeats, dtype=torch.float64)
        self.data = torch.zeros(num_data, dtype=torch.float64)  # Σ over repeats

    def add(self, values: Tensor, where: _Where) -> None:
        self.repeats[where.repeat] += float(values.sum())
        self.data[where.data] += values.cpu()

    def add_difference(self, difference: Tensor, reference: str, where: _Where) -> None:
        self.reference = reference
        self.differences[where.repeat] += float(difference.sum())
        self.largest = max(self.largest, float(difference.abs().max()))

    def add_identities(self, values: Tensor, block: Draw, closed_form: Tensor | None) -> None:
        for each in identities(self.entry.label, self.entry.objective, block, closed_form):
            worst = each.worst(values, block.tolerance)
            before = self.identities.get(each.name, worst)
            self.identities[each.name] = max(before, worst, key=lambda v: v[0] / v[1])

    def row(self, truth: Truth | None, ordered: bool, first: Draw | None) -> ValueRow:
        """The row of the table."""
        objective, K = self.entry.objective, self.entry.num_particles
        bound = _is_lower_bound(objective) and _beta_keeps_bound(objective, first)
        if self.refusal is not None:
            return ValueRow(self.entry.label, K, bound, self.refusal)
        count = len(self.data)
        mean, error = _mean_and_error(self.repeats / count)
        difference = self.reference is not None and not self.no_reference
        shift = _mean_and_error(self.differences / count) if difference else (None, None)
        return ValueRow(
            self.entry.label,
            K,
            bound,
            mean=mean,
            standard_error=error,
            data_standard_error=standard_error_of_mean(self.data / len(self.repeats), ordered),
            difference=shift[0],
            difference_standard_error=shift[1],
            largest_difference=self.largest if difference else None,
            bias=None if truth is None else mean - truth.log_px,
            bias_standard_error=(
                None if truth is None or error is None else math.hypot(error, truth.error)
            ),
            analytic_kl=self.analytic_kl,
        )


def _step(
    tallies: list[_Tally], model: Program, guide: Program, x: Tensor, seed: int, where: _Where
) -> None:
    """Evaluate every estimator on one block under one seed."""
    values: dict[str, Tensor] = {}
    for K in dict.fromkeys(tally.entry.num_particles for tally in tallies):
        group = [tally for tally in tallies if tally.entry.num_particles == K]
        try:
            block = draw(model, guide, x, K, seed)
        except InputError as error:
            _refuse(group, error)
            continue
        for tally in group:
            if tally.refusal is None:
                value = _value(tally, model, guide, x, block)
                if value is not None:
                    values[tally.entry.label] = value
        _compare(group, values, block, where)


def _value(tally: _Tally, model: Program, guide: Program, x: Tensor, block: Draw) -> Tensor | None:
    """The value a datum, ``[B]``; None where the estimator refuses, and then ever after."""
    objective = tally.entry.objective
    try:
        value = per_datum(objective, model, guide, x, block).double()
        _check_finite(value)
        if not tally.analytic_kl:
            tally.analytic_kl = _analytic_kl(objective, model, guide, x, block)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the pair ran: what fails is the estimator on it
        _refuse([tally], error)
        return None
    return value


def _compare(group: list[_Tally], values: dict[str, Tensor], block: Draw, where: _Where) -> None:
    """Hold the values of one K against the reference and against their identities."""
    references = {
        kind: values[tally.entry.label]
        for tally in group
        if (kind := _reference_kind(tally.entry.objective)) and tally.entry.label in values
    }
    closed_form = references.get("closed_form")
    for tally in group:
        value = values.get(tally.entry.label)
        if value is None or tally.refusal is not None:
            continue
        tally.add(value, where)
        tally.add_identities(value, block, closed_form)
        kind = tally.reference or next((k for k in REFERENCES if k in references), None)
        if kind is None or kind not in references:
            tally.no_reference = True
        else:
            tally.add_difference(value - references[kind], kind, where)


REFERENCES = ("closed_form", "trace")


def _reference_kind(objective: Any) -> str | None:
    """``closed_form`` or ``trace`` for what a difference is taken from."""
    if type(objective) is objectives.ClosedFormELBO and not objective.free_bits:
        return "closed_form"
    return "trace" if type(objective) in TRACES else None


def _entries(estimators: Sequence[Estimator] | None) -> list[_Entry]:
    """Every estimator, and the references at each K that are not among them.

    Raises:
        InputError: what is given is no estimator, or two have one label.
    """
    if isinstance(estimators, str | ELBO):
        raise InputError("expected estimators as a list of specs or objectives")
    entries = [_entry(e) for e in (DEFAULT_ESTIMATORS if estimators is None else estimators)]
    if not entries:
        raise InputError("expected at least one estimator, such as 'trace'")
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(
                f"two estimators are called {label!r}; leave one out, or give an object a label: "
                "('name', objective)"
            )
    for K in sorted({entry.num_particles for entry in entries}):
        for kind, make in (("closed_form", objectives.ClosedFormELBO), ("trace", objectives.Trace)):
            label = str(Spec(kind, {"num_particles": K}))
            hidden = _Entry(label, make(K), hidden=True)
            if not any(hidden.is_like(entry) for entry in entries):
                taken = label in labels
                entries.append(hidden._replace(label=f"pyro_vae {label}" if taken else label))
    return entries


def _entry(estimator: Any) -> _Entry:
    if isinstance(estimator, str):
        spec = str(parse_spec(estimator))
        return _Entry(spec, build("objective", spec))
    label, objective = estimator if isinstance(estimator, tuple) else (None, estimator)
    if not isinstance(objective, ELBO) or not isinstance(label, str | None):
        raise InputError(
            "expected an estimator as a spec, a pyro.infer.ELBO, or (label, objective), got "
            f"{type(objective).__name__}"
        )
    return _Entry(label or _describe(objective), objective)


def _describe(objective: ELBO) -> str:
    """An object's spec: its name and the arguments that are not the constructor's defaults."""
    ours = type(objective).__module__.startswith("pyro_vae.objectives.")
    given = {
        key: getattr(objective, key)
        for key, parameter in inspect.signature(type(objective)).parameters.items()
        if key not in TECHNICAL
        and isinstance(getattr(objective, key, None), int | float | str)
        and getattr(objective, key) != parameter.default
    }
    return str(Spec(name_of(objective) if ours else type(objective).__name__, given))


def _is_lower_bound(objective: ELBO) -> bool:
    """What the objective says; an ELBO of Pyro's is one, and of any other nothing is known."""
    said = getattr(objective, "is_lower_bound", None)
    if said is not None:
        return bool(said)
    if type(objective) is RenyiELBO:
        return bool(objective.alpha >= 0)
    return type(objective) in PYRO_ELBOS


def _analytic_kl(
    objective: Any, model: Program, guide: Program, x: Tensor, block: Draw
) -> dict[str, bool]:
    ask = getattr(objective, "analytic_kl", None)
    if ask is None and isinstance(objective, TraceMeanField_ELBO):
        ask = objectives.TraceMeanField().analytic_kl
    if ask is None:
        return dict.fromkeys(block.guide.latent, False)
    with seeded(block.seed, x.device):
        return dict(ask(model, guide, x))


def _first_draw(model: Program, guide: Program, x: Tensor, seed: int) -> Draw | None:
    """One draw, which also initializes the parameters of plain functions before any noise.

    None where the pair has no weight a datum, as every row will say.
    """
    try:
        return draw(model, guide, x, 1, derive_seed(seed, "compare", "first"))
    except InputError:
        return None


def _num_latents(first: Draw | None) -> int:
    """The dimension of all latents together; 0 where it is not known."""
    values = {} if first is None else first.guide.values
    return sum(math.prod(value.shape[2:]) for value in values.values())


def _beta_keeps_bound(objective: Any, first: Draw | None) -> bool:
    """Whether β leaves the mean at most log p(x).

    An ELBO's is for β ≥ 1. A mean of weights tends to log E_q p(x|z) (p(z)/q(z|x))^β, which
    may exceed log p(x) at any β ≠ 1. With unlike scales log p − log q is no log-ratio.
    """
    if first is None:
        return True
    betas = []
    for name, site in first.guide.latent.items():
        both = (site, first.model.latent[name])
        beta, other = (torch.as_tensor(relative_scale(s, first.terms.common)) for s in both)
        if not torch.allclose(beta.double(), other.double().to(beta.device)):
            return False
        betas.append(beta.double())
    is_linear = particles_of(objective) == 1 or is_elbo(objective)
    is_linear = is_linear or getattr(objective, "alpha", 0.0) >= 1
    if is_linear:
        return all(bool((beta >= 1 - 1e-6).all()) for beta in betas)
    return all(bool(((beta - 1).abs() <= 1e-6).all()) for beta in betas)


def _block_size(entries: list[_Entry]) -> int:
    K = max(entry.num_particles for entry in entries)
    return max(1, min(DATA_BLOCK, LARGEST_BLOCK // K))


def _mean_and_error(values: Tensor) -> tuple[float, float | None]:
    return float(values.mean()), standard_error_of_mean(values)


def _checks(tallies: list[_Tally]) -> Iterator[Check]:
    """The identities of every row; of the hidden references only where no row is a trace."""
    kinds = [_reference_kind(tally.entry.objective) for tally in tallies]
    has_trace = any(
        kind == "trace" and not tally.entry.hidden
        for kind, tally in zip(kinds, tallies, strict=True)
    )
    for tally in tallies:
        if tally.refusal is not None or (tally.entry.hidden and has_trace):
            continue
        for name, (largest, tolerance) in tally.identities.items():
            yield Check(name, largest <= tolerance, largest, tolerance)


def _refuse(tallies: list[_Tally], error: Exception) -> None:
    message = " ".join(str(error).split())
    if not isinstance(error, InputError):
        message = f"{type(error).__name__}: {message}" if message else type(error).__name__
    for tally in tallies:
        tally.refusal = tally.refusal or message


def _check_finite(values: Tensor) -> None:
    wrong = ~values.isfinite()
    if bool(wrong.any()):
        raise InputError(f"its value for some datum is {float(values[wrong][0])}")
