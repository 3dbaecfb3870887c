"""The value of any objective a datum, on noise that every estimator of its K shares."""

__all__ = ["Draw", "draw", "per_datum", "particles_of", "with_common_noise"]

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.util import get_dependent_plate_dims, torch_sum
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.execution import Execution, Program
from pyro_vae.objectives._per_datum import Call, PerDatum, Terms
from pyro_vae.objectives._weights import log_mean_exp
from pyro_vae.seeding import seeded

# Roundings of two ways to sum one value, in units of dtype's eps times the size of its terms:
# 3e-5 of |log p| in float32, which for 784 pixels is some 1e-2 nats; 6e-14 in float64.
ROUNDING = 256


@dataclass(frozen=True)
class Draw:
    """K draws z ~ q(z|x) a datum under one seed, weighed."""

    seed: int
    terms: Terms
    guide: Execution
    model: Execution

    @property
    def num_data(self) -> int:
        """B."""
        return self.model.num_data

    @property
    def tolerance(self) -> Tensor:
        """What two ways to compute the value of a datum may differ by, ``[B]``, in nats.

        256 eps (1 + max_k |log p(x|z)| + |log p(z)| + |log q(z|x)|), of the programs' dtype.
        """
        t = self.terms
        size = t.log_likelihood.abs() + t.log_prior.abs() + t.log_guide.abs()
        size = size.double().amax(0)
        return ROUNDING * torch.finfo(t.log_weight.dtype).eps * (1 + size)


def draw(model: Program, guide: Program, x: Tensor, num_particles: int, seed: int) -> Draw:
    """Draw and weigh z, K a datum, as every estimator of that K does under the seed.

    Raises:
        InputError: the pair has no log-weight a datum, or takes only some of the data.
    """
    call = Call(model, guide, (x,), {}, num_particles, "compare")
    with torch.no_grad(), seeded(seed, x.device):
        guide_run = call.run_guide()
        model_run = call.run_model(guide_run)
        terms = call.terms(guide_run, model_run)
    if model_run.num_data != len(x):
        raise InputError(
            f"the data plate holds {model_run.num_data} of the {len(x)} data; to compare, give "
            "programs a plate of all that they are called with"
        )
    return Draw(seed, terms, guide_run, model_run)


def per_datum(objective: ELBO, model: Program, guide: Program, x: Tensor, draw: Draw) -> Tensor:
    """Return an objective's value of each datum, ``[B]``, in nats, on the noise of a draw.

    Without N/B of a subsampled plate, and without a scale common to all sites. What is no
    ``PerDatum`` returns only Σ_b: an estimator that is linear in the log-densities is
    differentiated with respect to a scale s ``[B]`` of all sites, −∂loss/∂s_b; any other
    is evaluated with all data but one masked. The values are held against the
    objective's own ``loss`` on the same noise.

    Arguments:
        objective: any ``pyro.infer.ELBO``.
        model, guide: Pyro programs of ``x``.
        x: ``[B, *event_shape]``.
        draw: gives the seed and the scale.

    Raises:
        InputError: the objective refuses the pair, or has no value a datum: nothing
            that sums to minus its loss.
    """
    if _is_summed_here(objective):
        with seeded(draw.seed, x.device):
            return objective.per_datum(model, guide, x)  # type: ignore[attr-defined]
    objective = with_common_noise(objective)
    total = -_loss(objective, model, guide, x, draw.seed)
    for values in _candidates(objective, model, guide, x, draw):
        if abs(float(values.double().sum()) - total) <= _tolerance(draw):
            return values / draw.terms.factor
    raise InputError(
        f"{type(objective).__name__} has no value a datum: no values sum to minus its loss; "
        "it couples the data of a batch, or draws other noise at every call"
    )


def particles_of(objective: ELBO) -> int:
    """K."""
    return int(getattr(objective, "num_particles", 1))


def with_common_noise(objective: ELBO) -> ELBO:
    """Return Pyro's objective with all K particles under one plate, left of the data plate.

    Particles in sequence would draw other noise than those under a plate, and Pyro
    would draw some more to guess the nesting.
    """
    ours = copy.copy(objective)
    ours.vectorize_particles = particles_of(objective) > 1
    ours.max_plate_nesting = 1 + ours.vectorize_particles  # as Pyro counts after construction
    return ours


def _is_summed_here(objective: ELBO) -> bool:
    """Whether its loss is by construction the sum of its values a datum."""
    kind = type(objective)
    inherited = ("per_datum", "differentiable_loss", "loss")
    return isinstance(objective, PerDatum) and all(
        getattr(kind, name) is getattr(PerDatum, name) for name in inherited
    )


def _tolerance(draw: Draw) -> float:
    """Of a sum over the batch that carries the plate's N/B."""
    factor = torch.as_tensor(draw.terms.factor).abs().max()
    return float(draw.tolerance.sum()) * max(1.0, float(factor))


