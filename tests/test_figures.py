import itertools
import os
import subprocess
import sys
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from pyro_vae import figures, latent_figures
from pyro_vae.errors import InputError


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return data.images / 16, data.target


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape)


def tiles(axes):
    """What each place of the grid holds, {(row, column): array}, rows counted from the top."""
    extents = [image.get_extent() for image in axes.images]
    lefts, tops = sorted({e[0] for e in extents}), sorted({e[3] for e in extents})
    assert all(e[3] < e[2] for e in extents)  # the first row of every array is drawn on top
    assert axes.yaxis_inverted()
    return {
        (tops.index(e[3]), lefts.index(e[0])): np.asarray(image.get_array())
        for e, image in zip(extents, axes.images, strict=True)
    }


def rendered(figure, axes):
    """The same, read off the rendered page at the middle of every image pixel, 0 to 255.

    Grey goes through a colour map of 256 steps: right to 2 of 255.
    """
    page = np.asarray(figure.canvas.buffer_rgba())
    found = {}
    for place, image in zip(tiles(axes), axes.images, strict=True):
        h, w = image.get_array().shape[:2]
        left, right, bottom, top = image.get_extent()
        x = left + (right - left) * (np.arange(w) + 0.5) / w
        y = top + (bottom - top) * (np.arange(h) + 0.5) / h
        pixels = axes.transData.transform(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2))
        columns, rows = np.floor(pixels).astype(int).T
        found[place] = page[len(page) - 1 - rows, columns, :3].reshape(h, w, 3)
    return found


def draw(figure):
    figure.canvas.draw()
    return figure


def texts(figure):
    every = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        every += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
    return " | ".join(every)


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def rows_of(num_epochs, beta=1.0, best=None, valid=True):
    best = num_epochs if best is None else best
    return [
        {
            "epoch": e,
            "elbo": -20 - 500 * np.exp(-e),
            "valid_elbo": -22 - 500 * np.exp(-e) if valid else None,
            "valid_elbo_standard_error": 0.3,
            "beta": beta if e < 4 else 1.0,
            "best": e <= best,
        }
        for e in range(1, num_epochs + 1)
    ]


def sweep_of(count):
    """Long specs, five runs each, and an interval of each mean."""
    labels = [
        f"prior=mixture(components={k}), guide=iaf(num_flows={k}, hidden=(300, 300)), "
        f"likelihood=normal(scale=learned, floor=$0_{k}$)"
        for k in range(count)
    ]
    scores = noise(count, 5) - 5 * noise(count, 1, seed=1)
    return labels, scores.tolist(), [(s.min() - 0.1, s.max() + 0.2) for s in scores]


def latent_map(seed, **changes):
    facts = ["complete: 61 ± 2 % of p(z) lies where data do (95 % where q(z) = p(z))", "continuous"]
    given = {
        "title": f"run-{seed}: diagonal_normal, β = 1, prior vamp(components=500)",
        "points": 3 * noise(50, 2, seed=seed), "labels": np.arange(50) % 10,
        "explained": None, "samples": noise(36, 8, 8, seed=seed), "facts": facts,
    }  # fmt: skip
    return latent_figures.LatentMap(**(given | changes))


every_figure = {
    "training_curves": lambda: figures.training_curves(rows_of(30, beta=0.5)),
    "image_grid": lambda: figures.image_grid(noise(7, 8, 8)),
    "prior_samples": lambda: figures.prior_samples(noise(7, 8, 8), noise(7, 8, 8, seed=1)),
    "reconstructions": lambda: figures.reconstructions(noise(7, 8, 8), noise(7, 8, 8, seed=1)),
    "traversals": lambda: figures.traversals(noise(2, 3, 8, 8), [-1, 0, 1], dims=[0, 1]),
    "interpolation": lambda: figures.interpolation(noise(2, 3, 8, 8), ends=noise(2, 2, 8, 8)),
    "latent_scatter": lambda: latent_figures.latent_scatter(
        noise(50, 2), np.arange(50) % 3, method="x"
    ),
    "latent_comparison": lambda: latent_figures.latent_comparison(
        [latent_map(i) for i in range(3)], title="Latent spaces of digits, test split"
    ),
    "manifold": lambda: figures.manifold(noise(3, 3, 8, 8), [-1, 0, 1]),
    "sweep_scores": lambda: figures.sweep_scores(*sweep_of(20), note="† a lower bound"),
}


