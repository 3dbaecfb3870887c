"""What the latents carry, against linear-Gaussian models, quadrature, and collapsed pairs."""

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae.assembly import build_pair
from pyro_vae.closed_form import kl_divergence
from pyro_vae.config import Config
from pyro_vae.diagnosis import latents
from pyro_vae.diagnosis.latents import collapse_verdict, latent_use
from pyro_vae.errors import InputError
from pyro_vae.evaluation.active_units import ActiveUnits
from pyro_vae.evaluation.scores import Estimate
from pyro_vae.protocols import Facts
from pyro_vae.run_training import train

SHIFT = 0.4


def affine(guide_of, M, scale):
    """q(z|x) = N(M x + SHIFT, diag scale²)."""
    return guide_of(lambda x: (x @ M.T + SHIFT, scale.expand(len(x), -1)))


@pytest.fixture
def pair(linear_gaussian):
    """A model, an affine diagonal guide, and its exact I_q(x; z), KL(q(z) ‖ p) and rate.

    x ~ N(0, C) gives q(z) = N(SHIFT, A), A = M C Mᵀ + diag scale²; I = ½ log det A/Π scale².
    """
    p = dataclasses.replace(linear_gaussian, b=torch.zeros(5, dtype=torch.float64))
    M = torch.linalg.solve(p.precision, p.W.T) / p.sigma**2
    scale = torch.tensor([0.5, 0.7], dtype=torch.float64)
    C = p.W @ p.W.T + p.sigma**2 * torch.eye(5, dtype=torch.float64)
    A = M @ C @ M.T + torch.diag(scale**2)
    zero, one = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    information = 0.5 * float(A.logdet() - scale.log().sum() * 2)
    aggregated = dist.MultivariateNormal(zero + SHIFT, A)
    marginal = float(kl_divergence(aggregated, dist.MultivariateNormal(zero, one)))
    return p, affine(p.guide_of, M, scale), information, marginal


def repeats(p, guide, num_data, count, **options):
    for seed in range(count):
        yield latent_use(p.model, guide, p.simulate(num_data, 100 + seed), seed=seed, **options)


def test_information_and_marginal_kl_over_data_sets_of_a_linear_gaussian_model(pair):
    """80 data sets of 150, seeds 0 … 79: three standard errors; their spread within 25 %.

    The standard deviation of 80 is known to 8 %.
    """
    p, guide, information, marginal = pair
    found = list(repeats(p, guide, 150, 80, num_samples=2))
    for name, exact in (("mutual_information", information), ("marginal_kl", marginal)):
        estimates = [getattr(use, name) for use in found]
        values = torch.tensor([e.value for e in estimates])
        bias = sum(e.bias for e in estimates) / len(estimates)
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(bias) > 2 * error  # without it the test below would fail
        assert abs(float(values.mean()) - exact - bias) < 3 * error
        told = sum(e.data_standard_error for e in estimates) / len(estimates)
        assert told == pytest.approx(float(values.std()), rel=0.25)
    rate = torch.tensor([use.rate.value for use in found])
    assert abs(float(rate.mean()) - information - marginal) < 3 * float(rate.std()) / 80**0.5


def test_error_over_draws_of_one_data_set(pair):
    """60 seeds of 3 draws and 60 data: the errors told are those seen, within 30 %."""
    p, guide, *_ = pair
    x = p.simulate(60, 7)
    found = [latent_use(p.model, guide, x, num_samples=3, seed=seed) for seed in range(60)]
    for name in ("mutual_information", "marginal_kl", "distortion"):
        estimates = [getattr(use, name) for use in found]
        seen = float(torch.tensor([e.value for e in estimates]).std())
        told = sum(e.standard_error for e in estimates) / len(estimates)
        assert told == pytest.approx(seen, rel=0.3), name
    assert found[0].rate.standard_error is None
    for use in found[:5]:
        parts = use.mutual_information.value + use.marginal_kl.value
        assert parts == pytest.approx(use.rate.value, abs=1e-12)


