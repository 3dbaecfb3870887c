"""Data drawn from a model: moments and regressions that are known, and what is refused.

Tolerances are in standard errors of N draws: √(C_ii/N) of a mean, √((C_ii C_jj + C_ij²)/N) of a
covariance of normals. Five of them are exceeded once in 10⁶.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.evaluation.latent_space import latent_space
from pyro_vae.evaluation.simulation import CHUNK, replicate, simulate
from pyro_vae.protocols import Facts

N = 5_000
PARALLEL = {"enumerate": "parallel"}


def zeros(num_data, *shape):
    return torch.zeros(num_data, *shape, dtype=torch.float64)


def assert_moments(values, mean, covariance, sigmas=5.0):
    """``values`` ``[N, D]`` are normal with this mean and covariance."""
    count = len(values)
    variance = covariance.diagonal()
    assert ((values.mean(0) - mean).abs() < sigmas * (variance / count).sqrt() + 1e-12).all()
    error = ((variance[:, None] * variance + covariance.square()) / count).sqrt()
    assert ((values.T.cov() - covariance).abs() < sigmas * error + 1e-12).all()


def test_joint_of_a_linear_gaussian(linear_gaussian):
    """Means and all covariances of (z, x), so that x is of the z beside it; seed 0."""
    p = linear_gaussian
    found = simulate(p.model, zeros(N, 5))
    assert list(found.latents) == ["z"]
    assert not found.enumerated
    eye = torch.eye(2, dtype=torch.float64)
    noise = p.sigma**2 * torch.eye(5, dtype=torch.float64)
    covariance = torch.cat(
        [torch.cat([eye, p.W.T], dim=1), torch.cat([p.W, p.W @ p.W.T + noise], dim=1)]
    )
    joint = torch.cat([found.latents["z"], found.x], dim=1)
    assert_moments(joint, torch.cat([0 * p.b[:2], p.b]), covariance)


def test_hierarchical():
    """z2 ~ N(0, 1), z1 = 2 z2 + ½ ε, x = z1 − 1 + ε: all three jointly; seed 3."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(zeros(()), 1.0))
            z1 = pyro.sample("z1", dist.Normal(2 * z2, 0.5))
            pyro.sample("x", dist.Normal(z1 - 1, 1.0), obs=x)

    found = simulate(model, zeros(N), seed=3)
    assert list(found.latents) == ["z2", "z1"]
    joint = torch.stack([*found.latents.values(), found.x], dim=1)
    expected = torch.tensor([[1, 2, 2], [2, 4.25, 4.25], [2, 4.25, 5.25]], dtype=torch.float64)
    assert_moments(joint, torch.tensor([0.0, 0.0, -1.0]).double(), expected)


@pytest.mark.parametrize("prior", ["standard_normal", "vamp(components=3, noise=2.0)"])
def test_built_in_bernoulli(prior):
    """Residuals x − E[x|z] have mean 0 and variance p(1 − p); z has the prior's moments; seed 1."""
    torch.manual_seed(0)
    config = Config(prior=prior, likelihood="bernoulli", encoder="mlp(hidden=(8,))", latent_dim=2)
    pair = build_pair(config, Facts((3, 3), "binary"), torch.full((3, 3), 0.4))
    found = simulate(pair.model, torch.zeros(N, 3, 3), seed=1)
    assert found.x.shape == (N, 3, 3)
    assert found.x.dtype == torch.float32
    assert ((found.x == 0) | (found.x == 1)).all()
    with torch.no_grad():
        p = pair.model.decode(found.latents["z"]).mean
        moments = pair.model.prior()
        mean, variance = moments.mean, moments.variance
    score = (found.x - p).sum(0) / (p * (1 - p)).sum(0).sqrt()
    assert (score.abs() < 5).all()
    z = found.latents["z"]
    assert ((z.mean(0) - mean).abs() < 5 * (variance / N).sqrt()).all()
    spread = (z - mean).square()
    assert ((spread.mean(0) - variance).abs() < 5 * spread.std(0) / N**0.5).all()
    # Across data x varies with z, not with anything else: E[x p] = E[p²].
    assert ((p * (found.x - p)).mean(0).abs() < 5 * (p**2 * (1 - p)).mean(0).sqrt() / N**0.5).all()


