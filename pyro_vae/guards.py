"""What a captured program takes from Python: numbers and tensors it reaches, watched a step."""

__all__ = ["Guards", "watch"]

import functools
import types
from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn

SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
# Objects of these packages are taken as they are, and functions of theirs are not read.
LIBRARIES = ("torch", "pyro", "pyro_vae", "numpy", "math", "builtins", "typing", "functools")
MISSING = object()
# What torch and Pyro keep in a module beside the values that its forward reads.
KEPT_BY_LIBRARIES = frozenset(vars(nn.Module())) | {"_pyro_context"}
READ_BY_FORWARD = ("training", "_forward_hooks", "_forward_pre_hooks")
LARGEST_CONTAINER = 1000


class Guards:
    """Values that a program took from Python when it was captured.

    A graph holds numbers as constants. Whatever the program's functions, closures,
    globals, modules and objects hold is listed by ``watch``; ``hold`` says whether all of
    it is still the same: numbers by value, tensors and objects by identity.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[Mapping[Any, Any], Any, Any, str]] = []
        self.cells: list[tuple[Any, Any, str]] = []
        self.lists: list[tuple[list[Any], int, Any, str]] = []
        self.sizes: list[tuple[Sized, int, str]] = []
        self.tensors: dict[int, Tensor] = {}
        """Every tensor found, by id."""

    def hold(self) -> bool:
        """Whether nothing has changed."""
        return self.change() is None

    def change(self) -> str | None:
        """Return what changed, ``name: before → now``; None where nothing has."""
        for mapping, key, expected, name in self.entries:
            value = mapping.get(key, MISSING)
            if value is not expected and not _equal(value, expected):
                return _said(name, expected, value)
        for cell, expected, name in self.cells:
            value = _contents(cell)
            if value is not expected and not _equal(value, expected):
                return _said(name, expected, value)
        for items, index, expected, name in self.lists:
            value = items[index] if index < len(items) else MISSING
            if value is not expected and not _equal(value, expected):
                return _said(name, expected, value)
        for container, size, name in self.sizes:
            if len(container) != size:
                return _said(f"len({name})", size, len(container))
        return None


def watch(**roots: Any) -> Guards:
    """Return the guards of everything that these objects hold, by the names they are given."""
    guards = Guards()
    seen: set[int] = set()
    for name, root in roots.items():
        _visit(root, name, guards, seen)
    return guards


def _visit(
    value: Any, name: str, guards: Guards, seen: set[int], names: frozenset[str] | None = None
) -> None:
    """List what ``value`` holds; ``names`` are those that the function it came from mentions."""
    if isinstance(value, (*SCALARS, type, types.ModuleType)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        guards.tensors[id(value)] = value
    elif isinstance(value, nn.Module):
        for registered in (value._parameters, value._buffers, value._modules):
            _visit_entries(registered, list(registered), name, guards, seen, ".{}")
        _visit_object(value, name, guards, seen, frozenset({"forward"}) | (names or frozenset()))
    elif isinstance(value, types.FunctionType):
        _visit_function(value, name, guards, seen)
    elif isinstance(value, types.MethodType):
        _visit(value.__self__, name, guards, seen, frozenset({value.__func__.__name__}))
        _visit(value.__func__, name, guards, seen)
    elif isinstance(value, functools.partial):
        for part in (value.func, value.args, value.keywords):
            _visit(part, name, guards, seen)
    elif isinstance(value, dict):
        guards.sizes.append((value, len(value), name))
        if len(value) <= LARGEST_CONTAINER:
            _visit_entries(value, list(value), name, guards, seen, "[{!r}]")
    elif isinstance(value, list | tuple):
        _visit_items(value, name, guards, seen)
    elif hasattr(value, "__dict__"):
        _visit_object(value, name, guards, seen, names)


def _visit_object(
    value: Any, name: str, guards: Guards, seen: set[int], names: frozenset[str] | None
) -> None:
    """List an object's attributes; of a program's own class those that its code mentions."""
    kinds = [kind for kind in type(value).__mro__ if not _is_library(kind.__module__)]
    attributes = vars(value)
    keys = [k for k in attributes if k in READ_BY_FORWARD or k not in KEPT_BY_LIBRARIES]
    if kinds and names is not None:
        names, methods = _reached(kinds, names)
        if not isinstance(value, nn.Module):
            keys = [key for key in keys if key in names]
        for method in methods:
            _visit_function(method, name, guards, seen)
    _visit_entries(attributes, keys, name, guards, seen, ".{}")
    for kind in kinds:
        held = [k for k, v in vars(kind).items() if _is_value(v) and not k.startswith("__")]
        _visit_entries(vars(kind), held, kind.__name__, guards, seen, ".{}")


def _reached(kinds: list[type], names: frozenset[str]) -> tuple[frozenset[str], list[Any]]:
    """The names that methods mention, beginning with ``names``, and those methods."""
    waiting, mentioned = set(names) | {"__call__"}, set(names)
    methods: list[Any] = []
    while waiting:
        name = waiting.pop()
        for kind in kinds:
            method = vars(kind).get(name)
            method = getattr(method, "fget", method)  # a property's
            if isinstance(method, types.FunctionType) and method not in methods:
                methods.append(method)
                found = _names(method.__code__) - mentioned
                waiting |= found
                mentioned |= found
    return frozenset(mentioned), methods


def _visit_function(function: Any, name: str, guards: Guards, seen: set[int]) -> None:
    names = _names(function.__code__)
    for variable, cell in zip(
        function.__code__.co_freevars, function.__closure__ or (), strict=False
    ):
        value = _contents(cell)
        guards.cells.append((cell, value, variable))
        _visit(value, variable, guards, seen, names)
    if _is_library(function.__module__ or ""):
        return
    _visit(function.__defaults__, name, guards, seen)
    _visit(function.__kwdefaults__, name, guards, seen)
    scope = function.__globals__
    for key in names & scope.keys():
        value = scope[key]
        if isinstance(value, types.ModuleType):
            if not _is_library(value.__name__):
                held = [k for k in names & vars(value).keys() if _is_value(vars(value)[k])]
                _visit_entries(vars(value), held, key, guards, seen, ".{}")
        elif _is_value(value) or not _is_library(getattr(value, "__module__", None) or ""):
            guards.entries.append((scope, key, value, key))
            _visit(value, key, guards, seen, names)


def _visit_entries(
    mapping: Mapping[Any, Any],
    keys: list[Any],
    name: str,
    guards: Guards,
    seen: set[int],
    form: str,
) -> None:
    for key in keys:
        value = mapping[key]
        label = name + form.format(key)
        guards.entries.append((mapping, key, value, label))
        _visit(value, label, guards, seen)


def _visit_items(
    items: list[Any] | tuple[Any, ...], name: str, guards: Guards, seen: set[int]
) -> None:
    if isinstance(items, list):
        guards.sizes.append((items, len(items), name))
    if len(items) > LARGEST_CONTAINER:
        return
    for index, value in enumerate(items):
        label = f"{name}[{index}]"
        if isinstance(items, list):
            guards.lists.append((items, index, value, label))
        _visit(value, label, guards, seen)


def _names(code: types.CodeType) -> frozenset[str]:
    """The global names and attributes that a function's code, and functions in it, mention."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return frozenset(code.co_names).union(*(_names(part) for part in inner))


def _is_value(value: Any) -> bool:
    return isinstance(value, (*SCALARS, Tensor))


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in LIBRARIES


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return MISSING


def _equal(value: Any, expected: Any) -> bool:
    if type(value) is not type(expected) or not isinstance(value, SCALARS):
        return False
    return bool(value == expected)


def _said(name: str, before: Any, now: Any) -> str:
    return f"{name}: {_shown(before)} → {_shown(now)}"


def _shown(value: Any) -> str:
    if value is MISSING:
        return "nothing"
    return repr(value)[:40] if isinstance(value, SCALARS) else f"a {type(value).__name__}"
