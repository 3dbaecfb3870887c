"""``pyro-vae diagnose`` as a user meets it: what it prints, writes and refuses."""

import importlib
import shutil
from pathlib import Path

import matplotlib.image
import pyro
import pytest
import torch

from pyro_vae import diagnose_command, diagnosis_gallery, load_run
from pyro_vae.diagnose_command import chosen_parts
from pyro_vae.diagnosis.diagnose import PARTS, data_of
from pyro_vae.diagnosis.record import read_diagnosis
from pyro_vae.diagnosis.rows import Reliability
from pyro_vae.diagnosis_tables import TITLES_OF_PARTS
from pyro_vae.errors import InputError
from pyro_vae.evaluation.simulation import simulate
from pyro_vae.seeding import derive_seed
from tests.command import invoke, refuse, succeed

TRAIN = [
    "train", "--encoder", "mlp(hidden=(16,))", "--latent-dim", "2", "--epochs", "2",
    "--device", "cpu", "--no-tensorboard",
]  # fmt: skip
FEW = ["--count", 100, "--gap-count", 4, "--num-samples", 40, "--device", "cpu"]
PROGRAM = """
import pyro
import pyro.distributions as dist
import torch


def model(x):
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(2, 64))
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        logits = (z @ weight).reshape(*z.shape[:-1], 8, 8)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)


def guide(x):
    weight = pyro.param("guide_weight", lambda: 0.1 * torch.randn(64, 2))
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
    """A run of probabilistic PCA, one of a delta guide, and a user's file."""
    folder = tmp_path_factory.mktemp("diagnose")
    pyro.clear_param_store()
    exact = ["--model", "linear_gaussian", "--likelihood", "normal(scale=learned)"]
    succeed(*TRAIN, *exact, "--data", "digits(values=continuous)", "--out", "run", cwd=folder)
    succeed(*TRAIN, "--guide", "delta", "--out", "point", cwd=folder)
    (folder / "mine.py").write_text(PROGRAM)
    return folder


@pytest.fixture
def run(place, tmp_path) -> Path:
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


def test_a_run_is_diagnosed_printed_recorded_and_drawn(run, tmp_path):
    """Of probabilistic PCA, where log p(x) and KL(q(z|x) ‖ p(z|x)) are exact."""
    before = files(run)
    out = succeed("diagnose", run, *FEW, cwd=tmp_path)
    diagnosis = read_diagnosis(run / "diagnosis.json")
    assert diagnosis.notes == [
        "bounds: not needed, log p(x) is known in closed form; --only bounds does them anyway"
    ]
    assert diagnosis.notes[0] in out.splitlines()
    loaded = load_run(run)
    for gap, split in zip(diagnosis.gaps, (loaded.data.train, loaded.data.test), strict=True):
        x = split.subset(4).scored()
        with torch.no_grad():
            exact = loaded.model.log_evidence(x).double()
            q, p = loaded.guide.posterior(x), loaded.model.posterior(x)
            scale = q.base_dist.scale if hasattr(q, "base_dist") else q.stddev
            diagonal = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(scale**2))
            kl = torch.distributions.kl_divergence(
                diagonal, torch.distributions.MultivariateNormal(p.mean, p.covariance_matrix)
            ).double()
        assert gap.method == "exact"
        assert gap.log_px.value == pytest.approx(float(exact.mean()), abs=1e-3)
        assert abs(gap.total.value - float(kl.mean())) < 4 * gap.total.standard_error + 1e-3
        assert gap.approximation.value + gap.amortization.value == pytest.approx(gap.total.value)
    assert len(diagnosis.reliability.pareto_k) == 100
    assert diagnosis.latents.rate.count <= 100
    assert diagnosis.calibration.num_data == 100
    assert {check.against for check in diagnosis.checks} == {
        "prior predictive", "posterior predictive"
    }  # fmt: skip
    assert diagnosis.space.probes
    lines = out.splitlines()
    assert lines[0] == f"{run}, train and test of digits(values=continuous, binarize=none)"
    for words in (
        "Where the ELBO loses log p(x)", "amortization gap", "have k̂ above", "rate, E KL",
        "Is q calibrated", "Does the model fit", "complete and continuous", "classification",
    ):  # fmt: skip
        assert words in out, words
    written = files(run) - before
    assert {"diagnosis.json", "figures/gap.png", "figures/aggregated_posterior.png"} <= written
    assert written <= {
        "diagnosis.json", "figures/gap.png", "figures/kl_per_dim.png", "figures/reliability.png",
        "figures/predictive_checks.png", "figures/aggregated_posterior.png",
    }  # fmt: skip
    for name in written - {"diagnosis.json"}:
        assert_picture(run / name)
        assert name in lines[-1]


