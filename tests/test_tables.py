"""Tables on real data: every prior by three likelihoods on MNIST, two densities of Frey faces."""

import math

import numpy as np
import pytest

from pyro_vae.components import names
from pyro_vae.config import Config
from pyro_vae.data import load_data
from pyro_vae.sweep import plan_sweep, run_sweep

LIKELIHOODS = ["discretized_logistic", "beta_binomial", "normal(scale=learned)"]


def mnist_file(folder, data_root, count: int) -> str:
    """A few images of MNIST as a file of one's own: levels 0 … 255."""
    data = load_data("mnist(values=levels)", data_root)
    sizes = {"train": count, "valid": count // 5, "test": count // 5}
    arrays = {name: data.split(name).subset(n).scored() for name, n in sizes.items()}
    path = folder / "mnist.npz"
    np.savez(path, **{name: x.numpy().astype(np.uint8) for name, x in arrays.items()})
    return str(path)


def assert_scored(results, expected: int) -> None:
    assert not results.failures
    assert len(results.results) == expected
    for result in results.results:
        for name in ("elbo", "log_likelihood", "kl", "bits_per_dim"):
            estimate = result.estimates[name]
            assert math.isfinite(estimate.value), (result.run.configuration.label, name)
            assert estimate.standard_error is not None
            assert estimate.data_standard_error > 0
        assert result.estimates["elbo"].value < result.estimates["log_likelihood"].value


@pytest.mark.parametrize(
    ("count", "epochs"), [(300, 15), pytest.param(2000, 20, marks=pytest.mark.slow)]
)
def test_every_prior_by_three_likelihoods_on_mnist(count, epochs, data_root, tmp_path):
    settings = Config(
        data=mnist_file(tmp_path, data_root, count), latent_dim=10, encoder="mlp(hidden=(64,))",
        epochs=epochs, batch_size=50, optimizer="adam(lr=0.002)", device="cpu",
    )  # fmt: skip
    small = {"vamp": "vamp(components=50)", "flow": "flow(layers=2, hidden=(32,))"}
    priors = [small.get(name, name) for name in names("prior")]
    assert len(priors) >= 6
    factors = {"prior": priors, "likelihood": LIKELIHOODS}
    plan = plan_sweep(settings, factors, tmp_path / "sweep", seeds=1, count=30, num_samples=20)
    results = run_sweep(plan)
    assert_scored(results, 3 * len(priors))
    # Uniform over 256 levels is 8 bits: each has learned something.
    assert all(r.estimates["bits_per_dim"].value < 8 for r in results.results)


def test_frey_faces_in_one_column_of_bits(data_root, tmp_path):
    """A density of dequantized values and a mass on levels, the former marked as a bound."""
    settings = Config(
        data="frey_faces", data_root=str(data_root), latent_dim=8, encoder="mlp(hidden=(100,))",
        epochs=15, optimizer="adam(lr=0.002)", device="cpu",
    )  # fmt: skip
    factors = {"likelihood": ["normal(scale=learned)", "discretized_logistic"]}
    plan = plan_sweep(settings, factors, tmp_path / "sweep", seeds=1, count=60, num_samples=50)
    results = run_sweep(plan)
    assert plan.measure == "levels"
    assert_scored(results, 2)
    bounds = {c.config.likelihood: results.is_lower_bound(c) for c in plan.configurations}
    assert bounds == {"normal(scale=learned)": True, "discretized_logistic": False}
    for result in results.results:
        log_px, bits = (result.estimates[name].value for name in ("log_likelihood", "bits_per_dim"))
        assert bits == pytest.approx(-log_px / (560 * math.log(2)))  # both speak of levels
        assert 4 < bits < 7.5
