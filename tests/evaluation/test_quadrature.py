"""log p(x) by quadrature against exact evidence, scipy's quadrature and importance sampling."""

import itertools
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.evaluation import log_likelihood
from pyro_vae.evaluation._cubature import _line_rule, _reach, _tensor_rule, integrate
from pyro_vae.evaluation.quadrature import log_evidence_by_quadrature
from pyro_vae.protocols import Facts

CPU = torch.device("cpu")
ROUNDING = 1e-9  # of the exact values that the results are held against


def assert_covers(result, exact: Tensor, tolerance: float = 1e-3) -> None:
    """The reported error is below the tolerance and no smaller than the true one."""
    assert result.converged.all()
    assert (result.error < tolerance).all()
    assert (result.error > 0).all()
    true = (result.log_px - exact).abs()
    assert (true <= result.error + ROUNDING).all(), (true / result.error).max()


def scalar_model(prior, likelihood):
    """z from the prior, x from likelihood(z), both scalars."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    return model


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def log_by_scipy(prior, likelihood, x: float, points: list[float]) -> float:
    """log ∫ p(z) p(x|z) dz, a scipy quadrature between each two points, in units of the maximum."""

    def log_joint(z: float) -> float:
        return float(prior.log_prob(number(z)) + likelihood(number(z)).log_prob(number(x)))

    grid = [float(a + (b - a) * i / 50) for a, b in itertools.pairwise(points)
            for i in range(51)]  # fmt: skip
    top = max(map(log_joint, grid))
    pieces = [
        quad(lambda z: math.exp(log_joint(z) - top), a, b, epsabs=1e-12, epsrel=1e-10, limit=200)[0]
        for a, b in itertools.pairwise(points)
    ]
    return top + math.log(sum(pieces))


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("sigma", [1.0, 0.1, 0.02])
def test_linear_gaussian_evidence_and_posterior(linear_gaussian, latent_dim, sigma):
    """Correlated posteriors of sd down to 0.005, far from 0 by up to two prior sd."""
    program = replace(linear_gaussian, W=linear_gaussian.W[:, :latent_dim], sigma=sigma)
    x = program.simulate(4, seed=0)
    result = log_evidence_by_quadrature(program.model, x)
    assert_covers(result, program.log_evidence(x))
    posterior = program.posterior(x)
    scale = posterior.variance.sqrt()
    assert ((result.mean - posterior.mean).abs() < 0.01 * scale).all()
    unit = scale.unsqueeze(-1) * scale.unsqueeze(-2)
    assert ((result.covariance - posterior.covariance_matrix).abs() < 0.02 * unit).all()


def test_tolerance_is_reached_and_the_error_follows_it(linear_gaussian):
    program = replace(linear_gaussian, sigma=0.3)
    x = program.simulate(5, seed=1)
    loose, tight = (log_evidence_by_quadrature(program.model, x, tolerance=t) for t in (1e-2, 1e-6))
    assert_covers(loose, program.log_evidence(x), 1e-2)
    assert_covers(tight, program.log_evidence(x), 1e-6)
    assert (tight.evaluations > loose.evaluations).all()


@pytest.mark.parametrize("sigma", [0.3, 0.02, 0.002])
def test_two_modes_of_one_latent(sigma):
    """x | z ~ N(z², σ²): half the mass lies at each of ±√x; one mode alone is log 2 short."""
    prior = dist.Normal(number(0.0), 1.0)

    def likelihood(z: Tensor):
        return dist.Normal(z**2, sigma)

    x = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    result = log_evidence_by_quadrature(scalar_model(prior, likelihood), x)
    exact = []
    for value in x.tolist():
        root, width = math.sqrt(value), sigma / (2 * math.sqrt(value))
        near = sorted({max(root + k * width, 0.0) for k in (-40, -10, -3, 0, 3, 10, 40)})
        points = [0.0, *(p for p in near if p > 0), 10.0]
        exact.append(math.log(2) + log_by_scipy(prior, likelihood, value, points))
    assert_covers(result, torch.tensor(exact, dtype=torch.float64))
    assert (result.mean.abs() < 0.01 * x.sqrt().unsqueeze(-1)).all()  # the modes weigh the same


@pytest.mark.parametrize("sigma", [0.3, 0.02])
def test_four_modes_of_two_latents(sigma):
    """x_d | z ~ N(z_d², σ²): log p(x) is the sum of two one-dimensional ones."""
    prior = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z**2, sigma).to_event(1), obs=x)

    one = scalar_model(dist.Normal(number(0.0), 1.0), lambda z: dist.Normal(z**2, sigma))
    x = torch.tensor([[0.5, 2.0], [1.0, 4.0], [0.2, 0.0]], dtype=torch.float64)
    parts = log_evidence_by_quadrature(one, x.flatten(), tolerance=1e-8)
    assert_covers(log_evidence_by_quadrature(model, x), parts.log_px.reshape(3, 2).sum(-1))


def test_a_ring():
    """x | z ~ N(|z|, σ²), z ∈ ℝ²: p(x) = ∫ r exp(−r²/2) N(x; r, σ²) dr over r > 0."""
    sigma = 0.05

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.norm(dim=-1), sigma), obs=x)

    def radial(x: float) -> float:
        scale = sigma * math.sqrt(2 * math.pi)
        f = lambda r: r * math.exp(-(r**2) / 2 - ((x - r) / sigma) ** 2 / 2) / scale  # noqa: E731
        return math.log(quad(f, max(0.0, x - 12 * sigma), x + 12 * sigma, epsrel=1e-11)[0])

    x = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)
    exact = torch.tensor([radial(value) for value in x.tolist()], dtype=torch.float64)
    assert_covers(log_evidence_by_quadrature(model, x), exact)


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(number(0.5), 2.0),
        dist.Laplace(number(0.0), 1.0),
        pytest.param(dist.StudentT(number(3.0), 0.0, 1.0), marks=pytest.mark.slow),
        dist.Cauchy(number(0.0), 1.0),
        pytest.param(
            dist.TransformedDistribution(
                dist.Uniform(number(0.0), 1.0), [dist.transforms.SigmoidTransform().inv]
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["normal", "laplace", "student_t", "cauchy", "logistic"],
)
def test_heavy_tails_and_kinks(prior):
    """x | z ~ Laplace(relu(z) − 0.3 z, 0.2): kinks in both; x to 30 scales out in the tail."""

    def likelihood(z: Tensor):
        return dist.Laplace(z.relu() - 0.3 * z, 0.2)

    x = torch.tensor([0.0, 0.5, -0.2, 6.0, 20.0], dtype=torch.float64)
    model = scalar_model(prior, likelihood)
    result = log_evidence_by_quadrature(model, x)
    exact = []
    for value in x.tolist():
        modes = {0.0, value / 0.7, -value / 0.3, float(prior.median if hasattr(prior, "median")
                 else 0.0)}  # fmt: skip
        points = sorted({m + k for m in modes for k in (-300, -30, -3, -0.5, 0, 0.5, 3, 30, 300)})
        exact.append(log_by_scipy(prior, likelihood, value, points))
    assert_covers(result, torch.tensor(exact, dtype=torch.float64))


def mixture_evidence(x: Tensor, weight: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log Σ_c w_c N(x; m_c, s_c² I) of x ``[B, D]``, m ``[C, D]`` and s ``[C]``."""
    log_prob = dist.Normal(loc, scale.unsqueeze(-1)).log_prob(x.unsqueeze(-2)).sum(-1)
    return (weight.log() + log_prob).logsumexp(-1)


