"""The network of one step, from some dimensions of z and the features of x to parameters."""

__all__ = ["Network", "StepNetwork"]

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from pyro_vae.precision import full_precision

Network = Callable[[Tensor], Tensor]


class StepNetwork(nn.Module):
    """Layers with ELUs between; features enter the first one, multiplied out once a datum."""

    def __init__(self, layers: list[nn.Linear], params_per_dim: int, context_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.params_per_dim = params_per_dim
        if context_dim:
            self.context = nn.Linear(context_dim, layers[0].out_features, bias=False)
        with torch.no_grad():
            # Near the identity, not at it: from zero weights no gradient reaches the layers before.
            layers[-1].weight.mul_(0.01)
            layers[-1].bias.zero_()

    def at(self, features: Tensor | None) -> Network:
        """Return the network at features ``[B, context_dim]``: z ``[*, B, …]`` → parameters."""
        first, *rest = self.layers
        context = 0.0 if features is None else self.context(features)

        def run(z: Tensor) -> Tensor:
            h = first(z) + context
            for layer in rest:
                h = layer(elu(h))
            params: Tensor = full_precision(h).unflatten(-1, (-1, self.params_per_dim))
            return params

        return run
