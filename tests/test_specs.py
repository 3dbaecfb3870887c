"""Component specs: what is read, that it is written back the same, and what is refused."""

import math
import sys

import pytest

from pyro_vae.errors import InputError, suggest
from pyro_vae.specs import Spec, parse_spec

READ = {
    "normal": ("normal", {}),
    "  normal ( ) ": ("normal", {}),
    "standard-normal": ("standard_normal", {}),
    "step_lr(step-size=10)": ("step_lr", {"step_size": 10}),
    "a(one-two-three = 1, four=2)": ("a", {"one_two_three": 1, "four": 2}),
    "normal(scale=per-pixel)": ("normal", {"scale": "per_pixel"}),
    "normal(scale=per_pixel,)": ("normal", {"scale": "per_pixel"}),
    "mlp(hidden=(400, 200))": ("mlp", {"hidden": (400, 200)}),
    "mlp(hidden=[400, 200])": ("mlp", {"hidden": (400, 200)}),
    "mlp(hidden=(400,), activation=tanh)": ("mlp", {"hidden": (400,), "activation": "tanh"}),
    "f(x=())": ("f", {"x": ()}),
    "f(x=((1, two), (3, (four-five,))))": ("f", {"x": ((1, "two"), (3, ("four_five",)))}),
    "f(x=(((((1,),),),),))": ("f", {"x": (((((1,),),),),)}),
    "f(a=None, b=True, c=False, d=none)": ("f", {"a": None, "b": True, "c": False, "d": "none"}),
    "f(a=-1, b=-.5e-3, c=1e-3, d=+2)": ("f", {"a": -1, "b": -0.0005, "c": 0.001, "d": 2}),
    "f(a=1e999, b=-1e999)": ("f", {"a": math.inf, "b": -math.inf}),
    "f(a='two words', b=\"it's\")": ("f", {"a": "two words", "b": "it's"}),
    "f(a='x, b-c=1', d='1')": ("f", {"a": "x, b-c=1", "d": "1"}),
    "f(a='a-b', b='if', c='None')": ("f", {"a": "a-b", "b": "if", "c": "None"}),
    "f(a='(', b='))')": ("f", {"a": "(", "b": "))"}),
    "f(a='', b='\\n')": ("f", {"a": "", "b": "\n"}),
    "f(a=1,\n  b=2)": ("f", {"a": 1, "b": 2}),
    "f(a={'k': (1, 2)})": ("f", {"a": {"k": (1, 2)}}),
    "prior.py": ("prior.py", {}),
    "./my-priors/p.py(a=1)": ("./my-priors/p.py", {"a": 1}),
    "my files/a b.npy(values=levels)": ("my files/a b.npy", {"values": "levels"}),
    "/data/images (1)/x.npy(values=levels)": ("/data/images (1)/x.npy", {"values": "levels"}),
    "/data/images (1)/x.npy": ("/data/images (1)/x.npy", {}),
    "/data/images (1)()": ("/data/images (1)", {}),
    "/data/images (1)(values=levels)": ("/data/images (1)", {"values": "levels"}),
}


@pytest.mark.parametrize("text", READ)
def test_reads(text):
    spec = parse_spec(text)
    assert (spec.name, spec.arguments) == READ[text]
    types = {key: type(value) for key, value in spec.arguments.items()}
    assert types == {key: type(value) for key, value in READ[text][1].items()}


@pytest.mark.parametrize("text", READ)
def test_what_is_written_is_read_the_same(text):
    spec = parse_spec(text)
    assert parse_spec(str(spec)) == spec
    assert str(parse_spec(str(spec))) == str(spec)


def test_canonical_form():
    assert str(parse_spec("normal( scale = per-pixel,floor=1e-3 )")) == (
        "normal(scale=per_pixel, floor=0.001)"
    )
    assert str(Spec("f", {"a": ("x", "y z"), "b": None})) == "f(a=(x, 'y z'), b=None)"


@pytest.mark.parametrize(
    ("name", "is_path"), [("mlp", False), ("./mlp", True), ("mlp.py", True), ("a/b", True)]
)
def test_is_path(name, is_path):
    assert Spec(name).is_path is is_path


REFUSED = {
    "": "expected a spec",
    "   ": "expected a spec",
    "1f": "expected a spec",
    "f g": "expected a spec",
    "(x=1)": "expected a spec",
    "f(": "expected a spec",
    "f(x=1": "expected a spec",
    "adam(lr=0.1": "expected a spec",  # not a path, in spite of the full stop
    "f(x=1)(y=2)": "expected a spec",
    "f)": "expected a spec",
    "mlp(hidden=(1,2)": "never closed",
    "f(3)": "'3' without a key",
    "f(*a)": "without a key",
    "f(**a)": "got '**'",
    "f(x==1)": "without a key",
    "f(x=1, x=2)": "'x' is given twice",
    "f(step-size=1, step_size=2)": "'step_size' is given twice",
    "f(x=)": "cannot read the arguments",
    "f(x=1 y=2)": "cannot read the arguments",
    "f(x=if)": "cannot read the arguments",
    "f(x='a)": "cannot read the arguments",
    "f(x\0=1)": "null bytes",
    "f(x=a.b)": "got 'a.b'",
    "f(x=a+b)": "got 'a + b'",
    "f(x=open('y'))": "literal or a word",
    "f(x=[i for i in y])": "literal or a word",
    "f(x={[1]: 2})": "literal or a word",  # unhashable
    "f(x=" + "-" * 5000 + "1)": "cannot read the arguments",
    "f(x=" + "9" * 5000 + ")": "cannot read the arguments",
    "/data/images (1)": "write '/data/images (1)()'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refuses_in_one_line(text):
    with pytest.raises(InputError) as caught:
        parse_spec(text)
    message = str(caught.value)
    assert REFUSED[text] in message
    assert "\n" not in message


def test_suggests_the_nearest():
    assert suggest("bernuolli", ["normal", "bernoulli"]) == (
        "; did you mean 'bernoulli'? Valid: bernoulli, normal"
    )
    assert suggest("zzz", ["normal"]) == ". Valid: normal"
    assert suggest("x", []) == "; it takes none"


def test_nested_too_deeply_is_refused_in_one_line_wherever_the_parser_gives_up(monkeypatch):
    text = f"f(x={'-' * 5000}1)"
    limit = sys.getrecursionlimit()
    try:
        # Where a library has raised the limit, the parser takes what its walkers do not.
        for higher in (limit, 8000, 14000):
            sys.setrecursionlimit(max(limit, higher))
            with pytest.raises(InputError, match="cannot read the arguments") as caught:
                parse_spec(text)
            assert "\n" not in str(caught.value)
    finally:
        sys.setrecursionlimit(limit)
