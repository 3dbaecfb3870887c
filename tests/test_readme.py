"""Every ``pyro-vae`` command of the README, run as it stands, on small data and networks."""

import re
import shlex
from pathlib import Path

import pytest

from tests.command import invoke

ROOT = Path(__file__).parents[1]
# What makes a command quick: options after those of the README, which they override.
SMALL = ["--encoder", "mlp(hidden=(8,))", "--epochs", "1", "--device", "cpu", "--no-tensorboard"]
SWEEP = ["--encoder", "mlp(hidden=(8,))", "--epochs", "1", "--seeds", "1", "-K", "5", "--count",
         "20", "--device", "cpu"]  # fmt: skip
QUICK = {
    "demo": ["--epochs", "1", "-K", "5"],
    "train": SMALL,
    "sweep": SWEEP,
    "evaluate": ["-K", "20", "--count", "12", "--device", "cpu"],
    "compare": ["--count", "10", "--num-repeats", "4", "--particles", "1,2", "--device", "cpu"],
    "diagnose": ["--count", "20", "--gap-count", "4", "-K", "60", "--num-chains", "3",
                 "--num-temperatures", "20", "--device", "cpu"],
    "embed": ["--count", "150", "--device", "cpu"],
}  # fmt: skip
DATA = {"mnist": "digits(values=binary)", "frey_faces": "digits"}


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """The commands of the fenced blocks in their order, comments dropped, lines joined."""
    # Fences in pairs, so that none that closes is taken for one that opens.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", readme(), re.MULTILINE | re.DOTALL)
    lines = (
        "".join(text for language, text in blocks if not language).replace("\\\n", " ").splitlines()
    )
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("pyro-vae ")]
    return [words[1:] for words in found]


def quick(words: list[str]) -> list[str]:
    """The command with smaller data, and with options that make it quick."""
    words = [DATA.get(word, word) for word in words]
    resumed = {"--resume", "--config"} & set(words)
    return [*words, *([] if resumed else QUICK.get(words[0], []))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files that the README writes, and the two runs it takes for granted."""
    if not (ROOT / "README.md").exists():
        pytest.skip("no README beside the tests")
    folder = tmp_path_factory.mktemp("readme")
    for name, code in re.findall(r"^```python\n# (\w+\.py).*\n([^`]*)^```", readme(), re.MULTILINE):
        (folder / name).write_text(code, encoding="utf-8")
    for seed, name in enumerate("ab"):
        options = ["--data", DATA["mnist"], "--seed", str(seed), "--out", f"runs/{name}"]
        assert invoke("train", *options, *SMALL, cwd=folder).status == 0
    return folder


def test_the_commands_are_found():
    names = {words[0] for words in commands()}
    assert names >= {"demo", "train", "evaluate", "compare", "diagnose", "sweep", "sample",
                     "reconstruct", "traverse", "interpolate", "embed", "list"}  # fmt: skip
    assert ["embed", "--compare", "runs/autoencoder", "runs/kl", "runs/vae"] in commands()


def test_every_command_of_the_readme_does_what_it_is_shown_for(place):
    """In order: later ones take the runs of earlier ones."""
    for words in commands():
        result = invoke(*quick(words), cwd=place)
        assert (result.status, result.err) == (0, ""), (words, result)
        if "--out" in words:
            assert (place / words[words.index("--out") + 1]).is_dir(), words
