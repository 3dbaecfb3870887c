"""What a page needs to explore the latents of a run: numbers in, JSON out."""

__all__ = ["explorer_data", "explorer_html", "explorer_assets"]

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from torch import Tensor

from pyro_vae.axes import PALETTE
from pyro_vae.errors import InputError
from pyro_vae.gallery import display_range, some_data
from pyro_vae.generation import MOMENT_DRAWS, moments, posterior_mean
from pyro_vae.report.array_program import encode_array
from pyro_vae.report.decoder_grid import SPAN, decoder_grid
from pyro_vae.report.decoder_program import decoder_program
from pyro_vae.runs import Run
from pyro_vae.seeding import derive_seed, seeded

ENCODED_AT_ONCE = 200
ENCODED_BY_DRAWS = 300  # data, where every posterior mean is one over 1,000 draws
COVERED = 0.99  # of the data lie within reach


def explorer_data(
    run: Run, *, split: str = "test", count: int = 12, map_count: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Gather what the page's explorer shows of a run.

    Arguments:
        run: the trained pair.
        split: where the data come from.
        count: data to start from, each with E_q[z|x].
        map_count: data that the map, the activity of dimensions and, for counts and real data,
            the display range come from.
        seed: chooses the data.

    Returns:
        of JSON's types; arrays as ``encode_array`` writes them:

        - ``latent_dim``, ``event_shape``, ``display``: the values shown as black and as white.
        - ``mean``, ``scale`` ``[latent_dim]``: of the prior, see ``quantiles``; ``span``: how many
          scales from the mean one can go, 3, or further where 1 % of the data lie outside;
          ``normal``: whether p(z) is a normal of these, its dimensions independent.
        - ``quantiles``: whether mean and scale are the median and half the central 68 % of draws,
          as the prior has no finite mean or variance.
        - ``activity`` ``[latent_dim]``: Var_x E_q[z_d|x]; ``order``: dimensions, most active first.
        - ``data``: ``x`` ``[count, size]``, ``z`` ``[count][latent_dim]``, ``labels`` or None.
        - ``map``: for two latents ``z`` ``[N, 2]``, and for data with labels ``classes`` (name and
          colour of each) and ``index`` ``[N]``; None otherwise.
        - ``program``, or where there is none ``grid``: the decoder.

    Raises:
        InputError: the run cannot be explored, with the reason.
    """
    _check(run)
    mean, scale, quantiles = _centre(run.model.prior(), seed)
    x, labels = some_data(run, split, _affordable(run, map_count), seed)
    z = _posterior_means(run, x, seed)
    activity = z.var(dim=0, correction=0)
    order = activity.argsort(descending=True, stable=True).tolist()
    span = _span((z - mean) / scale)
    reach = scale * (span / SPAN)
    program = decoder_program(run.model, mean, reach, seed=seed)
    grid = None if program else _grid(run, mean, reach, order)
    return {
        "latent_dim": len(mean),
        "event_shape": list(run.facts.event_shape),
        "display": _display(run, x),
        "mean": mean.tolist(),
        "scale": scale.tolist(),
        "span": span,
        "normal": _is_independent_normal(run.model.prior()),
        "quantiles": quantiles,
        "activity": activity.tolist(),
        "order": order,
        "data": _data(run, split, count, seed),
        "map": _map(z, labels) if len(mean) == 2 else None,
        "program": program,
        "grid": grid,
    }


def explorer_html(data: dict[str, Any]) -> str:
    """Return the element that ``explorer.js`` fills."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<section class="explorer"><script type="application/json">{text}</script></section>\n'


def explorer_assets() -> tuple[str, str]:
    """Return the style sheet and the script of all explorers of a page."""
    folder = Path(__file__).parent
    names = ("explorer.css", "decoder.js", "explorer.js")
    style, *scripts = ((folder / name).read_text(encoding="utf-8") for name in names)
    return style, "\n".join(scripts)


def _check(run: Run) -> None:
    shape = run.facts.event_shape
    if len(shape) == 3 and shape[0] not in (1, 3):
        raise InputError(f"'{run.path}': data of shape {list(shape)} are no images to show")
    for name, owner in (("prior", run.model), ("decode", run.model), ("posterior", run.guide)):
        if not hasattr(owner, name):
            raise InputError(f"'{run.path}': its latents cannot be explored without {name!r}")
    latent = tuple(run.model.prior().event_shape)
    if len(latent) != 1:
        raise InputError(f"'{run.path}': a latent of shape {list(latent)} cannot be explored")


@torch.no_grad()
def _centre(p: Any, seed: int) -> tuple[Tensor, Tensor, bool]:
    """Mean and standard deviation of p(z), or quantiles of draws where one is not finite."""
    mean, scale = moments(p, seed)
    if bool((mean.isfinite() & scale.isfinite() & (scale > 0)).all()):
        return mean, scale, False
    with seeded(derive_seed(seed, "moments"), mean.device):
        draws = p.sample((MOMENT_DRAWS,))
    low, middle, high = draws.quantile(torch.tensor([0.16, 0.5, 0.84]).to(draws), dim=0)
    scale = (high - low) / 2
    if not bool((middle.isfinite() & scale.isfinite() & (scale > 0)).all()):
        raise InputError("the prior's draws are not finite, or all the same")
    return middle, scale, True


def _span(distance: Tensor) -> float:
    """How many scales to go from the mean, so that 99 % of data are in reach; in halves."""
    reach = float(distance.abs().quantile(COVERED, dim=0).max())
    return max(SPAN, float(np.ceil(2 * reach) / 2))


def _grid(run: Run, mean: Tensor, scale: Tensor, order: list[int]) -> dict[str, Any]:
    try:
        return decoder_grid(run.model, mean, scale, order)
    except (ArithmeticError, RuntimeError, ValueError) as error:  # a component of anybody's
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"'{run.path}': latents cannot be decoded: {reason}") from None


