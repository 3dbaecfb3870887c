"""Execute the notebooks and keep their outputs: ``python notebooks/execute.py [NAME …]``.

The cell tagged ``parameters`` holds what takes time. Its metadata may hold the same cell for a
``short`` run, which the tests make of every notebook; committed outputs are those of the whole one.
"""

import argparse
import copy
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
IGNORED = "ignore:IProgress not found"  # tqdm's, on a kernel without widgets


def notebooks() -> list[Path]:
    """The notebooks, in their order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


def execute(path: Path, *, short: bool = False, timeout: float = 1800.0) -> Any:
    """Run every cell in a new kernel, in an empty folder; return the notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raises.
        ValueError: a short run is asked of a notebook that has none.
    """
    notebook = nbformat.read(path, as_version=4)
    ran = copy.deepcopy(notebook)
    if short:
        _shorten(ran, path)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            ran,
            timeout=timeout,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=os.environ | {"PYTHONWARNINGS": IGNORED})
    for cell in ran.cells:
        cell.metadata.pop("execution", None)  # times of day
    ran.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "executed": source_hash(ran),
    }
    return ran


def source_hash(notebook: Any) -> str:
    """SHA-256 of the code cells: outputs belong to the code they were made by."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def _shorten(notebook: Any, path: Path) -> None:
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = cell.metadata["short"]
            return
    raise ValueError(f"{path.name} has no cell tagged 'parameters'")


def main() -> None:
    """Execute the notebooks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="such as 01_first_vae; all of them if none")
    names = parser.parse_args().names
    known = {path.stem: path for path in notebooks()}
    for name in names:
        if name not in known:
            parser.error(f"no notebook {name!r}; there are {', '.join(known)}")
    for name in names or known:
        start = time.perf_counter()
        nbformat.write(execute(known[name]), known[name])
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
