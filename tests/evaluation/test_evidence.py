"""The best means to log p(x): which one is taken, that they agree, and what each refuses."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation import _hmc
from pyro_vae.evaluation.evidence import LogEvidence, log_evidence

FEW = {"num_chains": 40, "num_temperatures": 40}
LEAST = {"num_chains": 4, "num_temperatures": 4}


@pytest.fixture(autouse=True)
def _short_pilot(monkeypatch) -> None:
    """Step sizes from a tenth of the work: they decide how good an estimate is, never its mean."""
    monkeypatch.setattr(_hmc, "PILOT_KNOTS", 8)
    monkeypatch.setattr(_hmc, "UPDATES", 3)
    monkeypatch.setattr(_hmc, "WARM_UP", 8)


class Known:
    """A linear-Gaussian program that offers its evidence."""

    def __init__(self, program):
        self.program = program

    def __call__(self, x: Tensor) -> None:
        self.program.model(x)

    def log_evidence(self, x: Tensor) -> Tensor:
        return self.program.log_evidence(x)


def test_the_three_methods_agree(linear_gaussian):
    """Two latents, seed 0: quadrature within its error, AIS within four standard errors."""
    x = linear_gaussian.simulate(20, seed=0)
    model = Known(linear_gaussian)
    exact, quadrature, ais = (
        log_evidence(model, None, x, method=method, **FEW)
        for method in ("exact", "quadrature", "ais")
    )
    assert [r.method for r in (exact, quadrature, ais)] == ["exact", "quadrature", "ais"]
    assert torch.equal(exact.log_px, linear_gaussian.log_evidence(x))
    assert (exact.error == 0).all()
    assert exact.trusted.all()
    assert quadrature.trusted.all()
    assert (quadrature.error < 1e-3).all()
    assert ((quadrature.log_px - exact.log_px).abs() <= quadrature.error + 1e-9).all()
    assert (exact.bias == 0).all()
    assert (quadrature.bias == 0).all()
    z_scores = (ais.log_px - exact.log_px) / ais.error
    assert (ais.error < 0.18).all()
    assert ais.trusted.all()
    assert z_scores.abs().max() < 4
    # The mean of 20 z-scores has sd 0.22, their spread one of 0.16.
    assert abs(float(z_scores.mean())) < 0.9
    assert 0.5 < float(z_scores.std()) < 1.5
    torch.testing.assert_close(ais.bias, -ais.error.square() / 2)
    assert all(r.note is None for r in (exact, quadrature, ais))


def test_the_best_means_is_taken(linear_gaussian):
    x = linear_gaussian.simulate(2, seed=1)
    three = replace(linear_gaussian, W=torch.cat([linear_gaussian.W, linear_gaussian.W], dim=1))
    assert log_evidence(Known(linear_gaussian), None, x).method == "exact"
    assert log_evidence(linear_gaussian.model, None, x).method == "quadrature"
    beyond = log_evidence(three.model, None, x, **FEW)
    assert beyond.method == "ais"
    assert beyond.note is None
    torch.testing.assert_close(beyond.log_px, three.log_evidence(x), rtol=0, atol=1.0)


def test_what_quadrature_refuses_goes_to_ais_with_the_reason():
    """A rate of one dimension, no real number: log p(x) = log Σ … in closed form.

    x | z ~ Poisson(z), z ~ Gamma(2, 1): p(x) = (x + 1) 2^{−x − 2}, within four errors, seed 0.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.0)))
            pyro.sample("x", dist.Poisson(z), obs=x)

    x = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    result = log_evidence(model, None, x, **FEW)
    assert result.method == "ais"
    assert result.note.startswith("no quadrature: latent site 'z' has the support")
    exact = (x + 1).log() - (x + 2) * math.log(2)
    assert ((result.log_px - exact).abs() < 4 * result.error).all()
    assert (result.error < 0.1).all()
    with pytest.raises(InputError, match="latent site 'z' has the support"):
        log_evidence(model, None, x, method="quadrature")


