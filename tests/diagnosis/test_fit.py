"""Predictive checks: uniform p-values for the truth, small ones for models wrong in a known way."""

import math
from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import ks_2samp, t, ttest_1samp

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.diagnosis.fit import (
    NEAREST,
    POSTERIOR,
    PRIOR,
    _swap_test,
    nearest_distance,
    predictive_checks,
)
from pyro_vae.errors import InputError
from pyro_vae.evaluation.simulation import simulate
from pyro_vae.protocols import Facts


def by_name(checks):
    return {(check.statistic.partition(" (")[0], check.against): check for check in checks}


def run(p, *, model=None, guide=None, num_data=400, seed=0, **options):
    """Checks of held-out data of ``p``."""
    x, train_x = p.simulate(num_data, 2 * seed + 1), p.simulate(500, 2 * seed + 2)
    checks = predictive_checks(
        model or p.model, guide or p.exact_guide, x, train_x, seed=seed, **options
    )
    return by_name(checks)


def test_statistics_and_their_names(linear_gaussian):
    """By hand, and every value over data beside its estimate."""
    p = linear_gaussian
    x, train_x = p.simulate(50, 1), p.simulate(300, 2)
    checks = predictive_checks(p.model, p.exact_guide, x, train_x, midpoint=0.25)
    assert [(c.statistic, c.against) for c in checks] == [
        (name, kind)
        for kind in (PRIOR, POSTERIOR)
        for name in ("mean intensity", "active pixels (above 0.25)", NEAREST)
    ]
    intensity, active, nearest = (torch.tensor(c.data_values) for c in checks[:3])
    assert torch.allclose(intensity.double(), x.mean(1), atol=1e-6)
    assert torch.allclose(active.double(), (x > 0.25).double().mean(1), atol=1e-6)
    assert torch.allclose(nearest.double(), torch.cdist(x, train_x).min(1).values, atol=1e-6)
    for check in checks:
        values = torch.tensor(check.data_values, dtype=torch.float64)
        assert check.data.value == pytest.approx(float(values.mean()))
        assert check.data.data_standard_error == pytest.approx(float(values.std()) / 50**0.5)
        assert check.data.standard_error is None
        assert check.data.count == len(check.simulated_values) == 50
        assert check.difference.value == pytest.approx(check.simulated.value - check.data.value)
        assert check.distance == ks_2samp(check.data_values, check.simulated_values).statistic
        assert (check.data.unit == "share") == check.statistic.startswith("active")


def test_midpoints():
    """½ in [0, 1], the training mean elsewhere; once with the intensity for binary data."""

    def names(train_x):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

        checks = predictive_checks(model, None, train_x[:4], train_x, against=[PRIOR])
        return [check.statistic for check in checks]

    unit = torch.linspace(0, 1, 12).reshape(6, 2)
    assert names(unit)[1] == "active pixels (above 0.5)"
    assert names(3 * unit - 1)[1] == "active pixels (above 0.5)"  # the mean of −1 … 2
    assert names(16 * unit)[1] == "active pixels (above 8)"
    assert names(unit.round()) == ["mean intensity (share of active pixels)", NEAREST]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_distance(dtype):
    """Against all pairs in float64, far from the origin and at distance 0."""
    generator = torch.Generator().manual_seed(0)
    train_x = (torch.randn(700, 3, 4, generator=generator).double() + 100).to(dtype)
    x = torch.cat([train_x[:5], (torch.randn(60, 3, 4, generator=generator) + 100).to(dtype)])
    exact = (x.double()[:, None] - train_x.double()).flatten(2).norm(dim=2).min(1).values
    found = nearest_distance(x, train_x)
    assert found.dtype == torch.float64
    assert torch.equal(found[:5], torch.zeros(5, dtype=torch.float64))
    assert torch.allclose(found, exact, rtol=1e-6)


def test_truth_passes_at_every_level(linear_gaussian):
    """60 repetitions of 60 data: p-values no smaller than uniform ones, and not far from them.

    Tolerance: 3.5 binomial standard errors at each level; seeds 0 … 59. Differences over
    their standard errors have variance 1 within 4 of √(2/60).
    """
    checks = [run(linear_gaussian, num_data=60, seed=seed) for seed in range(60)]
    for key in checks[0]:
        p_values = torch.tensor([each[key].p_value for each in checks], dtype=torch.float64)
        for level in (0.05, 0.2, 0.5):
            share = float((p_values <= level).double().mean())
            assert share < level + 3.5 * math.sqrt(level * (1 - level) / 60), (key, level)
        if not key[0].startswith("active"):  # its six values are ties
            assert float((p_values <= 0.5).double().mean()) > 0.25, key
        differences = [each[key].difference for each in checks]
        kept_apart = key[1] == PRIOR
        errors = [
            math.hypot(d.data_standard_error, d.standard_error if kept_apart else 0.0)
            for d in differences
        ]
        scores = torch.tensor([d.value / e for d, e in zip(differences, errors, strict=True)])
        if key[0] == NEAREST and kept_apart:
            continue  # one training set moves both sides alike, which the next test holds fixed
        assert abs(float(scores.square().mean()) - 1) < 4 * (2 / 60) ** 0.5, key


