"""The normal likelihood: a scale is a standard deviation, in all three modes."""

import math

import pytest
import torch
from pyro_vae.models.likelihoods.normal import Normal

from pyro_vae.errors import InputError

MODES = [0.3, "learned", "per_pixel"]


def make(scale, **kwargs):
    return Normal(scale=scale, **kwargs).double()


@pytest.mark.parametrize("scale", MODES)
@pytest.mark.parametrize("output", [-3.0, 0.0, 2.0])
def test_integrates_to_one(scale, output):
    likelihood = make(scale)
    params = torch.full((1, likelihood.params_per_dim), output, dtype=torch.float64)
    p = likelihood(params)
    sd = float(p.stddev.detach())
    x = torch.linspace(output - 12 * sd, output + 12 * sd, 20_001, dtype=torch.float64)
    total = p.log_prob(x).detach().logsumexp(0) + math.log(24 * sd / 20_000)
    assert abs(float(total)) < 1e-9


def test_a_number_is_the_standard_deviation():
    """log p = −½ ((x − μ)/σ)² − log σ − ½ log 2π, σ = 0.3."""
    p = make(0.3)(torch.tensor([[0.2]], dtype=torch.float64))
    expected = -0.5 * (0.5 / 0.3) ** 2 - math.log(0.3) - 0.5 * math.log(2 * math.pi)
    assert float(p.log_prob(torch.tensor([0.7]).double())) == pytest.approx(expected, rel=1e-6)


def test_learned_is_one_scale_for_all_dimensions():
    likelihood = make("learned")
    assert likelihood.params_per_dim == 1
    (parameter,) = likelihood.parameters()
    assert parameter.numel() == 1
    p = likelihood(torch.zeros(4, 5, 1).double())
    assert p.stddev.unique().numel() == 1
    assert float(p.stddev[0, 0].detach()) == pytest.approx(0.25)
    p.log_prob(torch.ones(4, 5)).sum().backward()
    assert parameter.grad != 0


def test_per_pixel_takes_mean_and_scale_from_the_decoder():
    likelihood = make("per_pixel", floor=0.01)
    params = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    p = likelihood(params)
    torch.testing.assert_close(p.mean, params[..., 0])
    softplus = torch.log1p(params[..., 1].exp())
    torch.testing.assert_close(p.stddev, 0.01 + softplus)


@pytest.mark.parametrize(("num_levels", "floor"), [(256, 0.1 / 256), (17, 0.1 / 17), (None, 1e-3)])
def test_learned_scales_stay_above_a_tenth_of_a_level(num_levels, floor):
    likelihood = make("per_pixel", num_levels=num_levels)
    smallest = likelihood(torch.full((1, 2), -1e4).double()).stddev
    assert float(smallest) == pytest.approx(floor)


@pytest.mark.parametrize("scale", MODES)
def test_float32_stays_finite_at_large_outputs(scale):
    likelihood = Normal(scale=scale, num_levels=256)
    for output in (-1e4, 1e4):
        params = torch.full((5, likelihood.params_per_dim), output, requires_grad=True)
        log_prob = likelihood(params).log_prob(torch.full((5,), 0.5))
        assert torch.isfinite(log_prob).all()
        log_prob.sum().backward()
        assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("scale", MODES)
def test_params_at_the_mean(scale):
    likelihood = make(scale)
    mean = torch.tensor([[0.0, 0.3], [0.5, 1.0]]).double()
    p = likelihood(likelihood.params_at(mean))
    torch.testing.assert_close(p.mean, mean)
    assert float(p.stddev.detach().max()) == pytest.approx(0.3 if scale == 0.3 else 0.25)


@pytest.mark.parametrize(
    "arguments",
    [{"scale": 0.0}, {"scale": -1.0}, {"scale": math.inf}, {"scale": "learn"},
     {"scale": math.nan}, {"floor": 0.0}, {"floor": -1.0}],
)  # fmt: skip
def test_bad_arguments(arguments):
    with pytest.raises(InputError, match="normal: "):
        Normal(**arguments)
