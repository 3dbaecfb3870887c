"""Scores: each mean and its errors, bits/dim, and the protocol they stand under."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.data import load_data
from pyro_vae.data.images import TensorImages
from pyro_vae.data.splits import Split
from pyro_vae.data.values import Values
from pyro_vae.errors import InputError
from pyro_vae.evaluation import evaluate, log_likelihood
from pyro_vae.protocols import Facts
from pyro_vae.standard_error import standard_error_of_mean

FACTS = Facts((8, 8), "continuous", num_levels=17, dequantized=True)


@pytest.fixture
def digits() -> Split:
    return load_data("digits(values=continuous)").test.subset(40)


def _programs(linear_gaussian):
    """The linear-Gaussian pair on the first five pixels of 8×8 images."""

    def model(x):
        linear_gaussian.model(x.flatten(1)[:, 20:25].double())

    def guide(x):
        linear_gaussian.exact_guide(x.flatten(1)[:, 20:25].double())

    return model, guide


def test_estimates_are_means_of_the_per_datum_ones(linear_gaussian, digits):
    def guide(x):
        parameters = linear_gaussian.diagonal_guide(shift=0.4, variance=1.3)
        linear_gaussian.guide_of(parameters)(x.flatten(1)[:, 20:25].double())

    model, _ = _programs(linear_gaussian)
    facts = Facts((8, 8), "continuous", num_levels=17, dequantized=True)
    result = log_likelihood(model, guide, digits.scored(), 60, seed=3)
    estimates = evaluate(model, guide, digits, facts, num_samples=60, seed=3).estimates
    for name, values, errors in [
        ("elbo", result.elbo, result.elbo_standard_error),
        ("reconstruction", result.reconstruction, result.reconstruction_standard_error),
        ("kl", result.kl, result.kl_standard_error),
        ("log_likelihood", result.log_px, result.standard_error),
    ]:
        estimate = estimates[name]
        assert estimate.value == pytest.approx(float(values.mean()))
        assert estimate.standard_error == pytest.approx(math.sqrt(float((errors**2).sum())) / 40)
        assert estimate.data_standard_error == pytest.approx(float(values.std()) / math.sqrt(40))
        assert estimate.count == 40
    assert estimates["log_likelihood"].bias == pytest.approx(float(result.bias.mean()))
    assert estimates["elbo"].bias is None
    difference = estimates["reconstruction"].value - estimates["kl"].value
    assert estimates["elbo"].value == pytest.approx(difference)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        # A uniform density on (0, 1)^D, log p = 0: n levels take log₂ n bits each.
        (Facts((2, 3), "continuous", num_levels=16, dequantized=True), 4.0),
        (Facts((2, 3), "continuous", num_levels=256, dequantized=True), 8.0),
        # A mass of e^0 costs nothing.
        (Facts((2, 3), "levels", num_levels=16), 0.0),
        (Facts((2, 3), "binary"), 0.0),
    ],
)
def test_bits_per_dim_of_log_p_zero(facts, expected):
    estimates = _evaluate_constant(0.0, facts)
    assert estimates["bits_per_dim"].value == pytest.approx(expected, abs=1e-6)
    assert estimates["bits_per_dim"].unit == "bits/dim"


def test_bits_per_dim_of_a_mass():
    """log p = −6 log 2 over 6 dimensions is one bit each, and the errors scale alike."""
    estimate = _evaluate_constant(-6 * math.log(2), Facts((2, 3), "binary"))["bits_per_dim"]
    assert estimate.value == pytest.approx(1.0, abs=1e-6)


def test_a_density_on_reals_has_no_bits():
    assert "bits_per_dim" not in _evaluate_constant(0.0, Facts((2, 3), "continuous"))


def _evaluate_constant(log_px, facts):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            log_density = x.new_tensor(log_px)
            pyro.sample("x", dist.Delta(x, log_density=log_density, event_dim=2), obs=x)

    images = TensorImages(torch.zeros(5, 2, 3, dtype=torch.uint8))
    values = Values("levels", "none", 16)
    return evaluate(model, guide, Split(images, None, values, 0), facts, num_samples=3).estimates


def test_one_sample_has_no_error_over_draws(linear_gaussian, digits):
    model, guide = _programs(linear_gaussian)
    facts = Facts((8, 8), "continuous", num_levels=17, dequantized=True)
    estimates = evaluate(model, guide, digits, facts, num_samples=1).estimates
    for estimate in estimates.values():
        assert estimate.standard_error is None
        assert estimate.data_standard_error is not None
    assert evaluate(model, guide, digits, facts, num_samples=1).pareto_k is None
    estimate = estimates["log_likelihood"]
    assert (estimate.bias, estimate.understated) == (None, True)
    assert estimate.note == (
        "IWAE-1, a lower bound in expectation, the ELBO: one draw a datum tells neither its error "
        "over draws nor its bias"
    )


@pytest.mark.parametrize(("shift", "understated"), [(0.0, False), (5.0, True)])
def test_errors_that_are_lower_limits_are_marked(linear_gaussian, digits, shift, understated):
    def guide(x):
        parameters = linear_gaussian.diagonal_guide(shift=shift)
        linear_gaussian.guide_of(parameters)(x.flatten(1)[:, 20:25].double())

    model, _ = _programs(linear_gaussian)
    facts = Facts((8, 8), "continuous", num_levels=17, dequantized=True)
    estimates = evaluate(model, guide, digits, facts, num_samples=500).estimates
    for name in ("log_likelihood", "bits_per_dim"):
        assert estimates[name].understated is understated
    assert ("100.0% of the data" in estimates["log_likelihood"].note) is understated
    assert estimates["elbo"].understated is False


def test_k_summarizes_what_is_flagged(linear_gaussian, digits):
    """Half the data have a guide 5 sd off, the others the posterior itself: constant weights."""

    def guide(x):
        x = x.flatten(1)[:, 20:25].double()
        p = linear_gaussian.posterior(x)
        far = (torch.arange(len(x)) % 2).unsqueeze(1) * 5.0
        q = dist.MultivariateNormal(p.mean + far, scale_tril=p.scale_tril)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)

    model, _ = _programs(linear_gaussian)
    positions = list(range(100, 140))
    given = {"num_samples": 500, "seed": 1}
    evaluation = evaluate(model, guide, digits, FACTS, positions=positions, **given)
    result, summary = evaluation.result, evaluation.pareto_k
    assert (summary["constant"], summary["flagged"], summary["unknown"]) == (20, 20, 0)
    assert (summary["share"], summary["pilot_samples"]) == (0.5, 500)
    assert summary["threshold"] == pytest.approx(1 - 1 / math.log10(500))
    worst = result.pareto_k.argsort(descending=True)[:6].tolist()
    assert all(i % 2 == 1 for i in worst)
    assert summary["worst"] == [
        {
            "position": 100 + i,
            "pareto_k": float(result.pareto_k[i]),
            "log_px": float(result.log_px[i]),
        }
        for i in worst
    ]
    note = evaluation.estimates["log_likelihood"].note
    assert "; 50.0% of the data have k̂ above 0.63: they may lie below log p(x)" in note
    assert evaluation.to_json()["pareto_k"] == summary
    assert "adaptive" not in evaluation.protocol


@pytest.mark.parametrize("adaptive", ["flagged", "all"])
def test_adaptive_is_kept_apart_from_iwae(linear_gaussian, digits, adaptive):
    """A guide 2 sd off: all 40 data are flagged, and estimated again to within 4 errors. Seed 1."""

    def guide(x):
        parameters = linear_gaussian.diagonal_guide(shift=2.0)
        linear_gaussian.guide_of(parameters)(x.flatten(1)[:, 20:25].double())

    model, _ = _programs(linear_gaussian)
    given = {"num_samples": 300, "dtype": torch.float64, "seed": 1}
    plain = evaluate(model, guide, digits, FACTS, **given)
    both = evaluate(model, guide, digits, FACTS, adaptive=adaptive, **given)
    assert both.estimates["log_likelihood"] == plain.estimates["log_likelihood"]
    assert both.protocol == plain.protocol | {"adaptive": adaptive}
    exact = linear_gaussian.log_evidence(digits.scored().flatten(1)[:, 20:25].double())
    estimate = both.estimates["log_likelihood_adaptive"]
    assert estimate.note.startswith(f"{adaptive} data anew: ")
    refined = both.per_datum["log_likelihood_adaptive"]
    assert estimate.value == pytest.approx(float(refined.log_px.mean()))
    assert estimate.standard_error == pytest.approx(
        float(refined.standard_error.square().sum().sqrt()) / 40
    )
    assert estimate.bias == pytest.approx(float(refined.bias.mean()))
    assert abs(estimate.value - float(exact.mean())) < 4 * estimate.standard_error - estimate.bias
    assert int(plain.per_datum["log_likelihood"].flagged.sum()) == plain.pareto_k["flagged"] == 40


def test_which_data_are_estimated_again(linear_gaussian, digits):
    """A guide that k̂ passes: of the flagged none, of all each, to within 4 errors. Seed 1."""

    def guide(x):
        parameters = linear_gaussian.diagonal_guide(variance=1.2)
        linear_gaussian.guide_of(parameters)(x.flatten(1)[:, 20:25].double())

    model, _ = _programs(linear_gaussian)
    few = digits.subset(10)
    given = {"num_samples": 300, "dtype": torch.float64, "seed": 1}
    flagged, all_ = (
        evaluate(model, guide, few, FACTS, adaptive=which, **given) for which in ("flagged", "all")
    )
    assert flagged.pareto_k["flagged"] == 0
    note = flagged.estimates["log_likelihood_adaptive"].note
    assert note == "flagged data anew: 10 by IWAE; 0 of 10 remain flagged"
    assert "IWAE" not in all_.estimates["log_likelihood_adaptive"].note
    exact = linear_gaussian.log_evidence(few.scored().flatten(1)[:, 20:25].double())
    each = all_.per_datum["log_likelihood_adaptive"]
    assert ((each.log_px - exact).abs() < 4 * each.standard_error).all()
    with pytest.raises(InputError, match="must be one of flagged, all or None, got True"):
        evaluate(model, guide, few, FACTS, adaptive=True, **given)


def test_protocol_names_all_that_the_number_depends_on(linear_gaussian):
    data = load_data("digits(values=continuous)")
    subset = data.test.subset(10)
    model, guide = _programs(linear_gaussian)
    facts = Facts((8, 8), "continuous", num_levels=17, dequantized=True)
    evaluation = evaluate(
        model,
        guide,
        subset,
        facts,
        num_samples=4,
        seed=9,
        data_protocol=data.protocol("test", subset),
    )
    protocol = evaluation.protocol
    assert protocol["data"] == data.spec
    assert protocol["split"] == "test"
    assert protocol["count"] == 10
    assert protocol["content_hash"] == subset.content_hash != data.test.content_hash
    assert (protocol["num_samples"], protocol["seed"]) == (4, 9)
    assert (protocol["dtype"], protocol["device"]) == ("float32", "cpu")
    assert set(protocol["versions"]) == {"pyro-vae", "python", "torch", "pyro-ppl"}


def test_ordered_data_have_the_larger_error_they_deserve():
    """For an AR(1) series with ρ = 0.9 the mean's error is √19 times the independent one."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(10_000, generator=generator, dtype=torch.float64)
    series = [torch.zeros((), dtype=torch.float64)]
    for e in noise:
        series.append(0.9 * series[-1] + e)
    values = torch.stack(series[1:])
    independent = standard_error_of_mean(values)
    blocked = standard_error_of_mean(values, ordered=True)
    assert blocked / independent == pytest.approx(math.sqrt(19), rel=0.25)


