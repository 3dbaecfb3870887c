"""The aggregated posterior against a mixture written out, quadrature, and its limits."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.diagnosis._aggregate import (
    dimension_pairs,
    information_density,
    is_product,
    log_aggregate,
    needs_networks,
    posterior_pairs,
    program_pairs,
)
from pyro_vae.errors import InputError
from pyro_vae.evaluation.latent_space import latent_space
from pyro_vae.protocols import Facts

X = torch.tensor([[-1.5], [0.2], [0.4], [2.0]], dtype=torch.float64)
ALL = torch.arange(len(X))


def posterior(x):
    return dist.Normal(x, 0.5 + 0.1 * x.square()).to_event(1)


def test_q_of_z_is_the_mean_of_all_posteriors():
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    expected = posterior(X).log_prob(z[:, None]).exp().mean(1).log()
    for block in (1, 10, 2**20):
        found = log_aggregate(posterior_pairs(posterior, X), z, len(X), block)
        assert torch.allclose(found, expected, rtol=1e-12)


def test_mutual_information_is_that_of_the_mixture_by_quadrature():
    """4 data, 20,000 draws each; the grid's error is below 1e-6."""
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)[:, None]
    log_q = posterior(X).log_prob(grid[:, None])
    log_mixture = log_q.logsumexp(1, keepdim=True) - math.log(4)
    exact = torch.trapezoid((log_q.exp() * (log_q - log_mixture)).mean(1), grid[:, 0])
    torch.manual_seed(0)
    terms = information_density(posterior_pairs(posterior, X), posterior(X).sample((20_000,)))
    error = float(terms.var(0).mean() / terms.numel()) ** 0.5
    assert error < 0.004
    assert abs(float(terms.mean() - exact)) < 4 * error
    assert bool((terms <= math.log(4) + 1e-12).all())


def test_blocks_bound_memory_and_change_nothing():
    torch.manual_seed(1)
    z = posterior(X).sample((3,))
    one, other = (information_density(posterior_pairs(posterior, X), z, b) for b in (1, 2**20))
    assert torch.allclose(one, other, rtol=1e-12)


def test_far_components_carry_log_n_and_equal_ones_nothing():
    far = 1e3 * torch.arange(5.0, dtype=torch.float64)[:, None]
    torch.manual_seed(2)
    z = posterior(0 * far).sample((2,))
    same = information_density(posterior_pairs(lambda x: posterior(0 * x), far), z)
    assert float(same.abs().max()) < 1e-12

    def narrow(x):
        return dist.Normal(x, 1.0).to_event(1)

    apart = information_density(posterior_pairs(narrow, far), narrow(far).sample((2,)))
    assert torch.allclose(apart, torch.full_like(apart, math.log(5)), rtol=1e-12)


def test_a_dimension_alone_is_the_marginal_of_a_product():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.manual_seed(3)
    z = dist.Normal(x, 0.3).sample((4,))

    def q(x):
        return dist.Normal(x, 0.3).to_event(1)

    both = information_density(dimension_pairs(q, x), z)
    assert both.shape == (4, 6, 2)
    for d in (0, 1):
        pairs = posterior_pairs(q, x[:, d : d + 1])
        alone = information_density(pairs, z[..., d : d + 1])
        assert torch.allclose(both[..., d], alone, rtol=1e-10)


@pytest.mark.parametrize(
    "guide", ["diagonal_normal", "full_rank_normal", "student_t", "iaf(hidden=(8,))", "spline_flow"]
)
def test_the_program_and_its_posterior_say_the_same_of_all_pairs(guide):
    facts = Facts((4,), "continuous")
    config = Config(
        likelihood="normal", guide=guide, latent_dim=2, encoder="mlp(hidden=(8,))", dtype="float64"
    )
    torch.manual_seed(4)
    model, guide = build_pair(config, facts)
    x = torch.randn(3, 4, dtype=torch.float64)
    z = torch.randn(5, 2, dtype=torch.float64)
    with torch.no_grad():
        space = latent_space(model, x)
        by_program = program_pairs(guide, x, space)(z, torch.tensor([0, 2]))
        by_posterior = posterior_pairs(guide.posterior, x)(z, torch.tensor([0, 2]))
        alone = [[float(guide.posterior(x[c : c + 1]).log_prob(v)) for c in (0, 2)] for v in z]
    assert torch.allclose(by_program, by_posterior, rtol=1e-10)
    assert torch.allclose(by_program, torch.tensor(alone).double(), rtol=1e-5)


def test_two_latents_of_one_guide_are_one_vector():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(x, 0.5).to_event(1))
            pyro.sample("b", dist.Normal(a + x, 1.0).to_event(1))

    def model(x):
        one = torch.ones(1, dtype=torch.float64)
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(0 * one, one).to_event(1))
            pyro.sample("b", dist.Normal(0 * one, one).to_event(1))
            pyro.sample("x", dist.Normal(a, 1.0).to_event(1), obs=x)

    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = program_pairs(guide, X, latent_space(model, X))(z, ALL)
    a, b, x = z[:, :1], z[:, 1:], X[:, 0]
    expected = dist.Normal(x, 0.5).log_prob(a) + dist.Normal(a + x, 1.0).log_prob(b)
    assert torch.allclose(found, expected, rtol=1e-12)


def test_what_is_a_product_and_what_runs_networks():
    normal = dist.Normal(torch.zeros(3, 2), 1.0)
    flow = dist.TransformedDistribution(normal.to_event(1), [dist.transforms.ExpTransform()])
    full = dist.MultivariateNormal(torch.zeros(3, 2), torch.eye(2))
    assert is_product(normal.to_event(1)).event_shape == ()
    assert is_product(normal.to_event(1).expand([5, 3])).event_shape == ()
    assert is_product(full) is None
    assert is_product(flow) is None
    assert [needs_networks(fns) for fns in ([normal.to_event(1)], [flow], [full, full])] == [
        False,
        True,
        True,
    ]


def test_nan_is_refused():
    def broken(x):
        return dist.Normal(x * math.nan, 1.0, validate_args=False).to_event(1)

    with pytest.raises(InputError, match="NaN"):
        log_aggregate(posterior_pairs(broken, X), X, len(X))
