"""What a step changes: parameters, by an optimizer, and buffers, which a bad step takes back."""

__all__ = ["Kept", "Update", "restore"]

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.captured_program import CapturedProgram, Outputs
from pyro_vae.errors import InputError
from pyro_vae.fused_adam import step_by_fused_adam
from pyro_vae.guards import watch
from pyro_vae.optim import JointOptim


class Update:
    """Steps the optimizer on parameters by name, whatever kind of optimizer it is."""

    def __init__(self, optim: PyroOptim | Callable[[list[Tensor]], Optimizer]):
        self.optim = optim
        self.optimizer: Any = optim.optimizer if isinstance(optim, JointOptim) else None
        self._leaves: dict[str, Tensor] = {}
        self._moved: set[str] = set()
        if isinstance(optim, JointOptim):
            self._leaves = optim.parameters

    def __call__(self, parameters: dict[str, Tensor], gradients: Outputs) -> None:
        """Update ``parameters`` in place by ``gradients``.

        A parameter that had a gradient in an earlier step and has none in this one gets zeros, as
        in SVI: momentum goes on.
        """
        slopes = list(gradients)
        for i, (name, leaf) in enumerate(parameters.items()):
            if slopes[i] is None and leaf.requires_grad and self.has_moved(name, leaf):
                slopes[i] = torch.zeros_like(leaf)
            if (slope := slopes[i]) is not None:
                self._moved.add(name)
                if slope.stride() != leaf.stride():  # fused optimizers read them in memory's order
                    slopes[i] = torch.empty_like(leaf).copy_(slope)
        leaves = list(parameters.values())
        optimizer = self.prepare(parameters)
        if optimizer is not None and step_by_fused_adam(optimizer, leaves, slopes):
            return
        for leaf, slope in zip(leaves, slopes, strict=True):
            leaf.grad = slope
        if optimizer is None:
            self.optim(leaves)
        else:
            optimizer.step()
        for leaf in leaves:
            leaf.grad = None

    def moves(self, program: CapturedProgram) -> None:
        """Note which parameters have a gradient in this program."""
        pairs = zip(program.parameters, program.graph.present[2:], strict=True)
        self._moved.update(name for name, present in pairs if present)

    def has_moved(self, name: str, leaf: Tensor) -> bool:
        """Whether the parameter had a gradient, in a training that this one resumes perhaps."""
        return name in self._moved or leaf in getattr(self.optimizer, "state", ())

    def prepare(self, parameters: dict[str, Tensor]) -> Any:
        """Return the ``torch.optim`` optimizer of these, or None: ``pyro.optim`` has several."""
        if isinstance(self.optim, PyroOptim):
            return None
        if self.optimizer is None:
            optimizer = self.optim(list(parameters.values()))
            if not isinstance(optimizer, Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
                raise InputError(
                    "optim must give a torch.optim.Optimizer that steps once a gradient, got "
                    f"{type(optimizer).__name__}"
                    + ("; take Adam or SGD" if isinstance(optimizer, Optimizer) else "")
                )
            self.optimizer, self._leaves = optimizer, dict(parameters)
        for name, leaf in parameters.items():
            if self._leaves.get(name) is not leaf and not _among(leaf, self._leaves.values()):
                self._replace(name, leaf)
        return self.optimizer

    def _replace(self, name: str, leaf: Tensor) -> None:
        """Take another leaf, as loading into Pyro's store makes, with the old one's state."""
        if name not in self._leaves:
            raise InputError(
                f"parameter {name} appeared after training began; "
                "register every parameter in the first run of model and guide"
            )
        old, self._leaves[name] = self._leaves[name], leaf
        for group in self.optimizer.param_groups:
            group["params"] = [leaf if p is old else p for p in group["params"]]
        if old in self.optimizer.state:
            self.optimizer.state[leaf] = self.optimizer.state.pop(old)


class Kept:
    """What an eager step changes beside the parameters: buffers, known by what it did before."""

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]):
        self._programs = {"model": model, "guide": guide}
        self._tensors: list[Tensor] | None = None
        self._written: set[int] | None = None
        self._saved: list[tuple[Tensor, Tensor]] = []
        self._versions: list[int] = []

    def __enter__(self) -> None:
        if self._tensors is None:
            found = watch(**self._programs).tensors.values()
            self._tensors = [tensor for tensor in found if not tensor.requires_grad]
        known = self._written
        self._saved = [(t, t.clone()) for t in self._tensors if known is None or id(t) in known]
        self._versions = [tensor._version for tensor in self._tensors]

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # the program's own error
            self.restore()
            return
        pairs = zip(self._tensors or (), self._versions, strict=True)
        touched = {id(tensor) for tensor, version in pairs if tensor._version != version}
        if self._written is None:
            # Batch normalization writes its statistics without a new version.
            changed = {id(t) for t, value in self._saved if not torch.equal(t, value)}
            self._written = changed | touched
        elif not touched <= self._written:
            self._written = None  # it does now what it did not before: look again

    def restore(self) -> None:
        """Take the last run's changes back."""
        restore(self._saved)


def restore(saved: list[tuple[Tensor, Tensor]]) -> None:
    """Copy into each tensor the value beside it."""
    with torch.no_grad():
        for tensor, value in saved:
            tensor.copy_(value)


def _among(tensor: Tensor, tensors: Iterable[Tensor]) -> bool:
    return any(tensor is other for other in tensors)
