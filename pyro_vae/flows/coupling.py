"""Steps that move one half of the dimensions by the other half."""

__all__ = ["Coupling", "CouplingLayer"]

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_vae.flows.elementwise import Elementwise
from pyro_vae.flows.networks import Network, StepNetwork
from pyro_vae.flows.step import Step


class Coupling(Step):
    """Half of the dimensions move, steered by the others, which stay; one pass each way.

    Arguments:
        network: maps the dimensions that stay to parameters ``[*, moved, P]``.
        split: how many dimensions come before the cut.
        tail_moves: those behind the cut move, else those before it.
    """

    def __init__(self, network: Network, elementwise: Elementwise, split: int, tail_moves: bool):
        super().__init__()
        self.network, self.elementwise = network, elementwise
        self.split, self.tail_moves = split, tail_moves

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log|det dy/dx|, a sum over the dimensions that move."""
        return self._move(x, self.elementwise.forward)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log|det dy/dx|."""
        return self._move(y, self.elementwise.inverse)

    def _move(
        self, x: Tensor, move: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        head, tail = x[..., : self.split], x[..., self.split :]
        stays, moves = (head, tail) if self.tail_moves else (tail, head)
        moved, log_slope = move(moves, self.network(stays))
        stays = stays.expand(*moved.shape[:-1], -1)
        parts = [stays, moved] if self.tail_moves else [moved, stays]
        return torch.cat(parts, dim=-1), log_slope.sum(-1)


class CouplingLayer(nn.Module):
    """The network of one ``Coupling`` step; even layers move the tail, odd layers the head.

    The arguments are those of ``AutoregressiveLayer``.
    """

    def __init__(
        self,
        index: int,
        latent_dim: int,
        hidden: Sequence[int],
        elementwise: Elementwise,
        context_dim: int = 0,
    ):
        super().__init__()
        self.elementwise = elementwise
        self.split = latent_dim // 2
        self.tail_moves = index % 2 == 0
        tail = latent_dim - self.split
        stay, move = (self.split, tail) if self.tail_moves else (tail, self.split)
        sizes = [stay, *hidden, move * elementwise.params_per_dim]
        layers = [nn.Linear(i, o) for i, o in itertools.pairwise(sizes)]
        self.network = StepNetwork(layers, elementwise.params_per_dim, context_dim)

    def forward(self, features: Tensor | None = None) -> Coupling:
        """Return the step at features ``[B, context_dim]``."""
        network = self.network.at(features)
        return Coupling(network, self.elementwise, self.split, self.tail_moves)
