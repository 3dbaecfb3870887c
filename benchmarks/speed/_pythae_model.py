"""pythae's VAE with given weights."""

import torch
import torch.nn.functional as F
from _hand_written import stack
from _networks import PIXELS, Layers, Network
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor


class Encoder(BaseEncoder):
    def __init__(self, network: Network, layers: Layers):
        super().__init__()
        self.body = stack(layers, network.activation)

    def forward(self, x: Tensor) -> ModelOutput:
        loc, raw = self.body(x).chunk(2, -1)
        scale = F.softplus(raw) + 1e-6
        return ModelOutput(embedding=loc, log_covariance=2 * scale.log())


class Decoder(BaseDecoder):
    def __init__(self, network: Network, layers: Layers):
        super().__init__()
        self.body = stack(layers, network.activation)

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.body(z)))


def make_vae(network: Network, layers: Layers) -> VAE:
    config = VAEConfig(
        input_dim=(PIXELS,), latent_dim=network.latent_dim, reconstruction_loss="bce"
    )
    encoder = Encoder(network, layers[: network.depth])
    return VAE(config, encoder, Decoder(network, layers[network.depth :]))
