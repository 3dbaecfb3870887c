"""Downloads, and files that appear whole or not at all."""

__all__ = ["one_line", "download", "save_npz"]

import os
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

from pyro_vae.errors import InputError


def one_line(error: BaseException) -> str:
    """Return an exception's text as one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def download(name: str, url: str, target: Path) -> bytes:
    """Return the bytes at ``url``, which the data set ``name`` needs for the file ``target``.

    Raises:
        InputError: there is no network, or the server refuses.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return bytes(response.read())
    except OSError as error:
        raise InputError(
            f"{name} is not at {target}, and downloading {url} failed "
            f"({one_line(error)}): put the file there, or try again with a network"
        ) from None


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed ``.npz`` atomically.

    Raises:
        InputError: the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({one_line(error)}): choose another data root"
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
