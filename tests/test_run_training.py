"""A run folder survives what happens to a process: killed anywhere, it ends the same."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pyro_vae import run_training
from pyro_vae.checkpoint import load_state, load_weights
from pyro_vae.config import Config
from pyro_vae.data import load_data
from pyro_vae.errors import InputError
from pyro_vae.run_training import facts_of, resume_run, start_run, train_run
from pyro_vae.runs import load_run
from pyro_vae.training import TrainingError

CONFIG = Config(
    encoder="mlp(hidden=(16,))", latent_dim=3, batch_size=100, epochs=6, warm_up=2, seed=3,
    schedule="step_lr(step_size=2, gamma=0.5)", device="cpu",
)  # fmt: skip
STEPS = 6 * 13


class Killed(BaseException):
    """As a kill: nothing runs after it that would save anything."""


def train(path: Path, kill_at: int | None = None) -> None:
    if path.exists():
        config, _, trainer = resume_run(path, {})
    else:
        config, _, trainer = start_run(CONFIG, path)

    def on_step(trainer):
        if trainer.progress.step == kill_at:
            raise Killed

    train_run(path, config, trainer, on_step=on_step)


def rows(path: Path) -> list[dict]:
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def assert_same(a: Path, b: Path) -> None:
    assert rows(a) == rows(b)
    for load in (
        lambda run: load_weights(run / "best.safetensors"),
        lambda run: load_state(run / "last.pt")["trainer"]["weights"],
    ):
        one, other = load(a), load(b)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    train(path)
    return path


@pytest.mark.parametrize("interval", [0.0, 0.1])
def test_killed_at_random_steps_again_and_again(uninterrupted, tmp_path, monkeypatch, interval):
    """Seed 0; checkpoints at every step, or now and then, as time passes."""
    monkeypatch.setattr(run_training, "CHECKPOINT_INTERVAL", interval)
    generator = random.Random(0)
    kills = sorted(generator.sample(range(1, STEPS), 6))
    for kill_at in kills:
        with pytest.raises(Killed):
            train(tmp_path / "run", kill_at)
    train(tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 6
    assert_same(tmp_path / "run", uninterrupted)


def test_killed_before_the_first_checkpoint(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(run_training, "CHECKPOINT_INTERVAL", 1e9)
    with pytest.raises(Killed):
        train(tmp_path / "run", kill_at=40)
    assert len(rows(tmp_path / "run")) == 3
    train(tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted)


def test_a_process_killed_for_good_is_resumed(tmp_path):
    """SIGKILL at a moment nobody chose; 40 epochs, a checkpoint every 50 ms."""
    program = (
        "import sys; from pyro_vae import run_training\n"
        "run_training.CHECKPOINT_INTERVAL = 0.05\n"
        "from pyro_vae.__main__ import main\n"
        "sys.argv[0] = 'pyro-vae'; main()"
    )
    options = ["--epochs", "40", "--encoder", "mlp(hidden=(16,))", "--latent-dim", "3",
               "--no-tensorboard", "--device", "cpu"]  # fmt: skip

    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-c", program, "train", *arguments]

    with subprocess.Popen(
        command("--out", "run", *options), cwd=tmp_path, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.Random(1).uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "run" / "last.pt").exists()
    for arguments in (["--resume", "run"], ["--out", "whole", *options]):
        subprocess.run(command(*arguments), cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert len(rows(tmp_path / "run")) == 40
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_training_that_fails_keeps_its_last_good_checkpoint(tmp_path, monkeypatch):
    """A loss that is not finite in the fifth epoch: what was learned until then can be used."""
    monkeypatch.setattr(run_training, "CHECKPOINT_INTERVAL", 1e9)
    path = tmp_path / "run"
    config, _, trainer = start_run(CONFIG, path)
    loss_and_grads = trainer.objective.loss_and_grads

    def fail(*args):
        return loss_and_grads(*args) + (math.inf if trainer.progress.step == 60 else 0.0)

    monkeypatch.setattr(trainer.objective, "loss_and_grads", fail)
    with pytest.raises(TrainingError, match=r"step 61 .*last good checkpoint is kept in '.*run'"):
        train_run(path, config, trainer)
    assert load_state(path / "last.pt")["trainer"]["progress"]["step"] == 60
    assert load_run(path).weights == "best"
    monkeypatch.undo()
    train(path)
    assert len(rows(path)) == 6


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    import numpy as np

    generator = np.random.default_rng(0)
    file = tmp_path / "images.npy"
    np.save(file, generator.integers(0, 256, size=(100, 4, 4), dtype=np.uint8))
    config, _, trainer = start_run(CONFIG.replace(data=str(file)), tmp_path / "run")
    train_run(tmp_path / "run", config, trainer, stop=lambda: True)
    np.save(file, generator.integers(0, 256, size=(100, 4, 4), dtype=np.uint8))
    with pytest.raises(InputError, match="was trained on other data than"):
        resume_run(tmp_path / "run", {})


def test_a_refused_run_leaves_no_folder(tmp_path):
    for wrong in ({"likelihood": "normal"}, {"prior": "standart_normal"}, {"data": "digit"}):
        with pytest.raises(InputError):
            start_run(CONFIG.replace(**wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_facts_tell_reals_from_levels_and_constants(tmp_path):
    import numpy as np

    from pyro_vae.data import load_data

    generator = np.random.default_rng(0)
    reals = generator.normal(size=(60, 4)).astype("float32")
    constant = reals.copy()
    constant[:, 2] = 0.25
    levels = (generator.integers(0, 4, size=(60, 4)) / 3).astype("float32")
    found = {}
    for name, array in {"reals": reals, "constant": constant, "levels": levels}.items():
        np.save(tmp_path / f"{name}.npy", array)
        facts = facts_of(load_data(f"{tmp_path}/{name}.npy"))
        found[name] = (facts.constant_dims, facts.discrete)
    assert found == {"reals": (0, False), "constant": (1, False), "levels": (0, True)}


def test_real_data_are_described_by_their_mean_and_deviation(tmp_path):
    """Mean 1000 and 3, deviation 100 and 20 by column: √((100² + 20²)/2) about each mean."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=generator) * torch.tensor([100.0, 20.0])
    torch.save({"train": x + torch.tensor([1000.0, 3.0])}, tmp_path / "real.pt")
    data = load_data(str(tmp_path / "real.pt"))
    facts = facts_of(data)
    assert facts.data_loc == pytest.approx(501.5, abs=4)
    assert facts.data_scale == facts.unit == pytest.approx(math.sqrt(5200), rel=0.03)
    settings = Config(
        data=str(tmp_path / "real.pt"), likelihood="normal", epochs=1, latent_dim=2, device="cpu",
        encoder="mlp(hidden=(4,))",
    )  # fmt: skip
    run = run_training.train(settings, tmp_path / "run")
    assert run.facts == facts
    assert (run.guide.encoder.input_loc, run.guide.encoder.input_scale) == (
        facts.data_loc, facts.data_scale,
    )  # fmt: skip
    for spec in ("digits", "digits(values=levels)", "digits(values=continuous)"):
        facts = facts_of(load_data(spec))
        assert (facts.data_loc, facts.data_scale) == (0.0, 1.0)
