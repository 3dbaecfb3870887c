"""Training into a run folder: started, continued after an interruption, saved on the way."""

__all__ = ["train", "start_run", "resume_run", "train_run", "load_untrained", "facts_of"]

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.assembly import Pair, build_pair, component_hashes, latent_dims
from pyro_vae.checkpoint import load_state, save_state, save_weights, write_atomically
from pyro_vae.components import build
from pyro_vae.config import Config, read_yaml
from pyro_vae.data import DataSplits, Split, load_data
from pyro_vae.errors import InputError
from pyro_vae.protocols import Facts
from pyro_vae.runs import Run, check_code, load_run, read_config, read_rows
from pyro_vae.seeding import derive_seed, seeded
from pyro_vae.training import Trainer, TrainingError

# Seconds between checkpoints: any of them resumes to the same numbers.
CHECKPOINT_INTERVAL = 15.0
# What a resumed run may change.
EXTENDABLE = ("epochs", "max_steps", "patience", "device", "data_root")
# What a run that does not say so was trained with.
UNRECORDED = {"engine": "eager", "precision": "float32"}


def train(config: Config, path: str | Path) -> Run:
    """Train a pair into a new run folder, to the end, and return it as it was best.

    Component files that the config names are executed, as by ``pyro-vae train``.

    Raises:
        InputError: the folder exists, or data and components do not fit.
        TrainingError: a loss or gradient was not finite.
    """
    config, _, trainer = start_run(config, Path(path))
    train_run(Path(path), config, trainer)
    return load_run(path, allow_code=True, device=config.device)


def start_run(config: Config, path: Path) -> tuple[Config, DataSplits, Trainer]:
    """Make a run folder and the trainer that will fill it.

    Everything that can be refused is refused before the folder exists.

    Raises:
        InputError: the folder exists, or data and components do not fit.
    """
    if _exists(path):
        raise InputError(
            f"'{path}' exists; continue it with --resume '{path}', or give another --out"
        )
    device = config.torch_device()
    config = config.with_absolute_paths()
    config = config.replace(code=component_hashes(config), device=str(device))
    data = load_data(config.data, config.data_root)
    config = config.replace(data=data.spec, latent_dim=latent_dims(config)[-1])
    facts = facts_of(data)
    trainer = _make_trainer(config, data, facts)
    config = config.replace(engine=trainer.engine)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot make the folder '{path}': {error.strerror}") from None
    _write_config(path, config, facts, _content(data))
    return config, data, trainer


