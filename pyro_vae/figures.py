"""Figures: arrays in, a matplotlib figure out.

Images are ``[N, H, W]`` (grey), ``[N, C, H, W]`` (C = 1 grey, C = 3 colour) or, for data that are
no images, ``[N, D]``, each datum drawn as a line over its D components. ``vmin`` and ``vmax`` are
the values drawn black and white, by default 0 and 1; values beyond them are clipped. For vectors
they are the bottom and top of every frame, by default the smallest and largest value drawn.

No pyplot: nothing here touches a display, ``rcParams`` or any other global state.
"""

__all__ = [
    "training_curves",
    "image_grid",
    "prior_samples",
    "reconstructions",
    "traversals",
    "interpolation",
    "latent_scatter",
    "manifold",
    "save",
]

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from pyro_vae.errors import InputError

Array = torch.Tensor | ArrayLike

_DPI = 150
_MAX_WIDTH = 8 * _DPI  # shown 800 pixels wide, 9 pt are 12 pixels
_MAX_TILE = 1.4 * _DPI
_MARGIN, _GAP, _LINE = 24, 6, 30  # pixels: around the figure, between tiles, a line of text
_TITLE, _TEXT, _SMALL = 12.0, 9.5, 9.0  # points
_INK, _MUTED, _EDGE = "#222222", "#5f5f5f", "#b0b0b0"
_BLUE, _ORANGE = "#0b62a4", "#d9600a"
_PALETTE = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#8c5fc0"),
    *("#7b4a3a", "#f06fc0", "#6b6b6b", "#b5b000", "#17becf"),
)


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the bound on training and validation data by epoch, and β where it leaves 1.

    The first epochs may lie far below the rest: the frame is fitted to the later ones.

    Args:
        rows: one mapping an epoch, as in ``metrics.jsonl``: ``epoch``; ``elbo`` (training bound at
            the current β) and ``valid_elbo`` (β = 1), nats per datum;
            ``valid_elbo_standard_error`` (over data); ``beta``; ``best`` (best so far).
            All but the first two may be missing or None.

    Raises:
        InputError: no rows, or one without ``epoch`` or ``elbo``.
    """
    if not rows:
        raise InputError("Expected at least one epoch of metrics to draw; got none")
    epoch, beta = _column(rows, "epoch", required=True), _column(rows, "beta")
    warm = bool(np.any(np.nan_to_num(beta, nan=1.0) != 1.0))
    figure = _figure(8, 5.4 if warm else 4.5, layout="constrained")
    ratios = {"height_ratios": [4, 1]} if warm else {}
    panels = figure.subplots(1 + warm, 1, sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
    _draw_bounds(panels[0], rows, epoch, warm)
    if warm:
        panels[1].plot(epoch, beta, color=_MUTED, linewidth=1.6)
        panels[1].set(ylabel="β", ylim=(0, 1.08 * max(1.0, np.nanmax(beta))))
    ticks = MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    panels[-1].xaxis.set_major_locator(ticks)
    panels[-1].set_xlabel("epoch")
    for panel in panels:
        _plain_axes(panel)
        panel.margins(x=0.01)
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    return _settled(figure)


def image_grid(
    images: Array,
    *,
    num_columns: int | None = None,
    title: str = "Images",
    vmin: float | None = None,
    vmax: float | None = None,
) -> Figure:
    """Draw images ``[N, *event]`` in a grid, row by row from the top left.

    Args:
        images: ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, D]``.
        num_columns: by default what makes the grid about square.
        title: what is drawn.

    Raises:
        InputError: images of another shape, or ``num_columns`` below 1.
    """
    tiles = _tiles(images, "images", "N")
    return _tile_figure([_Panel(_wrap(tiles, num_columns))], title, limits=(vmin, vmax))


def prior_samples(
    means: Array, draws: Array, *, vmin: float | None = None, vmax: float | None = None
) -> Figure:
    """Draw samples from the prior: the decoder's means left, draws of data right.

    Args:
        means: the mean of p(x|z) for N draws z of the prior, ``[N, *event]``.
        draws: one draw of p(x|z) for each of the same z, ``[N, *event]``.

    Raises:
        InputError: the two are no images or differ in shape.
    """
    left, right = _tiles(means, "means", "N"), _tiles(draws, "draws", "N")
    _check_same(left, right, "draws", "means")
    panels = [
        _Panel(_wrap(left), "mean of p(x | z)"),
        _Panel(_wrap(right), "one draw from p(x | z)"),
    ]
    note = "the same z at the same place on both sides"
    return _tile_figure(panels, "Samples from the prior, z ~ p(z)", note, limits=(vmin, vmax))


def reconstructions(
    data: Array,
    means: Array,
    draws: Array | None = None,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Figure:
    """Draw data above their reconstructions, a column each; 8 to 16 columns look best.

    Args:
        data: ``[N, *event]``.
        means: the mean of p(x|z) at z from q(z|data), ``[N, *event]``.
        draws: draws of p(x|z) at the same z, ``[N, *event]``.

    Raises:
        InputError: an argument is no images or differs in shape from ``data``.
    """
    given = {"data": data, "mean": means} | ({} if draws is None else {"draw": draws})
    rows = {label: _tiles(array, label, "N") for label, array in given.items()}
    for label, row in rows.items():
        _check_same(rows["data"], row, label, "data")
    panel = _Panel(np.stack(list(rows.values())), row_labels=tuple(rows))
    note = "below each datum: mean of p(x | z)" + ("" if draws is None else ", one draw from it")
    return _tile_figure([panel], "Reconstructions", note, limits=(vmin, vmax))


def traversals(
    images: Array,
    values: Array,
    *,
    dims: Sequence[int],
    kl: Array | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Figure:
    """Draw what the decoder makes of each latent dimension moved alone, a row a dimension.

    Args:
        images: decoded means, ``[num_dims, num_steps, *event]``.
        values: where the dimension was put, ``[num_steps]``, in prior standard deviations.
        dims: the index of the dimension moved in each row, counted from 0, ``[num_dims]``.
        kl: each dimension's KL(q(z_d|x) ‖ p(z_d)), nats per datum, ``[num_dims]``.

    Raises:
        InputError: the shapes do not fit each other.
    """
    tiles = _tiles(images, "images", "num_dims, num_steps")
    steps = _vector(values, "values", tiles.shape[1], "one value a column of images")
    rows = _vector(list(dims), "dims", tiles.shape[0], "one index a row of images")
    labels = [f"$z_{{{dim:.0f}}}$" for dim in rows]
    note = "each row moves one dimension, the others stay"
    if kl is not None:
        nats = _vector(kl, "kl", tiles.shape[0], "one KL a row of images")
        labels = [f"{label}   {_number(v)}" for label, v in zip(labels, nats, strict=True)]
        note += "; beside it its KL, nats per datum"
    panel = _Panel(tiles, row_labels=labels, column_labels=[_signed(v, "+") for v in steps])
    label = "prior standard deviations"
    return _tile_figure(
        [panel], "Traversal of each latent dimension", note, xlabel=label, limits=(vmin, vmax)
    )


def interpolation(
    images: Array, *, ends: Array, vmin: float | None = None, vmax: float | None = None
) -> Figure:
    """Draw decoded paths through latent space, a row a pair, the data framed at both ends.

    Args:
        images: decoded means along the path, ``[num_pairs, num_steps, *event]``.
        ends: the two data it joins, ``[num_pairs, 2, *event]``.

    Raises:
        InputError: the shapes do not fit each other.
    """
    path = _tiles(images, "images", "num_pairs, num_steps")
    data = _tiles(ends, "ends", "num_pairs, 2")
    expected = (len(path), 2, *path.shape[2:])
    if data.shape != expected:
        raise InputError(f"Expected ends of shape {expected}, as images have; got {data.shape}")
    tiles = np.concatenate([data[:, :1], path, data[:, 1:]], axis=1)
    labels = ["data", *[""] * path.shape[1], "data"]
    panel = _Panel(tiles, column_labels=labels, framed=(0, tiles.shape[1] - 1))
    note = "decoded along a path in latent space; framed: the data at its two ends"
    return _tile_figure([panel], "Interpolation between data", note, limits=(vmin, vmax))


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
    xy = _array(points, "points")
    if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) == 0:
        raise InputError(f"Expected points of shape [N, 2]; got {xy.shape}")
    figure = _figure(8, 6.4, layout="constrained")
    axes = figure.add_subplot()
    # A fixed shuffle: no class is drawn on top of all others.
    order = np.random.default_rng(0).permutation(len(xy))
    style: dict[str, Any] = {"s": np.clip(2e4 / len(xy), 4, 30), "alpha": 0.85, "linewidths": 0}
    if labels is None:
        axes.scatter(xy[order, 0], xy[order, 1], color=_BLUE, **style)
    else:
        _scatter_by_label(axes, xy, np.asarray(_numpy(labels)), order, style)
    names = ("component 1", "component 2") if explained is not None else ("$z_0$", "$z_1$")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.03)
    _plain_axes(axes)
    share = "" if explained is None else f", {100 * explained:.0f} % of variance"
    _set_title(axes, method[:1].upper() + method[1:] + share)
    return _settled(figure)


def manifold(
    images: Array, grid_values: Array, *, vmin: float | None = None, vmax: float | None = None
) -> Figure:
    """Draw the decoder over a grid of two latents, without gaps: z_0 rightwards, z_1 upwards.

    Args:
        images: ``[n, n, *event]``; ``images[i, j]`` is decoded at
            ``z = (grid_values[i], grid_values[j])``, the order of ``torch.cartesian_prod``.
        grid_values: quantiles of the prior, ascending, ``[n]``.

    Raises:
        InputError: the shapes do not fit each other.
    """
    tiles = _tiles(images, "images", "n, n")
    values = _vector(grid_values, "grid_values", tiles.shape[0], "one value a row of images")
    if tiles.shape[0] != tiles.shape[1]:
        raise InputError(f"Expected images of shape [n, n, …]; got {tiles.shape}")
    labels = [_signed(v) for v in values]
    upwards = np.swapaxes(tiles, 0, 1)[::-1]
    panel = _Panel(upwards, row_labels=labels[::-1], column_labels=labels, tick=8)
    return _tile_figure(
        [panel],
        "The decoder's mean over the latent plane",
        "an image at each pair of quantiles of the prior",
        gap=0,
        xlabel="$z_0$",
        ylabel="$z_1$",
        limits=(vmin, vmax),
    )


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write ``figure`` as a PNG of 150 dots an inch, whole or not at all; return its path.

    The same figure gives the same bytes: no date and no version is written. The parent folder is
    made where it is missing.

    Raises:
        InputError: the place cannot be written.
    """
    path = Path(path)
    if not path.name:
        raise InputError(f"cannot write the figure {path}: Is a directory")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write the figure {path}: {error.strerror or error}") from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return path


