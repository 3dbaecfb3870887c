"""The latents of any program as one real vector: densities, the way back, and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation.latent_space import (
    check_function,
    draws_of,
    in_double,
    latent_space,
    log_guide,
    log_terms,
)

DATA = torch.tensor([0.3, 1.0, 2.5, 0.1, 0.7], dtype=torch.float64)


def f64(value) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def program(prior, likelihood):
    """z from the prior, x from likelihood(z)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    return model


def two_sites(x: Tensor) -> None:
    """A rate, two reals, shares of three and a 2 × 2 table of scales: 1 + 2 + 2 + 4 numbers."""
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(f64(2.0), f64(1.0)))
        real = pyro.sample("real", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        share = pyro.sample("share", dist.Dirichlet(f64([1.0, 2.0, 3.0])))
        table = pyro.sample("table", dist.LogNormal(torch.zeros(2, 2).double(), 1.0).to_event(2))
        loc = rate + real.sum(-1) + share[..., 0] + table.sum((-2, -1))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


SUPPORTS = {
    "normal": (dist.Normal(f64(0.3), f64(1.2)), 1),
    "gamma": (dist.Gamma(f64(2.0), f64(1.5)), 1),
    "log_normal": (dist.LogNormal(f64(0.2), f64(0.7)), 1),
    "half_normal": (dist.HalfNormal(f64(1.5)), 1),
    "beta": (dist.Beta(f64(2.0), f64(3.0)), 1),
    "uniform": (dist.Uniform(f64(-1.0), f64(2.0)), 1),
    "pareto": (dist.Pareto(f64(1.0), f64(2.5)), 1),
    "dirichlet": (dist.Dirichlet(f64([1.0, 2.0, 3.0])), 2),
    "gammas": (dist.Gamma(f64([2.0, 3.0]), f64([1.0, 2.0])).to_event(1), 2),
    "uniforms": (dist.Uniform(f64([0.0, -1.0]), f64([1.0, 3.0])).to_event(1), 2),
    "mixture": (
        dist.MixtureSameFamily(
            dist.Categorical(f64([0.3, 0.7])), dist.Gamma(f64([2.0, 9.0]), f64([1.0, 3.0]))
        ),
        1,
    ),
}


def of_first(z: Tensor, event_dim: int) -> dist.Normal:
    """x | z ~ N(z's first number, 1)."""
    return dist.Normal(z[..., 0] if event_dim else z, 1.0)


def model_of(name: str):
    prior, _ = SUPPORTS[name]
    return program(prior, lambda z: of_first(z, len(prior.event_shape)))


@pytest.mark.parametrize("name", SUPPORTS)
def test_densities_of_the_vector_integrate_to_one_and_to_the_evidence(name):
    """∫ p(u) du = 1, and ∫ p(x, u) du is the mean of p(x|z) over the prior's draws.

    200,000 draws, seed 1: the evidence within four of their standard errors, each below 1 %.
    """
    prior, dim = SUPPORTS[name]
    x = DATA[:3]
    space = latent_space(model_of(name), x)
    assert space.dim == dim
    terms = log_terms(model_of(name), x, space)
    line = torch.linspace(-30, 30, 6001 if dim == 1 else 301, dtype=torch.float64)
    step = float(line[1] - line[0]) ** dim
    grid = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
    for datum in range(len(x)):
        got = terms(grid.unsqueeze(1), torch.tensor([datum]))
        log_prior, log_joint = got.log_prior.logsumexp(0)[0], got.log_joint.logsumexp(0)[0]
        assert float(log_prior) + math.log(step) == pytest.approx(0, abs=2e-5)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            z = prior.sample((200_000,))
        likelihood = of_first(z, len(prior.event_shape)).log_prob(x[datum]).exp()
        error = float(likelihood.std() / likelihood.mean()) / math.sqrt(len(z))
        assert error < 0.01
        assert abs(float(log_joint - likelihood.mean().log()) + math.log(step)) < 4 * error


def test_a_beta_prior_has_its_closed_evidence():
    """∫ Beta(z; 2, 3) z dz = 2/5, by the vector's density on a line."""
    model = program(dist.Beta(f64(2.0), f64(3.0)), lambda z: dist.Bernoulli(z))
    x = f64([1.0, 0.0])
    line = torch.linspace(-45, 45, 20_001, dtype=torch.float64)
    got = log_terms(model, x, latent_space(model, x))(
        line.reshape(-1, 1, 1).expand(-1, 2, 1), torch.tensor([0, 1])
    )
    evidence = got.log_joint.logsumexp(0).exp() * float(line[1] - line[0])
    torch.testing.assert_close(evidence, f64([0.4, 0.6]), rtol=0, atol=1e-6)


def test_a_log_normal_latent_is_a_normal_one():
    """log p(x, u) is that of the program that draws u and takes exp(u), to rounding."""
    scale = dist.LogNormal(torch.zeros(3).double(), 0.8).to_event(1)
    real = dist.Normal(torch.zeros(3).double(), 0.8).to_event(1)
    one = program(scale, lambda z: dist.Normal(0.0, z.sum(-1)))
    other = program(real, lambda u: dist.Normal(0.0, u.exp().sum(-1)))
    z = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = torch.tensor([4, 0, 0, 2])
    got, expected = (log_terms(m, DATA, latent_space(m, DATA))(z, data) for m in (one, other))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", SUPPORTS)
def test_values_and_vector_are_inverse(name):
    """At draws of the prior, for some data as for all, and each value inside its support."""
    model = model_of(name)
    space = latent_space(model, DATA)
    z = draws_of(model, "model", DATA, space, seed=3, num=40)
    assert z.shape == (40, len(DATA), space.dim)
    assert z.dtype == torch.float64
    values = space.values(z)
    assert SUPPORTS[name][0].support.check(values["z"]).all()
    torch.testing.assert_close(space.vector(values), z, rtol=1e-7, atol=1e-7)
    some = space.values(z[:, 1:3])
    torch.testing.assert_close(some["z"], values["z"][:, 1:3])


def test_sites_of_different_shapes_stand_side_by_side():
    space = latent_space(two_sites, DATA)
    assert space.dim == 9
    assert list(space.shapes) == ["rate", "real", "share", "table"]
    assert list(space.transforms) == ["rate", "share", "table"]
    z = draws_of(two_sites, "model", DATA, space, seed=0, num=6)
    values = space.values(z)
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    lead = (6, len(DATA))
    assert shapes == {
        "rate": lead, "real": (*lead, 2), "share": (*lead, 3), "table": (*lead, 2, 2),
    }  # fmt: skip
    torch.testing.assert_close(space.vector(values), z)
    torch.testing.assert_close(values["rate"], z[..., 0].exp())
    assert torch.equal(values["real"], z[..., 1:3])
    torch.testing.assert_close(values["share"].sum(-1), torch.ones(lead).double())
    torch.testing.assert_close(values["table"], z[..., 5:].exp().reshape(*lead, 2, 2))


def test_density_of_the_sites_together_is_that_of_each_and_the_jacobian():
    """log p(u) = Σ log p(T(u)) + log |∂T/∂u|, the Jacobian by automatic differentiation."""
    space = latent_space(two_sites, DATA)
    u = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def reals(u: Tensor) -> Tensor:
        """The values that vary, without the third share, which is 1 less the others."""
        values = space.values(u.reshape(1, 1, 9))
        parts = [values["rate"], values["real"], values["share"][..., :2], values["table"]]
        return torch.cat([part.flatten() for part in parts])

    jacobian = torch.autograd.functional.jacobian(reals, u)
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(space.log_det(u.reshape(1, 1, 9))[0, 0], log_det)
    values = space.values(u.reshape(1, 1, 9))
    density = (
        dist.Gamma(f64(2.0), f64(1.0)).log_prob(values["rate"]).sum()
        + dist.Normal(0.0, 1.0).log_prob(values["real"]).sum()
        + dist.Dirichlet(f64([1.0, 2.0, 3.0])).log_prob(values["share"]).sum()
        + dist.LogNormal(0.0, 1.0).log_prob(values["table"]).sum()
    )
    terms = log_terms(two_sites, DATA, space)(u.reshape(1, 1, 9), torch.tensor([2]))
    torch.testing.assert_close(terms.log_prior[0, 0], density + log_det)
    loc = values["rate"] + values["real"].sum() + values["share"][..., 0] + values["table"].sum()
    torch.testing.assert_close(
        terms.log_likelihood, dist.Normal(loc, 1.0).log_prob(DATA[2]), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", ["gamma", "beta", "dirichlet", "uniforms"])
def test_gradients_are_those_of_finite_differences(name):
    model = model_of(name)
    space = latent_space(model, DATA)
    terms = log_terms(model, DATA, space)
    data = torch.tensor([3, 1])
    z = torch.randn(2, 2, space.dim, generator=torch.Generator().manual_seed(0)).double()
    assert torch.autograd.gradcheck(lambda z: tuple(terms(z, data)), z.requires_grad_())


def test_data_may_be_taken_in_any_order():
    """Some of the data, twice or in another order, have the densities they have among all."""
    space = latent_space(two_sites, DATA)
    terms = log_terms(two_sites, DATA, space)
    z = draws_of(two_sites, "model", DATA, space, seed=0, num=3)
    whole = terms(z, torch.arange(len(DATA)))
    index = torch.tensor([4, 1, 1])
    some = terms(z[:, index], index)
    torch.testing.assert_close(some.log_joint, whole.log_joint[:, index])
    torch.testing.assert_close(some.log_prior, whole.log_prior[:, index])


def test_the_guides_density_is_of_the_same_vector():
    """q(u|x) of a guide of another family on the same supports; its integral is 1."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.LogNormal(x, 0.5))

    model = model_of("gamma")
    space = latent_space(model, DATA)
    line = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    data = torch.arange(len(DATA))
    log_q = log_guide(guide, DATA, space)(line.reshape(-1, 1, 1).expand(-1, 5, 1), data)
    # Of ln z it is the normal density.
    torch.testing.assert_close(log_q, dist.Normal(DATA, 0.5).log_prob(line.unsqueeze(1)))


def test_a_factor_of_the_guide_is_part_of_its_density():
    """q = 2 N(0, 1) on the half-line, all of it in a factor; log q is that of its draws."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.HalfNormal(x.new_ones(())).mask(False))
            pyro.factor("q", dist.HalfNormal(x.new_ones(())).log_prob(z), has_rsample=True)

    model = program(dist.HalfNormal(f64(1.5)), lambda z: dist.Normal(z, 1.0))
    space = latent_space(model, DATA)
    z = draws_of(guide, "guide", DATA, space, seed=0, num=7)
    found = log_guide(guide, DATA, space)(z, torch.arange(len(DATA)))
    expected = dist.HalfNormal(f64(1.0)).log_prob(z.exp()) + z  # z = log of the latent
    expected = expected[..., 0]
    torch.testing.assert_close(found, expected)


def test_draws_of_the_vector_are_its_density():
    """The mean and variance of ln z under Gamma(2, 1): ψ(2) and ψ′(2), within four errors, seed 0.

    20,000 draws.
    """
    model = program(dist.Gamma(f64(2.0), f64(1.0)), lambda z: dist.Normal(z, 1.0))
    space = latent_space(model, DATA)
    z = draws_of(model, "model", DATA, space, seed=0, num=4000)[..., 0].flatten()
    error = float(z.std()) / math.sqrt(len(z))
    assert abs(float(z.mean()) - float(torch.digamma(f64(2.0)))) < 4 * error < 0.025
    spread = float(torch.polygamma(1, f64(2.0)))
    assert float(z.var()) == pytest.approx(spread, rel=4 * math.sqrt(4 / len(z)))


def test_draws_and_space_leave_the_global_state_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    space = latent_space(two_sites, DATA)
    first = draws_of(two_sites, "model", DATA, space, seed=1, num=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, draws_of(two_sites, "model", DATA, space, seed=1, num=5))
    assert not torch.equal(first, draws_of(two_sites, "model", DATA, space, seed=2, num=5))


def test_a_latent_that_is_summed_out_is_no_part_of_the_vector():
    """log p(z) = log Σ_c p(c) p(z|c), with the Jacobian counted once."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(f64([0.3, 0.7])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Gamma(torch.where(c == 0, f64(2.0), f64(9.0)), f64(1.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    mixture = dist.MixtureSameFamily(
        dist.Categorical(f64([0.3, 0.7])), dist.Gamma(f64([2.0, 9.0]), f64(1.5))
    )
    expected = program(mixture, lambda z: dist.Normal(z, 1.0))
    z = torch.linspace(-3, 3, 7).double().reshape(7, 1, 1).expand(7, 2, 1)
    data = torch.tensor([0, 3])
    got, want = (log_terms(m, DATA, latent_space(m, DATA))(z, data) for m in (model, expected))
    torch.testing.assert_close(got, want)


def test_bounds_that_move_are_refused():
    """A support that depends on the datum, or on another latent, has no one map from the reals."""

    def of_data(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(x), x + 1))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def of_latent(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("top", dist.Gamma(f64(2.0), f64(1.0)))
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(top), top))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    for model, x in [(of_data, DATA), (of_latent, DATA), (of_latent, DATA[:1])]:
        with pytest.raises(InputError, match="'z' has a support that varies") as caught:
            latent_space(model, x)
        assert "\n" not in str(caught.value)


def _observes_nothing(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(f64(0.0), 1.0))


def _draws_nothing(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(f64(0.0), 1.0), obs=x)


class _Sphere(dist.TorchDistribution):
    """A support without a map from the reals."""

    support = constraints.sphere
    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self, batch_shape=()):
        super().__init__(torch.Size(batch_shape), torch.Size([3]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return _Sphere(batch_shape)

    def sample(self, sample_shape=()):
        return torch.ones(*sample_shape, *self.batch_shape, 3).double() / math.sqrt(3)

    def log_prob(self, value):
        return value.sum(-1) * 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_observes_nothing, "no observed site"),
        (_draws_nothing, "no latent that is drawn"),
        (program(dist.Poisson(f64(1.0)), lambda z: dist.Normal(z, 1.0)), "'z' is discrete"),
        (program(_Sphere(), lambda z: dist.Normal(z[..., 0], 1.0)), "no map from the reals"),
        (
            program(dist.VonMises(f64(0.0), f64(1.0)), lambda z: dist.Normal(z, 1.0)),
            "'z' is an angle",
        ),
    ],
)
def test_what_has_no_vector_is_one_line(model, message):
    with pytest.raises(InputError, match=message) as caught:
        latent_space(model, DATA)
    assert "\n" not in str(caught.value)


def test_other_sites_of_a_guide_are_one_line():
    space = latent_space(two_sites, DATA)
    with pytest.raises(InputError, match="the guide draws real and the model rate, real, share"):
        space.vector({"real": torch.zeros(1, 5, 2)})


def test_a_guide_without_density_is_refused_by_what_needs_it():
    def guide(x: Tensor) -> None: ...

    guide.has_density = False
    with pytest.raises(InputError, match="a test needs log q"):
        log_guide(guide, DATA, latent_space(two_sites, DATA), "a test")


def test_a_density_that_is_no_number_is_one_line():
    model = program(
        dist.Gamma(f64(2.0), f64(1.0)),
        lambda z: dist.Normal(torch.where(z > 2, math.nan, z), 1.0, validate_args=False),
    )
    terms = log_terms(model, DATA, latent_space(model, DATA))
    z = torch.zeros(1, 2, 1).double()
    assert terms(z, torch.tensor([0, 1])).log_joint.isfinite().all()
    z[0, 1] = 1.0
    with pytest.raises(InputError, match=r"log p\(x, z\) is nan at datum 1, z = \[1.0\]"):
        terms(z, torch.tensor([0, 1]))


def test_a_function_that_is_none_is_refused():
    noisy = program(
        dist.Gamma(f64(2.0), f64(1.0)), lambda z: dist.Normal(z + torch.rand(z.shape), 1.0)
    )
    steady = model_of("gamma")

    def check(model) -> None:
        space = latent_space(model, DATA)
        check_function(log_terms(model, DATA, space), DATA, space)

    with torch.random.fork_rng(), pytest.raises(InputError, match="not the same at each call"):
        check(noisy)
    check(steady)


def test_double_copies_share_what_was_shared():
    class Model(torch.nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

    part = torch.nn.Linear(1, 1)
    pair = Model(part), Model(part)
    (one, other), x = in_double(pair, torch.zeros(2))
    assert one.part is other.part
    assert one.part is not part
    assert x.dtype == one.part.weight.dtype == torch.float64
    assert part.weight.dtype == torch.float32
    plain = (two_sites, pair[0])
    same, x = in_double(plain, torch.zeros(2))
    assert same is plain
    assert x.dtype == torch.float32
