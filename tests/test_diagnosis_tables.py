"""The tables of a diagnosis: every number with its error, none cut, every mark explained."""

import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from pyro_vae.diagnosis.rows import (
    Calibration,
    Gap,
    LatentSpaceReport,
    LatentUse,
    PredictiveCheck,
    Probe,
    Reliability,
    SimulatedBounds,
)
from pyro_vae.diagnosis_tables import (
    bounds_report,
    calibration_report,
    checks_report,
    gap_report,
    latents_report,
    reliability_report,
    space_report,
)
from pyro_vae.evaluation.bidirectional import NOTE
from pyro_vae.evaluation.scores import Estimate


def estimate(value, draws=None, data=None, **options) -> Estimate:
    return Estimate(value, draws, data, options.pop("count", 100), **options)


def gap(split="train", method="quadrature", **changes) -> Gap:
    row = Gap(
        split, method, estimate(-90.123, 0.021, 1.1), estimate(-99.345, 0.042, 1.2),
        estimate(9.222, 0.051, 0.31), estimate(-95.011, 0.011, 1.15), estimate(4.888, 0.032, 0.21),
        estimate(4.334, 0.053, 0.33),
    )  # fmt: skip
    return replace(row, **changes)


UNSPLIT = {"best_elbo": None, "approximation": None, "amortization": None}
GAPS = [gap(), gap("test", elbo=estimate(-101.5, 0.043, 1.3))]
RELIABILITY = Reliability(
    5000, 500, 0.7, [0.1, 0.9, math.nan, 0.71, -math.inf], [2, 1, 3], [-90.0, -91.2, -80.0, -7, -4]
)
USE = LatentUse(
    estimate(15.1, 0.012, 0.21), estimate(80.2, 0.11, 1.3), estimate(7.25, 0.023, 0.014),
    estimate(7.85, 0.12, 0.22), 7.6, False, "mixture over 2,000 data", [1.2, 0.001, 3.0],
    [0.012, 0.0002, 0.11], [0.9, 0.001, 0.5], 2, "partly collapsed",
    "partly collapsed: 2 of 3 dimensions are active", ["sampled, not analytic"],
)  # fmt: skip
CALIBRATION = Calibration(
    500, 99, ["z[0]", "z[1]"], [0.3, 1e-9], [[250, 250], [350, 150, 0]], "overconfident",
    "overconfident: ranks at both ends",
)  # fmt: skip
CHECKS = [
    PredictiveCheck(
        statistic, against, estimate(0.131, None, 0.0021), estimate(0.142, 0.001, error),
        estimate(0.011, 0.001, 0.0043), 0.234, p, [0.1, 0.2], [0.2],
    )
    for statistic in ("mean intensity", "distance to the nearest training datum")
    for against, p, error in (
        ("prior predictive", 1e-9, None), ("posterior predictive", 0.0456, 0.0032),
    )
]  # fmt: skip
SPACE = LatentSpaceReport(
    estimate(0.712, 0.011, 0.023), 0.95, "the ellipsoid of 95 %", estimate(1.52, 0.013, 0.024),
    estimate(1.93, 0.014, 0.025), "100 pairs of test data, 20 steps",
    [
        Probe("z", "logistic regression", estimate(0.912, None, 0.015)),
        Probe("x", "nearest neighbours", estimate(0.967, None, 0.016)),
        Probe("z", "most frequent label", estimate(0.101, None, 0.017)),
    ],
    ["one component of the prior is never used"],
)  # fmt: skip
BOUNDS = SimulatedBounds(
    16, 400, estimate(-114.267, 0.068, 6.46, count=20), estimate(-113.853, None, 6.52, count=20),
    estimate(0.414, None, 0.117, count=20), 0.741, NOTE,
)  # fmt: skip
REPORTS = {
    "bounds": lambda width: bounds_report(BOUNDS, width),
    "gap": lambda width: gap_report(GAPS, width),
    "reliability": lambda width: reliability_report(RELIABILITY, width),
    "latents": lambda width: latents_report(USE, width),
    "calibration": lambda width: calibration_report(CALIBRATION, width),
    "checks": lambda width: checks_report(CHECKS, width),
    "space": lambda width: space_report(SPACE, width),
}


