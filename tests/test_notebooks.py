"""The notebooks run, and the outputs they are committed with are those of their code."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = (
    "01_first_vae",
    "02_swap_prior_and_likelihood",
    "03_elbo_estimators",
    "04_log_likelihood",
    "05_autoencoders",
    "06_your_own_program",
)

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
if not FOLDER.exists():
    pytest.skip("no notebooks beside the tests", allow_module_level=True)


@pytest.fixture(scope="module")
def execution() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _committed(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_tested(execution: ModuleType) -> None:
    assert [path.stem for path in execution.notebooks()] == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(execution: ModuleType, name: str) -> None:
    ran = execution.execute(FOLDER / f"{name}.ipynb", short=True, timeout=300)
    assert [cell.execution_count for cell in _code(ran)] == list(range(1, len(_code(ran)) + 1))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_full(execution: ModuleType, name: str) -> None:
    execution.execute(FOLDER / f"{name}.ipynb")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_code(execution: ModuleType, name: str) -> None:
    committed = _committed(name)
    nbformat.validate(committed)
    assert committed.metadata["executed"] == execution.source_hash(committed)
    cells = _code(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert pictures


@pytest.mark.parametrize("name", NAMES)
def test_the_short_run_differs_in_numbers_alone(name: str) -> None:
    """The same names are given in the same order; only what takes time is smaller."""
    (cell,) = [c for c in _code(_committed(name)) if "parameters" in c.metadata.get("tags", [])]

    def names(source: str) -> list[str]:
        return [line.partition("=")[0].strip() for line in source.splitlines() if "=" in line]

    assert names(cell.source) == names(cell.metadata["short"])
    assert cell.source != cell.metadata["short"]
