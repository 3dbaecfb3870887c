"""``pyro-vae compare`` as a user meets it: what it prints, writes and refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pyro
import pytest
import torch

import pyro_vae
from pyro_vae.compare_command import parse_particles
from pyro_vae.comparison.record import read_comparison
from pyro_vae.comparison.subject import run_subject
from pyro_vae.config import Config
from pyro_vae.run_training import load_untrained, start_run
from tests.command import heeding_ctrl_c, invoke, refuse, succeed

TRAIN = [
    "train", "--encoder", "mlp(hidden=(16,))", "--latent-dim", "3", "--epochs", "2",
    "--device", "cpu", "--no-tensorboard",
]  # fmt: skip
FEW = ["--num-repeats", 4, "--count", 20, "--particles", "1,2", "--device", "cpu"]
TWO = ["--estimator", "trace", "--estimator", "dreg"]
PROGRAM = """
import pyro
import pyro.distributions as dist
import torch


def model(x):
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(3, 64))
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        logits = (z @ weight).reshape(*z.shape[:-1], 8, 8)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)


def guide(x):
    weight = pyro.param("guide_weight", lambda: 0.1 * torch.randn(64, 3))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x.flatten(1) @ weight, 0.8).to_event(1))
"""


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_picture(path: Path) -> None:
    image = matplotlib.image.imread(path)
    assert min(image.shape[:2]) > 100
    assert image[..., :3].std() > 0.01


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run of digits, one of a delta guide, and a user's file."""
    folder = tmp_path_factory.mktemp("compare")
    pyro.clear_param_store()
    succeed(*TRAIN, "--out", "run", cwd=folder)
    exact = ["--model", "linear_gaussian", "--likelihood", "normal(scale=learned)"]
    succeed(*TRAIN, *exact, "--data", "digits(values=continuous)", "--out", "linear", cwd=folder)
    succeed(*TRAIN, "--guide", "delta", "--out", "point", cwd=folder)
    (folder / "mine.py").write_text(PROGRAM)
    return folder


@pytest.fixture
def run(place, tmp_path) -> Path:
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


def test_a_run_is_compared_printed_and_recorded(place, tmp_path):
    """Of probabilistic PCA, where log p(x) is exact: ELBO < IWAE-10 ≤ log p(x)."""
    run = Path(shutil.copytree(place / "linear", tmp_path / "run"))
    out = succeed("compare", run, *FEW, cwd=tmp_path)
    comparison = read_comparison(run / "comparison.json")
    lines = out.splitlines()
    assert lines[0] == f"{run}, test, 20 data of digits(values=continuous, binarize=none)"
    for row in comparison.values:
        assert row.refusal is None, row
        assert sum(line.startswith(f" {row.estimator} ") for line in lines) >= 1, row.estimator
    by_name = {row.estimator: row for row in comparison.values}
    elbo, iwae = by_name["closed_form"], by_name["iwae(num_particles=10)"]
    assert comparison.truth.method == "exact"
    assert elbo.bias == pytest.approx(elbo.mean - comparison.truth.log_px)
    assert elbo.mean < iwae.mean
    assert iwae.bias < 4 * iwae.bias_standard_error
    assert by_name["trace_mean_field"].largest_difference < 1e-4
    assert elbo.analytic_kl == {"z": True}
    assert by_name["trace"].analytic_kl == {"z": False}
    assert all(check.holds for check in comparison.checks)
    assert any("KL" in check.name for check in comparison.checks)
    assert {row.group for row in comparison.gradients} == {"guide", "model"}
    assert {row.num_particles for row in comparison.gradients} == {1, 2}
    assert re.search(r"^ renyi\(alpha=-1, num_particles=10\) ‡ ", out, re.MULTILINE)
    assert "‡ no lower bound on log p(x)" in out
    assert "likelihood" not in out
    written = {"comparison.json", "figures/estimators.png", "figures/signal_to_noise.png"}
    assert lines[-3:] == [str(run / name) for name in sorted(written)]
    for name in written - {"comparison.json"}:
        assert_picture(run / name)


def test_the_protocol_states_what_was_compared(run, tmp_path):
    succeed("compare", run, *FEW, *TWO, "--seed", 3, "--split", "valid", cwd=tmp_path)
    protocol = read_comparison(run / "comparison.json").protocol
    assert {
        "weights": "best", "split": "valid", "count": 20, "seed": 3, "num_repeats": 4,
        "gradient_repeats": 4, "particles": [1, 2], "dtype": "float32", "device": "cpu",
        "estimators": ["trace", "dreg"], "data": "digits(values=binary, binarize=dynamic)",
        "binarization": "dynamic",
    }.items() <= protocol.items()  # fmt: skip
    assert set(protocol["versions"]) == {"pyro-vae", "python", "torch", "pyro-ppl"}
    assert len(protocol["content_hash"]) == len(protocol["weights_hash"]) == 64


