"""What a trained pair draws: samples, reconstructions, traversals, paths, embeddings."""

__all__ = [
    "Pictures",
    "sample_prior",
    "sample_standard_normal",
    "reconstruct",
    "posterior_mean",
    "posterior_draw",
    "prior_mean",
    "moments",
    "expectation",
    "project",
    "traverse",
    "interpolate",
    "manifold",
]

from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.seeding import derive_seed, seeded

# Draws that stand in for a mean or standard deviation without a closed form.
MOMENT_DRAWS = 1000


class Pictures(NamedTuple):
    """Decoded latents, each ``[*, *event_shape]``, in the units of the data."""

    means: Tensor
    """E[x|z]."""
    draws: Tensor
    """x ~ p(x|z)."""


@torch.no_grad()
def sample_prior(model: Any, num_samples: int, *, seed: int = 0) -> Pictures:
    """Draw z from the model's own prior and decode it, ``[num_samples, *event_shape]``."""
    with seeded(derive_seed(seed, "sample"), _device(model)):
        p = model.decode(model.prior().sample((num_samples,)))
        return Pictures(expectation(p, seed), p.sample())


@torch.no_grad()
def sample_standard_normal(model: Any, num_samples: int, *, seed: int = 0) -> Tensor:
    """Decode z ~ N(0, I), whatever the prior; the decoder's means ``[num_samples, *event_shape]``.

    The same z for the same seed and size of z, so that models can be compared.
    """
    with seeded(derive_seed(seed, "standard normal"), _device(model)):
        like = model.prior().sample()
        z = torch.randn(num_samples, *like.shape, device=like.device, dtype=like.dtype)
    return expectation(model.decode(z), seed)


@torch.no_grad()
def reconstruct(model: Any, guide: Any, x: Tensor, *, seed: int = 0) -> Pictures:
    """Draw one z ~ q(z|x) a datum and decode it, ``[B, *event_shape]``."""
    with seeded(derive_seed(seed, "reconstruct"), x.device):
        p = model.decode(guide.posterior(x).sample())
        return Pictures(expectation(p, seed), p.sample())


@torch.no_grad()
def posterior_mean(guide: Any, x: Tensor, *, seed: int = 0) -> Tensor:
    """Return E_q[z|x], ``[B, latent_dim]``; over 1,000 draws where it has no closed form."""
    return moments(guide.posterior(x), seed)[0]


@torch.no_grad()
def posterior_draw(guide: Any, x: Tensor, *, seed: int = 0) -> Tensor:
    """Draw one z ~ q(z|x) a datum, ``[B, latent_dim]``."""
    with seeded(derive_seed(seed, "posterior"), x.device):
        z: Tensor = guide.posterior(x).sample()
        return z


@torch.no_grad()
def prior_mean(model: Any, *, seed: int = 0) -> Tensor:
    """Return E[z] under the prior, ``[latent_dim]``; over 1,000 draws if it has no closed form."""
    return moments(model.prior(), seed)[0]


def project(points: Tensor) -> tuple[Tensor, str, float | None]:
    """Bring points ``[N, D]`` to ``[N, 2]`` for a map.

    Returns:
        the points; what their axes are; for principal components the fraction
        of the variance they explain.
    """
    if points.shape[1] == 2:
        return points, "posterior mean", None
    if points.shape[1] == 1:
        return torch.cat([points, torch.zeros_like(points)], dim=1), "posterior mean", None
    if len(points) < 2:
        raise InputError(f"principal components need at least 2 points, got {len(points)}")
    if bool((points == points[0]).all()):
        return torch.zeros_like(points[:, :2]), "posterior mean, the same for all data", None
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2).fit(points.numpy())
    projected = torch.from_numpy(pca.transform(points.numpy()))
    method = "first two principal components of the posterior mean"
    return projected, method, float(pca.explained_variance_ratio_.sum())


@torch.no_grad()
def traverse(
    model: Any, start: Tensor, dims: list[int], values: Tensor, *, seed: int = 0
) -> Tensor:
    """Decode z moved along single dimensions, ``[len(dims), len(values), *event_shape]``.

    Arguments:
        model: a model with ``prior`` and ``decode``.
        start: the z that the other dimensions stay at, ``[latent_dim]``.
        dims: which dimensions move.
        values: where to, in standard deviations of the prior from its mean.
    """
    mean, scale = moments(model.prior(), seed)
    z = start.expand(len(dims), len(values), -1).clone()
    for row, dim in enumerate(dims):
        if not 0 <= dim < len(start):
            raise InputError(f"latent dimension {dim} is outside 0 … {len(start) - 1}")
        z[row, :, dim] = mean[dim] + scale[dim] * values.to(mean)
    return expectation(model.decode(z), seed)


@torch.no_grad()
def interpolate(
    model: Any, guide: Any, first: Tensor, last: Tensor, num_steps: int = 11, *, seed: int = 0
) -> Tensor:
    """Decode straight lines between posterior means, ``[B, num_steps, *event_shape]``.

    Arguments:
        first, last: the data at both ends, ``[B, *event_shape]``.
        num_steps: how many z a line, both ends included.
    """
    if num_steps < 2:
        raise InputError(f"an interpolation needs at least 2 steps, got {num_steps}")
    ends = posterior_mean(guide, first, seed=seed), posterior_mean(guide, last, seed=seed)
    weight = torch.linspace(0, 1, num_steps).to(ends[0])[:, None]
    z = ends[0][:, None] * (1 - weight) + ends[1][:, None] * weight
    return expectation(model.decode(z), seed)


@torch.no_grad()
def manifold(model: Any, num_steps: int = 15) -> tuple[Tensor, Tensor]:
    """Decode a grid over two latents; ``images[i, j]`` stands at ``(values[i], values[j])``.

    The values are the normal quantiles of (i + ½)/num_steps, in standard
    deviations of the prior from its mean.

    Returns:
        images ``[num_steps, num_steps, *event_shape]`` and values ``[num_steps]``.
    """
    mean, scale = moments(model.prior(), 0)
    if len(mean) != 2:
        raise InputError(f"a manifold needs 2 latent dimensions, got {len(mean)}")
    quantile = (torch.arange(num_steps, dtype=torch.float64) + 0.5) / num_steps
    values = torch.special.ndtri(quantile).to(mean)
    z = mean + scale * torch.cartesian_prod(values, values)
    return expectation(model.decode(z.view(num_steps, num_steps, 2)), 0), values


def expectation(p: TorchDistribution, seed: int) -> Tensor:
    """E[x], over draws where the likelihood has none (the mean may not exist either)."""
    try:
        mean: Tensor = p.mean
    except NotImplementedError:
        mean = _draws(p, 100, seed).mean(0)
    return mean


def moments(p: TorchDistribution, seed: int) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of p, in closed form or over 1,000 draws."""
    try:
        return p.mean, p.variance.sqrt()
    except NotImplementedError:
        draws = _draws(p, MOMENT_DRAWS, seed)
        return draws.mean(0), draws.std(0)


def _draws(p: TorchDistribution, count: int, seed: int) -> Tensor:
    with seeded(0):  # one draw tells the device
        device = p.sample().device
    with seeded(derive_seed(seed, "moments"), device):
        draws: Tensor = p.sample((count,))
        return draws


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
