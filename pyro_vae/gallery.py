"""The figures of a run: what the pair generates, drawn and saved."""

__all__ = [
    "draw_all",
    "draw_training",
    "draw_samples",
    "draw_reconstructions",
    "draw_traversals",
    "draw_interpolation",
    "draw_embedding",
    "draw_manifold",
    "draw_pseudo_inputs",
    "is_plane",
    "has_pseudo_inputs",
]

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import figures, generation
from pyro_vae.errors import InputError
from pyro_vae.runs import Run


def draw_all(run: Run, *, seed: int = 0) -> list[Path]:
    """Draw every figure of a run with its defaults; return where they are."""
    paths = [
        draw_samples(run, 64, seed),
        draw_reconstructions(run, "test", 12, seed),
        draw_traversals(run, "test", None, 11, 3.0, None, seed),
        draw_interpolation(run, "test", 6, 9, seed),
        draw_embedding(run, "test", 5000, seed),
    ]
    if is_plane(run):
        paths.append(draw_manifold(run))
    if has_pseudo_inputs(run):
        paths.append(draw_pseudo_inputs(run))
    return paths


def is_plane(run: Run) -> bool:
    """Whether two latents are decoded, so that they can be seen as a plane."""
    return tuple(run.model.prior().event_shape) == (2,)


def has_pseudo_inputs(run: Run) -> bool:
    """Whether the prior is made of pseudo-inputs, data of its own making."""
    return hasattr(run.model.prior, "pseudo_inputs")


def draw_samples(run: Run, num_samples: int, seed: int, out: Path | None = None) -> Path:
    """Draw ``num_samples`` z of the prior: the decoder's means beside draws of data."""
    pictures = generation.sample_prior(run.model, num_samples, seed=seed)
    low, high = _display_range(run, torch.cat(list(pictures)))
    figure = figures.prior_samples(*_on_cpu(*pictures), vmin=low, vmax=high)
    return figures.save(figure, out or run.path / "figures" / "samples.png")


def draw_reconstructions(
    run: Run, split: str, count: int, seed: int, out: Path | None = None
) -> Path:
    """Draw ``count`` data of a split above their reconstructions from one z ~ q(z|x)."""
    x = _some_data(run, split, count, seed)[0]
    pictures = generation.reconstruct(run.model, run.guide, x, seed=seed)
    low, high = _display_range(run, x)
    figure = figures.reconstructions(*_on_cpu(x, *pictures), vmin=low, vmax=high)
    return figures.save(figure, out or run.path / "figures" / "reconstructions.png")


def draw_traversals(
    run: Run,
    split: str,
    dims: list[int] | None,
    steps: int,
    span: float,
    datum: int | None,
    seed: int,
    out: Path | None = None,
) -> Path:
    """Draw the decoder along single latent dimensions, the ten most active if ``dims`` is None.

    Arguments:
        run: the trained pair.
        split: where ``datum`` and the activity of dimensions come from.
        dims: which dimensions, from 0.
        steps, span: how many values, and to how many standard deviations of the prior.
        datum: start at this datum's posterior mean; None starts at the prior's mean.
        seed: chooses the data that the activity is measured on.
        out: the PNG; None is one in the run's folder.
    """
    x = _some_data(run, split, 1000, seed)[0]
    means = generation.posterior_mean(run.guide, x)
    if datum is not None:
        scored = run.data.split(split).scored(slice(datum, datum + 1))
        if len(scored) == 0:
            raise InputError(f"the {split} split has no datum {datum}")
        start = generation.posterior_mean(run.guide, run.to_device(scored))[0]
    else:
        start = generation.prior_mean(run.model)
    if dims is None:  # Var_x E_q[z_d|x], the activity of Burda et al. (2016)
        dims = means.var(dim=0, correction=0).argsort(descending=True)[:10].sort().values.tolist()
    values = torch.linspace(-span, span, steps)
    images = generation.traverse(run.model, start, dims, values)
    low, high = _display_range(run, images)
    figure = figures.traversals(images.cpu(), values, dims=dims, vmin=low, vmax=high)
    return figures.save(figure, out or run.path / "figures" / "traversals.png")


def draw_interpolation(
    run: Run, split: str, count: int, steps: int, seed: int, out: Path | None = None
) -> Path:
    """Draw decoded lines between the posterior means of ``count`` pairs of data."""
    x = _some_data(run, split, 2 * count, seed)[0]
    if len(x) < 2:
        raise InputError(f"the {split} split has one datum; an interpolation needs two")
    count = len(x) // 2
    first, last = x[:count], x[count : 2 * count]
    images = generation.interpolate(run.model, run.guide, first, last, steps, seed=seed)
    low, high = _display_range(run, x)
    ends = torch.stack([first, last], dim=1)
    figure = figures.interpolation(images.cpu(), ends=ends.cpu(), vmin=low, vmax=high)
    return figures.save(figure, out or run.path / "figures" / "interpolation.png")


def draw_embedding(run: Run, split: str, count: int, seed: int, out: Path | None = None) -> Path:
    """Draw the posterior means of at most ``count`` data as a map, coloured by label."""
    x, labels = _some_data(run, split, count, seed)
    points = generation.posterior_mean(run.guide, x, seed=seed).cpu()
    points, method, explained = generation.project(points)
    figure = figures.latent_scatter(points, labels, method=method, explained=explained)
    return figures.save(figure, out or run.path / "figures" / "latent.png")


def draw_pseudo_inputs(run: Run, count: int = 100, out: Path | None = None) -> Path:
    """Draw the first ``count`` pseudo-inputs of a vamp prior, clipped to the range of the data."""
    images = run.model.prior.pseudo_inputs()[:count]
    low, high = _display_range(run, images)
    figure = figures.image_grid(
        images.cpu().clamp(low, high), title="Pseudo-inputs", vmin=low, vmax=high
    )
    return figures.save(figure, out or run.path / "figures" / "pseudo_inputs.png")


def draw_manifold(run: Run, out: Path | None = None) -> Path:
    """Draw the decoder over a plane of two latents."""
    images, values = generation.manifold(run.model)
    low, high = _display_range(run, images)
    figure = figures.manifold(*_on_cpu(images, values), vmin=low, vmax=high)
    return figures.save(figure, out or run.path / "figures" / "manifold.png")


def _some_data(run: Run, split_name: str, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """A random subset, at most ``count`` data, on the run's device."""
    split = run.data.split(split_name)
    split = split.subset(min(count, len(split)), seed=seed)
    return run.to_device(split.scored()), split.labels


def _display_range(run: Run, images: Tensor) -> tuple[float, float]:
    """What is black and what is white, in the units of the data."""
    facts = run.facts
    if facts.measure == "counts" or facts.is_real:
        return float(images.min()), float(images.max())
    return 0.0, facts.unit


def _on_cpu(*tensors: Tensor) -> list[Tensor]:
    return [tensor.cpu() for tensor in tensors]


def draw_training(run: Path, rows: list[dict[str, Any]]) -> Path:
    """Draw the training curves of a run folder from its rows of metrics."""
    return figures.save(figures.training_curves(rows), run / "figures" / "training.png")
