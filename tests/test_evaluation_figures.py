"""The figures of an evaluation: every value where it belongs, every word to be read."""

import math

import numpy as np
import pytest
import torch

from pyro_vae import figures
from pyro_vae.comparison.rows import Truth
from pyro_vae.errors import InputError
from pyro_vae.evaluation import log_likelihood
from pyro_vae.evaluation.bound_curve import BoundCurve
from pyro_vae.evaluation_figures import bound_curve, pareto_k_over_data


def curve_of(sizes=(1, 2, 4, 8, 10), errors=(0.1, 0.2, 0.3, math.nan, math.nan)):
    """Two data whose bounds differ by 2."""
    bound = torch.tensor([[-100.0 + i, -102.0 + i] for i in range(len(sizes))])
    error = torch.tensor([[e, e] for e in errors])
    return BoundCurve(list(sizes), bound.double(), error.double())


def boxes(figure):
    """Every text that is drawn, with its extent in pixels."""
    figure.canvas.draw()
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        if axes.get_legend() is not None:
            texts += axes.get_legend().get_texts()
        for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = [t for t in axis.get_major_ticks() if t.label1.get_visible()]
            texts += [t.label1 for t in ticks if min(ends) <= t.get_loc() <= max(ends)]
    renderer = figure.canvas.get_renderer()
    shown = [text for text in texts if text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in shown]


def assert_readable(figure):
    """No text leaves the page or covers another."""
    width, height = figure.canvas.get_width_height()
    shown = boxes(figure)
    for i, (name, box) in enumerate(shown):
        assert box.x0 >= -1, name
        assert box.x1 <= width + 1, name
        assert box.y0 >= -1, name
        assert box.y1 <= height + 1, name
        for other, its_box in shown[i + 1 :]:
            assert not box.overlaps(its_box), (name, other)


def words_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_curve_has_its_means_two_errors_and_the_truth():
    figure = bound_curve(curve_of(), last_error=0.05, truth=Truth("exact", -96.5, 0.0))
    (axes,) = figure.axes
    (container,) = axes.containers
    line, _, (bars,) = container.lines
    # 8 of 10 draws are one group: a point without an error is left out.
    assert line.get_xdata().tolist() == [1, 2, 4, 10]
    assert line.get_ydata().tolist() == [-101, -100, -99, -97]
    reach = [(top - bottom) / 2 for (_, bottom), (_, top) in bars.get_segments()]
    # √(2 e²)/2 over two data, twice.
    assert reach == pytest.approx([math.sqrt(2) * e for e in (0.1, 0.2, 0.3)] + [0.1])
    assert axes.get_xscale() == "log"
    assert [-96.5, -96.5] in [list(each.get_ydata()) for each in axes.lines]
    assert words_of(axes) == ["bound, ± 2 standard errors over draws", "log p(x), exact"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "10"]
    assert_readable(figure)


def test_a_truth_with_an_error_has_a_band_and_none_leaves_the_word_out():
    figure = bound_curve(curve_of(), truth=Truth("quadrature", -96.5, 0.25))
    (band,) = figure.axes[0].patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((-97.0, -96.0))
    assert "log p(x), quadrature" in words_of(figure.axes[0])
    plain = bound_curve(curve_of())
    assert words_of(plain.axes[0]) == ["bound, ± 2 standard errors over draws"]
    with pytest.raises(InputError, match="a bound with an error"):
        bound_curve(curve_of(sizes=(1,), errors=(math.nan,)))


@pytest.mark.parametrize("K", [2, 3, 100, 5000, 10**6])
def test_the_curve_is_readable_for_any_k(K):
    sizes = [2**i for i in range((K - 1).bit_length())] + [K]
    figure = bound_curve(curve_of(sizes, [0.1] * len(sizes)))
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks[-1] == f"{K:,}"
    assert_readable(figure)


def test_the_curve_of_a_pair_rises_from_its_elbo(linear_gaussian):
    x = linear_gaussian.simulate(20, seed=0)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=1.3))
    result = log_likelihood(linear_gaussian.model, guide, x, 300)
    truth = Truth("exact", float(linear_gaussian.log_evidence(x).mean()), 0.0)
    figure = bound_curve(result.curve, last_error=result.mean_monte_carlo_error, truth=truth)
    values = figure.axes[0].containers[0].lines[0].get_ydata()
    assert values[0] == pytest.approx(float(result.elbo.mean()))
    assert values[-1] == pytest.approx(result.mean)
    assert np.all(np.diff(values) > -0.01)


