"""Hamiltonian Monte Carlo: what it leaves invariant, what it conserves, what it learns."""

import math

import pytest
import torch
from torch import Tensor

from pyro_vae.evaluation._hmc import Kernel, Noise, Point, leapfrog, pilot, transition


def density_of(log_start, log_end=None):
    """The density function of two log-densities of z ``[S, B, D]``."""
    log_end = log_end or log_start

    def density(z: Tensor) -> Point:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            values = [f(z) for f in (log_start, log_end)]
            grads = [torch.autograd.grad(v.sum(), z)[0].nan_to_num(0.0) for v in values]
        return Point(z.detach(), *(v.detach() for v in values), *grads)

    return density


def log_normal(loc, scale):
    """log N(z; loc, scale²), dimensions added, without its constant."""
    return lambda z: -0.5 * ((z - loc) / scale).square().sum(-1)


def draws(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def run(density, z: Tensor, beta: float, step: float, num: int, seed: int, num_leapfrog: int = 3):
    """Chains of ``num`` transitions from z, and the mean acceptance of the last."""
    noise = Noise(seed, z.shape, z.device)
    point, steps = density(z), torch.full(z.shape[1:], step, dtype=torch.float64)
    for _ in range(num):
        point, acceptance = transition(density, point, beta, steps, num_leapfrog, noise)
    return point.z, float(acceptance.mean())


def assert_means(values: Tensor, exact: Tensor | list[float]) -> None:
    """The means over the first dimension lie within four standard errors of the exact ones."""
    exact = torch.as_tensor(exact, dtype=torch.float64)
    error = values.std(dim=0) / math.sqrt(len(values))
    assert ((values.mean(dim=0) - exact).abs() < 4 * error).all(), (values.mean(dim=0), exact)


CORRELATED = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)


def test_correlated_normal_is_left_invariant():
    """20,000 exact draws, seed 0, after ten transitions of acceptance 0.5 to 0.8, seed 1."""
    precision = torch.linalg.inv(CORRELATED)
    density = density_of(lambda z: -0.5 * (z @ precision * z).sum(-1))
    z = draws(20_000, 1, 2, seed=0) @ torch.linalg.cholesky(CORRELATED).T
    z, acceptance = run(density, z, 1.0, step=0.75, num=10, seed=1)
    assert 0.5 < acceptance < 0.8
    x, y = z[:, 0, 0], z[:, 0, 1]
    moments = torch.stack([x, y, x * x, y * y, x * y, x**4, x * x * y * y], dim=-1)
    assert_means(moments, [0, 0, 1, 1, 0.8, 3, 1 + 2 * 0.8**2])


def test_a_density_between_the_two_ends_is_left_invariant():
    """π_β ∝ N(0, 1)^{0.7} N(2, ½²)^{0.3} = N(1.2/0.95, 1/1.9), seeds 2 and 3."""
    density = density_of(log_normal(0.0, 1.0), log_normal(2.0, 0.5))
    precision = 0.7 + 0.3 * 4
    loc, scale = 0.3 * 4 * 2 / precision, precision**-0.5
    z = loc + scale * draws(20_000, 1, 1, seed=2)
    z, acceptance = run(density, z, 0.3, step=1.0, num=10, seed=3, num_leapfrog=2)
    assert 0.6 < acceptance < 0.99
    z = (z.squeeze(-1) - loc) / scale
    assert_means(torch.cat([z, z**2, z**3, z**4], dim=-1), [0, 1, 0, 3])


def test_two_unequal_modes_are_left_invariant():
    """0.3 N(−1, 0.4²) + 0.7 N(1.5, 0.6²); 20,000 exact draws after ten transitions, seeds 4, 5."""
    weight = torch.tensor([0.3, 0.7], dtype=torch.float64)
    loc = torch.tensor([-1.0, 1.5], dtype=torch.float64)
    scale = torch.tensor([0.4, 0.6], dtype=torch.float64)
    parts = torch.distributions.Normal(loc, scale)
    density = density_of(lambda z: (weight.log() + parts.log_prob(z)).logsumexp(-1))
    which = (draws(20_000, seed=4).abs() < 1.0364333894937898).long()  # P(|z| < q) = 0.7
    z = loc[which] + scale[which] * draws(20_000, seed=6)
    z, acceptance = run(density, z.reshape(-1, 1, 1), 1.0, step=0.7, num=10, seed=5)
    assert 0.5 < acceptance < 0.95
    z = z.squeeze(-1)
    mean = weight @ loc
    second = weight @ (loc**2 + scale**2)
    third = weight @ (loc**3 + 3 * loc * scale**2)
    assert_means(
        torch.cat([(z < 0.2).double(), z, z**2, z**3], dim=-1),
        [float(weight @ parts.cdf(torch.tensor(0.2).double())), mean, second, third],
    )


