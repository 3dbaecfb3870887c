"""What a diagnosis says, as plain numbers: a dataclass for each question."""

__all__ = [
    "Diagnosis",
    "Gap",
    "SimulatedBounds",
    "Reliability",
    "LatentUse",
    "Calibration",
    "PredictiveCheck",
    "LatentSpaceReport",
    "Probe",
]

from dataclasses import dataclass, field
from typing import Any

from pyro_vae.evaluation.calibration import Calibration
from pyro_vae.evaluation.scores import Estimate


@dataclass(frozen=True)
class Gap:
    """log p(x) − ELBO of one split, and whose fault it is; nats per datum.

    total = log p(x) − ELBO = KL(q(z|x) ‖ p(z|x))
    approximation = log p(x) − ELBO of the best q of the family for each datum
    amortization = total − approximation
    """

    split: str
    method: str
    """What log p(x) is from: ``exact``, ``quadrature`` or ``ais``."""
    log_px: Estimate
    elbo: Estimate
    total: Estimate
    best_elbo: Estimate | None
    """None where the guide does not say what its encoder outputs."""
    approximation: Estimate | None
    amortization: Estimate | None
    note: str | None = None
    """What limits these numbers, in a sentence."""
    residual: Estimate | None = None
    """What the last half of the search for the best q gained: how near it has come."""


@dataclass(frozen=True)
class SimulatedBounds:
    """log p(x) of data drawn from the model, from both sides; nats per datum."""

    num_chains: int
    """Each way."""
    num_temperatures: int
    lower: Estimate
    """Of forward chains from the prior: AIS, as the gap takes it."""
    upper: Estimate
    """Of reverse chains from an exact posterior draw. Errors over data contain those of chains."""
    gap: Estimate
    """upper − lower, at least 0 in expectation: how far AIS may fall short, on such data."""
    acceptance: float
    """Mean acceptance probability of the transitions."""
    note: str


@dataclass(frozen=True)
class Reliability:
    """Where importance sampling can be trusted: k̂ of each datum."""

    num_samples: int
    """K."""
    pilot_samples: int
    threshold: float
    pareto_k: list[float]
    """k̂, ``[B]``; −inf where the weights are constant, NaN where it is not known."""
    flagged: list[int]
    """Positions among the data that were looked at of those above the threshold, worst first."""
    log_px: list[float]
    """IWAE-K of each datum, ``[B]``."""
    positions: list[int] = field(default_factory=list)
    """Where each of these data stands in the whole split, ``[B]``."""


@dataclass(frozen=True)
class LatentUse:
    """What the latents carry; nats per datum."""

    rate: Estimate
    """E KL(q(z|x) ‖ p(z))."""
    distortion: Estimate
    """−E E_q log p(x|z)."""
    mutual_information: Estimate | None
    """I_q(x; z) = E KL(q(z|x) ‖ q(z)), q(z) the mean of q(z|x) over the data."""
    marginal_kl: Estimate | None
    """KL(q(z) ‖ p(z)) = rate − mutual information."""
    mutual_information_cap: float | None
    """log N, which no estimate from N data can exceed."""
    at_cap: bool
    """Whether the estimate is so near its cap that it is only a lower limit."""
    estimator: str | None
    """Of mutual_information, named."""
    kl_per_dim: list[float] | None
    """E KL(q(z_d|x) ‖ p(z_d)), ``[D]``; None where q or the prior does not factorize."""
    kl_per_dim_errors: list[float] | None
    """Their standard errors, ``[D]``: over data and draws together."""
    activity: list[float]
    """Var_x(E_q[z_d|x]) / Var_p(z_d), ``[D]``; empty where it is not defined."""
    active_units: int | None
    collapse: str
    """``collapsed``, ``partly collapsed``, ``healthy`` or ``unknown``."""
    sentence: str
    """The collapse in a sentence, with its numbers."""
    notes: list[str] = field(default_factory=list)
    site: str = "z"
    """The latent whose dimensions ``kl_per_dim`` and ``activity`` list."""


@dataclass(frozen=True)
class PredictiveCheck:
    """One statistic of data against the same of draws from the model."""

    statistic: str
    """``mean intensity``, ``active pixels (above …)``, for binary data both as
    ``mean intensity (share of active pixels)``, or ``distance to the nearest training datum``."""
    against: str
    """``prior predictive`` or ``posterior predictive``."""
    data: Estimate
    simulated: Estimate
    difference: Estimate
    """simulated − data."""
    distance: float
    """Kolmogorov–Smirnov's, between the two distributions over data, 0 to 1."""
    p_value: float
    data_values: list[float]
    """Of each datum."""
    simulated_values: list[float]
    """Of one draw a datum."""
    test: str = ""
    """What the p-value is of."""


@dataclass(frozen=True)
class Probe:
    """Held-out classification from one representation."""

    features: str
    """``z`` (posterior mean) or ``x`` (the data themselves)."""
    classifier: str
    """``logistic regression``, ``nearest neighbours`` or ``most frequent label``."""
    accuracy: Estimate


@dataclass(frozen=True)
class LatentSpaceReport:
    """Whether the latent space is complete and continuous."""

    prior_near_posterior: Estimate | None
    """Share of prior draws inside the region that holds 95 % of q(z) of held-out data.

    Errors: over draws and subsets of the data; over held-out data, the training data fixed."""
    posterior_share: float | None
    """What that share is for q(z) itself: 0.95."""
    region: str | None
    """How the region is defined, in a sentence."""
    smoothness: Estimate | None
    """Largest step of the decoder's mean along a segment over the mean step: 1 is a steady walk."""
    straightness: Estimate | None
    """Length of the decoder's path along a segment over the distance of its ends, at least 1."""
    segments: str | None
    """Between what, and how many steps."""
    probes: list[Probe] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Diagnosis:
    """All of it; a part that does not apply is None and has a note."""

    gaps: list[Gap]
    """A split each, train and test."""
    reliability: Reliability | None
    latents: LatentUse | None
    calibration: Calibration | None
    checks: list[PredictiveCheck]
    space: LatentSpaceReport | None
    notes: list[str]
    """Why a part is missing, a line each."""
    protocol: dict[str, Any]
    reconstruction: Estimate | None = None
    """log p(x|z(x)) of a guide that is a point, which has neither rate nor distortion."""
    bounds: SimulatedBounds | None = None
    """How far AIS of the gap's settings may fall short, told on data drawn from the model."""
