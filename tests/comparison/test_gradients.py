"""Comparison of gradients: known moments, the exact gradient, planted biases."""

import json
import math
from dataclasses import asdict, replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro_vae.guides.exact_posterior import ExactPosterior
from torch import Tensor

from pyro_vae.assembly import build_pair
from pyro_vae.comparison import _estimators
from pyro_vae.comparison._estimators import candidates, gradient_target
from pyro_vae.comparison._exact import exact_bound
from pyro_vae.comparison._moments import Average, Moments, Sketch, distance
from pyro_vae.comparison._parameters import Gradients, find_groups
from pyro_vae.comparison._summary import error, noise, noise_floor
from pyro_vae.comparison.gradients import (
    DEFAULT_ESTIMATORS,
    _at_equal_compute,
    _median,
    compare_gradients,
)
from pyro_vae.comparison.rows import GradientRow
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.log_weights import own_parameters
from pyro_vae.objectives import IWAE, TVO, ClosedFormELBO, DReG, PyroRenyi, Renyi, Trace
from pyro_vae.objectives import ReweightedWakeSleep as RWS
from pyro_vae.protocols import Facts
from pyro_vae.seeding import derive_seed, seeded

ELBOS = ("trace", "closed_form", "trace_mean_field", "trace_graph", "sticking_the_landing")


def make_pair(dtype="float64", facts=None, **settings):
    settings = {"model": "linear_gaussian", "likelihood": "normal(scale=0.8)", **settings}
    config = Config(latent_dim=2, dtype=dtype, **{"encoder": "linear", **settings})
    torch.manual_seed(0)
    return build_pair(config, facts or Facts((5,), "continuous"))


def make_vae(dtype="float64", **settings):
    settings = {"model": "vae", "likelihood": "bernoulli", "encoder": "mlp(hidden=(6,))"} | settings
    return make_pair(dtype, Facts((5,), "binary"), **settings)


def make_data(size=6, dtype=torch.float64) -> Tensor:
    return torch.randn(size, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)


X = make_data()
BINARY = (X > 0).double()


def by_key(rows):
    return {(row.group, row.estimator, row.num_particles): row for row in rows}


def moments_of(draws: Tensor, sketch: Sketch | None = None) -> Average:
    moments = Moments(sketch or Sketch(draws.shape[1]), len(draws))
    for draw in draws:
        moments.update(draw)
    return moments.average()


# Moments


@pytest.mark.parametrize("num_draws", [5, 64, 150])
def test_streamed_moments_are_those_of_stored_draws(num_draws):
    """A mean of 1e4 sds: sums of squares would lose it all in float32, half in float64."""
    generator = torch.Generator().manual_seed(0)
    draws = 1e4 + torch.randn(num_draws, 7, generator=generator, dtype=torch.float64)
    average = moments_of(draws)
    torch.testing.assert_close(average.mean, draws.mean(0))
    torch.testing.assert_close(average.variance, draws.var(0))
    torch.testing.assert_close(average.error, draws.var(0) / num_draws)
    torch.testing.assert_close(average.sketch, average.mean)


def test_a_distance_is_the_u_statistic_of_all_pairs_of_draws():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 7, generator=generator, dtype=torch.float64) for n in (9, 12))
    within = [(g.sum() - g.trace()) / (len(g) * (len(g) - 1)) for g in (a @ a.T, b @ b.T)]
    expected = sum(within) - 2 * (a @ b.T).mean()
    assert distance(moments_of(a), moments_of(b)).squared == pytest.approx(float(expected))


@pytest.mark.parametrize(("shift", "num_draws"), [(0.0, 32), (2.0, 32), (0.0, 70)])
def test_a_distance_and_its_variance_are_right_on_average(shift, num_draws):
    """200 pairs of samples, seed 0: |δ|² within 4 standard errors, Var within 4 of its own.

    40 correlated numbers; b has twice the draws at half the scale. The variance of a
    sample variance of 200 is taken as 3/200, half more than a normal's.
    """
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(40, 40, generator=generator, dtype=torch.float64) / math.sqrt(40)
    delta = shift * torch.eye(40, dtype=torch.float64)[0]

    def sample(count, scale):
        return scale * torch.randn(count, 40, generator=generator, dtype=torch.float64) @ mix

    found = [
        distance(moments_of(sample(num_draws, 1.0) + delta), moments_of(sample(2 * num_draws, 0.5)))
        for _ in range(200)
    ]
    squared = torch.tensor([f.squared for f in found], dtype=torch.float64)
    assert abs(squared.mean() - shift**2) < 4 * squared.std() / math.sqrt(200)
    covariance = (mix.T @ mix) * (1 / num_draws + 0.25 / (2 * num_draws))
    null = 2 * float(covariance.square().sum())
    assert sum(f.null_variance for f in found) / 200 == pytest.approx(null, rel=0.06)
    slope = 4 * float(delta @ covariance @ delta)
    assert squared.var() == pytest.approx(null + slope, rel=4 * math.sqrt(3 / 200))
    if shift:
        slopes = torch.tensor([f.slope_variance for f in found], dtype=torch.float64)
        assert slopes.mean() == pytest.approx(slope, abs=4 * float(slopes.std()) / math.sqrt(200))


