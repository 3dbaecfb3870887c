"""Cheaper forms of what log p(x|z) costs on a CPU beside its matrix products."""

__all__ = ["rewrite", "sum_of_bernoulli", "tanh"]

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


def rewrite(module: GraphModule) -> None:
    """Replace sums of Bernoulli log-masses, and tanh, by forms that cost a third; in place."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is aten.tanh.default:
            _replace([node], tanh, node.args)
        elif chain := _bernoulli(node):
            _replace(chain, sum_of_bernoulli, (*node.args[:2], chain[2].args[1]))
    graph.lint()
    module.recompile()


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
    return (x * logits - logits.clamp(min=0)).sum(-1) - products.log().sum(-1)


def tanh(h: Tensor) -> Tensor:
    """tanh h = 2 σ(2h) − 1, to an absolute error of ε."""
    return 2 * (2 * h).sigmoid() - 1


def _bernoulli(node: Node) -> list[Node]:
    """The nodes from an unweighted, unreduced cross-entropy to its sum, or none."""
    if node.target is not BERNOULLI[0] or node.args[2:] != (None, None, 0):
        return []
    chain = [node]
    while len(chain) < len(BERNOULLI) and len(chain[-1].users) == 1:
        chain.extend(chain[-1].users)
    matches = tuple(n.target for n in chain) == BERNOULLI and chain[-1].args[1:] == ([-1],)
    return chain if matches else []


def _replace(chain: list[Node], function: Callable[..., Tensor], args: Any) -> None:
    """Call ``function`` in the place of the last of these nodes, and drop them all."""
    graph = chain[-1].graph
    with graph.inserting_before(chain[-1]):
        chain[-1].replace_all_uses_with(graph.call_function(function, args))
    for node in reversed(chain):
        graph.erase_node(node)
