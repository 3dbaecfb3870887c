"""How far annealed importance sampling can be off on this model, told on data drawn from it."""

__all__ = ["simulated_bounds"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vae.diagnosis.rows import SimulatedBounds
from pyro_vae.evaluation.bidirectional import bidirectional_monte_carlo
from pyro_vae.evaluation.scores import Estimate
from pyro_vae.execution import Program
from pyro_vae.standard_error import standard_error_of_mean


def simulated_bounds(
    model: Program,
    like: Tensor,
    *,
    num_chains: int,
    num_temperatures: int,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> SimulatedBounds:
    """Bound log p(x) of simulated data from below and from above, means with their errors.

    See ``bidirectional_monte_carlo``: E lower ≤ E log p(x) ≤ E upper, so that on such data AIS
    of these settings falls short by no more than the gap, on average and up to its error.

    Arguments:
        model: a Pyro program of ``x``; no guide is asked.
        like: ``[B, *event_shape]``: how many data to draw, their shape, dtype and device.
        num_chains, num_temperatures: of AIS from the prior; so many chains go each way.
        seed: of the data and the noise.
        on_step: told (transitions done, transitions in all).

    Raises:
        InputError: the model cannot be simulated, or its latents are not real numbers.
    """
    found = bidirectional_monte_carlo(
        model,
        like,
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        seed=seed,
        on_step=on_step,
    )
    over_chains = float(found.lower_standard_error.square().sum().sqrt() / len(like))
    return SimulatedBounds(
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        lower=_estimate(
            found.lower, None if math.isnan(over_chains) else over_chains, found.understated
        ),
        upper=_estimate(found.upper),
        gap=_estimate(found.gap),
        acceptance=float(found.acceptance.mean()),
        note=found.note,
    )


def _estimate(
    values: Tensor, over_chains: float | None = None, understated: Tensor | None = None
) -> Estimate:
    return Estimate(
        value=float(values.mean()),
        standard_error=over_chains,
        data_standard_error=standard_error_of_mean(values.to(torch.float64)),
        count=len(values),
        understated=understated is not None and bool(understated.any()),
    )