@pytest.mark.parametrize("name", every_figure)
def test_makes_a_figure_without_pyplot_or_global_state(name):
    before = dict(mpl.rcParams)
    figure = draw(every_figure[name]())
    assert type(figure) is Figure
    assert isinstance(figure.canvas, FigureCanvasAgg)
    assert figure.get_figwidth() <= 8.2
    assert dict(mpl.rcParams) == before


def test_all_public_functions_are_in_the_table():
    public = {*figures.__all__, *latent_figures.__all__} - {"LatentMap"}
    assert {*every_figure, "save"} == public


def test_leaves_pyplot_and_the_global_rng_alone():
    plt = pytest.importorskip("matplotlib.pyplot")
    before, state = plt.get_fignums(), np.random.get_state()[1].copy()  # noqa: NPY002
    for make in every_figure.values():
        make()
    assert plt.get_fignums() == before
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_never_imports_pyplot():
    code = "import sys, pyro_vae.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# Matplotlib keeps tick labels beyond the frame, which nobody sees.
FREE_TICKS = {"training_curves", "latent_scatter", "latent_comparison", "sweep_scores"}


@pytest.mark.parametrize("name", sorted(set(every_figure) - FREE_TICKS))
def test_all_writing_lies_on_the_page(name):
    figure = draw(every_figure[name]())
    page = figure.bbox
    for text in figure.findobj(mpl.text.Text):
        box = text.get_window_extent()
        if text.get_visible() and text.get_text() and box.width:
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= page.x1, text
            assert box.y1 <= page.y1, text


def test_image_grid_places_images_row_by_row(digits):
    images = digits[0][:11]
    figure = draw(figures.image_grid(torch.tensor(images), num_columns=4, title="Eleven_$\\bad$"))
    (axes,) = figure.axes
    placed, page = tiles(axes), rendered(figure, axes)
    assert set(placed) == {divmod(n, 4) for n in range(11)}
    for n, image in enumerate(images):
        assert np.array_equal(placed[divmod(n, 4)], image)
        assert np.abs(page[divmod(n, 4)] - 255 * image[..., None]).max() <= 2
    assert {image.get_interpolation() for image in axes.images} == {"nearest"}
    assert "Eleven_$\\bad$" in texts(figure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bool])
def test_image_grid_accepts_any_dtype_and_gradients(dtype):
    images = torch.tensor(noise(4, 5, 5) > 0.5).to(dtype)
    if dtype.is_floating_point:
        images.requires_grad_()
    (axes,) = figures.image_grid(images).axes
    assert np.array_equal(tiles(axes)[1, 1], images[3].detach().numpy())


def test_images_keep_their_proportions_and_whole_pixels():
    figure = figures.image_grid(noise(6, 28, 20), num_columns=3)
    draw(figure)
    (axes,) = figure.axes
    left, right, bottom, top = axes.images[0].get_extent()
    assert (bottom - top) / 28 == (right - left) / 20 == round((right - left) / 20)
    # One unit of the axes is one pixel of the page, and tiles begin at pixel borders.
    corners = axes.transData.transform([(0, 0), (1, 1)])
    np.testing.assert_allclose(np.abs(corners[1] - corners[0]), 1, atol=1e-9)
    np.testing.assert_allclose(corners, corners.round(), atol=1e-6)


