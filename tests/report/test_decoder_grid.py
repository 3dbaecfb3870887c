import itertools
import json

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.report import decoder_grid as grid_module
from pyro_vae.report.array_program import decode_array
from pyro_vae.report.decoder_grid import decoder_grid

MEAN = torch.tensor([0.5, -0.25, 0.1, 1.0, -0.4])
SCALE = torch.tensor([1.0, 0.5, 2.0, 0.8, 1.3])
ORDER = [3, 1, 4, 0, 2]


def places(z, dims, low, high, shape):
    """z in nodes, and the node below it, an axis each."""
    for dim, a, b, n in zip(dims, low, high, shape, strict=True):
        at = min(max((z[dim] - a) / (b - a) * (n - 1), 0), n - 1)
        yield at, min(int(at), n - 2)


def interpolated(images, z, grid):
    """Multilinear, by its definition: Σ over corners of Π over axes."""
    around = list(places(z, grid["dims"], grid["low"], grid["high"], grid["shape"]))
    total = 0.0
    for corner in itertools.product((0, 1), repeat=len(around)):
        node = tuple(low + up for (_, low), up in zip(around, corner, strict=True))
        parts = [abs((at - low) - (1 - up)) for (at, low), up in zip(around, corner, strict=True)]
        total = total + np.prod(parts) * images[node]
    return total


@torch.no_grad()
def decoded(model, z):
    return model.decode(torch.tensor(np.asarray(z), dtype=torch.float32)).mean.double().numpy()


def made(untrained_model, latent_dim, encoder="conv(channels=(4,), hidden=8)"):
    model = untrained_model(encoder=encoder, latent_dim=latent_dim)
    order = [dim for dim in ORDER if dim < latent_dim]
    grid = decoder_grid(model, MEAN[:latent_dim], SCALE[:latent_dim], order)
    return model, json.loads(json.dumps(grid, allow_nan=False))


@pytest.mark.parametrize("latent_dim", [1, 2, 3, 5])
def test_a_grid_spans_the_most_active_dimensions(untrained_model, latent_dim):
    _, grid = made(untrained_model, latent_dim)
    dims = [dim for dim in ORDER if dim < latent_dim][:3]
    assert grid["dims"] == dims
    assert grid["shape"] == [{1: 129, 2: 33, 3: 11}[len(dims)]] * len(dims)
    assert grid["low"] == pytest.approx((MEAN - 3 * SCALE)[dims].tolist())
    assert grid["high"] == pytest.approx((MEAN + 3 * SCALE)[dims].tolist())
    assert grid["size"] == 64


@pytest.mark.parametrize("latent_dim", [1, 2, 3, 5])
def test_a_node_is_the_decoders_own_to_half_a_level(js_decoder, untrained_model, latent_dim):
    """At random nodes, the others of more than three dimensions at the mean."""
    model, grid = made(untrained_model, latent_dim)
    decode = js_decoder({"grid": grid})
    half = (grid["max"] - grid["min"]) / 510
    rng = np.random.default_rng(0)
    for _ in range(20):
        z = MEAN[:latent_dim].double().numpy()
        for axis, dim in enumerate(grid["dims"]):
            low, high, nodes = grid["low"][axis], grid["high"][axis], grid["shape"][axis]
            z[dim] = np.linspace(low, high, nodes)[rng.integers(nodes)]
        want = decoded(model, z[None])[0]
        np.testing.assert_allclose(decode(z).reshape(8, 8), want, rtol=0, atol=half + 1e-5)


@pytest.mark.parametrize("latent_dim", [1, 2, 3, 5])
def test_between_nodes_it_is_interpolated(js_decoder, untrained_model, latent_dim):
    """Against interpolation of the decoder's own images, so that quantization is all that is lost;
    z outside counts as its nearest edge, other dimensions as the mean."""
    model, grid = made(untrained_model, latent_dim)
    axes = zip(grid["low"], grid["high"], grid["shape"], strict=True)
    steps = np.meshgrid(*(np.linspace(*axis) for axis in axes), indexing="ij")
    z = np.tile(MEAN[:latent_dim].double().numpy(), (*grid["shape"], 1))
    for dim, step in zip(grid["dims"], steps, strict=True):
        z[..., dim] = step
    images = decoded(model, z)
    decode = js_decoder({"grid": grid})
    half = (grid["max"] - grid["min"]) / 510
    rng = np.random.default_rng(1)
    for scale in (1.0, 1.0, 1.0, 2.0, 6.0):
        point = (MEAN + scale * SCALE * torch.tensor(rng.normal(size=5)))[:latent_dim].tolist()
        want = interpolated(images, point, grid)
        np.testing.assert_allclose(decode(point).reshape(8, 8), want, rtol=0, atol=half + 1e-5)


def test_levels_span_what_is_decoded(untrained_model):
    model, grid = made(untrained_model, 2)
    levels = decode_array(grid["levels"])
    assert levels.shape == (33 * 33, 64)
    assert (levels.min(), levels.max()) == (0, 255)
    assert grid["min"] < grid["max"]
    values = torch.linspace(-3, 3, 33)
    z = MEAN[:2] + SCALE[:2] * torch.cartesian_prod(values, values)
    images = decoded(model, z)
    assert grid["min"] == pytest.approx(images.min(), abs=1e-5)
    assert grid["max"] == pytest.approx(images.max(), abs=1e-5)


def test_large_images_get_fewer_nodes(monkeypatch, untrained_model):
    monkeypatch.setattr(grid_module, "MAX_BYTES", 64 * 7**3 + 1)
    _, grid = made(untrained_model, 3)
    assert grid["shape"] == [7, 7, 7]
    monkeypatch.setattr(grid_module, "MAX_BYTES", 1)
    _, grid = made(untrained_model, 3)
    assert grid["shape"] == [3, 3, 3]


class Decodes(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def decode(self, z):
        return self.function(z)


def test_a_mean_without_closed_form_is_one_over_draws(js_decoder):
    def lognormal(z):
        p = dist.Normal(z, 0.01)
        transformed = dist.TransformedDistribution(p, [dist.transforms.ExpTransform()])
        return transformed.to_event(1)

    grid = decoder_grid(Decodes(lognormal), torch.zeros(2), torch.ones(2), [0, 1])
    got = js_decoder({"grid": grid})([1.5, -0.75])
    np.testing.assert_allclose(got, np.exp([1.5, -0.75]), atol=(grid["max"]) / 255 + 0.01)


def test_a_constant_decoder(js_decoder):
    model = Decodes(lambda z: dist.Normal(0 * z + 2.5, 1.0).to_event(1))
    grid = decoder_grid(model, torch.zeros(2), torch.ones(2), [0, 1])
    np.testing.assert_allclose(js_decoder({"grid": grid})([0.3, 0.4]), [2.5, 2.5])


def test_a_mean_that_is_not_finite_is_refused():
    model = Decodes(lambda z: dist.Normal(z / 0, 1.0, validate_args=False).to_event(1))
    with pytest.raises(InputError, match="not finite"):
        decoder_grid(model, torch.zeros(1), torch.ones(1), [0])
