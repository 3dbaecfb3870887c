"""Finds a component by name or by .py path, and builds it from what is on offer."""

__all__ = ["Component", "find", "build", "names", "source_hash"]

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pyro_vae.errors import InputError, suggest
from pyro_vae.specs import Spec, parse_spec

# One component a file: the file's stem is its name.
PACKAGES = {
    "model": "pyro_vae.models",
    "prior": "pyro_vae.models.priors",
    "likelihood": "pyro_vae.models.likelihoods",
    "guide": "pyro_vae.guides",
    "objective": "pyro_vae.objectives",
}
# Public functions of one module; `network` serves encoder and decoder.
MODULES = {"network": "pyro_vae.networks", "corruption": "pyro_vae.corruptions"}
# Classes of torch.optim: adam, rmsprop, …; step_lr, cosine_annealing_lr, ….
TORCH = {"optimizer": torch.optim.Optimizer, "schedule": torch.optim.lr_scheduler.LRScheduler}
# These need closures, sparse gradients, matrices, functions, other schedules or a metric.
UNSUPPORTED = frozenset(
    (
        "lbfgs", "sparseadam", "muon", "lr_scheduler", "lambda_lr", "multiplicative_lr",
        "chained_scheduler", "sequential_lr", "reduce_lr_on_plateau",
    )
)  # fmt: skip

# Received by name where a constructor asks for them; never given in a spec.
OFFERED = frozenset(
    (
        "latent_dim", "latent_dims", "event_shape", "measure", "num_levels", "unit", "data_mean",
        "data_scale", "data_sample", "encoder", "posterior", "has_density", "model", "prior",
        "likelihood", "decoder", "params", "optimizer",
    )
)  # fmt: skip
# The model's spec may say how many latents there are; everything else is offered them.
DECLARED = frozenset((("model", "latent_dims"),))


@dataclass(frozen=True)
class Component:
    """A named constructor of one kind."""

    kind: str
    name: str
    constructor: Callable[..., Any]

    @property
    def options(self) -> dict[str, Any]:
        """The arguments a spec may give, each with its default (or ``...`` where required)."""
        return {
            name: ... if parameter.default is parameter.empty else parameter.default
            for name, parameter in self._parameters().items()
            if name not in OFFERED or (self.kind, name) in DECLARED
        }

    def asks_for(self, name: str) -> bool:
        """Whether the constructor receives ``name``."""
        return name in self._parameters()

    @property
    def summary(self) -> str:
        """The first line of its docstring, as plain text."""
        return (inspect.getdoc(self.constructor) or "").partition("\n")[0].replace("``", "")

    def _parameters(self) -> dict[str, inspect.Parameter]:
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = inspect.signature(self.constructor).parameters
        return {k: p for k, p in parameters.items() if p.kind not in kinds}

    def build(self, arguments: dict[str, Any], **offered: Any) -> Any:
        """Call the constructor with a spec's arguments and whatever it asks for of ``offered``.

        Raises:
            InputError: an unknown or missing key, or a value the constructor refuses.
        """
        shown = Spec(self.name, arguments)
        for key in arguments:
            if key not in self.options:
                why = suggest(key, self.options)
                if self.kind == "objective" and key == "free_bits":
                    why = "; they need an analytic KL: --objective 'closed_form(free_bits=…)'"
                raise InputError(f"{self.kind} {self.name!r} has no argument {key!r}{why}")
        wanted = self._parameters()
        received = {key: value for key, value in offered.items() if key in wanted}
        for key, parameter in wanted.items():
            if (
                key not in arguments
                and key not in received
                and parameter.default is parameter.empty
            ):
                raise InputError(f"{self.kind} {shown} needs {key}=…")
        try:
            return self.constructor(**{**received, **arguments})
        except InputError:
            raise
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            # Of torch's errors only "value cannot be converted to type float without overflow".
            if isinstance(error, RuntimeError) and "without overflow" not in str(error):
                raise
            message = self._mistyped(arguments) if isinstance(error, TypeError) else None
            message = message or str(error).partition("\n")[0]
            raise InputError(f"{self.kind} {shown}: {message}") from error

    def _mistyped(self, arguments: dict[str, Any]) -> str | None:
        """Name the first argument of another type than its default: Python's words do not."""
        for key, value in arguments.items():
            default = self.options[key]
            numbers = isinstance(default, int | float) and isinstance(value, int | float)
            unknown = default is None or default is ...
            if not unknown and not numbers and type(default) is not type(value):
                return f"{key} must be like {default!r}, got {value!r}"
        return None


