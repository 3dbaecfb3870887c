"""Every ``pyro-vae`` command of README and guide, run on small data and networks."""

import re
import shlex
from pathlib import Path

import pytest

from tests.command import invoke

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/guide.md"]
# What makes a command quick: options after those of the README, which they override.
SMALL = ["--encoder", "mlp(hidden=(8,))", "--epochs", "1", "--device", "cpu", "--no-tensorboard"]
SWEEP = ["--encoder", "mlp(hidden=(8,))", "--epochs", "1", "--seeds", "1", "-K", "5", "--count",
         "20", "--device", "cpu"]  # fmt: skip
QUICK = {
    "demo": ["--epochs", "1", "-K", "5", "--no-diagnose"],
    "train": SMALL,
    "sweep": SWEEP,
    "evaluate": ["-K", "20", "--count", "12", "--device", "cpu"],
    "compare": ["--count", "10", "--num-repeats", "4", "--particles", "1,2", "--device", "cpu"],
    "diagnose": ["--count", "20", "--gap-count", "4", "-K", "60", "--num-chains", "3",
                 "--num-temperatures", "20", "--device", "cpu"],
    "embed": ["--count", "150", "--device", "cpu"],
}  # fmt: skip
DATA = {"mnist": "digits(values=binary)", "frey_faces": "digits"}


def text_of(page: str) -> str:
    if not (ROOT / page).exists():
        pytest.skip("no docs beside the tests")
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> list[list[str]]:
    """The commands of the fenced blocks in their order, comments dropped, lines joined."""
    # Fences in pairs, so that none that closes is taken for one that opens.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    lines = "".join(text for language, text in blocks if not language).replace("\\\n", " ")
    found = [shlex.split(line, comments=True) for line in lines.splitlines()]
    return [words[1:] for words in found if words[:1] == ["pyro-vae"]]


def quick(words: list[str]) -> list[str]:
    """The command with smaller data, and with options that make it quick."""
    words = [DATA.get(word, word) for word in words]
    resumed = {"--resume", "--config"} & set(words)
    return [*words, *([] if resumed else QUICK.get(words[0], []))]


def test_the_commands_are_found():
    names = {words[0] for page in PAGES for words in commands(page)}
    assert names == {
        "demo", "train", "evaluate", "compare", "diagnose", "sweep", "sample",
        "reconstruct", "traverse", "interpolate", "embed", "report", "list",
    }  # fmt: skip
    words = ["embed", "--compare", "runs/autoencoder", "runs/kl", "runs/vae"]
    assert words in commands("docs/guide.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_does_what_it_is_shown_for(page, tmp_path):
    """In order: later ones take the runs of earlier ones, and the files that the page shows."""
    for name, code in re.findall(
        r"^```python\n# (\w+\.py).*\n([^`]*)^```", text_of(page), re.MULTILINE
    ):
        (tmp_path / name).write_text(code, encoding="utf-8")
    if "runs/a" in text_of(page):
        for seed, name in enumerate("ab"):
            options = ["--data", DATA["mnist"], "--seed", str(seed), "--out", f"runs/{name}"]
            assert invoke("train", *options, *SMALL, cwd=tmp_path).status == 0
    for words in dict.fromkeys(map(tuple, commands(page))):
        result = invoke(*quick(list(words)), cwd=tmp_path)
        assert (result.status, result.err) == (0, ""), (words, result)
        if "--out" in words:
            assert (tmp_path / words[words.index("--out") + 1]).exists(), words
