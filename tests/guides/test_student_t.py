"""The Student-t guide: its density against scipy's, its tails, its gradients."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro_vae.guides.student_t import StudentT
from scipy import stats

from pyro_vae.errors import InputError

DFS = [2.5, 5.0, 40]


def stated(guide, x):
    """Location and scale from the head's outputs."""
    loc, raw = guide.head(guide.encoder(x)).detach().chunk(2, dim=-1)
    return loc, torch.log1p(raw.exp()) + 1e-6


@pytest.mark.parametrize("df", DFS)
def test_density_is_scipys(make, x, df):
    guide = make(StudentT, df=df)
    z = torch.tensor([[0.3, -2.0], [30.0, 0.0], [-1.0, 1e3]]).double()
    loc, scale = stated(guide, x)
    q = guide.posterior(x)
    expected = torch.as_tensor(stats.t(df, loc, scale).logpdf(z)).sum(-1)
    torch.testing.assert_close(q.log_prob(z).detach(), expected)
    torch.testing.assert_close(q.mean.detach(), loc)
    torch.testing.assert_close(q.variance.detach(), torch.as_tensor(stats.t(df, loc, scale).var()))


@pytest.mark.parametrize("df", DFS)
def test_samples_have_the_density(make, x, df, mean_ratio):
    """E_q[h/q] within four standard errors; Kolmogorov–Smirnov, false alarm 1e-4 a latent."""
    guide = make(StudentT, df=df)
    q = guide.posterior(x[:1])
    mean, error = mean_ratio(q)
    assert abs(mean - 1) < 4 * error
    mean, error = mean_ratio(q, error=0.02)
    assert abs(mean - 1) > 4 * error
    torch.manual_seed(2)
    z = q.sample((20_000,)).squeeze(1)
    loc, scale = stated(guide, x[:1])
    for d in range(2):
        law = stats.t(df, float(loc[0, d]), float(scale[0, d]))
        assert stats.kstest(z[:, d].numpy(), law.cdf).pvalue > 1e-4
        wider = stats.t(df, float(loc[0, d]), 1.1 * float(scale[0, d]))
        assert stats.kstest(z[:, d].numpy(), wider.cdf).pvalue < 1e-4


def test_samples_are_reparameterized(make, x):
    """z = μ + s Y: dz/dμ = 1 and dz/ds = (z − μ)/s."""
    q = make(StudentT).posterior(x)
    loc, scale = q.base_dist.loc, q.base_dist.scale
    torch.manual_seed(3)
    z = q.rsample()
    d_loc, d_scale = torch.autograd.grad(z.sum(), [loc, scale])
    torch.testing.assert_close(d_loc, torch.ones_like(loc))
    torch.testing.assert_close(d_scale, ((z - loc) / scale).detach())


def test_weights_vanish_in_the_tails_where_a_narrow_normals_explode():
    """log p(z) − log q(z), p = N(0, 1), scale 0.5 of either guide."""
    z = torch.tensor([0.0, 10.0, 100.0]).double()
    p = dist.Normal(z.new_zeros(()), 1.0).log_prob(z)
    outputs = torch.tensor([0.0, math.log(math.expm1(0.5))]).double()
    guide = StudentT(_Constant(outputs), latent_dim=1).double()
    torch.nn.init.eye_(guide.head.weight)
    torch.nn.init.zeros_(guide.head.bias)
    q = guide.posterior(torch.zeros(1, 1))
    heavy = (p - q.log_prob(z[:, None])).detach()
    assert heavy[2] < heavy[1] < -30
    normal = p - dist.Normal(0.0, 0.5).log_prob(z)
    assert normal[2] > normal[1] > 100


class _Constant(torch.nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features, self.out_features = features, len(features)

    def forward(self, x):
        return self.features.expand(len(x), -1)


def test_broadcasts_and_encodes_once(make, broadcasts):
    broadcasts(make(StudentT))


def test_gradients_match_finite_differences_and_reach_every_parameter(make, gradients_match):
    gradients_match(make(StudentT))


@pytest.mark.parametrize("latent_dim", [1, 3, 50])
def test_float32_stays_finite_at_large_outputs(survives_extremes, latent_dim):
    survives_extremes(StudentT, latent_dim)


@pytest.mark.parametrize("df", [2, 1.0, 0, -3.0, math.inf, math.nan, "5", True, None])
def test_bad_arguments(make, df):
    with pytest.raises(InputError, match=r"student_t: df must be (a )?positive.*, got"):
        make(StudentT, df=df)