@pytest.mark.parametrize("size", [1, 3, 200])
def test_an_unbiased_average_is_seldom_four_standard_errors_off(size):
    """1,000 tests, seed 0, R = 32: 4 standard errors in under 1 %, 2 in under 8 %."""
    generator = torch.Generator().manual_seed(0)
    zero = Average.exact(torch.zeros(size, dtype=torch.float64), Sketch(size))
    found = [
        distance(moments_of(torch.randn(32, size, generator=generator, dtype=torch.float64)), zero)
        for _ in range(1000)
    ]
    ratios = torch.tensor([f.value / f.standard_error for f in found])
    assert (ratios > 4).double().mean() < 0.01
    assert (ratios > 2).double().mean() < 0.08
    assert all(f.standard_error > 0 for f in found)


def test_the_standard_error_of_a_large_distance_is_that_of_the_distance():
    """|δ| = 3 under N(0, 1) in 5 dimensions, R = 50: sd(|ḡ|) ≈ 1/√50; 400 samples, seed 0."""
    generator = torch.Generator().manual_seed(0)
    zero = Average.exact(torch.zeros(5, dtype=torch.float64), Sketch(5))
    shift = torch.tensor([3.0, 0, 0, 0, 0], dtype=torch.float64)
    found = [
        distance(
            moments_of(torch.randn(50, 5, generator=generator, dtype=torch.float64) + shift), zero
        )
        for _ in range(400)
    ]
    values = torch.tensor([f.value for f in found])
    assert values.mean() == pytest.approx(3, abs=4 * float(values.std()) / math.sqrt(400))
    errors = torch.tensor([f.standard_error for f in found])
    assert errors.mean() == pytest.approx(float(values.std()), rel=4 / math.sqrt(2 * 400))


def test_a_sketch_keeps_the_errors_of_long_vectors():
    """20,000 numbers moved along 200 directions and all at once: Var is kept within 15 %."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(200, 20_000, generator=generator, dtype=torch.float64)
    draws = torch.randn(40, 200, generator=generator, dtype=torch.float64) @ mix
    draws += 3 * torch.randn(40, 1, generator=generator, dtype=torch.float64)  # of all alike
    sketch = Sketch(20_000)
    assert sketch(draws[0]).shape == (4096,)
    sketched = moments_of(draws, sketch)
    stored = replace(sketched, sketch=sketched.mean, residuals=draws - draws.mean(0))
    zero = Average.zero_like(sketched)
    full = distance(stored, Average.zero_like(stored))
    assert distance(sketched, zero).squared == full.squared
    assert distance(sketched, zero).null_variance == pytest.approx(full.null_variance, rel=0.15)


# Summaries


def test_noise_of_known_moments():
    """Means 0.3 to 1.2 of sd 0.5 to 2, R = 4,000, seed 0; tolerances 4 standard errors."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.linspace(0.3, 1.2, 50, dtype=torch.float64)
    sd = torch.linspace(2.0, 0.5, 50, dtype=torch.float64)
    draws = mean + sd * torch.randn(4000, 50, generator=generator, dtype=torch.float64)
    found = noise(moments_of(draws))
    spread = 4 * math.sqrt(2 * float(sd.pow(4).sum()) / 4000)
    assert found["variance"] == pytest.approx(float(sd.square().sum()), abs=spread)
    ratio = mean / sd
    spread = 4 * math.sqrt(float((1 + ratio**2 / 2).sum()) / 4000) / 50
    assert found["signal_to_noise"] == pytest.approx(float(ratio.mean()), abs=spread)


@pytest.mark.parametrize("num_draws", [4, 40])
def test_the_noise_floor_is_what_a_mean_of_zero_reads(num_draws):
    """20,000 numbers of mean 0, seed 0, within 1 % for R = 40 and 3 % for R = 4."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(num_draws, 20_000, generator=generator, dtype=torch.float64)
    found = noise(moments_of(draws))
    assert found["signal_to_noise"] == pytest.approx(found["noise_floor"], rel=0.4 / num_draws)
    assert noise_floor(10**6) == pytest.approx(math.sqrt(2 / (math.pi * 10**6)), rel=1e-5)


def test_numbers_without_noise_have_no_signal_to_noise():
    """A dead unit and a gradient in closed form are left out; alone they leave nothing."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    still = torch.cat([draws, torch.tensor([[0.0, 2.0]]).expand(100, 2)], dim=1)
    assert noise(moments_of(still))["signal_to_noise"] == pytest.approx(
        noise(moments_of(draws))["signal_to_noise"]
    )
    constant = torch.tensor([[0.0, 2.0]], dtype=torch.float64).expand(100, 2)
    alone = noise(moments_of(constant))
    assert alone["signal_to_noise"] is alone["signal_to_noise_standard_error"] is None
    assert (alone["variance"], alone["variance_standard_error"]) == (0, 0)


