"""What precision networks run in; densities and losses are taken in full precision."""

__all__ = ["PRECISIONS", "precision", "full_precision", "without_autocast", "in_full_precision"]

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from pyro_vae.errors import InputError, suggest

PRECISIONS = ("float32", "tf32", "bfloat16")
DEVICES = ("cpu", "cuda")  # those whose autocast is looked at

_P = ParamSpec("_P")
_R = TypeVar("_R")


def precision(name: str, device: torch.device | str) -> AbstractContextManager[None]:
    """Return a context in which networks on ``device`` compute in this precision.

    - ``float32``: torch's own settings, untouched.
    - ``tf32``: float32 matrix products and convolutions round their factors to 10 bits
      of mantissa; CUDA alone.
    - ``bfloat16``: torch's autocast, matrix products and convolutions with 8 bits.

    Weights stay float32, and so do the densities: what the networks put out is brought
    back to float32 first, and the loss is summed there; it carries the networks' rounding.

    Raises:
        InputError: an unknown name, or tf32 on another device.

    Example:
        >>> with precision("bfloat16", "cpu"):
        ...     h = torch.ones(2, 2) @ torch.ones(2, 2)
        >>> h.dtype, full_precision(h).dtype
        (torch.bfloat16, torch.float32)
    """
    kind = torch.device(device).type
    if name not in PRECISIONS:
        raise InputError(f"unknown precision {name!r}{suggest(name, PRECISIONS)}")
    if name == "tf32" and kind != "cuda":
        raise InputError(f"precision tf32 needs a CUDA device, got {kind}; use float32")
    if name == "float32":
        return nullcontext()
    return _tf32() if name == "tf32" else _bfloat16(kind)


def full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in float32 where it has 16 bits, and itself otherwise."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def without_autocast() -> AbstractContextManager[None]:
    """Return a context in which nothing is cast; costs nothing where nothing would be."""
    enabled = [device for device in DEVICES if torch.is_autocast_enabled(device)]
    return _disabled(enabled) if enabled else nullcontext()


def in_full_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a density whose matrix products autocast must leave alone."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with without_autocast():
            return function(*args, **kwargs)

    return run


@contextmanager
def _disabled(devices: list[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _bfloat16(device: str) -> Iterator[None]:
    # Kept casts of weights would outlive an update: the context may last a whole training.
    with torch.autocast(device, torch.bfloat16, cache_enabled=False):
        yield


@contextmanager
def _tf32() -> Iterator[None]:
    """Switch TF32 on by the older flags, which torch keeps in step with the newer ones.

    Set by the newer alone, torch's compiler fails where it reads the older.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    modules, settings = (matmul, cudnn), (matmul, cudnn.conv, cudnn.rnn)
    flags = [_allows_tf32(module) for module in modules]
    names = [setting.fp32_precision for setting in settings]
    try:
        for module, flag in zip(modules, flags, strict=True):
            if not flag:
                module.allow_tf32 = True
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            if not flag:
                module.allow_tf32 = False
        for setting, name in zip(settings, names, strict=True):
            if setting.fp32_precision != name:
                setting.fp32_precision = name


def _allows_tf32(module: Any) -> bool:
    try:
        return bool(module.allow_tf32)
    except RuntimeError:  # set by the newer flags alone
        return False