def test_bounds_are_done_where_asked_for_and_where_ais_is_needed(run, place, tmp_path):
    """Of probabilistic PCA they enclose the exact mean of the same data, seed 0."""
    few = [*FEW, "--num-chains", 4, "--num-temperatures", 5]
    out = succeed("diagnose", run, *few, "--only", "bounds", cwd=tmp_path)
    bounds = read_diagnosis(run / "diagnosis.json").bounds
    assert (bounds.num_chains, bounds.num_temperatures, bounds.gap.count) == (4, 5, 20)
    assert "Bounds on log p(x) of simulated data" in out
    assert "4 chains each way × 5 temperatures" in out
    model = load_run(run).model
    x = simulate(model, torch.zeros(20, 8, 8), derive_seed(0, "bidirectional")).x
    with torch.no_grad():
        exact = model.log_evidence(x).double().mean()
    assert bounds.lower.value < float(exact) < bounds.upper.value
    skipping = ",".join(part for part in PARTS if part != "bounds")
    out = succeed("diagnose", run, *few, "--skip", skipping, cwd=tmp_path)
    assert read_diagnosis(run / "diagnosis.json").bounds is None
    assert "bounds: not needed" in out


def test_parts_alone_remove_the_figures_of_the_others(run, tmp_path):
    succeed("diagnose", run, *FEW, "--only", "latents,checks", cwd=tmp_path)
    assert "figures/predictive_checks.png" in files(run)
    out = succeed("diagnose", run, *FEW, "--only", "latents", "--seed", 3, cwd=tmp_path)
    assert "figures/predictive_checks.png" not in files(run)
    assert "Does the model fit" not in out
    protocol = read_diagnosis(run / "diagnosis.json").protocol
    assert (protocol["parts"], protocol["seed"]) == (["latents"], 3)
    assert protocol["weights"] == "best"
    assert len(protocol["weights_hash"]) == len(protocol["splits"]["test"]["content_hash"]) == 64


def test_the_same_command_gives_the_same_numbers_elsewhere(run, tmp_path):
    found = []
    for seed in (0, 0, 1):
        command = ["diagnose", run, *FEW, "--only", "reliability,latents", "--seed", seed]
        succeed(*command, "--out", "o", "--weights", "last", cwd=tmp_path)
        found.append(read_diagnosis(tmp_path / "o" / "diagnosis.json"))
    assert found[0] == found[1]
    assert found[0].latents.distortion.value != found[2].latents.distortion.value
    assert found[0].protocol["weights"] == "last"
    assert not (run / "diagnosis.json").exists()


def test_a_point_gets_what_applies_and_the_reason_for_the_rest(place, tmp_path):
    out = succeed("diagnose", place / "point", *FEW, "--out", tmp_path / "o", cwd=tmp_path)
    diagnosis = read_diagnosis(tmp_path / "o" / "diagnosis.json")
    for part in ("gap", "reliability", "latents", "calibration"):
        (note,) = [note for note in diagnosis.notes if note.startswith(f"{part}: ")]
        assert "a point" in note
        assert note in out.splitlines()
    assert diagnosis.reconstruction is not None
    assert "log p(x|z(x)), a reconstruction and no bound" in out
    assert diagnosis.space.probes
    assert any(check.against == "prior predictive" for check in diagnosis.checks)
    assert not (tmp_path / "o" / "figures" / "gap.png").exists()


def test_a_program_of_ones_own(place, tmp_path):
    shutil.copy(place / "mine.py", tmp_path)
    command = ["diagnose", "--program", "mine.py", "--data", "digits(values=binary)", *FEW]
    out = succeed(*command, cwd=tmp_path)
    assert not dict(pyro.get_param_store())
    folder = tmp_path / "runs" / "diagnose-1"
    diagnosis = read_diagnosis(folder / "diagnosis.json")
    assert "mine.py, train and test of digits(values=binary, binarize=dynamic)" in out
    assert [gap.method for gap in diagnosis.gaps] == ["quadrature", "quadrature"]
    assert all(gap.approximation is None for gap in diagnosis.gaps)
    assert diagnosis.latents is not None
    assert diagnosis.calibration is not None
    assert diagnosis.reliability is not None
    assert diagnosis.protocol["program"] == "mine.py"
    assert {"diagnosis.json", "figures/gap.png"} <= files(folder)


