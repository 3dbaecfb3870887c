"""A number that an option gives: taken, or one line that says what was expected."""

import math

import pytest

from pyro_vae.assembly import _TOO_LARGE
from pyro_vae.checks import check_count, check_number
from pyro_vae.components import build
from pyro_vae.errors import InputError

REFUSED = [
    (True, "must be a positive number"), ("one", "must be a positive number"),
    (None, "must be a positive number"), ([1.0], "must be a positive number"),
    (1j, "must be a positive number"), (math.nan, "in [1e-12, 1e+12]"), (math.inf, "got inf"),
    (1e39, "got 1e+39"), (1e-50, "got 1e-50"), (0, "got 0"), (-1.0, "got -1.0"),
    (10**400, "got 10000"), (-(10**400), "got -10000"),
]  # fmt: skip


def refused(check, *args, **kwargs):
    with pytest.raises(InputError) as error:
        check(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 200
    return message


@pytest.mark.parametrize(("value", "part"), REFUSED)
def test_what_is_no_number_or_out_of_range_is_one_line(value, part):
    message = refused(check_number, "normal", "scale", value)
    assert message.startswith("normal: scale must be ")
    assert part in message


def test_ends_belong_to_the_interval_or_not():
    check_number("p", "df", 1e6, 2, 1e6, ends="(]")
    check_number("p", "floor", 1e-6, 1e-6, 0.25, ends="[)")
    assert "in (2, 1e+06], got 2" in refused(check_number, "p", "df", 2, 2, 1e6, ends="(]")
    assert "got 0.25" in refused(check_number, "p", "floor", 0.25, 1e-6, 0.25, ends="[)")


def test_words_stand_in_place_of_a_number():
    words = ("learned", "per_pixel")
    check_number("p", "scale", "learned", words=words)
    wanted = "a positive number, learned or per_pixel, got 'leaned'"
    assert wanted in refused(check_number, "p", "scale", "leaned", words=words)
    assert "number or learned, got 'x'" in refused(check_number, "p", "df", "x", words=("learned",))


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", None, 1001, 10**400])
def test_a_count_is_a_whole_number(value):
    check_count("p", "components", 1000, high=1000)
    assert "whole number from 1 to 1000" in refused(check_count, "p", "components", value, 1000)


HUGE = "1" + 400 * "0"


@pytest.mark.parametrize(
    ("kind", "spec"),
    [(kind, spec.format(value))
     for value in ("1e39", "True", "1e-50", HUGE)
     for kind, spec in [
         ("likelihood", "normal(scale={})"), ("likelihood", "normal(floor={})"),
         ("likelihood", "laplace(floor={})"), ("likelihood", "student_t(df={})"),
         ("likelihood", "beta(concentration={})"), ("likelihood", "beta(floor={})"),
         ("likelihood", "negative_binomial(dispersion={})"),
         ("likelihood", "zero_inflated_negative_binomial(dispersion={})"),
         ("likelihood", "discretized_logistic(scale={})"),
         ("likelihood", "discretized_logistic_mixture(components={})"),
         ("prior", "laplace(scale={})"), ("prior", "logistic(scale={})"),
         ("prior", "student_t(df={})"), ("prior", "student_t(scale={})"),
         ("prior", "normal(floor={})"), ("prior", "mixture(floor={})"),
         ("prior", "mixture(components={})"), ("prior", "vamp(noise={})"),
         ("prior", "vamp(components={})"),
     ]],
)  # fmt: skip
def test_every_option_of_priors_and_likelihoods_is_checked(kind, spec):
    offered = {"latent_dim": 2, "event_shape": (3,), "posterior": abs}
    if "discretized" in spec:
        offered["num_levels"] = 9
    assert "must be" in refused(build, kind, spec, **offered)


@pytest.mark.parametrize(
    ("body", "words"),
    [("float(10**400)", "int too large to convert to float"),
     ("torch.ones(2).new_full((), 1e39)", "cannot be converted to type float without overflow")],
)  # fmt: skip
def test_a_number_too_large_for_its_type_is_one_line(body, words, tmp_path):
    path = tmp_path / "p.py"
    path.write_text(
        "import torch\n\nclass P(torch.nn.Module):\n    def __init__(self):\n"
        f"        super().__init__()\n        {body}\n"
    )
    assert words in refused(build, "prior", str(path))


def test_a_number_too_large_is_not_a_matter_of_memory():
    """torch's "cannot be converted to type float without overflow" is none of the networks'."""
    message = "value cannot be converted to type float without overflow"
    assert not any(words in message for words in _TOO_LARGE)
    for message in (
        "storage size calculation overflowed with sizes=[1099511627776, 1099511627776]",
        'failed to unpack the object at pos 1 with error "overflow when unpacking long long',
        "defaultcpuallocator: can't allocate memory",
    ):
        assert any(words in message for words in _TOO_LARGE)
