"""The particles of Pyro's own estimators."""

__all__ = ["particles"]

from typing import Any

from pyro_vae.errors import InputError


def particles(num_particles: int) -> dict[str, Any]:
    """Return the arguments of a ``pyro.infer.ELBO`` for K particles under one plate.

    The nesting is stated: Pyro otherwise runs the programs once more to guess it.

    Raises:
        InputError: K is no whole number ≥ 1.
    """
    if type(num_particles) is not int or num_particles < 1:
        raise InputError(f"num_particles must be a whole number ≥ 1, got {num_particles!r}")
    return {
        "num_particles": num_particles,
        "vectorize_particles": num_particles > 1,
        "max_plate_nesting": 1,
    }
