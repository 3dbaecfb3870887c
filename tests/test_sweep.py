"""A sweep: planned before it trains, continued where it stopped, never trained twice."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import re
import shutil
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from rich.console import Console

from pyro_vae.checkpoint import load_state
from pyro_vae.config import Config
from pyro_vae.data import load_data
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate, evaluate
from pyro_vae.evaluation.record import read_record, weights_hash, write_record
from pyro_vae.runs import load_run
from pyro_vae.significance import welch_interval
from pyro_vae.sweep import FACTORS, Observer, Stopped, plan_sweep, results, run, run_sweep
from pyro_vae.sweep_tables import sweep_line, sweep_tables, sweep_verdict

SETTINGS = Config(
    encoder="mlp(hidden=(8,))", latent_dim=2, batch_size=400, epochs=2, warm_up=1, device="cpu"
)
STEPS = 2 * 4  # a run
LISTS = {"latent_dim": [2, 3]}
OPTIONS = {"seeds": 2, "num_samples": 20, "count": 40}

IMPORTS = """import math
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn"""
COMPONENTS = {
    "wide.py": """
        class Wide(nn.Module):
            def __init__(self, latent_dim, scale=2.0):
                super().__init__()
                self.loc = nn.Parameter(torch.zeros(latent_dim))
                self.scale = scale

            def forward(self):
                return dist.Normal(self.loc, self.scale).to_event(1)
        """,
    "mass.py": """
        class Mass(nn.Module):
            params_per_dim, measure = 17, "levels"
            support = dist.constraints.integer_interval(0, 16)

            def forward(self, params):
                return dist.Categorical(logits=params, validate_args=False)
        """,
    "flat.py": """
        class Within(dist.Categorical):
            def log_prob(self, y):
                return super().log_prob((17 * y).floor()) + math.log(17)

        class Flat(nn.Module):
            params_per_dim, measure = 17, "continuous"
            support = dist.constraints.unit_interval

            def forward(self, params):
                return Within(logits=params, validate_args=False)
        """,
    "blind.py": """
        class Blind(PyroModule):
            has_density = True

            def __init__(self, latent_dim):
                super().__init__("guide")
                self.loc = nn.Parameter(torch.ones(latent_dim))

            def posterior(self, x):
                return dist.Normal(self.loc.expand(len(x), -1), 0.8).to_event(1)

            def forward(self, x):
                with pyro.plate("data", len(x), dim=-1):
                    pyro.sample("z", self.posterior(x))
        """,
    "point.py": """
        class Point(PyroModule):
            has_density = has_bound = False

            def __init__(self, encoder, latent_dim):
                super().__init__("guide")
                self.encoder, self.head = encoder, nn.Linear(encoder.out_features, latent_dim)

            def posterior(self, x):
                return dist.Delta(self.head(self.encoder(x))).to_event(1)

            def forward(self, x):
                with pyro.plate("data", len(x), dim=-1):
                    pyro.sample("z", self.posterior(x))
        """,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("components")
    for name, body in COMPONENTS.items():
        lines = [line[8:] for line in body.splitlines()]
        title = name.removesuffix(".py").title()
        (folder / name).write_text("\n".join([IMPORTS, f"__all__ = ['{title}']", *lines]))
    return folder


def sweep(out, lists=LISTS, observer=Observer(), settings=SETTINGS, **options):  # noqa: B008
    return run_sweep(plan_sweep(settings, lists, out, **{**OPTIONS, **options}), observer)


def told(found):
    """What a sweep found, without the clock."""

    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k != "seconds"}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    content = timeless(found.to_json())
    content["runs"].sort(key=lambda row: row["run"])
    return content


def stamps(out):
    """What no sweep may touch twice."""
    files = [*out.glob("*/last.pt"), *out.glob("*/best.safetensors"), *out.glob("*/evaluation/*")]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep of two configurations and two seeds, which tests leave as it is."""
    return sweep(tmp_path_factory.mktemp("whole") / "sweep")


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole.plan.out, tmp_path / "sweep"))


def test_each_run_is_an_ordinary_run(whole):
    out = whole.plan.out
    names = {f"latent_dim-{d}-seed{s}" for d in (2, 3) for s in (0, 1)}
    assert {path.name for path in out.iterdir() if path.is_dir()} == names
    assert [r.run.path.name for r in whole.results] == [
        "latent_dim-2-seed0", "latent_dim-3-seed0", "latent_dim-2-seed1", "latent_dim-3-seed1",
    ]  # fmt: skip
    for result in whole.results:
        loaded = load_run(result.run.path)
        assert loaded.config.seed == result.run.seed
        again = evaluate(
            loaded.model, loaded.guide, loaded.data.test.subset(40), loaded.facts,
            num_samples=20, seed=result.run.seed,
        )  # fmt: skip
        assert again.estimates == result.estimates
        parameters = {id(p): p for p in [*loaded.model.parameters(), *loaded.guide.parameters()]}
        count = sum(p.numel() for p in parameters.values())
        assert result.run.configuration.num_parameters == count