def _draw_bounds(
    axes: Axes, rows: Sequence[Mapping[str, Any]], epoch: NDArray[Any], warm: bool
) -> None:
    elbo, valid = _column(rows, "elbo", required=True), _column(rows, "valid_elbo")
    error = _column(rows, "valid_elbo_standard_error")
    low, high = _robust_range(elbo, valid)
    style: dict[str, Any] = {"linewidth": 1.6, "marker": "o" if len(rows) < 12 else "", "ms": 3.5}
    label = "training, at the current β" if warm else "training"
    axes.plot(epoch, elbo, color=_MUTED, label=label, **style)
    if np.isfinite(valid).any():
        label = "validation, at β = 1" if warm else "validation"
        if np.isfinite(error).any():
            label += ", ± 1 standard error over data"
            axes.fill_between(epoch, valid - error, valid + error, color=_BLUE, alpha=0.18, lw=0)
        axes.plot(epoch, valid, color=_BLUE, label=label, **style)
    title = "ELBO by epoch"
    best = max((i for i, row in enumerate(rows) if row.get("best")), default=None)
    if best is not None:
        value = valid[best] if np.isfinite(valid[best]) else elbo[best]
        low, high = min(low, value), max(high, value)
        axes.plot(epoch[best], value, "o", color=_ORANGE, ms=7, label="best epoch", zorder=4)
        title += f"; best at epoch {epoch[best]:.0f}: {_number(value)} nats per datum"
    pad = 0.05 * (high - low) or 0.5
    axes.set(ylabel="ELBO, nats per datum", ylim=(low - pad, high + pad))
    axes.legend(frameon=False, fontsize=_SMALL, labelcolor=_INK)
    _set_title(axes, title)


