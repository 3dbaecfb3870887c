"""The page of one run and of several: what it holds, what it leaves out, what it refuses."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from pyro_vae import load_run
from pyro_vae.compare_command import Options as Comparing
from pyro_vae.compare_command import compare_subject
from pyro_vae.comparison.record import read_comparison
from pyro_vae.comparison.subject import run_subject
from pyro_vae.comparison_tables import check_tables, value_tables
from pyro_vae.defaults import Settings
from pyro_vae.diagnose_command import diagnose_subject
from pyro_vae.diagnose_command import run_subject as diagnosed
from pyro_vae.diagnosis.record import read_diagnosis
from pyro_vae.diagnosis_tables import part_report
from pyro_vae.errors import InputError
from pyro_vae.evaluate_command import Options, evaluate_run
from pyro_vae.evaluation import log_likelihood
from pyro_vae.evaluation.paired import paired_difference
from pyro_vae.evaluation.record import read_record, write_record
from pyro_vae.evaluation.scores import Estimate, PerDatum
from pyro_vae.evaluation_tables import POINT_NOTE, cells
from pyro_vae.report import page, report_html, write_report
from pyro_vae.report.content import Topic
from tests.command import refuse, succeed

DATA = "digits(values=binary)"


class Page(HTMLParser):
    """Every id, link, source and heading of a page, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.ids, self.links, self.sources, self.tags, self.alts = [], [], [], [], []
        self.text, self.inside = "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.links.append(value)
            if name == "alt":
                self.alts.append(value)
            if name == "src":
                self.sources.append(value)
            assert not name.startswith("on"), (tag, name)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.text += f" {data}"

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def scored(small_run, tmp_path_factory):
    """Two runs of other priors, scored with K = 50 on the same 40 data."""
    folder = tmp_path_factory.mktemp("scored")
    runs = []
    for name, changes in (("plain", {}), ("mixed", {"prior": "mixture(components=3)"})):
        shutil.copytree(small_run(data=DATA, **changes).path, folder / name)
        run = load_run(folder / name)
        evaluate_run(Console(quiet=True), run, Options(num_samples=50, count=40))
        runs.append(load_run(folder / name))
    return runs


@pytest.fixture
def plain(monkeypatch):
    """Pages without pictures, which take seconds."""
    monkeypatch.setattr(page, "picture_topics", lambda *arguments: [])
    monkeypatch.setattr(page, "explorer_topic", lambda *arguments: Topic("explore", "Explore"))


def copied(run, place: Path):
    shutil.copytree(run.path, place)
    return load_run(place)


def test_it_is_whole_and_needs_nothing_else(scored):
    html = report_html(scored)
    found = Page(html)
    assert len(set(found.ids)) == len(found.ids)
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert found.tags.count("h2") == 12
    assert "link" not in found.tags
    assert "default-src 'none'" in html
    outside = set(re.findall(r"https?://[^\s\"'<)]+", html))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_the_same_runs_give_the_same_bytes_and_folders_are_left_alone(scored, tmp_path):
    before = sorted(scored[0].path.rglob("*"))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one = write_report(scored[:1], tmp_path / "new" / "a.html")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    other = write_report([load_run(scored[0].path)], tmp_path / "b.html")
    assert one.read_bytes() == other.read_bytes()
    assert sorted(scored[0].path.rglob("*")) == before


def test_scores_are_those_of_the_record_with_their_errors(scored, plain):
    words = Page(report_html(scored[:1])).words
    (entry,) = read_record(scored[0].path / "evaluation" / "test.json")
    for fields in entry["estimates"].values():
        shown = [text for text in cells(Estimate(**fields)) if text != "–"]
        assert " ".join(shown) in words.replace(" – ", " "), fields
    for told in ("± draws", "± data", "bias", "K = 50", "40 data", "IWAE-50", "k̂, from"):
        assert told in words
    assert "E log p̂" not in words
    assert "Importance-weighted bound on log p(x), mean of 40 data" in words  # the curve


def test_what_is_missing_is_named_with_its_command(small_run, plain):
    run = small_run()
    words = Page(report_html([run])).words
    for command in ("evaluate", "compare", "diagnose"):
        assert f"pyro-vae {command} {run.path}" in words