def test_colour_images_keep_their_channels():
    images = noise(5, 3, 8, 6)
    figure = draw(figures.image_grid(images, num_columns=5))
    placed, page = tiles(figure.axes[0]), rendered(figure, figure.axes[0])
    for n in range(5):
        assert np.array_equal(placed[0, n], images[n].transpose(1, 2, 0))
        assert np.abs(page[0, n] - 255 * images[n].transpose(1, 2, 0)).max() <= 1


def test_a_single_channel_is_grey():
    images = noise(3, 1, 8, 8)
    placed = tiles(figures.image_grid(images, num_columns=3).axes[0])
    assert np.array_equal(placed[0, 2], images[2, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_vmin_and_vmax_are_black_and_white_and_clip(channels):
    image = np.array([[-9.0, 4.0], [6.0, 99.0]]) * np.ones((1, channels, 1, 1))
    figure = draw(figures.image_grid(image, vmin=2, vmax=10))
    page = rendered(figure, figure.axes[0])[0, 0]
    np.testing.assert_allclose(page[..., 0], [[0, 63.75], [127.5, 255]], atol=1)


def test_one_image_and_its_title_fit():
    figure = draw(figures.image_grid(noise(1, 8, 8), title="A title longer than the image " * 4))
    assert len(figure.axes[0].images) == 1
    for text in figure.texts:
        assert text.get_window_extent().x1 <= figure.bbox.x1


def test_vectors_are_lines_on_one_scale():
    vectors = np.array([[0.0, 1.0, 2.0], [4.0, 2.0, 0.0]])
    figure = figures.image_grid(vectors, num_columns=2)
    (axes,) = figure.axes
    first, second = (line.get_ydata() for line in axes.lines)
    assert not axes.images
    # y runs downwards: the larger value is the smaller coordinate, 2 the same in both frames.
    assert first[0] > first[1] > first[2] == second[1]
    assert second[0] < second[2] == first[0]
    assert axes.lines[0].get_xdata().max() < axes.lines[1].get_xdata().min()
    assert "every frame spans 0 to 4" in texts(figure)


def test_constant_vectors_have_a_scale():
    draw(figures.image_grid(np.ones((2, 5))))


def test_prior_samples_puts_means_left_and_draws_right(digits):
    means = digits[0][:9]
    draws = (noise(9, 8, 8) < means).astype(float)
    figure = figures.prior_samples(means, draws)
    left, right = figure.axes
    assert left.get_position().x1 < right.get_position().x0
    assert "mean" in left.get_title(loc="left")
    assert "draw" in right.get_title(loc="left")
    for axes, expected in ((left, means), (right, draws)):
        placed = tiles(axes)
        assert all(np.array_equal(placed[divmod(n, 3)], expected[n]) for n in range(9))


def test_reconstructions_are_columns_of_data_mean_draw():
    arrays = [noise(5, 28, 20, seed=seed) for seed in range(3)]
    (axes,) = figures.reconstructions(*arrays).axes
    placed = tiles(axes)
    assert set(placed) == {(row, column) for row in range(3) for column in range(5)}
    for (row, column), tile in placed.items():
        assert np.array_equal(tile, arrays[row][column])
    assert tick_labels(axes.yaxis) == ["data", "mean", "draw"]
    assert axes.get_yticks()[0] < axes.get_yticks()[2]
    (axes,) = figures.reconstructions(*arrays[:2]).axes
    assert tick_labels(axes.yaxis) == ["data", "mean"]


def test_traversals_have_a_row_a_dimension():
    images = noise(2, 5, 8, 8)
    values = np.linspace(-3, 3, 5)
    figure = figures.traversals(images, values, dims=[7, 12], kl=torch.tensor([1.234, 0.0]))
    (axes,) = figure.axes
    for place, tile in tiles(axes).items():
        assert np.array_equal(tile, images[place])
    assert tick_labels(axes.xaxis) == ["−3", "−1.5", "0", "+1.5", "+3"]
    assert [label.split() for label in tick_labels(axes.yaxis)] == [
        ["$z_{7}$", "1.23"],
        ["$z_{12}$", "0.00"],
    ]
    assert "prior standard deviations" in texts(figure)
    assert "KL, nats per datum" in texts(figure)


def test_labels_that_would_collide_are_thinned_about_the_middle():
    values = np.linspace(-3, 3, 41)
    (axes,) = draw(figures.traversals(noise(1, 41, 8, 8), values, dims=[0])).axes
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert "0" in tick_labels(axes.xaxis)
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_interpolation_frames_the_data_at_both_ends():
    path, ends = noise(3, 4, 8, 8), noise(3, 2, 8, 8, seed=1)
    (axes,) = figures.interpolation(path, ends=ends).axes
    placed = tiles(axes)
    assert len(placed) == 18
    for row in range(3):
        assert np.array_equal(placed[row, 0], ends[row, 0])
        assert np.array_equal(placed[row, 5], ends[row, 1])
        assert all(np.array_equal(placed[row, 1 + k], path[row, k]) for k in range(4))
    framed = {patch.get_x() for patch in axes.patches if patch.get_linewidth() >= 2}
    assert framed == {axes.images[0].get_extent()[0], axes.images[5].get_extent()[0]}


def test_manifold_runs_right_in_z0_and_up_in_z1():
    images, values = noise(4, 4, 8, 8), np.array([-1.15, -0.32, 0.32, 1.15])
    figure = draw(figures.manifold(images, values))
    (axes,) = figure.axes
    placed, page = tiles(axes), rendered(figure, axes)
    for i in range(4):
        for j in range(4):
            assert np.array_equal(placed[3 - j, i], images[i, j])
            assert np.abs(page[3 - j, i] - 255 * images[i, j][..., None]).max() <= 2
    assert tick_labels(axes.xaxis) == ["−1.15", "−0.32", "0.32", "1.15"]
    assert tick_labels(axes.yaxis) == ["1.15", "0.32", "−0.32", "−1.15"]  # from the top
    assert axes.get_yticks()[0] < axes.get_yticks()[-1]
    lefts, rights, bottoms, tops = map(
        set, zip(*(image.get_extent() for image in axes.images), strict=True)
    )
    assert rights >= lefts - {0}  # no gaps
    assert bottoms >= tops - {0}


@pytest.mark.parametrize("epoch", [33, 40])
def test_training_curves_mark_the_best_epoch_and_state_units(epoch):
    figure = figures.training_curves(rows_of(40, best=epoch))
    (axes,) = figure.axes
    training, valid, best = axes.lines
    np.testing.assert_allclose(training.get_ydata()[-1], -20, atol=1e-6)
    np.testing.assert_allclose(valid.get_ydata()[-1], -22, atol=1e-6)
    assert list(best.get_xdata()) == [epoch]
    np.testing.assert_allclose(best.get_ydata(), -22, atol=1e-6)
    assert f"best at epoch {epoch}: −22.00 nats per datum" in texts(figure)
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(band[:, 1].max(), -21.7, atol=1e-6)


def test_training_curves_fit_the_frame_to_the_later_epochs():
    (axes,) = figures.training_curves(rows_of(60)).axes
    low, high = axes.get_ylim()
    assert -40 < low < -22
    assert -20 < high < -19


def test_training_curves_show_beta_only_where_it_leaves_one():
    bounds, beta = figures.training_curves(rows_of(10, beta=0.5)).axes
    assert beta.get_ylabel() == "β"
    assert list(beta.lines[0].get_ydata()) == [0.5] * 3 + [1.0] * 7
    assert "current β" in bounds.get_legend().get_texts()[0].get_text()


def test_an_objective_that_is_no_elbo_is_not_called_one():
    rows = [{**row, "objective": row["elbo"] + 3} for row in rows_of(5)]
    for row in rows:
        del row["elbo"]
    (axes,) = draw(figures.training_curves(rows)).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "training objective, another than the ELBO"
    assert labels[1].startswith("validation ELBO")
    assert axes.get_ylabel() == "nats per datum"
    assert list(axes.lines[0].get_ydata()) == [row["objective"] for row in rows]


@pytest.mark.parametrize(
    "rows",
    [
        rows_of(1),
        rows_of(5, valid=False),
        [{"epoch": 1, "elbo": -3.0}],
        [{"epoch": 1, "elbo": -3.0, "best": True}, {"epoch": 2, "elbo": float("nan")}],
    ],
)
def test_training_curves_do_with_little(rows):
    assert len(draw(figures.training_curves(rows)).axes) == 1


def test_latent_scatter_gives_every_point_its_label_colour(digits):
    labels = digits[1]
    points = np.random.default_rng(0).normal(size=(len(labels), 2))
    method = "first two principal components of the posterior mean"
    figure = latent_figures.latent_scatter(
        points, torch.tensor(labels), method=method, explained=0.434
    )
    assert "First two principal components of the posterior mean, 43 % of variance" in texts(figure)
    (legend,) = figure.legends
    colour = {
        text.get_text(): to_hex(handle.get_color())
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert list(colour) == [str(digit) for digit in range(10)]
    assert len(set(colour.values())) == 10
    (drawn,) = figure.axes[0].collections
    offsets = np.asarray(drawn.get_offsets())
    found = {tuple(p): to_hex(c) for p, c in zip(offsets, drawn.get_facecolors(), strict=True)}
    assert found == {tuple(p): colour[str(label)] for p, label in zip(points, labels, strict=True)}
    draw(figure)
    assert legend.get_window_extent().x0 >= figure.axes[0].get_window_extent().x1


def test_latent_scatter_without_labels_and_with_many():
    plain = latent_figures.latent_scatter(noise(9, 2), method="posterior mean")
    assert len(plain.axes) == 1
    assert not plain.legends
    assert "Posterior mean" in texts(plain)
    frames = latent_figures.latent_scatter(noise(30, 2), np.arange(30), method="posterior mean")
    assert len(frames.axes) == 2  # a colour bar
    named = latent_figures.latent_scatter(
        noise(2, 2), np.array(["cat", "dog"]), method="posterior mean"
    )
    assert [text.get_text() for text in named.legends[0].get_texts()] == ["cat", "dog"]


def test_sweep_scores_are_sorted_with_a_dot_a_run():
    labels, scores, intervals = sweep_of(4)
    intervals[2] = None
    (axes,) = draw(figures.sweep_scores(labels, scores, intervals)).axes
    order = np.argsort(np.mean(scores, axis=1))[::-1]
    shown = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert shown == [labels[i] for i in order]
    heights = [axes.transData.transform((0, tick))[1] for tick in axes.get_yticks()]
    assert heights == sorted(heights, reverse=True)  # the best on top
    dots = [np.asarray(collection.get_offsets()) for collection in axes.collections]
    for tick, i, points in zip(axes.get_yticks(), order, dots, strict=True):
        assert np.allclose(points[:, 0], scores[i])
        assert np.allclose(points[:, 1], tick)
    lines = {line.get_ydata()[0]: line.get_xdata() for line in axes.lines if line.get_lw() == 3}
    drawn = {i: lines.get(tick) for tick, i in zip(axes.get_yticks(), order, strict=True)}
    assert drawn.pop(2) is None
    assert all(tuple(ends) == pytest.approx(intervals[i]) for i, ends in drawn.items())
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"]
    assert means == pytest.approx([np.mean(scores[i]) for i in order])


def test_a_sweep_of_few_seeds_has_no_intervals():
    few = figures.sweep_scores(["a", "b"], [[0.0, 1.0], [4.0]], [None, None], quantity="IWAE-9, x")
    many = figures.sweep_scores(["a", "b"], [[0.0, 1.0], [4.0]], [None, (3.0, 5.0)])
    told = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in (few, many)]
    assert told[0] == ["a run", "mean over seeds"]
    assert told[1] == [*told[0], "its 95 % t-interval"]
    assert few.axes[0].get_title(loc="left") == "IWAE-9 by configuration"


def test_the_labels_of_a_large_sweep_lie_on_the_page_and_apart():
    figure = draw(every_figure["sweep_scores"]())
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 20
    assert min(box.x0 for box in boxes) >= 0
    assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))
    assert figure.bbox.y1 > boxes[0].y1