@pytest.mark.parametrize("kind", [PRIOR, POSTERIOR])
def test_error_over_draws(linear_gaussian, kind):
    """The spread of the simulated mean over 40 seeds, data held fixed, within 4 errors of it."""
    p = linear_gaussian
    x, train_x = p.simulate(40, 1), p.simulate(100, 2)
    found = [
        by_name(
            predictive_checks(
                p.model, p.exact_guide, x, train_x, against=[kind], num_draws=3, seed=seed
            )
        )
        for seed in range(40)
    ]
    for name in ("mean intensity", NEAREST):
        simulated = [each[name, kind].simulated for each in found]
        spread = float(torch.tensor([s.value for s in simulated]).std())
        stated = float(torch.tensor([s.standard_error for s in simulated]).square().mean().sqrt())
        assert abs(spread / stated - 1) < 4 * (1 / 2 / 40) ** 0.5
        assert (simulated[0].data_standard_error is None) == (kind == PRIOR)


def test_pairing_sharpens_the_difference(linear_gaussian):
    """Little noise: x̃ is near x, so that the pairs' difference has a small error."""
    found = run(replace(linear_gaussian, sigma=0.05))
    paired = found["mean intensity", POSTERIOR]
    assert paired.difference.data_standard_error < 0.2 * paired.data.data_standard_error
    free = found["mean intensity", PRIOR]
    assert free.difference.data_standard_error == free.data.data_standard_error


def test_a_planted_mean_shift(linear_gaussian):
    """b + 0.5 in the model: the intensity is 0.5 too high, within 4 errors; seed 0."""
    p = linear_gaussian
    wrong = replace(p, b=p.b + 0.5)
    check = run(p, model=wrong.model, guide=wrong.exact_guide)["mean intensity", PRIOR]
    error = math.hypot(check.difference.standard_error, check.difference.data_standard_error)
    assert abs(check.difference.value - 0.5) < 4 * error
    assert check.p_value < 1e-6
    assert check.distance > 0.2


def test_a_planted_variance(linear_gaussian):
    """σ × 2: draws lie farther from the training data, in both kinds of draws; seed 0."""
    p = linear_gaussian
    wrong = replace(p, sigma=2 * p.sigma)
    found = run(p, model=wrong.model, guide=wrong.exact_guide)
    assert found[NEAREST, PRIOR].p_value < 1e-12
    assert found[NEAREST, PRIOR].difference.value > 0.2
    assert found[NEAREST, POSTERIOR].p_value == 0.001
    assert found[NEAREST, POSTERIOR].difference.value > 0.2


def test_a_guide_that_is_wrong_fails_the_posterior_predictive_alone(linear_gaussian):
    p = linear_gaussian
    found = run(p, guide=p.guide_of(p.diagonal_guide(shift=1.5)))
    assert found["mean intensity", PRIOR].p_value > 0.01
    assert found["mean intensity", POSTERIOR].p_value == 0.001


def test_a_model_that_repeats_its_training_data(linear_gaussian):
    """x = a training datum + 0.01 ε: its intensities pass, its distances are √5 · 0.01, near 0."""
    p = linear_gaussian
    train_x = p.simulate(500, 2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(torch.ones(500, dtype=x.dtype)))
            pyro.sample("x", dist.Normal(train_x[c], 0.01).to_event(1), obs=x)

    found = by_name(predictive_checks(model, None, p.simulate(400, 1), train_x, against=[PRIOR]))
    assert found["mean intensity", PRIOR].p_value > 0.01
    assert found[NEAREST, PRIOR].simulated.value < 0.03
    assert found[NEAREST, PRIOR].difference.value < -0.5
    assert found[NEAREST, PRIOR].p_value < 1e-100


