"""Kullback–Leibler divergences and an ELBO in closed form, each derived by hand.

Every formula follows from KL(q ‖ p) = E_q[log q(z) − log p(z)]; the steps that a docstring
leaves out stand in ``docs/derivation.md``.
"""

__all__ = [
    "kl_divergence",
    "kl_per_dim",
    "kl_diagonal_normal",
    "kl_full_rank_normal",
    "kl_laplace",
    "kl_normal_laplace",
    "kl_gamma",
    "affine_normal_elbo",
    "exact_elbo",
    "NoClosedForm",
    "mask_of",
]

import math
import re
from collections.abc import Callable
from typing import Any

import pyro.distributions as pyro_dist
import torch
import torch.distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.student_t import LocationScaleT


class NoClosedForm(InputError):
    """KL(q ‖ p) of these two has no closed form here."""


def kl_divergence(q: Any, p: Any) -> Tensor:
    """Return KL(q ‖ p) in nats, of the broadcast batch shape of q and p.

    Two products over dimensions of one family (normal, Laplace, gamma), a product of normals
    and one of Laplace, or two normals of any covariance. The event dimensions are summed; where
    both are masked alike, a masked element counts 0. A family is the class that defines the
    log-density, so that a subclass with a ``log_prob`` of its own is none of these. Such a class
    may declare that its density is nevertheless that of N(``loc``, A Aᵀ), by a property
    ``normal_factor``: A ``[*, D, M]``, lower triangular where M = D.

    Arguments:
        q, p: distributions of one ``event_shape``; ``batch_shape`` broadcasts.

    Raises:
        NoClosedForm: naming both families.
        InputError: q and p are not over the same dimensions.

    Example:
        >>> q = dist.Normal(torch.ones(5, 2), 1.0)
        >>> p = dist.Normal(torch.zeros(2), 1.0)
        >>> kl_divergence(dist.Independent(q, 1), dist.Independent(p, 1))  # ½ |μ|²
        tensor([1., 1., 1., 1., 1.])
    """
    kl = _per_dim(q, p)
    if kl is None:
        kl = _of_vectors(q, p)
    if kl is None:
        raise NoClosedForm(f"no closed form here of KL({_family(q)} ‖ {_family(p)})")
    dims = kl.dim() - len(_batch_shape(q, p))
    return kl.sum(tuple(range(-dims, 0))) if dims else kl


def kl_per_dim(q: Any, p: Any) -> Tensor:
    """Return KL(q ‖ p) a dimension, ``[*batch, *event]``, where both are products over dimensions.

    Raises:
        NoClosedForm: naming both families.
        InputError: q and p are not over the same dimensions.
    """
    kl = _per_dim(q, p)
    if kl is None:
        raise NoClosedForm(
            f"no closed form here of KL({_family(q)} ‖ {_family(p)}) dimension by dimension"
        )
    return kl