@dataclass(frozen=True)
class _Panel:
    """Tiles ``[rows, columns, *event]`` and what is written around them; NaN is an empty place."""

    tiles: NDArray[Any]
    heading: str = ""
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    framed: tuple[int, ...] = ()
    tick: int = 0


def _tile_figure(
    panels: list[_Panel],
    title: str,
    note: str = "",
    *,
    limits: tuple[float | None, float | None],
    gap: int = _GAP,
    xlabel: str = "",
    ylabel: str = "",
) -> Figure:
    """Lay the panels side by side, in whole pixels, so that every tile is drawn sharp."""
    low, high = _limits(panels, limits)
    if panels[0].tiles.ndim == 3:
        note += f"{'; ' if note else ''}every frame spans {low:.3g} to {high:.3g}".replace("-", "−")
    lines = textwrap.wrap(title, 78) or [""]
    labels = [label for panel in panels for label in panel.row_labels]
    left = max((_width(label, _SMALL) + 10 + panels[0].tick for label in labels), default=0)
    left += _LINE if ylabel else 0
    room = _MAX_WIDTH - 2 * _MARGIN - left - _MARGIN * (len(panels) - 1)
    rows, columns = panels[0].tiles.shape[:2]
    h, w = _cell(panels[0].tiles, room // len(panels), gap)
    width, height = columns * (w + gap) - gap, rows * (h + gap) - gap
    stride = max(width, *(_width(panel.heading, _TEXT) for panel in panels)) + _MARGIN

    text = max(*(_width(line.replace("$", "S"), _TITLE) for line in lines), _width(note, _TEXT))
    total_width = 2 * _MARGIN + max(left + stride * len(panels) - _MARGIN, text)
    top = _MARGIN + len(lines) * (_LINE + 6) + (_LINE if note else 0) + 6
    top += _LINE if panels[0].heading else 0
    bottom = _MARGIN + _LINE * (bool(panels[0].column_labels) + bool(xlabel)) + panels[0].tick
    total_height = top + height + bottom
    figure = _figure(total_width / _DPI, total_height / _DPI)
    _write_header(figure, lines, note)
    for i, panel in enumerate(panels):
        x = _MARGIN + left + i * stride
        box = (x / total_width, bottom / total_height, width / total_width, height / total_height)
        axes = figure.add_axes(box, xlim=(0, width), ylim=(height, 0), xlabel=xlabel, ylabel=ylabel)
        _draw_panel(axes, panel, (h, w), gap, (low, high))
    return figure


def _write_header(figure: Figure, lines: list[str], note: str) -> None:
    width, height = figure.get_size_inches() * _DPI
    style: dict[str, Any] = {"x": _MARGIN / width, "va": "top", "parse_math": False}
    figure.text(y=1 - _MARGIN / height, s="\n".join(lines), size=_TITLE, color=_INK, **style)
    y = 1 - (_MARGIN + len(lines) * (_LINE + 6)) / height
    figure.text(y=y, s=note, size=_TEXT, color=_MUTED, **style)


def _draw_panel(
    axes: Axes, panel: _Panel, cell: tuple[int, int], gap: int, limits: tuple[float, float]
) -> None:
    h, w = cell
    rows, columns = panel.tiles.shape[:2]
    for row, column in np.ndindex(rows, columns):
        tile, x, y = panel.tiles[row, column], column * (w + gap), row * (h + gap)
        if np.isnan(tile).any():
            continue
        _draw_tile(axes, tile, (x, x + w, y + h, y), limits)
        color, width = (_ORANGE, 2.0) if column in panel.framed else (_EDGE, 0.6 if gap else 0.0)
        axes.add_patch(Rectangle((x, y), w, h, fill=False, ec=color, lw=width, clip_on=False))
    axes.set(xlim=(0, columns * (w + gap) - gap), ylim=(rows * (h + gap) - gap, 0))
    axes.set_title(panel.heading, loc="left", fontsize=_TEXT, color=_INK, pad=6)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=panel.tick * 72 / _DPI, color=_MUTED, labelcolor=_INK, labelsize=_SMALL)
    axes.xaxis.label.set(size=_TEXT, color=_INK)
    axes.yaxis.label.set(size=_TEXT, color=_INK)
    widest = max((_width(label, _SMALL) + 12 for label in panel.column_labels), default=0)
    kept = _thin(len(panel.column_labels), widest / (w + gap))
    axes.set_xticks([i * (w + gap) + w / 2 for i in kept], [panel.column_labels[i] for i in kept])
    kept = _thin(len(panel.row_labels), _LINE / (h + gap))
    axes.set_yticks([i * (h + gap) + h / 2 for i in kept], [panel.row_labels[i] for i in kept])


