"""Cheaper forms of what a network and log p(x|z) cost on a CPU beside their matrix products."""

__all__ = ["with_cheap_forms", "softplus", "sum_of_bernoulli", "tanh"]

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten
# What Bernoulli's log_prob and a sum over event dimensions are in a graph.
BERNOULLI = (
    aten.binary_cross_entropy_with_logits.default,
    aten.neg.default,
    aten.view.default,
    aten.sum.dim_IntList,
)
LARGEST_PRODUCT = 16
# tanh h / h in powers of h², to 1e-8 for |h| below SMALL.
TANH = (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835)
SMALL = 0.25
LINEAR = 20.0  # softplus(h) = h from here on, to ε


def with_cheap_forms(module: GraphModule) -> GraphModule:
    """Return the graph with sums of Bernoulli log-masses, tanh and softplus in half the time.

    log(1 + t) and tanh are what torch's vectorized functions are slowest at. The last two are
    replaced in float32 alone.
    """
    graph = copy.deepcopy(module.graph)
    replaced = False
    for node in list(graph.nodes):
        if node.target is aten.tanh.default and _is_float32(node):
            _replace([node], tanh, node.args)
        elif node.target is aten.softplus.default and len(node.args) == 1 and _is_float32(node):
            _replace([node], softplus, node.args)
        elif chain := _bernoulli(node):
            _replace(chain, sum_of_bernoulli, (*node.args[:2], chain[2].args[1]))
        else:
            continue
        replaced = True
    return GraphModule(module, graph) if replaced else module


def sum_of_bernoulli(logits: Tensor, x: Tensor, shape: list[int]) -> Tensor:
    """Σ_d x_d l_d − log(1 + e^{l_d}) over the last dimension of ``shape``, for D of them.

    log(1 + e^l) = max(l, 0) + log(1 + e^{−|l|})
    Σ_d log(1 + e^{−|l_d|}) = Σ_g log Π_{d∈g} (1 + e^{−|l_d|})

    One logarithm for up to 16 factors in [1, 2]. What their rounding adds, D ε at most and
    √D ε as a rule, is what the sum itself is rounded by.
    """
    logits, x = logits.reshape(shape), x.reshape(shape)
    size = logits.shape[-1]
    group = max(g for g in range(1, LARGEST_PRODUCT + 1) if size % g == 0)
    factors = 1 + (-logits.abs()).exp()
    # Factors of a product lie apart in memory, so that products stand side by side in registers.
    products = factors.unflatten(-1, (group, size // group)).prod(-2)
    # x l − max(l, 0), as torch has it: for x near 1 and for infinite l.
    linear = logits.clamp(max=0) - (1 - x) * logits
    return linear.sum(-1) - products.log().sum(-1)


def tanh(h: Tensor) -> Tensor:
    """tanh h = 2 σ(2h) − 1, and where that cancels the power series, to 4 ε relative in float32."""
    square = h.square()
    series = torch.zeros_like(h)
    for coefficient in reversed(TANH):
        series = series * square + coefficient
    return torch.where(h.abs() < SMALL, h * series, 2 * (2 * h).sigmoid() - 1)


def softplus(h: Tensor) -> Tensor:
    """log(1 + e^h), to 3 ε relative; h itself above 20, as torch has it.

    log(1 + t) = log u + (t − (u − 1)) / u + O(ε²), u the rounded 1 + t (Kahan)
    """
    t = h.exp()
    u = 1 + t
    return torch.where(h > LINEAR, h, u.log() + (t - (u - 1)) / u)


def _is_float32(node: Node) -> bool:
    return _dtype(node) is torch.float32


def _dtype(node: Any) -> torch.dtype | None:
    meta: Any = node.meta.get("tensor_meta")
    return None if meta is None else meta.dtype


def _bernoulli(node: Node) -> list[Node]:
    """The nodes from an unweighted, unreduced cross-entropy to its sum, or none."""
    if node.target is not BERNOULLI[0] or node.args[2:] != (None, None, 0):
        return []
    chain = [node]
    while len(chain) < len(BERNOULLI) and len(chain[-1].users) == 1:
        chain.extend(chain[-1].users)
    matches = tuple(n.target for n in chain) == BERNOULLI and chain[-1].args[1:] == ([-1],)
    # In 16 bits a product of 16 factors of 2 is infinite.
    dtypes = {_dtype(n) for n in (*node.args[:2], *chain)}
    plain = not any(n.kwargs for n in chain) and dtypes in ({torch.float32}, {torch.float64})
    return chain if matches and plain else []


def _replace(chain: list[Node], function: Callable[..., Tensor], args: Any) -> None:
    """Call ``function`` in the place of the last of these nodes, and drop them all."""
    graph = chain[-1].graph
    with graph.inserting_before(chain[-1]):
        replacement = graph.call_function(function, args)
    replacement.meta = dict(chain[-1].meta)
    chain[-1].replace_all_uses_with(replacement)
    for node in reversed(chain):
        graph.erase_node(node)