def kl_diagonal_normal(
    loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor
) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(m, s²)) = ½ ((σ/s)² + ((μ − m)/s)² − 1) − log(σ/s), a dimension.

    log q − log p = log(s/σ) − (z − μ)²/2σ² + (z − m)²/2s²,
    E_q (z − μ)² = σ²,  E_q (z − m)² = σ² + (μ − m)²

    Against N(0, 1): ½ (σ² + μ² − 1) − log σ.

    Arguments:
        loc, scale: μ and the standard deviation σ of q.
        prior_loc, prior_scale: m and s of p; all broadcast.
    """
    ratio = scale / prior_scale
    return 0.5 * (ratio**2 + ((loc - prior_loc) / prior_scale) ** 2 - 1) - ratio.log()


def kl_full_rank_normal(
    loc: Tensor, scale_tril: Tensor, prior_loc: Tensor, prior_scale_tril: Tensor
) -> Tensor:
    """Return KL(N(μ, L Lᵀ) ‖ N(m, P Pᵀ)), ``[*]``.

    ½ (‖P⁻¹ L‖² + |P⁻¹ (μ − m)|² − D) + Σ_i log(P_ii/L_ii),  ‖·‖² the sum of squares

    From E_q (z − a)ᵀ C (z − a) = tr(C Σ) + (μ − a)ᵀ C (μ − a), tr((P Pᵀ)⁻¹ L Lᵀ) = ‖P⁻¹ L‖²
    and log det L Lᵀ = 2 Σ_i log L_ii. Two triangular solves; no covariance is inverted.

    Arguments:
        loc: μ ``[*, D]``.
        scale_tril: L ``[*, D, D]``, lower triangular.
        prior_loc: m ``[*, D]``.
        prior_scale_tril: P ``[*, D, D]``, lower triangular.
    """
    solve = torch.linalg.solve_triangular
    spread = solve(prior_scale_tril, scale_tril, upper=False)
    shift = solve(prior_scale_tril, (loc - prior_loc).unsqueeze(-1), upper=False)
    squares = (spread**2).sum((-2, -1)) + (shift**2).sum((-2, -1)) - loc.shape[-1]
    return 0.5 * squares + _half_log_det(prior_scale_tril) - _half_log_det(scale_tril)


def kl_laplace(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """Return KL(Laplace(μ, b) ‖ Laplace(m, s)), a dimension.

    log(s/b) + δ/s + (b/s) exp(−δ/b) − 1,  δ = |μ − m|

    log q − log p = log(s/b) − |z − μ|/b + |z − m|/s,
    E_q |z − μ| = b,  E_q |z − m| = δ + b exp(−δ/b)

    Arguments:
        loc, scale: μ and b of q.
        prior_loc, prior_scale: m and s of p; all broadcast.
    """
    ratio, shift = scale / prior_scale, (loc - prior_loc).abs()
    return shift / prior_scale + ratio * (-shift / scale).exp() - 1 - ratio.log()


def kl_normal_laplace(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ Laplace(m, s)), a dimension.

    E_q |z − m|/s + log(2s/σ) − ½ log(2πe),  δ = μ − m
    E_q |z − m| = σ √(2/π) exp(−δ²/2σ²) + δ erf(δ/(σ √2))

    Arguments:
        loc, scale: μ and the standard deviation σ of q.
        prior_loc, prior_scale: m and s of p; all broadcast.
    """
    shift = loc - prior_loc
    t = shift / (scale * math.sqrt(2))
    distance = scale * math.sqrt(2 / math.pi) * (-(t**2)).exp() + shift * t.erf()
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    return distance / prior_scale + (2 * prior_scale / scale).log() - entropy


def kl_gamma(
    concentration: Tensor, rate: Tensor, prior_concentration: Tensor, prior_rate: Tensor
) -> Tensor:
    """Return KL(Gamma(a, b) ‖ Gamma(c, d)), b and d rates, a dimension.

    (a − c) ψ(a) − log Γ(a) + log Γ(c) + c log(b/d) + a (d/b − 1),  ψ = (log Γ)'

    log q − log p = a log b − log Γ(a) − c log d + log Γ(c) + (a − c) log z − (b − d) z,
    E_q z = a/b,  E_q log z = ψ(a) − log b

    In float64: at a = c = 10⁴ the terms are 10⁵ nats and their sum may be none.

    Arguments:
        concentration, rate: a and b of q.
        prior_concentration, prior_rate: c and d of p; all broadcast.
    """
    a, b, c, d = (t.double() for t in (concentration, rate, prior_concentration, prior_rate))
    normalizers = (a - c) * a.digamma() - a.lgamma() + c.lgamma()
    kl = normalizers + c * (b / d).log() + a * (d / b - 1)
    return kl.to(torch.promote_types(concentration.dtype, prior_concentration.dtype))