def _draw_tile(
    axes: Axes,
    tile: NDArray[Any],
    extent: tuple[int, int, int, int],
    limits: tuple[float, float],
) -> None:
    """Draw one datum in ``extent`` = (left, right, bottom, top), y downwards."""
    low, high = limits
    left, right, bottom, top = extent
    if tile.ndim == 1:
        x = left + (right - left) * (np.arange(len(tile)) + 0.5) / len(tile)
        # A margin keeps the line inside its frame.
        height = 0.06 + 0.88 * np.clip((tile - low) / (high - low), 0, 1)
        marker = "o" if len(tile) <= 16 else ""
        axes.plot(x, bottom + (top - bottom) * height, marker=marker, color=_BLUE, lw=1.2, ms=2.5)
        return
    if tile.ndim == 3:
        tile = np.clip((tile - low) / (high - low), 0, 1)
    exact = (right - left) >= 3 * tile.shape[1]
    kernel = "nearest" if exact else "antialiased"
    style: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high, "extent": extent}
    axes.imshow(tile, aspect="auto", interpolation=kernel, **style)


def _scatter_by_label(
    axes: Axes, xy: NDArray[Any], labels: NDArray[Any], order: NDArray[Any], style: dict[str, Any]
) -> None:
    if labels.shape != xy.shape[:1]:
        raise InputError(f"Expected labels of shape {xy.shape[:1]}; got {labels.shape}")
    names, index = np.unique(labels, return_inverse=True)
    figure = axes.get_figure(root=True)
    assert figure is not None
    if len(names) <= len(_PALETTE):
        colors = np.array(_PALETTE)[index]
        axes.scatter(xy[order, 0], xy[order, 1], c=colors[order].tolist(), **style)
        handles = [
            Line2D([], [], ls="", marker="o", ms=6, color=color, label=str(name))
            for name, color in zip(names, _PALETTE, strict=False)
        ]
        figure.legend(
            handles=handles, loc="outside right upper", title="label", frameon=False,
            fontsize=_TEXT, title_fontsize=_TEXT, labelcolor=_INK, handletextpad=0.2,
        )  # fmt: skip
    elif labels.dtype.kind in "iuf":
        drawn = axes.scatter(xy[order, 0], xy[order, 1], c=labels[order], cmap="viridis", **style)
        bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02)
        bar.set_label("label", size=_TEXT, color=_INK)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=_SMALL, color=_MUTED, labelcolor=_INK)
    else:
        raise InputError(f"Expected at most {len(_PALETTE)} distinct names; got {len(names)}")


