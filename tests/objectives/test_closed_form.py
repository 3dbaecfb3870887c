"""ClosedFormELBO: exact on given noise, unbiased, one β and one mask; free bits by hand."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.annealing import Beta
from pyro_vae.assembly import build_pair
from pyro_vae.components import build
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.objectives.closed_form import ClosedFormELBO
from pyro_vae.objectives.trace import Trace
from pyro_vae.objectives.trace_mean_field import TraceMeanField
from pyro_vae.protocols import Facts

K, N = 7, 6


def seeded(objective, *args, seed=0):
    torch.manual_seed(seed)
    return objective.loss(*args)


def real_pair(
    prior="standard_normal", guide="diagonal_normal", model="vae", likelihood="bernoulli"
):
    torch.manual_seed(0)
    config = Config(
        data="digits", latent_dim=3, dtype="float64", encoder="mlp(hidden=(8,))", prior=prior,
        guide=guide, model=model, likelihood=likelihood,
    )  # fmt: skip
    measure = "continuous" if likelihood == "normal" else "binary"
    facts = Facts((4, 4), measure, num_levels=16, dequantized=measure == "continuous")
    sample = partial(binary, dtype=torch.float32)
    return build_pair(config, facts, torch.full((4, 4), 0.4), sample)


def binary(size=N, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(size, 4, 4, generator=generator, dtype=torch.float64) < 0.4).to(dtype)


def normal(name, loc, scale):
    return pyro.sample(name, dist.Normal(loc, scale, validate_args=False).to_event(1))


# ---- on given noise


def test_reconstruction_minus_torchs_kl(linear_gaussian):
    """(1/K) Σ_k log p(x|z_k) − KL, the KL by torch, on the same z; exactly."""
    x = linear_gaussian.simulate(N, seed=1)
    loc, scale = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)(x)
    guide = linear_gaussian.guide_of(lambda x: (loc, scale))
    torch.manual_seed(0)
    values = ClosedFormELBO(K).per_datum(linear_gaussian.model, guide, x)
    torch.manual_seed(0)
    z = dist.Normal(loc, scale).expand((K, *loc.shape)).rsample()
    fit = dist.Normal(z @ linear_gaussian.W.T + linear_gaussian.b, linear_gaussian.sigma)
    zero = torch.zeros_like(loc)
    kl = torch.distributions.kl_divergence(dist.Normal(loc, scale), dist.Normal(zero, zero + 1))
    expected = fit.log_prob(x).sum(-1).mean(0) - kl.sum(-1)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    loss = seeded(ClosedFormELBO(K), linear_gaussian.model, guide, x)
    assert -loss == pytest.approx(float(expected.sum()), rel=1e-12)


def test_trace_differs_by_the_monte_carlo_error_of_the_kl(linear_gaussian):
    """trace − closed_form = KL − (1/K) Σ_k log q(z_k|x)/p(z_k), on the same z; exactly."""
    x = linear_gaussian.simulate(N, seed=1)
    loc, scale = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)(x)
    pair = linear_gaussian.model, linear_gaussian.guide_of(lambda x: (loc, scale)), x
    difference = seeded(ClosedFormELBO(K), *pair) - seeded(Trace(K), *pair)
    torch.manual_seed(0)
    q, zero = dist.Normal(loc, scale), torch.zeros_like(loc)
    z, p = q.expand((K, *loc.shape)).rsample(), dist.Normal(zero, zero + 1)
    sampled = (q.log_prob(z) - p.log_prob(z)).sum(-1).mean(0)
    error = sampled - torch.distributions.kl_divergence(q, p).sum(-1)
    assert float(error.abs().max()) > 0.01
    assert difference == pytest.approx(-float(error.sum()), rel=1e-9)


ANALYTIC = {
    "standard_normal": {},
    "normal": {"prior": "normal"},
    "laplace": {"prior": "laplace"},
    "constant": {"guide": "diagonal_normal(scale=constant)"},
}
# torch has no KL of a vector normal and a product of normals.
VECTORS = {
    "full_rank": {"guide": "full_rank_normal"},
    "low_rank": {"guide": "low_rank_normal"},
    "learned prior": {"guide": "full_rank_normal", "prior": "normal"},
    "exact_posterior": {"guide": "exact_posterior", "model": "linear_gaussian",
                        "likelihood": "normal"},
}  # fmt: skip


@pytest.mark.parametrize("options", ANALYTIC.values(), ids=ANALYTIC)
@pytest.mark.parametrize("num_particles", [1, K])
def test_equals_trace_mean_field_on_the_same_noise(options, num_particles):
    """Wherever both are analytic, value and gradients to rounding."""
    model, guide = real_pair(**options)
    x = binary()
    parameters = [*model.parameters(), *guide.parameters()]
    found = []
    for objective in (ClosedFormELBO(num_particles), TraceMeanField(num_particles)):
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            loss = objective.differentiable_loss(model, guide, x)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found.append([loss.detach(), *gradients])
    assert TraceMeanField().analytic_kl(model, guide, x) == {"z": True}
    assert ClosedFormELBO().analytic_kl(model, guide, x) == {"z": True}
    for ours, pyros in zip(*found, strict=True):
        torch.testing.assert_close(ours, pyros, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["laplace", "gamma"])
def test_other_families_equal_trace_mean_field(family):
    """Two latents of a datum, an affine model, q and p Laplace or gamma."""
    q, p = {
        "laplace": ((dist.Laplace, (0.4, 0.6)), (dist.Laplace, (0.0, 1.3))),
        "gamma": ((dist.Gamma, (3.0, 2.0)), (dist.Gamma, (1.5, 0.7))),
    }[family]
    like = torch.ones(N, 2, dtype=torch.float64)
    x = torch.linspace(-1, 2, 2 * N, dtype=torch.float64).reshape(N, 2)

    def draw(family, parameters):
        fn = family(*(like * value for value in parameters))
        return pyro.sample("z", fn.to_event(1))

    def model(x):
        with pyro.plate("data", N, dim=-1):
            pyro.sample("x", dist.Normal(draw(*p), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", N, dim=-1):
            draw(*q)

    ours, pyros = (seeded(e(K), model, guide, x) for e in (ClosedFormELBO, TraceMeanField))
    assert ours == pytest.approx(pyros, rel=1e-12)


@pytest.mark.parametrize("options", VECTORS.values(), ids=VECTORS)
def test_normals_that_torch_has_no_kl_of(options):
    """trace is within four standard errors, over 40 draws of 50 particles on common noise."""
    model, guide = real_pair(**options)
    x = binary()
    assert TraceMeanField().analytic_kl(model, guide, x) == {"z": False}
    found = []
    for objective in (ClosedFormELBO(50), Trace(50)):
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            found.append(torch.tensor([objective.loss(model, guide, x) for _ in range(300)]))
    difference = found[0] - found[1]
    error = float(difference.std()) / math.sqrt(len(difference))
    assert error < 0.08
    assert abs(float(difference.mean())) < 4 * error


# ---- on average


def test_mean_is_the_exact_elbo(linear_gaussian):
    """Each datum within four standard errors over 300 draws of 100 particles, seed 0."""
    x = linear_gaussian.simulate(N, seed=1)
    parameters = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)
    pair = linear_gaussian.model, linear_gaussian.guide_of(parameters), x
    torch.manual_seed(0)
    values = torch.stack([ClosedFormELBO(100).per_datum(*pair) for _ in range(300)])
    error = values.std(0) / math.sqrt(len(values))
    assert (error < 0.02).all()
    exact = linear_gaussian.elbo(x, *parameters(x))
    assert ((values.mean(0) - exact).abs() < 4 * error).all()


def test_gradient_is_that_of_the_exact_elbo(
    linear_gaussian, linear_pair, near_posterior, exact_elbo, exact_gradient
):
    """Every parameter within four standard errors over 4,000 draws, seed 0."""
    x = linear_gaussian.simulate(3, seed=1)
    parameters = near_posterior(linear_gaussian, shift=0.5, variance=0.6)
    parameters["b"] = parameters["b"] + 0.2
    _, exact = exact_gradient(lambda p: exact_elbo(p, x).sum(), parameters)
    gradients = linear_pair(parameters, x, 4000).gradients(ClosedFormELBO(), seed=0)
    total = 0.0
    for name, samples in gradients.items():
        error = samples.std(0) / math.sqrt(len(samples))
        assert ((samples.mean(0) - exact[name]).abs() <= 4 * error + 1e-9).all(), name
        total = max(total, float((exact[name].abs() / (error + 1e-9)).max()))
    assert total > 80  # a gradient off by 5% is four standard errors off


# ---- β, masks, plates


@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
def test_beta_scales_the_kl_alone(linear_gaussian, beta):
    x = linear_gaussian.simulate(N, seed=1)
    loc, scale = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)(x)
    guide = linear_gaussian.guide_of(lambda x: (loc, scale))
    with_beta = Beta(torch.tensor(beta, dtype=torch.float64))
    plain = -seeded(ClosedFormELBO(K), linear_gaussian.model, guide, x)
    found = -seeded(ClosedFormELBO(K), with_beta(linear_gaussian.model), with_beta(guide), x)
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum()
    assert found == pytest.approx(float(plain + (1 - beta) * kl), rel=1e-12)


def test_a_scale_in_one_program_alone_is_refused(linear_gaussian):
    x = linear_gaussian.simulate(N, seed=1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide())
    beta = Beta(torch.tensor(0.5))
    for pair in ((beta(linear_gaussian.model), guide), (linear_gaussian.model, beta(guide))):
        with pytest.raises(InputError, match="closed_form: latent site 'z' has another scale"):
            ClosedFormELBO().loss(*pair, x)


def test_masked_data_count_nothing(linear_gaussian):
    """Both programs under one mask: the sum over the unmasked data."""
    x = linear_gaussian.simulate(N, seed=1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.5, variance=0.6))
    mask = torch.tensor([True, False, True, True, False, True])
    torch.manual_seed(0)
    each = ClosedFormELBO(K).per_datum(linear_gaussian.model, guide, x)
    for masks in ((mask, mask), (mask, mask.clone())):
        pair = [poutine.mask(f, mask=m) for f, m in zip((linear_gaussian.model, guide), masks,
                                                        strict=True)]  # fmt: skip
        torch.manual_seed(0)
        values = ClosedFormELBO(K).per_datum(*pair, x)
        torch.testing.assert_close(values, torch.where(mask, each, 0.0))


@pytest.mark.parametrize("other", [None, torch.zeros(N, dtype=torch.bool)], ids=["none", "other"])
def test_a_mask_in_one_program_alone_is_refused(linear_gaussian, other):
    x = linear_gaussian.simulate(N, seed=1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide())
    mask = torch.ones(N, dtype=torch.bool)

    def masked(program, mask):
        return program if mask is None else poutine.mask(program, mask=mask)

    for one, two in ((mask, other), (other, mask)):
        with pytest.raises(InputError, match="'z' has another mask in the guide than in the model"):
            ClosedFormELBO().loss(masked(linear_gaussian.model, one), masked(guide, two), x)


def test_a_masked_distribution_is_masked(linear_gaussian):
    """``.mask`` on the latent of both programs: no KL for those data, still their fit."""
    x = linear_gaussian.simulate(N, seed=1)
    loc, scale = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)(x)
    mask = torch.tensor([True, False, True, True, False, True])

    def program(q_or_p, observe):
        def run(x):
            with pyro.plate("data", N, dim=-1):
                z = pyro.sample("z", dist.Normal(*q_or_p).to_event(1).mask(mask))
                if observe:
                    mean = z @ linear_gaussian.W.T + linear_gaussian.b
                    pyro.sample("x", dist.Normal(mean, 0.8).to_event(1), obs=x)

        return run

    pair = program((0 * loc, torch.ones_like(loc)), True), program((loc, scale), False), x
    ours, pyros = (seeded(e(K), *pair) for e in (ClosedFormELBO, TraceMeanField))
    assert ours == pytest.approx(pyros, rel=1e-12)
    with pytest.raises(InputError, match="masked; free bits take no mask"):
        ClosedFormELBO(free_bits=0.1).loss(*pair)


def subsampled(x, index, loc, scale):
    """Programs of a plate of N data that see those of ``index``."""
    size = len(index)
    plate = partial(pyro.plate, "data", N, subsample=index, dim=-1)

    def model(x):
        with plate() as i:
            z = normal("z", torch.zeros(size, 2, dtype=x.dtype), torch.ones(size, 2, dtype=x.dtype))
            pyro.sample("x", dist.Normal(z, 0.8).to_event(1), obs=x[i])

    def guide(x):
        with plate() as i:
            normal("z", loc[i], scale[i])

    return model, guide, x


@pytest.mark.parametrize("free_bits", [0.0, 0.5])
def test_a_subsampled_plate_scales_the_sum(free_bits):
    """N/B stands outside: the loss is N/B times the sum, the values those of the data alone."""
    x = torch.linspace(-1, 2, 2 * N, dtype=torch.float64).reshape(N, 2)
    loc, scale = 0.5 * x, torch.full_like(x, 0.7)
    index = torch.tensor([4, 1])
    pair = subsampled(x, index, loc, scale)
    torch.manual_seed(0)
    values = ClosedFormELBO(K, free_bits).per_datum(*pair)
    assert values.shape == (2,)
    loss = seeded(ClosedFormELBO(K, free_bits), *pair)
    assert -loss == pytest.approx(N / 2 * float(values.sum()), rel=1e-12)
    torch.manual_seed(0)
    z = dist.Normal(loc[index], scale[index]).expand((K, 2, 2)).rsample()
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log())[index]
    kl = kl.mean(0).clamp(min=free_bits).sum() if free_bits else kl.sum(-1)
    fit = dist.Normal(z, 0.8).log_prob(x[index]).sum(-1).mean(0)
    torch.testing.assert_close(values, fit - kl)


# ---- what is refused


NONE = {
    "vamp": ({"prior": "vamp(components=4)"}, r"KL\(normal ‖ diagonal normal mixture\)"),
    "full-rank vamp": ({"prior": "vamp(components=4)", "guide": "full_rank_normal"},
                       r"KL\(full-rank normal ‖ posterior mixture\)"),
    "mixture": ({"prior": "mixture(components=3)"}, r"KL\(normal ‖ diagonal normal mixture\)"),
    "flow": ({"prior": "flow"}, r"KL\(normal ‖ flow\)"),
    "student_t": ({"prior": "student_t"}, r"KL\(normal ‖ Student t\)"),
    "logistic": ({"prior": "logistic"}, r"KL\(normal ‖ logistic\)"),
    "student_t guide": ({"guide": "student_t"}, r"KL\(Student t ‖ normal\)"),
    "iaf": ({"guide": "iaf"}, r"KL\(flow ‖ normal\)"),
    "spline_flow": ({"guide": "spline_flow"}, r"KL\(flow ‖ normal\)"),
    "planar": ({"guide": "planar"}, r"KL\(flow ‖ normal\)"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "families"), NONE.values(), ids=NONE)
@pytest.mark.parametrize("free_bits", [0.0, 1.0])
def test_no_closed_form(options, families, free_bits):
    model, guide = real_pair(**options)
    message = f"latent site 'z': no closed form here of {families}.*use --objective trace"
    with pytest.raises(InputError, match=message):
        ClosedFormELBO(free_bits=free_bits).loss(model, guide, binary())


def test_a_point_guide_has_no_elbo():
    with pytest.raises(InputError, match="a Delta, a point without a density"):
        ClosedFormELBO().loss(*real_pair(guide="delta"), binary())


def test_another_order_of_latents_is_refused():
    """q(z1|x) q(z2|z1) against p(z2) p(z1|z2): the sum of analytic KLs is no bound."""
    model, guide = real_pair(model="hierarchical", guide="hierarchical")
    with pytest.raises(InputError, match="closed_form: the guide draws its latents in another ord"):
        ClosedFormELBO().loss(model, guide, binary())


def test_latents_in_the_models_order():
    """q(z2|x) q(z1|z2): equal to trace_mean_field, E_q(z2) KL(q(z1|z2) ‖ p(z1|z2)) over K draws."""
    x = torch.linspace(-1, 2, N, dtype=torch.float64).unsqueeze(-1)

    def model(x):
        zero = torch.zeros(N, 1, dtype=x.dtype)
        with pyro.plate("data", N, dim=-1):
            z1 = normal("z1", normal("z2", zero, 1.0), 0.5)
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", N, dim=-1):
            normal("z1", 0.3 * normal("z2", 0.4 * x, 0.8), 0.6)

    ours, pyros = (seeded(e(K), model, guide, x) for e in (ClosedFormELBO, TraceMeanField))
    assert ours == pytest.approx(pyros, rel=1e-12)


# ---- free bits


LAMBDA = 0.3
# KL_d of N(μ, 1) is ½ μ²: the means over the two data are 0.25, 0.5 and 0.02.
MEANS = torch.tensor([[1.0, 1.0, 0.2], [0.0, 1.0, 0.2]], dtype=torch.float64)


def free_pair(loc, event=True):
    """z ~ N(loc, 1) and a model in which x does not depend on z."""

    def sample(mean):
        fn = dist.Normal(mean, 1.0)
        pyro.sample("z", fn.to_event(1) if event else fn)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            sample(torch.zeros_like(loc))
            pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            sample(loc)

    return model, guide, torch.zeros(len(loc), dtype=loc.dtype)


@pytest.mark.parametrize("num_particles", [1, K])
def test_free_bits_by_hand(num_particles):
    """Σ_d max(0.3, mean KL_d) = 0.3 + 0.5 + 0.3, of each datum."""
    values = ClosedFormELBO(num_particles, LAMBDA).per_datum(*free_pair(MEANS))
    expected = torch.full((2,), -0.5 * math.log(2 * math.pi) - 1.1, dtype=torch.float64)
    torch.testing.assert_close(values, expected)


def test_a_dimension_below_lambda_feels_no_pull():
    """∂/∂μ of 2 Σ_d max(λ, ½ mean μ_d²) is μ where the mean is above λ, and exactly 0 below."""
    loc = MEANS.clone().requires_grad_()
    ClosedFormELBO(free_bits=LAMBDA).loss_and_grads(*free_pair(loc))
    expected = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(loc.grad, expected)


def test_free_bits_of_a_scalar_latent():
    """One number a datum, no event dimension: max(λ, the mean over the data)."""
    pair = free_pair(MEANS[:, 0], event=False)
    constant = -0.5 * math.log(2 * math.pi)
    for free_bits, kl in ((0.1, 0.25), (0.3, 0.3)):
        values = ClosedFormELBO(K, free_bits).per_datum(*pair)
        assert float(values.mean()) == pytest.approx(constant - kl, rel=1e-12)


def test_a_datum_has_its_own_kl_where_the_mean_is_above_lambda():
    """So that the spread over data is that of the ELBO where λ binds nowhere."""
    pair = free_pair(MEANS)
    values = ClosedFormELBO(free_bits=1e-9).per_datum(*pair)
    torch.testing.assert_close(values, ClosedFormELBO().per_datum(*pair))
    assert float(values.std()) > 0.01


def test_free_bits_lower_the_bound(linear_gaussian):
    x = linear_gaussian.simulate(N, seed=1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide())
    losses = [seeded(ClosedFormELBO(K, f), linear_gaussian.model, guide, x)
              for f in (0, 1e-9, 1.0, 50.0)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[1] <= losses[2] < losses[3]


def test_free_bits_take_beta():
    """β stands before the clamped sum."""
    model, guide, x = free_pair(MEANS)
    beta = Beta(torch.tensor(0.5, dtype=torch.float64))
    values = ClosedFormELBO(free_bits=LAMBDA).per_datum(beta(model), beta(guide), x)
    assert float(values.mean()) == pytest.approx(-0.5 * math.log(2 * math.pi) - 0.55, rel=1e-12)


def test_free_bits_need_a_sum_over_dimensions():
    message = (
        r"KL\(full-rank normal ‖ normal\) dimension by dimension; leave out free_bits"
    )  # fmt: skip
    with pytest.raises(InputError, match=message):
        ClosedFormELBO(free_bits=1.0).loss(*real_pair(guide="full_rank_normal"), binary())


@pytest.mark.parametrize("spec", ["iwae", "dreg", "renyi", "trace", "trace_mean_field"])
def test_other_objectives_take_no_free_bits(spec):
    with pytest.raises(
        InputError, match=f"objective {spec!r} has no argument 'free_bits'"
    ) as error:
        build("objective", f"{spec}(free_bits=1)")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "many"])
def test_bad_free_bits(value):
    with pytest.raises(InputError, match="closed_form: free_bits must be"):
        ClosedFormELBO(free_bits=value)


def test_bad_number_of_particles():
    with pytest.raises(InputError, match="num_particles must be a whole number"):
        ClosedFormELBO(0)
