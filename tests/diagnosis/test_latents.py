"""What the latents carry, against linear-Gaussian models, quadrature, and collapsed pairs."""

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.assembly import build_pair
from pyro_vae.closed_form import kl_divergence
from pyro_vae.config import Config
from pyro_vae.diagnosis.latents import latent_use
from pyro_vae.errors import InputError
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


def test_neighbours_alike_widen_the_errors(pair):
    """Every datum five times in a row: blocks see √5, up to what 15 blocks of 15 cut."""
    p, guide, *_ = pair
    x = p.simulate(45, 8).repeat_interleave(5, 0)
    alone, blocks = (latent_use(p.model, guide, x, ordered=o) for o in (False, True))
    for name in ("rate", "distortion", "mutual_information", "marginal_kl"):
        one, other = (getattr(use, name) for use in (alone, blocks))
        assert other.value == one.value
        assert 1.5 < other.data_standard_error / one.data_standard_error < 3.3, name
    assert blocks.mutual_information.bias is None
    assert sum(blocks.kl_per_dim_errors) > 1.5 * sum(alone.kl_per_dim_errors)


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
    assert use.notes[1].startswith("mutual information: not known")
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
    (layers,) = (note for note in use.notes if note.startswith("rate by latent"))
    assert abs(float(layers.split("z2 ")[1].split()[0])) < 1e-6


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
