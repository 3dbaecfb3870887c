"""The figures of a comparison: every value where it belongs, every word to be read."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pyro_vae import figures
from pyro_vae.comparison.rows import GradientRow, Truth, ValueRow
from pyro_vae.comparison_figures import estimator_values, signal_to_noise
from pyro_vae.errors import InputError

NAMES = [
    "trace", "closed_form", "trace_mean_field", "trace_graph", "sticking_the_landing",
    "iwae(num_particles=10)", "dreg(num_particles=10)", "renyi(alpha=0.5, num_particles=10)",
    "renyi(alpha=-1.0, num_particles=10)", "tvo(partitions=5, num_particles=10, side=right)",
    "reweighted_wake_sleep(num_particles=10, insomnia=0.5)",
]  # fmt: skip


def values_of(count=11):
    return [
        ValueRow(
            name, 10, "-1.0" not in name and "right" not in name, mean=-100.0 + i,
            standard_error=0.1 + 0.05 * i, data_standard_error=5.0,
        )
        for i, name in enumerate(NAMES[:count])
    ]  # fmt: skip


def gradients_of(names=NAMES, particles=(1, 8, 64), floor=0.1):
    return [
        GradientRow(name, K, group, "elbo", signal_to_noise=(i + 1) * K**0.5, noise_floor=floor)
        for group in ("guide", "model")
        for i, name in enumerate(names)
        for K in particles
    ]


def draw(figure):
    figure.canvas.draw()
    return figure


def boxes(figure):
    """Every text that is drawn, with its extent in pixels; matplotlib keeps ticks off the frame."""
    texts = [*figure.texts, *(text for each in figure.legends for text in each.get_texts())]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = [tick for tick in axis.get_major_ticks() if tick.label1.get_visible()]
            ends = min(low, high), max(low, high)
            texts += [tick.label1 for tick in ticks if ends[0] <= tick.get_loc() <= ends[1]]
    renderer = figure.canvas.get_renderer()
    shown = [text for text in texts if text.get_text().strip()]
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


def curves_of(axes):
    """Without the dotted guides and the hollow marks over a curve's own."""
    return [line for line in axes.lines if line.get_linestyle() not in (":", "None")]


def words_of(figure):
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def test_values_stand_in_their_rows_with_two_standard_errors():
    rows = values_of()
    (axes,) = draw(estimator_values(rows, Truth("quadrature", -91.0, 0.5))).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        row.estimator + ("" if row.is_lower_bound else " ‡") for row in rows
    ]  # fmt: skip
    points = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o"}
    bars = {line.get_ydata()[0]: line for line in axes.lines if len(set(line.get_ydata())) == 1
            and len(line.get_xdata()) == 2}  # fmt: skip
    for i, row in enumerate(rows):
        assert points[i].get_xdata()[0] == pytest.approx(row.mean)
        assert (points[i].get_markerfacecolor() == "white") == (not row.is_lower_bound)
        ends = [row.mean - 2 * row.standard_error, row.mean + 2 * row.standard_error]
        assert bars[i].get_xdata() == pytest.approx(ends)
    low, high = axes.get_xlim()
    assert low < -100.2
    assert high > -90 + 2 * 0.6


def test_the_truth_is_a_line_with_a_band_where_it_has_an_error():
    rows = values_of(3)
    (axes,) = estimator_values(rows, Truth("quadrature", -91.0, 0.5)).axes
    assert [-91.0, -91.0] in [list(line.get_xdata()) for line in axes.lines]
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-92.0, -90.0))
    assert axes.get_xlim()[1] > -91
    (axes,) = estimator_values(rows, Truth("exact", -91.0, 0.0)).axes
    assert not axes.patches
    figure = estimator_values(rows)
    assert not figure.axes[0].patches
    assert all("log p" not in text for text, _ in boxes(draw(figure)))