def _figure(width: float, height: float, layout: Any = None) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _settled(figure: Figure) -> Figure:
    """Lay out once and for all; done anew at each drawing, the layout moves by a pixel."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _set_title(axes: Axes, title: str) -> None:
    style: dict[str, Any] = {"fontsize": _TITLE, "color": _INK, "parse_math": False}
    axes.set_title(textwrap.fill(title, 78), loc="left", pad=10, **style)


def _plain_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_EDGE)
    axes.tick_params(color=_EDGE, labelcolor=_INK, labelsize=_SMALL)
    axes.xaxis.label.set(size=_TEXT, color=_INK)
    axes.yaxis.label.set(size=_TEXT, color=_INK)
    axes.set_axisbelow(True)


def _cell(tiles: NDArray[Any], room: float, gap: int) -> tuple[int, int]:
    """Height and width of a tile in pixels: whole multiples of the image's, where that is 3."""
    rows, columns = tiles.shape[:2]
    h, w = _event_size(tiles[0, 0])
    tall = max(_MAX_WIDTH / rows, 0.4 * _DPI) - gap
    scale = min((room / columns - gap) / w, tall / h, _MAX_TILE / max(h, w))
    if scale >= 3:
        scale = math.floor(scale)
    return max(1, round(scale * h)), max(1, round(scale * w))


