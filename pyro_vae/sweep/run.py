"""A sweep, run: what is there is found, what is missing is trained and scored."""

__all__ = ["run_sweep", "Observer", "Watch", "Stopped"]

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from pyro_vae.comparability import to_measure
from pyro_vae.errors import InputError
from pyro_vae.evaluation import Estimate, Evaluation, evaluate
from pyro_vae.evaluation.active_units import ActiveUnits, active_units
from pyro_vae.evaluation.per_datum_record import keep_per_datum
from pyro_vae.evaluation.record import (
    find_entry,
    read_record,
    replace_entry,
    weights_hash,
    write_record,
)
from pyro_vae.run_training import resume_run, start_run, train_run
from pyro_vae.runs import Run, load_run
from pyro_vae.sweep.plan import Plan, PlannedRun
from pyro_vae.sweep.results import Result, Results
from pyro_vae.training import Trainer, TrainingError


class Watch(Protocol):
    """What follows a training; ``terminal.TrainingDisplay`` is one."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Take an epoch's row of metrics."""

    def on_step(self, trainer: Trainer) -> None:
        """Take a step."""


class _Unwatched:
    def on_epoch(self, row: dict[str, Any]) -> None:
        pass

    def on_step(self, trainer: Trainer) -> None:
        pass


Watching = AbstractContextManager[Watch]
Counting = AbstractContextManager[Callable[[int, int], None]]


def _unwatched(run: PlannedRun, trainer: Trainer) -> Watching:
    return contextlib.nullcontext(_Unwatched())


def _uncounted(run: PlannedRun) -> Counting:
    return contextlib.nullcontext(lambda done, total: None)


@dataclass(frozen=True)
class Observer:
    """Whom a sweep tells what it does, and asks whether to stop."""

    watch: Callable[[PlannedRun, Trainer], Watching] = _unwatched
    """Entered around each training."""
    count: Callable[[PlannedRun], Counting] = _uncounted
    """Entered around each scoring; what it gives is told (blocks done, blocks in all)."""
    on_result: Callable[[Results, Result], None] = lambda results, result: None
    """Told the results so far and the newest."""
    stop: Callable[[], bool] = lambda: False


_NOBODY = Observer()


class Stopped(Exception):
    """The sweep was asked to stop; what is done is saved, and the same plan goes on from there."""


def run_sweep(plan: Plan, observer: Observer = _NOBODY) -> Results:
    """Train and score what is not there yet; return the results of all runs.

    ``sweep.json`` and ``sweep.csv`` are written after every new run. A training
    that diverges, or a run that cannot be scored, has failed, and the sweep goes on.

    Raises:
        Stopped: the observer said so.
    """
    results = Results(plan, [])
    for run in plan.runs:
        result = _run(plan, run, observer)
        results = Results(plan, [*results.results, result])
        # While what is there is only read again, the files keep what they hold.
        if result.is_new or len(results.results) == len(plan.runs):
            results.write()
        observer.on_result(results, result)
    return results


def _run(plan: Plan, run: PlannedRun, observer: Observer) -> Result:
    """Train where it is unfinished, score where it is unscored."""
    config = run.config
    if run.exists:
        # Planning has executed these very component files: the settings name them.
        place = {"device": config.device, "data_root": config.data_root}
        with _intact(run):
            config, _, trainer = resume_run(run.path, place, allow_code=True)
    else:
        config, _, trainer = start_run(config, run.path)
    unfinished = not trainer.finished
    if unfinished:
        try:
            with observer.watch(run, trainer) as watch:
                finished = train_run(
                    run.path,
                    config,
                    trainer,
                    on_epoch=watch.on_epoch,
                    on_step=watch.on_step,
                    stop=observer.stop,
                )
        except TrainingError as error:
            failure = f"diverged: {error}"
            return Result(run, True, False, trainer.progress.seconds, failure=failure)
        if not finished:
            raise Stopped
    seconds = trainer.progress.seconds
    del trainer  # and its memory, before z are drawn by the thousand
    file = run.path / "evaluation" / f"{plan.split}.json"
    entries = read_record(file)
    with _intact(run):
        weights = weights_hash(run.path)
    entry = find_entry(entries, _protocol(plan, run), weights)
    known = entry is not None and "active_units" in entry
    if entry is None or not known:
        if observer.stop():
            raise Stopped
        with _intact(run):
            loaded = load_run(run.path, allow_code=True, device=config.device)
        try:
            entry = entry or keep_per_datum(file, _evaluate(plan, run, loaded, observer), weights)
            x = loaded.to_device(run.configuration.split.scored())
            units = active_units(loaded.model, loaded.guide, x, seed=run.seed)
            entry["active_units"] = dataclasses.asdict(units)
            write_record(file, replace_entry(entries, entry))
        except InputError as error:
            return Result(run, unfinished, True, seconds, failure=f"not scored: {error}")
    estimates = {name: Estimate(**fields) for name, fields in entry["estimates"].items()}
    estimates = to_measure(estimates, run.configuration.facts, plan.measure)
    units = ActiveUnits(**entry["active_units"])
    return Result(run, unfinished, not known, seconds, estimates, units)


@contextlib.contextmanager
def _intact(run: PlannedRun) -> Iterator[None]:
    """Say what to do with a folder that cannot be read."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error}; move the folder '{run.path}' away, and the sweep trains it anew"
        ) from None


def _protocol(plan: Plan, run: PlannedRun) -> dict[str, Any]:
    """What determines a run's scores.

    The draws of z are seeded by the run's seed: they are independent between the
    seeds of a configuration, and so are the errors of the mean over seeds.
    """
    configuration = run.configuration
    return {
        "weights": "best",
        **configuration.data.protocol(plan.split, configuration.split),
        "num_samples": plan.num_samples if configuration.has_bound else 1,
        "seed": run.seed,
        "dtype": configuration.config.dtype,
    }


def _evaluate(plan: Plan, run: PlannedRun, loaded: Run, observer: Observer) -> Evaluation:
    configuration = run.configuration

    def on_block(done: int, total: int) -> None:
        show(done, total)
        if done < total and observer.stop():  # what is done is kept
            raise Stopped

    protocol = configuration.data.protocol(plan.split, configuration.split)
    with observer.count(run) as show:
        return evaluate(
            loaded.model,
            loaded.guide,
            configuration.split,
            loaded.facts,
            num_samples=plan.num_samples,
            chunk_size=plan.chunk_size,
            seed=run.seed,
            device=loaded.device,
            dtype=loaded.config.torch_dtype(),
            data_protocol={"weights": loaded.weights, **protocol},
            on_block=on_block,
        )