def test_a_bounded_support_is_left_invariant():
    """The exponential density on z > 0: half of the trajectories leave it, and are rejected."""

    def log_exponential(z: Tensor) -> Tensor:
        return torch.where(z[..., 0] > 0, -z[..., 0], -math.inf)

    uniform = torch.rand(20_000, 1, 1, generator=torch.Generator().manual_seed(7)).double()
    z = -torch.log1p(-uniform)
    z, acceptance = run(density_of(log_exponential), z, 1.0, step=0.8, num=10, seed=8)
    assert acceptance < 0.95
    assert (z > 0).all()
    z = z.squeeze(-1)
    assert_means(torch.cat([z, z**2, z**3], dim=-1), [1, 2, 6])


def test_a_trajectory_that_ends_in_nan_is_rejected():
    def broken(z: Tensor) -> Tensor:
        log_prob = -0.5 * z.square().sum(-1)
        return torch.where(z[..., 0] > 0.5, math.nan, log_prob)

    start = -draws(500, 1, 1, seed=9).abs()
    z, acceptance = run(density_of(broken), start, 1.0, step=0.5, num=5, seed=10)
    assert (z <= 0.5).all()
    assert 0 < acceptance < 1
    assert (z != start).any()


def test_leapfrog_is_reversible():
    """Back from the end, with the momentum turned round, it comes to where it started."""
    density = density_of(lambda z: -(z**4).sum(-1) + z[..., 0] * z[..., 1])
    start = density(draws(30, 2, 2, seed=11))
    momentum, step = draws(30, 2, 2, seed=12), torch.full((30, 2, 1), 0.2).double()
    end, final = leapfrog(density, start, 0.6, momentum, step, 7)
    assert (end.z - start.z).abs().mean() > 0.3
    back, returned = leapfrog(density, end, 0.6, -final, step, 7)
    torch.testing.assert_close(back.z, start.z, rtol=0, atol=1e-8)
    torch.testing.assert_close(returned, -momentum, rtol=0, atol=1e-8)


def test_energy_is_conserved_to_second_order():
    """Half the step, four times less error: the full steps begin and end with a half one."""
    density = density_of(lambda z: -torch.log1p(z.square()).sum(-1) - z.square().sum(-1))
    start, momentum = density(draws(200, 1, 2, seed=13)), draws(200, 1, 2, seed=14)

    def error(step: float, num: int) -> float:
        size = torch.full((200, 1, 1), step, dtype=torch.float64)
        end, final = leapfrog(density, start, 1.0, momentum, size, num)
        before = start.log_end - 0.5 * momentum.square().sum(-1)
        after = end.log_end - 0.5 * final.square().sum(-1)
        return float((after - before).abs().mean())

    assert error(0.05, 20) < 0.01
    assert 3.8 < error(0.05, 20) / error(0.025, 40) < 4.2


def test_one_evaluation_a_leapfrog_step():
    calls = []
    inner = density_of(log_normal(0.0, 1.0))

    def density(z: Tensor) -> Point:
        calls.append(z.shape)
        return inner(z)

    run(density, draws(4, 2, 3, seed=15), 1.0, step=0.5, num=6, seed=16, num_leapfrog=5)
    assert len(calls) == 1 + 6 * 5


def test_the_pilot_finds_the_scale_of_every_datum_along_the_path():
    """From N(0, 1) to N(0, s²) in four dimensions, s a datum: ε follows π_β's sd, seed 17."""
    scales = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64)
    density = density_of(log_normal(0.0, 1.0), log_normal(0.0, scales.reshape(4, 1)))
    z = draws(8, 4, 4, seed=17)
    kernel = pilot(density, density(z), lambda place: place, 5, Noise(18, z.shape, z.device))
    assert kernel.log_step.shape[1:] == (4, 4)
    for place in (0.0, 0.3, 1.0):
        scale = ((1 - place) + place / scales**2) ** -0.5
        relative = kernel.step(place) / scale.unsqueeze(-1)
        assert (relative > 0.4).all(), relative
        assert (relative < 3.0).all(), relative
        z = scale.unsqueeze(-1) * draws(400, 4, 4, seed=19)
        noise = Noise(20, z.shape, z.device)
        _, acceptance = transition(density, density(z), place, kernel.step(place), 5, noise)
        assert ((acceptance.mean(dim=0) > 0.6) & (acceptance.mean(dim=0) < 0.9)).all()


def test_the_pilot_finds_the_scale_of_every_dimension():
    """From N(0, I) to sds of 0.01, 0.1 and 1, seed 21: each step within a factor of three."""
    scales = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)
    density = density_of(log_normal(0.0, 1.0), log_normal(0.0, scales))
    z = draws(8, 5, 3, seed=21)
    kernel = pilot(density, density(z), lambda place: place, 3, Noise(22, z.shape, z.device))
    relative = kernel.step(1.0) / scales
    assert (relative > 1 / 3).all(), relative
    assert (relative < 3).all(), relative


def test_step_sizes_between_the_knots():
    kernel = Kernel(torch.tensor([[[0.0]], [[2.0]], [[3.0]]], dtype=torch.float64), 1)
    for place, expected in ((0.0, 0.0), (0.25, 1.0), (0.5, 2.0), (0.75, 2.5), (1.0, 3.0)):
        assert float(kernel.step(place).log()) == pytest.approx(expected, abs=1e-12)