def test_rate_and_distortion_in_closed_form(pair):
    """E_q −log N(x; W z, σ² I) = ½ (5 log 2πσ² + (|x − W μ|² + tr W S Wᵀ)/σ²); seed 9.

    400 data of 20 draws: four standard errors over draws, below 0.03 nats; the rate is exact.
    """
    p, guide, *_ = pair
    x = p.simulate(400, 9)
    use = latent_use(p.model, guide, x, num_samples=20, seed=9)
    run = poutine.trace(guide).get_trace(x)
    q = run.nodes["z"]["fn"]
    missed = (x - q.mean @ p.W.T).square().sum(1) + q.variance @ p.W.square().sum(0)
    exact = 0.5 * (5 * math.log(2 * math.pi * p.sigma**2) + missed / p.sigma**2)
    found = use.distortion
    assert found.standard_error < 0.03
    assert abs(found.value - float(exact.mean())) < 4 * found.standard_error
    assert found.data_standard_error == pytest.approx(float(exact.std()) / 20, rel=0.1)
    rate = 0.5 * (q.mean.square() + q.variance - 1 - q.variance.log()).sum(1)
    assert use.rate.value == pytest.approx(float(rate.mean()), rel=1e-9)
    assert use.rate.data_standard_error == pytest.approx(float(rate.std()) / 20, rel=1e-9)


def test_neighbours_alike_widen_the_errors(pair):
    """Every datum five times in a row: blocks see √5, up to what 15 blocks of 15 cut."""
    p, guide, *_ = pair
    x = p.simulate(45, 8).repeat_interleave(5, 0)
    alone, blocks = (latent_use(p.model, guide, x, ordered=o) for o in (False, True))
    for name in ("rate", "distortion", "mutual_information", "marginal_kl"):
        one, other = (getattr(use, name) for use in (alone, blocks))
        assert other.value == one.value
        assert 1.5 < other.data_standard_error / one.data_standard_error < 3.3, name
    assert blocks.mutual_information.bias is blocks.marginal_kl.bias is None
    assert sum(blocks.kl_per_dim_errors) > 1.5 * sum(alone.kl_per_dim_errors)


def test_neighbours_alike_widen_the_errors_of_a_rate_over_draws(bits):
    """A flow, and each of two latents: no rate is in closed form."""
    two = {"model": "hierarchical(latent_dims=(3, 2), hidden=(8,))"}
    for model, guide in (components("planar"), components("hierarchical(hidden=(8,))", **two)):
        enliven(guide)
        x = bits[:45].repeat_interleave(5, 0)
        alone, blocks = (latent_use(model, guide, x, ordered=o) for o in (False, True))
        for name in ("rate", "distortion", "mutual_information"):
            one, other = (getattr(use, name) for use in (alone, blocks))
            if one is not None:
                assert 1.5 < other.data_standard_error / one.data_standard_error < 3.3, name
        told = [
            [float(n.split("±")[1]) for n in note.split(", z")]
            for use in (alone, blocks)
            for note in use.notes
            if note.startswith("rate by latent")
        ]
        assert len(told) == 2 * bool(alone.mutual_information)
        if told:
            assert all(1.4 < b / a < 3.4 for a, b in zip(*told, strict=True))


class OneLatent(nn.Module):
    """x|z ~ N(z, 1), z from any prior; q(z|x) any distribution, both of ``event_shape (1,)``."""

    def __init__(self, prior, q):
        super().__init__()
        self.prior, self.posterior = prior, q

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(x))


class Model(OneLatent):
    forward = OneLatent.model