def test_what_has_no_value_is_left_out():
    rows = values_of(3)
    rows += [ValueRow("a", 1, True, refusal="no"), ValueRow("b", 1, True, mean=math.inf)]
    (axes,) = estimator_values(rows).axes
    assert len(axes.get_yticks()) == 3
    single = draw(estimator_values([ValueRow("c", 1, True, mean=-1.0)]))
    assert single.axes[0].get_xlim() == pytest.approx((-1.5, -0.5))
    with pytest.raises(InputError, match="finite value"):
        estimator_values(rows[3:])


def test_ratios_stand_at_their_k_on_log_axes():
    rows = gradients_of()
    left, right = draw(signal_to_noise(rows)).axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == (
        "q, the encoder", "p, the decoder"
    )  # fmt: skip
    for axes in (left, right):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        curves = curves_of(axes)
        assert len(curves) == len(NAMES)
        for i, curve in enumerate(curves):
            assert curve.get_ydata() == pytest.approx([(i + 1) * K**0.5 for K in (1, 8, 64)])
            # Side by side, within 6 % of the axis of their K.
            shift = np.log(curve.get_xdata()) - np.log([1, 8, 64])
            assert np.abs(shift).max() < 0.06 * math.log(64)
            assert np.ptp(shift) < 1e-12
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "8", "64"]
        low, high = axes.get_ylim()
        assert low < 0.1
        assert high > 8 * len(NAMES)


def test_the_guides_have_slopes_of_a_half_and_the_floor_is_shaded():
    axes = draw(signal_to_noise(gradients_of(floor=0.3))).axes[0]
    slopes = []
    for line in axes.lines:
        if line.get_linestyle() == ":":
            (x, y) = np.log(line.get_xdata()), np.log(line.get_ydata())
            slopes.append((y[1] - y[0]) / (x[1] - x[0]))
    assert sorted(slopes) == pytest.approx([-0.5, 0.5])
    (band,) = axes.patches
    assert band.get_y() + band.get_height() == pytest.approx(0.3)
    assert band.get_y() < axes.get_ylim()[0]


