"""The planar guide: its Jacobian, its density where it has one, its caches, its limits."""

import pyro.distributions as dist
import pytest
import torch
from pyro_vae.guides.planar import MARGIN, Planar, _Bend

from pyro_vae.errors import InputError
from pyro_vae.networks import Encoder, mlp

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def make(latent_dim=2, noise=0.4, **options) -> Planar:
    """A guide far from the identity: ``noise`` is added to its flow's parameters."""
    torch.manual_seed(0)
    body, features = mlp(hidden=(8,), activation="tanh").encoder((4,))
    guide = Planar(Encoder(body, (4,), features), latent_dim, **options).double()
    with torch.no_grad():
        for layer in (guide.to_u, guide.to_w, guide.to_b):
            for parameter in layer.parameters():
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
    assert (jacobian.diagonal(dim1=0, dim2=2).movedim(-1, 0).det() > 0).all()


def test_density_is_known_at_its_latest_sample_only():
    guide = make()
    assert not guide.has_density
    q = guide.posterior(X)
    z = q.rsample()
    expected = q.log_prob(z)
    with torch.no_grad():
        assert torch.equal(q.log_prob(z), expected)
    for value in (z.clone(), z.detach(), z + 1):
        with pytest.raises(NotImplementedError, match="latest sample"):
            q.log_prob(value)
    with pytest.raises(NotImplementedError, match="latest sample"):
        guide.posterior(X).log_prob(z)
    q.rsample()
    with pytest.raises(NotImplementedError, match="latest sample"):
        q.log_prob(z)


def test_no_gradient_is_taken_at_a_z_that_recorded_none():
    q = make().posterior(X)
    z = q.sample()
    with torch.no_grad():
        assert torch.isfinite(q.log_prob(z)).all()
    with pytest.raises(NotImplementedError, match="latest sample"):
        q.log_prob(z)


@pytest.mark.parametrize("a", [-60.0, -1.0, -1e-3, 0.0, 1e-3, 5.0])
def test_each_layer_is_invertible(a):
    """w·û > −1 whatever w·u, û = u where w·u ≥ 0, and û → u as w → 0."""
    w = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    u = a * w / 25 + torch.tensor([[0.8, -0.6]], dtype=torch.float64)
    b = torch.tensor([[0.3]], dtype=torch.float64)
    bend = _Bend(u, w, b)
    assert float((w * bend.u).sum()) > -1 + 0.99 * MARGIN
    torch.testing.assert_close((w * bend.u).sum(-1, keepdim=True), bend.slope)
    if a >= 0:
        torch.testing.assert_close(bend.u, u)
    for size in (1e-3, 1e-9, 0.0):
        near = _Bend(u, size * w, b).u
        assert (near - u).norm() <= 10 * size * u.norm() ** 2


def test_starts_near_the_diagonal_normal():
    q = make(noise=0.0).posterior(X)
    z = q.rsample((1000,))
    diagonal = dist.Normal(q.transforms[-1].loc, q.transforms[-1].scale).to_event(1)
    assert (q.log_prob(z) - diagonal.log_prob(z)).abs().max() < 0.2


@pytest.mark.parametrize("latent_dim", [2, 40])
@pytest.mark.parametrize("output", [-1e4, 1e4])
def test_is_finite_in_float32_for_any_features(output, latent_dim):
    guide = make(latent_dim, noise=0.1).float()
    guide.encoder.forward = lambda x: torch.full((len(x), 8), output)
    q = guide.posterior(X.float())
    z = q.rsample((500,))
    log_prob = q.log_prob(z)
    assert torch.isfinite(log_prob).all()
    (log_prob + z.sum(-1)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"layers": 0}, "planar: layers must be a whole number from 1 to 1000000, got 0"),
        ({"layers": 1.5}, "planar: layers must be a whole number from 1 to 1000000, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(options, line):
    with pytest.raises(InputError) as error:
        make(**options)
    assert str(error.value).startswith(line)
