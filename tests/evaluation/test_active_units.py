"""Active units against a linear guide, where the variance of its mean is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.evaluation.active_units import active_units
from pyro_vae.protocols import Facts


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


class Two(Linear):
    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z1", self.posterior(x))
            pyro.sample("z2", dist.Normal(z[..., :3], 1.0).to_event(1))


def test_of_several_latents_it_is_the_one_that_is_decoded(x):
    prior = dist.Normal(torch.zeros(4).double(), 1.0).to_event(1)
    found, alone = (active_units(Model(prior), guide(WEIGHT), x) for guide in (Two, Linear))
    assert (found.activity, found.count) == (alone.activity, alone.count)
    assert found.note == "of z1, the layer next to the data"


def test_of_several_latents_a_prior_of_another_is_refused(x):
    prior = dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)
    found = active_units(Model(prior), Two(WEIGHT), x)
    assert (found.activity, found.count) == ([], None)
    assert "no latent is that of prior and posterior" in found.note


def test_of_several_latents_none_may_be_the_decoded_one(x):
    class Halves(Linear):
        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                for i in (1, 2):
                    pyro.sample(f"z{i}", dist.Normal(x, 1.0).to_event(1))

    prior = dist.Normal(torch.zeros(4).double(), 1.0).to_event(1)
    assert active_units(Model(prior), Halves(WEIGHT), x).note.startswith("not defined: no latent")


def test_z1_of_two_layers(x):
    """Var_p(z1) = Var(μ(z2)) + E σ²(z2), over the 1,000 draws of a marginal without a density."""
    facts = Facts((2,), "continuous")
    config = Config(
        model="hierarchical(latent_dims=(4, 2))", guide="hierarchical", likelihood="normal",
        encoder="mlp(hidden=(8,))", dtype="float64",
    )  # fmt: skip
    torch.manual_seed(0)
    model, guide = build_pair(config, facts)
    found = active_units(model, guide, x)
    with torch.no_grad():
        means = guide.posterior(x).mean
        p = model.middle(torch.randn(200_000, 2, dtype=torch.float64))
        variance = p.mean.var(0) + p.variance.mean(0)
    expected = means.var(0, correction=0) / variance
    # 1,000 draws: ± 4.5 % on each variance, seed 0
    assert found.activity == pytest.approx(expected.tolist(), rel=0.18)
    assert found.note == "of z1, the layer next to the data"


@pytest.mark.parametrize("count", [0, 1])
def test_one_datum_varies_from_nothing(x, count):
    prior = dist.Normal(torch.zeros(4).double(), 1.0).to_event(1)
    found = active_units(Model(prior), Linear(WEIGHT), x[:count])
    assert (found.activity, found.count) == ([], None)
    assert found.note == "not defined for fewer than two data"
