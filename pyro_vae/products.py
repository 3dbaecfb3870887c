"""Matrix products of a captured graph by oneDNN, where torch's BLAS is slower."""

__all__ = ["with_fast_products"]

import copy
import functools
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

# Multiplications from which a product repays oneDNN's cost of a call, some 12 µs.
LARGE = 3_000_000
# Terms of a sum from which a gradient taller than wide is worth its computation as a wide one,
# and a copy: oneDNN takes up to twice as long for the tall one.
LONG = 256
aten = torch.ops.aten


def with_fast_products(module: GraphModule) -> GraphModule:
    """Return the graph with its large float32 products on a CPU computed by oneDNN.

    torch gives them to MKL, which on processors that are not Intel's leaves their widest
    instructions unused: oneDNN takes half the time there. Elsewhere the graph is returned as it
    is. The choice is by shape and processor alone, so that a run repeats to the bit.
    """
    if not _mkl_is_slow():
        return module
    graph = copy.deepcopy(module.graph)
    large = [node for node in graph.nodes if _is_large_product(node)]
    for node in large:
        bias, a, b = (None, *node.args) if node.target is aten.mm.default else node.args
        with graph.inserting_before(node):
            if bias is None and _is_tall(node):
                args = graph.call_function(aten.t.default, (b,)), a, None
                wide = graph.call_function(_operator(), args)
                tall = graph.call_function(aten.t.default, (wide,))
                contiguous: dict[str, Any] = {"memory_format": torch.contiguous_format}
                product = graph.call_function(aten.clone.default, (tall,), contiguous)
            else:
                transposed = graph.call_function(aten.t.default, (b,))
                product = graph.call_function(_operator(), (a, transposed, bias))
        node.replace_all_uses_with(product)
        graph.erase_node(node)
    return GraphModule(module, graph) if large else module


def _is_large_product(node: Node) -> bool:
    """Whether this is a b or bias + a b, ``[M, K] [K, N]``, of float32 on the CPU."""
    if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
        return False
    result, *bias, a, b = (_meta(n) for n in (node, *node.args) if isinstance(n, Node))
    # A factor that was rewritten may not say its shape: the other one does.
    inner = b.shape[0] if b is not None else a.shape[1] if a is not None else 0
    if result is None or result.dtype is not torch.float32 or len(bias) != len(node.args) - 2:
        return False
    if any(term is None or len(term.shape) != 1 for term in bias):  # of another shape
        return False
    return bool(math.prod(result.shape) * inner >= LARGE)


def _is_tall(node: Node) -> bool:
    """Whether this is gᵀ x, the gradient of a weight, of many data and with more rows than columns.

    gᵀ x = (xᵀ g)ᵀ
    """
    first: Any = node.args[0]
    rows, columns = _meta(node).shape
    transposed = first.target is aten.t.default and _meta(first) is not None
    return bool(transposed and rows > columns and _meta(first).shape[1] >= LONG)


def _meta(node: Node) -> Any:
    return node.meta.get("tensor_meta")


@functools.cache
def _mkl_is_slow() -> bool:
    available = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return available and _processor() == "AuthenticAMD" and _linear() is not None


def _processor() -> str:
    """The vendor of the CPU; empty where it is not known."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.exists() else platform.processor()
    return next((name for name in ("AuthenticAMD", "GenuineIntel") if name in text), "")


def _linear() -> Callable[..., Tensor] | None:
    """oneDNN's a wᵀ + bias, which torch keeps for its own compiler; None where it has none."""
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return getattr(packet, "default", None)


@functools.cache
def _operator() -> Any:
    """The operator as the compiled graph calls it: torch's compiler takes its own on constants."""
    linear: Any = _linear()
    library = torch.library.Library("pyro_vae", "FRAGMENT")
    library.define("linear(Tensor a, Tensor weight, Tensor? bias) -> Tensor")
    library.impl("linear", lambda a, w, bias: linear(a, w, bias, "none", [], ""), "CPU")
    _libraries.append(library)  # its operators live as long as it does

    def shape(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return a.new_empty(a.shape[0], weight.shape[0])

    torch.library.register_fake("pyro_vae::linear", shape)
    return torch.ops.pyro_vae.linear.default


_libraries: list[Any] = []