def test_an_interval_of_two_seeds_does_not_squeeze_the_runs():
    figure = figures.sweep_scores(["a", "b"], [[0.0, 1.0], [4.0]], [(-100.0, 100.0), None])
    (axes,) = draw(figure).axes
    low, high = axes.get_xlim()
    assert -2.5 < low < 0
    assert 4 < high < 6.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.training_curves([]), "at least one epoch"),
        (lambda: figures.training_curves([{"epoch": 1}]), "'elbo' in every row"),
        (lambda: figures.training_curves([{"epoch": 1, "elbo": np.nan}]), "finite ELBO"),
        (lambda: figures.image_grid(noise(3)), r"Expected images of shape \[N, H, W\].*; got \(3,"),
        (lambda: figures.image_grid(noise(0, 8, 8)), r"got \(0, 8, 8\)"),
        (lambda: figures.image_grid(noise(2, 4, 8, 8)), "C = 1 or 3"),
        (lambda: figures.image_grid(noise(2, 8, 8) * np.nan), "finite images"),
        (lambda: figures.image_grid(["a", "b"]), "array of numbers"),
        (lambda: figures.image_grid(noise(2, 8, 8), num_columns=0), "num_columns"),
        (lambda: figures.image_grid(noise(2, 8, 8), vmin=1, vmax=1), "vmin below vmax"),
        (lambda: figures.prior_samples(noise(3, 8, 8), noise(2, 8, 8)), "draws of the same shape"),
        (lambda: figures.reconstructions(noise(3, 8, 8), noise(3, 8, 9)), "mean of the same"),
        (lambda: figures.traversals(noise(2, 3, 8, 8), [0, 1], dims=[0, 1]), r"values .*\(3,\)"),
        (lambda: figures.traversals(noise(2, 1, 8, 8), [0], dims=[0]), r"dims .*\(2,\)"),
        (lambda: figures.traversals(noise(1, 1, 8, 8), [0], dims=[0], kl=[1, 2]), "kl"),
        (lambda: figures.interpolation(noise(2, 3, 8, 8), ends=noise(2, 3, 8, 8)), "ends of shape"),
        (lambda: latent_figures.latent_scatter(noise(4, 3), method="x"), r"\[N, 2\]; got \(4, 3\)"),
        (lambda: latent_figures.latent_scatter(noise(4, 2), [1, 2], method="x"), "labels of shape"),
        (
            lambda: latent_figures.latent_scatter(noise(11, 2), list("abcdefghijk"), method="x"),
            "at most 10 distinct names; got 11",
        ),
        (lambda: figures.manifold(noise(2, 3, 8, 8), [0, 1]), r"\[n, n, …\]"),
        (lambda: figures.manifold(noise(2, 2, 8, 8), [0, 1, 2]), "grid_values"),
        (lambda: figures.sweep_scores(["a"], [[1.0], [2.0]], [None, None]), "got 1 and 2"),
        (lambda: figures.sweep_scores([], [], []), "at least one finite score"),
        (lambda: figures.sweep_scores(["a"], [[]], [None]), "at least one finite score"),
        (lambda: figures.sweep_scores(["a"], [[np.nan]], [None]), "at least one finite score"),
    ],
)
def test_wrong_input_gets_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", every_figure)
def test_save_writes_the_same_bytes_twice(name, tmp_path):
    first = figures.save(every_figure[name](), tmp_path / "new" / "folder" / "first.png")
    second = figures.save(every_figure[name](), str(tmp_path / "second.png"))
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert b"Software" not in content
    assert [path.name for path in first.parent.iterdir()] == ["first.png"]
    figure = every_figure[name]()
    figures.save(figure, second)
    assert figures.save(figure, second).read_bytes() == content


