"""Estimators at each K, from specs, functions and objects; and what their gradients estimate."""

__all__ = [
    "Candidate",
    "Estimator",
    "candidates",
    "at_each",
    "Target",
    "ELBO",
    "gradient_target",
    "one_line",
]

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from pyro.infer import RenyiELBO

from pyro_vae import objectives
from pyro_vae.checks import check_count
from pyro_vae.components import find
from pyro_vae.errors import InputError
from pyro_vae.objectives._kinds import is_elbo
from pyro_vae.specs import Spec, parse_spec

Estimator = str | Callable[[int], Any] | tuple[str, Callable[[int], Any]]
"""A spec; a function of K that returns a ``pyro.infer.ELBO``; such an object; or, in a pair
with a label, one of the latter two."""


class Target(NamedTuple):
    """What a gradient is an estimate of, and who else estimates it."""

    name: str
    judges: tuple[str, ...] = ()
    """Objectives whose long average is a reference, the best first."""
    num_particles: int = 0
    """Of the judges."""


ELBO = Target(
    "elbo", ("closed_form", "trace_mean_field", "trace", "sticking_the_landing", "trace_graph"), 64
)
RENYIS = (RenyiELBO, objectives.Renyi, objectives.PyroRenyi)
IWAES = (objectives.IWAE, objectives.DReG)
RWS = objectives.ReweightedWakeSleep


def gradient_target(objective: Any, group: str, label: str) -> Target:
    """Return what an objective's gradient for a group of parameters estimates, by its class.

    Reweighted wake-sleep follows IWAE-K with the model's parameters alone. What is not
    known here, subclasses among it, has a target of its own.
    """
    kind, K = type(objective), getattr(objective, "num_particles", 1)
    alpha = getattr(objective, "alpha", 0.0) if kind in RENYIS else 0.0
    single = kind is objectives.TVO and objective.side == "left" and len(objective.betas) == 2
    if is_elbo(objective) or single or (kind in RENYIS and alpha == 1):
        return ELBO
    if kind in IWAES or kind in RENYIS or (kind is RWS and group == "model"):
        if K == 1:
            return ELBO
        return Target(f"iwae-{K}", ("dreg", "iwae"), K) if alpha == 0 else Target(f"{label}-{K}")
    return Target(f"{label}-{K}")


class Candidate(NamedTuple):
    """One estimator at one K."""

    label: str
    """Its spec without K, or its name."""
    num_particles: int
    objective: Any
    """None where it refuses this K."""
    refusal: str | None = None


def candidates(estimators: Sequence[Estimator], particles: Sequence[int]) -> list[Candidate]:
    """Every estimator at every K.

    Raises:
        InputError: a K that is no count, an unknown estimator, or two of one name.
    """
    for K in particles:
        check_count("compare_gradients", "particles", K)
    found = [c for e in estimators for c in at_each(e, tuple(dict.fromkeys(particles)))]
    seen: set[tuple[str, int]] = set()
    for candidate in found:
        key = (candidate.label, candidate.num_particles)
        if key in seen:
            raise InputError(
                f"compare_gradients: two estimators are called {candidate.label!r}; leave one "
                "out, or give it another name: (label, estimator)"
            )
        seen.add(key)
    return found


def at_each(estimator: Estimator, particles: tuple[int, ...]) -> Iterator[Candidate]:
    """One estimator at every K, or at its own."""
    if isinstance(estimator, str):
        yield from _of_spec(parse_spec(estimator), particles)
        return
    label, made = estimator if isinstance(estimator, tuple) else (_name(estimator), estimator)
    if _is_objective(made):
        yield Candidate(label, getattr(made, "num_particles", 1), made)
    elif callable(made):
        for K in particles:
            yield _build(label, K, partial(made, K))
    else:
        raise InputError(
            "compare_gradients: expected an estimator as a spec, a function of K, or a "
            f"pyro.infer.ELBO, got {type(made).__name__}"
        )


def _name(estimator: Any) -> str:
    """A function's or class's own, or that of an object's class."""
    return str(getattr(estimator, "__name__", type(estimator).__name__))


def _of_spec(spec: Spec, particles: tuple[int, ...]) -> Iterator[Candidate]:
    component = find("objective", spec)
    default = component.build(spec.arguments)  # refuses wrong keys and values before any work
    given = {k: v for k, v in spec.arguments.items() if k != "num_particles"}
    label = str(Spec(spec.name, given))
    if given != spec.arguments or "num_particles" not in component.options:
        yield Candidate(label, getattr(default, "num_particles", 1), default)
        return
    for K in particles:
        yield _build(label, K, partial(component.build, {**given, "num_particles": K}))


def _build(label: str, K: int, construct: Callable[[], Any]) -> Candidate:
    """An objective at K, or why there is none."""
    try:
        objective = construct()
    except InputError as error:
        return Candidate(label, K, None, one_line(error))
    if not _is_objective(objective):
        raise InputError(
            f"compare_gradients: {label}({K}) must return a pyro.infer.ELBO, got "
            f"{type(objective).__name__}"
        )
    return Candidate(label, K, objective)


def _is_objective(value: Any) -> bool:
    methods = ("differentiable_loss", "loss_and_grads")
    return not isinstance(value, type) and any(hasattr(value, method) for method in methods)


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
