"""Every prior, likelihood and guide that discovery finds, against quadrature and enumeration.

Densities integrate to one and masses sum to one; draws follow their own density;
every gradient is that of finite differences. All in float64.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.components import build, find, names
from pyro_vae.log_weights import draw_latents, weigh
from pyro_vae.networks import Encoder, mlp

NUM_LEVELS = 16
LIKELIHOODS = [
    *names("likelihood"),
    "normal(scale=0.5)", "normal(scale=per_pixel)", "laplace(scale=0.5)",
    "laplace(scale=per_pixel)", "student_t(scale=0.5)", "student_t(scale=per_pixel)",
    "student_t(df=3.0)", "discretized_logistic(scale=learned)",
    "negative_binomial(dispersion=per_pixel)", "discretized_logistic(scale=0.01)",
    "discretized_logistic_mixture(components=2)",
]  # fmt: skip
# Small enough for quadrature.
SMALL = {
    "vamp": "vamp(components=3)",
    "flow": "flow(layers=2, hidden=(8,))",
    "iaf": "iaf(layers=2, hidden=(8,))",
    "spline_flow": "spline_flow(layers=1, hidden=(8,))",
}
PRIORS = [
    *(SMALL.get(name, name) for name in names("prior")), "mixture(components=3)",
    "flow(kind=affine_autoregressive, layers=2, hidden=(8,))",
    "flow(kind=spline, layers=2, hidden=(8,))", "student_t(df=3.0)",
]  # fmt: skip
# Those of another shape have the same tests in files of their own.
GUIDES = [
    SMALL.get(name, name)
    for name in names("guide")
    if name not in ("hierarchical", "exact_posterior")
]
GUIDES += ["diagonal_normal(scale=constant)", "full_rank_normal(scale=constant)"]


def perturbed(module, size: float, seed: int = 1):
    """Move every parameter, so that nothing is at its start: a flow is no identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)
    return module


def make_likelihood(spec: str, num_levels: int = NUM_LEVELS):
    torch.manual_seed(0)
    levels = None if measure_of(spec) in ("binary", "counts") else num_levels
    offered = {"event_shape": (1,), "num_levels": levels, "measure": measure_of(spec)}
    return build("likelihood", spec, **offered).double()


def measure_of(spec: str) -> str:
    return find("likelihood", spec).constructor.measure


