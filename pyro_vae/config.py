"""Everything that determines a run: the same strings in files, tables and titles."""

__all__ = ["Config", "SPECS"]

import contextlib
import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pyro_vae.errors import InputError, suggest
from pyro_vae.specs import Spec, parse_spec

if TYPE_CHECKING:
    import torch

# The settings that are component specs, kept in their canonical form.
SPECS = (
    "data", "model", "prior", "likelihood", "guide", "encoder", "decoder", "objective", "optimizer",
    "schedule", "corrupt",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A run's settings, as they stand in ``config.yaml`` and on the command line.

    Components are specs, see ``pyro_vae.specs``. Counts of time are epochs
    unless a name says steps.
    """

    data: str = "digits"
    data_root: str | None = None
    model: str = "vae"
    prior: str = "standard_normal"
    likelihood: str = "bernoulli"
    guide: str = "diagonal_normal"
    encoder: str = "mlp"
    decoder: str | None = None
    """None: the encoder's spec, mirrored."""
    latent_dim: int = 16
    objective: str = "trace"
    corrupt: str | None = None
    """What the encoder sees in training in the place of x, such as ``mask(rate=0.25)``."""
    beta: float = 1.0
    warm_up: int = 0
    """Epochs over which β grows linearly from 0."""
    optimizer: str = "adam(lr=0.001)"
    schedule: str | None = None
    clip_norm: float | None = None
    batch_size: int = 128
    epochs: int = 100
    max_steps: int | None = None
    patience: int | None = None
    """Epochs after the warm-up without a better validation bound before training stops."""
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    engine: str | None = None
    """``compiled`` or ``eager``; None: compiled where training is long enough, see ``Trainer``."""
    precision: str = "float32"
    """Of the steps' matrix products: ``float32``, ``tf32`` or ``bfloat16``."""
    code: dict[str, str] = field(default_factory=dict)
    """path → sha256 of every component file from outside the project."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name, hint in hints.items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), hint))
        for name in SPECS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(parse_spec(getattr(self, name))))
        positive = ("latent_dim", "batch_size", "epochs", "max_steps", "patience", "clip_norm")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{_option(name)} must be positive and finite, got {value}")
        for name in ("beta", "warm_up", "seed"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"{_option(name)} must be 0 or more, and finite, got {value}")
        for name in hints:
            value = getattr(self, name)
            if type(value) is int and value >= 2**63:
                raise InputError(f"{_option(name)} must be below 2⁶³, got {value}")
        for name, choices in {
            "device": ("auto", "cpu", "cuda"),
            "dtype": ("float32", "float64"),
            "engine": (None, "eager", "compiled"),
            "precision": ("float32", "tf32", "bfloat16"),
        }.items():
            value = getattr(self, name)
            if value not in choices and not (name == "device" and value.startswith("cuda:")):
                valid = [choice for choice in choices if choice is not None]
                raise InputError(f"unknown {name} {value!r}{suggest(value, valid)}")

    def torch_device(self) -> "torch.device":
        """Return the device; ``auto`` is CUDA where there is one.

        Raises:
            InputError: ``cuda`` where there is none.
        """
        return resolve_device(self.device)

    def torch_dtype(self) -> "torch.dtype":
        """Return the dtype of parameters and data."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def replace(self, **changes: Any) -> "Config":
        """Return a copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def with_absolute_paths(self) -> "Config":
        """Return a copy that means the same from any working directory."""
        changes = {}
        for name in SPECS:
            spec = parse_spec(getattr(self, name) or "none")
            if spec.is_path:
                path = str(Path(spec.name).expanduser().resolve())
                changes[name] = str(Spec(path, spec.arguments))
        if self.data_root is not None:
            changes["data_root"] = str(Path(self.data_root).expanduser().resolve())
        return self.replace(**changes)

    def to_yaml(self) -> str:
        """Return the YAML text that ``from_yaml`` reads."""
        text: str = yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)
        return text

    @classmethod
    def from_mapping(cls, mapping: dict[str, Any], source: str = "configuration") -> "Config":
        """Make a config from a mapping of its fields.

        Raises:
            InputError: an unknown key, with the nearest match, or a value of the wrong kind.
        """
        if not isinstance(mapping, dict):
            raise InputError(f"{source}: expected 'key: value' lines, got {mapping!r}")
        valid = [f.name for f in dataclasses.fields(cls)]
        for key in mapping:
            if key not in valid:
                raise InputError(f"{source}: unknown key {key!r}{suggest(str(key), valid)}")
        return cls(**mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: missing, unreadable, or not a mapping.
    """
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such file: '{path}'") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read '{path}': {reason}") from None
    if not isinstance(mapping, dict):
        raise InputError(f"'{path}': expected 'key: value' lines")
    return mapping


def resolve_device(name: str) -> "torch.device":
    """Return the device; ``auto`` is CUDA where there is one.

    Raises:
        InputError: ``cuda`` where there is none, or an unknown name.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; valid: auto, cpu, cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device {name!r}; valid: auto, cpu, cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InputError(f"device {name!r}: {found} CUDA devices found; use --device cpu or auto")
    return device


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Hold a value against the field's type; a whole number serves as a float."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    if typing.get_origin(hint) is dict:
        if isinstance(value, dict) and all(isinstance(t, str) for kv in value.items() for t in kv):
            return value
        raise InputError(f"{name} must map paths to hashes, got {value!r}")
    if float in kinds and type(value) in (int, float, str):
        with contextlib.suppress(ValueError, OverflowError):  # YAML reads 1e-3 as text
            return float(value)
    if type(value) in kinds:
        return value
    expected = {int: "a whole number", float: "a number", str: "text"}
    wanted = " or ".join(expected[kind] for kind in kinds if kind in expected)
    raise InputError(f"{_option(name)} must be {wanted}, got {value!r}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