def test_scores_of_other_weights_are_left_out(scored, tmp_path, plain):
    run = copied(scored[0], tmp_path / "run")
    record = run.path / "evaluation" / "test.json"
    (entry,) = read_record(record)
    write_record(record, [entry | {"weights_hash": "0" * 64}])
    assert "the scores in the folder are of other weights" in Page(report_html([run])).words


def test_the_difference_is_of_test_data_and_of_most_of_them(scored, tmp_path, plain):
    """Not of what was scored last, nor of the data it was trained on."""
    runs = [copied(run, tmp_path / run.path.name) for run in scored]
    before = Page(report_html(runs)).words
    for run in runs:
        for options in (
            Options(num_samples=20, count=10), Options("valid", num_samples=60, count=50),
            Options("train", num_samples=60, count=50), Options(num_samples=10, count=40),
        ):  # fmt: skip
            evaluate_run(Console(quiet=True), run, options)
    after = Page(report_html([load_run(run.path) for run in runs])).words
    start = "A: plain, B: mixed"
    assert before[before.index(start) :] == after[after.index(start) :]


def test_scores_of_other_data_are_said_to_be_and_not_subtracted(small_run, tmp_path, plain):
    """The file that both were trained on is another now."""
    x = small_run().data.train.scored(slice(0, 60)).numpy().astype(np.uint8)
    np.save(tmp_path / "mine.npy", x)
    run = small_run(data=f"{tmp_path / 'mine.npy'}(values=binary)", epochs=1)
    runs = [copied(run, tmp_path / name) for name in ("a", "b")]
    for each in runs:
        evaluate_run(Console(quiet=True), each, Options(num_samples=20))
    assert "A and B agree on every datum" in Page(report_html(runs)).words
    np.save(tmp_path / "mine.npy", 1 - x)
    words = Page(report_html([load_run(each.path) for each in runs])).words
    assert words.count("scores of other data than the run's data set now holds") == 2
    assert "agree" not in words


def test_numbers_of_another_run_are_not_taken_for_ones_own(scored, tmp_path, plain):
    runs = [copied(run, tmp_path / run.path.name) for run in scored]
    (source,) = (runs[0].path / "evaluation").glob("*.safetensors")
    (target,) = (runs[1].path / "evaluation").glob("*.safetensors")
    shutil.copy(source, target)
    with pytest.raises(InputError, match="of another evaluation"):
        report_html(runs)


def test_findings_are_those_of_the_records_and_of_these_weights(scored, tmp_path, plain):
    """Every cell of every table, in its order; of other weights, the command alone."""
    run = copied(scored[0], tmp_path / "run")
    compared = run_subject(run.path, count=8)
    compare_subject(
        Console(quiet=True), compared, run.path, Comparing(None, (1,), 4, False, False, 0)
    )
    subject = diagnosed(run.path, weights="best", device="cpu", data_root=None, allow_code=False)
    settings = Settings(count=40, gap_count=2, num_samples=40)
    diagnose_subject(Console(quiet=True), subject, run.path, settings, ("latents",))
    words = Page(report_html([run])).words
    comparison = read_comparison(run.path / "comparison.json")
    diagnosis = read_diagnosis(run.path / "diagnosis.json")
    tables = [*value_tables(comparison, 1000), *check_tables(comparison.checks, 1000)]
    tables += part_report("latents", diagnosis, 1000).tables
    assert len(tables) >= 4
    for table in tables:
        columns = [[str(getattr(cell, "plain", cell)) for cell in c.cells] for c in table.columns]
        for row in zip(*columns, strict=True):
            assert " ".join(" ".join(row).split()) in words
    for name in ("comparison", "diagnosis"):
        file = run.path / f"{name}.json"
        file.write_text(file.read_text().replace(comparison.protocol["weights_hash"], "0" * 64))
    words = Page(report_html([load_run(run.path)])).words
    for name in ("comparison", "diagnosis"):
        assert f"the {name} in the folder is of other weights or data" in words


