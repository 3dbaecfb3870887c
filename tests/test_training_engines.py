"""Compiled and eager training: the same steps, recorded, resumed, and refused in one line."""

import dataclasses
import functools
import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae import run_training
from pyro_vae.assembly import build_pair
from pyro_vae.capture import Graph
from pyro_vae.checkpoint import load_state, load_weights, save_state
from pyro_vae.components import build
from pyro_vae.config import Config
from pyro_vae.data import load_data
from pyro_vae.errors import InputError
from pyro_vae.objectives.trace import Trace
from pyro_vae.run_training import facts_of, resume_run, start_run, train_run
from pyro_vae.training import COMPILED_FROM, Trainer, TrainingError
from tests.command import invoke, refuse, succeed

ROOT = Path(__file__).parents[1]
SMALL = Config(encoder="mlp(hidden=(16,))", latent_dim=3, device="cpu")
ENGINES = ("eager", "compiled")
BRANCHING = '''"""A guide that looks at a tensor."""

__all__ = ["Branching"]

import pyro
import pyro.distributions as dist
from torch import nn


class Branching(pyro.nn.PyroModule):
    """The mean is cut where it is large."""

    has_density = True

    def __init__(self, encoder, latent_dim: int):
        super().__init__("guide")
        self.encoder = encoder
        self.head = nn.Linear(encoder.out_features, latent_dim)

    def posterior(self, x):
        loc = self.head(self.encoder(x))
        if loc.abs().max() > 10:
            loc = loc.clamp(-10, 10)
        return dist.Normal(loc, 0.3).to_event(1)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", self.posterior(x))
'''
LINE = BRANCHING.splitlines().index("        if loc.abs().max() > 10:") + 1


@pytest.fixture(scope="module")
def digits():
    """1,280 data to train on: five batches of 256, none of them partial."""
    data = load_data("digits")
    return dataclasses.replace(data, train=data.train.subset(1280))


@pytest.fixture
def interpreted(monkeypatch):
    """Graphs are interpreted, not compiled; the list holds the batch size of each that would be."""
    sizes = []

    def compile(self):
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        sizes.append(inputs[0].meta["val"].shape[0])
        return self

    monkeypatch.setattr(Graph, "compile", compile)
    return sizes


@pytest.fixture
def branching(tmp_path) -> Path:
    file = tmp_path / "branching.py"
    file.write_text(BRANCHING)
    return file


def make_trainer(data, config=SMALL, pair=None, **options):
    torch.manual_seed(0)
    model, guide = pair or build_pair(config, facts_of(data), data.data_mean)
    options = {"epochs": 2, "batch_size": 256, "seed": 5, "engine": "compiled", **options}
    return Trainer(model, guide, data, objective=options.pop("objective", Trace()), **options)


