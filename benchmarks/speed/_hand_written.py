"""The VAE as one writes it in plain PyTorch: the bar that Pyro programs are held against."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _networks import Layers, Network
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def stack(layers: Layers, activation: str) -> nn.Sequential:
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        modules += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*modules[:-1])


class HandWritten(nn.Module):
    """Encoder, decoder and the two losses, each the sum over the batch, in nats."""

    def __init__(self, network: Network, layers: Layers, num_particles: int | None = None):
        super().__init__()
        self.encoder = stack(layers[: network.depth], network.activation)
        self.decoder = stack(layers[network.depth :], network.activation)
        self.num_particles = num_particles

    def forward(self, x: Tensor) -> Tensor:
        return self.elbo(x) if self.num_particles is None else self.iwae(x, self.num_particles)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.encoder(x).chunk(2, -1)
        return loc, F.softplus(raw) + 1e-6

    def elbo(self, x: Tensor) -> Tensor:
        """− E_q log p(x|z), one z a datum, + KL(q ‖ p) in closed form."""
        loc, scale = self.posterior(x)
        logits = self.decoder(loc + scale * torch.randn_like(loc))
        kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum()
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl

    def iwae(self, x: Tensor, num_particles: int) -> Tensor:
        """− log (1/K) Σ_k p(x, z_k)/q(z_k|x), summed over the batch."""
        loc, scale = self.posterior(x)
        noise = torch.randn(num_particles, *loc.shape, device=x.device, dtype=x.dtype)
        z = loc + scale * noise
        logits = self.decoder(z)
        # log p(x|z) = Σ x l − log(1 + e^l); log p(z) − log q(z|x) = ½ Σ ε² − z² + Σ log scale
        log_likelihood = (x * logits - F.softplus(logits)).sum(-1)
        log_ratio = 0.5 * (noise**2 - z**2).sum(-1) + scale.log().sum(-1)
        log_weight = log_likelihood + log_ratio
        return -(log_weight.logsumexp(0) - math.log(num_particles)).sum()

    def layers(self) -> Layers:
        linear = [m for m in [*self.encoder, *self.decoder] if isinstance(m, nn.Linear)]
        return [(array(m.weight), array(m.bias)) for m in linear]


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


class HandTrained:
    """The training step of a ``HandWritten``: eager, or compiled with fused Adam.

    Arguments:
        options: of ``torch.compile``; None leaves the step eager.
        mode: that of ``torch.compile``, such as ``reduce-overhead``.
    """

    def __init__(
        self, setting: Any, options: dict[str, Any] | None = None, mode: str | None = None
    ):
        module = HandWritten(setting.network, setting.layers, setting.num_particles)
        self.module = module.to(setting.device)
        self.device = torch.device(setting.device)
        self.optimizer = torch.optim.Adam(module.parameters(), lr=setting.lr, fused=True)
        self.cuda_graphs = mode is not None
        self.loss = self.module
        if options is not None or mode is not None:
            self.loss = torch.compile(
                self.module, dynamic=False, fullgraph=True, options=options, mode=mode
            )

    def put(self, x: np.ndarray) -> Tensor:
        return torch.tensor(x, device=self.device)

    def start(self) -> None:
        pass

    def step(self, x: Tensor) -> None:
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(x).backward()
        self.optimizer.step()

    def evaluate(self, x: Tensor) -> float:
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return float(self.loss(x).detach())

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def layers(self) -> Layers:
        return self.module.layers()
