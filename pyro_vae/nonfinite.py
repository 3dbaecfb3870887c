"""Where a loss or a gradient stopped being finite: the site and the parameter, by name."""

__all__ = ["explain"]

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor


@torch.no_grad()
def explain(
    model: Callable[[Tensor], Any],
    guide: Callable[[Tensor], Any],
    x: Tensor,
    parameters: dict[str, Tensor],
) -> str:
    """Run guide and model once more on ``x`` and name the first site and parameter not finite.

    Call it under the random state that the failed step began with, before the
    gradients are cleared.
    """
    site = _first_site(model, guide, x) or "every site is finite"
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter).all():
            return f"{site}; parameter {name!r} is not finite"
    for name, parameter in parameters.items():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"{site}; the gradient of parameter {name!r} is not finite"
    return f"{site}; every parameter and gradient is finite"


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
