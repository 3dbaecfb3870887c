"""Figures of a diagnosis: its rows in, a matplotlib figure out."""

__all__ = ["gap_bars", "kl_per_dim", "aggregated_posterior", "predictive_checks"]

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pyro_vae.axes import GRID, plain_axes, set_title, settled
from pyro_vae.diagnosis.rows import Gap, LatentUse, PredictiveCheck
from pyro_vae.errors import InputError
from pyro_vae.evaluation.scores import Estimate
from pyro_vae.tiles import (
    BLUE,
    EDGE,
    INK,
    MUTED,
    ORANGE,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    Array,
    as_array,
    new_figure,
)

ACTIVE = 0.01  # Burda et al. (2016): a unit above it is active
_INACTIVE = "#bcd0e0"
_BARS = "± 2 standard errors over data"
_MOST_MARGINALS = 8
_SHOWN_DRAWS = 2000
_NUM_BINS = 36


def gap_bars(gaps: Sequence[Gap]) -> Figure:
    """Draw log p(x) − ELBO of each split as its approximation and amortization gap, stacked.

    The bar of the approximation gap stands at its top, that of the whole gap at the top of all.
    Where the guide's best q is not known, the whole gap is one bar.

    Raises:
        InputError: no gap is finite.
    """
    shown = [gap for gap in gaps if math.isfinite(gap.total.value)]
    if not shown:
        raise InputError("Expected at least one split with a finite gap; got none")
    figure = new_figure(8, 0.75 * len(shown) + 2.0, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=EDGE, linewidth=0.9)
    for i, gap in enumerate(shown):
        _draw_gap(axes, i, gap)
    axes.set_yticks(range(len(shown)), [_gap_label(gap) for gap in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("nats per datum")
    set_title(axes, "Where the ELBO loses log p(x)")
    plain_axes(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    split = [gap for gap in shown if gap.approximation is not None]
    handles: list[Any] = []
    if split:
        handles += [
            Patch(color=BLUE, lw=0, label="approximation gap, of the best q of the family"),
            Patch(color=ORANGE, lw=0, label="amortization gap, of the encoder"),
        ]
    if len(split) < len(shown):
        handles.append(Patch(color=EDGE, lw=0, label="gap, not split"))
    handles.append(Line2D([], [], color=INK, lw=1.4, label=_BARS))
    _legend(figure, handles)
    return settled(figure)


def kl_per_dim(use: LatentUse) -> Figure:
    """Draw KL(q(z_d|x) ‖ p(z_d)) of each latent dimension, the largest first.

    A dimension whose activity Var_x(E[z_d|x])/Var(z_d) is at most 0.01 is pale.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016), section 5.2, for the activity
        https://arxiv.org/abs/1509.00519

    Raises:
        InputError: the KL is not known by dimension.
    """
    if not use.kl_per_dim:
        raise InputError("Expected the KL of each latent dimension; got none")
    kl = np.array(use.kl_per_dim)
    order = np.argsort(-kl, kind="stable")
    active = np.array(use.activity) > ACTIVE if use.activity else np.ones(len(kl), dtype=bool)
    figure = new_figure(8, 4.4, layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(kl))
    colors = [BLUE if active[d] else _INACTIVE for d in order]
    axes.bar(places, kl[order], color=colors, width=0.8, lw=0)
    if use.kl_per_dim_errors is not None:
        reach = 2 * np.nan_to_num(np.array(use.kl_per_dim_errors))[order]
        axes.vlines(places, kl[order] - reach, kl[order] + reach, color=INK, lw=1.2)
    step = max(1, math.ceil(len(kl) / 25))
    axes.set_xticks(places[::step], [str(d) for d in order[::step]])
    axes.set_xlim(-0.6, len(kl) - 0.4)
    axes.set_xlabel(
        f"dimension of {use.site}, sorted" + ("" if step == 1 else f"; every {step}th named")
    )
    axes.set_ylabel("KL(q(z_d|x) ‖ p(z_d)), nats per datum", parse_math=False)
    set_title(axes, f"What each latent dimension carries, {use.rate.count:,} data")
    plain_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    handles: list[Any] = []
    if use.activity:
        number = int(active.sum())
        handles += [
            Patch(color=BLUE, lw=0, label=f"active: {number} of {len(kl)}"),
            Patch(color=_INACTIVE, lw=0, label=f"activity at most {ACTIVE}: {len(kl) - number}"),
        ]
    if use.kl_per_dim_errors is not None:
        handles.append(Line2D([], [], color=INK, lw=1.2, label="± 2 standard errors"))
    if handles:
        _legend(figure, handles)
    return settled(figure)


def aggregated_posterior(posterior: Array, prior: Array) -> Figure:
    """Draw the aggregated posterior q(z) = E_x q(z|x) against the prior.

    Left a plane: two latents as they are, one as its density alone, more in the first two
    principal components of the draws of q(z). Right the density of single dimensions,
    those that differ most in mean or spread first.

    Args:
        posterior: draws of q(z), ``[M, D]``.
        prior: draws of p(z), ``[M', D]``.

    Raises:
        InputError: the two are no draws, or of other latents.
    """
    q, p = as_array(posterior, "posterior"), as_array(prior, "prior")
    if q.ndim != 2 or p.ndim != 2 or q.shape[1:] != p.shape[1:] or 0 in (q.size, p.size):
        raise InputError(
            f"Expected draws of shape [M, D] of both, D the same; got {q.shape} and {p.shape}"
        )
    dim = q.shape[1]
    shown = _farthest(q, p)[:_MOST_MARGINALS]
    if dim == 1:
        figure = new_figure(8, 4.6, layout="constrained")
        _draw_marginal(figure.add_subplot(), q[:, 0], p[:, 0], "z[0]")
    else:
        figure = new_figure(8.6, 5.6, layout="constrained")
        parts: Any = figure.subfigures(1, 2, width_ratios=[1.25, 1])
        left, right = parts
        _draw_plane(left.add_subplot(), q, p)
        columns = 1 if len(shown) <= 4 else 2
        panels = right.subplots(math.ceil(len(shown) / columns), columns, squeeze=False)
        for axes in panels.flat[len(shown) :]:
            axes.set_visible(False)
        for axes, d in zip(panels.flat, shown, strict=False):
            _draw_marginal(axes, q[:, d], p[:, d], f"z[{d}]")
    more = "" if len(shown) == dim else f"; {len(shown)} of {dim} dimensions, the least alike first"
    figure.suptitle(
        f"The aggregated posterior q(z) and the prior p(z){more}",
        x=0.012, ha="left", fontsize=TITLE_SIZE, color=INK,
    )  # fmt: skip
    marks: dict[str, Any] = {"ls": "", "marker": "o", "ms": 5, "mew": 0}
    _legend(
        figure,
        [
            Line2D([], [], color=BLUE, label="q(z), draws", **marks),
            Line2D([], [], color=ORANGE, label="p(z), draws", **marks),
        ],
    )
    return settled(figure)


def predictive_checks(checks: Sequence[PredictiveCheck]) -> Figure:
    """Draw each statistic's distribution over data beside that over draws from the model.

    A row a statistic, a column a kind of draws; lines at the means.

    Raises:
        InputError: no checks, or none with two finite values.
    """
    shown = [check for check in checks if _drawable(check)]
    if not shown:
        raise InputError("Expected at least one check with finite values; got none")
    statistics = list(dict.fromkeys(check.statistic for check in shown))
    kinds = list(dict.fromkeys(check.against for check in shown))
    figure = new_figure(8, 1.1 + 2.1 * len(statistics), layout="constrained")
    panels = figure.subplots(len(statistics), len(kinds), squeeze=False)
    for axes in panels.flat:
        axes.set_visible(False)
    for check in shown:
        axes = panels[statistics.index(check.statistic), kinds.index(check.against)]
        axes.set_visible(True)
        _draw_check(axes, check)
    figure.suptitle(
        "Does the model fit: statistics of data and of draws from the model",
        x=0.012, ha="left", fontsize=TITLE_SIZE, color=INK,
    )  # fmt: skip
    _legend(
        figure,
        [
            Patch(color=MUTED, alpha=0.45, lw=0, label="data"),
            Line2D([], [], color=BLUE, lw=1.6, label="draws from the model"),
            Line2D([], [], color=INK, lw=1.2, ls="--", label="means"),
        ],
    )
    return settled(figure)


def _gap_label(gap: Gap) -> str:
    return f"{gap.split}\nlog p(x): {gap.method}"


def _draw_gap(axes: Axes, i: int, gap: Gap) -> None:
    style: dict[str, Any] = {"height": 0.5, "lw": 0}
    total = gap.total.value
    if gap.approximation is None:
        axes.barh(i, total, color=EDGE, **style)
    else:
        first = gap.approximation.value
        # Where the two have unlike signs they overlap: thinner on top, both are seen.
        axes.barh(i, first, color=BLUE, **style)
        axes.barh(i, total - first, left=first, color=ORANGE, **{**style, "height": 0.36})
        _draw_error(axes, i - 0.09, gap.approximation)
    _draw_error(axes, i + 0.09 * (gap.approximation is not None), gap.total)


def _draw_error(axes: Axes, y: float, estimate: Estimate) -> None:
    error = estimate.error
    if error is None or not math.isfinite(error):
        return
    ends = [estimate.value - 2 * error, estimate.value + 2 * error]
    axes.plot(ends, [y, y], color=INK, lw=1.4, solid_capstyle="butt", zorder=4)


def _farthest(q: NDArray[Any], p: NDArray[Any]) -> list[int]:
    """Dimensions by how far the KL of the fitted normals, q's from p's, is from 0."""
    scale = np.maximum(p.std(axis=0), 1e-12)
    mean = (q.mean(axis=0) - p.mean(axis=0)) / scale
    ratio = np.maximum(q.std(axis=0) / scale, 1e-12)
    kl = 0.5 * (mean**2 + ratio**2 - 1) - np.log(ratio)
    return [int(d) for d in np.argsort(-kl, kind="stable")]


def _draw_plane(axes: Axes, q: NDArray[Any], p: NDArray[Any]) -> None:
    names = ["z[0]", "z[1]"]
    if q.shape[1] > 2:
        center = q.mean(axis=0)
        _, _, directions = np.linalg.svd(q - center, full_matrices=False)
        q, p = (q - center) @ directions[:2].T, (p - center) @ directions[:2].T
        names = [f"component {i} of q(z)" for i in (1, 2)]
    for z, color, order in ((p, ORANGE, 2), (q, BLUE, 3)):
        part = z[:_SHOWN_DRAWS]
        size = float(np.clip(1e4 / len(part), 3, 24))
        style: dict[str, Any] = {"s": size, "alpha": 0.45, "linewidths": 0, "zorder": order}
        axes.scatter(part[:, 0], part[:, 1], color=color, **style)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    low, high = _middle(np.concatenate([q, p]))
    center, reach = (low + high) / 2, (high - low).max() / 2
    axes.set_xlim(center[0] - reach, center[0] + reach)
    axes.set_ylim(center[1] - reach, center[1] + reach)
    axes.set_aspect("equal")
    plain_axes(axes)


def _middle(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """All but a half percent at either end, with a margin: one far draw is no frame."""
    low, high = np.quantile(values, [0.005, 0.995], axis=0)
    pad = 0.12 * (high - low) + 1e-9
    return low - pad, high + pad


def _draw_marginal(axes: Axes, q: NDArray[Any], p: NDArray[Any], name: str) -> None:
    low, high = _middle(np.concatenate([q, p]))
    edges = np.linspace(float(low), float(high), 41)
    for z, color in ((p, ORANGE), (q, BLUE)):
        # Of all draws, those outside the frame among them.
        height = np.histogram(z, edges)[0] / (len(z) * np.diff(edges))
        axes.stairs(height, edges, color=color, lw=1.4)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, None)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.set_title(name, loc="left", fontsize=SMALL_SIZE, color=INK, pad=3)
    plain_axes(axes)
    axes.spines["left"].set_visible(False)


def _drawable(check: PredictiveCheck) -> bool:
    values = np.array([*check.data_values, *check.simulated_values])
    return bool(check.data_values and check.simulated_values and np.isfinite(values).all())


def _draw_check(axes: Axes, check: PredictiveCheck) -> None:
    data, simulated = np.array(check.data_values), np.array(check.simulated_values)
    both = np.concatenate([data, simulated])
    edges = _edges(both)
    for values, style in (
        (data, {"fill": True, "color": MUTED, "alpha": 0.45, "lw": 0}),
        (simulated, {"color": BLUE, "lw": 1.6}),
    ):
        height = np.histogram(values, edges)[0] / len(values)
        axes.stairs(height, edges, **style)  # type: ignore[arg-type]
    for values, color in ((data, MUTED), (simulated, BLUE)):
        axes.axvline(float(values.mean()), color=color, lw=1.2, ls="--")
    axes.set_ylim(0, None)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel(check.statistic)
    title = f"{check.against}; KS {check.distance:.2f}"
    axes.set_title(title, loc="left", fontsize=TEXT_SIZE, color=INK, pad=4)
    plain_axes(axes)
    axes.spines["left"].set_visible(False)


def _edges(values: NDArray[Any]) -> NDArray[Any]:
    """Of some 36 equal bins; of values on a lattice, as counts are, each whole steps of it."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.linspace(low - 0.5, high + 0.5, _NUM_BINS + 1)
    steps = np.diff(np.unique(values))
    step = float(steps[steps > 1e-6 * (high - low)].min())
    places = (high - low) / step
    if places > 20 * _NUM_BINS or not np.allclose((values - low) / step % 1 % 0.999, 0, atol=0.01):
        return np.linspace(low, high, _NUM_BINS + 1)
    width = step * math.ceil((places + 1) / _NUM_BINS)
    return low - step / 2 + width * np.arange(math.ceil((places + 1) * step / width) + 1)


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    longest = max(len(str(handle.get_label())) for handle in handles)
    figure.legend(
        handles=list(handles), loc="outside lower center", ncols=3 if longest < 36 else 2,
        frameon=False, fontsize=SMALL_SIZE, labelcolor=INK,
    )  # fmt: skip