K_HAT = [0.1, 0.9, -math.inf, 0.75, math.nan, -0.2, 1.3]


def offsets(axes):
    """Position and k̂ of each drawn point, by colour; the rings last."""
    return [np.asarray(each.get_offsets()).tolist() for each in axes.collections]


def test_k_stands_over_its_place_with_the_worst_beside():
    images = np.random.default_rng(0).random((3, 8, 6))
    places = [10, 11, 12, 13, 14, 15, 20]
    figure = pareto_k_over_data(
        K_HAT, 0.7, positions=places, worst=[6, 1, 3], images=images, vmin=0.0, vmax=1.0
    )
    axes, *tiles = figure.axes
    calm, flagged, rings = offsets(axes)
    assert calm == [[10, 0.1], [15, -0.2]]
    assert flagged == [[11, 0.9], [13, 0.75], [20, 1.3]]
    assert sorted(rings) == [[11, 0.9], [13, 0.75], [20, 1.3]]
    assert [0.7, 0.7] in [list(line.get_ydata()) for line in axes.lines]
    assert words_of(axes) == ["threshold 0.70", "flagged", "shown"]
    assert figure.texts[1].get_text() == "not drawn: k̂ 1 of constant weights, 1 not known"
    assert "3 of 7 data above 0.70" in figure.texts[0].get_text()
    titles = [tile.get_title() for tile in tiles]
    assert titles == ["datum 20\nk̂ = 1.30", "datum 11\nk̂ = 0.90", "datum 13\nk̂ = 0.75"]
    for tile, image in zip(tiles, images, strict=True):
        (drawn,) = tile.images
        assert np.array_equal(drawn.get_array(), image)
        assert drawn.get_clim() == (0.0, 1.0)
    assert_readable(figure)


@pytest.mark.parametrize("shape", [(28, 28), (1, 8, 8), (3, 32, 32), (28, 20)])
def test_images_of_any_form_are_shown(shape):
    images = np.random.default_rng(0).random((6, *shape)) * 255
    k = np.linspace(0, 2, 10_000)
    figure = pareto_k_over_data(k, 0.7, worst=range(9999, 9993, -1), images=images)
    assert len(figure.axes) == 7
    assert_readable(figure)


def test_of_more_than_six_images_the_first_six_are_shown():
    worst, images = list(range(19, 10, -1)), np.random.default_rng(0).random((9, 4, 4))
    figure = pareto_k_over_data(np.linspace(0, 2, 20), 0.7, worst=worst, images=images)
    axes, *tiles = figure.axes
    shown = [int(tile.get_title().split()[1]) for tile in tiles]
    assert shown == worst[:6]
    assert sorted(place for place, _ in offsets(axes)[-1]) == worst[5::-1]
    for tile in tiles:
        assert tile.get_position().y0 > 0
    assert_readable(figure)


def test_without_images_the_points_have_the_page():
    figure = pareto_k_over_data(K_HAT, 0.7)
    assert len(figure.axes) == 1
    assert "shown" not in words_of(figure.axes[0])
    assert_readable(figure)
    calm = pareto_k_over_data([0.1, 0.2], 0.7)
    assert "flagged" not in words_of(calm.axes[0])


def test_what_cannot_be_drawn_is_one_line():
    with pytest.raises(InputError, match="at least one finite k̂"):
        pareto_k_over_data([math.nan, -math.inf], 0.7)
    with pytest.raises(InputError, match="Expected 1 images, one a datum shown; got 2"):
        pareto_k_over_data(K_HAT, 0.7, worst=[1], images=np.zeros((2, 4, 4)))


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for draw in (lambda: bound_curve(curve_of()), lambda: pareto_k_over_data(K_HAT, 0.7)):
        first, again = (figures.save(draw(), tmp_path / f"{i}.png").read_bytes() for i in (0, 1))
        assert first == again
