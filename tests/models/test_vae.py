"""The VAE's program: p(z) p(x|z) and nothing else."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro_vae.models.likelihoods.bernoulli import Bernoulli
from pyro_vae.models.likelihoods.normal import Normal
from pyro_vae.models.priors.standard_normal import StandardNormal
from pyro_vae.models.vae import VAE
from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.networks import Decoder, mlp


def make(likelihood, event_shape=(2, 3), **options) -> VAE:
    torch.manual_seed(0)
    body = mlp(hidden=(5,)).decoder(2, event_shape, likelihood.params_per_dim)
    decoder = Decoder(body, 2, event_shape, likelihood.params_per_dim)
    return VAE(StandardNormal(2), likelihood, decoder, event_shape, **options)


def test_joint_density_is_prior_times_likelihood():
    model = make(Bernoulli())
    x = (torch.rand(4, 2, 3) < 0.5).float()
    trace = poutine.trace(model).get_trace(x)
    z = trace.nodes["z"]["value"]
    logits = model.decoder.body(z).view(4, 2, 3)
    expected = -0.5 * (z**2 + torch.log(torch.tensor(2 * torch.pi))).sum(-1)
    expected = expected + (x * logits - nn.functional.softplus(logits)).sum((-1, -2))
    assert float(trace.log_prob_sum().detach()) == pytest.approx(float(expected.sum().detach()))


def test_decode_declares_all_event_dimensions():
    for likelihood in (Bernoulli(), Normal(), Normal(scale="per_pixel")):
        p = make(likelihood).decode(torch.zeros(7, 4, 2))
        assert p.batch_shape == (7, 4)
        assert p.event_shape == (2, 3)


def test_a_likelihood_may_declare_event_dimensions_itself():
    class Declared(Bernoulli):
        def forward(self, params):
            return dist.Bernoulli(logits=params.squeeze(-1)).to_event(2)

    p = make(Declared()).decode(torch.zeros(7, 2))
    assert (p.batch_shape, p.event_shape) == ((7,), (2, 3))


def test_output_bias_options():
    mean = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    model = make(Bernoulli(), output_bias="data_mean", data_mean=mean)
    torch.testing.assert_close(model.decoder.body[-1].bias.sigmoid().view(2, 3), mean)
    with pytest.raises(InputError, match="output_bias must be zero or data_mean"):
        make(Bernoulli(), output_bias="mean")