def test_a_bias_of_one_percent_is_seen_and_none_is_not():
    """Means of size 1 in 300 dimensions, sd 0.1, R = 20,000: the bias in its own units, seed 0."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(300, generator=generator, dtype=torch.float64)
    reference = Average.exact(truth, Sketch(300))
    for bias in (0.0, 0.01):
        draws = torch.randn(5_000, 300, generator=generator, dtype=torch.float64)
        found = error(moments_of(truth * (1 + bias) + 0.1 * draws), reference, 1e-14)
        assert found["bias"] == pytest.approx(bias, abs=4 * found["bias_standard_error"])
        assert (found["bias"] > 4 * found["bias_standard_error"]) == (bias > 0)
        assert (found["largest_z"] > found["largest_z_limit"]) == (bias > 0)
        assert found["bias_standard_error"] < 0.0025


def test_the_references_own_error_counts():
    """Both averages unbiased, the reference of a quarter of the draws; 60 samples, seed 0.

    ``largest_z`` passes its limit in at most 5 % of them: more than 9 would be 1 in 1,000.
    Against the reference taken as known both alarms go off nearly always.
    """
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(300, generator=generator, dtype=torch.float64)
    alarms = torch.zeros(4)
    for _ in range(60):
        draws = truth + torch.randn(250, 300, generator=generator, dtype=torch.float64)
        average, reference = moments_of(draws[:200]), moments_of(draws[200:])
        known = Average.exact(reference.mean, Sketch(300))
        found = [error(average, other, 1e-14) for other in (reference, known)]
        alarms[:2] += torch.tensor([f["largest_z"] > f["largest_z_limit"] for f in found])
        alarms[2:] += torch.tensor([f["bias"] > 4 * f["bias_standard_error"] for f in found])
    assert alarms[0] <= 9
    assert alarms[2] <= 1
    assert alarms[1] >= 55
    assert alarms[3] >= 55


def test_a_reference_lost_in_noise_is_no_unit():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(40, 300, generator=generator, dtype=torch.float64)
    found = error(moments_of(draws + 1), moments_of(draws), 1e-14)
    assert found["bias"] is None
    assert found["bias_standard_error"] is None
    assert found["largest_z"] is not None


def test_what_rounding_does_is_no_bias():
    """Draws that differ by 1e-17 and from the reference by 1e-15: below a rounding of 1e-13."""
    generator = torch.Generator().manual_seed(0)
    draws = 1e-17 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    reference = torch.tensor([1.0, 1e-15, 1e-15, 1e-15, 1e-15], dtype=torch.float64)
    draws[:, 0] += 1
    found = error(moments_of(draws), Average.exact(reference, Sketch(5)), 1e-13)
    assert found["largest_z"] < 0.1
    assert found["bias"] < found["bias_standard_error"]


# Errors of the noise


def many(sample, num_draws, count, seed=0):
    """``noise`` of ``count`` samples of R draws; a column a field, float64."""
    generator = torch.Generator().manual_seed(seed)
    sketch = Sketch(sample(generator, 1).shape[1])
    found = [noise(moments_of(sample(generator, num_draws), sketch)) for _ in range(count)]
    return {key: torch.tensor([f[key] for f in found]).double() for key in found[0]}


def assert_calibrated(found, field, above=1.0):
    """The errors' root mean square is the values' sd, within 4 standard errors of the latter.

    Arguments:
        above: how far the errors may be above, as a ratio.
    """
    ratio = float(found[f"{field}_standard_error"].square().mean().sqrt() / found[field].std())
    spread = 4 / math.sqrt(2 * len(found[field]))
    assert 1 - spread < ratio < above * (1 + spread)


def correlated(shift=0.3, size=60):
    """Draws along 20 directions at once, and a little of each number's own."""
    generator = torch.Generator().manual_seed(99)
    mix = torch.randn(20, size, generator=generator, dtype=torch.float64)

    def sample(generator, count):
        common = torch.randn(count, 20, generator=generator, dtype=torch.float64) @ mix
        own = torch.randn(count, size, generator=generator, dtype=torch.float64)
        return common + 0.3 * own + shift * mix.sum(0)

    return sample, mix


def test_increments_add_up_to_the_variance():
    """d_r = (g_r − ḡ_{r−1})·(g_r − ḡ_r) of stored draws, and their mean Σ s²."""
    sample, _ = correlated()
    draws = sample(torch.Generator().manual_seed(0), 23)
    average = moments_of(draws)
    means = [draws[:r].mean(0) for r in range(1, 24)]
    expected = [(draws[r] - means[r - 1]) @ (draws[r] - means[r]) for r in range(1, 23)]
    torch.testing.assert_close(average.increments, torch.stack(expected))
    assert float(average.increments.mean()) == pytest.approx(float(draws.var(0).sum()))


@pytest.mark.parametrize(("num_draws", "count"), [(12, 300), (40, 200)])
def test_the_error_of_a_variance_is_its_spread(num_draws, count):
    """Over samples, seed 0: sd(V̂) within 4 standard errors, and Var V̂ = 2 tr Σ²/(R − 1)."""
    sample, mix = correlated()
    covariance = mix.T @ mix + 0.09 * torch.eye(60, dtype=torch.float64)
    found = many(sample, num_draws, count)
    assert_calibrated(found, "variance")
    squares = found["variance_standard_error"].square()
    exact = 2 * float(covariance.square().sum()) / (num_draws - 1)
    assert float(squares.mean()) == pytest.approx(
        exact, abs=4 * float(squares.std()) / math.sqrt(count)
    )


@pytest.mark.parametrize("num_draws", [5, 16, 21, 32])
def test_the_error_of_a_ratio_is_a_jackknife_of_stored_draws(num_draws):
    """Of equal blocks √((B − 1)/B Σ (T_b − T̄)²); of unequal ones by the weights of blocks."""
    sample, _ = correlated(size=7)
    draws = sample(torch.Generator().manual_seed(0), num_draws)
    blocks = min(num_draws, 16)
    which = torch.arange(num_draws) * blocks // num_draws
    without = [draws[which != b] for b in range(blocks)]
    T = torch.stack([(d.mean(0).abs() / d.std(0)).mean() for d in without])
    h = num_draws / torch.bincount(which).double()
    pseudo = h * (draws.mean(0).abs() / draws.std(0)).mean() - (h - 1) * T
    expected = ((pseudo - (pseudo / h).sum()).square() / (h - 1)).mean().sqrt()
    if num_draws != 21:
        simple = ((T - T.mean()).square().sum() * (blocks - 1) / blocks).sqrt()
        assert float(expected) == pytest.approx(float(simple))
    found = noise(moments_of(draws))["signal_to_noise_standard_error"]
    assert found == pytest.approx(float(expected))


