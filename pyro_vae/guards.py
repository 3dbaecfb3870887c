"""What a captured program takes from Python: numbers and tensors it reaches, watched a step."""

__all__ = ["Guards", "watch"]

import dis
import functools
import random
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any

import numpy as np
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
NUMBERS = (int, float)
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)
# Objects of these packages are taken as they are, and functions of theirs are not read.
LIBRARIES = ("torch", "pyro", "pyro_vae", "numpy", "math", "builtins", "typing", "functools")
MISSING = object()
# What torch and Pyro keep in a module beside the values that its forward reads.
KEPT_BY_LIBRARIES = frozenset(vars(nn.Module())) | {"_pyro_context"}
READ_BY_LIBRARIES = ("training", "forward", "_pyro_name", "_pyro_params", "_pyro_samples")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
AUTOGUIDES = "pyro.infer.autoguide."
# Bases whose own code reads no attribute that a program gives to its object.
PLAIN_BASES = (object, nn.Module, PyroModule)
# Code that mentions one of these may read any attribute.
DYNAMIC = frozenset({"getattr", "vars", "__dict__", "attrgetter", "eval", "exec", "globals"})
OF_MAKING = ("__init__", "__new__", "__post_init__", "__repr__", "__str__", "__del__")
GLOBAL_LOOKUPS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
LARGEST_CONTAINER = 1000


