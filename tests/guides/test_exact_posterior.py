"""The exact posterior as a guide: the model's own, without parameters, always up to date."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro_vae.guides.exact_posterior import ExactPosterior

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.protocols import Facts

CONFIG = Config(
    model="linear_gaussian", likelihood="normal", guide="exact_posterior", latent_dim=2,
    dtype="float64",
)  # fmt: skip


def test_follows_the_models_parameters():
    torch.manual_seed(0)
    model, guide = build_pair(CONFIG, Facts((5,), "continuous"))
    x = torch.randn(3, 5, dtype=torch.float64)
    before = guide.posterior(x)
    with torch.no_grad():
        model.decoder.body[-1].weight.mul_(2.0)
    after = guide.posterior(x)
    assert not torch.allclose(before.mean, after.mean)
    torch.testing.assert_close(after.mean, model.posterior(x).mean)
    torch.testing.assert_close(after.covariance_matrix, model.posterior(x).covariance_matrix)


def importance_ratio(q, error=0.0):
    """Mean of h/q under q and its standard error, h a normal at q's mean of scale sd/1.3."""
    torch.manual_seed(1)
    z = q.sample((100_000,))
    h = dist.Normal(q.mean, q.stddev / 1.3).to_event(1)
    ratio = (h.log_prob(z) - q.log_prob(z) - error).exp().flatten()
    return float(ratio.mean()), float(ratio.std() / math.sqrt(len(ratio)))


@torch.no_grad()
def test_density_is_that_of_its_draws():
    """E_q[h/q] = 1 within four standard errors; a 2 % error in log q is noticed."""
    torch.manual_seed(0)
    _, guide = build_pair(CONFIG, Facts((5,), "continuous"))
    q = guide.posterior(torch.randn(1, 5, dtype=torch.float64))
    mean, error = importance_ratio(q)
    assert abs(mean - 1) < 4 * error
    mean, error = importance_ratio(q, error=0.02)
    assert abs(mean - 1) > 4 * error


def test_has_no_parameters_of_its_own():
    _, guide = build_pair(CONFIG, Facts((5,), "continuous"))
    assert not list(guide.parameters())
    assert not guide.state_dict()


def test_needs_a_model_with_a_posterior():
    with pytest.raises(InputError, match="needs a model with an exact posterior"):
        ExactPosterior(torch.nn.Identity())
