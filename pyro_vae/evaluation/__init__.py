"""Estimates of log p(x) and of its parts, each with its errors."""

from pyro_vae.evaluation.importance import LogLikelihood, log_likelihood
from pyro_vae.evaluation.quadrature import Evidence, log_evidence_by_quadrature
from pyro_vae.evaluation.scores import Estimate, Evaluation, evaluate

__all__ = [
    "log_likelihood",
    "LogLikelihood",
    "log_evidence_by_quadrature",
    "Evidence",
    "evaluate",
    "Evaluation",
    "Estimate",
]