def test_parameters_are_counted_once_each(whole):
    """64 → 8 → 2 d and d → 8 → 64, with biases."""
    for configuration in whole.plan.configurations:
        d = configuration.config.latent_dim
        expected = (64 * 8 + 8) + (8 * 2 * d + 2 * d) + (d * 8 + 8) + (8 * 64 + 64)
        assert configuration.num_parameters == expected


def test_files_hold_a_row_a_run(whole):
    out = whole.plan.out
    content = json.loads((out / "sweep.json").read_text())
    assert content == json.loads(json.dumps(whole.to_json()))
    assert len(content["runs"]) == 4
    assert len(content["configurations"]) == 2
    assert content["pairs"][0]["unresolved"] == "2 and 2 seeds; 5 a side needed"
    rows = list(csv.DictReader(io.StringIO((out / "sweep.csv").read_text())))
    for row, result in zip(rows, whole.results, strict=True):
        assert row["log_evidence"] == ""
        for name in result.estimates:
            assert float(row[name]) == result.estimates[name].value
            error = result.estimates[name].data_standard_error
            assert float(row[f"{name}_data_standard_error"]) == error
        assert row["failure"] == ""
        assert int(row["active_units"]) == result.units.count
        assert set(FACTORS) < set(row)


@pytest.mark.parametrize("stop_after", [1, STEPS, STEPS + 1, 2 * (STEPS + 1) + 6])
def test_stopped_and_continued_it_ends_the_same(whole, tmp_path, stop_after):
    """In the first step, at the end of a training, before its scoring, in the third run."""
    steps = 0

    def stop():
        nonlocal steps
        steps += 1
        return steps >= stop_after

    with pytest.raises(Stopped):
        sweep(tmp_path / "s", observer=Observer(stop=stop))
    assert told(sweep(tmp_path / "s")) == told(whole)


def test_a_scoring_that_is_done_is_kept_when_it_is_asked_to_stop(whole, tmp_path):
    """Ctrl-C in the last block of the first run's scores."""
    blocks = []
    observer = Observer(
        count=lambda run: contextlib.nullcontext(lambda *done: blocks.append(done)),
        stop=lambda: bool(blocks) and blocks[-1][0] == blocks[-1][1],
    )
    with pytest.raises(Stopped):
        sweep(tmp_path / "s", observer=observer, num_samples=300)
    assert blocks == [(done, 6) for done in range(1, 7)]  # three of the pilot, three of K = 300
    assert read_record(tmp_path / "s" / "latent_dim-2-seed0" / "evaluation" / "test.json")


def test_a_scoring_stops_between_its_blocks(tmp_path):
    blocks = []
    observer = Observer(
        count=lambda run: contextlib.nullcontext(lambda *done: blocks.append(done)),
        stop=lambda: bool(blocks),
    )
    with pytest.raises(Stopped):
        sweep(tmp_path / "s", observer=observer, num_samples=300)
    assert blocks == [(1, 6)]


def test_a_scoring_of_one_block_is_not_begun_when_it_is_asked_to_stop(copy):
    with pytest.raises(Stopped):
        sweep(copy, observer=Observer(stop=lambda: True), num_samples=7)
    assert all(len(read_record(file)) == 1 for file in copy.glob("*/evaluation/test.json"))


def test_killed_and_continued_it_ends_the_same(whole, tmp_path):
    class Killed(BaseException):
        pass

    class Watch:
        def on_epoch(self, row):
            pass

        def on_step(self, trainer):
            nonlocal steps
            steps += 1
            if steps % 11 == 0:
                raise Killed

    class Watching(Watch):
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

    steps = 0
    while True:
        try:
            found = sweep(tmp_path / "s", observer=Observer(watch=lambda run, trainer: Watching()))
            break
        except Killed:
            assert steps < 500
    assert told(found) == told(whole)


def test_nothing_is_trained_or_scored_again(whole, copy, monkeypatch):
    before = stamps(copy)
    monkeypatch.setattr(run, "train_run", None)
    monkeypatch.setattr(run, "evaluate", None)
    monkeypatch.setattr(run, "active_units", None)
    found = sweep(copy)
    assert told(found) == told(whole)
    assert not any(result.is_new for result in found.results)
    assert [r.seconds for r in found.results] == [r.seconds for r in whole.results]
    assert stamps(copy) == before


