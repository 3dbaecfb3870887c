"""Estimates of log p(x) and of its parts, each with its errors."""

from pyro_vae.evaluation.adaptive import Refined, refine
from pyro_vae.evaluation.ais import Annealed, annealed_importance_sampling
from pyro_vae.evaluation.bidirectional import Sandwich, bidirectional_monte_carlo
from pyro_vae.evaluation.bound_curve import BoundCurve
from pyro_vae.evaluation.calibration import Calibration, simulation_based_calibration
from pyro_vae.evaluation.evidence import LogEvidence, log_evidence
from pyro_vae.evaluation.importance import LogLikelihood, log_likelihood
from pyro_vae.evaluation.paired import PairedDifference, paired_difference
from pyro_vae.evaluation.pareto import pareto_k
from pyro_vae.evaluation.quadrature import Evidence, log_evidence_by_quadrature
from pyro_vae.evaluation.scores import Estimate, Evaluation, evaluate
from pyro_vae.evaluation.simulation import Simulated, simulate

__all__ = [
    "log_likelihood",
    "LogLikelihood",
    "BoundCurve",
    "pareto_k",
    "refine",
    "Refined",
    "annealed_importance_sampling",
    "Annealed",
    "bidirectional_monte_carlo",
    "Sandwich",
    "log_evidence",
    "LogEvidence",
    "log_evidence_by_quadrature",
    "Evidence",
    "simulate",
    "Simulated",
    "simulation_based_calibration",
    "Calibration",
    "paired_difference",
    "PairedDifference",
    "evaluate",
    "Evaluation",
    "Estimate",
]
