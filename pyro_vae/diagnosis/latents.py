"""What the latents carry: rate, distortion, mutual information, and whether q has collapsed."""

__all__ = ["latent_use", "collapse_verdict"]

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.closed_form import NoClosedForm, kl_divergence, kl_per_dim
from pyro_vae.data.noise import permutation
from pyro_vae.diagnosis._aggregate import (
    dimension_pairs,
    information_density,
    is_product,
    needs_networks,
    program_pairs,
)
from pyro_vae.diagnosis.rows import LatentUse
from pyro_vae.digits import digits_of, error_text
from pyro_vae.errors import InputError
from pyro_vae.evaluation._chunks import default_chunk
from pyro_vae.evaluation.active_units import ActiveUnits, active_units
from pyro_vae.evaluation.latent_space import latent_space
from pyro_vae.evaluation.scores import Estimate
from pyro_vae.execution import (
    Execution,
    Program,
    check_no_points,
    check_same_latents,
    execute,
)
from pyro_vae.log_weights import check_data, own_parameters
from pyro_vae.seeding import derive_seed, seeded
from pyro_vae.standard_error import standard_error_of_mean

MAX_DATA = 2000
# Where log q(z|x) of a pair runs a network: 250² pairs of 2 draws, not 2,000² of 10.
MAX_NETWORK_DATA = 250
NETWORK_DRAWS = 2
# Of a dimension's mutual information, which need only be told from 0.01 nats.
DIMENSION_DATA = 500
DIMENSION_DRAWS = 2
# Mutual information with x, below which a latent dimension carries nothing, nats.
NOTHING = 0.01
# The same of all latents together, however it is spread over dimensions.
NOTHING_IN_ALL = 0.05
# What the mutual information may miss of that of the data's distribution, nats.
LARGEST_BIAS = 0.1

ESTIMATOR = (
    "(1/N) Σ_n log q(z_n|x_n) − log (1/N) Σ_m q(z_n|x_m), z_n ~ q(z|x_n), over all pairs "
    "(Hoffman & Johnson, 2016)"
)


@torch.no_grad()
def latent_use(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    num_samples: int = 10,
    seed: int = 0,
    ordered: bool = False,
    max_data: int | None = None,
) -> LatentUse:
    """Measure what the latents say of the data, and whether q has collapsed onto the prior.

    rate = E KL(q(z|x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ p(z)),  q(z) = (1/N) Σ_n q(z|x_n)

    The mutual information I_q(x; z) = E KL(q(z|x) ‖ q(z)) is that of z and the *N data*, x
    uniform over them, for which the estimate is unbiased; it cannot exceed log N. It is a lower
    limit, in expectation, for the distribution that the data come from (Poole et al., 2019),
    which it misses by ½ (w − 1/N) to first order in 1/N, where w is the mean share that
    the datum's own q(z|x_n) has in Σ_m q(z|x_m) at its draws. Above 0.1 nats of that
    ``at_cap`` is set: the number tells the size of the sample. KL(q(z) ‖ p(z)) is too large by
    the same.

    log q(z) moves by second order only if one datum is exchanged for another, so that the
    terms KL(q(z|x_n) ‖ q(z)) are as good as independent: the standard error over data is
    theirs, right for large N (6 to 8 % too small when tried at N = 200). Where the rate has a
    closed form, its known error over draws corrects both parts (a control variate), which add
    up to it.

    q has collapsed where I_q(x; z) is below 0.05 nats by two standard errors, whatever single
    dimensions show. Where q is a product over dimensions, a dimension carries nothing if
    I_q(x; z_d) is below 0.01 nats, whatever the prior; the joint one is at most their sum.
    Elsewhere it counts as such if its posterior mean does not move (``active_units``). Where
    none carries anything, q has collapsed too if all together carry less than 0.01 nats
    a dimension.

    References:
        ELBO Surgery (Hoffman & Johnson, 2016)
        http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
        On Variational Bounds of Mutual Information (Poole et al., 2019), section 2.4
        https://arxiv.org/abs/1905.06922
        Fixing a Broken ELBO (Alemi et al., 2018), rate and distortion
        https://arxiv.org/abs/1711.00464

    Arguments:
        model, guide: Pyro programs of ``x``.
        x: ``[B, *event_shape]``, on the programs' device.
        num_samples: draws a datum.
        seed: of the draws, and of the subset of data.
        ordered: the data are a video, neighbours alike.
        max_data: N at most, drawn at random from x; None is 2,000, and 250 where log q(z|x)
            of a pair runs a network (flows, several latents). Two draws a datum are paired
            there, more where data are few.

    Raises:
        InputError: a guide that is a point, which has no rate; programs that do not go together.
    """
    check_data(x, num_samples)
    if not getattr(guide, "has_bound", True):
        raise InputError(
            "this guide is a point without a density: it has no rate and no mutual information "
            "with x; use a guide that has a bound"
        )
    with own_parameters(model, guide):
        first = _run(guide, x[:1], 1, seed)
        networks = needs_networks([site["fn"] for site in first.latent.values()])
        limit = max_data or (MAX_NETWORK_DATA if networks else MAX_DATA)
        if len(x) > limit:
            index = permutation(len(x), derive_seed(seed, "latent use"))[:limit].sort().values
            x = x[index.to(x.device)]
        draws = _draw(model, guide, x, num_samples, seed)
        units = _active_units(model, guide, x, seed)
        shares, note = _information(model, guide, x, draws, networks)
        dims = _information_per_dim(model, guide, x, draws, seed)
    site = _listed(model, draws)
    return _summary(draws, shares, dims, units, ordered, note, site)