def test_lists_and_seeds_grow(whole, copy, files, monkeypatch):
    trained = []
    train_run = run.train_run
    monkeypatch.setattr(
        run,
        "train_run",
        lambda path, *a, **k: trained.append(path.name) or train_run(path, *a, **k),
    )
    before = stamps(copy)
    priors = ["standard_normal", f"{files}/wide.py"]
    found = sweep(copy, {"latent_dim": [2], "prior": priors}, seeds=3)
    assert trained == ["wide-seed0", "wide-seed1", "standard_normal-seed2", "wide-seed2"]
    assert {path: stamp for path, stamp in stamps(copy).items() if path in before} == before
    kept = {r.run.seed: r.estimates for r in found.results if "wide" not in r.run.path.name}
    for result in whole.results:
        if result.run.configuration.config.latent_dim == 2:
            assert kept[result.run.seed] == result.estimates
    # Component files are executed, for the lists name them, while they are the same.
    assert not any(r.is_new for r in sweep(copy, {"latent_dim": [2], "prior": priors}).results)


def test_runs_are_recognized_by_what_they_are(whole, copy):
    (copy / "latent_dim-2-seed0").rename(copy / "moved")
    found = sweep(copy)
    assert not any(result.is_new for result in found.results)
    assert "moved" in {result.run.path.name for result in found.results}


def test_another_protocol_is_scored_beside_the_first(copy):
    found = sweep(copy, num_samples=7)
    assert all(r.scored and not r.trained for r in found.results)
    entries = read_record(found.results[0].run.path / "evaluation" / "test.json")
    assert [entry["protocol"]["num_samples"] for entry in entries] == [20, 7]


def test_a_score_of_weights_that_changed_is_out_of_date(whole, tmp_path):
    """Scored under the same protocol while training was half done."""
    steps = iter(range(9))
    with pytest.raises(Stopped):
        sweep(tmp_path / "s", observer=Observer(stop=lambda: next(steps) == 5))
    path = tmp_path / "s" / "latent_dim-2-seed0"
    early = read_record(whole.results[0].run.path / "evaluation" / "test.json")
    early[0]["weights_hash"] = weights_hash(path)
    early[0]["estimates"]["elbo"]["value"] = -1.0
    write_record(path / "evaluation" / "test.json", early)
    assert told(sweep(tmp_path / "s")) == told(whole)
    assert len(read_record(path / "evaluation" / "test.json")) == 1


def test_reading_what_is_there_does_not_shorten_the_files(whole, copy):
    """Stopped early the second time, ``sweep.json`` still holds all that is done."""
    shutil.rmtree(copy / "latent_dim-3-seed1")
    with pytest.raises(Stopped):
        sweep(copy, observer=Observer(stop=lambda: True))
    content = json.loads((copy / "sweep.json").read_text())
    assert len(content["runs"]) == 4
    assert told(sweep(copy)) == told(whole)


def test_folders_of_one_name_are_kept_apart(files, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "wide.py").write_text((files / "wide.py").read_text())
    lists = {"prior": [f"{files}/wide.py", f"{other}/wide.py", f"{files}/wide.py(scale=3)"]}
    (tmp_path / "s" / "wide-seed0").mkdir(parents=True)
    plan = plan_sweep(SETTINGS, lists, tmp_path / "s", **OPTIONS)
    names = [run.path.name for run in plan.runs]
    assert len({name.casefold() for name in names}) == 6
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._") for name in names)
    assert "wide-seed0" not in names
    long = {"encoder": [f"mlp(hidden=({', '.join(['8'] * n)},))" for n in (70, 71)]}
    plan = plan_sweep(SETTINGS, long, tmp_path / "t", **OPTIONS)
    names = [run.path.name for run in plan.runs]
    assert len(set(names)) == 4
    assert max(map(len, names)) < 110


def test_a_combination_given_twice_is_one(tmp_path):
    lists = {"prior": ["standard_normal", "standard-normal"], "beta": [1.0, 1]}
    assert len(plan_sweep(SETTINGS, lists, tmp_path / "s", **OPTIONS).runs) == 2


TWO_LAYERS = SETTINGS.replace(model="hierarchical(latent_dims=(4, 2))", guide="hierarchical")


@pytest.mark.parametrize(
    ("lists", "settings"),
    [
        ({"latent_dim": [2, 3]}, TWO_LAYERS),  # which the model's own sizes override
        ({"prior": ["{files}/wide.py", "{files}/../{folder}/wide.py"]}, SETTINGS),
        ({"prior": ["mixture(components=4)", "mixture(floor=0.001, components=4)"]}, SETTINGS),
        ({"prior": ["{files}/wide.py", "{files}/wide.py(scale=2)"]}, SETTINGS),
        ({"prior": ["{files}/wide.py(scale=3)", "{files}/wide.py(scale=3.0)"]}, SETTINGS),
        ({"decoder": ["mlp(hidden=(8,))", "mlp(hidden=(8,), activation=relu)"]}, SETTINGS),
    ],
    ids=["sizes overridden", "paths", "a number", "of a file", "whole", "a network"],
)
def test_one_configuration_under_two_names_is_refused(files, tmp_path, lists, settings):
    """The seeds of the two would be compared with themselves."""
    ((name, values),) = lists.items()
    values = [
        value.format(files=files, folder=files.name) if name == "prior" else value
        for value in values
    ]
    with pytest.raises(InputError, match=r"and .* are one configuration; leave one out") as caught:
        plan_sweep(settings, {name: values}, tmp_path / "s", **OPTIONS)
    assert all(f"{name}={value}" in str(caught.value) for value in values)


