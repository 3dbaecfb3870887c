"""Data simulated from a known p, and p recovered from them.

One latent, so that log p(x) is a quadrature for the generator and for what was trained.
The mean of log p*(x) − log p(x) over held-out data estimates KL(p* ‖ p) ≥ 0.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.links import inverse_positive
from pyro_vae.protocols import Facts
from pyro_vae.run_training import start_run, train_run
from pyro_vae.runs import load_run
from pyro_vae.seeding import seeded

TRAIN, VALID, TEST = 6000, 1000, 4000
DISTANCE = 0.03  # nats per datum, beside two standard errors
DIMS = 10

VALUES = {"bernoulli": "binary", "normal": "continuous", "poisson": "counts", "binomial": "levels"}
MEASURES = {"bernoulli": ("binary", None), "normal": ("continuous", None),
            "poisson": ("counts", None), "binomial": ("levels", 8)}  # fmt: skip


def settings(prior: str, likelihood: str, data: str) -> Config:
    return Config(
        data=data, prior=prior, likelihood=likelihood, latent_dim=1,
        encoder="mlp(hidden=(64,), activation=tanh)", decoder="linear",
        optimizer="adam(lr=0.02)", schedule="cosine_annealing_lr(T_max=200)",
        objective="trace(num_particles=2)", batch_size=500, epochs=200, warm_up=20, dtype="float64",
        device="cpu",
    )  # fmt: skip


def make_generator(prior: str, likelihood: str):
    """A known p: two clear modes where the prior is a mixture, an affine decoder."""
    measure, num_levels = MEASURES[likelihood]
    with seeded(0):
        config = settings(prior, likelihood, VALUES[likelihood])
        model, _ = build_pair(config, Facts((DIMS,), measure, num_levels))
        model.requires_grad_(False)
        layer = model.decoder.body[-1]
        torch.nn.init.uniform_(layer.weight, 0.8, 1.2)
        layer.weight[::2] *= -1
        torch.nn.init.uniform_(layer.bias, -0.5, 1.0)
        if likelihood == "normal":  # σ = 0.8: a posterior of sd 0.25, of the prior's 1
            model.likelihood.raw_scale.fill_(float(inverse_positive(torch.tensor(0.8))))
        if prior.startswith("mixture"):
            model.prior.load_state_dict(
                {name: value.to(torch.float64) for name, value in _two_modes(model.prior).items()}
            )
        return model


def _two_modes(prior) -> dict[str, Tensor]:
    """Weights 0.3 and 0.7, means −2 and 1.5, scales as they start, times a half."""
    state = prior.state_dict()
    state["loc"] = torch.tensor([[-2.0], [1.5]])
    state["logits"] = torch.tensor([0.3, 0.7]).log()
    state["raw_scale"] = torch.full((2, 1), -0.4)  # softplus: 0.51
    return state


def simulate(model, count: int, seed: int) -> Tensor:
    with seeded(seed):
        return model.decode(model.prior().sample((count,))).sample()


def log_px(model, x: Tensor) -> Tensor:
    """log ∫ p(z) p(x|z) dz by quadrature over one latent."""
    z = torch.linspace(-14, 14, 2801, dtype=torch.float64)[:, None]
    log_prior = model.prior().log_prob(z)[:, None]
    p = model.decode(z[:, None])
    parts = [p.log_prob(part[None]) for part in x.split(500)]
    return (torch.cat(parts, 1) + log_prior).logsumexp(0) + math.log(28 / 2800)


def save(path: Path, model, likelihood: str) -> str:
    counts = {"train": TRAIN, "valid": VALID, "test": TEST}
    arrays = {name: simulate(model, n, seed) for seed, (name, n) in enumerate(counts.items(), 1)}
    dtype = np.float32 if likelihood == "normal" else np.int32
    np.savez(path, **{name: x.numpy().astype(dtype) for name, x in arrays.items()})
    extra = ", num_levels=8" if likelihood == "binomial" else ""
    return f"{path}(values={VALUES[likelihood]}{extra})"


def distance(model, trained, x: Tensor) -> tuple[float, float]:
    """Mean log p*(x) − log p(x) and its standard error."""
    with torch.no_grad():
        gap = log_px(model, x) - log_px(trained, x)
    return float(gap.mean()), float(gap.std() / math.sqrt(len(gap)))


def recover(tmp_path: Path, model, prior: str, likelihood: str) -> tuple[float, float]:
    spec = save(tmp_path / "simulated.npz", model, likelihood)
    config, data, trainer = start_run(settings(prior, likelihood, spec), tmp_path / "run")
    train_run(tmp_path / "run", config, trainer)
    return distance(model, load_run(tmp_path / "run").model, data.test.scored().double())


FAST = {("standard_normal", "poisson"), ("mixture(components=2)", "normal")}
PAIRS = [
    pytest.param(prior, likelihood, marks=[] if (prior, likelihood) in FAST else pytest.mark.slow)
    for prior in ("standard_normal", "mixture(components=2)")
    for likelihood in ("bernoulli", "normal", "poisson", "binomial")
]


@pytest.mark.parametrize(("prior", "likelihood"), PAIRS)
def test_p_is_recovered(prior, likelihood, tmp_path):
    gap, error = recover(tmp_path, make_generator(prior, likelihood), prior, likelihood)
    assert -2 * error < gap < DISTANCE + 2 * error


def test_another_prior_is_farther_away(tmp_path):
    """The distance is one that a wrong p exceeds: one normal for two modes."""
    model = make_generator("mixture(components=2)", "normal")
    gap, error = recover(tmp_path, model, "standard_normal", "normal")
    assert gap > 3 * DISTANCE + 4 * error
