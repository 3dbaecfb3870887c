"""A Pyro program drawn: its plates, what its sites are drawn from and given, and by graphviz."""

import importlib.util
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.report import program
from pyro_vae.report.program import program_drawing, program_text

X = torch.zeros(2, 8, 8)


def mixture(x):
    """A discrete latent in a plate of its own beside a continuous one."""
    with pyro.plate("data", x.shape[0], dim=-1):
        c = pyro.sample("c", dist.Categorical(torch.ones(3)))
        z = pyro.sample("z", dist.Normal(c.float()[..., None], torch.ones(2)).to_event(1))
        logits = z.sum(-1)[..., None, None].expand(*z.shape[:-1], 8, 8)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)


def nested(x):
    """A global latent, and one in an inner plate."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", x.shape[0], dim=-1), pyro.plate("pixels", 64, dim=-2):
        pyro.sample("noise", dist.Normal(0.0, scale))


def reads(x):
    """Pyro's inspection needs tensors that carry their origin; this asks for a number."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if type(z) is not torch.Tensor:
        raise RuntimeError("expected a tensor")
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(z, 1.0).expand([8, 8]).to_event(2), obs=x)


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (
            mixture,
            "plate data\n  c ~ Categorical\n  z ~ Normal given c, shape (2,)\n"
            "  x ~ Bernoulli given z, shape (8, 8), observed",
        ),
        (nested, "scale ~ LogNormal\nplate data\n  plate pixels\n    noise ~ Normal given scale"),
        (reads, "z ~ Normal\nplate data\n  x ~ Normal, shape (8, 8), observed"),
    ],
)
def test_plates_in_text(drawn, expected):
    assert program_text(drawn, X) == expected


@pytest.mark.parametrize("missing", ["module", "dot"])
def test_without_graphviz_it_is_text(monkeypatch, missing):
    def render(*args, **kwargs):
        if missing == "module":
            raise ImportError("Looks like you want to use graphviz")

        class Graph:
            def pipe(self, **options):
                raise RuntimeError("failed to execute 'dot'")

        return Graph()

    monkeypatch.setattr(pyro, "render_model", render)
    html = program_drawing(mixture, X, "a")
    assert html.startswith('<pre class="program">plate data\n  c ~ Categorical')


def test_with_graphviz_it_is_drawn():
    if not (importlib.util.find_spec("graphviz") and shutil.which("dot")):
        pytest.skip("no graphviz")
    html = program_drawing(mixture, X, "a")
    assert html.startswith('<div class="program graph"><svg role="img" aria-label="plate data')
    assert html.count("<ellipse") == 3
    assert html.count('class="edge"') == 2
    assert 'id="a-node1"' in html
    assert "font-family" not in html


def test_drawing_leaves_noise_and_parameters_alone(small_run):
    run = small_run()
    state, names = torch.get_rng_state(), set(pyro.get_param_store().keys())
    for each in (run.model, run.guide):
        assert "plate data" in program_drawing(each, X, "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == names
    assert program.program_text(run.guide, X) == "plate data\n  z ~ Normal, shape (2,)"
