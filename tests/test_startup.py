"""What starts quickly stays quick: which modules an import loads, and Ctrl-C while it does.

Modules are counted, not seconds: each check looks at ``sys.modules`` of a fresh interpreter.
"""

import ast
import importlib
import json
import os
import pickle
import subprocess
import sys
import typing
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import pyro_vae
from tests.command import heeding_ctrl_c

ROOT = Path(__file__).resolve().parents[1]

# Each costs 0.1 to 1.5 s, and none is needed before somebody draws, scores or compiles.
HEAVY = {
    "matplotlib", "scipy", "sklearn", "torchvision", "sympy", "pandas", "tensorboard", "IPython",
    "torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.tensor", "triton",
}  # fmt: skip
COMMAND_LINE = {"rich", "typer"}


def _python(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(each) for each in (path, ROOT) if each is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with heeding_ctrl_c():
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True
        )


def _modules(program: str) -> set[str]:
    """Whatever a fresh interpreter has loaded after ``program``."""
    shown = _python("-c", f"{program}\nimport json, sys; print(json.dumps([*sys.modules]))")
    assert shown.returncode == 0, shown.stderr
    return set(json.loads(shown.stdout.splitlines()[-1]))


def _help(*arguments: str) -> str:
    return (
        "import sys; from pyro_vae.__main__ import main\n"
        f"sys.argv = ['pyro-vae', {', '.join(map(repr, arguments))}]\n"
        "try: main()\n"
        "except SystemExit: pass"
    )


def _packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_the_import_alone_waits_for_nothing():
    loaded = _modules("import pyro_vae; pyro_vae.__version__; dir(pyro_vae)")
    assert {name for name in loaded if name.startswith("pyro_vae.")} == set()
    assert not _packages(loaded) & {"torch", "pyro", "numpy", "yaml"}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["train", "--help"], ["sweep", "--help"], ["diagnose", "--help"],
     ["compare", "--help"], ["trian"], ["train", "--epoch", "3"], ["sample"]],
)  # fmt: skip
def test_help_and_misspelt_commands_do_not_wait_for_torch(arguments):
    loaded = _modules(_help(*arguments))
    assert "pyro_vae.cli" in loaded
    assert not _packages(loaded) & {"torch", "pyro", "numpy", "matplotlib", "scipy", "sklearn"}


def test_all_public_names_load_little_that_torch_and_pyro_did_not():
    before = _modules("import torch, pyro")
    added = _modules("from pyro_vae import *; log_weights, train, objectives") - before
    assert "pyro_vae.training" in added
    assert not added & (HEAVY | COMMAND_LINE)
    assert not _packages(added) & (HEAVY | COMMAND_LINE)


_AGAIN = """
import sys
for first in sys.argv[1:]:
    for name in [each for each in sys.modules if each.partition(".")[0] == "pyro_vae"]:
        del sys.modules[name]
    import pyro_vae as pv
    exec(first)
    import pyro_vae.log_weights as alias
    from pyro_vae import log_weights
    module = sys.modules["pyro_vae.log_weights"]
    assert pv.log_weights is log_weights is alias is module.log_weights, first
"""


def test_names_do_not_depend_on_what_was_imported_before():
    """The function log_weights, not its module; packages without an import of their own."""
    done = _python(
        "-W", "error", "-c", _AGAIN, "pass", "import pyro_vae.log_weights",
        "from pyro_vae.log_weights import log_weights", "from pyro_vae.evaluation import refine",
        "from pyro_vae import log_likelihood", "pv.load_run", "from pyro_vae import *",
        "pv.evaluation.refine", "pv.comparison.compare_values", "pv.data.describe_data",
        "pv.objectives.IWAE",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_type_checker_sees_the_names_that_are_found():
    """The imports under TYPE_CHECKING, the table of homes and ``__all__`` are one list."""
    tree = ast.parse((ROOT / "pyro_vae" / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = [
        node for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]  # fmt: skip
    seen = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"pyro_vae.{home}" for name, home in pyro_vae._HOMES.items()}
    assert seen == {**homes, "objectives": "pyro_vae"}
    assert sorted(seen) == sorted(pyro_vae.__all__)
    assert set(pyro_vae.__all__) <= set(dir(pyro_vae))


@pytest.mark.parametrize("name", [name for name in pyro_vae.__all__ if name != "objectives"])
def test_a_public_name_is_its_homes(name):
    found = getattr(pyro_vae, name)
    assert found is getattr(importlib.import_module(found.__module__), name)
    assert isinstance(found, type | FunctionType)
    assert pickle.loads(pickle.dumps(found)) is found
    typing.get_type_hints(found)


def test_what_is_not_there_is_not_there():
    assert isinstance(pyro_vae.objectives, ModuleType)
    with pytest.raises(AttributeError, match="module 'pyro_vae' has no attribute 'log_weight'"):
        pyro_vae.log_weight  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'log_weight'"):
        from pyro_vae import log_weight  # noqa: F401
    assert not hasattr(pyro_vae, "__wrapped__")


# Some libraries catch everything while they are imported, and go on or fail in another way.
_GREEDY = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException as error:
    raise RuntimeError("not the interrupt") from error
raise SystemExit(7)
"""


@pytest.mark.parametrize(("module", "command"), [("typer", "--help"), ("torch", "list")])
def test_ctrl_c_during_an_import_ends_it_without_a_word(tmp_path, module, command):
    (tmp_path / f"{module}.py").write_text(_GREEDY)
    done = _python("-m", "pyro_vae", command, path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_ignored_interrupt_stays_ignored(tmp_path):
    """As a shell starts a job in the background."""
    (tmp_path / "typer.py").write_text(_GREEDY)
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from pyro_vae.__main__ import main; main()"
    )
    assert _python("-c", program, path=tmp_path).returncode == 7


_WORK = """
import os, signal
from pyro_vae import __main__ as command

def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("tidied up")

command._main = work
try:
    command.main()
finally:
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_ctrl_c_outside_an_import_is_a_keyboard_interrupt():
    done = _python("-c", _WORK)
    assert (done.returncode, done.stdout, done.stderr) == (130, "tidied up\nTrue\n", "")
