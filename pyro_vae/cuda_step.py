"""A training step that stays on its device; on CUDA it is one graph that is replayed."""

__all__ = [
    "BadStep",
    "DeviceStep",
    "first_line",
    "record_cuda_graph",
    "why_host",
    "written_by",
]

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.capture import Graph
from pyro_vae.captured_program import CapturedProgram

# How far replays may be from steps run directly, relative to norms: the kernels are the
# same, and only sums by atomic additions depend on their order.
TOLERANCE = 1e-3
UPDATE_TOLERANCE = 0.1  # of the parameters' change, where Adam makes much of a small gradient

# Batch normalization writes these though not every operator of it says so.
RUNNING_STATISTICS = ("running_mean", "running_var")


class BadStep:
    """The number of the first step that was not finite, kept on the device.

    Arguments:
        device: where.
        count: how many steps were taken before.
    """

    def __init__(self, device: torch.device, count: int = 0):
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        self.count = torch.full((), count, dtype=torch.int64, device=device)

    def record(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Count a step; return whether it and all before it were finite."""
        bad = ~(loss.isfinite().all() & norm.isfinite().all())
        self.first.copy_(torch.where(bad & (self.first < 0), self.count, self.first))
        self.count.add_(1)
        return self.first < 0

    def read(self) -> int | None:
        """Wait for the device; return the number of the first bad step, None while all are good."""
        first = int(self.first)
        return None if first < 0 else first


class DeviceStep:
    """Draws, loss, gradients, clipping and update of a captured program; nothing is read back.

    Parameters, the optimizer's state and buffers stay what they are from the first step
    on whose loss or gradient is not finite. On CUDA a step is recorded as one graph, with
    the arguments copied to where it reads them, and the learning rates too: a schedule
    acts, and another number of the optimizer's that changes makes ``holds`` false. The
    default CUDA generator is registered with the graph by torch: each replay advances it
    as the step itself would. Before the graph is trusted, two replays are held against two
    steps run directly from the same random state; nothing of that remains.

    Arguments:
        program: a captured step, [loss, gradient norm, *gradients] of ``tensors``.
        optimizer: of the program's parameters, and one that ``why_host`` has nothing against.
        tensors: the arguments, as the program takes them.
        bad: the first bad step.
        record: makes a replay of a function on a device; None to run the function itself.
    """

    def __init__(
        self,
        program: CapturedProgram,
        optimizer: Optimizer,
        tensors: Sequence[Tensor],
        bad: BadStep,
        record: Callable[[Callable[[], None], torch.device], Callable[[], None]] | None,
    ):
        self.program, self.optimizer, self.bad = program, optimizer, bad
        self.device = bad.first.device
        self.reason: str | None = None
        """Why the step is run directly, or None."""
        self._inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
        self._written = written_by(program.graph)[0]
        self._leaves = list(program.parameters.values())
        self._groups = optimizer.param_groups
        self._state = optimizer.state
        self._rates = [_rate_on(self.device, group["lr"]) for group in self._groups]
        self._numbers = [_numbers(group) for group in self._groups]
        with torch.no_grad():
            self._outputs = self._prepare()
            self._static = self._changed()
            self._pointers = [(t, t.data_ptr()) for t in (*self._static, *program.graph.lifted)]
            self._replay: Callable[[], None] = self._run
            if record is not None:
                self._record(record)

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Take a step; return the loss before it and the gradient's norm before clipping."""
        with torch.no_grad():
            for kept, tensor in zip(self._inputs, tensors, strict=True):
                kept.copy_(tensor)
            for group, rate in zip(self._groups, self._rates, strict=True):
                rate.write(group["lr"])
            self._replay()
            # Autograd learns of a write by the operator, and a replay has none.
            torch.autograd.graph.increment_version(self._static)
            loss, norm = (kept.clone() for kept in self._outputs)
        return loss, norm

    def holds(self) -> bool:
        """Whether what was recorded is still what a step is."""
        return (
            self.optimizer.state is self._state
            and self.optimizer.param_groups is self._groups
            and all(map(_same_numbers, self._groups, self._numbers))
            and all(map(_Rate.holds, self._rates, self._groups))
            and all(tensor.data_ptr() == pointer for tensor, pointer in self._pointers)
        )

    def _run(self) -> None:
        before = [tensor.clone() for tensor in self._written]
        loss, norm, *gradients = self.program(*self._inputs)
        good = self.bad.record(loss, norm)
        _keep_if(good, self._written, before)
        with self._optimizer_on_device(gradients):
            update_if(good, self.optimizer)
        for kept, value in zip(self._outputs, (loss, norm), strict=True):
            kept.copy_(value)

    def _prepare(self) -> tuple[Tensor, Tensor]:
        """Make the optimizer's state, and tensors for the loss and the norm; update nothing."""
        with self._unchanged(self._written):
            loss, norm, *gradients = self.program(*self._inputs)
        for state in self._state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    state[name] = value.to(self.device)  # `step`, from a run on another device
        with self._optimizer_on_device(gradients), _NoWrites():
            self.optimizer.step()
        return torch.empty_like(loss), torch.empty_like(norm)

    def _record(
        self, record: Callable[[Callable[[], None], torch.device], Callable[[], None]]
    ) -> None:
        try:
            expected = self._two_steps(self._run)
            with self._unchanged(self._static):
                replay = record(self._run, self.device)
            if not _agree(self._two_steps(replay), expected, self._static):
                self.reason = "two replays are not what two steps are"
                return
            self._replay = replay
        except Exception as error:  # CUDA raises what it likes; the step itself runs
            self.reason = first_line(error)

    def _two_steps(self, step: Callable[[], None]) -> list[Tensor]:
        """Losses and norms of two steps, and the changed tensors after them; then undone."""
        with self._unchanged(self._static):
            found: list[Tensor] = []
            for _ in range(2):
                step()
                found += [kept.clone() for kept in self._outputs]
            return found + [tensor.clone() for tensor in self._static]

    @contextmanager
    def _unchanged(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Restore these tensors and the random states."""
        saved = [tensor.clone() for tensor in tensors]
        devices = [self.device.index] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                yield
            finally:
                for tensor, value in zip(tensors, saved, strict=True):
                    tensor.copy_(value)

    def _changed(self) -> list[Tensor]:
        """Every tensor that a step writes."""
        leaves = [leaf for group in self._groups for leaf in group["params"]]
        states = [value for state in self._state.values() for value in state.values()]
        states = [value for value in states if isinstance(value, Tensor)]
        return [*leaves, *states, *self._written, self.bad.first, self.bad.count]

    @contextmanager
    def _optimizer_on_device(self, gradients: Sequence[Tensor | None]) -> Iterator[None]:
        """Give the optimizer gradients and rates, and let it be captured on CUDA.

        Its groups are afterwards as they were: schedules and checkpoints see the user's numbers.
        """
        saved = [(group["lr"], group.get("capturable")) for group in self._groups]
        for leaf, gradient in zip(self._leaves, gradients, strict=True):
            leaf.grad = gradient
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate.tensor
            if self.device.type == "cuda":
                group["capturable"] = True
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(self._groups, saved, strict=True):
                group["lr"] = rate
                if capturable is not None:
                    group["capturable"] = capturable
            for leaf in self._leaves:
                leaf.grad = None


def record_cuda_graph(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what ``run`` does on the device as a CUDA graph; return what replays it.

    ``run`` is executed, for warm-up on a stream beside the current one. It is refused where
    it waits for the device before anything is recorded: a recording that fails leaves torch's
    generator unusable.

    References:
        CUDA semantics, CUDA Graphs https://docs.pytorch.org/docs/stable/notes/cuda.html
    """
    with torch.cuda.device(device):
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            run()
            with _no_waiting():
                run()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    return graph.replay


def update_if(good: Tensor, optimizer: Any) -> None:
    """Step the optimizer where ``good``, else leave parameters and state what they are."""
    if _takes_found_inf(optimizer):
        optimizer.grad_scale, optimizer.found_inf = None, (~good).float()
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
        return
    tensors = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    before = [tensor.clone() for tensor in tensors]
    optimizer.step()
    _keep_if(good, tensors, before)


def why_host(
    program: CapturedProgram, optimizer: Any, tensors: Sequence[Tensor], device: torch.device
) -> str | None:
    """Return why a step of these cannot stay on the device, in one clause, or None."""
    if not isinstance(optimizer, Optimizer):
        return "a pyro.optim optimizer steps on the host: give a callable to a torch.optim one"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return f"{type(optimizer).__name__} has hooks on its step"
    if device.type == "cuda" and not all("capturable" in g for g in optimizer.param_groups):
        return f"{type(optimizer).__name__} has no capturable=True"
    if any(group.get("differentiable") for group in optimizer.param_groups):
        return f"{type(optimizer).__name__} has differentiable=True"
    leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    everything = (*program.parameters.values(), *program.graph.lifted, *tensors, *leaves)
    elsewhere = {tensor.device for tensor in everything} - {device}
    if elsewhere:
        return f"a tensor of the program is on {min(map(str, elsewhere))}, the step on {device}"
    if written_by(program.graph)[1]:
        return "the program changes its arguments in place"
    return None


def written_by(graph: Graph) -> tuple[list[Tensor], bool]:
    """Return the tensors beside its inputs that a graph changes in place, and whether inputs too.

    Views are followed to what they are views of.
    """
    nodes = graph.module.graph.nodes
    placeholders = [node for node in nodes if node.op == "placeholder"]
    root: dict[Any, Any] = {node: node for node in placeholders}
    written: set[Any] = set()
    for node in nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        for argument, value in _arguments(node):
            alias, statistic = argument.alias_info, argument.name in RUNNING_STATISTICS
            for source in value if isinstance(value, list | tuple) else (value,):
                if source not in root:
                    continue
                if statistic or (alias is not None and alias.is_write):
                    written.add(root[source])
                if alias is not None:
                    root[node] = root[source]
    num_inputs = len(placeholders) - len(graph.lifted)
    pairs = zip(placeholders[num_inputs:], graph.lifted, strict=True)
    lifted = [tensor for placeholder, tensor in pairs if placeholder in written]
    return lifted, any(node in written for node in placeholders[:num_inputs])


def first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


class _Rate:
    """A learning rate on the device: the user's own tensor, or a copy of the number."""

    def __init__(self, tensor: Tensor, given: Any):
        self.tensor, self._written = tensor, given
        self._own = tensor is given

    def write(self, rate: Any) -> None:
        if self._own or (not isinstance(rate, Tensor) and rate == self._written):
            return
        self._written = float(rate)
        self.tensor.fill_(self._written)

    def holds(self, group: dict[str, Any]) -> bool:
        """Whether the group's rate is still one that ``write`` can bring to the device."""
        rate = group["lr"]
        return (rate is self.tensor) if self._own else getattr(rate, "is_cpu", True)


def _rate_on(device: torch.device, rate: Any) -> _Rate:
    if isinstance(rate, Tensor) and rate.device == device and device.type != "cpu":
        return _Rate(rate, rate)
    # torch's fused kernels read a rate of 32 bits.
    return _Rate(torch.full((), float(rate), dtype=torch.float32, device=device), float(rate))


class _NoWrites(TorchDispatchMode):
    """Leave out whatever would change a tensor: an optimizer makes its state and no step."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not func._schema.is_mutable:
            return func(*args, **kwargs)
        return kwargs.get("out", args[0]) if func._schema.returns else None


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise where the host would wait for the device."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _arguments(node: Any) -> Iterator[tuple[Any, Any]]:
    schema = node.target._schema.arguments
    yield from zip(schema, node.args, strict=False)
    for argument in schema[len(node.args) :]:
        yield argument, node.kwargs.get(argument.name)


def _takes_found_inf(optimizer: Any) -> bool:
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and getattr(optimizer, "_step_supports_amp_scaling", False)


def _keep_if(good: Tensor, tensors: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Put back what tensors were before, unless ``good``."""
    for tensor, value in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(good, tensor, value))


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """What a step takes from a group beside parameters and rate."""
    return {key: value for key, value in group.items() if key not in ("params", "lr")}


def _same_numbers(group: dict[str, Any], expected: dict[str, Any]) -> bool:
    now = _numbers(group)
    return now.keys() == expected.keys() and all(
        value is expected[key] or (not isinstance(value, Tensor) and value == expected[key])
        for key, value in now.items()
    )


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor], start: Sequence[Tensor]) -> bool:
    """Whether losses, norms and the change of ``start`` are the expected ones."""
    num_outputs = len(expected) - len(start)
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    if not all(torch.allclose(a, b, TOLERANCE, 0.0, True) for a, b in pairs[:num_outputs]):
        return False
    return all(
        (a - b).nan_to_num().norm() <= UPDATE_TOLERANCE * (b - before).nan_to_num().norm()
        for (a, b), before in zip(pairs[num_outputs:], start, strict=True)
    )