def videos(p, num_data, count):
    """``count`` times data of the model in which neighbours' z have the correlation 0.9."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num_data, count, 7, generator=generator, dtype=torch.float64)
    z = [noise[0, :, :2]]
    for step in noise[1:, :, :2]:
        z.append(0.9 * z[-1] + math.sqrt(1 - 0.9**2) * step)
    return (torch.stack(z) @ p.W.T + p.b + p.sigma * noise[..., 2:]).unbind(1)


def test_ordered_data_take_errors_over_blocks(linear_gaussian):
    """The true model of 25 videos: rejected at 5 % in few, taken as independent in many.

    Batch means of 30 blocks of 30 lack some of the error where 9 neighbours are alike: the
    share is 0.05 to 0.12 in expectation, and a binomial of 25 stays below 0.4.
    """
    p = linear_gaussian
    found = {True: 0, False: 0}
    for seed, x in enumerate(videos(p, 900, 25)):
        for ordered in found:
            check = predictive_checks(
                p.model, p.exact_guide, x, p.simulate(20, 0), seed=seed,
                against=[PRIOR], num_draws=1, ordered=ordered,
            )[0]  # fmt: skip
            found[ordered] += check.p_value < 0.05
    assert found[True] < 10
    assert found[False] > 10


def test_ordered_pairs(linear_gaussian):
    p = linear_gaussian
    x, train_x = videos(p, 400, 1)[0], p.simulate(100, 2)
    checks = partial(predictive_checks, p.model, p.exact_guide, x, train_x, against=[POSTERIOR])
    blocks, swaps = checks(ordered=True)[0], checks()[0]
    assert blocks.test == "Student's t over blocks"
    assert swaps.test == "999 swaps of pairs"
    assert blocks.difference.value == swaps.difference.value
    assert blocks.data.data_standard_error > 1.5 * swaps.data.data_standard_error
    assert 0.001 < blocks.p_value < 1


def test_the_p_value_of_ordered_data_is_students_over_blocks(linear_gaussian):
    """400 data in 20 blocks of 20, one draw a datum: against scipy's t-test of block means."""
    p = linear_gaussian
    x, train_x = videos(p, 400, 1)[0], p.simulate(100, 2)
    checks = predictive_checks(p.model, p.exact_guide, x, train_x, num_draws=1, ordered=True)
    for check in checks:
        data, drawn = (
            torch.tensor(values, dtype=torch.float64)
            for values in (check.data_values, check.simulated_values)
        )
        blocks = (drawn - data).view(20, 20).mean(1)
        if check.against == POSTERIOR:
            error = float(blocks.std()) / 20**0.5
            expected = ttest_1samp(blocks, 0).pvalue
            over_data = float(drawn.view(20, 20).mean(1).std()) / 20**0.5
            assert check.difference.data_standard_error == pytest.approx(error)
            assert check.simulated.data_standard_error == pytest.approx(over_data)
        else:
            of_blocks = float(data.view(20, 20).mean(1).std()) / 20**0.5
            error = math.hypot(of_blocks, float(drawn.std()) / 20)
            expected = 2 * t.cdf(-abs(float(blocks.mean())) / error, 19)
            assert check.difference.data_standard_error == pytest.approx(of_blocks)
        assert check.p_value == pytest.approx(expected)


def test_swaps_against_their_exact_distribution():
    """All 2⁸ swaps of eight pairs, ties among them; 5 binomial standard errors of 999."""
    a = torch.tensor([0.1, 0.5, 0.5, 1.2, 1.9, 2.0, 3.0, 0.3])
    b = torch.tensor([0.4, 0.5, 1.0, 1.1, 2.5, 2.0, 3.5, 0.9])
    exact = ks_2samp(a, b).statistic
    distances = []
    for code in range(256):
        swap = torch.tensor([code >> i & 1 for i in range(8)]).bool()
        distances.append(ks_2samp(torch.where(swap, b, a), torch.where(swap, a, b)).statistic)
    share = sum(each >= exact - 1e-12 for each in distances) / 256
    distance, p_value = _swap_test(a, b, seed=0)
    assert distance == exact
    assert 0.1 < share < 0.95
    assert abs(p_value - share) < 5 * math.sqrt(share * (1 - share) / 999) + 0.001


def test_data_of_the_training_set_are_told(linear_gaussian):
    p = linear_gaussian
    train_x = p.simulate(100, 2)
    x = torch.cat([train_x[:7], p.simulate(13, 1)])
    checks = by_name(predictive_checks(p.model, p.exact_guide, x, train_x))
    expected = "7 of 20 are in the training data, at a distance of 0"
    assert checks[NEAREST, PRIOR].data.note == checks[NEAREST, POSTERIOR].data.note == expected
    assert checks["mean intensity", PRIOR].data.note is None


def test_built_in_pair():
    """Binary images, float32; the same seed gives the same rows, and global noise is left."""
    torch.manual_seed(0)
    config = Config(likelihood="bernoulli", encoder="mlp(hidden=(8,))", latent_dim=2)
    model, guide = build_pair(config, Facts((3, 3), "binary"), torch.full((3, 3), 0.4))
    x = simulate(model, torch.zeros(300, 3, 3), seed=5).x
    state = torch.get_rng_state()
    checks = predictive_checks(model, guide, x[:100], x[100:], num_draws=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert checks == predictive_checks(model, guide, x[:100], x[100:], num_draws=1)
    found = by_name(checks)
    assert list(found) == [(n, k) for k in (PRIOR, POSTERIOR) for n in ("mean intensity", NEAREST)]
    assert all(found[name, PRIOR].p_value > 0.01 for name in ("mean intensity", NEAREST))
    assert found["mean intensity", POSTERIOR].simulated.standard_error is None


def test_refused_in_one_line(linear_gaussian):
    p = linear_gaussian
    x = p.simulate(5, 0)
    for message, args, options in [
        ("at least 4 data, got 3", (x[:3], x), {}),
        ("shape of the data, [5] each, got [4]", (x, x[:, :4]), {}),
        ("against must be among", (x, x), {"against": ["prior"]}),
        ("num_samples must be a whole number", (x, x), {"num_draws": 0}),
    ]:
        with pytest.raises(InputError) as error:
            predictive_checks(p.model, p.exact_guide, *args, **options)
        assert message in str(error.value)
