"""From specs to a (model, guide) pair, in the order encoder, guide, prior, model.

A guide that asks for the model is built after it.
"""

__all__ = ["build_pair", "latent_dims", "component_hashes"]

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from pyro_vae.components import build, find, source_hash
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.networks import Decoder, Encoder, Network
from pyro_vae.protocols import (
    MEASURES,
    Facts,
    check_guide,
    check_learned_scale,
    check_likelihood,
    check_measure,
    check_model,
    check_prior,
)
from pyro_vae.specs import parse_spec


class Pair(NamedTuple):
    """p and q."""

    model: Any
    guide: Any


# What torch says where a tensor is too large for memory or for 64 bits.
_TOO_LARGE = (
    "allocate",
    "calculation overflowed",
    "multiplication overflow",
    "when unpacking long",
    "out of memory",
)


def build_pair(
    config: Config,
    facts: Facts,
    data_mean: Tensor | None = None,
    data_sample: Callable[[int], Tensor] | None = None,
) -> Pair:
    """Build model and guide from a config's specs, on the CPU, in the config's dtype.

    Weights are drawn from torch's global generator.

    Arguments:
        config: names the components.
        facts: the shape and measure of the data.
        data_mean: ``event_shape``, for components that start at it.
        data_sample: n → n random training data ``[n, *event_shape]``, for components that
            start at data.

    Raises:
        InputError: an unknown component or key, or a pair that cannot work.
    """
    try:
        return _build_pair(config, facts, data_mean, data_sample)
    except (RuntimeError, TypeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(w in str(error).lower() for w in _TOO_LARGE):
            raise InputError(
                f"the networks of --latent-dim {config.latent_dim}, --encoder {config.encoder} do "
                "not fit into memory; make them smaller"
            ) from None
        raise


def latent_dims(config: Config) -> tuple[int, ...]:
    """Return the size of each latent, from the one next to the data upward.

    One latent of ``config.latent_dim``, unless the model is one of several.

    Raises:
        InputError: ``latent_dims`` in the model's spec are no sizes.
    """
    spec = parse_spec(config.model)
    options = find("model", spec).options
    if "latent_dims" not in options:
        return (config.latent_dim,)
    dims = spec.arguments.get("latent_dims", options["latent_dims"])
    if dims is None:
        return (2 * config.latent_dim, config.latent_dim)
    if not isinstance(dims, tuple) or not dims or any(type(d) is not int or d < 1 for d in dims):
        raise InputError(
            f"model {config.model}: latent_dims must be positive whole numbers, such as (100, 50)"
        )
    return dims


def _build_pair(
    config: Config,
    facts: Facts,
    data_mean: Tensor | None,
    data_sample: Callable[[int], Tensor] | None,
) -> Pair:
    dims = latent_dims(config)
    network: Network = build("network", config.encoder)
    body, features = network.encoder(facts.event_shape)
    encoder = Encoder(
        body,
        facts.event_shape,
        features,
        input_loc=facts.data_loc,
        input_scale=facts.unit,
        log_input=facts.measure == "counts",
    )
    offered: dict[str, Any] = {
        "latent_dim": dims[-1],
        "latent_dims": dims,
        "event_shape": facts.event_shape,
        "measure": facts.measure,
        "num_levels": facts.num_levels,
        "unit": facts.unit,
        "data_scale": facts.data_scale if facts.is_real else None,
        "data_mean": data_mean,
        "data_sample": data_sample,
        "encoder": encoder,
    }
    guide, declared = None, find("guide", config.guide)
    if len(dims) > 1 and declared.asks_for("latent_dim") and not declared.asks_for("latent_dims"):
        raise InputError(
            f"model {config.model} has {len(dims)} latents and guide {config.guide} one; use a "
            "guide of as many, such as --guide hierarchical"
        )
    if not declared.asks_for("model"):
        guide = build("guide", config.guide, **offered)
        check_guide(guide, config.guide)
        offered["has_density"] = guide.has_density
        if len(dims) == 1:
            offered["posterior"] = guide.posterior
    elif declared.asks_for("encoder"):
        raise InputError(f"guide {config.guide} asks for model and encoder; take one of them")
    model = _build_model(config, facts, offered)
    if guide is None:
        guide = build("guide", config.guide, model=model, **offered)
        check_guide(guide, config.guide)
    dtype = config.torch_dtype()
    for program in (model, guide):
        if isinstance(program, nn.Module):
            program.to(dtype=dtype)
    return Pair(model, guide)


def _build_model(config: Config, facts: Facts, offered: dict[str, Any]) -> Any:
    """Prior, likelihood, decoder and the program over them."""
    dims, event_shape = offered["latent_dims"], facts.event_shape
    if find("prior", config.prior).asks_for("posterior") and "posterior" not in offered:
        reason = "has several" if len(dims) > 1 else "is made from the model"
        owner = f"model {config.model}" if len(dims) > 1 else f"guide {config.guide}"
        raise InputError(
            f"prior {config.prior} is built on the guide's posterior of a single latent, and "
            f"{owner} {reason}; use another prior"
        )
    prior = build("prior", config.prior, **offered)
    check_prior(prior, dims[-1], config.prior)
    declared = find("likelihood", config.likelihood).constructor
    if getattr(declared, "measure", None) in MEASURES:  # before its constructor meets other data
        check_measure(declared, facts, config.likelihood, config.data)
    likelihood = build("likelihood", config.likelihood, **offered)
    check_likelihood(likelihood, facts, config.likelihood)
    check_measure(likelihood, facts, config.likelihood, config.data)
    check_learned_scale(likelihood, facts, config.likelihood, config.data)
    parts = {"prior": prior, "likelihood": likelihood}
    if find("model", config.model).asks_for("decoder"):
        mirrored: Network = build("network", config.decoder or config.encoder)
        outputs = likelihood.params_per_dim
        body = mirrored.decoder(dims[0], event_shape, outputs)
        parts["decoder"] = Decoder(body, dims[0], event_shape, outputs)
    elif config.decoder is not None:
        raise InputError(f"model {config.model} has a decoder of its own; leave out --decoder")
    model = build("model", config.model, **offered, **parts)
    check_model(model, config.model)
    return model


def component_hashes(config: Config) -> dict[str, str]:
    """Return path → sha256 of the component files that stand outside the project."""
    specs = (config.model, config.prior, config.likelihood, config.guide, config.objective)
    parts = (config.encoder, config.decoder, config.corrupt)
    found = (source_hash(spec) for spec in (*specs, *parts) if spec is not None)
    return dict(item for item in found if item is not None)
