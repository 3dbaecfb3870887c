"""Simulation-based calibration: of exact posteriors, of guides that are wrong in one known way."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.evaluation.calibration import (
    LOG_JOINT,
    NUM_BINS,
    _rank,
    _ranks,
    _test,
    _verdict,
    simulation_based_calibration,
)
from pyro_vae.evaluation.simulation import simulate
from pyro_vae.protocols import Facts

LIKE = torch.zeros(1, 5, dtype=torch.float64)


def correlated(linear_gaussian):
    """The fixture with data that see little more than z_1 + z_2."""
    W = linear_gaussian.W.clone()
    W[:, 1] = W[:, 0] * 0.9
    return type(linear_gaussian)(W, linear_gaussian.b, linear_gaussian.sigma)


def calibrate(p, guide, **options):
    return simulation_based_calibration(p.model, guide, LIKE, num_data=500, **options)


def test_exact_posterior_is_calibrated(linear_gaussian):
    found = calibrate(linear_gaussian, linear_gaussian.exact_guide, seed=2)
    assert found.verdict == "calibrated"
    assert found.sites == ["z[0]", "z[1]", LOG_JOINT]
    assert [sum(counts) for counts in found.histograms] == [500] * 3
    assert [len(counts) for counts in found.histograms] == [NUM_BINS] * 3
    assert min(found.p_values) > 0.05 / 3
    assert (found.num_data, found.num_draws, found.level) == (500, 99, 0.05)
    assert "level 0.05" in found.sentence
    assert "not of yours" in found.sentence


@pytest.mark.parametrize(
    ("shift", "variance", "verdict", "sentence"),
    [
        (0.0, 0.5, "overconfident", "q is too narrow: its middle half holds 3"),
        (0.0, 2.0, "underconfident", "q is too wide: its middle half holds 6"),
        (0.4, 1.0, "biased", "q is too high: 3"),
        (-0.4, 1.0, "biased", "q is too low: 6"),
    ],
)
def test_wrong_guides_are_called_what_they_are(linear_gaussian, shift, variance, verdict, sentence):
    """Of var × ½ the middle half covers 2Φ(0.6745/√2) − 1 = 0.366 of a normal, ×2: 0.660.

    Of a shift of 0.4 sd, Φ(−0.4) = 0.345 of the true values lie above q's median: each is
    within 3 standard errors of 500 data, √(¼/500) = 0.022. Seed 1.
    """
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift, variance))
    found = calibrate(linear_gaussian, guide, seed=1)
    assert found.verdict == verdict
    assert sentence in found.sentence
    assert max(found.p_values[:2]) < 1e-6


def test_wrong_correlations_show_in_the_joint_alone(linear_gaussian):
    """The exact marginals of p(z|x), made independent: every z_d has uniform ranks. Seed 1."""
    p = correlated(linear_gaussian)
    found = calibrate(p, p.guide_of(p.diagonal_guide()), seed=1)
    assert found.verdict == "miscalibrated"
    assert min(found.p_values[:2]) > 0.05 / 3
    assert found.p_values[2] < 1e-6
    assert "how the latents go together or with x" in found.sentence
    assert calibrate(p, p.exact_guide, seed=1).verdict == "calibrated"


def test_a_guide_that_ignores_x_shows_in_the_joint_alone(linear_gaussian):
    """q(z|x) = p(z): single ranks are uniform, that of log p(x, z) is near L. Seed 0."""
    p = linear_gaussian

    def prior(x):
        one = torch.ones(len(x), 2, dtype=x.dtype)
        return 0 * one, one

    found = calibrate(p, p.guide_of(prior))
    assert found.verdict == "miscalibrated"
    assert min(found.p_values[:2]) > 0.05 / 3
    assert found.p_values[2] < 1e-12
    assert found.histograms[2][-1] > 100  # 25 were flat


def test_the_prior_is_in_the_joint(linear_gaussian):
    """W = 0 and q of z_1 ≈ z_2: log p(x|z) is one number for all z, log p(z) is not. Seed 0."""
    p = linear_gaussian
    blind = type(p)(0 * p.W, p.b, p.sigma)

    def guide(x):
        zero = torch.zeros(len(x), 2, dtype=x.dtype)
        covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=x.dtype)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(zero, covariance))

    found = calibrate(blind, guide)
    assert min(found.p_values[:2]) > 0.05 / 3
    assert found.p_values[2] < 1e-4


def test_mixed_errors_are_counted(linear_gaussian):
    p = linear_gaussian

    def mixed(x):
        loc, scale = p.diagonal_guide()(x)
        return loc, scale * torch.tensor([0.6, 1.6], dtype=x.dtype)

    found = calibrate(p, p.guide_of(mixed))
    assert found.verdict == "miscalibrated"
    assert "overconfident in 1" in found.sentence
    assert "underconfident in 1" in found.sentence


def assert_level(alarms, p_values, level):
    """At most the level, and not far below it; tolerances of 3 binomial standard errors."""
    repeats = len(p_values)
    assert alarms / repeats < level + 3 * math.sqrt(level * (1 - level) / repeats)
    assert alarms / repeats > 0.3 * level
    for each in (0.05, 0.2):
        share = (torch.tensor(p_values) < each).double().mean(0)
        assert (share < each + 3 * math.sqrt(each * (1 - each) / repeats)).all()
        assert (share > 0.2 * each).all()


def test_false_alarms_stay_below_the_level(linear_gaussian):
    """300 repetitions of 100 data, drawn at once, at level 0.2; seed 0."""
    p = linear_gaussian
    drawn = simulate(p.model, torch.zeros(30_000, 5, dtype=torch.float64))
    ranks = _ranks(p.model, p.exact_guide, drawn.x, drawn.latents, 19, seed=0)
    alarms, p_values = 0, []
    for part in range(300):
        rows = slice(100 * part, 100 * (part + 1))
        tested = [_test(name, column[rows], 19) for name, column in ranks.items()]
        alarms += _verdict(tested, 100, 0.2)[0] != "calibrated"
        p_values.append([t.p_value for t in tested])
    assert_level(alarms, p_values, 0.2)


@pytest.mark.slow
def test_false_alarms_stay_below_the_level_at_the_defaults(linear_gaussian):
    """400 repetitions of 200 data and 99 draws at level 0.05; seeds 0 … 399."""
    p = linear_gaussian
    found = [
        simulation_based_calibration(p.model, p.exact_guide, LIKE, num_data=200, seed=seed)
        for seed in range(400)
    ]
    alarms = sum(each.verdict != "calibrated" for each in found)
    assert_level(alarms, [each.p_values for each in found], 0.05)


@pytest.mark.parametrize("num_draws", [19, 99])
def test_scores_of_uniform_ranks_are_standard(num_draws):
    """Mean 0 and variance 1 of shift and spread, and uniform χ² p-values; seed 0, 2,000 times.

    Tolerances of 4 standard errors: 1/√n of a mean, √(2/n) of a variance.
    """
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(num_draws + 1, (2000, 200), generator=generator)
    tests = [_test("z", row, num_draws) for row in ranks]
    for scores in ([t.shift for t in tests], [t.spread for t in tests]):
        values = torch.tensor(scores)
        assert abs(float(values.mean())) < 4 / 2000**0.5
        assert abs(float(values.var()) - 1) < 4 * (2 / 2000) ** 0.5
    shape = torch.tensor([t.shape for t in tests])
    assert abs(float(shape.mean()) - 0.5) < 4 * (1 / 12 / 2000) ** 0.5
    flat = _test("z", torch.arange(num_draws + 1).repeat(10), num_draws)
    assert (flat.shift, flat.shape) == (0.0, 1.0)
    assert abs(flat.spread) < 1e-9
    assert flat.p_value == 1.0
    assert flat.coverage == flat.above == 0.5


def test_ranks_of_no_shift_and_no_width_are_miscalibrated():
    """Every other of 20 bins: half a bin of shift, 1.2 standard errors of 200 data."""
    ranks = torch.arange(100)
    tested = _test("z", ranks[ranks // 5 % 2 == 0].repeat(4), 99)
    assert abs(tested.shift) < 1.5
    assert abs(tested.spread) < 1
    assert tested.shape < 1e-12
    verdict, sentence = _verdict([tested], 200, 0.05)
    assert verdict == "miscalibrated"
    assert "neither a shift nor the width explains it" in sentence


@pytest.mark.parametrize("name", ["z", LOG_JOINT])
def test_a_p_value_is_never_told_as_zero(name):
    """All ranks 0 of 10⁴ data: every p-value underflows."""
    tested = _test(name, torch.zeros(10_000, dtype=torch.long), 99)
    assert tested.p_value == 0
    _, sentence = _verdict([tested], 10_000, 0.05)
    assert "(p < 0.0001" in sentence
    assert "p = 0" not in sentence
    told = _verdict([tested._replace(shift=3.5, spread=0.0, shape=1.0)], 10_000, 0.05)[1]
    assert "(p = 0.001" in told


def test_ranks_and_ties():
    column = torch.tensor([[2.0, 0.0, 1.0], [1.0, 0.0, 3.0], [0.0, 0.0, 2.0], [5.0, 0.0, 4.0]])
    ranks = torch.stack([_rank(column) for _ in range(400)])
    assert (ranks[:, 0] == 2).all()
    assert (ranks[:, 2] == 0).all()
    # All tied: each of 0 … 3 with probability ¼, within 5 standard errors of 400 tosses.
    counts = torch.bincount(ranks[:, 1], minlength=4)
    assert counts.sum() == 400
    assert ((counts - 100).abs() < 5 * (400 * 3 / 16) ** 0.5).all()


def discrete(x):
    """c ∈ {0, 1, 2}, x | c ~ N(c, 1)."""
    with pyro.plate("data", len(x), dim=-1):
        probs = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        c = pyro.sample("c", dist.Categorical(probs))
        pyro.sample("x", dist.Normal(c.double(), 1.0), obs=x)


def discrete_guide(power):
    """q(c|x) ∝ p(c|x)^power."""

    def guide(x):
        prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        logits = prior.log() - (x[:, None] - torch.arange(3)).square() / 2
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", dist.Categorical(logits=power * logits))

    return guide


def test_discrete_latents():
    """Ties at random: the exact posterior passes, one of twice the log-odds does not. Seed 0."""
    like = torch.zeros(1000, dtype=torch.float64)
    exact = simulation_based_calibration(discrete, discrete_guide(1.0), like)
    assert exact.verdict == "calibrated"
    assert exact.sites == ["c", LOG_JOINT]
    assert exact.num_data == 1000
    sharp = simulation_based_calibration(discrete, discrete_guide(2.0), like)
    assert sharp.verdict != "calibrated"


def test_latents_summed_out_have_no_rank():
    """c is enumerated: z given x alone, p(z|x) a mixture of two normals. Seed 0."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + 3 * c, 0.5), obs=x)

    def guide(x):
        # p(z|x, c) = N(0.8 (x − 3c), 0.2),  p(c|x) ∝ p(c) N(x; 3c, 1.25)
        shift = x[:, None] - 3 * torch.arange(2)
        logits = torch.tensor([0.7, 0.3], dtype=x.dtype).log() - shift.square() / 2.5
        components = dist.Normal(0.8 * shift, math.sqrt(0.2))
        with pyro.plate("data", len(x), dim=-1):
            mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), components)
            pyro.sample("z", mixture)

    like = torch.zeros(500, dtype=torch.float64)
    found = simulation_based_calibration(model, guide, like)
    assert found.sites == ["z", LOG_JOINT]
    assert found.verdict == "calibrated"