def fit(trainer, **callbacks):
    rows = []
    finished = trainer.fit(on_epoch=rows.append, **callbacks)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows], finished


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a, b, rtol=1e-10):
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol, rtol) for k in a)


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ({"epochs": COMPILED_FROM // 5 - 1}, "eager"),
        ({"epochs": COMPILED_FROM // 5}, "compiled"),
        ({"epochs": 10**6, "max_steps": COMPILED_FROM - 1}, "eager"),
        ({"epochs": 10**6, "max_steps": COMPILED_FROM}, "compiled"),
        ({"epochs": 10**6, "engine": "eager"}, "eager"),
        ({"epochs": 1, "engine": "compiled"}, "compiled"),
    ],
)
def test_a_long_training_is_compiled_by_default(digits, options, engine):
    trainer = make_trainer(digits, **{"engine": None, **options})
    assert trainer.engine == engine
    assert trainer.reason is None


def test_an_unknown_engine_is_refused(digits):
    with pytest.raises(InputError, match="engine must be compiled or eager, got 'fast'"):
        make_trainer(digits, engine="fast")


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_are_those_of_pyros_svi(digits, interpreted, engine):
    """In float64, by plain gradient descent, on the same data with the same noise."""
    options = {"epochs": 2, "dtype": torch.float64, "optimizer": "sgd(lr=1e-3)"}
    trainer = make_trainer(digits, engine=engine, **options)
    batches = []
    step = trainer.svi.step
    trainer.svi.step = lambda x: batches.append(x.clone()) or step(x)
    model, guide = (make_trainer(digits, **options).__dict__[name] for name in ("model", "guide"))
    rows, _ = fit(trainer)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO())
    losses = []
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.set_rng_state(make_trainer(digits, **options).state_dict()["random_state"]["cpu"])
        for x in batches:
            losses.append(svi.step(x))
    assert len(batches) == 10
    assert rows[-1]["elbo"] == pytest.approx(-sum(losses[5:]) / 1280, rel=1e-12)
    for program, reference in ((trainer.model, model), (trainer.guide, guide)):
        assert close(dict(program.named_parameters()), dict(reference.named_parameters()))


@pytest.mark.parametrize(
    "options",
    [
        {"warm_up": 2, "schedule": "step_lr(step_size=1, gamma=0.5)", "clip_norm": 5.0},
        {"beta": 0.3, "objective": build("objective", "iwae(num_particles=3)")},
    ],
)
def test_both_engines_take_the_same_steps(interpreted, options):
    """β and learning rate change from step to step; the graph is captured once a shape."""
    digits = load_data("digits")
    options = {"epochs": 3, "dtype": torch.float64, **options}
    eager, compiled = (make_trainer(digits, engine=engine, **options) for engine in ENGINES)
    (expected, _), (rows, _) = fit(eager), fit(compiled)
    assert interpreted == [256]  # and the partial batch of 17 is not worth it
    assert (eager.engine, compiled.engine) == ENGINES
    for row, other in zip(rows, expected, strict=True):
        assert (row.pop("engine"), other.pop("engine")) == ("compiled", "eager")
        assert row == pytest.approx(other, rel=1e-9)
    assert close(compiled.weights(), eager.weights())


def test_a_compiled_training_continues_bit_for_bit(digits, interpreted):
    options = {"epochs": 2, "warm_up": 1, "schedule": "step_lr(step_size=1)", "clip_norm": 5.0}
    whole = make_trainer(digits, **options)
    expected, _ = fit(whole)
    counter = itertools.count(1)
    first = make_trainer(digits, **options)
    rows, _ = fit(first, stop=lambda: next(counter) == 3)
    second = make_trainer(digits, **options)
    torch.manual_seed(12345)
    second.load_state_dict(first.state_dict())
    more, _ = fit(second)
    assert rows + more == expected
    assert same(second.weights(), whole.weights())


def test_loaded_in_the_middle_a_trainer_goes_on_from_there(digits, interpreted):
    """The same trainer, its graph captured, is put back to an earlier state."""
    trainer = make_trainer(digits)
    fit(trainer, stop=lambda: trainer.progress.step == 4)
    state = trainer.state_dict()
    expected, _ = fit(trainer)
    weights = trainer.weights()
    trainer.load_state_dict(state)
    assert fit(trainer)[0] == expected
    assert same(trainer.weights(), weights)


def test_two_compiled_trainings_never_touch_each_other(digits, interpreted):
    options = {"dtype": torch.float64, "epochs": 1}
    alone = [make_trainer(digits, seed=s, engine="eager", **options) for s in (1, 2)]
    for trainer in alone:
        fit(trainer)
    together = [make_trainer(digits, seed=s, **options) for s in (1, 2)]
    while not all(trainer.finished for trainer in together):
        for trainer in together:
            if not trainer.finished:
                fit(trainer, stop=lambda: True)
    assert all(close(a.weights(), b.weights()) for a, b in zip(together, alone, strict=True))
    assert [trainer.engine for trainer in together] == ["compiled"] * 2
    assert len(interpreted) == 2  # each captured once
    assert not pyro.get_param_store().keys()


def test_a_state_names_the_engine_and_it_is_kept(digits, interpreted):
    compiled, eager = (make_trainer(digits, engine=engine) for engine in ("compiled", "eager"))
    fit(compiled, stop=lambda: True)
    state = compiled.state_dict()
    assert (state["engine"], state["reason"]) == ("compiled", None)
    eager.load_state_dict(state)
    assert eager.engine == "compiled"
    del state["engine"], state["reason"]  # from before engines were recorded
    compiled.load_state_dict(state)
    assert compiled.engine == "eager"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_parameter_of_two_names_is_trained_once(digits, interpreted, engine):
    """A module's child that is given to ``pyro.module`` too."""

    def trained(twice):
        model, guide = build_pair(SMALL, facts_of(digits), digits.data_mean)

        class Twice(type(guide)):
            def forward(self, x):
                pyro.module("net", self.encoder)
                return super().forward(x)

        if twice:
            guide.__class__ = Twice
        options = {"dtype": torch.float64, "optimizer": "sgd(lr=1e-3, momentum=0.9)"}
        trainer = make_trainer(digits, pair=(model, guide), engine=engine, **options)
        fit(trainer)
        return trainer

    torch.manual_seed(0)
    once = trained(False)
    torch.manual_seed(0)
    twice = trained(True)
    assert twice.reason is None
    assert len(twice.optim.parameters) == len(once.optim.parameters)
    assert close(twice.weights(), once.weights())


def branching_pair(data):
    torch.manual_seed(0)
    model, guide = build_pair(SMALL, facts_of(data))

    def branching(x):
        q = guide.posterior(x)
        if q.mean.abs().max() > 10:
            raise ValueError("too far")
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)

    return model, branching


