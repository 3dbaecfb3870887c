"""The figures of a run: what the pair generates, as figures and as files."""

__all__ = [
    "samples",
    "reconstructions",
    "traversals",
    "interpolation",
    "embedding",
    "manifold",
    "pseudo_inputs",
    "draw_all",
    "draw_training",
    "draw_samples",
    "draw_reconstructions",
    "draw_traversals",
    "draw_interpolation",
    "draw_embedding",
    "draw_latent_comparison",
    "draw_manifold",
    "draw_pseudo_inputs",
    "is_plane",
    "has_pseudo_inputs",
    "named_run",
    "named_data",
    "some_data",
    "display_range",
]

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import figures, generation, latent_figures
from pyro_vae.diagnosis.rows import LatentSpaceReport
from pyro_vae.diagnosis.space import latent_space_report
from pyro_vae.digits import value_and_error
from pyro_vae.errors import InputError
from pyro_vae.evaluation.scores import Estimate
from pyro_vae.latent_figures import LatentMap
from pyro_vae.runs import Run
from pyro_vae.specs import Spec, parse_spec


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
    """Save ``samples`` as a PNG; return its path."""
    return figures.save(samples(run, num_samples, seed), out or _place(run, "samples"))


def samples(run: Run, num_samples: int, seed: int) -> Figure:
    """Draw ``num_samples`` z of the prior: the decoder's means beside draws of data."""
    pictures = generation.sample_prior(run.model, num_samples, seed=seed)
    low, high = display_range(run, torch.cat(list(pictures)))
    return figures.prior_samples(*_on_cpu(*pictures), vmin=low, vmax=high)


def draw_reconstructions(
    run: Run, split: str, count: int, seed: int, out: Path | None = None
) -> Path:
    """Save ``reconstructions`` as a PNG; return its path."""
    figure = reconstructions(run, split, count, seed)
    return figures.save(figure, out or _place(run, "reconstructions"))


def reconstructions(run: Run, split: str, count: int, seed: int) -> Figure:
    """Draw ``count`` data of a split above their reconstructions from one z ~ q(z|x)."""
    x = some_data(run, split, count, seed)[0]
    pictures = generation.reconstruct(run.model, run.guide, x, seed=seed)
    low, high = display_range(run, x)
    return figures.reconstructions(*_on_cpu(x, *pictures), vmin=low, vmax=high)


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
    """Save ``traversals`` as a PNG; return its path."""
    figure = traversals(run, split, dims, steps, span, datum, seed)
    return figures.save(figure, out or _place(run, "traversals"))


def traversals(
    run: Run,
    split: str,
    dims: list[int] | None,
    steps: int,
    span: float,
    datum: int | None,
    seed: int,
) -> Figure:
    """Draw the decoder along single latent dimensions, the ten most active if ``dims`` is None.

    Arguments:
        run: the trained pair.
        split: where ``datum`` and the activity of dimensions come from.
        dims: which dimensions, from 0.
        steps, span: how many values, and to how many standard deviations of the prior.
        datum: start at this datum's posterior mean; None starts at the prior's mean.
        seed: chooses the data that the activity is measured on.
    """
    x = some_data(run, split, 1000, seed)[0]
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
    low, high = display_range(run, images)
    return figures.traversals(images.cpu(), values, dims=dims, vmin=low, vmax=high)


def draw_interpolation(
    run: Run, split: str, count: int, steps: int, seed: int, out: Path | None = None
) -> Path:
    """Save ``interpolation`` as a PNG; return its path."""
    figure = interpolation(run, split, count, steps, seed)
    return figures.save(figure, out or _place(run, "interpolation"))


def interpolation(run: Run, split: str, count: int, steps: int, seed: int) -> Figure:
    """Draw decoded lines between the posterior means of ``count`` pairs of data."""
    x = some_data(run, split, 2 * count, seed)[0]
    if len(x) < 2:
        raise InputError(f"the {split} split has one datum; an interpolation needs two")
    count = len(x) // 2
    first, last = x[:count], x[count : 2 * count]
    images = generation.interpolate(run.model, run.guide, first, last, steps, seed=seed)
    low, high = display_range(run, x)
    ends = torch.stack([first, last], dim=1)
    return figures.interpolation(images.cpu(), ends=ends.cpu(), vmin=low, vmax=high)


def draw_embedding(run: Run, split: str, count: int, seed: int, out: Path | None = None) -> Path:
    """Save ``embedding`` as a PNG; return its path."""
    return figures.save(embedding(run, split, count, seed), out or _place(run, "latent"))


def embedding(run: Run, split: str, count: int, seed: int) -> Figure:
    """Draw the posterior means of at most ``count`` data as a map, coloured by label."""
    x, labels = some_data(run, split, count, seed)
    points = generation.posterior_mean(run.guide, x, seed=seed).cpu()
    points, method, explained = generation.project(points)
    return latent_figures.latent_scatter(points, labels, method=method, explained=explained)


