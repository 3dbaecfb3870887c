"""Two stochastic layers: the joint density, the marginal of z1, what does not fit."""

import math

import pytest
import torch
from pyro import poutine
from pyro_vae.guides.hierarchical import Hierarchical as Guide
from pyro_vae.models.hierarchical import Hierarchical
from pyro_vae.models.likelihoods.normal import Normal
from pyro_vae.models.priors.standard_normal import StandardNormal

from pyro_vae.assembly import build_pair, latent_dims
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.evaluation import log_likelihood
from pyro_vae.log_weights import log_weight_terms
from pyro_vae.networks import Decoder, Encoder, linear, mlp
from pyro_vae.protocols import Facts

FACTS = Facts((4,), "binary")


def make(dims=(1, 1), scale=0.7):
    """One z1, one z2, two pixels: evidence by quadrature over a plane."""
    torch.manual_seed(0)
    body = linear().decoder(dims[0], (2,), 1)
    model = Hierarchical(
        StandardNormal(dims[1]), Normal(scale=scale), Decoder(body, dims[0], (2,), 1), (2,),
        latent_dims=dims, hidden=(6,),
    )  # fmt: skip
    encoder_body, features = mlp(hidden=(8,), activation="tanh").encoder((2,))
    guide = Guide(Encoder(encoder_body, (2,), features), dims, hidden=(6,))
    return model.double(), guide.double()


X = torch.tensor([[0.5, -0.3], [1.2, 0.4], [-0.8, 0.1]], dtype=torch.float64)


def log_evidence_by_quadrature(model, x):
    grid = torch.linspace(-9, 9, 721, dtype=torch.float64)
    z2, z1 = grid[:, None, None], grid[None, :, None]
    with torch.no_grad():
        log_prior = model.top().log_prob(z2) + model.middle(z2).log_prob(z1)
        log_px = model.decode(z1).log_prob(x[:, None, None, :])
    return (log_prior + log_px).flatten(1).logsumexp(1) + 2 * math.log(18 / 720)


def test_evidence_by_importance_sampling_is_that_by_quadrature():
    """Within four standard errors (the guide is untrained), seed 0, and the error is small."""
    model, guide = make()
    exact = log_evidence_by_quadrature(model, X)
    result = log_likelihood(model, guide, X, 50_000, seed=0)
    assert (result.standard_error < 0.05).all()
    assert ((result.log_px - exact).abs() < 4 * result.standard_error).all()


def test_terms_are_those_of_both_layers():
    model, guide = make((3, 2))
    torch.manual_seed(1)
    terms = log_weight_terms(model, guide, X, 5)
    torch.manual_seed(1)
    with torch.no_grad():
        q1 = guide.posterior(X)
        z1 = q1.sample((5,))
        q2 = guide.top(z1)
        z2 = q2.sample()
        prior = model.top().log_prob(z2) + model.middle(z2).log_prob(z1)
        torch.testing.assert_close(terms.log_prior.detach(), prior)
        torch.testing.assert_close(terms.log_guide.detach(), q1.log_prob(z1) + q2.log_prob(z2))


def test_prior_is_the_marginal_of_z1():
    """Mean and variance of its draws against quadrature over z2, within four standard errors."""
    model, _ = make()
    grid = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        weight = model.top().log_prob(grid).exp()
        weight = weight / weight.sum()
        middle = model.middle(grid)
        mean = (weight * middle.mean[:, 0]).sum()
        second = (weight * (middle.variance + middle.mean**2)[:, 0]).sum()
    torch.manual_seed(0)
    z1 = model.prior().sample((100_000,))
    assert z1.shape == (100_000, 1)
    assert abs(z1.mean() - mean) < 4 * z1.std() / math.sqrt(len(z1))
    square = z1**2
    assert abs(square.mean() - second) < 4 * square.std() / math.sqrt(len(z1))


def test_gradients_match_finite_differences():
    """Of Σ log p(x, z) − log q(z|x) under fixed noise, along a random direction of each tensor."""
    model, guide = make((3, 2))
    named = [*model.named_parameters(), *guide.named_parameters()]

    def total():
        torch.manual_seed(2)
        return log_weight_terms(model, guide, X, 4).log_weight.sum()

    gradients = torch.autograd.grad(total(), [p for _, p in named])
    generator = torch.Generator().manual_seed(3)
    for (name, parameter), gradient in zip(named, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-5 * direction
                values.append(float(total()))
                parameter -= sign * 1e-5 * direction
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-6), name


def test_sites_and_shapes():
    model, guide = make((3, 2))
    trace = poutine.trace(guide).get_trace(X)
    assert trace.nodes["z1"]["value"].shape == (3, 3)
    assert trace.nodes["z2"]["value"].shape == (3, 2)
    assert poutine.replay(model, trace=trace)(X) is trace.nodes["z1"]["value"]


def test_sizes_come_from_the_models_spec():
    config = Config(
        model="hierarchical(latent_dims=(7, 2))", guide="hierarchical", encoder="linear"
    )
    assert latent_dims(config) == (7, 2)
    model, guide = build_pair(config, FACTS)
    assert model.prior().event_shape == (7,)
    assert model.top().event_shape == (2,)
    assert guide.top.out_dim == 2
    assert latent_dims(Config(model="hierarchical", latent_dim=5)) == (10, 5)
    assert latent_dims(Config(latent_dim=5)) == (5,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "hierarchical(latent_dims=3)"}, "latent_dims must be positive whole numbers"),
        ({"model": "hierarchical(latent_dims=(3, 0))"}, "latent_dims must be positive"),
        ({"model": "hierarchical(latent_dims=(3, 2, 1))"}, "must be two sizes|two latents"),
        ({"model": "hierarchical", "guide": "diagonal_normal"},
         "has 2 latents and guide diagonal_normal one; .* --guide hierarchical"),
        ({"model": "vae"}, "guide hierarchical has two latents and the model one"),
        ({"model": "hierarchical", "prior": "vamp"}, "model hierarchical has several"),
        ({"model": "hierarchical(output_bias=mean)"}, "output_bias must be zero or data_mean"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(settings, message):
    config = Config(**{"guide": "hierarchical", "latent_dim": 2, **settings})
    with pytest.raises(InputError, match=message):
        build_pair(config, FACTS)