def test_the_same_command_gives_the_same_numbers(run, tmp_path):
    commands = ["compare", run, *FEW, *TWO, "--no-gradients"]
    records = []
    for seed in (0, 0, 1):
        succeed(*commands, "--seed", seed, "--out", f"o{seed}", cwd=tmp_path)
        records.append(read_comparison(tmp_path / f"o{seed}" / "comparison.json"))
    assert records[0].values == records[1].values
    assert records[0].values != records[2].values
    assert not (run / "comparison.json").exists()


def test_without_gradients_no_figure_of_earlier_ones_is_left(run, tmp_path):
    succeed("compare", run, *FEW, *TWO, cwd=tmp_path)
    assert "figures/signal_to_noise.png" in files(run)
    out = succeed("compare", run, *FEW, *TWO, "--no-gradients", cwd=tmp_path)
    assert "figures/signal_to_noise.png" not in files(run)
    assert "Gradient" not in out
    comparison = read_comparison(run / "comparison.json")
    assert comparison.gradients == []
    assert "particles" not in comparison.protocol


def test_untrained_weights_are_those_that_training_began_with(tmp_path):
    """A vamp starts at random data, the decoder at the data's mean, both from the seed."""
    config = Config(
        model="vae(output_bias=data_mean)", prior="vamp(components=5)", latent_dim=2,
        encoder="mlp(hidden=(8,))", epochs=1, seed=7, device="cpu",
    )  # fmt: skip
    *_, trainer = start_run(config, tmp_path / "run")
    expected = trainer.weights()
    trainer.fit()
    run = load_untrained(tmp_path / "run")
    for name, program in (("model", run.model), ("guide", run.guide)):
        own = {f"{name}.{key}": value for key, value in program.state_dict().items()}
        assert own.keys() == {key for key in expected if key.startswith(f"{name}.")}
        assert all(torch.equal(value, expected[key]) for key, value in own.items())
    moved = trainer.weights()
    assert any(not torch.equal(moved[key], expected[key]) for key in expected)


def test_weights_untrained_best_and_last(run, tmp_path):
    means = {}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["best"]
    for weights in ("untrained", "best", "last"):
        options = ["--weights", weights, "--no-gradients", "--out", weights]
        succeed("compare", run, *FEW, "--estimator", "trace", *options, cwd=tmp_path)
        comparison = read_comparison(tmp_path / weights / "comparison.json")
        means[weights] = comparison.values[0].mean
        assert comparison.protocol["weights"] == weights
        assert ("weights_hash" in comparison.protocol) == (weights != "untrained")
    assert means["untrained"] < means["best"] - 1
    assert means["last"] == means["best"]


def test_a_subject_of_a_run_can_be_differentiated(run):
    subject = run_subject(run, count=5)
    assert all(p.requires_grad for p in subject.model.parameters())
    assert not subject.guide.training
    assert subject.x.shape == (5, 8, 8)
    assert subject.batch_size == 128


def test_a_program_of_ones_own(place, tmp_path):
    """Parameters of plain functions: weights by the seed, nothing left in the global store."""
    shutil.copy(place / "mine.py", tmp_path)
    command = ["compare", "--program", "mine.py", "--data", "digits(values=binary)", *FEW, *TWO]
    out = succeed(*command, cwd=tmp_path)
    assert not dict(pyro.get_param_store())
    folder = tmp_path / "runs" / "compare-1"
    assert files(folder) == {
        "comparison.json", "figures/estimators.png", "figures/signal_to_noise.png"
    }  # fmt: skip
    assert "mine.py, test, 20 data of digits(values=binary, binarize=dynamic)" in out
    first = read_comparison(folder / "comparison.json")
    assert first.protocol["program"] == "mine.py"
    assert len(first.protocol["program_hash"]) == 64
    assert {row.group for row in first.gradients} == {"guide", "model"}
    command.append("--no-gradients")
    succeed(*command, "--out", "again", cwd=tmp_path)
    again = read_comparison(tmp_path / "again" / "comparison.json")
    assert again.values == first.values
    succeed(*command, "--seed", 1, cwd=tmp_path)
    other = read_comparison(tmp_path / "runs" / "compare-2" / "comparison.json")
    assert other.values != first.values


