"""The model's own exact posterior."""

__all__ = ["ExactPosterior"]

from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.precision import in_full_precision

from ._amortized import AmortizedGuide


class ExactPosterior(AmortizedGuide):
    """The model's exact p(z|x), for ``linear_gaussian``: every ELBO is log p(x).

    It has no parameters: q moves with p, and the gradient of the ELBO is that of
    log p(x).

    Arguments:
        model: a model with ``posterior(x)``.
    """

    def __init__(self, model: Any):
        super().__init__()
        if not hasattr(model, "posterior"):
            raise InputError(
                "guide exact_posterior needs a model with an exact posterior, such as "
                "linear_gaussian"
            )
        # In a tuple: the model's parameters stay the model's alone.
        self._model = (model,)

    @in_full_precision
    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Return p(z|x), ``batch_shape [B]`` and ``event_shape (latent_dim,)``."""
        q: dist.TorchDistribution = self._model[0].posterior(x)
        return q
