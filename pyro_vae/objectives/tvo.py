"""The thermodynamic variational objective."""

__all__ = ["TVO"]

import torch

from pyro_vae.checks import check_count, check_number
from pyro_vae.errors import InputError
from pyro_vae.objectives._per_datum import Call, Estimate, PerDatum, needs_gradient


class TVO(PerDatum):
    """The thermodynamic objective: a Riemann sum between the ELBO and log p(x).

    log p(x) = ∫₀¹ E_{π_β}[log w] dβ,  π_β(z) ∝ q(z|x)^(1−β) p(x, z)^β
    left  = Σ_i (β_{i+1} − β_i) E_{π_{β_i}}[log w],  β_0 = 0 < first = β_1 < … < β_P = 1

    E_{π_β}[log w] grows with β: the left sum is a lower bound, and with draws z_k ~ q
    weighted by w^β it lies on every draw between the ELBO (P = 1) and IWAE-K; the right
    sum is an upper estimate, no bound. The gradient is a covariance and needs no
    reparameterized guide: discrete latents will do.

    ∇E_{π_β}[f] = E_{π_β}[∇f] + Cov_{π_β}[f, ∇(β log p(x, z) + (1 − β) log q(z|x))]

    References:
        The Thermodynamic Variational Objective (Masrani et al., 2019), equations 9 to 12
        https://arxiv.org/abs/1907.00031

    Arguments:
        partitions: P; the β_i grow geometrically from ``first`` to 1.
        num_particles: K ≥ 2.
        first: β_1, for P ≥ 2.
        side: ``left`` or ``right``.

    Raises:
        InputError: when run with a β, or differentiated with a guide whose density is known
            at its own draws only.

    Example:
        >>> TVO(partitions=3, first=0.01).betas
        tensor([0.0000, 0.0100, 0.1000, 1.0000])
    """

    def __init__(
        self,
        partitions: int = 5,
        num_particles: int = 10,
        first: float = 0.03,
        side: str = "left",
    ):
        check_count("tvo", "num_particles", num_particles, low=2)
        super().__init__(num_particles)
        check_count("tvo", "partitions", partitions)
        check_number("tvo", "first", first, 1e-6, 1, ends="[)")
        if side not in ("left", "right"):
            raise InputError(f"tvo: side must be left or right, got {side!r}")
        self.side = side
        exponents = torch.linspace(1, 0, partitions) if partitions > 1 else torch.zeros(1)
        self.betas = torch.cat([torch.zeros(1), float(first) ** exponents])

    @property
    def is_lower_bound(self) -> bool:  # type: ignore[override]
        """Whether it is the left sum."""
        return self.side == "left"

    def estimate(self, call: Call) -> Estimate:
        """Return the sum of each datum and the surrogate of its gradient."""
        guide, model = call.fixed_runs()
        call.check_unscaled(guide, model)
        terms = call.terms(guide, model)
        betas = self.betas.to(terms.log_weight)
        widths = betas.diff()
        nodes = betas[:-1] if self.side == "left" else betas[1:]
        f = terms.log_weight.detach()
        at = nodes[:, None, None]
        tempered = (at * f).clamp(min=torch.finfo(f.dtype).min)
        weights = tempered.masked_fill(at == 0, 0.0).softmax(1)  # [P, K, B]; 0 · (−∞) is 0
        f = torch.where(weights == 0, 0.0, f)
        means = (weights * f).sum(1)
        value = torch.einsum("p,pb->b", widths, means)
        if not needs_gradient():
            return Estimate(value, None, terms.factor)
        # Σ_i Δ_i (v ∇log w + v (f − f̄) (β ∇log p + (1 − β) ∇log q)); at β = 0 the draws are
        # exact, and K/(K − 1) makes the covariance of a sample unbiased.
        K = f.shape[1]
        correction = torch.where(nodes == 0, K / (K - 1), 1.0)
        covariance = weights * (f - means[:, None]) * correction[:, None, None]
        of_joint = torch.einsum("p,pkb->kb", widths * nodes, covariance)
        of_guide = torch.einsum("p,pkb->kb", widths * (1 - nodes), covariance)
        mean = torch.einsum("p,pkb->kb", widths, weights)
        log_joint = terms.log_joint.masked_fill(terms.log_joint == -torch.inf, 0.0)
        surrogate = (mean + of_joint) * log_joint + (of_guide - mean) * terms.log_guide
        return Estimate(value, surrogate.sum(0), terms.factor)
