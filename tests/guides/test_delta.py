"""The point guide: a plain autoencoder, and no bound."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro_vae.guides.delta import Delta
from torch import nn

from pyro_vae.networks import Encoder
from pyro_vae.objectives import Trace


def test_says_it_has_neither_density_nor_bound():
    assert not Delta.has_density
    assert not Delta.has_bound


def test_is_a_point_at_the_heads_output(make, x):
    guide = make(Delta)
    q = guide.posterior(x)
    assert (q.batch_shape, q.event_shape) == ((3,), (2,))
    assert torch.equal(q.mean, guide.head(guide.encoder(x)))
    assert torch.equal(q.sample((5,)), q.mean.expand(5, 3, 2))
    assert torch.equal(q.log_prob(q.mean), torch.zeros(3).double())
    assert (q.log_prob(q.mean + 1e-9) == -math.inf).all()


def test_broadcasts_and_encodes_once(make, x):
    guide, rows = make(Delta), []
    guide.encoder.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    with poutine.trace() as tracer, pyro.plate("particles", 7, dim=-2):
        guide(x)
    assert rows == [3]
    assert tracer.trace.nodes["z"]["value"].shape == (7, 3, 2)


def test_the_objective_is_the_log_joint_at_the_point(linear_gaussian, linear_guide):
    """log p(x|μ) + log p(μ), value and gradient."""
    p, guide = linear_gaussian, linear_guide(Delta)
    x = p.simulate(6, seed=0)
    z = guide.posterior(x).mean
    fit = -0.5 * ((x - z @ p.W.T - p.b) ** 2 / p.sigma**2 + math.log(2 * math.pi * p.sigma**2))
    log_joint = fit.sum() - 0.5 * (z**2 + math.log(2 * math.pi)).sum()
    loss = Trace().differentiable_loss(p.model, guide, x)
    torch.testing.assert_close(loss, -log_joint)
    wanted = list(guide.parameters())
    for a, b in zip(
        torch.autograd.grad(loss, wanted), torch.autograd.grad(-log_joint, wanted), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_trained_it_finds_the_posteriors_mode_whose_log_joint_is_no_bound(
    skewed, linear_guide, train
):
    """log p(x, z*) − log p(x) = log p(z*|x) = ½ log det Λ − (D/2) log 2π, above 0 here."""
    p, guide = skewed, linear_guide(Delta)
    x = p.simulate(200, seed=0)
    train(p.model, guide, x, num_steps=1000, num_particles=1)
    with torch.no_grad():
        q = guide.posterior(x)
        torch.testing.assert_close(q.mean, p.posterior(x).mean, rtol=0, atol=0.02)
        excess = -Trace().loss(p.model, guide, x) / 200 - float(p.log_evidence(x).mean())
    expected = float(0.5 * p.precision.logdet()) - math.log(2 * math.pi)
    assert excess == pytest.approx(expected, abs=1e-3)
    assert excess > 0


def test_float32_stays_finite_at_large_outputs():
    guide = Delta(Encoder(nn.Flatten(), (2,), 2), latent_dim=2)
    q = guide.posterior(torch.tensor([[-1e4, 1e4]]))
    assert torch.equal(q.log_prob(q.rsample()), torch.zeros(1))
