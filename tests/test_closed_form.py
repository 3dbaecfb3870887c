"""The closed forms against torch's, quadrature, Monte Carlo, and the exact evidence."""

import math
import re
from inspect import isfunction
from pathlib import Path

import pyro.distributions as pyro_dist
import pytest
import torch
import torch.distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro_vae.guides.full_rank_normal import FullRankNormal
from pyro_vae.guides.low_rank_normal import LowRankNormal
from pyro_vae.models.linear_gaussian import LinearGaussian
from pyro_vae.models.vae import VAE

from pyro_vae import identities
from pyro_vae.closed_form import (
    NoClosedForm,
    affine_normal_elbo,
    exact_elbo,
    kl_diagonal_normal,
    kl_divergence,
    kl_full_rank_normal,
    kl_gamma,
    kl_laplace,
    kl_normal_laplace,
    kl_per_dim,
    mask_of,
)
from pyro_vae.components import build
from pyro_vae.errors import InputError
from pyro_vae.networks import Decoder, Encoder, linear, mlp
from pyro_vae.student_t import LocationScaleT
from pyro_vae.textbook import TEXTBOOK_LOSSES

SHAPE = (4, 3)


def draw(shape, seed, positive=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (z.exp() if positive else z).to(dtype)


def tril(shape, seed, dtype=torch.float64):
    """Lower triangular, a positive diagonal, ``[*shape, shape[-1]]``."""
    L = draw((*shape, shape[-1]), seed).tril(-1)
    return (L + torch.diag_embed(draw(shape, seed + 1, positive=True))).to(dtype)


def normal(seed, shape=SHAPE, dtype=torch.float64):
    return dist.Normal(draw(shape, seed, dtype=dtype), draw(shape, seed + 1, True, dtype))


def laplace(seed, shape=SHAPE, dtype=torch.float64):
    return dist.Laplace(draw(shape, seed, dtype=dtype), draw(shape, seed + 1, True, dtype))


def gamma(seed, shape=SHAPE, dtype=torch.float64):
    # Above 1: a density without a pole at 0, which the quadrature would miss.
    concentration = 1 + draw(shape, seed, True, dtype)
    return dist.Gamma(concentration, draw(shape, seed + 1, True, dtype))


def full(seed, shape=SHAPE, dtype=torch.float64):
    L = tril(shape, seed + 1, dtype)
    return dist.MultivariateNormal(draw(shape, seed, dtype=dtype), scale_tril=L)


def low(seed, shape=SHAPE, dtype=torch.float64):
    return dist.LowRankMultivariateNormal(
        draw(shape, seed, dtype=dtype),
        draw((*shape, 2), seed + 1, dtype=dtype),
        draw(shape, seed + 2, True, dtype),
    )


def of(fn, event_dim=1):
    return dist.Independent(fn, event_dim)


PRODUCTS = {"normal": normal, "laplace": laplace, "gamma": gamma}
VECTORS = {"diagonal": lambda seed, **k: of(normal(seed, **k)), "full": full, "low": low}
every_product = pytest.mark.parametrize("family", PRODUCTS.values(), ids=PRODUCTS)
every_vector_pair = pytest.mark.parametrize(
    ("one", "other"), [(a, b) for a in VECTORS.values() for b in VECTORS.values()],
    ids=[f"{a}-{b}" for a in VECTORS for b in VECTORS],
)  # fmt: skip


def as_multivariate(fn):
    return dist.MultivariateNormal(fn.mean, fn.covariance_matrix) if fn.event_shape else fn


def covariance(fn):
    return torch.diag_embed(fn.variance) if isinstance(fn, dist.Independent) else (
        fn.covariance_matrix
    )  # fmt: skip


# ---- against torch


@every_product
def test_products_are_torchs(family):
    q, p = family(0), family(5)
    torch.testing.assert_close(kl_per_dim(of(q), of(p)), dist.kl_divergence(q, p))
    torch.testing.assert_close(kl_divergence(of(q), of(p)), dist.kl_divergence(q, p).sum(-1))


@every_vector_pair
def test_normals_of_any_covariance_are_torchs(one, other):
    q, p = one(0), other(10)
    expected = dist.kl_divergence(*(dist.MultivariateNormal(f.mean, covariance(f)) for f in (q, p)))
    torch.testing.assert_close(kl_divergence(q, p), expected)


def test_standard_normal_is_a_case():
    """½ Σ (μ² + σ² − 1 − log σ²), for diagonal and full covariance: ½ (tr + |μ|² − D − log det)."""
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    q, p = normal(0), of(dist.Normal(zero, one))
    expected = 0.5 * (q.loc**2 + q.scale**2 - 1 - (q.scale**2).log()).sum(-1)
    torch.testing.assert_close(kl_divergence(of(q), p), expected)
    q = full(0)
    S = q.covariance_matrix
    trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)
    expected = 0.5 * (trace + (q.loc**2).sum(-1) - 3 - S.logdet())
    torch.testing.assert_close(kl_divergence(q, p), expected)


