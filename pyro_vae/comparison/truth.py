"""log p(x) where it is known otherwise: in closed form, or by quadrature."""

__all__ = ["find_truth"]

from torch import Tensor

from pyro_vae.comparison.rows import Truth
from pyro_vae.errors import InputError
from pyro_vae.evaluation.evidence import log_evidence
from pyro_vae.evaluation.quadrature import MAX_DIM
from pyro_vae.execution import Program

TOLERANCE = 1e-3  # of a datum, in nats


def find_truth(model: Program, x: Tensor, num_latents: int, seed: int = 0) -> Truth | None:
    """Return the mean of log p(x) over the data, or None where nothing but a bound is known.

    From the model's ``log_evidence(x)`` where it has one. Else by quadrature where there
    are one or two latent dimensions: its error is the mean of those of the data, for
    they need not cancel. Where a datum's has not converged, or the latents are not
    real, log p(x) is not known.

    Arguments:
        model: a Pyro program of ``x``.
        x: ``[B, *event_shape]``.
        num_latents: the dimension of all latents together.
        seed: of the draws that place the first cells of the quadrature.
    """
    exact = hasattr(model, "log_evidence")
    if not exact and not 1 <= num_latents <= MAX_DIM:
        return None
    method = "exact" if exact else "quadrature"
    try:
        found = log_evidence(model, None, x, method=method, tolerance=TOLERANCE, seed=seed)
    except InputError:  # a discrete latent, one on the half-line, a density that is NaN
        return None
    return Truth(method, found.mean, found.mean_error) if bool(found.trusted.all()) else None