ZERO, ONE = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
FAMILIES = {
    "normal of a Laplace": (dist.Normal, lambda: dist.Laplace(ZERO, ONE)),
    "Laplace of a normal": (dist.Laplace, lambda: dist.Normal(ZERO, ONE)),
    "Student t of a normal": (lambda m, s: dist.StudentT(5.0, m, s), lambda: dist.Normal(ZERO, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_one_dimension_by_quadrature(name):
    """Three data, 4,000 draws each, seed 3: four standard errors; the grid is exact to 1e-5."""
    q_of, p = FAMILIES[name]
    x = torch.tensor([[-1.0], [0.3], [1.5]], dtype=torch.float64)
    pair = OneLatent(lambda: p().to_event(1), lambda x: q_of(x, 0.6 * ONE).to_event(1))
    use = latent_use(pair.model, pair, x, num_samples=4000, seed=3)
    grid = torch.linspace(-200, 200, 400_001, dtype=torch.float64)
    log_q = torch.stack([q_of(m, 0.6 * ONE).log_prob(grid) for m in x])
    log_aggregate, log_p = log_q.logsumexp(0) - math.log(3), p().log_prob(grid)

    def integral(a, b):
        return torch.trapezoid(a.exp() * (a - b), grid)

    each = integral(log_q, log_p)
    exact = {
        "rate": float(each.mean()),
        "mutual_information": float(integral(log_q, log_aggregate).mean()),
        "marginal_kl": float(integral(log_aggregate, log_p)),
    }
    for field, value in exact.items():
        estimate = getattr(use, field)
        error = estimate.standard_error or 1e-9
        assert error < 0.02
        assert abs(estimate.value - value) < 4 * error + 1e-5, field
    assert use.kl_per_dim[0] == pytest.approx(exact["rate"], abs=0.05 if "of a n" in name else 1e-5)
    assert use.kl_per_dim_errors[0] == pytest.approx(float(each.std()) / 3**0.5, abs=0.03)
    assert use.kl_per_dim[0] == pytest.approx(use.rate.value, abs=1e-9)


@pytest.mark.parametrize("family", [dist.Normal, lambda m, s: dist.StudentT(5.0, m, s)])
def test_a_latent_without_event_dimensions_is_one_dimension(family):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO[0], ONE[0]))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family(0.5 * x, ONE[0]))

    def vector(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO, ONE).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def vector_guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family(0.5 * x[:, None], ONE).to_event(1))

    x = torch.linspace(-3, 3, 40, dtype=torch.float64)
    one, other = latent_use(model, guide, x), latent_use(vector, vector_guide, x)
    assert one.kl_per_dim == pytest.approx(other.kl_per_dim)
    assert one.mutual_information.value == pytest.approx(other.mutual_information.value)
    assert one.collapse == other.collapse == "healthy"
    # A function has no posterior(x): what its latents carry is known all the same.
    assert (one.active_units, one.activity) == (None, [])


def test_far_posteriors_carry_log_n():
    x = 100 * torch.arange(6.0, dtype=torch.float64)[:, None]
    wide = OneLatent(
        lambda: dist.Normal(ZERO, 300.0).to_event(1), lambda x: dist.Normal(x, 1.0).to_event(1)
    )
    use = latent_use(wide.model, wide, x)
    assert use.mutual_information.value == pytest.approx(math.log(6), abs=1e-9)
    assert use.mutual_information_cap == pytest.approx(math.log(6))
    assert use.at_cap
    assert use.mutual_information.understated
    assert use.mutual_information.bias is None
    assert any("lower limit only" in note for note in use.notes)
    assert use.collapse == "healthy"
    assert "log 6 = 1.79" in use.sentence


def test_the_cap_is_marked_where_the_distributions_information_is_missed_by_a_tenth():
    """q = N(√(1 − s²) x, s²) of x ~ N(0, I): I = −4 log s; 500 data, seed 5."""
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    p = dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0).to_event(1)
    for s, at_cap in ((0.6, False), (0.25, True)):
        mean = math.sqrt(1 - s**2)
        pair = OneLatent(lambda: p, lambda x, m=mean, s=s: dist.Normal(m * x, s).to_event(1))
        use = latent_use(pair.model, pair, x)
        missed = -4 * math.log(s) - use.mutual_information.value
        assert use.at_cap is at_cap
        assert (missed > 3 * use.mutual_information.data_standard_error) is at_cap
        # q(z) = p(z): all that is found of KL(q(z) ‖ p(z)) is bias.
        assert use.marginal_kl.value > 0
        if not at_cap:
            excess = use.marginal_kl.value - use.marginal_kl.bias
            assert abs(excess) < 4 * use.marginal_kl.data_standard_error


def test_the_bias_is_what_is_found_where_the_aggregated_posterior_is_the_prior():
    """40 data sets of 200, seeds 0 … 39: 35 %, three standard errors; q(z) = p(z) = N(0, 1)."""
    p = dist.Normal(ZERO, ONE).to_event(1)
    pair = OneLatent(lambda: p, lambda x: dist.Normal(math.sqrt(0.75) * x, 0.5).to_event(1))
    found = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(200, 1, generator=generator, dtype=torch.float64)
        use = latent_use(pair.model, pair, x, num_samples=5, seed=seed)
        assert use.marginal_kl.bias == -use.mutual_information.bias
        found.append((use.marginal_kl.value, use.marginal_kl.bias))
    value, bias = torch.tensor(found).mean(0).tolist()
    assert value == pytest.approx(bias, rel=0.35)


