"""A comparison on disk: everything comes back, and nothing is half written."""

import json
import math

import pytest

from pyro_vae.comparison.record import from_json, read_comparison, to_json, write_comparison
from pyro_vae.comparison.rows import Check, Comparison, GradientRow, Truth, ValueRow
from pyro_vae.errors import InputError
from pyro_vae.textbook import TEXTBOOK_LOSSES
from pyro_vae.textbook_table import TextbookRow

TRACE = ValueRow(
    "trace", 1, True, mean=-3.25, standard_error=0.1, data_standard_error=None, difference=1e-300,
    difference_standard_error=0.0, largest_difference=2.0, bias=-0.5, bias_standard_error=0.25,
    analytic_kl={"z": False, "z2": True},
)  # fmt: skip
MAX = ValueRow(
    "renyi(alpha=max)", 10, False, mean=math.inf, standard_error=math.nan, bias=-math.inf
)
REFUSED = ValueRow("closed_form", 1, True, refusal="no closed form of KL(iaf ‖ normal)")
GRADIENT = GradientRow(
    "dreg", 8, "guide", "iwae-8", reference="exact", bias=0.0, bias_standard_error=0.5,
    largest_z=math.inf, variance=2.0, signal_to_noise=0.3, milliseconds=1.5, num_repeats=40,
    variance_standard_error=0.1, signal_to_noise_standard_error=math.inf,
    milliseconds_standard_error=0.25,
)  # fmt: skip
WHOLE = Comparison(
    values=[TRACE, REFUSED],
    gradients=[GRADIENT],
    reference="closed_form",
    truth=Truth("quadrature", -2.75, 1e-9),
    checks=[Check("trace − closed_form", False, 3e-3, 1e-9)],
    protocol={"data": "digits", "particles": [1, 8], "versions": {"torch": "2"}, "count": 100},
)


def strictly(text: str) -> dict:
    """JSON as any other language reads it: without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    "comparison", [WHOLE, Comparison([REFUSED], [], None, None, [], {})], ids=["whole", "bare"]
)
def test_everything_comes_back(tmp_path, comparison):
    path = tmp_path / "new" / "comparison.json"
    write_comparison(path, comparison)
    assert read_comparison(path) == comparison
    assert next(iter(strictly(path.read_text()))) == "protocol"


def test_a_record_from_before_the_errors_is_read_without_them():
    mapping = to_json(WHOLE)
    errors = [name for name in mapping["gradients"][0] if name.endswith("_standard_error")]
    for name in set(errors) - {"bias_standard_error"}:
        del mapping["gradients"][0][name]
    (row,) = from_json(mapping).gradients
    assert row.variance == 2.0
    assert row.variance_standard_error is row.signal_to_noise_standard_error is None


def test_what_is_not_finite_is_a_word_and_comes_back(tmp_path):
    path = tmp_path / "comparison.json"
    write_comparison(path, Comparison([MAX], [], None, None, [], {"loss": math.inf}))
    mapping = strictly(path.read_text())
    assert mapping["values"][0]["mean"] == "inf"
    (row,) = read_comparison(path).values
    assert row.mean == math.inf
    assert row.bias == -math.inf
    assert math.isnan(row.standard_error)
    assert row.estimator == "renyi(alpha=max)"


def test_textbook_losses_stand_beside_it(tmp_path):
    path = tmp_path / "comparison.json"
    loss = TEXTBOOK_LOSSES[0]
    row = TextbookRow(
        loss.name, loss.formula, loss.optimizes, loss.factor_formula, loss.constant_formula,
        1.0, -36.6, "x", 64, 100, 2, 0.7, 1.0, None, loss=6.5,
    )  # fmt: skip
    write_comparison(path, WHOLE, [row])
    assert strictly(path.read_text())["textbook"] == [json.loads(json.dumps(vars(row)))]
    assert read_comparison(path) == WHOLE


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "comparison.json"
    write_comparison(path, WHOLE)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_comparison(path, Comparison([TRACE], [], None, None, [], {"model": object()}))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["comparison.json"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is no JSON"),
        ("[]", "a comparison of this version"),
        ('{"values": []}', "lacks 'gradients'"),
        (json.dumps({**to_json(WHOLE), "checks": [{"name": "x"}]}), "lacks 'holds'"),
        (json.dumps({**to_json(WHOLE), "reference": 3}), "reference is '3'"),
        (json.dumps({**to_json(WHOLE), "values": [{"estimator": []}]}), "estimator is '[]'"),
        (json.dumps({**to_json(WHOLE), "truth": {"method": "exact", "log_px": "much"}}), "much"),
        (json.dumps({**to_json(WHOLE), "values": [{"spec": "trace"}]}), "spec"),
    ],
)
def test_a_damaged_record_is_told_in_one_line(tmp_path, text, reason):
    path = tmp_path / "comparison.json"
    path.write_text(text)
    with pytest.raises(InputError, match="cannot read") as error:
        read_comparison(path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_record_is_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_comparison(tmp_path / "comparison.json")


def test_a_mapping_is_plain_and_independent():
    mapping = to_json(WHOLE)
    mapping["values"][0]["mean"] = 1.0
    mapping["protocol"]["data"] = "other"
    assert WHOLE.values[0].mean == -3.25
    assert WHOLE.protocol["data"] == "digits"
    assert from_json(to_json(WHOLE)) == WHOLE