def test_ais_from_the_guide_needs_one(linear_gaussian):
    x = linear_gaussian.simulate(3, seed=2)
    guide = linear_gaussian.exact_guide
    result = log_evidence(linear_gaussian.model, guide, x, method="ais", start="guide", **LEAST)
    # From p(z|x) itself the path goes nowhere: each chain has the exact weight.
    torch.testing.assert_close(result.log_px, linear_gaussian.log_evidence(x), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="no AIS: "):
        log_evidence(linear_gaussian.model, None, x, method="ais", start="guide", **LEAST)


def test_a_guide_is_not_asked_from_the_prior(linear_gaussian):
    """A guide that would fail to run, or has no density, is no hindrance."""

    def broken(x: Tensor) -> None:
        raise AssertionError("the guide was run")

    x = linear_gaussian.simulate(2, seed=2)
    for method in ("quadrature", "ais"):
        log_evidence(linear_gaussian.model, broken, x, method=method, **LEAST)


def test_quadrature_that_has_not_converged_is_not_trusted(linear_gaussian):
    program = replace(linear_gaussian, sigma=0.3)
    x = program.simulate(3, seed=0)
    result = log_evidence(program.model, None, x, tolerance=1e-15)
    assert result.method == "quadrature"
    assert not result.trusted.any()
    assert result.note == "3 of 3 data have not converged to 1e-15 nats"


def test_ais_of_few_chains_is_not_trusted(linear_gaussian):
    """Two temperatures are the prior's importance sampling: sd 0.02 posteriors, 8 chains."""
    program = replace(linear_gaussian, sigma=0.02)
    x = program.simulate(5, seed=0)
    result = log_evidence(
        program.model, None, x, method="ais", num_chains=8, num_temperatures=2, seed=0
    )
    assert not result.trusted.any()


def test_seed_decides_the_noise_and_chunks_do_not(linear_gaussian):
    x = linear_gaussian.simulate(1, seed=0)

    def run(**arguments) -> Tensor:
        result = log_evidence(linear_gaussian.model, None, x, method="ais", **LEAST, **arguments)
        return result.log_px

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = run(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, run(seed=1))
    assert not torch.equal(first, run(seed=2))
    torch.testing.assert_close(first, run(seed=1, chunk_size=5), rtol=0, atol=1e-6)


def test_errors_of_a_mean():
    """Bounds of quadrature may all have one sign, errors of AIS are independent."""
    error = torch.tensor([0.3, 0.4], dtype=torch.float64)
    log_px = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    fields = log_px, error, torch.zeros(2)
    trusted = torch.ones(2, dtype=torch.bool)
    assert LogEvidence(*fields, "ais", trusted).mean_error == pytest.approx(0.25)
    assert LogEvidence(*fields, "quadrature", trusted).mean_error == pytest.approx(0.35)
    assert LogEvidence(*fields, "ais", trusted).mean == pytest.approx(-1.5)


def _discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _not_a_number(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z * math.nan, 1.0, validate_args=False), obs=x)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (_discrete, {"method": "exact"}, "has no log_evidence"),
        (_discrete, {"method": "quadrature"}, "'z' is discrete"),
        (_discrete, {"method": "ais"}, "no AIS: latent site 'z' is discrete"),
        (_discrete, {}, "^no AIS: latent site 'z' is discrete"),
        (_not_a_number, {}, "^no quadrature: .*nan.*; no AIS: .*nan"),
        (_discrete, {"method": "quadratur"}, "did you mean 'quadrature'"),
        (_discrete, {"x": torch.zeros(0)}, "expected data of shape"),
    ],
)
def test_bad_input_is_one_line(model, arguments, message):
    arguments = {"x": torch.zeros(2), **arguments}
    with pytest.raises(InputError, match=message) as caught:
        log_evidence(model, None, **arguments)
    assert "\n" not in str(caught.value)
