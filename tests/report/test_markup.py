"""Tables and figures as parts of a page: the same cells, the page's colours, nothing executed."""

import base64
import io
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

from pyro_vae import figures
from pyro_vae.report.markup import chart_svg, picture_img, table_html

ROWS = [{"epoch": n, "elbo": -float(n), "valid_elbo": -2.0 * n} for n in range(1, 30)]


class Cells(HTMLParser):
    """The rows of a table, each cell's text."""

    def __init__(self):
        super().__init__()
        self.rows, self.cell = [], None

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.cell = ""
        assert tag in ("div", "table", "caption", "thead", "tbody", "tr", "th", "td")

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.rows[-1].append(self.cell)
            self.cell = None


def read(html) -> list[list[str]]:
    cells = Cells()
    cells.feed(str(html))
    return cells.rows


def test_a_table_has_the_cells_of_the_terminals():
    table = Table(title="A <b>title</b>")
    table.add_column("")
    table.add_column("± data", justify="right")
    table.add_row("<script>alert(1)</script>", "0.0310")
    table.add_row(Text("iwae(num_\nparticles=5)"), Text("≥1.20", style="bold"))
    table.add_row("a", "<img src=x>")
    html = table_html(table)
    assert read(html) == [
        ["", "± data"], ["<script>alert(1)</script>", "0.0310"], ["iwae(num_particles=5)", "≥1.20"],
        ["a", "<img src=x>"],
    ]  # fmt: skip
    assert html.count('class="right"') == 4
    assert "<b>" not in html


def test_a_chart_takes_the_pages_colours_and_letters():
    svg = chart_svg(figures.training_curves(ROWS), "run3-training", 'Curves of "a" & <b>')
    assert svg.startswith('<div class="chart"><svg role="img" aria-label="Curves of &#34;a&#34;')
    assert 'viewBox="0 0 576 324"' in svg
    assert "var(--ink)" in svg
    assert not re.search(r"#(222222|5f5f5f|b0b0b0|e4e4e4|0b62a4|ffffff)", svg)
    assert "<style" not in svg
    assert ">epoch</text>" in svg  # letters, not outlines of letters
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(set(ids)) == len(ids) > 10
    assert all(each.startswith("run3-training-") for each in ids)
    referred = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg)
    assert {a or b for a, b in referred} <= set(ids)
    assert svg == chart_svg(figures.training_curves(ROWS), "run3-training", 'Curves of "a" & <b>')


def test_two_charts_of_a_page_share_no_id():
    one, other = (chart_svg(figures.training_curves(ROWS), key, "curves") for key in ("a", "b"))
    ids = [set(re.findall(r'\bid="([^"]*)"', each)) for each in (one, other)]
    assert not ids[0] & ids[1]


def test_a_picture_is_a_png_of_the_same_pixels(tmp_path):
    images = np.random.default_rng(0).random((6, 8, 8))
    img = picture_img(figures.image_grid(images), 'a "picture"')
    assert 'alt="a &#34;picture&#34;"' in img
    (data,) = re.findall(r'src="data:image/png;base64,([^"]*)"', img)
    file = figures.save(figures.image_grid(images), tmp_path / "same.png")
    found = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))
    np.testing.assert_array_equal(found, matplotlib.image.imread(file))
    height, width = found.shape[:2]
    assert f'width="{width}" height="{height}"' in img


@pytest.mark.parametrize("letters", ["$z_0$", "α ≤ β"])
def test_letters_of_every_kind_are_drawn(letters):
    figure = figures.training_curves(ROWS)
    figure.axes[0].set_xlabel(letters)
    assert "<svg" in chart_svg(figure, "a", letters)