def test_the_same_decoder_by_name_and_by_default_is_refused(tmp_path):
    lists = {"decoder": [None, SETTINGS.encoder]}
    with pytest.raises(InputError, match="are one configuration"):
        plan_sweep(SETTINGS, lists, tmp_path / "s", **OPTIONS)


def test_a_combination_that_cannot_work_is_named(files, tmp_path):
    lists = {
        "guide": ["diagonal_normal", f"{files}/point.py"],
        "prior": ["standard_normal", "vamp"],
    }
    with pytest.raises(InputError, match=r"^prior=vamp, guide=.*point.py: ") as caught:
        plan_sweep(SETTINGS, lists, tmp_path / "s", **OPTIONS)
    assert "\n" not in str(caught.value)


def test_planning_tells_how_far_it_is(tmp_path):
    told = []
    plan_sweep(SETTINGS, LISTS, tmp_path / "s", **OPTIONS, on_check=lambda *n: told.append(n))
    assert told == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": SETTINGS.replace(epochs=3)}, "was trained with epochs=2, not 3; give the"),
        ({"settings": SETTINGS.replace(dtype="float64")}, "dtype='float32', not 'float64'"),
        (
            {"settings": SETTINGS.replace(optimizer="sgd")},
            r"optimizer='adam\(lr=0.001\)', not 'sgd'",
        ),
        (
            {"settings": SETTINGS.replace(data="digits(binarize=threshold)")},
            r"trained with data='digits\(values=binary, binarize=dynamic\)', not",
        ),
        ({"lists": {"prior": ["standart_normal"]}}, "unknown prior 'standart_normal'; did you"),
        ({"lists": {"likelihood": ["bernoulli", "normal"]}}, "cannot stand in one column"),
        ({"lists": {"latent_dim": [0]}}, "--latent-dim must be positive"),
        ({"seeds": 0}, "--seeds must be 1 or more"),
        ({"num_samples": 0}, "--num-samples must be 1 or more"),
        ({"chunk_size": 0}, "--chunk-size must be 1 or more, got 0"),
        ({"count": 301}, "takes 1 to 300, got 301"),
        ({"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
    ],
)
def test_refusals_come_before_any_training(copy, monkeypatch, change, message):
    monkeypatch.setattr(run, "train_run", None)
    before = sorted(copy.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        sweep(copy, **change)
    assert "\n" not in str(caught.value)
    assert sorted(copy.rglob("*")) == before


def test_folders_that_are_no_sweeps_are_refused(copy, tmp_path):
    with pytest.raises(InputError, match="is a run, and a sweep's folder holds runs"):
        sweep(copy / "latent_dim-2-seed0")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder"):
        sweep(tmp_path / "file")
    with pytest.raises(InputError, match="File name too long; give another --out"):
        sweep(tmp_path / ("x" * 300))


def forbid(*arguments):
    raise PermissionError(13, "Permission denied")


def test_a_folder_that_cannot_be_entered_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", forbid)
    with pytest.raises(InputError, match=r"cannot use '.*': Permission denied; give another --out"):
        sweep(tmp_path / "s")


RUN = "latent_dim-2-seed0"


def cut(name, size):
    def damage(out):
        (out / RUN / name).write_bytes((out / RUN / name).read_bytes()[:size])

    return damage


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda out: (out / RUN / "best.safetensors").unlink(), {},
         r"cannot read '.*best.safetensors': No such file.*; move the folder '.*seed0' away"),
        (cut("best.safetensors", 500), {"num_samples": 9},
         r"best.safetensors' is damaged.*; move the folder '.*seed0' away"),
        (cut("last.pt", 500), {}, r"last.pt' .*damaged.*; move the folder '.*seed0' away"),
        (cut("config.yaml", 30), {}, "lacks the line.*; move the folder away, or give another"),
        (cut("evaluation/test.json", 500), {}, "test.json' is damaged, .*; move it away and"),
    ],
    ids=["no weights", "weights", "checkpoint", "configuration", "scores"],
)  # fmt: skip
def test_a_damaged_run_is_one_line(copy, monkeypatch, damage, options, message):
    damage(copy)
    monkeypatch.setattr(run, "train_run", None)
    with pytest.raises(InputError, match=message) as caught:
        sweep(copy, **options)
    assert "\n" not in str(caught.value)


