"""The mixture prior: matrix products against the broadcast density, samples against both."""

import math
import subprocess
import sys

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro_vae.models.priors._mixture import DiagonalNormalMixture
from pyro_vae.models.priors.mixture import Mixture
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.errors import InputError


def parameters(K, D, sigma=0.5, spread=2.0, dtype=torch.float64, seed=0):
    """Unequal weights, means ~ N(0, spread²), scales between σ and 2σ."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(K, generator=generator, dtype=torch.float64)
    loc = spread * torch.randn(K, D, generator=generator, dtype=torch.float64)
    scale = sigma * (1 + torch.rand(K, D, generator=generator, dtype=torch.float64))
    return tuple(tensor.to(dtype) for tensor in (logits, loc, scale))


def reference(logits, loc, scale, z):
    """log Σ_k w_k N(z; μ_k, σ_k²) in float64, every component by itself."""
    logits, loc, scale, z = (tensor.double() for tensor in (logits, loc, scale, z))
    squares = ((z[..., None, :] - loc) / scale) ** 2
    log_normal = -0.5 * (squares + torch.log(2 * math.pi * scale**2)).sum(-1)
    return (logits.log_softmax(-1) + log_normal).logsumexp(-1)


def test_integrates_to_one():
    p = DiagonalNormalMixture(*parameters(K=3, D=2))
    grid = torch.linspace(-12, 12, 601, dtype=torch.float64)
    log_prob = p.log_prob(torch.cartesian_prod(grid, grid))
    assert abs(float(log_prob.logsumexp(0)) + 2 * math.log(24 / 600)) < 1e-9


@pytest.mark.parametrize("shape", [(), (1,), (4,), (7, 6, 5)])
def test_density_is_the_broadcast_one_at_any_shape(shape):
    given = parameters(K=5, D=3)
    z = 2 * torch.randn(*shape, 3, generator=torch.Generator().manual_seed(1)).double()
    got = DiagonalNormalMixture(*given).log_prob(z)
    assert got.shape == shape
    torch.testing.assert_close(got, reference(*given, z), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_broadcast_density():
    leaves = [*parameters(K=4, D=3), torch.randn(6, 3, dtype=torch.float64)]
    for leaf in leaves:
        leaf.requires_grad_()
    *given, z = leaves
    weight = torch.arange(1.0, 7.0).double()
    got = torch.autograd.grad((weight * DiagonalNormalMixture(*given).log_prob(z)).sum(), leaves)
    expected = torch.autograd.grad((weight * reference(*given, z)).sum(), leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_float32_is_as_good_as_float64_at_sharp_components():
    """σ = 0.01, |μ| = 5: expanded in float32, the terms of 2.5·10⁵ would err by nats."""
    logits, loc, scale = parameters(K=50, D=40, sigma=0.01, dtype=torch.float32)
    loc = 5 * loc.sign()
    generator = torch.Generator().manual_seed(2)
    z = loc[:, None] + scale[:, None] * torch.randn(50, 20, 40, generator=generator)
    far = loc[:10, None] + 3 * torch.randn(10, 20, 40, generator=generator)
    leaves = [tensor.requires_grad_() for tensor in (logits, loc, scale)]
    for points in (z.detach(), far.detach()):
        got = DiagonalNormalMixture(*leaves).log_prob(points)
        expected = reference(*leaves, points)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=2e-5)
        gradients = torch.autograd.grad(got.mean(), leaves)
        for a, b in zip(gradients, torch.autograd.grad(expected.mean(), leaves), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_float32_stays_finite_at_extremes():
    for raw in (-1e4, 1e4):
        prior = Mixture(latent_dim=2, components=3)
        torch.nn.init.constant_(prior.raw_scale, raw)
        torch.nn.init.constant_(prior.logits[:1], raw)
        z = torch.tensor([[-1e4, 1e4], [0.0, 1.0]], requires_grad=True)
        log_prob = prior().log_prob(z)
        assert torch.isfinite(log_prob).all()
        log_prob.sum().backward()
        for tensor in (z, *prior.parameters()):
            assert torch.isfinite(tensor.grad).all()


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation makes, in numbers."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_no_tensor_has_every_component_of_every_coordinate():
    """N·K at most, in the forward pass and in the backward pass; the broadcast makes N·K·D."""
    N, K, D = 200, 50, 10
    given = [tensor.requires_grad_() for tensor in parameters(K, D)]
    z = torch.zeros(N, D, dtype=torch.float64, requires_grad=True)
    with Largest() as largest:
        DiagonalNormalMixture(*given).log_prob(z).sum().backward()
    assert largest.size == N * K
    with Largest() as largest:
        reference(*given, z)
    assert largest.size == N * K * D


def test_components_are_drawn_by_their_weights():
    """χ² over the counts, false alarm 1e-4, seed 3; the first draws are not in order."""
    weights = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]).double()
    loc = 100.0 * torch.arange(5).double()[:, None]
    p = DiagonalNormalMixture(weights.log() + 3, loc, torch.ones_like(loc))
    torch.manual_seed(3)
    k = (p.sample((20_000,)) / 100).round().long().flatten()
    assert scipy.stats.chisquare(k.bincount(minlength=5), 20_000 * weights).pvalue > 1e-4
    assert k[:20].sort().values.tolist() != k[:20].tolist()


def test_samples_have_the_density():
    """The probability integral transform of each coordinate's mixture, false alarm 1e-4, seed 4."""
    logits, loc, scale = parameters(K=4, D=3, dtype=torch.float32)
    torch.manual_seed(4)
    z = DiagonalNormalMixture(logits, loc, scale).sample((20_000,))
    for d in range(3):
        u = dist.Normal(loc[:, d], scale[:, d]).cdf(z[:, d, None]) @ logits.softmax(-1)
        assert scipy.stats.kstest(u.numpy(), "uniform").pvalue > 1e-4


