"""Bernoulli: masses sum to one, also where probabilities would round to 0 or 1."""

import itertools
import math

import pytest
import torch
from pyro_vae.models.likelihoods.bernoulli import Bernoulli


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_masses_sum_to_one(scale):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(3, 1, generator=generator, dtype=torch.float64)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    log_prob = Bernoulli()(logits).log_prob(x).sum(-1)
    assert abs(float(log_prob.logsumexp(0))) < 1e-12


def test_log_mass_is_the_formula():
    """x l − log(1 + exp l)."""
    logits = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    for x in (torch.zeros(3).double(), torch.ones(3).double()):
        expected = x * logits - torch.log1p(logits.exp())
        torch.testing.assert_close(Bernoulli()(logits[:, None]).log_prob(x), expected)


def test_float32_stays_finite_and_exact_at_large_logits():
    logits = torch.tensor([[1e4], [-1e4], [100.0]], requires_grad=True)
    log_prob = Bernoulli()(logits).log_prob(torch.tensor([0.0, 1.0, 0.0]))
    assert log_prob.tolist() == [-1e4, -1e4, -100.0]
    log_prob.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_samples_have_the_mean():
    torch.manual_seed(0)
    p = Bernoulli()(torch.tensor([[-1.0], [0.0], [2.0]]))
    draws = p.sample((40_000,))
    error = (p.mean * (1 - p.mean) / 40_000).sqrt()
    assert ((draws.mean(0) - p.mean).abs() < 4 * error).all()


def test_params_at_the_mean():
    mean = torch.tensor([[0.0, 0.3], [0.5, 1.0]])
    expected = torch.tensor([[0.01, 0.3], [0.5, 0.99]])
    torch.testing.assert_close(Bernoulli()(Bernoulli().params_at(mean)).mean, expected)
    assert math.isfinite(float(Bernoulli().params_at(mean).sum()))
