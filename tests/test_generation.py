"""What is drawn is what was asked for, and only that."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.generation import (
    interpolate,
    manifold,
    posterior_mean,
    prior_mean,
    project,
    reconstruct,
    sample_prior,
    traverse,
)

LOC, SCALE = torch.tensor([3.0, -2.0]), torch.tensor([0.5, 4.0])


class Shifted(nn.Module):
    def forward(self):
        return dist.Normal(LOC, SCALE).to_event(1)


class NoMoments(dist.Normal):
    """A normal that knows no mean, as a flow knows none."""

    @property
    def mean(self):
        raise NotImplementedError

    @property
    def variance(self):
        raise NotImplementedError


class Unknown(nn.Module):
    def forward(self):
        return NoMoments(LOC, SCALE).to_event(1)


class Echo(nn.Module):
    """x is z itself, with noise of 0.1: what was decoded can be read off."""

    def __init__(self, prior=None, likelihood=dist.Normal):
        super().__init__()
        self.prior = prior or Shifted()
        self.likelihood = likelihood
        self.weight = nn.Parameter(torch.ones(()))

    def decode(self, z):
        return self.likelihood(self.weight * z, torch.tensor(0.1)).to_event(1)


class Guide(nn.Module):
    def posterior(self, x):
        return dist.Normal(2 * x, torch.tensor(0.5)).to_event(1)


@pytest.fixture
def model():
    return Echo()


@pytest.fixture(autouse=True)
def _global_generator_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_come_from_the_models_own_prior(model):
    """Means and standard deviations of 4,000 z, within 4 standard errors."""
    n = 4000
    z = sample_prior(model, n, seed=1).means
    assert z.shape == (n, 2)
    assert ((z.mean(0) - LOC).abs() < 4 * SCALE / math.sqrt(n)).all()
    assert ((z.std(0) - SCALE).abs() < 4 * SCALE / math.sqrt(2 * n)).all()


def test_samples_are_reproducible(model):
    first, again, other = (sample_prior(model, 5, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.means, again.means)
    assert torch.equal(first.draws, again.draws)
    assert not torch.equal(first.means, other.means)
    torch.rand(3, generator=torch.Generator())
    assert not torch.equal(first.means, first.draws)


def test_draws_are_draws_of_the_likelihood(model):
    """The noise x − E[x|z] has the likelihood's scale, within 4 standard errors."""
    pictures = sample_prior(model, 4000)
    noise = (pictures.draws - pictures.means).flatten()
    assert abs(float(noise.mean())) < 4 * 0.1 / math.sqrt(len(noise))
    assert abs(float(noise.std()) - 0.1) < 4 * 0.1 / math.sqrt(2 * len(noise))


def test_reconstructions_draw_z_from_the_guide(model):
    x = torch.tensor([[1.0, -1.0]]).expand(4000, 2)
    z = reconstruct(model, Guide(), x, seed=3).means
    assert ((z.mean(0) - 2 * x[0]).abs() < 4 * 0.5 / math.sqrt(4000)).all()
    assert ((z.std(0) - 0.5).abs() < 4 * 0.5 / math.sqrt(8000)).all()
    assert torch.equal(z, reconstruct(model, Guide(), x, seed=3).means)


def test_traversal_moves_only_the_dimension_asked(model):
    start, values = torch.tensor([10.0, 20.0]), torch.tensor([-2.0, 0.0, 1.0])
    images = traverse(model, start, [1, 0], values)
    assert images.shape == (2, 3, 2)
    torch.testing.assert_close(images[0, :, 0], torch.full((3,), 10.0))
    torch.testing.assert_close(images[0, :, 1], -2 + 4 * values)  # mean + sd × value
    torch.testing.assert_close(images[1, :, 1], torch.full((3,), 20.0))
    torch.testing.assert_close(images[1, :, 0], 3 + 0.5 * values)


