"""Which scores share a column: what is converted, by which Jacobian, and what is refused."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.comparability import Scored, common_measure, levels_hash, to_measure
from pyro_vae.data import load_data
from pyro_vae.data.images import TensorImages
from pyro_vae.data.splits import Split
from pyro_vae.data.values import Values
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate, evaluate
from pyro_vae.protocols import Facts

SHAPE, N = (2, 3), 16
D = math.prod(SHAPE)
RAW = torch.randint(N, (30, *SHAPE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
FACTS = {
    "binary": Facts(SHAPE, "binary"),
    "levels": Facts(SHAPE, "levels", N),
    "counts": Facts(SHAPE, "counts"),
    "dequantized": Facts(SHAPE, "continuous", N, dequantized=True),
    "continuous": Facts(SHAPE, "continuous"),
}
VALUES = {
    "binary": Values("binary", "dynamic", N),
    "levels": Values("levels", "none", N),
    "counts": Values("levels", "none", N),
    "dequantized": Values("continuous", "none", N),
    "continuous": Values("continuous", "none", None),
}


def split(kind, raw=RAW, seed=0):
    return Split(TensorImages(raw), None, VALUES[kind], seed)


def scored(kind, raw=RAW, seed=0, name=None):
    return Scored(name or kind, FACTS[kind], split(kind, raw, seed))


def test_one_measure_stays_itself():
    for kind in FACTS:
        assert common_measure([scored(kind), scored(kind, name="another")]) == kind


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(FACTS, 2)))
def test_measures_that_mix_and_that_do_not(one, other):
    if {one, other} == {"levels", "dequantized"}:
        assert common_measure([scored(one), scored(other)]) == "levels"
        return
    with pytest.raises(InputError, match=r"cannot stand in one column; sweep them apart") as caught:
        common_measure([scored(one), scored(other)])
    message = str(caught.value)
    assert "\n" not in message
    if {one, other} == {"binary", "dequantized"}:
        assert "binary pixels hold less than the values they were made from" in message
    if {one, other} == {"levels", "continuous"}:
        assert "a density changes with the unit of x and a mass does not" in message


def test_an_odd_one_among_many_is_found():
    kinds = ["levels", "dequantized", "levels", "binary"]
    with pytest.raises(InputError, match="binary"):
        common_measure([scored(kind) for kind in kinds])


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (scored("binary"), scored("binary", seed=1), "different data .*another draw"),
        (scored("dequantized"), scored("dequantized", seed=1), "different data .*another draw"),
        (scored("levels"), scored("dequantized", RAW.flip(0)), "different levels"),
        (scored("levels"), scored("dequantized", RAW[1:]), "30 data of .* and 29 data of"),
        (
            scored("levels"),
            Scored("normal", Facts(SHAPE, "continuous", 8, dequantized=True), split("dequantized")),
            "16 levels and .* 8 levels",
        ),
    ],
)
def test_other_data_are_refused(one, other, message):
    with pytest.raises(InputError, match=message):
        common_measure([one, other])


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_dequantized_values_give_their_levels_back(name, request):
    """All 17 or 256 levels of real test data, none lost at the edge of a cell."""
    data_root = request.getfixturevalue("data_root") if name == "mnist" else None
    found = {}
    for values in ("levels", "continuous"):
        data = load_data(f"{name}(values={values})", data_root)
        facts = Facts(data.event_shape, data.measure, data.num_levels, data.dequantized)
        found[values] = levels_hash(data.test, facts)
    assert found["levels"] == found["continuous"]


def test_the_mass_on_levels_of_a_density_flat_within_cells():
    """P(level) and the density n^D P(⌊n y⌋) are the same model: bits and nats must be the same."""
    table = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.3))

    def model_of(num_cells):
        """With cells, the density of dequantized values; without, the mass on levels."""

        def model(x):
            levels = (x * num_cells).floor() if num_cells else x
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
                log_mass = (table * z[..., None]).log_softmax(-1)  # [*, B, N]
                chosen = levels.long().flatten(1).expand(*z.shape, D)
                total = (log_mass.gather(-1, chosen) + math.log(num_cells or 1)).sum(-1)
                p = dist.Delta(x.expand(*z.shape, *SHAPE), log_density=total, event_dim=2)
                pyro.sample("x", p, obs=x)

        return model

    found = {}
    for kind, num_cells in (("levels", None), ("dequantized", N)):
        evaluation = evaluate(
            model_of(num_cells),
            guide,
            split(kind),
            FACTS[kind],
            num_samples=50,
            dtype=torch.float64,
        )
        found[kind] = to_measure(evaluation.estimates, FACTS[kind], "levels")
    for name, estimate in found["levels"].items():
        other = found["dequantized"][name]
        assert other.value == pytest.approx(estimate.value, rel=1e-12), name
        assert other.standard_error == pytest.approx(estimate.standard_error, rel=1e-9)
        assert other.data_standard_error == pytest.approx(estimate.data_standard_error, rel=1e-9)
    elbo, bits = found["dequantized"]["log_likelihood"], found["dequantized"]["bits_per_dim"]
    assert bits.value == pytest.approx(-elbo.value / (D * math.log(2)), rel=1e-12)


def test_only_log_densities_of_dequantized_data_move():
    names = ("elbo", "reconstruction", "kl", "log_likelihood", "bits_per_dim")
    estimates = {name: Estimate(1.0, 0.1, 0.2, 30) for name in names}
    for kind in FACTS:
        moved = to_measure(estimates, FACTS[kind], "levels")
        for name in names:
            shifts = kind == "dequantized" and name not in ("kl", "bits_per_dim")
            assert moved[name].value == pytest.approx(1 - shifts * D * math.log(N))
            assert moved[name].standard_error == 0.1
    assert to_measure(estimates, FACTS["dequantized"], "dequantized") == estimates
