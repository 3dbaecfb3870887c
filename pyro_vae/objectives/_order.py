"""What an analytic KL(q ‖ p) asks for: latents in one order, and one β for both sides."""

__all__ = ["check_order", "check_one_scale"]

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.execution import own_scale


def check_order(name: str, guide: Iterable[str], model: Iterable[str]) -> None:
    """Refuse a guide that draws its latents in another order than the model.

    Where the guide draws z1, then z2 given it, and the model z2, then z1, the analytic
    KL(q(z1|x) ‖ p(z1|z2)) takes z2 as independent of z1: no bound on log p(x).

    Raises:
        InputError: with the estimator's name.
    """
    latents = list(guide)
    if latents != [latent for latent in model if latent in latents]:
        raise InputError(
            f"{name}: the guide draws its latents in another order than the model, "
            "so that their KL is no sum of analytic ones; use --objective trace"
        )


def check_one_scale(name: str, guide: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse a latent site that is scaled in one program alone: a KL has one β.

    Raises:
        InputError: with the estimator's and the site's name.
    """
    q, p = own_scale(guide), own_scale(model)
    if isinstance(q, Tensor) and isinstance(p, Tensor):
        same = q is p or (q.shape == p.shape and bool((q == p).all()))
    else:
        same = not isinstance(q, Tensor) and not isinstance(p, Tensor) and q == p
    if not same:
        raise InputError(
            f"{name}: latent site {guide['name']!r} has another scale in the guide than in the "
            "model, and a KL has one β; wrap both programs in pyro_vae.annealing.Beta"
        )