def components(guide="diagonal_normal", **options):
    config = Config(
        **{
            "likelihood": "bernoulli",
            "guide": guide,
            "latent_dim": 3,
            "encoder": "mlp(hidden=(16,))",
            **options,
        }
    )
    torch.manual_seed(0)
    return build_pair(config, Facts((2, 4), "binary"))


@pytest.fixture
def bits():
    return torch.randint(2, (120, 2, 4), generator=torch.Generator().manual_seed(1)).float()


@torch.no_grad()
def deaden(guide, dims, scale=1.0):
    """q(z_d|x) = N(0, scale²) for these dimensions of a diagonal normal guide."""
    D = guide.head.out_features // 2
    for d in dims:
        guide.head.weight[[d, D + d]] = 0
        guide.head.bias[d] = 0
        guide.head.bias[D + d] = math.log(math.expm1(scale))


@torch.no_grad()
def enliven(guide):
    guide.head.weight *= 4


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_one_posterior_for_all_data_is_collapsed(bits, scale):
    """At σ = ½ the rate is 3 (log 2 − 3/8) nats and yet no datum is told from another."""
    model, guide = components()
    deaden(guide, range(3), scale)
    use = latent_use(model, guide, bits)
    assert use.collapse == "collapsed"
    assert "This speaks of q" in use.sentence
    assert abs(use.mutual_information.value) < 1e-6
    rate = 3 * (0.5 * (scale**2 - 1) - math.log(scale))
    assert use.rate.value == pytest.approx(rate, abs=1e-5)
    assert use.marginal_kl.value == pytest.approx(rate, abs=1e-5)
    assert use.active_units == 0
    assert not use.at_cap


def test_dead_dimensions_are_counted(bits):
    model, guide = components()
    enliven(guide)
    healthy = latent_use(model, guide, bits)
    assert (healthy.collapse, healthy.active_units) == ("healthy", 3)
    deaden(guide, [1])
    use = latent_use(model, guide, bits)
    assert use.collapse == "partly collapsed"
    assert use.sentence.startswith("Partly collapsed: 1 of 3 latent dimensions carry nothing")
    assert use.kl_per_dim[1] == pytest.approx(0, abs=1e-6)
    assert min(use.kl_per_dim[0], use.kl_per_dim[2]) > 0.05
    assert use.active_units == 2


def test_a_dimension_that_speaks_by_its_scale_alone_is_not_dead(bits):
    model, guide = components()
    enliven(guide)
    with torch.no_grad():
        guide.head.weight[0], guide.head.bias[0] = 0, 0
    use = latent_use(model, guide, bits)
    assert use.activity[0] == 0
    assert use.collapse == "healthy"


def verdict(value, error, dims, active):
    information = Estimate(value, 0.5 * error, error, 1000)
    units = ActiveUnits([0.009 if d >= active else 0.5 for d in range(len(dims))], active)
    return collapse_verdict(
        Estimate(3.0, None, 0.1, 1000), information, False, 1000, {"z": len(dims)},
        dims=torch.tensor(dims), units=units,
    )  # fmt: skip


@pytest.mark.parametrize("active", [0, 2])
def test_next_to_no_information_in_all_is_collapsed_whatever_single_dimensions_show(active):
    """Below 0.05 nats by two standard errors, and just not."""
    for value, error, expected in [
        (0.0201, 0.0055, "collapsed"),
        (0.0389, 0.0055, "collapsed"),
        (0.0391, 0.0055, "healthy"),
        (0.2, 0.01, "healthy"),
    ]:
        collapse, sentence = verdict(value, error, [0.0102, 0.0111], active)
        assert collapse == expected, value
        assert f"{active} of 2 units active" in sentence
        alone = sentence.startswith("Healthy by mutual information alone")
        assert alone is (expected == "healthy" and active == 0)


def test_many_dimensions_that_carry_nothing_are_collapsed_below_a_hundredth_each():
    """20 dimensions: 0.2 nats in all; 19 of 20 are a part."""
    dead, alive = [0.004] * 20, [0.004] * 19 + [0.3]
    assert verdict(0.07, 0.01, dead, 0)[0] == "collapsed"
    assert verdict(0.3, 0.01, dead, 0)[0] == "unknown"
    assert verdict(0.07, 0.02, alive, 1)[0] == "partly collapsed"
    assert verdict(0.3, 0.01, alive, 1)[0] == "partly collapsed"


