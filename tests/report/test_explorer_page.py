"""The explorer in a browser, held against the run's own decoder."""

import json

import numpy as np
import pytest
import torch

from pyro_vae.axes import PALETTE
from pyro_vae.report.array_program import decode_array
from pyro_vae.report.explorer import explorer_assets, explorer_data, explorer_html

CONV = {"encoder": "conv(channels=(4,), hidden=8)", "latent_dim": 5, "epochs": 1}
MANY = {"latent_dim": 15, "epochs": 1}
SHOWN = """async (section) => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const read = (name) => {
    const canvas = section.querySelector(name), { width, height } = canvas;
    const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const pixels = [...copy.getImageData(0, 0, width, height).data];
    return { width, height, pixels, shown: canvas.getBoundingClientRect().width };
  };
  const beside = section.querySelector(".explorer-beside") && read(".explorer-beside");
  return { z: JSON.parse(section.dataset.z), image: read(".explorer-image"), beside };
}"""


@pytest.fixture
def opened(tmp_path, page):
    """Open a page that holds the explorer of each run; return its data, and the page."""

    def make(*runs, page=page, **options):
        data = [explorer_data(run, **options) for run in runs]
        style, script = explorer_assets()
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        html = (
            "<!doctype html><html lang=en><head><meta charset=utf-8>"
            '<meta name=viewport content="width=device-width, initial-scale=1">'
            f'<meta http-equiv=Content-Security-Policy content="{policy}">'
            f"<style>body{{margin:16px;font:16px sans-serif}}{style}</style></head><body>"
            f"{''.join(map(explorer_html, data))}<script>{script}</script></body></html>"
        )
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        page.goto((tmp_path / "page.html").as_uri())
        return (*data, page) if len(data) > 1 else (data[0], page)

    return make


def shown(page, index=0):
    """What is shown: z, and the pixels ``[H, W, 3]`` of the decoded image and the datum."""
    state = page.locator("section.explorer").nth(index).evaluate(SHOWN)
    for name in ("image", "beside"):
        if state[name]:
            pixels = np.array(state[name].pop("pixels"))
            pixels = pixels.reshape(state[name]["height"], state[name]["width"], 4)
            state[name] |= {"pixels": pixels[..., :3], "opaque": (pixels[..., 3] == 255).all()}
    return state


def as_pixels(x, data):
    """Numbers of one x ``[*event]`` as the page shows them, ``[H, W, 3]``."""
    low, high = data["display"]
    x = np.asarray(x, dtype=float).reshape(data["event_shape"])
    x = np.moveaxis(np.broadcast_to(x, (3, *x.shape[-2:])), 0, -1)
    return np.clip(255 * (x - low) / (high - low), 0, 255)


@torch.no_grad()
def decoded(run, z):
    return run.model.decode(torch.tensor([z], dtype=torch.float32)).mean[0].numpy()


def assert_shows_what_the_model_decodes(run, data, page, index=0):
    """To one level of 255; of a grid, to what its own levels leave, at the grid's nodes."""
    state = shown(page, index)
    expected = as_pixels(decoded(run, state["z"]), data)
    allowed = 1.0
    if data["grid"]:
        low, high = data["display"]
        allowed += 255 * (data["grid"]["max"] - data["grid"]["min"]) / 510 / (high - low)
    assert state["image"]["opaque"]
    assert state["image"]["pixels"].shape == expected.shape
    assert np.abs(state["image"]["pixels"] - expected).max() <= allowed
    assert np.ptp(expected) > 20 * allowed  # an empty canvas would not do
    return state


def slide(page, dim, value, index=0):
    slider = (
        page.locator("section.explorer").nth(index).locator(f".explorer-slider[data-dim='{dim}']")
    )
    slider.evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def test_a_slider_moves_the_decoded_image(opened, small_run):
    run = small_run(**MANY)
    data, page = opened(run)
    start = assert_shows_what_the_model_decodes(run, data, page)
    assert start["z"] == data["mean"]
    first, last = data["order"][0], data["order"][-1]
    for dim, value in ((first, 1.95), (last, -2.4), (first, -3.0)):
        slide(page, dim, value)
        state = assert_shows_what_the_model_decodes(run, data, page)
        assert state["z"][dim] == pytest.approx(value, abs=1e-9)
    assert np.abs(state["image"]["pixels"] - start["image"]["pixels"]).max() > 20