def test_values_by_hand():
    """Each at numbers where it is short: KL(N(1, 1) ‖ N(0, 2²)) = log 2 − ¼, and so on."""
    one, two, zero = (torch.tensor(v, dtype=torch.float64) for v in (1.0, 2.0, 0.0))
    assert float(kl_diagonal_normal(one, one, zero, two)) == pytest.approx(math.log(2) - 0.25)
    # log 2 + 1/2 + ½ e⁻¹ − 1
    expected = math.log(2) - 0.5 + 0.5 * math.exp(-1)
    assert float(kl_laplace(one, one, zero, two)) == pytest.approx(expected)
    # μ = m: σ √(2/π)/s + log 2s/σ − ½ log 2πe
    expected = math.sqrt(2 / math.pi) / 2 + math.log(4) - 0.5 * math.log(2 * math.pi * math.e)
    assert float(kl_normal_laplace(one, one, one, two)) == pytest.approx(expected)
    # a = 2, b = 1 against c = d = 1: ψ(2) − log Γ(2) + 0 = 1 − γ
    expected = 1 - 0.5772156649015329
    assert float(kl_gamma(two, one, one, one)) == pytest.approx(expected)
    eye = torch.eye(2, dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    expected = 2 * math.log(2) + 0.5 * (2 / 4 + 2 / 4 - 2)
    assert float(kl_full_rank_normal(ones, eye, 0 * ones, 2 * eye)) == pytest.approx(expected)


@pytest.mark.parametrize("family", [*PRODUCTS.values(), *VECTORS.values()],
                         ids=[*PRODUCTS, *VECTORS])  # fmt: skip
def test_zero_of_itself_and_positive_otherwise(family):
    q, p = family(0), family(5)
    q, p = (of(fn) if not fn.event_shape else fn for fn in (q, p))
    torch.testing.assert_close(kl_divergence(q, q), torch.zeros(4, dtype=torch.float64))
    assert (kl_divergence(q, p) > 0.01).all()


def test_normal_against_laplace():
    """Torch's, quadrature (2·10⁵ points over ±12 sd), and gradients by finite differences."""
    q, p = normal(0), laplace(5)
    torch.testing.assert_close(kl_per_dim(of(q), of(p)), dist.kl_divergence(q, p))
    u = torch.linspace(-12, 12, 200_001, dtype=torch.float64).reshape(-1, 1, 1)
    z = q.loc + q.scale * u
    integrand = q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)) * q.scale
    expected = torch.trapezoid(integrand, u.expand_as(integrand), dim=0)
    torch.testing.assert_close(kl_per_dim(q, p), expected, rtol=1e-6, atol=1e-6)
    inputs = [t.clone().requires_grad_() for t in (q.loc, q.scale, p.loc, p.scale)]
    assert torch.autograd.gradcheck(kl_normal_laplace, inputs)


# ---- against the definition


@every_product
def test_products_by_quadrature(family):
    """∫ q (log q − log p) dz: the trapezoid rule on 4·10⁵ points, in u, z = exp(u) for gamma."""
    q, p = family(0, shape=(6,)), family(5, shape=(6,))
    positive = isinstance(q, dist.Gamma)
    u = torch.linspace(-60, 60, 400_001, dtype=torch.float64).unsqueeze(-1)
    u = u / 2 if positive else q.mean + q.stddev * u  # a grid point on q's kink
    z = u.exp() if positive else u
    integrand = q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)) * (z if positive else 1)
    expected = torch.trapezoid(integrand, u.expand_as(integrand), dim=0)
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-6, atol=1e-6)


def test_two_dimensional_normals_by_quadrature():
    """∫∫ q (log q − log p) on a grid of 801² over ±10 of q's standard deviations."""
    q, p = full(0, shape=(2,)), full(5, shape=(2,))
    grid = torch.linspace(-10, 10, 801, dtype=torch.float64)
    y = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
    z = q.mean + q.stddev * y
    integrand = q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))
    cell = (grid[1] - grid[0]) ** 2 * q.stddev.prod()
    assert float(kl_divergence(q, p)) == pytest.approx(float(integrand.sum() * cell), rel=1e-6)


MONTE_CARLO = {**{k: lambda s, f=f: of(f(s)) for k, f in PRODUCTS.items()}, "full": full,
               "low": low}  # fmt: skip