@pytest.mark.parametrize(("each", "collapse"), [(0.0125, "collapsed"), (0.06, "healthy")])
def test_little_information_of_two_normal_dimensions(each, collapse):
    """q(z_d|x) = N(m x_d, ¼), x ~ N(0, I): I_d = ½ log(1 + 4 m²), of it 0.0125 and 0.06 nats.

    800 data, seed 11. Means move by m² < 0.01 in the first: no unit is active.
    """
    x = torch.randn(800, 2, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    m = math.sqrt(math.expm1(2 * each)) / 2
    p = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    parts = (lambda: p, lambda x: dist.Normal(m * x, 0.5).to_event(1))
    use = latent_use(Model(*parts), OneLatent(*parts), x, seed=11)
    found = use.mutual_information
    assert abs(found.value - 2 * each) < 4 * found.data_standard_error
    assert found.data_standard_error < 0.01
    assert (use.collapse, use.active_units) == (collapse, 0 if each < 0.05 else 2)


def test_a_student_t_that_can_never_be_the_prior_collapses_too(bits):
    model, guide = components("student_t")
    deaden(guide, range(3), 0.8)
    use = latent_use(model, guide, bits)
    assert min(use.kl_per_dim) > 0.01
    assert use.collapse == "collapsed"


def test_without_a_product_the_means_and_the_joint_information_decide(bits):
    for guide_name in ("full_rank_normal", "iaf(hidden=(8,))"):
        model, guide = components(guide_name)
        with torch.no_grad():
            guide.head.weight *= 4
        use = latent_use(model, guide, bits[:60])
        assert (use.kl_per_dim, use.kl_per_dim_errors) == (None, None)
        assert any(note.startswith("KL per dimension") for note in use.notes)
        assert use.collapse == "healthy"
        for parameter in guide.parameters():
            parameter.detach().zero_()
        use = latent_use(model, guide, bits[:60])
        assert abs(use.mutual_information.value) < 1e-5
        assert use.collapse == "collapsed"


def test_a_guide_without_a_density_has_a_rate_and_no_mutual_information(bits):
    model, guide = components("planar")
    use = latent_use(model, guide, bits)
    assert (use.mutual_information, use.marginal_kl, use.estimator) == (None, None, None)
    assert use.mutual_information_cap is None
    assert use.rate.standard_error > 0
    assert use.notes[0].startswith("mutual information: not known")
    assert use.site == "z"
    assert use.collapse != "collapsed"


def test_a_point_is_refused(bits):
    model, guide = components("delta")
    with pytest.raises(InputError, match="point without a density"):
        latent_use(model, guide, bits)


def test_a_layer_that_is_its_prior_is_named(bits):
    model, guide = components(
        "hierarchical(hidden=(8,))", model="hierarchical(latent_dims=(3, 2), hidden=(8,))"
    )
    enliven(guide)
    use = latent_use(model, guide, bits)
    assert "z2 carries nothing" not in use.sentence
    with torch.no_grad():
        for p in guide.top.parameters():
            p.zero_()
        *_, last = [p for p in guide.top.parameters() if p.dim() == 1]
        last[2:] = math.log(math.expm1(1.0))
    use = latent_use(model, guide, bits)
    assert use.collapse == "partly collapsed"
    assert "the latent z2 carries nothing" in use.sentence
    assert "of z1, the layer next to the data" in use.sentence
    assert (use.site, len(use.activity)) == ("z1", 3)
    (layers,) = (note for note in use.notes if note.startswith("rate by latent"))
    assert abs(float(layers.split("z2 ")[1].split()[0])) < 1e-6


@pytest.mark.parametrize("guide", ["diagonal_normal", "iaf(hidden=(8,))"])
def test_few_data_are_paired_with_all_their_draws(bits, guide):
    """10 data of 400 draws: the error over draws falls as from 40 to 400, √10 within 30 %."""
    pair = components(guide)
    few, many = (latent_use(*pair, bits[:10], num_samples=n) for n in (40, 400))
    one, other = (use.mutual_information.standard_error for use in (few, many))
    assert one / other == pytest.approx(10**0.5, rel=0.3)


def test_a_dimension_near_nothing_is_told_by_many_draws():
    """q(z_d|x) = N(m x_d, ¼), ½ log(1 + 4 m²) = 0.014 and 0.005 nats; 50 data of x = ±1.

    x of two values changes I by the order of m⁴. Its error, √(2 I/(50 S)) to first order, is
    0.017 of 2 draws a datum and 0.0017 of 200: they are told from 0.01 at six seeds.
    """
    x = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(25)
    x = torch.stack([x, x.sort().values], 1)
    m = torch.tensor(
        [math.expm1(2 * nats) / 4 for nats in (0.014, 0.005)], dtype=torch.float64
    ).sqrt()
    p = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    parts = (lambda: p, lambda x: dist.Normal(m * x, 0.5).to_event(1))
    for seed in range(6):
        draws = latents._draw(Model(*parts), OneLatent(*parts), x, 200, seed)
        found = latents._information_per_dim(Model(*parts), OneLatent(*parts), x, draws, seed)
        assert found[0] > 0.01 > found[1]


def test_of_layers_of_one_size_the_one_that_is_decoded_is_meant(bits):
    model, guide = components(
        "hierarchical(hidden=(8,))", model="hierarchical(latent_dims=(3, 3), hidden=(8,))"
    )
    enliven(guide)
    use = latent_use(model, guide, bits)
    assert (use.collapse, use.active_units) == ("healthy", 3)
    deaden(guide, [2])
    use = latent_use(model, guide, bits)
    assert use.sentence.startswith("Partly collapsed: 1 of 3 latent dimensions carry nothing")
    assert use.active_units == 2


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "collapse"), [(50.0, "collapsed"), (1.0, "healthy")])
@pytest.mark.parametrize("guide", ["diagonal_normal", "full_rank_normal"])
def test_training_at_beta_50_collapses_the_digits(tmp_path, guide, beta, collapse):
    """30 epochs, seed 0: 8 latents carry nothing at β = 50 and all of them do at β = 1."""
    config = Config(
        data="digits(values=binary, binarize=dynamic)", latent_dim=8, guide=guide, beta=beta,
        epochs=30, seed=0,
    )  # fmt: skip
    run = train(config, tmp_path / "run")
    use = latent_use(run.model, run.guide, run.data.test.scored())
    assert use.collapse == collapse
    assert (use.active_units == 0) is (beta == 50)
    assert (use.mutual_information.value < 0.03) is (beta == 50)
    assert use.mutual_information.value > 0.3 or beta == 50