def test_a_slider_moves_by_keys(opened, small_run):
    run = small_run(**MANY)
    data, page = opened(run)
    dim = data["order"][0]
    page.locator(f".explorer-slider[data-dim='{dim}']").focus()
    page.keyboard.press("ArrowRight")
    step = assert_shows_what_the_model_decodes(run, data, page)["z"][dim]
    assert step == pytest.approx(6 / 200, abs=1e-9)
    page.keyboard.press("End")
    state = assert_shows_what_the_model_decodes(run, data, page)
    assert state["z"][dim] == pytest.approx(3)
    assert [z for d, z in enumerate(state["z"]) if d != dim] == [0.0] * 14


def test_sliders_stand_most_active_first_the_thirteenth_folded(opened, small_run):
    data, page = opened(small_run(**MANY))
    sliders = page.locator(".explorer-slider")
    assert [int(s.get_attribute("data-dim")) for s in sliders.all()] == data["order"]
    assert [s.is_visible() for s in sliders.all()] == [True] * 12 + [False] * 3
    page.get_by_text("3 less active").click()
    assert all(s.is_visible() for s in sliders.all())
    dim = data["order"][0]
    slide(page, dim, -1.5)
    shown(page)
    row = page.locator(".explorer-row").nth(1).inner_text().split()
    name = "z" + "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(dim))
    assert row == [name, "−1.50", f"{data['activity'][dim]:.2f}"]


def test_buttons_go_to_the_mean_and_to_a_random_z(opened, small_run):
    run = small_run(**MANY)
    data, page = opened(run)
    page.get_by_role("button", name="random z ~ p(z)").click()
    first = assert_shows_what_the_model_decodes(run, data, page)["z"]
    page.get_by_role("button", name="random z ~ p(z)").click()
    assert shown(page)["z"] != first
    assert 0.3 < np.std(first) < 2.0
    page.get_by_role("button", name="prior mean").click()
    assert shown(page)["z"] == data["mean"]


def test_a_random_z_of_another_prior_is_called_what_it_is(opened, small_run):
    _, page = opened(small_run(prior="vamp(components=3)", latent_dim=3, epochs=1))
    assert page.get_by_role("button", name="random z ~ N(mean, sd)").is_visible()
    assert "a random z here is not a draw of it" in page.locator(".explorer-note").inner_text()


def test_a_grid_is_read_where_the_decoder_cannot_run(opened, small_run):
    run = small_run(**CONV)
    data, page = opened(run)
    dims = data["grid"]["dims"]
    sliders = page.locator(".explorer-slider")
    assert [int(s.get_attribute("data-dim")) for s in sliders.all()] == dims
    for node in ((0, 3, 5), (10, 0, 8)):
        for dim, place in zip(dims, node, strict=True):
            slide(page, dim, -3 + 0.6 * place)
        state = assert_shows_what_the_model_decodes(run, data, page)
        assert [state["z"][d] for d in dims] == pytest.approx([-3 + 0.6 * n for n in node])
        assert all(z == 0 for d, z in enumerate(state["z"]) if d not in dims)
    said = page.locator(".explorer-note").inner_text()
    assert "interpolated between 11 × 11 × 11 decoded ones" in said
    assert "the other 2 stay at the prior's mean" in said


