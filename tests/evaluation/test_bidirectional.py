"""Both bounds of bidirectional Monte Carlo against exact evidence."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.evaluation import _hmc
from pyro_vae.evaluation._hmc import Kernel
from pyro_vae.evaluation.bidirectional import bidirectional_monte_carlo


@pytest.fixture(autouse=True)
def _short_pilot(monkeypatch) -> None:
    """Step sizes decide how narrow the bounds are, never that they hold."""
    monkeypatch.setattr(_hmc, "PILOT_KNOTS", 8)
    monkeypatch.setattr(_hmc, "UPDATES", 3)
    monkeypatch.setattr(_hmc, "WARM_UP", 8)


def like(num_data: int, *event: int) -> Tensor:
    return torch.zeros(num_data, *event, dtype=torch.float64)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_forward_and_reverse_weights_have_the_right_mean(linear_gaussian, start):
    """E w/p(x) = 1 forward and E p(x)/w = 1 in reverse, at eight temperatures, seed 1."""
    program = replace(linear_gaussian, sigma=2.0)
    guide = program.guide_of(program.diagonal_guide(shift=0.2, variance=1.2))
    result = bidirectional_monte_carlo(
        program.model, like(200, 5), guide, start=start, num_chains=20, num_temperatures=8,
        num_leapfrog=2, seed=1,
    )  # fmt: skip
    exact = program.log_evidence(result.x)
    for ratio in ((result.lower - exact).exp(), (exact - result.upper).exp()):
        mean, error = mean_and_error(ratio)
        assert error < 0.03
        assert abs(mean - 1) < 4 * error, (mean, error)


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_bounds_lie_around_the_exact_value(linear_gaussian, start):
    """At few temperatures the gap is there, on the right sides; at many it closes."""
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.5, variance=1.3))

    def bounds(num_temperatures: int, num_data: int):
        result = bidirectional_monte_carlo(
            linear_gaussian.model, like(num_data, 5), guide, start=start, num_chains=8,
            num_temperatures=num_temperatures, num_leapfrog=2, seed=2,
        )  # fmt: skip
        exact = linear_gaussian.log_evidence(result.x)
        return result, mean_and_error(exact - result.lower), mean_and_error(result.upper - exact)

    loose, below, above = bounds(6 if start == "prior" else 2, 100)
    assert below[0] > 0.01
    assert above[0] > 2 * above[1]
    assert loose.mean_gap > 2 * loose.gap_standard_error
    assert loose.mean_gap == pytest.approx(below[0] + above[0])
    close, below, above = bounds(100, 50)
    assert abs(below[0]) < 3 * below[1] < 0.1
    assert abs(above[0]) < 3 * above[1] < 0.1
    assert -3 * close.gap_standard_error < close.mean_gap < loose.mean_gap
    assert "simulated from the model" in close.note


def test_of_the_exact_posterior_both_bounds_are_exact(linear_gaussian):
    result = bidirectional_monte_carlo(
        linear_gaussian.model, like(5, 5), linear_gaussian.exact_guide, start="guide",
        num_chains=2, num_temperatures=6, num_leapfrog=2,
    )  # fmt: skip
    exact = linear_gaussian.log_evidence(result.x)
    torch.testing.assert_close(result.lower, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.upper, exact, rtol=0, atol=1e-9)
    assert result.gap.abs().max() < 1e-9


def test_a_positive_latent_with_counts():
    """z ~ Gamma(3, 1), x|z ~ Poisson(z): x is negative binomial; reverse chains start at log z*."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(3.0), x.new_tensor(1.0)))
            pyro.sample("x", dist.Poisson(z), obs=x)

    result = bidirectional_monte_carlo(
        model, like(100), num_chains=10, num_temperatures=60, num_leapfrog=3, seed=3
    )
    assert len(result.x.unique()) > 4
    exact = dist.NegativeBinomial(torch.tensor(3.0).double(), probs=0.5).log_prob(result.x)
    for off in (result.lower - exact, result.upper - exact):
        mean, error = mean_and_error(off)
        assert abs(mean) < 3.5 * error < 0.1, (mean, error)


def test_reverse_chains_go_back_by_the_same_steps(linear_gaussian, monkeypatch):
    places: list[float] = []
    step = Kernel.step

    def noted(kernel: Kernel, place: float) -> Tensor:
        places.append(place)
        return step(kernel, place)

    monkeypatch.setattr(Kernel, "step", noted)
    bidirectional_monte_carlo(
        linear_gaussian.model, like(2, 5), num_chains=2, num_temperatures=7, num_leapfrog=1
    )
    forward, reverse = places[:5], places[5:]
    assert forward == pytest.approx([t / 6 for t in range(1, 6)])
    assert reverse == pytest.approx(forward[::-1])


def test_seeds_steps_and_the_global_state(linear_gaussian):
    told: list[tuple[int, int]] = []
    state = torch.get_rng_state()

    def run(seed: int):
        return bidirectional_monte_carlo(
            linear_gaussian.model, like(3, 5), num_chains=2, num_temperatures=5, num_leapfrog=1,
            seed=seed, on_step=lambda done, total: told.append((done, total)),
        )  # fmt: skip

    one, same, other = run(0), run(0), run(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.x, same.x)
    assert torch.equal(one.gap, same.gap)
    assert (one.x != other.x).all()
    assert told[: len(told) // 3][-1] == (len(told) // 3, len(told) // 3)
    for values in (one.lower, one.upper, one.gap, one.lower_standard_error, one.acceptance):
        assert values.shape == (3,)
        assert values.dtype == torch.float64


def test_one_datum_has_no_error_over_data(linear_gaussian):
    result = bidirectional_monte_carlo(
        linear_gaussian.model, like(1, 5), num_chains=1, num_temperatures=4, num_leapfrog=1
    )
    assert math.isnan(result.gap_standard_error)
    assert result.lower_standard_error.isnan().all()


class NoDensity(nn.Module):
    has_density = False


@pytest.mark.parametrize(
    ("guide", "options", "message"),
    [
        (NoDensity(), {"start": "guide"}, "does not have; use start='prior'"),
        (None, {"start": "guide"}, "needs a guide, got None; use start='prior'"),
        (None, {"num_chains": 0}, "num_chains must be a whole number, at least 1, got 0"),
    ],
)
def test_what_is_refused(linear_gaussian, guide, options, message):
    with pytest.raises(InputError, match=message) as error:
        bidirectional_monte_carlo(linear_gaussian.model, like(2, 5), guide, **options)
    assert "\n" not in str(error.value)
