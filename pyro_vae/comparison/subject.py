"""What is compared: a run's pair, trained or as training began, or a user's own programs."""

__all__ = ["Subject", "run_subject", "program_subject"]

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
from torch import Tensor

from pyro_vae.config import resolve_device
from pyro_vae.data import DataSplits, Split, load_data
from pyro_vae.errors import InputError
from pyro_vae.evaluation.record import weights_hash
from pyro_vae.execution import Program
from pyro_vae.programs import load_programs, try_programs
from pyro_vae.run_training import load_untrained
from pyro_vae.runs import load_run
from pyro_vae.seeding import derive_seed, seeded

DEFAULT_COUNT = 100


@dataclass(frozen=True)
class Subject:
    """A pair, the data that it is compared on, and where both come from."""

    name: str
    """The run's folder, or the file of the programs."""
    model: Program
    guide: Program
    x: Tensor
    """``[B, *event_shape]``, on the programs' device and in their dtype."""
    ordered: bool
    """Whether neighbouring data depend on each other."""
    batch_size: int | None
    """That of the run's training."""
    protocol: dict[str, Any]


def run_subject(
    path: Path,
    *,
    split: str = "test",
    count: int | None = None,
    weights: str = "best",
    device: str = "cpu",
    data_root: str | None = None,
    allow_code: bool = False,
) -> Subject:
    """Load a run to be compared: parameters require gradients, modules are in evaluation mode.

    Arguments:
        path: the folder.
        split, count: a random subset of so many data; 100, or all where there are fewer.
        weights: ``best``, ``last``, or ``untrained``: those that training began with.
        device, data_root, allow_code: as for ``load_run``.

    Raises:
        InputError: as ``load_run``; a guide that is a point, which has no bound.
    """
    if weights not in ("best", "last", "untrained"):
        raise InputError(f"weights must be best, last or untrained, got {weights!r}")
    options: dict[str, Any] = {"allow_code": allow_code, "device": device, "data_root": data_root}
    if weights == "untrained":
        run = load_untrained(path, **options)
    else:
        run = load_run(path, weights=weights, **options)
    if not getattr(run.guide, "has_bound", True):
        raise InputError(
            f"'{path}' was trained with the guide {run.config.guide}, a point: it has no bound on "
            "log p(x), and estimators of one have nothing to compare"
        )
    for program in (run.model, run.guide):
        program.requires_grad_(True)
    part = _subset(run.data, split, count)
    which: dict[str, Any] = {"run": str(path), "weights": weights}
    if weights != "untrained":
        which["weights_hash"] = weights_hash(path, weights)
    return Subject(
        name=str(path),
        model=run.model,
        guide=run.guide,
        x=run.to_device(part.scored()),
        ordered=run.data.ordered,
        batch_size=run.config.batch_size,
        protocol={**which, **run.data.protocol(split, part)},
    )


@contextmanager
def program_subject(
    path: Path,
    data: str,
    *,
    split: str = "test",
    count: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    data_root: str | None = None,
) -> Iterator[Subject]:
    """Execute a user's file and hold its programs, in a parameter store of their own.

    Arguments:
        path: a .py file with ``model`` and ``guide`` in it.
        data: a data spec.
        split, count: as for ``run_subject``.
        seed: of the weights that the file draws.
        device, data_root: where programs are put, and data lie.

    Raises:
        InputError: a file that fails or lacks a program, programs that do not fit the data.
    """
    target = resolve_device(device)
    splits = load_data(data, data_root)
    part = _subset(splits, split, count)
    with pyro.get_param_store().scope():
        with seeded(derive_seed(seed, "weights"), target):
            programs = load_programs(path).to(target)
            x = part.scored().to(target, programs.dtype)
            try_programs(programs, x[:2])
        yield Subject(
            name=str(path),
            model=programs.model,
            guide=programs.guide,
            x=x,
            ordered=splits.ordered,
            batch_size=None,
            protocol={
                "program": str(path),
                "program_hash": programs.source_hash,
                **splits.protocol(split, part),
            },
        )


def _subset(data: DataSplits, split: str, count: int | None) -> Split:
    whole = data.split(split)
    return whole.subset(min(DEFAULT_COUNT, len(whole)) if count is None else count)
