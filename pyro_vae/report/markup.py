"""Tables and figures as parts of a page; everything that a run says is escaped."""

__all__ = ["table_html", "chart_svg", "picture_img"]

import base64
import io
import re
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from rich.table import Column, Table
from rich.text import Text

from pyro_vae.axes import GRID
from pyro_vae.tiles import BLUE, DPI, EDGE, INK, MUTED, ORANGE

# The colours of our figures → the page's, which are others in the dark.
_COLORS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    EDGE: "var(--edge)",
    GRID: "var(--grid)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    "#ffffff": "none",
    "#000000": "var(--ink)",
}


def table_html(table: Table) -> Markup:
    """Turn a table of the terminal into one of the page, cell by cell, nothing rounded anew."""
    columns = table.columns
    cells = [[_plain(cell) for cell in column.cells] for column in columns]
    head = Markup("").join(
        Markup("<th scope=col{}>{}</th>").format(_side(column), _plain(column.header))
        for column in columns
    )
    rows = Markup("").join(
        Markup("<tr>{}</tr>").format(_row(columns, row)) for row in zip(*cells, strict=True)
    )
    title = "" if table.title is None else _plain(table.title)
    caption = Markup("<caption>{}</caption>").format(title) if title else ""
    whole = "<table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>"
    return Markup(f'<div class="table" tabindex="0">{whole}</div>').format(caption, head, rows)


def _row(columns: list[Column], row: tuple[str, ...]) -> Markup:
    first = Markup("<th scope=row{}>{}</th>").format(_side(columns[0]), row[0])
    rest = (
        Markup("<td{}>{}</td>").format(_side(column), cell)
        for column, cell in zip(columns[1:], row[1:], strict=True)
    )
    return first + Markup("").join(rest)


def _side(column: Column) -> Markup:
    return Markup(' class="right"') if column.justify == "right" else Markup("")


def _plain(cell: Any) -> str:
    """A cell's text; a label that was folded is whole again."""
    text = cell.plain if isinstance(cell, Text) else str(cell)
    return text.replace("\n", "")


def chart_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Turn a figure of lines and letters into inline SVG that takes the page's colours and letters.

    ``name`` is unique in the page, as are then the ids in it; ``alt`` says what is drawn.
    """
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyro-vae"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf"<svg {_labelled(alt)} \1>", svg, count=1
    )
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"(\bid=\"|href=\"#|url\(#)", rf"\g<1>{name}-", svg)
    for color, ours in _COLORS.items():
        svg = svg.replace(f": {color}", f": {ours}")
    return Markup('<div class="chart">{}</div>').format(Markup(svg))


def _labelled(alt: str) -> str:
    return f'role="img" aria-label="{escape(alt)}"'.replace("\\", r"\\")


def picture_img(figure: Figure, alt: str) -> Markup:
    """Turn a figure of images into a PNG within the page."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    width, height = (round(inches * DPI) for inches in figure.get_size_inches())
    return Markup(
        '<div class="picture"><img src="{}" alt="{}" width="{}" height="{}"></div>'
    ).format(url, alt, width, height)
