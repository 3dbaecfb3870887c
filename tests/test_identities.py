"""Both sides of the ELBO's identities against exact values and against each other."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.identities import Identity, elbo_identity, evidence_identity, integral_elbo
from pyro_vae.protocols import Facts

ROUNDING = 1e-9


def assert_holds(identity: Identity, tolerance: float = 3e-3) -> None:
    assert not torch.equal(identity.left, identity.right)  # two computations
    assert (identity.error < tolerance).all()
    assert (identity.gap.abs() <= identity.error + ROUNDING).all(), identity


def exact_terms(program, guide, x):
    """log p(x), the ELBO of a diagonal normal, and its KL to the posterior and to the prior."""
    loc, scale = guide(x)
    elbo = program.elbo(x, loc, scale)
    q = dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))
    posterior = torch.distributions.kl_divergence(q, program.posterior(x))
    prior = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum(-1)
    return program.log_evidence(x), elbo, posterior, prior


@pytest.fixture(params=[1, 2])
def linear(request, linear_gaussian):
    """A linear-Gaussian program of one or two latents, and parameters of a poor guide."""
    program = replace(linear_gaussian, W=linear_gaussian.W[:, : request.param], sigma=0.4)
    return program, program.diagonal_guide(shift=0.7, variance=1.6), program.simulate(3, seed=0)


def test_evidence_identity_of_a_linear_program(linear):
    program, parameters, x = linear
    result = evidence_identity(program.model, program.guide_of(parameters), x)
    log_px, elbo, kl, _ = exact_terms(program, parameters, x)
    assert (kl > 0.2).all()
    assert ((result.left - log_px).abs() <= result.left_error + ROUNDING).all()
    for name, exact in (("elbo", elbo), ("kl", kl)):
        assert ((result.terms[name] - exact).abs() <= result.right_error + ROUNDING).all(), name
    assert_holds(result)


def test_elbo_identity_of_a_linear_program(linear):
    program, parameters, x = linear
    result = elbo_identity(program.model, program.guide_of(parameters), x)
    _, elbo, _, kl = exact_terms(program, parameters, x)
    assert ((result.left - elbo).abs() <= result.left_error + ROUNDING).all()
    torch.testing.assert_close(result.terms["kl"], kl, rtol=0, atol=1e-12)  # in closed form
    assert_holds(result)


def test_integral_elbo_of_a_linear_program(linear):
    """Quadrature within its error of the exact ELBO, the mean within four of its own; seed 0."""
    program, parameters, x = linear
    result = integral_elbo(program.model, program.guide_of(parameters), x, num_samples=4000)
    _, elbo, _, _ = exact_terms(program, parameters, x)
    assert ((result.left - elbo).abs() <= result.left_error + ROUNDING).all()
    assert (result.right_error < 0.03).all()
    assert ((result.right - elbo).abs() < 4 * result.right_error).all()
    assert (result.gap.abs() > result.left_error).any()  # the mean is one over draws
    assert (result.error >= result.right_error).all()


def make_pair(seed: int = 0, **components):
    torch.manual_seed(seed)
    choice = {"prior": "standard_normal", "likelihood": "bernoulli", "guide": "diagonal_normal"}
    config = Config(
        data="digits", latent_dim=2, encoder="mlp(hidden=(16,))", **(choice | components)
    )
    facts = Facts((3, 4), "binary" if config.likelihood == "bernoulli" else "continuous")
    pair = build_pair(config, facts, torch.full((3, 4), 0.4))
    with torch.no_grad():
        for parameter in pair.model.parameters():
            parameter *= 2
    return pair


X = (torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.4).float()


@pytest.mark.parametrize(
    "components",
    [
        {},
        {"prior": "vamp(components=3)", "guide": "student_t"},
        pytest.param(
            {"prior": "mixture(components=3)", "guide": "full_rank_normal"}, marks=pytest.mark.slow
        ),
        pytest.param({"prior": "laplace", "guide": "iaf(hidden=(8,))"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_identities_of_neural_pairs(components):
    """float32 pairs, evaluated in float64; the last mean is within four standard errors, seed 0."""
    model, guide = make_pair(**components)
    evidence = evidence_identity(model, guide, X)
    assert (evidence.terms["kl"] > 0.01).all()
    assert_holds(evidence)
    elbo = elbo_identity(model, guide, X)
    assert_holds(elbo)
    integral = integral_elbo(model, guide, X, num_samples=1000)
    assert (integral.gap.abs() < 4 * integral.right_error + integral.left_error).all()
    for one, other in ((evidence.terms["elbo"], elbo.left), (elbo.left, integral.left)):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)
    assert next(model.parameters()).dtype == torch.float32


def test_two_layers():
    """One latent each, the guide in the other order."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2.sin(), 0.4))
            pyro.sample("x", dist.Normal(2 * z1, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(0.4 * x, 0.3))
            pyro.sample("z2", dist.Normal(0.5 * z1, 0.8))

    x = torch.tensor([0.0, 1.5], dtype=torch.float64)
    for identity in (evidence_identity, elbo_identity):
        assert_holds(identity(model, guide, x))
    assert (evidence_identity(model, guide, x).terms["kl"] > 0.01).all()


class Correlated(nn.Module):
    """q = N(0.3, L Lᵀ), L full."""

    def forward(self, x: Tensor) -> None:
        L = 0.4 * torch.eye(5).to(x) + 0.1 * torch.ones(5, 5).to(x).tril()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(x.new_full((5,), 0.3), scale_tril=L))


