"""The Laplace likelihood: b is the mean absolute deviation, in all three modes of the scale."""

import math

import numpy as np
import pytest
import torch
from pyro_vae.models.likelihoods.laplace import Laplace
from pyro_vae.models.likelihoods.normal import Normal
from pyro_vae.models.likelihoods.student_t import StudentT
from scipy import stats

from pyro_vae.errors import InputError
from pyro_vae.links import inverse_positive, positive

MODES = [0.3, "learned", "per_pixel"]


def make(scale, **kwargs):
    return Laplace(scale=scale, **kwargs).double()


@pytest.mark.parametrize("scale", [*MODES, 1e-6])
@pytest.mark.parametrize("output", [-30.0, 0.0, 2.0])
def test_integrates_to_one(scale, output):
    """By Gauss and Legendre in (x − μ)/b, on panels that meet at the kink."""
    likelihood = make(scale)
    p = likelihood(torch.full((1, likelihood.params_per_dim), output, dtype=torch.float64))
    b = float(p.scale.detach())
    edges = np.linspace(-40, 40, 21)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    x = output + b * (edges[:-1, None] + 2 * (nodes + 1))
    density = p.log_prob(torch.from_numpy(x)).exp().detach().numpy()
    assert float((2 * b * weights * density).sum()) == pytest.approx(1, abs=1e-9 / b**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_is_b(dtype):
    x = torch.tensor([-2.0, 0.2, 0.7, 5.0], dtype=dtype)
    p = Laplace(scale=0.3)(torch.full((4, 1), 0.2, dtype=dtype))
    expected = stats.laplace(loc=0.2, scale=0.3).logpdf(x.numpy().astype(float))
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-6 if dtype == torch.float32 else 0,
                               atol=1e-6 if dtype == torch.float32 else 1e-13)  # fmt: skip


def test_samples_follow_the_density():
    """Kolmogorov and Smirnov, 20,000 draws, seed 0; false alarms at 1e-5."""
    torch.manual_seed(0)
    x = make(0.3)(torch.full((1, 1), 0.2).double()).sample((20_000,)).squeeze(-1)
    assert stats.kstest(x.numpy(), stats.laplace(loc=0.2, scale=0.3).cdf).pvalue > 1e-5


def test_gradients_are_differences():
    likelihood = make("per_pixel")
    params = torch.tensor([[0.3, -1.0], [-2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.1, 0.4], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: likelihood(r).log_prob(x), params)


def test_learned_is_one_scale_for_all_dimensions():
    likelihood = make("learned")
    assert likelihood.params_per_dim == 1
    p = likelihood(torch.zeros(4, 5, 1).double())
    assert p.scale.unique().numel() == 1
    assert float(p.scale[0, 0].detach()) == pytest.approx(0.25)
    p.log_prob(torch.ones(4, 5)).sum().backward()
    assert likelihood.raw_scale.grad != 0


def test_per_pixel_takes_location_and_scale_from_the_decoder():
    likelihood = make("per_pixel", floor=0.01)
    params = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    p = likelihood(params)
    torch.testing.assert_close(p.mean, params[..., 0])
    torch.testing.assert_close(p.scale, 0.01 + torch.log1p(params[..., 1].exp()))


@pytest.mark.parametrize(("num_levels", "floor"), [(256, 0.1 / 256), (17, 0.1 / 17), (None, 1e-3)])
def test_learned_scales_stay_above_a_tenth_of_a_level(num_levels, floor):
    p = make("per_pixel", num_levels=num_levels)(torch.full((1, 2), -1e4).double())
    assert float(p.scale) == pytest.approx(floor)


@pytest.mark.parametrize("scale", MODES)
def test_float32_stays_finite_at_large_outputs(scale):
    likelihood = Laplace(scale=scale, num_levels=256)
    for output in (-1e4, 1e4):
        params = torch.full((5, likelihood.params_per_dim), output, requires_grad=True)
        log_prob = likelihood(params).log_prob(torch.tensor([0, 1e-3, 0.5, 1 - 2.0**-21, 1]))
        assert torch.isfinite(log_prob).all()
        log_prob.sum().backward()
        assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("scale", MODES)
def test_params_at_the_mean(scale):
    likelihood = make(scale)
    mean = torch.tensor([[0.0, 0.3], [0.5, 1.0]]).double()
    p = likelihood(likelihood.params_at(mean))
    torch.testing.assert_close(p.mean, mean)
    assert float(p.scale.detach().max()) == pytest.approx(0.3 if scale == 0.3 else 0.25)


@pytest.mark.parametrize("component", [Laplace, Normal, StudentT])
def test_only_a_learned_scale_is_a_parameter(component):
    assert set(component(scale="learned").state_dict()) == {"raw_scale"}
    assert not component(scale="per_pixel").state_dict()
    assert not component(scale=0.5).state_dict()
    learns = [component(scale=scale).learns_scale for scale in MODES]
    assert learns == [False, True, True]


@pytest.mark.parametrize("component", [Laplace, Normal, StudentT])
@pytest.mark.parametrize("unit", [7e-5, 0.7, 7e7])
def test_a_learned_scale_starts_at_the_datas_and_steps_in_proportion(component, unit):
    """A step of 0.01 in raw moves log σ by the same whatever the data's unit."""
    likelihood = component(scale="learned", data_scale=unit).double()
    params = torch.zeros(1, 3, 1).double()

    def scale():
        return float(likelihood.loc_and_scale(params)[1].detach())

    with torch.no_grad():
        before = scale()
        likelihood.raw_scale += 0.01
        after = scale()
    assert before == pytest.approx(unit, rel=1e-5)
    assert math.log(after / before) == pytest.approx(0.01 * (1 - math.exp(-1)), rel=2e-2)
    likelihood.raw_scale.data.fill_(-1e4)
    assert scale() == pytest.approx(1e-3 * unit, rel=1e-5)
    per_pixel = component(scale="per_pixel", data_scale=unit)
    start = per_pixel.loc_and_scale(per_pixel.params_at(torch.zeros(2)))[1]
    torch.testing.assert_close(start, torch.full((2,), unit))


@pytest.mark.parametrize("component", [Laplace, Normal, StudentT])
def test_levels_start_at_a_quarter_of_their_range(component):
    likelihood = component(scale="learned", num_levels=256)
    floor = 0.1 / 256
    assert torch.equal(likelihood.raw_scale, inverse_positive(torch.tensor(0.25), floor))
    raw = torch.linspace(-20, 20, 82).view(41, 2)
    per_pixel = component(scale="per_pixel", num_levels=256)
    assert torch.equal(per_pixel.loc_and_scale(raw)[1], positive(raw[:, 1], floor))


@pytest.mark.parametrize(
    "arguments",
    [{"scale": 0.0}, {"scale": -1.0}, {"scale": math.inf}, {"scale": "learn"}, {"scale": None},
     {"scale": True}, {"scale": (1.0,)}, {"scale": math.nan}, {"floor": 0.0}, {"floor": -1.0},
     {"floor": math.nan}, {"floor": "small"}, {"floor": 1e39}, {"floor": True},
     {"scale": 1e39}, {"scale": 1e-50}, {"scale": 10**400}],
)  # fmt: skip
def test_bad_arguments(arguments):
    with pytest.raises(InputError, match=r"^laplace: .*got"):
        Laplace(**arguments)
