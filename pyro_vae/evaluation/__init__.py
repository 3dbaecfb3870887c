"""Estimates of log p(x) and of its parts, each with its errors."""

from pyro_vae.evaluation.importance import LogLikelihood, log_likelihood
from pyro_vae.evaluation.scores import Estimate, Evaluation, evaluate

__all__ = ["log_likelihood", "LogLikelihood", "evaluate", "Evaluation", "Estimate"]
