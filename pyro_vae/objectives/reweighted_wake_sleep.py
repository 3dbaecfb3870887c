"""Reweighted wake-sleep."""

__all__ = ["ReweightedWakeSleep"]

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.execution import Execution, execute
from pyro_vae.objectives._per_datum import Call, Estimate, PerDatum, needs_gradient
from pyro_vae.objectives._weights import log_mean_exp, normalized


class ReweightedWakeSleep(PerDatum):
    """Reweighted wake-sleep: p climbs IWAE-K, q follows the posterior by its own loss.

    wake, p:   Σ_k w̃_k ∇ log p(x, z_k),  z_k ~ q(z|x), held fixed
    wake, q:   Σ_k w̃_k ∇ log q(z_k|x)
    sleep, q:  ∇ log q(z|x̃),  (x̃, z) ~ p(x, z)

    q's update is insomnia · wake + (1 − insomnia) · sleep: it lowers KL(p(z|x) ‖ q(z|x)),
    not a bound on log p(x), and needs no reparameterized guide. Weights are
    normalized per datum. The value is IWAE-K.

    References:
        Reweighted Wake-Sleep (Bornschein & Bengio, 2015), section 3
        https://arxiv.org/abs/1406.2751
        Revisiting Reweighted Wake-Sleep (Le et al., 2020)
        https://arxiv.org/abs/1805.10469

    Arguments:
        num_particles: K.
        insomnia: the share of the wake update of q, from 0 to 1.

    Raises:
        InputError: when run with a β, or differentiated with a guide whose density is known
            at its own draws only; for a sleep update, a model that observes anything but
            the first argument of the programs.
    """

    def __init__(self, num_particles: int = 10, insomnia: float = 1.0):
        super().__init__(num_particles)
        number = isinstance(insomnia, int | float) and not isinstance(insomnia, bool)
        if not (number and 0 <= insomnia <= 1):
            raise InputError(
                f"reweighted_wake_sleep: insomnia must be a number from 0 to 1, got {insomnia!r}"
            )
        self.insomnia = float(insomnia)

    def estimate(self, call: Call) -> Estimate:
        """Return log p̂_K of each datum, and the surrogate of all updates."""
        guide, model = call.fixed_runs()
        call.check_unscaled(guide, model)
        terms = call.terms(guide, model)
        log_weight = terms.log_weight.detach()
        value = log_mean_exp(log_weight)
        if not needs_gradient():
            return Estimate(value, None, terms.factor)
        weights = normalized(log_weight)
        wake_p = (weights * terms.log_joint.masked_fill(weights == 0, 0.0)).sum(0)
        wake_q = (weights * terms.log_guide).sum(0)
        surrogate = wake_p + self.insomnia * wake_q
        if self.insomnia < 1:
            surrogate = surrogate + (1 - self.insomnia) * _log_guide_of_dreams(call, guide)
        return Estimate(value, surrogate, terms.factor)


def _log_guide_of_dreams(call: Call, guide: Execution) -> Tensor:
    """log q(z|x̃) of one simulated datum for each of the batch, ``[B]``."""
    with torch.no_grad():
        dreamer = poutine.uncondition(call.model)
        dream = execute(
            dreamer, "guide", 1, call.args, call.kwargs, values=guide.subsamples,
            num_data=guide.num_data or None,
        )  # fmt: skip
    values: dict[str, Any] = {name: dream.latent[name]["value"] for name in guide.latent}
    observed = [
        name
        for name, site in dream.latent.items()
        if site["infer"].get("was_observed") and name not in values
    ]
    x = call.args[0] if call.args else None
    dreamt = dream.latent[observed[0]]["value"].squeeze(0) if len(observed) == 1 else None
    if dreamt is None or not isinstance(x, Tensor) or dreamt.shape != x.shape:
        raise InputError(
            "reweighted_wake_sleep: a sleep update gives the guide a simulated x, so the model "
            "must observe exactly the first argument of the programs; use insomnia=1"
        )
    run = execute(
        call.guide, "guide", 1, (dreamt.to(x), *call.args[1:]), call.kwargs,
        values={**guide.subsamples, **values}, num_data=guide.num_data or None,
    )  # fmt: skip
    return run.total([run.log_prob(site) for site in run.latent.values()])[0]