@pytest.mark.parametrize("family", MONTE_CARLO.values(), ids=MONTE_CARLO)
def test_monte_carlo(family):
    """Within four standard errors of 100,000 draws, seed 3: 4 elements, 6·10⁻⁵ false alarms each.

    The standard error is below 2% of the KL, so that a missing ½ would be noticed.
    """
    q, p = family(0), family(5)
    torch.manual_seed(3)
    z = q.sample((100_000,))
    terms = q.log_prob(z) - p.log_prob(z)
    error = terms.std(0) / math.sqrt(len(z))
    exact = kl_divergence(q, p)
    assert (error < 0.02 * exact).all()
    assert ((terms.mean(0) - exact).abs() < 4 * error).all()


# ---- gradients


@pytest.mark.parametrize("formula", [kl_diagonal_normal, kl_laplace])
def test_gradients_of_location_and_scale(formula):
    inputs = [draw((3,), i, positive=i % 2 == 1).requires_grad_() for i in range(4)]
    assert torch.autograd.gradcheck(formula, inputs)


def test_gradients_of_gamma():
    inputs = [(0.5 + draw((3,), i, positive=True)).requires_grad_() for i in range(4)]
    assert torch.autograd.gradcheck(kl_gamma, inputs)


def test_gradients_of_full_rank():
    inputs = [draw((2, 3), 0), tril((2, 3), 1), draw((2, 3), 3), tril((2, 3), 4)]
    assert torch.autograd.gradcheck(kl_full_rank_normal, [v.requires_grad_() for v in inputs])


def test_gradients_of_low_rank():
    """Through the factor by QR."""

    def kl(loc, factor, diagonal, prior_factor):
        q = dist.LowRankMultivariateNormal(loc, factor, diagonal.exp())
        p = dist.LowRankMultivariateNormal(0 * loc, prior_factor, torch.ones_like(diagonal))
        return kl_divergence(q, p)

    inputs = [draw((2, 3), 0), draw((2, 3, 2), 1), draw((2, 3), 2), draw((2, 3, 1), 3)]
    assert torch.autograd.gradcheck(kl, [v.requires_grad_() for v in inputs])


# ---- float32


@every_product
def test_float32_at_scale_ratios_from_1e_minus_4_to_1e4(family):
    """Within 1e-5 of the larger of 1 and the float64 value, gradients finite."""
    ratio = torch.logspace(-4, 4, 33, dtype=torch.float64)
    one = torch.ones_like(ratio)
    if family is gamma:
        tables = [(2.5 * one, ratio, 1.5 * one, one), (one, one, one, ratio)]
    else:
        shift = ratio.clamp(max=1.0)  # |μ − m| of the order of q's scale
        tables = [(shift, ratio, 0 * one, one), (0 * one, one, shift, ratio)]
    make = type(family(0))
    for a, b, c, d in tables:
        exact = kl_divergence(make(a, b), make(c, d))
        a, b, c, d = (v.float().requires_grad_() for v in (a, b, c, d))
        rounded = kl_divergence(make(a, b), make(c, d))
        assert rounded.dtype == torch.float32
        assert ((rounded - exact).abs() <= 1e-5 * exact.clamp(min=1)).all()
        for gradient in torch.autograd.grad(rounded.sum(), (a, b, c, d)):
            assert torch.isfinite(gradient).all()


def test_large_gammas_in_float32():
    """Concentrations of 10⁶, whose log Γ in float32 is off by a nat: KL ≈ ½ (b/d − 1)² 10⁶."""
    a = torch.full((3,), 1e6)
    b = torch.tensor([1.0, 1.001, 0.999])
    kl = kl_gamma(a, b, a, torch.ones(3))
    expected = 1e6 * ((b.double() - 1) ** 2 / 2)
    torch.testing.assert_close(kl.double(), expected, rtol=2e-3, atol=1e-6)


@every_vector_pair
def test_float32_of_any_covariance(one, other):
    """Scales of 1e-4 and 1e4 in one covariance."""
    stretch = torch.tensor([1e-4, 1.0, 1e4], dtype=torch.float64)

    def stretched(fn, dtype):
        loc = (fn.mean * stretch).to(dtype)
        if isinstance(fn, dist.Independent):
            return of(dist.Normal(loc, (fn.stddev * stretch).to(dtype)))
        if isinstance(fn, dist.LowRankMultivariateNormal):
            factor = fn.cov_factor * stretch.unsqueeze(-1)
            return dist.LowRankMultivariateNormal(
                loc, factor.to(dtype), (fn.cov_diag * stretch**2).to(dtype), validate_args=False
            )
        L = fn.scale_tril * stretch.unsqueeze(-1)
        return dist.MultivariateNormal(loc, scale_tril=L.to(dtype))

    kl = kl_divergence(*(stretched(f, torch.float32) for f in (one(0), other(10))))
    # The KL does not depend on the units of z.
    torch.testing.assert_close(
        kl, kl_divergence(one(0), other(10)).float(), rtol=2e-4, atol=2e-4
    )  # fmt: skip


