"""A run folder, read: its configuration, its metrics, its trained pair."""

__all__ = ["Run", "load_run", "read_config", "read_rows", "check_code"]

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.assembly import build_pair, component_hashes
from pyro_vae.checkpoint import (
    load_state,
    load_weights,
)
from pyro_vae.config import Config, read_yaml, resolve_device
from pyro_vae.data import DataSplits, load_data
from pyro_vae.errors import InputError
from pyro_vae.protocols import Facts
from pyro_vae.seeding import forked


@dataclass
class Run:
    """A trained pair with what it was made from.

    ``model`` and ``guide`` are in evaluation mode; ``weights`` tells whether
    they hold those of the best validation epoch or the last ones; ``data`` is
    loaded on first use.
    """

    path: Path
    config: Config
    facts: Facts
    model: Any
    guide: Any
    weights: str

    @cached_property
    def data(self) -> DataSplits:
        """The data set the run was trained on, checked against the recorded shape."""
        data = load_data(self.config.data, self.config.data_root)
        if data.event_shape != self.facts.event_shape:
            raise InputError(
                f"{self.path}: trained on data of shape {self.facts.event_shape}, "
                f"{self.config.data} now has {data.event_shape}"
            )
        return data

    @property
    def device(self) -> torch.device:
        """Where model and guide are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def to_device(self, x: Tensor) -> Tensor:
        """Return data on the run's device, in its dtype."""
        return x.to(self.device, self.config.torch_dtype())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``."""
        return read_rows(self.path / "metrics.jsonl")


def load_run(
    path: str | Path,
    *,
    allow_code: bool = False,
    device: str = "cpu",
    weights: str = "best",
    data_root: str | None = None,
) -> Run:
    """Load a run folder.

    Arguments:
        path: the folder.
        allow_code: execute component files from outside the project, if their
            hash is the recorded one.
        device: where model and guide are put; ``auto`` is CUDA where there is one.
        weights: ``best`` (validation epoch) or ``last``.
        data_root: where the data lie, if not where the run found them.

    Raises:
        InputError: the folder is missing, damaged or of another configuration,
            or needs code that was not allowed.
    """
    if weights not in ("best", "last"):
        raise InputError(f"weights must be best or last, got {weights!r}")
    path = Path(path)
    config, facts = read_config(path)
    check_code(config, allow_code, path)
    if data_root is not None:
        config = config.replace(data_root=data_root)
    target = resolve_device(device)
    with forked():
        model, guide = build_pair(config, facts)
    tensors = _load_best(path) if weights == "best" else _load_last(path)
    for name, program in (("model", model), ("guide", guide)):
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            program.load_state_dict(own)
        except RuntimeError as error:  # a headline, then a line a tensor
            reason = " ".join(str(error).splitlines()[1].split())
            raise InputError(f"'{path}' holds the weights of another {name}: {reason}") from None
        program.to(target).eval().requires_grad_(False)
    return Run(path, config, facts, model, guide, weights)


def read_config(path: Path) -> tuple[Config, Facts]:
    """Read a run's configuration and the facts of its data.

    Raises:
        InputError: no such run, or a damaged one.
    """
    if not path.is_dir():
        raise InputError(f"no such run: '{path}'")
    file = path / "config.yaml"
    if not file.is_file():
        raise InputError(f"'{path}' is not a run: it has no config.yaml")
    mapping = read_yaml(file)
    if "facts" not in mapping:
        raise InputError(f"'{file}' is not a run's: it lacks the line 'facts: …'")
    facts = mapping.pop("facts")
    mapping.pop("content", None)
    try:
        config = Config.from_mapping(mapping, "unknown setting")
    except InputError as error:
        raise InputError(f"'{file}': {error}") from None
    try:
        floats = {
            k: float(facts[k]) for k in ("data_loc", "data_scale") if k in facts
        }  # 1e-3 is text
        facts = Facts(**{**facts, **floats, "event_shape": tuple(facts["event_shape"])})
    except (KeyError, TypeError, ValueError):
        facts = None
    if facts is None or not facts.is_valid:
        raise InputError(f"'{file}' is damaged: its facts do not describe data")
    return config, facts


def check_code(config: Config, allow_code: bool, path: Path) -> None:
    """Refuse component files from outside that are not allowed, or not the recorded ones.

    What the specs name counts, not what ``code`` lists: an edited list opens no door.

    Raises:
        InputError: with the files that would be executed.
    """
    hashes = component_hashes(config)
    if hashes and not allow_code:
        files = ", ".join(f"'{file}'" for file in hashes)
        raise InputError(f"'{path}' needs code from {files}; read it, then give --allow-code")
    for file, found in hashes.items():
        if config.code.get(file) != found:
            raise InputError(f"'{file}' is not the file that '{path}' was trained with")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read whole lines; a line cut short by a crash, or that is no row, ends the file."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict):
                break
            rows.append(row)
    return rows


def _load_best(path: Path) -> dict[str, Tensor]:
    file = path / "best.safetensors"
    if not file.exists() and (path / "last.pt").exists():
        raise InputError(f"'{path}' has no complete epoch yet; go on with --resume '{path}'")
    return load_weights(file)


def _load_last(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_state(path / "last.pt")["trainer"]["weights"]
    except (KeyError, TypeError):
        raise InputError(f"'{path}/last.pt' is not a checkpoint of a run") from None
    return weights
