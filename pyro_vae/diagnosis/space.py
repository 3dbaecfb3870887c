"""Whether the latent space is complete and continuous: what lies under the prior, and between."""

__all__ = ["latent_space_report", "latent_draws", "LatentDraws"]

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.data.noise import permutation
from pyro_vae.diagnosis._aggregate import Pairs, log_aggregate, needs_networks, posterior_pairs
from pyro_vae.diagnosis.rows import LatentSpaceReport, Probe
from pyro_vae.errors import InputError
from pyro_vae.evaluation._chunks import default_chunk
from pyro_vae.evaluation.scores import Estimate
from pyro_vae.execution import Program, is_point
from pyro_vae.log_weights import own_parameters
from pyro_vae.seeding import derive_seed, seeded
from pyro_vae.standard_error import standard_error_of_mean

SHARE = 0.95
TRAIN_DATA, TEST_DATA, PRIOR_DRAWS = 2000, 2000, 5000
# Where log q(z|x) of a pair runs a network.
NETWORK_TRAIN_DATA, NETWORK_DRAWS = 100, 500
# Draws of q(z|x) for each held-out datum, and of all of them together, about.
DRAWS_A_DATUM, HELD_OUT_DRAWS, NETWORK_HELD_OUT_DRAWS = 20, 20_000, 2_000
# Levels about 5 % over which the share's slope is taken.
WINDOW = 0.025
# Of the training data, and their splits into halves, where they are a subset.
GROUPS, SPLITS = 20, 20
SEGMENTS, STEPS = 200, 20
PROBE_TRAIN, PROBE_TEST, NEIGHBOURS = 10_000, 5_000, 10
# Where a posterior mean has no closed form: fewer data, and draws enough that their mean moves
# by a tenth of q's own width.
PROBE_DRAWS, PROBE_DRAWS_TRAIN, PROBE_DRAWS_TEST = 100, 2_000, 1_000
CHUNK = 500


class LatentDraws(NamedTuple):
    """Draws of the aggregated posterior and of the prior, for a figure."""

    posterior: Tensor
    """z ~ q(z|x) of data x drawn with replacement, ``[M, D]``."""
    prior: Tensor
    """z ~ p(z), ``[M, D]``."""


