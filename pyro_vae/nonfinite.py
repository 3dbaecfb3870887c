"""Where a loss or a gradient stopped being finite: the site and the parameter, by name."""

__all__ = ["explain"]

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor


def explain(
    loss: ELBO,
    model: Callable[[Tensor], Any],
    guide: Callable[[Tensor], Any],
    x: Tensor,
    parameters: dict[str, Tensor],
    rewind: Callable[[], None],
    *,
    failed: bool = False,
) -> str | None:
    """Take a step's loss and gradients once more and name what is not finite in them.

    The loss or the gradient, the first site and the first parameter. None: all is finite.

    Arguments:
        rewind: puts random states and buffers back to what the step began with.
        failed: the programs raised an error, so that there is no loss.
    """
    what: str | None = "the programs fail"
    if not failed:
        rewind()
        what = _outcome(loss, model, guide, x, parameters)
    rewind()
    with torch.no_grad():
        site = _first_site(model, guide, x)
        parameter = _first_parameter(parameters)
        largest = _largest_gradient(parameters)
    for leaf in parameters.values():
        leaf.grad = None
    if what is None or (failed and site is None and parameter is None):
        return None
    if site is None and parameter is None:
        return f"{what}: {largest}"
    return f"{what}: {site or 'every site is finite'}; {parameter or 'every parameter is finite'}"


def _outcome(
    loss: Any, model: Any, guide: Any, x: Tensor, parameters: dict[str, Tensor]
) -> str | None:
    """Leave the gradients in ``parameters``; say whether loss and gradient are finite."""
    with pyro.validation_enabled(False):
        value = float(loss.loss_and_grads(model, guide, x))
    if not math.isfinite(value):
        return "the loss is not finite"
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if not math.isfinite(torch.nn.utils.get_total_norm(gradients)):
        return "the gradient is not finite"
    return None


def _largest_gradient(parameters: dict[str, Tensor]) -> str:
    """Name the parameter with the largest gradient: its square may overflow where it does not."""
    sizes = {k: float(p.grad.abs().max()) for k, p in parameters.items() if p.grad is not None}
    if not sizes:
        return "no parameter has a gradient"
    name = max(sizes, key=lambda key: sizes[key])
    return f"the gradient of parameter {name!r} reaches {sizes[name]:.1e}"


def _first_parameter(parameters: dict[str, Tensor]) -> str | None:
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter).all():
            return f"parameter {name!r} is not finite"
    for name, parameter in parameters.items():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of parameter {name!r} is not finite"
    return None


def _first_site(
    model: Callable[[Tensor], Any], guide: Callable[[Tensor], Any], x: Tensor
) -> str | None:
    guide_tracer = poutine.trace(guide)
    found = _run(guide_tracer, x, "guide")
    if found:
        return found
    return _run(poutine.trace(poutine.replay(model, trace=guide_tracer.trace)), x, "model")


def _run(tracer: Any, x: Tensor, program: str) -> str | None:
    """The first site whose value or log-density is not finite, or where the program stopped."""
    failure = None
    try:
        tracer(x)
    except ValueError as error:
        if any(word in str(error) for word in ("nan", "inf")):  # a validated distribution's
            failure = str(error).partition("\n")[0]
    for name, site in tracer.trace.nodes.items():
        if site["type"] != "sample" or site["fn"] is None:
            continue
        value = site["value"]
        if isinstance(value, Tensor) and not torch.isfinite(value).all():
            return f"site {name!r} of the {program} has a value that is not finite"
        try:
            log_prob = site["fn"].log_prob(value)
        except ValueError as error:
            return f"site {name!r} of the {program}: {str(error).partition(chr(10))[0]}"
        if not torch.isfinite(log_prob).all():
            return f"site {name!r} of the {program} has a log-density that is not finite"
    return f"the {program} failed: {failure}" if failure else None
