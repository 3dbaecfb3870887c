"""Every example in a docstring, and every ``>>>`` block in the README, does what it says.

A block of the README that starts with ``# name.py`` is that file, beside the examples.

The modules are imported under their installed names (``pyro_vae.models.…``):
``pytest --doctest-modules`` would import ``models.…`` a second time, as other classes.
"""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _modules() -> list[str]:
    names = []
    for folder, package in (("pyro_vae", ""), ("models", "pyro_vae."), ("guides", "pyro_vae.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = package + ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if path.stem != "__main__":
                names.append(name.removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("name", _modules())
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_examples_of_a_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / page).exists():
        pytest.skip("no docs beside the tests")
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, code in re.findall(r"^```python\n# (\w+\.py).*\n([^`]*)^```", text, re.MULTILINE):
        (tmp_path / name).write_text(code, encoding="utf-8")
    # A closing fence would count as output; an empty line ends it and keeps the line numbers.
    text = re.sub(r"^\s*(```|~~~).*$", "", text, flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(text, {}, page, page, 0)
    monkeypatch.chdir(tmp_path)
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples).failed == 0