def text_of(report, width=200) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in report.tables:
        console.print(table, width=max(width, table.width or 0), crop=False)
    return console.file.getvalue()


def cells_of(text, label):
    """The cells of a row, which stand at least two spaces apart."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{label}  ")]
    return re.split(r"\s{2,}", line.strip())


def notes_of(report) -> str:
    return "\n".join(report.notes)


def test_gaps_of_two_splits_stand_side_by_side():
    text = text_of(gap_report(GAPS, 80), 80)
    assert cells_of(text, "train") == ["train", "± draws", "± data", "test", "± draws", "± data"]
    assert cells_of(text, "log p(x)") == ["log p(x)", *["-90.123", "0.021", "1.100"] * 2]
    assert cells_of(text, "ELBO") == [
        "ELBO", "-99.345", "0.042", "1.200", "-101.500", "0.043", "1.300"
    ]  # fmt: skip
    assert cells_of(text, "gap, log p(x) − ELBO")[1:4] == ["9.222", "0.051", "0.310"]
    assert cells_of(text, "ELBO of the best q")[1:4] == ["-95.011", "0.011", "1.150"]
    assert cells_of(text, "approximation gap")[1:4] == ["4.888", "0.032", "0.210"]
    assert cells_of(text, "amortization gap")[1:4] == ["4.334", "0.053", "0.330"]


def test_gaps_stand_below_each_other_where_there_is_no_room():
    tables = gap_report(GAPS, 60).tables
    assert [[column.header for column in table.columns][1] for table in tables] == ["train", "test"]
    assert all(table.width <= 60 for table in tables)


def test_the_method_and_what_limits_a_gap_are_told():
    rows = [gap(method="ais", note="AIS falls short"), gap("test", total=estimate(9.0, 0.1, 0.3))]
    notes = gap_report(rows, 80).notes
    assert "log p(x) of train: by annealed importance sampling (AIS), 100 data" in notes
    assert "log p(x) of test: by quadrature, 100 data" in notes
    assert "train: AIS falls short" in notes
    found = gap_report([gap(residual=estimate(0.0123, 0.001, 0.0021))], 80).notes
    assert "search for the best q, train: its last half gained 0.0123 ± 0.0021" in found
    assert "≥" not in "".join(notes)
    report = gap_report([gap(log_px=estimate(-90.0, 0.02, 1.0, understated=True))], 80)
    assert "≥0.020" in text_of(report)
    assert "≥: a lower limit of the error" in notes_of(report)


def test_a_gap_that_is_not_split_has_no_parts():
    report = gap_report([gap(**UNSPLIT), gap("test", **UNSPLIT)], 80)
    assert "approximation" not in text_of(report) + notes_of(report)
    assert report.tables[0].row_count == 3
    half = text_of(gap_report([gap(**UNSPLIT), gap("test")], 80))
    assert cells_of(half, "amortization gap") == [
        "amortization gap", "–", "–", "–", "4.334", "0.053", "0.330"
    ]  # fmt: skip
    assert gap_report([], 80) == ([], [])


def test_bounds_of_simulated_data():
    report = bounds_report(BOUNDS, 80)
    text = text_of(report)
    assert "simulated data, nats/datum, 20 data" in text
    assert cells_of(text, "lower, forward AIS")[1:] == ["-114.267", "0.068", "6.460"]
    assert cells_of(text, "upper, reverse AIS")[1:] == ["-113.85", "–", "6.52"]
    assert cells_of(text, "upper − lower")[1:] == ["0.41", "–", "0.12"]
    assert "AIS: 16 chains each way × 400 temperatures, acceptance 74 %" in report.notes
    assert NOTE in report.notes
    still = bounds_report(replace(BOUNDS, acceptance=math.nan), 80)
    assert "AIS: 16 chains each way × 400 temperatures" in still.notes


@pytest.mark.parametrize(
    ("value", "error", "sentence"),
    [
        (0.414, 0.117, "AIS may understate log p(x) of such data by up to 0.41 ± 0.12 nats/datum"),
        (0.23, 0.117, "upper − lower is within two errors of 0, 0.23 ± 0.12: no shortfall is seen"),
        (-0.23, 0.117, "upper − lower is within two errors of 0, -0.23 ± 0.12: no shortfall"),
        (0.0, 0.0, "upper − lower is within two errors of 0, 0.0000 ± 0.0000: no shortfall"),
        (-0.3, 0.117, "upper − lower is at least 0 in expectation: below it by chance"),
        (0.4, None, "upper − lower has no error"),
        (math.inf, math.nan, "upper − lower has no error"),
    ],
)
def test_how_far_ais_may_fall_short(value, error, sentence):
    found = bounds_report(replace(BOUNDS, gap=estimate(value, None, error, count=20)), 80)
    assert found.notes[2].startswith(sentence)
    assert ("may understate" in notes_of(found)) == ("may understate" in sentence)


def test_the_worst_data_come_first():
    report = reliability_report(RELIABILITY, 80)
    rows = [line.split() for line in text_of(report).splitlines() if line.strip()[:1].isdigit()]
    assert rows == [["2", "–", "-80.00"], ["1", "0.90", "-91.20"], ["3", "0.71", "-7.00"]]
    assert report.notes[0].startswith("3 of 5 data (60 %) have k̂ above 0.70: their IWAE-5000")
    assert "of constant weights, exact: 1" in report.notes
    assert any("without k̂" in note and note.endswith(": 1") for note in report.notes)
    assert any("500 draws" in note for note in report.notes)


def test_data_are_named_by_their_place_in_the_split():
    report = reliability_report(replace(RELIABILITY, positions=[10, 20, 30, 40, 50]), 80)
    rows = [line.split() for line in text_of(report).splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["30", "20", "40"]
    assert report.notes[-1] == "datum: its position in the test split, from 0"


def test_where_all_can_be_trusted_there_is_no_table():
    report = reliability_report(replace(RELIABILITY, pareto_k=[0.1, 0.2], flagged=[]), 80)
    assert report.tables == []
    assert report.notes[0] == "0 of 2 data (0 %) have k̂ above 0.70"
    assert "constant" not in notes_of(report)


def test_of_many_flagged_ten_are_shown():
    many = replace(RELIABILITY, pareto_k=[1.0] * 50, flagged=list(range(50)), log_px=[-1.0] * 50)
    (table,) = reliability_report(many, 80).tables
    assert table.row_count == 10


def test_what_the_latents_carry():
    report = latents_report(USE, 80)
    text = text_of(report)
    assert cells_of(text, "rate, E KL(q(z|x) ‖ p(z))")[1:] == ["15.100", "0.012", "0.210"]
    assert cells_of(text, "distortion, −E log p(x|z)")[1:] == ["80.20", "0.11", "1.30"]
    assert cells_of(text, "mutual information I(x; z)")[1:] == ["7.250", "0.023", "0.014"]
    assert cells_of(text, "KL(q(z) ‖ p(z))")[1:] == ["7.85", "0.12", "0.22"]
    dims = [line.split() for line in text.splitlines() if line.strip().startswith("z[")]
    assert dims == [
        ["z[2]", "3.00", "0.11", "0.5000"],
        ["z[0]", "1.200", "0.012", "0.9000"],
        ["z[1]", "0.00100", "0.00020", "0.0010"],
    ]
    assert report.notes[0] == USE.sentence
    assert "mutual information: mixture over 2,000 data" in report.notes
    assert any(note.startswith("its cap: log N = 7.60 nats") for note in report.notes)
    assert report.notes[-1] == "sampled, not analytic"
    assert "≥" not in text + notes_of(report)


def test_at_its_cap_the_information_is_a_lower_limit_and_the_divergence_an_upper():
    report = latents_report(replace(USE, at_cap=True), 80)
    assert cells_of(text_of(report), "mutual information I(x; z)")[1] == "≥7.250"
    assert cells_of(text_of(report), "KL(q(z) ‖ p(z))")[1] == "≤7.85"
    assert any(note.startswith("≥ ≤: limits alone") and "7.60" in note for note in report.notes)


def test_of_latents_without_dimensions_the_rate_remains():
    bare = replace(
        USE, mutual_information=None, marginal_kl=None, mutual_information_cap=None,
        estimator=None, kl_per_dim=None, kl_per_dim_errors=None, activity=[], active_units=None,
    )  # fmt: skip
    report = latents_report(bare, 80)
    assert len(report.tables) == 1
    assert "mutual" not in text_of(report) + notes_of(report)
    assert "active units" not in notes_of(report)
    still = text_of(latents_report(replace(bare, activity=[3e-6, 0.0]), 80))
    assert [line.split()[-1] for line in still.splitlines() if "z[" in line] == [
        "<0.0001",
        "0.0000",
    ]
    only_activity = latents_report(replace(bare, activity=[0.1, 0.3]), 80)
    assert text_of(only_activity).index("z[1]") < text_of(only_activity).index("z[0]")


def test_of_many_dimensions_the_first_ten_are_shown():
    many = replace(USE, kl_per_dim=[1.0] * 12, kl_per_dim_errors=[0.1] * 12, activity=[0.5] * 12)
    report = latents_report(many, 80)
    assert report.tables[1].row_count == 10
    assert any(note.startswith("the first 10 dimensions") for note in report.notes)


def test_calibration_smallest_p_value_first():
    report = calibration_report(CALIBRATION, 80)
    text = text_of(report)
    assert "Is q calibrated: overconfident" in text
    assert text.index("z[1]") < text.index("z[0]")
    assert cells_of(text, "z[1]") == ["z[1]", "<0.0001", "█▄▁"]
    assert cells_of(text, "z[0]") == ["z[0]", "0.3000", "██"]
    assert report.notes[0] == CALIBRATION.sentence
    assert "500 data drawn from the model" in report.notes[1]
    assert report.notes[-1].endswith("5 % over all")


def test_checks_with_their_errors_and_distances():
    text = text_of(checks_report(CHECKS, 160), 160)
    row = cells_of(text, "mean intensity, prior predictive")
    assert row[1:] == [
        "0.1310", "0.0021", "0.1420", "0.0010", "–", "0.0110", "0.0010", "0.0043", "0.234",
        "<0.0001",
    ]  # fmt: skip
    row = cells_of(text, "mean intensity, posterior predictive")
    assert row[3:6] == ["0.1420", "0.0010", "0.0032"]
    assert cells_of(text, "mean intensity, posterior predictive")[-1] == "0.0456"
    assert len(checks_report(CHECKS, 80).tables) == 2
    assert checks_report([], 80) == ([], [])


def test_space_and_probes():
    report = space_report(SPACE, 80)
    text = text_of(report)
    assert cells_of(text, "share of prior draws near q(z)")[1:] == ["0.712", "0.011", "0.023"]
    assert cells_of(text, "largest step over mean step")[1:] == ["1.520", "0.013", "0.024"]
    assert cells_of(text, "path over distance of its ends")[1:] == ["1.930", "0.014", "0.025"]
    assert cells_of(text, "logistic regression of z")[1:] == ["0.912", "0.015"]
    assert cells_of(text, "nearest neighbours of x")[1:] == ["0.967", "0.016"]
    assert cells_of(text, "most frequent label")[1:] == ["0.101", "0.017"]
    assert "near q(z): the ellipsoid of 95 %; of q(z) 0.95" in report.notes
    assert "± draws: of draws of the prior and of q, and of subsets" in notes_of(report)
    assert report.notes[-1] == "one component of the prior is never used"
    bare = space_report(LatentSpaceReport(None, None, None, None, None, None, [], ["none"]), 80)
    assert bare == ([], ["none"])


@pytest.mark.parametrize("part", REPORTS)
@pytest.mark.parametrize("width", [60, 70, 80, 100, 120])
def test_no_number_is_cut_and_no_table_is_wider_than_the_page(part, width):
    report = REPORTS[part](width)
    text = text_of(report, width)
    assert "…" not in text
    assert all(table.width <= width for table in report.tables)
    wide = text_of(REPORTS[part](200))
    numbers = {word for word in wide.split() if re.fullmatch(r"[≥≤<]?-?\d+\.\d+", word)}
    assert numbers or part == "none"
    assert numbers <= set(text.split())


@pytest.mark.parametrize("part", REPORTS)
def test_no_note_is_much_longer_than_a_line(part):
    assert max(map(len, REPORTS[part](80).notes)) <= 125