def test_save_draws_150_dots_an_inch(tmp_path):
    figure = figures.training_curves(rows_of(9))
    header = figures.save(figure, tmp_path / "a.png").read_bytes()[16:24]
    assert tuple(np.frombuffer(header, ">u4")) == (1200, 675)


def test_save_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fails(self, target, **_):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(InputError, match=r"a\.png: No space left on device"):
        figures.save(figures.image_grid(noise(1, 8, 8)), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_below_a_file_gets_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the figure"):
        figures.save(figures.image_grid(noise(1, 8, 8)), tmp_path / "file" / "a.png")


def test_latent_comparison_has_a_map_its_samples_and_its_facts_a_run():
    maps = [latent_map(0), latent_map(1, explained=0.5), latent_map(2, labels=None)]
    figure = draw(latent_figures.latent_comparison(maps, title="t"))
    scatters, grids = figure.axes[::2], figure.axes[1::2]
    for axes, each in zip(scatters, maps, strict=True):
        drawn = np.concatenate([c.get_offsets() for c in axes.collections])
        assert {tuple(p) for p in drawn} == {tuple(p) for p in each.points}
        assert len(axes.patches) == (
            2 if each.explained is None else 0
        )  # N(0, I), where z is shown
    for axes, each in zip(grids, maps, strict=True):
        shown = tiles(axes)
        assert len(shown) == 36
        assert np.array_equal(shown[0, 1], each.samples[1])
        assert {image.get_clim() for image in axes.images} == {grids[0].images[0].get_clim()}
    said = " ".join(text.get_text() for text in figure.texts)
    assert all(each.title.split(":")[0] in said for each in maps)
    assert said.count("complete:") == 3


def test_latent_comparison_of_vectors_and_of_none():
    draw(latent_figures.latent_comparison([latent_map(0, samples=noise(9, 5))], title="t"))
    with pytest.raises(InputError, match="at least one latent space"):
        latent_figures.latent_comparison([], title="t")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_latent_comparison_has_its_writing_on_the_page_and_apart(count):
    """Title, headings, facts and legend; long names of runs and of labels too."""
    title = "z ~ q(z|x) of a_data_set_with_a_name.npy(values=binary, binarize=dynamic), test split"
    labels = np.array(["label", "another label"])[np.arange(50) % 2]
    maps = [latent_map(i, labels=labels, title="a_run_of_a_long_name " * 3) for i in range(count)]
    figure = draw(latent_figures.latent_comparison(maps, title=title))
    legend = figure.axes[-2].get_legend()
    boxes = [text.get_window_extent() for text in (*figure.texts, *legend.get_texts())]
    for box in boxes:
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= 0
        assert box.y1 <= figure.bbox.y1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_latent_comparison_of_one_latent_has_no_second_axis():
    points = np.stack([np.arange(50.0), np.zeros(50)], axis=1)
    figure = draw(latent_figures.latent_comparison([latent_map(0, points=points)], title="t"))
    assert not figure.axes[0].get_yticks().size
    assert not figure.axes[0].patches


def test_latent_comparison_of_many_labels_has_one_scale():
    maps = [latent_map(i, labels=np.arange(50)) for i in range(2)]
    figure = draw(latent_figures.latent_comparison(maps, title="t"))
    first, second = figure.axes[0].get_position(), figure.axes[2].get_position()
    assert first.width == pytest.approx(second.width)
    assert [len(axes.child_axes) for axes in figure.axes[:3:2]] == [0, 1]


def test_an_autoencoders_curve_speaks_of_no_beta_and_no_elbo():
    rows = [
        {"epoch": i, "reconstruction": -20.0 - i, "valid_reconstruction": -21.0 - i, "beta": 0.0}
        for i in range(1, 5)
    ]
    figure = draw(figures.training_curves(rows))
    assert len(figure.axes) == 1
    said = " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))
    assert "log p(x|z(x)) by epoch" in said
    assert "β" not in said
    assert "ELBO" not in said