def test_seeds_subsets_and_the_global_generator(bits):
    model, guide = components()
    state = torch.get_rng_state()
    one, again, other = (latent_use(model, guide, bits, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert one == again
    assert one.distortion.value != other.distortion.value
    some = latent_use(model, guide, bits, max_data=30)
    assert some.rate.count == some.mutual_information.count == 30
    assert some.mutual_information_cap == pytest.approx(math.log(30))


def test_one_datum_tells_nothing(bits):
    model, guide = components()
    use = latent_use(model, guide, bits[:1])
    assert use.collapse == "unknown"
    assert use.rate.data_standard_error is None
    assert use.kl_per_dim_errors is None


def test_double_precision(bits):
    model, guide = components(dtype="float64")
    use = latent_use(model, guide, bits.double())
    single = components()
    found = latent_use(*single, bits)
    assert use.rate.value == pytest.approx(found.rate.value, rel=0.5)
    assert use.mutual_information.value <= use.mutual_information_cap


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ((0.002, 0.0341), "3.142 ± 0.034"),
        ((2.0, 12.3), "3.14 ± 12.30"),
        ((0.00123, None), "3.1416 ± 0.0012"),
        ((None, None), "3.14"),
    ],
)
def test_a_value_in_a_sentence_has_the_digits_of_its_error(errors, told):
    assert latents._told(Estimate(3.14159, *errors, 100)) == told


def test_the_number_of_data_is_not_repeated_in_a_note(bits):
    use = latent_use(*components(), bits)
    assert not any(note.startswith("over ") for note in use.notes)


def test_a_latent_that_is_summed_out_leaves_no_kl_a_dimension():
    """Its densities are of all latents at once, whether or not q and p(z) are products."""

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            k = pyro.sample("k", dist.Categorical(x.new_ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + k[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    use = latent_use(model, guide, torch.randn(20, 2))
    assert not use.kl_per_dim
    assert "KL per dimension: the model sums a discrete latent out" in use.notes