def test_what_cannot_be_captured_is_trained_eagerly(digits):
    """The reason, with file and line, is warned of, in the rows and in the state."""
    trainer = make_trainer(digits, pair=branching_pair(digits))
    with pytest.warns(UserWarning, match=r"^steps are eager, not compiled: .*, .*\.py:\d+$"):
        rows, _ = fit(trainer)
    code = branching_pair(digits)[1].__code__
    reason = f"the program reads a tensor's value, {code.co_filename}:{code.co_firstlineno + 2}"
    assert (trainer.engine, trainer.reason) == ("eager", reason)
    assert [(row["engine"], row["reason"]) for row in rows] == [("eager", reason)] * 2
    plain = make_trainer(digits, pair=branching_pair(digits), engine="eager")
    fit(plain)
    assert same(plain.weights(), trainer.weights())


def test_resumed_it_stays_eager_and_says_why(digits):
    whole, first, second = (make_trainer(digits, pair=branching_pair(digits)) for _ in range(3))
    with pytest.warns(UserWarning, match="steps are eager"):
        fit(whole)
    with pytest.warns(UserWarning, match="steps are eager"):
        fit(first, stop=lambda: True)
    second.load_state_dict(first.state_dict())
    rows, _ = fit(second)  # warns of nothing: nothing is tried again
    assert rows[0]["reason"] == whole.reason
    assert same(second.weights(), whole.weights())


class _Guide(pyro.nn.PyroModule):
    """z ~ N(loc(s), exp(s)), with a batch norm beside it; s is what the tests break."""

    has_density = True

    def __init__(self, loc=lambda s: 0 * s):
        super().__init__("guide")
        self.log_scale = nn.Parameter(torch.zeros(3))
        self.norm = nn.BatchNorm1d(64)
        self.loc = loc

    def posterior(self, x):
        loc = self.loc(self.log_scale) + 0.01 * self.norm(x.flatten(1))[:, :3]
        return dist.Normal(loc, self.log_scale.exp(), validate_args=False).to_event(1)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.posterior(x))