@pytest.mark.parametrize(("shift", "num_draws"), [(0.3, 40), (0.3, 21), (0.0, 40)])
def test_the_error_of_a_ratio_is_its_spread(shift, num_draws):
    """200 samples, seed 0, within 4 standard errors; above at mean 0, where |ḡ| has a corner."""
    found = many(correlated(shift)[0], num_draws, 200)
    assert_calibrated(found, "signal_to_noise", above=1.0 if shift else 1.6)


def test_the_error_of_a_long_vectors_ratio_is_that_of_a_sample_of_it():
    """20,000 numbers: 4,096 different ones, all over; 60 samples, seed 0, within 4 errors."""
    sketch = Sketch(20_000)
    assert len(set(sketch.sample.tolist())) == 4096
    quarters = torch.bincount(sketch.sample // 5000)
    assert (quarters.double() - 1024).abs().max() < 4 * math.sqrt(4096 * 3 / 16)
    assert torch.equal(Sketch(20_000).sample, sketch.sample)
    assert_calibrated(many(correlated(size=20_000)[0], 24, 60), "signal_to_noise")


def test_what_stands_still_without_one_block_has_a_finite_error():
    """A unit that moves in one draw alone, of 16: without it there is no ratio, and it counts 0."""
    sample, _ = correlated(size=4)
    draws = sample(torch.Generator().manual_seed(0), 16)
    draws[:, 3] = 0.0
    draws[5, 3] = 1.0
    found = noise(moments_of(draws))
    assert 0 < found["signal_to_noise_standard_error"] < 1


@pytest.mark.slow
def test_errors_on_a_pair_are_the_spread_over_seeds():
    """60 seeds, R = 40, linear-Gaussian: variance and ratio within 4 standard errors."""
    model, guide = make_pair()
    found: dict = {}
    for seed in range(60):
        rows = compare_gradients(
            model, guide, X, estimators=["trace", "dreg"], particles=(8,), num_repeats=40,
            reference_repeats=4, seed=seed,
        )  # fmt: skip
        for row in rows:
            found.setdefault((row.group, row.estimator), []).append(asdict(row))
    assert len(found) == 4
    for own in found.values():
        for field in ("variance", "signal_to_noise"):
            names = (field, f"{field}_standard_error")
            assert_calibrated({n: torch.tensor([r[n] for r in own]) for n in names}, field)


def test_a_median_and_its_error():
    """Ranks 2.5 ± √6/2 by proportion; sd over 2,000 exponential samples, seed 0, within 10 %."""
    side = math.sqrt(6) / 2
    low, high = 1 + 3 * (1.5 - side), 9 + 7 * (side - 0.5)  # between 1 and 4, between 9 and 16
    assert _median([25.0, 1.0, 4.0, 0.0, 16.0, 9.0]) == pytest.approx((6.5, (high - low) / 2))
    generator = torch.Generator().manual_seed(0)
    draws = torch.empty(2000, 40, dtype=torch.float64).exponential_(generator=generator)
    medians, errors = zip(*(_median(draw.tolist()) for draw in draws), strict=True)
    spread = float(torch.tensor(medians).double().std())
    assert float(torch.tensor(errors).double().mean()) == pytest.approx(spread, rel=0.1)


def test_equal_compute_is_told_among_gradients_of_one_target():
    """Of the first row of group and target; alone, or refused, a row has none."""

    def row(name, target, group="guide", variance=2.0, refusal=None):
        return GradientRow(
            name, 8, group, target, refusal, variance=variance, variance_standard_error=0.3,
            milliseconds=5.0, milliseconds_standard_error=0.4,
        )  # fmt: skip

    rows = [
        row("trace", "elbo", variance=4.0), row("closed_form", "elbo", "model", variance=8.0),
        GradientRow("no", 8, "guide", "iwae-8", "refused"), row("iwae", "iwae-8", variance=100.0),
        row("dreg", "iwae-8"), row("stl", "elbo"), row("tvo", "tvo-8"),
        row("known", "exact", variance=0.0), row("other", "exact"),
    ]  # fmt: skip
    found = [_at_equal_compute(each, rows) for each in rows]
    values = [each.variance_at_equal_compute for each in found]
    assert values == [1, None, None, 1, pytest.approx(0.02), 0.5, None, None, None]
    relative = math.sqrt(0.15**2 + 0.08**2 + 0.075**2 + 0.08**2)
    assert found[5].variance_at_equal_compute_standard_error == pytest.approx(0.5 * relative)
    assert found[0].variance_at_equal_compute_standard_error == 0
    assert found[1].variance_at_equal_compute_standard_error is None


# Estimators on a pair


def exact_gradient(model, guide, x):
    """Of the mean ELBO of linear_gaussian under a normal guide, written out.

    E_q log p(x|z) = log N(x; W μ + b, σ² I) − tr(W S Wᵀ)/(2σ²), S the covariance of q
    """
    q, layer, sigma = guide.posterior(x), model.decoder.body[-1], 0.8
    fit = dist.Normal(q.mean @ layer.weight.T + layer.bias, sigma).log_prob(x).sum(-1)
    spread = (q.variance * layer.weight.square().sum(0)).sum(-1) / (2 * sigma**2)
    kl = 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).sum(-1)
    bound = (fit - spread - kl).mean()
    groups = {"guide": list(guide.parameters()), "model": list(model.parameters())}
    return {
        name: torch.cat([g.flatten() for g in torch.autograd.grad(bound, ps, retain_graph=True)])
        for name, ps in groups.items()
    }