def test_samples_keep_the_correlations_between_coordinates():
    """E log p(z), which knows of whole components, is its quadrature to four errors, seed 5."""
    p = DiagonalNormalMixture(*parameters(K=3, D=2, sigma=0.2))
    grid = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    log_prob = p.log_prob(torch.cartesian_prod(grid, grid))
    expected = (log_prob.exp() * log_prob).sum() * (24 / 1200) ** 2
    torch.manual_seed(5)
    draws = p.log_prob(p.sample((40_000,)))
    assert abs(float(draws.mean() - expected)) < 4 * float(draws.std()) / 200


def test_mean_and_variance_are_those_of_the_density():
    p = DiagonalNormalMixture(*parameters(K=3, D=1))
    z = torch.linspace(-15, 15, 30_001, dtype=torch.float64)[:, None]
    density = p.log_prob(z).exp()
    mean = torch.trapezoid(density * z[:, 0], dx=1e-3)
    variance = torch.trapezoid(density * (z[:, 0] - mean) ** 2, dx=1e-3)
    torch.testing.assert_close(p.mean[0], mean)
    torch.testing.assert_close(p.variance[0], variance)


def test_expands_to_a_batch():
    p = DiagonalNormalMixture(*parameters(K=3, D=2))
    q = p.expand((4,))
    assert (q.batch_shape, q.event_shape) == ((4,), (2,))
    torch.manual_seed(6)
    z = q.sample((5,))
    assert z.shape == (5, 4, 2)
    assert len(z.flatten(0, 1).unique(dim=0)) == 20
    torch.testing.assert_close(q.log_prob(z), p.log_prob(z))
    assert q.log_prob(z[0, 0]).shape == (4,)
    assert q.mean.shape == q.variance.shape == (4, 2)
    torch.testing.assert_close(q.to_event(1).log_prob(z), p.log_prob(z).sum(-1))


def test_starts_with_different_components_of_equal_weight():
    torch.manual_seed(0)
    p = Mixture(latent_dim=3, components=200)()
    assert len(p.loc.unique(dim=0)) == 200
    assert abs(float(p.loc.mean().detach())) < 4 / math.sqrt(600)
    assert abs(float(p.loc.var().detach()) - 1) < 4 * math.sqrt(2 / 600)
    torch.testing.assert_close(p.scale.detach(), torch.ones(200, 3))
    torch.testing.assert_close(p.logits.softmax(-1).detach(), torch.full((200,), 1 / 200))


def test_learned_scales_stay_above_the_floor():
    prior = Mixture(latent_dim=2, components=3, floor=0.25)
    torch.nn.init.constant_(prior.raw_scale, -1e4)
    assert float(prior().scale.min().detach()) == 0.25


@pytest.mark.parametrize(
    ("options", "name"),
    [({"components": 0}, "components"), ({"components": 2.5}, "components"),
     ({"components": True}, "components"), ({"floor": 0.0}, "floor"), ({"floor": 1.0}, "floor"),
     ({"floor": math.nan}, "floor")],
)  # fmt: skip
def test_bad_arguments(options, name):
    with pytest.raises(InputError, match=f"mixture: {name}"):
        Mixture(latent_dim=2, **options)


@pytest.mark.slow
def test_a_million_z_under_500_components_stay_below_a_gigabyte():
    """40 dimensions, in the evaluator's chunks; the peak beyond inputs and outputs."""
    program = """
import resource, torch
from pyro_vae.models.priors.mixture import Mixture
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
p = Mixture(latent_dim=40, components=500).requires_grad_(False)()
z, out = torch.randn(1_000_000, 40), torch.zeros(1_000_000)
before = peak()
for start in range(0, 1_000_000, 12_800):
    out[start : start + 12_800] = p.log_prob(z[start : start + 12_800])
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(run.stdout) < 2**30