def resume_run(
    path: Path, changes: dict[str, Any], *, allow_code: bool = False
) -> tuple[Config, DataSplits, Trainer]:
    """Continue a run folder from its last checkpoint; ``changes`` may extend it.

    Raises:
        InputError: the folder is missing, damaged or of another configuration,
            needs code that was not allowed, or a change would make it another run.
    """
    config, facts = read_config(path)
    config = config.replace(engine=config.engine or UNRECORDED["engine"])
    extended = config.replace(**changes).with_absolute_paths()
    data = load_data(extended.data, extended.data_root)
    extended = extended.replace(data=data.spec)
    for key, value in dataclasses.asdict(config).items():
        if key not in EXTENDABLE and getattr(extended, key) != value:
            raise InputError(
                f"'{path}' was trained with {key}={value!r}, not {getattr(extended, key)!r}; "
                "start another run with --out"
            )
    check_code(config, allow_code, path)
    content = _check_data(path, extended, data, facts)
    trainer = _make_trainer(extended, data, facts)
    checkpoint = path / "last.pt"
    if checkpoint.exists():
        state = load_state(checkpoint)
        _check_same(config, state, path)
        try:
            trainer.load_state_dict(state["trainer"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"'{checkpoint}' is damaged or of another run: {reason}") from None
    if not trainer.finished:
        _write_rows(path, read_rows(path / "metrics.jsonl")[: trainer.progress.epoch])
        _write_config(path, extended, facts, content)
    return extended, data, trainer


def load_untrained(
    path: Path, *, allow_code: bool = False, device: str = "cpu", data_root: str | None = None
) -> Run:
    """Load a run folder with the weights that its training began with, rebuilt from its seed.

    Raises:
        InputError: as ``load_run``, or the data, from which components may start, are others now.
    """
    config, facts = read_config(path)
    check_code(config, allow_code, path)
    config = config.replace(device=device, data_root=data_root or config.data_root)
    target = config.torch_device()
    data = load_data(config.data, config.data_root)
    _check_data(path, config, data, facts)
    model, guide = _initial_pair(config, data, facts)
    for program in (model, guide):
        program.to(target).eval().requires_grad_(False)
    run = Run(path, config, facts, model, guide, "untrained")
    run.data = data
    return run


def train_run(
    path: Path,
    config: Config,
    trainer: Trainer,
    *,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    on_step: Callable[[Trainer], None] = lambda trainer: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train into the folder; return whether the end was reached.

    A row of ``metrics.jsonl`` an epoch; ``best.safetensors`` and ``last.pt``
    every few seconds at the end of an epoch or in the middle of a long one, and
    when ``stop()`` or the end is reached.
    """
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        _save(path, config, trainer)
        saved = time.monotonic()

    def end_epoch(row: dict[str, Any]) -> None:
        with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(_line(row))
        if row["epoch"] == 1 or time.monotonic() - saved >= CHECKPOINT_INTERVAL:
            save()
        on_epoch(row)

    def end_step(trainer: Trainer) -> None:
        on_step(trainer)
        if time.monotonic() - saved >= 4 * CHECKPOINT_INTERVAL:
            save()

    try:
        finished = trainer.fit(end_epoch, end_step, stop)
    except TrainingError as error:
        if not all(bool(torch.isfinite(w).all()) for w in trainer.weights().values()):
            raise
        save()  # the failed step changed nothing: this is the last good state
        raise TrainingError(f"{error}; the last good checkpoint is kept in '{path}'") from error
    save()
    return finished


def facts_of(data: DataSplits) -> Facts:
    """Return what the components need to know of a data set."""
    constant, discrete, loc, scale = 0, False, 0.0, 1.0
    if data.measure == "continuous" and not data.dequantized:
        constant, discrete = _atoms(data.train)
        loc, scale = _loc_and_scale(data)
    return Facts(
        event_shape=tuple(data.event_shape),
        measure=data.measure,
        num_levels=data.num_levels,
        dequantized=data.dequantized,
        ordered=data.ordered,
        constant_dims=constant,
        discrete=discrete,
        data_loc=loc,
        data_scale=scale,
    )


def _loc_and_scale(data: DataSplits) -> tuple[float, float]:
    """(mean over all dimensions, standard deviation about the mean of each)."""
    mean = data.data_mean.double()
    squares = sum(float((x.double() - mean).square().sum()) for x in data.train.scored_chunks())
    scale = math.sqrt(squares / (len(data.train) * mean.numel()))
    return float(mean.mean()), scale or 1.0


def _atoms(split: Split) -> tuple[int, bool]:
    """(dimensions that never vary, whether values repeat as levels do)."""
    first = split.scored(slice(0, 1))
    varies = torch.zeros(first.shape[1:], dtype=torch.bool)
    for x in split.scored_chunks():
        varies |= (x != first).any(dim=0)
    # Draws of a density do not repeat; half or more repeated values are levels.
    head = split.scored(slice(0, 1000))[:, varies]
    return int((~varies).sum()), 2 * len(head.unique()) < head.numel()


def _check_support(likelihood: Any, data: DataSplits, config: Config) -> None:
    for name in ("train", "valid", "test"):
        for x in data.split(name).scored_chunks():
            if not bool(likelihood.support.check(x).all()):
                raise InputError(
                    f"{config.data}: the {name} split has values outside the support of "
                    f"{config.likelihood}, {likelihood.support}; "
                    "give data inside it, or another likelihood"
                )


def _initial_pair(config: Config, data: DataSplits, facts: Facts) -> Pair:
    """The pair as training begins: weights from the seed, starts at the data."""

    def sample(count: int) -> Tensor:
        count = min(count, len(data.train))
        return data.train.subset(count, derive_seed(config.seed, "sample")).scored()

    with seeded(derive_seed(config.seed, "weights")):
        return build_pair(config, facts, data.data_mean, sample)


def _make_trainer(config: Config, data: DataSplits, facts: Facts) -> Trainer:
    device = config.torch_device()
    model, guide = _initial_pair(config, data, facts)
    _check_support(model.likelihood, data, config)
    corruption = None
    if config.corrupt is not None:
        corruption = build("corruption", config.corrupt, unit=facts.unit)
    return Trainer(
        model,
        guide,
        data,
        objective=build("objective", config.objective),
        corruption=corruption,
        optimizer=config.optimizer,
        schedule=config.schedule,
        clip_norm=config.clip_norm,
        beta=config.beta,
        warm_up=config.warm_up,
        batch_size=config.batch_size,
        epochs=config.epochs,
        max_steps=config.max_steps,
        patience=config.patience,
        seed=config.seed,
        device=device,
        dtype=config.torch_dtype(),
        engine=config.engine,
        precision=config.precision,
    )


def _save(path: Path, config: Config, trainer: Trainer) -> None:
    if trainer.best_weights is not None:
        metadata = {"epoch": str(trainer.progress.best_epoch)}
        save_weights(path / "best.safetensors", trainer.best_weights, metadata)
    state = {"config": dataclasses.asdict(config), "trainer": trainer.state_dict()}
    save_state(path / "last.pt", state)


def _content(data: DataSplits) -> dict[str, str]:
    """The content hashes of what a run is fitted to and chosen by."""
    return {"train": data.train.content_hash, "valid": data.valid.content_hash}


def _check_data(path: Path, config: Config, data: DataSplits, facts: Facts) -> Any:
    """Return the recorded content hashes, or refuse data that are not those of the run."""
    content = read_yaml(path / "config.yaml").get("content")
    if facts_of(data) != facts or _content(data) != content:
        raise InputError(f"'{path}' was trained on other data than {config.data} is now")
    return content


def _write_config(path: Path, config: Config, facts: Facts, content: dict[str, str]) -> None:
    facts_text = json.dumps(dataclasses.asdict(facts))
    text = f"{config.to_yaml()}facts: {facts_text}\ncontent: {json.dumps(content)}\n"
    write_atomically(path / "config.yaml", lambda file: file.write(text.encode()))


def _check_same(config: Config, state: dict[str, Any], path: Path) -> None:
    recorded = state.get("config")
    if not isinstance(recorded, dict):
        raise InputError(f"'{path}/last.pt' is not a checkpoint of a run")
    recorded = {**UNRECORDED, **recorded}
    for key, value in dataclasses.asdict(config).items():
        if key not in EXTENDABLE and recorded.get(key) != value:
            raise InputError(
                f"'{path}': config.yaml has {key}={value!r}, last.pt was trained with "
                f"{recorded.get(key)!r}"
            )


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(map(_line, rows))
    write_atomically(path / "metrics.jsonl", lambda file: file.write(text.encode()))


def _line(row: dict[str, Any]) -> str:
    """A row as JSON, which has no NaN: a standard error of one datum is null."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"cannot make the folder '{path}': {error.strerror}") from None
