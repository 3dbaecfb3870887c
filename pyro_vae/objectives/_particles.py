"""The particles of Pyro's own estimators, and what their traces must fulfil."""

__all__ = ["particles", "checked_traces", "SampledKL"]

import warnings
from collections.abc import Callable
from typing import Any

import torch

from pyro_vae.errors import InputError
from pyro_vae.execution import execute, plate_scale


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


class SampledKL:
    """An estimator of Pyro's that samples every KL(q ‖ p)."""

    def analytic_kl(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> dict[str, bool]:
        """Return latent site → whether its KL(q ‖ p) is analytic here: none is."""
        with torch.no_grad():
            run = execute(guide, "guide", 1, args, kwargs)
        return dict.fromkeys(run.latent, False)


def checked_traces(
    name: str, get_trace: Callable[..., Any], *args: Any, fix: str = "take --objective trace_enum"
) -> Any:
    """Return Pyro's traces of model and guide, refused where Pyro's sum over sites is no ELBO.

    A latent that only the model draws would count log p of a draw from p, and a data plate
    that is subsampled in one program alone would scale log p against log q.

    Raises:
        InputError: with the estimator's and the site's name.
    """
    with warnings.catch_warnings():  # said below, in one line
        warnings.filterwarnings("ignore", "Found vars in model but not guide", UserWarning)
        model_trace, guide_trace = get_trace(*args)
    for latent in model_trace.stochastic_nodes:
        site = model_trace.nodes[latent]
        if latent in guide_trace.nodes:
            if plate_scale(site) != plate_scale(guide_trace.nodes[latent]):
                raise InputError(
                    f"{name}: the plates of latent site {latent!r} are subsampled otherwise in the "
                    "guide than in the model; give both the same plate"
                )
        elif "_enumerate_dim" not in site["infer"]:
            raise InputError(
                f"{name}: latent site {latent!r} is in the model but not in the guide; draw it "
                f"there, or mark it infer={{'enumerate': 'parallel'}} and {fix}"
            )
    return model_trace, guide_trace
