"""Small trainings on real data, from the command line's ``train`` to ``evaluate``."""

import json
import math
import sys

import pytest
import torch

from pyro_vae.__main__ import main
from pyro_vae.data import load_data


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["pyro-vae", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


LIKELIHOODS = {
    "mnist": "bernoulli",
    "mnist(binarize=threshold)": "bernoulli",
    "mnist(values=continuous)": "normal(scale=learned)",
    "binarized_mnist": "bernoulli",
    "frey_faces(values=continuous)": "normal(scale=learned)",
    "frey_faces(values=continuous, binarize=none)": "normal(scale=per_pixel)",
}


def independent_pixels(data: str, root) -> float:
    """Mean test log-likelihood of the best product over pixels, no latents: the bar to pass."""
    splits = load_data(data, root)
    train, test = (s.scored(slice(0, 5000)).flatten(1) for s in (splits.train, splits.test))
    mean = train.mean(0)
    if splits.measure == "binary":
        p = torch.distributions.Bernoulli(mean.clamp(1e-4, 1 - 1e-4))
    else:
        p = torch.distributions.Normal(mean, (train - mean).std())
    return float(p.log_prob(test).sum(-1).mean())


@pytest.mark.parametrize("data", LIKELIHOODS)
def test_trains_and_scores(data, data_root, tmp_path, monkeypatch):
    """300 steps; scored on 200 random test data by IWAE-20."""
    monkeypatch.chdir(tmp_path)
    run(
        monkeypatch, "train", "--data", data, "--data-root", data_root,
        "--likelihood", LIKELIHOODS[data], "--optimizer", "adam(lr=3e-3)",
        "--encoder", "mlp(hidden=(128,))", "--latent-dim", 10, "--max-steps", 300, "--epochs", 50,
        "--out", "run", "--no-tensorboard", "--device", "cpu",
    )  # fmt: skip
    run(monkeypatch, "evaluate", "run", "-K", 20, "--count", 200, "--device", "cpu")
    (entry,) = json.loads((tmp_path / "run/evaluation/test.json").read_text())
    estimates, protocol = entry["estimates"], entry["protocol"]
    assert estimates["elbo"]["value"] > independent_pixels(data, data_root) + 10
    assert estimates["log_likelihood"]["value"] > estimates["elbo"]["value"]
    assert estimates["elbo"]["count"] == protocol["count"] == 200
    bits = estimates["bits_per_dim"]
    num_dims = 560 if data.startswith("frey") else 784
    levels = 256 if "continuous" in data else 1
    expected = (num_dims * math.log(levels) - estimates["log_likelihood"]["value"]) / (
        num_dims * math.log(2)
    )
    assert bits["value"] == pytest.approx(expected)
    assert 0 < bits["value"] < 8


def test_grey_faces_are_refused_for_a_bernoulli(data_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv",
        ["pyro-vae", "train", "--data", "frey_faces(values=levels)", "--data-root", str(data_root)],
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "values=binary" in capsys.readouterr().err