def _display(run: Run, x: Tensor) -> list[float]:
    low, high = display_range(run, x)
    return [low, high] if low < high else [low - 0.5, high + 0.5]


def _is_independent_normal(p: Any) -> bool:
    while isinstance(p, torch.distributions.Independent):
        p = p.base_dist
    return isinstance(p, torch.distributions.Normal)


def _affordable(run: Run, count: int) -> int:
    """Fewer data where every E_q[z|x] is a mean over draws."""
    x = run.to_device(run.data.train.subset(1, seed=0).scored())
    try:
        _ = run.guide.posterior(x).mean
    except NotImplementedError:
        return min(count, ENCODED_BY_DRAWS)
    return count


@torch.no_grad()
def _posterior_means(run: Run, x: Tensor, seed: int) -> Tensor:
    z = torch.cat([posterior_mean(run.guide, part, seed=seed) for part in x.split(ENCODED_AT_ONCE)])
    if not bool(z.isfinite().all()):
        raise InputError(f"'{run.path}': the posterior means are not finite")
    return z


def _data(run: Run, split: str, count: int, seed: int) -> dict[str, Any]:
    x, labels = some_data(run, split, count, seed)
    z = _posterior_means(run, x, seed)
    names = None if labels is None else [_name(label) for label in labels.tolist()]
    pixels = x.reshape(len(x), -1).float().cpu().numpy()
    return {"x": encode_array(pixels), "z": z.tolist(), "labels": names}


def _map(z: Tensor, labels: Tensor | None) -> dict[str, Any]:
    places = {"z": encode_array(z.float().cpu().numpy())}
    return places if labels is None else {**places, **_classes(labels.cpu().numpy())}


def _classes(labels: Any) -> dict[str, Any]:
    """A colour a label; ten bins of them where there are more."""
    values, index = np.unique(labels, return_inverse=True)
    if len(values) <= len(PALETTE):
        names, colours = [_name(value) for value in values.tolist()], PALETTE[: len(values)]
    else:
        edges = np.linspace(values[0], values[-1], len(PALETTE) + 1)
        index = np.clip(np.digitize(labels, edges) - 1, 0, len(PALETTE) - 1)
        names = [f"{low:.3g} … {high:.3g}" for low, high in itertools.pairwise(edges)]
        colours = tuple(to_hex(c) for c in colormaps["viridis"](np.linspace(0, 1, len(PALETTE))))
    classes = [{"name": n, "colour": c} for n, c in zip(names, colours, strict=True)]
    return {"classes": classes, "index": index.tolist()}


def _name(label: Any) -> str:
    return f"{label:g}" if isinstance(label, float) else str(label)
