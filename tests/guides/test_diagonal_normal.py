"""The mean-field normal guide: its density, its gradients, its limit on a linear model."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro_vae.guides.diagonal_normal import DiagonalNormal
from torch import nn

from pyro_vae.networks import Encoder, mlp


def make(latent_dim=2, event_shape=(4,)) -> DiagonalNormal:
    torch.manual_seed(0)
    body, features = mlp(hidden=(8,), activation="tanh").encoder(event_shape)
    return DiagonalNormal(Encoder(body, event_shape, features), latent_dim).double()


X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def importance_ratio(guide, error: float = 0.0) -> tuple[float, float]:
    """Mean of h/q under q and its standard error, h a normal at q's mean, scale sd/1.3."""
    q = guide.posterior(X[:1])
    torch.manual_seed(1)
    z = q.sample((100_000,))
    h = dist.Normal(q.mean, q.stddev / 1.3).to_event(1)
    ratio = (h.log_prob(z) - q.log_prob(z) - error).exp().flatten().detach()
    return float(ratio.mean()), float(ratio.std() / math.sqrt(len(ratio)))


def test_density_is_that_of_the_samples():
    """E_q[h/q] = 1 within four standard errors; a 2 % error in log q's constant is seen."""
    guide = make()
    mean, error = importance_ratio(guide)
    assert abs(mean - 1) < 4 * error
    mean, error = importance_ratio(guide, error=0.02)
    assert abs(mean - 1) > 4 * error


def test_site_is_the_posterior_and_the_encoder_runs_once():
    guide = make()
    rows = []
    guide.encoder.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    with poutine.trace() as tracer, torch.no_grad(), pyro.plate("particles", 7, dim=-2):
        guide(X)
    site = tracer.trace.nodes["z"]
    assert rows == [3]
    assert site["value"].shape == (7, 3, 2)
    torch.testing.assert_close(
        site["fn"].log_prob(site["value"]), guide.posterior(X).log_prob(site["value"])
    )


def test_samples_are_reparameterized():
    """z = μ + σ ε: dz/dμ = 1 and dz/dσ = ε."""
    guide = make()
    q = guide.posterior(X)
    loc, scale = q.base_dist.loc, q.base_dist.scale
    torch.manual_seed(2)
    z = q.rsample()
    epsilon = ((z - loc) / scale).detach()
    (d_loc,) = torch.autograd.grad(z.sum(), [loc], retain_graph=True)
    (d_scale,) = torch.autograd.grad(z.sum(), [scale], retain_graph=True)
    torch.testing.assert_close(d_loc, torch.ones_like(loc))
    torch.testing.assert_close(d_scale, epsilon)
    for parameter in guide.parameters():
        (gradient,) = torch.autograd.grad(z.sum(), [parameter], retain_graph=True)
        assert (gradient != 0).any()


def test_gradients_match_finite_differences():
    guide = make()
    weight = guide.head.weight
    z = torch.ones(3, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(guide.posterior(X).log_prob(z).sum(), [weight])
    step = 1e-6
    for index in [(0, 0), (1, 3), (2, 5), (3, 7)]:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[index] += sign * step
                values.append(float(guide.posterior(X).log_prob(z).sum()))
                weight[index] -= sign * step
        assert float(gradient[index]) == pytest.approx(
            (values[0] - values[1]) / (2 * step), rel=1e-5
        )


def test_scale_is_positive_and_finite_for_any_encoder_output():
    guide = make().float()
    for output in (-1e4, 1e4):
        nn.init.zeros_(guide.head.weight)
        nn.init.constant_(guide.head.bias, output)
        q = guide.posterior(X.float())
        assert (q.stddev > 0).all()
        assert torch.isfinite(q.log_prob(q.rsample())).all()
