"""Signal-to-noise of IWAE's and DReG's gradients against K, in the setting of the papers.

Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), theorem 1
https://arxiv.org/abs/1802.04537
Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019)
https://arxiv.org/abs/1810.04152
"""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_vae.objectives.dreg import DReG
from pyro_vae.objectives.iwae import IWAE

REPEATS = 4000
# log-log slopes of the mean over parameters of |mean|/sd against K
EXPECTED = {"iwae_encoder": -0.5, "dreg_encoder": 0.5, "iwae_decoder": 0.5, "dreg_decoder": 0.5}


def setting(linear_gaussian, near_posterior, variance):
    """Orthogonal W, two latents; q moved by 0.3 sd; θ moved away from where x came from."""
    W, _ = torch.linalg.qr(linear_gaussian.W)
    truth = replace(linear_gaussian, W=W * torch.tensor([1.5, 1.1], dtype=torch.float64))
    x = truth.simulate(1, seed=3)
    away = replace(truth, W=0.8 * truth.W, b=truth.b + 0.4, sigma=0.9)
    return near_posterior(away, shift=0.3, variance=variance), x


def moments(objective, linear_pair, parameters, x, K, seed):
    """Name → mean and standard deviation of each entry's gradient over the repeats.

    In parts of at most 500,000 draws of z.
    """
    part = min(REPEATS, max(1, 500_000 // K))
    rows = []
    for start in range(0, REPEATS, part):
        count = min(part, REPEATS - start)
        rows.append(linear_pair(parameters, x, count).gradients(objective, seed + start))
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return {name: (g.mean(0), g.std(0)) for name, g in joined.items()}


def curves(linear_pair, parameters, x, Ks):
    """Curve → its signal-to-noise at every K; DReG's mean stands for IWAE's too."""
    owners = {"encoder": linear_pair.guide_names, "decoder": linear_pair.model_names}
    found = {name: [] for name in EXPECTED}
    for K in Ks:
        dreg = moments(DReG(K), linear_pair, parameters, x, K, seed=10_000)
        iwae = moments(IWAE(K), linear_pair, parameters, x, K, seed=20_000)
        for owner, names in owners.items():
            mean = torch.cat([dreg[name][0] for name in names]).abs()
            for label, estimator in (("iwae", iwae), ("dreg", dreg)):
                sd = torch.cat([estimator[name][1] for name in names])
                found[f"{label}_{owner}"].append(float((mean / sd).mean()))
    return found


def slope(Ks, values):
    """Least squares of log value on log K."""
    x, y = (torch.tensor([math.log(v) for v in row], dtype=torch.float64) for row in (Ks, values))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def check(linear_gaussian, near_posterior, linear_pair, Ks, variance):
    parameters, x = setting(linear_gaussian, near_posterior, variance)
    found = curves(linear_pair, parameters, x, Ks)
    slopes = {name: slope(Ks, values) for name, values in found.items()}
    for name, expected in EXPECTED.items():
        assert abs(slopes[name] - expected) < 0.15, (slopes, found)
    return found, slopes


@pytest.mark.parametrize("variance", [1.2])
def test_slopes(linear_gaussian, near_posterior, linear_pair, variance):
    """K from 1 to 64, 4,000 repeats, seeds 10,000 and 20,000."""
    check(linear_gaussian, near_posterior, linear_pair, (1, 4, 16, 64), variance)


@pytest.mark.slow
@pytest.mark.parametrize("variance", [1.1, 1.2, 1.3])
def test_slopes_up_to_a_thousand(linear_gaussian, near_posterior, linear_pair, variance):
    """K from 1 to 1,000; $SIGNAL_TO_NOISE_JSON names a file to keep the curves in."""
    Ks = (1, 3, 10, 32, 100, 316, 1000)
    found, slopes = check(linear_gaussian, near_posterior, linear_pair, Ks, variance)
    if "SIGNAL_TO_NOISE_JSON" in os.environ:
        keep(Path(os.environ["SIGNAL_TO_NOISE_JSON"]), variance, Ks, found, slopes)


def keep(path, variance, Ks, found, slopes):
    """Add a row to the file, in place of one of the same variance."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    row = {"variance": variance, "K": Ks, "slopes": slopes, "signal_to_noise": found}
    rows = [other for other in rows if other["variance"] != variance] + [row]
    setting = {"repeats": REPEATS, "shift": 0.3, "dtype": "float64", "torch": torch.__version__}
    path.write_text(json.dumps({**setting, "rows": rows}, indent=1) + "\n")
