"""A function of tensors as one ATen graph; a Pyro loss and its gradients among them."""

__all__ = ["CaptureError", "Graph", "capture", "same_values"]

import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pyro
import torch
from pyro.infer.util import Dice, torch_item
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.compilation import compile_graph

# Methods that hand a tensor's numbers to the host without any operator of torch.
HOST_METHODS = (
    "tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage",
    "__repr__", "__deepcopy__", "__reduce_ex__",
)  # fmt: skip
# Functions that make a tensor of numbers, and read them from tensors in a list.
CONSTRUCTORS = ("tensor", "as_tensor", "asarray", "new_tensor", "new")
FRESH = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
ALL = (Tensor.all, torch.all, torch._is_all_true)
# Packages whose frames are no place in the user's program, and the files that capture it.
PYRO = str(Path(pyro.__file__).parent)
LIBRARIES = (str(Path(torch.__file__).parent), PYRO, "<")
CAPTURING = tuple(
    str(Path(__file__).with_name(name))
    for name in ("capture.py", "captured_program.py", "compiled_svi.py")
)
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
        """Return the same graph, compiled by torch at its first call for such tensors alone."""
        compiled = Graph(self.module, self.lifted, self.present)

        def first(*tensors: Tensor) -> Any:
            run = compile_graph(self.module, tensors)
            outputs = run(*tensors)
            compiled._run = run
            return outputs

        compiled._run = first
        return compiled

    def __call__(self, *inputs: Tensor) -> list[Tensor | None]:
        """Run on ``inputs``; randomness comes from torch's global generators."""
        # Autocast has chosen each operator's precision in the graph already.
        with torch.no_grad(), torch._C._DisableAutocast():
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
            decide what follows, a shape depends on data, it draws from the global
            generators of Python or NumPy, or tracing fails.
    """
    # Loads sympy, half a second, which ``import pyro_vae`` does not wait for.
    from torch.fx.experimental.proxy_tensor import make_fx

    present: list[bool] = []

    def traced(*_: Tensor) -> list[Tensor]:
        outputs = function()
        present[:] = [output is not None for output in outputs]
        return [output for output in outputs if output is not None]

    def run(*tensors: Tensor) -> list[Tensor]:
        with _no_host_values():
            return traced(*tensors)

    before = _host_generators()
    try:
        with _pyro_on_device(), pyro.validation_enabled(False):
            module = make_fx(run)(*inputs)
    except CaptureError:
        raise
    except Exception as error:  # whatever tracing raises: the program itself runs
        said = str(error).partition("Trace Shapes:")[0]  # Pyro adds a table
        reason = " ".join(said.split()) or type(error).__name__
        place = _place(traceback.extract_tb(error.__traceback__))
        raise CaptureError(f"{reason[:200]}{place}") from error
    if _host_generators() != before:
        raise CaptureError("the program draws from a random generator of Python or NumPy")
    return Graph(module, _lift_constants(module), present)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers.

    Within a capture, which has no numbers to compare: whether the same operators made them of
    the same tensors. Where that does not tell, the comparison refuses the capture.
    """
    if one is other or (_modes and _same_origin(_origin(one), _origin(other), {})):
        return True
    return bool((one == other).all())


