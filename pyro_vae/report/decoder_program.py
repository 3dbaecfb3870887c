"""The decoder of a model as a small program that a page can run: z ↦ E[x|z]."""

__all__ = ["decoder_program"]

import copy
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, fx

from pyro_vae.generation import moments
from pyro_vae.report.array_program import (
    BINARY,
    UNARY,
    Program,
    Unsupported,
    encode_array,
    run_program,
)
from pyro_vae.seeding import forked

Name = tuple[str, int]

MAX_NODES = 600
MAX_CONSTANTS = 2**24  # bytes
MAX_ELEMENTS = 2**24  # of all that one z makes: a second in a page
TOLERANCE = 1e-4  # of the range of E[x|z]

DTYPES = {
    torch.float32: "float32", torch.float64: "float64", torch.int64: "int64", torch.bool: "bool",
}  # fmt: skip
# Operators that keep the numbers and their order.
VIEWS = {
    "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "alias", "clone", "detach",
    "lift_fresh", "lift_fresh_copy",
}  # fmt: skip
# Operators that take from a tensor nothing but its shape.
FILLS = {"full_like", "zeros_like", "ones_like", "new_full", "new_zeros", "new_ones"}
BITWISE = {  # what they are for truth values
    "bitwise_not": "logical_not", "bitwise_and": "logical_and", "bitwise_or": "logical_or",
}  # fmt: skip


@torch.no_grad()
def decoder_program(
    model: Any, mean: Tensor | None = None, scale: Tensor | None = None, *, seed: int = 0
) -> Program | None:
    """Return z ↦ E[x|z] as a list of array operations, or None.

    ``model.decode(z).mean`` is traced at one z into a graph, what does not depend on z is folded
    into constants, and the rest is written in a few operations. The program is held against the
    model at other z, to 1e-4 of the range of E[x|z].

    Arguments:
        model: a model with ``prior`` and ``decode``.
        mean, scale: where those z lie, ``[latent_dim]``; by default the prior's mean and standard
            deviation.
        seed: chooses them.

    Returns:
        what ``run_program`` and the page's ``makeDecoder`` take, of JSON's types:

        - ``latent_dim``: the size of z, which is value 0.
        - ``constants``: values 1, 2, …, each its ``shape``, ``dtype`` and ``data``, see
          ``encode_array``.
        - ``nodes``: the values after them, each an ``op``, the numbers of its inputs ``in``, its
          ``shape``, ``dtype`` and further arguments.
        - ``output``: the number of the value that is E[x|z].

        None where the model has no closed-form mean, draws at random, branches on values, uses an
        operator that is not supported, or is too large.
    """
    try:
        if mean is None or scale is None:
            mean, scale = moments(model.prior(), seed)
        z = _probes(mean, scale, seed)
        with forked():  # a decoder that draws is run before it is refused
            program = _Exporter(_trace(model, z[0])).program
            _check(program, model, z[1:])
    except Exception:  # whatever a decoder of anybody's raises under the tracer: a grid serves
        return None
    return program