def normal_mixture(weight: Tensor, loc: Tensor, scale: Tensor):
    """Σ_c w_c N(m_c, s_c² I), m ``[…, C, D]``."""
    parts = dist.Normal(loc, scale.unsqueeze(-1).expand_as(loc)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(weight.expand(loc.shape[:-1])), parts)


@pytest.mark.parametrize(
    ("dim", "narrow", "wide"), [(1, 1e-4, 1e-3), (1, 1e-3, 1e-2), (2, 1e-2, 0.1)]
)
def test_two_spikes_of_unequal_width_far_apart(dim, narrow, wide):
    """x | z ~ ½ N(z, s₁²) + ½ N(z + 4, s₂²): z lies at x or at x − 4, in spikes that U shows.

    No draw of the prior shows where. Either spike may hold all of the posterior or half of it;
    the modes lie up to 10 prior sd out.
    """
    weight, shift = torch.full((2,), 0.5).double(), torch.tensor([[0.0], [4.0]]).double()
    scale = torch.tensor([narrow, wide], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(dim), 1.0).to_event(1))
            pyro.sample("x", normal_mixture(weight, z.unsqueeze(-2) + shift, scale), obs=x)

    values = [2.07, 0.123] if dim == 2 else [-6.0, -2.0, 0.123, 1.9, 2.0, 2.07, 3.456, 6.0]
    x = torch.tensor(values, dtype=torch.float64).unsqueeze(-1).expand(-1, dim)
    result = log_evidence_by_quadrature(model, x)
    exact = mixture_evidence(x, weight, shift.expand(2, dim), (1 + scale**2).sqrt())
    assert_covers(result, exact)