def test_built_in_pairs_of_one_and_two_layers():
    """Untrained guides of real programs, float32: flagged, with a name for each coordinate."""
    torch.manual_seed(0)
    options = {"likelihood": "bernoulli", "encoder": "mlp(hidden=(8,))", "latent_dim": 2}
    for model, sites in [
        ("vae", ["z[0]", "z[1]"]),
        ("hierarchical", ["z2[0]", "z2[1]", "z1[0]", "z1[1]", "z1[2]", "z1[3]"]),
    ]:
        guide = "hierarchical" if model == "hierarchical" else "diagonal_normal"
        config = Config(model=model, guide=guide, **options)
        pair = build_pair(config, Facts((3, 3), "binary"), torch.full((3, 3), 0.4))
        state = torch.get_rng_state()
        like = torch.zeros(200, 3, 3)
        found = simulation_based_calibration(pair[0], pair[1], like, num_draws=19)
        assert torch.equal(torch.get_rng_state(), state)
        assert found.sites == [*sites, LOG_JOINT]
        assert found.verdict != "calibrated"
        again = simulation_based_calibration(pair[0], pair[1], like, num_draws=19)
        assert again == found


def test_refused_in_one_line(linear_gaussian):
    p = linear_gaussian

    def point(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(x[:, :2], event_dim=1))

    def other(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("u", dist.Normal(x[:, 0], 1.0))

    class Point(torch.nn.Module):
        has_bound = False

    for message, guide, options in [
        ("at least 100 simulated data, got 99", p.exact_guide, {"num_data": 99}),
        ("at least 100 simulated data, got 1", p.exact_guide, {"num_data": None}),
        ("multiple of 20", p.exact_guide, {"num_draws": 100}),
        ("level must lie inside", p.exact_guide, {"level": 1.0}),
        ("is a Delta, a point", point, {}),
        ("this guide draws a point", Point(), {}),
        ("latent site 'u' is in the guide but not in the model", other, {}),
    ]:
        with pytest.raises(InputError) as error:
            simulation_based_calibration(p.model, guide, LIKE, **{"num_data": 100, **options})
        assert message in str(error.value)
        assert "\n" not in str(error.value)
