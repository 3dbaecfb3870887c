"""torch's fused Adam on a CPU, without what its optimizer does around the kernel."""

__all__ = ["step_by_fused_adam"]

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as torch_optimizer

KERNELS: dict[bool, Any] = {False: torch._fused_adam_, True: torch._fused_adamw_}  # by decay
# An option that is another computation; what it must be.
PLAIN = {"fused": True, "amsgrad": False, "maximize": False, "differentiable": False}
OF_TORCH = str(Path(torch_optimizer.__file__).parent)
GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


@torch.no_grad()
def step_by_fused_adam(
    optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> bool:
    """Step as ``optimizer.step()`` would with these gradients; return whether it did.

    To the bit the same update, by the same kernel: grouping, hooks and health checks take the
    optimizer longer than a small network's whole update. Nothing is done where it is not a plain
    fused Adam or AdamW on a CPU that has taken a step before.
    """
    if type(optimizer) not in (Adam, AdamW) or _is_watched(optimizer):
        return False
    found = {id(p): g for p, g in zip(parameters, gradients, strict=True)}
    calls = []
    for group in optimizer.param_groups:
        tensors = _tensors(group, optimizer.state, found)
        if tensors is None:
            return False
        calls.append((group, tensors))
    for group, (moved, slopes, means, squares, steps) in calls:
        if moved:
            torch._foreach_add_(steps, 1)
            beta1, beta2 = group["betas"]
            KERNELS[group["decoupled_weight_decay"]](
                moved, slopes, means, squares, [], steps, lr=group["lr"], beta1=beta1, beta2=beta2,
                weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False,
                maximize=False, grad_scale=None, found_inf=None,
            )  # fmt: skip
    return True


def _tensors(
    group: dict[str, Any], states: Any, gradients: dict[int, Tensor | None]
) -> tuple[list[Tensor], ...] | None:
    """Parameters with a gradient, gradients, first and second moments, steps; None: not plain."""
    if any(group.get(option) is not plain for option, plain in PLAIN.items()):
        return None
    if group.get("decoupled_weight_decay") not in KERNELS:
        return None
    if not isinstance(group["lr"], float) or not all(isinstance(b, float) for b in group["betas"]):
        return None
    columns: tuple[list[Tensor], ...] = ([], [], [], [], [])
    moved, slopes, means, squares, steps = columns
    for leaf in group["params"]:
        if id(leaf) not in gradients and leaf.grad is not None:
            return None  # a parameter and a gradient of the optimizer's owner
        gradient = gradients.get(id(leaf))
        if gradient is None:
            continue
        state = states.get(leaf)
        if not state or not leaf.is_cpu or not leaf.is_floating_point():
            return None
        moved.append(leaf)
        slopes.append(gradient)
        means.append(state["exp_avg"])
        squares.append(state["exp_avg_sq"])
        steps.append(state["step"])
    # The kernel is one for all, of one dtype.
    return columns if len({leaf.dtype for leaf in moved}) <= 1 else None


def _is_watched(optimizer: Optimizer) -> bool:
    """Whether something else is to happen at each step: a hook, a scaler, another ``step``."""
    own = vars(optimizer)
    if (step := own.get("step")) is not None:
        if getattr(step, "__wrapped__", None) is not type(optimizer).step:
            return True
        own["_opt_called"] = True  # all that a schedule's wrapper does
    if not _is_torchs_own(type(optimizer).step):
        return True
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return (
        any(hooks)
        or any(getattr(torch_optimizer, name, None) for name in GLOBAL_HOOKS)
        or own.get("grad_scale") is not None
        or own.get("found_inf") is not None
    )


@functools.cache
def _is_torchs_own(step: Callable[..., Any] | None) -> bool:
    """Whether a method and all that it wraps are torch's: nobody has put another in its place."""
    while step is not None:
        if not step.__code__.co_filename.startswith(OF_TORCH):
            return False
        step = getattr(step, "__wrapped__", None)
    return True