def test_a_damaged_run_moved_away_is_trained_anew(whole, copy, tmp_path):
    cut("last.pt", 500)(copy)
    (copy / RUN).rename(tmp_path / "away")
    assert told(sweep(copy))["runs"] == told(whole)["runs"]


def test_a_component_file_that_changed_is_refused(files, tmp_path):
    own = Path(shutil.copy(files / "wide.py", tmp_path / "wide.py"))
    sweep(tmp_path / "s", {"prior": [str(own)]}, seeds=1)
    own.write_text(own.read_text() + "\n# changed\n")
    with pytest.raises(
        InputError, match=r"is not the file that '.*wide-bernoulli-seed0' was trained with"
    ):
        sweep(tmp_path / "s", {"prior": [str(own)]}, seeds=1)


def test_counts_of_a_file_that_holds_only_0_and_1(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 2, (60, 6)))
    settings = SETTINGS.replace(data=str(tmp_path / "x.npy"), batch_size=20)
    found = sweep(tmp_path / "s", {"likelihood": ["poisson"]}, settings=settings, count=6)
    assert found.plan.measure == "counts"
    assert not found.failures


def test_each_likelihood_gets_its_values(files, tmp_path):
    lists = {"likelihood": [f"{files}/mass.py", "normal"]}
    plan = plan_sweep(SETTINGS, lists, tmp_path / "s", **OPTIONS)
    assert [c.config.data for c in plan.configurations] == [
        "digits(values=levels, binarize=none)",
        "digits(values=continuous, binarize=none)",
    ]
    assert plan.measure == "levels"
    # What the data's spec says stays.
    fixed = SETTINGS.replace(data="digits(values=levels)")
    with pytest.raises(InputError, match="likelihood normal needs continuous data"):
        plan_sweep(fixed, lists, tmp_path / "s", **OPTIONS)


def test_a_mass_and_its_flat_density_score_the_same(files, tmp_path):
    """Trained at a learning rate of 0 both keep the weights they start with; float64."""
    settings = SETTINGS.replace(
        guide=f"{files}/blind.py", optimizer="sgd(lr=0)", dtype="float64", epochs=1
    )
    lists = {"likelihood": [f"{files}/mass.py", f"{files}/flat.py"]}
    found = sweep(tmp_path / "s", lists, settings=settings, seeds=1)
    mass, flat = (result.estimates for result in found.results)
    assert mass["elbo"].value < -64 * math.log(16)  # of levels, not of a density near 0
    for name, estimate in mass.items():
        assert flat[name].value == pytest.approx(estimate.value, rel=1e-12), name
        assert flat[name].standard_error == pytest.approx(estimate.standard_error, rel=1e-6)
    marked = [found.is_lower_bound(c) for c in found.plan.configurations]
    assert marked == [False, True]
    text = shown(found)
    assert "†" in text
    assert "a mass on levels" in text


def test_a_sweep_of_densities_alone_stays_in_densities(tmp_path):
    lists = {"likelihood": ["normal(scale=0.2)", "normal(scale=0.4)"]}
    found = sweep(tmp_path / "s", lists, seeds=1)
    first = found.results[0]
    record = read_record(first.run.path / "evaluation" / "test.json")[0]["estimates"]
    assert first.estimates["elbo"].value == record["elbo"]["value"]
    assert "a density on dequantized values" in shown(found)


def shown(found, width=200):
    console = Console(file=io.StringIO(), width=width, markup=False)
    for table in sweep_tables(found, width):
        console.print(table, width=max(width, table.width or 0), crop=False)
    for line in sweep_verdict(found):
        console.print(line, soft_wrap=True)
    return console.file.getvalue()


def test_a_training_that_diverges_is_a_failed_run(tmp_path):
    """β = 10³⁸ takes the loss beyond float32 in the first step of every seed; the rest goes on."""
    lines = []
    observer = Observer(on_result=lambda found, result: lines.append(sweep_line(found, result)))
    found = sweep(tmp_path / "s", {"beta": [1e38, 1.0]}, observer)
    assert [result.failure is None for result in found.results] == [False, True, False, True]
    assert lines[0].startswith("[1/4] beta=1e+38, seed 0: diverged: step 1 (epoch 1): the loss")
    assert lines[1].startswith("[2/4] beta=1.0, seed 0: trained 0 s, ELBO -")
    text = shown(found)
    assert "2 of 4 runs failed, for the reasons above and in sweep.json" in text
    assert "diverged" not in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s" / "sweep.csv").read_text())))
    assert rows[0]["elbo"] == ""
    assert rows[0]["failure"].startswith("diverged")
    again = sweep(tmp_path / "s", {"beta": [1e38, 1.0]})
    assert told(again)["runs"] == told(found)["runs"]


