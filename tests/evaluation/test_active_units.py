"""Active units against a linear guide, where the variance of its mean is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.evaluation.active_units import active_units


class Model(nn.Module):
    def __init__(self, prior):
        super().__init__()
        self.prior = lambda: prior


class Linear(nn.Module):
    """q(z|x) = N(W x + b, I), so that Var_x E_q[z|x] = diag(W Cov(x) Wᵀ)."""

    def __init__(self, weight, closed_form=True):
        super().__init__()
        self.weight, self.closed_form = weight, closed_form

    def posterior(self, x):
        q = dist.Normal(x @ self.weight.T + 3, 1.0).to_event(1)
        if self.closed_form:
            return q
        return dist.TransformedDistribution(q, dist.transforms.AffineTransform(0.0, 1.0))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(x))


WEIGHT = torch.tensor([[1.0, 0.5], [0.05, 0.0], [0.0, 0.0], [0.15, -0.1]], dtype=torch.float64)


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1200, 2, generator=generator, dtype=torch.float64) + 5


@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0])
def test_activity_is_the_variance_of_the_mean_over_the_priors(x, scale):
    prior = dist.Normal(torch.zeros(4).double(), scale).to_event(1)
    found = active_units(Model(prior), Linear(WEIGHT), x)
    expected = (WEIGHT @ x.T.cov(correction=0) @ WEIGHT.T).diagonal() / scale**2
    assert found.activity == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)
    assert found.count == int((expected > 0.01).sum()) == {1.0: 2, 0.3: 3, 4.0: 1}[scale]
    assert found.note is None


def test_scaling_latents_and_prior_alike_changes_nothing(x):
    one = dist.Normal(torch.zeros(4).double(), 1.0).to_event(1)
    ten = dist.Normal(torch.zeros(4).double(), 10.0).to_event(1)
    narrow = active_units(Model(one), Linear(WEIGHT), x)
    wide = active_units(Model(ten), Linear(10 * WEIGHT), x)
    assert wide.activity == pytest.approx(narrow.activity)


def test_means_over_draws_where_there_is_no_closed_form(x):
    """1,000 draws a datum: ± 0.03 on each mean, so below 0.0015 on the activity of nothing."""
    prior = dist.TransformedDistribution(
        dist.Normal(torch.zeros(4).double(), 1.0).to_event(1),
        dist.transforms.AffineTransform(0.0, 2.0),
    )
    found = active_units(Model(prior), Linear(WEIGHT, closed_form=False), x, seed=1)
    exact = (WEIGHT @ x.T.cov(correction=0) @ WEIGHT.T).diagonal() / 4
    # Var_p over 1,000 draws is right to √(2/1000) = 4.5 %: three standard errors.
    assert found.activity == pytest.approx(exact.tolist(), rel=0.14, abs=0.0015)
    assert found.count == 1
    again = active_units(Model(prior), Linear(WEIGHT, closed_form=False), x, seed=1)
    assert again == found


@pytest.mark.parametrize(
    "prior",
    [dist.Cauchy(torch.zeros(4), 1.0), dist.StudentT(torch.full((4,), 1.5))],
    ids=["no variance", "infinite variance"],
)
def test_a_prior_without_a_variance_has_no_active_units(x, prior):
    found = active_units(Model(prior.to_event(1)), Linear(WEIGHT), x)
    assert (found.activity, found.count) == ([], None)
    assert "no finite variance" in found.note


def test_several_latents_have_no_one_prior(x):
    class Two(Linear):
        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z1", self.posterior(x))
                pyro.sample("z2", dist.Normal(z, 1.0).to_event(1))

    prior = dist.Normal(torch.zeros(4).double(), 1.0).to_event(1)
    found = active_units(Model(prior), Two(WEIGHT), x)
    assert found.count is None
    assert "several latents" in found.note