def test_nearly_singular_covariances_in_float32():
    """q = p with correlations of 1 − 10⁻⁸: an inverted covariance would be singular."""
    L = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])
    q = dist.MultivariateNormal(torch.zeros(2), scale_tril=L)
    p = dist.MultivariateNormal(torch.zeros(2), scale_tril=2 * L)
    expected = 2 * math.log(2) + 0.5 * (2 / 4 - 2)
    assert float(kl_divergence(q, p)) == pytest.approx(expected, abs=1e-5)


def test_low_rank_with_a_large_factor_in_float32():
    """A diagonal of 1 beside a factor of 3,000: A Aᵀ in float32 would have lost the 1."""
    factor = 3000 * draw((3, 1), 0, dtype=torch.float32)
    q = dist.LowRankMultivariateNormal(torch.zeros(3), factor, torch.ones(3), validate_args=False)
    exact = dist.MultivariateNormal(
        torch.zeros(3).double(), factor.double() @ factor.double().T + torch.eye(3).double()
    )
    p, wide = (dist.Normal(torch.zeros(3, dtype=d), torch.full((3,), 3e3, dtype=d))
               for d in (torch.float32, torch.float64))  # fmt: skip
    expected = dist.kl_divergence(exact, dist.MultivariateNormal(wide.mean, torch.diag_embed(
        wide.variance)))  # fmt: skip
    assert float(kl_divergence(q, of(p))) == pytest.approx(float(expected), abs=1e-2)


# ---- shapes, wrappers


@pytest.mark.parametrize("p_shape", [(3,), (5, 3), (7, 5, 3), (7, 1, 3)])
@pytest.mark.parametrize("vector", [False, True], ids=["diagonal", "full"])
def test_broadcasts_over_particles_and_data(p_shape, vector):
    """q of [7, 5] particles by data, expanded from [5]; p of any batch that broadcasts."""
    make = full if vector else lambda seed, shape: of(normal(seed, shape=shape))
    q, p = make(0, shape=(5, 3)), make(9, shape=p_shape)
    kl = kl_divergence(q.expand((7, 5)), p)
    assert kl.shape == (7, 5)
    one, other = (dist.MultivariateNormal(f.mean, covariance(f)) for f in (q, p))
    torch.testing.assert_close(kl, dist.kl_divergence(one, other).expand(7, 5))
    assert kl_divergence(q, p.expand((7, 5))).shape == (7, 5)


def test_particles_share_one_solve(monkeypatch):
    """q and N(0, I) expanded to 100 particles of 5 data: no matrix for each particle."""
    solve, sizes = torch.linalg.solve_triangular, []

    def record(A, B, **options):
        sizes.append(torch.broadcast_shapes(A.shape[:-2], B.shape[:-2]).numel())
        return solve(A, B, **options)

    monkeypatch.setattr(torch.linalg, "solve_triangular", record)
    p = of(dist.Normal(torch.zeros(3), torch.ones(3))).expand((100, 5))
    q = full(0, shape=(5, 3), dtype=torch.float32).expand((100, 5))
    assert kl_divergence(q, p).shape == (100, 5)
    assert sizes == [5, 5]


def test_batch_dimensions_are_kept_and_event_dimensions_summed():
    q, p = normal(0, shape=(6, 2, 3)), normal(5, shape=(6, 2, 3))
    each = dist.kl_divergence(q, p)
    torch.testing.assert_close(kl_divergence(q, p), each)
    torch.testing.assert_close(kl_divergence(of(q), of(p)), each.sum(-1))
    torch.testing.assert_close(kl_divergence(of(q, 2), of(p, 2)), each.sum((-2, -1)))
    torch.testing.assert_close(kl_divergence(of(of(q)), of(p, 2)), each.sum((-2, -1)))
    assert kl_per_dim(of(q, 2), of(p, 2)).shape == (6, 2, 3)


def test_a_batch_of_vectors_is_an_event():
    """Two vectors a datum, full rank each, against a product over all six dimensions."""
    q, p = full(0, shape=(4, 2, 3)), normal(5, shape=(4, 2, 3))
    found = kl_divergence(of(q), of(p, 2))
    torch.testing.assert_close(found, dist.kl_divergence(q, dist.MultivariateNormal(
        p.loc, torch.diag_embed(p.scale**2))).sum(-1))  # fmt: skip


def test_pyros_classes_and_expansions():
    q, p = normal(0), normal(5)
    expected = dist.kl_divergence(q, p).sum(-1)
    own = [pyro_dist.Normal(f.loc, f.scale).to_event(1) for f in (q, p)]
    torch.testing.assert_close(kl_divergence(*own), expected)
    torch.testing.assert_close(kl_divergence(own[0], of(p)), expected)
    expanded = [ExpandedDistribution(fn, (2, 4)) for fn in own]
    torch.testing.assert_close(kl_divergence(*expanded), expected.expand(2, 4))


