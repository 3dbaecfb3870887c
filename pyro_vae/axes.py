"""How every plot of numbers looks: its palette, title, frame and settled layout."""

__all__ = ["PALETTE", "GRID", "set_title", "plain_axes", "settled"]

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.tiles import EDGE, INK, SMALL_SIZE, TEXT_SIZE, TITLE_SIZE

GRID = "#e4e4e4"
PALETTE = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#8c5fc0"),
    *("#7b4a3a", "#f06fc0", "#6b6b6b", "#b5b000", "#17becf"),
)


def settled(figure: Figure) -> Figure:
    """Lay out once and for all; done anew at each drawing, the layout moves by a pixel."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def set_title(axes: Axes, title: str) -> None:
    """Write a title from the left, broken into lines."""
    style: dict[str, Any] = {"fontsize": TITLE_SIZE, "color": INK, "parse_math": False}
    axes.set_title(textwrap.fill(title, 78), loc="left", pad=10, **style)


def plain_axes(axes: Axes) -> None:
    """Leave of the frame what is read: two lines, ticks and labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(EDGE)
    axes.tick_params(color=EDGE, labelcolor=INK, labelsize=SMALL_SIZE)
    axes.xaxis.label.set(size=TEXT_SIZE, color=INK)
    axes.yaxis.label.set(size=TEXT_SIZE, color=INK)
    axes.set_axisbelow(True)
