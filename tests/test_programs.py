"""A user's own file of Pyro programs: what is found in it, and what is said of what is not."""

import sys

import pyro
import pytest
import torch
from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.log_weights import log_weights
from pyro_vae.programs import load_programs, try_programs

FUNCTIONS = """
import pyro
import pyro.distributions as dist
import torch


def model(x):
    scale = pyro.param("scale", lambda: torch.rand(()) + 1, constraint=dist.constraints.positive)
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[..., None], scale).to_event(1), obs=x)


def guide(x):
    shift = pyro.param("shift", torch.tensor(0.5))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x.mean(-1) * shift, 1.0))
"""
MODULES = """
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
import torch
from torch import nn

from beside import SIZE


@dataclass
class Sizes:
    latent: "int" = SIZE


class Decoder(PyroModule):
    def __init__(self):
        super().__init__("model")
        self.linear = nn.Linear(Sizes().latent, 3, dtype=torch.float64)
        self.dropout = nn.Dropout()

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            p = dist.Normal(x.new_zeros(SIZE), 1.0).to_event(1)
            loc = self.linear(pyro.sample("z", p))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x[:, :SIZE], 1.0).to_event(1))


model = Decoder()
"""


def write(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_functions_are_found_and_run(tmp_path):
    programs = load_programs(write(tmp_path, FUNCTIONS))
    x = torch.randn(5, 2)
    with pyro.get_param_store().scope():
        try_programs(programs, x)
        assert set(pyro.get_param_store()) == {"scale", "shift"}
        assert log_weights(programs.model, programs.guide, x, 7).shape == (7, 5)
    assert not dict(pyro.get_param_store())
    assert programs.dtype == torch.float32
    assert len(programs.source_hash) == 64


def test_modules_keep_their_dtype_and_are_put_in_evaluation_mode(tmp_path):
    """The file imports another beside it, and holds a dataclass, which looks its module up."""
    write(tmp_path, "SIZE = 2\n", "beside.py")
    before = list(sys.path)
    programs = load_programs(write(tmp_path, MODULES)).to(torch.device("cpu"))
    assert sys.path == before
    assert isinstance(programs.model, nn.Module)
    assert programs.dtype == torch.float64
    assert not programs.model.training
    assert not programs.model.dropout.training
    try_programs(programs, torch.randn(4, 3, dtype=torch.float64))
    del sys.modules["beside"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n", "has no 'model'; expected model and guide, Pyro programs of x"),
        ("def model(x): pass\n", "has no 'guide'"),
        ("def model(x): pass\ndef guides(x): pass\n", "it has: model, guides"),
        ("class model: pass\ndef guide(x): pass\n", "got the class model"),
        ("model = 3\ndef guide(x): pass\n", "got int"),
        ("\nraise RuntimeError('two\\nlines')\n", "line 2: RuntimeError: two lines"),
        ("def model(:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("import no_such_module_of_mine\n", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_file_that_will_not_do_is_told_in_one_line(tmp_path, text, reason):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=r"mine\.py") as error:
        load_programs(path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_failed_leaves_no_module_behind(tmp_path):
    loaded, path = set(sys.modules), list(sys.path)
    with pytest.raises(InputError, match="ZeroDivisionError"):
        load_programs(write(tmp_path, "1 / 0\n"))
    assert set(sys.modules) == loaded
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "reason"), [("none.py", "no such file"), ("notes.txt", r"expected a \.py file")]
)
def test_no_file_or_another_kind(tmp_path, name, reason):
    with pytest.raises(InputError, match=reason):
        load_programs(tmp_path / name)


def test_a_program_that_does_not_fit_the_data_is_told_with_its_line(tmp_path):
    """A decoder of flat images meets images of 8×8."""
    programs = load_programs(write(tmp_path, FUNCTIONS.replace("x.mean(-1) * shift", "x @ x.T")))
    with pyro.get_param_store().scope(), pytest.raises(InputError) as error:
        try_programs(programs, torch.randn(5, 8, 8))
    message = str(error.value)
    assert "fails on x of shape [5, 8, 8]: line " in message
    assert "\n" not in message


def test_a_program_without_a_data_plate_keeps_its_own_message(tmp_path):
    text = FUNCTIONS.replace('with pyro.plate("data", x.shape[0], dim=-1):', "if True:")
    programs = load_programs(write(tmp_path, text))
    with pyro.get_param_store().scope(), pytest.raises(InputError, match="outside the data plate"):
        try_programs(programs, torch.randn(5, 2))
