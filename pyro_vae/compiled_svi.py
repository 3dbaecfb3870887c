"""SVI whose step is one compiled graph: draws, loss, gradients and clipping."""

__all__ = ["CompiledSVI"]

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.capture import CaptureError
from pyro_vae.captured_program import (
    CapturedProgram,
    Outputs,
    aliases,
    capture_program,
    check_close,
    signature_of,
    unchanged,
)
from pyro_vae.compilation import span_of
from pyro_vae.cuda_step import (
    BadStep,
    DeviceStep,
    first_line,
    record_cuda_graph,
    why_host,
    written_by,
)
from pyro_vae.errors import InputError
from pyro_vae.guards import Guards, watch
from pyro_vae.optim import JointOptim
from pyro_vae.updates import Kept, Update, restore

# A program is captured anew when a number that it holds changes: this often at once, and
# later once in so many steps.
CAPTURES_AT_ONCE = 8
STEPS_A_CAPTURE = 200


class CompiledSVI:
    """``pyro.infer.SVI`` with its step captured as one graph and compiled by torch.

    Any Pyro program with a ``differentiable_loss``: modules, or plain functions with
    ``pyro.module`` and ``pyro.param``. At the first call for each kind of arguments the
    program is run, captured, and compared with what Pyro's own step computes from the
    same seed, the loss and every gradient; nothing is updated by that, and the random
    state is restored. Draws come from torch's global generators, as in SVI: with the same
    seed the same steps follow, up to the order of sums; not where the programs draw initial
    values in their first run, after which the steps' noise goes on. Distributions are
    validated in that first call alone.

    What a graph holds as a constant is watched: a number in a closure, a global, an
    attribute or an argument, a module's training flag. When one changes the program is
    captured anew; a number that changes often is better a tensor, changed in place.

    Where the program cannot be captured, because it reads a tensor on the host or has
    shapes that depend on data, steps are those of SVI, a warning says why in one line, and
    ``reason`` keeps it.

    A step whose loss or gradient is not finite updates nothing, no buffer either, nor does
    any after it; ``bad_step`` is its number.

    On CUDA the whole step, the optimizer's update included, is one CUDA graph, replayed
    with fresh randomness, and nothing is read back: ``bad_step`` and ``num_steps`` wait for
    the device where they are read. That takes a callable for ``optim``, and an optimizer
    that torch can capture (``capturable``); ``host_reason`` says what stands against it,
    and the compiled graph is then followed by the optimizer's own step. Where the step
    can stay on the device and no graph be made, ``graph_reason`` says why.

    Arguments:
        model, guide: Pyro programs of the arguments of ``step``.
        optim: a ``pyro.optim`` optimizer, or a callable from the list of parameters to a
            ``torch.optim.Optimizer``, which steps them all at once and is faster.
        loss: an ``ELBO`` of Pyro or of this package.
        clip_norm: the largest global 2-norm of the gradient, or None.
        engine: ``compiled``, or ``eager`` for SVI's own step.
        compile: whether the captured graph is compiled; otherwise it is interpreted.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(slope * x, 0.7))
        >>> from pyro_vae.objectives.trace_mean_field import TraceMeanField
        >>> pyro.set_rng_seed(1)
        >>> with pyro.get_param_store().scope():
        ...     svi = CompiledSVI(
        ...         model, guide, lambda p: torch.optim.SGD(p, lr=0.01), TraceMeanField(),
        ...         compile=False,
        ...     )
        ...     for _ in range(100):
        ...         loss = svi.step(torch.linspace(-2, 2, 50))
        ...     slope = pyro.param("slope")
        >>> svi.engine, abs(slope.item() - 0.5) < 0.1
        ('compiled', True)
    """

    # Where steps stay on the device, and what records them there.
    _devices: tuple[str, ...] = ("cuda",)
    _record = staticmethod(record_cuda_graph)

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | Callable[[list[Tensor]], Optimizer],
        loss: ELBO,
        *,
        clip_norm: float | None = None,
        engine: str = "compiled",
        compile: bool = True,
    ):
        if engine not in ("compiled", "eager"):
            raise InputError(f"engine must be compiled or eager, got {engine!r}")
        if not callable(optim):
            raise InputError(
                "optim must be a pyro.optim optimizer or a callable from parameters to a "
                f"torch.optim.Optimizer, got {type(optim).__name__}"
            )
        self.model, self.guide = model, guide
        self.loss: Any = loss
        self.clip_norm = optim.clip_norm if isinstance(optim, JointOptim) else clip_norm
        self.engine = engine
        self.reason: str | None = None
        """Why steps are eager although compiled ones were asked for, or None."""
        self.host_reason: str | None = None
        """Why steps on CUDA are read by the host, one by one, or None."""
        self.graph_reason: str | None = None
        """Why steps on CUDA are no CUDA graph, or None."""
        self.gradient_norm = torch.tensor(math.nan)
        """Global 2-norm of the last step's gradient, before clipping."""
        self.compile = compile
        """Whether programs captured from now on are compiled."""
        self._update = Update(optim)
        self._num_taken = 0
        self._bad_step: int | None = None
        self._bad_on_device: BadStep | None = None
        self._device_steps: dict[CapturedProgram, DeviceStep | None] = {}
        self._num_recorded = 0
        self._kept = Kept(model, guide)
        self._writes: dict[CapturedProgram, tuple[list[Tensor], bool]] = {}
        self._programs: dict[Any, list[CapturedProgram]] = {}
        self._num_captures = 0
        self._eager_losses = False

    def step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take a gradient step on the loss; return the loss before it, detached."""
        found = self._find("step", args, kwargs)
        if found is not None and self._writes_into(*found):
            found = None
        on_device = None if found is None else self._on_device(*found)
        if found is None:
            with self._kept:
                parameters, (loss, *gradients) = self._eager("step", args, kwargs)
            norm, *gradients = _clipped(gradients, self.clip_norm)
            self._finish(parameters, loss, norm, gradients, self._kept.restore)
        elif on_device is not None:
            loss, norm = on_device(found[1])
        else:
            program, tensors = found
            before = [(buffer, buffer.clone()) for buffer in self._written(program)]
            loss, norm, *gradients = program(*tensors)
            self._finish(program.parameters, loss, norm, gradients, lambda: restore(before))
        self.gradient_norm = norm
        self._num_taken += 1
        return loss

    @property
    def bad_step(self) -> int | None:
        """The 0-based number of the first step that was not finite; none after it updates."""
        if self._bad_step is None and self._bad_on_device is not None:
            self._bad_step = self._bad_on_device.read()
        return self._bad_step

    @property
    def num_steps(self) -> int:
        """Steps that updated the parameters."""
        return self._num_taken if self.bad_step is None else self.bad_step

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, detached; nothing is updated."""
        found = self._find("loss", args, kwargs)
        if found is None or self._writes_into(*found):
            return self._eager("loss", args, kwargs)[1][0]
        program, tensors = found
        return program(*tensors)[0]

    @property
    def optimizer(self) -> Any:
        """The optimizer that the callable made; None before the first step."""
        return self._update.optimizer

    def _finish(
        self,
        parameters: dict[str, Tensor],
        loss: Tensor,
        norm: Tensor,
        gradients: Outputs,
        restore: Callable[[], None],
    ) -> None:
        """Update, unless this step or one before it is not finite; the host reads it."""
        if self.bad_step is None and not (math.isfinite(loss) and math.isfinite(norm)):
            self._bad_step = self._num_taken
        if self.bad_step is None:
            self._update(parameters, gradients)
        else:
            restore()
        if self._bad_on_device is not None:  # the next step may stay there
            self._bad_on_device.count.fill_(self._num_taken + 1)

    def _on_device(self, program: CapturedProgram, tensors: list[Tensor]) -> DeviceStep | None:
        """Return the step of this program that stays on the device; None: the host reads it."""
        device = next((leaf.device for leaf in program.parameters.values()), None)
        if device is None or device.type not in self._devices or self._bad_step is not None:
            return None
        if idle := self._idle(program):
            self.host_reason = f"parameter {idle!r} has a gradient in some steps alone"
            return None
        if program in self._device_steps:
            step = self._device_steps[program]
            if step is None or step.holds():
                return step
        self._device_steps[program] = None
        optimizer = self._update.prepare(program.parameters)
        self.host_reason = why_host(program, optimizer, tensors, device)
        if self.host_reason is None:
            self._device_steps[program] = self._record_step(program, optimizer, tensors, device)
        return self._device_steps[program]

    def _idle(self, program: CapturedProgram) -> str | None:
        """A parameter without a gradient in this program that has had one in another."""
        gradients = program.graph.present[2:]
        for (name, leaf), present in zip(program.parameters.items(), gradients, strict=True):
            if not present and leaf.requires_grad and self._update.has_moved(name, leaf):
                return name
        return None

    def _record_step(
        self, program: CapturedProgram, optimizer: Any, tensors: list[Tensor], device: torch.device
    ) -> DeviceStep | None:
        self._update.moves(program)
        if self._bad_on_device is None:
            self._bad_on_device = BadStep(device, self._num_taken)
        self._num_recorded += 1
        often = self._num_recorded > CAPTURES_AT_ONCE + self._num_taken // STEPS_A_CAPTURE
        record = None if often else self._record
        try:
            step = DeviceStep(program, optimizer, tensors, self._bad_on_device, record)
        except Exception as error:  # an optimizer's own; the host can still take the step
            self.host_reason = first_line(error)
            return None
        self.graph_reason = "the optimizer's numbers keep changing" if often else step.reason
        return step

    def _writes_into(self, program: CapturedProgram, tensors: list[Tensor]) -> bool:
        """Whether the program writes to memory that two of its inputs share.

        A graph takes its inputs for distinct; such a step is eager.
        """
        buffers, writes_arguments = self._writes_of(program)
        if not buffers and not writes_arguments:
            return False
        written = {id(buffer) for buffer in buffers}
        changed = [writes_arguments] * len(tensors)
        changed += [id(tensor) in written for tensor in program.graph.lifted]
        spans = [span_of(tensor) for tensor in (*tensors, *program.graph.lifted)]
        return any(
            first < end and start < last
            for i, (start, end) in enumerate(spans)
            if changed[i]
            for j, (first, last) in enumerate(spans)
            if j != i
        )

    def _written(self, program: CapturedProgram) -> list[Tensor]:
        return self._writes_of(program)[0]

    def _writes_of(self, program: CapturedProgram) -> tuple[list[Tensor], bool]:
        if program not in self._writes:
            self._writes[program] = written_by(program.graph)
        return self._writes[program]

    def _find(
        self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[CapturedProgram, list[Tensor]] | None:
        """Return the captured program for these arguments, and its inputs; None: run eagerly."""
        # Handlers around the step, a plate or a scale, act on sites, which a graph has not.
        if self.engine == "eager" or _PYRO_STACK or (kind == "loss" and self._eager_losses):
            return None
        tensors: list[Tensor] = []
        key = (kind, signature_of((args, kwargs), tensors), _modes())
        programs = self._programs.setdefault(key, [])
        for program in programs:
            if program.holds():
                return program, tensors
        try:
            program = self._capture(kind, args, kwargs, programs)
        except CaptureError as error:
            self._refuse(kind, str(error))
            return None
        programs.insert(0, program)
        return program, tensors

    def _refuse(self, kind: str, reason: str) -> None:
        if kind == "loss":
            self._eager_losses = True
            return
        self.engine, self.reason = "eager", reason
        warnings.warn(f"steps are eager, not compiled: {reason}", UserWarning, stacklevel=4)

    def _capture(
        self,
        kind: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        earlier: list[CapturedProgram],
    ) -> CapturedProgram:
        """Capture the loss, and for a step its gradients, and check them against Pyro's own.

        Raises:
            CaptureError: the program is no graph, or its graph computes something else.
        """
        self._num_captures += 1
        if self._num_captures > CAPTURES_AT_ONCE + self._num_taken // STEPS_A_CAPTURE:
            changes = [change for program in earlier if (change := program.change())]
            raise CaptureError(
                f"captured {self._num_captures - 1} times already, and the program keeps changing "
                f"({changes[0] if changes else 'its arguments'}); give what changes as a tensor "
                "and change it in place"
            )
        given: list[Tensor] = []
        signature_of((args, kwargs), given)
        if any(tensor.layout is not torch.strided for tensor in given):
            raise CaptureError("an argument is sparse")
        if not hasattr(self.loss, "differentiable_loss"):
            raise CaptureError(f"{type(self.loss).__name__} has no differentiable_loss")
        before = self._watch()
        self._initialize(args, kwargs)
        initialized = self._watch()
        try:
            return self._checked(kind, args, kwargs)
        except BaseException:
            before.restore_numbers(initialized)  # the programs run eagerly from here on
            raise

    def _watch(self) -> Guards:
        return watch(model=self.model, guide=self.guide, loss=self.loss)

    def _checked(self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CapturedProgram:
        known: dict[int, Tensor] = {}
        args, kwargs = aliases((args, kwargs), known)
        roots = {"model": self.model, "guide": self.guide, "loss": self.loss}
        roots["arguments"] = (args, kwargs)
        tensors = list(known.values())
        if kind == "step" and any(tensor.requires_grad for tensor in tensors):
            raise CaptureError("an argument requires a gradient, which a step would add to it")
        with unchanged(watch(**roots), tensors):
            parameters, expected = self._eager(kind, args, kwargs)
        names = ["the loss", *(f"the gradient of {name!r}" for name in parameters)]
        expected = [expected[0], *_clipped(expected[1:], self.clip_norm)[1:]]

        def function() -> Outputs:
            return self._loss_and_gradients(kind, list(parameters.values()), args, kwargs)

        def check(outputs: Outputs, compiled: bool) -> None:
            loss, *gradients = outputs
            check_close([loss, *gradients[1:]], expected, names[: len(expected)], compiled)

        return capture_program(
            function, tensors, roots, check, parameters=parameters, compile=self.compile
        )

    def _initialize(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Let the programs make their parameters.

        Draws of initial values are not used again for the step's noise.
        """
        tensors: list[Tensor] = []
        signature_of((args, kwargs), tensors)
        devices = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
        states = []
        for _ in range(2):
            with unchanged(watch(model=self.model, guide=self.guide), tensors), torch.no_grad():
                self.loss.loss(self.model, self.guide, *args, **kwargs)
                states.append(_random_states(devices))
        if not all(map(torch.equal, *states)):
            torch.set_rng_state(states[0][0])
            for device, state in zip(devices, states[0][1:], strict=True):
                torch.cuda.set_rng_state(state, device)

    def _loss_and_gradients(
        self, kind: str, leaves: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Outputs:
        """[loss] of an evaluation; [loss, gradient norm, *clipped gradients] of a step."""
        if kind == "loss":
            with torch.no_grad():
                loss = self.loss.differentiable_loss(self.model, self.guide, *args, **kwargs)
            return [_as_tensor(loss)]
        with torch.enable_grad():
            loss = self.loss.differentiable_loss(self.model, self.guide, *args, **kwargs)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = (
                torch.autograd.grad(loss, wanted, allow_unused=True)
                if wanted and getattr(loss, "requires_grad", False)
                else [None] * len(wanted)
            )
        gradients = dict(zip(map(id, wanted), found, strict=True))
        every = [gradients.get(id(leaf)) for leaf in leaves]
        return [_as_tensor(loss), *_clipped(_apart(every, leaves), self.clip_norm)]

    def _eager(
        self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], list[Any]]:
        """Run Pyro's own loss; of a step also its gradients, by the parameters' names."""
        if kind == "loss":
            with torch.no_grad():
                return {}, [_as_tensor(self.loss.loss(self.model, self.guide, *args, **kwargs))]
        for leaf in pyro.get_param_store()._params.values():
            leaf.grad = None  # of something else: no part of this step
        with poutine.trace(param_only=True) as capture, torch.enable_grad():
            loss = self.loss.loss_and_grads(self.model, self.guide, *args, **kwargs)
        sites: dict[str, Any] = capture.trace.nodes
        leaves = {name: site["value"].unconstrained() for name, site in sites.items()}
        names = {id(leaf): name for name, leaf in leaves.items()}  # a leaf may have two: take one
        parameters = {name: leaves[name] for name in names.values()}
        gradients = [leaf.grad for leaf in parameters.values()]
        for leaf in parameters.values():
            leaf.grad = None
        return parameters, [_as_tensor(loss), *gradients]


def _random_states(devices: list[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _clipped(gradients: Outputs, clip_norm: float | None) -> list[Any]:
    """[global 2-norm, *gradients scaled down to at most ``clip_norm``]."""
    # Sums of rows, which the compiler makes three times as fast as those of whole tensors.
    squares = [_rows(gradient.square()) for gradient in gradients if gradient is not None]
    norm = torch.cat(squares).sum().sqrt() if squares else torch.zeros(())
    if clip_norm is None:
        return [norm, *gradients]
    factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    return [norm, *(None if g is None else g * factor for g in gradients)]


def _rows(squares: Tensor) -> Tensor:
    """Sums over all but the first dimension, as a vector."""
    return squares.flatten(1).sum(-1) if squares.dim() > 1 else squares.reshape(-1)


def _apart(gradients: list[Tensor | None], leaves: list[Tensor]) -> list[Tensor | None]:
    """Gradients each in memory of its own, laid out as their leaf, as a parameter's ``grad`` is.

    Optimizers write there, and fused ones go through leaf and gradient in the order of memory.
    """
    seen: set[int] = set()
    apart: list[Tensor | None] = []
    for gradient, leaf in zip(gradients, leaves, strict=True):
        if gradient is not None:
            shared = id(gradient) in seen or gradient._base is not None
            seen.add(id(gradient))
            if shared or gradient.stride() != leaf.stride():
                gradient = torch.empty_like(leaf).copy_(gradient)
        apart.append(gradient)
    return apart


def _as_tensor(loss: Any) -> Tensor:
    if isinstance(loss, Tensor):
        return loss.detach()
    return torch.tensor(loss, dtype=torch.float64)  # all digits of Python's number


def _modes() -> tuple[Any, ...]:
    """What else decides how torch computes: default dtype, autocast and TF32."""
    autocast = (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for device in ("cpu", "cuda")
    )
    backends: Any = torch.backends
    tf32 = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
    return torch.get_default_dtype(), *autocast, *tf32
