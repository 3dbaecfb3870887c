"""The figures of a diagnosis: its numbers, and what of the pair they are about."""

__all__ = ["Diagnosed", "part_figure"]

import math
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import diagnosis_figures as figures
from pyro_vae.diagnosis.rows import Diagnosis, Reliability
from pyro_vae.diagnosis.space import latent_draws
from pyro_vae.evaluation_figures import pareto_k_over_data
from pyro_vae.execution import Program
from pyro_vae.protocols import Facts

NUM_WORST = 6  # images, as many as the figure has room for
NUM_DRAWS = 4000  # of q(z) and of p(z), in a figure


class Diagnosed(NamedTuple):
    """A pair and the test data that were looked at."""

    model: Program
    guide: Program
    x: Tensor
    facts: Facts


def part_figure(part: str, diagnosis: Diagnosis, pair: Diagnosed, seed: int) -> Figure | None:
    """Draw a part of a diagnosis; None where there is nothing to draw.

    Raises:
        InputError: latents that cannot be drawn.
    """
    if part == "gap" and diagnosis.gaps:
        return figures.gap_bars(diagnosis.gaps)
    if part == "latents" and diagnosis.latents is not None and diagnosis.latents.kl_per_dim:
        return figures.kl_per_dim(diagnosis.latents)
    if part == "checks" and diagnosis.checks:
        return figures.predictive_checks(diagnosis.checks)
    if part == "space" and diagnosis.space is not None:
        draws = latent_draws(pair.model, pair.guide, pair.x, NUM_DRAWS, seed)
        return figures.aggregated_posterior(draws.posterior, draws.prior)
    if part == "reliability" and diagnosis.reliability is not None:
        return _reliability(diagnosis.reliability, pair)
    return None


def _reliability(reliability: Reliability, pair: Diagnosed) -> Figure | None:
    """k̂ over data with the worst images, where any is known."""
    if not any(map(math.isfinite, reliability.pareto_k)):
        return None
    k = reliability.pareto_k
    there = range(min(len(k), len(pair.x)))  # the data may be fewer than they were
    worst = [i for i in reliability.flagged if i in there and math.isfinite(k[i])][:NUM_WORST]
    images = pair.x[worst].cpu()
    facts = pair.facts
    levels = not (facts.measure == "counts" or facts.is_real)
    return pareto_k_over_data(
        reliability.pareto_k,
        reliability.threshold,
        positions=reliability.positions or None,
        worst=worst,
        images=images if worst and images.dim() > 2 else None,
        vmin=0.0 if levels else None,
        vmax=facts.unit if levels else None,
    )
