"""Figures of a comparison: rows of values and of gradients in, a matplotlib figure out."""

__all__ = ["estimator_values", "signal_to_noise"]

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator
from numpy.typing import NDArray

from pyro_vae.axes import GRID, PALETTE, plain_axes, set_title, settled
from pyro_vae.comparison.rows import GradientRow, Truth, ValueRow
from pyro_vae.comparison_tables import AT_THE_FLOOR, GROUPS, NOT_A_BOUND, at_the_floor
from pyro_vae.errors import InputError
from pyro_vae.tiles import (
    BLUE,
    EDGE,
    INK,
    MUTED,
    ORANGE,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    new_figure,
)

_MARKERS = "osD^vPX<>*hp"
_BARS = "± 2 standard errors over draws"
_HOLLOW: dict[str, Any] = {"marker": "o", "ms": 5, "mfc": "white", "mew": 1.2}
_SAME = 1e-4  # of a ratio: estimators this close at every K are one but for rounding


def estimator_values(rows: Sequence[ValueRow], truth: Truth | None = None) -> Figure:
    """Draw each estimator's value, in the rows' order, with two standard errors over draws.

    Where log p(x) is known it is a line, with a band of two of its errors. What is no
    lower bound has an open mark.

    Args:
        rows: those with a refusal or a value that is not finite are left out.
        truth: log p(x), or None.

    Raises:
        InputError: no row has a finite value.
    """
    shown = [row for row in rows if row.mean is not None and math.isfinite(row.mean)]
    if not shown:
        raise InputError("Expected at least one estimator with a finite value; got none")
    figure = new_figure(8, 0.3 * len(shown) + 1.75, layout="constrained")
    axes = figure.add_subplot()
    handles = _draw_truth(axes, truth) if truth is not None else []
    for i, row in enumerate(shown):
        _draw_value(axes, i, row)
    labels = [row.estimator + ("" if row.is_lower_bound else f" {NOT_A_BOUND}") for row in shown]
    axes.set_yticks(range(len(shown)), labels, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(*_value_frame(shown, truth))
    axes.set_xlabel("nats per datum, on noise that all estimators share")
    set_title(axes, "Estimators of one pair's bound" + (" and log p(x)" if truth else ""))
    plain_axes(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    style: dict[str, Any] = {"marker": "o", "ms": 5, "color": BLUE}
    handles.insert(0, Line2D([], [], lw=1.6, label=f"estimate {_BARS}", **style))
    if not all(row.is_lower_bound for row in shown):
        label = f"{NOT_A_BOUND} no lower bound"
        handles.append(Line2D([], [], ls="", mfc="white", mew=1.6, label=label, **style))
    _legend(figure, handles)
    _keep_labels_inside(figure, axes)
    return settled(figure)


def signal_to_noise(rows: Sequence[GradientRow]) -> Figure:
    """Draw the gradients' signal-to-noise ratio against K on log axes, a panel a group.

    Bars are two standard errors over draws. The shaded region is what a gradient of mean
    0 reads after as many draws; marks below twice that are hollow. The dotted lines have the
    slopes ½ and −½, K^½ of an average of K and K^−½ of IWAE's encoder. Estimators that
    coincide everywhere are one curve.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        section 3 https://arxiv.org/abs/1802.04537

    Args:
        rows: those without a finite ratio above 0 are left out.

    Raises:
        InputError: no row has such a ratio.
    """
    shown = [row for row in rows if _drawable(row.signal_to_noise)]
    if not shown:
        raise InputError("Expected at least one gradient with a signal-to-noise ratio; got none")
    groups = list(dict.fromkeys(row.group for row in shown))
    curves = _curves(shown)
    names = list(curves)
    labels = [", ".join(curves[name]) for name in names]
    lines = math.ceil((len(names) + 3) / _columns(labels))
    figure = new_figure(8, 4.2 + 0.2 * lines, layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    frame = _ratio_frame(shown)
    for axes, group in zip(panels, groups, strict=True):
        own = [row for row in shown if row.group == group and row.estimator in curves]
        _draw_group(axes, own, names, frame)
        axes.set_title(GROUPS.get(group, group), loc="left", fontsize=TEXT_SIZE, color=INK)
    panels[0].set_ylabel("|E g|/sd(g), mean over parameters")
    panels[0].set_ylim(*frame)
    figure.suptitle(
        "Signal-to-noise ratio of one draw of the gradient",
        x=0.012,
        ha="left",
        fontsize=TITLE_SIZE,
        color=INK,
    )
    handles: list[Any] = [
        Line2D([], [], label=label, **_line(names, name))
        for name, label in zip(names, labels, strict=True)
    ]
    if any(_error(row) for row in shown):
        handles.append(Line2D([], [], color=MUTED, lw=1.2, marker="|", ms=9, ls="", label=_BARS))
    if any(at_the_floor(row) for row in shown):
        label = f"{AT_THE_FLOOR} below twice the noise floor"
        handles.append(Line2D([], [], ls="", color=MUTED, label=label, **_HOLLOW))
    if any(_drawable(row.noise_floor) for row in shown):
        handles.append(Patch(color=EDGE, alpha=0.35, lw=0, label="noise floor: reads so at mean 0"))
    _legend(figure, handles)
    return settled(figure)


def _draw_value(axes: Axes, i: int, row: ValueRow) -> None:
    low, high = _ends(row)
    axes.plot([low, high], [i, i], color=BLUE, linewidth=1.6, solid_capstyle="butt")
    face = BLUE if row.is_lower_bound else "white"
    axes.plot((low + high) / 2, i, "o", ms=5, mfc=face, mec=BLUE, mew=1.6, zorder=4)


def _draw_truth(axes: Axes, truth: Truth) -> list[Any]:
    """The line and, where it has a width, the band; what the legend says of them."""
    axes.axvline(truth.log_px, color=ORANGE, linewidth=1.6, zorder=2)
    handles: list[Any] = [Line2D([], [], color=ORANGE, lw=1.6, label=f"log p(x), {truth.method}")]
    if truth.error > 0:
        low, high = truth.log_px - 2 * truth.error, truth.log_px + 2 * truth.error
        axes.axvspan(low, high, color=ORANGE, alpha=0.2, lw=0, zorder=1)
    return handles


def _keep_labels_inside(figure: Figure, axes: Axes) -> None:
    """Leave out the ticks of x whose labels reach over an end of the frame."""
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    places = []
    for tick in axes.xaxis.get_major_ticks():
        label = tick.label1.get_window_extent()
        if frame.x0 <= label.x0 and label.x1 <= frame.x1:
            places.append(tick.get_loc())
    if len(places) > 1:
        axes.xaxis.set_major_locator(FixedLocator(places))


def _ends(row: ValueRow) -> tuple[float, float]:
    """Two standard errors over draws to either side, where they are known."""
    value, error = row.mean or 0.0, row.standard_error or 0.0
    error = error if math.isfinite(error) else 0.0
    return value - 2 * error, value + 2 * error


def _value_frame(rows: Sequence[ValueRow], truth: Truth | None) -> tuple[float, float]:
    ends = [truth.log_px] if truth is not None else []
    for row in rows:
        ends += _ends(row)
    pad = 0.03 * (max(ends) - min(ends)) or 0.5
    return min(ends) - pad, max(ends) + pad


def _curves(rows: Sequence[GradientRow]) -> dict[str, list[str]]:
    """The first of the estimators that coincide at every K and group → all of them."""
    ratios: dict[str, dict[tuple[str, int], float]] = {}
    for row in rows:
        ratio = row.signal_to_noise or 0.0
        ratios.setdefault(row.estimator, {})[row.group, row.num_particles] = ratio
    curves: dict[str, list[str]] = {}
    for name, own in ratios.items():
        alike = (first for first in curves if _coincide(own, ratios[first]))
        curves.setdefault(next(alike, name), []).append(name)
    return curves


def _coincide(own: Mapping[Any, float], other: Mapping[Any, float]) -> bool:
    return own.keys() == other.keys() and all(
        math.isclose(own[key], other[key], rel_tol=_SAME) for key in own
    )


def _draw_group(
    axes: Axes, rows: Sequence[GradientRow], names: Sequence[str], frame: tuple[float, float]
) -> None:
    particles = sorted({row.num_particles for row in rows})
    shift = 0.09 * (math.log(particles[-1] / particles[0]) or 0.5) / len(names)
    for i, name in enumerate(names):
        own = [row for row in rows if row.estimator == name]
        own.sort(key=lambda row: row.num_particles)
        # Estimators that coincide here alone stand side by side.
        factor = math.exp(shift * (i - (len(names) - 1) / 2))
        _draw_curve(axes, own, factor, _line(names, name))
    ratios = np.array([row.signal_to_noise for row in rows], dtype=float)
    floors = [row.noise_floor for row in rows if row.noise_floor and _drawable(row.noise_floor)]
    axes.set(xscale="log", yscale="log", xlabel="K, draws of z a datum (marks side by side)")
    if floors:
        axes.axhspan(min(floors) / 1e6, max(floors), color=EDGE, alpha=0.35, lw=0, zorder=0)
    _draw_slopes(axes, particles, ratios, frame)
    axes.xaxis.set_major_locator(FixedLocator(_apart(particles)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    plain_axes(axes)
    axes.grid(color=GRID, linewidth=0.7)


def _draw_curve(
    axes: Axes, rows: Sequence[GradientRow], factor: float, style: dict[str, Any]
) -> None:
    """A curve with its bars, the marks at the noise floor hollow."""
    K = [row.num_particles * factor for row in rows]
    ratios = [row.signal_to_noise or 0.0 for row in rows]
    axes.plot(K, ratios, **style)
    axes.vlines(K, *zip(*map(_bar, rows), strict=True), color=style["color"], lw=1.2)
    hollow = [i for i, row in enumerate(rows) if at_the_floor(row)]
    if hollow:
        over = {**style, "ls": "", "mfc": "white", "mec": style["color"], "mew": 1.2}
        axes.plot([K[i] for i in hollow], [ratios[i] for i in hollow], **over)


def _error(row: GradientRow) -> float:
    error = row.signal_to_noise_standard_error
    return error if _drawable(error) else 0.0  # type: ignore[return-value]


def _bar(row: GradientRow) -> tuple[float, float]:
    """Two standard errors to either side; on log axes no farther than to a tenth."""
    ratio, error = row.signal_to_noise or 0.0, _error(row)
    return max(ratio - 2 * error, ratio / 10), ratio + 2 * error


def _ratio_frame(rows: Sequence[GradientRow]) -> tuple[float, float]:
    """All ratios with their bars and all noise floors."""
    both = [v for row in rows for v in (*_bar(row), row.noise_floor)]
    values = [v for v in both if v is not None and _drawable(v)]
    return min(values) / 1.5, max(values) * 1.5


def _draw_slopes(
    axes: Axes, particles: Sequence[int], ratios: NDArray[Any], frame: tuple[float, float]
) -> None:
    """K^½ and K^−½ through the middle of what is drawn, each with its name at its start."""
    if len(particles) < 2:
        return
    K = np.array([particles[0], particles[-1]], dtype=float)
    middle = math.sqrt(K[0] * K[1])
    level = math.exp(np.log(ratios).mean())
    for slope, name, side in ((0.5, "slope ½", "top"), (-0.5, "slope −½", "bottom")):
        values = level * (K / middle) ** slope
        axes.plot(K, values, ":", color=MUTED, linewidth=1.2, zorder=1)
        # Inside the frame, and past the marks at the first K.
        start = level * (K[0] ** 0.9 * K[1] ** 0.1 / middle) ** slope
        start = min(max(start, frame[0] * 1.3), frame[1] / 1.3)
        place = middle * (start / level) ** (1 / slope), start
        axes.text(*place, name, fontsize=SMALL_SIZE, color=MUTED, va=side, ha="left", zorder=5)


def _line(names: Sequence[str], name: str) -> dict[str, Any]:
    i = names.index(name)
    colors = (*PALETTE, INK)
    dashes = "-" if i < len(colors) else "--"
    style = {"color": colors[i % len(colors)], "marker": _MARKERS[i % len(_MARKERS)]}
    return {**style, "ls": dashes, "lw": 1.4, "ms": 5, "mew": 0}


def _apart(particles: Sequence[int]) -> list[int]:
    """The K whose labels do not touch: a factor of 1.6 apart, the largest among them."""
    kept: list[int] = []
    for K in sorted(particles, reverse=True):
        if not kept or kept[-1] / K >= 1.6:
            kept.append(K)
    return kept[::-1]


def _drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _columns(labels: Sequence[str]) -> int:
    """How many columns of a legend a page of about 144 letters has room for."""
    return max(1, min(3, 144 // (max(map(len, labels)) + 12)))


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    columns = _columns([handle.get_label() for handle in handles])
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False,
        fontsize=SMALL_SIZE, labelcolor=INK,
    )  # fmt: skip