def _origin(tensor: Tensor) -> Any:
    """The node of the graph that made the tensor, or the tensor."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

    mode = get_proxy_mode()
    slot: Any = get_proxy_slot(tensor, mode.tracer, None) if mode else None
    return slot.proxy.node if slot else tensor


def _same_origin(one: Any, other: Any, known: dict[tuple[Any, Any], bool]) -> bool:
    if one is other:
        return True
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same_origin(a, b, known) for a, b in pairs)
    if not isinstance(one, Node) or not isinstance(other, Node):
        plain = not isinstance(one, Node | Tensor) and not isinstance(other, Node | Tensor)
        return plain and type(one) is type(other) and bool(one == other)
    if (one, other) not in known:
        known[one, other] = _same_node(one, other, known)
    return known[one, other]


def _same_node(one: Node, other: Node, known: dict[tuple[Any, Any], bool]) -> bool:
    if one.op == other.op == "get_attr":  # one name for one tensor
        return one.target == other.target
    drawn = torch.Tag.nondeterministic_seeded in getattr(one.target, "tags", ())
    return (
        one.op == other.op == "call_function"
        and one.target is other.target
        and not drawn
        and _same_origin(one.args, other.args, known)
        and _same_origin(list(one.kwargs.items()), list(other.kwargs.items()), known)
    )


def _host_generators() -> tuple[Any, ...]:
    """The states of the global generators of Python and NumPy."""
    from numpy.random import get_state  # loaded here: pyro_vae alone has no use for it

    name, keys, *rest = get_state(legacy=True)  # noqa: NPY002  a program's, not ours
    return random.getstate(), name, tuple(keys), *rest


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


_modes: list[Any] = []  # of the capture that is running


@contextmanager
def _no_host_values() -> Iterator[None]:
    with _HostMethods(), _HostReads() as mode:
        _modes.append(mode)
        try:
            yield
        finally:
            _modes.pop()


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
        if func in FRESH:
            result._from_host = True
        return result


class _HostMethods(TorchFunctionMode):
    """Refuse methods that read a tensor past the operators."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in HOST_METHODS and not _from_host(args):
            _refuse("the program reads a tensor's value")
        if name in CONSTRUCTORS and any(
            _lists_tensors(arg) for arg in (*args, *(kwargs or {}).values())
        ):
            _refuse("the program makes a tensor of the values of others; take torch.stack")
        if func in (Tensor.all, Tensor.masked_select) and _asked_by_dice():
            return False if func is Tensor.all else torch.where(args[1], args[0], 0.0)
        if func in ALL and _asked_by_validation():
            return True
        if func is torch.nn.functional.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """As torch's, which reads the classes to check them; ``scatter`` checks them as it runs."""
    if num_classes < 1 or tensor.dtype != torch.int64:
        return torch.nn.functional.one_hot(tensor, num_classes)
    zeros = tensor.new_zeros((*tensor.shape, num_classes))
    return zeros.scatter(-1, tensor.unsqueeze(-1), 1)


def _asked_by_dice() -> bool:
    """Whether Pyro's enumeration asks, which leaves out terms of probability 0 where any is.

    Σ over the others is Σ over all with 0 in their place; no shape depends on data then.
    """
    return sys._getframe(2).f_code is Dice.compute_expectation.__code__


def _asked_by_validation() -> bool:
    """Whether a distribution asks if a value is in its support.

    Those do that were made before the capture, which is without validation; one that the
    program makes with ``validate_args=True`` asks for its parameters first, and is refused.
    """
    frame = sys._getframe(2)
    callers = frame.f_code, frame.f_back and frame.f_back.f_code
    return torch.distributions.Distribution._validate_sample.__code__ in callers


def _lists_tensors(value: Any) -> bool:
    """Whether a list, or one in it, has a tensor that was computed."""
    if not isinstance(value, list | tuple):
        return False
    return any(
        not _from_host((item,)) if isinstance(item, Tensor) else _lists_tensors(item)
        for item in value
    )


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
    others = [f for f in frames if Path(f.filename).name not in ("contextlib.py", "copy.py")]
    start = max((i for i, f in enumerate(others) if f.filename == CAPTURING[-1]), default=-1)
    within = [frame for frame in others[start + 1 :] if frame.filename not in CAPTURING]
    program = [frame for frame in within if not frame.filename.startswith(LIBRARIES)]
    pyros = [frame for frame in within if frame.filename.startswith(PYRO)]
    for frame in (program or pyros)[-1:]:
        return f", {frame.filename}:{frame.lineno}"
    return ""


def _lift_constants(module: GraphModule) -> list[Tensor]:
    """Turn the tensors that the graph holds into inputs; return them.

    Tensors that the program makes of Python's numbers remain constants.
    """
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    first = next(node for node in graph.nodes if node.op != "placeholder")
    last = inputs[-1] if inputs else None
    lifted: dict[int, tuple[Tensor, Any]] = {}
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if not isinstance(tensor, Tensor) or _only_lifted_fresh(node):
            continue
        if id(tensor) not in lifted:
            with graph.inserting_after(last) if last else graph.inserting_before(first):
                last = graph.placeholder(f"lifted_{len(lifted)}")
            last.meta["tensor_meta"] = _extract_tensor_metadata(tensor)
            lifted[id(tensor)] = tensor, last
        node.replace_all_uses_with(lifted[id(tensor)][1])
        graph.erase_node(node)
    graph.lint()
    module.recompile()
    return [tensor for tensor, _ in lifted.values()]


def _only_lifted_fresh(node: Any) -> bool:
    return all(user.target in FRESH for user in node.users)
