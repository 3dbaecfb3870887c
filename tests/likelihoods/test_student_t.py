"""The Student-t likelihood against scipy, from heavy tails to the normal limit."""

import math

import numpy as np
import pytest
import torch
from pyro_vae.models.likelihoods.student_t import StudentT
from scipy import stats

from pyro_vae.errors import InputError

MODES = [0.3, "learned", "per_pixel"]
DFS = [2.001, 3.0, 5, 30.0, 1e3, 1e5, 1e6]


def make(**kwargs):
    return StudentT(**kwargs).double()


@pytest.mark.parametrize("scale", MODES)
@pytest.mark.parametrize("df", [2.001, 5.0, 1e3, "learned"])
@pytest.mark.parametrize("output", [-30.0, 0.0, 2.0])
def test_integrates_to_one(df, scale, output):
    """By Gauss and Legendre in θ, x = μ + σ tan θ."""
    likelihood = make(df=df, scale=scale)
    p = likelihood(torch.full((1, likelihood.params_per_dim), output, dtype=torch.float64))
    sigma = float(p.scale.detach())
    nodes, weights = np.polynomial.legendre.leggauss(300)
    theta = nodes * math.pi / 2
    x = torch.from_numpy(output + sigma * np.tan(theta))
    density = p.log_prob(x).exp().detach().numpy() * sigma / np.cos(theta) ** 2
    assert float((weights * density).sum()) * math.pi / 2 == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("df", DFS)
def test_is_scipys(df):
    """In float32 too: a float32 log Γ would be off by 0.02 at ν = 1e5."""
    x = torch.tensor([-40.0, -0.1, 0.2, 0.25, 0.9, 7.0], dtype=torch.float64)
    expected = stats.t(df, loc=0.2, scale=0.3).logpdf(x.numpy())
    p = make(df=df, scale=0.3)(torch.full((6, 1), 0.2, dtype=torch.float64))
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-11, atol=1e-9)
    p = StudentT(df=df, scale=0.3)(torch.full((6, 1), 0.2))
    assert p.log_prob(x.float()).dtype == torch.float32
    np.testing.assert_allclose(p.log_prob(x.float()), expected, rtol=1e-6, atol=2e-6)
    moments = stats.t(df, loc=0.2, scale=0.3).stats("mv")
    np.testing.assert_allclose((p.mean[0], p.variance[0]), moments, rtol=1e-3)


def test_is_normal_at_large_df():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    p = make(df=1e6, scale=0.3)(torch.zeros(9, 1).double())
    np.testing.assert_allclose(p.log_prob(x), stats.norm(0, 0.3).logpdf(x.numpy()), atol=1e-3)


@pytest.mark.parametrize("df", [2.5, 5.0, 200.0])
def test_samples_follow_the_density(df):
    """Kolmogorov and Smirnov, 20,000 draws, seed 0; false alarms at 1e-5 a case."""
    torch.manual_seed(0)
    x = make(df=df, scale=0.3)(torch.full((1, 1), 0.2).double()).sample((20_000,)).squeeze(-1)
    assert stats.kstest(x.numpy(), stats.t(df, loc=0.2, scale=0.3).cdf).pvalue > 1e-5