def test_an_expansion_within_the_event_counts_every_dimension():
    """N(0, 1) expanded to three dimensions, then made an event."""
    scalar = pyro_dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0)
    p = of(ExpandedDistribution(scalar, (3,)))
    one = pyro_dist.Normal(torch.ones(1, dtype=torch.float64), 1.0)
    q = of(ExpandedDistribution(one, (3,)))
    assert float(kl_divergence(q, p)) == pytest.approx(1.5)
    assert float(kl_divergence(full(0, shape=(3,)), p)) == pytest.approx(
        float(dist.kl_divergence(full(0, shape=(3,)), dist.MultivariateNormal(
            torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)))))  # fmt: skip


def test_chi_squared_is_a_gamma():
    q, p = pyro_dist.Chi2(torch.tensor(5.0)), pyro_dist.Gamma(torch.tensor(2.0), torch.tensor(1.0))
    torch.testing.assert_close(kl_divergence(q, p), dist.kl_divergence(q, p))


def pyro_normal(seed, shape=SHAPE):
    fn = normal(seed, shape)
    return pyro_dist.Normal(fn.loc, fn.scale)


def test_masked_elements_count_nothing():
    mask = torch.tensor([True, False, True, False])
    q, p = pyro_normal(0).to_event(1), pyro_normal(5).to_event(1)
    expected = dist.kl_divergence(q, p) * mask
    torch.testing.assert_close(kl_divergence(q.mask(mask), p.mask(mask.clone())), expected)
    torch.testing.assert_close(kl_divergence(q.mask(True), p), dist.kl_divergence(q, p))
    assert (kl_divergence(q.mask(False), p.mask(False)) == 0).all()
    assert mask_of(q) is None
    assert mask_of(q.mask(mask)).shape == (4, 1)


def test_masks_within_an_event():
    mask = draw(SHAPE, 20) > 0
    q, p = pyro_normal(0), pyro_normal(5)
    expected = (dist.kl_divergence(q, p) * mask).sum(-1)
    found = kl_divergence(q.mask(mask).to_event(1), p.mask(mask).to_event(1))
    torch.testing.assert_close(found, expected)
    f, g = (
        pyro_dist.MultivariateNormal(d.loc, scale_tril=d.scale_tril) for d in (full(0), full(5))
    )
    rows = mask[:, 0]
    found = kl_divergence(f.mask(rows).to_event(1), g.mask(rows).to_event(1))
    torch.testing.assert_close(found, (dist.kl_divergence(f, g) * rows).sum())


def test_unlike_masks_have_no_kl():
    mask = torch.tensor([True, False, True, False])
    q, p = pyro_normal(0).to_event(1), pyro_normal(5).to_event(1)
    for one, other in ((q.mask(mask), p), (q, p.mask(mask)), (q.mask(mask), p.mask(~mask))):
        with pytest.raises(NoClosedForm, match=r"no closed form .* masked unlike"):
            kl_divergence(one, other)


# ---- what has none


class Doubled(pyro_dist.Normal):
    """Looks like a normal and is none."""

    def log_prob(self, value):
        return 2 * super().log_prob(value)


class Renamed(pyro_dist.Normal):
    """A normal under another name."""


def flow(loc, scale):
    base = pyro_dist.Normal(loc, scale).to_event(1)
    steps = [pyro_dist.transforms.AffineTransform(0.0, 2.0, event_dim=1)]
    return pyro_dist.TransformedDistribution(base, steps)


def vector_mixture(loc, scale):
    weights = pyro_dist.Categorical(torch.ones(4, dtype=loc.dtype))
    return pyro_dist.MixtureSameFamily(weights, pyro_dist.Normal(loc, scale).to_event(1))


NONE = {
    "flow": flow,
    "log normal": lambda loc, scale: pyro_dist.LogNormal(loc, scale).to_event(1),
    "student t": lambda loc, scale: LocationScaleT(5 * scale, loc, scale).to_event(1),
    "logistic": lambda loc, scale: pyro_dist.Logistic(loc, scale).to_event(1),
    "half normal": lambda loc, scale: pyro_dist.HalfNormal(scale).to_event(1),
    "mixture same family": vector_mixture,
    "point mass": lambda loc, scale: pyro_dist.Delta(loc, event_dim=1),
    "doubled": lambda loc, scale: Doubled(loc, scale).to_event(1),
    "folded": lambda loc, scale: pyro_dist.FoldedDistribution(
        pyro_dist.Normal(loc, scale)).to_event(1),
}  # fmt: skip


