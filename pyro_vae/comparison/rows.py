"""What a comparison of estimators holds: rows of values and of gradients, the truth, checks."""

__all__ = ["ValueRow", "GradientRow", "Truth", "Check", "Comparison"]

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ValueRow:
    """One estimator's value, in nats per datum, on the noise that all rows share."""

    estimator: str
    """Its spec, such as ``iwae(num_particles=10)``."""
    num_particles: int
    is_lower_bound: bool
    """Whether its mean is at most log p(x)."""
    refusal: str | None = None
    """Why it does not take this pair; then everything below is None."""
    mean: float | None = None
    standard_error: float | None = None
    """Of ``mean`` over draws of z, the data held fixed."""
    data_standard_error: float | None = None
    """Of ``mean`` over data."""
    difference: float | None = None
    """The mean over data and draws of the value minus the reference row's, draw by draw."""
    difference_standard_error: float | None = None
    """Of ``difference`` over draws."""
    largest_difference: float | None = None
    """The largest |difference| of one datum under one draw."""
    bias: float | None = None
    """``mean`` minus the mean of log p(x), where log p(x) is known."""
    bias_standard_error: float | None = None
    """Of ``bias``: over draws, and the error of log p(x) itself."""
    analytic_kl: dict[str, bool] = field(default_factory=dict)
    """Latent site → whether its KL(q ‖ p) is analytic in this estimator."""


@dataclass(frozen=True)
class GradientRow:
    """One estimator's gradient of the bound's mean over the batch, of one group of parameters."""

    estimator: str
    """Its spec without K, such as ``dreg``."""
    num_particles: int
    group: str
    """``guide``, the parameters that the guide meets, or ``model``, all others."""
    target: str
    """What the gradient is of: rows of one target share a reference gradient."""
    refusal: str | None = None
    """Why it does not take this pair; then everything below is None."""
    reference: str | None = None
    """``exact``, or how many draws of which estimator were averaged; None for no reference."""
    bias: float | None = None
    """|E g − reference| in units of |reference|; an estimate, 0 where its square is negative.

    None where the reference is not told from 0."""
    bias_standard_error: float | None = None
    """Of ``bias``, from the draws and from the reference's own error."""
    largest_z: float | None = None
    """The largest |mean − reference| of one parameter, in its standard errors."""
    largest_z_limit: float | None = None
    """What ``largest_z`` of an unbiased normal gradient exceeds with probability 5 % at most."""
    variance: float | None = None
    """Σ over parameters of the variance of one draw."""
    signal_to_noise: float | None = None
    """The mean over parameters of |E g|/sd(g), of those whose sd(g) is above rounding."""
    noise_floor: float | None = None
    """What ``signal_to_noise`` would read for a gradient of mean 0 after as many draws."""
    milliseconds: float | None = None
    """The median time of one draw: loss and gradients."""
    variance_at_equal_compute: float | None = None
    """``variance`` times ``milliseconds`` over those of the first row of the same group and
    target: gradients of unlike targets differ in size, and their variances with it. 1 for
    that row, None where no other row has its target."""
    variance_standard_error: float | None = None
    """Of ``variance``, over draws."""
    signal_to_noise_standard_error: float | None = None
    """Of ``signal_to_noise``, over draws: of 4,096 of its parameters where there are more."""
    milliseconds_standard_error: float | None = None
    """Of ``milliseconds``: half the distance of the times √R/2 ranks to its sides."""
    variance_at_equal_compute_standard_error: float | None = None
    """Of the ratio, as if its rows' draws were independent; less where they share noise."""
    num_repeats: int = 0


@dataclass(frozen=True)
class Truth:
    """The mean of log p(x) over the data, known otherwise."""

    method: str
    """``exact`` or ``quadrature``."""
    log_px: float
    error: float
    """Of ``log_px``; 0 for exact."""


@dataclass(frozen=True)
class Check:
    """An identity that holds on common noise, or what broke."""

    name: str
    holds: bool
    largest: float
    """The largest violation of a datum under a draw, in nats."""
    tolerance: float


@dataclass(frozen=True)
class Comparison:
    """Everything ``pyro-vae compare`` prints, draws and writes."""

    values: list[ValueRow]
    gradients: list[GradientRow]
    reference: str | None
    """The estimator that differences are taken from: ``closed_form``, else ``trace``."""
    truth: Truth | None
    checks: list[Check]
    protocol: dict[str, Any]
