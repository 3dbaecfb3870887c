"""Decoded images on a grid of latents, for decoders that a page cannot run."""

__all__ = ["decoder_grid"]

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.generation import expectation
from pyro_vae.report.array_program import encode_array

NODES = {1: 129, 2: 33, 3: 11}  # an axis, by the number of axes
SPAN = 3.0  # standard deviations of the prior
MAX_BYTES = 2**23
DECODED_AT_ONCE = 256


@torch.no_grad()
def decoder_grid(model: Any, mean: Tensor, scale: Tensor, order: list[int]) -> dict[str, Any]:
    """Decode a grid over the first three dimensions of ``order``, from mean − 3 sd to mean + 3 sd.

    The other dimensions stay at ``mean``. E[x|z] is rounded to 256 levels between its smallest
    and largest value, so that it is right at a node to (max − min)/510.

    Arguments:
        model: a model with ``decode``.
        mean, scale: of the prior, ``[latent_dim]``; scale is a standard deviation.
        order: dimensions, the ones to move first.

    Returns:
        what the page's ``makeDecoder`` takes, of JSON's types: ``dims`` and for each of them
        ``shape`` (nodes), ``low`` and ``high``; ``size``, the numbers of one x; ``min``,
        ``max`` and ``levels`` ``[*shape, size]``, see ``encode_array``.

    Raises:
        InputError: a mean is not finite.
    """
    dims = list(order[: len(NODES)])
    low, high = (mean + sign * SPAN * scale for sign in (-1, 1))
    size = model.decode(mean[None]).shape().numel()
    nodes = _nodes(len(dims), size)
    axes = [torch.linspace(float(low[d]), float(high[d]), nodes).to(mean) for d in dims]
    points = torch.cartesian_prod(*axes).reshape(-1, len(dims))
    z = mean.repeat(len(points), 1)
    z[:, dims] = points
    images = torch.cat([expectation(model.decode(part), 0) for part in z.split(DECODED_AT_ONCE)])
    levels, least, largest = _quantized(images.reshape(len(z), size))
    return {
        "dims": dims,
        "shape": [nodes] * len(dims),
        "low": low[dims].tolist(),
        "high": high[dims].tolist(),
        "size": size,
        "min": least,
        "max": largest,
        "levels": encode_array(levels),
    }


def _nodes(num_axes: int, size: int) -> int:
    """Nodes an axis: fewer for large images, an odd number so that the mean is one."""
    nodes = NODES[num_axes]
    while nodes > 3 and size * nodes**num_axes > MAX_BYTES:
        nodes -= 2
    return nodes


def _quantized(images: Tensor) -> tuple[Any, float, float]:
    """Levels 0 … 255, and the values of the first and the last."""
    values = images.double().cpu().numpy()
    if not np.isfinite(values).all():
        raise InputError("the decoder's mean is not finite around the prior's mean")
    least, largest = float(values.min()), float(values.max())
    step = (largest - least) / 255 or 1.0
    return np.rint((values - least) / step).astype(np.uint8), least, largest