class Guards:
    """Values that a program took from Python when it was captured.

    A graph holds numbers as constants. Whatever the program's functions, closures,
    globals, classes, modules and objects hold is listed by ``watch``; ``hold`` says whether
    all of it is still the same: numbers by value, tensors and objects by identity. Of a
    container with more than 1000 items only the length is watched.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[Mapping[Any, Any], Any, Any, str]] = []
        self.cells: list[tuple[Any, Any, str]] = []
        self.items: list[tuple[Any, int, Any, str]] = []
        self.containers: list[Sized] = []
        self.lengths: list[int] = []
        self.container_names: list[str] = []
        self.copies: list[tuple[Any, Callable[[Any], Any], Any, str]] = []
        self.tensors: dict[int, Tensor] = {}
        """Every tensor found, by id."""
        self.generators: list[Any] = []
        """Generators of random numbers of Python and NumPy that the program holds."""
        self.roots: Any = None
        """Kept alive: what is watched is known by identity."""

    def hold(self) -> bool:
        """Whether nothing has changed."""
        return self.change() is None

    def add_size(self, container: Sized, name: str) -> None:
        """Watch the length of a container."""
        self.containers.append(container)
        self.lengths.append(len(container))
        self.container_names.append(name)

    def generator_states(self) -> list[str]:
        """Return what the generators of Python and NumPy that the program holds will draw next."""
        return [repr(_state(generator)) for generator in self.generators]

    def restore_numbers(self, since: "Guards") -> None:
        """Set the numbers that changed since those later guards back to what they are here.

        A program that counts its runs has then not counted those in between.
        """
        changed = {(id(m), k) for m, k, value, _ in since.entries if m.get(k, MISSING) is not value}
        for mapping, key, value, _ in self.entries:
            if (
                type(value) in NUMBERS
                and isinstance(mapping, dict)
                and (id(mapping), key) in changed
            ):
                mapping[key] = value
        cells = {id(cell) for cell, value, _ in since.cells if _contents(cell) is not value}
        for cell, value, _ in self.cells:
            if type(value) in NUMBERS and id(cell) in cells:
                cell.cell_contents = value

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
        if [*map(len, self.containers)] != self.lengths:
            sizes = zip(self.container_names, self.lengths, self.containers, strict=True)
            name, size, now = next((n, s, len(c)) for n, s, c in sizes if len(c) != s)
            return _said(f"len({name})", size, now)
        for items, index, expected, name in self.items:
            value = items[index]
            if value is not expected and not _equal(value, expected):
                return _said(name, expected, value)
        for container, contents, expected, name in self.copies:
            if contents(container) != expected:
                return f"{name}: other contents"
        return None


def watch(**roots: Any) -> Guards:
    """Return the guards of everything that these objects hold, by the names they are given.

    Of an object of a program's own class those attributes are watched that any code of the
    program mentions, whichever function it is passed to.
    """
    mentioned: frozenset[str] = frozenset()
    while True:
        walk = _Walk(mentioned)
        for name, root in roots.items():
            walk.visit(root, name)
        if walk.found <= mentioned:
            walk.guards.roots = roots
            return walk.guards
        mentioned |= walk.found


class _Walk:
    """One pass through everything reachable.

    Arguments:
        mentioned: names in the program's code, as far as known; ``found`` adds to them.
    """

    def __init__(self, mentioned: frozenset[str]):
        self.guards = Guards()
        self.mentioned = mentioned
        self.every_attribute = bool(mentioned & DYNAMIC)
        self.found: set[str] = set()
        self._seen: set[int] = set()
        self._classes: set[tuple[type, bool]] = set()

    def visit(self, value: Any, name: str) -> None:
        """List what ``value`` holds."""
        if isinstance(value, (*SCALARS, types.ModuleType)) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self.guards.tensors[id(value)] = value
        elif isinstance(value, GENERATORS):
            self.guards.generators.append(value)
        elif isinstance(value, type):
            self._visit_class(value, made=True)
        elif isinstance(value, types.FunctionType):
            self._visit_function(value, name)
        elif isinstance(value, types.MethodType):
            self.visit(value.__self__, name)
            self.visit(value.__func__, name)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.visit(part, name)
        elif isinstance(value, dict):
            self._visit_dict(value, name)
        elif isinstance(value, list | tuple | deque):
            self._visit_items(value, name)
        elif isinstance(value, set | frozenset):
            self._visit_copy(value, len(value), set, name)
        elif isinstance(value, np.ndarray):
            self._visit_copy(value, value.size, np.ndarray.tobytes, name)
        else:
            self._visit_object(value, name)

    def _visit_object(self, value: Any, name: str) -> None:
        kind = type(value)
        if isinstance(value, nn.Module):
            for registered in ("_parameters", "_buffers", "_modules"):
                self._visit_dict(vars(value)[registered], name, ".{}")
            for hooks in HOOKS:
                self._visit_dict(vars(value)[hooks], f"{name}.{hooks}")
        self._visit_class(kind, made=False)
        attributes = getattr(value, "__dict__", None)
        if attributes is not None:
            keys = [key for key in attributes if self._is_read(kind, key)]
            self._visit_entries(attributes, keys, name, ".{}")
            if not _is_library(kind.__module__):
                self.guards.add_size(attributes, f"vars({name})")
        slots = [s for c in kind.__mro__ for s in _slots(c) if not _is_library(c.__module__)]
        if slots:
            self._visit_entries(_Slots(value), slots, name, ".{}")

    def _is_read(self, kind: type, key: str) -> bool:
        """Whether code may read this attribute of objects of this class."""
        if key in READ_BY_LIBRARIES:
            return True
        if key in KEPT_BY_LIBRARIES and issubclass(kind, nn.Module):
            return False
        if key == "plates" and any(c.__module__.startswith(AUTOGUIDES) for c in kind.__mro__):
            return False  # made anew before each use
        libraries = [c for c in kind.__mro__ if _is_library(c.__module__)]
        if kind in libraries:
            return not key.startswith("_cached")  # what a transform remembers of its last call
        if self.every_attribute or not all(c in PLAIN_BASES for c in libraries):
            return True
        return key in self.mentioned

    def _visit_class(self, kind: type, made: bool) -> None:
        """List the values that a program's own class holds, and the methods that it may call.

        Arguments:
            made: whether the program may make objects of the class, by ``__init__``.
        """
        for part in kind.__mro__:
            if _is_library(part.__module__) or (part, made) in self._classes:
                continue
            self._classes |= {(part, made), (part, False)}
            for key, value in list(vars(part).items()):
                functions = _functions_of(value)
                if functions and self._is_called(key, made):
                    for function in functions:
                        self.visit(function, part.__name__)
                elif not functions and not key.startswith("__") and key != "_abc_impl":
                    self._visit_entries(vars(part), [key], part.__name__, ".{}")

    def _is_called(self, method: str, made: bool) -> bool:
        if method in OF_MAKING:
            return made
        special = method.startswith("__") or method == "forward"
        return special or self.every_attribute or method in self.mentioned

    def _visit_function(self, function: Any, name: str) -> None:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
        for variable, cell in cells:
            value = _contents(cell)
            self.guards.cells.append((cell, value, variable))
            self.visit(value, variable)
        if _is_library(function.__module__ or ""):
            return
        self.found |= _names(function.__code__)
        self.visit(function.__defaults__, name)
        self.visit(function.__kwdefaults__, name)
        self._visit_names(_global_names(function.__code__), function.__globals__)

    def _visit_names(self, names: Iterable[str], scope: dict[str, Any], prefix: str = "") -> None:
        """List the globals of this scope that code mentions, those of its own modules too."""
        for key in sorted(set(names) & scope.keys()):
            value = scope[key]
            if isinstance(value, types.ModuleType):
                if not _is_library(value.__name__) and id(value) not in self._seen:
                    self._seen.add(id(value))
                    self._visit_names(self.mentioned, vars(value), f"{prefix}{key}.")
            elif _is_value(value) or not _is_library(getattr(value, "__module__", None) or ""):
                self._visit_entries(scope, [key], "", prefix + "{}")

    def _visit_dict(self, value: dict[Any, Any], name: str, form: str = "[{!r}]") -> None:
        self.guards.add_size(value, name)
        if len(value) <= LARGEST_CONTAINER:
            self._visit_entries(value, list(value), name, form)

    def _visit_entries(
        self, mapping: Mapping[Any, Any], keys: Iterable[Any], name: str, form: str
    ) -> None:
        for key in keys:
            value = mapping.get(key, MISSING)
            label = name + form.format(key)
            self.guards.entries.append((mapping, key, value, label))
            self.visit(value, label)

    def _visit_items(self, items: Any, name: str) -> None:
        fixed = isinstance(items, tuple)
        if not fixed:
            self.guards.add_size(items, name)
        if len(items) > LARGEST_CONTAINER:
            return
        for index, value in enumerate(items):
            label = f"{name}[{index}]"
            if not fixed:
                self.guards.items.append((items, index, value, label))
            self.visit(value, label)

    def _visit_copy(self, value: Any, size: int, contents: Callable[[Any], Any], name: str) -> None:
        if size <= LARGEST_CONTAINER:
            self.guards.copies.append((value, contents, contents(value), name))


class _Slots(Mapping[str, Any]):
    """An object's slots as a mapping."""

    def __init__(self, holder: Any):
        self.holder = holder

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self.holder, key)
        except AttributeError:
            raise KeyError(key) from None

    def __iter__(self) -> Any:
        return iter(_slots(type(self.holder)))

    def __len__(self) -> int:
        return len(_slots(type(self.holder)))


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.bit_generator.state


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _functions_of(value: Any) -> list[Any]:
    """The functions behind a class attribute: a method, a static or class method, a property."""
    parts = [getattr(value, part, None) for part in ("__func__", "fget", "func", "__wrapped__")]
    return [f for f in (value, *parts) if isinstance(f, types.FunctionType)]


def _names(code: types.CodeType) -> frozenset[str]:
    """The names that a function's code, and functions in it, mention, in strings too."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    strings = [const for const in code.co_consts if isinstance(const, str) and const.isidentifier()]
    return frozenset((*code.co_names, *strings)).union(*(_names(part) for part in inner))


def _global_names(code: types.CodeType) -> frozenset[str]:
    """Those of the names that are looked up in the function's module."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    own = (i.argval for i in dis.get_instructions(code) if i.opname in GLOBAL_LOOKUPS)
    return frozenset(own).union(*(_global_names(part) for part in inner))


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