def affine_normal_elbo(
    x: Tensor, q: Any, weight: Tensor, bias: Tensor, scale: Tensor, prior: Any = None
) -> Tensor:
    """Return the ELBO of x|z ~ N(W z + b, diag σ²) and a normal q, ``[*]``, without Monte Carlo.

    log N(x; W μ + b, diag σ²) − ½ ‖diag(σ)⁻¹ W A‖² − KL(q ‖ p),  q = N(μ, A Aᵀ)

    since E_q |x − b − W z|² = |x − b − W μ|² + ‖W A‖², under the metric of σ. It is
    differentiable in all of its arguments.

    Arguments:
        x: data ``[*, N]``.
        q: a normal of ``event_shape (D,)`` whose batch broadcasts with that of x.
        weight: W ``[N, D]``.
        bias: b, ``[N]`` or ``[]``.
        scale: the standard deviation σ of x, ``[N]`` or ``[]``.
        prior: a normal of ``event_shape (D,)``; None is N(0, I).

    Raises:
        NoClosedForm: q or the prior is not a normal.
        InputError: shapes that do not fit.

    Example:
        >>> x, W = torch.tensor([[1.0]]), torch.tensor([[1.0]])
        >>> q = dist.MultivariateNormal(0.5 * x, torch.tensor([[0.5]]))  # p(z|x)
        >>> affine_normal_elbo(x, q, W, torch.zeros(1), torch.ones(1))  # log N(1; 0, 2)
        tensor([-1.5155])
    """
    factor = _vector(q)
    if factor is None:
        raise NoClosedForm(f"no closed form here of the ELBO: q is a {_family(q)}, not a normal")
    loc, A, diagonal = factor
    if weight.shape != (*x.shape[-1:], *loc.shape[-1:]):
        raise InputError(
            f"expected a weight of shape {[*x.shape[-1:], *loc.shape[-1:]]}, data by latents, "
            f"got {list(weight.shape)}"
        )
    if prior is None:
        zero, one = torch.zeros_like(loc), torch.ones_like(loc)
        prior = dist.Independent(dist.Normal(zero, one, validate_args=False), 1)
    scale = scale.expand(x.shape[-1])
    W = weight / scale.unsqueeze(-1)
    residual = (x - bias) / scale - loc @ W.mT
    spread = A**2 @ (W**2).sum(0) if diagonal else ((W @ A) ** 2).sum((-2, -1))
    normalizer = scale.log().sum() + 0.5 * len(scale) * math.log(2 * math.pi)
    return -0.5 * ((residual**2).sum(-1) + spread) - normalizer - kl_divergence(q, prior)


def exact_elbo(model: Any, guide: Any, x: Tensor) -> Tensor:
    """Return ``affine_normal_elbo`` of a model and a guide, ``[B]``, in nats.

    Arguments:
        model: has ``decoder``, one affine layer, ``decode(z)``, a normal whose scale does
            not depend on z, and ``prior()``, a normal; such as ``linear_gaussian``.
        guide: has ``posterior(x)``, a normal.
        x: ``[B, *event_shape]``.

    Raises:
        InputError: what is not affine, or not normal.
    """
    if not hasattr(guide, "posterior"):
        raise InputError(
            "the ELBO is exact for a guide with posterior(x), a normal; use --guide diagonal_normal"
        )
    W, b, scale = _affine_normal(model)
    return affine_normal_elbo(x.flatten(1), guide.posterior(x), W, b, scale, model.prior())


def mask_of(fn: Any) -> Tensor | None:
    """Return the mask of a distribution, which broadcasts to ``[*batch, *event]``; None is all."""
    return _unwrap(fn)[1]


# Products over dimensions, by the classes that define the densities of q and p: formula,
# parameters.
_PRODUCTS: dict[tuple[type, type], tuple[Callable[..., Tensor], tuple[str, str]]] = {
    (dist.Normal, dist.Normal): (kl_diagonal_normal, ("loc", "scale")),
    (dist.Laplace, dist.Laplace): (kl_laplace, ("loc", "scale")),
    (dist.Normal, dist.Laplace): (kl_normal_laplace, ("loc", "scale")),
    (dist.Gamma, dist.Gamma): (kl_gamma, ("concentration", "rate")),
}
_NAMES: dict[type, str] = {
    dist.MultivariateNormal: "full-rank normal",
    dist.LowRankMultivariateNormal: "low-rank normal",
    dist.TransformedDistribution: "flow",
    dist.Laplace: "Laplace",
    LocationScaleT: "Student t",
    pyro_dist.Delta: "point mass",
}


