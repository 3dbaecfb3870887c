"""Maps of latent space: where the data of each label lie, one run or several side by side."""

__all__ = ["LatentMap", "latent_scatter", "latent_comparison"]

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from numpy.typing import NDArray

from pyro_vae.axes import PALETTE, plain_axes, set_title, settled
from pyro_vae.errors import InputError
from pyro_vae.tiles import (
    BLUE,
    INK,
    MUTED,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    Array,
    Panel,
    as_array,
    as_numpy,
    as_tiles,
    draw_panel,
    new_figure,
    wrap,
)

# Inches: a column's width and what lies between two, at the left for ticks and at the right for
# the legend, a line of text; three columns are a page.
COLUMN, BETWEEN, LEFT, RIGHT, LINE = 1.95, 0.55, 0.65, 0.58, 0.17
TITLE_WIDTH, FACT_WIDTH = 28, 34  # characters


@dataclass(frozen=True)
class LatentMap:
    """One column of a comparison.

    Arguments:
        title: what was trained.
        points: a z for each datum, projected, ``[N, 2]``.
        labels: of the data, ``[N]``, or None.
        explained: fraction of the variance in these two principal components, in [0, 1]; None
            where the axes are z itself.
        samples: decoded from z ~ N(0, I), ``[M, *event]``.
        facts: lines below them.
    """

    title: str
    points: Array
    labels: Array | None
    explained: float | None
    samples: Array
    facts: Sequence[str] = ()


def latent_scatter(
    points: Array,
    labels: Array | None = None,
    *,
    method: str,
    explained: float | None = None,
) -> Figure:
    """Draw projected latent codes, coloured by label.

    Up to ten distinct labels have a colour each; more, if numbers, a continuous scale.

    Args:
        points: ``[N, 2]``, already projected.
        labels: ``[N]``, numbers or names.
        method: what the two axes are, for the title: ``"posterior mean"``, ``"first two principal
            components of the posterior mean"``.
        explained: fraction of the variance in these two axes, in [0, 1].

    Raises:
        InputError: points of another shape, as many labels as not points, or more than ten names.
    """
    figure = new_figure(8, 6.4, layout="constrained")
    axes = figure.add_subplot()
    _scatter(axes, points, labels, explained, "figure")
    set_title(axes, _said(method, explained))
    return settled(figure)