def test_a_datum_goes_to_its_latents_and_stands_beside(opened, small_run):
    run = small_run(**MANY)
    data, page = opened(run)
    page.locator(".explorer-datum").nth(3).click()
    state = assert_shows_what_the_model_decodes(run, data, page)
    assert state["z"] == data["data"]["z"][3]
    x = decode_array(data["data"]["x"])[3]
    np.testing.assert_array_equal(state["beside"]["pixels"], as_pixels(x, data))
    pressed = [b.get_attribute("aria-pressed") for b in page.locator(".explorer-datum").all()]
    assert pressed == ["true" if i == 3 else "false" for i in range(12)]
    label = data["data"]["labels"][3]
    assert page.get_by_text(f"datum 4, label {label}").is_visible()
    page.get_by_role("button", name="prior mean").click()
    shown(page)
    assert page.locator(".explorer-datum[aria-pressed=true]").count() == 0


def test_a_datum_of_a_grid_goes_as_near_as_it_can(opened, small_run):
    run = small_run(**CONV)
    data, page = opened(run)
    page.locator(".explorer-datum").nth(1).click()
    state, z = shown(page), data["data"]["z"][1]
    for dim in range(5):
        expected = np.clip(z[dim], -3, 3) if dim in data["grid"]["dims"] else 0.0
        assert state["z"][dim] == pytest.approx(expected)


def places_of(page):
    """z as a function of the pointer on the map, from two places of it, and its inverse."""
    box = page.locator(".explorer-map").bounding_box()
    ends = np.array([[0.3, 0.3], [0.7, 0.7]]) * [box["width"], box["height"]]
    at = []
    for x, y in ends:
        page.mouse.move(box["x"] + x, box["y"] + y)
        at.append(shown(page)["z"])
    slope = (np.array(at[1]) - at[0]) / (ends[1] - ends[0])
    return box, lambda z: ends[0] + (np.asarray(z) - at[0]) / slope


def test_the_pointer_moves_over_the_map(opened, small_run):
    run = small_run()
    data, page = opened(run)
    box, place = places_of(page)
    for z in ([0.0, 0.0], [-2.0, 1.5], [2.5, -1.0]):
        x, y = place(z)
        page.mouse.move(box["x"] + x, box["y"] + y)
        state = assert_shows_what_the_model_decodes(run, data, page)
        assert state["z"] == pytest.approx(z, abs=0.03)
    left, top = place([-data["span"], data["span"]])
    right, bottom = place([data["span"], -data["span"]])
    assert 20 < left < right < box["width"]
    assert right - left == pytest.approx(bottom - top, abs=0.5)
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 1)
    assert shown(page)["z"] == pytest.approx([data["span"], data["span"]])
    text = page.locator(".explorer-z").inner_text()
    assert text == f"z = ({data['span']:.2f}, {data['span']:.2f})"


def test_a_click_holds_a_place(opened, small_run):
    _, page = opened(small_run())
    box, place = places_of(page)
    x, y = place([1.0, 1.0])
    page.mouse.click(box["x"] + x, box["y"] + y)
    held = shown(page)["z"]
    assert held == pytest.approx([1, 1], abs=0.03)
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    assert shown(page)["z"] == held
    page.mouse.click(box["x"] + 100, box["y"] + 100)
    page.mouse.move(box["x"] + x, box["y"] + y)
    assert shown(page)["z"] == held