def with_guide(digits, guide, **options):
    model, _ = build_pair(SMALL, facts_of(digits))
    return make_trainer(digits, pair=(model, guide), **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("interval", [1, 4])
def test_a_bad_step_is_named_and_taken_back(digits, interpreted, engine, interval):
    """At the fifth step of ten the scale is 0 and the loss infinite; read at once, or later."""
    guide = _Guide()
    trainer = with_guide(digits, guide, engine=engine, batch_size=128)
    trainer._read_interval = interval
    good, seen = {}, []

    def break_it(trainer):
        seen.append(trainer.progress.step)
        if trainer.progress.step == 4:
            good.update(trainer.state_dict())
            with torch.no_grad():
                guide.log_scale[1] = -math.inf

    with pytest.raises(TrainingError) as caught:
        trainer.fit(on_step=break_it)
    message = str(caught.value)
    assert message.startswith("step 5 (epoch 1): the loss is not finite: site 'z' of the guide")
    assert message.endswith("try a smaller learning rate or --clip-norm")
    assert "\n" not in message
    assert seen[-1] == {1: 4, 4: 7}[interval]
    state = trainer.state_dict()
    good["weights"]["guide.log_scale"][1] = -math.inf
    assert same(state["weights"], good["weights"])  # the batch norm's mean too
    assert int(state["weights"]["guide.norm.num_batches_tracked"]) == 4
    assert torch.equal(state["random_state"]["cpu"], good["random_state"]["cpu"])
    progress = {k: v for k, v in good["progress"].items() if k != "seconds"}
    assert {k: state["progress"][k] for k in progress} == progress
    assert str(state["optimizer"]) == str(good["optimizer"])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_gradient_is_named(digits, interpreted, engine):
    """√|s| at 0: the loss is finite, its gradient is not."""
    guide = _Guide(lambda s: s.abs().sqrt())
    nn.init.ones_(guide.log_scale)
    trainer = with_guide(digits, guide, engine=engine)
    fit(trainer, stop=lambda: trainer.progress.step == 3)
    nn.init.zeros_(guide.log_scale)
    before = trainer.weights()
    match = r"step 4 .*the gradient is not finite: .*gradient of parameter 'guide.log_scale'"
    with pytest.raises(TrainingError, match=match):
        fit(trainer)
    assert same(trainer.weights(), before)
    assert trainer.engine == engine
    assert all(p.grad is None for p in trainer.optim.parameters.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_an_overflowing_gradient_names_the_largest(digits, interpreted, engine):
    trainer = with_guide(digits, _Guide(lambda s: (1e25 * s).sin()), engine=engine)
    with pytest.raises(TrainingError, match=r"the gradient of parameter 'guide.log_scale' reaches"):
        fit(trainer)


def test_read_late_the_numbers_are_the_same(digits):
    """Losses are added in the order of their steps, however many are read at once."""
    expected = None
    for interval in (1, 4, 50):
        trainer = make_trainer(digits, warm_up=1, engine="eager")
        trainer._read_interval = interval
        rows, _ = fit(trainer)
        assert rows == (expected or rows)
        expected = rows


def test_bfloat16_is_of_the_steps_alone(digits):
    """From the same weights the same validation bound, and after a step other weights."""
    precisions = ("float32", "bfloat16")
    single, half = (make_trainer(digits, precision=p, engine="eager") for p in precisions)
    assert single.validation_bound() == half.validation_bound()
    for trainer in (single, half):
        fit(trainer, stop=lambda: True)
    assert not same(single.weights(), half.weights())
    assert close(single.weights(), half.weights(), 0.01)
    assert {v.dtype for v in half.weights().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "tf32"}, "tf32 needs a CUDA device, got cpu"),
        ({"precision": "bfloat17"}, "unknown precision 'bfloat17'"),
        ({"precision": "bfloat16", "dtype": torch.float64}, "in float32, got dtype float64"),
    ],
)
def test_a_precision_that_cannot_be_is_refused(digits, options, message):
    with pytest.raises(InputError, match=message):
        make_trainer(digits, **options)


