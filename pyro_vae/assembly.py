"""From specs to a (model, guide) pair, in the order encoder, guide, prior, model."""

__all__ = ["build_pair", "component_hashes"]

from typing import Any, NamedTuple

from torch import Tensor, nn

from pyro_vae.components import build, source_hash
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.networks import Decoder, Encoder, Network
from pyro_vae.protocols import (
    Facts,
    check_guide,
    check_likelihood,
    check_measure,
    check_model,
    check_prior,
)


class Pair(NamedTuple):
    """p and q."""

    model: Any
    guide: Any


# What torch says where a tensor is too large for memory or for 64 bits.
_TOO_LARGE = ("allocate", "overflow", "out of memory")


def build_pair(config: Config, facts: Facts, data_mean: Tensor | None = None) -> Pair:
    """Build model and guide from a config's specs, on the CPU, in the config's dtype.

    Weights are drawn from torch's global generator.

    Arguments:
        config: names the components.
        facts: the shape and measure of the data.
        data_mean: ``event_shape``, for components that start at it.

    Raises:
        InputError: an unknown component or key, or a pair that cannot work.
    """
    try:
        return _build_pair(config, facts, data_mean)
    except (RuntimeError, TypeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(w in str(error).lower() for w in _TOO_LARGE):
            raise InputError(
                f"the networks of --latent-dim {config.latent_dim}, --encoder {config.encoder} do "
                "not fit into memory; make them smaller"
            ) from None
        raise


def _build_pair(config: Config, facts: Facts, data_mean: Tensor | None) -> Pair:
    network: Network = build("network", config.encoder)
    body, features = network.encoder(facts.event_shape)
    offered: dict[str, Any] = {
        "latent_dim": config.latent_dim,
        "event_shape": facts.event_shape,
        "num_levels": facts.num_levels,
        "data_mean": data_mean,
        "encoder": Encoder(body, facts.event_shape, features, facts.input_scale),
    }
    guide = build("guide", config.guide, **offered)
    check_guide(guide, config.guide)
    offered["posterior"] = guide.posterior
    prior = build("prior", config.prior, **offered)
    check_prior(prior, config.latent_dim, config.prior)
    likelihood = build("likelihood", config.likelihood, **offered)
    check_likelihood(likelihood, facts, config.likelihood)
    check_measure(likelihood, facts, config.likelihood, config.data)
    mirrored: Network = build("network", config.decoder or config.encoder)
    decoder_body = mirrored.decoder(config.latent_dim, facts.event_shape, likelihood.params_per_dim)
    decoder = Decoder(decoder_body, config.latent_dim, facts.event_shape, likelihood.params_per_dim)
    model = build(
        "model", config.model, **offered, prior=prior, likelihood=likelihood, decoder=decoder
    )
    check_model(model, config.model)
    dtype = config.torch_dtype()
    for program in (model, guide):
        if isinstance(program, nn.Module):
            program.to(dtype=dtype)
    return Pair(model, guide)


def component_hashes(config: Config) -> dict[str, str]:
    """Return path → sha256 of the component files that stand outside the project."""
    specs = (config.model, config.prior, config.likelihood, config.guide, config.objective)
    found = (source_hash(spec) for spec in (*specs, config.encoder, config.decoder or "mlp"))
    return dict(item for item in found if item is not None)
