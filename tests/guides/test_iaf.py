"""The inverse autoregressive guide: its Jacobian, its density, its caches, its limits."""

import pytest
import torch
from pyro_vae.guides.iaf import IAF

from pyro_vae.errors import InputError
from pyro_vae.networks import Encoder, mlp

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def make(latent_dim=2, noise=0.4, **options) -> IAF:
    """A guide far from the identity: ``noise`` is added to its flow's parameters."""
    torch.manual_seed(0)
    body, features = mlp(hidden=(8,), activation="tanh").encoder((4,))
    options = {"hidden": (8, 8), **options}
    guide = IAF(Encoder(body, (4,), features), latent_dim, **options).double()
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
    """z₀ → z → z₀ to 1e-9, and the steps are far from the identity."""
    guide = make(latent_dim=5, layers=3)
    z0 = torch.randn(7, 3, 5, dtype=torch.float64)
    z = through(guide.posterior(X), z0)
    back = z
    for step in reversed(guide.posterior(X).transforms):
        back = step.inv(back)
    torch.testing.assert_close(back, z0, rtol=0, atol=1e-9)
    assert (z - z0).abs().max() > 0.5


def test_a_dimension_depends_on_those_before_it_and_on_x():
    layer = make(latent_dim=4, layers=2).layers[1]
    features = torch.randn(3, 8, dtype=torch.float64)
    z = torch.randn(3, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: layer.network.at(features)(v).sum(0), z
    ).sum(2)  # [D, P, D]: of the parameters of d to z_e, here in reversed order
    sees = (jacobian.abs().sum(1) > 0).long()
    assert torch.equal(sees, torch.ones(4, 4).triu(1).long())
    params = layer.network.at(features)(z * 0)
    assert ((params[0] - params[1]).abs() > 1e-3).all()


def test_integrates_to_one():
    """By quadrature on a grid of 401² points around each datum's samples."""
    q = make().posterior(X)
    draws = q.sample((4000,))
    centre, half = draws.mean(0), 14 * draws.std(0)
    grid = torch.linspace(-1, 1, 401, dtype=torch.float64)
    z = centre + half * torch.cartesian_prod(grid, grid).unsqueeze(1)
    with torch.no_grad():
        log_mass = q.log_prob(z).logsumexp(0) + (half / 200).log().sum(-1)
    torch.testing.assert_close(log_mass, torch.zeros_like(log_mass), rtol=0, atol=1e-5)


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
    assert (q.log_prob(z) - q.base_dist.log_prob(z)).abs().max() < 0.2


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
        ({"layers": 0}, "iaf: layers must be a whole number from 1 to 1000000, got 0"),
        ({"layers": 1.5}, "iaf: layers must be a whole number from 1 to 1000000, got 1.5"),
        ({"hidden": ()}, "iaf: hidden must be widths of at least one layer, such as"),
        ({"hidden": 128}, "iaf: hidden must be widths of at least one layer, such as"),
        ({"hidden": (8, 0)}, "iaf: hidden must be widths of at least one layer, such as"),
    ],
)
def test_bad_arguments_are_refused(options, line):
    with pytest.raises(InputError) as error:
        make(**options)
    assert str(error.value).startswith(line)