def _candidates(
    objective: ELBO, model: Program, guide: Program, x: Tensor, draw: Draw
) -> Iterator[Tensor]:
    """Values a datum by the cheap way, if there is one, then by the one that is always open."""
    way = _way(objective)
    if way is not None:
        try:
            with seeded(draw.seed, x.device), refusals():
                cheap = way(objective, model, guide, x, draw)
        except (ValueError, RuntimeError):  # such as "only supports scalar poutine.scale"
            cheap = None
        if cheap is not None:
            yield cheap
    yield _by_masking(objective, model, guide, x, draw)


def _way(objective: ELBO) -> Any:
    if isinstance(objective, TraceMeanField_ELBO | TraceEnum_ELBO):
        return _by_scale
    if isinstance(objective, Trace_ELBO | TraceGraph_ELBO):
        return _by_scale_of_sums
    return _by_traces if isinstance(objective, RenyiELBO) else None


def _by_scale(
    objective: Any, model: Program, guide: Program, x: Tensor, draw: Draw
) -> Tensor | None:
    """−∂loss/∂s_b, the loss as Pyro differentiates it."""
    scale = draw.terms.log_weight.new_ones(draw.num_data).requires_grad_()
    programs = _without_gradients(model), _without_gradients(guide)
    with torch.enable_grad(), _Scale(scale):
        return _gradient(-objective.differentiable_loss(*programs, x), scale)


def _by_scale_of_sums(
    objective: Any, model: Program, guide: Program, x: Tensor, draw: Draw
) -> Tensor | None:
    """∂/∂s_b of (1/K) Σ log p(x, z) − log q(z|x), which is what Pyro's loss sums.

    Its differentiable loss leaves out log q of latents that are not reparameterized.
    """
    scale = draw.terms.log_weight.new_ones(draw.num_data).requires_grad_()
    programs = _without_gradients(model), _without_gradients(guide)
    with torch.enable_grad(), _Scale(scale):
        traces = objective._get_traces(*programs, (x,), {})
        total = sum(p.log_prob_sum() - q.log_prob_sum() for p, q in traces)
        return _gradient(total / objective.num_particles, scale)


def _without_gradients(program: Program) -> Program:
    def run(x: Tensor) -> Any:
        with torch.no_grad():
            return program(x)

    return run


class _Scale(Messenger):
    """``poutine.scale``, differentiable in the scale also where programs run without gradients.

    Entered around an estimator, so that it comes last: a plate inside it, the particles'
    among them, multiplies where nothing is recorded.
    """

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg: Any) -> None:
        with torch.enable_grad():
            msg["scale"] = self.scale * msg["scale"]


def _gradient(total: Tensor, scale: Tensor) -> Tensor | None:
    (gradient,) = torch.autograd.grad(total, scale, allow_unused=True)
    return gradient


def _by_traces(
    objective: Any, model: Program, guide: Program, x: Tensor, draw: Draw
) -> Tensor | None:
    """1/(1 − α) log (1/K) Σ_k w_k^(1−α) a datum, of the traces that Pyro's loss sums."""
    with torch.no_grad():
        rows = []
        for p, q in objective._get_traces(model, guide, (x,), {}):
            dims = get_dependent_plate_dims(p.nodes.values())
            log_weight = _sum_of(p, dims) - _sum_of(q, dims)
            rows.append(log_weight.reshape(-1, draw.num_data))
        power = 1 - objective.alpha
        return log_mean_exp(power * torch.cat(rows)) / power


def _sum_of(trace: Any, dims: Any) -> Any:
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    return sum(torch_sum(site["log_prob"], dims) for site in sites)


def _by_masking(objective: ELBO, model: Program, guide: Program, x: Tensor, draw: Draw) -> Tensor:
    """−loss with all data but one masked, for one after another."""
    num_data = draw.num_data

    def masked(mask: Any) -> float:
        p, q = (poutine.mask(program, mask=mask) for program in (model, guide))
        return -_loss(objective, p, q, x, draw.seed)

    nothing = torch.zeros(num_data, dtype=torch.bool, device=x.device)
    values = []
    for b in range(num_data):
        only = nothing.clone()
        only[b] = True
        values.append(masked(only))
    return torch.tensor(values, dtype=torch.float64, device=x.device)


def _loss(objective: Any, model: Program, guide: Program, x: Tensor, seed: int) -> float:
    """The loss on the noise of a seed.

    Raises:
        InputError: it is not finite.
    """
    with seeded(seed, x.device), torch.no_grad(), refusals():
        loss = float(objective.loss(model, guide, x))
    if not math.isfinite(loss):
        raise InputError(f"its value is {-loss}")
    return loss


@contextmanager
def refusals() -> Iterator[None]:
    """Make of Pyro's warnings that it misses a latent, or met a NaN, an InputError."""
    with warnings.catch_warnings():
        for message in ("Found (vars in model|non-auxiliary vars)", "Encountered "):
            warnings.filterwarnings("error", message, UserWarning)
        try:
            yield
        except UserWarning as warning:
            raise InputError(" ".join(str(warning).split())) from None