def test_a_point_has_a_reconstruction_alone(files, tmp_path):
    lines = []
    observer = Observer(on_result=lambda found, result: lines.append(sweep_line(found, result)))
    lists = {"guide": [f"{files}/point.py", "diagonal_normal"]}
    found = sweep(tmp_path / "s", lists, observer)
    point = found.configurations[-1]
    assert set(point.summaries) == {"reconstruction"}
    assert point.scores == []
    assert found.pairs == []
    assert "log p(x|z(x)) -" in lines[0]
    assert "±" not in lines[0]
    text = shown(found)
    assert "has no bound on log p(x), so no place in a verdict" in text
    assert text.count("–") > 5
    assert not any(result.is_new for result in sweep(tmp_path / "s", lists).results)


def test_means_over_seeds_and_their_errors():
    estimates = [
        Estimate(-90.0, 0.3, 0.5, 100),
        Estimate(-91.0, 0.4, 0.7, 100, understated=True),
        Estimate(-95.0, 1.2, 0.6, 100),
    ]
    summary = results.summarize(estimates)
    assert summary.value == -92.0
    assert summary.standard_error == pytest.approx(1.3 / 3)  # √(0.09 + 0.16 + 1.44)/3
    assert summary.data_standard_error == pytest.approx(0.6)  # the data are the same
    assert summary.seed_standard_error == pytest.approx(math.sqrt(7) / math.sqrt(3))
    assert summary.understated
    one = results.summarize([Estimate(-90.0, None, None, 1)])
    assert one == (-90.0, None, None, None, False)


def planted(plan, scores, **extra):
    """Results of these IWAE-K, a list a configuration; None is a seed that failed."""
    rows = []
    for configuration, values in zip(plan.configurations, scores, strict=True):
        runs = [run for run in plan.runs if run.configuration is configuration]
        for each, value in zip(runs, values, strict=False):
            if value is None:
                rows.append(results.Result(each, True, False, 1.0, failure="diverged: step 1"))
                continue
            estimates = {
                name: Estimate(value, 0.01, 0.3, 300, **extra)
                for name in ("elbo", "kl", "log_likelihood", "bits_per_dim")
            }
            rows.append(results.Result(each, True, True, 1.0, estimates))
    return results.Results(plan, rows)