def test_the_guides_are_named_inside_the_frame():
    for floor in (0.1, 30.0):
        for axes in draw(signal_to_noise(gradients_of(floor=floor))).axes:
            assert [text.get_text() for text in axes.texts] == ["slope ½", "slope −½"]
            (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
            guides = [line for line in axes.lines if line.get_linestyle() == ":"]
            for text, guide in zip(axes.texts, guides, strict=True):
                x, y = text.get_position()
                assert low < y < high
                assert left < x < right
                (a, b), (c, d) = np.log(guide.get_xdata()), np.log(guide.get_ydata())
                assert math.log(y) == pytest.approx(c + (d - c) / (b - a) * (math.log(x) - a))


def test_ratios_have_bars_of_two_standard_errors():
    rows = [
        replace(row, signal_to_noise_standard_error=0.1 * row.signal_to_noise * row.num_particles)
        for row in gradients_of(NAMES[:2])
    ]
    figure = draw(signal_to_noise(rows))
    assert "± 2 standard errors over draws" in words_of(figure)
    bars = [segment for each in figure.axes[0].collections for segment in each.get_segments()]
    assert len(bars) == 6
    for row, bar in zip(rows, bars, strict=False):
        reach = 0.2 * row.num_particles
        ends = [max(1 - reach, 0.1), 1 + reach]  # of the ratio; no bar goes to 0 on log axes
        assert bar[:, 1] == pytest.approx(np.array(ends) * row.signal_to_noise)
        assert figure.axes[0].get_ylim()[1] > bar[1, 1]
    assert_readable(figure)
    plain = draw(signal_to_noise(gradients_of()))
    assert not any("standard errors" in word for word in words_of(plain))


def test_ratios_at_the_noise_floor_are_hollow():
    """Below twice the floor of 1.0: 1 and 1.5 at K = 1; marks keep the curve's color and form."""
    rows = [
        GradientRow(name, K, "guide", "elbo", signal_to_noise=ratio * K, noise_floor=1.0)
        for name, ratio in (("a", 1.0), ("b", 1.5), ("c", 2.0))
        for K in (1, 8)
    ]
    figure = draw(signal_to_noise(rows))
    hollow = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    assert [list(line.get_ydata()) for line in hollow] == [[1.0], [1.5]]
    for line, curve in zip(hollow, curves_of(figure.axes[0]), strict=False):
        assert line.get_markerfacecolor() == "white"
        assert line.get_markeredgecolor() == curve.get_color()
        assert line.get_marker() == curve.get_marker()
        assert line.get_xdata()[0] == curve.get_xdata()[0]
    assert "° below twice the noise floor" in words_of(figure)
    assert not any("°" in word for word in words_of(draw(signal_to_noise(rows[-2:]))))


def test_estimators_that_coincide_everywhere_are_one_curve():
    """Up to rounding, 1e-6; what coincides in one group or at one K alone is two."""
    rows = gradients_of(["trace", "closed_form", "iwae"])
    same = [replace(r, estimator="graph", signal_to_noise=r.signal_to_noise * (1 + 1e-6))
            for r in rows if r.estimator == "trace"]  # fmt: skip
    half = [replace(r, estimator="half", signal_to_noise=(1 + (r.group == "model") / 10)
                    * r.signal_to_noise) for r in rows if r.estimator == "iwae"]  # fmt: skip
    short = [replace(r, estimator="short") for r in rows if r.estimator == "iwae"][1:]
    figure = draw(signal_to_noise(rows + same + half + short))
    assert words_of(figure)[:5] == ["trace, graph", "closed_form", "iwae", "half", "short"]
    assert [len(curves_of(axes)) for axes in figure.axes] == [5, 5]


@pytest.mark.parametrize("scale", [0.37, 1.0, 3.0, 91.0])
def test_labels_of_values_stay_inside_the_frame(scale):
    rows = [replace(row, mean=row.mean * scale) for row in values_of()]
    figure = draw(estimator_values(rows))
    (axes,) = figure.axes
    frame = axes.get_window_extent()
    labels = [tick.label1.get_window_extent() for tick in axes.xaxis.get_major_ticks()]
    assert len(labels) > 1
    assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in labels)
    assert "estimate ± 2 standard errors over draws" in words_of(figure)


def test_one_k_has_no_slopes_and_one_group_one_panel():
    rows = [row for row in gradients_of(particles=(8,), floor=None) if row.group == "model"]
    figure = draw(signal_to_noise(rows))
    (axes,) = figure.axes
    assert all(line.get_linestyle() != ":" for line in axes.lines)
    words = " ".join(text for text, _ in boxes(figure))
    assert "slopes" not in words
    assert "floor" not in words
    with pytest.raises(InputError, match="signal-to-noise"):
        signal_to_noise([GradientRow("tvo", 1, "guide", "tvo", refusal="no")])
    with pytest.raises(InputError, match="signal-to-noise"):
        signal_to_noise([GradientRow("tvo", 1, "guide", "tvo", signal_to_noise=0.0)])


@pytest.mark.parametrize("particles", [(1, 8, 64), (1, 2, 3, 4, 5, 6, 7, 8), (1, 10, 100, 1000)])
def test_every_word_can_be_read(particles):
    assert_readable(draw(estimator_values(values_of(), Truth("quadrature", -91.0, 0.5))))
    assert_readable(draw(estimator_values(values_of(1))))
    assert_readable(draw(signal_to_noise(gradients_of(particles=particles))))
    assert_readable(draw(signal_to_noise(gradients_of(NAMES[:2], particles))))


def test_no_two_estimators_look_alike():
    axes = draw(signal_to_noise(gradients_of())).axes[0]
    curves = curves_of(axes)
    looks = {(line.get_color(), line.get_linestyle()) for line in curves}
    assert len(looks) == len(NAMES)


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    paths = [
        figures.save(figure, tmp_path / f"{i}.png")
        for i, figure in enumerate([signal_to_noise(gradients_of()) for _ in range(2)])
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