@pytest.mark.parametrize(("words", "make"), NONE.items(), ids=NONE)
def test_no_closed_form_names_both_families(words, make):
    q, p = normal(0), normal(5)
    other = make(p.loc, p.scale)
    for vector, name in ((of(q), "normal"), (full(0), "full-rank normal")):
        with pytest.raises(NoClosedForm, match=rf"(?i)no closed form .*KL\({name} ‖ {words}\)"):
            kl_divergence(vector, other)
        with pytest.raises(NoClosedForm, match=rf"(?i)no closed form .*KL\({words} ‖ {name}\)"):
            kl_divergence(other, vector)
        with pytest.raises(NoClosedForm, match="no closed form"):
            kl_per_dim(vector, other)


def test_a_subclass_that_keeps_the_density_is_a_normal():
    q, p = normal(0), normal(5)
    found = kl_divergence(Renamed(q.loc, q.scale).to_event(1), of(p))
    torch.testing.assert_close(found, dist.kl_divergence(q, p).sum(-1))


def test_no_kl_a_dimension_of_a_vector():
    with pytest.raises(NoClosedForm, match=r"KL\(full-rank normal ‖ normal\) dimension by dimens"):
        kl_per_dim(full(0), of(normal(5)))


@pytest.mark.parametrize("p", [normal(5), of(normal(5, shape=(4, 2))), of(normal(5), 2)])
def test_other_dimensions_are_refused(p):
    with pytest.raises(InputError, match=r"over the same dimensions; got event_shape \(3,\) of q"):
        kl_divergence(of(normal(0)), p)


PRIORS = ("vamp(components=4)", "mixture(components=3)", "flow", "student_t", "logistic")


@pytest.mark.parametrize("spec", PRIORS)
def test_priors_without_one(spec):
    torch.manual_seed(0)
    body, features = mlp((8,)).encoder((4,))
    guide = build("guide", "diagonal_normal", encoder=Encoder(body, (4,), features), latent_dim=3)
    offered = {"latent_dim": 3, "posterior": guide.posterior, "event_shape": (4,)}
    prior = build("prior", spec, **offered)
    q = guide.posterior(torch.zeros(5, 4))
    with pytest.raises(NoClosedForm, match=r"no closed form here of KL\(normal ‖ [A-Za-z ]+\)"):
        kl_divergence(q, prior())


@pytest.mark.parametrize("spec", ["student_t", "iaf", "spline_flow", "planar", "delta"])
def test_guides_without_one(spec):
    torch.manual_seed(0)
    body, features = mlp((8,)).encoder((4,))
    guide = build("guide", spec, encoder=Encoder(body, (4,), features), latent_dim=3)
    p = of(dist.Normal(torch.zeros(3), torch.ones(3)))
    with pytest.raises(NoClosedForm, match=r"no closed form here of KL\([A-Za-z ]+ ‖ normal\)"):
        kl_divergence(guide.posterior(torch.zeros(5, 4)), p)


# ---- the guides' own normals


def random_guide(make, seed=0, **options):
    torch.manual_seed(seed)
    guide = make(Encoder(torch.nn.Flatten(), (4,), 4), 3, **options).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter))
    return guide


GUIDES = {"full_rank_normal": FullRankNormal, "low_rank_normal": LowRankNormal}


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)
@pytest.mark.parametrize("as_prior", [False, True], ids=["as q", "as p"])
def test_guides_with_their_own_density(make, as_prior):
    """Before and after a draw, under particles, as q and as p."""
    fn = random_guide(make).posterior(draw((4, 4), 1))
    plain = dist.MultivariateNormal(fn.mean, fn.covariance_matrix)
    for other in (of(normal(3)), full(3)):
        q, p = (other, fn) if as_prior else (fn, other)
        as_torch = dist.MultivariateNormal(other.mean, covariance(other))
        pair = (as_torch, plain) if as_prior else (plain, as_torch)
        expected = dist.kl_divergence(*pair)
        torch.testing.assert_close(kl_divergence(q, p), expected)
        fn.rsample()
        torch.testing.assert_close(kl_divergence(q, p), expected)
        q, p = q.expand((6, 4)), p.expand((6, 4))
        torch.testing.assert_close(kl_divergence(q, p), expected.expand(6, 4))


def test_a_subclass_that_changes_a_declared_density_is_refused():
    fn = random_guide(FullRankNormal).posterior(draw((4, 4), 1))

    class Tempered(type(fn)):
        def log_prob(self, value):
            return 0.5 * super().log_prob(value)

    tempered = Tempered(fn.loc, scale_tril=fn.scale_tril, validate_args=False)
    with pytest.raises(NoClosedForm, match="KL\\(tempered ‖ normal\\)"):
        kl_divergence(tempered, of(normal(3)))


# ---- the ELBO without Monte Carlo


