"""Path derivatives: gradients through z alone, the guide's parameters in log q held fixed."""

__all__ = ["path_estimate"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.execution import Execution
from pyro_vae.objectives._per_datum import (
    Call,
    EachLatent,
    Estimate,
    common_scale,
    needs_gradient,
    relative_scale,
    scaled_total,
)


def path_estimate(
    call: Call,
    bound: Callable[[Tensor], Tensor],
    coefficients: Callable[[Tensor, list[Any]], tuple[Tensor, Tensor | None]],
) -> Estimate:
    """Return a bound whose gradient reaches the guide through its draws alone.

    With coefficients c and s of the log-weights, both held fixed,

    ∇ = Σ_k c_k ∇_p log p(x, z_k) + Σ_k c_k s_k ∂log w_k/∂z_k · ∇_q z_k

    ∂log w/∂z = ∂log p(x, z)/∂z − ∂log q(z|x)/∂z is taken at fixed parameters of q. The
    densities of later latents in log q depend on the earlier ones, and that dependence
    counts; ∇_p is with respect to all that log p depends on directly, a prior's
    use of q among it. One pass backward through the model: s enters as a hook on z.

    Arguments:
        call: the programs.
        bound: log-weights ``[K, B]`` → the bound's value ``[B]``.
        coefficients: log-weights ``[K, B]`` and the guide's β, one a latent, → c and s,
            each ``[K, B]``; None is s = 1.

    Raises:
        InputError: a site of the guide is not reparameterized, or its density is known at
            its own draws only.
    """
    if not needs_gradient():
        terms = call.reparameterized_terms()
        return Estimate(bound(terms.log_weight), None, terms.factor)
    draws = _Draws()
    guide = call.run_guide(EachLatent(draws.bridge))
    call.check_reparameterized(guide)
    scale: list[Tensor] = []

    def times_s(gradient: Tensor) -> Tensor:
        return _expand(scale[0], gradient) * gradient if scale else gradient

    model = call.run_model(guide, {n: _hooked(z, times_s) for n, z in guide.values.items()})
    with torch.no_grad():  # first: a flow remembers its own draw, where its density is one pass
        log_guide = scaled_total(guide, common_scale(model), draws.original)
    terms = call.terms(guide, model)
    log_weight = terms.log_joint.detach() - log_guide
    betas = [relative_scale(site, terms.common) for site in guide.latent.values()]
    c, s = coefficients(log_weight, betas)
    if s is not None:
        scale.append(s)
    surrogate = (c * terms.log_joint.masked_fill(c == 0, 0.0)).sum(0)
    path = c if s is None else c * s
    for z, h in _guide_gradients(guide, draws, terms.log_guide):
        along = (h * z).flatten(start_dim=2).sum(-1) if z.dim() > 2 else h * z
        surrogate = surrogate - (path * along).sum(0)
    return Estimate(bound(log_weight), surrogate, terms.factor)


class _Draws:
    """The draws of a guide, each followed by a bridge that gradients pass while it is open.

    Closed, everything behind a bridge is an independent variable: log q(z_1, z_2)
    has the partial derivatives that it has as a function of z_1 and z_2.
    """

    def __init__(self) -> None:
        self.original: dict[str, Tensor] = {}
        self.open = True

    def bridge(self, name: str, z: Tensor) -> Tensor:
        self.original[name] = z
        bridged: Tensor = _Bridge.apply(z, self) if z.requires_grad else z
        return bridged


class _Bridge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, draws: _Draws) -> Tensor:
        ctx.draws = draws
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient if ctx.draws.open else torch.zeros_like(gradient), None


def _guide_gradients(
    guide: Execution, draws: _Draws, log_guide: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """z and ∂log q(z|x)/∂z at fixed parameters, for every draw that gradients pass through."""
    values = [z for z in guide.values.values() if z.requires_grad]
    if not values or not log_guide.requires_grad:
        return []
    draws.open = False
    gradients = torch.autograd.grad(
        log_guide.sum(), values, retain_graph=True, materialize_grads=True
    )
    draws.open = True
    return list(zip(values, gradients, strict=True))


def _hooked(z: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
    """z, its gradient passed through ``hook``."""
    if not z.requires_grad:
        return z
    view = z.view_as(z)
    view.register_hook(hook)
    return view


def _expand(weights: Tensor, like: Tensor) -> Tensor:
    """``[K, B]`` with dimensions added to the right, as many as ``like`` has."""
    return weights.reshape(*weights.shape, *(1,) * (like.dim() - weights.dim()))
