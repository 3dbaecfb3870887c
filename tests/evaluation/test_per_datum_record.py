"""What each datum scored, on disk and back, and what is not read."""

import dataclasses
import json

import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.evaluation.per_datum_record import keep_per_datum, read_per_datum, write_per_datum
from pyro_vae.evaluation.scores import Estimate, Evaluation, PerDatum

NAN = torch.nan
ALL = PerDatum(
    torch.tensor([-1.5, -2.0, -3.25], dtype=torch.float64),
    torch.tensor([0.1, NAN, 0.3], dtype=torch.float64),
    torch.tensor([-0.01, NAN, -0.02], dtype=torch.float64),
    torch.tensor([True, False, True]),
    torch.tensor([False, False, True]),
)
EXACT = PerDatum(torch.tensor([-1.4, -2.1, -3.0], dtype=torch.float64))
PROTOCOL = {"split": "test", "count": 3, "num_samples": 5}


def same(a: PerDatum, b: PerDatum) -> bool:
    def equal(x, y):
        return x is y is None or torch.equal(x.double().nan_to_num(7), y.double().nan_to_num(7))

    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(PerDatum))


def test_what_is_written_is_read(tmp_path):
    record = tmp_path / "test.json"
    estimates = {
        "reconstruction": Estimate(-2.0, 0.1, 0.2, 3),
        "log_likelihood": Estimate(-2.25, 0.1, 0.2, 3),
        "log_evidence": Estimate(-6.5 / 3, None, 0.2, 3),
    }
    evaluation = Evaluation(
        estimates, PROTOCOL,
        per_datum={"log_likelihood": ALL, "log_evidence": EXACT},
    )  # fmt: skip
    entry = keep_per_datum(record, evaluation, "hash")
    assert entry["weights_hash"] == "hash"
    json.dumps(entry, allow_nan=False)
    found = read_per_datum(record, entry)
    assert found.keys() == {"log_likelihood", "log_evidence"}
    assert same(found["log_likelihood"], ALL)
    assert same(found["log_evidence"], EXACT)
    assert not same(found["log_evidence"], ALL)


def test_a_protocol_has_a_file_of_its_own(tmp_path):
    record = tmp_path / "test.json"
    first = write_per_datum(record, PROTOCOL, {"log_likelihood": ALL})
    assert write_per_datum(record, dict(reversed(PROTOCOL.items())), {"log_evidence": ALL}) == first
    assert write_per_datum(record, PROTOCOL | {"num_samples": 6}, {"log_evidence": ALL}) != first
    assert len(list(tmp_path.iterdir())) == 2
    assert write_per_datum(record, PROTOCOL, {}) is None
    assert read_per_datum(record, {"protocol": PROTOCOL}) == {}


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", 3, ["a"], "a/b", "", "best.safetensors", "\ud800"],
)
def test_no_file_outside_is_read(tmp_path, name):
    with pytest.raises(InputError, match="names no file of its own folder"):
        read_per_datum(tmp_path / "test.json", {"protocol": PROTOCOL, "per_datum": name})


def test_other_numbers_other_data_and_damage_are_refused(tmp_path):
    record = tmp_path / "test.json"
    name = write_per_datum(record, PROTOCOL, {"log_likelihood": ALL})
    estimates = {"log_likelihood": {"value": -2.25}}
    entry = {"protocol": PROTOCOL, "per_datum": name, "estimates": estimates}
    assert read_per_datum(record, entry).keys() == {"log_likelihood"}
    for other in ({"log_likelihood": {"value": -2.2501}}, {}):  # copied from another run
        with pytest.raises(InputError, match="of another evaluation"):
            read_per_datum(record, entry | {"estimates": other})
    entry = entry | {"protocol": PROTOCOL | {"count": 4}}
    with pytest.raises(InputError, match="of other data"):
        read_per_datum(record, entry)
    entry["protocol"] = PROTOCOL
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match="is damaged"):
        read_per_datum(record, entry)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match="no such file"):
        read_per_datum(record, entry)
