"""The exact ELBO of a linear-Gaussian pair, where the programs are what their parts say."""

__all__ = ["exact_bound"]

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vae.closed_form import exact_elbo
from pyro_vae.errors import InputError
from pyro_vae.log_weights import draw_latents
from pyro_vae.objectives.trace import Trace
from pyro_vae.seeding import seeded

PARTS = (("model", "decoder"), ("model", "decode"), ("model", "prior"), ("guide", "posterior"))


def exact_bound(model: Any, guide: Any, x: Tensor, num_data: float) -> Tensor | None:
    """Return the mean over data of the exact ELBO, differentiable, or None where there is none.

    Arguments:
        num_data: what the programs' loss is summed over.
    """
    programs = {"model": model, "guide": guide}
    if not all(hasattr(programs[program], part) for program, part in PARTS):
        return None
    try:
        bound = exact_elbo(model, guide, x).mean()
    except InputError:
        return None
    return bound if _is_made_of_its_parts(model, guide, x, num_data) else None


@torch.no_grad()
def _is_made_of_its_parts(model: Any, guide: Any, x: Tensor, num_data: float) -> bool:
    """Whether one draw's log p(x, z) − log q(z|x) is that of decoder, prior and posterior.

    It is not for programs that scale, mask or subsample, and for any that do more than
    their parts.
    """
    with seeded(0, x.device):
        latents = list(draw_latents(guide, x, 1).values.values())
    with seeded(0, x.device):
        loss = Trace().loss(model, guide, x)
    if len(latents) != 1:
        return False
    z = latents[0].squeeze(0)
    log_weight = model.decode(z).log_prob(x) + model.prior().log_prob(z)
    expected = float((log_weight - guide.posterior(x).log_prob(z)).mean())
    return math.isclose(-loss / num_data, expected, rel_tol=1e-4, abs_tol=1e-4)
