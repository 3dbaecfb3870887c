"""A Pyro computation captured as a graph, checked against itself, and valid while it holds."""

__all__ = ["CapturedProgram", "capture_program", "signature_of", "check_close"]

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyro_vae.capture import CaptureError, Graph, capture
from pyro_vae.guards import SCALARS, Guards, watch

# How far a graph may be from what it captured, relative to norms: the same arithmetic in
# the same order, and compiled, where sums are taken in another order.
TOLERANCES = {torch.float64: (1e-10, 1e-8), torch.float32: (1e-5, 1e-3)}
REDUCED_TOLERANCES = (1e-2, 1e-1)  # for half precision and autocast

Outputs = Sequence[Tensor | None]


class CapturedProgram:
    """A graph, and what it took for granted.

    Arguments:
        graph: takes the tensors among the arguments.
        guards: what the programs took from Python.
        parameters: name → unconstrained leaf in Pyro's parameter store.
    """

    def __init__(self, graph: Graph, guards: Guards, parameters: dict[str, Tensor]):
        self.graph = graph
        self.guards = guards
        self.parameters = parameters
        known = {id(tensor): tensor for tensor in (*parameters.values(), *graph.lifted)}
        self._kinds = [(tensor, *_kind(tensor)) for tensor in known.values()]

    def holds(self) -> bool:
        """Whether the graph still is what the programs compute."""
        return self.change() is None

    def change(self) -> str | None:
        """Return what changed since the capture, or None."""
        store = pyro.get_param_store()._params
        for name, leaf in self.parameters.items():
            if store.get(name) is not leaf:
                return f"parameter {name!r} is another tensor"
        for tensor, required, dtype, shape, strides, negative in self._kinds:
            if tensor.requires_grad is not required:
                return "requires_grad of a parameter"
            if tensor.dtype is not dtype or tensor.shape != shape:  # another ``data``
                return "dtype or shape of a parameter"
            if tensor.stride() != strides or tensor.is_neg() is not negative:
                return "how a parameter lies in memory"
        return self.guards.change()

    def __call__(self, *tensors: Tensor) -> list[Any]:
        """Run on the tensors among the arguments."""
        return self.graph(*tensors)


def capture_program(
    function: Callable[[], Outputs],
    tensors: Sequence[Tensor],
    roots: dict[str, Any],
    check: Callable[[Outputs, bool], None],
    *,
    parameters: dict[str, Tensor],
    prepare: Callable[[Graph], None] = lambda graph: None,
    compile: bool = True,
) -> CapturedProgram:
    """Capture ``function`` and run the graph once, interpreted and compiled, through ``check``.

    Random states and tensors are afterwards what they were before.

    Arguments:
        function: computes the outputs from ``tensors`` and whatever it reaches.
        tensors: the tensors among the arguments.
        roots: name → program or object that the function runs.
        check: called with outputs and whether they are of the compiled graph, under
            the random state that the function began with; raises ``CaptureError``.
        parameters: those that the programs have in Pyro's parameter store.
        prepare: called with the graph before it is checked; may refuse it.
        compile: whether to compile the graph.

    Raises:
        CaptureError: the function is no graph, or the graph computes something else.
    """
    guards = watch(**roots)
    before = guards.generator_states()
    with unchanged(guards, tensors):
        graph = capture(function, tensors)
        if guards.generator_states() != before:
            raise CaptureError("the program draws from a random generator of Python or NumPy")
    if change := guards.change():
        raise CaptureError(f"the program changes its own values as it runs ({change})")
    held = {**guards.tensors, **{id(leaf): leaf for leaf in parameters.values()}}
    for tensor in graph.lifted:
        if id(tensor) not in held:
            raise CaptureError(
                f"the program takes a tensor of shape {list(tensor.shape)} from where it may be "
                "exchanged unseen; hold it in a module, an attribute, a closure or a global"
            )
    prepare(graph)
    with unchanged(guards, tensors):
        check(graph(*tensors), False)
    if compile:
        graph = graph.compile()
        with unchanged(guards, tensors):
            check(_first_run(graph, tensors), True)
    return CapturedProgram(graph, guards, parameters)


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    """What a graph takes for granted of a tensor that it reads."""
    shape, strides = tensor.shape, tensor.stride()
    return tensor.requires_grad, tensor.dtype, shape, strides, tensor.is_neg()


