"""Two networks on the same data: the difference, its errors, and what may not be compared."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.evaluation import log_likelihood
from pyro_vae.evaluation.paired import check_same_protocol, paired_difference
from pyro_vae.evaluation.scores import PerDatum


def per_datum(model, guide, x, num_samples, seed) -> PerDatum:
    result = log_likelihood(model, guide, x, num_samples, seed=seed, pilot_samples=0)
    nobody = torch.zeros(len(x), dtype=torch.bool)
    return PerDatum(result.log_px, result.standard_error, result.bias, nobody)


@pytest.fixture
def other(linear_gaussian):
    """A second model: another W and b, the same σ."""
    return type(linear_gaussian)(
        linear_gaussian.W * 0.8, linear_gaussian.b + 0.2, linear_gaussian.sigma
    )


def kl_divergence(p, q) -> float:
    """E_p log p(x) − log q(x) of two linear-Gaussian models.

    KL = ½ [tr(Σ_q⁻¹ Σ_p) + (b_q − b_p)ᵀ Σ_q⁻¹ (b_q − b_p) − D + log |Σ_q|/|Σ_p|]
    """
    eye = torch.eye(len(p.b), dtype=p.W.dtype)
    covariance_p, covariance_q = (m.W @ m.W.T + m.sigma**2 * eye for m in (p, q))
    shift = q.b - p.b
    solved = torch.linalg.solve(covariance_q, covariance_p).trace()
    distance = shift @ torch.linalg.solve(covariance_q, shift)
    return float(
        0.5 * (solved + distance - len(shift) + covariance_q.logdet() - covariance_p.logdet())
    )


def test_exact_differences_are_means_of_exact_log_evidence(linear_gaussian, other):
    x = linear_gaussian.simulate(400, seed=2)
    log_a, log_b = linear_gaussian.log_evidence(x), other.log_evidence(x)
    found = paired_difference(PerDatum(log_a), PerDatum(log_b))
    assert found.difference == pytest.approx(float((log_a - log_b).mean()))
    assert (found.first, found.second) == (
        pytest.approx(float(log_a.mean())),
        pytest.approx(float(log_b.mean())),
    )
    # Of one sign: log p_A − log p_B, whose mean under A is KL(A ‖ B); 4 errors, seed 2.
    assert abs(found.difference - kl_divergence(linear_gaussian, other)) < (
        4 * found.data_standard_error
    )
    error = float((log_a - log_b).std()) / 20
    assert found.data_standard_error == pytest.approx(error)
    # t_399(0.975) = 1.9659
    assert found.high - found.difference == pytest.approx(1.9659 * error, rel=1e-4)
    assert found.difference - found.low == pytest.approx(1.9659 * error, rel=1e-4)
    assert (found.standard_error, found.bias, found.is_exact) == (0.0, 0.0, True)
    assert found.winner == "first"
    assert not found.may_be_the_guides
    # Paired, the data's own spread is gone: the error of independent data is several times it.
    assert found.data_standard_error < 0.5 * math.hypot(
        float(log_a.std()) / 20, float(log_b.std()) / 20
    )


def test_the_interval_covers_the_expected_difference_of_estimates(linear_gaussian, other):
    """300 repetitions of 30 data, K = 50 draws: 95 % cover KL(A ‖ B) + the difference of biases.

    The standard error of a coverage of 95 % is 1.26 %: within 3.5 of them. Seed 3.
    """
    repeats, count, K = 300, 30, 50
    x = linear_gaussian.simulate(repeats * count, seed=3)
    sides = [
        per_datum(m.model, m.guide_of(m.diagonal_guide(shift=0.2, variance=1.2)), x, K, seed=0)
        for m in (linear_gaussian, other)
    ]
    target = kl_divergence(linear_gaussian, other)
    target += float((sides[0].bias - sides[1].bias).mean())
    covered = 0
    for i in range(repeats):
        part = slice(i * count, (i + 1) * count)
        a, b = (PerDatum(s.log_px[part], s.standard_error[part], s.bias[part]) for s in sides)
        found = paired_difference(a, b)
        covered += found.low <= target <= found.high
    assert abs(covered / repeats - 0.95) < 3.5 * math.sqrt(0.95 * 0.05 / repeats)


def test_the_error_over_draws_is_an_upper_limit_under_common_noise(linear_gaussian):
    """B is A with z turned to −z: made from one noise ε, their errors are opposite.

    A guide off the posterior by δ has log w = log p(x) + s ε − s²/2, s² = δᵀΛδ, and B's has −ε:

    Var d = (2/K) [(exp(s²) − 1) + (1 − exp(−s²))],  in quadrature (2/K) (exp(s²) − 1) alone.

    2,000 data, seed 4: an sd is known to 1.6 %.
    """
    x, K = linear_gaussian.simulate(2000, seed=4), 400
    delta = torch.tensor([0.1, 0.05], dtype=torch.float64)
    mirrored = type(linear_gaussian)(-linear_gaussian.W, linear_gaussian.b, linear_gaussian.sigma)

    def shifted(subject, delta):
        def guide(x):
            p = subject.posterior(x)
            q = dist.MultivariateNormal(p.mean + delta, scale_tril=p.scale_tril)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", q)

        return per_datum(subject.model, guide, x, K, seed=0)

    a, b = shifted(linear_gaussian, delta), shifted(mirrored, -delta)
    difference = a.log_px - b.log_px  # of one p(x): all of it is noise
    s2 = float(delta @ linear_gaussian.precision @ delta)
    expected = math.sqrt(2 / K * (math.expm1(s2) - math.expm1(-s2)))
    assert float(difference.std()) == pytest.approx(expected, rel=0.06)
    quadrature = math.hypot(float(a.standard_error.mean()), float(b.standard_error.mean()))
    assert expected > 1.3 * quadrature
    found = paired_difference(a, b)
    assert found.standard_error > 0.98 * expected / math.sqrt(2000)
    assert found.standard_error < 1.1 * expected / math.sqrt(2000)


def test_the_error_over_data_contains_that_over_draws(linear_gaussian):
    """Two guides of one model: d_i is all noise, whose sd is s_d itself. 400 data, seed 5."""
    x = linear_gaussian.simulate(400, seed=5)
    a, b = (
        per_datum(linear_gaussian.model, linear_gaussian.guide_of(parameters), x, 300, seed)
        for seed, parameters in enumerate(
            (
                linear_gaussian.diagonal_guide(variance=1.5),
                linear_gaussian.diagonal_guide(shift=0.3),
            )
        )
    )
    found = paired_difference(a, b)
    independent = torch.cat([a.standard_error, b.standard_error]).square().sum().sqrt() / 400
    assert found.data_standard_error == pytest.approx(float(independent), rel=0.2)
    assert found.data_standard_error < found.standard_error * 1.1


def test_a_run_with_itself_is_zero(linear_gaussian):
    x = linear_gaussian.simulate(30, seed=6)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.5))
    a, b = (per_datum(linear_gaussian.model, guide, x, 50, seed=0) for _ in range(2))
    found = paired_difference(a, b)
    assert (found.difference, found.standard_error, found.data_standard_error) == (0, 0, 0)
    assert (found.low, found.high, found.bias, found.winner) == (0, 0, 0, "unresolved")
    assert found.is_same
    assert not found.may_be_the_guides
    assert not paired_difference(a, per_datum(linear_gaussian.model, guide, x, 50, seed=1)).is_same


def side(log_px, bias=0.0, flagged=0):
    log_px = torch.tensor(log_px, dtype=torch.float64)
    marked = torch.arange(len(log_px)) < flagged
    return PerDatum(log_px, torch.full_like(log_px, 0.01), torch.full_like(log_px, bias), marked)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (side([2.0, 3.0]), side([1.0, 2.0]), False),
        (side([2.0, 3.0]), side([1.0, 2.0], bias=-1.1), True),
        (side([2.0, 3.0]), side([1.0, 2.0], bias=-0.9), False),
        (side([2.0, 3.0]), side([1.0, 2.0], flagged=1), True),
        (side([2.0, 3.0], bias=-5.0, flagged=2), side([1.0, 2.0]), False),  # A is higher still
        (side([1.0, 2.0], flagged=1), side([2.0, 3.0]), True),
        (side([1.0, 2.0], bias=-1.0), side([2.0, 3.0]), True),
        (side([2.0, 3.0]), side([1.0, 2.0], bias=math.nan), True),
    ],
)
def test_what_the_lower_side_misses_may_be_the_difference(a, b, expected):
    assert paired_difference(a, b).may_be_the_guides is expected


def test_a_difference_within_its_interval_is_unresolved():
    a, b = side([1.0, 2.0, 3.5]), side([2.0, 1.0, 3.0])
    found = paired_difference(a, b)
    assert found.winner == "unresolved"
    # d = −1, 1, ½: mean 1/6, s = 1.0408, t_2(0.975) = 4.3027
    assert found.high == pytest.approx(1 / 6 + 4.3027 * 1.040833 / math.sqrt(3), rel=1e-4)
    assert paired_difference(b, a).difference == pytest.approx(-1 / 6)
    assert paired_difference(side([9.0, 9.1, 9.2]), b).winner == "first"
    assert paired_difference(b, side([9.0, 9.1, 9.2])).winner == "second"


def test_the_errors_of_draws_are_added_datum_by_datum():
    a, b = side([1.0, 2.0, 3.0]), side([1.5, 1.0, 2.0])
    # √(3 (0.01 + 0.01)²)/3
    assert paired_difference(a, b).standard_error == pytest.approx(0.02 / math.sqrt(3))


def test_ordered_data_have_the_error_of_blocks():
    """Blocks of ten alike: each is one datum. 100 data in 10 blocks, t_9(0.975) = 2.2622."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(10, generator=generator, dtype=torch.float64)
    a = side(means.repeat_interleave(10).tolist())
    b = side([0.0] * 100)
    found = paired_difference(a, b, ordered=True)
    error = float(means.std()) / math.sqrt(10)
    assert found.data_standard_error == pytest.approx(error)
    assert found.high - found.difference == pytest.approx(2.2622 * error, rel=1e-4)
    assert paired_difference(a, b).data_standard_error < 0.4 * error


