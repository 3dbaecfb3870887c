"""The package, built and installed: every module in its place, and nothing beside it.

Each environment below sees the packages of the interpreter that runs the tests, but
never the ``pyro_vae`` installed there, editable or not. Nothing is downloaded.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"pyro_vae": "pyro_vae", "models": "pyro_vae/models", "guides": "pyro_vae/guides"}
PACKED_WITH = ("pyproject.toml", ".gitignore", "README.md", "LICENSE", "tests", *FOLDERS)

# The caller's own settings must not reach pip (an index, a target folder) or Python (a path).
ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))} | {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_INDEX": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


def _installed(name: str) -> bool:
    # find_spec("pip") would switch setuptools' distutils off, which torch's compiler needs
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


needs_pip = pytest.mark.skipif(
    not _installed("pip") or not _installed("hatchling"),
    reason="pip or hatchling is not installed; both are in the 'test' extra",
)


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENVIRON, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def _is_ours(path: Path) -> bool:
    return path.name.lower().startswith(("pyro_vae", "pyro-vae", "_pyro_vae"))


class Environment:
    """A venv that sees the running interpreter's packages, except pyro-vae."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        venv.create(self.folder, symlinks=True)
        paths = {"base": str(self.folder), "platbase": str(self.folder)}
        self.site = Path(sysconfig.get_path("purelib", "venv", paths))
        self.bin = Path(sysconfig.get_path("scripts", "venv", paths))
        self.elsewhere = self.folder / "elsewhere"
        self.elsewhere.mkdir()
        views = []
        for i, entry in enumerate(filter(Path.is_dir, map(Path, sys.path))):
            if entry.name in ("site-packages", "dist-packages"):
                views.append(self.folder / "view" / str(i))
                views[-1].mkdir(parents=True)
                for item in entry.iterdir():
                    if not _is_ours(item):
                        (views[-1] / item.name).symlink_to(item)
        (self.site / "view.pth").write_text("\n".join(map(str, views)) + "\n")
        self.before = self.installed()

    def installed(self) -> set[str]:
        return {str(p.relative_to(self.folder)) for d in (self.site, self.bin) for p in d.iterdir()}

    def pip(self, *arguments: str | Path) -> str:
        python = self.bin / "python"
        return _run(sys.executable, "-m", "pip", "--python", python, *arguments, cwd=self.elsewhere)

    def python(self, *arguments: str) -> str:
        return _run(self.bin / "python", *arguments, cwd=self.elsewhere)

    def origins(self, *modules: str) -> list[Path]:
        """Import the modules away from any checkout, and say where each came from."""
        code = f"import {', '.join(modules)}\nfor m in ({', '.join(modules)},): print(m.__file__)"
        return [Path(line).resolve() for line in self.python("-c", code).splitlines()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the checkout, so that builds leave nothing in the real one."""
    copy = tmp_path_factory.mktemp("packaging").resolve() / "checkout"
    copy.mkdir()
    for name in PACKED_WITH:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache")
            )
        else:
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    dist = checkout.parent / "dist"
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", dist)
    _run(sys.executable, "-m", "pip", "wheel", *options, checkout, cwd=checkout.parent)
    (built,) = dist.iterdir()
    return built


@needs_pip
def test_wheel_holds_every_module_and_no_bare_folder(checkout: Path, wheel: Path) -> None:
    expected = {
        f"{inside}/{path.relative_to(checkout / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (checkout / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        licenses = [n for n in archive.namelist() if n.endswith(".dist-info/licenses/LICENSE")]
    assert names == expected
    assert {n.split("/")[0] for n in names} == {"pyro_vae"}
    for part in ("py.typed", "data/", "models/priors/", "models/likelihoods/", "guides/"):
        assert any(n.startswith(f"pyro_vae/{part}") for n in names), part
    assert len(licenses) == 1


@needs_pip
def test_wheel_runs_elsewhere_and_uninstalls_whole(wheel: Path, tmp_path: Path) -> None:
    env = Environment(tmp_path / "venv")
    env.pip("install", "--no-deps", wheel)
    package = env.site / "pyro_vae"
    assert env.origins("pyro_vae", "pyro_vae.models", "pyro_vae.guides") == [
        package / "__init__.py",
        package / "models" / "__init__.py",
        package / "guides" / "__init__.py",
    ]
    for command in (("python", "-m", "pyro_vae"), ("pyro-vae",)):
        shown = _run(env.bin / command[0], *command[1:], "--help", cwd=env.elsewhere)
        assert "train" in shown, command
        assert "evaluate" in shown, command
    assert not (env.site / "models").exists()
    assert not (env.site / "guides").exists()

    env.pip("uninstall", "--yes", "pyro-vae")
    assert env.installed() == env.before


@needs_pip
def test_editable_install_follows_the_checkout(checkout: Path, tmp_path: Path) -> None:
    env = Environment(tmp_path / "venv")
    env.pip("install", "--no-deps", "--no-build-isolation", "--editable", checkout)
    (checkout / "models" / "written_after_the_install.py").touch()
    modules = ("pyro_vae", "pyro_vae.models", "pyro_vae.models.written_after_the_install")
    try:
        assert env.origins(*modules, "pyro_vae.guides") == [
            checkout / "pyro_vae" / "__init__.py",
            checkout / "models" / "__init__.py",
            checkout / "models" / "written_after_the_install.py",
            checkout / "guides" / "__init__.py",
        ]
    finally:
        (checkout / "models" / "written_after_the_install.py").unlink()
    # A pointer and its record: no copy of a module that could go stale.
    added = {p for p in env.site.iterdir() if str(p.relative_to(env.folder)) not in env.before}
    assert all(p.suffix in (".pth", ".dist-info") for p in added), added

    env.pip("uninstall", "--yes", "pyro-vae")
    assert env.installed() == env.before
    assert (checkout / "models" / "__init__.py").is_file()


def test_ruff_is_pinned_to_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (revision,) = [r["rev"] for r in hooks if r["repo"].endswith("/ruff-pre-commit")]
    (pin,) = [d for d in project["optional-dependencies"]["test"] if re.match(r"ruff\b", d)]
    assert pin == f"ruff=={revision.removeprefix('v')}"