def _limits(panels: list[_Panel], given: tuple[float | None, float | None]) -> tuple[float, float]:
    default = (0.0, 1.0)
    if panels[0].tiles.ndim == 3:
        values = [panel.tiles for panel in panels]
        default = float(np.nanmin(values)), float(np.nanmax(values))
    low, high = (d if g is None else float(g) for d, g in zip(default, given, strict=True))
    if low == high and None in given:
        return low - 0.5, high + 0.5
    if not low < high:
        raise InputError(f"Expected vmin below vmax; got vmin={low:g}, vmax={high:g}")
    return low, high


def _robust_range(*curves: NDArray[Any]) -> tuple[float, float]:
    """The extreme values within whiskers about the middle half of all."""
    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        raise InputError("Expected a finite ELBO in some row of the metrics; got none")
    q1, q3 = np.quantile(values, [0.25, 0.75])
    kept = values[np.abs(values - (q1 + q3) / 2) <= 3 * (q3 - q1)]
    return float(kept.min()), float(kept.max())


def _wrap(tiles: NDArray[Any], num_columns: int | None = None) -> NDArray[Any]:
    """``[N, *event]`` → ``[rows, columns, *event]``, row by row, empty places NaN."""
    if num_columns is not None and num_columns < 1:
        raise InputError(f"Expected num_columns of at least 1; got {num_columns}")
    h, w = _event_size(tiles[0])
    columns = min(len(tiles), num_columns or math.ceil(math.sqrt(len(tiles) * h / w)))
    rows = math.ceil(len(tiles) / columns)
    grid = np.full((rows * columns, *tiles.shape[1:]), np.nan)
    grid[: len(tiles)] = tiles
    return grid.reshape(rows, columns, *tiles.shape[1:])


def _event_size(tile: NDArray[Any]) -> tuple[int, int]:
    """Height and width of one datum; a vector's frame is 3 : 4."""
    return (48, 64) if tile.ndim == 1 else (tile.shape[0], tile.shape[1])


def _tiles(images: Array, name: str, leading: str) -> NDArray[Any]:
    """``[leading, *event]`` with the channels last, and none where the images are grey."""
    array = _array(images, name)
    num_leading = leading.count(",") + 1
    event = array.shape[num_leading:]
    if 0 in array.shape or not 1 <= len(event) <= 3 or (len(event) == 3 and event[0] not in (1, 3)):
        raise InputError(
            f"Expected {name} of shape [{leading}, H, W], [{leading}, C, H, W] with C = 1 or 3, "
            f"or [{leading}, D], none of them 0; got {array.shape}"
        )
    if len(event) < 3:
        return array
    return array.squeeze(num_leading) if event[0] == 1 else np.moveaxis(array, num_leading, -1)


def _vector(values: Array, name: str, length: int, meaning: str) -> NDArray[Any]:
    array = _array(values, name)
    if array.shape != (length,):
        raise InputError(f"Expected {name} of shape ({length},), {meaning}; got {array.shape}")
    return array


def _check_same(one: NDArray[Any], other: NDArray[Any], name: str, reference: str) -> None:
    if one.shape != other.shape:
        raise InputError(
            f"Expected {name} of the same shape as {reference}, {one.shape}; got {other.shape}"
        )


def _column(rows: Sequence[Mapping[str, Any]], key: str, required: bool = False) -> NDArray[Any]:
    for i, row in enumerate(rows):
        if required and row.get(key) is None:
            raise InputError(f"Expected {key!r} in every row of the metrics; row {i} has none")
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=float)


def _numpy(values: Array) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _array(values: Array, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(_numpy(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected {name} as an array of numbers; {error}") from error
    if not np.isfinite(array).all():
        raise InputError(f"Expected finite {name}; got NaN or infinite values")
    return array


def _thin(count: int, pitch: float) -> list[int]:
    """Every k-th index, the middle one among them, where a label needs ``pitch`` places."""
    step = max(1, math.ceil(pitch))
    return [i for i in range(count) if (i - (count - 1) // 2) % step == 0]


def _width(text: str, size: float) -> int:
    """Width of a line of text in pixels."""
    if not text.strip():
        return 0
    return math.ceil(TextPath((0, 0), text, size=size).get_extents().width * _DPI / 72)


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _signed(value: float, sign: str = "-") -> str:
    """``−1.5``, ``0``, ``2`` or, with sign ``+``, ``+2``: at most two decimals, a true minus."""
    text = f"{value:{sign}.2f}".rstrip("0").rstrip(".").replace("-", "−")
    return "0" if text in ("+0", "−0") else text
