"""A Pyro program drawn: by graphviz where it is installed, as plates in text where not."""

__all__ = ["program_drawing", "program_text"]

import re
from collections.abc import Callable, Mapping
from typing import Any

import pyro
from markupsafe import Markup
from pyro import poutine
from pyro.infer.inspect import get_model_relations
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.log_weights import own_parameters
from pyro_vae.seeding import seeded

Program = Callable[..., Any]


def program_drawing(program: Program, x: Tensor, name: str) -> Markup:
    """Draw a program that takes ``x`` ``[B, *event_shape]``; ``name`` is unique in the page."""
    with seeded(0, x.device), own_parameters(program):
        svg = _graphviz(program, x)
        text = program_text(program, x)
    if svg is None:
        return Markup('<pre class="program">{}</pre>').format(text)
    svg = re.sub(r"(\bid=\"|href=\"#|url\(#)", rf"\g<1>{name}-", svg)
    label = Markup('role="img" aria-label="{}"').format(text)
    svg = svg.replace("<svg ", f"<svg {label} ", 1)
    return Markup('<div class="program graph">{}</div>').format(Markup(svg))


def program_text(program: Program, x: Tensor) -> str:
    """Write a program's plates and sites, each with what it is drawn from and given.

    ::

        plate data
          z ~ Normal, shape (2,)
          x ~ Bernoulli given z, shape (28, 28), observed
    """
    sites = poutine.trace(program).get_trace(x).nodes
    given = _parents(program, x)
    plates: dict[tuple[str, ...], list[str]] = {}
    for name, site in sites.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            frames = tuple(frame.name for frame in site["cond_indep_stack"])
            plates.setdefault(frames, []).append(_site(name, site, given.get(name, [])))
    lines = []
    for frames, own in plates.items():
        lines += [f"{'  ' * depth}plate {frame}" for depth, frame in enumerate(frames)]
        lines += [f"{'  ' * len(frames)}{line}" for line in own]
    return "\n".join(lines)


def _site(name: str, site: Mapping[str, Any], parents: list[str]) -> str:
    fn = site["fn"]
    while hasattr(fn, "base_dist") and type(fn).__name__ in ("Independent", "MaskedDistribution"):
        fn = fn.base_dist
    kind = type(fn).__name__.lstrip("_").removesuffix("Distribution")
    shape = tuple(site["fn"].event_shape)
    text = f"{name} ~ {kind}{' given ' if parents else ''}{', '.join(parents)}"
    return (
        text + (f", shape {shape}" if shape else "") + (", observed" if site["is_observed"] else "")
    )


def _parents(program: Program, x: Tensor) -> dict[str, list[str]]:
    """Site → the latents that it depends on; nothing where Pyro cannot tell."""
    try:
        relations = get_model_relations(program, (x,))["sample_sample"]
    except Exception:  # the tensors that carry their origin fail in code of any kind
        return {}
    return {name: [each for each in parents if each != name] for name, parents in relations.items()}


def _graphviz(program: Program, x: Tensor) -> str | None:
    """The SVG element of ``pyro.render_model``; None without graphviz, or where it fails."""
    try:
        graph = pyro.render_model(program, model_args=(x,), render_distributions=True)
        svg: str = graph.pipe(format="svg", encoding="utf-8")
    except Exception:  # not installed, no `dot`, or a program that Pyro cannot inspect
        return None
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("~ _", "~ ")  # a class of ours that has no public name
    return re.sub(r'font-family="[^"]*"', "", svg).replace("xlink:href", "href").strip()
