"""The textbook losses on a run's data: their values, and the bound each of them is."""

__all__ = ["TextbookRow", "textbook_table"]

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_vae.closed_form import kl_divergence
from pyro_vae.errors import InputError
from pyro_vae.log_weights import check_data
from pyro_vae.seeding import derive_seed, seeded
from pyro_vae.standard_error import standard_error_of_mean
from pyro_vae.textbook import TEXTBOOK_LOSSES, TextbookLoss, log_normalizer


@dataclass(frozen=True)
class TextbookRow:
    """One textbook loss on a run's decoder mean and guide: its value, and what it optimizes.

    ``loss`` = ``factor`` · (−ELBO of the named likelihood) + ``constant``, a datum.
    """

    name: str
    formula: str
    optimizes: str
    factor_formula: str
    constant_formula: str
    factor: float
    constant: float
    """A datum's, in the units of the loss."""
    scaling: str
    """What x and the decoder's mean were brought to [0, 1] by, such as ``x/255``."""
    num_dims: int
    """D."""
    batch_size: int
    """B."""
    num_latents: int
    """L."""
    sigma: float | None
    """σ of the normal likelihood at β = 1, on the scaled data."""
    beta_at_half: float | None
    """β of the same loss read as a β-VAE's at σ² = ½: 2 σ²."""
    beta_at_model_sigma: float | None
    """β of it read as a β-VAE's at the run's own σ; where that is one normal scale."""
    refusal: str | None = None
    """Why it does not take this run; then everything below is None."""
    loss: float | None = None
    """The mean a datum; a batch's sum divided by B."""
    standard_error: float | None = None
    """Of ``loss`` over draws of z, the data held fixed; None for one draw."""
    data_standard_error: float | None = None
    """Of ``loss`` over data; None for one datum."""
    elbo: float | None = None
    """The ELBO of the named likelihood on the same draws, from its density; nats a datum."""
    from_elbo: float | None = None
    """factor · (−ELBO) + constant, which is to be ``loss``."""
    largest_difference: float | None = None
    """The largest |loss − from_elbo| of a datum (for ``mse_loss`` of a batch, divided by B)."""
    log_normalizer: float | None = None
    """E_q Σ log C(λ), the loss less the −ELBO of the continuous Bernoulli; for ``bce_kl`` on
    grey x, None for binary x."""
    log_normalizer_standard_error: float | None = None
    """Over draws."""
    count: int = 0
    """How many data; ``mse_loss`` takes full batches."""


@torch.no_grad()
def textbook_table(
    model: Any,
    guide: Any,
    x: Tensor,
    *,
    num_samples: int = 32,
    batch_size: int | None = None,
    ordered: bool = False,
    seed: int = 0,
) -> list[TextbookRow]:
    """Return a row for every textbook loss, all on the same draws z ~ q(z|x), in float64.

    x̂ is the mean of ``model.decode(z)``. The data and x̂ are brought to [0, 1] as those
    tutorials do: levels by x/(n − 1), values that lie there as they are, counts and other
    reals by the range of ``x``. Cross-entropy takes the logits that the decoder outputs for
    data in [0, 1], else those of x̂. The ELBO beside each loss is the log-density of the
    named likelihood at x̂ less the KL of ``closed_form``.

    Arguments:
        model: a pair's model with ``prior`` N(0, I) and ``decode``.
        guide: with ``posterior(x)`` a diagonal normal.
        x: ``[N, *event_shape]``, in the units of the run.
        num_samples: K draws a datum.
        batch_size: B of ``mse_loss``, the run's own; by default, and at most, N.
        ordered: neighbouring data depend on each other.
        seed: of the draws.

    Raises:
        InputError: another guide or prior, a likelihood without a mean, data without a range.
    """
    check_data(x, num_samples)
    if x.dim() < 2:
        raise InputError(f"expected data of shape [N, *event_shape], got {list(x.shape)}")
    q = _diagonal_posterior(model, guide, x)
    B = _check_batch_size(batch_size, len(x))
    scaling = _find_scaling(model, x)
    data = _Data(scaling(x), q.loc.double(), 2 * q.scale.double().log(), _kl_of(q, model), B)
    with seeded(derive_seed(seed, "textbook"), x.device):
        latents = q.rsample((num_samples,))
        draws = [_score(data, model.decode(z), scaling) for z in latents]
    model_sigma = draws[0].model_sigma
    return [_row(loss, data, draws, scaling, model_sigma, ordered) for loss in TEXTBOOK_LOSSES]


class _Scaling(NamedTuple):
    """x → (x − low)/unit, in float64."""

    low: float
    unit: float
    text: str
    is_range: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return (x.double() - self.low) / self.unit


