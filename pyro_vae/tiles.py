"""Tiles: images laid out in whole pixels, so that every one is drawn sharp."""

__all__ = [
    "Panel",
    "tile_figure",
    "draw_panel",
    "new_figure",
    "wrap",
    "as_tiles",
    "as_array",
    "as_numpy",
]

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from numpy.typing import ArrayLike, NDArray

from pyro_vae.errors import InputError

Array = torch.Tensor | ArrayLike

DPI = 150
_MAX_WIDTH = 8 * DPI  # shown 800 pixels wide, 9 pt are 12 pixels
_MAX_TILE = 1.4 * DPI
MARGIN, _GAP, _LINE = 24, 6, 30  # pixels: around the figure, between tiles, a line of text
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 12.0, 9.5, 9.0  # points
INK, MUTED, EDGE = "#222222", "#5f5f5f", "#b0b0b0"
BLUE, ORANGE = "#0b62a4", "#d9600a"


@dataclass(frozen=True)
class Panel:
    """Tiles ``[rows, columns, *event]`` and what is written around them; NaN is an empty place."""

    tiles: NDArray[Any]
    heading: str = ""
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    framed: tuple[int, ...] = ()
    tick: int = 0


def tile_figure(
    panels: list[Panel],
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
    left = max((_width(label, SMALL_SIZE) + 10 + panels[0].tick for label in labels), default=0)
    left += _LINE if ylabel else 0
    room = _MAX_WIDTH - 2 * MARGIN - left - MARGIN * (len(panels) - 1)
    rows, columns = panels[0].tiles.shape[:2]
    h, w = _cell(panels[0].tiles, room // len(panels), gap)
    width, height = columns * (w + gap) - gap, rows * (h + gap) - gap
    stride = max(width, *(_width(panel.heading, TEXT_SIZE) for panel in panels)) + MARGIN

    text = max(
        *(_width(line.replace("$", "S"), TITLE_SIZE) for line in lines), _width(note, TEXT_SIZE)
    )
    total_width = 2 * MARGIN + max(left + stride * len(panels) - MARGIN, text)
    top = MARGIN + len(lines) * (_LINE + 6) + (_LINE if note else 0) + 6
    top += _LINE if panels[0].heading else 0
    bottom = MARGIN + _LINE * (bool(panels[0].column_labels) + bool(xlabel)) + panels[0].tick
    total_height = top + height + bottom
    figure = new_figure(total_width / DPI, total_height / DPI)
    _write_header(figure, lines, note)
    for i, panel in enumerate(panels):
        x = MARGIN + left + i * stride
        box = (x / total_width, bottom / total_height, width / total_width, height / total_height)
        axes = figure.add_axes(box, xlim=(0, width), ylim=(height, 0), xlabel=xlabel, ylabel=ylabel)
        draw_panel(axes, panel, (h, w), gap, (low, high))
    return figure


def _write_header(figure: Figure, lines: list[str], note: str) -> None:
    width, height = figure.get_size_inches() * DPI
    style: dict[str, Any] = {"x": MARGIN / width, "va": "top", "parse_math": False}
    figure.text(y=1 - MARGIN / height, s="\n".join(lines), size=TITLE_SIZE, color=INK, **style)
    y = 1 - (MARGIN + len(lines) * (_LINE + 6)) / height
    figure.text(y=y, s=note, size=TEXT_SIZE, color=MUTED, **style)


def draw_panel(
    axes: Axes, panel: Panel, cell: tuple[int, int], gap: int, limits: tuple[float, float]
) -> None:
    """Draw a panel whose tiles are ``cell`` = (height, width) pixels, ``gap`` apart."""
    h, w = cell
    rows, columns = panel.tiles.shape[:2]
    for row, column in np.ndindex(rows, columns):
        tile, x, y = panel.tiles[row, column], column * (w + gap), row * (h + gap)
        if np.isnan(tile).any():
            continue
        _draw_tile(axes, tile, (x, x + w, y + h, y), limits)
        color, width = (ORANGE, 2.0) if column in panel.framed else (EDGE, 0.6 if gap else 0.0)
        axes.add_patch(Rectangle((x, y), w, h, fill=False, ec=color, lw=width, clip_on=False))
    axes.set(xlim=(0, columns * (w + gap) - gap), ylim=(rows * (h + gap) - gap, 0))
    axes.set_title(panel.heading, loc="left", fontsize=TEXT_SIZE, color=INK, pad=6)
    axes.spines[:].set_visible(False)
    axes.tick_params(
        length=panel.tick * 72 / DPI, color=MUTED, labelcolor=INK, labelsize=SMALL_SIZE
    )
    axes.xaxis.label.set(size=TEXT_SIZE, color=INK)
    axes.yaxis.label.set(size=TEXT_SIZE, color=INK)
    widest = max((_width(label, SMALL_SIZE) + 12 for label in panel.column_labels), default=0)
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
        axes.plot(x, bottom + (top - bottom) * height, marker=marker, color=BLUE, lw=1.2, ms=2.5)
        return
    if tile.ndim == 3:
        tile = np.clip((tile - low) / (high - low), 0, 1)
    exact = (right - left) >= 3 * tile.shape[1]
    kernel = "nearest" if exact else "antialiased"
    style: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high, "extent": extent}
    axes.imshow(tile, aspect="auto", interpolation=kernel, **style)


def new_figure(width: float, height: float, layout: Any = None) -> Figure:
    """Return an empty white figure of ``width`` × ``height`` inches, without pyplot."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _cell(tiles: NDArray[Any], room: float, gap: int) -> tuple[int, int]:
    """Height and width of a tile in pixels: whole multiples of the image's, where that is 3."""
    rows, columns = tiles.shape[:2]
    h, w = _event_size(tiles[0, 0])
    tall = max(_MAX_WIDTH / rows, 0.4 * DPI) - gap
    scale = min((room / columns - gap) / w, tall / h, _MAX_TILE / max(h, w))
    if scale >= 3:
        scale = math.floor(scale)
    return max(1, round(scale * h)), max(1, round(scale * w))


def _limits(panels: list[Panel], given: tuple[float | None, float | None]) -> tuple[float, float]:
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


def wrap(tiles: NDArray[Any], num_columns: int | None = None) -> NDArray[Any]:
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


def as_tiles(images: Array, name: str, leading: str) -> NDArray[Any]:
    """``[leading, *event]`` with the channels last, and none where the images are grey."""
    array = as_array(images, name)
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


def as_numpy(values: Array) -> Any:
    """Bring a tensor to numpy; anything else is left as it is."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def as_array(values: Array, name: str) -> NDArray[Any]:
    """Return finite numbers as a float64 array, or refuse them by ``name`` in one line."""
    try:
        array = np.asarray(as_numpy(values), dtype=np.float64)
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
    return math.ceil(TextPath((0, 0), text, size=size).get_extents().width * DPI / 72)
