"""One torch optimizer over all parameters at once, and its learning rate's schedule."""

__all__ = ["JointOptim", "optimizer_from_spec", "schedule_from_spec"]

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.components import find
from pyro_vae.errors import InputError
from pyro_vae.specs import parse_spec


class JointOptim:
    """One optimizer over all parameters, made before the first step, and its state.

    Pyro's own wrappers make one optimizer a parameter: slow, and unable to clip
    by the global norm. For ``CompiledSVI``, which clips.

    Arguments:
        parameters: name → unconstrained leaf, in the order that the state keeps.
        factory: makes the optimizer from the list of parameters.
        clip_norm: the largest global 2-norm of a gradient, or None.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        factory: Callable[[list[Tensor]], Optimizer],
        clip_norm: float | None = None,
    ):
        self.parameters = parameters
        self.optimizer = factory(list(parameters.values()))
        self.clip_norm = clip_norm

    def __call__(self, parameters: list[Tensor]) -> Optimizer:
        """Return the optimizer."""
        return self.optimizer

    def get_state(self) -> dict[str, Any]:
        """Return a copy of the optimizer's state: tensors, numbers and names."""
        state: dict[str, Any] = copy.deepcopy(self.optimizer.state_dict())
        return state

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``get_state`` returned, for the same parameters."""
        self.optimizer.load_state_dict(state_dict)


def optimizer_from_spec(text: str) -> Callable[[list[Tensor]], Optimizer]:
    """Return a factory for a ``torch.optim`` optimizer; fused or foreach where torch has them.

    Example:
        >>> optimizer_from_spec("rmsprop(lr=1e-3, centered=True)")([torch.zeros(1)]).defaults["lr"]
        0.001
    """
    spec = parse_spec(text)
    component = find("optimizer", spec)
    arguments = dict(spec.arguments)
    if arguments.get("differentiable"):
        raise InputError(f"optimizer {spec}: differentiable=True is for gradients through a step")
    fast = next((flag for flag in ("fused", "foreach") if flag in component.options), None)
    if fast and not {"fused", "foreach", "differentiable"} & arguments.keys():
        arguments[fast] = True

    def factory(params: list[Tensor]) -> Optimizer:
        try:
            optimizer: Optimizer = component.build(arguments, params=params)
        except InputError as error:
            raise InputError(str(error).replace(f", {fast}=True", "")) from error
        except RuntimeError as error:  # not fused for this device or dtype
            if arguments == spec.arguments:
                raise InputError(f"optimizer {spec}: {error}") from error
            optimizer = component.build(spec.arguments, params=params)
        rate = optimizer.defaults["lr"]
        if not 0 <= rate < math.inf:
            raise InputError(f"optimizer {spec}: lr must be 0 or more, and finite, got {rate}")
        return optimizer

    return factory


def schedule_from_spec(
    text: str, optimizer: Optimizer, num_epochs: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build a ``torch.optim.lr_scheduler``; it steps once an epoch, for ``num_epochs``.

    Raises:
        InputError: an unknown schedule, or arguments that fail within these epochs.

    Example:
        >>> adam = optimizer_from_spec("adam")([torch.zeros(1)])
        >>> schedule_from_spec("cosine_annealing_lr(T_max=100)", adam, num_epochs=5).T_max
        100
    """
    spec = parse_spec(text)
    component = find("schedule", spec)
    try:  # a schedule reads its arguments as it steps: refuse wrong ones before training
        rehearsal = copy.deepcopy(optimizer)
        schedule = component.build(spec.arguments, optimizer=rehearsal)
        rehearsal.step()
        for _ in range(num_epochs):
            schedule.step()
    except (TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"schedule {spec}: {str(error).splitlines()[0]}") from error
    final: torch.optim.lr_scheduler.LRScheduler = component.build(
        spec.arguments, optimizer=optimizer
    )
    return final