def test_estimators_of_the_elbo_are_unbiased_and_others_are_not():
    """R = 60, seed 0, exact reference; z half above its limit has p ≈ 1e-4 a row."""
    model, guide = make_pair()
    rows = compare_gradients(
        model, guide, X, estimators=[*ELBOS, "iwae"], particles=(1, 6), num_repeats=60,
        reference_repeats=50,
    )  # fmt: skip
    assert len(rows) == 24
    for row in rows:
        if (row.estimator, row.num_particles) == ("iwae", 6):
            assert (row.target, row.reference) == ("iwae-6", "50 × dreg(num_particles=6)")
            continue
        assert (row.target, row.reference) == ("elbo", "exact")
        assert row.bias <= 4 * row.bias_standard_error
        assert row.bias_standard_error < 0.15
        assert row.largest_z < 1.5 * row.largest_z_limit


class Biased(Trace):
    """Trace whose gradient is 2 % too large."""

    def differentiable_loss(self, model, guide, *args):
        loss = super().differentiable_loss(model, guide, *args)
        return 1.02 * loss - 0.02 * loss.detach()


class TwoSamples(Trace):
    """The gradient of IWAE-2 in the name of the ELBO's."""

    def differentiable_loss(self, model, guide, *args):
        return IWAE(2).differentiable_loss(model, guide, *args)


@pytest.mark.parametrize("estimator", [Biased, TwoSamples])
def test_a_planted_bias_is_seen(estimator, monkeypatch):
    """2 % of the gradient, or another bound's; R = 100 of 256 particles, seed 0."""
    known = _estimators.is_elbo
    monkeypatch.setattr(_estimators, "is_elbo", lambda o: type(o) is estimator or known(o))
    model, guide = make_pair()
    rows = compare_gradients(
        model, guide, X, estimators=[estimator, "trace"], particles=(256,), num_repeats=100
    )
    for group in ("guide", "model"):
        planted, fair = (by_key(rows)[group, e, 256] for e in (estimator.__name__, "trace"))
        assert planted.reference == fair.reference == "exact"
        assert planted.bias > 4 * planted.bias_standard_error
        assert fair.bias < 4 * fair.bias_standard_error
        if estimator is Biased:
            assert planted.bias == pytest.approx(0.02, abs=4 * planted.bias_standard_error)


@pytest.mark.parametrize("guide", ["diagonal_normal", "exact_posterior"])
def test_the_exact_reference_is_the_gradient_written_out(guide):
    """Under the exact posterior, that of log p(x)."""
    model, guide = make_pair(guide=guide)
    with own_parameters(model, guide):
        gradients = Gradients(model, guide, X)
        found = gradients.of_bound(exact_bound(model, guide, X, len(X)))
    if isinstance(guide, ExactPosterior):
        evidence = model.log_evidence(X).mean()
        of_model = torch.autograd.grad(evidence, list(model.parameters()))
        expected = {"model": torch.cat([g.flatten() for g in of_model])}
    else:
        expected = exact_gradient(model, guide, X)
    assert found.keys() == expected.keys()
    for group in found:
        torch.testing.assert_close(found[group], expected[group])


def test_variance_is_that_of_stored_draws():
    """The draws made by hand under the same seeds: variances, signal-to-noise, mean."""
    model, guide = make_pair()
    rows = by_key(
        compare_gradients(model, guide, X, estimators=["trace"], particles=(3,), num_repeats=70)
    )
    parameters = {"guide": list(guide.parameters()), "model": list(model.parameters())}
    for group, leaves in parameters.items():
        draws = []
        for r in range(70):
            with seeded(derive_seed(0, "gradients", r)):
                loss = Trace(3).differentiable_loss(model, guide, X) / len(X)
            draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)]))
        stored = torch.stack(draws)
        row = rows[group, "trace", 3]
        assert row.variance == pytest.approx(float(stored.var(0).sum()))
        expected = float((stored.mean(0).abs() / stored.std(0)).mean())
        assert row.signal_to_noise == pytest.approx(expected)
        assert row.num_repeats == 70


class Fake(ELBO):
    """A loss of its own."""

    def _get_trace(self, model, guide, args, kwargs):
        raise NotImplementedError


class Known(Fake):
    """L̂ = Σ θ (μ + s ε/√K) a datum: every moment of its gradient is known."""

    mean, scale = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 0.5, 2.0])

    def differentiable_loss(self, model, guide, x):
        guide(x)
        noise = torch.randn(3) / math.sqrt(self.num_particles)
        return -len(x) * (pyro.param("theta").log() * (self.mean + self.scale * noise)).sum()


def positive_guide(x):
    """θ > 0; its unconstrained leaf is log θ."""
    theta = pyro.param("theta", torch.ones(3), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(theta.sum(), 1.0))


def plain_model(x):
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + loc, 1.0), obs=x[:, 0])