def _probes(mean: Tensor, scale: Tensor, seed: int, count: int = 8) -> Tensor:
    """z around the prior's mean, ``[count, 1, latent_dim]``; the last ones are three times as far.

    The first, at which the graph is traced, is like any other.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, len(mean), generator=generator)
    noise[count // 2 :] *= 3
    return mean.cpu().float() + scale.cpu().float() * noise


def _trace(model: Any, z: Tensor) -> dict[fx.Node, Any]:
    """The nodes of the graph of E[x|z] and what each is at ``z``, in order; the last is E[x|z]."""
    # Loads sympy, half a second, which ``import pyro_vae`` does not wait for.
    from torch._decomp import core_aten_decompositions, get_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    aten = torch.ops.aten
    further = [
        aten.elu, aten.gelu, aten.leaky_relu, aten.relu6, aten.hardtanh, aten.hardswish,
        aten.hardsigmoid, aten.mish, aten.celu, aten._softmax, aten._log_softmax,
        aten.native_layer_norm, aten.native_group_norm, aten.native_batch_norm,
        aten.addcmul, aten.addcdiv, aten.square, aten.rsub, aten.softplus, aten.logsumexp,
    ]  # fmt: skip
    table = {**core_aten_decompositions(), **get_decompositions(further)}
    model = copy.deepcopy(model).cpu().float().eval()
    with pyro.validation_enabled(False):
        pure = torch.func.functionalize(lambda z: model.decode(z).mean)
        graph = make_fx(pure, decomposition_table=table)(z)
        recorder = _Recorder(graph)
        recorder.run(z)
    return recorder.values


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what every node gives."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and keep its value."""
        value = super().run_node(n)
        if n.op != "output":
            self.values[n] = value
        return value

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Put the node that is the result last."""
        node = self.graph.output_node().args[0]
        assert isinstance(node, fx.Node)
        self.values[node] = self.values.pop(node)
        return super().output(target, args, kwargs)


class _Exporter:
    """Writes a recorded graph as a program.

    A value is named by ("z", 0), ("constant", i) or ("node", i) until all constants are known. For
    every operator of torch there is a method, which gets its result and its arguments.
    """

    def __init__(self, values: dict[fx.Node, Any]):
        self.values = values
        self.constants: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = []
        self.names: dict[Any, Any] = {}
        result = list(values)[-1]
        (z,) = (node for node in values if node.op == "placeholder")
        self.moving = _moving(values, z)
        self.names[z] = ("z", 0)
        live = _live(result)
        for node in values:
            if node in live and node in self.moving and node is not z:
                self.names[node] = self._write(node)
        self.program = self._numbered(values[z].shape[-1], self._name(result))

    def _numbered(self, latent_dim: int, output: Name) -> Program:
        """Names become numbers: z, then the constants, then the nodes."""
        start = {"z": 0, "constant": 1, "node": 1 + len(self.constants)}
        for node in self.nodes:
            node["in"] = [start[kind] + i for kind, i in node["in"]]
        return {
            "latent_dim": latent_dim,
            "constants": self.constants,
            "nodes": self.nodes,
            "output": start[output[0]] + output[1],
        }

    def _write(self, node: fx.Node) -> Any:
        """Return the name of what the node gives, of each piece where there are several."""
        arguments: Any = node.args
        options: Any = node.kwargs
        if node.target is operator.getitem:
            return self.names[arguments[0]][arguments[1]]
        name = _operator(node)
        name = "view" if name in VIEWS else name
        writer = getattr(self, f"_write_{name.lstrip('_')}", None)
        writer = writer or functools.partial(self._elementwise, name)
        return writer(self.values[node], *arguments, **options)

    def _elementwise(self, name: str, value: Tensor, *inputs: Any) -> Name:
        if name in BITWISE and value.dtype is torch.bool:
            return self._emit(BITWISE[name], value, *inputs)
        if name not in UNARY and name not in BINARY:
            raise Unsupported(name)
        return self._emit(name, value, *inputs)

    def _name(self, argument: Any) -> Name:
        """The name of a node of the graph, or of a number; of a name itself."""
        if isinstance(argument, tuple):
            return argument
        known = argument if isinstance(argument, fx.Node) else (type(argument), argument)
        if known not in self.names:
            self.names[known] = self._constant(self._value(argument))
        return self.names[known]

    def _value(self, argument: Any) -> Any:
        return self.values[argument] if isinstance(argument, fx.Node) else argument

    def _constant(self, value: Any) -> Name:
        if not isinstance(value, Tensor):
            value = torch.tensor(value, dtype=torch.float64)
        self.constants.append(encode_array(value.detach().numpy()))
        if sum(3 * len(each["data"]) // 4 for each in self.constants) > MAX_CONSTANTS:
            raise Unsupported("constants that large")
        return ("constant", len(self.constants) - 1)

    def _emit(
        self, op: str, like: Tensor, *inputs: Any, shape: Sequence[int] | None = None, **more: Any
    ) -> Name:
        """Add a node of the dtype, and unless given the shape, of ``like``."""
        if like.dtype not in DTYPES:
            raise Unsupported(str(like.dtype))
        shape = list(like.shape if shape is None else shape)
        names = [self._name(each) for each in inputs]
        node = {"op": op, "in": names, "shape": shape, "dtype": DTYPES[like.dtype]}
        self.nodes.append({**node, **more})
        elements = sum(math.prod(each["shape"]) for each in self.nodes)
        if len(self.nodes) > MAX_NODES or elements > MAX_ELEMENTS:
            raise Unsupported("a program that large")
        return ("node", len(self.nodes) - 1)

    def _write_view(self, value: Tensor, source: Any, *_: Any, **__: Any) -> Name:
        if value.dtype is not self.values[source].dtype:
            raise Unsupported("numbers read as others")
        return self._emit("view", value, source)

    def _write_to_copy(self, value: Tensor, source: Any, **_: Any) -> Name:
        return self._emit("cast", value, source)

    def _write_add(self, value: Tensor, a: Any, b: Any, alpha: Any = 1) -> Name:
        return self._emit("add", value, a, self._weighted(value, b, alpha))

    def _write_sub(self, value: Tensor, a: Any, b: Any, alpha: Any = 1) -> Name:
        return self._emit("sub", value, a, self._weighted(value, b, alpha))

    def _weighted(self, like: Tensor, b: Any, alpha: Any) -> Any:
        if alpha == 1:
            return b
        shape = like.shape if isinstance(b, tuple) else getattr(self._value(b), "shape", ())
        return self._emit("mul", like, b, alpha, shape=shape)

    def _write_div(self, value: Tensor, a: Any, b: Any, rounding_mode: None = None) -> Name:
        if rounding_mode is not None:
            raise Unsupported("a rounded division")
        return self._emit("div", value, a, b)

    def _write_relu(self, value: Tensor, x: Any) -> Name:
        return self._emit("maximum", value, x, 0)

    def _write_rsqrt(self, value: Tensor, x: Any) -> Name:
        return self._emit("reciprocal", value, self._emit("sqrt", value, x))

    def _write_clamp(self, value: Tensor, x: Any, min: Any = None, max: Any = None) -> Name:
        x = x if min is None else self._emit("maximum", value, x, min)
        return x if max is None else self._emit("minimum", value, x, max)

    def _write_where(self, value: Tensor, condition: Any, a: Any, b: Any) -> Name:
        return self._emit("where", value, condition, a, b)

    def _write_mm(self, value: Tensor, a: Any, b: Any) -> Name:
        return self._emit("matmul", value, a, b)

    _write_bmm = _write_mm

    def _write_addmm(
        self, value: Tensor, c: Any, a: Any, b: Any, *, alpha: Any = 1, beta: Any = 1
    ) -> Name:
        product = self._weighted(value, self._emit("matmul", value, a, b), alpha)
        return self._emit("add", value, product, self._weighted(value, c, beta))

    def _gather(self, value: Tensor, source: Any, strides: list[int], offset: int = 0) -> Name:
        """out[i, j, …] = in[offset + i strides₀ + j strides₁ + …], the input's numbers in row."""
        return self._emit("gather", value, source, strides=strides, offset=offset)

    def _write_permute(self, value: Tensor, source: Any, dims: list[int]) -> Name:
        strides = _strides(self.values[source].shape)
        return self._gather(value, source, [strides[dim] for dim in dims])

    def _write_expand(self, value: Tensor, source: Any, *_: Any, **__: Any) -> Name:
        shape = self.values[source].shape
        kept = [s if n > 1 else 0 for n, s in zip(shape, _strides(shape), strict=True)]
        return self._gather(value, source, [0] * (value.dim() - len(shape)) + kept)

    def _write_repeat(self, value: Tensor, source: Any, repeats: Sequence[int]) -> Name:
        shape = self.values[source].shape
        shape = (*[1] * (len(repeats) - len(shape)), *shape)
        sizes = [size for pair in zip(repeats, shape, strict=True) for size in pair]
        strides = [stride for own in _strides(shape) for stride in (0, own)]
        tiles = self._emit("gather", value, source, shape=sizes, strides=strides, offset=0)
        return self._emit("view", value, tiles)

    def _write_select(self, value: Tensor, source: Any, dim: int, index: int) -> Name:
        shape = self.values[source].shape
        strides = _strides(shape)
        stride = strides.pop(dim % len(shape))
        return self._gather(value, source, strides, stride * (index % shape[dim]))

    def _write_slice(
        self, value: Tensor, source: Any, dim: int = 0, start: int | None = None, end: Any = None,
        step: int = 1,
    ) -> Name:  # fmt: skip
        shape = self.values[source].shape
        strides = _strides(shape)
        offset = strides[dim] * slice(start, end).indices(shape[dim])[0]
        strides[dim] *= step
        return self._gather(value, source, strides, offset)

    def _write_flip(self, value: Tensor, source: Any, dims: Sequence[int]) -> Name:
        shape = self.values[source].shape
        strides, offset = _strides(shape), 0
        for dim in dims:
            offset += strides[dim] * (shape[dim] - 1)
            strides[dim] = -strides[dim]
        return self._gather(value, source, strides, offset)

    def _write_as_strided(
        self, value: Tensor, source: Any, _: Any, strides: Sequence[int], offset: int | None = None
    ) -> Name:
        x = self.values[source]
        if not x.is_contiguous() or x.storage_offset():
            raise Unsupported("strides of numbers not in row")
        return self._gather(value, source, list(strides), offset or 0)

    def _write_split_with_sizes(
        self, value: Sequence[Tensor], source: Any, _: Any, dim: int = 0
    ) -> list[Name]:
        strides, offset, names = _strides(self.values[source].shape), 0, []
        for piece in value:
            names.append(self._gather(piece, source, strides, offset))
            offset += piece.shape[dim] * strides[dim]
        return names

    _write_split = _write_split_with_sizes

    def _write_cat(self, value: Tensor, sources: Sequence[Any], dim: int = 0) -> Name:
        return self._emit("concat", value, *sources, dim=dim % value.dim())

    def _reduce(self, op: str, value: Tensor, source: Any, dims: Any) -> Name:
        """Over ``dims``, none of them meaning all; they may be missing in ``value``."""
        shape = self.values[source].shape
        dims = [dims] if isinstance(dims, int) else dims or range(len(shape))
        gone = {dim % len(shape) for dim in dims}
        kept = [1 if d in gone else size for d, size in enumerate(shape)]
        name = self._emit(op, value, source, shape=kept)
        return name if list(value.shape) == kept else self._emit("view", value, name)

    def _write_sum(self, value: Tensor, source: Any, dims: Any = None, *_: Any, **__: Any) -> Name:
        return self._reduce("sum", value, source, dims)

    def _write_amax(self, value: Tensor, source: Any, dims: Any = None, *_: Any) -> Name:
        return self._reduce("amax", value, source, dims)

    def _write_amin(self, value: Tensor, source: Any, dims: Any = None, *_: Any) -> Name:
        return self._reduce("amin", value, source, dims)

    def _write_max(self, value: Tensor, source: Any) -> Name:
        return self._reduce("amax", value, source, None)

    def _write_min(self, value: Tensor, source: Any) -> Name:
        return self._reduce("amin", value, source, None)

    def _write_prod(self, value: Tensor, source: Any, dims: Any = None, *_: Any, **__: Any) -> Name:
        return self._reduce("prod", value, source, dims)

    def _write_mean(self, value: Tensor, source: Any, dims: Any = None, *_: Any, **__: Any) -> Name:
        count = self.values[source].numel() / value.numel()
        return self._emit("div", value, self._reduce("sum", value, source, dims), count)

    def _write_var_mean(
        self, value: Sequence[Tensor], source: Any, dims: Any, *, correction: int, keepdim: bool
    ) -> list[Name]:
        """Var x = Σ (x − mean)²/(N − correction), and the mean."""
        if not keepdim:
            raise Unsupported("a variance without its dimensions")
        mean, x = value[1], self.values[source]
        count = x.numel() / mean.numel()
        centre = self._write_mean(mean, source, dims)
        deviation = self._emit("sub", x, source, centre)
        square = self._emit("mul", x, deviation, deviation)
        total = self._emit("sum", mean, square)
        return [self._emit("div", mean, total, count - correction), centre]