def _per_dim(q: Any, p: Any) -> Tensor | None:
    """KL a dimension, ``[*batch, *event]``; None where q and p are no such products."""
    _check_same_event(q, p)
    (q_base, q_mask), (p_base, p_mask) = _unwrap(q), _unwrap(p)
    families = _definer(q_base), _definer(p_base)
    if families not in _PRODUCTS:
        return None
    formula, names = _PRODUCTS[families]
    kl = formula(*(getattr(fn, name) for fn in (q_base, p_base) for name in names))
    return _masked(kl.expand(_batch_shape(q, p) + q.event_shape), q_mask, p_mask)


def _of_vectors(q: Any, p: Any) -> Tensor | None:
    """KL of normals over the last event dimension, ``[*batch, *event[:-1]]``; None for others."""
    one, other = _vector(q), _vector(p)
    if one is None or other is None:
        return None
    L, P = (torch.diag_embed(A) if diagonal else _triangular(A) for _, A, diagonal in (one, other))
    kl = kl_full_rank_normal(one[0], L, other[0], P)
    masks = [mask if mask is None else _without_last(mask) for mask in (mask_of(q), mask_of(p))]
    return _masked(kl.expand(_batch_shape(q, p) + q.event_shape[:-1]), *masks)


def _vector(fn: Any) -> tuple[Tensor, Tensor, bool] | None:
    """loc ``[*, D]``, and σ ``[*, D]`` (True) or A ``[*, D, M]`` (False); None for no normal."""
    base, _ = _unwrap(fn)
    family = _definer(base)
    if not fn.event_shape:
        return None
    if family is dist.Normal:
        shape = torch.broadcast_shapes(base.loc.shape, fn.event_shape[-1:])
        return _unexpanded(base.loc.expand(shape)), _unexpanded(base.scale.expand(shape)), True
    if family is dist.MultivariateNormal:
        factor = base._unbroadcasted_scale_tril
    elif family is dist.LowRankMultivariateNormal:
        diagonal = torch.diag_embed(base._unbroadcasted_cov_diag.sqrt())
        factor = torch.cat([diagonal, base._unbroadcasted_cov_factor], -1)
    elif _declares_normal(base):
        factor = base.normal_factor
    else:
        return None
    return _unexpanded(base.loc), factor, False


def _unexpanded(t: Tensor) -> Tensor:
    """``[*, D]``, a batch dimension that only repeats it of size 1: no solve for each of K."""
    for dim in range(t.dim() - 1):
        if t.stride(dim) == 0 and t.shape[dim] > 1:
            t = t.narrow(dim, 0, 1)
    return t


def _declares_normal(fn: Any) -> bool:
    """Whether the class that defines the density, or one derived from it, says it is normal."""
    return any("normal_factor" in vars(c) for c in type(fn).__mro__ if issubclass(c, _definer(fn)))


def _triangular(A: Tensor) -> Tensor:
    """L of L Lᵀ = A Aᵀ: Aᵀ = Q R gives L = Rᵀ, without the squares of a Cholesky factor."""
    return A if A.shape[-1] == A.shape[-2] else torch.linalg.qr(A.mT).R.mT


def _half_log_det(L: Tensor) -> Tensor:
    """½ log det L Lᵀ; the signs of a factor by QR are arbitrary."""
    return L.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def _unwrap(fn: Any) -> tuple[Any, Tensor | None]:
    """The distribution under ``to_event``, ``expand`` and ``mask``, and the mask."""
    mask: Tensor | None = None
    while True:
        family = _definer(fn)
        if family is pyro_dist.MaskedDistribution and fn._mask is not True:
            own = torch.as_tensor(fn._mask)
            # Its shape is that of the log-density at this level.
            own = own.reshape(own.shape + (1,) * len(fn.event_shape)) if own.dim() else own
            mask = own if mask is None else mask & own
        elif family not in (dist.Independent, ExpandedDistribution, pyro_dist.MaskedDistribution):
            return fn, mask
        fn = fn.base_dist