def draw_latent_comparison(
    runs: Sequence[Run], split: str, count: int, seed: int, out: Path | None = None
) -> Path:
    """Draw the latent spaces of several runs side by side, a z ~ q(z|x) for each datum.

    Under each stand samples decoded from N(0, I), whatever its prior, and what the diagnosis
    says of completeness and continuity.

    Raises:
        InputError: the runs are of different data.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.config.data != first.config.data:
            raise InputError(
                f"'{first.path}' is of {first.config.data} and '{run.path}' of {run.config.data}; "
                "compare runs of the same data"
            )
    maps = []
    for run in runs:
        x, labels = some_data(run, split, count, seed)
        points = generation.posterior_draw(run.guide, x, seed=seed).cpu()
        points, _, explained = generation.project(points)
        decoded = generation.sample_standard_normal(run.model, 36, seed=seed)
        report = latent_space_report(
            run.model, run.guide, run.data.train, run.data.split(split), seed=seed,
            ordered=run.data.ordered,
        )  # fmt: skip
        maps.append(
            LatentMap(named_run(run), points, labels, explained, decoded.cpu(), _told(report))
        )
    low, high = display_range(first, torch.cat([torch.as_tensor(each.samples) for each in maps]))
    figure = latent_figures.latent_comparison(
        maps, title=f"z ~ q(z|x) of {named_data(first.config.data)}, {split}", vmin=low, vmax=high
    )
    return figures.save(figure, out or first.path / "figures" / "latent_comparison.png")


def named_data(data: str) -> str:
    """A data set's spec, of a file its name alone."""
    spec = parse_spec(data)
    return str(Spec(Path(spec.name).name, spec.arguments)) if spec.is_path else data


def named_run(run: Run) -> str:
    """What tells a run from its neighbours."""
    config = run.config
    parts = [f"{run.path.name}: {config.guide}", f"β = {config.beta:g}"]
    if config.prior != "standard_normal":
        parts.append(f"prior {config.prior}")
    if config.corrupt is not None:
        parts.append(f"corrupted by {config.corrupt}")
    return ", ".join(parts)


def _told(report: LatentSpaceReport) -> list[str]:
    """Completeness and continuity in words, each with its error."""
    share, steady, straight = report.prior_near_posterior, report.smoothness, report.straightness
    complete = "complete: not known, q(z|x) is a point"
    if share is not None:
        whole = f"{100 * (report.posterior_share or 0):.0f} %"
        complete = (
            f"complete: {_with_error(share, 100)} % of p(z) lies where data do "
            f"({whole} where q(z) = p(z))"
        )
    lines = [complete]
    if steady is not None:
        lines.append(
            f"continuous: the largest step along a line is {_with_error(steady)} mean ones"
        )
    if straight is not None:
        lines.append(
            f"a decoded line is {_with_error(straight)} times as long as its ends are apart"
        )
    for probe in report.probes:
        if probe.features == "z" and probe.classifier == "nearest neighbours":
            lines.append(
                f"10 nearest neighbours tell {_with_error(probe.accuracy, 100)} % of labels"
            )
    return lines


def _with_error(estimate: Estimate, factor: float = 1.0) -> str:
    error = estimate.error and factor * estimate.error
    return " ± ".join(value_and_error(factor * estimate.value, error))


def draw_pseudo_inputs(run: Run, count: int = 100, out: Path | None = None) -> Path:
    """Save ``pseudo_inputs`` as a PNG; return its path."""
    return figures.save(pseudo_inputs(run, count), out or _place(run, "pseudo_inputs"))


def pseudo_inputs(run: Run, count: int = 100) -> Figure:
    """Draw the first ``count`` pseudo-inputs of a vamp prior, clipped to the range of the data."""
    images = run.model.prior.pseudo_inputs()[:count]
    low, high = display_range(run, images)
    return figures.image_grid(
        images.cpu().clamp(low, high), title="Pseudo-inputs", vmin=low, vmax=high
    )


def draw_manifold(run: Run, out: Path | None = None) -> Path:
    """Save ``manifold`` as a PNG; return its path."""
    return figures.save(manifold(run), out or _place(run, "manifold"))


def manifold(run: Run) -> Figure:
    """Draw the decoder over a plane of two latents."""
    images, values = generation.manifold(run.model)
    low, high = display_range(run, images)
    return figures.manifold(*_on_cpu(images, values), vmin=low, vmax=high)


def _place(run: Run, name: str) -> Path:
    return run.path / "figures" / f"{name}.png"


def some_data(run: Run, split_name: str, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """A random subset, at most ``count`` data, on the run's device."""
    split = run.data.split(split_name)
    split = split.subset(min(count, len(split)), seed=seed)
    return run.to_device(split.scored()), split.labels


def display_range(run: Run, images: Tensor) -> tuple[float, float]:
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
