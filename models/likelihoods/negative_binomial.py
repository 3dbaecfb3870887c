"""The negative binomial likelihood of counts."""

__all__ = ["NegativeBinomial"]

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.types import _size

from pyro_vae.links import inverse_positive

from ._draws import draw_poisson
from ._links import BOUND, bounded_exp, log_softplus
from ._scale import check_mode


class NegativeBinomial(nn.Module):
    """Counts that vary more than a Poisson's, variance μ + α μ²; mean and dispersion α.

    log p(x) = Σ_d log Γ(x_d + r_d) − log Γ(r_d) − log x_d!
                   + x_d log(α_d μ_d) − (x_d + r_d) log(1 + α_d μ_d),    r = 1/α

    It is a Poisson whose rate is a Gamma of shape r and mean μ; α → 0 (r → ∞)
    is the Poisson. The inverse dispersion r is ``total_count`` or "theta"
    elsewhere. The mean is μ = softplus(output), its logarithm the output far below 0.

    ``dispersion=learned`` learns one α a dimension (a gene has its own);
    ``dispersion=<number>`` fixes α; with ``dispersion=per_pixel`` the decoder
    outputs μ_d and α_d. α = exp(c tanh(raw/c)) with c = log 10⁶ is 1 at raw = 0,
    as steep as exp there, and stays between 1e-6 and 1e6.

    References:
        Regression Analysis of Count Data (Cameron & Trivedi, 2013), section 3.3 ("NB2")
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        https://doi.org/10.1038/s41592-018-0229-2

    Arguments:
        dispersion: a number α from 1e-6 to 1e6, ``learned`` or ``per_pixel``.
        event_shape: the shape of one datum, which a learned α has; ``()`` learns one for all.

    Example:
        >>> p = NegativeBinomial(dispersion=0.5)(torch.tensor([[3.0]]))
        >>> p.mean, p.variance  # variance = 3.0486 + 0.5 · 3.0486²
        (tensor([3.0486]), tensor([7.6955]))
        >>> p.log_prob(torch.tensor([2.0]))
        tensor([-1.7622])
    """

    support = dist.constraints.nonnegative_integer
    measure = "counts"
    _name = "negative_binomial"

    def __init__(self, dispersion: float | str = "learned", event_shape: tuple[int, ...] = ()):
        super().__init__()
        check_mode(self._name, "dispersion", dispersion, 1 / BOUND, BOUND)
        self.dispersion = dispersion
        self.params_per_dim = 2 if dispersion == "per_pixel" else 1
        if dispersion == "learned":
            self.raw_dispersion = nn.Parameter(torch.zeros(event_shape))

    def forward(self, params: Tensor) -> TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, P]``."""
        if self.dispersion == "per_pixel":
            dispersion = bounded_exp(params[..., 1])
        elif self.dispersion == "learned":
            dispersion = bounded_exp(self.raw_dispersion)
        else:
            dispersion = params.new_full((), float(self.dispersion))
        return _NegativeBinomial(log_softplus(params[..., 0]), dispersion)

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, P]`` whose mean is ``mean``, at least 0.01."""
        raw = inverse_positive(mean.clamp(min=0.01), floor=0.0)
        if self.dispersion == "per_pixel":
            return torch.stack([raw, torch.zeros_like(raw)], dim=-1)
        return raw.unsqueeze(-1)


class _NegativeBinomial(TorchDistribution):
    """Counts of log μ, in float64, and dispersion α, which broadcasts to its shape.

    Values and masses are of α's dtype.
    """

    arg_constraints: ClassVar = {
        "log_mu": constraints.real,
        "dispersion": constraints.positive,
    }
    support = constraints.nonnegative_integer

    def __init__(self, log_mu: Tensor, dispersion: Tensor):
        self.log_mu = log_mu
        self.dispersion = dispersion
        super().__init__(log_mu.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.log_mu.exp().to(self.dispersion.dtype)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 + self.dispersion * self.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        # In float64: for large r the Gamma functions cancel, and float32 errs by 0.05 nat at
        # r = 10⁶, x = 10, and by 0.002 at r = x = 10⁴.
        x, alpha = value.double(), self.dispersion.double()
        r, ratio = 1 / alpha, alpha * self.log_mu.exp()
        log_ratio = alpha.log() + self.log_mu
        log_choices = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
        log_mass = log_choices + x * log_ratio - (x + r) * ratio.log1p()
        return log_mass.to(self.dispersion.dtype)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            shape = 1 / self.dispersion.expand(self._extended_shape(sample_shape))
            gamma = dist.Gamma(shape, shape, validate_args=False).sample()
            return draw_poisson(self.mean * gamma)

    def expand(self, batch_shape: _size, _instance: None = None) -> "_NegativeBinomial":
        return _NegativeBinomial(self.log_mu.expand(batch_shape), self.dispersion)
