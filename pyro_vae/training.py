"""The SVI loop: a (model, guide) pair, data in, rows of metrics out; no files in here."""

__all__ = ["Trainer", "TrainingError", "Progress"]

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import pyro
import torch
from pyro.infer import ELBO, SVI
from pyro.infer.util import torch_item
from torch import Tensor, nn

from pyro_vae.annealing import Beta, linear_warm_up
from pyro_vae.data import DataSplits
from pyro_vae.errors import InputError
from pyro_vae.execution import Program
from pyro_vae.log_weights import LogWeights, draw_latents, weigh
from pyro_vae.nonfinite import NonFiniteError, explain, largest_gradient
from pyro_vae.objectives._kinds import is_elbo
from pyro_vae.objectives.trace import Trace
from pyro_vae.optim import (
    JointOptim,
    optimizer_from_spec,
    schedule_from_spec,
)
from pyro_vae.seeding import derive_seed, forked, seeded
from pyro_vae.standard_error import standard_error_of_mean

KEPT_ELEMENTS = 2**27  # of validation data: half a gigabyte in float32


class TrainingError(ArithmeticError):
    """Training stopped at a loss or gradient that is not finite; nothing was updated by it."""


@dataclass
class Progress:
    """How far a training is; with weights, optimizer and random state it resumes exactly."""

    epoch: int = 0
    """Completed epochs."""
    batch: int = 0
    """Batches done of the current epoch."""
    step: int = 0
    loss_sum: float = 0.0
    """Σ of the loss over the current epoch's data, in nats."""
    count: int = 0
    """Data seen in the current epoch."""
    best_bound: float = -math.inf
    """The highest β = 1 validation bound, nats per datum."""
    best_epoch: int = 0
    beta: float = math.nan
    """β of the last step."""
    gradient_norm: float = math.nan
    """Global 2-norm of the last step's gradient, before clipping."""
    seconds: float = 0.0
    """Wall-clock time spent in training."""