class _Data(NamedTuple):
    """What stays the same from draw to draw, float64."""

    x: Tensor
    """``[N, *event_shape]``, scaled."""
    mu: Tensor
    log_var: Tensor
    kl: Tensor
    """``[N]``, from ``closed_form``."""
    batch_size: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """D, B, L."""
        return self.x[0].numel(), self.batch_size, self.mu.shape[-1]

    def total(self, values: Tensor) -> Tensor:
        """Σ over the event dimensions, ``[*, B, *event]`` → ``[*, B]``."""
        return values.flatten(start_dim=values.dim() - self.x.dim() + 1).sum(-1)

    def batches(self, loss: TextbookLoss) -> Iterable[slice]:
        """The data that a loss takes at once: one datum, or a full batch."""
        size = self.group_size(loss)
        return (slice(i, i + size) for i in range(0, len(self.x) - size + 1, size))

    def group_size(self, loss: TextbookLoss) -> int:
        return 1 if loss.per == "datum" else self.batch_size


class _Draw(NamedTuple):
    """Of one z a datum: each loss, and the ELBO it is said to be."""

    losses: dict[str, Tensor]
    """``[N]``, or one a full batch, per datum."""
    elbos: dict[str, Tensor]
    """``[N]``, nats."""
    log_normalizer: Tensor | None
    """``[N]``; None where cross-entropy has no logits."""
    model_sigma: float | None


def _score(data: _Data, p: Any, scaling: _Scaling) -> _Draw:
    mean = _mean(p)
    x_hat = scaling(mean)
    logits = _logits(p, x_hat, torch.finfo(mean.dtype).eps, scaling)
    losses, elbos = {}, {}
    for loss in TEXTBOOK_LOSSES:
        decoded = x_hat if loss.variance is not None else logits
        if decoded is not None:
            losses[loss.name] = _value(loss, data, decoded)
            elbos[loss.name] = _elbo(loss, data, decoded)
    normalizer = None if logits is None else data.total(log_normalizer(logits))
    return _Draw(losses, elbos, normalizer, _model_sigma(p, scaling))


def _value(loss: TextbookLoss, data: _Data, decoded: Tensor) -> Tensor:
    """The loss as written, divided by B where it is a sum over the batch."""
    if loss.per == "datum":
        return loss.function(data.x, decoded, data.mu, data.log_var)
    values = [
        loss.function(data.x[part], decoded[part], data.mu[part], data.log_var[part])
        for part in data.batches(loss)
    ]
    return torch.stack(values) / (data.batch_size if loss.per == "sum" else 1)


def _elbo(loss: TextbookLoss, data: _Data, decoded: Tensor) -> Tensor:
    """The ELBO of each datum under the named likelihood, by way of its density."""
    if loss.variance is None:
        # E_b log p(b) = x log p(1) + (1 − x) log p(0)
        log_px = data.x * logsigmoid(decoded) + (1 - data.x) * logsigmoid(-decoded)
    else:
        sigma = math.sqrt(loss.variance(*data.sizes))
        log_px = dist.Normal(decoded, sigma, validate_args=False).log_prob(data.x)
    return data.total(log_px) - data.kl


def _row(
    loss: TextbookLoss,
    data: _Data,
    draws: list[_Draw],
    scaling: _Scaling,
    model_sigma: float | None,
    ordered: bool,
) -> TextbookRow:
    D, B, L = data.sizes
    variance = None if loss.variance is None else loss.variance(D, B, L)
    known = None if variance is None or model_sigma is None else variance / model_sigma**2
    return TextbookRow(
        name=loss.name,
        formula=loss.formula,
        optimizes=loss.optimizes,
        factor_formula=loss.factor_formula,
        constant_formula=loss.constant_formula,
        factor=loss.factor(L),
        constant=loss.constant(D, B, L),
        scaling=scaling.text,
        num_dims=D,
        batch_size=B,
        num_latents=L,
        sigma=None if variance is None else math.sqrt(variance),
        beta_at_half=None if variance is None else 2 * variance,
        beta_at_model_sigma=known,
        **_numbers(loss, data, draws, scaling, ordered),
    )


def _numbers(
    loss: TextbookLoss, data: _Data, draws: list[_Draw], scaling: _Scaling, ordered: bool
) -> dict[str, Any]:
    """The fields of a row that stand on the draws, or the refusal."""
    if any(loss.name not in draw.losses for draw in draws):
        where = "data in [0, 1]" if scaling.is_range else "a decoder of means in [0, 1]"
        return {"refusal": f"cross-entropy takes {where}; use a squared error here"}
    size = data.group_size(loss)
    values = torch.stack([draw.losses[loss.name] for draw in draws])  # [K, N] or [K, batches]
    elbo = torch.stack([draw.elbos[loss.name] for draw in draws])[:, : values.shape[1] * size]
    from_elbo = loss.constant(*data.sizes) - loss.factor(data.sizes[-1]) * elbo
    grouped = from_elbo.unflatten(1, (-1, size)).mean(-1)
    numbers = {
        "loss": float(values.mean()),
        "standard_error": _error_over_draws(values),
        "data_standard_error": standard_error_of_mean(from_elbo.mean(0), ordered),
        "elbo": float(elbo.mean()),
        "from_elbo": float(from_elbo.mean()),
        "largest_difference": float((values - grouped).abs().max()),
        "count": elbo.shape[1],
    }
    is_grey = bool(((data.x > 0) & (data.x < 1)).any())
    if loss.variance is None and is_grey:
        normalizer = torch.stack([d.log_normalizer for d in draws if d.log_normalizer is not None])
        numbers["log_normalizer"] = float(normalizer.mean())
        numbers["log_normalizer_standard_error"] = _error_over_draws(normalizer)
    return numbers


