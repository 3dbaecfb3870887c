"""Corruptions of data, and guides that see corrupted data where they are trained: denoising."""

__all__ = ["gaussian", "mask", "Corrupted"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.checks import check_number


def gaussian(scale: float = 0.5, *, unit: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Normal noise, x̃ = x + scale · unit · ε, ε ~ N(0, I).

    Arguments:
        scale: standard deviation, in units.
        unit: n − 1 of levels 0 … n−1, the standard deviation of real data, else 1.

    Raises:
        InputError: a scale that is not positive and finite.

    References:
        Extracting and Composing Robust Features with Denoising Autoencoders
        (Vincent et al., 2008) https://doi.org/10.1145/1390156.1390294

    Example:
        >>> x = torch.zeros(1000, 4)
        >>> _ = torch.manual_seed(0)
        >>> bool((gaussian(scale=0.1, unit=16.0)(x).std() - 1.6).abs() < 0.1)
        True
    """
    check_number("gaussian", "scale", scale)
    deviation = scale * unit

    def corrupt(x: Tensor) -> Tensor:
        return x + deviation * torch.randn_like(x)

    return corrupt


def mask(rate: float = 0.25) -> Callable[[Tensor], Tensor]:
    """Each number of x is set to 0 with probability ``rate``, independently.

    Arguments:
        rate: between 0 and 1.

    Raises:
        InputError: a rate outside (0, 1).

    References:
        Extracting and Composing Robust Features with Denoising Autoencoders
        (Vincent et al., 2008) https://doi.org/10.1145/1390156.1390294

    Example:
        >>> _ = torch.manual_seed(0)
        >>> mask(rate=0.5)(torch.ones(2, 4))
        tensor([[0., 1., 0., 0.],
                [0., 1., 0., 1.]])
    """
    check_number("mask", "rate", rate, high=1, ends="[)")

    def corrupt(x: Tensor) -> Tensor:
        return torch.where(torch.rand_like(x) < rate, torch.zeros_like(x), x)

    return corrupt


class Corrupted(nn.Module):
    """A guide that sees x̃ ~ c(x̃|x) while it is trained, and x itself in evaluation mode.

    The model scores the clean x. With any guide the objective stays a bound:

    E_c(x̃|x) E_q(z|x̃) [log p(x, z) − log q(z|x̃)] ≤ log p(x),

    an ELBO with another proposal for each x̃.

    References:
        Denoising Criterion for Variational Auto-Encoding Framework (Im et al., 2017)
        https://arxiv.org/abs/1511.06406

    Arguments:
        guide: a Pyro program of x ``[B, *event_shape]``.
        corruption: x → x̃ of the same shape, one a call.

    Example:
        >>> guide = Corrupted(lambda x: x, mask(rate=0.999999))
        >>> guide(torch.ones(3)), guide.eval()(torch.ones(3))
        (tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    """

    def __init__(self, guide: Callable[..., Any], corruption: Callable[[Tensor], Tensor]):
        super().__init__()
        self.guide = guide
        self.corruption = corruption
        if isinstance(guide, nn.Module):
            self.train(guide.training)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the guide on x̃ in training mode, else on x."""
        # The guide's own mode, where it has one: it may be switched without this wrapper.
        training = getattr(self.guide, "training", self.training)
        return self.guide(self.corruption(x) if training else x, *args, **kwargs)