def _moving(values: dict[fx.Node, Any], z: fx.Node) -> set[fx.Node]:
    """The nodes that depend on z.

    Raises:
        Unsupported: a node draws at random, whether or not it depends on z.
    """
    moving = {z}
    for node in values:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Unsupported("a random draw")
        if _operator(node) not in FILLS and not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
    return moving


def _live(result: fx.Node) -> set[fx.Node]:
    """The nodes that the result needs, and itself."""
    live, waiting = {result}, [result]
    while waiting:
        sources = set(waiting.pop().all_input_nodes) - live
        live |= sources
        waiting += sources
    return live


def _operator(node: fx.Node) -> str:
    """The name of an operator of torch, without its overload."""
    target: Any = node.target
    packet = getattr(target, "_overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


def _strides(shape: Sequence[int]) -> list[int]:
    """Of numbers in row, the last dimension running fastest."""
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


def _check(program: Program, model: Any, z: Tensor) -> None:
    """Hold the program against the model at ``z`` ``[N, 1, latent_dim]``.

    Raises:
        Unsupported: they differ, or the model's mean is not finite.
    """
    weight = next(model.parameters())
    expected = [model.decode(each.to(weight)).mean.squeeze(0) for each in z]
    want = torch.stack(expected).cpu().double().numpy()
    if not np.isfinite(want).all():
        raise Unsupported("an infinite mean")
    got = np.stack([run_program(program, each[0].numpy()).reshape(want.shape[1:]) for each in z])
    rounding = 8 * np.finfo(np.float32).eps * np.abs(want).max()
    if not (np.abs(got - want) <= TOLERANCE * (want.max() - want.min()) + rounding).all():
        raise Unsupported("the program is not the model's")