def test_moments_of_a_known_gradient():
    """Plain functions and a constrained parameter, R = 800, seed 0, 4 standard errors."""
    rows = by_key(
        compare_gradients(
            plain_model, positive_guide, X.float(), estimators=[Known], particles=(1, 4),
            num_repeats=800,
        )
    )  # fmt: skip
    for K in (1, 4):
        row = rows["guide", "Known", K]
        variance = float(Known.scale.square().sum()) / K
        spread = math.sqrt(2 * float(Known.scale.pow(4).sum()) / 800) / K
        assert row.variance == pytest.approx(variance, abs=4 * spread)
        ratio = (Known.mean / Known.scale).abs() * math.sqrt(K)
        spread = math.sqrt(float((1 + ratio**2 / 2).sum()) / 800) / 3
        assert row.signal_to_noise == pytest.approx(float(ratio.mean()), abs=4 * spread)
        assert row.milliseconds > 0
        assert (row.target, row.reference, row.bias) == (f"Known-{K}", None, None)
        untouched = rows["model", "Known", K]
        assert (untouched.variance, untouched.signal_to_noise) == (0.0, None)
        assert untouched.variance_at_equal_compute is None
        assert row.variance_at_equal_compute is None  # nothing else is of its target


def test_all_rows_are_numbers_or_nothing():
    """No NaN and no infinity where a gradient has no noise: STL at the exact posterior."""
    model, guide = make_pair(guide="exact_posterior")
    rows = compare_gradients(model, guide, X, num_repeats=4, particles=(1, 2))
    assert {row.group for row in rows} == {"model"}
    exact = [row for row in rows if row.reference == "exact"]
    assert all(row.bias < 4 * row.bias_standard_error for row in exact)
    json.dumps([asdict(row) for row in rows], allow_nan=False)
    posterior = {
        name: value.clone() for name, value in zip("ls", set_to_posterior(model), strict=True)
    }

    def guide(x):
        loc, L = (pyro.param(name, value) for name, value in posterior.items())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=L))

    def program(x):
        return model(x)

    names = ["trace", "sticking_the_landing", "closed_form"]
    rows = compare_gradients(program, guide, X, estimators=names, num_repeats=10, particles=(1,))
    json.dumps([asdict(row) for row in rows], allow_nan=False)
    found = by_key(rows)
    assert found["guide", "sticking_the_landing", 1].variance < 1e-20
    assert found["guide", "trace", 1].variance > 1e-3
    assert found["model", "sticking_the_landing", 1].variance > 1e-3


def set_to_posterior(model):
    p = model.posterior(X)
    return p.mean.detach(), p.scale_tril.detach().expand(len(X), 2, 2)


def test_dreg_and_sticking_the_landing_win_near_the_posterior(linear_gaussian):
    """q at the posterior but for 0.3 sd and 1.2 of its variance, K = 64: variances of q apart."""
    x = linear_gaussian.simulate(4, seed=0)
    loc, scale = linear_gaussian.diagonal_guide(0.3, 1.2)(x)

    def guide(x):
        q = dist.Normal(pyro.param("loc", loc), pyro.param("scale", scale))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q.to_event(1))

    names = ["trace", "sticking_the_landing", "iwae", "dreg"]
    rows = by_key(
        compare_gradients(
            linear_gaussian.model, guide, x, estimators=names, particles=(64,), num_repeats=60
        )
    )
    of = {name: rows["guide", name, 64] for name in names}
    assert ("model", "trace", 64) not in rows
    assert of["sticking_the_landing"].variance < 0.5 * of["trace"].variance
    assert of["dreg"].variance < 0.2 * of["iwae"].variance
    assert of["dreg"].signal_to_noise > 2 * of["iwae"].signal_to_noise
    assert of["trace"].reference == "120 × closed_form(num_particles=64)"


def test_no_estimator_is_its_own_judge():
    model, guide = make_vae()
    rows = compare_gradients(
        model, guide, BINARY, estimators=DEFAULT_ESTIMATORS, particles=(2,), num_repeats=4,
        reference_repeats=5,
    )  # fmt: skip
    judges = {(r.group, r.estimator): r.reference for r in rows}
    elbo, iwae = "5 × closed_form(num_particles=64)", "5 × dreg(num_particles=2)"
    for group in ("guide", "model"):
        assert judges[group, "closed_form"] == "5 × trace_mean_field(num_particles=64)"
        assert judges[group, "dreg"] == "5 × iwae(num_particles=2)"
        assert {judges[group, e] for e in ELBOS if e != "closed_form"} == {elbo}
        assert judges[group, "iwae"] == judges[group, "pyro_renyi"] == iwae
        assert judges[group, "tvo"] is judges[group, "renyi(alpha=0.5)"] is None
    assert judges["guide", "reweighted_wake_sleep"] is None
    assert judges["model", "reweighted_wake_sleep"] == iwae


def test_a_reference_has_noise_of_its_own():
    """IWAE and DReG have one gradient for the model: on common noise z would be 0."""
    model, guide = make_vae()
    rows = compare_gradients(
        model, guide, BINARY, estimators=["dreg"], particles=(3,), num_repeats=6,
        reference_repeats=6,
    )  # fmt: skip
    row = by_key(rows)["model", "dreg", 3]
    assert row.reference == "6 × iwae(num_particles=3)"
    assert row.largest_z > 0.5


# What it is of, and what it leaves alone


@pytest.mark.parametrize(
    ("objective", "group", "target"),
    [
        (Trace(9), "guide", "elbo"),
        (Trace_ELBO(9), "guide", "elbo"),
        (TraceGraph_ELBO(), "model", "elbo"),
        (ClosedFormELBO(), "guide", "elbo"),
        (ClosedFormELBO(free_bits=0.1), "guide", "label-1"),
        (IWAE(1), "guide", "elbo"),
        (IWAE(8), "guide", "iwae-8"),
        (DReG(8), "model", "iwae-8"),
        (Renyi(0.0, 8), "guide", "iwae-8"),
        (PyroRenyi(0.0, 8), "guide", "iwae-8"),
        (Renyi(1.0, 8), "guide", "elbo"),
        (Renyi(0.5, 1), "guide", "elbo"),
        (Renyi(0.5, 8), "guide", "label-8"),
        (TVO(1, 8), "guide", "elbo"),
        (TVO(2, 8), "guide", "label-8"),
        (TVO(1, 8, side="right"), "guide", "label-8"),
        (RWS(8), "guide", "label-8"),
        (RWS(8), "model", "iwae-8"),
        (RWS(1), "model", "elbo"),
        (Biased(8), "guide", "label-8"),
    ],
)
def test_targets(objective, group, target):
    assert gradient_target(objective, group, "label").name == target


