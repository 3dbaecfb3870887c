"""What an analytic KL(q ‖ p) asks for: latents in one order, and one β for both sides."""

__all__ = ["check_order", "check_one_scale"]

from collections.abc import Iterable
from typing import Any

from pyro_vae.errors import InputError
from pyro_vae.execution import equal_everywhere, own_scale, same_scale


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
    """Refuse a latent site that is scaled or masked in one program alone: a KL has one β.

    Raises:
        InputError: with the estimator's and the site's name.
    """
    masks = guide["mask"], model["mask"]
    if masks[0] is not masks[1] and not _same_masks(*masks):
        raise InputError(
            f"{name}: latent site {guide['name']!r} has another mask in the guide than in the "
            "model, and a KL has one; wrap both programs in poutine.mask"
        )
    if not same_scale(own_scale(guide), own_scale(model)):
        raise InputError(
            f"{name}: latent site {guide['name']!r} has another scale in the guide than in the "
            "model, and a KL has one β; wrap both programs in pyro_vae.annealing.Beta"
        )


def _same_masks(one: Any, other: Any) -> bool:
    return one is not None and other is not None and equal_everywhere(one, other)
