"""Names, arguments and tensors on disk; written atomically, never a pickled object read."""

__all__ = ["write_atomically", "save_state", "load_state", "save_weights", "load_weights"]

import os
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import safetensors
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as dump_safetensors
from torch import Tensor

from pyro_vae.errors import InputError


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all: a temporary beside it, synced, then renamed.

    Raises:
        InputError: the folder cannot be written, or something that is no file stands there.
    """
    if path.exists() and not path.is_file():  # renaming would destroy a device
        raise InputError(f"cannot write '{path}': it is there and no regular file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot write '{path}': {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Save a nested dictionary of tensors, numbers, strings, lists and None."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_state(path: Path) -> dict[str, Any]:
    """Load what ``save_state`` saved, with ``weights_only=True``.

    Raises:
        InputError: missing, damaged, or holding a pickled object.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols: garbage has any
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"no such file: '{path}'") from None
    except pickle.UnpicklingError:
        raise InputError(f"'{path}' holds pickled objects or is damaged; it was not read") from None
    except Exception:  # bytes that are no pickle make the unpickler stumble anywhere
        raise InputError(f"'{path}' is damaged; it was not read") from None
    if not isinstance(state, dict):
        raise InputError(f"'{path}' is not a checkpoint of this library")
    return state


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Save named tensors as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content = dump_safetensors(tensors, metadata)
    write_atomically(path, lambda file: file.write(content))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Load named tensors from safetensors.

    Raises:
        InputError: missing or damaged.
    """
    try:
        return load_safetensors(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"no such file: '{path}'") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"'{path}' is damaged: {error}") from None
