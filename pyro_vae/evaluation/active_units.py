"""Active units: how many latent dimensions tell data apart."""

__all__ = ["active_units", "ActiveUnits"]

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.generation import moments, posterior_mean
from pyro_vae.seeding import derive_seed, seeded

CHUNK = 500  # data encoded at once; a posterior without a mean in closed form draws 1,000 z each


@dataclass(frozen=True)
class ActiveUnits:
    """The activity of each latent dimension, and how many are active."""

    activity: list[float]
    """A_d, ``[latent_dim]``; empty where it is not defined."""
    count: int | None
    """How many A_d exceed the threshold; None where that is not defined."""
    note: str | None = None
    """Of which latent it is, where there are several; or why it is not defined."""


@torch.no_grad()
def active_units(
    model: Any, guide: Any, x: Tensor, threshold: float = 0.01, seed: int = 0
) -> ActiveUnits:
    """Count the latent dimensions whose posterior mean moves with the data.

    A_d = Var_x(E_q[z_d|x]) / Var_p(z_d) > threshold

    By the prior's variance, so that it means the same under any prior and in any
    unit of z; under N(0, I) it is the statistic of Burda et al. Both moments are
    over 1,000 draws where they have no closed form: a dimension that ignores x
    then shows up to 0.001. Var_x over few data understates, by 1/B of it on average.

    Of several latents it is the one that ``prior`` and ``posterior`` speak of, which
    is decoded: the layer next to the data.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016), section 5.2
        https://arxiv.org/abs/1509.00519

    Arguments:
        model: has ``prior``.
        guide: has ``posterior``, of the latent that the prior is of.
        x: ``[B, *event_shape]``, on the programs' device.
        threshold: on A_d.
        seed: of draws, where any are needed.
    """
    if len(x) < 2:
        return ActiveUnits([], None, "not defined for fewer than two data")
    latents, shape = _latents(guide, x[:1]), model.prior().event_shape
    note = None
    if len(latents) > 1:
        own = [name for name, event_shape in latents.items() if event_shape == shape]
        if not own or guide.posterior(x[:1]).event_shape != shape:
            return ActiveUnits([], None, "not defined: no latent is that of prior and posterior")
        note = f"of {own[0]}, the layer next to the data"
    chunks = enumerate(x.split(CHUNK))
    means = torch.cat([posterior_mean(guide, c, seed=derive_seed(seed, i)) for i, c in chunks])
    scale = moments(model.prior(), seed)[1].double()
    if not bool((scale.isfinite() & (scale > 0)).all()):
        return ActiveUnits([], None, "not defined: the prior has no finite variance")
    activity = means.double().var(dim=0, correction=0) / scale.square()
    if not bool(activity.isfinite().all()):
        return ActiveUnits([], None, "not defined: a posterior has no finite mean")
    return ActiveUnits(activity.tolist(), int((activity > threshold).sum()), note)


def _latents(guide: Any, x: Tensor) -> dict[str, torch.Size]:
    """Each latent's event shape, in the order in which the guide draws them."""
    with seeded(0, x.device):
        trace = poutine.trace(guide).get_trace(x)
    sites = {name: trace.nodes[name] for name in trace.stochastic_nodes}
    return {n: s["fn"].event_shape for n, s in sites.items() if not site_is_subsample(s)}
