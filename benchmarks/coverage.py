"""Do 95 % intervals of IWAE-K hold the exact log p(x), and are data flagged where they do not?

    python benchmarks/coverage.py

Linear-Gaussian p, z ~ N(0, I), x|z ~ N(W z, 0.8² I) with D latents and D + 3 dimensions of data.
q(z|x) is the exact posterior with its covariance times ``variance`` and its mean moved by ``shift``
standard deviations in each of its D whitened coordinates (a distance of shift √D). 1,000
simulated data a cell, K = 5,000, seed 0; the table goes to the screen and to
``benchmarks/results/coverage.json``.
"""

import argparse
import itertools
import json
import math
from datetime import date
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.evaluation import LogLikelihood, log_likelihood
from pyro_vae.evaluation.scores import versions

SIGMA = 0.8
LATENT_DIMS = (2, 5, 10)
NEAR = [c for c in itertools.product((0.7, 1.0, 1.3), (0.0, 0.3)) if c != (1.0, 0.0)]
FAR = [(0.4, 0.0), (1.0, 1.0), (0.4, 1.0)]


class LinearGaussian:
    """p with exact evidence and posterior; its guides are ``near_posterior``."""

    def __init__(self, latent_dim: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.generator = generator
        self.W = torch.randn(latent_dim + 3, latent_dim, generator=generator, dtype=torch.float64)
        precision = torch.eye(latent_dim).double() + self.W.T @ self.W / SIGMA**2
        self.covariance = precision.inverse()
        self.factor = torch.linalg.cholesky(self.covariance)

    def simulate(self, num_data: int) -> Tensor:
        z = torch.randn(num_data, self.W.shape[1], generator=self.generator, dtype=torch.float64)
        noise = torch.randn(num_data, len(self.W), generator=self.generator, dtype=torch.float64)
        return z @ self.W.T + SIGMA * noise

    def log_evidence(self, x: Tensor) -> Tensor:
        covariance = self.W @ self.W.T + SIGMA**2 * torch.eye(len(self.W)).double()
        return dist.MultivariateNormal(x.new_zeros(len(self.W)), covariance).log_prob(x)

    def model(self, x: Tensor) -> None:
        unit = x.new_ones(self.W.shape[1])
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0 * unit, unit).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T, SIGMA).to_event(1), obs=x)

    def near_posterior(self, variance: float, shift: float):
        """q = N(m + shift L 1, variance L Lᵀ) for the posterior N(m, L Lᵀ)."""
        offset = shift * self.factor.sum(-1)
        factor = math.sqrt(variance) * self.factor

        def guide(x: Tensor) -> None:
            loc = x @ self.W @ self.covariance / SIGMA**2 + offset
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))

        return guide


def measure(
    latent_dim: int, variance: float, shift: float, num_data: int, num_samples: int, seed: int = 0
) -> dict[str, float | int | None]:
    """One cell: how often log_px ± 1.96 standard errors holds log p(x), and what is flagged."""
    p = LinearGaussian(latent_dim)
    x = p.simulate(num_data)
    guide = p.near_posterior(variance, shift)
    result = log_likelihood(p.model, guide, x, num_samples, seed=seed)
    return {
        "latent_dim": latent_dim,
        "variance": variance,
        "shift": shift,
        **summary(result, p.log_evidence(x)),
    }


def summary(result: LogLikelihood, exact: Tensor) -> dict[str, float | int | None]:
    missed = exact - result.log_px
    inside = (missed.abs() <= 1.96 * result.standard_error).double()
    flagged = result.flagged

    def share(values: Tensor) -> float | None:
        return float(values.double().mean()) if len(values) else None

    return {
        "coverage": share(inside),
        "coverage_unflagged": share(inside[~flagged]),
        "flagged": share(flagged),
        "understated": share(result.understated),
        "below": share(missed > 1.96 * result.standard_error),
        "above": share(missed < -1.96 * result.standard_error),
        "mean_shortfall": float(missed.mean()),
        "mean_shortfall_error": float(missed.std() / math.sqrt(len(missed))),
        "mean_bias_estimate": float(result.bias.mean()),
        "short_by_a_tenth": share(missed > 0.1),
        "short_by_a_tenth_flagged": share(flagged[missed > 0.1]),
        "median_standard_error": float(result.standard_error.median()),
        "median_pareto_k": float(result.pareto_k.median()),
        "count": len(missed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-data", type=int, default=1000)
    parser.add_argument("-K", "--num-samples", type=int, default=5000)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json"
    )
    arguments = parser.parse_args()
    rows = []
    for latent_dim, (variance, shift) in itertools.product(LATENT_DIMS, [*NEAR, *FAR]):
        row = measure(latent_dim, variance, shift, arguments.num_data, arguments.num_samples)
        rows.append(row)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    near = [row["coverage"] for row in rows if (row["variance"], row["shift"]) in NEAR]
    print(f"all near cells: {sum(near) / len(near):.4f}")
    record = {
        "date": str(date.today()),
        "num_samples": arguments.num_samples,
        "seed": 0,
        "versions": versions(),
        "cells": rows,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
