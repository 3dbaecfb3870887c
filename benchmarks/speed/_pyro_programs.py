"""Pyro's contestants: the VAE of its tutorial under SVI, and this project's pair, compiled."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from _hand_written import array, stack
from _networks import PIXELS, Layers, Network
from pyro.infer import ELBO, SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.assembly import Pair, build_pair
from pyro_vae.protocols import Facts


class Tutorial:
    """The VAE as Pyro's tutorial writes it: plain functions with ``pyro.module``."""

    def __init__(self, network: Network, layers: Layers, device: str):
        self.latent_dim = network.latent_dim
        self.encoder = stack(layers[: network.depth], network.activation).to(device)
        self.decoder = stack(layers[network.depth :], network.activation).to(device)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0], dim=-1):
            unit = x.new_ones(x.shape[0], self.latent_dim)
            z = pyro.sample("z", dist.Normal(0 * unit, unit).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0], dim=-1):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, F.softplus(raw) + 1e-6).to_event(1))


def workbench_pair(
    network: Network, layers: Layers | None, device: str, prior: str = "standard_normal"
) -> Pair:
    """This project's model and guide of the same network, with these weights."""
    config = pv.Config(
        encoder=network.spec, latent_dim=network.latent_dim, prior=prior, likelihood="bernoulli"
    )
    mean = torch.full((PIXELS,), 0.3)
    model, guide = build_pair(config, Facts((PIXELS,), "binary"), mean)
    if layers is not None:
        with torch.no_grad():
            for module, (weight, bias) in zip(linears(model, guide), layers, strict=True):
                module.weight.copy_(torch.tensor(weight))
                module.bias.copy_(torch.tensor(bias))
    return Pair(model.to(device), guide.to(device))


def linears(model: nn.Module, guide: nn.Module) -> list[nn.Linear]:
    """The linear layers of guide and model in the order that data pass them."""
    of_guide = [*guide.encoder.body.modules(), guide.head]
    return [m for m in [*of_guide, *model.decoder.modules()] if isinstance(m, nn.Linear)]


class PyroTrained:
    """A training step by ``pyro.infer.SVI``, or by what has its interface."""

    def __init__(
        self,
        setting: Any,
        loss: ELBO,
        make: Callable[[Any, Any, ELBO], Any],
        evaluate: Callable[[Any, Tensor], Any] = lambda svi, x: svi.evaluate_loss(x),
        start: Callable[[Any], None] = lambda svi: None,
        workbench: bool = False,
    ):
        self.device = torch.device(setting.device)
        if workbench:
            model, guide = workbench_pair(setting.network, setting.layers, setting.device)
            self.linears = linears(model, guide)
        else:
            programs = Tutorial(setting.network, setting.layers, setting.device)
            model, guide = programs.model, programs.guide
            stacks = [*programs.encoder, *programs.decoder]
            self.linears = [m for m in stacks if isinstance(m, nn.Linear)]
        self.evaluated, self.started = evaluate, start
        with pyro.get_param_store().scope() as self.store:
            self.svi = make(model, guide, loss)

    def put(self, x: np.ndarray) -> Tensor:
        return torch.tensor(x, device=self.device)

    def start(self) -> None:
        """Called between the last ``evaluate`` and the first ``step``."""
        self.started(self.svi)

    def step(self, x: Tensor) -> None:
        with pyro.get_param_store().scope(self.store):
            self.svi.step(x)

    def evaluate(self, x: Tensor) -> float:
        with pyro.get_param_store().scope(self.store):
            return float(self.evaluated(self.svi, x))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def layers(self) -> Layers:
        return [(array(m.weight), array(m.bias)) for m in self.linears]


def eager(setting: Any) -> PyroTrained:
    return PyroTrained(setting, Trace_ELBO(), _svi(setting))


def jit(setting: Any) -> PyroTrained:
    loss = JitTrace_ELBO(ignore_jit_warnings=True)

    def evaluate(svi: SVI, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.trace` is deprecated", FutureWarning)
            value: Tensor = loss.loss_and_surrogate_loss(svi.model, svi.guide, x)[0]
        return value.detach()

    return PyroTrained(setting, loss, _svi(setting), evaluate)


def renyi(setting: Any) -> PyroTrained:
    loss = RenyiELBO(
        alpha=0, num_particles=setting.num_particles, vectorize_particles=True, max_plate_nesting=1
    )
    return PyroTrained(setting, loss, _svi(setting))


def ours_trace(setting: Any) -> PyroTrained:
    return _ours(setting, Trace_ELBO())


def ours_trace_mean_field(setting: Any) -> PyroTrained:
    return _ours(setting, TraceMeanField_ELBO())


def ours_iwae(setting: Any) -> PyroTrained:
    return _ours(setting, pv.objectives.IWAE(num_particles=setting.num_particles))


def _svi(setting: Any) -> Callable[[Any, Any, ELBO], SVI]:
    return lambda model, guide, loss: SVI(model, guide, pyro.optim.Adam({"lr": setting.lr}), loss)


def _ours(setting: Any, loss: ELBO) -> PyroTrained:
    """This project's step; its loss is taken from steps of no length.

    ``evaluate_loss`` would be another graph than the one that is timed.
    """
    optimizers = []

    def make_optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
        optimizers.append(torch.optim.Adam(parameters, lr=0.0, fused=True))
        return optimizers[0]

    def make(model: Any, guide: Any, loss: ELBO) -> Any:
        return pv.CompiledSVI(model, guide, make_optimizer, loss)

    def evaluate(svi: Any, x: Tensor) -> Tensor:
        value: Tensor = svi.step(x)
        optimizers[0].state.clear()
        if svi.engine != "compiled":
            raise RuntimeError(f"this step is not compiled: {svi.reason}")
        return value

    def start(svi: Any) -> None:
        optimizers[0].param_groups[0]["lr"] = setting.lr

    return PyroTrained(setting, loss, make, evaluate, start=start, workbench=True)
