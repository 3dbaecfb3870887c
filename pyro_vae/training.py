"""The SVI loop: a (model, guide) pair, data in, rows of metrics out; no files in here."""

__all__ = ["Trainer", "TrainingError", "Progress"]

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NoReturn

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_vae.annealing import Beta, linear_warm_up
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.corruptions import Corrupted
from pyro_vae.data import DataSplits
from pyro_vae.errors import InputError
from pyro_vae.execution import Program
from pyro_vae.log_weights import LogWeights, draw_latents, weigh
from pyro_vae.nonfinite import explain
from pyro_vae.objectives._kinds import is_elbo
from pyro_vae.objectives.trace import Trace
from pyro_vae.optim import JointOptim, optimizer_from_spec, schedule_from_spec
from pyro_vae.precision import precision
from pyro_vae.seeding import derive_seed, forked, seeded
from pyro_vae.standard_error import standard_error_of_mean
from pyro_vae.training_state import Progress, Weights, get_random_state, set_random_state

KEPT_ELEMENTS = 2**27  # of validation data: half a gigabyte in float32
# Compiling takes some 15 s, or 2 s where the graph is in torch's cache, and saves 2 to 3 ms a step.
COMPILED_FROM = 5000  # steps
READ_INTERVAL = 50  # steps between reads of a CUDA device; of a CPU each step is read


class TrainingError(ArithmeticError):
    """Training stopped at a loss or gradient that is not finite; nothing was updated by it."""


@dataclass
class _Taken:
    """A step whose outcome has not been read from the device yet, and what it began with."""

    x: Tensor
    random_state: dict[str, Tensor]
    beta: float
    """β of the step before it."""
    loss: Tensor | None = None


