"""The flow prior, each kind: its Jacobian, its density, its draws, its caches."""

import math

import pytest
import torch
from pyro_vae.models.priors.flow import Flow

from pyro_vae.errors import InputError

KINDS = ("affine_coupling", "affine_autoregressive", "spline")
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind, latent_dim=2, noise=0.2, **options) -> Flow:
    """A prior far from N(0, I): ``noise`` is added to its parameters."""
    torch.manual_seed(0)
    prior = Flow(latent_dim, kind, **{"hidden": (8, 8), "bins": 4, **options}).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return prior


def to_noise(prior, z):
    for layer in prior.layers:
        z = layer()(z)
    return z


@every_kind
@pytest.mark.parametrize("latent_dim", [2, 5])
def test_log_determinant_is_that_of_the_jacobian(kind, latent_dim):
    prior = make(kind, latent_dim)
    z = torch.randn(4, latent_dim, dtype=torch.float64)
    for point in z:
        jacobian = torch.autograd.functional.jacobian(lambda v: to_noise(prior, v), point)
        expected = prior().base_dist.log_prob(to_noise(prior, point))
        expected = expected + jacobian.slogdet().logabsdet
        torch.testing.assert_close(prior().log_prob(point), expected)
        assert jacobian.slogdet().logabsdet.abs() > 0.01


@every_kind
def test_inverts(kind):
    """z → ε → z to 1e-9, some z beyond the splines; f is far from the identity."""
    prior = make(kind, latent_dim=5)
    z = 3 * torch.randn(200, 5, dtype=torch.float64)
    noise = to_noise(prior, z)
    back = noise
    for step in prior().transforms:
        back = step(back)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
    assert (noise - z).abs().max() > 0.3


def grid(half=12.0, size=401) -> tuple[torch.Tensor, float]:
    points = torch.linspace(-half, half, size, dtype=torch.float64)
    return torch.cartesian_prod(points, points), 2 * math.log(2 * half / (size - 1))


@every_kind
def test_integrates_to_one(kind):
    z, log_cell = grid()
    with torch.no_grad():
        log_mass = make(kind)().log_prob(z).logsumexp(0) + log_cell
    assert abs(float(log_mass)) < 1e-4


@every_kind
def test_draws_have_the_moments_of_the_density(kind):
    """z, z² and z1 z2 within four standard errors of quadrature, seed 1; they are not N(0, I)'s."""
    prior = make(kind)
    torch.manual_seed(1)
    draws = prior().sample((100_000,))
    z, log_cell = grid()
    with torch.no_grad():
        weight = (prior().log_prob(z) + log_cell).exp()

    def moments(z):
        return torch.cat([z, z**2, z.prod(-1, keepdim=True), z.relu()], dim=-1)

    expected = weight @ moments(z)
    error = moments(draws).std(0) / math.sqrt(len(draws))
    assert ((moments(draws).mean(0) - expected).abs() < 4 * error).all()
    plain = moments(torch.randn_like(draws)).mean(0)
    assert ((plain - expected).abs() > 20 * error).any()


@every_kind
def test_mean_weight_of_a_narrower_normal_is_one(kind):
    """E_p[h/p] = 1 within four standard errors; a 2 % error in log p's constant is seen."""
    prior = make(kind, noise=0.1)
    torch.manual_seed(2)
    with torch.no_grad():
        other, z = prior().sample((20_000,)), prior().sample((100_000,))
        h = torch.distributions.Normal(other.mean(0), other.std(0) / 1.3)
        ratio = (h.log_prob(z).sum(-1) - prior().log_prob(z)).exp()
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert abs(float(ratio.mean()) - 1) < 4 * error
    assert abs(float(ratio.mean()) * math.exp(-0.02) - 1) > 4 * error


