"""A diagnosis on disk: everything comes back, and nothing is half written."""

import json
import math
from dataclasses import replace

import pytest

from pyro_vae.diagnosis.record import from_json, read_diagnosis, to_json, write_diagnosis
from pyro_vae.diagnosis.rows import (
    Calibration,
    Diagnosis,
    Gap,
    LatentSpaceReport,
    LatentUse,
    PredictiveCheck,
    Probe,
    Reliability,
    SimulatedBounds,
)
from pyro_vae.errors import InputError
from pyro_vae.evaluation.scores import Estimate

ONE = Estimate(-3.25, 0.1, None, 100, bias=-0.5, note="a bound", understated=True)
TWO = Estimate(0.5, None, 0.25, 20, unit="")
WHOLE = Diagnosis(
    gaps=[
        Gap("train", "exact", ONE, TWO, ONE, None, None, None, "the guide does not say"),
        Gap("test", "ais", ONE, TWO, ONE, TWO, ONE, TWO),
    ],
    reliability=Reliability(50, 25, 0.7, [0.2, math.inf, -math.inf], [1], [-1.0, -2.0, -3.0]),
    latents=LatentUse(
        ONE, TWO, ONE, None, 4.5, True, "mixture", [0.25, 1e-300], [0.5, 0.0], [0.125, 0.0], 1,
        "partly collapsed", "1 of 2 latents", ["one", "two"],
    ),
    calibration=Calibration(
        9, 3, ["z[0]", "y"], [0.5, 0.0], [[1, 8], [9, 0]], "biased", "it is biased"
    ),
    checks=[
        PredictiveCheck(
            "mean intensity", "prior predictive", ONE, TWO, ONE, 0.5, 0.01, [1.0, 2.0], [3.0]
        )
    ],
    space=LatentSpaceReport(
        ONE, 0.95, "ball", None, TWO, "lines", [Probe("z", "logistic regression", TWO)], ["so"]
    ),
    notes=["gap, train: no"],
    protocol={"data": "digits", "parts": ["gap"], "versions": {"torch": "2"}, "seed": 0},
    reconstruction=ONE,
    bounds=SimulatedBounds(8, 400, ONE, TWO, replace(ONE, value=0.25), 0.75, "simulated"),
)  # fmt: skip
BARE = Diagnosis([], None, None, None, [], None, ["gap: the guide is a point"], {})


def strictly(text: str) -> dict:
    """JSON as any other language reads it: without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("diagnosis", [WHOLE, BARE], ids=["whole", "bare"])
def test_everything_comes_back(tmp_path, diagnosis):
    path = tmp_path / "new" / "diagnosis.json"
    write_diagnosis(path, diagnosis)
    assert read_diagnosis(path) == diagnosis
    assert next(iter(strictly(path.read_text()))) == "protocol"


def test_what_is_not_finite_is_a_word_and_comes_back(tmp_path):
    path = tmp_path / "diagnosis.json"
    k = [math.nan, math.inf, -math.inf, 0.5]
    reliability = replace(WHOLE.reliability, pareto_k=k)
    gap = replace(WHOLE.gaps[0], log_px=replace(ONE, value=-math.inf, standard_error=math.nan))
    write_diagnosis(path, replace(BARE, reliability=reliability, gaps=[gap], protocol={"a": k[1]}))
    mapping = strictly(path.read_text())
    assert mapping["reliability"]["pareto_k"] == ["nan", "inf", "-inf", 0.5]
    found = read_diagnosis(path)
    assert math.isnan(found.reliability.pareto_k[0])
    assert found.reliability.pareto_k[1:] == k[1:]
    assert found.gaps[0].log_px.value == -math.inf
    assert math.isnan(found.gaps[0].log_px.standard_error)


def test_a_field_with_a_default_may_be_missing():
    mapping = to_json(WHOLE)
    del mapping["reconstruction"], mapping["bounds"], mapping["gaps"][0]["log_px"]["understated"]
    found = from_json(mapping)
    assert found.reconstruction is found.bounds is None
    assert found.gaps[0].log_px == replace(ONE, understated=False)


def edited(change) -> str:
    mapping = to_json(WHOLE)
    change(mapping)
    return json.dumps(mapping)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[]", "the file is '[]'"),
        ("{}", "the file lacks 'gaps'"),
        (edited(lambda m: m.pop("protocol")), "the file lacks 'protocol'"),
        (edited(lambda m: m.update(verdict="good")), "the file has 'verdict'"),
        (edited(lambda m: m["gaps"][0].pop("total")), "gaps[0] lacks 'total'"),
        (edited(lambda m: m["gaps"][1].update(elbo=3.0)), "elbo is '3.0'"),
        (edited(lambda m: m["gaps"][1]["elbo"].update(value="x")), "value is 'x'"),
        (edited(lambda m: m["gaps"][1]["elbo"].update(value=None)), "value is 'None'"),
        (edited(lambda m: m["gaps"][1]["elbo"].update(count=1.5)), "count is '1.5'"),
        (edited(lambda m: m["gaps"][1]["elbo"].update(value=True)), "value is 'True'"),
        (edited(lambda m: m["reliability"].update(flagged=7)), "flagged is '7'"),
        (edited(lambda m: m["calibration"]["histograms"].append(["1"])), "is '1'"),
        (edited(lambda m: m["bounds"].pop("upper")), "bounds lacks 'upper'"),
        (edited(lambda m: m.update(notes="none")), "notes is 'none'"),
        (edited(lambda m: m.update(protocol=[])), "protocol is '[]'"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path, text, reason):
    path = tmp_path / "diagnosis.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_diagnosis(path)
    assert str(caught.value).startswith(f"cannot read '{path}': ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_place_that_cannot_be_written_are_one_line(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_diagnosis(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_diagnosis(tmp_path / "file" / "diagnosis.json", BARE)