@pytest.mark.parametrize("raw_df", [-3.0, 2.0, 200.0])
def test_gradients_are_differences(raw_df):
    likelihood = make(df="learned", scale="per_pixel")
    x = torch.tensor([0.1, 4.0], dtype=torch.float64)
    params = torch.tensor([[0.3, -1.0], [-2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    raw = torch.tensor(raw_df, dtype=torch.float64, requires_grad=True)

    def log_prob(params, raw):
        p = torch.func.functional_call(likelihood, {"raw_df": raw}, (params,))
        return p.log_prob(x)

    assert torch.autograd.gradcheck(log_prob, (params, raw))
    assert torch.autograd.gradgradcheck(log_prob, (params, raw))


def test_learned_df_starts_at_five_and_stays_above_two():
    likelihood = make(df="learned")
    assert set(likelihood.state_dict()) == {"raw_df", "raw_scale"}
    p = likelihood(torch.zeros(4, 5, 1).double())
    assert float(p.df.detach()) == pytest.approx(5)
    p.log_prob(torch.ones(4, 5)).sum().backward()
    assert likelihood.raw_df.grad != 0
    likelihood.raw_df.data.fill_(-1e4)
    p = likelihood.float()(torch.zeros(1, 1))
    assert 2 < float(p.df.detach()) < 2.00001
    assert torch.isfinite(p.log_prob(torch.ones(1)))


def test_learned_df_reaches_the_normal_in_few_steps():
    """200 steps of 0.05 from 5 on a normal's quantiles: past 50, where 2 + softplus is at 15."""
    x = torch.from_numpy(stats.norm.ppf((np.arange(1000) + 0.5) / 1000))
    likelihood = StudentT(df="learned", scale=1.0)
    optimizer = torch.optim.Adam([likelihood.raw_df], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (-likelihood(torch.zeros(1, 1)).log_prob(x).mean()).backward()
        optimizer.step()
    assert float(likelihood(torch.zeros(1, 1)).df.detach()) > 50


def test_learned_is_one_scale_and_per_pixel_is_the_decoders():
    p = make(scale="learned")(torch.zeros(4, 5, 1).double())
    assert p.scale.shape == ()
    assert float(p.scale.detach()) == pytest.approx(0.25)
    params = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    p = make(scale="per_pixel", floor=0.01)(params)
    torch.testing.assert_close(p.mean, params[..., 0])
    torch.testing.assert_close(p.scale, 0.01 + torch.log1p(params[..., 1].exp()))


@pytest.mark.parametrize(("num_levels", "floor"), [(256, 0.1 / 256), (17, 0.1 / 17), (None, 1e-3)])
def test_learned_scales_stay_above_a_tenth_of_a_level(num_levels, floor):
    p = make(scale="per_pixel", num_levels=num_levels)(torch.full((1, 2), -1e4).double())
    assert float(p.scale) == pytest.approx(floor)


@pytest.mark.parametrize("scale", MODES)
@pytest.mark.parametrize("df", [2.001, 5.0, 1e6, "learned"])
def test_float32_stays_finite_at_large_outputs(df, scale):
    likelihood = StudentT(df=df, scale=scale, num_levels=256)
    for output in (-1e4, 1e4):
        params = torch.full((5, likelihood.params_per_dim), output, requires_grad=True)
        log_prob = likelihood(params).log_prob(torch.tensor([0, 1e-3, 0.5, 1 - 2.0**-21, 1]))
        assert torch.isfinite(log_prob).all()
        log_prob.sum().backward()
        assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("scale", MODES)
def test_params_at_the_mean(scale):
    likelihood = make(scale=scale)
    mean = torch.tensor([[0.0, 0.3], [0.5, 1.0]]).double()
    p = likelihood(likelihood.params_at(mean))
    torch.testing.assert_close(p.mean, mean)
    assert float(p.scale.detach().max()) == pytest.approx(0.3 if scale == 0.3 else 0.25)


@pytest.mark.parametrize("scale", MODES)
def test_shapes_survive_expand_and_to_event(scale):
    likelihood = StudentT(df="learned", scale=scale)
    params = torch.zeros(3, 4, likelihood.params_per_dim)
    p = likelihood(params).expand((2, 3, 4)).to_event(2)
    assert (p.batch_shape, p.event_shape) == ((2,), (3, 4))
    assert p.sample((5,)).shape == (5, 2, 3, 4)
    assert p.log_prob(torch.rand(3, 4)).shape == (2,)
    assert p.mean.shape == p.variance.shape == (2, 3, 4)


@pytest.mark.parametrize(
    "arguments",
    [{"df": 2.0}, {"df": -1.0}, {"df": math.inf}, {"df": math.nan}, {"df": 2e6}, {"df": True},
     {"df": "learn"}, {"df": None}, {"df": (3.0,)}, {"scale": 0.0}, {"scale": "learn"},
     {"scale": math.nan}, {"floor": 0.0}],
)  # fmt: skip
def test_bad_arguments(arguments):
    with pytest.raises(InputError, match=r"^student_t: .*got"):
        StudentT(**arguments)
