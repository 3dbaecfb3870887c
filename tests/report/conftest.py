"""Small runs, an engine for scripts, and a browser that fails a test on any complaint."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.protocols import Facts
from pyro_vae.report import explorer
from pyro_vae.run_training import train
from pyro_vae.runs import Run

FACTS = {
    "binary": Facts((8, 8), "binary"),
    "levels": Facts((8, 8), "levels", num_levels=16),
    "counts": Facts((8, 8), "counts"),
    "continuous": Facts((8, 8), "continuous", num_levels=16, dequantized=True),
}


@pytest.fixture(scope="session")
def untrained_model():
    """Build a model of 8×8 images whose decoded means are nothing like each other."""

    def make(likelihood="bernoulli", measure="binary", latent_dim=3, encoder="mlp(hidden=(12,))"):
        config = Config(likelihood=likelihood, encoder=encoder, latent_dim=latent_dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model, _ = build_pair(config, FACTS[measure])
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Callable[..., Run]:
    """Train a run of the digits for a moment, or read it where it was trained before."""
    runs: dict[str, Run] = {}

    def make(**changes) -> Run:
        given = {
            "data": "digits(values=binary)", "encoder": "mlp(hidden=(12,))", "latent_dim": 2,
            "optimizer": "adam(lr=0.01)", "epochs": 2, "device": "cpu",
        }  # fmt: skip
        config = Config(**(given | changes))
        key = str(config)
        if key not in runs:
            runs[key] = train(config, tmp_path_factory.mktemp("runs") / "run")
        return runs[key]

    return make


@pytest.fixture(scope="session")
def js_decoder() -> Iterator[Callable]:
    """The page's ``makeDecoder`` in a JavaScript engine: data in, a function of z out."""
    engine = pytest.importorskip("py_mini_racer")
    source = (Path(explorer.__file__).parent / "decoder.js").read_text(encoding="utf-8")
    context = engine.MiniRacer()
    context.eval(f"{source}\nconst decoders = []; 0")

    def make(data):
        index = context.eval(f"decoders.push(makeDecoder({json.dumps(data)})) - 1")

        def decode(z):
            numbers = json.dumps([float(each) for each in z])
            text = context.eval(f"JSON.stringify([...decoders[{index}]({numbers})])")
            return np.array(json.loads(text), float)

        return decode

    yield make
    context.close()


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Headless Chromium, where it and playwright are installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as engine:
        running = engine.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def new_page(browser) -> Iterator[Callable]:
    """Open pages, each with its own viewport; the test fails if one complains or asks the net."""
    contexts, complaints = [], []

    def on_console(message):
        if message.type in ("error", "warning"):
            complaints.append(f"console: {message.text}")

    def on_request(request):
        if request.url.split(":", 1)[0] not in ("file", "data", "blob", "about"):
            complaints.append(f"request: {request.url}")

    def make(width=1000, height=760, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", on_request)
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(new_page):
    """A page of 1000 × 760 pixels; the test fails if it complains or asks the net."""
    return new_page()
