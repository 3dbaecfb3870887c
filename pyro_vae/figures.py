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
    "manifold",
    "sweep_scores",
    "save",
]

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pyro_vae.axes import GRID, plain_axes, set_title, settled
from pyro_vae.errors import InputError
from pyro_vae.tiles import (
    BLUE,
    DPI,
    EDGE,
    INK,
    MUTED,
    ORANGE,
    SMALL_SIZE,
    Array,
    Panel,
    as_array,
    as_tiles,
    new_figure,
    tile_figure,
    wrap,
)

# What is maximized and shown of a guide that is a point.
TRAINED_POINTS = {"reconstruction": "log p(x|z(x))", "log_joint": "log p(x, z(x))"}


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the bound on training and validation data by epoch, and β where it leaves 1.

    The first epochs may lie far below the rest: the frame is fitted to the later ones.

    Args:
        rows: one mapping an epoch, as in ``metrics.jsonl``: ``epoch``; ``elbo`` (training bound at
            the current β) and ``valid_elbo`` (β = 1), nats per datum;
            ``valid_elbo_standard_error`` (over data); ``beta``; ``best`` (best so far).
            All but the first two may be missing or None. ``objective`` stands for the training
            bound of an estimator that is no ELBO. Of a guide that is a point,
            ``valid_reconstruction`` stands for ``valid_elbo``, and ``reconstruction`` or
            ``log_joint`` for ``elbo``.

    Raises:
        InputError: no rows, or one without ``epoch`` or ``elbo``.
    """
    if not rows:
        raise InputError("Expected at least one epoch of metrics to draw; got none")
    epoch, beta = _column(rows, "epoch", required=True), _column(rows, "beta")
    # An autoencoder's β is 0, and nothing is weighted.
    warm = "reconstruction" not in rows[0] and bool(np.any(np.nan_to_num(beta, nan=1.0) != 1.0))
    figure = new_figure(8, 5.4 if warm else 4.5, layout="constrained")
    ratios = {"height_ratios": [4, 1]} if warm else {}
    panels = figure.subplots(1 + warm, 1, sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
    _draw_bounds(panels[0], rows, epoch, warm)
    if warm:
        panels[1].plot(epoch, beta, color=MUTED, linewidth=1.6)
        panels[1].set(ylabel="β", ylim=(0, 1.08 * max(1.0, np.nanmax(beta))))
    ticks = MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    panels[-1].xaxis.set_major_locator(ticks)
    panels[-1].set_xlabel("epoch")
    for panel in panels:
        plain_axes(panel)
        panel.margins(x=0.01)
        panel.grid(axis="y", color=GRID, linewidth=0.7)
    return settled(figure)


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
    tiles = as_tiles(images, "images", "N")
    return tile_figure([Panel(wrap(tiles, num_columns))], title, limits=(vmin, vmax))


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
    left, right = as_tiles(means, "means", "N"), as_tiles(draws, "draws", "N")
    _check_same(left, right, "draws", "means")
    panels = [
        Panel(wrap(left), "mean of p(x | z)"),
        Panel(wrap(right), "one draw from p(x | z)"),
    ]
    note = "the same z at the same place on both sides"
    return tile_figure(panels, "Samples from the prior, z ~ p(z)", note, limits=(vmin, vmax))


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
    rows = {label: as_tiles(array, label, "N") for label, array in given.items()}
    for label, row in rows.items():
        _check_same(rows["data"], row, label, "data")
    panel = Panel(np.stack(list(rows.values())), row_labels=tuple(rows))
    note = "below each datum: mean of p(x | z)" + ("" if draws is None else ", one draw from it")
    return tile_figure([panel], "Reconstructions", note, limits=(vmin, vmax))


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
    tiles = as_tiles(images, "images", "num_dims, num_steps")
    steps = _vector(values, "values", tiles.shape[1], "one value a column of images")
    rows = _vector(list(dims), "dims", tiles.shape[0], "one index a row of images")
    labels = [f"$z_{{{dim:.0f}}}$" for dim in rows]
    note = "each row moves one dimension, the others stay"
    if kl is not None:
        nats = _vector(kl, "kl", tiles.shape[0], "one KL a row of images")
        labels = [f"{label}   {_number(v)}" for label, v in zip(labels, nats, strict=True)]
        note += "; beside it its KL, nats per datum"
    panel = Panel(tiles, row_labels=labels, column_labels=[_signed(v, "+") for v in steps])
    label = "prior standard deviations"
    return tile_figure(
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
    path = as_tiles(images, "images", "num_pairs, num_steps")
    data = as_tiles(ends, "ends", "num_pairs, 2")
    expected = (len(path), 2, *path.shape[2:])
    if data.shape != expected:
        raise InputError(f"Expected ends of shape {expected}, as images have; got {data.shape}")
    tiles = np.concatenate([data[:, :1], path, data[:, 1:]], axis=1)
    labels = ["data", *[""] * path.shape[1], "data"]
    panel = Panel(tiles, column_labels=labels, framed=(0, tiles.shape[1] - 1))
    note = "decoded along a path in latent space; framed: the data at its two ends"
    return tile_figure([panel], "Interpolation between data", note, limits=(vmin, vmax))


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
    tiles = as_tiles(images, "images", "n, n")
    values = _vector(grid_values, "grid_values", tiles.shape[0], "one value a row of images")
    if tiles.shape[0] != tiles.shape[1]:
        raise InputError(f"Expected images of shape [n, n, …]; got {tiles.shape}")
    labels = [_signed(v) for v in values]
    upwards = np.swapaxes(tiles, 0, 1)[::-1]
    panel = Panel(upwards, row_labels=labels[::-1], column_labels=labels, tick=8)
    return tile_figure(
        [panel],
        "The decoder's mean over the latent plane",
        "an image at each pair of quantiles of the prior",
        gap=0,
        xlabel="$z_0$",
        ylabel="$z_1$",
        limits=(vmin, vmax),
    )


def sweep_scores(
    labels: Sequence[str],
    scores: Sequence[Sequence[float]],
    intervals: Sequence[tuple[float, float] | None],
    *,
    quantity: str = "log p(x), nats per datum",
    note: str = "",
) -> Figure:
    """Draw the scores of a sweep, a row a configuration, the highest mean on top: a dot a run.

    The axis is fitted to the runs: an interval of two seeds may leave the frame.

    Args:
        labels: what each configuration is.
        scores: of each configuration, one a run.
        intervals: of each configuration's mean, or None where it has too few runs.
        quantity: what the scores are, and in which unit; higher is better.
        note: what else is to be known, below the axis.

    Raises:
        InputError: no scores, one that is not finite, or other numbers of labels and intervals.
    """
    if not len(labels) == len(scores) == len(intervals):
        raise InputError(
            f"Expected as many labels and intervals as lists of scores, {len(scores)}; "
            f"got {len(labels)} and {len(intervals)}"
        )
    if not scores or not all(len(values) and np.isfinite(values).all() for values in scores):
        raise InputError("Expected at least one finite score of each configuration")
    means = np.array([np.mean(values) for values in scores])
    texts = [textwrap.wrap(label, 44) or [""] for label in labels]
    order = np.argsort(means, kind="stable")[::-1]
    heights = np.array([max(0.30, 0.165 * len(texts[i]) + 0.1) for i in order])  # inches
    rows = np.cumsum(heights) - heights / 2
    figure = new_figure(8, heights.sum() + (1.75 if note else 1.5), layout="constrained")
    axes = figure.add_subplot()
    for row, i in zip(rows, order, strict=True):
        if intervals[i] is not None:
            axes.plot(intervals[i], [row, row], color=EDGE, linewidth=3, solid_capstyle="butt")
        axes.plot(means[i], row, marker="|", ms=11, mew=2.2, color=ORANGE)
        style: dict[str, Any] = {"s": 20, "color": BLUE, "alpha": 0.6, "linewidths": 0, "zorder": 3}
        axes.scatter(scores[i], np.full(len(scores[i]), row), **style)
    axes.set_yticks(rows, ["\n".join(texts[i]) for i in order], parse_math=False)
    axes.set_ylim(heights.sum(), 0)
    axes.set_xlim(*_frame(scores, intervals))
    axes.set_xlabel(quantity + (f"\n{note}" if note else ""))
    set_title(axes, f"{quantity.partition(',')[0]} by configuration")
    plain_axes(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], ls="", marker="o", ms=4.5, mew=0, color=BLUE, alpha=0.6, label="a run"),
        Line2D([], [], ls="", marker="|", ms=9, mew=2.2, color=ORANGE, label="mean over seeds"),
    ]
    if any(interval is not None for interval in intervals):
        handles.append(Line2D([], [], color=EDGE, lw=3, label="its 95 % t-interval"))
    figure.legend(
        handles=handles, loc="outside lower right", ncols=3, frameon=False, fontsize=SMALL_SIZE,
        labelcolor=INK,
    )  # fmt: skip
    return settled(figure)


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
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
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
    # Runs of earlier versions chose the best point by its log-joint.
    points = [name for name in ("reconstruction", "log_joint") if f"valid_{name}" in rows[0]]
    criterion = points[0] if points else "elbo"
    trained = next((n for n in ("objective", *TRAINED_POINTS) if n in rows[0]), "elbo")
    elbo, valid = _column(rows, trained, required=True), _column(rows, f"valid_{criterion}")
    error = _column(rows, f"valid_{criterion}_standard_error")
    low, high = _robust_range(elbo, valid)
    style: dict[str, Any] = {"linewidth": 1.6, "marker": "o" if len(rows) < 12 else "", "ms": 3.5}
    other = TRAINED_POINTS.get(trained, "objective, another than the ELBO")
    label = "training" if trained == criterion else f"training {other}"
    label += ", at the current β" if warm else ""
    axes.plot(epoch, elbo, color=MUTED, label=label, **style)
    if np.isfinite(valid).any():
        of = TRAINED_POINTS.get(criterion, "ELBO")
        label = "validation" if trained == criterion else f"validation {of}"
        label += ", at β = 1" if warm and criterion != "reconstruction" else ""
        if np.isfinite(error).any():
            label += ", ± 1 standard error over data"
            axes.fill_between(epoch, valid - error, valid + error, color=BLUE, alpha=0.18, lw=0)
        axes.plot(epoch, valid, color=BLUE, label=label, **style)
    title = f"{TRAINED_POINTS.get(criterion, 'ELBO')} by epoch"
    axes.set_ylabel("ELBO, nats per datum" if trained == "elbo" else "nats per datum")
    best = max((i for i, row in enumerate(rows) if row.get("best")), default=None)
    if best is not None:
        value = valid[best] if np.isfinite(valid[best]) else elbo[best]
        low, high = min(low, value), max(high, value)
        axes.plot(epoch[best], value, "o", color=ORANGE, ms=7, label="best epoch", zorder=4)
        title += f"; best at epoch {epoch[best]:.0f}: {_number(value)} nats per datum"
    pad = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - pad, high + pad)
    axes.legend(frameon=False, fontsize=SMALL_SIZE, labelcolor=INK)
    set_title(axes, title)


def _frame(
    scores: Sequence[Sequence[float]], intervals: Sequence[tuple[float, float] | None]
) -> tuple[float, float]:
    """All runs, and the intervals as far as half the width of the runs beyond them."""
    runs = np.concatenate([np.asarray(values, dtype=float) for values in scores])
    low, high = float(runs.min()), float(runs.max())
    reach = (high - low) / 2 or 0.5
    ends = [end for interval in intervals if interval is not None for end in interval]
    left = max(low - reach, min([low, *ends]))
    right = min(high + reach, max([high, *ends]))
    pad = 0.03 * (right - left) or 0.5
    return left - pad, right + pad


def _robust_range(*curves: NDArray[Any]) -> tuple[float, float]:
    """The extreme values within whiskers about the middle half of all."""
    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        raise InputError("Expected a finite ELBO in some row of the metrics; got none")
    q1, q3 = np.quantile(values, [0.25, 0.75])
    kept = values[np.abs(values - (q1 + q3) / 2) <= 3 * (q3 - q1)]
    return float(kept.min()), float(kept.max())


def _vector(values: Array, name: str, length: int, meaning: str) -> NDArray[Any]:
    array = as_array(values, name)
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


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _signed(value: float, sign: str = "-") -> str:
    """``−1.5``, ``0``, ``2`` or, with sign ``+``, ``+2``: at most two decimals, a true minus."""
    text = f"{value:{sign}.2f}".rstrip("0").rstrip(".").replace("-", "−")
    return "0" if text in ("+0", "−0") else text