@pytest.mark.parametrize(
    ("dim", "narrow", "where"), [(1, 1e-4, 1.2345), (1, 1e-6, -2.1), (2, 1e-4, 0.777)]
)
def test_a_spike_of_the_prior_on_a_flat_background(dim, narrow, where):
    """p(z) = 0.9 N(0, 2²) + 0.1 N(m, s²), s to 10⁻⁶: the prior's draws show where it lies.

    No node meets it otherwise, and beside it the density has no slope that rises toward it.
    """
    weight = torch.tensor([0.9, 0.1], dtype=torch.float64)
    loc = torch.tensor([[0.0], [where]], dtype=torch.float64).expand(2, dim)
    scale = torch.tensor([2.0, narrow], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal_mixture(weight, loc, scale))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    x = torch.tensor([[where], [where - 1]], dtype=torch.float64).expand(-1, dim)
    result = log_evidence_by_quadrature(model, x)
    exact = mixture_evidence(x, weight, loc, (scale**2 + 0.25).sqrt())
    assert result.converged.all()
    assert ((result.log_px - exact).abs() < 1e-3).all()  # without the draws 0.4 off


def test_discrete_latents_are_summed_out():
    """c → z → x and x ← c: log Σ_c w_c N(x; m_c + b_c, s_c² + σ²)."""
    weight = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    loc, scale = torch.tensor([-3.0, 0.0, 2.0]).double(), torch.tensor([0.3, 1.0, 0.1]).double()
    offset = torch.tensor([0.5, -0.5, 1.0]).double()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(weight), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(loc[c], scale[c]))
            pyro.sample("x", dist.Normal(z + offset[c], 0.2), obs=x)

    x = torch.tensor([-2.5, 0.0, 3.0], dtype=torch.float64)
    p = dist.Normal(loc + offset, (scale**2 + 0.04).sqrt())
    exact = (weight.log() + p.log_prob(x.unsqueeze(-1))).logsumexp(-1)
    assert_covers(log_evidence_by_quadrature(model, x), exact)


def test_two_layers_of_one_latent_each():
    """z2 ~ N(0, 1), z1 ~ N(0.8 z2, 0.1²), x ~ N(2 z1, 0.3²)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(0.8 * z2[..., 0], 0.1))
            pyro.sample("x", dist.Normal(2 * z1, 0.3), obs=x)

    x = torch.tensor([0.0, 1.0, -5.0], dtype=torch.float64)
    result = log_evidence_by_quadrature(model, x)
    variance = 4 * (0.64 + 0.01) + 0.09
    assert_covers(result, dist.Normal(number(0.0), variance**0.5).log_prob(x))
    cov = torch.tensor([1.6, 1.3], dtype=torch.float64)  # Cov(z2, x), Cov(z1, x)
    expected = x.unsqueeze(-1) * cov / variance
    torch.testing.assert_close(result.mean, expected, rtol=0.01, atol=0.01)  # in the model's order


def decoder_pair(prior: str, likelihood: str, activation: str, scale: float = 3.0):
    """An untrained pair of two latents whose decoder's weights are ``scale`` times as large."""
    torch.manual_seed(0)
    measure = "binary" if likelihood == "bernoulli" else "continuous"
    config = Config(
        data="digits", latent_dim=2, prior=prior, likelihood=likelihood,
        guide="diagonal_normal", encoder=f"mlp(hidden=(16, 16), activation={activation})",
        dtype="float64",
    )  # fmt: skip
    facts = Facts((3, 4), measure)
    pair = build_pair(config, facts, torch.full((3, 4), 0.4), lambda n: torch.rand(n, 3, 4).round())
    with torch.no_grad():
        for parameter in pair[0].decoder.parameters():
            parameter *= scale
    return pair


