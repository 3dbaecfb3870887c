"""The command line as a user meets it: what it writes, what it says, what it refuses."""

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
import numpy as np
import pytest
import torch
import yaml

import pyro_vae
from pyro_vae.checkpoint import load_state, load_weights, save_state
from pyro_vae.config import read_yaml
from tests.command import invoke, refuse, succeed

ROOT = Path(__file__).parents[1]
SMALL = ["--encoder", "mlp(hidden=(16,))", "--latent-dim", "2", "--epochs", "2",
         "--device", "cpu", "--no-tensorboard"]  # fmt: skip


def read_rows(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return rows


def assert_same_run(a: Path, b: Path) -> None:
    assert read_rows(a) == read_rows(b)
    for weights in (
        [load_weights(run / "best.safetensors") for run in (a, b)],
        [load_state(run / "last.pt")["trainer"]["weights"] for run in (a, b)],
    ):
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_picture(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG")
    image = matplotlib.image.imread(path)
    assert min(image.shape[:2]) > 100
    assert image[..., :3].std() > 0.01


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two trained runs, of ``two`` and ``three`` latents, which tests leave as they are."""
    folder = tmp_path_factory.mktemp("cli")
    succeed("train", *SMALL, "--out", "two", cwd=folder)
    succeed("train", *SMALL, "--latent-dim", 3, "--out", "three", cwd=folder)
    return folder


@pytest.fixture
def run(place, tmp_path) -> Path:
    """A copy of a trained run that a test may spoil."""
    return Path(shutil.copytree(place / "two", tmp_path / "run"))


def test_training_writes_a_run_folder(place, tmp_path):
    out = succeed("train", *SMALL, "--epochs", 3, "--out", tmp_path / "new", cwd=tmp_path)
    run = tmp_path / "new"
    names = {"config.yaml", "metrics.jsonl", "best.safetensors", "last.pt", "figures"}
    assert {path.name for path in run.iterdir()} == names
    assert_picture(run / "figures" / "training.png")
    rows = read_rows(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [11, 22, 33]  # ⌈1297/128⌉ a epoch
    assert rows[-1]["valid_elbo"] > rows[0]["valid_elbo"]
    assert read_yaml(run / "config.yaml")["data"] == "digits(values=binary, binarize=dynamic)"
    # Plain lines where output is no terminal: no bar, no escape, no blank line.
    assert "\x1b" not in out
    assert "\r" not in out
    lines = out.splitlines()
    assert lines[0].startswith("epoch 1/3  step 11  ELBO -")
    assert lines[-2].startswith("epoch 3/3  step 33  ELBO -")
    assert lines[-1].startswith(f"{run}: 3 epochs, 33 steps")
    assert all(lines)


def test_tensorboard_events_are_written_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    succeed("train", *SMALL[:-1], "--tensorboard", "--out", "run", cwd=tmp_path)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("elbo", "valid_elbo", "beta", "learning_rate"):
        written = {event.step: event.value for event in events.Scalars(name)}
        assert written == {
            row["step"]: pytest.approx(row[name]) for row in read_rows(tmp_path / "run")
        }


def test_the_default_folder_is_the_first_that_is_free(tmp_path):
    for _ in range(2):
        succeed("train", *SMALL, "--max-steps", 1, cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits-1", "digits-2"]


def test_config_repeats_the_run(place, tmp_path):
    succeed(
        "train", "--config", place / "two" / "config.yaml", "--out", tmp_path / "again",
        "--no-tensorboard", cwd=tmp_path,
    )  # fmt: skip
    assert_same_run(place / "two", tmp_path / "again")
    for name in ("config.yaml", "best.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (place / "two" / name).read_bytes()


def test_options_override_the_config(place, tmp_path):
    config = place / "two" / "config.yaml"
    succeed(
        "train", "--config", config, "--seed", 1, "--out", "a", "--no-tensorboard", cwd=tmp_path
    )
    assert read_yaml(tmp_path / "a" / "config.yaml") == {**read_yaml(config), "seed": 1}
    assert read_rows(tmp_path / "a") != read_rows(place / "two")


def test_evaluations_are_kept_by_protocol(run):
    out = succeed("evaluate", run, "-K", 50, "--device", "cpu", cwd=run.parent)
    for row in ("ELBO", "E_q log p(x|z)", "KL(q(z|x) ‖ p(z))", "log p(x), IWAE-50", "bits/dim"):
        assert sum(line.strip().startswith(f"{row} ") for line in out.splitlines()) == 1, out
    assert "300 data" in out
    record = run / "evaluation" / "test.json"
    (first,) = json.loads(record.read_text())
    assert first["protocol"]["num_samples"] == 50
    assert first["protocol"]["split"] == "test"
    estimates = first["estimates"]
    assert set(estimates) == {"elbo", "reconstruction", "kl", "log_likelihood", "bits_per_dim"}
    assert estimates["elbo"]["value"] < estimates["log_likelihood"]["value"] < 0
    assert estimates["elbo"]["value"] == pytest.approx(
        estimates["reconstruction"]["value"] - estimates["kl"]["value"], abs=1e-6
    )
    assert estimates["bits_per_dim"]["value"] == pytest.approx(
        -estimates["log_likelihood"]["value"] / (64 * np.log(2))
    )
    # Another K is another protocol; the same one again replaces its entry.
    succeed("evaluate", run, "-K", 20, "--device", "cpu", cwd=run.parent)
    succeed("evaluate", run, "-K", 50, "--device", "cpu", "--chunk-size", 77, cwd=run.parent)
    entries = json.loads(record.read_text())
    assert [entry["protocol"]["num_samples"] for entry in entries] == [20, 50]
    assert entries[1]["estimates"]["log_likelihood"]["value"] == pytest.approx(
        estimates["log_likelihood"]["value"], rel=1e-6
    )
    succeed("evaluate", run, "-K", 20, "--count", 30, "--split", "valid", cwd=run.parent)
    (subset,) = json.loads((run / "evaluation" / "valid.json").read_text())
    assert subset["protocol"]["count"] == 30
    assert len(json.loads(record.read_text())) == 2


DRAW = {
    "sample": ["samples"],
    "reconstruct": ["reconstructions"],
    "traverse": ["traversals"],
    "interpolate": ["interpolation"],
    "embed": ["latent", "manifold"],
}


@pytest.mark.parametrize("command", DRAW)
@pytest.mark.parametrize("name", ["two", "three"])
def test_draws(place, tmp_path, name, command):
    run = Path(shutil.copytree(place / name, tmp_path / "run"))
    out = succeed(command, "run", "--device", "cpu", cwd=tmp_path)
    expected = [file for file in DRAW[command] if file != "manifold" or name == "two"]
    assert out.split() == [f"run/figures/{file}.png" for file in expected]
    assert {path.stem for path in (run / "figures").iterdir()} == {"training", *expected}
    for file in expected:
        assert_picture(run / "figures" / f"{file}.png")


def test_a_vamps_pseudo_inputs_are_drawn_with_its_samples(tmp_path):
    succeed("train", *SMALL, "--prior", "vamp(components=9)", "--out", "run", cwd=tmp_path)
    out = succeed("sample", "run", "--device", "cpu", cwd=tmp_path)
    assert out.split() == ["run/figures/samples.png", "run/figures/pseudo_inputs.png"]
    assert_picture(tmp_path / "run" / "figures" / "pseudo_inputs.png")


def test_a_point_has_no_bound_on_any_page(tmp_path):
    out = succeed("train", *SMALL, "--guide", "delta", "--out", "run", cwd=tmp_path)
    out += succeed("evaluate", "run", "-K", 20, cwd=tmp_path)
    assert "best validation log p(x|z(x))" in out
    assert re.search(r"log p\(x\|z\(x\)\) +-\d", out)
    assert "± standard error over data; run/evaluation/test.json" in out
    note = "the guide is a point: no ELBO and no likelihood"
    assert out.count(note) == 2
    for word in ("ELBO", "IWAE", "KL", "bits", "E_q", "draws"):
        assert word not in out.replace(note, "")
    assert_picture(tmp_path / "run" / "figures" / "training.png")
    (entry,) = json.loads((tmp_path / "run" / "evaluation" / "test.json").read_text())
    assert list(entry["estimates"]) == ["reconstruction"]


def test_two_layers_train_score_and_draw(tmp_path):
    options = ["--model", "hierarchical(latent_dims=(4, 2))", "--guide", "hierarchical"]
    succeed("train", *SMALL, *options, "--out", "run", cwd=tmp_path)
    assert read_yaml(tmp_path / "run" / "config.yaml")["latent_dim"] == 2
    assert "log p(x), IWAE-20" in succeed("evaluate", "run", "-K", 20, cwd=tmp_path)
    for command, files in DRAW.items():
        out = succeed(command, "run", cwd=tmp_path)
        assert out.split() == [f"run/figures/{name}.png" for name in files if name != "manifold"]


def test_draws_where_told_and_the_same_for_the_same_seed(place, tmp_path):
    files = [tmp_path / f"{i} [b] :dog: é.png" for i in range(3)]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        out = succeed("sample", place / "two", "--seed", seed, "--out", file, cwd=tmp_path)
        assert out == f"{file}\n"  # no markup, no emoji, no line break in a path
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other


def test_traverses_from_a_datum(place, tmp_path):
    options = ["--dims", "1,0", "--datum", 3, "--steps", 3, "--span", 2, "--out", "t.png"]
    succeed("traverse", place / "two", *options, cwd=tmp_path)
    assert_picture(tmp_path / "t.png")


def test_lists_every_component(tmp_path):
    out = succeed("list", cwd=tmp_path)
    for kind in ("model", "prior", "likelihood", "guide", "objective", "network", "optimizer"):
        for name in pyro_vae.components.names(kind):
            assert name in out
    assert "digits" in out
    assert "binarized_mnist" in out
    assert "standard_normal" in succeed("list", "prior", cwd=tmp_path)


def test_help_and_version(tmp_path):
    assert succeed("--version", cwd=tmp_path) == f"pyro-vae {pyro_vae.__version__}\n"
    assert "Usage" in succeed("train", "--help", cwd=tmp_path)
    assert "Usage" in invoke(cwd=tmp_path).out


def test_help_fits_a_screen_and_begins_with_what_is_needed_first(tmp_path, monkeypatch):
    """80 columns; a line for each command."""
    monkeypatch.setenv("COLUMNS", "80")
    out = succeed("--help", cwd=tmp_path)
    assert len(out.splitlines()) <= 28
    names = re.findall(r"^│ (\w+) ", out, re.MULTILINE)
    assert names[:4] == ["demo", "train", "evaluate", "sample"]
    assert len(names) == 13


def test_resuming_a_finished_run_says_so(run):
    before = snapshot(run)
    out = succeed("train", "--resume", run, cwd=run.parent)
    assert "is finished at epoch 2" in out
    # Fewer epochs than were trained change nothing, the record of the run least of all.
    out = succeed("train", "--resume", run, "--epochs", 1, cwd=run.parent)
    assert "is finished at epoch 2" in out
    assert snapshot(run) == before


def test_resuming_with_more_epochs_equals_one_long_run(run, tmp_path):
    succeed("train", "--resume", run, "--epochs", 4, "--no-tensorboard", cwd=tmp_path)
    succeed("train", *SMALL, "--epochs", 4, "--out", tmp_path / "long", cwd=tmp_path)
    assert_same_run(run, tmp_path / "long")
    assert (run / "config.yaml").read_text() == (tmp_path / "long" / "config.yaml").read_text()


def test_resuming_takes_the_same_settings_in_other_words(run):
    options = ["--prior", "standard-normal", "--data", "digits", "--optimizer", "adam(lr=1e-3)"]
    assert "is finished" in succeed("train", "--resume", run, *options, cwd=run.parent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latent-dim", 3], "was trained with latent_dim=2, not 3"),
        (["--data", "digits(binarize=threshold)"], "was trained with data="),
        (["--seed", 1], "was trained with seed=0, not 1"),
        (["--optimizer", "adam(lr=0.1)"], "optimizer='adam(lr=0.001)', not 'adam(lr=0.1)'"),
        (["--batch-size", 0], "--batch-size must be positive"),
        (["--out", "x"], "leave out --out and --config"),
        (["--config", "x"], "leave out --out and --config"),
    ],
)
def test_resuming_with_a_contradiction(run, options, message):
    before = snapshot(run)
    assert message in refuse("train", "--resume", run, *options, cwd=run.parent)
    assert snapshot(run) == before


def test_an_existing_folder_is_left_alone(run):
    before = snapshot(run)
    message = refuse("train", *SMALL, "--out", run, cwd=run.parent)
    assert f"'{run}' exists; continue it with --resume '{run}', or give another --out" in message
    assert snapshot(run) == before


def spoil_text(file, old, new):
    def spoil(run):
        text = (run / file).read_text()
        assert old in text
        (run / file).write_text(text.replace(old, new))

    return spoil


def cut(file, size):
    return lambda run: (run / file).write_bytes((run / file).read_bytes()[:size])


def write(file, text):
    def spoil(run):
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).write_text(text)

    return spoil


def other_checkpoint(run):
    state = load_state(run / "last.pt")
    state["config"]["seed"] = 5
    save_state(run / "last.pt", state)


def other_weights(run):
    state = load_state(run / "last.pt")
    state["trainer"]["weights"].popitem()
    save_state(run / "last.pt", state)


EVALUATE, RESUME = ("evaluate", "-K", "5"), ("train", "--epochs", "3", "--resume")
DAMAGE = {
    "no config": (EVALUATE, lambda run: (run / "config.yaml").unlink(), "has no config.yaml"),
    "broken yaml": (EVALUATE, write("config.yaml", "a: ["), "cannot read"),
    "empty config": (EVALUATE, write("config.yaml", ""), "expected 'key: value' lines"),
    "no facts": (EVALUATE, spoil_text("config.yaml", "facts:", "#"), "lacks the line 'facts"),
    "facts that are none": (
        EVALUATE, spoil_text("config.yaml", "[8, 8]", "[8, -8]"), "facts do not describe data"),
    "facts of another kind": (
        EVALUATE, spoil_text("config.yaml", "facts: {", "facts: 3 #{"), "facts do not describe"),
    "unknown setting": (
        EVALUATE, spoil_text("config.yaml", "latent_dim", "latent_dmi"), "mean 'latent_dim'"),
    "bad setting": (EVALUATE, spoil_text("config.yaml", "dim: 2", "dim: no"), "whole number"),
    "unknown prior": (
        EVALUATE, spoil_text("config.yaml", "standard_normal", "standrd"), "unknown prior"),
    "another latent_dim": (
        EVALUATE, spoil_text("config.yaml", "latent_dim: 2", "latent_dim: 3"), "of another model"),
    "other data": (
        EVALUATE, spoil_text("config.yaml", "[8, 8]", "[4, 16]"), "trained on data of shape"),
    "facts with a flag that is none": (
        EVALUATE, spoil_text("config.yaml", '"ordered": false', '"ordered": 3'), "do not describe"),
    "no weights": (
        EVALUATE, lambda run: (run / "best.safetensors").unlink(), "no complete epoch yet"),
    "truncated weights": (EVALUATE, cut("best.safetensors", 500), "best.safetensors' is damaged"),
    "empty weights": (EVALUATE, cut("best.safetensors", 0), "best.safetensors' is damaged"),
    "truncated evaluation": (
        EVALUATE, write("evaluation/test.json", '[{"protocol": {'), "move it away"),
    "evaluation that is none": (EVALUATE, write("evaluation/test.json", "{}"), "move it away"),
    "truncated checkpoint": (RESUME, cut("last.pt", 1000), "last.pt' is damaged"),
    "empty checkpoint": (RESUME, cut("last.pt", 0), "damaged"),
    "checkpoint of another seed": (
        RESUME, other_checkpoint, "config.yaml has seed=0, last.pt was trained with 5"),
    "checkpoint of other weights": (RESUME, other_weights, "of another"),
    "checkpoint that is none": (
        RESUME, lambda run: save_state(run / "last.pt", {"a": 1}), "not a checkpoint of a run"),
    "another latent_dim, resumed": (
        RESUME, spoil_text("config.yaml", "latent_dim: 2", "latent_dim: 3"), "config.yaml has lat"),
    "another shape, resumed": (
        RESUME, spoil_text("config.yaml", "[8, 8]", "[4, 16]"), "was trained on other data"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run(run, damage):
    command, spoil, message = DAMAGE[damage]
    spoil(run)
    before = snapshot(run)
    assert message in refuse(*command, run, cwd=run.parent)
    assert snapshot(run) == before


def test_resuming_restores_damaged_best_weights(run, tmp_path):
    """The checkpoint holds them too."""
    before = load_weights(run / "best.safetensors")
    best = max(read_rows(run), key=lambda row: row["valid_elbo"])
    cut("best.safetensors", 500)(run)
    succeed("train", "--resume", run, "--epochs", best["epoch"] + 1, cwd=tmp_path)
    succeed("train", *SMALL, "--epochs", best["epoch"] + 1, "--out", "whole", cwd=tmp_path)
    assert_same_run(run, tmp_path / "whole")
    assert load_weights(run / "best.safetensors").keys() == before.keys()


def test_damaged_metrics_do_not_keep_a_run_from_going_on(run):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"epoch": 3, \xff\xfe')  # a line cut short by a crash
    succeed("train", "--resume", run, "--epochs", 3, "--no-tensorboard", cwd=run.parent)
    assert [row["epoch"] for row in read_rows(run)] == [1, 2, 3]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Users' files, good and bad."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    grey = (generator.random((60, 28, 20)) * 256).astype(np.uint8)
    real = generator.normal(size=(60, 4, 4)).astype(np.float32)
    constant, nan = real.copy(), real.copy()
    constant[:, 0], nan[3, 1, 1] = 0, np.nan
    arrays = {"grey": grey, "real": real, "constant": constant, "nan": nan, "one": grey[:1],
              "three": grey[:3, :4, :4], "empty": grey[:0], "binary": grey // 128}  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "truncated.npy").write_bytes((folder / "grey.npy").read_bytes()[:999])
    (folder / "yaml.yaml").write_text("latentdim: 3\n")
    (folder / "broken.py").write_text("import nonexistent_xyz\n")
    (folder / "no_dist.py").write_text(
        "import torch\nclass P(torch.nn.Module):\n"
        "    def __init__(self, latent_dim):\n        super().__init__()\n"
        "    def forward(self):\n        return torch.zeros(2)\n"
    )
    (folder / "no_module.py").write_text("class P:\n    pass\n")
    (folder / "no_model.py").write_text("class M:\n    def __init__(self, prior):\n        pass\n")
    return folder


GREY, REAL = ["--data", "digits(values=continuous)"], ["--likelihood", "normal(scale=0.1)"]
WRONG_TRAINING = {
    ("--data", "mnsit"): "unknown data set 'mnsit'; did you mean 'mnist'?",
    ("--data", "digits(value=levels)"): "did you mean 'values'?",
    ("--data", "digits(values=foo)"): "Valid: binary, continuous, counts, levels",
    ("--data", "digits("): "expected a spec",
    ("--data", "none.npy"): "no such file or folder",
    ("--data", "{files}/nan.npy"): "holds 1 NaN or infinite values",
    ("--data", "{files}/truncated.npy"): "cannot read",
    ("--data", "{files}/empty.npy"): "is empty",
    ("--data", "{files}/one.npy"): "needs at least 3 images, got 1",
    ("--data", "{files}/yaml.yaml"): "expected .npy",
    ("--data", "{files}/real.npy"): "give whole grey levels and values=binary",
    ("--data", "digits(values=levels)"): "use data with values=binary",
    ("--data", "{files}/real.npy(values=binary)"): "holds real numbers",
    (*REAL,): "use data with values=continuous, such as 'digits(values=continuous)'",
    ("--data", "{files}/binary.npy", *REAL): "give grey levels and values=continuous",
    ("--data", "{files}/constant.npy", "--likelihood", "normal"): "4 of 16 dimensions",
    ("--data", "{files}/grey.npy", "--encoder", "conv(channels=(4, 4, 4))"): "divisible by 8",
    (*GREY, "--likelihood", "normal(scale=-1)"): "scale must be positive",
    (*GREY, "--likelihood", "normal(scale=leaned)"): "learned or per_pixel, got 'leaned'",
    ("--prior", "standrd_normal"): "did you mean 'standard_normal'?",
    ("--prior", "standard_normal(scale=2)"): "no argument 'scale'; it takes none",
    ("--prior", "none.py"): "no such file",
    ("--prior", "{files}/broken.py"): "No module named 'nonexistent_xyz'",
    ("--prior", "{files}/no_dist.py"): "must return a distribution",
    ("--prior", "{files}/no_module.py"): "expected an nn.Module, got P",
    ("--model", "{files}/no_model.py"): "has no attribute 'prior'",
    ("--model", "vae(output_bias=one)"): "output_bias must be zero or data_mean",
    ("--likelihood", "bernuli"): "did you mean 'bernoulli'?",
    ("--guide", "diagonal"): "did you mean 'diagonal_normal'?",
    ("--encoder", "mpl"): "did you mean 'mlp'?",
    ("--encoder", "mlp(hiden=3)"): "did you mean 'hidden'?",
    ("--encoder", "mlp(hidden=0)"): "hidden must be positive whole numbers",
    ("--encoder", "mlp(hidden=(1000000000000,))"): "do not fit into memory",
    ("--objective", "trase"): "did you mean 'trace'?",
    ("--objective", "trace(num_particles=0)"): "num_particles must be",
    ("--optimizer", "adem"): "did you mean 'adam'?",
    ("--optimizer", "adam(lr=-1)"): "Invalid learning rate",
    ("--optimizer", "adam(lr=1e999)"): "lr must be 0 or more, and finite, got inf",
    ("--optimizer", "adam(lr=fast)"): "lr must be like 0.001, got 'fast'",
    ("--optimizer", "adam(fused=True, foreach=True)"): "cannot be `True` together",
    ("--optimizer", "adam(differentiable=True)"): "differentiable",
    ("--schedule", "step_lr"): "needs step_size=…",
    ("--schedule", "step_lr(step_size=0)"): "schedule step_lr(step_size=0)",
    ("--schedule", "step_lr(step_size=soon)"): "schedule step_lr(step_size=soon)",
    ("--schedule", "cosine_annealing_lr(T_max=0)"): "schedule cosine",
    ("--latent-dim", "0"): "--latent-dim must be positive",
    ("--latent-dim", "2.5"): "--latent-dim",
    ("--latent-dim", "1000000000000"): "do not fit into memory",
    ("--batch-size", "0"): "--batch-size must be positive",
    ("--epochs", "0"): "--epochs must be positive",
    ("--beta", "nan"): "--beta must be 0 or more",
    ("--seed", "-1"): "--seed must be 0 or more",
    ("--clip-norm", "0"): "--clip-norm must be positive",
    ("--device", "gpu"): "Valid: auto, cpu, cuda",
    ("--dtype", "float16"): "did you mean 'float64'?",
    ("--config", "none.yaml"): "no such file",
    ("--config", "{files}/yaml.yaml"): "did you mean 'latent_dim'?",
    ("--resume", "none"): "no such run",
    ("--resume", "."): "has no config.yaml",
    ("--out", "{files}/yaml.yaml/x"): "cannot make the folder",
    ("--out", "x" * 300): "cannot make the folder",
    ("--latent-dims", "3"): "--latent-dim",
}


@pytest.mark.parametrize("options", WRONG_TRAINING)
def test_wrong_training_input(files, tmp_path, options):
    message = WRONG_TRAINING[options]
    options = [option.replace("{files}", str(files)) for option in options]
    assert message in refuse("train", *SMALL, *options, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []  # no run folder left behind


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(place, tmp_path):
    assert "use --device cpu" in refuse("train", *SMALL, "--device", "cuda", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    for command in ("evaluate", "sample"):
        assert "use --device" in refuse(command, place / "two", "--device", "cuda", cwd=tmp_path)


WRONG_USE = {
    ("evaluate", "{run}", "-K", "0"): "num_samples must be a whole number, at least 1, got 0",
    ("evaluate", "{run}", "-K", "many"): "--num-samples",
    ("evaluate", "{run}", "--count", "0"): "takes 1 to 300, got 0",
    ("evaluate", "{run}", "--count", "301"): "takes 1 to 300, got 301",
    ("evaluate", "{run}", "--chunk-size", "0"): "chunk_size must be a whole number, at least 1",
    ("evaluate", "{run}", "--split", "tst"): "did you mean 'test'?",
    ("evaluate", "{run}", "--device", "mps"): "unknown device 'mps'",
    ("evaluate", "{run}", "--seed", "-1"): "--seed",
    ("evaluate", "none"): "no such run: 'none'",
    ("evaluate", "."): "has no config.yaml",
    ("evaluate",): "RUN",
    ("sample", "{run}", "--num-samples", "0"): "--num-samples",
    ("sample", "{run}", "--out", "."): "cannot write",
    ("reconstruct", "{run}", "--count", "0"): "--count",
    ("reconstruct", "{run}", "--split", "x"): "unknown split 'x'",
    ("traverse", "{run}", "--dims", "7"): "latent dimension 7 is outside 0 … 1",
    ("traverse", "{run}", "--dims", "-1"): "latent dimension -1 is outside",
    ("traverse", "{run}", "--dims", "a,b"): "expected whole numbers such as 0,3,5",
    ("traverse", "{run}", "--span", "inf"): "finite",
    ("traverse", "{run}", "--steps", "1"): "--steps",
    ("traverse", "{run}", "--datum", "300"): "the test split has no datum 300",
    ("interpolate", "{run}", "--steps", "1"): "--steps",
    ("embed", "{run}", "--count", "1"): "--count",
    ("list", "priors"): "did you mean 'prior'?",
    ("trian",): "'train'",
}


@pytest.mark.parametrize("arguments", WRONG_USE)
def test_wrong_use_of_a_run(place, tmp_path, arguments):
    before = snapshot(place)
    message = WRONG_USE[arguments]
    arguments = [argument.replace("{run}", str(place / "two")) for argument in arguments]
    assert message in refuse(*arguments, cwd=tmp_path)
    assert snapshot(place) == before
    assert list(tmp_path.iterdir()) == []


def test_demo(tmp_path):
    options = ("--epochs", 1, "-K", 5, "--no-diagnose", "--out", "d")
    out = succeed("demo", *options, cwd=tmp_path)
    names = {"training", "samples", "reconstructions", "traversals", "interpolation", "latent"}
    pictures = {f"d/latent-8/figures/{name}.png" for name in names}
    pictures |= {f"d/latent-2/figures/{name}.png" for name in (*names, "manifold")}
    shown, _, page = out.partition("The pictures:")[2].partition("All of it in a page")
    assert set(shown.split()) == pictures
    assert page.split()[-1] == "d/report.html"
    assert "not compared yet" in (tmp_path / "d" / "report.html").read_text(encoding="utf-8")
    for picture in pictures:
        assert_picture(tmp_path / picture)
    assert out.count("log p(x), IWAE-5") == 2
    assert "exists" in refuse("train", *SMALL, "--out", "d/latent-8", cwd=tmp_path)


@pytest.mark.slow
def test_the_page_of_the_demo_is_complete(tmp_path):
    succeed("demo", "--epochs", 1, "-K", 5, "--out", "d", cwd=tmp_path)
    page = (tmp_path / "d" / "report.html").read_text(encoding="utf-8")
    assert " yet: pyro-vae" not in page
    assert page.count("amortization gap") >= 2


def test_three_images_are_enough(files, tmp_path):
    """One datum a split: no standard error over data, no NaN in any file."""
    succeed(
        "train", *SMALL, "--data", files / "three.npy", "--latent-dim", 3, "--out", "r",
        cwd=tmp_path,
    )  # fmt: skip
    assert read_rows(tmp_path / "r")[0]["valid_elbo_standard_error"] is None
    assert "NaN" not in (tmp_path / "r" / "metrics.jsonl").read_text()
    assert "nan" not in succeed("evaluate", "r", "-K", 1, cwd=tmp_path)
    for command in ("sample", "reconstruct", "traverse"):
        succeed(command, "r", cwd=tmp_path)
    assert "an interpolation needs two" in refuse("interpolate", "r", cwd=tmp_path)
    assert "at least 2 points" in refuse("embed", "r", cwd=tmp_path)


def test_scores_that_are_not_finite_are_not_recorded(tmp_path):
    """A test datum so far out that its density is 0 in float32."""
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    test = x[:5].copy()
    test[0] = 2.5e19
    np.savez(tmp_path / "x.npz", train=x, valid=x[:9], test=test)
    options = ["--data", "x.npz", "--likelihood", "normal(scale=1)", "--out", "r"]
    succeed("train", *SMALL, *options, cwd=tmp_path)
    assert "not finite" in refuse("evaluate", "r", "-K", 5, cwd=tmp_path)
    assert not (tmp_path / "r" / "evaluation").exists()


def test_a_run_means_the_same_from_another_folder(files, tmp_path):
    shutil.copy(files / "grey.npy", tmp_path / "mine (1) [x].npy")
    options = ["--data", "mine (1) [x].npy(values=binary)", "--out", "r [/y]"]
    succeed("train", *SMALL, *options, cwd=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    out = succeed("evaluate", "../r [/y]", "-K", 2, cwd=tmp_path / "elsewhere")
    assert "../r [/y], test, 6 data" in out  # brackets are no markup


PRIOR = """
import pyro.distributions as dist
import torch

class Shifted(torch.nn.Module):
    def __init__(self, latent_dim, loc=0.0):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.full((latent_dim,), float(loc)))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)