def check_close(outputs: Outputs, expected: Outputs, names: Sequence[str], compiled: bool) -> None:
    """Refuse outputs that are not the expected ones, up to the order of sums.

    Each may differ by a small part of its own norm and of the norm of all outputs of its kind:
    ``loss`` stands alone, gradients are compared with all of them.

    Raises:
        CaptureError: with the name and both values.
    """
    norms = torch.stack([_norm(gradient) for gradient in expected[1:]] or [torch.zeros(())])
    total = norms[norms.isfinite()].norm()
    for index, (name, got, want) in enumerate(zip(names, outputs, expected, strict=True)):
        got, want = _zeros(got, want), _zeros(want, got)
        if got is None or want is None or not bool(want.isfinite().all()):
            continue  # the step says that it is not finite
        tolerance = _tolerance(got)[compiled]
        scale = _norm(want) + (1.0 if index == 0 else float(total) * 1e-2)
        if not bool(_norm(got - want) <= tolerance * scale):
            raise CaptureError(
                f"{'compiled' if compiled else 'captured'}, {name} is not what the program "
                f"gives: {_shown(got)}, expected {_shown(want)}"
            )


def signature_of(value: Any, tensors: list[Tensor]) -> Any:
    """Return what a graph depends on of its arguments; append the tensors among them.

    Shape, dtype and device of tensors, and which of them are one; other values themselves.
    """
    if isinstance(value, Tensor):
        for position, earlier in enumerate(tensors):
            if earlier is value:
                return ("same", position)
        tensors.append(value)
        strides = None if value.is_contiguous() else value.stride()
        bits = value.is_neg(), value.is_conj()
        return (value.shape, value.dtype, value.device, value.requires_grad, strides, bits)
    if isinstance(value, tuple | list):
        return (type(value), *(signature_of(item, tensors) for item in value))
    if isinstance(value, dict):
        return ("dict", *((key, signature_of(item, tensors)) for key, item in value.items()))
    if isinstance(value, SCALARS):
        return (type(value), value)
    return ("object", id(value))


def aliases(value: Any, known: dict[int, Tensor]) -> Any:
    """Return the arguments with another tensor object for each tensor, over the same memory.

    A program that also holds the argument itself, as its data say, keeps the two apart.
    """
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = value.detach().requires_grad_(value.requires_grad)
        return known[id(value)]
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(aliases(item, known) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(aliases(item, known) for item in value)
    if isinstance(value, dict):
        return {key: aliases(item, known) for key, item in value.items()}
    return value


@contextlib.contextmanager
def unchanged(guards: Guards, tensors: Sequence[Tensor] = ()) -> Iterator[None]:
    """Restore afterwards the random states, and every tensor that the programs hold.

    Parameters that Pyro's store has are its own again; those that were made stay.
    """
    store = pyro.get_param_store()._params
    leaves = dict(store)
    found = [*guards.tensors.values(), *tensors]
    tensors = list({id(t): t for t in found if not is_lazy(t)}.values())
    saved = [(tensor, tensor._version, tensor.detach().clone()) for tensor in tensors]
    cuda = {t.device.index for t in tensors if t.is_cuda}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=sorted(cuda)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            store.update(leaves)
            _restore(saved)


def _restore(saved: list[tuple[Tensor, int, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, version, value in saved:
            # Batch norm changes its buffers and leaves their version as it was.
            if tensor._version != version or not torch.equal(tensor, value):
                tensor.copy_(value)


def _first_run(graph: Graph, tensors: Sequence[Tensor]) -> Outputs:
    """Compile and run; torch's compiler raises what it likes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return graph(*tensors)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(f"torch.compile failed: {lines[0][:200]}") from error


def _tolerance(tensor: Tensor) -> tuple[float, float]:
    if torch.is_autocast_enabled(tensor.device.type):
        return REDUCED_TOLERANCES
    return TOLERANCES.get(tensor.dtype, REDUCED_TOLERANCES)


def _norm(tensor: Tensor | None) -> Tensor:
    return torch.zeros(()) if tensor is None else tensor.detach().double().norm().cpu()


def _zeros(tensor: Tensor | None, like: Tensor | None) -> Tensor | None:
    """A gradient that is None is one of zeros."""
    return torch.zeros_like(like) if tensor is None and like is not None else tensor


def _shown(tensor: Tensor) -> str:
    return f"{float(tensor):.8g}" if tensor.dim() == 0 else f"norm {float(tensor.norm()):.8g}"
