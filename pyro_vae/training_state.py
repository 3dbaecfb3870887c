"""What a training is between two steps: progress, weights, buffers and random states."""

__all__ = [
    "Progress",
    "Weights",
    "get_random_state",
    "set_random_state",
]

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError


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
    """Data in that sum."""
    best_bound: float = -math.inf
    """The highest β = 1 validation bound, nats per datum."""
    best_epoch: int = 0
    beta: float = math.nan
    """β of the last step."""
    gradient_norm: float = math.nan
    """Global 2-norm of the last step's gradient, before clipping."""
    seconds: float = 0.0
    """Wall-clock time spent in training."""


class Weights:
    """Every parameter and buffer of a pair, by name.

    Modules under ``model.`` and ``guide.``, other parameters as ``param.`` and their name.

    Arguments:
        model, guide: Pyro programs.
        parameters: name → unconstrained leaf, all that is trained; looked up at each use.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        parameters: dict[str, Tensor],
    ):
        programs = {"model": model, "guide": guide}
        self.modules = {k: v for k, v in programs.items() if isinstance(v, nn.Module)}
        self.parameters = parameters
        trained = {id(p) for module in self.modules.values() for p in module.parameters()}
        self._buffers = [b for k, b in self._of_modules().items() if id(b) not in trained]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors themselves."""
        owned = {id(p) for module in self.modules.values() for p in module.parameters()}
        alone = {k: p for k, p in self.parameters.items() if id(p) not in owned}
        return self._of_modules() | {f"param.{name}": p for name, p in alone.items()}

    def copy(self) -> dict[str, Tensor]:
        """Return clones."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors().items()}

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Copy values into the tensors.

        Raises:
            InputError: the names are those of another model.
        """
        tensors = self.tensors()
        if tensors.keys() != weights.keys():
            name = min(tensors.keys() ^ weights.keys())
            raise InputError(f"the checkpoint is of another model: {name!r} is in only one of them")
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])

    def copy_buffers(self) -> list[Tensor]:
        """Return clones of the buffers alone, which change as the programs run."""
        return [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def load_buffers(self, values: list[Tensor]) -> None:
        """Copy values into the buffers."""
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)

    def _of_modules(self) -> dict[str, Tensor]:
        return {
            f"{name}.{k}": v
            for name, module in self.modules.items()
            for k, v in module.state_dict(keep_vars=True).items()
        }


def get_random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's global generators that draws on ``device`` come from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put the generators into a state that ``get_random_state`` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