@pytest.mark.parametrize("dim", [2, -1, 100])
def test_traversal_of_a_dimension_that_is_none(model, dim):
    with pytest.raises(InputError, match=f"latent dimension {dim} is outside 0 … 1"):
        traverse(model, torch.zeros(2), [dim], torch.zeros(3))


def test_interpolation_ends_at_the_decoded_posterior_means(model):
    first, last = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    images = interpolate(model, Guide(), first, last, 5)
    assert images.shape == (4, 5, 2)
    torch.testing.assert_close(images[:, 0], model.decode(2 * first).mean)
    torch.testing.assert_close(images[:, -1], model.decode(2 * last).mean)
    torch.testing.assert_close(images[:, 1], 2 * (0.75 * first + 0.25 * last))
    with pytest.raises(InputError, match="at least 2 steps, got 1"):
        interpolate(model, Guide(), first, last, 1)


def test_manifold_stands_at_its_values(model):
    images, values = manifold(model, 5)
    assert images.shape == (5, 5, 2)
    quantiles = torch.distributions.Normal(0.0, 1.0).cdf(values)
    torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    for i in range(5):
        for j in range(5):
            z = LOC + SCALE * torch.stack([values[i], values[j]])
            torch.testing.assert_close(images[i, j], z)


def test_manifold_of_three_latents():
    class Three(nn.Module):
        def forward(self):
            return dist.Normal(torch.zeros(3), 1.0).to_event(1)

    with pytest.raises(InputError, match="needs 2 latent dimensions, got 3"):
        manifold(Echo(Three()))


def test_moments_in_closed_form(model):
    assert torch.equal(prior_mean(model), LOC)
    x = torch.ones(3, 2)
    assert torch.equal(posterior_mean(Guide(), x), 2 * x)


def test_moments_over_draws():
    """A prior without moments: 1,000 seeded draws, within 4 standard errors."""
    model = Echo(Unknown())
    mean = prior_mean(model, seed=5)
    assert ((mean - LOC).abs() < 4 * SCALE / math.sqrt(1000)).all()
    assert torch.equal(mean, prior_mean(model, seed=5))
    assert not torch.equal(mean, prior_mean(model, seed=6))
    values = torch.tensor([0.0, 1.0])
    z = traverse(model, torch.zeros(2), [1], values)[0, :, 1]
    assert abs(float(z[1] - z[0]) - 4) < 4 * 4 / math.sqrt(2000)


def test_means_over_draws_are_seeded():
    """A likelihood without a mean: its pictures are reproducible all the same."""
    model = Echo(likelihood=NoMoments)
    images = [traverse(model, torch.zeros(2), [0], torch.zeros(2), seed=s) for s in (0, 0, 1)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert abs(float(images[0][0, 0, 0]) - 3) < 4 * 0.1 / math.sqrt(100)
    assert torch.equal(manifold(model, 3)[0], manifold(model, 3)[0])


def test_project_keeps_two_and_pads_one():
    points = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    projected, method, explained = project(points)
    assert projected is points
    assert (method, explained) == ("posterior mean", None)
    projected, _, explained = project(points[:, :1])
    assert torch.equal(projected, torch.stack([points[:, 0], torch.zeros(6)], dim=1))
    assert explained is None


def test_project_by_principal_components():
    """Variances 9, 4, 1 along known axes: 13/14 explained, up to sampling; exact by SVD."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 3, generator=generator) * torch.tensor([1.0, 3.0, 2.0])
    projected, method, explained = project(points)
    assert projected.shape == (3000, 2)
    assert "principal components" in method
    squares = torch.linalg.svdvals((points - points.mean(0)).double()).square()
    assert explained == pytest.approx(float(squares[:2].sum() / squares.sum()), rel=1e-5)
    assert explained == pytest.approx(13 / 14, abs=0.01)
    assert projected.var(0).tolist() == pytest.approx([9, 4], rel=0.15)


def test_project_one_point():
    with pytest.raises(InputError, match="at least 2 points, got 1"):
        project(torch.zeros(1, 3))
