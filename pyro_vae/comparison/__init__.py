"""Estimators side by side on one model and one guide: values, gradients, and the truth."""

__all__ = [
    "compare_estimators",
    "compare_values",
    "compare_gradients",
    "Values",
    "ValueRow",
    "GradientRow",
    "Truth",
    "Check",
    "Comparison",
]

from pyro_vae.comparison.gradients import compare_gradients
from pyro_vae.comparison.rows import Check, Comparison, GradientRow, Truth, ValueRow
from pyro_vae.comparison.values import Values, compare_estimators, compare_values