@torch.no_grad()
def latent_space_report(
    model: Any,
    guide: Any,
    train: Split,
    test: Split,
    *,
    seed: int = 0,
    ordered: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LatentSpaceReport:
    """Ask whether prior draws lie where data do, and whether the decoder is smooth between them.

    *The share of prior mass near the aggregated posterior.* q_A(z) = (1/N) Σ_n q(z|x_n) over
    N training data. With t the 5 % quantile of log q_A(z) of z ~ q(z|x), x held out, the region
    {log q_A ≥ t} holds 95 % of the held-out aggregated posterior; reported is the share of prior
    draws inside. Where the aggregated posterior is the prior it is 0.95 in expectation for any
    A, up to the order of one over the number of held-out data: both kinds of draws are then of
    one distribution, and neither is among A. Holes in the prior, regions that no datum uses,
    lower it; more training data resolve smaller holes.

    With s the share and l the level P(log q_A(z) < t) of held-out z,
    Var s = s (1 − s)/M + (ds/dl)² Var l,  M draws of the prior; the slope is that over levels
    5 ± 2.5 %. ``standard_error`` is what another seed would change: Var l over draws of q(z|x),
    and over the choice of data where the splits are larger than what is taken of them; the
    effect of that of the training data is from random halves of them. In
    ``data_standard_error`` Var l is that over held-out data, draws of one datum as a cluster;
    it contains the former. The training data, which the guide is fitted to, are held fixed.

    *Smoothness.* Along a segment between two prior draws, cut into equal steps, the means
    m_0 … m_n of the decoder: max_k |m_k − m_{k−1}| over the mean step (1 for a steady walk, n for
    one jump), and Σ_k |m_k − m_{k−1}| over |m_n − m_0| (1 for a straight path). Euclidean
    distances in data space.

    *Classification* of held-out data from their posterior mean, beside that from x itself
    and the most frequent label: logistic regression on standardized features, and the 10
    nearest neighbours in unscaled ones.

    It is the latent that ``prior``, ``posterior`` and ``decode`` speak of, the one next to
    the data where there are several. A program without them gets the first part alone,
    and that if it has one latent.

    Arguments:
        model, guide: the pair, in evaluation mode.
        train, test: the splits; data are drawn at random from each.
        seed: of draws and subsets.
        ordered: the data are a video, neighbours alike.
        device, dtype: of the data; None takes those of the pair's parameters.
    """
    device, dtype = _place(model, guide, device, dtype)
    with own_parameters(model, guide):
        layer = _layer(guide, _scored(test, 1, seed, device, dtype))
        share, region, notes = _share(model, guide, train, test, seed, ordered, device, dtype)
        steady, straight, segments, more = _segments(model, seed, device)
        notes += more
        probes, more = _probes(guide, train, test, seed, ordered, device, dtype)
        notes += more
    return LatentSpaceReport(
        prior_near_posterior=share,
        posterior_share=None if share is None else SHARE,
        region=region,
        smoothness=steady,
        straightness=straight,
        segments=segments,
        probes=probes,
        notes=layer + notes,
    )


@torch.no_grad()
def latent_draws(model: Any, guide: Any, x: Tensor, num: int, seed: int = 0) -> LatentDraws:
    """Draw from the aggregated posterior of the data x and from the prior, ``[num, D]`` each.

    Of several latents it is the one that ``prior`` and ``posterior`` speak of.

    Raises:
        InputError: the programs have no prior and posterior(x), and several latents.
    """
    if type(num) is not int or num < 1:
        raise InputError(f"num must be a whole number, at least 1, got {num!r}")
    with own_parameters(model, guide):
        prior, posterior = _prior(model, x), _posterior(guide, x)
        with seeded(derive_seed(seed, "latent draws"), x.device):
            index = torch.randint(len(x), (num,)).to(x.device)
            z = torch.cat([posterior(x[i]).sample() for i in index.split(CHUNK)])
            return LatentDraws(z, prior(num))


def _place(
    model: Any, guide: Any, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    modules = [program for program in (guide, model) if isinstance(program, nn.Module)]
    parameters = [p for module in modules for p in module.parameters() if p.is_floating_point()]
    like = parameters[0] if parameters else torch.zeros(())
    return torch.device(device or like.device), dtype or like.dtype


def _posterior(guide: Any, x: Tensor) -> Callable[[Tensor], Any]:
    """x ``[B, *event]`` → q(z|x), ``batch_shape [B]``."""
    if hasattr(guide, "posterior"):
        posterior: Callable[[Tensor], Any] = guide.posterior
        return posterior

    def of_the_site(part: Tensor) -> Any:
        (fn,) = _latents(guide, part).values()
        return fn

    if len(_latents(guide, x[:1])) != 1:
        raise InputError("the guide has several latents and no posterior(x) to tell which is meant")
    return of_the_site


def _prior(model: Any, x: Tensor) -> Callable[[int], Tensor]:
    """num → draws of p(z), ``[num, D]``."""
    if hasattr(model, "prior"):
        return lambda num: model.prior().sample((num,))
    latents = list(_latents(model, x[:1]).values())
    if len(latents) != 1:
        raise InputError("the model has several latents and no prior() to tell which is meant")
    return lambda num: latents[0].sample((num,)).reshape(num, *latents[0].event_shape)


def _latents(program: Program, x: Tensor) -> dict[str, Any]:
    """Each latent's distribution, ``batch_shape [B]``."""
    with seeded(0, x.device):
        trace = poutine.trace(program).get_trace(x)
    sites = {name: trace.nodes[name] for name in trace.stochastic_nodes}
    return {name: site["fn"] for name, site in sites.items() if not site_is_subsample(site)}


def _layer(guide: Any, x: Tensor) -> list[str]:
    """Which of several latents is spoken of."""
    if not hasattr(guide, "posterior"):
        return []
    latents, shape = _latents(guide, x), guide.posterior(x).event_shape
    own = [name for name, fn in latents.items() if fn.event_shape == shape]
    return [f"of {own[0]}, the layer next to the data"] if len(latents) > 1 and own else []


def _scored(split: Split, count: int, seed: int, device: Any, dtype: Any) -> Tensor:
    part = split.subset(min(count, len(split)), seed)
    return part.scored().to(device, dtype)


def _share(
    model: Any,
    guide: Any,
    train: Split,
    test: Split,
    seed: int,
    ordered: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Estimate | None, str | None, list[str]]:
    """The share of prior draws where 95 % of the held-out aggregated posterior lie."""

    def missing(reason: str) -> tuple[None, None, list[str]]:
        return None, None, [f"prior mass near the aggregated posterior: {reason}"]

    x = _scored(test, TEST_DATA, derive_seed(seed, "held out"), device, dtype)
    if len(x) < 1 / (1 - SHARE):
        return missing(f"not known for fewer than {round(1 / (1 - SHARE))} held-out data")
    if not getattr(guide, "has_density", True):
        return missing("not known, for this guide has no log q(z|x) at any z but its own")
    try:
        prior, posterior = _prior(model, x), _posterior(guide, x)
    except InputError as error:
        return missing(f"not known: {error}")
    fn = posterior(x[:1])
    if is_point(fn):
        return missing("not known, for the guide is a point without a density")
    networks = needs_networks([fn])
    count, num = (NETWORK_TRAIN_DATA, NETWORK_DRAWS) if networks else (TRAIN_DATA, PRIOR_DRAWS)
    x = x[:: -(-len(x) // num)]
    total = NETWORK_HELD_OUT_DRAWS if networks else HELD_OUT_DRAWS
    each = min(DRAWS_A_DATUM, max(2, total // len(x)))
    reference = _scored(train, count, derive_seed(seed, "reference"), device, dtype)
    with seeded(derive_seed(seed, "region"), device):
        held_out = torch.cat([posterior(part).sample((each,)) for part in x.split(CHUNK)], 1)
        free = prior(num)
    if held_out.shape[2:] != free.shape[1:]:
        return missing("not known, for prior and posterior(x) are of different latents")
    parts = [reference]
    if len(reference) < len(train):
        order = permutation(len(reference), derive_seed(seed, "groups"))
        parts = list(reference[order.to(device)].tensor_split(min(GROUPS, len(reference))))
    rows = max(1, default_chunk(device) // len(reference)) if networks else PRIOR_DRAWS
    z = torch.cat([held_out.flatten(0, 1), free])
    log_q = torch.stack([_log_sum(posterior_pairs(posterior, p), z, len(p), rows) for p in parts])
    held, free = log_q[:, : each * len(x)].unflatten(1, held_out.shape[:2]), log_q[:, -num:]
    region = (
        f"where log q(z) of {len(reference)} training data exceeds its 5 % quantile over {each} "
        f"draws of q(z|x) for each of {len(x)} held-out data; {num} prior draws"
    )
    share = _share_inside(held, free, ordered, len(x) / len(test), len(reference) / len(train))
    return share, region, []


def _log_sum(pairs: Pairs, z: Tensor, num_data: int, rows: int) -> Tensor:
    """log Σ_n q(z|x_n) ``[P]``."""
    means = [log_aggregate(pairs, part, num_data) for part in z.split(rows)]
    return torch.cat(means) + math.log(num_data)


def _share_inside(
    held_out: Tensor, prior: Tensor, ordered: bool, taken: float = 1.0, taken_train: float = 1.0
) -> Estimate:
    """The share of prior draws at or above the 5 % quantile t of held-out draws.

    Arguments:
        held_out: log Σ q(z|x_n) over each of G groups of training data, of S draws for each of
            N held-out data, ``[G, S, N]``.
        prior: the same of prior draws, ``[G, M]``.
        ordered: the held-out data are a video.
        taken, taken_train: which part of the held-out and of the training data is used.
    """
    held, free = held_out.logsumexp(0), prior.logsumexp(0)
    level = 1 - SHARE
    # An order statistic, not between two of them: either may be −∞.
    threshold = held.flatten().quantile(level, interpolation="lower")
    value = float((free >= threshold).double().mean())
    S, N = held.shape
    inside = (held >= threshold).double()
    of_data = standard_error_of_mean(inside.mean(0), ordered) or 0.0
    # Of N of N/f data: (1 − f) s²/N + f v/(N S),  s² over data of their means, v within a datum.
    between, within = float(inside.mean(0).var()) / N, float(inside.var(0).mean()) / (N * S)
    of_draws = math.sqrt((1 - taken) * between + taken * within)
    slope = _slope(held.flatten(), free, level)
    apart = value * (1 - value) / (len(free) - 1) + _of_training(held_out, prior, taken_train)
    return Estimate(
        value,
        standard_error=math.sqrt(apart + (slope * of_draws) ** 2),
        data_standard_error=math.sqrt(apart + (slope * max(of_data, of_draws)) ** 2),
        count=N,
        unit="share of prior draws",
    )


def _slope(held_out: Tensor, prior: Tensor, level: float) -> float:
    """d share / d level at the threshold, from the difference over a window of levels."""
    ends = held_out.new_tensor([level - WINDOW, level + WINDOW])
    low, high = held_out.quantile(ends, interpolation="lower")
    inside = ((prior >= low) & (prior < high)).double().mean()
    return float(inside) / (2 * WINDOW)


def _of_training(held_out: Tensor, prior: Tensor, taken: float) -> float:
    """Variance of the share over the choice of training data, from random halves of groups.

    (1 − f) E (a − b)²/4,  a and b the shares by either half: each has twice the variance.
    """
    G = len(held_out)
    if G < 2:
        return 0.0
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(SPLITS):
        order = torch.randperm(G, generator=generator)
        a, b = (_share_of(held_out[half], prior[half]) for half in order.tensor_split(2))
        squares.append((a - b) ** 2)
    return (1 - taken) * sum(squares) / SPLITS / 4


def _share_of(held_out: Tensor, prior: Tensor) -> float:
    threshold = held_out.logsumexp(0).flatten().quantile(1 - SHARE, interpolation="lower")
    return float((prior.logsumexp(0) >= threshold).double().mean())


def _segments(
    model: Any, seed: int, device: torch.device
) -> tuple[Estimate | None, Estimate | None, str | None, list[str]]:
    """Smoothness and straightness of the decoder's mean, means over segments."""

    def missing(reason: str) -> tuple[None, None, None, list[str]]:
        return None, None, None, [f"decoder smoothness: {reason}"]

    if not hasattr(model, "prior") or not hasattr(model, "decode"):
        return missing("not known for a model without prior() and decode(z)")
    with seeded(derive_seed(seed, "segments"), device):
        ends = model.prior().sample((2, SEGMENTS))
    try:
        means = _means_along(model, *ends)
    except NotImplementedError:
        return missing("not known, for the likelihood has no mean in closed form")
    if not bool(means.isfinite().all()):
        return missing("not defined, for the decoder's mean is not finite")
    steps = (means[:, 1:] - means[:, :-1]).norm(dim=-1)
    distance = (means[:, -1] - means[:, 0]).norm(dim=-1)
    # Rounding alone moves a mean that is the same at all z.
    rounding = 100 * torch.finfo(ends.dtype).eps * means.abs().amax((1, 2)) * means.shape[-1] ** 0.5
    moved = (distance > rounding) & (steps.sum(1) > rounding)
    if not bool(moved.any()):
        return missing("not defined, for the decoder's mean is the same along all segments")
    steps, distance = steps[moved], distance[moved]
    told = f"{len(steps)} straight segments between prior draws, {STEPS} equal steps each"
    largest, length = steps.amax(1) / steps.mean(1), steps.sum(1) / distance
    notes = []
    if len(steps) < SEGMENTS:
        notes.append(
            f"decoder smoothness: {SEGMENTS - len(steps)} of {SEGMENTS} segments left out, along "
            "which the decoder's mean does not get anywhere"
        )
    return _over_segments(largest), _over_segments(length), told, notes


def _means_along(model: Any, first: Tensor, last: Tensor) -> Tensor:
    """The decoder's mean at n + 1 points of each segment, ``[segments, n + 1, dims]``, float64."""
    weight = torch.linspace(0, 1, STEPS + 1, dtype=first.dtype, device=first.device)[:, None]
    z = first[:, None] * (1 - weight) + last[:, None] * weight
    parts = z.flatten(0, 1).split(default_chunk(z.device))
    means = torch.cat([model.decode(part).mean.double() for part in parts])
    return means.view(len(first), STEPS + 1, -1)


def _over_segments(values: Tensor) -> Estimate:
    error = standard_error_of_mean(values)
    return Estimate(float(values.mean()), error, None, len(values), unit="ratio")


def _probes(
    guide: Any,
    train: Split,
    test: Split,
    seed: int,
    ordered: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[Probe], list[str]]:
    if train.labels is None or test.labels is None:
        return [], ["classification: the data have no labels"]
    if not hasattr(guide, "posterior"):
        return [], ["classification: not known for a guide without posterior(x)"]
    closed = _has_mean(guide.posterior(_scored(test, 1, seed, device, dtype)))
    counts = (PROBE_TRAIN, PROBE_TEST) if closed else (PROBE_DRAWS_TRAIN, PROBE_DRAWS_TEST)
    parts = [
        split.subset(min(count, len(split)), derive_seed(seed, "probe", name))
        for split, count, name in zip((train, test), counts, ("train", "test"), strict=True)
    ]
    labels = [part.labels.numpy() for part in parts if part.labels is not None]
    if len(set(labels[0].tolist())) < 2:
        return [], ["classification: all training data have one label"]
    x = [part.scored().flatten(1).numpy() for part in parts]
    z = [_embedded(guide, part, seed, device, dtype).numpy() for part in parts]
    if not all(np.isfinite(part).all() for part in z):
        return [], ["classification: not defined, for a posterior has no finite mean"]
    found = [
        _probe("z", "most frequent label", DummyClassifier(), z, labels, ordered),
    ]
    for features, data in (("z", z), ("x", x)):
        for name, classifier in _classifiers(len(labels[0])):
            found.append(_probe(features, name, classifier, data, labels, ordered))
    told = (
        f"classification: trained on {len(labels[0])} and tested on {len(labels[1])} data, "
        f"{NEIGHBOURS} nearest neighbours"
        + ("" if closed else f", z the mean of {PROBE_DRAWS} draws of q(z|x)")
    )
    return found, [told]


def _classifiers(num_train: int) -> list[tuple[str, Any]]:
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, num_train))
    return [("logistic regression", logistic), ("nearest neighbours", neighbours)]


def _has_mean(q: Any) -> bool:
    try:
        q.mean  # noqa: B018
    except NotImplementedError:
        return False
    return True


def _embedded(
    guide: Any, part: Split, seed: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """E_q[z|x] of a split, ``[n, D]``, on the CPU; over 100 draws where it has no closed form."""
    means = []
    for i, x in enumerate(part.scored_chunks(CHUNK)):
        q = guide.posterior(x.to(device, dtype))
        if _has_mean(q):
            means.append(q.mean)
            continue
        with seeded(derive_seed(seed, "probe mean", i), device):
            means.append(q.sample((PROBE_DRAWS,)).mean(0))
    return torch.cat(means).flatten(1).cpu()


def _probe(
    features: str, name: str, classifier: Any, data: list[Any], labels: list[Any], ordered: bool
) -> Probe:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(data[0], labels[0])
    right = torch.from_numpy(classifier.predict(data[1]) == labels[1]).double()
    value, notes = float(right.mean()), []
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        notes.append("the fit did not converge")
    if value in (0.0, 1.0):
        # (1 − 3/n)ⁿ ≈ 0.05
        notes.append(f"all alike: within {3 / len(right):.2g} of it at 95 %")
    accuracy = Estimate(
        value,
        standard_error=None,
        data_standard_error=standard_error_of_mean(right, ordered),
        count=len(right),
        unit="share of held-out data",
        note="; ".join(notes) or None,
    )
    return Probe(features, name, accuracy)
