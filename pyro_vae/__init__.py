"""A workbench for variational autoencoders in Pyro."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae import objectives
    from pyro_vae.comparison import compare_estimators, compare_gradients
    from pyro_vae.compiled_svi import CompiledSVI
    from pyro_vae.config import Config
    from pyro_vae.corruptions import Corrupted
    from pyro_vae.data import DataSplits, load_data
    from pyro_vae.errors import InputError
    from pyro_vae.evaluation import LogLikelihood, log_likelihood
    from pyro_vae.log_weights import log_weights
    from pyro_vae.run_training import train
    from pyro_vae.runs import Run, load_run
    from pyro_vae.training import Trainer, TrainingError

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "models" / "__init__.py").is_file():
    # In a checkout models/ and guides/ stand beside this package;
    # installed, they are its subpackages: the same import names either way.
    __path__.append(str(_root))

__version__ = "0.1.0"

__all__ = [
    "Config",
    "train",
    "load_data",
    "load_run",
    "log_weights",
    "log_likelihood",
    "compare_estimators",
    "compare_gradients",
    "objectives",
    "CompiledSVI",
    "Corrupted",
    "Trainer",
    "DataSplits",
    "Run",
    "LogLikelihood",
    "InputError",
    "TrainingError",
]

# Where the public names are. Each is imported when it is first asked for:
# ``pyro-vae --help`` does not wait for torch.
_HOMES = {
    "Config": "config",
    "train": "run_training",
    "load_data": "data",
    "load_run": "runs",
    "log_weights": "log_weights",
    "log_likelihood": "evaluation",
    "compare_estimators": "comparison",
    "compare_gradients": "comparison",
    "CompiledSVI": "compiled_svi",
    "Corrupted": "corruptions",
    "Trainer": "training",
    "DataSplits": "data",
    "Run": "runs",
    "LogLikelihood": "evaluation",
    "InputError": "errors",
    "TrainingError": "training",
}
_PACKAGES = ("comparison", "data", "evaluation", "objectives")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES, "__version__"})


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Whoever imports the module log_weights binds it here; the name is its function's.
        if name == "log_weights" and isinstance(value, ModuleType):
            value = value.log_weights
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