def test_seed_and_random_state(linear_gaussian):
    like = zeros(2 * CHUNK + 3, 5)
    state = torch.get_rng_state()
    first = simulate(linear_gaussian.model, like, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    again = simulate(linear_gaussian.model, like + 7, seed=1)  # values do not matter
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.latents["z"], again.latents["z"])
    assert not torch.equal(simulate(linear_gaussian.model, like, seed=2).x, first.x)
    assert len(torch.unique(first.x)) == first.x.numel()  # no noise is used twice


def test_parameters_of_plain_functions(linear_gaussian):
    def model(x):
        shift = pyro.param("shift", torch.tensor(100.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    pyro.param("shift", torch.tensor(50.0))
    assert 48 < float(simulate(model, torch.zeros(100)).x.mean()) < 52


def mixture(x, infer=PARALLEL):
    """c moves z, z and c move x."""
    with pyro.plate("data", len(x), dim=-1):
        probs = torch.tensor([0.25, 0.75], dtype=torch.float64)
        c = pyro.sample("c", dist.Categorical(probs), infer=infer)
        z = pyro.sample("z", dist.Normal(4.0 * c - 2, 1.0).to_event(0))
        pyro.sample("x", dist.Normal(z + 3 * c, 0.5), obs=x)


def test_enumerated_latents_are_drawn_apart():
    """P(c = 1) = ¾ and z − (4c − 2) ~ N(0, 1); seed 0."""
    found = simulate(mixture, zeros(N))
    assert found.latents.keys() == latent_space(mixture, zeros(2)).shapes.keys() == {"z"}
    c = found.enumerated["c"].double()
    assert abs(float(c.mean()) - 0.75) < 5 * (0.75 * 0.25 / N) ** 0.5
    rest = torch.stack([found.latents["z"] - 4 * c + 2, found.x - found.latents["z"] - 3 * c], 1)
    assert_moments(rest, zeros(2), torch.diag(torch.tensor([1.0, 0.25]).double()))
    drawn = simulate(lambda x: mixture(x, infer={}), zeros(5))
    assert list(drawn.latents) == ["c", "z"]


def test_scaled_subsampled_deterministic_and_flattened_programs():
    """What weighs densities alone changes no draws; seed 0."""

    def model(x):
        with pyro.plate("data", 10 * len(x), subsample=x, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = pyro.deterministic("mean", z.repeat(1, 3) + 5, event_dim=1)
            flat = x.flatten(1)
            with poutine.scale(scale=0.01), poutine.mask(mask=torch.ones(len(x)).bool()):
                pyro.sample("x", dist.Normal(mean, 0.1).to_event(1), obs=flat)

    found = simulate(model, torch.zeros(N, 2, 3))
    rest = found.x.reshape(N, 6) - found.latents["z"].repeat(1, 3) - 5
    assert found.latents.keys() == {"z"}
    assert_moments(rest.double(), zeros(6), 0.01 * torch.eye(6, dtype=torch.float64))


def observe(x, fn, name="x", obs=None):
    return pyro.sample(name, fn, obs=x if obs is None else obs)


def in_plate(body):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            body(x, pyro.sample("z", dist.Normal(torch.zeros(()), 1.0)))

    return model


def masked(x, z):
    with poutine.mask(mask=torch.arange(len(x)) > 0):
        observe(x, dist.Normal(z, 1.0))


def outside(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=x)


def part_of_the_data(x):
    with pyro.plate("data", len(x), subsample_size=2, dim=-1) as index:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


REFUSED = {
    "exactly one observed site, the data; it has: none": in_plate(lambda x, z: None),
    "it has: 'x', 'y'": in_plate(
        lambda x, z: (observe(x, dist.Normal(z, 1.0)), observe(x, dist.Normal(z, 1.0), "y"))
    ),
    "site 'x' of the model is masked": in_plate(masked),
    "a factor, 'f'": in_plate(
        lambda x, z: (pyro.factor("f", -z.square()), observe(x, dist.Normal(z, 1.0)))
    ),
    "site 'w' of the model draws with batch_shape []": outside,
    "batch_shape [2]": part_of_the_data,
    "depends on the values of x": in_plate(lambda x, z: observe(x, dist.Normal(z + x / 2, 1.0))),
    "observes something else than x": in_plate(
        lambda x, z: observe(x, dist.Normal(z, 1.0), obs=x / 2)
    ),
    "draws [6, 3], expected as many": in_plate(
        lambda x, z: observe(x, dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x[:, None])
    ),
    "drew a value that is not finite": in_plate(
        lambda x, z: observe(x, dist.Normal(z + 3e38, 3e38))
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_in_one_line(message):
    with pytest.raises(InputError) as error:
        simulate(REFUSED[message], torch.linspace(-1, 1, 6))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_posterior_predictive_of_a_linear_gaussian(linear_gaussian):
    """x̃|x ~ N(W m(x) + b, W Λ⁻¹ Wᵀ + σ² I), m and Λ⁻¹ those of p(z|x); seed 5."""
    p = linear_gaussian
    x = p.simulate(N, seed=2)
    found = replicate(p.model, p.exact_guide, x, seed=5)
    posterior = p.posterior(x)
    covariance = p.W @ posterior.covariance_matrix[0] @ p.W.T
    covariance += p.sigma**2 * torch.eye(5, dtype=torch.float64)
    assert_moments(found - posterior.mean @ p.W.T - p.b, zeros(5), covariance)
    assert torch.equal(found, replicate(p.model, p.exact_guide, x, seed=5))
    assert not torch.equal(found, replicate(p.model, p.exact_guide, x, seed=6))


def test_posterior_predictive_of_a_point(linear_gaussian):
    """x̃ = W z(x) + b + σ ε at the guide's one z; seed 0."""
    p = linear_gaussian

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(x[:, :2], event_dim=1))

    x = p.simulate(N, seed=2)
    rest = replicate(p.model, guide, x) - x[:, :2] @ p.W.T - p.b
    assert_moments(rest, zeros(5), p.sigma**2 * torch.eye(5, dtype=torch.float64))


def test_posterior_predictive_draws_enumerated_latents_given_x():
    """q(z|x) = N(0, 1); E[x̃|x] = E_q[z + 3 P(c = 1|z, x)], P by Bayes at each z; seed 0."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(zeros(()), 1.0))

    for value in (0.3, 2.0):
        x = zeros(N) + value
        z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        joint = [
            dist.Normal(4.0 * c - 2, 1.0).log_prob(z)
            + dist.Normal(z + 3 * c, 0.5).log_prob(torch.tensor(value))
            for c in (0, 1)
        ]
        odds = (joint[1] - joint[0]).exp() * 3  # P(c = 1)/P(c = 0) = 3 a priori
        weight = dist.Normal(0.0, 1.0).log_prob(z).exp()
        expected = float((weight * (z + 3 * odds / (1 + odds))).sum() / weight.sum())
        found = replicate(mixture, guide, x)
        assert abs(float(found.mean()) - expected) < 5 * float(found.std()) / N**0.5


def test_posterior_predictive_draws_the_less_likely_latent_too():
    """x = 0 hardly tells of c: P(c = 1|z, x) = 3/(3 + 7 exp(1/8 + z/2)) is below ½; seed 0."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(zeros(()), 0.1))
            c = pyro.sample("c", dist.Bernoulli(zeros(()) + 0.3), infer=PARALLEL)
            pyro.sample("x", dist.Normal(z + 0.5 * c, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(zeros(()), 0.1))

    z = torch.linspace(-0.8, 0.8, 1601, dtype=torch.float64)
    weight = dist.Normal(0.0, 0.1).log_prob(z).exp()
    share = 3 / (3 + 7 * (1 / 8 + z / 2).exp())
    expected = 0.5 * float((weight * share).sum() / weight.sum())
    found = replicate(model, guide, zeros(N))
    assert expected > 0.12
    assert abs(float(found.mean()) - expected) < 5 * float(found.std()) / N**0.5


def test_posterior_predictive_refuses_other_latents(linear_gaussian):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))

    with pytest.raises(InputError, match="latent site 'u' is in the guide but not in the model"):
        replicate(linear_gaussian.model, guide, zeros(3, 5))


def test_modules_leave_the_parameter_store_alone():
    config = Config(likelihood="bernoulli", encoder="mlp(hidden=(8,))", latent_dim=2)
    pair = build_pair(config, Facts((4,), "binary"), torch.full((4,), 0.4))
    assert isinstance(pair.model, nn.Module)
    simulate(pair.model, torch.zeros(3, 4))
    replicate(pair.model, pair.guide, torch.zeros(3, 4))
    assert not list(pyro.get_param_store().keys())