def test_one_datum_has_no_error_over_data():
    assert standard_error_of_mean(torch.ones(1)) is None


DIGITS = Facts((8, 8), "continuous", num_levels=17, dequantized=True)


def test_exact_evidence_stands_beside_the_estimate(digits):
    config = Config(
        model="linear_gaussian", guide="diagonal_normal", likelihood="normal", latent_dim=2,
        dtype="float64",
    )  # fmt: skip
    torch.manual_seed(0)
    model, guide = build_pair(config, DIGITS)
    given = {"num_samples": 2000, "dtype": torch.float64}
    estimates = evaluate(model, guide, digits, DIGITS, **given).estimates
    exact, estimate = estimates["log_evidence"], estimates["log_likelihood"]
    log_px = model.log_evidence(digits.scored().double()).detach()
    assert exact.value == pytest.approx(float(log_px.mean()))
    assert exact.standard_error is None
    assert exact.data_standard_error == pytest.approx(float(log_px.std()) / math.sqrt(40))
    assert abs(estimate.value - exact.value) < 4 * estimate.standard_error - estimate.bias
    bits = estimates["bits_per_dim"]  # log P(level) ≥ E log p(y) − 64 log 17
    assert bits.value == pytest.approx(-(exact.value - 64 * math.log(17)) / (64 * math.log(2)))
    assert (bits.standard_error, bits.understated) == (None, False)