def latent_comparison(
    maps: Sequence[LatentMap],
    *,
    title: str,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Figure:
    """Draw latent spaces side by side: a z for each datum, and under them samples from N(0, I).

    Where the axes are z itself, circles of radius 1 and 2 show where N(0, I) lies.

    Args:
        maps: one for each run, with the same labels.
        title: above all.
        vmin, vmax: what is black and what is white in the samples.

    Raises:
        InputError: no maps, or points, labels or samples of other shapes.
    """
    if not maps:
        raise InputError("Expected at least one latent space to draw; got none")
    num_lines = max(len(_lines(each.facts, FACT_WIDTH)) for each in maps)
    num_titles = max(len(_lines([each.title], TITLE_WIDTH)) for each in maps)
    samples = [wrap(as_tiles(each.samples, "samples", "M")) for each in maps]
    cells = [(48, 64) if tiles.ndim == 3 else tiles.shape[2:4] for tiles in samples]
    sizes = zip(samples, cells, strict=True)
    grid = COLUMN * max((t.shape[0] * (h + 1)) / (t.shape[1] * (w + 1)) for t, (h, w) in sizes)
    width = LEFT + len(maps) * (COLUMN + BETWEEN) - BETWEEN + _legend_width(maps[-1].labels)
    lines = textwrap.wrap(title, int(10 * width))
    top = 0.14 + 0.21 * len(lines) + 0.1
    header = top + LINE * num_titles + 0.1
    height = header + COLUMN + 0.85 + grid + 0.25 + LINE * num_lines + 0.1
    figure = new_figure(width, height)
    style: dict[str, Any] = {"va": "top", "parse_math": False}
    whole = "\n".join(lines)
    figure.text(0.16 / width, 1 - 0.14 / height, whole, size=TITLE_SIZE, color=INK, **style)
    low = min(float(np.nanmin(tiles)) for tiles in samples) if vmin is None else vmin
    high = max(float(np.nanmax(tiles)) for tiles in samples) if vmax is None else vmax
    for index, (each, tiles, cell) in enumerate(zip(maps, samples, cells, strict=True)):
        x, y = LEFT + index * (COLUMN + BETWEEN), height - top
        heading = "\n".join(_lines([each.title], TITLE_WIDTH))
        figure.text(x / width, y / height, heading, size=SMALL_SIZE, color=INK, **style)
        y = height - header - COLUMN
        axes = figure.add_axes((x / width, y / height, COLUMN / width, COLUMN / height))
        last = index == len(maps) - 1
        _scatter(axes, each.points, each.labels, each.explained, "axes" if last else None)
        if each.explained is not None:
            axes.set_xlabel(f"component 1 ({100 * each.explained:.0f} % in both)")
        elif not as_array(each.points, "points")[:, 1].any():  # one latent
            axes.set(ylabel="", yticks=[])
        else:
            for radius in (1, 2):
                axes.add_patch(Circle((0, 0), radius, fill=False, ec=INK, lw=0.9, ls="--"))
            axes.autoscale_view()
        y -= 0.85 + grid
        axes = figure.add_axes((x / width, y / height, COLUMN / width, grid / height))
        draw_panel(axes, Panel(tiles, "decoded from z ~ N(0, I)"), cell, 1, (low, high))
        axes.set_aspect("equal", anchor="NW")
        facts = "\n".join(_lines(each.facts, FACT_WIDTH))
        figure.text(
            x / width, (y - 0.15) / height, facts, size=SMALL_SIZE - 1, color=MUTED, **style
        )
    return figure


def _legend_width(labels: Array | None) -> float:
    if labels is None:
        return RIGHT
    longest = max((len(str(name)) for name in np.unique(as_numpy(labels))), default=1)
    return RIGHT + 0.08 * (longest - 1)


def _lines(facts: Sequence[str], width: int) -> list[str]:
    return [line for fact in facts for line in textwrap.wrap(fact, width, subsequent_indent=" ")]


def _said(method: str, explained: float | None) -> str:
    share = "" if explained is None else f", {100 * explained:.0f} % of variance"
    return method[:1].upper() + method[1:] + share


def _scatter(
    axes: Axes, points: Array, labels: Array | None, explained: float | None, legend: str | None
) -> None:
    xy = as_array(points, "points")
    if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) == 0:
        raise InputError(f"Expected points of shape [N, 2]; got {xy.shape}")
    # A fixed shuffle: no class is drawn on top of all others.
    order = np.random.default_rng(0).permutation(len(xy))
    style: dict[str, Any] = {"s": np.clip(2e4 / len(xy), 4, 30), "alpha": 0.85, "linewidths": 0}
    if labels is None:
        axes.scatter(xy[order, 0], xy[order, 1], color=BLUE, **style)
    else:
        _scatter_by_label(axes, xy, np.asarray(as_numpy(labels)), order, style, legend)
    names = ("component 1", "component 2") if explained is not None else ("$z_0$", "$z_1$")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.03)
    plain_axes(axes)


def _scatter_by_label(
    axes: Axes,
    xy: NDArray[Any],
    labels: NDArray[Any],
    order: NDArray[Any],
    style: dict[str, Any],
    legend: str | None,
) -> None:
    """``legend``: beside the ``figure``, beside the ``axes``, or None."""
    if labels.shape != xy.shape[:1]:
        raise InputError(f"Expected labels of shape {xy.shape[:1]}; got {labels.shape}")
    names, index = np.unique(labels, return_inverse=True)
    figure = axes.get_figure(root=True)
    assert figure is not None
    if len(names) <= len(PALETTE):
        colors = np.array(PALETTE)[index]
        axes.scatter(xy[order, 0], xy[order, 1], c=colors[order].tolist(), **style)
        if legend is None:
            return
        handles = [
            Line2D([], [], ls="", marker="o", ms=6, color=color, label=str(name))
            for name, color in zip(names, PALETTE, strict=False)
        ]
        look: dict[str, Any] = {"frameon": False, "labelcolor": INK, "handletextpad": 0.2}
        size = TEXT_SIZE if legend == "figure" else SMALL_SIZE
        look |= {"handles": handles, "fontsize": size, "title_fontsize": size}
        if legend == "figure":
            figure.legend(loc="outside right upper", title="label", **look)
        else:
            axes.legend(loc="upper left", bbox_to_anchor=(0.96, 1.03), **look)
    elif labels.dtype.kind in "iuf":
        drawn = axes.scatter(xy[order, 0], xy[order, 1], c=labels[order], cmap="viridis", **style)
        if legend is None:
            return
        place: Any = {"ax": axes, "fraction": 0.04, "pad": 0.02}
        if legend == "axes":  # the map keeps its size
            place = {"cax": axes.inset_axes((1.03, 0, 0.05, 1))}
        bar = figure.colorbar(drawn, **place)
        bar.set_label("label", size=TEXT_SIZE, color=INK)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=SMALL_SIZE, color=MUTED, labelcolor=INK)
    else:
        raise InputError(f"Expected at most {len(PALETTE)} distinct names; got {len(names)}")
