"""From a spec such as ``mnist(values=levels)`` or ``faces.npz`` to data in three splits."""

__all__ = ["describe_data", "load_data"]

import inspect
import os
from collections.abc import Callable
from pathlib import Path

from pyro_vae.data import datasets
from pyro_vae.data.files import load_file
from pyro_vae.data.folder import load_folder
from pyro_vae.data.noise import NOISE_SEEDS
from pyro_vae.data.source import Source
from pyro_vae.data.splits import DataSplits, Split
from pyro_vae.data.values import check_choices, resolve_values
from pyro_vae.errors import InputError, suggest
from pyro_vae.specs import Spec, parse_spec

_CHOICES = ("values", "binarize")
_SUFFIXES = (".npy", ".npz", ".pt")
_LOADERS: dict[str, Callable[..., Source]] = {
    "digits": datasets.digits,
    "mnist": datasets.mnist,
    "fashion_mnist": datasets.fashion_mnist,
    "kmnist": datasets.kmnist,
    "binarized_mnist": datasets.binarized_mnist,
    "frey_faces": datasets.frey_faces,
}


def load_data(spec: str, root: str | Path | None = None) -> DataSplits:
    """Load a data set by name, or from a user's own file or folder.

    Arguments:
        spec: ``digits``, ``mnist(values=levels)``, ``path/to/images.npz``, …; every data set
            takes ``values`` (``binary``, ``levels``, ``counts``, ``continuous``) and ``binarize``
            (``dynamic``, ``threshold``, ``none``). Grey data are binarized dynamically unless
            told otherwise; counts are levels without an upper limit.
        root: where named data sets lie or are downloaded to; by default ``$PYRO_VAE_DATA``,
            else ``~/.cache/pyro_vae``.

    Raises:
        InputError: the spec is wrong, or the data are missing or bad.

    Example:
        >>> data = load_data("digits")
        >>> data.spec, data.event_shape, len(data.train), len(data.valid), len(data.test)
        ('digits(values=binary, binarize=dynamic)', (8, 8), 1297, 200, 300)
        >>> load_data("digits(values=continuous)").test.scored(slice(2)).shape
        torch.Size([2, 8, 8])
    """
    asked = parse_spec(spec)
    loader, name, where = _find(asked, root)
    valid = [*_CHOICES, *(option.name for option in _options(loader))]
    for key in asked.arguments:
        if key not in valid:
            raise InputError(f"unknown argument {key!r} of {name}{suggest(key, valid)}")
    own = {key: value for key, value in asked.arguments.items() if key not in _CHOICES}
    choices = check_choices(asked.arguments)

    counts = {"counts": True} if loader is load_file and choices[0] == "counts" else {}
    source = loader(where, **own, **counts)
    event_shape = source.images["train"].event_shape
    told = choices != (None, None) or "num_levels" in asked.arguments
    if not told and len(event_shape) == 1 and (source.num_levels or 0) > 2:
        raise InputError(
            f"{name} holds vectors of whole numbers: write values=counts for counts, or "
            "values=levels, binary or continuous for the pixels of grey images"
        )
    values = resolve_values(name, *choices, source.num_levels, colour=len(event_shape) == 3)
    splits = {
        split: Split(source.images[split], source.labels[split], values, seed)
        for split, seed in NOISE_SEEDS.items()
    }
    resolved = {"values": values.measure, "binarize": values.binarize, **own}
    return DataSplits(
        spec=str(Spec(name, resolved)),
        **splits,
        event_shape=event_shape,
        measure=values.measure,
        num_levels=None if values.measure == "binary" else values.num_levels,
        dequantized=values.dequantized,
        ordered=source.ordered,
    )


def describe_data() -> list[tuple[str, str, str]]:
    """Return (name, arguments with their defaults, first line of the description) of each kind."""
    kinds = dict(_LOADERS)
    kinds |= {"path/to/images.npy, .npz or .pt": load_file, "path/to/folder": load_folder}
    rows = []
    for name, loader in kinds.items():
        binarize = "none" if name == "binarized_mnist" else "dynamic"
        arguments = ["values=binary", f"binarize={binarize}"]
        arguments += [f"{option.name}={option.default}" for option in _options(loader)]
        rows.append((name, ", ".join(arguments), (inspect.getdoc(loader) or "").split("\n")[0]))
    return rows


def _options(loader: Callable[..., Source]) -> list[inspect.Parameter]:
    """What a spec may set: all but the path, and what is said by keyword only."""
    parameters = list(inspect.signature(loader).parameters.values())[1:]
    return [p for p in parameters if p.kind is not p.KEYWORD_ONLY]


def _find(asked: Spec, root: str | Path | None) -> tuple[Callable[..., Source], str, Path]:
    """The loader, the canonical name, and the folder or file that it reads."""
    if not asked.is_path:
        if asked.name not in _LOADERS:
            hint = f" (write ./{asked.name} for the folder)" if Path(asked.name).exists() else ""
            raise InputError(
                f"unknown data set {asked.name!r}{hint}{suggest(asked.name, _LOADERS)}"
            )
        given = root or os.environ.get("PYRO_VAE_DATA") or Path("~", ".cache", "pyro_vae")
        return _LOADERS[asked.name], asked.name, Path(given).expanduser()
    path = Path(asked.name).expanduser().resolve()
    if path.is_dir():
        return load_folder, str(path), path
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    if path.suffix not in _SUFFIXES:
        raise InputError(f"cannot read {path}: expected {', '.join(_SUFFIXES)} or a folder")
    return load_file, str(path), path