def _masked(kl: Tensor, q_mask: Tensor | None, p_mask: Tensor | None) -> Tensor:
    """0 where both are masked; masked in one alone, log q − log p is no log-ratio."""
    if q_mask is None and p_mask is None:
        return kl
    if q_mask is None or p_mask is None or not _same(q_mask, p_mask):
        raise NoClosedForm("no closed form here of KL(q ‖ p) where q and p are masked unlike")
    return torch.where(q_mask.to(kl.device), kl, 0.0)


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or bool(torch.eq(one, other).all())


def _without_last(mask: Tensor) -> Tensor:
    if mask.dim() and mask.shape[-1] != 1:
        raise NoClosedForm("no closed form here of KL(q ‖ p) where q is masked within a vector")
    return mask.squeeze(-1) if mask.dim() else mask


def _definer(fn: Any) -> type:
    """The class whose ``log_prob`` this is: the family."""
    return next(c for c in type(fn).__mro__ if "log_prob" in vars(c))


def _batch_shape(q: Any, p: Any) -> torch.Size:
    return torch.broadcast_shapes(q.batch_shape, p.batch_shape)


def _check_same_event(q: Any, p: Any) -> None:
    if q.event_shape != p.event_shape:
        raise InputError(
            f"KL(q ‖ p) is of two distributions over the same dimensions; got event_shape "
            f"{tuple(q.event_shape)} of q and {tuple(p.event_shape)} of p; declare event "
            "dimensions by .to_event"
        )


def _family(fn: Any) -> str:
    """What a user calls it: Normal is "normal", DiagonalNormalMixture "diagonal normal mixture"."""
    base, _ = _unwrap(fn)
    name, definer = type(base).__name__, _definer(base)
    if _declares_normal(base):
        return "full-rank normal"
    if definer in _NAMES and definer.__name__ == name:  # Pyro's class is named as torch's
        return _NAMES[definer]
    words = name.strip("_").removesuffix("Distribution")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words).lower()


def _affine_normal(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """W ``[N, D]``, b ``[N]`` and σ ``[N]`` of a model's decoder.

    Raises:
        InputError: x|z is not N(W z + b, diag σ²) at five z.
    """
    body = getattr(getattr(model, "decoder", None), "body", ())
    layers = list(body) if isinstance(body, nn.Sequential) else []
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        raise InputError(
            "the ELBO is exact for a decoder of one affine layer only; use --encoder linear, "
            "or --model linear_gaussian"
        )
    W: Tensor = layers[0].weight
    b = W.new_zeros(len(W)) if layers[0].bias is None else layers[0].bias
    # 0, and both ways along two directions, far enough to meet a clipped mean.
    along = 10 * torch.arange(2.0 * W.shape[1]).to(W).square().cos().reshape(2, -1)
    z = torch.cat([torch.zeros_like(along[:1]), along, -along])
    p = _unwrap(model.decode(z))[0]
    if _definer(p) is not dist.Normal or p.loc.numel() != len(z) * len(W):
        raise InputError(
            "the ELBO is exact for a normal likelihood of one scale only; use --likelihood "
            "'normal(scale=learned)' or 'normal(scale=<number>)'"
        )
    loc, scale = (t.reshape(len(z), -1) for t in (p.loc, p.scale.expand_as(p.loc)))
    off = (loc - z @ W.T - b).abs().max() > 1e-3 * loc.abs().max()
    if off or not bool((scale == scale[0]).all()):
        raise InputError("the ELBO is exact where x|z is N(W z + b, diag σ²) only; this one is not")
    return W, b, scale[0]
