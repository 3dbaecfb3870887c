"""A workbench for variational autoencoders in Pyro."""

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "models" / "__init__.py").is_file():
    # In a checkout models/ and guides/ stand beside this package;
    # installed, they are its subpackages: the same import names either way.
    __path__.append(str(_root))

__version__ = "0.1.0"
