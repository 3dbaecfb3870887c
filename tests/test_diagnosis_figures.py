"""The figures of a diagnosis: every value where it belongs, every word to be read."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from pyro_vae import figures
from pyro_vae.diagnosis.rows import Gap, LatentUse, PredictiveCheck
from pyro_vae.diagnosis_figures import (
    aggregated_posterior,
    gap_bars,
    kl_per_dim,
    predictive_checks,
)
from pyro_vae.errors import InputError
from pyro_vae.evaluation.scores import Estimate
from pyro_vae.tiles import BLUE, EDGE, ORANGE


def estimate(value, data=0.25, draws=0.01):
    return Estimate(value, draws, data, 100)


def gap(split, total=9.0, approximation=4.0, method="ais"):
    split_ = approximation is not None
    return Gap(
        split, method, estimate(-90.0), estimate(-90.0 - total), estimate(total, 0.5),
        estimate(-90.0 - approximation) if split_ else None,
        estimate(approximation) if split_ else None,
        estimate(total - approximation) if split_ else None,
    )  # fmt: skip


def use(kl, activity=None, errors=None):
    return LatentUse(
        estimate(sum(kl or [])), estimate(80.0), None, None, None, False, None, kl, errors,
        activity or [], None, "healthy", "healthy",
    )  # fmt: skip


def check(statistic="active pixels", against="prior predictive", data=(0, 1, 2), model=(1, 2, 3)):
    return PredictiveCheck(
        statistic, against, estimate(1.0), estimate(2.0), estimate(1.0), 0.33, 0.01,
        list(map(float, data)), list(map(float, model)),
    )  # fmt: skip


def draw(figure):
    figure.canvas.draw()
    return figure


def axes_of(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def boxes(figure):
    """Every text that is drawn, with its extent in pixels; matplotlib keeps ticks off the frame."""
    texts = [*figure.texts, figure._suptitle]
    texts += [text for each in figure.legends for text in each.get_texts()]
    for axes in axes_of(figure):
        texts += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ends = min(low, high), max(low, high)
            texts += [t.label1 for t in axis.get_major_ticks() if ends[0] <= t.get_loc() <= ends[1]]
    renderer = figure.canvas.get_renderer()
    shown = {id(t): t for t in texts if t is not None and t.get_text().strip()}.values()
    return [(text.get_text(), text.get_window_extent(renderer)) for text in shown]


def assert_readable(figure):
    """No text leaves the page or covers another."""
    width, height = figure.canvas.get_width_height()
    shown = boxes(figure)
    for name, box in shown:
        assert box.x0 >= -1, name
        assert box.x1 <= width + 1, name
        assert box.y0 >= -1, name
        assert box.y1 <= height + 1, name
    for i, (name, box) in enumerate(shown):
        for other, its_box in shown[i + 1 :]:
            assert not box.overlaps(its_box), (name, other)


def bars_of(axes):
    """(left, right, color) of each bar."""
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(b.get_x(), b.get_x() + b.get_width(), to_hex(b.get_facecolor())) for b in bars]


def words_of(figure):
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def test_the_two_parts_of_a_gap_are_stacked_to_the_whole():
    (axes,) = draw(gap_bars([gap("train"), gap("test", 10.0, 3.0)])).axes
    assert bars_of(axes) == [
        (0.0, 4.0, BLUE), (4.0, 9.0, ORANGE), (0.0, 3.0, BLUE), (3.0, 10.0, ORANGE)
    ]  # fmt: skip
    ends = [list(line.get_xdata()) for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert ends == [[3.5, 4.5], [8.0, 10.0], [2.5, 3.5], [9.0, 11.0]]  # ± 2 errors over data
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["train\nlog p(x): ais", "test\nlog p(x): ais"]


def test_a_negative_part_is_seen_and_a_gap_that_is_not_split_is_one_bar():
    (axes,) = gap_bars([gap("test", 3.0, 4.0)]).axes
    (approximation, amortization) = [p for p in axes.patches if isinstance(p, Rectangle)]
    assert amortization.get_x() + amortization.get_width() == 3.0
    assert amortization.get_x() == 4.0
    assert amortization.get_height() < approximation.get_height()
    figure = gap_bars([gap("train", approximation=None, method="exact")])
    assert bars_of(figure.axes[0]) == [(0.0, 9.0, EDGE)]
    assert words_of(figure) == ["gap, not split", "± 2 standard errors over data"]
    assert_readable(draw(gap_bars([gap("train", approximation=None), gap("test")])))
    with pytest.raises(InputError, match="finite gap"):
        gap_bars([gap("train", math.nan, None)])


def test_dimensions_are_sorted_by_kl_and_inactive_ones_are_pale():
    figure = draw(kl_per_dim(use([0.5, 3.0, 0.001], [0.4, 0.9, 0.01], [0.05, 0.1, 0.0002])))
    (axes,) = figure.axes
    assert [patch.get_height() for patch in axes.patches] == [3.0, 0.5, 0.001]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "0", "2"]
    colors = [to_hex(patch.get_facecolor()) for patch in axes.patches]
    assert colors[0] == colors[1] == BLUE
    assert colors[2] != BLUE  # at 0.01 it is not active
    (lines,) = axes.collections
    ends = [tuple(segment[:, 1]) for segment in lines.get_segments()]
    assert np.array(ends) == pytest.approx(np.array([(2.8, 3.2), (0.4, 0.6), (0.0006, 0.0014)]))
    assert words_of(figure) == [
        "active: 2 of 3", "activity at most 0.01: 1", "± 2 standard errors"
    ]  # fmt: skip
    assert_readable(figure)


@pytest.mark.parametrize("dim", [1, 20, 60, 500])
def test_any_number_of_dimensions_can_be_read(dim):
    kl = list(np.linspace(3, 0, dim))
    assert_readable(draw(kl_per_dim(use(kl, [0.5] * dim, [0.1] * dim))))
    bare = kl_per_dim(use(kl))
    assert words_of(bare) == []
    with pytest.raises(InputError, match="each latent dimension"):
        kl_per_dim(use(None))


def normal(shape, seed, loc=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(loc, scale, shape)


def test_two_latents_are_drawn_as_they_are():
    q, p = normal((300, 2), 0, 1.0, 0.5), normal((400, 2), 1)
    figure = draw(aggregated_posterior(q, p))
    plane = figure.axes[0]
    points = {to_hex(c.get_facecolor()[0]): c.get_offsets() for c in plane.collections}
    assert np.asarray(points[BLUE]) == pytest.approx(q)
    assert np.asarray(points[ORANGE]) == pytest.approx(p)
    assert (plane.get_xlabel(), plane.get_ylabel()) == ("z[0]", "z[1]")
    assert len(figure.axes) == 3
    assert_readable(figure)


def test_many_latents_are_drawn_in_the_components_of_the_aggregated_posterior():
    """q varies most along the last coordinate, then along the first."""
    scale = np.array([2.0, 0.1, 0.1, 5.0])
    q, p = normal((2000, 4), 0) * scale, normal((2000, 4), 1)
    plane = aggregated_posterior(q, p).axes[0]
    points = {to_hex(c.get_facecolor()[0]): c.get_offsets() for c in plane.collections}
    spread = np.asarray(points[BLUE]).std(axis=0)
    assert spread == pytest.approx([5.0, 2.0], rel=0.06)  # ± 4 standard errors, sd/√(2 · 2000)
    assert np.asarray(points[ORANGE]).std(axis=0) == pytest.approx([1.0, 1.0], rel=0.07)
    assert plane.get_xlabel() == "component 1 of q(z)"


def test_the_least_alike_dimensions_come_first():
    """KL of the normals fitted: coordinate 2 is displaced by 2, coordinate 9 is narrow."""
    loc, scale = np.zeros(10), np.ones(10)
    loc[2], scale[9] = 2.0, 0.3
    figure = draw(aggregated_posterior(loc + scale * normal((2000, 10), 0), normal((2000, 10), 1)))
    titles = [axes.get_title(loc="left") for axes in axes_of(figure)[1:]]
    assert titles[:2] == ["z[2]", "z[9]"]
    assert len(titles) == 8
    assert "8 of 10 dimensions" in figure._suptitle.get_text()
    assert_readable(figure)


def test_a_density_holds_all_draws_in_the_frame():
    """The steps integrate to the share of the draws inside: 99 % of those of both."""
    figure = draw(aggregated_posterior(normal((4000, 1), 0, 0.5, 0.5), normal((4000, 1), 1)))
    (axes,) = figure.axes
    areas = {}
    for step in axes.patches:
        heights, edges, _ = step.get_data()
        areas[to_hex(step.get_edgecolor())] = float((heights * np.diff(edges)).sum())
        if to_hex(step.get_edgecolor()) == BLUE:
            mean = float((heights * np.diff(edges) * (edges[1:] + edges[:-1]) / 2).sum())
    assert areas[BLUE] == pytest.approx(1.0, abs=1e-9)
    assert areas[ORANGE] == pytest.approx(1.0, abs=0.02)
    assert mean == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
    assert_readable(figure)


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (np.zeros((5, 2)), np.zeros((5, 3))),
        (np.zeros(5), np.zeros(5)),
        (np.zeros((0, 2)), np.zeros((5, 2))),
        (np.full((5, 2), np.nan), np.zeros((5, 2))),
    ],
)
def test_what_is_no_draws_is_refused(q, p):
    with pytest.raises(InputError, match="Expected"):
        aggregated_posterior(q, p)


def test_a_collapsed_posterior_is_drawn():
    draw(aggregated_posterior(np.zeros((50, 3)), normal((50, 3), 0)))


def test_checks_stand_in_a_row_a_statistic_with_their_means():
    checks = [
        check(statistic, against)
        for statistic in ("mean intensity", "active pixels")
        for against in ("prior predictive", "posterior predictive")
    ]
    figure = draw(predictive_checks(checks))
    panels = axes_of(figure)
    assert len(panels) == 4
    assert [axes.get_xlabel() for axes in panels] == [
        "mean intensity", "mean intensity", "active pixels", "active pixels"
    ]  # fmt: skip
    for axes in panels:
        data, model = axes.patches
        assert data.get_data().values.sum() == pytest.approx(1.0)
        assert model.get_data().values.sum() == pytest.approx(1.0)
        assert [line.get_xdata()[0] for line in axes.lines] == [1.0, 2.0]
    assert panels[1].get_title(loc="left") == "posterior predictive; KS 0.33"
    assert_readable(figure)


@pytest.mark.parametrize("most", [9, 99])
def test_counts_are_binned_by_whole_steps(most):
    """Of k/64, k = 0 … most, each once: every bin but the last holds as many."""
    values = [k / 64 for k in range(most + 1)]
    (axes,) = axes_of(predictive_checks([check(data=values, model=values)]))
    heights = axes.patches[0].get_data().values
    assert heights.sum() == pytest.approx(1.0)
    assert heights[:-1] == pytest.approx(np.full(len(heights) - 1, heights[0]))


def test_checks_that_cannot_be_drawn_are_left_out():
    constant = check(data=(1, 1), model=(1,))
    broken = check("mean intensity", data=(math.nan,))
    figure = draw(predictive_checks([constant, broken, check(against="posterior predictive")]))
    assert len(axes_of(figure)) == 2
    assert_readable(figure)
    with pytest.raises(InputError, match="finite values"):
        predictive_checks([broken, replace(constant, data_values=[])])


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    q, p = normal((100, 3), 0), normal((100, 3), 1)
    pictures = [
        lambda: gap_bars([gap("train"), gap("test")]),
        lambda: kl_per_dim(use([0.5, 3.0], [0.4, 0.9], [0.05, 0.1])),
        lambda: aggregated_posterior(q, p),
        lambda: predictive_checks([check()]),
    ]
    for i, picture in enumerate(pictures):
        paths = [figures.save(picture(), tmp_path / f"{i}{j}.png") for j in range(2)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
