"""Per-datum log-weights of any (model, guide) pair: the one primitive all bounds share."""

__all__ = ["log_weights", "log_weight_terms", "LogWeights", "draw_latents", "weigh"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.execution import Program, check_no_points, check_same_latents, execute


class LogWeights(NamedTuple):
    """The three terms of a log-weight, each ``[num_samples, B]``, in nats."""

    log_likelihood: Tensor
    """log p(x|z), the observed sites."""
    log_prior: Tensor
    """log p(z), the model's latent sites."""
    log_guide: Tensor
    """log q(z|x), the guide's sites."""

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) − log q(z|x)."""
        return self.log_likelihood + self.log_prior - self.log_guide

    @property
    def kl(self) -> Tensor:
        """log q(z|x) − log p(z); its mean over samples is KL(q(z|x) ‖ p(z))."""
        return self.log_guide - self.log_prior


class Latents(NamedTuple):
    """Draws of the guide and their log-densities."""

    values: dict[str, Tensor]
    """site → ``[num_samples, B, …]``."""
    log_guide: Tensor
    """``[num_samples, B]``."""


def log_weights(model: Program, guide: Program, x: Tensor, num_samples: int) -> Tensor:
    """Return log p(x, z) − log q(z|x) for draws z ~ q(z|x), ``[num_samples, B]``, in nats.

    Unscaled by any plate or ``poutine.scale``; masks are respected. Randomness
    comes from torch's global generator. E[exp log w] = p(x) for each datum.

    Arguments:
        model: a Pyro program of ``x`` with latents inside ``pyro.plate("data", B, dim=-1)``.
        guide: the same for q.
        x: ``[B, *event_shape]``.
        num_samples: K, drawn in parallel under a plate to the left of "data".

    Raises:
        InputError: a site that has no per-datum weight, or is in only one of the programs.
    """
    return log_weight_terms(model, guide, x, num_samples).log_weight


def log_weight_terms(model: Program, guide: Program, x: Tensor, num_samples: int) -> LogWeights:
    """Return the terms of ``log_weights`` apart, each ``[num_samples, B]``."""
    check_data(x, num_samples)
    with own_parameters(model, guide):
        return weigh(model, x, draw_latents(guide, x, num_samples))


def check_data(x: Tensor, num_samples: int) -> None:
    """Refuse data that are no tensor ``[B, *event_shape]``, and a K that is no count.

    Raises:
        InputError: what was expected, and what came.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"expected data as a torch tensor, got {type(x).__name__}")
    if x.dim() < 1 or len(x) == 0:
        raise InputError(f"expected data of shape [B, *event_shape], got {list(x.shape)}")
    if type(num_samples) is not int or num_samples < 1:
        raise InputError(f"num_samples must be a whole number, at least 1, got {num_samples!r}")


def draw_latents(
    guide: Program, x: Tensor, num_samples: int, *, allow_points: bool = False
) -> Latents:
    """Draw ``num_samples`` z ~ q(z|x) for every datum; the encoder runs once a datum.

    Raises:
        InputError: q is a point mass at some site, which has no density, and
            ``allow_points`` is not set: then log p(x, z) is no bound on log p(x).
    """
    run = execute(guide, "guide", num_samples, (x,), num_data=x.shape[0])
    if not allow_points:
        check_no_points(run)
    sites = (run.latent | run.observed).values()
    return Latents(run.values, run.total([run.log_prob(site) for site in sites]))


def weigh(model: Program, x: Tensor, latents: Latents) -> LogWeights:
    """Return the log-weights of given draws: the model is replayed at the guide's values.

    Discrete latents c of the model that are enumerated in parallel are summed out:
    log p(x|z) = log Σ_c p(x|z, c) p(c|z), and log p(z) = log Σ_c p(z|c) p(c).
    """
    num_samples = latents.log_guide.shape[0]
    run = execute(model, "model", num_samples, (x,), values=latents.values, num_data=x.shape[0])
    check_same_latents(run, latents.values)
    densities = [run.log_prob(site) for site in run.latent.values()]
    return LogWeights(*run.likelihood_and_prior(densities), latents.log_guide)


@contextmanager
def own_parameters(*programs: Program) -> Iterator[None]:
    """Run modules beside Pyro's global parameter store, so that neither changes the other.

    Programs that are all modules hold their own parameters: they run in an
    empty store. Where any is a plain function the global store is used.

    Raises:
        InputError: the global store holds other values under a module's names.
    """
    store = pyro.get_param_store()
    if not all(isinstance(program, nn.Module) for program in programs):
        yield
        return
    outer = dict(store.named_parameters())
    with store.scope():
        yield
        inner = dict(store.named_parameters())
    for name in inner.keys() & outer.keys():
        if inner[name] is not outer[name] and not torch.equal(inner[name], outer[name]):
            raise InputError(
                f"Pyro's parameter store holds another {name!r} than the module: "
                "call pyro.clear_param_store(), or load the stored values into the module"
            )