def test_elbo_is_that_of_the_fixture(linear_gaussian):
    x = linear_gaussian.simulate(6, seed=0)
    loc, scale = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)(x)
    sigma = torch.tensor(linear_gaussian.sigma, dtype=torch.float64)
    found = affine_normal_elbo(
        x, of(dist.Normal(loc, scale)), linear_gaussian.W, linear_gaussian.b, sigma
    )
    torch.testing.assert_close(found, linear_gaussian.elbo(x, loc, scale))


def test_evidence_is_elbo_plus_kl_to_the_posterior(linear_gaussian):
    """log p(x) = ELBO(q) + KL(q ‖ p(z|x)), for every covariance; at q = p(z|x) the ELBO."""
    x = linear_gaussian.simulate(4, seed=0)
    p, evidence = linear_gaussian.posterior(x), linear_gaussian.log_evidence(x)
    sigma = torch.tensor(linear_gaussian.sigma, dtype=torch.float64)

    def elbo(q):
        return affine_normal_elbo(x, q, linear_gaussian.W, linear_gaussian.b, sigma)

    torch.testing.assert_close(elbo(p), evidence)
    for family in VECTORS.values():
        q = family(0, shape=(4, 2))
        assert (elbo(q) < evidence - 0.1).all()
        torch.testing.assert_close(elbo(q) + kl_divergence(q, p), evidence)


@pytest.mark.parametrize("family", VECTORS.values(), ids=VECTORS)
def test_elbo_by_monte_carlo_with_unlike_scales_and_prior(family):
    """σ a dimension, a prior of its own: within four standard errors of 200,000 draws, seed 2."""
    q, prior = family(0, shape=(4, 3)), full(7, shape=(3,))
    W, b, scale = draw((5, 3), 1), draw((5,), 2), draw((5,), 3, positive=True)
    x = draw((4, 5), 4)
    torch.manual_seed(2)
    z = q.sample((200_000,))
    fit = dist.Normal(z @ W.T + b, scale).log_prob(x).sum(-1)
    terms = fit + prior.log_prob(z) - q.log_prob(z)
    error = terms.std(0) / math.sqrt(len(z))
    exact = affine_normal_elbo(x, q, W, b, scale, prior)
    assert (error < 0.01 * exact.abs()).all()
    assert ((terms.mean(0) - exact).abs() < 4 * error).all()