def make_params(likelihood, outputs: str) -> Tensor:
    """Decoder outputs ``[M, 1, P]``: moderate ones, or every corner of the extremes."""
    num = likelihood.params_per_dim
    # Much of a wider density on (0, 1) lies between 1 and the float before it: no x shows it.
    interval = likelihood.measure == "continuous" and not is_real(likelihood)
    if outputs == "moderate":
        generator = torch.Generator().manual_seed(2)
        size = 0.7 if interval else 1.5
        return size * torch.randn(6, 1, num, generator=generator, dtype=torch.float64)
    size = 0.5 if interval else 4.0 if likelihood.measure == "counts" else 30.0
    corners = torch.cartesian_prod(
        *[torch.tensor([-size, size], dtype=torch.float64)] * min(num, 3)
    )
    corners = corners.reshape(-1, min(num, 3))
    repeats = -(-num // corners.shape[1])
    return corners.repeat_interleave(repeats, dim=1)[:, None, :num]


def is_real(likelihood) -> bool:
    return likelihood.support is dist.constraints.real


def nodes(likelihood, p) -> tuple[Tensor, Tensor]:
    """Points of the support ``[N, M, 1]`` and the logarithm of their weights."""
    loc, scale = p.mean.detach(), p.variance.detach().sqrt()
    if likelihood.measure != "continuous":
        last = {"binary": 1, "levels": NUM_LEVELS - 1}.get(likelihood.measure)
        if last is None:  # counts: far into the tail of the widest
            last = int((loc + 200 * scale).max()) + 200
        x = torch.arange(last + 1, dtype=torch.float64)[:, None, None].expand(-1, *loc.shape)
        return x, torch.zeros_like(x)
    if is_real(likelihood):  # x = m + s sinh t
        t = torch.linspace(-25, 25, 40_001, dtype=torch.float64)[:, None, None]
        return loc + scale * t.sinh(), t.cosh().log() + scale.log() + math.log(50 / 40_000)
    t = torch.linspace(-36, 36, 40_001, dtype=torch.float64)[:, None, None]  # x = σ(t)
    log_slope = torch.nn.functional.logsigmoid(t) + torch.nn.functional.logsigmoid(-t)
    x = torch.sigmoid(t).expand(-1, *loc.shape)
    return x, log_slope + math.log(72 / 40_000)


def assert_follows(draws: Tensor, x: Tensor, mass: Tensor, loc: Tensor, scale: Tensor) -> None:
    """Means of bounded functions of the draws are those under the density.

    Five standard errors each: a false alarm in 2 million comparisons; seeds are fixed.
    """
    for function in (torch.tanh, torch.cos, lambda u: torch.exp(-u.abs())):
        points = function((x - loc) / scale)
        expected = (points * mass).sum(0)
        variance = ((points - expected) ** 2 * mass).sum(0)  # of rare values too
        values = function((draws - loc) / scale)
        error = (variance / len(values)).sqrt() + 1e-9
        assert ((values.mean(0) - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("outputs", ["moderate", "extreme"])
@pytest.mark.parametrize("spec", LIKELIHOODS)
def test_likelihood_has_mass_one(spec, outputs):
    likelihood = make_likelihood(spec)
    with torch.no_grad():
        p = likelihood(make_params(likelihood, outputs))
        x, log_weight = nodes(likelihood, p)
        total = (p.log_prob(x) + log_weight).logsumexp(0)
    tolerance = 1e-6 if likelihood.measure == "continuous" else 1e-7
    assert (total.abs() < tolerance).all()


@pytest.mark.parametrize("spec", LIKELIHOODS)
def test_likelihood_draws_follow_its_density(spec):
    likelihood = make_likelihood(spec)
    with torch.no_grad():
        p = likelihood(make_params(likelihood, "moderate"))
        x, log_weight = nodes(likelihood, p)
        mass = (p.log_prob(x) + log_weight).exp()
        torch.manual_seed(3)
        draws = p.sample((20_000,))
    assert draws.dtype == torch.float64
    assert bool(likelihood.support.check(draws).all())
    assert_follows(draws, x, mass, p.mean, p.variance.sqrt() + 1e-3)
    torch.testing.assert_close((x * mass).sum(0), p.mean, rtol=1e-5, atol=1e-7)
    second = (((x - p.mean) ** 2) * mass).sum(0)
    if not spec.startswith("student_t"):  # whose second moment converges too slowly
        torch.testing.assert_close(second, p.variance, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("spec", LIKELIHOODS)
def test_likelihood_gradients_match_finite_differences(spec):
    likelihood = make_likelihood(spec)
    params = make_params(likelihood, "moderate").requires_grad_()
    with torch.no_grad():
        torch.manual_seed(4)
        x = likelihood(params).sample()

    def total() -> Tensor:
        return likelihood(params).log_prob(x).sum()

    named = {"params": params, **dict(likelihood.named_parameters())}
    assert_gradients_match(total, named)


def assert_gradients_match(function, named: dict[str, Tensor], step: float = 1e-5) -> None:
    """The derivative along a random direction of each tensor; none is zero."""
    gradients = torch.autograd.grad(function(), list(named.values()))
    generator = torch.Generator().manual_seed(5)
    for (name, tensor), gradient in zip(named.items(), gradients, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * step * direction
                values.append(float(function()))
                tensor -= sign * step * direction
        slope = (values[0] - values[1]) / (2 * step)
        along = float((gradient * direction).sum())
        scale = float(gradient.norm()) * float(direction.norm()) + 1e-6
        assert bool((gradient != 0).any()), name
        assert abs(slope - along) < 1e-5 * scale + 1e-6, (name, slope, along)


def make_guide(spec: str, latent_dim: int = 2, activation: str = "tanh"):
    torch.manual_seed(0)
    body, features = mlp(hidden=(8,), activation=activation).encoder((4,))
    offered = {"encoder": Encoder(body, (4,), features), "latent_dim": latent_dim}
    return build("guide", spec, **offered, event_shape=(4,)).double()


def make_prior(spec: str, latent_dim: int = 2):
    guide = make_guide("diagonal_normal", latent_dim)
    mean = torch.linspace(-2, 2, 4)
    prior = build(
        "prior", spec, latent_dim=latent_dim, event_shape=(4,), posterior=guide.posterior,
        has_density=True, measure="continuous", data_mean=mean,
    ).double()  # fmt: skip
    return perturbed(prior, 0.1 if spec.startswith("flow") else 0.3)


def plane(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Nodes ``[N, 2]`` over ℝ² and the logarithm of their weights, z = sinh t on each axis."""
    t = torch.linspace(-8.5, 8.5, 851, dtype=torch.float64)
    z, weight = scale * t.sinh(), (t.cosh() * scale * 17 / 850).log()
    return torch.cartesian_prod(z, z), torch.cartesian_prod(weight, weight).sum(-1)


@pytest.mark.parametrize("spec", PRIORS)
def test_prior_integrates_to_one_and_draws_follow_it(spec):
    prior = make_prior(spec)
    z, log_weight = plane()
    with torch.no_grad():
        p = prior()
        mass = torch.cat([p.log_prob(part) for part in z.split(50_000)])
        mass = (mass + log_weight).exp()
        assert abs(float(mass.sum()) - 1) < 2e-4
        torch.manual_seed(6)
        draws = p.sample((40_000,))
    assert draws.shape == (40_000, 2)
    for direction in ((1.0, 0.0), (0.0, 1.0), (0.7, 0.7), (0.7, -0.7)):
        along = torch.tensor(direction, dtype=torch.float64)
        assert_follows((draws @ along)[:, None], (z @ along)[:, None], mass[:, None], 0.3, 1.0)


@pytest.mark.parametrize("spec", [s for s in PRIORS if s not in ("standard_normal",)])
def test_prior_gradients_match_finite_differences(spec):
    prior = make_prior(spec)
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(5, 2, generator=generator, dtype=torch.float64).requires_grad_()
    named = {"z": z, **dict(prior.named_parameters())}
    assert_gradients_match(lambda: prior().log_prob(z).sum(), named)


X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def importance_ratio(guide, error: float = 0.0) -> tuple[float, float]:
    """Mean of h/q under q and its standard error, h a normal at q's mean of scale sd/1.3.

    E_q[h/q] = 1, and h is narrow enough for the variance to be finite.
    """
    with torch.no_grad():
        torch.manual_seed(8)
        pilot = guide.posterior(X[:1]).sample((20_000,))
        h = dist.Normal(pilot.mean(0), pilot.std(0) / 1.3).to_event(1)
        q = guide.posterior(X[:1])
        z = q.rsample((100_000,))
        ratio = (h.log_prob(z) - q.log_prob(z) - error).exp().flatten()
    return float(ratio.mean()), float(ratio.std() / math.sqrt(len(ratio)))


@pytest.mark.parametrize("spec", [g for g in GUIDES if g != "delta"])
def test_guide_density_is_that_of_its_draws(spec):
    """E_q[h/q] = 1 within four standard errors; a 2 % error in log q is noticed."""
    guide = perturbed(make_guide(spec), 0.1)
    mean, error = importance_ratio(guide)
    assert abs(mean - 1) < 4 * error
    mean, error = importance_ratio(guide, error=0.02)
    assert abs(mean - 1) > 4 * error


@pytest.mark.parametrize("spec", GUIDES)
def test_guide_gradients_match_finite_differences(spec):
    """Through the draws and through the density: Σ log p(x, z) − log q(z|x) under fixed noise."""
    guide = perturbed(make_guide(spec), 0.1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            loc = torch.stack([z[..., 0], z[..., 1], z.sum(-1), (z**2).sum(-1)], -1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def total() -> Tensor:
        torch.manual_seed(9)
        latents = draw_latents(guide, X, 4, allow_points=True)
        return weigh(model, X, latents).log_weight.sum()

    assert_gradients_match(total, dict(guide.named_parameters()))


FOREIGN = [g for g in GUIDES if g not in ("delta", "planar")]


def fresh_log_prob(guide, z: Tensor) -> Tensor:
    """log q of a distribution that has drawn nothing, at a z that it has not seen."""
    return guide.posterior(X).log_prob(z.detach().clone())


@pytest.mark.parametrize("recorded", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("spec", FOREIGN)
def test_a_draw_that_was_changed_has_the_density_of_what_it_became(spec, recorded):
    """No density is remembered beyond the tensor it was taken at."""
    guide = perturbed(make_guide(spec), 0.1).requires_grad_(False)
    with torch.set_grad_enabled(recorded):
        q = guide.posterior(X)
        torch.manual_seed(10)
        z = q.sample((4,))
        q.log_prob(z)
        z.mul_(1.5)
        torch.testing.assert_close(q.log_prob(z), fresh_log_prob(guide, z))


@pytest.mark.parametrize("spec", FOREIGN)
def test_gradient_along_z_is_that_of_a_fresh_density(spec):
    """At a draw that asks for it afterwards, and at a detached copy, as STL and DReG need it."""
    guide = perturbed(make_guide(spec), 0.1).requires_grad_(False)

    def slope(q, z: Tensor) -> Tensor:
        return torch.autograd.grad(q.log_prob(z).sum(), [z])[0]

    torch.manual_seed(10)
    q = guide.posterior(X)
    z = q.rsample((4,))
    q.log_prob(z)
    expected = slope(guide.posterior(X), z.detach().clone().requires_grad_())
    torch.testing.assert_close(slope(q, z.requires_grad_()), expected)
    torch.testing.assert_close(slope(q, z.detach().requires_grad_()), expected)


@pytest.mark.parametrize("spec", [p for p in PRIORS if p.startswith("flow")])
def test_a_flow_prior_remembers_no_z_that_changed(spec):
    prior = make_prior(spec).requires_grad_(False)
    torch.manual_seed(11)
    z = torch.randn(4, 2, dtype=torch.float64)
    p = prior()
    p.log_prob(z)
    z.add_(1)
    torch.testing.assert_close(p.log_prob(z), prior().log_prob(z.clone()))
    assert p.log_prob(z.requires_grad_()).requires_grad


@torch.no_grad()
def test_a_planar_flow_has_no_density_at_a_changed_draw():
    guide = perturbed(make_guide("planar"), 0.1)
    q = guide.posterior(X)
    z = q.sample((4,))
    q.log_prob(z)
    z.mul_(1.5)
    with pytest.raises(NotImplementedError, match="no inverse in closed form"):
        q.log_prob(z)
