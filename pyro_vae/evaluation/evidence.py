"""log p(x) by the best means that a model allows: in closed form, by quadrature, or by AIS."""

__all__ = ["log_evidence", "LogEvidence"]

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyro_vae.errors import InputError, suggest
from pyro_vae.evaluation.ais import annealed_importance_sampling
from pyro_vae.evaluation.latent_space import latent_space
from pyro_vae.evaluation.quadrature import MAX_DIM, log_evidence_by_quadrature
from pyro_vae.execution import Program
from pyro_vae.log_weights import check_data, own_parameters

METHODS = ("exact", "quadrature", "ais")


@dataclass(frozen=True)
class LogEvidence:
    """log p(x) of each datum, each field ``[B]``, in nats, and what it is from."""

    log_px: Tensor
    """float64."""
    error: Tensor
    """0 of ``exact``; of ``quadrature`` what it estimates to miss at most; of ``ais`` the
    standard error over chains."""
    bias: Tensor
    """E log_px − log p(x): 0 but for ``ais``, whose logarithm of a mean falls short."""
    method: str
    """``exact``, ``quadrature`` or ``ais``."""
    trusted: Tensor
    """Whether ``error`` can be relied on, boolean: of ``exact`` always, of ``quadrature`` where
    it has converged, of ``ais`` where the error is not understated."""
    note: str | None = None
    """Why no better means were taken, in a sentence."""

    @property
    def mean(self) -> float:
        """The mean of log_px over data."""
        return float(self.log_px.mean())

    @property
    def mean_error(self) -> float:
        """The error of ``mean``, the data held fixed.

        Those of quadrature need not cancel: their mean. Those of AIS are independent:
        the root of the sum of their squares over B.
        """
        if self.method == "ais":
            return float(self.error.square().sum().sqrt() / len(self.error))
        return float(self.error.mean())


def log_evidence(
    model: Program,
    guide: Program | None,
    x: Tensor,
    *,
    method: str | None = None,
    start: str = "prior",
    num_chains: int = 100,
    num_temperatures: int = 1000,
    tolerance: float = 1e-3,
    seed: int = 0,
    chunk_size: int | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> LogEvidence:
    """Return log p(x) of every datum by the best means that the model allows, with its error.

    In this order: the model's own ``log_evidence(x)``; quadrature, where its latents are
    one or two real numbers together; annealed importance sampling (AIS).

    Arguments:
        model: a Pyro program of ``x`` with latents inside ``pyro.plate("data", B, dim=-1)``.
        guide: asked only by AIS with ``start="guide"``, which needs its density; else None will do.
        x: ``[B, *event_shape]``, on the program's device.
        method: ``exact``, ``quadrature`` or ``ais``, to force one; None is the first that applies.
        start, num_chains, num_temperatures, on_step: of AIS, see ``annealed_importance_sampling``.
        tolerance: of quadrature, in nats.
        seed: of AIS, and of the draws that place quadrature's first cells.
        chunk_size: how many z the model evaluates at once; it never changes the answer.

    Raises:
        InputError: the forced method does not apply to this model, or none does.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", x.shape[0], dim=-1):
        ...         z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> result = log_evidence(model, None, torch.zeros(1).double())
        >>> result.method, result.log_px  # −½ log 4π
        ('quadrature', tensor([-1.2655], dtype=torch.float64))
    """
    check_data(x, 1)
    if method is not None and method not in METHODS:
        raise InputError(f"log_evidence has no method {method!r}{suggest(method, METHODS)}")
    quadrature = partial(
        _quadrature, model, x, tolerance=tolerance, seed=seed, chunk_size=chunk_size
    )
    if method == "exact" or (method is None and hasattr(model, "log_evidence")):
        return _exact(model, x)
    if method == "quadrature":
        return quadrature()
    note = None
    if method is None and _is_small(model, x):
        try:
            return quadrature()
        except InputError as error:
            note = f"no quadrature: {error}"
    try:
        annealed = annealed_importance_sampling(
            model,
            x,
            guide,
            start=start,
            num_chains=num_chains,
            num_temperatures=num_temperatures,
            seed=seed,
            chunk_size=chunk_size,
            on_step=on_step,
        )
    except InputError as error:
        raise InputError(f"{note}; no AIS: {error}" if note else f"no AIS: {error}") from None
    return LogEvidence(
        annealed.log_px,
        annealed.standard_error,
        annealed.bias,
        "ais",
        ~annealed.understated,
        note,
    )


def _exact(model: Program, x: Tensor) -> LogEvidence:
    evidence = getattr(model, "log_evidence", None)
    if evidence is None:
        raise InputError(
            "this model has no log_evidence(x), so log p(x) is not known in closed form; "
            "use quadrature or ais"
        )
    with torch.no_grad(), own_parameters(model):
        log_px = evidence(x).double()
    zero = torch.zeros_like(log_px)
    return LogEvidence(log_px, zero, zero, "exact", torch.ones_like(log_px, dtype=torch.bool))


def _quadrature(
    model: Program, x: Tensor, *, tolerance: float, seed: int, chunk_size: int | None
) -> LogEvidence:
    result = log_evidence_by_quadrature(
        model, x, tolerance=tolerance, seed=seed, chunk_size=chunk_size
    )
    left = int((~result.converged).sum())
    note = f"{left} of {len(x)} data have not converged to {tolerance} nats" if left else None
    return LogEvidence(
        result.log_px,
        result.error,
        torch.zeros_like(result.error),
        "quadrature",
        result.converged,
        note,
    )


def _is_small(model: Program, x: Tensor) -> bool:
    """Whether the latents have one or two dimensions together."""
    try:
        with torch.no_grad(), own_parameters(model):
            return latent_space(model, x[:1]).dim <= MAX_DIM
    except InputError:  # AIS says what is wrong
        return False