@pytest.mark.parametrize(
    ("settings", "only_model"),
    [({}, set()), ({"prior": "vamp(components=3)"}, {"u"})],
)
def test_groups_are_what_the_guide_meets_and_all_else(settings, only_model):
    model, guide = make_vae(**settings)
    with own_parameters(model, guide):
        groups = find_groups(model, guide, BINARY)
    of_guide = {id(p) for p in guide.parameters()}
    of_model = {id(p) for p in model.parameters()} - of_guide
    assert {id(leaf) for leaf in groups.leaves["guide"]} == of_guide
    assert {id(leaf) for leaf in groups.leaves["model"]} == of_model
    names = {name.split(".")[-1] for name, p in model.prior.named_parameters() if id(p) in of_model}
    assert names == only_model


def test_frozen_parameters_are_left_out():
    model, guide = make_vae()
    guide.encoder.requires_grad_(False).train(False)  # Pyro warns of those in training
    with own_parameters(model, guide):
        groups = find_groups(model, guide, BINARY)
    assert {id(leaf) for leaf in groups.leaves["guide"]} == {id(p) for p in guide.head.parameters()}


def test_nothing_is_left_changed():
    """Random state, .grad, parameters and Pyro's store; through loss_and_grads too."""
    model, guide = make_vae()
    parameters = [*model.parameters(), *guide.parameters()]
    parameters[0].grad = torch.full_like(parameters[0], 7.0)
    before = [parameter.detach().clone() for parameter in parameters]
    state = torch.get_rng_state()
    pyro_renyi = RenyiELBO(
        alpha=0.0, num_particles=3, vectorize_particles=True, max_plate_nesting=1
    )
    assert not hasattr(pyro_renyi, "differentiable_loss")
    rows = compare_gradients(
        model, guide, BINARY, estimators=["iwae(num_particles=3)", pyro_renyi], num_repeats=4
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert (parameters[0].grad == 7).all()
    assert all(parameter.grad is None for parameter in parameters[1:])
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    assert not list(pyro.get_param_store().keys())
    for group in ("guide", "model"):
        iwae, renyi = (by_key(rows)[group, e, 3] for e in ("iwae", "RenyiELBO"))
        assert iwae.variance == pytest.approx(renyi.variance)
        assert iwae.target == renyi.target


def test_the_same_seed_gives_the_same_rows_and_another_others():
    model, guide = make_vae()

    def run(seed):
        rows = compare_gradients(
            model, guide, BINARY, estimators=["dreg"], particles=(2,), num_repeats=4, seed=seed
        )
        return [(row.variance, row.bias, row.signal_to_noise) for row in rows]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_a_subsampled_plate_changes_no_gradient():
    """The mean over the data, whatever N the plate scales the loss to."""

    def programs(size):
        def guide(x):
            loc = pyro.param("loc", torch.zeros(2, dtype=torch.float64))
            with pyro.plate("data", size, subsample=torch.arange(len(x)), dim=-1):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        def model(x):
            with pyro.plate("data", size, subsample=torch.arange(len(x)), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z[..., :1], 1.0).to_event(1), obs=x[:, :1])

        return model, guide

    found = []
    for size in (6, 60):
        pyro.clear_param_store()
        rows = compare_gradients(
            *programs(size), X, estimators=["trace", "iwae"], particles=(2,), num_repeats=5
        )
        found.append([(row.variance, row.bias) for row in rows])
    for plain, subsampled in zip(*found, strict=True):
        assert subsampled == pytest.approx(plain)


@pytest.mark.parametrize("wrong", ["scaled", "shifted"])
def test_exact_is_for_programs_that_are_their_parts(wrong):
    model, guide = make_pair()
    forward = type(model).forward

    class Other(type(model)):
        def forward(self, x):
            with pyro.poutine.scale(scale=0.5 if wrong == "scaled" else 1.0):
                return forward(self, x + (wrong == "shifted"))

    with own_parameters(model, guide):
        assert exact_bound(model, guide, X, len(X)) is not None
    model.__class__ = Other
    with own_parameters(model, guide):
        assert exact_bound(model, guide, X, len(X)) is None


# Refusals


def test_what_does_not_take_the_pair_has_rows_that_say_why():
    model, guide = make_vae(prior="vamp(components=3)")
    rows = compare_gradients(
        model, guide, BINARY, estimators=["trace", "closed_form", "tvo"], particles=(1, 2),
        num_repeats=4,
    )  # fmt: skip
    found = by_key(rows)
    for group in ("guide", "model"):
        for K in (1, 2):
            refused = found[group, "closed_form", K]
            assert "no closed form" in refused.refusal
            assert refused.variance is refused.bias is refused.milliseconds is None
            assert refused.num_repeats == 0
        assert "from 2 to" in found[group, "tvo", 1].refusal
        assert found[group, "tvo", 2].refusal is None
        assert found[group, "trace", 2].reference == "8 × trace_mean_field(num_particles=64)"


