"""The best q of a guide's family for each datum: what the encoder says, moved a datum at a time."""

__all__ = ["best_outputs", "BestOutputs", "local_guide", "log_weight_draws", "why_fixed"]

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.execution import Program, execute, plate_scale
from pyro_vae.log_weights import check_data, draw_latents, own_parameters, weigh
from pyro_vae.objectives.sticking_the_landing import StickingTheLanding
from pyro_vae.seeding import derive_seed, seeded

DATA_BLOCK = 100
SAMPLE_BLOCK = 32  # 3,200 z with a block of data: what fits a CPU's caches
LAST_RATE = 0.1  # of the first
START_SAMPLES = 16  # a datum and candidate: of modes, which differ by much


@dataclass(frozen=True)
class BestOutputs:
    """What the encoder says of each datum and what it should say, each ``[B, P]``."""

    outputs: Tensor
    """Where the search ended; what the encoder says, where the pilot finds that better."""
    halfway: Tensor
    """Where it stood after half of the steps; what the encoder says, for the same data."""
    encoder: Tensor
    """What the encoder says: where the first search began."""
    moved: Tensor
    """Whether ``outputs`` are others than the encoder's, boolean ``[B]``."""


def best_outputs(
    model: Program,
    guide: Any,
    x: Tensor,
    *,
    num_steps: int = 400,
    num_particles: int = 8,
    learning_rate: float = 0.1,
    pilot_samples: int = 256,
    second_start: bool = True,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> BestOutputs:
    """Maximize each datum's ELBO over what the encoder says of it, all weights held.

    max_o E log p(x, z) − log q(z; o),  z ~ q(z; o) = ``guide.distribution(o)``

    Stochastic gradients, ``num_particles`` draws a datum and step, by Adam from
    ``guide.outputs(x)``, the rate falling to a tenth; the answer is the mean over the last
    half of the steps. A datum's gradient moves its own outputs alone, each by at most some
    0.4 ``learning_rate`` · ``num_steps``. Where the guide has a density the gradient is
    the path derivative (sticking the landing), whose noise vanishes where q is the
    posterior: its variance was 3 to 25 times below those of the ELBO's total
    derivative and of a closed-form KL, at the encoder's outputs and at the best
    ones, for normal, flow and hierarchical guides. A guide without one takes the total derivative.

    The optimum may be a local one. With ``second_start`` a second search, of half as many steps,
    starts from what the encoder says of another datum of its block (100 data): of all of these,
    each for 16 draws of log p(x, z) − log q(z), the one of the highest mean. A datum that is alone
    in its block has no such start. A pilot, of other draws, tells where the second end is better
    by two standard errors, else the first stays; data that it finds worse off than before by
    two standard errors keep what the encoder says. Which data stand
    beside a datum then tells on its answer.

    An optimum is approached and not reached, and a better one may lie elsewhere: the ELBO
    there, on fresh draws, is a lower bound on that of the best q. The second start has no remedy
    where the best other q is of the mode that the first search is in. (Of 50 test data of a
    decoder with two latents, static MNIST, it gained up to 9.7 nats at two, 0.264 ± 0.0004
    in the mean, as much as starts at the posterior's modes; of 50 digits, nothing beyond 4e-4.)

    The cost: ``num_steps`` · ``num_particles`` gradients a datum, and half as many of the second
    search with 16 B′ draws before it, B′ data in the block, 16 B′² a block; these are weighed
    a candidate at a time, 16 B′ of them in memory.

    References:
        Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018), section 3
        https://arxiv.org/abs/1801.03558

    Arguments:
        model, guide: Pyro programs of ``x``; the guide has ``outputs`` and ``distribution``
            and draws by them. Neither it nor any parameter is changed.
        x: ``[B, *event_shape]``, on the programs' device.
        num_steps: at least 4.
        num_particles: draws a datum and step.
        learning_rate: the first, in the units of the outputs.
        pilot_samples: draws a datum, at least 2.
        second_start: whether to search from what the encoder says of another datum, too.
        seed: of the noise; torch's global random state is left as it was.
        on_step: told (steps done, steps in all).

    Raises:
        InputError: the guide has no such outputs, or its draws no gradient.
    """
    check_data(x, num_particles)
    if type(num_steps) is not int or num_steps < 4:
        raise InputError(f"num_steps must be a whole number, at least 4, got {num_steps!r}")
    if type(pilot_samples) is not int or pilot_samples < 2:
        raise InputError(f"pilot_samples must be at least 2, got {pilot_samples!r}")
    reason = why_fixed(model, guide, x)
    if reason is not None:
        raise InputError(f"no best q for each datum: {reason}")
    blocks = x.split(DATA_BLOCK)
    steps = [[num_steps] + [num_steps // 2] * (second_start and len(b) > 1) for b in blocks]
    done, total = 0, sum(map(sum, steps))
    ends: list[tuple[Tensor, ...]] = []
    with own_parameters(model, guide):
        for i, block in enumerate(blocks):
            search = _Search(model, guide, block, num_particles, derive_seed(seed, "best q", i))
            searches = [search]
            if len(steps[i]) == 2:
                own = derive_seed(seed, "best q second", i)
                searches.append(_Search(model, guide, block, num_particles, own))
                searches[1].start = _start_of_another(search, derive_seed(own, "start"))
            for each, count in zip(searches, steps[i], strict=True):
                for _ in each.run(count, learning_rate):
                    done += 1
                    on_step(done, total)
            ends.append(_kept(searches, pilot_samples, derive_seed(seed, "best q pilot", i)))
    return BestOutputs(*map(torch.cat, zip(*ends, strict=True)))


def local_guide(guide: Any, outputs: Tensor) -> Any:
    """Return a guide that says ``outputs`` of its data; it shares all weights with ``guide``."""
    local = copy.copy(guide)
    local.outputs = lambda x: outputs
    return local


def why_fixed(model: Program, guide: Any, x: Tensor) -> str | None:
    """Return why the best q for a datum cannot be found, in a clause; None where it can."""
    if not (hasattr(guide, "outputs") and hasattr(guide, "distribution")):
        return "the guide does not tell its encoder's outputs(x) from its distribution(outputs)"
    x = x[:2]
    with own_parameters(model, guide), torch.enable_grad(), seeded(0, x.device):
        outputs = guide.outputs(x)
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != x.shape[:1]:
            raise InputError("outputs(x) of the guide: expected a tensor of shape [B, P]")
        outputs = outputs.detach().requires_grad_()
        run = execute(local_guide(guide, outputs), "guide", 1, (x,), num_data=len(x))
    for name, site in run.latent.items():
        if not site["fn"].has_rsample:
            return f"latent site {name!r} of the guide is not reparameterized"
    total = sum(z.sum() for z in run.values.values())
    if not isinstance(total, Tensor) or not total.requires_grad:
        return "the guide does not draw by its outputs(x)"
    if torch.autograd.grad(total, outputs, allow_unused=True)[0] is None:
        return "the guide does not draw by its outputs(x)"
    return None


@torch.no_grad()
def log_weight_draws(
    model: Program, guides: list[Program], x: Tensor, num_samples: int, seed: int
) -> Tensor:
    """Return log p(x, z) − log q(z|x) ``[len(guides), num_samples, B]``, float64.

    The guides draw under common noise, fixed in blocks of 32 draws; ``x`` is one block of data.

    Raises:
        InputError: a log-weight is NaN or +∞.
    """
    parts = []
    for j, start in enumerate(range(0, num_samples, SAMPLE_BLOCK)):
        size = min(SAMPLE_BLOCK, num_samples - start)
        rows = []
        for guide in guides:
            with seeded(derive_seed(seed, j), x.device):
                terms = weigh(model, x, draw_latents(guide, x, size))
            rows.append(terms.log_weight.double())
        parts.append(torch.stack(rows))
    draws = torch.cat(parts, dim=1)
    if bool((draws.isnan() | (draws == math.inf)).any()):
        raise InputError(
            "a log-weight is NaN or +infinity: check the model and the guide for this data, "
            "or evaluate in float64"
        )
    return draws


class _Search:
    """The search for the best outputs of one block of data."""

    def __init__(self, model: Program, guide: Any, x: Tensor, num_particles: int, seed: int):
        self.model, self.guide, self.x, self.seed = model, guide, x, seed
        self.num_particles = num_particles
        with torch.no_grad(), seeded(derive_seed(seed, "encoder"), x.device):
            self.encoder = guide.outputs(x).detach().clone()
        self.objective = StickingTheLanding(num_particles)
        self.has_density = getattr(guide, "has_density", True)
        self.start = self.outputs = self.halfway = self.encoder

    def run(self, num_steps: int, learning_rate: float) -> Iterator[int]:
        """Move the outputs; yields the number of steps done."""
        offset = torch.zeros_like(self.start)
        optimizer = torch.optim.Adam([offset], lr=learning_rate, betas=(0.9, 0.99))
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, LAST_RATE ** (1 / num_steps))
        # Means over the second quarter of the steps, and over the second half.
        ranges = (range(num_steps // 4, num_steps // 2), range(num_steps // 2, num_steps))
        means = [torch.zeros_like(offset) for _ in ranges]
        for step in range(num_steps):
            with seeded(derive_seed(self.seed, "step", step), self.x.device):
                gradient = self._gradient(self.start + offset)
            # A draw of probability 0 says nothing of where to go.
            offset.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
            decay.step()
            for mean, steps in zip(means, ranges, strict=True):
                if step in steps:
                    mean += offset / len(steps)
            yield step + 1
        self.halfway, self.outputs = (self.start + mean for mean in means)

    def _gradient(self, outputs: Tensor) -> Tensor:
        """∂/∂outputs of minus the ELBO, summed over data."""
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            local = local_guide(self.guide, outputs)
            if self.has_density:
                with _Unscaled():
                    loss = self.objective.differentiable_loss(self.model, local, self.x)
            else:
                draws = draw_latents(local, self.x, self.num_particles)
                loss = -weigh(self.model, self.x, draws).log_weight.mean(0).sum()
            return torch.autograd.grad(loss, outputs)[0]


class _Unscaled(Messenger):
    """Take every ``poutine.scale`` off, β among them: log-weights have none."""

    def _pyro_post_sample(self, msg: Any) -> None:
        msg["scale"] = plate_scale(msg)


@torch.no_grad()
def _start_of_another(search: _Search, seed: int) -> Tensor:
    """Of what the encoder says of the other data, the best for each datum ``[B, P]``."""
    outputs, x = search.encoder, search.x
    scores = []
    for candidate in outputs:
        guide = local_guide(search.guide, candidate.expand_as(outputs))
        with seeded(seed, x.device):  # common noise
            terms = weigh(search.model, x, draw_latents(guide, x, START_SAMPLES))
        scores.append(terms.log_weight.double().mean(0))
    # What has no value at a datum is no start for it.
    score = torch.stack(scores).nan_to_num(-math.inf, -math.inf, -math.inf)
    best = score.fill_diagonal_(-math.inf).max(0)
    found = _column(best.values > -math.inf, outputs)
    return torch.where(found, outputs[best.indices], outputs)


def _kept(searches: list[_Search], num_samples: int, seed: int) -> tuple[Tensor, ...]:
    """The fields of ``BestOutputs``: of two ends the better, or what the encoder says."""
    first, second = searches[0], searches[-1]
    encoder = first.encoder
    ends = [local_guide(first.guide, o) for o in (*(s.outputs for s in searches), encoder)]
    draws = log_weight_draws(first.model, ends, first.x, num_samples, seed)
    more = draws[-2] - draws[0]
    better = more.mean(0) > _two_errors(more)
    gain = torch.where(better, draws[-2], draws[0]) - draws[-1]
    # The search has seen more draws than the pilot: only a plain loss speaks against it.
    moved = gain.mean(0) >= -_two_errors(gain)
    better, column = _column(better, encoder), _column(moved, encoder)
    outputs, halfway = (
        torch.where(column, torch.where(better, b, a), encoder)
        for a, b in ((first.outputs, second.outputs), (first.halfway, second.halfway))
    )
    return outputs, halfway, encoder, moved


def _two_errors(draws: Tensor) -> Tensor:
    """Two standard errors of the mean; 0 with draws of probability 0, whose mean is infinite."""
    return (2 * draws.std(0) / math.sqrt(len(draws))).nan_to_num(0.0)


def _column(values: Tensor, outputs: Tensor) -> Tensor:
    """``values`` ``[B]`` in the dimensions of ``outputs``."""
    return values.reshape(-1, *(1,) * (outputs.dim() - 1))
