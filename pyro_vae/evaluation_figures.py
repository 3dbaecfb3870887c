"""Figures of an evaluation: the bound against K, and where k̂ says that it cannot be trusted."""

__all__ = ["bound_curve", "pareto_k_over_data"]

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from pyro_vae.axes import GRID, plain_axes, set_title, settled
from pyro_vae.comparison.rows import Truth
from pyro_vae.errors import InputError
from pyro_vae.evaluation.bound_curve import BoundCurve, MeanCurve
from pyro_vae.tiles import (
    BLUE,
    EDGE,
    INK,
    MUTED,
    ORANGE,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    Array,
    as_numpy,
    as_tiles,
    new_figure,
)

_COLUMNS = 3  # of the images
_MOST_IMAGES = 6  # for which there is room


def bound_curve(
    curve: BoundCurve | MeanCurve, *, last_error: float | None = None, truth: Truth | None = None
) -> Figure:
    """Draw the mean bound over data against K, from the ELBO at K = 1 up, on a log axis.

    Bars are two standard errors over draws, the data held fixed; a point without an error, of
    a single group of draws, is left out.

    Args:
        curve: as in ``LogLikelihood``.
        last_error: the standard error of the last point, which the curve has none of.
        truth: log p(x), exact or by quadrature, of the same data; drawn as a line.

    Raises:
        InputError: no point has an error.
    """
    sizes = np.asarray(curve.num_samples, dtype=float)
    means = np.array(as_numpy(curve.mean), dtype=float)
    errors = np.array(as_numpy(curve.mean_standard_error), dtype=float)
    if last_error is not None:
        errors[-1] = last_error
    known = np.isfinite(errors) & np.isfinite(means)
    if not known.any():
        raise InputError("Expected a bound with an error at some K; got none")
    figure = new_figure(8, 4.6, layout="constrained")
    axes = figure.add_subplot()
    handles: list[Any] = []
    if truth is not None:
        label = f"log p(x), {truth.method}"
        handles.append(axes.axhline(truth.log_px, color=ORANGE, linewidth=1.6, label=label))
        if truth.error > 0:
            low, high = truth.log_px - 2 * truth.error, truth.log_px + 2 * truth.error
            axes.axhspan(low, high, color=ORANGE, alpha=0.2, lw=0)
    style: dict[str, Any] = {"color": BLUE, "lw": 1.6, "marker": "o", "ms": 4.5}
    bars: dict[str, Any] = {"elinewidth": 1.2, "capsize": 3}
    axes.errorbar(sizes[known], means[known], 2 * errors[known], **style, **bars)
    label = "bound, ± 2 standard errors over draws"
    handles.insert(0, Line2D([], [], label=label, **style))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_ticks(curve.num_samples)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("K, samples a datum; K = 1 is the ELBO")
    axes.set_ylabel("nats per datum")
    axes.legend(
        handles=handles, loc="lower right", frameon=False, fontsize=SMALL_SIZE, labelcolor=INK
    )
    plain_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    set_title(axes, f"Importance-weighted bound on log p(x), mean of {curve.count} data")
    return settled(figure)