def test_discrete_latents_are_refused_by_name():
    """Pyro's score function and TVO take them, what goes through z does not."""

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Categorical(logits=logits))

    def model(x):
        means = pyro.param("means", torch.arange(3.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Normal(means[z], 1.0), obs=x[:, 0])

    found = by_key(compare_gradients(model, guide, X.float(), particles=(4,), num_repeats=5))
    taken = {name for (_, name, _), row in found.items() if row.refusal is None}
    assert taken == {"trace", "trace_graph", "tvo", "reweighted_wake_sleep"}
    assert "'z'" in found["guide", "iwae", 4].refusal
    assert found["guide", "trace", 4].reference == "10 × trace_graph(num_particles=64)"
    assert found["guide", "trace_graph", 4].reference == "10 × trace(num_particles=64)"


def test_discrete_latents_of_the_model_are_summed_out_or_refused():
    """A mixture: trace would sample the component from its prior, a looser bound."""

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def model(x):
        means = pyro.param("means", torch.tensor([-1.0, 2.0]))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            c = pyro.sample(
                "c", dist.Categorical(logits=torch.zeros(2)), infer={"enumerate": "parallel"}
            )
            pyro.sample("x", dist.Normal(z + means[c], 1.0), obs=x[:, 0])

    found = by_key(compare_gradients(model, guide, X.float(), particles=(2,), num_repeats=8))
    assert "'c'" in found["guide", "trace", 2].refusal
    for group in ("guide", "model"):
        row = found[group, "trace_enum", 2]
        assert (row.target, row.refusal) == ("elbo", None)
        assert row.reference == "16 × closed_form(num_particles=64)"
        assert row.bias < 4 * row.bias_standard_error


class Broken(Fake):
    """Its gradient is NaN where the random number is below 0, as that of the warm-up is not."""

    def differentiable_loss(self, model, guide, x):
        theta = next(iter(guide.parameters())).sum()
        return (0 * theta).sqrt() if torch.randn(()) < 0 else theta


def test_a_gradient_that_is_nan_is_a_refusal():
    """Also where the first one is not: with seed 0 the warm-up's number is positive."""
    with seeded(derive_seed(0, "gradients", "warm_up")):
        assert torch.randn(()) > 0
    model, guide = make_vae()
    told = []
    rows = compare_gradients(
        model, guide, BINARY, estimators=["trace", Broken], particles=(1,), num_repeats=12,
        on_step=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert by_key(rows)["guide", "Broken", 1].refusal == "its gradient is NaN or infinite"
    assert by_key(rows)["guide", "trace", 1].refusal is None
    assert told[-1][0] == told[-1][1]
    json.dumps([asdict(row) for row in rows], allow_nan=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": ["trase"]}, "did you mean 'trace'"),
        ({"estimators": ["trace(alpha=1)"]}, "has no argument 'alpha'"),
        ({"estimators": ["renyi(alpha=x)"]}, "alpha must be"),
        ({"estimators": [3]}, "expected an estimator as a spec"),
        ({"estimators": [lambda K: K]}, "must return a pyro.infer.ELBO"),
        ({"estimators": ["iwae", "iwae(num_particles=8)"]}, "two estimators are called 'iwae'"),
        ({"particles": (0,)}, "particles must be a whole number"),
        ({"num_repeats": 3}, "num_repeats must be a whole number from 4"),
        ({"reference_repeats": 1}, "reference_repeats must be"),
    ],
)
def test_mistakes_are_one_line(options, message):
    model, guide = make_vae()
    with pytest.raises(InputError, match=message):
        compare_gradients(model, guide, BINARY, **options)


def test_a_pair_without_parameters_has_no_rows(linear_gaussian):
    rows = compare_gradients(
        linear_gaussian.model, linear_gaussian.exact_guide, linear_gaussian.simulate(3, seed=0),
        num_repeats=4, particles=(1,),
    )  # fmt: skip
    assert rows == []


def test_progress_is_told_and_ends():
    model, guide = make_vae()
    told = []
    compare_gradients(
        model, guide, BINARY, estimators=["iwae", "tvo"], particles=(1, 2), num_repeats=4,
        reference_repeats=6, on_step=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    total = 3 * 4 + 2 * 6
    assert told == [(done, total) for done in range(1, total + 1)]


def test_a_spec_that_gives_its_particles_is_run_at_these():
    pyros = Trace_ELBO(num_particles=7)
    given = ["iwae(num_particles=5)", "trace", pyros, ("mine", pyros), ("made", Trace)]
    assert [(c.label, c.num_particles) for c in candidates(given, (1, 2))] == [
        ("iwae", 5), ("trace", 1), ("trace", 2), ("Trace_ELBO", 7), ("mine", 7), ("made", 1),
        ("made", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_runs_in_either_precision(dtype):
    model, guide = make_pair(dtype)
    rows = compare_gradients(
        model, guide, make_data(dtype=getattr(torch, dtype)), estimators=["trace", "dreg"],
        particles=(1, 4), num_repeats=30,
    )  # fmt: skip
    assert all(row.largest_z < row.largest_z_limit for row in rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_runs_on_a_gpu():
    model, guide = (program.cuda() for program in make_pair("float32"))
    state = torch.cuda.get_rng_state()
    rows = compare_gradients(
        model, guide, X.float().cuda(), particles=(1, 4), num_repeats=30, reference_repeats=60
    )
    assert torch.equal(torch.cuda.get_rng_state(), state)
    judged = [row for row in rows if row.reference]
    assert len(judged) == 30
    assert all(row.bias <= 4 * row.bias_standard_error for row in judged)
