"""Log-weights of a block of draws, chunk by chunk: eagerly, or by one compiled graph."""

__all__ = ["Weigher", "ENGINES", "chunk_shape"]

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_vae.capture import CaptureError, Graph
from pyro_vae.captured_program import (
    CapturedProgram,
    capture_program,
    signature_of,
    unchanged,
)
from pyro_vae.errors import InputError
from pyro_vae.execution import Program
from pyro_vae.guards import watch
from pyro_vae.log_weights import Latents, LogWeights, weigh

ENGINES = ("auto", "eager", "compiled")
# Compiling takes 5 to 20 s. On one core a graph saves 4 ns for each number of x that is weighed,
# z by z, so that it pays from here on; a device is some 30 times faster (an estimate).
COMPILED_FROM = {"cpu": 5e9}
COMPILED_FROM_ON_DEVICE = 1.5e11
# A CPU decodes at once what its last cache holds, this much of p(x|z)'s parameters, and no more
# z than this.
CPU_BYTES = 10 * 2**20
CPU_CHUNK = 3200
# glibc gives freed memory above twice the largest block freed so far, of at most 32 MiB, back to
# the system, and a chunk that takes it anew spends a third of its time on pages.
LARGEST_FREED = 31 * 2**20
# On a device, how often the size of a datum one z is allowed: activations, densities, copies.
DEVICE_COPIES = 32
# How far a graph may be from eager weights: any of them, and their mean, each relative to the
# largest and the mean magnitude and 1 nat.
TOLERANCES = {torch.float64: (1e-9, 1e-10), torch.float32: (1e-4, 1e-5)}
REDUCED_TOLERANCES = (1e-1, 1e-2)  # for half precision and autocast
# The last graphs are kept, with their models, for the next evaluation of one.
KEPT = 2
_kept: list[tuple[Program, Any, CapturedProgram]] = []


class Weigher:
    """Weighs blocks of draws, at most so many z at a time; the answer does not depend on it.

    Chunks are of one shape, ``[k, b]``: k draws of b data. A graph is of that shape alone,
    so that what is left over, fewer draws or fewer data, is filled up with copies.

    Arguments:
        model: the program that weighs.
        x: all data that will be weighed, in order.
        num_draws: the z a datum.
        largest: the draws a datum in the largest block.
        block: the data in the largest block.
        chunk_size: the z at a time, or None.
        engine: ``auto``, ``eager`` or ``compiled``.
        own_store: whether the model holds its parameters by itself, see ``own_parameters``.
    """

    def __init__(
        self,
        model: Program,
        x: Tensor,
        num_draws: int,
        *,
        largest: int,
        block: int,
        chunk_size: int | None,
        engine: str,
        own_store: bool,
    ):
        if engine not in ENGINES:
            raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        self.model = model
        self.shape = chunk_shape(x, largest, min(block, len(x)), chunk_size)
        self.own_store = own_store
        # Handlers around the evaluation act on sites, which a graph has not.
        self.eager = engine == "eager" or bool(_PYRO_STACK)
        if engine == "auto":
            enough = COMPILED_FROM.get(x.device.type, COMPILED_FROM_ON_DEVICE)
            self.eager |= x.numel() * num_draws < enough
        self.program: CapturedProgram | None = None

    def __call__(self, x: Tensor, latents: Latents) -> LogWeights:
        """Weigh a block: draws ``[K, B, …]`` of data ``[B, *event_shape]``."""
        if not self.eager and self.program is None:
            self._prepare(x, latents)
        columns = []
        for data in _slices(len(x), self.shape[1]):
            part = x[data], _at(latents, slice(None), data)
            program = self.program
            columns.append(self._run(program, *part) if program else self._run_eagerly(*part))
        return LogWeights(*(torch.cat(terms, dim=1) for terms in zip(*columns, strict=True)))

    def _run_eagerly(self, x: Tensor, latents: Latents) -> LogWeights:
        chunks = _slices(len(latents.log_guide), self.shape[0])
        rows = [weigh(self.model, x, _at(latents, samples)) for samples in chunks]
        return LogWeights(*(torch.cat(terms) for terms in zip(*rows, strict=True)))

    def _run(self, program: CapturedProgram, x: Tensor, latents: Latents) -> LogWeights:
        k, b = self.shape
        num_data = len(x)
        copies = b // num_data
        x = _filled(x.unsqueeze(0), 1, b)[0]
        rows = []
        for samples in _slices(len(latents.log_guide), k * copies):
            draws = [value[samples] for value in latents.values.values()]
            terms = program(x, *(_filled(value, k, b) for value in draws))
            size = samples.stop - samples.start
            rows.append([_unfilled(term, size, num_data) for term in terms])
        log_likelihood, log_prior = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return LogWeights(log_likelihood, log_prior, latents.log_guide)

    def _prepare(self, x: Tensor, latents: Latents) -> None:
        """Take the graph of an earlier evaluation, or make one from the block's first chunk."""
        k, b = self.shape
        samples, data = slice(0, k), slice(0, b)
        part = _at(latents, samples, data)
        x = _filled(x[data].unsqueeze(0), 1, b)[0]
        values = {name: _filled(value, k, b) for name, value in part.values.items()}
        zeros = latents.log_guide.new_zeros(k, b)
        key = signature_of((x, values), []), self.own_store, _modes(x.device)
        if x.device.type == "cpu":
            torch.empty(LARGEST_FREED, dtype=torch.uint8)  # freed at once, and never touched
        self.program = _find(self.model, key)
        if self.program is not None:
            return
        try:
            self.program = _capture(self.model, x, Latents(values, zeros), self.own_store)
        except CaptureError as error:
            self.eager = True
            warnings.warn(f"weights are eager, not compiled: {error}", UserWarning, stacklevel=4)
            return
        _kept[:] = [(self.model, key, self.program), *_kept[: KEPT - 1]]


