"""The ELBO with a hand-derived closed-form KL."""

__all__ = ["ClosedFormELBO"]

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.checks import check_number
from pyro_vae.closed_form import NoClosedForm, kl_divergence, kl_per_dim, mask_of
from pyro_vae.errors import InputError
from pyro_vae.execution import Execution, Program
from pyro_vae.objectives._order import check_one_scale, check_order
from pyro_vae.objectives._per_datum import Call, Estimate, PerDatum, relative_scale


class ClosedFormELBO(PerDatum):
    """The ELBO with its KL in the closed form of ``pyro_vae.closed_form``, no sampling in it.

    (1/K) Σ_k log p(x|z_k) − β KL(q(z|x) ‖ p(z)),  z_k ~ q(z|x)

    The KL of each latent is derived by hand in ``closed_form``; the reconstruction
    term is taken on given noise, the same as that of ``trace`` under the same seed. Where
    a latent has no such KL (vamp, mixture, flow, iaf, …) it says so instead.
    Several latents must be drawn by guide and model in the same order.

    With ``free_bits`` λ the KL is Σ_d max(λ, mean over the batch of KL_d), dimension by
    dimension, so that a dimension below λ nats feels no pull to the prior.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), equation 10
        https://arxiv.org/abs/1312.6114
        Improving Variational Inference with Inverse Autoregressive Flow
        (Kingma et al., 2016), equation 16, for free bits
        https://arxiv.org/abs/1606.04934

    Arguments:
        num_particles: K, the number of z drawn a datum and step.
        free_bits: λ ≥ 0, in nats a latent dimension.

    Raises:
        InputError: when run with a latent whose KL has no closed form, or with
            ``free_bits`` where the KL is not a sum over dimensions.
    """

    def __init__(self, num_particles: int = 1, free_bits: float = 0.0):
        super().__init__(num_particles)
        if free_bits != 0:
            check_number("closed_form", "free_bits", free_bits, high=1e6)
        self.free_bits = float(free_bits)

    def estimate(self, call: Call) -> Estimate:
        """Return the ELBO of each datum, differentiable."""
        guide = call.run_guide()
        call.check_reparameterized(guide)
        model = call.run_model(guide)
        if guide.observed:
            raise InputError(
                f"closed_form: the guide has a factor, {next(iter(guide.observed))!r}, which is no "
                "part of a closed-form KL; use --objective trace"
            )
        check_order("closed_form", guide.latent, model.latent)
        for name, site in guide.latent.items():
            check_one_scale("closed_form", site, model.latent[name])
            if len(model.latent[name]["fn"].batch_shape) > 2:
                raise InputError(
                    f"closed_form: latent site {name!r} depends on one that is summed out, so that "
                    "p(z) is a mixture: no closed form of its KL"
                )
        log_likelihood, factor, common = call.reconstruction(model)
        value = log_likelihood.mean(0)
        for name, site in guide.latent.items():
            value = value - relative_scale(site, common) * self._kl(name, guide, model)
        return Estimate(value, None, factor)

    def analytic_kl(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> dict[str, bool]:
        """Return True for every latent: a KL without a closed form is refused."""
        return dict.fromkeys(super().analytic_kl(model, guide, *args, **kwargs), True)

    def _kl(self, name: str, guide: Execution, model: Execution) -> Tensor:
        """KL(q ‖ p) of one latent, the mean over K, ``[B]``."""
        q, p = guide.latent[name], model.latent[name]
        mask = q["mask"]  # p's too: checked
        if self.free_bits and not (mask is None and mask_of(q["fn"]) is None):
            raise InputError(f"closed_form: latent site {name!r} is masked; free bits take no mask")
        try:
            if self.free_bits:
                return self._free(kl_per_dim(q["fn"], p["fn"]))
            kl = guide.total([scale_and_mask(kl_divergence(q["fn"], p["fn"]), 1.0, mask)])
        except NoClosedForm as error:
            fix = "leave out free_bits" if self._is_analytic(q, p) else "use --objective trace"
            raise InputError(f"closed_form: latent site {name!r}: {error}; {fix}") from None
        return kl.mean(0)

    def _free(self, kl: Tensor) -> Tensor:
        """KL_d where its mean over the batch is above λ, else λ, ``[B]``, of ``[K, B, *event]``.

        Its mean over the batch is Σ_d max(λ, mean of KL_d).
        """
        kl = kl.mean(0)
        above = kl.detach().mean(0) > self.free_bits
        return torch.where(above, kl, self.free_bits).reshape(len(kl), -1).sum(-1)

    def _is_analytic(self, q: dict[str, Any], p: dict[str, Any]) -> bool:
        try:
            kl_divergence(q["fn"], p["fn"])
        except NoClosedForm:
            return False
        return True
