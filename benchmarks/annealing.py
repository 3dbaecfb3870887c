"""AIS against quadrature on a trained decoder, IWAE's shortfall, BDMC, the gap, and the costs.

    python benchmarks/annealing.py --data-root PATH [quadrature] [sandwich] [cost] [gap]

Two pairs are trained through the command line, where they are not already there: two latents on
static binarized MNIST, ten on MNIST binarized anew each epoch. Numbers go to the screen and to
``benchmarks/results/annealing.json``.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import load_run
from pyro_vae.diagnosis.diagnose import data_of
from pyro_vae.diagnosis.gap import gap
from pyro_vae.evaluation import log_evidence_by_quadrature, log_likelihood
from pyro_vae.evaluation.ais import annealed_importance_sampling
from pyro_vae.evaluation.bidirectional import bidirectional_monte_carlo
from pyro_vae.evaluation.evidence import LogEvidence
from pyro_vae.evaluation.scores import Estimate, versions
from pyro_vae.runs import Run

COMMON = ["--encoder", "mlp(hidden=(200, 200))", "--batch-size", "200", "--device", "cpu"]
RUNS = {
    "two": ["--data", "binarized_mnist", "--latent-dim", "2", "--epochs", "20", *COMMON],
    "ten": ["--data", "mnist(values=binary)", "--latent-dim", "10", "--epochs", "15", *COMMON],
}
NUM_SAMPLES = 5000
SUBSET_SEED = 0


def trained(name: str, data_root: str, out: Path) -> Run:
    folder = out / name
    if not folder.exists():
        own = ["--data-root", data_root, "--no-tensorboard", "--out", str(folder)]
        command = ["train", *RUNS[name], *own]
        print("pyro-vae", shlex.join(command), flush=True)
        subprocess.run([sys.executable, "-m", "pyro_vae", *command], check=True)
    return load_run(folder, data_root=data_root)


def subset(run: Run, count: int) -> Tensor:
    """Test data drawn at random."""
    x = run.data.test.scored()
    generator = torch.Generator().manual_seed(SUBSET_SEED)
    return x[torch.randperm(len(x), generator=generator)[:count]]


def against_quadrature(run: Run, count: int, settings: dict[str, int]) -> dict[str, Any]:
    """Prior-started AIS and IWAE-5000 beside quadrature, a datum each."""
    x = subset(run, count)
    truth = log_evidence_by_quadrature(run.model, x)
    started = time.process_time()
    ais = annealed_importance_sampling(run.model, x, **settings)
    seconds = time.process_time() - started
    iwae = log_likelihood(run.model, run.guide, x, NUM_SAMPLES)
    off = ais.log_px - truth.log_px
    shortfall = truth.log_px - iwae.log_px
    excess = -shortfall - 3 * iwae.standard_error
    short = shortfall > 0.1
    flagged = iwae.flagged
    return {
        "count": count,
        "settings": settings,
        "quadrature": {
            "log_px": _mean(truth.log_px),
            "largest_error": float(truth.error.max()),
            "converged": bool(truth.converged.all()),
        },
        "ais": {
            "log_px": _mean(ais.log_px),
            "largest_difference": float(off.abs().max()),
            "beyond_three_errors": float((off.abs() - 3 * ais.standard_error).max()),
            "root_mean_square_z": float((off / ais.standard_error).square().mean().sqrt()),
            "standard_error": _quantiles(ais.standard_error),
            "ess": _quantiles(ais.ess),
            "acceptance": _mean(ais.acceptance),
            "cpu_seconds": seconds,
        },
        "iwae": {
            "num_samples": NUM_SAMPLES,
            "log_px": _mean(iwae.log_px),
            "shortfall": _quantiles(shortfall),
            "largest_excess_beyond_three_errors": float(excess.max()),
            "short_by_more_than_0.1": int(short.sum()),
            "of_these_flagged": int((short & flagged).sum()),
            "flagged": int(flagged.sum()),
        },
    }


def sandwich(run: Run, count: int, settings: dict[str, int]) -> dict[str, Any]:
    """BDMC on data simulated from the model."""
    like = subset(run, count)
    started = time.process_time()
    result = bidirectional_monte_carlo(run.model, like, **settings)
    return {
        "count": count,
        "settings": settings,
        "lower": _mean(result.lower),
        "upper": _mean(result.upper),
        "mean_gap": result.mean_gap,
        "gap_standard_error": result.gap_standard_error,
        "acceptance": _mean(result.acceptance),
        "cpu_seconds": time.process_time() - started,
        "note": result.note,
    }


def cost(run: Run, count: int, num_chains: int) -> list[dict[str, Any]]:
    """Nats and seconds of T temperatures × L leapfrog steps, 2,000 gradients a chain."""
    x, rows = subset(run, count), []
    for num_leapfrog in (1, 2, 4, 8):
        settings = {
            "num_chains": num_chains,
            "num_temperatures": 2000 // num_leapfrog,
            "num_leapfrog": num_leapfrog,
        }
        started = time.process_time()
        result = annealed_importance_sampling(run.model, x, **settings)
        rows.append(
            {
                **settings,
                "count": count,
                "log_px": _mean(result.log_px),
                "mean_log_weight": _mean(result.log_weights),
                "sd_log_weight": _mean(result.log_weights.std(dim=0)),
                "standard_error": _mean(result.standard_error),
                "cpu_seconds": time.process_time() - started,
            }
        )
        print(rows[-1], flush=True)
    return rows


def suboptimality(run: Run, count: int, settings: dict[str, int]) -> dict[str, Any]:
    """The gap of training and of test data, and its two parts (Cremer et al., 2018, table 1).

    log p(x) by AIS from the prior and, for its bias, from the guide: both are lower bounds.
    """
    rows: dict[str, Any] = {"count": count, "settings": settings}
    for name, split in (("train", run.data.train), ("test", run.data.test)):
        x = data_of(split, count, torch.device("cpu"), torch.float32)
        started = time.process_time()
        ais = annealed_importance_sampling(run.model, x, **settings)
        annealed = time.process_time()
        evidence = LogEvidence(ais.log_px, ais.standard_error, ais.bias, "ais", ~ais.understated)
        parts = gap(run.model, run.guide, x, split=name, evidence=evidence)
        done = time.process_time()
        other = annealed_importance_sampling(
            run.model, x, run.guide, **settings | {"start": "guide"}
        )
        difference = other.log_px - ais.log_px
        iwae = log_likelihood(run.model, run.guide, x, NUM_SAMPLES)
        rows[name] = {
            "log_px": _row(parts.log_px),
            "elbo": _row(parts.elbo),
            "best_elbo": _row(parts.best_elbo),
            "total": _row(parts.total),
            "approximation": _row(parts.approximation),
            "amortization": _row(parts.amortization),
            "residual": _row(parts.residual),
            "ais": {
                "bias": _mean(ais.bias),
                "standard_error": _quantiles(ais.standard_error),
                "understated": int(ais.understated.sum()),
                "acceptance": _mean(ais.acceptance),
                "from_the_guide_minus_from_the_prior": {
                    "mean": _mean(difference),
                    "standard_error": float(difference.std() / count**0.5),
                },
                "cpu_seconds": annealed - started,
            },
            "iwae": {"num_samples": NUM_SAMPLES, "log_px": _mean(iwae.log_px)},
            "note": parts.note,
            "cpu_seconds_of_the_split": done - annealed,
        }
        print(name, json.dumps(rows[name], indent=1), flush=True)
    return rows


def _row(estimate: Estimate | None) -> dict[str, float | None] | None:
    """The mean, and its standard errors over draws and over data."""
    if estimate is None:
        return None
    return {
        "mean": estimate.value,
        "standard_error": estimate.standard_error,
        "data_standard_error": estimate.data_standard_error,
    }


def _mean(values: Tensor) -> float:
    return float(values.mean())


def _quantiles(values: Tensor) -> dict[str, float]:
    levels = {"min": 0.0, "median": 0.5, "0.9": 0.9, "max": 1.0}
    return {name: float(values.quantile(level)) for name, level in levels.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = ["quadrature", "sandwich", "cost", "gap"]
    parser.add_argument("parts", nargs="*", default=names, metavar="PART")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/annealing"))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--leapfrog", type=int, default=2)
    arguments = parser.parse_args()
    record = Path(__file__).parent / "results" / "annealing.json"
    for part in arguments.parts:
        if part not in names:
            parser.error(f"unknown part {part!r}; valid: {', '.join(names)}")
        run = trained("two" if part == "quadrature" else "ten", arguments.data_root, arguments.out)
        path = {"num_temperatures": 1000, "num_leapfrog": arguments.leapfrog, "seed": 0}
        if part == "quadrature":
            settings = {"num_chains": arguments.chains, **path}
            result: Any = against_quadrature(run, arguments.count, settings)
        elif part == "sandwich":
            result = sandwich(run, arguments.count, {"num_chains": 8, **path})
        elif part == "gap":
            result = suboptimality(run, arguments.count, {"num_chains": arguments.chains, **path})
        else:
            result = cost(run, 10, 16)
        print(part, json.dumps(result, indent=1), flush=True)
        found = json.loads(record.read_text()) if record.exists() else {}
        record.write_text(
            json.dumps({**found, part: result, "versions": versions()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
