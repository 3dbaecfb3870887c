"""Encoder and decoder bodies; no probability in here."""

__all__ = ["mlp", "gated_mlp", "conv", "linear", "Network", "Encoder", "Decoder"]

import itertools
from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError, suggest
from pyro_vae.precision import full_precision

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


class Encoder(nn.Module):
    """A body that maps data to features: ``[*, *event_shape]`` → ``[*, out_features]``.

    Arguments:
        body: maps ``[N, *event_shape]`` to ``[N, out_features]``.
        event_shape: the shape of one datum.
        out_features: the width of the features.
        input_loc, input_scale: x enters as (x − loc)/scale: x/(n−1) for levels 0 … n−1.
        log_input: log(1 + x) enters for x, for counts.
    """

    def __init__(
        self,
        body: nn.Module,
        event_shape: tuple[int, ...],
        out_features: int,
        input_loc: float = 0.0,
        input_scale: float = 1.0,
        log_input: bool = False,
    ):
        super().__init__()
        self.body = body
        self.event_shape = tuple(event_shape)
        self.out_features = out_features
        self.input_loc = input_loc
        self.input_scale = input_scale
        self.log_input = log_input

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` ``[*, *event_shape]`` to features ``[*, out_features]``."""
        split = x.dim() - len(self.event_shape)
        if split < 0 or tuple(x.shape[split:]) != self.event_shape:
            raise InputError(
                f"encoder expected x of shape [*, {_shown(self.event_shape)}], "
                f"got [{_shown(x.shape)}]"
            )
        if self.input_loc != 0.0:
            x = x - self.input_loc
        if self.input_scale != 1.0:
            x = x / self.input_scale
        if self.log_input:
            # log(1 + x) of counts; a learned pseudo-input may be negative, and keeps a gradient.
            x = torch.where(x > 0, x.clamp(min=0).log1p(), x)
        features = full_precision(self.body(x.reshape(-1, *self.event_shape)))
        return features.reshape(*x.shape[:split], self.out_features)


class Decoder(nn.Module):
    """A body that maps latents to parameters: ``[*, latent_dim]`` → ``[*, *event_shape, P]``.

    Arguments:
        body: maps ``[N, latent_dim]`` to N × P × prod(event_shape) numbers; its
            last module is the output layer.
        latent_dim: the dimension of z.
        event_shape: the shape of one datum.
        params_per_dim: P, the parameters of each dimension of x.
    """

    def __init__(
        self,
        body: nn.Sequential,
        latent_dim: int,
        event_shape: tuple[int, ...],
        params_per_dim: int,
    ):
        super().__init__()
        self.body = body
        self.latent_dim = latent_dim
        self.event_shape = tuple(event_shape)
        self.params_per_dim = params_per_dim

    def forward(self, z: Tensor) -> Tensor:
        """Map ``z`` ``[*, latent_dim]`` to parameters ``[*, *event_shape, P]``."""
        if z.shape[-1:] != (self.latent_dim,):
            raise InputError(
                f"decoder expected z of shape [*, {self.latent_dim}], got [{_shown(z.shape)}]"
            )
        batch = z.shape[:-1]
        out = full_precision(self.body(z.reshape(-1, self.latent_dim)))
        # P outermost in memory, last in shape: unbind(-1) gives contiguous parameters.
        return out.reshape(*batch, self.params_per_dim, *self.event_shape).movedim(len(batch), -1)

    @torch.no_grad()
    def set_output_bias(self, params: Tensor) -> None:
        """Start the output at ``params`` ``[*event_shape, P]``; a convolution takes their mean.

        A convolution's bias is one number a channel, so it is set to the mean
        over the pixels.
        """
        value = params.movedim(-1, 0)
        layer = self.body[-1]
        bias = layer.bias
        if not isinstance(bias, nn.Parameter):
            raise InputError("the decoder's output layer has no bias to set")
        if bias.numel() != value.numel():
            value = value.flatten(-2).mean(-1)
        bias.copy_(value.reshape(bias.shape))


class Network(NamedTuple):
    """A matching pair of bodies, built once the shapes are known."""

    encoder: Callable[[tuple[int, ...]], tuple[nn.Module, int]]
    """event_shape → (body, out_features)."""
    decoder: Callable[[int, tuple[int, ...], int], nn.Sequential]
    """latent_dim, event_shape, params_per_dim → body."""


def mlp(hidden: tuple[int, ...] = (256, 256), activation: str = "relu") -> Network:
    """Fully connected layers; ``hidden`` runs from the data inward, the decoder mirrors it.

    Arguments:
        hidden: the widths of the hidden layers.
        activation: relu, leaky_relu, elu, gelu, silu, tanh or softplus.
    """
    hidden = _widths("mlp", "hidden", hidden)
    act = _activation(activation)
    return _dense(hidden, lambda i, o: [nn.Linear(i, o), act()])


def gated_mlp(hidden: tuple[int, ...] = (300, 300)) -> Network:
    """Fully connected gated layers, (W h + b) ⊙ sigmoid(V h + c), mirrored by the decoder.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018)
        https://arxiv.org/abs/1705.07120

    Arguments:
        hidden: the widths of the hidden layers, from the data inward.
    """
    hidden = _widths("gated_mlp", "hidden", hidden)
    return _dense(hidden, lambda i, o: [nn.Linear(i, 2 * o), nn.GLU()])


def conv(
    channels: tuple[int, ...] = (32, 64), hidden: int = 256, activation: str = "relu"
) -> Network:
    """Strided 4×4 convolutions that halve the image, then a dense layer; the decoder mirrors it.

    Height and width must be divisible by 2 once for every entry of ``channels``:
    28×28 and 32×32 images take two.

    Arguments:
        channels: the output channels of each convolution.
        hidden: the width of the dense layer.
        activation: as for ``mlp``.
    """
    channels = _widths("conv", "channels", channels)
    (hidden,) = _widths("conv", "hidden", (hidden,))
    act = _activation(activation)

    def encoder(event_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        colours, height, width = _image_shape(event_shape, len(channels))
        layers: list[nn.Module] = [nn.Unflatten(1, (1, -1))] if len(event_shape) == 2 else []
        for i, o in itertools.pairwise((colours, *channels)):
            layers += [nn.Conv2d(i, o, 4, stride=2, padding=1), act()]
        layers += [nn.Flatten(), nn.Linear(channels[-1] * height * width, hidden), act()]
        return nn.Sequential(*layers), hidden

    def decoder(
        latent_dim: int, event_shape: tuple[int, ...], params_per_dim: int
    ) -> nn.Sequential:
        colours, height, width = _image_shape(event_shape, len(channels))
        inner = (channels[-1], height, width)
        layers: list[nn.Module] = [nn.Linear(latent_dim, hidden), act()]
        layers += [nn.Linear(hidden, prod(inner)), act(), nn.Unflatten(1, inner)]
        for i, o in itertools.pairwise(reversed(channels)):
            layers += [nn.ConvTranspose2d(i, o, 4, stride=2, padding=1), act()]
        outputs = colours * params_per_dim
        layers += [nn.ConvTranspose2d(channels[0], outputs, 4, stride=2, padding=1)]
        return nn.Sequential(*layers)

    return Network(encoder, decoder)


def linear() -> Network:
    """No hidden layer: features are the data, decoded parameters an affine map of z."""
    return _dense((), lambda i, o: [])


def _dense(hidden: tuple[int, ...], layer: Callable[[int, int], list[nn.Module]]) -> Network:
    def stack(sizes: tuple[int, ...]) -> list[nn.Module]:
        return [module for i, o in itertools.pairwise(sizes) for module in layer(i, o)]

    def encoder(event_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        sizes = (prod(event_shape), *hidden)
        return nn.Sequential(nn.Flatten(), *stack(sizes)), sizes[-1]

    def decoder(
        latent_dim: int, event_shape: tuple[int, ...], params_per_dim: int
    ) -> nn.Sequential:
        sizes = (latent_dim, *reversed(hidden))
        output = nn.Linear(sizes[-1], params_per_dim * prod(event_shape))
        return nn.Sequential(*stack(sizes), output)

    return Network(encoder, decoder)


def _widths(network: str, name: str, value: object) -> tuple[int, ...]:
    widths = value if isinstance(value, tuple) else (value,)
    if not widths or any(type(w) is not int or w < 1 for w in widths):
        raise InputError(f"{network}: {name} must be positive whole numbers, got {value!r}")
    return widths


def _activation(name: str) -> type[nn.Module]:
    if name not in ACTIVATIONS:
        raise InputError(f"unknown activation {name!r}{suggest(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _image_shape(event_shape: tuple[int, ...], halvings: int) -> tuple[int, int, int]:
    """(colours, height and width after the convolutions)."""
    if len(event_shape) not in (2, 3):
        raise InputError(
            f"conv expected images of shape [H, W] or [C, H, W], got [{_shown(event_shape)}]"
        )
    *colours, height, width = event_shape
    factor = 2**halvings
    if height % factor or width % factor:
        raise InputError(
            f"conv with {halvings} channels halves the image {halvings} times: expected height "
            f"and width divisible by {factor}, got {height}×{width}; give fewer channels"
        )
    return prod(colours), height // factor, width // factor


def _shown(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
