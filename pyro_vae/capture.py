"""A function of tensors as one ATen graph; a Pyro loss and its gradients among them."""

__all__ = ["CaptureError", "Graph", "capture"]

import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pyro
import torch
from pyro.infer.util import torch_item
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Methods that hand a tensor's numbers to the host without any operator of torch.
HOST_METHODS = ("tolist", "numpy", "__array__", "__dlpack__", "data_ptr")
# Packages whose frames are no place in the user's program.
LIBRARIES = tuple(
    str(Path(module.__file__ or "").parent) for module in (torch, pyro) if module.__file__
)
# inductor's own generator is ten times slower on a CPU than torch's, and other noise.
COMPILE_OPTIONS: dict[str, Any] = {"fallback_random": True}
_patching = threading.Lock()


class CaptureError(Exception):
    """A program that is no single graph; the message is the reason, with file and line."""


class Graph:
    """A captured function; called with tensors like those it was captured with.

    Outputs carry no gradient of their own: derivatives are computed inside.

    Arguments:
        module: the graph; its placeholders are ``inputs``, then ``lifted``.
        lifted: tensors that the function reached by itself, read anew at every call.
        present: which of the function's outputs are tensors; the others are None.
    """

    def __init__(self, module: GraphModule, lifted: Sequence[Tensor], present: Sequence[bool]):
        self.module = module
        self.lifted = tuple(lifted)
        self.present = tuple(present)
        self._run: Callable[..., Any] = module

    def compile(self) -> "Graph":
        """Return the same graph, compiled by torch at its first call."""
        compiled = Graph(self.module, self.lifted, self.present)
        compiled._run = torch.compile(
            self.module, fullgraph=True, dynamic=False, options=COMPILE_OPTIONS
        )
        return compiled

    def __call__(self, *inputs: Tensor) -> list[Tensor | None]:
        """Run on ``inputs``; randomness comes from torch's global generators."""
        with torch.no_grad():
            outputs = iter(self._run(*inputs, *self.lifted))
        return [next(outputs) if is_tensor else None for is_tensor in self.present]


def capture(function: Callable[[], Sequence[Tensor | None]], inputs: Sequence[Tensor]) -> Graph:
    """Run ``function`` once and return what it computed as a graph of ``inputs``.

    The function reaches its inputs by itself: they are known by identity, so a Pyro
    program that holds its parameters needs no rewriting. Every other tensor that it
    reaches, buffers say, is read anew at each call of the graph. All of Pyro's handlers
    run here, none in the graph. Numbers of Python are constants of the graph.

    The run is real: it draws from torch's global generators and updates buffers.

    Raises:
        CaptureError: the function reads a tensor on the host, where its value could
            decide what follows, a shape depends on data, or tracing fails.
    """
    present: list[bool] = []

    def traced(*_: Tensor) -> list[Tensor]:
        outputs = function()
        present[:] = [output is not None for output in outputs]
        return [output for output in outputs if output is not None]

    def run(*tensors: Tensor) -> list[Tensor]:
        with _no_host_values():
            return traced(*tensors)

    try:
        with _pyro_on_device(), pyro.validation_enabled(False):
            module = make_fx(run)(*inputs)
    except CaptureError:
        raise
    except Exception as error:  # whatever tracing raises: the program itself runs
        reason = " ".join(str(error).split()) or type(error).__name__
        place = _place(traceback.extract_tb(error.__traceback__))
        raise CaptureError(f"{reason[:200]}{place}") from error
    return Graph(module, _lift_constants(module), present)


@contextmanager
def _pyro_on_device() -> Iterator[None]:
    """Keep on the device what Pyro's estimators read while they sum the loss.

    They read a tensor at two places: ``torch_item``, whose number is only added up, and
    ``warn_if_nan``, which only warns. Both are answered here, and no other read is.
    """
    estimators = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("pyro.infer.") and getattr(module, "torch_item", None) is torch_item
    ]
    util: Any = pyro.util
    with _patching:
        saved = util.torch_isnan, util.torch_isinf
        try:
            for module in estimators:
                module.torch_item = _detach  # type: ignore[attr-defined]
            util.torch_isnan = util.torch_isinf = lambda value: False
            yield
        finally:
            for module in estimators:
                module.torch_item = torch_item  # type: ignore[attr-defined]
            util.torch_isnan, util.torch_isinf = saved


def _detach(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


@contextmanager
def _no_host_values() -> Iterator[None]:
    with _HostMethods(), _HostReads():
        yield


class _HostReads(TorchDispatchMode):
    """Refuse operators whose result depends on the values of tensors: in number or in shape."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.Tag.data_dependent_output in func.tags and not _from_host(args):
            _refuse("the program reads a tensor's value")
        if torch.Tag.dynamic_output_shape in func.tags and not _indexes_by_number(func, args):
            _refuse("a shape depends on the values of a tensor")
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default):
            result._from_host = True
        return result


class _HostMethods(TorchFunctionMode):
    """Refuse methods that read a tensor past the operators."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in HOST_METHODS and not _from_host(args):
            _refuse("the program reads a tensor's value")
        return func(*args, **(kwargs or {}))


def _from_host(args: tuple[Any, ...]) -> bool:
    """Whether all tensors were made of Python's numbers, by ``torch.tensor``, and not changed."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    return all(getattr(t, "_from_host", False) and t._version == 0 for t in tensors)


def _indexes_by_number(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether this is ``x[i]`` for integer i: the operator is the same as for a mask."""
    if func.overloadpacket is not torch.ops.aten.index:
        return False
    return not any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )


def _refuse(reason: str) -> NoReturn:
    raise CaptureError(f"{reason}{_place(traceback.extract_stack())}")


def _place(frames: traceback.StackSummary) -> str:
    """The innermost frame of the user's program, or of a library where there is none."""
    frames_outside = [frame for frame in frames if frame.filename != __file__]
    program = [f for f in frames_outside if not f.filename.startswith((*LIBRARIES, "<"))]
    for frame in reversed(program):
        if Path(frame.filename).name != "contextlib.py":
            return f", {frame.filename}:{frame.lineno}"
    return ""


def _lift_constants(module: GraphModule) -> list[Tensor]:
    """Turn the tensors that the graph holds into inputs; return them.

    Tensors that the program makes of Python's numbers remain constants.
    """
    graph = module.graph
    last = ([node for node in graph.nodes if node.op == "placeholder"] or [None])[-1]
    lifted: dict[int, tuple[Tensor, Any]] = {}
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if not isinstance(tensor, Tensor) or _only_lifted_fresh(node):
            continue
        if id(tensor) not in lifted:
            with graph.inserting_after(last):
                last = graph.placeholder(f"lifted_{len(lifted)}")
            lifted[id(tensor)] = tensor, last
        node.replace_all_uses_with(lifted[id(tensor)][1])
        graph.erase_node(node)
    graph.lint()
    module.recompile()
    return [tensor for tensor, _ in lifted.values()]


def _only_lifted_fresh(node: Any) -> bool:
    fresh = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
    return all(user.target in fresh for user in node.users)
