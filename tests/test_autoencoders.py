"""Autoencoders and denoising ones on the command line: no bound, no likelihood, and said so."""

import json

import pytest
import torch

from pyro_vae.runs import load_run
from tests.command import refuse, succeed
from tests.test_cli import assert_picture, assert_same_run, read_rows

SMALL = ["--encoder", "mlp(hidden=(16,))", "--latent-dim", "2", "--epochs", "2",
         "--device", "cpu", "--no-tensorboard", "--data", "digits(values=binary)"]  # fmt: skip
POINT = ["--guide", "delta", "--beta", "0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An autoencoder, a denoising one, a VAE and a denoising VAE; a corruption of a user's own."""
    folder = tmp_path_factory.mktemp("autoencoders")
    succeed("train", *SMALL, *POINT, "--out", "ae", cwd=folder)
    succeed("train", *SMALL, *POINT, "--corrupt", "mask(rate=0.5)", "--out", "dae", cwd=folder)
    succeed("train", *SMALL, "--out", "vae", cwd=folder)
    succeed("train", *SMALL, "--corrupt", "gaussian(scale=0.5)", "--out", "dvae", cwd=folder)
    (folder / "invert.py").write_text(
        "__all__ = ['invert']\ndef invert():\n    return lambda x: 1 - x\n"
    )
    return folder


def test_training_speaks_of_reconstruction(place, tmp_path):
    out = succeed("train", *SMALL, *POINT, "--out", tmp_path / "run", cwd=place)
    assert "best validation log p(x|z(x))" in out
    assert out.replace("no ELBO and no likelihood", "").count("ELBO") == 0
    assert "the guide is a point: no ELBO and no likelihood, only a reconstruction" in out
    keys = read_rows(tmp_path / "run")[0].keys()
    assert {"reconstruction", "valid_reconstruction", "valid_reconstruction_standard_error"} <= keys
    assert not any("elbo" in key or "joint" in key for key in keys)


@pytest.mark.parametrize("name", ["ae", "dae"])
def test_the_best_epoch_is_that_of_the_best_reconstruction_of_clean_data(place, name):
    rows = read_rows(place / name)
    run = load_run(place / name)
    assert [row["best"] for row in rows] == [True, rows[1]["best"]]
    best = max(row["valid_reconstruction"] for row in rows)
    x = run.data.valid.scored()
    with torch.no_grad():
        z = run.guide.posterior(x).mean
        clean = run.model.decode(z).log_prob(x).double().mean()
    assert best == pytest.approx(float(clean), rel=1e-5)


def test_corruption_is_of_training_alone(place):
    """It changes what is learned; the row of training is of corrupted data, and lower."""
    clean, corrupted = (read_rows(place / name)[-1] for name in ("ae", "dae"))
    assert clean["reconstruction"] != corrupted["reconstruction"]
    assert corrupted["valid_reconstruction"] > corrupted["reconstruction"] - 1.0
    assert load_run(place / "dae").config.corrupt == "mask(rate=0.5)"


def test_a_denoising_vae_has_its_bound(place):
    rows = read_rows(place / "dvae")
    assert rows[0].keys() == read_rows(place / "vae")[0].keys()
    assert rows[-1]["elbo"] != read_rows(place / "vae")[-1]["elbo"]
    out = succeed("evaluate", "dvae", "-K", "10", "--count", "20", cwd=place)
    assert "ELBO" in out
    assert "log p(x)" in out


def test_evaluate_reports_reconstruction_alone(place):
    out = succeed("evaluate", "dae", "-K", "10", "--count", "20", cwd=place)
    assert "log p(x|z(x))" in out
    assert "no ELBO" in out
    entry = json.loads((place / "dae" / "evaluation" / "test.json").read_text())[-1]
    assert entry["estimates"].keys() == {"reconstruction"}


def test_commands_that_need_a_bound_say_that_there_is_none(place):
    line = refuse("compare", "ae", cwd=place)
    assert "point" in line
    out = succeed("diagnose", "ae", "--count", "20", cwd=place)
    assert "no ELBO" in out
    assert "log p(x) =" not in out


@pytest.mark.parametrize("command", ["sample", "reconstruct", "traverse", "interpolate", "embed"])
def test_pictures_are_drawn(place, tmp_path, command):
    succeed(command, "dae", "--out", tmp_path / "p.png", cwd=place)
    assert_picture(tmp_path / "p.png")


def test_latent_spaces_side_by_side(place, tmp_path):
    succeed(
        "embed", "--compare", "ae", "dae", "vae", "--out", tmp_path / "three.png", "--count", "150",
        cwd=place,
    )  # fmt: skip
    assert_picture(tmp_path / "three.png")
    succeed("embed", "vae", "dvae", "--compare", "--count", "150", cwd=place)
    assert_picture(place / "vae" / "figures" / "latent_comparison.png")


def test_what_cannot_be_compared_is_refused(place, tmp_path):
    assert "embed --compare RUN RUN" in refuse("embed", "ae", "vae", cwd=place)
    levels = [
        *SMALL[:-1],
        "digits(values=levels)",
        "--likelihood",
        "binomial",
        "--out",
        tmp_path / "levels",
    ]
    succeed("train", *levels, cwd=place)
    line = refuse("embed", "--compare", "ae", tmp_path / "levels", cwd=place)
    assert "compare runs of the same data" in line


def test_a_stopped_denoising_run_goes_on_as_if_never_stopped(place, tmp_path):
    options = [*SMALL, *POINT, "--corrupt", "gaussian(scale=0.3)"]
    succeed("train", *options, "--out", tmp_path / "whole", cwd=place)
    succeed("train", *options, "--max-steps", 13, "--out", tmp_path / "cut", cwd=place)
    succeed("train", "--resume", tmp_path / "cut", "--max-steps", 1000, cwd=place)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_resumed_run_keeps_its_corruption(place):
    line = refuse("train", "--resume", "dae", "--corrupt", "mask(rate=0.1)", cwd=place)
    assert "was trained with corrupt='mask(rate=0.5)'" in line


def test_a_corruption_of_ones_own(place, tmp_path):
    succeed("train", *SMALL, *POINT, "--corrupt", "invert.py", "--out", tmp_path / "own", cwd=place)
    line = refuse("reconstruct", tmp_path / "own", cwd=place)
    assert "--allow-code" in line


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("maks", "did you mean 'mask'"),
        ("mask(rate=2)", "mask: rate must be positive and in"),
        ("gaussian(scale=-1)", "gaussian: scale must be positive and in"),
    ],
)
def test_bad_corruptions_are_refused_before_anything_is_made(place, tmp_path, spec, message):
    line = refuse("train", *SMALL, "--corrupt", spec, "--out", tmp_path / "run", cwd=place)
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_sweep_trains_with_corruption(place, tmp_path):
    succeed(
        "sweep", "--data", "digits", "--corrupt", "mask(rate=0.5)", *SMALL[:2], "--latent-dim", 2,
        "--seeds", 1, "--epochs", 1, "-K", 5, "--count", 20, "--device", "cpu",
        "--out", tmp_path / "sweep", cwd=place,
    )  # fmt: skip
    (config,) = (tmp_path / "sweep").rglob("config.yaml")
    assert "corrupt: mask(rate=0.5)" in config.read_text()


def test_corruptions_are_listed(place):
    out = succeed("list", "corruption", cwd=place)
    assert "rate=0.25" in out
    assert "scale=0.5" in out
