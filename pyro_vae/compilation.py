"""A captured graph as machine code, by torch's compiler."""

__all__ = ["compile_graph", "span_of"]

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


def span_of(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses between which a tensor's numbers lie; (0, 0) where it has none."""
    if tensor.numel() == 0:
        return 0, 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def _distinct(inputs: Sequence[Tensor]) -> list[Any]:
    """Inputs, none in the memory of another: the graph would be compiled for those alone."""
    distinct: list[Any] = []
    taken: list[tuple[int, int]] = []
    for tensor in inputs:
        start, end = span_of(tensor)
        shared = any(first < end and start < last for first, last in taken)
        taken.append((start, end))
        if shared:  # only how it lies in memory is looked at
            size, strides = tensor.shape, tensor.stride()
            tensor = torch.empty_strided(size, strides, dtype=tensor.dtype, device=tensor.device)
        distinct.append(tensor)
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