RUN = SMALL.replace(batch_size=100, epochs=3, warm_up=1, seed=3, engine="compiled", clip_norm=50.0)
STEPS = 3 * 13


class Killed(BaseException):
    """As a kill: nothing runs after it that would save anything."""


def train(path: Path, kill_at: int | None = None, config: Config = RUN) -> Trainer:
    if path.exists():
        config, _, trainer = resume_run(path, {})
    else:
        config, _, trainer = start_run(config, path)

    def on_step(trainer):
        if trainer.progress.step == kill_at:
            raise Killed

    train_run(path, config, trainer, on_step=on_step)
    return trainer


def rows_of(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same_run(a: Path, b: Path) -> None:
    assert rows_of(a) == rows_of(b)
    assert same(load_weights(a / "best.safetensors"), load_weights(b / "best.safetensors"))
    states = [load_state(path / "last.pt")["trainer"] for path in (a, b)]
    assert same(states[0]["weights"], states[1]["weights"])
    assert states[0]["engine"] == states[1]["engine"]


def test_killed_at_a_random_step_a_compiled_run_ends_the_same(tmp_path, monkeypatch, interpreted):
    """Seed 0; a checkpoint at every step."""
    train(tmp_path / "whole")
    monkeypatch.setattr(run_training, "CHECKPOINT_INTERVAL", 0.0)
    with pytest.raises(Killed):
        train(tmp_path / "run", random.Random(0).randrange(1, STEPS))
    assert train(tmp_path / "run").engine == "compiled"
    assert {row["engine"] for row in rows_of(tmp_path / "run")} == {"compiled"}
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_engine_is_recorded_and_no_resumed_run_changes_it(tmp_path):
    """One that is not told is chosen by the length; more epochs do not choose again."""
    path = tmp_path / "run"
    train(path, config=RUN.replace(engine=None))
    assert yaml.safe_load((path / "config.yaml").read_text())["engine"] == "eager"
    assert load_state(path / "last.pt")["trainer"]["engine"] == "eager"
    _, _, trainer = resume_run(path, {"epochs": COMPILED_FROM})
    assert trainer.engine == "eager"
    with pytest.raises(InputError, match="was trained with engine='eager', not 'compiled'"):
        resume_run(path, {"engine": "compiled"})
    with pytest.raises(InputError, match="was trained with precision='float32', not 'bfloat16'"):
        resume_run(path, {"precision": "bfloat16"})


def test_a_run_from_before_engines_resumes_as_eager(tmp_path):
    path = tmp_path / "run"
    train(path, config=RUN.replace(engine="eager"))
    train(tmp_path / "long", config=RUN.replace(engine="eager", epochs=4))
    lines = (path / "config.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("engine:", "precision:"))]
    assert len(kept) == len(lines) - 2
    (path / "config.yaml").write_text("\n".join(kept) + "\n")
    state = load_state(path / "last.pt")
    for name in ("engine", "precision"):
        del state["config"][name]
    for name in ("engine", "reason"):
        del state["trainer"][name]
    save_state(path / "last.pt", state)
    config, _, trainer = resume_run(path, {"epochs": 4})
    assert (config.engine, trainer.engine) == ("eager", "eager")
    train_run(path, config, trainer)
    assert_same_run(path, tmp_path / "long")


def reached(counter, num_steps):
    return next(counter) == num_steps


def test_a_run_that_fell_back_stays_eager_and_says_why(tmp_path, branching):
    """Stopped in the middle, it is not tried again; config.yaml has what was asked for."""
    config = RUN.replace(guide=str(branching))
    reason = f"the program reads a tensor's value, {branching}:{LINE}"
    for name, num_steps in (("whole", STEPS + 1), ("run", 20)):
        started, _, trainer = start_run(config, tmp_path / name)
        counter = itertools.count(1)
        stop = functools.partial(reached, counter, num_steps)
        with pytest.warns(UserWarning, match="steps are eager"):
            train_run(tmp_path / name, started, trainer, stop=stop)
    resumed, _, trainer = resume_run(tmp_path / "run", {}, allow_code=True)
    assert resumed.engine == "compiled"
    assert (trainer.engine, trainer.reason) == ("eager", reason)
    train_run(tmp_path / "run", resumed, trainer)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    told = {(row["engine"], row["reason"]) for row in rows_of(tmp_path / "run")}
    assert told == {("eager", reason)}


@pytest.mark.slow
def test_a_compiled_run_is_resumed_in_another_process(tmp_path):
    """Compiled in three processes, one of them killed inside the second epoch."""
    program = (
        "import os, sys; from pathlib import Path\n"
        "from pyro_vae import run_training\n"
        "from tests import test_training_engines as test\n"
        "run_training.CHECKPOINT_INTERVAL = 0.0\n"
        "try:\n"
        "    trainer = test.train(Path(sys.argv[1]), int(sys.argv[2]))\n"
        "except test.Killed:\n"
        "    os._exit(9)\n"
    )
    for kill_at, status in ((20, 9), (0, 0)):
        command = [sys.executable, "-c", program, tmp_path / "run", str(kill_at)]
        assert subprocess.run(command, cwd=ROOT).returncode == status
    assert train(tmp_path / "whole").reason is None
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert {row["engine"] for row in rows_of(tmp_path / "run")} == {"compiled"}


def test_the_command_says_in_one_line_why_it_trains_eagerly(tmp_path, branching):
    options = ["--guide", branching, "--encoder", "mlp(hidden=(8,))", "--latent-dim", 2]
    once = ["--epochs", 1, "--engine", "compiled", "--device", "cpu"]
    line = f"the program reads a tensor's value, {branching}:{LINE}"
    out = succeed("train", *options, *once, "--no-tensorboard", "--out", "run", cwd=tmp_path)
    assert out.splitlines()[0] == f"training eagerly: {line}"
    out = succeed("sweep", *options, *once, "--seeds", 1, "-K", 5, "--out", "s", cwd=tmp_path)
    assert out.splitlines()[1] == f"  trained eagerly: {line}"
    # Asked for, nothing is to be said.
    out = succeed("train", *options, "--epochs", 1, "--engine", "eager", "--no-tensorboard",
                  "--out", "eager", cwd=tmp_path)  # fmt: skip
    assert "eagerly" not in out
    assert "reason" not in rows_of(tmp_path / "eager")[0]


def test_the_command_takes_engine_and_precision(tmp_path, interpreted):
    """A sweep's runs too; planning it compiles nothing, and its runs are found again."""
    options = ["--encoder", "mlp(hidden=(8,))", "--latent-dim", 2, "--epochs", 1,
               "--batch-size", 1297, "--device", "cpu"]  # fmt: skip
    chosen = ["--engine", "compiled", "--precision", "bfloat16"]
    succeed("train", *options, *chosen, "--out", "run", cwd=tmp_path)
    assert interpreted == [1297]
    found = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (found["engine"], found["precision"]) == ("compiled", "bfloat16")
    assert rows_of(tmp_path / "run")[0]["engine"] == "compiled"
    sweep = ["sweep", *options, "--prior", "standard_normal", "--prior", "mixture", "--seeds", 1,
             "-K", 5, "--out", "s"]  # fmt: skip
    succeed(*sweep, *chosen, cwd=tmp_path)
    assert interpreted == [1297] * 3
    out = succeed(*sweep, "--precision", "bfloat16", cwd=tmp_path)  # by either engine
    assert out.count("found") == 2
    other = invoke(*sweep, cwd=tmp_path)
    assert other.status == 2
    assert "was trained with precision='bfloat16', not 'float32'" in other.err
    tf32 = refuse("train", *options, "--precision", "tf32", "--out", "other", cwd=tmp_path)
    assert tf32 == "error: precision tf32 needs a CUDA device, got cpu; use float32\n"
    assert not (tmp_path / "other").exists()