def test_arrow_keys_move_over_the_map(opened, small_run):
    run = small_run()
    data, page = opened(run)
    focus = page.locator(".explorer-map")
    focus.focus()
    assert focus.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    step = 2 * data["span"] / 60
    for key, expected in (
        ("ArrowRight", [step, 0]), ("ArrowUp", [step, step]), ("ArrowLeft", [0, step]),
        ("Shift+ArrowDown", [0, -4 * step]), ("Home", [0, 0]),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert shown(page)["z"] == pytest.approx(expected)
    for _ in range(14):
        page.keyboard.press("Shift+ArrowRight")
    assert_shows_what_the_model_decodes(run, data, page)
    assert shown(page)["z"] == pytest.approx([data["span"], 0])


def test_a_map_of_a_grid(opened, small_run):
    run = small_run(**{**CONV, "latent_dim": 2})
    data, page = opened(run)
    assert data["grid"]["shape"] == [33, 33]
    page.locator(".explorer-map").focus()
    for key in ("Home", "ArrowRight", "Shift+ArrowUp", "Shift+ArrowUp", "Shift+ArrowUp"):
        page.keyboard.press(key)
    state = shown(page)
    assert state["z"] == pytest.approx([data["span"] / 30, data["span"] / 2])
    page.keyboard.press("ArrowLeft")  # (0, span/2) is a node
    assert_shows_what_the_model_decodes(run, data, page)


def test_a_finger_moves_over_the_map(opened, new_page, small_run):
    run = small_run()
    page = new_page(width=360, height=500, has_touch=True, is_mobile=True)
    data, page = opened(run, page=page)
    page.locator(".explorer-map").scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    box = page.locator(".explorer-map").bounding_box()
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        at = [{"x": box["x"] + x, "y": box["y"] + y} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    touch("touchStart", (150, 150))
    first = assert_shows_what_the_model_decodes(run, data, page)["z"]
    touch("touchMove", (200, 90))
    second = assert_shows_what_the_model_decodes(run, data, page)["z"]
    touch("touchEnd")
    assert second[0] > first[0] + 0.3
    assert second[1] > first[1] + 0.3
    assert page.evaluate("scrollY") == before


def pixel(page, name, x, y):
    """The colour of a canvas at a place in pixels of the page."""
    return page.locator(name).evaluate(
        """(canvas, [x, y]) => {
          const ratio = canvas.width / canvas.getBoundingClientRect().width;
          const copy = new OffscreenCanvas(1, 1).getContext("2d");
          copy.drawImage(canvas, -Math.floor(x * ratio), -Math.floor(y * ratio));
          return [...copy.getImageData(0, 0, 1, 1).data];
        }""",
        [float(x), float(y)],
    )


def test_points_of_the_map_lie_at_their_latents_in_their_colours(opened, small_run):
    run = small_run(guide="delta", beta=0.0, optimizer="adam(lr=0.05)", epochs=3)
    data, page = opened(run, map_count=40)
    _, place = places_of(page)
    page.mouse.move(0, 0)
    z = decode_array(data["map"]["z"])
    page.get_by_role("button", name="prior mean").click()
    shown(page)
    at = np.array([place(each) for each in z])
    apart = np.linalg.norm(at[:, None] - at[None], axis=-1) + 100 * np.eye(len(z))
    far = np.linalg.norm(at - place([0, 0]), axis=1) > 12  # from the marker
    lonely = (apart.min(1) > 7) & far & (np.abs(z) < data["span"]).all(1)
    assert lonely.sum() > 5
    for i in np.flatnonzero(lonely):
        red, green, blue, _ = pixel(page, ".explorer-map", *at[i])
        colour = PALETTE[data["map"]["index"][i]]
        want = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        assert np.abs(np.array([red, green, blue]) - want).max() < 30  # a line may shine through


def test_the_legend_names_every_label(opened, small_run):
    _, page = opened(small_run())
    assert page.locator(".explorer-legend").inner_text().split() == ["label", *"0123456789"]


def test_colour_images(opened, small_run, tmp_path):
    images = np.random.default_rng(0).integers(0, 16, (200, 3, 6, 9)).astype(np.uint8)
    images[:, 0] //= 4
    np.savez(tmp_path / "colours.npz", x=images)
    spec = f"{tmp_path / 'colours.npz'}(num_levels=16)"
    run = small_run(data=spec, likelihood="binomial", latent_dim=3, epochs=4)
    data, page = opened(run)
    page.locator(".explorer-datum").nth(0).click()
    state = shown(page)
    expected = as_pixels(decoded(run, state["z"]), data)
    assert np.abs(state["image"]["pixels"] - expected).max() <= 1
    np.testing.assert_allclose(
        state["beside"]["pixels"], as_pixels(decode_array(data["data"]["x"])[0], data), atol=0.51
    )
    assert expected[..., 0].mean() < expected[..., 1].mean() - 20  # little red


def test_real_images_are_shown_between_their_smallest_and_largest(opened, small_run, tmp_path):
    x = np.random.default_rng(0).normal(-40.0, 5.0, (300, 6, 9)) + np.arange(9)
    np.save(tmp_path / "real.npy", x.astype(np.float32))
    given = {"likelihood": "normal", "model": "vae(output_bias=data_mean)"}
    run = small_run(data=str(tmp_path / "real.npy"), **given)
    data, page = opened(run)
    assert data["display"][0] < data["display"][1] < -10
    assert_shows_what_the_model_decodes(run, data, page)
    low, high = (f"{value:.3g}".replace("-", "−") for value in data["display"])
    assert f"Black is {low}, white {high}." in page.locator(".explorer-note").inner_text()


def test_vectors_are_lines(opened, small_run, tmp_path):
    x = np.random.default_rng(0).normal(3.0, 2.0, (300, 6)) + np.arange(6)
    np.save(tmp_path / "vectors.npy", x.astype(np.float32))
    given = {"likelihood": "normal", "model": "vae(output_bias=data_mean)"}
    run = small_run(data=str(tmp_path / "vectors.npy"), **given)
    data, page = opened(run)
    page.mouse.move(0, 0)
    mean, (low, high) = decoded(run, shown(page)["z"]), data["display"]
    box = page.locator(".explorer-image").bounding_box()
    assert np.ptp(mean) > 0.2 * (high - low)
    for i, value in enumerate(mean):
        across = 4 + (box["width"] - 8) * (i + 0.5) / 6
        down = 4 + (box["height"] - 8) * (1 - (value - low) / (high - low))
        assert pixel(page, ".explorer-image", across, down) == [0x0B, 0x62, 0xA4, 255]
        assert pixel(page, ".explorer-image", across, down - 12)[3] == 0
    page.locator(".explorer-datum").nth(0).click()
    shown(page)
    datum = decode_array(data["data"]["x"])[0]
    far = int(np.argmax(np.abs(datum - decoded(run, data["data"]["z"][0]))))
    across = 4 + (box["width"] - 8) * (far + 0.5) / 6
    down = 4 + (box["height"] - 8) * (1 - (datum[far] - low) / (high - low))
    assert pixel(page, ".explorer-image", across, down) == [0x5F, 0x5F, 0x5F, 255]


def test_several_explorers_of_a_page_are_apart(opened, small_run):
    runs = small_run(), small_run(**MANY)
    *datas, page = opened(*runs)
    slide(page, datas[1]["order"][0], 2.0, index=1)
    for index in (0, 1):
        assert_shows_what_the_model_decodes(runs[index], datas[index], page, index)
    assert shown(page, 0)["z"] == datas[0]["mean"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(opened, new_page, small_run, scheme):
    page = new_page(width=360, height=740, color_scheme=scheme, device_scale_factor=2)
    opened(small_run(), small_run(**MANY), small_run(**CONV), page=page)
    shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for canvas in page.locator("canvas").all():
        box = canvas.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


@pytest.mark.parametrize("width", [360, 700, 1000, 1600])
def test_images_are_scaled_by_whole_pixels(opened, new_page, small_run, width):
    _, page = opened(small_run(), page=new_page(width=width))
    page.locator(".explorer-datum").nth(0).click()
    for image in (shown(page)["image"], shown(page)["beside"]):
        assert image["width"] == 8
        assert image["shown"] % 8 == 0
        assert 100 <= image["shown"] <= 280
    style = page.locator(".explorer-image").evaluate("e => getComputedStyle(e).imageRendering")
    assert style == "pixelated"


def test_the_colours_follow_the_scheme(opened, small_run):
    _, page = opened(small_run())
    line = json.dumps("() => getComputedStyle(document.querySelector('.explorer')).color")
    light = page.evaluate(json.loads(line))
    shown(page)
    before = page.locator(".explorer-map").screenshot()
    page.emulate_media(color_scheme="dark")
    shown(page)
    assert page.evaluate(json.loads(line)) != light
    assert page.locator(".explorer-map").screenshot() != before