@every_kind
def test_log_prob_runs_each_network_once(kind):
    """And a draw runs an autoregressive one ``latent_dim`` times, a coupling once."""
    prior = make(kind, latent_dim=6, layers=3)
    runs = []
    for layer in prior.layers:
        layer.network.layers[0].register_forward_hook(lambda *_: runs.append(1))
    z = torch.randn(7, 6, 5, 6, dtype=torch.float64)
    assert prior().log_prob(z).shape == (7, 6, 5)
    assert len(runs) == 3
    runs.clear()
    p = prior()
    z = p.rsample((4,))
    assert len(runs) == (18 if kind == "affine_autoregressive" else 3)
    p.log_prob(z)
    assert len(runs) == (18 if kind == "affine_autoregressive" else 3)


@every_kind
def test_gradients_match_finite_differences(kind):
    """Of log p(z) by z and by the parameters."""
    prior = make(kind, latent_dim=3)
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    prior().log_prob(z).sum().backward()
    for tensor in (z, *prior.parameters()):
        index = int(tensor.grad.abs().argmax())
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                tensor.view(-1)[index] += step
                values.append(float(prior().log_prob(z).sum()))
                tensor.view(-1)[index] -= step
        slope = (values[0] - values[1]) / 2e-6
        assert float(tensor.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@every_kind
def test_density_is_never_a_stale_one(kind):
    """Same z after a step, after ``no_grad``, and after another draw."""
    prior = make(kind)
    z = torch.randn(5, 2, dtype=torch.float64)
    with torch.no_grad():
        before = prior().log_prob(z)
    assert prior().log_prob(z).requires_grad
    p = prior()
    drawn = p.sample((5,))
    parameters = list(prior.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(p.log_prob(drawn).sum(), parameters),
        torch.autograd.grad(prior().log_prob(drawn.clone()).sum(), parameters),
    )
    with torch.no_grad():
        torch.testing.assert_close(p.log_prob(z), before)
        for parameter in parameters:
            parameter.mul_(1.2)
        after = prior().log_prob(z)
        torch.testing.assert_close(after, prior().log_prob(z.clone()))
        assert not torch.allclose(after, before)


@every_kind
def test_starts_near_the_standard_normal(kind):
    prior = Flow(latent_dim=10, kind=kind)
    z = torch.randn(1000, 10, generator=torch.Generator().manual_seed(3))
    difference = prior().log_prob(z) - prior().base_dist.log_prob(z)
    assert 0 < difference.abs().max() < 0.5


@every_kind
def test_shapes_dtypes_and_saved_state(kind):
    prior = make(kind, latent_dim=3)
    assert prior().batch_shape == ()
    assert prior().event_shape == (3,)
    assert prior().to_event(0).expand((2,)).sample((4,)).shape == (4, 2, 3)
    assert set(prior.state_dict()) == {name for name, _ in prior.named_parameters()}
    other = make(kind, latent_dim=3, noise=0.0)
    other.load_state_dict(prior.state_dict())
    z = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(prior().log_prob(z), other().log_prob(z))
    low = prior.float()
    assert low().sample((2,)).dtype == torch.float32
    torch.testing.assert_close(
        low().log_prob(z.float()).double(), other().log_prob(z), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(NotImplementedError):
        _ = prior().mean


@every_kind
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_is_finite_in_float32_far_out(kind, size):
    prior = make(kind, latent_dim=40).float()
    z = torch.full((2, 40), size, requires_grad=True)
    log_prob = prior().log_prob(z)
    log_prob.sum().backward()
    for tensor in (log_prob, z.grad, *(p.grad for p in prior.parameters())):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kind": "planar"}, "flow: kind must be one of affine_coupling, affine_autoregressive,"),
        ({"latent_dim": 1}, "flow: latent_dim must be at least 2, got 1"),
        ({"layers": 0}, "flow: layers must be a whole number from 1 to 1000000, got 0"),
        ({"hidden": ()}, "flow: hidden must be widths of at least one layer, such as (128,), got"),
        ({"bins": 1}, "flow: bins must be a whole number from 2 to 1000000, got 1"),
        ({"bound": -1.0}, "flow: bound must be positive and in [1e-12, 1e+12], got -1.0"),
    ],
)
def test_bad_arguments_are_refused(options, line):
    with pytest.raises(InputError) as error:
        Flow(**{"latent_dim": 3, **options})
    assert str(error.value).startswith(line)