def names(kind: str) -> list[str]:
    """The names discovery finds for a kind, sorted."""
    return sorted(name for name, _ in _discover(kind))


def find(kind: str, spec: str | Spec) -> Component:
    """Return the component a spec names, by discovery or from a .py file (first in ``__all__``).

    Raises:
        InputError: no such name, with the nearest match; no such file; no component in it.
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    if spec.is_path:
        if kind in TORCH:
            raise InputError(f"{kind} {spec.name!r}: give the name of a torch.optim class")
        return Component(kind, spec.name, _first(_load(Path(spec.name)), kind, spec.name))
    for name, load in _discover(kind):
        if name == spec.name:
            return Component(kind, name, load())
    raise InputError(f"unknown {kind} {spec.name!r}{suggest(spec.name, names(kind))}")


def build(kind: str, text: str, **offered: Any) -> Any:
    """Build the component a spec describes; see ``Component.build``.

    Example:
        >>> build("optimizer", "adam(lr=0.1)", params=[torch.zeros(1)]).defaults["lr"]
        0.1
        >>> build("optimizer", "adem", params=[])
        Traceback (most recent call last):
        pyro_vae.errors.InputError: unknown optimizer 'adem'; did you mean 'adam'? Valid: ...
    """
    spec = parse_spec(text)
    return find(kind, spec).build(spec.arguments, **offered)


def source_hash(text: str) -> tuple[str, str] | None:
    """Return (path, sha256 of the file) where a spec names a .py file, else None.

    Raises:
        InputError: the file is missing.
    """
    spec = parse_spec(text)
    if not spec.is_path:
        return None
    path = _existing(Path(spec.name))
    return str(path.resolve()), hashlib.sha256(path.read_bytes()).hexdigest()


def _discover(kind: str) -> Iterator[tuple[str, Callable[[], Callable[..., Any]]]]:
    if kind in PACKAGES:
        package = importlib.import_module(PACKAGES[kind])
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            if not path.stem.startswith("_"):
                yield path.stem, partial(_member, package, path.stem, kind)
    elif kind in MODULES:
        module = importlib.import_module(MODULES[kind])
        for name in module.__all__:
            if inspect.isfunction(getattr(module, name)):
                yield name, partial(getattr, module, name)
    else:
        base = TORCH[kind]
        module = torch.optim if kind == "optimizer" else torch.optim.lr_scheduler
        for title, member in sorted(vars(module).items()):
            name = title.lower() if kind == "optimizer" else _snake_case(title)
            subclass = inspect.isclass(member) and issubclass(member, base) and member is not base
            if subclass and not title.startswith("_") and name not in UNSUPPORTED:
                yield name, partial(vars(module).__getitem__, title)


def _snake_case(title: str) -> str:
    """CosineAnnealingLR → cosine_annealing_lr."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=LR)(?=[A-Z])", "_", title).lower()


def _member(package: ModuleType, stem: str, kind: str) -> Callable[..., Any]:
    return _first(importlib.import_module(f"{package.__name__}.{stem}"), kind, stem)


def _first(module: ModuleType, kind: str, name: str) -> Callable[..., Any]:
    """The first name in ``__all__``, or the first public class defined in the module."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__ and key[0] != "_"
        ]
    if not listed or not callable(getattr(module, listed[0], None)):
        raise InputError(f"{kind} {name}: expected a class, the first in the file's __all__")
    constructor: Callable[..., Any] = getattr(module, listed[0])
    return constructor


def _load(path: Path) -> ModuleType:
    path = _existing(path).resolve()
    name = f"pyro_vae_component_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"'{path}' cannot be imported: {reason}") from error
    return module


def _existing(path: Path) -> Path:
    path = path.expanduser()
    if path.suffix != ".py":
        raise InputError(f"expected a component's name or a .py file, got '{path}'")
    if not path.is_file():
        raise InputError(f"no such file: '{path}'")
    return path