def guide_of(result):
    """q = N(E[z|x], 2 Cov[z|x]), its tails as wide as a posterior of several modes."""

    def guide(x: Tensor) -> None:
        rows = range(len(x))
        with pyro.plate("data", len(x), dim=-1):
            q = dist.MultivariateNormal(result.mean[rows], 2 * result.covariance[rows])
            pyro.sample("z", q)

    return guide


NEURAL = [
    ("standard_normal", "bernoulli", "relu"),
    ("mixture(components=4)", "bernoulli", "tanh"),
    ("laplace", "normal(scale=0.5)", "relu"),
    ("student_t(df=3.0)", "bernoulli", "relu"),
    ("vamp(components=4)", "normal(scale=0.5)", "tanh"),
    ("logistic", "bernoulli", "tanh"),
]


@pytest.mark.parametrize(
    ("prior", "likelihood", "activation"),
    [*NEURAL[:1], *(pytest.param(*case, marks=pytest.mark.slow) for case in NEURAL[1:])],
)
def test_neural_decoders_against_importance_sampling(prior, likelihood, activation):
    """Within four standard errors of IWAE-50,000, seed 1, each below 0.01 nats."""
    model, _ = decoder_pair(prior, likelihood, activation)
    torch.manual_seed(1)
    with torch.no_grad():
        x = model.decode(model.prior().sample((3,))).sample()
    result = log_evidence_by_quadrature(model, x)
    assert result.converged.all()
    sampled = log_likelihood(model, guide_of(result), x, 50_000, seed=1)
    assert sampled.standard_error.max() < 0.01
    z_scores = (sampled.log_px - result.log_px) / sampled.standard_error
    assert z_scores.abs().max() < 4


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "likelihood", "activation"), NEURAL)
def test_neural_decoders_against_a_finer_rule(prior, likelihood, activation):
    """The error covers the difference from 2·10⁻⁵ nats."""
    model, _ = decoder_pair(prior, likelihood, activation)
    torch.manual_seed(1)
    with torch.no_grad():
        x = model.decode(model.prior().sample((10,))).sample()
    fine = log_evidence_by_quadrature(model, x, tolerance=2e-5, max_evaluations=5_000_000)
    assert fine.converged.all()
    for tolerance in (1e-1, 1e-2, 1e-3):
        result = log_evidence_by_quadrature(model, x, tolerance=tolerance)
        assert ((result.log_px - fine.log_px).abs() <= result.error + fine.error).all()
        assert (result.error < tolerance).all()


@pytest.mark.parametrize("kind", ["isotropic", "ridge"])
@pytest.mark.parametrize("dim", [1, 2])
def test_bound_covers_every_quadratic_peak(dim, kind):
    """U ≥ the maximum 0 of −½ dᵀ A d at any center in the cell, however narrow; seed 0."""
    generator = torch.Generator().manual_seed(0)
    line, nodes = (
        _line_rule({1: 7, 2: 4}[dim], CPU)[0],
        _tensor_rule({1: 7, 2: 4}[dim], dim, CPU)[0],
    )
    center = 2 * torch.rand(20_000, dim, generator=generator).double() - 1
    root = torch.randn(20_000, dim, dim, generator=generator).double()
    if kind == "isotropic":
        root = torch.eye(dim).double().expand_as(root)
    offset = torch.einsum("nij,pnj->pni", root, nodes.unsqueeze(1) - center)
    L = -1e3 * (offset**2).sum(-1)
    assert L.amax(0).mean() < -1
    assert (_reach(L, line, dim) >= 0).all()


