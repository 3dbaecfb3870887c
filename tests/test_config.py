"""Settings: the same in files and on the command line, or refused in one line."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
import yaml

from pyro_vae.config import Config, read_yaml, resolve_device
from pyro_vae.errors import InputError


def refused(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FULL = Config(
    data="my files/ü (1)/x.npz(values=levels)",
    data_root="/some where",
    prior="prior.py(a=(1, 2))",
    likelihood="normal(scale=per-pixel)",
    encoder="gated_mlp(hidden=(300, 300))",
    decoder="mlp(hidden=(3,))",
    latent_dim=3,
    beta=0.5,
    warm_up=4,
    optimizer="adam(lr=1e-3)",
    schedule="step_lr(step-size=10)",
    clip_norm=5,
    batch_size=7,
    epochs=9,
    max_steps=100,
    patience=2,
    seed=2**63 - 1,
    device="cpu",
    dtype="float64",
    code={"/a/b: c.py": "abc"},
)


@pytest.mark.parametrize("config", [Config(), FULL], ids=["defaults", "full"])
def test_yaml_round_trip(tmp_path, config):
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert Config.from_mapping(read_yaml(path)) == config
    assert list(yaml.safe_load(config.to_yaml())) == [f.name for f in dataclasses.fields(Config)]


def test_specs_are_kept_in_canonical_form():
    assert FULL.optimizer == "adam(lr=0.001)"
    assert FULL.schedule == "step_lr(step_size=10)"
    assert Config(prior="standard-normal") == Config(prior=" standard_normal( )")


def test_whole_numbers_and_yaml_texts_serve_as_floats():
    config = Config.from_mapping(yaml.safe_load("beta: 1\nclip_norm: 1e-3"))  # YAML reads a text
    assert config.beta == 1.0
    assert type(config.beta) is float
    assert config.clip_norm == 0.001


BAD = {
    "latent_dim": [0, -1, 2.5, "3", None, True, 2**63, float("nan")],
    "batch_size": [0, -3, 1.5, 10**30],
    "epochs": [0, -1, "many"],
    "max_steps": [0, -1, 0.5],
    "patience": [0, -1],
    "warm_up": [-1, 2.5, None],
    "seed": [-1, 0.5, 2**63, None],
    "beta": [-1, float("nan"), float("inf"), "abc", None, True, "nan"],
    "clip_norm": [0, -1.0, float("nan"), float("inf"), "abc", True, 10**400],
    "device": ["xyz", "mps", "", None, 3],
    "dtype": ["float16", "double", None],
    "prior": [None, 3, "", "f(", "f(3)"],
    "optimizer": ["adam(lr=", "adam(lr=1, lr=2)"],
    "data_root": [3],
    "code": [None, [], {"a": 1}],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, values in BAD.items() for v in values])
def test_bad_values(name, value):
    message = refused(Config.from_mapping, {name: value})
    words = name.replace("_", "-")
    assert name in message or words in message or "spec" in message or "key" in message or (
        "arguments" in message or "given twice" in message
    )  # fmt: skip


def test_what_the_message_says():
    assert refused(Config.from_mapping, {"latent_dim": 2.5}) == (
        "--latent-dim must be a whole number, got 2.5"
    )
    assert refused(Config.from_mapping, {"batch_size": 0}) == (
        "--batch-size must be positive and finite, got 0"
    )
    assert "did you mean 'float64'" in refused(Config.from_mapping, {"dtype": "float46"})
    assert "Valid: auto, cpu, cuda" in refused(Config.from_mapping, {"device": "gpu"})


def test_an_unknown_key_names_the_nearest():
    message = refused(Config.from_mapping, {"latentdim": 3}, "my.yaml")
    assert message.startswith("my.yaml: unknown key 'latentdim'; did you mean 'latent_dim'?")
    assert "unknown key 1" in refused(Config.from_mapping, {1: 2})


@pytest.mark.parametrize("value", [None, [], "data: digits", 3])
def test_from_what_is_no_mapping(value):
    assert "expected 'key: value' lines" in refused(Config.from_mapping, value)


BAD_YAML = {
    "": "expected 'key: value' lines",
    "- 1": "expected 'key: value' lines",
    "text": "expected 'key: value' lines",
    "a: [": "cannot read",
    "a: b: c": "cannot read",
    "a: !!python/object/apply:os.system [true]": "cannot read",
    "a: 2001-13-45": "cannot read",
    "a: \x01": "cannot read",
}


@pytest.mark.parametrize("text", BAD_YAML)
def test_bad_yaml(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refused(read_yaml, path)
    assert BAD_YAML[text] in message
    assert str(path) in message


def test_yaml_that_is_missing_a_folder_or_no_text(tmp_path):
    assert "no such file" in refused(read_yaml, tmp_path / "none.yaml")
    assert "cannot read" in refused(read_yaml, tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe")
    assert "cannot read" in refused(read_yaml, tmp_path / "bytes.yaml")


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("xyz", "mps", "meta", "cuda:x", "cuda:-1", "cpu:x"):
        assert "unknown device" in refused(resolve_device, name)
    assert "use --device cpu" in refused(resolve_device, "cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none():
    message = refused(Config(device="cuda").torch_device)
    assert message == "device 'cuda': 0 CUDA devices found; use --device cpu or auto"


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(data="x.npy(values=levels)", prior="./p.py(a=1)", data_root="data")
    absolute = config.with_absolute_paths()
    assert absolute.data == f"{tmp_path / 'x.npy'}(values=levels)"
    assert absolute.prior == f"{tmp_path / 'p.py'}(a=1)"
    assert absolute.data_root == os.fspath(tmp_path / "data")
    assert Path(absolute.data_root).is_absolute()
    assert absolute.encoder == config.encoder
    assert absolute.with_absolute_paths() == absolute
