"""The neural spline guide: its Jacobian, its density, its caches, its limits."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro_vae.guides.spline_flow import SplineFlow

from pyro_vae.errors import InputError
from pyro_vae.flows import Spline
from pyro_vae.networks import Encoder, mlp

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def make(latent_dim=2, noise=0.3, **options) -> SplineFlow:
    """A guide far from the identity: ``noise`` is added to its flow's parameters."""
    torch.manual_seed(0)
    body, features = mlp(hidden=(8,), activation="tanh").encoder((4,))
    options = {"hidden": (8, 8), **options}
    guide = SplineFlow(Encoder(body, (4,), features), latent_dim, **options).double()
    with torch.no_grad():
        for parameter in guide.layers.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return guide


def through(q, z):
    for step in q.transforms:
        z = step(z)
    return z


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_log_determinant_is_that_of_the_jacobian(latent_dim):
    guide = make(latent_dim, layers=3)
    z0 = torch.randn(3, latent_dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: through(guide.posterior(X), v), z0)
    q = guide.posterior(X)
    z = through(q, z0)
    expected = torch.stack([jacobian[b, :, b].slogdet().logabsdet for b in range(3)])
    torch.testing.assert_close(q.base_dist.log_prob(z0) - q.log_prob(z), expected)
    assert (expected.abs() > 0.1).any()


def test_inverts():
    """ε → z → ε to 1e-9, and the steps are far from the identity."""
    guide = make(latent_dim=5, layers=3)
    z0 = 2 * torch.randn(70, 3, 5, dtype=torch.float64)  # some of them outside the splines
    z = through(guide.posterior(X), z0)
    back = z
    for step in reversed(guide.posterior(X).transforms):
        back = step.inv(back)
    torch.testing.assert_close(back, z0, rtol=0, atol=1e-9)
    q = guide.posterior(X)
    assert (q.transforms[-1].inv(z) - z0).abs().max() > 0.5


def test_a_spline_is_smooth_and_the_identity_outside():
    """y(±bound) = ±bound, y' is continuous across knots and is 1 at the ends; y = x beyond."""
    spline = Spline(bins=5, bound=2.0)
    params = torch.randn(14, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    y, log_slope = spline.forward(x, params)
    assert torch.equal(y[x.abs() > 2], x[x.abs() > 2])
    assert log_slope.exp().diff().abs().max() < 0.05
    assert (y.diff() > 0).all()
    numeric = (y[2:] - y[:-2]) / 2e-4
    torch.testing.assert_close(numeric, log_slope.exp()[1:-1], rtol=5e-3, atol=5e-3)
    ends = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    y, log_slope = spline.forward(ends, params)
    torch.testing.assert_close(y, ends)
    torch.testing.assert_close(log_slope, torch.zeros_like(ends))


def test_the_bound_is_in_units_of_sigma():
    guide = make(bound=1.5)
    q = guide.posterior(X)
    loc, scale = q.transforms[-1].loc, q.transforms[-1].scale
    z = loc + 1.6 * scale
    torch.testing.assert_close(q.log_prob(z), dist.Normal(loc, scale).to_event(1).log_prob(z))


def test_integrates_to_one():
    """By quadrature on a grid of 401² points, to ±6 σ: there the splines have long ended."""
    q = make(noise=0.15, bins=4).posterior(X[:1])
    loc, scale = q.transforms[-1].loc, q.transforms[-1].scale
    grid = torch.linspace(-6, 6, 401, dtype=torch.float64)
    with torch.no_grad():
        log_prob = q.log_prob(loc + scale * torch.cartesian_prod(grid, grid).unsqueeze(1))
        log_mass = log_prob.logsumexp(0) + (scale * 12 / 400).log().sum(-1)
    assert abs(float(log_mass)) < 1e-5


def test_density_is_never_a_stale_one():
    guide = make()
    q = guide.posterior(X)
    z = q.rsample()
    torch.testing.assert_close(q.log_prob(z), guide.posterior(X).log_prob(z))
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))
    torch.testing.assert_close(q.log_prob(z + 1), guide.posterior(X).log_prob(z + 1))
    with torch.no_grad():
        torch.testing.assert_close(q.log_prob(z), guide.posterior(X).log_prob(z))
        torch.testing.assert_close(q.log_prob(z + 1), guide.posterior(X).log_prob(z + 1))
        before = q.log_prob(z)
        for parameter in guide.parameters():
            parameter.mul_(1.1)
        q = guide.posterior(X)
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))
        assert not torch.allclose(q.log_prob(z), before)


def test_gradient_at_a_drawn_z_is_that_at_a_given_z():
    """z from ``sample`` carries no gradient: log q(z|x) is differentiated at z held fixed."""
    guide = make()
    q = guide.posterior(X)
    z = q.sample()
    parameters = list(guide.parameters())
    drawn = torch.autograd.grad(q.log_prob(z).sum(), parameters)
    given = torch.autograd.grad(guide.posterior(X).log_prob(z.clone()).sum(), parameters)
    torch.testing.assert_close(drawn, given)


def test_starts_near_the_diagonal_normal():
    q = make(noise=0.0, hidden=(64,)).posterior(X)
    z = q.rsample((1000,))
    diagonal = dist.Normal(q.transforms[-1].loc, q.transforms[-1].scale).to_event(1)
    assert (q.log_prob(z) - diagonal.log_prob(z)).abs().max() < 0.2


@pytest.mark.parametrize("latent_dim", [2, 40])
@pytest.mark.parametrize("output", [-1e4, 1e4])
def test_is_finite_in_float32_for_any_features(output, latent_dim):
    guide = make(latent_dim, noise=0.1).float()
    guide.encoder.forward = lambda x: torch.full((len(x), 8), output)
    q = guide.posterior(X.float())
    z = q.rsample()
    for value in (z, z.detach() + 1, torch.full_like(z, output)):
        guide.zero_grad()
        log_prob = q.log_prob(value)
        assert torch.isfinite(log_prob).all()
        log_prob.sum().backward(retain_graph=True)
        assert all(torch.isfinite(p.grad).all() for p in guide.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"layers": 0}, "spline_flow: layers must be a whole number from 1 to 1000000, got 0"),
        ({"layers": 1.5}, "spline_flow: layers must be a whole number from 1 to 1000000, got 1.5"),
        ({"hidden": ()}, "spline_flow: hidden must be widths of at least one layer, such as"),
        ({"hidden": 128}, "spline_flow: hidden must be widths of at least one layer, such as"),
        ({"bins": 1}, "spline_flow: bins must be a whole number from 2 to 1000000, got 1"),
        ({"bins": 4.0}, "spline_flow: bins must be a whole number from 2 to 1000000, got 4.0"),
        ({"bound": 0}, "spline_flow: bound must be positive and in [1e-12, 1e+12], got 0"),
        ({"bound": math.inf}, "spline_flow: bound must be positive and in [1e-12, 1e+12], got inf"),
        ({"bound": "4"}, "spline_flow: bound must be a positive number, got '4'"),
    ],
)
def test_bad_arguments_are_refused(options, line):
    with pytest.raises(InputError) as error:
        make(**options)
    assert str(error.value).startswith(line)
