"""The networks and the data of the speed benchmarks, as arrays that every library can take."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

PIXELS = 784
Layers = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Network:
    """784-hidden-z: an encoder with one head for loc and scale, its mirror, Bernoulli logits.

    q(z|x) = N(loc, diag scale²), scale = softplus(raw) + 10⁻⁶, p(z) = N(0, I).
    """

    hidden: tuple[int, ...]
    latent_dim: int
    activation: str

    @property
    def spec(self) -> str:
        return f"mlp(hidden={self.hidden}, activation={self.activation})"

    @property
    def encoder_sizes(self) -> tuple[int, ...]:
        return (PIXELS, *self.hidden, 2 * self.latent_dim)

    @property
    def decoder_sizes(self) -> tuple[int, ...]:
        return (self.latent_dim, *reversed(self.hidden), PIXELS)

    @property
    def depth(self) -> int:
        """Layers of the encoder, and of the decoder."""
        return len(self.hidden) + 1


# ReLU as in most tutorials; tanh as in Burda et al. (2016), https://arxiv.org/abs/1509.00519.
NETWORKS = {
    "784-400-z20": Network((400,), 20, "relu"),
    "784-200-200-z50": Network((200, 200), 50, "tanh"),
}


def initial_layers(network: Network, seed: int = 0) -> Layers:
    """(W [out, in], b [out]) of the encoder's layers, then the decoder's: uniform in ± 1/√in."""
    rng = np.random.default_rng(seed)
    sizes = [*pairwise(network.encoder_sizes), *pairwise(network.decoder_sizes)]
    layers = []
    for n, m in sizes:
        bound = n**-0.5
        weight, bias = rng.uniform(-bound, bound, (m, n)), rng.uniform(-bound, bound, m)
        layers.append((weight.astype(np.float32), bias.astype(np.float32)))
    return layers


def binary_images(count: int, seed: int = 1) -> np.ndarray:
    """Random binary data of ten kinds, float32 ``[count, 784]``."""
    rng = np.random.default_rng(seed)
    kinds = 1 / (1 + np.exp(-2 * rng.standard_normal((10, PIXELS)) + 1))
    p = kinds[rng.integers(10, size=count)]
    return (rng.random((count, PIXELS)) < p).astype(np.float32)
