"""A user's own file of Pyro programs: ``model`` and ``guide``, found in it and tried once."""

__all__ = ["Programs", "load_programs", "try_programs"]

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.execution import Program
from pyro_vae.log_weights import log_weight_terms


class Programs(NamedTuple):
    """p and q of a user's file."""

    model: Program
    guide: Program
    path: Path

    @property
    def source_hash(self) -> str:
        """The SHA-256 (hex) of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the modules' parameters; float32 for plain functions."""
        parameters = [
            parameter
            for program in (self.model, self.guide)
            if isinstance(program, nn.Module)
            for parameter in program.parameters()
            if parameter.is_floating_point()
        ]
        return parameters[0].dtype if parameters else torch.float32

    def to(self, device: torch.device) -> "Programs":
        """Put modules on a device, in evaluation mode; plain functions follow their data."""
        for program in (self.model, self.guide):
            if isinstance(program, nn.Module):
                program.to(device).eval()
        return self


def load_programs(path: str | Path) -> Programs:
    """Execute a file and return its ``model`` and ``guide``, functions of ``x`` or modules.

    The file finds modules beside it. Parameters that it registers while it is executed
    go to the current store of Pyro; random numbers come from torch's global generator.

    Raises:
        InputError: no such file, one that fails, or one without the two names.
    """
    path = Path(path).expanduser()
    if path.suffix != ".py" or not path.is_file():
        found = "no such file" if path.suffix == ".py" else "expected a .py file, got"
        raise InputError(f"{found}: '{path}'")
    members = _execute(path)
    for name in ("model", "guide"):
        if name not in members:
            public = [key for key, value in members.items() if callable(value) and key[0] != "_"]
            raise InputError(
                f"'{path}' has no {name!r}; expected model and guide, Pyro programs of x; it has: "
                f"{', '.join(public) or 'nothing'}"
            )
        if isinstance(members[name], type) or not callable(members[name]):
            raise InputError(
                f"'{path}': expected {name} as a function of x or an instance of a module, got "
                f"{_shown(members[name])}"
            )
    return Programs(members["model"], members["guide"], path)


def try_programs(programs: Programs, x: Tensor) -> None:
    """Run both once on ``x``, so that a program that does not fit the data is told in one line.

    Raises:
        InputError: what the programs raised, with the line of the file where they did.
    """
    try:
        with torch.no_grad():
            log_weight_terms(programs.model, programs.guide, x, 1)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"'{programs.path}' fails on x of shape {list(x.shape)}: "
            f"{_told(error, programs.path.resolve())}"
        ) from error


def _execute(given: Path) -> dict[str, Any]:
    path = given.resolve()
    name = f"pyro_vae_program_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"'{given}': expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        with _first_on_path(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"'{given}' cannot be executed: {_told(error, path)}") from error
    return vars(module)


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _told(error: BaseException, path: Path) -> str:
    """The error in one line, with the last line of the user's file that led to it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    place = f"line {lines[-1]}: " if lines else ""
    message = str(error).partition("Trace Shapes:")[0]  # a table that Pyro adds
    return place + " ".join(f"{type(error).__name__}: {message}".split())


def _shown(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
