"""A workbench for variational autoencoders in Pyro."""

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "models" / "__init__.py").is_file():
    # In a checkout models/ and guides/ stand beside this package;
    # installed, they are its subpackages: the same import names either way.
    __path__.append(str(_root))

__version__ = "0.1.0"

from pyro_vae import objectives  # noqa: E402
from pyro_vae.comparison import compare_estimators, compare_gradients  # noqa: E402
from pyro_vae.config import Config  # noqa: E402
from pyro_vae.data import DataSplits, load_data  # noqa: E402
from pyro_vae.errors import InputError  # noqa: E402
from pyro_vae.evaluation import LogLikelihood, log_likelihood  # noqa: E402
from pyro_vae.log_weights import log_weights  # noqa: E402
from pyro_vae.run_training import train  # noqa: E402
from pyro_vae.runs import Run, load_run  # noqa: E402
from pyro_vae.training import Trainer, TrainingError  # noqa: E402

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
    "Trainer",
    "DataSplits",
    "Run",
    "LogLikelihood",
    "InputError",
    "TrainingError",
]
