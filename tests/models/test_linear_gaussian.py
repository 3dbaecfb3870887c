"""Probabilistic PCA: its evidence and posterior are exact."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro_vae.guides.exact_posterior import ExactPosterior
from pyro_vae.models.likelihoods.bernoulli import Bernoulli
from pyro_vae.models.likelihoods.normal import Normal
from pyro_vae.models.linear_gaussian import LinearGaussian
from pyro_vae.models.priors.standard_normal import StandardNormal

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.evaluation import log_likelihood
from pyro_vae.objectives.trace import Trace
from pyro_vae.protocols import Facts

FACTS = Facts((2, 3), "continuous")


def make(latent_dim=2, scale=0.6, event_shape=(2, 3)) -> LinearGaussian:
    torch.manual_seed(0)
    model = LinearGaussian(StandardNormal(latent_dim), Normal(scale=scale), latent_dim, event_shape)
    return model.double()


X = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_evidence_is_that_of_the_marginal_normal():
    """x ~ N(b, W Wᵀ + σ² I), the covariance written out."""
    model = make()
    layer = model.decoder.body[-1]
    covariance = layer.weight @ layer.weight.T + 0.6**2 * torch.eye(6, dtype=torch.float64)
    expected = dist.MultivariateNormal(layer.bias, covariance).log_prob(X.flatten(1))
    torch.testing.assert_close(model.log_evidence(X), expected)


def test_posterior_by_bayes_rule():
    """log p(x|z) + log p(z) − log p(z|x) = log p(x) at any z."""
    model = make()
    z = torch.randn(7, 1, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = z.expand(7, 4, 2)
    joint = model.decode(z).log_prob(X) + model.prior().log_prob(z)
    evidence = joint - model.posterior(X).log_prob(z)
    torch.testing.assert_close(evidence, model.log_evidence(X).expand(7, 4))


def test_evidence_by_quadrature():
    model = make(latent_dim=1)
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None, None]
    joint = model.decode(z).log_prob(X) + model.prior().log_prob(z)
    total = joint.logsumexp(0) + math.log(18 / 4000)
    torch.testing.assert_close(total, model.log_evidence(X))


def test_every_log_weight_of_the_exact_posterior_is_the_evidence():
    model = make()
    result = log_likelihood(model, ExactPosterior(model), X, 50)
    torch.testing.assert_close(result.elbo, model.log_evidence(X).detach())
    torch.testing.assert_close(result.log_px, model.log_evidence(X).detach())
    assert (result.standard_error < 1e-6).all()


def test_the_elbos_gradient_is_the_evidences():
    model = make(scale="learned")
    parameters = list(model.parameters())
    torch.manual_seed(0)
    loss = Trace().differentiable_loss(model, ExactPosterior(model), X)
    expected = torch.autograd.grad(-model.log_evidence(X).sum(), parameters)
    for got, wanted in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_learned_scale_enters_as_it_is():
    model = make(scale="learned")
    scale = model.likelihood(torch.zeros(1, 1, dtype=torch.float64)).stddev
    layer = model.decoder.body[-1]
    covariance = layer.weight @ layer.weight.T + scale**2 * torch.eye(6, dtype=torch.float64)
    expected = dist.MultivariateNormal(layer.bias, covariance).log_prob(X.flatten(1))
    torch.testing.assert_close(model.log_evidence(X), expected)


def test_bias_can_start_at_the_data_mean():
    mean = torch.arange(6.0).reshape(2, 3)
    model = LinearGaussian(StandardNormal(2), Normal(), 2, (2, 3), "data_mean", mean)
    torch.testing.assert_close(model.decode(torch.zeros(2)).mean, mean)


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
def test_evidence_is_exact_in_float32_too(scale):
    """784 dimensions, data of the model's own; the truth is a dense float64 normal."""
    torch.manual_seed(0)
    model = LinearGaussian(StandardNormal(20), Normal(scale=scale), 20, (28, 28))
    x = model.decode(model.prior().sample((5,))).sample().detach()
    layer = model.decoder.body[-1].double()
    covariance = layer.weight @ layer.weight.T + scale**2 * torch.eye(784, dtype=torch.float64)
    p = dist.MultivariateNormal(layer.bias, covariance)
    expected = p.log_prob(x.double().flatten(1))
    model.float()
    torch.testing.assert_close(model.log_evidence(x), expected, rtol=1e-7, atol=1e-4)


@pytest.mark.parametrize(
    ("prior", "likelihood", "message"),
    [
        (torch.nn.Identity(), Normal(), "use --prior standard_normal"),
        (StandardNormal(2), Bernoulli(), "needs one normal scale"),
        (StandardNormal(2), Normal(scale="per_pixel"), "needs one normal scale"),
    ],
)
def test_what_is_not_exact_is_refused(prior, likelihood, message):
    with pytest.raises(InputError, match=message):
        LinearGaussian(prior, likelihood, 2, (3,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": "exact_posterior", "model": "vae"}, "needs a model with an exact posterior"),
        ({"decoder": "mlp"}, "has a decoder of its own; leave out --decoder"),
        ({"prior": "vamp", "guide": "exact_posterior"}, "guide exact_posterior is made from"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(settings, message):
    config = Config(**{"model": "linear_gaussian", "likelihood": "normal", **settings})
    with pytest.raises(InputError, match=message):
        build_pair(config, FACTS)