def test_one_datum_and_one_draw_tell_no_errors():
    one = paired_difference(side([1.0]), side([2.0]))
    assert (one.low, one.high, one.data_standard_error) == (None, None, None)
    assert one.winner == "unresolved"
    lone = PerDatum(
        torch.tensor([1.0, 2.0]), torch.full((2,), math.nan), torch.full((2,), math.nan)
    )
    found = paired_difference(lone, side([0.0, 1.5]))
    assert (found.standard_error, found.first_bias, found.bias) == (None, None, None)
    assert found.data_standard_error is not None
    json.dumps(found.to_json(), allow_nan=False)
    json.dumps(one.to_json(), allow_nan=False)


def test_what_is_no_difference_is_refused():
    with pytest.raises(InputError, match="of the same data, got 2 and 3"):
        paired_difference(side([1.0, 2.0]), side([1.0, 2.0, 3.0]))
    with pytest.raises(InputError, match="not finite"):
        paired_difference(side([1.0, -math.inf]), side([1.0, 2.0]))


PROTOCOL = {
    "data": "digits", "split": "test", "count": 30, "content_hash": "ab" * 32, "seed": 0,
    "binarization": "dynamic", "binarization_seed": 103, "weights": "best", "num_samples": 50,
    "dtype": "float32", "device": "cpu", "versions": {"torch": "2"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "valid"}, "split (test and valid)"),
        ({"count": 31}, "number of data (30 and 31)"),
        ({"content_hash": "cd" * 32}, "content hash (abababab and cdcdcdcd)"),
        ({"content_hash": "cd" * 32, "data": "mnist"}, "data set (digits and mnist), content hash"),
        ({"binarization": "threshold"}, "binarization (dynamic and threshold)"),
        ({"binarization_seed": 1}, "binarization seed (103 and 1)"),
        ({"weights": "last"}, "weights (best and last)"),
        ({"num_samples": 60}, "K (50 and 60)"),
        ({"seed": 1}, "seed (0 and 1)"),
        ({"dtype": "float64"}, "dtype (float32 and float64)"),
        ({"adaptive": "all"}, "--adaptive (none and all)"),
        ({"seed": 1, "num_samples": 60}, "K (50 and 60), seed (0 and 1)"),
    ],
    ids=str,
)
def test_unlike_protocols_are_named_in_one_line(change, message):
    with pytest.raises(InputError) as caught:
        check_same_protocol(PROTOCOL, PROTOCOL | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "same_levels"),
    [
        ({}, False),
        ({"device": "cuda", "versions": {}}, False),
        ({"data": "a copy of digits"}, False),  # the same bytes by another name
        ({"data": "digits(values=continuous)", "content_hash": "cd" * 32}, True),
    ],
)
def test_like_protocols_pass(change, same_levels):
    check_same_protocol(PROTOCOL, PROTOCOL | change, same_levels)
