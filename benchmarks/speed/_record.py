"""What the speed benchmarks share around the timing: options, machine, versions, saved results."""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("pyro-vae", "torch", "pyro-ppl", "numpyro", "jax", "jaxlib", "pythae", "numpy")

PEERS = ("numpyro", "jax", "jaxlib", "pythae")


class Unavailable(RuntimeError):
    """A contestant cannot run on this device."""


def why_skipped(error: Exception) -> str:
    """Why a contestant is left out; what is no missing peer is raised again."""
    if isinstance(error, Unavailable):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in PEERS:
        return f"{error.name} is not installed (pip install 'pyro-vae[bench]')"
    raise error


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """The options that every speed benchmark takes."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    options.add_argument("--repeats", type=int, default=15, help="timing windows a contestant")
    options.add_argument("--seconds", type=float, default=0.2, help="length of a window")
    options.add_argument(
        "--threads", type=int, help="CPU threads of torch and XLA; default: torch's own number"
    )
    options.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="time NAME alone; repeatable"
    )
    options.add_argument(
        "--out", type=Path, help=f"results file; default: results/speed_{name}_DEVICE.json"
    )
    options.add_argument("--show", action="store_true", help="print what is saved, run nothing")
    options.set_defaults(benchmark=name)
    return options


def check_only(
    options: argparse.Namespace, names: Iterable[str], parser: argparse.ArgumentParser
) -> None:
    """Refuse a name in ``--only`` that no contestant has."""
    unknown = set(options.only) - set(names)
    if unknown:
        parser.error(f"--only {min(unknown)}: unknown; valid: {', '.join(names)}")


def results_file(options: argparse.Namespace) -> Path:
    kind = options.device.partition(":")[0]
    return options.out or RESULTS / f"speed_{options.benchmark}_{kind}.json"


@contextlib.contextmanager
def configured(options: argparse.Namespace) -> Iterator[None]:
    """Threads as asked, for torch and XLA alike, and Pyro's validation off.

    XLA reads its number of threads from NPROC when jax is first used.
    """
    import pyro
    import torch

    threads, variables = torch.get_num_threads(), dict(os.environ)
    if options.threads:
        torch.set_num_threads(options.threads)
    os.environ["NPROC"] = str(torch.get_num_threads())
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        with pyro.validation_enabled(False), torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(variables)


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions and settings, as they stand beside every result."""
    unsaid = ("out", "show", "benchmark", "data_root")  # paths are this machine's own
    settings = {k: v for k, v in vars(options).items() if k not in unsaid}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": machine(options.device),
        "versions": versions(),
        "settings": settings,
    }


def machine(device: str) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "xla_threads": os.environ.get("NPROC"),
        "load_average": list(os.getloadavg()),
        "device": device,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def save(path: Path, record: dict[str, Any]) -> None:
    """Add a record, or put it in the place of the one of the same cell."""
    records = [known for known in load(path) if known["cell"] != record["cell"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*records, record], indent=1) + "\n")
