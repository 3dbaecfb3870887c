"""``pyro-vae evaluate`` as a user meets it: k̂, flagged data again, and two runs' difference."""

import json
import math
import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import pyro_vae
from pyro_vae import evaluate_command
from pyro_vae.evaluation.record import read_record
from tests.command import invoke, refuse, succeed

TRAIN = [
    "train", "--encoder", "mlp(hidden=(16,))", "--latent-dim", "2", "--epochs", "1",
    "--device", "cpu", "--no-tensorboard",
]  # fmt: skip
DENSE = ["--data", "digits(values=continuous)", "--likelihood", "normal(scale=learned)"]
LINEAR = [*DENSE, "--model", "linear_gaussian"]
RUNS = {
    "one": [],
    "two": ["--seed", "1"],
    "double": ["--dtype", "float64"],
    "levels": ["--data", "digits(values=levels)", "--likelihood", "discretized_logistic"],
    "dense": DENSE,
    "linear": LINEAR,
    "linear_two": [*LINEAR, "--seed", "1"],
    "exact": [*LINEAR, "--guide", "exact_posterior", "--dtype", "float64"],
    "point": ["--guide", "delta"],
    "vectors": ["--data", "x.npy", "--likelihood", "normal(scale=1)"],
}
FEW = ["-K", 60, "--count", 40, "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    x = np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32)
    np.save(folder / "x.npy", x)
    for name, options in RUNS.items():
        succeed(*TRAIN, *options, "--out", name, cwd=folder)
    return folder


@pytest.fixture
def place(trained, tmp_path) -> Path:
    """A copy of all runs that a test may write into."""
    return Path(shutil.copytree(trained, tmp_path / "place"))


def entries(run: Path, split="test") -> list[dict]:
    return json.loads((run / "evaluation" / f"{split}.json").read_text())


def scored(run: Path, count: int, num_samples: int, seed=0):
    """log p̂ and k̂ straight from the library, of the same subset."""
    loaded = pyro_vae.load_run(run)
    x = loaded.to_device(loaded.data.test.subset(count).scored())
    return loaded, x, pyro_vae.log_likelihood(loaded.model, loaded.guide, x, num_samples, seed=seed)


def assert_picture(path: Path) -> None:
    image = matplotlib.image.imread(path)
    assert min(image.shape[:2]) > 100
    assert image[..., :3].std() > 0.01


def test_flagged_data_are_counted_listed_and_drawn(place):
    """K = 60 has the threshold 1 − 1/log₁₀ 60 = 0.44, which some digits exceed."""
    out = succeed("evaluate", "one", *FEW, cwd=place)
    loaded, _, result = scored(place / "one", 40, 60)
    flagged = int(result.flagged.sum())
    assert 0 < flagged < 40
    assert f"k̂, from 60 draws of its own: {flagged} of 40 data above 0.44, the worst:" in out
    (entry,) = entries(place / "one")
    block = entry["pareto_k"]
    assert block["threshold"] == pytest.approx(1 - 1 / math.log10(60))
    assert (block["flagged"], block["pilot_samples"], block["constant"]) == (flagged, 60, 0)
    assert block["share"] == pytest.approx(flagged / 40)
    # The worst are those of the largest k̂, by their place in the whole split.
    order = result.pareto_k.argsort(descending=True)[: min(6, flagged)]
    assert [row["pareto_k"] for row in block["worst"]] == pytest.approx(
        result.pareto_k[order].tolist()
    )
    x = loaded.data.test.subset(40).scored()
    for row, i in zip(block["worst"], order.tolist(), strict=True):
        place_in_split = torch.tensor([row["position"]])
        assert torch.equal(loaded.data.test.scored(place_in_split)[0], x[i])
        assert row["log_px"] == pytest.approx(float(result.log_px[i]))
        assert re.search(rf"^ +{row['position']} +{row['pareto_k']:.2f} ", out, re.MULTILINE)
    assert f"{flagged / 40:.1%} of the data have k̂ above 0.44" in out
    for name in ("bound_curve", "pareto_k"):
        assert f"one/figures/{name}.png" in out.splitlines()
        assert_picture(place / "one" / "figures" / f"{name}.png")
    assert all(len(line) <= 80 for line in out.splitlines() if line.startswith(" "))


def test_weights_that_are_constant_are_called_exact(place):
    out = succeed("evaluate", "exact", *FEW, cwd=place)
    assert "40 of 40 data exact, all weights being equal" in out
    assert " data above" not in out
    (entry,) = entries(place / "exact")
    assert (entry["pareto_k"]["constant"], entry["pareto_k"]["flagged"]) == (40, 0)
    assert entry["pareto_k"]["worst"] == []
    assert "bound_curve.png" in out
    assert "pareto_k.png" not in out


def test_what_has_no_draws_has_no_k_and_no_figures(place):
    """A figure of an earlier evaluation does not stay beside scores that it does not belong to."""
    succeed("evaluate", "one", *FEW, cwd=place)
    for options in (["one", "-K", 1, "--count", 20], ["point", *FEW]):
        out = succeed("evaluate", *options, "--device", "cpu", cwd=place)
        run = place / options[0]
        assert "k̂" not in out
        assert ".png" not in out
        assert "pareto_k" not in entries(run)[-1]
        assert {path.name for path in (run / "figures").iterdir()} == {"training.png"}
    # Of so few draws k̂ is not known, which is no flag of any one datum.
    out = succeed("evaluate", "one", "-K", 10, "--count", 20, cwd=place)
    assert "k̂, from 10 draws of its own: not known of 20 of 20 data" in out
    assert "pareto_k.png" not in out
    assert "bound_curve.png" in out


def test_data_that_are_vectors_have_no_images(place):
    out = succeed("evaluate", "vectors", "-K", 60, cwd=place)
    assert_picture(place / "vectors" / "figures" / "bound_curve.png")
    assert "pareto_k.png" in out


def test_an_entry_without_k_is_still_read(place):
    """Written before there was one; another protocol's entry stands beside it."""
    succeed("evaluate", "one", *FEW, cwd=place)
    record = place / "one" / "evaluation" / "test.json"
    (old,) = entries(place / "one")
    del old["pareto_k"]
    record.write_text(json.dumps([old]))
    assert read_record(record) == [old]
    succeed("evaluate", "one", *FEW, "--seed", 1, cwd=place)
    assert [("pareto_k" in entry) for entry in entries(place / "one")] == [False, True]


@pytest.mark.parametrize(
    ("run", "which"), [("one", "flagged"), ("linear", "flagged"), ("one", "all")]
)
def test_adaptive_stands_beside_and_leaves_plain_entries(place, run, which):
    fewer = ["-K", 60, "--count", 20, "--device", "cpu"]
    succeed("evaluate", run, *fewer, cwd=place)
    option = {"flagged": "--adaptive", "all": "--adaptive-all"}[which]
    out = succeed("evaluate", run, *fewer, option, cwd=place)
    plain, adaptive = entries(place / run)
    assert plain["protocol"] == {k: v for k, v in adaptive["protocol"].items() if k != "adaptive"}
    assert adaptive["protocol"]["adaptive"] == which
    assert plain["estimates"]["log_likelihood"] == adaptive["estimates"]["log_likelihood"]
    assert "log_likelihood_adaptive" not in plain["estimates"]
    estimate = adaptive["estimates"]["log_likelihood_adaptive"]
    assert f"log p(x), adaptive: {estimate['note']}" in out
    counts = {name: int(n) for n, name in re.findall(r"(\d+) by (\w+)", estimate["note"])}
    assert sum(counts.values()) == 20
    kept = 20 - plain["pareto_k"]["flagged"] if which == "flagged" else 0
    assert counts.get("IWAE", 0) == kept
    assert estimate["note"].startswith(f"{which} data anew: ")
    (row,) = [line for line in out.splitlines() if line.startswith(" log p(x), adaptive ")]
    assert f"{estimate['value']:.2f}"[:5] in row
    if run == "linear":
        exact = adaptive["estimates"]["log_evidence"]["value"]
        error = estimate["standard_error"]
        assert abs(estimate["value"] - exact) < 4 * error + abs(estimate["bias"])


def test_two_runs_are_compared_datum_by_datum(place):
    out = succeed("evaluate", "linear", "linear_two", *FEW, "--out", "d/pair.json", cwd=place)
    # Each is scored and recorded as alone.
    for name in ("linear", "linear_two"):
        (entry,) = entries(place / name)
        succeed("evaluate", name, *FEW, cwd=place)
        assert entries(place / name) == [entry]
    (a, x, first), (b, _, second) = (scored(place / n, 40, 60) for n in ("linear", "linear_two"))
    exact = (a.model.log_evidence(x) - b.model.log_evidence(x)).double()
    plain = first.log_px - second.log_px
    content = json.loads((place / "d" / "pair.json").read_text())
    rows = content["differences"]
    assert list(rows) == ["log_evidence", "log_likelihood"]
    for name, values in (("log_evidence", exact), ("log_likelihood", plain)):
        assert rows[name]["difference"] == pytest.approx(float(values.mean()), rel=1e-5)
        assert rows[name]["data_standard_error"] == pytest.approx(
            float(values.std()) / math.sqrt(40), rel=1e-5
        )
    errors = first.standard_error + second.standard_error
    assert rows["log_likelihood"]["standard_error"] == pytest.approx(
        float(errors.square().sum().sqrt() / 40)
    )
    assert rows["log_likelihood"]["first_bias"] == pytest.approx(float(first.bias.mean()))
    assert rows["log_likelihood"]["bias"] == pytest.approx(float((first.bias - second.bias).mean()))
    assert [run["path"] for run in content["runs"]] == ["linear", "linear_two"]
    assert content["runs"][0]["protocol"]["num_samples"] == 60
    # The verdict is that of the exact numbers, and the sentence that it is one of two networks.
    reach = 2.0227 * rows["log_evidence"]["data_standard_error"]  # t_39(0.975)
    assert rows["log_evidence"]["high"] - float(exact.mean()) == pytest.approx(reach, rel=1e-3)
    winner = "unresolved" if abs(float(exact.mean())) < reach else None
    assert ("log p(x), exact: unresolved" in out) == (winner == "unresolved")
    assert "compares two trained networks; of two priors or architectures it says nothing" in out
    assert "d/pair.json" in out.splitlines()
    table = out.partition("B: linear_two")[2]
    assert all(len(line) <= 80 for line in table.splitlines() if line.startswith(" "))


def test_flagged_data_may_be_the_difference_unless_seen_to(place):
    out = succeed("evaluate", "one", "two", *FEW, cwd=place)
    assert "It may be a difference of the guides: the estimate of " in out
    assert "of its 40 data are flagged); see --adaptive" in out
    assert "± draws is the sum of the errors of A and B, which share the noise of seed 0: " in out
    fewer = ["-K", 60, "--count", 10, "--device", "cpu"]
    out = succeed("evaluate", "one", "two", *fewer, "--adaptive", cwd=place)
    assert "\nlog p(x), adaptive: " in out.partition("B: two")[2]
    assert "see --adaptive" not in out


def test_a_run_against_itself_is_exactly_zero(place):
    out = succeed("evaluate", "one", "one", *FEW, "--out", "pair.json", cwd=place)
    row = json.loads((place / "pair.json").read_text())["differences"]["log_likelihood"]
    for name in ("difference", "standard_error", "data_standard_error", "low", "high", "bias"):
        assert row[name] == 0
    assert "A and B agree on every datum to the last bit" in out
    assert out.count("one, test, 40 data") == 1  # scored once
    shutil.copytree(place / "one", place / "copy")
    assert "agree on every datum" in succeed("evaluate", "one", "copy", *FEW, cwd=place)


def test_a_density_of_dequantized_values_is_brought_to_levels(place):
    """Less D log n = 64 log 17 nats, a lower bound, of the same levels."""
    out = succeed("evaluate", "dense", "levels", *FEW, "--out", "pair.json", cwd=place)
    (_, _, first), (_, _, second) = (scored(place / n, 40, 60) for n in ("dense", "levels"))
    row = json.loads((place / "pair.json").read_text())["differences"]["log_likelihood"]
    difference = (first.log_px - second.log_px).mean() - 64 * math.log(17)
    assert row["difference"] == pytest.approx(float(difference), rel=1e-6)
    assert "A is a density of dequantized values, here less D log n: a lower bound" in out
    succeed("evaluate", "levels", "dense", *FEW, "--out", "pair.json", cwd=place)
    row = json.loads((place / "pair.json").read_text())["differences"]["log_likelihood"]
    assert row["difference"] == pytest.approx(-float(difference), rel=1e-6)


WRONG = {
    ("one", "two", "dense"): "one run, or two to compare, got 3",
    ("one", "--out", "x.json"): "--out is for the difference of two runs",
    ("one", "double"): "datum by datum: dtype (float32 and float64)",
    ("one", "dense"): "measure (a mass on binary data and a density on dequantized values",
    ("levels", "one"): "measure (a mass on levels and a mass on binary data)",
    ("one", "vectors"): "measure (a mass on binary data and a density on real values)",
    ("one", "point"): "the guide of 'point' is a point",
    ("one", "none"): "no such run: 'none'",
    ("one", "two", "-K", "0"): "num_samples must be a whole number, at least 1, got 0",
    ("one", "two", "--split", "tst"): "did you mean 'test'?",
    ("one", "two", "--out", "one"): "cannot write 'one': expected the name of a file",
    ("one", "two", "--out", "x.npy/d.json"): "cannot write 'x.npy/d.json'",
    ("point", "--adaptive"): "a point has no draws",
    ("point", "--adaptive-all"): "a point has no draws",
    ("one", "--adaptive", "-K", "1"): "one draw has none; give K above 1",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_use(trained, arguments):
    before = sorted(str(path) for path in trained.rglob("*"))
    assert WRONG[arguments] in refuse("evaluate", *arguments, "--device", "cpu", cwd=trained)
    assert sorted(str(path) for path in trained.rglob("*")) == before


def test_other_data_of_one_kind_are_named(place):
    """The same bytes by another name are the same data; other bytes are not."""
    x = np.load(place / "x.npy")
    np.save(place / "same.npy", x)
    np.save(place / "other.npy", x + 1)
    for name in ("same", "other"):
        options = ["--data", f"{name}.npy", "--likelihood", "normal(scale=1)", "--out", name]
        succeed(*TRAIN, *options, cwd=place)
    succeed("evaluate", "vectors", "same", "-K", 20, cwd=place)
    message = refuse("evaluate", "vectors", "other", "-K", 20, cwd=place)
    assert re.search(r"data set \(.*x.npy.* and .*other.npy.*\), content hash \(\w{8} and", message)


def test_a_damaged_record_of_either_is_refused_before_any_work(place, monkeypatch):
    (place / "two" / "evaluation").mkdir()
    (place / "two" / "evaluation" / "test.json").write_text("{}")
    monkeypatch.setattr(evaluate_command, "evaluate", None)
    assert "test.json' is damaged" in refuse("evaluate", "one", "two", *FEW, cwd=place)


def test_an_interruption_leaves_whole_records(place, monkeypatch):
    """Ctrl-C while B is scored: A's scores are there, B's as they were."""
    succeed("evaluate", "two", *FEW, "--seed", 5, cwd=place)
    before = entries(place / "two")
    calls = []

    def interrupted(*arguments, **options):
        calls.append(options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pyro_vae.evaluation.evaluate(*arguments, **options)

    monkeypatch.setattr(evaluate_command, "evaluate", interrupted)
    result = invoke("evaluate", "one", "two", *FEW, "--out", "pair.json", cwd=place)
    assert result.status == 130
    assert len(entries(place / "one")) == 1
    assert entries(place / "two") == before
    assert not (place / "pair.json").exists()


def test_evidence_by_other_means_is_printed_and_recorded(place):
    """A point has no IWAE; AIS from the prior needs no guide."""
    few = ["--count", 4, "--device", "cpu", "-K", 60]
    out = succeed("evaluate", "point", *few, "--evidence", "ais", cwd=place)
    assert "log p(x), AIS" in out
    assert "log p(x|z(x))" in out
    assert "annealed importance sampling from the prior, a lower bound" in out
    (entry,) = entries(place / "point")
    assert entry["estimates"].keys() == {"reconstruction", "log_evidence_ais"}
    assert read_record(place / "point" / "evaluation" / "test.json") == [entry]
    out = succeed("evaluate", "one", *few, "--evidence", "best", cwd=place)
    assert "log p(x), quadrature" in out
    assert "IWAE-60" in out
    line = refuse("evaluate", "one", *few, "--evidence", "exact", cwd=place)
    assert "not known in closed form" in line


def test_points_are_compared_by_evidence_from_the_prior(place):
    few = ["--count", 4, "--device", "cpu", "-K", 60]
    line = refuse("evaluate", "point", "one", *few, cwd=place)
    assert "give --evidence ais" in line
    out = succeed("evaluate", "point", "one", *few, "--evidence", "quadrature", cwd=place)
    assert "log p(x), quadrature: " in out
