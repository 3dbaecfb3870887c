"""The exact posterior as a guide: the model's own, without parameters, always up to date."""

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


def test_has_no_parameters_of_its_own():
    _, guide = build_pair(CONFIG, Facts((5,), "continuous"))
    assert not list(guide.parameters())
    assert not guide.state_dict()


def test_needs_a_model_with_a_posterior():
    with pytest.raises(InputError, match="needs a model with an exact posterior"):
        ExactPosterior(torch.nn.Identity())
