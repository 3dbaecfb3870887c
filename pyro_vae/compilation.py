"""A captured graph as machine code, by torch's compiler."""

__all__ = ["compile_graph"]

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.cheap_forms import with_cheap_forms
from pyro_vae.products import with_fast_products

# inductor's own generator is ten times slower on a CPU than torch's, and other noise.
OPTIONS: dict[str, Any] = {"fallback_random": True}


def compile_graph(module: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile the graph for inputs of these shapes, strides, dtypes and devices alone.

    Nothing checks at a call that its inputs are such; ``torch.compile`` would, at a tenth of a
    small step's time, and the caller knows.
    """
    import torch._inductor  # loads sympy, half a second, which ``import pyro_vae`` has no use for

    if all(tensor.device.type == "cpu" for tensor in inputs):
        module = with_fast_products(with_cheap_forms(module))
    with validation_kept(), _without_cuda_notes():
        return torch._inductor.compile(copy.deepcopy(module), _distinct(inputs), options=OPTIONS)


def _distinct(inputs: Sequence[Tensor]) -> list[Any]:
    """The inputs, none in the memory of another: the graph would be compiled for those alone."""
    seen: set[int] = set()
    distinct = []
    for tensor in inputs:
        memory = tensor.untyped_storage().data_ptr()
        shared = memory in seen and tensor.numel() > 0
        seen.add(memory)
        distinct.append(torch.empty_like(tensor).copy_(tensor) if shared else tensor)
    return distinct


@contextmanager
def _without_cuda_notes() -> Iterator[None]:
    """A machine that has CUDA's compiler and no device is told so, at a warning's level."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def validation_kept() -> Iterator[None]:
    """torch's compiler turns the validation of distributions off, for the whole process."""
    kind: Any = torch.distributions.Distribution
    before = kind._validate_args
    try:
        yield
    finally:
        kind.set_default_validate_args(before)
