"""The normalizing flow prior."""

__all__ = ["Flow"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.flows import Affine, AutoregressiveLayer, CouplingLayer, Spline, check_sizes


class Flow(nn.Module):
    """A normalizing flow: learned bijections take z to ε ~ N(0, I).

    log p(z) = log N(f(z); 0, I) + log|det df/dz|,  f = f_layers ∘ … ∘ f_1

    f is the direction that training needs, so that log p(z) is one pass of the
    networks for every kind:

    - ``affine_coupling``: half of the dimensions give the shift and scale of
      the other half; a draw is one pass too.
    - ``spline``: the same with monotone rational-quadratic splines on ±bound.
    - ``affine_autoregressive``: each dimension has its shift and scale from those
      before it (a masked autoregressive flow); a draw takes ``latent_dim`` passes.

    The halves change places, and the order is reversed, from one layer to the
    next. Scales are bounded, e⁻³ to e³ a layer. Starts near N(0, I).

    References:
        Density Estimation using Real NVP (Dinh et al., 2017)
        https://arxiv.org/abs/1605.08803
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        https://arxiv.org/abs/1705.07057
        Neural Spline Flows (Durkan et al., 2019)
        https://arxiv.org/abs/1906.04032

    Arguments:
        latent_dim: the dimension of z, at least 2.
        kind: ``affine_coupling``, ``affine_autoregressive`` or ``spline``.
        layers: the number of bijections.
        hidden: the widths of each one's network.
        bins: the number of pieces of each spline.
        bound: where the splines end and the identity begins.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> prior = Flow(latent_dim=2, kind="affine_autoregressive")
        >>> prior().log_prob(torch.zeros(5, 3, 2)).shape
        torch.Size([5, 3])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        kind: str = "affine_coupling",
        layers: int = 4,
        hidden: tuple[int, ...] = (128,),
        bins: int = 8,
        bound: float = 5.0,
    ):
        super().__init__()
        kinds = ("affine_coupling", "affine_autoregressive", "spline")
        if kind not in kinds:
            raise InputError(f"flow: kind must be one of {', '.join(kinds)}, got {kind!r}")
        check_sizes("flow", layers=layers, hidden=hidden, bins=bins, bound=bound)
        if latent_dim < 2:
            # A coupling cannot split it, and an autoregressive step would be one more affine map.
            raise InputError(
                f"flow: latent_dim must be at least 2, got {latent_dim}; "
                "for one dimension use prior mixture"
            )
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)
        layer = AutoregressiveLayer if kind == "affine_autoregressive" else CouplingLayer
        elementwise = Spline(bins, bound) if kind == "spline" else Affine()
        self.layers = nn.ModuleList(
            layer(index, latent_dim, hidden, elementwise) for index in range(layers)
        )

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), ``event_shape (latent_dim,)``."""
        base = dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)
        steps = [layer().inv for layer in reversed(self.layers)]
        return dist.TransformedDistribution(base, steps, validate_args=False)
