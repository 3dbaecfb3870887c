"""The parameters of a pair in two groups, and one gradient of an objective with respect to them."""

__all__ = ["Groups", "find_groups", "Gradients", "kept_buffers"]

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.comparison._moments import Sketch
from pyro_vae.execution import Program, own_scale, plate_scale
from pyro_vae.seeding import seeded


@dataclass(frozen=True)
class Groups:
    """The unconstrained leaves that guide and model meet, and how many data their loss is of."""

    leaves: dict[str, list[Tensor]]
    """``guide``: those that the guide meets; ``model``: all others. Empty groups are left out."""
    num_data: float
    """N, that of the data plate before any subsampling."""
    enumerates: bool = False
    """Whether the model has discrete latents of its own, to be summed out."""

    @property
    def all_leaves(self) -> list[Tensor]:
        """Those of all groups, in their order."""
        return [leaf for leaves in self.leaves.values() for leaf in leaves]

    def split(self, gradients: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The gradients of ``all_leaves``, each group's as one vector in float64."""
        gradients = list(gradients)
        for group, leaves in self.leaves.items():
            own, gradients = gradients[: len(leaves)], gradients[len(leaves) :]
            yield group, torch.cat([gradient.reshape(-1).double() for gradient in own])


@contextmanager
def kept_buffers(*programs: Program) -> Iterator[None]:
    """Give modules their buffers back: batch norm in training mode counts every run."""
    modules = [program for program in programs if isinstance(program, nn.Module)]
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def find_groups(model: Program, guide: Program, x: Tensor) -> Groups:
    """Run guide and model once, and return the parameters that each of them meets.

    Modules and plain functions alike; those without ``requires_grad`` are left out.
    """
    with seeded(0, x.device), torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    of_guide, of_model = _leaves(guide_trace), _leaves(model_trace)
    leaves = {
        "guide": list(of_guide.values()),
        "model": [leaf for key, leaf in of_model.items() if key not in of_guide],
    }
    found = {name: group for name, group in leaves.items() if group}
    own = (model_trace.nodes[name] for name in model_trace.stochastic_nodes)
    enumerates = any((site["infer"] or {}).get("enumerate") == "parallel" for site in own)
    return Groups(found, _num_data(model_trace), enumerates)


class Gradients:
    """Draws gradients of the mean over data of an objective's bound: minus those of its loss / N.

    Neither torch's global random state nor any parameter's ``.grad`` is changed.
    """

    def __init__(self, model: Program, guide: Program, x: Tensor):
        self.groups = find_groups(model, guide, x)
        self.sketches = {
            name: Sketch(sum(leaf.numel() for leaf in leaves), x.device)
            for name, leaves in self.groups.leaves.items()
        }
        """Shared by all averages of a group's gradients."""
        self._arguments = (model, guide, x)
        self._device = x.device

    @property
    def precision(self) -> float:
        """The relative error of sums in the parameters' precision, 64 ε."""
        return 64 * max(
            (torch.finfo(leaf.dtype).eps for leaf in self.groups.all_leaves), default=0.0
        )

    def draw(self, objective: Any, seed: int) -> tuple[dict[str, Tensor], float]:
        """Return one gradient under a seed, a vector a group, and its milliseconds.

        A parameter that the objective's loss does not reach has gradient 0.
        """
        leaves = self.groups.all_leaves
        with seeded(seed, self._device), torch.enable_grad():
            self._synchronize()
            start = time.perf_counter()
            if hasattr(objective, "differentiable_loss"):
                found = _of_loss(objective.differentiable_loss(*self._arguments), leaves)
            else:
                found = _left_in_grad(objective, self._arguments, leaves)
            self._synchronize()
            milliseconds = 1000 * (time.perf_counter() - start)
        gradients = [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, found, strict=True)
        ]
        scale = -1 / self.groups.num_data
        return {name: scale * g for name, g in self.groups.split(gradients)}, milliseconds

    def of_bound(self, bound: Tensor) -> dict[str, Tensor]:
        """Return the gradient of a bound's mean over the data, a vector a group."""
        leaves = self.groups.all_leaves
        found = torch.autograd.grad(bound, leaves, materialize_grads=True, allow_unused=True)
        return dict(self.groups.split(list(found)))

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _leaves(trace: Any) -> dict[int, Tensor]:
    """id → unconstrained parameter, in the order in which they are met."""
    met = (site["value"] for site in trace.nodes.values() if site["type"] == "param")
    leaves = (value.unconstrained() for value in met)
    return {id(leaf): leaf for leaf in leaves if leaf.requires_grad}


def _num_data(trace: Any) -> float:
    """The plate's size times N/B of its subsample and any scale, at the first observed site."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and site["is_observed"]:
            sizes = [frame.size for frame in site["cond_indep_stack"] if frame.dim == -1]
            scale = torch.as_tensor(own_scale(site))
            common = float(scale) if scale.numel() == 1 and float(scale) > 0 else 1.0
            return float(plate_scale(site) * sizes[0]) * common if sizes else 1.0
    return 1.0


def _of_loss(loss: Any, leaves: list[Tensor]) -> list[Tensor | None]:
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return [None] * len(leaves)
    return list(torch.autograd.grad(loss, leaves, allow_unused=True))


def _left_in_grad(
    objective: Any, arguments: tuple[Any, ...], leaves: list[Tensor]
) -> list[Tensor | None]:
    """What ``loss_and_grads`` leaves in the parameters' ``.grad``; they get back what they had."""
    before = [leaf.grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        objective.loss_and_grads(*arguments)
        return [leaf.grad for leaf in leaves]
    finally:
        for leaf, gradient in zip(leaves, before, strict=True):
            leaf.grad = gradient