def test_integrates_other_functions_under_a_density():
    """E z², E cos z and E |z| under N(1, 0.5²), to 10⁻⁵."""

    def integrand(z: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.cat([z**2, z.cos(), z.abs()], dim=-1)
        return 3 + dist.Normal(1.0, 0.5).log_prob(z[..., 0]), g

    draws = torch.randn(1000, 2, 1, generator=torch.Generator().manual_seed(0)).double()
    result = integrate(integrand, [draws], tolerance=1e-5)
    cdf = float(dist.Normal(0.0, 1.0).cdf(number(2.0)))
    absolute = math.sqrt(2 / math.pi) * 0.5 * math.exp(-2) + (2 * cdf - 1)
    exact = torch.tensor([1.25, math.cos(1) * math.exp(-0.125), absolute], dtype=torch.float64)
    assert result.converged.all()
    assert ((result.mean - exact).abs() <= result.mean_error).all()
    assert ((result.log_integral - 3).abs() <= result.error + 1e-12).all()
    assert (result.mean_error < 1e-5).all()


def test_a_module_is_evaluated_in_double_and_left_alone():
    model, _ = decoder_pair("standard_normal", "bernoulli", "tanh")
    torch.manual_seed(1)
    x = model.decode(model.prior().sample((3,))).sample()
    exact = log_evidence_by_quadrature(model, x)
    model.float()  # rounds the weights
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rounded = log_evidence_by_quadrature(model, x.float())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert rounded.log_px.dtype == torch.float64
    torch.testing.assert_close(rounded.log_px, exact.log_px, rtol=0, atol=1e-4)
    single = log_evidence_by_quadrature(model, x.float(), double=False)
    assert ((single.log_px - rounded.log_px).abs() <= single.error + rounded.error).all()
    assert not torch.equal(single.log_px, rounded.log_px)


@pytest.mark.parametrize("chunk_size", [300, 100_000])
def test_chunk_size_does_not_change_the_answer_and_bounds_the_work(linear_gaussian, chunk_size):
    sizes = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            sizes.append(z.shape[:-1].numel())
            pyro.sample("x", dist.Normal(z @ linear_gaussian.W.T, 1.0).to_event(1), obs=x)

    x = linear_gaussian.simulate(2, seed=0)
    state = torch.get_rng_state()
    whole = log_evidence_by_quadrature(model, x)
    sizes.clear()
    result = log_evidence_by_quadrature(model, x, chunk_size=chunk_size)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(result.log_px, whole.log_px, rtol=0, atol=1e-12)
    assert max(sizes) <= max(chunk_size, 3200)  # the prior's draws come in 3,200
    assert torch.equal(result.evaluations, whole.evaluations)


def test_out_of_evaluations_says_so(linear_gaussian):
    """Stopped early, the error still covers the true one."""
    program = replace(linear_gaussian, sigma=0.02)
    x = program.simulate(4, seed=2)
    result = log_evidence_by_quadrature(program.model, x, max_evaluations=12_000)
    assert not result.converged.any()
    assert (result.evaluations < 20_000).all()
    assert ((result.log_px - program.log_evidence(x)).abs() <= result.error).all()


def latents(**sites):
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            for name, fn in sites.items():
                pyro.sample(name, fn)
            pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=x)

    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (latents(z=dist.Normal(torch.zeros(3), 1.0).to_event(1)), "got 3 .z .3.."),
        (latents(a=dist.Normal(torch.zeros(2), 1.0).to_event(1), b=dist.Normal(0.0, 1.0)),
         "got 3 .a .2., b ..."),
        (latents(), "has no latent that is drawn"),
        (latents(z=dist.Gamma(torch.tensor(2.0), 1.0)), "'z' has the support"),
        (latents(z=dist.Uniform(torch.tensor(0.0), 1.0)), "'z' has the support"),
        (latents(z=dist.Poisson(torch.tensor(2.0))), "'z' is discrete"),
        (latents(z=dist.Delta(torch.tensor(2.0))), "draws are all the same"),
        (latents(z=dist.Normal(torch.tensor(math.nan), 1.0, validate_args=False)), "NaN|nan|same"),
    ],
)  # fmt: skip
def test_what_quadrature_cannot_do_is_refused_in_one_line(model, message):
    with pytest.raises(InputError, match=message) as error:
        log_evidence_by_quadrature(model, torch.zeros(2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan, 2.0])
def test_bad_tolerance(linear_gaussian, tolerance):
    with pytest.raises(InputError, match="tolerance must lie"):
        log_evidence_by_quadrature(linear_gaussian.model, torch.zeros(1, 5), tolerance=tolerance)


class Nonfinite(nn.Module):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            logits = torch.where(z > 1, math.nan, 0.0)
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False), obs=x)


def test_a_density_that_is_nan_is_refused():
    with pytest.raises(InputError, match=r"log p\(x, z\) is nan at datum 0, z = "):
        log_evidence_by_quadrature(Nonfinite(), torch.ones(1))
