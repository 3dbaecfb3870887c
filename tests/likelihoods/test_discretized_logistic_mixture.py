"""Mixture of discretized logistics: one component is the discretized logistic, K sum to one."""

import pytest
import torch
from pyro_vae.models.likelihoods.discretized_logistic import DiscretizedLogistic
from pyro_vae.models.likelihoods.discretized_logistic_mixture import DiscretizedLogisticMixture
from scipy import stats

from pyro_vae.errors import InputError


def draw(scale, size, dim, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(size, dim, generator=generator, dtype=dtype)


def log_masses(p, n):
    """log P at every level, ``[n, *batch_shape]``."""
    x = torch.arange(n, dtype=p.mean.dtype)
    return p.log_prob(x.view(-1, *[1] * len(p.batch_shape)))


@pytest.mark.parametrize("n", [2, 17, 256])
@pytest.mark.parametrize("components", [1, 5])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_masses_sum_to_one(n, components, scale):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        likelihood = DiscretizedLogisticMixture(n, components).to(dtype)
        p = likelihood(draw(scale, 50, 3 * components, dtype))
        assert ((log_masses(p, n).exp().sum(0) - 1).abs() < tolerance).all()


@pytest.mark.parametrize("n", [2, 17, 256])
def test_mass_is_the_weighted_sum_of_its_components(n):
    """Σ_k w_k P_k, P_k a discretized logistic at (k − ½)/3 + output."""
    params = draw(1.0, 8, 9)
    logits, loc, raw_scale = params.chunk(3, dim=-1)
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = torch.zeros(n, 8, dtype=torch.float64)
    for k, start in enumerate((1 / 6, 3 / 6, 5 / 6)):
        part = DiscretizedLogistic(n)(torch.stack([loc[:, k] + start, raw_scale[:, k]], dim=-1))
        expected += weights[:, k] * log_masses(part, n).exp()
    got = log_masses(DiscretizedLogisticMixture(n, components=3)(params), n).exp()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-9)


def test_one_component_is_the_discretized_logistic():
    params = draw(1.0, 8, 3)
    p = DiscretizedLogisticMixture(17, components=1)(params)
    q = DiscretizedLogistic(17)(torch.stack([params[:, 1] + 0.5, params[:, 2]], dim=-1))
    torch.testing.assert_close(log_masses(p, 17), log_masses(q, 17))


def test_mean_and_variance_by_enumeration():
    p = DiscretizedLogisticMixture(17).double()(draw(2.0, 20, 15))
    mass, x = log_masses(p, 17).exp(), torch.arange(17).double().unsqueeze(-1)
    mean = (mass * x).sum(0)
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, (mass * x**2).sum(0) - mean**2)


def test_components_start_apart():
    """At outputs of 0 and small scales there are K modes, at (k − ½)/K of the interval."""
    params = torch.cat([torch.zeros(1, 10), torch.full((1, 5), -6.0)], dim=-1).double()
    mass = log_masses(DiscretizedLogisticMixture(256).double()(params), 256).exp().squeeze()
    peaks = (mass[1:-1] > mass[:-2]) & (mass[1:-1] >= mass[2:])
    found = (peaks.nonzero().squeeze() + 1) / 255
    assert found.tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=1 / 255)


def test_samples_have_the_masses():
    """χ² of 8 mixtures at false-alarm rate 1e-6 each, seed 0; rare levels are pooled."""
    torch.manual_seed(0)
    p = DiscretizedLogisticMixture(17, components=3)(draw(1.5, 8, 9, torch.float32))
    draws = p.sample((50_000,))
    assert draws.dtype == torch.float32
    for i in range(8):
        counts = torch.bincount(draws[:, i].long(), minlength=17).double()
        expected = 50_000 * log_masses(p, 17)[:, i].exp().double()
        rare = expected < 5
        counts = torch.cat([counts[~rare], counts[rare].sum().view(1)])
        expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
        statistic = float(((counts - expected) ** 2 / expected.clamp(min=1)).sum())
        assert statistic < stats.chi2.isf(1e-6, len(counts) - 1)


def test_float32_stays_finite_at_large_outputs():
    """Logits, locations and scales at ±1e4, in all combinations, mixed over components."""
    ends = torch.tensor([-1e4, 0.0, 1e4])
    params = torch.cartesian_prod(*[ends] * 6).unsqueeze(1).expand(-1, 3, -1)
    params = params.clone().requires_grad_()
    p = DiscretizedLogisticMixture(256, components=2)(params)
    log_prob = p.log_prob(torch.tensor([0.0, 128.0, 255.0]))
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(params.grad).all()
    assert p.support.check(p.sample()).all()


def test_gradient_against_finite_differences():
    likelihood = DiscretizedLogisticMixture(17, components=2).double()
    params, x = draw(1.0, 4, 6).requires_grad_(), torch.tensor([0.0, 7.0, 15.0, 16.0]).double()
    assert torch.autograd.gradcheck(lambda params: likelihood(params).log_prob(x), params)


@pytest.mark.parametrize("n", [2, 17, 256])
@pytest.mark.parametrize("components", [1, 5])
def test_params_at_the_mean(n, components):
    likelihood = DiscretizedLogisticMixture(n, components).double()
    unit = torch.tensor([[0.0, 0.3, 0.5], [0.7, 0.9, 1.0]], dtype=torch.float64)
    params = likelihood.params_at(unit * (n - 1))
    assert params.shape == (2, 3, 3 * components)
    mean = likelihood(params).mean
    torch.testing.assert_close(mean, unit.clamp(0.01, 0.99) * (n - 1), rtol=1e-9, atol=1e-9)


def test_shapes():
    p = DiscretizedLogisticMixture(5, components=2)(torch.zeros(7, 3, 6))
    assert (p.batch_shape, p.event_shape) == ((7, 3), ())
    assert p.to_event(1).expand((2, 7)).sample((4,)).shape == (4, 2, 7, 3)
    assert p.log_prob(torch.zeros(4, 7, 3)).shape == (4, 7, 3)
    assert p.expand((6, 7, 3)).mean.shape == p.expand((6, 7, 3)).variance.shape == (6, 7, 3)


def test_params_at_the_mean_of_many_levels_is_within_half_a_level():
    likelihood = DiscretizedLogisticMixture(65_536, components=2)
    unit = torch.linspace(0.02, 0.98, 5)
    params = likelihood.params_at(unit * 65_535).double()
    mean = likelihood.double()(params).mean
    torch.testing.assert_close(mean, unit.double() * 65_535, rtol=0, atol=0.55)


def test_the_grid_is_not_saved():
    assert not DiscretizedLogisticMixture(5).state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_levels": None}, "needs data with levels, such as values=levels"),
     ({"num_levels": 1}, "num_levels must be an integer above 1, got 1"),
     ({"components": 0}, "components must be a whole number from 1 to 1000, got 0"),
     ({"components": 2.5}, "components must be a whole number from 1 to 1000, got 2.5")],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=f"^discretized_logistic_mixture: {message}$"):
        DiscretizedLogisticMixture(**{"num_levels": 256} | arguments)