def test_a_damaged_record_is_one_line(scored, tmp_path):
    run = copied(scored[0], tmp_path / "run")
    (run.path / "evaluation" / "test.json").write_text("[1")
    with pytest.raises(InputError, match="damaged"):
        report_html([run])
    assert not (tmp_path / "a.html").exists()


def test_the_difference_is_that_of_the_same_draws(scored, plain):
    """Against log p(x) of both runs, computed anew."""
    x = scored[0].data.test.subset(40).scored()
    sides = []
    for run in scored:
        found = log_likelihood(run.model, run.guide, x, 50, seed=0)
        sides.append(
            PerDatum(
                found.log_px, found.standard_error, found.bias, found.flagged, found.understated
            )
        )
    expected = paired_difference(*sides)
    words = Page(report_html(scored)).words
    section = words[words.index("A: plain, B: mixed") :]
    numbers = [float(n.replace("−", "-")) for n in re.findall(r"[-−]?\d+\.\d+", section)[:2]]
    assert numbers == pytest.approx([expected.low, expected.high], abs=6e-3)
    assert "two trained networks; of two priors or architectures it says nothing" in section
    assert f"{expected.difference:.2f}"[:-1] in section


def test_intervals_of_three_runs_hold_together(scored, tmp_path, plain):
    third = copied(scored[0], tmp_path / "third")
    words = Page(report_html([*scored, third])).words
    assert words.count("the 95 % interval over data of 3 pairs together") == 2
    assert "A and B agree on every datum to the last bit" in words  # plain and third


def test_unlike_protocols_are_named_and_not_subtracted(scored, tmp_path, plain):
    run = copied(scored[1], tmp_path / "other")
    (run.path / "evaluation" / "test.json").unlink()
    evaluate_run(Console(quiet=True), run, Options(num_samples=30, count=40))
    words = Page(report_html([scored[0], run])).words
    assert "cannot be compared datum by datum: K (50 and 30)" in words
    # Under a protocol that both have, they can.
    evaluate_run(Console(quiet=True), run, Options(num_samples=50, count=40))
    assert "cannot be compared" not in Page(report_html([scored[0], run])).words


def test_what_differs_is_marked(scored, plain):
    html = report_html(scored)
    marked = re.findall(r'<tr class="differs"><th scope=row>([^<]*)</th>', html)
    assert marked == ["prior", "parameters of p"]
    assert "differs" not in re.sub(r"<style>.*?</style>", "", report_html(scored[:1]), flags=re.S)


def test_nothing_that_a_run_says_is_executed(scored, tmp_path):
    name = "<img src=x onerror=alert(1)> & \"'"
    run = copied(scored[0], tmp_path / name)
    found = Page(report_html([run, scored[1]]))
    assert name in found.text
    assert all(source.startswith("data:") for source in found.sources)


def test_a_point_has_no_likelihood(small_run, tmp_path):
    run = copied(small_run(guide="delta", beta=0.0), tmp_path / "point")
    evaluate_run(Console(quiet=True), run, Options(count=20))
    words = Page(report_html([load_run(run.path)])).words
    assert words.count(POINT_NOTE) == 2  # scores, estimators
    scores = words[words.index("20 data, content ") :]
    scores = scores[: scores.index("Explore the latents")]
    assert "ELBO" not in scores.replace(POINT_NOTE, "")
    assert scores.count("log p(x|z(x))") == 2
    assert "K =" not in scores[:60]


def test_a_point_has_nothing_to_subtract(small_run, scored, tmp_path, plain):
    point = copied(small_run(guide="delta", beta=0.0), tmp_path / "point")
    evaluate_run(Console(quiet=True), point, Options(count=40))
    words = Page(report_html([scored[0], load_run(point.path)])).words
    assert f"B: {POINT_NOTE}; nothing to subtract" in words


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "conv"},
        {"latent_dim": 1},
        {"model": "hierarchical", "guide": "hierarchical"},
        {"prior": "vamp(components=4)", "latent_dim": 3},
        {"prior": "flow", "guide": "planar"},
        {"data": "digits(values=continuous)", "likelihood": "normal(scale=learned)"},
        {"data": "digits(values=levels)", "likelihood": "discretized_logistic"},
    ],
    ids=lambda changes: ",".join(map(str, changes.values())),
)
def test_every_kind_of_run_has_a_page(small_run, changes):
    found = Page(report_html([small_run(epochs=1, **changes)]))
    assert len(found.sources) >= 5
    assert ("Pseudo-inputs of the prior, run" in found.alts) is ("vamp" in str(changes))


