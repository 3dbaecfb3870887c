"""The report in a browser: no complaint, every image there, tables that fit, latents that move."""

import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console

from pyro_vae import load_run
from pyro_vae.compare_command import Options, compare_subject
from pyro_vae.comparison.subject import run_subject
from pyro_vae.defaults import Settings
from pyro_vae.diagnose_command import diagnose_subject
from pyro_vae.diagnose_command import run_subject as diagnosed
from pyro_vae.evaluate_command import Options as Evaluating
from pyro_vae.evaluate_command import evaluate_run
from pyro_vae.report import write_report

QUIET = Console(quiet=True)
SMALL = Settings(count=40, gap_count=3, num_samples=40, num_chains=3, num_temperatures=20)
BROKEN_IMAGES = "[...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WIDE_TABLES = """[...document.querySelectorAll('.table')]
    .filter(each => each.scrollWidth > each.clientWidth + 1).length"""
# What a page in print would cut off at its right edge.
CUT = """[...document.querySelectorAll('main table, main svg, main img')].filter(each =>
    each.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""

# The middle of each of 8 × 8 cells of a canvas, 0 to 255.
PIXELS = """canvas => {
    const size = canvas.width / 8, pixels = [];
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    for (let row = 0; row < 8; row++)
        for (let column = 0; column < 8; column++) {
            const y = Math.floor((row + 0.5) * size), x = Math.floor((column + 0.5) * size);
            pixels.push(data[4 * (y * canvas.width + x)]);
        }
    return pixels;
}"""


@pytest.fixture(scope="module")
def reports(browser, small_run, tmp_path_factory):
    """The page of one run of two latents that was scored and diagnosed, and of two runs."""
    folder = tmp_path_factory.mktemp("reports")
    runs = []
    for name, changes in (("plane", {}), ("five", {"latent_dim": 5})):
        shutil.copytree(small_run(data="digits(values=binary)", **changes).path, folder / name)
        evaluate_run(QUIET, load_run(folder / name), Evaluating(num_samples=40, count=30))
        runs.append(folder / name)
    subject = diagnosed(runs[0], weights="best", device="cpu", data_root=None, allow_code=False)
    parts = ("gap", "reliability", "latents", "checks", "space")
    diagnose_subject(QUIET, subject, runs[0], SMALL, parts)
    compared = run_subject(runs[0], count=8, device="cpu")
    compare_subject(QUIET, compared, runs[0], Options(None, (1, 4), 4, True, False, 0))
    loaded = [load_run(run) for run in runs]
    one = write_report(loaded[:1], folder / "one.html")
    return {1: one.as_uri(), 2: write_report(loaded, folder / "two.html").as_uri()}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_and_all_of_it_is_there(new_page, reports, count, scheme, width):
    page = new_page(width=width, color_scheme=scheme)
    page.goto(reports[count])
    assert page.locator("section.topic").count() == 11 + (count == 2)
    assert page.evaluate(BROKEN_IMAGES) == 0
    assert page.evaluate("document.images.length") >= 6 * count
    assert page.evaluate(OVERFLOW) <= 0
    if width == 1280:
        assert page.evaluate(WIDE_TABLES) == 0
    assert page.locator(".explorer canvas").count() >= 2 * count


def luminance(page, selector, of):
    """Of a colour as the browser paints it, 0 to 255."""
    color = page.evaluate(f"getComputedStyle(document.querySelector({json.dumps(selector)})).{of}")
    red, green, blue = (float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_light_and_dark_can_be_read(new_page, reports):
    for scheme, is_dark in (("light", False), ("dark", True)):
        page = new_page(color_scheme=scheme)
        page.goto(reports[1])
        paper = luminance(page, "body", "backgroundColor")
        assert (paper < 60) is is_dark
        for selector, of in (
            ("body", "color"), (".notes", "color"), (".chart text", "fill"), ("nav a", "color"),
        ):  # fmt: skip
            assert abs(luminance(page, selector, of) - paper) > 90, (scheme, selector)


@pytest.mark.parametrize("count", [1, 2])
def test_in_print_nothing_is_cut_off(new_page, reports, count):
    page = new_page(width=688, height=1000)  # the text of A4 at 96 dots an inch
    page.emulate_media(media="print")
    page.goto(reports[count])
    assert page.evaluate(CUT) == 0
    assert page.locator("#explore").is_hidden()
    assert page.locator("#scores").is_visible()
    assert page.pdf(format="A4")[:4] == b"%PDF"


def test_links_lead_to_their_topics(page, reports):
    page.goto(reports[1])
    links = page.locator("nav a")
    for i in range(links.count()):
        links.nth(i).click()
        target = page.evaluate("location.hash").lstrip("#")
        assert page.locator(f"#{target} h2").is_visible()


def test_without_scripts_all_but_the_explorer_is_read(new_page, reports):
    page = new_page(java_script_enabled=False)
    page.goto(reports[1])
    assert page.locator("#scores table").count() >= 1
    assert page.locator("#samples img").count() == 1


def test_a_slider_of_the_report_decodes(page, reports, small_run):
    """The image on the page after a slider moved is the decoder's own."""
    page.goto(reports[2])
    explorer = page.locator(".explorer").nth(1)
    slider = explorer.locator(".explorer-slider").first
    slider.evaluate("each => { each.value = each.max; each.dispatchEvent(new Event('input')); }")
    z = torch.tensor(json.loads(explorer.evaluate("each => each.dataset.z")), dtype=torch.float32)
    assert float(z.abs().max()) > 2
    shown = np.array(explorer.locator(".explorer-image").first.evaluate(PIXELS))
    run = small_run(data="digits(values=binary)", latent_dim=5)
    expected = 255 * run.model.decode(z).mean.flatten().numpy()
    assert np.abs(shown - expected).max() <= 1