def chunk_shape(x: Tensor, draws: int, data: int, chunk_size: int | None) -> tuple[int, int]:
    """Return [k, b], how many draws of how many data are weighed at once.

    Without ``chunk_size`` what a CPU's caches hold, elsewhere what free memory does.
    """
    if chunk_size is None:
        chunk_size = _default_chunk(max(1, x[0].numel()) * x.element_size(), x.device)
    b = min(chunk_size, data)
    k = min(max(1, chunk_size // b), draws)
    # Chunks of one size each, that leave little over.
    return math.ceil(draws / math.ceil(draws / k)), b


def _default_chunk(datum_bytes: int, device: torch.device) -> int:
    if device.type == "cpu":
        return max(1, min(CPU_BYTES // datum_bytes, CPU_CHUNK))
    if device.type != "cuda":
        return CPU_CHUNK
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, free // (DEVICE_COPIES * datum_bytes))


def _capture(model: Program, x: Tensor, latents: Latents, own_store: bool) -> CapturedProgram:
    """Capture and compile ``weigh`` for such draws, and check it against eager weights.

    Raises:
        CaptureError: the model is no graph, or not one whose weights are each datum's own.
    """
    tensors = [x, *latents.values.values()]
    parameters: dict[str, Tensor] = {}
    with unchanged(watch(model=model), tensors), poutine.trace(param_only=True) as traced:
        expected = weigh(model, x, latents)[:2]
    if not own_store:
        sites: dict[str, Any] = traced.trace.nodes
        parameters = {name: site["value"].unconstrained() for name, site in sites.items()}

    return capture_program(
        lambda: weigh(model, x, latents)[:2],
        tensors,
        {"model": model},
        lambda outputs, compiled: _check(outputs, expected, "compiled" if compiled else "captured"),
        parameters=parameters,
        prepare=_refuse_effects,
    )


def _refuse_effects(graph: Graph) -> None:
    """Refuse a graph that draws noise or writes to what it was given: chunks are filled up."""
    for node in graph.module.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise CaptureError("the model draws noise as it weighs, in training mode say")
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and getattr(value, "op", None) == "placeholder":
                raise CaptureError("the model changes its own tensors as it weighs")


def _check(outputs: Any, expected: tuple[Tensor, ...], kind: str) -> None:
    for name, got, want in zip(("log p(x|z)", "log p(z)"), outputs, expected, strict=True):
        each, mean = _tolerances(want)
        got, want = got.double(), want.double()
        same = (got == want) | (got.isnan() & want.isnan())
        error = (got - want).masked_fill(same, 0.0)
        size = want.masked_fill(~want.isfinite(), 0.0).abs()
        # A NaN is above any tolerance.
        close = error.abs().amax() <= each * (size.amax() + 1)
        unbiased = error.mean().abs() <= mean * (size.mean() + 1)
        if not bool(close & unbiased):
            worst = int(error.abs().nan_to_num(nan=math.inf).argmax())
            raise CaptureError(
                f"{kind}, {name} is not what the model gives: {float(got.flatten()[worst]):.8g}, "
                f"expected {float(want.flatten()[worst]):.8g}"
            )


def _tolerances(like: Tensor) -> tuple[float, float]:
    if torch.is_autocast_enabled(like.device.type):
        return REDUCED_TOLERANCES
    return TOLERANCES.get(like.dtype, REDUCED_TOLERANCES)


def _modes(device: torch.device) -> tuple[Any, ...]:
    """What else decides how torch computes."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    return torch.get_default_dtype(), autocast, torch.get_num_threads()


def _find(model: Program, key: Any) -> CapturedProgram | None:
    for known, its_key, program in _kept:
        if known is model and its_key == key and program.holds():
            return program
    return None


def _at(latents: Latents, samples: slice, data: slice = slice(None)) -> Latents:
    values = {name: value[samples, data] for name, value in latents.values.items()}
    return Latents(values, latents.log_guide[samples, data])


def _filled(value: Tensor, k: int, b: int) -> Tensor:
    """Return ``[s, n, …]`` as ``[k, b, …]``: ⌊b/n⌋ sets of k draws beside each other, and copies.

    The copies are of draws that are there; ``_unfilled`` drops what came of them.
    """
    s, n = value.shape[:2]
    copies = b // n
    draws = value[-1:].expand(k * copies, *value.shape[1:])
    draws = draws.clone(memory_format=torch.contiguous_format)
    draws[:s] = value
    filled = draws.reshape(k, copies * n, *value.shape[2:])
    if copies * n == b:
        return filled
    return torch.cat([filled, filled[:, : b - copies * n]], dim=1)


def _unfilled(term: Tensor, s: int, n: int) -> Tensor:
    """Return ``[s, n]`` of the ``[k, b]`` that a graph gives for what ``_filled`` filled."""
    b = term.shape[1]
    return term[:, : b // n * n].reshape(-1, n)[:s]


def _slices(total: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, total)) for start in range(0, total, step))