class Trainer:
    """Trains one pair by ``CompiledSVI``, inside a parameter store of its own.

    Two trainers in one process never touch each other's parameters, and
    neither touches Pyro's global store nor, outside ``fit``, torch's global
    random state. Parameters are initialized by the caller (modules) or in the
    constructor (plain functions with ``pyro.param``), under ``seed``.

    Arguments:
        model, guide: Pyro programs of ``x`` ``[B, *event_shape]``.
        data: its ``train`` split is fitted; ``valid`` chooses the best epoch.
        objective: a ``pyro.infer.ELBO``; ``Trace()``, Pyro's Trace_ELBO, by default.
        corruption: x → x̃, what the guide sees in steps in the place of x, see ``Corrupted``.
        optimizer: a ``torch.optim`` spec such as ``rmsprop(lr=1e-3, centered=True)``.
        schedule: a ``torch.optim.lr_scheduler`` spec, stepped once an epoch.
        clip_norm: the largest global 2-norm of the gradient.
        beta: β at the end of the warm-up.
        warm_up: epochs over which β grows linearly, step by step, from 0.
        batch_size: data a step; the last, partial batch of an epoch is used too.
        epochs, max_steps: training ends at whichever comes first.
        patience: epochs without a better validation bound, counted from the end
            of the warm-up, before it ends early.
        seed: of the noise of q, the order of the data and their stochastic draws.
        device, dtype: where and in what precision.
        engine: ``compiled``, or ``eager`` for Pyro's own step; None compiles a training of
            5,000 steps or more. A program that cannot be captured is trained eagerly, and
            ``reason`` says why. The last, partial batch of an epoch, captured too, is
            interpreted: to compile it would take longer than it saves.
        precision: of the steps' matrix products: ``float32``, ``tf32`` or ``bfloat16``;
            validation is in ``dtype``.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        data: DataSplits,
        *,
        objective: ELBO | None = None,
        corruption: Callable[[Tensor], Tensor] | None = None,
        optimizer: str = "adam(lr=0.001)",
        schedule: str | None = None,
        clip_norm: float | None = None,
        beta: float = 1.0,
        warm_up: int = 0,
        batch_size: int = 128,
        epochs: int = 100,
        max_steps: int | None = None,
        patience: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        engine: str | None = None,
        precision: str = "float32",
    ):
        if corruption is not None and not callable(corruption):
            raise InputError(
                "corruption must be a function of x, such as pyro_vae.corruptions.mask(rate=0.25), "
                f"got {corruption!r}"
            )
        self.model, self.guide, self.data = model, guide, data
        self.corruption = corruption
        self.beta, self.warm_up = beta, warm_up
        self.batch_size, self.epochs, self.max_steps = batch_size, epochs, max_steps
        self.patience, self.seed = patience, seed
        self.device, self.dtype = torch.device(device), dtype
        self._read_interval = READ_INTERVAL if self.device.type == "cuda" else 1
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] | None = None
        self._running = False
        self._cut: dict[str, Any] | None = None
        self._valid: list[Tensor] | None = None
        self._validated: set[torch.Size] = set()
        self.modules = [p for p in (model, guide) if isinstance(p, nn.Module)]
        for module in self.modules:
            module.to(self.device, self.dtype)

        self.steps_per_epoch = math.ceil(len(data.train) / batch_size)
        self._beta = torch.tensor(beta, device=self.device, dtype=dtype)
        self._host_beta = self._beta.cpu()
        with pyro.get_param_store().scope() as self._store, seeded(seed, self.device):
            parameters = self._first_run()
            self._state = get_random_state(self.device)
        self._weights = Weights(model, guide, parameters)
        self.optim = JointOptim(parameters, optimizer_from_spec(optimizer), clip_norm)
        self.schedule = (
            schedule_from_spec(schedule, self.optim.optimizer, epochs) if schedule else None
        )
        self.objective = objective or Trace()
        self.precision = precision
        self._check_precision()
        chosen = "compiled" if self.num_steps >= COMPILED_FROM else "eager"
        self._start_svi(engine or chosen)
        self._try_objective()

    @property
    def num_steps(self) -> int:
        """Steps of the whole training, if patience never ends it."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def engine(self) -> str:
        """What takes the steps: ``compiled`` or ``eager``."""
        return self.svi.engine

    @property
    def reason(self) -> str | None:
        """Why steps are eager though compiled ones were asked for, with file and line, or None."""
        return self.svi.reason

    @property
    def finished(self) -> bool:
        """Whether the last epoch or step is done, or patience has run out."""
        done = self.progress.epoch >= self.epochs or self._out_of_steps
        return done or self._out_of_patience

    def fit(
        self,
        on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
        on_step: Callable[["Trainer"], None] = lambda trainer: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the end, or until ``stop()``; return whether the end was reached.

        Arguments:
            on_epoch: called with each epoch's row of metrics.
            on_step: called after every step.
            stop: asked after every step.

        Raises:
            TrainingError: a loss or gradient is not finite; names the site and parameter.
        """
        self._cut = None
        with (
            self.parameters(),
            forked(self.device),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Encountered", UserWarning)  # TrainingError says it
            # Resumed after an epoch's last step, the schedule steps before the optimizer.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            set_random_state(self._state, self.device)
            self._running = True
            try:
                while not self.finished:
                    if not self._epoch(on_step, stop):
                        return False
                    if self._out_of_steps and self.progress.batch < self.steps_per_epoch:
                        self._cut = self.state_dict()
                    on_epoch(self._end_of_epoch())
                return True
            finally:
                try:
                    self._settle()
                finally:
                    self._state = get_random_state(self.device)
                    self._running = False

    def state_dict(self) -> dict[str, Any]:
        """Return all that ``load_state_dict`` needs to continue bit for bit.

        Where ``max_steps`` cut an epoch short, the state is the one before that
        epoch was closed: with more steps it goes on as if never cut.

        Raises:
            TrainingError: a step since the last one that was read is not finite.
        """
        self._settle()
        return self._cut or {
            "progress": dataclasses.asdict(self.progress),
            "weights": self.weights(),
            "best_weights": self.best_weights,
            "optimizer": self.optim.get_state(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "random_state": get_random_state(self.device) if self._running else self._state,
            "engine": self.engine,
            "reason": self.reason,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; the next step is the one that would have followed.

        It is taken by the engine of the step before, ``eager`` where the state names none.
        """
        self._cut = None
        self.progress = Progress(**state["progress"])
        self._weights.load(state["weights"])
        self.best_weights = state["best_weights"]
        self.optim.set_state(state["optimizer"])
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])
        self._state = state["random_state"]
        self._start_svi(state.get("engine", "eager"))
        self.svi.reason = state.get("reason")

    def weights(self) -> dict[str, Tensor]:
        """Return clones of every parameter and buffer, by name."""
        return self._weights.copy()

    @contextlib.contextmanager
    def parameters(self) -> Iterator[None]:
        """Enter the trainer's parameter store, to run programs that hold ``pyro.param`` there."""
        with pyro.get_param_store().scope(self._store):
            yield

    @torch.no_grad()
    def validation_bound(self) -> tuple[float, float]:
        """Return the β = 1 ELBO on the validation data and its standard error, nats per datum.

        Of a guide without a bound, the reconstruction log p(x|z(x)). One z a datum, the
        same noise at every call: epochs differ by their weights alone. The standard
        error is over data and draws together, over blocks of neighbours where data
        are ordered; NaN for one datum.
        """
        bounds = []
        seed = derive_seed(self.seed, "validation")
        store = contextlib.nullcontext() if self._running else self.parameters()
        with store, self._evaluation_mode(), seeded(seed, self.device):
            for x in self._validation_batches():
                weights = self._draw_weights(x)
                point = self.criterion == "reconstruction"
                bounds.append((weights.log_likelihood if point else weights.log_weight)[0].double())
        bound = torch.cat(bounds)
        error = standard_error_of_mean(bound, self.data.ordered)
        return float(bound.mean()), math.nan if error is None else error

    @property
    def criterion(self) -> str:
        """What chooses the best epoch: the β = 1 ``elbo``; ``reconstruction`` of a point guide."""
        return "elbo" if getattr(self.guide, "has_bound", True) else "reconstruction"

    @property
    def training_criterion(self) -> str:
        """What a row of metrics calls minus the training loss: ``elbo`` where it is one.

        Where the guide is a point, ``reconstruction`` at β = 0, an autoencoder's, and else
        ``log_joint``, log p(x|z(x)) + β log p(z(x)); ``objective`` for any other estimator,
        and with free bits.
        """
        if self.criterion == "reconstruction":
            return "reconstruction" if self.beta == 0 else "log_joint"
        return self.criterion if is_elbo(self.objective) else "objective"

    @property
    def is_lower_bound(self) -> bool:
        """Whether the mean of minus the training loss is at most log p(x), at the last β.

        An ELBO's is for β ≥ 1; a mean of weights may exceed log p(x) at any β ≠ 1.
        """
        of_objective = bool(getattr(self.objective, "is_lower_bound", True))
        beta = self.beta >= 1 if self.training_criterion == "elbo" else self.beta == 1
        return self.criterion == "elbo" and of_objective and beta

    def _draw_weights(self, x: Tensor) -> LogWeights:
        """One z a datum, weighed; in the current parameter store."""
        latents = draw_latents(self.guide, x, 1, allow_points=self.criterion == "reconstruction")
        return weigh(self.model, x, latents)

    def _validation_batches(self) -> Iterable[Tensor]:
        """The validation data on the device: drawn once and kept, if they fit."""
        if self._valid is not None:
            return self._valid
        valid = self.data.valid
        batches = (chunk.to(self.device, self.dtype) for chunk in valid.scored_chunks())
        if len(valid) * math.prod(valid.event_shape) > KEPT_ELEMENTS:
            return batches
        self._valid = list(batches)
        return self._valid

    def _epoch(self, on_step: Callable[["Trainer"], None], stop: Callable[[], bool]) -> bool:
        """Run the rest of the current epoch; return False where ``stop`` ended it early."""
        generator = torch.Generator(self.device)
        generator.manual_seed(derive_seed(self.seed, "epoch", self.progress.epoch))
        batches = self.data.train.batches(self.batch_size, generator, self.dtype)
        with precision(self.precision, self.device):
            for index, x in enumerate(batches):
                if index < self.progress.batch:  # done before the interruption
                    continue
                self._step(x)
                on_step(self)
                if self._out_of_steps:
                    return True
                if stop():
                    return False
        return True

    def _check_precision(self) -> None:
        with precision(self.precision, self.device):  # refuses what the device cannot do
            if self.precision != "float32" and self.dtype != torch.float32:
                raise InputError(
                    f"precision {self.precision} is of networks in float32, got dtype "
                    f"{str(self.dtype).removeprefix('torch.')}; leave out one of the two"
                )

    def _start_svi(self, engine: str) -> None:
        """Begin steps with nothing captured and nothing unread."""
        annealed = self.beta != 1.0 or self.warm_up > 0
        scale = Beta(self._beta) if annealed else lambda program: program
        guide = self.guide if self.corruption is None else Corrupted(self.guide, self.corruption)
        self.svi = CompiledSVI(
            scale(self.model), scale(guide), self.optim, self.objective, engine=engine
        )
        self._unread: list[_Taken] = []
        self._num_read = 0

    def _step(self, x: Tensor) -> None:
        started = time.perf_counter()
        progress = self.progress
        # Compiled, an epoch's partial batch would take longer than it saves: it is interpreted.
        self.svi.compile = len(x) == min(self.batch_size, len(self.data.train))
        taken = _Taken(x, get_random_state(self.device), progress.beta)
        self._set_beta(self.current_beta)
        try:
            with self._checks(x):
                taken.loss = self.svi.step(x)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            self._settle()
            self._explain(taken, error)
        self._unread.append(taken)
        progress.step += 1
        progress.batch += 1
        if len(self._unread) >= self._read_interval:
            self._settle()
        progress.seconds += time.perf_counter() - started

    def _set_beta(self, beta: float) -> None:
        before = float(self._host_beta)
        self._host_beta.fill_(beta)
        self.progress.beta = float(self._host_beta)
        if self.progress.beta != before:
            self._beta.fill_(beta)

    def _checks(self, x: Tensor) -> AbstractContextManager[None]:
        """Let Pyro check the program's shapes, once for each shape of the data."""
        first = x.shape not in self._validated
        self._validated.add(x.shape)
        if self.engine == "compiled" and not first:  # no program runs
            return contextlib.nullcontext()
        context: AbstractContextManager[None] = pyro.validation_enabled(first)
        return context

    def _settle(self) -> None:
        """Read the outcome of the steps since it was last read.

        Raises:
            TrainingError: one is not finite; it and those after it are taken back.
        """
        steps, self._unread = self._unread, []
        if not steps:
            return
        bad = self.svi.bad_step
        num_good = len(steps) if bad is None else bad - self._num_read
        self._num_read += num_good
        progress = self.progress
        losses = [step.loss for step in steps[:num_good] if step.loss is not None]
        for step, loss in zip(steps, _read(losses), strict=False):
            progress.loss_sum += loss
            progress.count += step.x.shape[0]
        if bad is None:
            progress.gradient_norm = float(self.svi.gradient_norm)
            return
        progress.step -= len(steps) - num_good
        progress.batch -= len(steps) - num_good
        self._explain(steps[num_good])

    @property
    def current_beta(self) -> float:
        """β of the next step."""
        return linear_warm_up(self.progress.step, self.warm_up * self.steps_per_epoch, self.beta)

    @property
    def _out_of_steps(self) -> bool:
        return self.max_steps is not None and self.progress.step >= self.max_steps

    @property
    def _out_of_patience(self) -> bool:
        since = max(self.progress.best_epoch, self.warm_up)
        return self.patience is not None and self.progress.epoch - since >= self.patience

    def _end_of_epoch(self) -> dict[str, Any]:
        progress = self.progress
        self._settle()
        bound, error = self.validation_bound()
        if not math.isfinite(bound):
            raise TrainingError(
                f"step {progress.step} (epoch {progress.epoch + 1}): the validation bound is not "
                "finite; try a smaller learning rate or --clip-norm"
            )
        progress.epoch += 1
        best = bound > progress.best_bound
        if best:
            progress.best_bound, progress.best_epoch = bound, progress.epoch
            self.best_weights = self.weights()
        row = {
            "epoch": progress.epoch,
            "step": progress.step,
            self.training_criterion: -progress.loss_sum / progress.count,
            "beta": progress.beta,
            f"valid_{self.criterion}": bound,
            f"valid_{self.criterion}_standard_error": error,
            "best": best,
            "learning_rate": self.optim.optimizer.param_groups[0]["lr"],
            "gradient_norm": progress.gradient_norm,
            "seconds": progress.seconds,
            "engine": self.engine,
            **({"reason": self.reason} if self.reason else {}),
        }
        if self.schedule:
            self.schedule.step()
        progress.batch, progress.loss_sum, progress.count = 0, 0.0, 0
        return row

    def _first_run(self) -> dict[str, Tensor]:
        """Run guide and model once and return the parameters they register, in order."""
        with self._evaluation_mode(), torch.no_grad():
            self._draw_weights(self._two_data())
        parameters: dict[str, Tensor] = {}
        for name, leaf in pyro.get_param_store().named_parameters():
            if all(leaf is not other for other in parameters.values()):  # one may have two names
                parameters[name] = leaf
        if not parameters:
            raise InputError("neither model nor guide has a parameter to train")
        known = {id(p) for p in parameters.values()}
        for module in self.modules:
            for name, parameter in module.named_parameters():
                if parameter.requires_grad and id(parameter) not in known:
                    raise InputError(
                        f"parameter {name!r} of {type(module).__name__} is not in the parameter "
                        "store: either no site uses it, or model and guide share a name; name "
                        "their roots, super().__init__('model') and super().__init__('guide')"
                    )
        return parameters

    def _try_objective(self) -> None:
        """Let the objective refuse the pair, its gradient too, before anything is trained."""
        objective: Any = self.objective
        tried = getattr(objective, "differentiable_loss", None) or objective.loss
        with (
            self.parameters(),
            forked(self.device),
            self._evaluation_mode(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", UserWarning)
            try:
                tried(self.svi.model, self.svi.guide, self._two_data())
            except InputError:
                raise
            except (ValueError, ArithmeticError):
                pass  # numbers that are not finite: the step says where

    def _two_data(self) -> Tensor:
        x = self.data.train.scored(slice(0, min(2, len(self.data.train))))
        return x.to(self.device, self.dtype)

    def _explain(self, step: _Taken, error: ValueError | None = None) -> NoReturn:
        """Run a failed step once more, eagerly, and say what is wrong; leave things as before it.

        Arguments:
            error: what the programs raised, if they did.
        """
        buffers = self._weights.copy_buffers()  # the step has put them back itself

        def rewind() -> None:
            set_random_state(step.random_state, self.device)
            self._weights.load_buffers(buffers)

        engine = self.engine
        self._set_beta(self.current_beta)
        with precision(self.precision, self.device):
            what = explain(
                self.objective,
                self.svi.model,
                self.svi.guide,
                step.x,
                self.optim.parameters,
                rewind,
                failed=error is not None,
            )
        rewind()
        self.progress.beta = step.beta
        self._start_svi(engine)
        if what is None and error is not None:
            raise error  # the program's own
        what = (
            what or f"not finite by the {engine} engine, though it is eagerly; try --engine eager"
        )
        raise TrainingError(
            f"step {self.progress.step + 1} (epoch {self.progress.epoch + 1}): {what}; "
            "try a smaller learning rate or --clip-norm"
        ) from error

    @contextlib.contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        training = [module.training for module in self.modules]
        for module in self.modules:
            module.eval()
        try:
            yield
        finally:
            for module, mode in zip(self.modules, training, strict=True):
                module.train(mode)


def _read(losses: list[Tensor]) -> list[float]:
    """The numbers on the host, all at once."""
    if len(losses) == 1:
        return [float(losses[0])]
    return torch.stack(losses).tolist() if losses else []