@pytest.mark.parametrize("kind", ["vectors", "colour"])
def test_data_of_every_shape_have_a_page(small_run, tmp_path, kind):
    shape = (60, 5) if kind == "vectors" else (60, 3, 6, 6)
    rng = np.random.default_rng(0)
    values = rng.poisson(4.0, shape) if kind == "vectors" else rng.integers(0, 256, shape)
    np.save(tmp_path / "mine.npy", values.astype(np.int64 if kind == "vectors" else np.uint8))
    spec, likelihood = "values=counts", "poisson"
    if kind == "colour":
        spec, likelihood = "values=continuous", "normal(scale=learned)"
    run = small_run(data=f"{tmp_path / 'mine.npy'}({spec})", likelihood=likelihood, epochs=1)
    found = Page(report_html([run]))
    assert len(found.sources) >= 5
    assert str(tmp_path) not in found.text  # a file's name alone


def test_a_run_given_twice_or_none_is_refused(scored):
    with pytest.raises(InputError, match="given twice"):
        report_html([scored[0], scored[0]])
    with pytest.raises(InputError, match="at least one run"):
        report_html([])


def test_runs_of_one_name_are_told_apart(scored, tmp_path, plain):
    places = tmp_path / "a" / "run", tmp_path / "b" / "run"
    runs = [copied(run, place) for run, place in zip(scored, places, strict=True)]
    words = Page(report_html(runs)).words
    assert "a/run" in words
    assert "b/run" in words


def test_the_command_writes_into_the_run(small_run, tmp_path, plain):
    run = copied(small_run(data="digits(values=binary)"), tmp_path / "run")
    shutil.rmtree(run.path / "evaluation", ignore_errors=True)
    out = succeed("report", "run", "--device", "cpu", cwd=tmp_path)
    assert out.strip() == "run/report.html"
    words = Page((run.path / "report.html").read_text(encoding="utf-8")).words
    assert "not scored yet: pyro-vae evaluate run" in words


@pytest.mark.slow
def test_complete_scores_compares_and_diagnoses(small_run, tmp_path):
    copied(small_run(), tmp_path / "run")
    succeed("report", "run", "--complete", "--device", "cpu", "--out", "a.html", cwd=tmp_path)
    found = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "not yet" not in found.words.replace("not yet trained", "")
    assert " yet: pyro-vae" not in found.words
    for told in ("IWAE-5000", "closed_form", "Signal-to-noise", "amortization", "active"):
        assert told in found.words, told
    diagnosis = json.loads((tmp_path / "run" / "diagnosis.json").read_text())
    assert f"{diagnosis['gaps'][1]['total']['value']:.1f}" in found.words


def test_several_runs_have_a_page_beside_them(scored, tmp_path, plain):
    for run in scored:
        copied(run, tmp_path / "runs" / run.path.name)
    out = succeed("report", "runs/plain", "runs/mixed", "--device", "cpu", cwd=tmp_path)
    assert Path(out.strip()).resolve() == (tmp_path / "runs" / "report.html").resolve()


def test_wrong_input_is_one_line(scored, tmp_path):
    copied(scored[0], tmp_path / "run")
    cases = [
        (["report", "nowhere"], "no such run"),
        (["report", "run", "--out", "."], "expected the name of a file"),
        (["report", "run", "run"], "given twice"),
        (["report", "run", "--split", "tset"], "unknown split"),
        (["report", "run", "--out", "run/best.safetensors"], "ends in .html"),
    ]
    for arguments, reason in cases:
        assert reason in refuse(*arguments, cwd=tmp_path)
    assert not list(tmp_path.glob("*.html"))
    assert dataclasses.is_dataclass(scored[0])