def pareto_k_over_data(
    values: Array,
    threshold: float,
    *,
    positions: Sequence[int] | None = None,
    worst: Sequence[int] = (),
    images: Array | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Figure:
    """Draw k̂ of each datum against its place, the threshold as a line, the worst data beside.

    Args:
        values: k̂ ``[N]``; −∞ (constant weights) and NaN (not known) are counted, not drawn.
        threshold: above it a datum's estimate cannot be trusted.
        positions: where each datum stands in its split; by default 0 … N−1.
        worst: which of the N are shown as images, counted from 0, the largest k̂ first; of more
            than six the first six.
        images: those data, ``[len(worst), H, W]`` or ``[len(worst), C, H, W]``; None draws none.
        vmin, vmax: black and white, by default the smallest and largest value drawn.

    Raises:
        InputError: no k̂ is finite, or as many images as not ``worst``.
    """
    k = np.asarray(as_numpy(values), dtype=float)
    if not np.isfinite(k).any():
        raise InputError("Expected at least one finite k̂ to draw; got none")
    x = np.arange(len(k)) if positions is None else np.asarray(positions)
    tiles = None if images is None or not len(worst) else as_tiles(images, "images", "N")
    if tiles is not None and len(tiles) != len(worst):
        raise InputError(f"Expected {len(worst)} images, one a datum shown; got {len(tiles)}")
    worst, tiles = worst[:_MOST_IMAGES], None if tiles is None else tiles[:_MOST_IMAGES]
    width = 0.87 if tiles is None else 0.565
    figure = new_figure(8, 4.2)
    axes = figure.add_axes((0.085, 0.13, width, 0.67))
    _scatter(axes, x, k, threshold, [] if tiles is None else x[list(worst)].tolist())
    count = int((k > threshold).sum())
    title = f"Pareto k̂ of the importance weights: {count} of {len(k)} data above {threshold:.2f}"
    figure.text(0.015, 0.97, title, size=TITLE_SIZE, color=INK, va="top")
    absent = {"of constant weights": np.isneginf(k), "not known": np.isnan(k)}
    missing = [f"{where.sum()} {what}" for what, where in absent.items() if where.any()]
    if missing:
        note = f"not drawn: k̂ {', '.join(missing)}"
        figure.text(0.015, 0.905, note, size=TEXT_SIZE, color=MUTED, va="top")
    if tiles is not None:
        labels = [f"datum {x[i]}\nk̂ = {k[i]:.2f}" for i in worst]
        _images(figure, tiles, labels, vmin, vmax)
    return figure


def _scatter(
    axes: Axes, x: NDArray[Any], k: NDArray[Any], threshold: float, ringed: Sequence[int]
) -> None:
    high = k > threshold
    style: dict[str, Any] = {"s": float(np.clip(8e3 / len(k), 3, 22)), "linewidths": 0}
    for chosen, color in ((np.isfinite(k) & ~high, BLUE), (np.isfinite(k) & high, ORANGE)):
        axes.scatter(x[chosen], k[chosen], color=color, alpha=0.8, **style)
    shown = np.isin(x, ringed)
    axes.scatter(x[shown], k[shown], s=60, facecolors="none", edgecolors=INK, linewidths=1.0)
    axes.axhline(threshold, color=MUTED, linewidth=1.2, linestyle="--")
    axes.set_xlabel("position in the split")
    axes.set_ylabel("k̂")
    plain_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.margins(0.03, 0.06)
    handles = [Line2D([], [], color=MUTED, lw=1.2, ls="--", label=f"threshold {threshold:.2f}")]
    if high.any():
        dot: dict[str, Any] = {"ls": "", "marker": "o", "ms": 5, "mew": 0}
        handles.append(Line2D([], [], color=ORANGE, label="flagged", **dot))
    if shown.any():
        ring: dict[str, Any] = {"ls": "", "marker": "o", "ms": 8, "mfc": "none", "mec": INK}
        handles.append(Line2D([], [], label="shown", **ring))
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(handles),
        frameon=False, fontsize=SMALL_SIZE, labelcolor=INK, borderaxespad=0.2,
        handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip


def _images(
    figure: Figure,
    tiles: NDArray[Any],
    labels: Sequence[str],
    vmin: float | None,
    vmax: float | None,
) -> None:
    """The worst data in a grid at the right, each under its place and k̂."""
    low = float(tiles.min()) if vmin is None else vmin
    high = float(tiles.max()) if vmax is None else vmax
    for i, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        row, column = divmod(i, _COLUMNS)
        left, bottom = 0.685 + column * 0.104, 0.80 - (row + 1) * 0.34
        axes = figure.add_axes((left, bottom, 0.096, 0.23), xticks=[], yticks=[], anchor="S")
        if tile.ndim == 3:
            tile = np.clip((tile - low) / ((high - low) or 1.0), 0, 1)
        axes.imshow(tile, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.spines[:].set_color(EDGE)
        axes.set_title(label, fontsize=8, color=INK, pad=3)


def _ticks(sizes: Sequence[int]) -> list[int]:
    """Powers of ten up to K, and K itself; the largest power is left out where it is near K."""
    last = sizes[-1]
    powers = [10**i for i in range(math.ceil(math.log10(last))) if 10**i * 1.6 < last]
    return [*powers, last]