@dataclass(frozen=True)
class _Draws:
    """S draws a datum, in blocks of data put together; nats."""

    values: dict[str, Tensor]
    """site → ``[S, N, …]``."""
    log_likelihood: Tensor
    """log p(x|z), ``[S, N]``."""
    log_ratio: Tensor
    """log q(z|x) − log p(z), ``[S, N]``."""
    rate: Tensor | None
    """KL(q(z|x) ‖ p(z)) in closed form, ``[N]``."""
    per_dim: Tensor | None
    """The same a dimension, ``[N, D]``, in closed form or over the draws."""
    layers: dict[str, Tensor]
    """Of several latents each one's log q − log p, ``[S, N]``."""
    summed: bool
    """Whether the model sums a discrete latent out, so that its densities are of all at once."""


def _run(guide: Program, x: Tensor, num: int, seed: int) -> Execution:
    with seeded(seed, x.device):
        run = execute(guide, "guide", num, (x,), num_data=len(x))
    check_no_points(run)
    return run


def _draw(model: Program, guide: Program, x: Tensor, num: int, seed: int) -> _Draws:
    size = max(1, default_chunk(x.device) // num)
    parts = []
    for i, part in enumerate(x.split(size)):
        q = _run(guide, part, num, derive_seed(seed, "latent use", i))
        p = execute(model, "model", num, (part,), values=q.values, num_data=len(part))
        check_same_latents(p, q.values)
        parts.append(_terms(p, q))
    return _joined(parts)


def _terms(p: Execution, q: Execution) -> _Draws:
    log_q = {name: q.log_prob(site).double() for name, site in q.latent.items()}
    log_p = {name: p.log_prob(site) for name, site in p.latent.items()}
    log_likelihood, log_prior = p.likelihood_and_prior(list(log_p.values()))
    log_ratio = q.total(list(log_q.values())) - log_prior.double()
    plain = not p.enumerated
    rate = per_dim = None
    if len(log_q) == 1 and plain:
        (name,) = log_q
        fns, value = (q.latent[name]["fn"], p.latent[name]["fn"]), q.values[name]
        rate, per_dim = _closed_rate(*fns), _per_dim(*fns, value)
    layers = {n: log_q[n] - log_p[n].double() for n in p.latent} if plain and len(log_q) > 1 else {}
    return _Draws(
        q.values, log_likelihood.double(), log_ratio, rate, per_dim, layers, summed=not plain
    )


def _joined(parts: list[_Draws]) -> _Draws:
    first = parts[0]
    return _Draws(
        values={name: torch.cat([part.values[name] for part in parts], 1) for name in first.values},
        log_likelihood=torch.cat([part.log_likelihood for part in parts], 1),
        log_ratio=torch.cat([part.log_ratio for part in parts], 1),
        rate=_cat([part.rate for part in parts]),
        per_dim=_cat([part.per_dim for part in parts]),
        layers={name: torch.cat([part.layers[name] for part in parts], 1) for name in first.layers},
        summed=first.summed,
    )


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


def _closed_rate(q: Any, p: Any) -> Tensor | None:
    """KL(q ‖ p) ``[B]`` of distributions that are the same for all of S draws."""
    try:
        return kl_divergence(q, p).double()[0]
    except NoClosedForm:
        return None


def _per_dim(q: Any, p: Any, z: Tensor) -> Tensor | None:
    """KL(q_d ‖ p_d) ``[B, D]``, over the draws z where it has no closed form; None: no products."""
    try:
        kl = kl_per_dim(q, p)[0].double()
        return kl.reshape(len(kl), -1)
    except NoClosedForm:
        q_dims, p_dims = is_product(q), is_product(p)
    if q_dims is None or p_dims is None:
        return None
    ratio: Tensor = q_dims.log_prob(z).double() - p_dims.log_prob(z).double()
    return ratio.mean(0).reshape(z.shape[1], -1)


def _information(
    model: Program, guide: Program, x: Tensor, draws: _Draws, networks: bool
) -> tuple[Tensor | None, str | None]:
    """log q(z|x) − log q(z) ``[S, N]`` of the draws, or of the first of them; or why not."""
    if not getattr(guide, "has_density", True):
        return None, (
            "mutual information: not known, for this guide has no log q(z|x) at any z but its own"
        )
    try:
        space = latent_space(model, x[:1])
    except InputError as error:
        return None, f"mutual information: not known, {error}"
    z = space.vector(draws.values)
    pairs = program_pairs(guide, x, space)
    if not networks:
        return information_density(pairs, z), None
    block = default_chunk(x.device) * space.dim
    num = _paired_draws(len(x), MAX_NETWORK_DATA, NETWORK_DRAWS)
    return information_density(pairs, z[:num], block), None


def _paired_draws(num_data: int, most_data: int, fewest: int) -> int:
    """How many draws a datum are paired: as many pairs as of the most data with the fewest."""
    return fewest * max(1, most_data // num_data) ** 2


def _information_per_dim(
    model: Any, guide: Any, x: Tensor, draws: _Draws, seed: int
) -> Tensor | None:
    """I_q(x; z_d) ``[D]`` with up to 500 of the data, where q is a product; 2 draws or more.

    Of several latents it is the one that ``posterior`` speaks of, as in ``active_units``.
    """
    if not getattr(guide, "has_density", True):
        return None
    name, posterior = _listed(model, draws), None
    if len(draws.values) > 1:
        if not hasattr(guide, "posterior") or not hasattr(model, "prior"):
            return None
        posterior, shape = guide.posterior, draws.values[name].shape[2:]
        if not posterior(x[:1]).event_shape == shape == model.prior().event_shape:
            return None

    def q(part: Tensor) -> Any:
        return posterior(part) if posterior else _run(guide, part, 1, seed).latent[name]["fn"]

    if is_product(q(x[:1])) is None:
        return None
    every = -(-len(x) // DIMENSION_DATA)
    x, z = x[::every], draws.values[name][:, ::every]
    z = z[: _paired_draws(len(x), DIMENSION_DATA, DIMENSION_DRAWS)]
    return information_density(dimension_pairs(q, x), z).mean((0, 1)).flatten()


def _listed(model: Any, draws: _Draws) -> str:
    """The latent whose dimensions are listed: of several the one that ``prior`` speaks of."""
    first = next(iter(draws.values))
    if len(draws.values) == 1 or not hasattr(model, "prior"):
        return first
    shape = model.prior().event_shape
    own = [n for n, value in draws.values.items() if value.shape[2:] == shape]
    return own[0] if own else first


def _active_units(model: Any, guide: Any, x: Tensor, seed: int) -> ActiveUnits:
    if not hasattr(model, "prior") or not hasattr(guide, "posterior"):
        return ActiveUnits([], None, "not defined: the pair has no prior and posterior(x)")
    return active_units(model, guide, x, seed=seed)


def _summary(
    draws: _Draws,
    density: Tensor | None,
    dims: Tensor | None,
    units: ActiveUnits,
    ordered: bool,
    note: str | None,
    site: str,
) -> LatentUse:
    N = draws.log_ratio.shape[1]
    rate = _estimate(draws.log_ratio, ordered)
    if draws.rate is not None:
        rate = _estimate(draws.rate[None], ordered, note="in closed form")
    notes = [note] if note else []
    if units.note:
        notes.append(f"active units: {units.note}")
    information = marginal = None
    at_cap = False
    if density is not None:
        information, marginal = _surgery(draws, density, ordered)
        at_cap = information.understated
        notes += _information_notes(information, N, ordered)
    layers = {name: _estimate(ratio, ordered) for name, ratio in draws.layers.items()}
    if layers:
        told = ", ".join(f"{name} {_told(layer)}" for name, layer in layers.items())
        notes.append(f"rate by latent, each given what it hangs on: {told}")
    kl, errors = _kl_per_dim(draws, ordered)
    if kl is None:
        reason = "q and the prior are not both products over dimensions"
        if draws.summed:
            reason = "the model sums a discrete latent out"
        notes.append(f"KL per dimension: {reason}")
    sizes = {name: value[0, 0].numel() for name, value in draws.values.items()}
    # The model's first latent hangs on no other: E KL(q ‖ p) of it is that of a fixed p.
    unused = next(
        (name for name in [*layers][:1] if _below(layers[name], NOTHING * sizes[name])), None
    )
    collapse, sentence = collapse_verdict(
        rate, information, at_cap, N, sizes, dims=dims, units=units, unused=unused
    )
    return LatentUse(
        rate=rate,
        distortion=_estimate(-draws.log_likelihood, ordered),
        mutual_information=information,
        marginal_kl=marginal,
        mutual_information_cap=None if information is None else math.log(N),
        at_cap=at_cap,
        estimator=None if information is None else ESTIMATOR,
        kl_per_dim=kl,
        kl_per_dim_errors=errors,
        activity=units.activity,
        active_units=units.count,
        collapse=collapse,
        sentence=sentence,
        notes=notes,
        site=site,
    )


def _estimate(values: Tensor, ordered: bool, **extra: Any) -> Estimate:
    """The mean of values ``[S, N]``; over draws the error of a mean of N independent means."""
    S, N = values.shape
    error = float((values.var(0).sum() / S).sqrt() / N) if S > 1 else None
    data_error = standard_error_of_mean(values.mean(0), ordered)
    return Estimate(float(values.mean()), error, data_error, N, **extra)


def _surgery(draws: _Draws, density: Tensor, ordered: bool) -> tuple[Estimate, Estimate]:
    """I_q(x; z) and KL(q(z) ‖ p(z)) = rate − I, with their errors and bias.

    With a = log q(z|x) − log q(z), r = log q(z|x) − log p(z) and R = E r known, the mean of
    a − β (r − R) is that of a; β = Cov(a, r)/Var(r) within a datum leaves the least variance.
    """
    S, N = density.shape
    ratio = draws.log_ratio[:S]
    rate = ratio.mean(0) if draws.rate is None else draws.rate
    terms = density
    if draws.rate is not None and S > 1:
        inner, outer = ratio - ratio.mean(0), density - density.mean(0)
        spread = float(inner.square().sum())
        beta = float((inner * outer).sum()) / spread if spread > 0 else 0.0
        terms = density - beta * (ratio - rate)
    own = float((density - math.log(N)).exp().mean())
    bias = 0.5 * (own - 1 / N)
    at_cap = bias > LARGEST_BIAS
    information = _estimate(terms, ordered)
    # KL = R − I: with R known it has the error of I over draws, else that of r − a.
    rest = rate - terms if draws.rate is not None else ratio - terms
    marginal = _estimate(rest, ordered)
    extra, known = {"understated": at_cap}, not (at_cap or ordered)
    return (
        _with(information, bias=-bias if known else None, **extra),
        _with(marginal, bias=bias if known else None, **extra),
    )


def _with(estimate: Estimate, **changes: Any) -> Estimate:
    return Estimate(**{**vars(estimate), **changes})


def _information_notes(information: Estimate, num_data: int, ordered: bool) -> list[str]:
    notes = [
        f"mutual information and marginal KL are of the {num_data} data as the population; their "
        "bias, to first order, is against the distribution that the data come from"
        + (", and not known for ordered data" if ordered else "")
    ]
    if information.understated:
        notes.append(
            f"the mutual information is limited by its cap, log {num_data} = "
            f"{math.log(num_data):.2f}: for the distribution that the data come from it is a "
            "lower limit only, and the marginal KL an upper limit"
        )
    return notes


def _kl_per_dim(draws: _Draws, ordered: bool) -> tuple[list[float] | None, list[float] | None]:
    if draws.per_dim is None:
        return None, None
    columns = draws.per_dim.T
    errors = [standard_error_of_mean(column, ordered) for column in columns]
    known = [error for error in errors if error is not None]
    return columns.mean(1).tolist(), known if len(known) == len(errors) else None


def collapse_verdict(
    rate: Estimate,
    information: Estimate | None,
    at_cap: bool,
    num_data: int,
    sizes: dict[str, int],
    *,
    dims: Tensor | None,
    units: ActiveUnits,
    unused: str | None = None,
) -> tuple[str, str]:
    """Return ``collapsed``, ``partly collapsed``, ``healthy`` or ``unknown``, and why.

    Arguments:
        rate, information: E KL(q(z|x) ‖ p(z)) and I_q(x; z), where it is known.
        at_cap: whether the latter is a lower limit only.
        num_data: N, of which it is.
        sizes: latent → its number of dimensions.
        dims: I_q(x; z_d) ``[D]``, where q is a product over dimensions; of several latents of
            the one that is decoded.
        units: the activity of its dimensions.
        unused: a latent, one of several, whose q is its prior.
    """
    carried = _carried(rate, information, at_cap, num_data)
    if num_data < 2:
        return "unknown", f"Unknown: one datum cannot tell whether q(z|x) depends on x; {carried}."
    carried += _of_units(units)
    if _collapsed(rate, information, sizes, dims, units):
        return "collapsed", (
            "Collapsed: q(z|x) is all but the same for all x, no latent tells data apart; "
            f"{carried}. This speaks of q: the decoder may still depend on z."
        )
    if unused is not None:
        return "partly collapsed", (
            f"Partly collapsed: the latent {unused} carries nothing, its q is its prior; {carried}."
        )
    if dims is None and units.count is None:
        return "unknown", f"Unknown: which latents carry anything is not known; {carried}."
    count, idle, what = _idle(dims, units)
    if idle == 0 and units.count == 0:
        return "healthy", (
            "Healthy by mutual information alone, for no unit is active, no posterior mean moves "
            f"by a hundredth of the prior's variance: {carried}."
        )
    if idle == 0:
        return "healthy", f"Healthy: {carried}."
    if idle == count:
        return "unknown", (
            f"Unknown: no latent dimension carries anything alone ({what}), the shape of q(z|x) "
            f"or several together may; {carried}."
        )
    return "partly collapsed", (
        f"Partly collapsed: {idle} of {count} latent dimensions carry nothing ({what}); {carried}."
    )


def _collapsed(
    rate: Estimate,
    information: Estimate | None,
    sizes: dict[str, int],
    dims: Tensor | None,
    units: ActiveUnits,
) -> bool:
    """Whether I_q(x; z) is nothing: I ≤ Σ_d I_d for a product, and I ≤ rate always."""
    total = information or rate
    idle = not units.count if dims is None else bool((dims < NOTHING).all())
    in_all = NOTHING * sum(sizes.values()) if idle else 0.0
    return _below(total, max(NOTHING_IN_ALL, in_all))


def _below(estimate: Estimate, limit: float) -> bool:
    """Whether by two standard errors; those over data have those over draws in them."""
    errors = (estimate.standard_error, estimate.data_standard_error)
    return estimate.value + 2 * max(error or 0.0 for error in errors) < limit


def _idle(dims: Tensor | None, units: ActiveUnits) -> tuple[int, int, str]:
    """How many dimensions there are, how many carry nothing, and by which criterion."""
    if dims is not None:
        idle = int((dims < NOTHING).sum())
        return len(dims), idle, f"mutual information with x below {NOTHING} nats"
    idle = len(units.activity) - (units.count or 0)
    return len(units.activity), idle, "the posterior mean does not move"


def _carried(rate: Estimate, information: Estimate | None, at_cap: bool, num_data: int) -> str:
    told = f"the rate is {_told(rate)} nats"
    if information is None:
        return told
    cap = f"log {num_data} = {math.log(num_data):.2f}"
    limit = f" (a lower limit, at most {cap} can be seen)" if at_cap else ""
    return f"q's mutual information of x and z is {_told(information)} nats{limit}, {told}"


def _of_units(units: ActiveUnits) -> str:
    if units.count is None:
        return ""
    layer = f" ({units.note})" if units.note else ""
    return f", {units.count} of {len(units.activity)} units active{layer}"


def _told(estimate: Estimate) -> str:
    """A value and its larger error, to the digits of the error."""
    errors = (estimate.standard_error, estimate.data_standard_error)
    known = [error for error in errors if error is not None]
    if not known:
        return f"{estimate.value:.3g}"
    digits = digits_of([max(known)])
    return f"{estimate.value:.{digits}f} ± {error_text(max(known), digits)}"