def _error_over_draws(values: Tensor) -> float | None:
    """Of the mean over data and draws, the data held fixed."""
    return standard_error_of_mean(values.mean(1))


def _check_batch_size(batch_size: int | None, num_data: int) -> int:
    if batch_size is None:
        return num_data
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size must be a whole number, at least 1, got {batch_size!r}")
    return min(batch_size, num_data)


def _diagonal_posterior(model: Any, guide: Any, x: Tensor) -> Any:
    """q(z|x), where q is a diagonal normal and p is N(0, I)."""
    need = "textbook losses assume a diagonal normal guide and the prior N(0, I)"
    for program, name in ((guide, "posterior"), (model, "prior"), (model, "decode")):
        if not hasattr(program, name):
            owner = "guide" if program is guide else "model"
            raise InputError(f"{need}; this {owner} has no {name!r}")
    q, p = _base(guide.posterior(x)), _base(model.prior())
    if not isinstance(q, dist.Normal):
        raise InputError(f"{need}; this guide is a {_kind(q)}")
    if not isinstance(p, dist.Normal):
        raise InputError(f"{need}; this prior is a {_kind(p)}")
    if bool((p.loc != 0).any() | (p.scale != 1).any()):
        raise InputError(f"{need}; this prior is a normal of another mean or scale")
    return q


def _kl_of(q: Any, model: Any) -> Tensor:
    return kl_divergence(*(_in_double(normal) for normal in (q, _base(model.prior()))))


def _in_double(p: Any) -> Any:
    return dist.Normal(p.loc.double(), p.scale.double(), validate_args=False).to_event(1)


def _find_scaling(model: Any, x: Tensor) -> _Scaling:
    likelihood = getattr(model, "likelihood", None)
    num_levels = getattr(likelihood, "num_levels", None)
    if getattr(likelihood, "measure", None) == "levels" and num_levels:
        return _Scaling(0.0, num_levels - 1.0, f"x/{num_levels - 1}")
    low, high = float(x.min()), float(x.max())
    counts = getattr(likelihood, "measure", None) == "counts"
    if low >= 0 and high <= 1 and not counts:
        return _Scaling(0.0, 1.0, "x")
    if not 0 < high - low < math.inf:
        raise InputError(
            f"textbook losses scale data to [0, 1]; x from {low} to {high} has no range"
        )
    return _Scaling(low, high - low, f"(x − {low:.4g})/{high - low:.4g}", is_range=True)


def _kind(p: Any) -> str:
    return type(p).__name__.lstrip("_")


def _base(p: Any) -> Any:
    while isinstance(p, torch.distributions.Independent):
        p = p.base_dist
    return p


def _mean(p: Any) -> Tensor:
    try:
        mean: Tensor = p.mean
    except NotImplementedError:
        mean = torch.full((), math.nan)
    if not bool(torch.isfinite(mean).all()):
        raise InputError(
            "textbook losses compare x with the decoder's mean, and this likelihood has no finite "
            "one; use another likelihood"
        )
    return mean


def _logits(p: Any, x_hat: Tensor, eps: float, scaling: _Scaling) -> Tensor | None:
    """The logits of λ: the decoder's own for data in [0, 1], else of x̂; None outside [0, 1]."""
    base = _base(p)
    unit = isinstance(base, dist.Bernoulli) or base.support is dist.constraints.unit_interval
    own = getattr(base, "logits", None) if unit else None
    if own is not None and own.shape == x_hat.shape:
        return own.double()
    if scaling.is_range or bool((x_hat < 0).any() | (x_hat > 1).any()):
        return None
    # A mean that rounded to 0 or 1 is taken half a rounding away from it.
    return torch.logit(x_hat, eps=eps / 2)


def _model_sigma(p: Any, scaling: _Scaling) -> float | None:
    """The run's own σ on the scaled data, where it is one normal scale."""
    base = _base(p)
    if not isinstance(base, dist.Normal):
        return None
    low, high = float(base.scale.min()), float(base.scale.max())
    return low / scaling.unit if low == high else None