def test_a_point_is_scored_by_its_reconstruction_alone(digits):
    config = Config(guide="delta", likelihood="normal", latent_dim=3, encoder="mlp(hidden=(8,))")
    torch.manual_seed(0)
    model, guide = build_pair(config, DIGITS)
    for chunk_size in (None, 7):
        evaluation = evaluate(model, guide, digits, DIGITS, num_samples=50, chunk_size=chunk_size)
        x = digits.scored()
        expected = model.decode(guide.posterior(x).mean).log_prob(x).detach().double()
        (name,) = evaluation.estimates
        assert name == "reconstruction"
        assert evaluation.estimates[name].value == pytest.approx(float(expected.mean()))
        assert evaluation.estimates[name].standard_error is None
        assert evaluation.protocol["num_samples"] == 1
    with pytest.raises(InputError, match=r"latent site 'z' of the guide is a Delta.*no IWAE"):
        log_likelihood(model, guide, digits.scored(), 10)


def test_evidence_by_other_means_stands_beside_iwae(linear_gaussian, digits):
    """Quadrature and AIS of six data against the closed form; the protocol tells them apart."""
    model, guide = _programs(linear_gaussian)
    few = digits.subset(6)
    exact = linear_gaussian.log_evidence(few.scored().flatten(1)[:, 20:25].double())
    for method in ("quadrature", "ais"):
        found = evaluate(model, guide, few, FACTS, num_samples=50, evidence=method)
        estimate = found.estimates[f"log_evidence_{method}"]
        error = estimate.standard_error - (estimate.bias or 0.0)
        assert abs(estimate.value - float(exact.mean())) < 4 * error
        assert 0 < estimate.standard_error < 0.1
        assert estimate.data_standard_error == pytest.approx(float(exact.std()) / 6**0.5, rel=0.05)
        assert found.protocol["evidence"] == method
        assert (estimate.bias is None) == (method == "quadrature")
        per_datum = found.per_datum[f"log_evidence_{method}"]
        assert float((per_datum.log_px - exact).abs().max()) < 0.5
    assert found.estimates["log_likelihood"].value != estimate.value
    with pytest.raises(InputError, match="evidence must be one of best, exact, quadrature, ais"):
        evaluate(model, guide, few, FACTS, num_samples=50, evidence="iwae")


def test_a_point_has_evidence_from_the_prior(digits):
    config = Config(
        model="linear_gaussian", guide="delta", likelihood="normal", latent_dim=2, dtype="float64"
    )
    torch.manual_seed(0)
    model, guide = build_pair(config, DIGITS)
    few = digits.subset(4)
    given = {"dtype": torch.float64}
    exact = evaluate(model, guide, few, DIGITS, evidence="best", **given).estimates["log_evidence"]
    found = evaluate(model, guide, few, DIGITS, evidence="ais", **given).estimates
    assert found.keys() == {"reconstruction", "log_evidence_ais"}
    estimate = found["log_evidence_ais"]
    assert exact.standard_error is None
    assert abs(estimate.value - exact.value) < 4 * estimate.standard_error - estimate.bias