def test_an_interruption_keeps_what_is_done(run, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    module = importlib.import_module("pyro_vae.diagnosis.diagnose")  # not the function
    monkeypatch.setattr(module, "predictive_checks", interrupt)
    command = ["diagnose", run, *FEW, "--only", "latents,checks,space"]
    result = invoke(*command, cwd=tmp_path)
    assert result.status == 130
    assert "Traceback" not in result.err
    record = run / "diagnosis.json"
    assert result.out.splitlines()[-1] == f"stopped at checks; latents: in {record}"
    diagnosis = read_diagnosis(record)
    assert diagnosis.latents is not None
    assert diagnosis.notes == ["checks: not reached", "space: not reached"]
    record.unlink()
    assert invoke("diagnose", run, *FEW, "--only", "checks", cwd=tmp_path).status == 130
    assert not record.exists()


def test_an_interruption_leaves_no_figure_of_an_earlier_diagnosis(run, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    succeed("diagnose", run, *FEW, "--only", "latents,checks", cwd=tmp_path)
    before = files(run)
    assert "figures/predictive_checks.png" in before
    module = importlib.import_module("pyro_vae.diagnosis.diagnose")
    monkeypatch.setattr(module, "predictive_checks", interrupt)
    result = invoke("diagnose", run, *FEW, "--only", "checks", cwd=tmp_path)
    assert result.out.splitlines()[-1] == "stopped at checks; nothing is written"
    assert files(run) == before  # record and figures of the earlier one, whole
    assert invoke("diagnose", run, *FEW, "--only", "latents,checks", cwd=tmp_path).status == 130
    assert before - files(run) == {"figures/predictive_checks.png"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give a run folder, or --program FILE.py with its --data"),
        (["--program", "mine.py"], "with its --data"),
        (["run", "--program", "mine.py"], "go without a run folder"),
        (["run", "--data", "digits"], "go without a run folder"),
        (["no-such-run"], "no such run: 'no-such-run'"),
        (["run", "--only", "gaps"], "no part 'gaps'; did you mean 'gap'?"),
        (["run", "--skip", "latent"], "did you mean 'latents'?"),
        (["run", "--only", "gap", "--skip", "gap"], "no part is left"),
        (["run", "--only", ""], "no part is left"),
        (["run", "--count", "1"], "--count"),
        (["run", "--seed", 2**63], "--seed"),
        (["run", "--out", "mine.py"], "cannot write to 'mine.py': 'mine.py' is no folder"),
        (["run", "--out", "mine.py/o"], "cannot write to 'mine.py/o': 'mine.py' is no folder"),
        (["run", "--num-chains", "1"], "--num-chains"),
        (["run", "--weights", "first"], "weights must be best or last"),
        (["run", "--data-root", "nowhere", "--device", "tpu"], "device"),
        (["--program", "none.py", "--data", "digits"], "no such file: 'none.py'"),
        (["--program", "mine.py", "--data", "digts"], "did you mean 'digits'?"),
        (["--program", "mine.py", "--data", "digits", "--weights", "last"], "--weights"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_written(place, tmp_path, arguments, reason):
    folder = tmp_path / "place"
    shutil.copytree(place, folder)
    before = files(folder)
    assert reason in refuse("diagnose", *arguments, cwd=folder)
    assert files(folder) == before


def test_a_figure_that_cannot_be_written_is_one_line(run, tmp_path):
    shutil.rmtree(run / "figures")
    (run / "figures").write_text("a file in the way")
    result = invoke("diagnose", run, *FEW, "--only", "latents", cwd=tmp_path)
    assert result.status == 2
    assert "cannot write the figure" in result.err


@pytest.mark.parametrize("command", ["sample", "reconstruct", "evaluate", "diagnose"])
def test_a_seed_that_is_none_is_one_line(place, command):
    for seed in (2**63, -1):
        assert "--seed" in refuse(command, "run", "--device", "cpu", "--seed", seed, cwd=place)


def test_the_worst_data_stand_whole_in_their_figure(place):
    run = load_run(place / "run")
    x = data_of(run.data.test, 20, run.device, torch.float32)
    pair = diagnosis_gallery.Diagnosed(run.model, run.guide, x, run.facts)
    k, flagged, values = [1.0] * 20, list(range(20)), [-1.0] * 20
    reliability = Reliability(40, 40, 0.7, k, flagged, values)
    figure = diagnosis_gallery._reliability(reliability, pair)
    images = figure.axes[1:]
    assert len(images) == diagnosis_gallery.NUM_WORST
    for axes in images:
        box = axes.get_position()
        assert min(box.x0, box.y0) >= 0
        assert max(box.x1, box.y1) <= 1


def test_parts_chosen():
    assert chosen_parts(None, None) == PARTS
    assert chosen_parts("space, gap", None) == ("gap", "space")
    assert chosen_parts(None, "gap,calibration") == (
        "bounds", "reliability", "latents", "checks", "space"
    )  # fmt: skip
    with pytest.raises(InputError, match="no part is left"):
        chosen_parts("gap", "gap")


def test_every_part_has_a_title_and_its_figures_names():
    assert set(TITLES_OF_PARTS) == set(diagnose_command._FIGURES) == set(PARTS)
