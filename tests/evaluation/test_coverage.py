"""Nominal 95 % intervals of IWAE-K hold the exact log p(x), and k̂ says where they do not."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", SCRIPT)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("latent_dim", "variance", "shift"), [(2, 0.8, 0.3), (5, 1.3, 0.3), (10, 1.0, 0.2)]
)
def test_near_the_posterior(coverage, latent_dim, variance, shift):
    """300 data at K = 1,000: 95 % within three binomial standard errors of 1.26 %, seed 0."""
    row = coverage.measure(latent_dim, variance, shift, 300, 1000)
    assert abs(row["coverage"] - 0.95) < 3 * 0.0126
    assert row["flagged"] < 0.05
    assert abs(row["mean_shortfall"] + row["mean_bias_estimate"]) < (
        4 * row["mean_shortfall_error"]
    )


def test_far_from_the_posterior(coverage):
    """Ten latents, each shifted by 1 sd: most intervals miss, and the data are flagged."""
    row = coverage.measure(10, 0.4, 1.0, 100, 1000)
    assert row["coverage"] < 0.5
    assert row["flagged"] >= 0.95


def test_exact_posterior_is_constant(coverage):
    row = coverage.measure(2, 1.0, 0.0, 20, 100)
    assert row["flagged"] == 0
    assert row["median_standard_error"] == 0
    assert abs(row["mean_shortfall"]) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("latent_dim", [2, 5, 10])
def test_every_near_cell(coverage, latent_dim):
    """1,000 data at K = 5,000: 93 to 97 %, but for ten latents with v = 0.7 and a shift of 0.3.

    Its weights have a skewness of 18: 8 % of the intervals lie below, 0.6 % above log p(x).
    """
    for variance, shift in coverage.NEAR:
        row = coverage.measure(latent_dim, variance, shift, 1000, 5000)
        low = 0.89 if (latent_dim, variance, shift) == (10, 0.7, 0.3) else 0.93
        assert low <= row["coverage"] <= 0.97, row


@pytest.mark.slow
def test_far_cells(coverage):
    """Both narrow and shifted: 90 % are flagged from five latents on; seed 0."""
    for latent_dim, (variance, shift), flagged in [
        (5, (0.4, 1.0), 0.9), (10, (0.4, 1.0), 0.9), (10, (1.0, 1.0), 0.9), (2, (0.4, 1.0), 0.7),
    ]:  # fmt: skip
        row = coverage.measure(latent_dim, variance, shift, 1000, 5000)
        assert row["flagged"] >= flagged, row
        assert row["coverage"] < 0.9, row
