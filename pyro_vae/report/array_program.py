"""Programs of array operations: how they are written, and what they give, by numpy."""

__all__ = [
    "Program",
    "Unsupported",
    "UNARY",
    "BINARY",
    "REDUCTIONS",
    "encode_array",
    "decode_array",
    "run_program",
]

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit  # type: ignore[import-untyped]

Array = NDArray[Any]
Program = dict[str, Any]

UNARY: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs, "neg": np.negative, "sign": np.sign, "floor": np.floor, "ceil": np.ceil,
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "log2": np.log2,
    "log10": np.log10, "sqrt": np.sqrt, "reciprocal": np.reciprocal, "sin": np.sin, "cos": np.cos,
    "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh,
    "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "tanh": np.tanh, "sigmoid": expit, "erf": erf, "logical_not": np.logical_not,
}  # fmt: skip
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.true_divide, "pow": np.power,
    "maximum": np.maximum, "minimum": np.minimum, "atan2": np.arctan2,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "logical_and": np.logical_and, "logical_or": np.logical_or,
}  # fmt: skip
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": np.sum, "prod": np.prod, "amax": np.amax, "amin": np.amin,
}  # fmt: skip


class Unsupported(Exception):
    """The decoder is no such program; the page reads a grid instead."""


def encode_array(array: Any) -> dict[str, Any]:
    """Return an array as ``shape``, ``dtype`` and ``data``: its numbers in row, in base64.

    Little-endian; int64 as float64, bool as bytes of 0 and 1.
    """
    array = np.asarray(array)
    dtype = array.dtype.name
    stored = {"float32": "<f4", "float64": "<f8", "int64": "<f8", "bool": "u1", "uint8": "u1"}
    if dtype not in stored:
        raise Unsupported(dtype)
    data = base64.b64encode(array.astype(stored[dtype]).tobytes()).decode("ascii")
    return {"shape": list(array.shape), "dtype": dtype, "data": data}


def decode_array(record: dict[str, Any]) -> Array:
    """Return the array that ``encode_array`` wrote."""
    stored = {"float32": "<f4", "float64": "<f8", "int64": "<f8", "bool": "u1", "uint8": "u1"}
    raw = np.frombuffer(base64.b64decode(record["data"]), stored[record["dtype"]])
    return raw.reshape(record["shape"]).astype(record["dtype"])


def run_program(program: Program, z: Any) -> Array:
    """Run a program on one z ``[latent_dim]``; the reference of what the page computes.

    Returns:
        E[x|z] as the traced decoder shapes it, ``[1, *event_shape]``.
    """
    values: list[Array] = [np.asarray(z, np.float32).reshape(1, -1)]
    values += [decode_array(constant) for constant in program["constants"]]
    with np.errstate(all="ignore"):
        for node in program["nodes"]:
            inputs = [values[i] for i in node["in"]]
            result = np.asarray(_run_node(node, inputs), node["dtype"])
            values.append(result.reshape(node["shape"]))
    return values[program["output"]]


def _run_node(node: dict[str, Any], inputs: list[Array]) -> Any:
    op = node["op"]
    if op in UNARY:
        return UNARY[op](inputs[0])
    if op in BINARY:
        return BINARY[op](*inputs)
    if op in REDUCTIONS:
        sizes = zip(inputs[0].shape, node["shape"], strict=True)
        return REDUCTIONS[op](inputs[0], axis=tuple(d for d, (a, b) in enumerate(sizes) if a != b))
    if op == "where":
        return np.where(*inputs)
    if op == "matmul":
        return np.matmul(*inputs)
    if op == "concat":
        return np.concatenate(inputs, axis=node["dim"])
    if op == "gather":
        steps = np.meshgrid(*map(np.arange, node["shape"]), indexing="ij", sparse=True)
        index = sum((s * i for s, i in zip(node["strides"], steps, strict=True)), node["offset"])
        return inputs[0].ravel()[index]
    return inputs[0]  # view, cast