class Trainer:
    """Trains one pair by ``pyro.infer.SVI``, inside a parameter store of its own.

    Two trainers in one process never touch each other's parameters, and
    neither touches Pyro's global store nor, outside ``fit``, torch's global
    random state. Parameters are initialized by the caller (modules) or in the
    constructor (plain functions with ``pyro.param``), under ``seed``.

    Arguments:
        model, guide: Pyro programs of ``x`` ``[B, *event_shape]``.
        data: its ``train`` split is fitted; ``valid`` chooses the best epoch.
        objective: a ``pyro.infer.ELBO``; ``Trace()``, Pyro's Trace_ELBO, by default.
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
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        data: DataSplits,
        *,
        objective: ELBO | None = None,
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
    ):
        self.model, self.guide, self.data = model, guide, data
        self.beta, self.warm_up = beta, warm_up
        self.batch_size, self.epochs, self.max_steps = batch_size, epochs, max_steps
        self.patience, self.seed = patience, seed
        self.device, self.dtype = torch.device(device), dtype
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
        with pyro.get_param_store().scope() as self._store, seeded(seed, self.device):
            parameters = self._first_run()
            self._state = _get_random_state(self.device)
        self.optim = JointOptim(parameters, optimizer_from_spec(optimizer), clip_norm)
        self.schedule = (
            schedule_from_spec(schedule, self.optim.optimizer, epochs) if schedule else None
        )
        annealed = beta != 1.0 or warm_up > 0
        scale = Beta(self._beta) if annealed else lambda program: program
        self.objective = objective or Trace()
        self.svi = SVI(scale(model), scale(guide), self.optim, self.objective)
        self.svi.loss_and_grads = _finite(self.svi.loss_and_grads)
        self._try_objective()

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
            _set_random_state(self._state, self.device)
            self._running = True
            try:
                while not self.finished:
                    if not self._epoch(on_step, stop):
                        return False
                    if self._out_of_steps and self.progress.batch < self.steps_per_epoch:
                        self._cut = self.state_dict()
                    on_epoch(self._end_of_epoch())
            finally:
                self._state = _get_random_state(self.device)
                self._running = False
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return all that ``load_state_dict`` needs to continue bit for bit.

        Where ``max_steps`` cut an epoch short, the state is the one before that
        epoch was closed: with more steps it goes on as if never cut.
        """
        return self._cut or {
            "progress": dataclasses.asdict(self.progress),
            "weights": self.weights(),
            "best_weights": self.best_weights,
            "optimizer": self.optim.get_state(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "random_state": _get_random_state(self.device) if self._running else self._state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; the next step is the one that would have followed."""
        self._cut = None
        self.progress = Progress(**state["progress"])
        self._load_weights(state["weights"])
        self.best_weights = state["best_weights"]
        self.optim.set_state(state["optimizer"])
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])
        self._state = state["random_state"]

    def weights(self) -> dict[str, Tensor]:
        """Return clones of every parameter and buffer, by name."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    @contextlib.contextmanager
    def parameters(self) -> Iterator[None]:
        """Enter the trainer's parameter store, to run programs that hold ``pyro.param`` there."""
        with pyro.get_param_store().scope(self._store):
            yield

    @torch.no_grad()
    def validation_bound(self) -> tuple[float, float]:
        """Return the β = 1 ELBO on the validation data and its standard error, nats per datum.

        Of a guide without a bound, the log-joint log p(x, z(x)). One z a datum, the
        same noise at every call: epochs differ by their weights alone. The standard
        error is over data and draws together, over blocks of neighbours where data
        are ordered; NaN for one datum.
        """
        bounds = []
        seed = derive_seed(self.seed, "validation")
        store = contextlib.nullcontext() if self._running else self.parameters()
        with store, self._evaluation_mode(), seeded(seed, self.device):
            for x in self._validation_batches():
                bounds.append(self._draw_weights(x).log_weight[0].double())
        bound = torch.cat(bounds)
        error = standard_error_of_mean(bound, self.data.ordered)
        return float(bound.mean()), math.nan if error is None else error

    @property
    def criterion(self) -> str:
        """What training maximizes at β = 1: ``elbo``; ``log_joint`` where the guide is a point."""
        return "elbo" if getattr(self.guide, "has_bound", True) else "log_joint"

    @property
    def training_criterion(self) -> str:
        """What a row of metrics calls minus the training loss: ``elbo`` where it is one.

        ``log_joint`` where the guide is a point, ``objective`` for any other estimator, and
        with free bits.
        """
        other = self.criterion == "elbo" and not is_elbo(self.objective)
        return "objective" if other else self.criterion

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
        latents = draw_latents(self.guide, x, 1, allow_points=self.criterion == "log_joint")
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

    def _step(self, x: Tensor) -> None:
        started = time.perf_counter()
        self._beta.fill_(self.current_beta)
        before = _get_random_state(self.device)
        first = x.shape not in self._validated  # Pyro checks a program's shapes once for each
        try:
            with pyro.validation_enabled(first):
                loss = self.svi.step(x)
            self._validated.add(x.shape)
        except (NonFiniteError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            self._explain(x, before, error)
        progress = self.progress
        progress.beta, progress.gradient_norm = float(self._beta), self.optim.gradient_norm
        progress.step += 1
        progress.batch += 1
        progress.loss_sum += loss
        progress.count += x.shape[0]
        progress.seconds += time.perf_counter() - started

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
        }
        if self.schedule:
            self.schedule.step()
        progress.batch, progress.loss_sum, progress.count = 0, 0.0, 0
        return row

    def _first_run(self) -> dict[str, Tensor]:
        """Run guide and model once and return the parameters they register, in order."""
        with self._evaluation_mode(), torch.no_grad():
            self._draw_weights(self._two_data())
        parameters = dict(pyro.get_param_store().named_parameters())
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

    def _explain(self, x: Tensor, before: dict[str, Tensor], error: Exception) -> NoReturn:
        _set_random_state(before, self.device)
        reason = explain(self.svi.model, self.svi.guide, x, self.optim.parameters)
        _set_random_state(before, self.device)  # the state is that before the failed step
        if isinstance(error, NonFiniteError):
            what = f"{error} is not finite"
        elif reason is None:
            raise error  # the program's own
        else:
            what = "the programs fail"
        reason = reason or largest_gradient(self.optim.parameters)
        raise TrainingError(
            f"step {self.progress.step + 1} (epoch {self.progress.epoch + 1}): {what}: {reason}; "
            "try a smaller learning rate or --clip-norm"
        ) from error

    def _tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer: modules under "model." and "guide.", the rest by its name."""
        tensors: dict[str, Tensor] = {}
        for name, program in (("model", self.model), ("guide", self.guide)):
            if isinstance(program, nn.Module):
                tensors |= {f"{name}.{k}": v for k, v in program.state_dict().items()}
        owned = {id(p) for module in self.modules for p in module.parameters()}
        for name, parameter in self.optim.parameters.items():
            if id(parameter) not in owned:
                tensors[f"param.{name}"] = parameter
        return tensors

    @torch.no_grad()
    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        tensors = self._tensors()
        if tensors.keys() != weights.keys():
            name = min(tensors.keys() ^ weights.keys())
            raise InputError(f"the checkpoint is of another model: {name!r} is in only one of them")
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])

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


def _finite(loss_and_grads: Callable[..., Any]) -> Callable[..., Any]:
    """Stop at a loss that is not finite, before the optimizer steps."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        loss = loss_and_grads(*args, **kwargs)
        if not math.isfinite(torch_item(loss)):
            raise NonFiniteError("the loss")
        return loss

    return checked


def _get_random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's global generators that draws on ``device`` come from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
