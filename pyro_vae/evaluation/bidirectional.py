"""Bidirectional Monte Carlo: log p(x) of simulated data from below and from above."""

__all__ = ["bidirectional_monte_carlo", "Sandwich"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.evaluation import ais
from pyro_vae.evaluation._hmc import Noise
from pyro_vae.evaluation.ais import Bridge, anneal, summary
from pyro_vae.evaluation.importance import LARGEST_ERROR
from pyro_vae.evaluation.simulation import Simulated, simulate
from pyro_vae.execution import Program
from pyro_vae.seeding import derive_seed
from pyro_vae.standard_error import standard_error_of_mean

NOTE = (
    "of data simulated from the model: it shows how well AIS of these settings does on such data, "
    "and bounds nothing of real data"
)


@dataclass(frozen=True)
class Sandwich:
    """Stochastic bounds on log p(x) of simulated data, each field ``[B]``, float64, in nats.

    E lower ≤ E log p(x) ≤ E upper, over data and chains: the mean gap is an upper limit on how
    far either is off on average, up to its standard error.
    """

    start: str
    """``prior`` or ``guide``: where the forward chains start, and the reverse ones end."""
    num_chains: int
    """S, forward, and as many in reverse."""
    num_temperatures: int
    num_leapfrog: int
    x: Tensor
    """The data, ``[B, *event_shape]``."""
    lower: Tensor
    """log (1/S) Σ_s w_s of forward chains."""
    upper: Tensor
    """−log (1/S) Σ_s 1/w_s of reverse chains, all from the one exact posterior draw of a datum.

    They share it, so that their spread says too little of its error, and none is given a datum.
    """
    lower_standard_error: Tensor
    """Of lower over chains, by the delta method; NaN for S = 1."""
    acceptance: Tensor
    """Mean acceptance probability, of both directions; NaN where there are no transitions."""

    @property
    def understated(self) -> Tensor:
        """Which data's ``lower_standard_error`` is a lower limit, ``[B]``; see ``Annealed``."""
        return ~(self.lower_standard_error <= LARGEST_ERROR)

    @property
    def gap(self) -> Tensor:
        """upper − lower, ``[B]``; of a datum it may be negative."""
        return self.upper - self.lower

    @property
    def mean_gap(self) -> float:
        """The mean of ``gap`` over simulated data."""
        return float(self.gap.mean())

    @property
    def gap_standard_error(self) -> float:
        """The standard error of ``mean_gap`` over data, chains included; NaN for one datum."""
        error = standard_error_of_mean(self.gap)
        return math.nan if error is None else error

    @property
    def note(self) -> str:
        """What the numbers are about."""
        return NOTE


def bidirectional_monte_carlo(
    model: Program,
    like: Tensor,
    guide: Program | None = None,
    *,
    start: str = "prior",
    num_chains: int = 8,
    num_temperatures: int = 1000,
    num_leapfrog: int = 2,
    seed: int = 0,
    chunk_size: int | None = None,
    double: bool = False,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Sandwich:
    """Bound log p(x) of data that are simulated from the model, from below and from above.

    z* ~ p(z), x ~ p(x|z*), so that z* is an exact draw of p(z|x). Forward chains are those of
    ``annealed_importance_sampling``, E w = p(x). Reverse chains start at z* and go the same path
    back, by the same kernels with the same frozen step sizes: E 1/w = 1/p(x).

    E log (1/S) Σ_s w_s ≤ log p(x) ≤ E −log (1/S) Σ_s 1/w_s

    References:
        Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani &
        Adams, 2015) https://arxiv.org/abs/1511.02543
        Measuring the reliability of MCMC inference with bidirectional Monte Carlo (Grosse, Ancha
        & Roy, 2016) https://arxiv.org/abs/1606.02275

    Arguments:
        model: a Pyro program of ``x`` that can be simulated; see ``simulate``.
        like: ``[B, *event_shape]``: how many data to draw, their shape, dtype and device.
        guide: the same for q; only ``start="guide"`` asks it.
        start, num_chains, num_temperatures, num_leapfrog, chunk_size, double: as for
            ``annealed_importance_sampling``; S chains go each way.
        seed: of the data and the noise; torch's global random state is left as it was.
        on_step: told (transitions done, transitions in all).

    Raises:
        InputError: as for ``annealed_importance_sampling`` and ``simulate``.
    """
    ais.check_path(like, guide, start, num_chains, num_temperatures, num_leapfrog, chunk_size)
    if start == "prior":
        guide = None
    if double:
        model, guide, like = ais.doubled(model, guide, like)
    drawn = simulate(model, like, derive_seed(seed, "bidirectional"))
    starts = range(0, len(like), ais.DATA_BLOCK)
    each = ais.num_transitions(num_temperatures) + num_temperatures - 2
    step = ais.counted(on_step, len(starts) * each)
    betas = ais.schedule(num_temperatures)
    parts = []
    with ais.running(model, guide, like):
        for i, first in enumerate(starts):
            block = slice(first, first + ais.DATA_BLOCK)
            own = derive_seed(seed, "bidirectional", start, i)
            bridge = Bridge(model, guide, drawn.x[block], chunk_size)
            kernel = bridge.kernel(derive_seed(own, "pilot"), num_leapfrog, step)
            forward = bridge.draws(derive_seed(own, "start"), num_chains)
            reverse = bridge.checked(_exact_draws(bridge, drawn, block, num_chains))
            columns: list[Tensor] = []
            for name, z, path in (("forward", forward, betas), ("reverse", reverse, betas[::-1])):
                noise = Noise(derive_seed(own, name), z.shape, z.device)
                columns += anneal(bridge, z, kernel, noise, path, step)
            parts.append(columns)
    log_w, forward_acceptance, log_inverse, reverse_acceptance = (
        torch.cat(column, dim=-1) for column in zip(*parts, strict=True)
    )
    lower, error, *_ = summary(log_w)
    return Sandwich(
        start,
        num_chains,
        num_temperatures,
        num_leapfrog,
        x=drawn.x,
        lower=lower,
        upper=-summary(log_inverse)[0],
        lower_standard_error=error,
        acceptance=(forward_acceptance + reverse_acceptance) / 2,
    )


def _exact_draws(bridge: Bridge, drawn: Simulated, block: slice, num_chains: int) -> Tensor:
    """The latents that the data of a block were drawn from, for all chains, ``[S, B, D]``."""
    values = {name: value[block].unsqueeze(0) for name, value in drawn.latents.items()}
    return bridge.space.vector(values).repeat(num_chains, 1, 1)