"""


def test_code_from_outside_needs_permission(tmp_path):
    (tmp_path / "mine.py").write_text(PRIOR)
    succeed("train", *SMALL, "--prior", "mine.py(loc=1)", "--out", "r", cwd=tmp_path)
    run, elsewhere = tmp_path / "r", tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = snapshot(run)
    for command in (("evaluate", "-K", 3), ("sample",), ("train", "--epochs", 3, "--resume")):
        message = refuse(*command, run, cwd=elsewhere)
        assert (
            f"needs code from '{tmp_path / 'mine.py'}'; read it, then give --allow-code" in message
        )
    assert snapshot(run) == before
    succeed("sample", run, "--allow-code", cwd=elsewhere)
    succeed(
        "train", "--epochs", 3, "--resume", run, "--allow-code", "--no-tensorboard", cwd=elsewhere
    )

    # An edited list of hashes opens no door.
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(yaml.safe_dump({**yaml.safe_load(config), "code": {}}))
    assert "give --allow-code" in refuse("sample", run, cwd=elsewhere)
    assert "is not the file that" in refuse("sample", run, "--allow-code", cwd=elsewhere)
    (run / "config.yaml").write_text(config)

    # Nor does permission for a file that is no longer the one trained with.
    marker = tmp_path / "executed"
    (tmp_path / "mine.py").write_text(PRIOR + f"\nopen({str(marker)!r}, 'w')\n")
    for command in (("sample",), ("train", "--resume")):
        message = refuse(*command, run, "--allow-code", cwd=elsewhere)
        assert "is not the file that" in message
    (tmp_path / "mine.py").unlink()
    assert "no such file" in refuse("sample", run, "--allow-code", cwd=elsewhere)
    assert not marker.exists()


def test_interrupted_and_resumed(tmp_path):
    """Ctrl-C saves and says how to go on; the end is the one of a run left alone."""
    command = [
        sys.executable,
        "-m",
        "pyro_vae",
        "train",
        *SMALL,
        "--epochs",
        "100000",
        "--engine",
        "eager",
        "--out",
        "r",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "40"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        metrics = tmp_path / "r" / "metrics.jsonl"
        while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    assert "stopping after this step" in err
    assert out.splitlines()[-1].endswith("to go on: pyro-vae train --resume 'r'")
    progress = load_state(tmp_path / "r" / "last.pt")["trainer"]["progress"]
    assert len(read_rows(tmp_path / "r")) == progress["epoch"]
    epochs = progress["epoch"] + 2
    succeed("train", "--resume", "r", "--epochs", epochs, "--no-tensorboard", cwd=tmp_path)
    succeed("train", *SMALL, "--epochs", epochs, "--out", "alone", cwd=tmp_path)
    assert len(read_rows(tmp_path / "r")) == epochs
    assert_same_run(tmp_path / "r", tmp_path / "alone")


SWEEP = ["sweep", "--encoder", "mlp(hidden=(8,))", "--epochs", "2", "--batch-size", "400",
         "--device", "cpu", "-K", "10", "--count", "30", "--latent-dim", "2"]  # fmt: skip


def test_a_sweep_says_a_line_a_run_and_a_verdict(tmp_path):
    command = [*SWEEP, "--latent-dim", "3", "--seeds", "2"]
    out = succeed(*command, cwd=tmp_path)
    lines = out.splitlines()
    assert lines.pop(0) == "checking 2 combinations …"
    for i, line in enumerate(lines[:4]):
        assert line.startswith(f"[{i + 1}/4] latent_dim={2 + i % 2}, seed {i // 2}: trained "), line
        assert re.search(r", ELBO -\d+\.\d+ ± \d\.\d+ \(draws\), IWAE-10 -\d+\.\d+ ± ", line), line
    title = "runs/sweep-1, test, 30 data of digits(values=binary, binarize=dynamic)"
    assert lines[4:6] == ["", title]
    assert "highest mean IWAE-10: latent_dim=" in out
    assert "IWAE-10 (a lower bound on log p(x) in expectation)" in out
    assert "(2 and 2 seeds; 5 a side needed)" in out
    assert "nterval" not in out
    assert "\x1b" not in out
    assert "…" not in "".join(lines)
    folder = tmp_path / "runs" / "sweep-1"
    names = {path.name for path in folder.iterdir() if not path.name.startswith("latent_dim-")}
    assert names == {"sweep.json", "sweep.csv", "figures"}
    assert_picture(folder / "figures" / "sweep.png")
    assert_picture(folder / "latent_dim-2-seed0" / "figures" / "training.png")
    # The same command with that folder finds everything.
    again = succeed(*command, "--out", folder, cwd=tmp_path)
    assert [line.split(", ")[1].split(": ")[1] for line in again.splitlines()[1:5]] == ["found"] * 4
    assert len(succeed(*command, cwd=tmp_path).splitlines()) == len(lines) + 1  # in runs/sweep-2
    assert (tmp_path / "runs" / "sweep-2").is_dir()
    # Its runs are runs like any other.
    succeed("evaluate", folder / "latent_dim-2-seed0", "-K", 5, cwd=tmp_path)


def test_a_sweep_with_a_failed_run_exits_with_1(tmp_path):
    result = invoke(*SWEEP, "--beta", "1e38", "--beta", "1", "--seeds", "1", cwd=tmp_path)
    assert result.status == 1
    assert "[1/2] beta=1e+38, seed 0: diverged: step 1" in result.out
    assert "[2/2] beta=1.0, seed 0: trained" in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prior", "standart_normal"], "did you mean 'standard_normal'?"),
        (["--likelihood", "bernoulli", "--likelihood", "normal"], "sweep them apart"),
        (["--data", "digits(values=levels)"], "likelihood bernoulli needs binary data"),
        (["--latent-dim", "0"], "--latent-dim must be positive"),
        (["--latent-dim", "many"], "Invalid value for '--latent-dim'"),
        (["--seeds", "0"], "--seeds"),
        (["-K", "0"], "--num-samples must be 1 or more"),
        (["--chunk-size", "0"], "--chunk-size must be 1 or more"),
        (["--out", "x" * 300], "File name too long; give another --out"),
        (["--prior", "mixture", "--prior", "vamp(components=0)"], "prior=vamp(components=0): "),
        (["--count", "1000"], "takes 1 to 300, got 1000"),
        (["--split", "all"], "unknown split 'all'"),
        (["--epochs", "0"], "--epochs must be positive"),
        (["--config", "none.yaml"], "no such file: 'none.yaml'"),
        (["--out", "run"], "is a run, and a sweep's folder holds runs"),
        (["--seed", "3"], "--seed"),
    ],
)
def test_wrong_use_of_a_sweep(place, tmp_path, options, message):
    if "--out" in options:
        shutil.copytree(place / "two", tmp_path / "run")
    result = invoke(*SWEEP, *options, cwd=tmp_path)
    assert (result.status, result.err.count("\n")) == (2, 1), result
    assert message in result.err
    assert result.out in ("", "checking 2 combinations …\n")
    assert not (tmp_path / "runs").exists()


def test_a_sweep_from_a_runs_own_config(place, tmp_path):
    """Its settings are shared; its seed gives way to the sweep's."""
    config = place / "two" / "config.yaml"
    out = succeed("sweep", "--config", config, "--seeds", 2, "-K", 5, "--out", "s", cwd=tmp_path)
    assert out.startswith("[1/2] ")
    for seed in (0, 1):
        settings = read_yaml(tmp_path / "s" / f"standard_normal-bernoulli-seed{seed}/config.yaml")
        assert settings == read_yaml(config) | {"seed": seed}
    assert_same_run(tmp_path / "s" / "standard_normal-bernoulli-seed0", place / "two")


