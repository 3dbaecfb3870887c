"""Objectives, one estimator a file, each a ``pyro.infer.ELBO``; found by class name too.

Example:
    >>> from pyro_vae import objectives
    >>> objectives.Trace(num_particles=5).num_particles
    5
"""

import importlib
from pathlib import Path
from typing import Any


def __getattr__(name: str) -> Any:
    """Look a class up in the files of this folder: a new objective is one file."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = importlib.import_module(f"{__name__}.{path.stem}")
        if name in module.__all__:
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
