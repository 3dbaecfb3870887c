"""β: one Messenger that scales the latent sites, in the model and in the guide alike."""

__all__ = ["Beta", "linear_warm_up"]

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class Beta(Messenger):
    """Scale every latent site's log-density by β, so that an ELBO becomes the β-ELBO.

    log w_β = log p(x|z) + β (log p(z) − log q(z|x))

    Wrap the model and the guide alike. β is a 0-d tensor, so that it can be
    annealed in place while a step is captured or running.

    References:
        beta-VAE (Higgins et al., 2017) https://openreview.net/forum?id=Sy2fzU9gl

    Arguments:
        value: β ≥ 0, a 0-d tensor on the model's device.
    """

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            # The tensor itself where it can be: a KL then sees that both sides have one β.
            plain = not isinstance(msg["scale"], Tensor) and msg["scale"] == 1
            msg["scale"] = self.value if plain else msg["scale"] * self.value


def linear_warm_up(step: int, num_steps: int, beta: float = 1.0) -> float:
    """Return β at a 0-based step: it grows linearly and reaches ``beta`` at ``num_steps``.

    Example:
        >>> [linear_warm_up(step, num_steps=4) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
        >>> linear_warm_up(0, num_steps=0, beta=2.0)
        2.0
    """
    return beta if num_steps <= 0 else beta * min(1.0, (step + 1) / num_steps)