def test_a_seed_that_a_sweep_does_not_use_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 7\n")
    result = invoke(*SWEEP, "--config", "a.yaml", "-K", "0", cwd=tmp_path)
    assert result.out == "seed: 7 of 'a.yaml' is not used; a sweep has seeds 0 … n−1\n"


def test_an_interrupted_sweep_goes_on(tmp_path):
    """Ctrl-C in the first run saves it, says how to go on, and exits with 130."""
    command = [*SWEEP, "--epochs", "100000", "--engine", "eager", "--seeds", "1", "--out", "s"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "40"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", *command], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        metrics = tmp_path / "s" / "standard_normal-bernoulli-seed0" / "metrics.jsonl"
        while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    assert out.splitlines() == ["stopped; to go on: the same command"]
    state = load_state(metrics.parent / "last.pt")
    assert state["trainer"]["progress"]["epoch"] == len(read_rows(metrics.parent)) > 0
    message = refuse(*SWEEP, "--seeds", "1", "--out", "s", cwd=tmp_path)
    assert "was trained with epochs=100000, not 2" in message


@pytest.mark.parametrize("objective", ["sticking_the_landing", "dreg", "reweighted_wake_sleep"])
def test_an_objective_that_cannot_be_differentiated_leaves_no_folder(tmp_path, objective):
    """planar knows log q at its own draws only: refused before the run exists."""
    message = refuse(
        "train", *SMALL, "--guide", "planar", "--objective", objective, "--out", "run",
        cwd=tmp_path,
    )  # fmt: skip
    assert "needs log q(z|x) at any z" in message
    assert list(tmp_path.iterdir()) == []