def test_elbo_gradients():
    def elbo(x, loc, L, W, b, scale, prior_loc, prior_scale):
        q = dist.MultivariateNormal(loc, scale_tril=L, validate_args=False)
        return affine_normal_elbo(x, q, W, b, scale, of(dist.Normal(prior_loc, prior_scale)))

    inputs = [draw((2, 4), 0), draw((2, 3), 1), tril((2, 3), 2), draw((4, 3), 4), draw((4,), 5),
              draw((4,), 6, True), draw((3,), 7), draw((3,), 8, True)]  # fmt: skip
    assert torch.autograd.gradcheck(elbo, [v.requires_grad_() for v in inputs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elbo_keeps_the_dtype(dtype):
    W, b, x = draw((5, 3), 1, dtype=dtype), draw((5,), 2, dtype=dtype), draw((4, 5), 4, dtype=dtype)
    scale = torch.tensor(0.1, dtype=dtype)
    found = affine_normal_elbo(x, of(normal(0, dtype=dtype)), W, b, scale)
    exact = affine_normal_elbo(
        x.double(), of(normal(0)), W.double(), b.double(), torch.tensor(0.1, dtype=torch.float64)
    )
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_elbo_refusals():
    W, b, x = draw((5, 3), 1), draw((5,), 2), draw((4, 5), 4)
    one = torch.ones((), dtype=torch.float64)
    with pytest.raises(NoClosedForm, match="no closed form here of the ELBO: q is a Laplace"):
        affine_normal_elbo(x, of(laplace(0)), W, b, one)
    with pytest.raises(NoClosedForm, match=r"KL\(normal ‖ gamma\)"):
        affine_normal_elbo(x, of(normal(0)), W, b, one, of(gamma(0)))
    with pytest.raises(InputError, match=r"a weight of shape \[5, 3\], .* got \[3, 5\]"):
        affine_normal_elbo(x, of(normal(0)), W.T, b, one)


def pair(guide="diagonal_normal", prior="standard_normal", likelihood="normal(scale=learned)",
         decoder=linear, make=LinearGaussian, seed=0):  # fmt: skip
    torch.manual_seed(seed)
    p, noise = build("prior", prior, latent_dim=3), build("likelihood", likelihood)
    if make is LinearGaussian:
        model = make(p, noise, 3, (2, 2))
    else:
        P = noise.params_per_dim
        model = make(p, noise, Decoder(decoder().decoder(3, (2, 2), P), 3, (2, 2), P), (2, 2))
    body, features = mlp((8,)).encoder((2, 2))
    encoder = Encoder(body, (2, 2), features)
    return model.double(), build(
        "guide", guide, encoder=encoder, latent_dim=3, model=model
    ).double()  # fmt: skip


@pytest.mark.parametrize("guide", ["diagonal_normal", "full_rank_normal", "low_rank_normal"])
def test_exact_elbo_of_a_pair(guide):
    """ELBO + KL to the model's posterior is its evidence; gradients reach every parameter."""
    model, q = pair(guide)
    x = draw((6, 2, 2), 1)
    elbo = exact_elbo(model, q, x)
    total = elbo + kl_divergence(q.posterior(x), model.posterior(x))
    torch.testing.assert_close(total, model.log_evidence(x))
    elbo.sum().backward()
    for name, parameter in [*model.named_parameters(), *q.named_parameters()]:
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_exact_elbo_of_the_exact_posterior_is_the_evidence():
    model, q = pair("exact_posterior")
    x = draw((6, 2, 2), 1)
    torch.testing.assert_close(exact_elbo(model, q, x), model.log_evidence(x))


def test_exact_elbo_of_an_affine_vae_with_its_own_prior():
    """Within four standard errors of 200,000 weights, seed 4."""
    model, q = pair("full_rank_normal", "normal", "normal(scale=0.7)", make=VAE)
    with torch.no_grad():
        model.prior.loc.add_(0.5)
        model.prior.raw_scale.add_(0.5)
    x = draw((3, 2, 2), 1)
    torch.manual_seed(4)
    posterior, p = q.posterior(x), model.prior()
    z = posterior.sample((200_000,))
    terms = model.decode(z).log_prob(x) + p.log_prob(z) - posterior.log_prob(z)
    error = terms.std(0) / math.sqrt(len(z))
    assert ((terms.mean(0) - exact_elbo(model, q, x)).abs() < 4 * error).all()


REFUSED = {
    "decoder": ({"make": VAE, "decoder": lambda: mlp((5,))}, "one affine layer only"),
    "likelihood": ({"make": VAE, "likelihood": "bernoulli"}, "a normal likelihood of one scale"),
    "scale": (
        {"make": VAE, "likelihood": "normal(scale=per_pixel)"},
        "a normal likelihood of one scale",
    ),
    "prior": ({"make": VAE, "prior": "logistic"}, r"KL\(normal ‖ "),
    "guide": ({"guide": "iaf"}, "no closed form here of the ELBO: q is a flow"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_exact_elbo_refusals(options, message):
    model, q = pair(**options)
    with pytest.raises(InputError, match=message):
        exact_elbo(model, q, draw((6, 2, 2), 1))


def test_exact_elbo_refuses_a_scale_that_follows_z():
    """One parameter a dimension, and σ = exp(z): normal, and not affine-normal."""
    model, q = pair(make=VAE)
    model.decode = lambda z: pyro_dist.Normal(model.decoder(z)[..., 0], z.exp()[..., :1, None])
    with pytest.raises(InputError, match=r"x\|z is N\(W z \+ b, diag σ²\) only"):
        exact_elbo(model, q, draw((6, 2, 2), 1))


def test_exact_elbo_refuses_a_guide_that_is_a_function():
    with pytest.raises(InputError, match=r"a guide with posterior\(x\)"):
        exact_elbo(pair()[0], lambda x: None, draw((6, 2, 2), 1))


def test_the_derivation_names_functions_and_tests_that_exist():
    tests = Path(__file__).parent
    page = tests.parent / "docs" / "derivation.md"
    if not page.exists():
        pytest.skip("no docs beside the tests")
    text = page.read_text(encoding="utf-8")
    files = (
        "test_closed_form.py", "objectives/test_closed_form.py", "test_identities.py",
        "comparison/test_marks_and_units.py", "likelihoods/test_bernoulli.py",
        "likelihoods/test_normal.py", "test_densities.py", "guides/test_diagonal_normal.py",
        "objectives/test_unbiased_gradients.py", "test_textbook.py", "test_generation.py",
        "test_corruptions.py", "test_training.py",
    )  # fmt: skip
    code = "".join((tests / name).read_text(encoding="utf-8") for name in files)
    named = set(re.findall(r"`(test_\w+)", text))
    assert len(named) > 20
    assert not [name for name in named if f"def {name}(" not in code]
    for function in (kl_diagonal_normal, kl_full_rank_normal, kl_laplace, kl_normal_laplace,
                     kl_gamma, affine_normal_elbo, exact_elbo, kl_divergence):  # fmt: skip
        assert f"`{function.__name__}`" in text
    for loss in TEXTBOOK_LOSSES:
        assert f"`{loss.name}`" in text
    for name in identities.__all__:
        is_function = isfunction(getattr(identities, name))
        assert not is_function or f"`identities.{name}`" in text