@pytest.fixture(scope="module")
def plan(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "s"
    return plan_sweep(SETTINGS, {"latent_dim": [2, 3, 4]}, out, **{**OPTIONS, "seeds": 5})


def test_the_verdict_takes_five_seeds_and_an_interval_without_zero(plan):
    a, b, c = [-90.0, -90.1, -89.9, -90.2, -90.05], [-95.0, -95.1, -94.9, -95.3, -95.2], [-90.1] * 4
    text = shown(planted(plan, [b, a, c]))
    assert "highest mean IWAE-20: latent_dim=3" in text
    assert "log p(x):" not in text
    assert "vs latent_dim=2: better by 5.05" in text
    assert "vs latent_dim=4: unresolved (5 and 4 seeds; 5 a side needed); +0.050 nats\n" in text
    assert "jointly for 3 pairs)" in text
    close = [value - 0.05 for value in a]
    found = planted(plan, [a, b, close])
    text = shown(found)
    assert "vs latent_dim=4: unresolved (the interval covers 0); +0.05" in text
    assert "jointly for 3 pairs)" in text
    pairs = {(p["first"], p["second"]): p["better"] for p in found.to_json()["pairs"]}
    assert pairs == {
        ("latent_dim=2", "latent_dim=4"): None,
        ("latent_dim=2", "latent_dim=3"): "latent_dim=2",
        ("latent_dim=4", "latent_dim=3"): "latent_dim=4",
    }


A, B = [-90.0, -90.1, -89.9, -90.2, -90.05], [-95.0, -95.1, -94.9, -95.3, -95.2]


def test_all_pairs_share_the_error_in_the_sweep_itself(plan):
    found = planted(plan, [A, B, [value - 1 for value in A]])
    for pair in found.pairs:
        assert pair.verdict.interval == welch_interval(
            pair.first.scores, pair.second.scores, 0.95, 3
        )
    interval = welch_interval(A, B, 0.95, 3)
    assert f"[+{interval.low:.3f}, +{interval.high:.3f}]" in shown(found)
    (one,) = planted(plan, [A, B, []]).pairs
    assert one.verdict.interval == welch_interval(A, B, 0.95, 1)


def test_the_seeds_that_did_not_fail_decide_nothing(files, tmp_path_factory):
    """Six of eight seeds are enough in number; that two diverged is no accident."""
    out = tmp_path_factory.mktemp("failed") / "s"
    plan = plan_sweep(SETTINGS, LISTS, out, **{**OPTIONS, "seeds": 8})
    found = planted(plan, [[None, *A, None, -90.0], [*B, -95.0, -95.1, -95.2]])
    reason = "2 of 8 seeds of latent_dim=2 failed: the rest are a selection"
    text = shown(found)
    assert re.search(r"^ 2 +6/8 ", text, re.MULTILINE), text
    assert "highest mean IWAE-20: latent_dim=2 (6 of 8 seeds)" in text
    difference = fmean([*A, -90.0]) - fmean([*B, -95.0, -95.1, -95.2])
    assert f"vs latent_dim=3: unresolved ({reason}); {difference:+.3f} nats\n" in text
    assert "interval" not in text
    (pair,) = found.to_json()["pairs"]
    assert (pair["better"], pair["unresolved"]) == (None, reason)
    assert [each.has_enough for each in found.configurations] == [False, True]
    assert found.configurations[0].to_json()["failures"] == 2
    worse = planted(plan, [[*A, -90.0, -90.1, -90.2], [None, *B, -95.0, -95.1]])
    assert "unresolved (1 of 8 seeds of latent_dim=3 failed" in shown(worse)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_verdict_names_its_data(plan, split):
    words = {
        "train": "on these training data, which training saw, and with",
        "valid": "on these validation data, which chose the epoch, and with",
        "test": "on these test data and with",
    }
    text = shown(planted(dataclasses.replace(plan, split=split), [A, B, []]))
    assert f"for a number of seeds chosen beforehand, {words[split]} this training budget" in text


LOOSE = "better by 5.05 nats, interval [+4.86, +5.24]; of its IWAE bound, which is loose here: its"


@pytest.mark.parametrize(("understated", "loose"), [([], False), ([2], False), ([3], True)])
def test_a_loose_bound_of_the_loser_is_named(plan, understated, loose):
    found = planted(plan, [A, B, []])
    for i, result in enumerate(found.results):
        if result.run.configuration.config.latent_dim in understated:
            changed = dataclasses.replace(result.estimates["log_likelihood"], understated=True)
            estimates = {**result.estimates, "log_likelihood": changed}
            found.results[i] = dataclasses.replace(result, estimates=estimates)
    text = shown(found)
    assert ("of its IWAE bound, which is loose here" in text) == loose
    assert ("(take a larger -K)" in text) == loose
    assert ("≥ few draws carry some estimates of IWAE-20" in text) == bool(understated)


def test_one_draw_has_no_error_over_draws_and_a_loose_bound(whole, copy):
    lines = []
    observer = Observer(on_result=lambda found, result: lines.append(sweep_line(found, result)))
    found = sweep(copy, num_samples=1, observer=observer)
    assert all(result.estimates["log_likelihood"].understated for result in found.results)
    assert re.fullmatch(r".*: found, scored, ELBO -\d+\.\d+, IWAE-1 -\d+\.\d+", lines[0])
    text = shown(found)
    assert "IWAE-1 is the ELBO; one draw a datum does not tell its error over draws" in text
    assert "≥" not in text
    plan = plan_sweep(SETTINGS, LISTS, copy, **{**OPTIONS, "seeds": 5, "num_samples": 1})
    assert "of its IWAE bound, which is loose here" in shown(planted(plan, [A, B]))


def test_an_exact_log_evidence_is_the_score(tmp_path):
    settings = SETTINGS.replace(likelihood="normal(scale=0.5)", optimizer="sgd(lr=1e-4)")
    lists = {"model": ["vae", "linear_gaussian"]}
    lines = []
    observer = Observer(on_result=lambda found, result: lines.append(sweep_line(found, result)))
    found = sweep(tmp_path / "s", lists, observer, settings, num_samples=2)
    exact = next(each for each in found.configurations if each.is_exact)
    assert exact.configuration.config.model == "linear_gaussian"
    for result, score in zip(exact.results, exact.scores, strict=True):
        loaded = load_run(result.run.path)
        x = loaded.data.test.subset(40).scored()
        expected = float(loaded.model.log_evidence(x).mean())
        assert score == result.score.value == pytest.approx(expected)
        assert score != result.estimates["log_likelihood"].value
        bits = -score / (64 * math.log(2)) + math.log2(17)  # of dequantized values
        assert result.estimates["bits_per_dim"].value == pytest.approx(bits)
    text = shown(found)
    mean = sum(exact.scores) / 2
    assert re.search(rf"linear_gaussian +2 +-\d+\.\d+ +exact {mean:.2f} +– ", text), text
    assert "highest mean IWAE-2 or exact log p(x): model=" in text
    assert "exact: log p(x) itself, in closed form, in place of IWAE-2" in text
    assert any("exact log p(x) -" in line for line in lines)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s" / "sweep.csv").read_text())))
    told_exact = {float(r["log_evidence"]) for r in rows if r["model"] == "linear_gaussian"}
    assert told_exact == set(exact.scores)
    content = json.loads((tmp_path / "s" / "sweep.json").read_text())
    means = {c["label"]: c["scores"].get("log_evidence") for c in content["configurations"]}
    assert means["model=linear_gaussian"]["value"] == pytest.approx(mean)
    assert means["model=vae"] is None
    assert shown(results.Results(found.plan, exact.results)).startswith("highest") is False
    assert results.Results(found.plan, exact.results).score_name == "exact log p(x)"


def test_an_exact_score_is_in_the_sweeps_measure(files, tmp_path):
    """Densities of dequantized values beside masses on levels: brought there by the Jacobian."""
    settings = SETTINGS.replace(data="digits(values=continuous)", model="linear_gaussian")
    plan = plan_sweep(settings, {"likelihood": ["normal(scale=0.5)"]}, tmp_path / "s", **OPTIONS)
    alone = run_sweep(plan)
    plan = plan_sweep(settings, {"likelihood": ["normal(scale=0.5)"]}, tmp_path / "s", **OPTIONS)
    mixed = run_sweep(dataclasses.replace(plan, measure="levels"))
    for one, other in zip(alone.results, mixed.results, strict=True):
        assert other.score.value == pytest.approx(one.score.value - 64 * math.log(17))


def test_active_units_of_two_layers_are_those_next_to_the_data(tmp_path):
    lists = {"latent_dim": [2, 3]}
    settings = SETTINGS.replace(model="hierarchical", guide="hierarchical")
    found = sweep(tmp_path / "s", lists, settings=settings, seeds=1)
    assert [len(result.units.activity) for result in found.results] == [4, 6]
    assert "active units: of z1, the layer next to the data" in shown(found)


def test_runs_outside_of_the_lists_are_counted(copy):
    found = sweep(copy, {"latent_dim": [2]}, seeds=1)
    assert found.plan.others == 3
    assert len(json.loads((copy / "sweep.json").read_text())["runs"]) == 1
    assert "3 other runs in the folder are not part of these lists" in shown(found)
    found = sweep(copy, {"latent_dim": [2, 3]})
    assert found.plan.others == 0
    assert "not part of these lists" not in shown(found)


def test_a_verdict_against_a_lower_bound_says_so(files, tmp_path):
    lists = {"likelihood": [f"{files}/mass.py", "normal"]}
    plan = plan_sweep(SETTINGS, lists, tmp_path / "s", **{**OPTIONS, "seeds": 5})
    high, low = [-90.0, -90.1, -89.9, -90.2, -90.05], [-95.0, -95.1, -94.9, -95.3, -95.2]
    assert "of its lower bound: its log P(level) may be higher" in shown(planted(plan, [high, low]))
    assert "may be higher" not in shown(planted(plan, [low, high]))


@pytest.mark.parametrize("width", [40, 80, 120, 250])
def test_tables_lose_no_digit(plan, width):
    found = planted(plan, [[-1090.0, -1090.1, -1089.9, -1090.2, -1090.05]] * 3)
    assert len(sweep_tables(found, width)) == (1 if width == 250 else 2)
    text = shown(found, width)
    assert "…" not in text
    assert " latent_dim " in text
    numbers = ("-1090.0500", "0.0045", "0.3000", "0.0500")
    for number in (*numbers, f"{plan.configurations[1].num_parameters:,}"):
        assert number in text, text


def test_many_configurations_with_long_names_get_numbers(tmp_path):
    priors = [f"mixture(components={k}, floor=0.00{k})" for k in range(2, 5)]
    guides = [f"iaf(layers={k}, hidden=({k}, {k}, {k}, {k}))" for k in (1, 2, 3)]
    plan = plan_sweep(SETTINGS, {"prior": priors, "guide": guides}, tmp_path / "s", **OPTIONS)
    found = planted(plan, [[-90.0 - i, -90.1 - i] for i in range(9)])
    lines = shown(found, 100).splitlines()
    for i, label in enumerate(each.label for each in found.configurations):
        assert sum(line.split()[:1] == [f"{i + 1}"] and label in line for line in lines) == 1
        assert sum(line.split()[:1] == [f"#{i + 1}"] for line in lines) in (1, 2)
    tables = "\n".join(lines).partition("highest mean")[0]
    assert max(map(len, tables.splitlines())) <= 100


def test_the_scored_data_are_those_of_the_protocol(whole):
    subset = load_data("digits").test.subset(40)
    entry = read_record(whole.results[0].run.path / "evaluation" / "test.json")[0]
    assert entry["protocol"]["content_hash"] == subset.content_hash
    state = load_state(whole.results[0].run.path / "last.pt")
    assert state["trainer"]["progress"]["step"] == STEPS
