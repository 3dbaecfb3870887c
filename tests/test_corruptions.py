"""Corruptions by their moments; a corrupted guide trains on x̃, is scored on x, and is a bound."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.components import build
from pyro_vae.corruptions import Corrupted, gaussian, mask
from pyro_vae.errors import InputError
from pyro_vae.log_weights import log_weights

X = torch.linspace(-3, 3, 40, dtype=torch.float64)


def test_gaussian_adds_noise_of_its_scale_and_no_more():
    torch.manual_seed(0)
    x = X.expand(20_000, 40)
    noise = gaussian(scale=0.3, unit=2.0)(x) - x
    # standard errors of a mean and of a variance of 20,000 normal draws
    assert (noise.mean(0).abs() < 5 * 0.6 / math.sqrt(20_000)).all()
    assert ((noise.var(0) / 0.36 - 1).abs() < 5 * math.sqrt(2 / 20_000)).all()
    correlations = torch.corrcoef(noise.T) - torch.eye(40)
    assert correlations.abs().max() < 5.5 / math.sqrt(20_000)


def test_mask_sets_each_number_to_zero_alone():
    torch.manual_seed(0)
    x = X.expand(20_000, 40)
    corrupted = mask(rate=0.2)(x)
    masked = (corrupted == 0) & (x != 0)
    assert torch.equal(corrupted[~masked], x[~masked])
    rate = masked.double().mean(0)
    assert ((rate - 0.2).abs() < 5 * math.sqrt(0.16 / 20_000)).all()
    correlations = torch.corrcoef(masked.double().T) - torch.eye(40)
    assert correlations.abs().max() < 5.5 / math.sqrt(20_000)


def test_the_unit_of_levels_is_received():
    torch.manual_seed(0)
    x = torch.zeros(10_000)
    corrupt = build("corruption", "gaussian(scale=0.5)", unit=255.0)
    assert float(corrupt(x).std()) == pytest.approx(127.5, rel=0.05)
    assert build("corruption", "mask(rate=0.5)", unit=255.0)(x).abs().max() == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gaussian(scale=0)", "gaussian: scale must be positive and in .*, got 0"),
        ("gaussian(scale=1e999)", "gaussian: scale must be positive and in .*, got inf"),
        ("gaussian(sigma=1)", "has no argument 'sigma'"),
        ("mask(rate=1)", "mask: rate must be positive and in .*, got 1"),
        ("mask(rate=half)", "rate must be a positive number, got 'half'"),
        ("maks", "unknown corruption 'maks'; did you mean 'mask'"),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        build("corruption", spec, unit=1.0)
    assert "\n" not in str(caught.value)


class Model(nn.Module):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)


class Guide(nn.Module):
    """The exact posterior, N(0.8 x, 0.2), by slope and scale that are learned."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.raw = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, self.raw.exp()))


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_denoising_guide_learns_the_regression_on_corrupted_data(engine):
    """E KL(N(slope x̃, σ²) ‖ N(0.8 x, 0.2)) is least at slope E[0.8 x x̃]/E[x̃²] and σ² = 0.2.

    With x̃ = x + s ε the slope is 0.8 E x²/(E x² + s²): it shrinks towards what the data are about.
    """
    noise = 1.5
    torch.manual_seed(0)
    guide = Guide()
    corrupted = Corrupted(guide, gaussian(scale=noise))
    with pyro.get_param_store().scope():
        svi = CompiledSVI(
            Model(), corrupted, lambda p: torch.optim.Adam(p, lr=0.02), Trace_ELBO(),
            engine=engine, compile=False,
        )  # fmt: skip
        x = X.repeat(25)
        for step in range(400):
            if step == 300:
                svi.optimizer.param_groups[0]["lr"] = 0.002
            svi.step(x)
    assert svi.engine == engine
    power = float(X.square().mean())
    slope = 0.8 * power / (power + noise**2)
    assert guide.slope.item() == pytest.approx(slope, abs=0.02)
    assert guide.raw.exp().item() == pytest.approx(math.sqrt(0.2), abs=0.02)


def test_the_corrupted_objective_is_a_bound_and_noise_costs_what_it_should():
    """Of the exact posterior's slope and scale: E_x̃ ELBO = log p(x) − E KL = log p(x) − 1.6 s²."""
    guide = Guide()
    with torch.no_grad():
        guide.slope.fill_(0.8)
        guide.raw.fill_(0.5 * math.log(0.2))
    scale = 0.3
    corrupted = Corrupted(guide, gaussian(scale=scale))
    torch.manual_seed(1)
    weights = torch.cat([log_weights(Model(), corrupted, X, 1) for _ in range(4000)])
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(X)
    error = weights.std(0) / math.sqrt(len(weights))
    # KL(N(0.8 x̃, 0.2) ‖ N(0.8 x, 0.2)) = 0.64 (x̃ − x)²/(2 · 0.2)
    assert ((weights.mean(0) - (exact - 1.6 * scale**2)).abs() < 5 * error).all()
    clean = log_weights(Model(), corrupted.eval(), X, 1)
    torch.testing.assert_close(clean[0], exact)


def test_the_guides_own_mode_decides():
    guide = Guide()
    wrapped = Corrupted(guide, mask(rate=0.99))
    guide.eval()  # behind the wrapper's back
    drawn = []
    for program in (wrapped, guide):
        torch.manual_seed(0)
        drawn.append(log_weights(Model(), program, X, 1))
    assert torch.equal(*drawn)


def test_a_function_is_corrupted_until_the_wrapper_is_told(monkeypatch):
    seen = []
    wrapped = Corrupted(seen.append, mask(rate=1 - 1e-12))
    wrapped(X)
    wrapped.eval()(X)
    assert seen[0].abs().max() == 0
    assert torch.equal(seen[1], X)


def test_pyros_own_svi_takes_it():
    guide = Guide()
    with pyro.get_param_store().scope():
        svi = SVI(Model(), Corrupted(guide, mask()), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        losses = [svi.step(X) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])
