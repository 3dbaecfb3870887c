"""Scores on disk: what is found again, and what is refused in one line."""

import copy
import dataclasses
import json

import pytest

from pyro_vae.errors import InputError
from pyro_vae.evaluation.active_units import ActiveUnits
from pyro_vae.evaluation.record import find_entry, read_record, weights_hash, write_record
from pyro_vae.evaluation.scores import Estimate

NAMES = ("elbo", "reconstruction", "kl", "log_likelihood")
ENTRY = {
    "protocol": {"split": "test", "num_samples": 5, "device": "cuda", "versions": {}},
    "estimates": {name: dataclasses.asdict(Estimate(-1.5, None, 0.1, 9)) for name in NAMES},
    "weights_hash": "a",
    "active_units": dataclasses.asdict(ActiveUnits([0.5, 0.0], 1)),
    "pareto_k": {
        "threshold": 0.7, "pilot_samples": 1000, "flagged": 1, "unknown": 0, "constant": 2,
        "share": 0.1, "worst": [{"position": 3, "pareto_k": 0.9, "log_px": -1.5}],
    },
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    return tmp_path / "test.json"


def test_what_is_written_is_read(file):
    assert read_record(file) == []
    point = {"protocol": {}, "estimates": {"reconstruction": ENTRY["estimates"]["elbo"]}}
    write_record(file, [ENTRY, point])
    assert read_record(file) == [ENTRY, point]
    known = {"split": "test", "num_samples": 5}
    assert find_entry([ENTRY, point], known, "a") == ENTRY
    assert find_entry([ENTRY, point], known, "b") is None
    old = {k: v for k, v in ENTRY.items() if k != "pareto_k"}  # of before there was a k̂
    write_record(file, [old])
    assert read_record(file) == [old]
    flagged, true = (
        ENTRY | {"protocol": ENTRY["protocol"] | {"adaptive": value}} for value in ("flagged", True)
    )
    write_record(file, [true])
    assert read_record(file) == [flagged]


def changed(*keys, to=...):
    """The entry with something else there, or nothing."""
    entry = copy.deepcopy(ENTRY)
    inner = entry
    for key in keys[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = to
    return [entry]


@pytest.mark.parametrize(
    "content",
    [
        {},
        [3],
        [None],
        ["protocol estimates"],
        [["protocol", "estimates"]],
        changed("protocol"),
        changed("protocol", to=[]),
        changed("estimates"),
        changed("estimates", to=[]),
        changed("estimates", to={}),
        changed("estimates", "elbo"),
        changed("estimates", "reconstruction"),
        changed("estimates", "elbo", to=None),
        changed("estimates", "elbo", to=-1.5),
        changed("estimates", "elbo", "value"),
        changed("estimates", "elbo", "value", to="-1.5"),
        changed("estimates", "elbo", "value", to=None),
        changed("estimates", "elbo", "value", to=True),
        changed("estimates", "elbo", "value", to=float("nan")),
        changed("estimates", "elbo", "standard_error", to="small"),
        changed("estimates", "elbo", "count", to=None),
        changed("estimates", "elbo", "note", to=3),
        changed("estimates", "elbo", "unit", to=None),
        changed("estimates", "elbo", "understated", to=None),
        changed("estimates", "elbo", "of_a_later_version", to=1),
        changed("active_units", to=None),
        changed("active_units", to=3),
        changed("active_units", "count"),
        changed("active_units", "activity", to=2),
        changed("active_units", "activity", to=["a"]),
        changed("active_units", "count", to="two"),
        changed("active_units", "of_a_later_version", to=1),
        changed("pareto_k", to=None),
        changed("pareto_k", to=0.9),
        changed("pareto_k", "flagged"),
        changed("pareto_k", "flagged", to=1.5),
        changed("pareto_k", "share", to=None),
        changed("pareto_k", "threshold", to=float("nan")),
        changed("pareto_k", "worst", to={}),
        changed("pareto_k", "worst", to=[3]),
        changed("pareto_k", "worst", to=[{"position": 3, "pareto_k": 0.9}]),
        changed("pareto_k", "worst", 0, "pareto_k", to="large"),
        changed("pareto_k", "worst", 0, "position", to=0.5),
        changed("pareto_k", "of_a_later_version", to=1),
    ],
    ids=str,
)
def test_a_damaged_record_is_one_line(file, content):
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"test.json' is damaged.*; move it away and evaluate"):
        read_record(file)


@pytest.mark.parametrize("content", [b"", b"[{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_one_line(file, content):
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged.*; move it away"):
        read_record(file)


@pytest.mark.parametrize(("weights", "name"), [("best", "best.safetensors"), ("last", "last.pt")])
def test_weights_that_are_not_there_are_one_line(tmp_path, weights, name):
    with pytest.raises(InputError, match=rf"cannot read '.*{name}': No such file"):
        weights_hash(tmp_path, weights)
