"""Sweeps: every combination of some settings, several seeds each, trained, scored, compared.

Each run is an ordinary run folder in the sweep's folder. What is there is
recognized by its configuration, not by its name, and never trained again.
"""

from pyro_vae.sweep.plan import FACTORS, Plan, PlannedRun, plan_sweep
from pyro_vae.sweep.results import ConfigurationResult, Pair, Result, Results, Summary
from pyro_vae.sweep.run import Observer, Stopped, run_sweep

__all__ = [
    "plan_sweep", "run_sweep", "Plan", "PlannedRun", "Results", "Result", "ConfigurationResult",
    "Pair", "Summary", "Observer", "Stopped", "FACTORS",
]  # fmt: skip