def test_textbook_losses_of_a_run(place, tmp_path):
    options = ["--textbook", "--no-gradients", "--estimator", "trace", "--out", tmp_path / "out"]
    out = succeed("compare", place / "run", *FEW, *options, cwd=tmp_path)
    assert "Textbook losses" in out
    assert re.search(r"^ sse_kl +Σ\(x − x̂\)² \+ KL +normal, σ² = ½", out, re.MULTILINE)
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    losses = {row["name"]: row for row in record["textbook"]}
    assert losses["sse_kl"]["largest_difference"] < 1e-9
    assert losses["mse_loss_kl"]["batch_size"] == 20  # the run's 128, at most all data


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give a run folder, or --program FILE.py with its --data"),
        (["--program", "mine.py"], "with its --data"),
        (["run", "--program", "mine.py"], "go without a run folder"),
        (["run", "--data", "digits"], "go without a run folder"),
        (["no-such-run"], "no such run: 'no-such-run'"),
        (["run", "--estimator", "iwea"], "unknown objective 'iwea'; did you mean 'iwae'?"),
        (["run", "--estimator", "iwae(particles=3)"], "did you mean 'num_particles'?"),
        (["run", "--estimator", "trace", "--estimator", "trace"], "'trace' is given twice"),
        (["run", "--particles", "1,two"], "--particles must be whole numbers from 1"),
        (["run", "--particles", "0,8"], "got '0,8'"),
        (["run", "--particles", ""], "got ''"),
        (["run", "--count", "301"], "a subset of 300 data takes 1 to 300, got 301"),
        (["run", "--split", "tset"], "did you mean 'test'?"),
        (["run", "--weights", "first"], "weights must be best, last or untrained"),
        (["run", "--num-repeats", "3"], "--num-repeats"),
        (["point"], "a point: it has no bound on log p(x)"),
        (["point", "--weights", "untrained"], "a point: it has no bound on log p(x)"),
        (["--program", "none.py", "--data", "digits"], "no such file: 'none.py'"),
        (["--program", "empty.py", "--data", "digits"], "has no 'model'"),
        (["--program", "mine.py", "--data", "digts"], "did you mean 'digits'?"),
        (["--program", "mine.py", "--data", "digits", "--weights", "last"], "--weights"),
        (["--program", "delta.py", "--data", "digits(values=binary)"], "is a Delta"),
        (["--program", "outside.py", "--data", "digits(values=binary)"], "outside the data plate"),
        (["--program", "flat.py", "--data", "digits(values=binary)"], "of shape [2, 8, 8]: line"),
        (
            ["--program", "mine.py", "--data", "digits(values=binary)", "--textbook"],
            "textbook losses assume",
        ),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_written(place, tmp_path, arguments, reason):
    folder = tmp_path / "place"
    shutil.copytree(place, folder)
    (folder / "empty.py").write_text("")
    for name, (old, new) in {
        "delta.py": (
            "dist.Normal(x.flatten(1) @ weight, 0.8)",
            "dist.Delta(x.flatten(1) @ weight)",
        ),
        "outside.py": ('with pyro.plate("data", x.shape[0], dim=-1):', "if True:"),
        "flat.py": ("x.flatten(1) @ weight", "x @ weight"),
    }.items():
        assert old in PROGRAM
        (folder / name).write_text(PROGRAM.replace(old, new))
    before = files(folder)
    assert reason in refuse("compare", *arguments, "--device", "cpu", cwd=folder)
    assert {f for f in files(folder) if "__pycache__" not in f} == before


def test_particles_are_sorted_and_said_once():
    assert parse_particles("64, 1,8,8") == [1, 8, 64]


def test_a_figure_that_cannot_be_written_is_one_line(run, tmp_path):
    shutil.rmtree(run / "figures")
    (run / "figures").write_text("a file in the way")
    result = invoke("compare", run, *FEW, *TWO, "--no-gradients", cwd=tmp_path)
    assert result.status == 2
    assert "cannot write the figure" in result.err


def test_the_installed_command_stops_cleanly_at_ctrl_c(place, tmp_path):
    """A real process: interrupted while it draws, it has written nothing; exit 130."""
    environment = {
        **os.environ, "PYTHONPATH": str(Path(pyro_vae.__file__).parents[1]), "PYTHONUNBUFFERED": "1"
    }  # fmt: skip
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    before = files(run)
    command = [
        sys.executable, "-m", "pyro_vae", "compare", run, "--estimator", "trace", "--num-repeats",
        "1000000", "--count", "20", "--device", "cpu", "--particles", "64",
    ]  # fmt: skip
    with heeding_ctrl_c():
        process = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    try:
        assert process.stdout.readline().startswith(f"{run}, test, 20 data")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert files(run) == before