@pytest.mark.parametrize("guide_name", ["diagonal_normal", "full_rank_normal", "other"])
def test_linear_gaussian_is_exact_in_five_dimensions(guide_name):
    """No quadrature: log_evidence, closed-form KLs and a mean over ten points, to 10⁻⁹."""
    torch.manual_seed(0)
    config = Config(
        data="digits", latent_dim=5, encoder="linear", dtype="float64",
        model="linear_gaussian", likelihood="normal(scale=0.7)",
        guide="diagonal_normal" if guide_name == "other" else guide_name,
    )  # fmt: skip
    model, guide = build_pair(config, Facts((3, 4), "continuous"), torch.zeros(3, 4))
    if guide_name == "full_rank_normal":
        with torch.no_grad():
            guide.head.weight[10:] *= 10  # or its covariance is nearly diagonal
    guide = Correlated() if guide_name == "other" else guide
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    result = evidence_identity(model, guide, x)
    assert (result.terms["kl"] > 0.1).all()
    assert (result.error == 0).all()
    torch.testing.assert_close(result.left, result.right, rtol=0, atol=1e-9)


class Claims(nn.Module):
    """A program whose ``log_evidence`` and ``posterior`` are wrong: x depends on z²."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), x.new_ones(1)).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0] ** 2, 0.5), obs=x)

    def log_evidence(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def posterior(self, x: Tensor):
        return dist.Normal(torch.zeros(len(x), 1).to(x), 1.0).to_event(1)


class Standard(nn.Module):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(1), x.new_ones(1)).to_event(1))


def test_only_a_quadratic_log_likelihood_is_taken_as_linear_gaussian():
    result = evidence_identity(Claims(), Standard(), torch.tensor([0.5, 1.0]))
    assert (result.left_error > 0).all()  # by quadrature
    assert_holds(result)


@pytest.mark.parametrize("guide", ["planar", "delta"])
def test_a_guide_without_a_density_is_refused(guide):
    pair = make_pair(guide=guide)
    for identity in (evidence_identity, elbo_identity, integral_elbo):
        with pytest.raises(InputError, match="density") as error:
            identity(*pair, X)
        assert "\n" not in str(error.value)


def test_other_latents_and_one_draw_are_refused(linear_gaussian):
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal(x.new_zeros(2), 1.0).to_event(1))

    x = linear_gaussian.simulate(2, seed=0)
    with pytest.raises(InputError, match=r"guide draws y and the model z|latent site 'z'"):
        elbo_identity(linear_gaussian.model, guide, x)
    with pytest.raises(InputError, match="num_samples ≥ 2"):
        integral_elbo(linear_gaussian.model, linear_gaussian.exact_guide, x, num_samples=1)
