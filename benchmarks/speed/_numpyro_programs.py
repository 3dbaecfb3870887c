"""NumPyro's contestants: the same program, ``svi.update`` under ``jax.jit`` with donated state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _networks import Layers, Network
from _record import Unavailable
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


class Programs:
    """Model and guide; kernels are ``[in, out]``, as is usual in jax."""

    def __init__(self, network: Network, layers: Layers):
        self.network = network
        self.start = [(jnp.array(w.T), jnp.array(b)) for w, b in layers]

    def mlp(self, h: jax.Array, first: int) -> jax.Array:
        last = first + self.network.depth - 1
        for i in range(first, last + 1):
            kernel, bias = self.start[i]
            h = h @ numpyro.param(f"{i}.kernel", kernel) + numpyro.param(f"{i}.bias", bias)
            h = h if i == last else ACTIVATIONS[self.network.activation](h)
        return h

    def model(self, x: jax.Array) -> None:
        with numpyro.plate("data", x.shape[0], dim=-1):
            unit = jnp.ones(self.network.latent_dim)
            z = numpyro.sample("z", dist.Normal(0 * unit, unit).to_event(1))
            logits = self.mlp(z, self.network.depth)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: jax.Array) -> None:
        loc, raw = jnp.split(self.mlp(x, 0), 2, -1)
        with numpyro.plate("data", x.shape[0], dim=-1):
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw) + 1e-6).to_event(1))


class NumPyroTrained:
    """A training step by NumPyro's SVI on jax's default device of the setting's kind."""

    def __init__(self, setting: Any, loss: Any):
        self.device = device_of(setting.device)
        jax.config.update("jax_default_matmul_precision", "highest")  # torch's default: no TF32
        with jax.default_device(self.device):
            programs = Programs(setting.network, setting.layers)
            svi = SVI(programs.model, programs.guide, numpyro.optim.Adam(setting.lr), loss)
            x = self.put(np.zeros((setting.batch, programs.start[0][0].shape[0]), np.float32))
            self.state = svi.init(jax.random.PRNGKey(0), x)
        self.svi = svi
        self.update = jax.jit(svi.update, donate_argnums=0)
        self.loss = jax.jit(lambda state, key, x: svi.evaluate(state._replace(rng_key=key), x))
        self.key = jax.device_put(jax.random.PRNGKey(1), self.device)

    def put(self, x: np.ndarray) -> jax.Array:
        return jax.device_put(jnp.array(x), self.device)

    def start(self) -> None:
        pass

    def step(self, x: jax.Array) -> None:
        self.state, _ = self.update(self.state, x)

    def evaluate(self, x: jax.Array) -> float:
        self.key, key = jax.random.split(self.key)
        return float(self.loss(self.state, key, x))

    def wait(self) -> None:
        jax.block_until_ready(self.state)

    def layers(self) -> Layers:
        params = self.svi.get_params(self.state)
        count = sum(name.endswith("kernel") for name in params)
        pairs = [(params[f"{i}.kernel"], params[f"{i}.bias"]) for i in range(count)]
        return [(np.array(kernel).T.copy(), np.array(bias)) for kernel, bias in pairs]


def device_of(name: str) -> Any:
    """Return jax's device; Unavailable where this jax has none of the kind."""
    kind = "cuda" if name.startswith("cuda") else "cpu"
    try:
        return jax.devices(kind)[0]
    except RuntimeError as error:
        raise Unavailable(f"this jax has no {kind} device (pip install 'jax[cuda13]')") from error


def trace(setting: Any) -> NumPyroTrained:
    return NumPyroTrained(setting, Trace_ELBO())


def trace_mean_field(setting: Any) -> NumPyroTrained:
    return NumPyroTrained(setting, TraceMeanField_ELBO())


def renyi(setting: Any) -> NumPyroTrained:
    return NumPyroTrained(setting, RenyiELBO(alpha=0, num_particles=setting.num_particles))
