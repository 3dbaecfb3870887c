"""Differences of several runs: intervals that hold for all pairs together."""

import pytest
import torch
from scipy import stats

from pyro_vae.evaluation.scores import PerDatum
from pyro_vae.paired_runs import paired_differences, paired_verdict


@pytest.fixture
def sides():
    torch.manual_seed(5)
    common = torch.randn(40, dtype=torch.float64)
    nobody = torch.zeros(40, dtype=torch.bool)
    return [
        {"log_likelihood": PerDatum(values, 0.01 * nobody.double(), 0 * values, nobody, nobody)}
        for values in (common, common - 0.2 + 0.5 * torch.randn(40, dtype=torch.float64))
    ]


@pytest.mark.parametrize("num_pairs", [1, 3, 10])
def test_the_interval_is_bonferronis(sides, num_pairs):
    found = paired_differences(*sides, (0.0, 0.0), ordered=False, num_pairs=num_pairs)
    each = found["log_likelihood"]
    d = (sides[0]["log_likelihood"].log_px - sides[1]["log_likelihood"].log_px).numpy()
    low, high = stats.t.interval(1 - 0.05 / num_pairs, 39, d.mean(), stats.sem(d))
    assert each.low == pytest.approx(low, rel=1e-12)
    assert each.high == pytest.approx(high, rel=1e-12)
    (line, *_) = paired_verdict(found, 5000, 0, (0.0, 0.0), num_pairs=num_pairs)
    assert ("pairs together" in line) is (num_pairs > 1)


def test_a_shift_moves_one_side(sides):
    plain = paired_differences(*sides, (0.0, 0.0), ordered=False)["log_likelihood"]
    moved = paired_differences(*sides, (-3.0, 0.0), ordered=False)["log_likelihood"]
    assert moved.difference == pytest.approx(plain.difference - 3.0, rel=1e-12)
    assert moved.data_standard_error == pytest.approx(plain.data_standard_error, rel=1e-9)
