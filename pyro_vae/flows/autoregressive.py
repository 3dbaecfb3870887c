"""Steps that move each dimension by those before it."""

__all__ = ["Autoregressive", "AutoregressiveLayer"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_vae.flows.elementwise import Elementwise
from pyro_vae.flows.networks import Network, StepNetwork
from pyro_vae.flows.step import Step


class Autoregressive(Step):
    """y_d = f(x_d; the dimensions of x before d): one pass forward, D passes back.

    Arguments:
        network: maps x ``[*, D]`` to parameters ``[*, D, P]``, those of a
            dimension from the dimensions before it in ``order``.
    """

    def __init__(self, network: Network, elementwise: Elementwise, order: Sequence[int]):
        super().__init__()
        self.network, self.elementwise, self.order = network, elementwise, order

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and Σ_d log dy_d/dx_d: the Jacobian is triangular."""
        y, log_slope = self.elementwise.forward(x, self.network(x))
        return y, log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, found a dimension a pass, and Σ_d log dy_d/dx_d."""
        columns = list(torch.zeros_like(y).unbind(-1))
        for d in self.order:
            params = self.network(torch.stack(torch.broadcast_tensors(*columns), dim=-1))
            columns[d], _ = self.elementwise.inverse(y[..., d], params[..., d, :])
        # No parameter depends on the last dimension: those of the last pass are right for all.
        x, log_slope = self.elementwise.inverse(y, params)
        return x, log_slope.sum(-1)


class AutoregressiveLayer(nn.Module):
    """The masked network of one ``Autoregressive`` step; odd layers take z in reversed order.

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
        https://arxiv.org/abs/1502.03509

    Arguments:
        index: the layer's place among the others.
        latent_dim: D.
        hidden: the widths of the hidden layers.
        elementwise: the map of each dimension.
        context_dim: the size of the features of x; 0 for none.
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
        self.order = list(range(latent_dim))[:: -1 if index % 2 else 1]
        # A unit of degree m sees the first m dimensions; degree 0 sees the features only.
        lowest = 0 if context_dim else 1
        degree = torch.empty(latent_dim, dtype=torch.long)
        degree[self.order] = torch.arange(1, latent_dim + 1)
        layers: list[nn.Linear] = []
        incoming = degree
        for width in hidden:
            units = lowest + torch.arange(width) * (latent_dim - lowest) // width
            layers.append(_MaskedLinear(units.unsqueeze(-1) >= incoming))
            incoming = units
        outputs = degree.repeat_interleave(elementwise.params_per_dim)
        layers.append(_MaskedLinear(outputs.unsqueeze(-1) > incoming))
        self.network = StepNetwork(layers, elementwise.params_per_dim, context_dim)

    def forward(self, features: Tensor | None = None) -> Autoregressive:
        """Return the step at features ``[B, context_dim]``."""
        return Autoregressive(self.network.at(features), self.elementwise, self.order)


class _MaskedLinear(nn.Linear):
    """A linear layer whose weights outside ``mask`` ``[out, in]`` are zero."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight * self.mask, self.bias)
