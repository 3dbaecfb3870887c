"""IWAE-K against exact evidence, quadrature and its own promises about noise and memory."""

import itertools
import math
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.errors import InputError
from pyro_vae.evaluation import log_likelihood
from pyro_vae.evaluation.importance import DATA_BLOCK, SAMPLE_BLOCK


def test_exact_posterior_has_no_error(linear_gaussian):
    x = linear_gaussian.simulate(30, seed=0)
    result = log_likelihood(linear_gaussian.model, linear_gaussian.exact_guide, x, 300)
    exact = linear_gaussian.log_evidence(x)
    for estimate in (result.log_px, result.elbo):
        torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.ess, torch.full_like(exact, 300.0))
    assert result.standard_error.max() < 1e-6
    assert result.elbo_standard_error.max() < 1e-9
    assert result.bias.abs().max() < 1e-12


def test_mean_weight_is_the_evidence(linear_gaussian):
    """The mean of p̂_K/p(x) over 2,000 data is 1 within four standard errors, seed 3."""
    x = linear_gaussian.simulate(2000, seed=1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.3, variance=1.5))
    result = log_likelihood(linear_gaussian.model, guide, x, 100, seed=3)
    ratio = (result.log_px - linear_gaussian.log_evidence(x)).exp()
    error = float(ratio.std()) / math.sqrt(len(x))
    assert error < 0.004
    assert abs(float(ratio.mean()) - 1) < 4 * error


def test_iwae_lies_between_elbo_and_evidence_and_grows_with_k(linear_gaussian):
    x = linear_gaussian.simulate(4000, seed=2)
    parameters = linear_gaussian.diagonal_guide(shift=0.5, variance=1.3)
    guide = linear_gaussian.guide_of(parameters)
    evidence = linear_gaussian.log_evidence(x)
    elbo = linear_gaussian.elbo(x, *parameters(x))
    bounds = [elbo]
    for num_samples in (2, 8):
        result = log_likelihood(
            linear_gaussian.model, guide, x, num_samples, seed=4, pilot_samples=0
        )
        bounds.append(result.log_px)
    bounds.append(evidence)
    for lower, upper in itertools.pairwise(bounds):
        gap = upper - lower
        assert gap.mean() > 3 * gap.std() / math.sqrt(len(gap))
    close = log_likelihood(linear_gaussian.model, guide, x, 1024, seed=4, pilot_samples=0)
    close = close.log_px - evidence
    assert abs(close.mean()) < 4 * close.std() / math.sqrt(len(close)) < 0.005


def test_elbo_and_its_terms_are_the_exact_ones(linear_gaussian):
    """Each within four of the standard errors it reports, which are themselves right."""
    x = linear_gaussian.simulate(200, seed=3)
    parameters = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)
    loc, scale = parameters(x)
    result = log_likelihood(
        linear_gaussian.model, linear_gaussian.guide_of(parameters), x, 400, seed=5
    )
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum(-1)
    elbo = linear_gaussian.elbo(x, loc, scale)
    for estimate, error, exact in [
        (result.elbo, result.elbo_standard_error, elbo),
        (result.kl, result.kl_standard_error, kl),
        (result.reconstruction, result.reconstruction_standard_error, elbo + kl),
    ]:
        z_scores = (estimate - exact) / error
        # The mean of 200 z-scores has sd 0.07, their standard deviation one of 0.05.
        assert abs(float(z_scores.mean())) < 0.3
        assert 0.8 < float(z_scores.std()) < 1.2
    torch.testing.assert_close(result.elbo, result.reconstruction - result.kl)


def test_standard_error_and_bias_are_right(linear_gaussian):
    """For one datum, 20,000 repeats of K = 80: sd of log p̂ within 3 %, bias within 4 errors.

    The bias is 8 of these errors, so that a bias without its ½ is seen.
    """
    datum = linear_gaussian.simulate(1, seed=6)
    repeats = datum.expand(20_000, -1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.8, variance=1.3))
    result = log_likelihood(linear_gaussian.model, guide, repeats, 80, seed=6, pilot_samples=0)
    spread = float(result.log_px.std())
    assert abs(float(result.standard_error.mean()) / spread - 1) < 0.03
    offset = float((result.log_px - linear_gaussian.log_evidence(datum)).mean())
    error = spread / math.sqrt(20_000)
    assert abs(offset) > 7 * error
    assert abs(offset - float(result.bias.mean())) < 4 * error
    ess = float(result.ess.mean())
    assert ess == pytest.approx(80 / (1 + 80 * spread**2), rel=0.05)


def test_mean_and_its_errors(linear_gaussian):
    x = linear_gaussian.simulate(150, seed=7)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=1.4))
    result = log_likelihood(linear_gaussian.model, guide, x, 50)
    log_px, error = result.log_px.numpy(), result.standard_error.numpy()
    assert result.mean == pytest.approx(log_px.mean())
    assert result.mean_standard_error == pytest.approx(log_px.std(ddof=1) / np.sqrt(150))
    assert result.mean_monte_carlo_error == pytest.approx(np.sqrt((error**2).sum()) / 150)
    assert result.num_samples == 50


def test_agrees_with_quadrature_for_a_decoder_that_is_not_linear():
    """p(x) = ∫ N(z; 0, 1) Bernoulli(x; logits(z)) dz on a grid, float64."""

    def logits(z: Tensor) -> Tensor:
        return torch.stack([3 * torch.sin(2 * z), 4 - 2 * z**2, 5 * z], dim=-1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=logits(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.StudentT(5.0, x.new_zeros(()), 1.3))

    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    grid = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    log_joint = dist.Normal(0.0, 1.0).log_prob(grid) + torch.stack(
        [dist.Bernoulli(logits=logits(grid)).log_prob(row).sum(-1) for row in x]
    )
    exact = log_joint.logsumexp(1) + math.log(18 / 20_000)
    assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-9)  # masses of all x
    result = log_likelihood(model, guide, x, 20_000, seed=1)
    z_scores = (result.log_px - exact) / result.standard_error
    assert result.standard_error.max() < 0.03
    assert z_scores.abs().max() < 4


@pytest.mark.parametrize("num_samples", [1, 128, 250])
@pytest.mark.parametrize("pilot_samples", [None, 0, 130])
def test_draws_exactly_k_samples_and_encodes_once_a_block(
    linear_gaussian, num_samples, pilot_samples
):
    """And the pilot's own beside them: as many up to 1,000, none for K = 1."""
    drawn, encoded = [], []

    def guide(x: Tensor) -> None:
        encoded.append(len(x))
        with pyro.plate("data", len(x), dim=-1):
            drawn.append(pyro.sample("z", linear_gaussian.posterior(x)).shape[0])

    x = linear_gaussian.simulate(150, 0)
    result = log_likelihood(
        linear_gaussian.model, guide, x, num_samples, pilot_samples=pilot_samples
    )
    default = num_samples if num_samples > 1 else 0
    pilot = default if pilot_samples is None else pilot_samples
    assert result.pilot_samples == pilot
    blocks = math.ceil(num_samples / SAMPLE_BLOCK) + math.ceil(pilot / SAMPLE_BLOCK)
    assert sum(drawn) == 2 * (num_samples + pilot)  # two blocks of data
    assert sorted(encoded) == [150 - DATA_BLOCK] * blocks + [DATA_BLOCK] * blocks


def test_pilot_has_at_most_a_thousand_draws(linear_gaussian):
    x = linear_gaussian.simulate(2, 0)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=1.3))
    assert log_likelihood(linear_gaussian.model, guide, x, 1300).pilot_samples == 1000


@pytest.mark.parametrize("chunk_size", [1, 7, 130, 5000])
def test_chunk_size_does_not_change_the_answer(linear_gaussian, chunk_size):
    x = linear_gaussian.simulate(103, seed=8)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=1.0))
    num_samples = 3 if chunk_size == 1 else 140
    whole = log_likelihood(linear_gaussian.model, guide, x, num_samples, seed=2)
    chunked = log_likelihood(
        linear_gaussian.model, guide, x, num_samples, seed=2, chunk_size=chunk_size
    )
    for name in ("log_px", "standard_error", "ess", "elbo", "kl", "pareto_k"):
        torch.testing.assert_close(
            getattr(chunked, name), getattr(whole, name), rtol=1e-9, atol=1e-9, equal_nan=True
        )
    assert torch.equal(chunked.flagged, whole.flagged)
    assert chunked.curve.num_samples == whole.curve.num_samples
    for name in ("bound", "standard_error"):
        torch.testing.assert_close(
            getattr(chunked.curve, name), getattr(whole.curve, name),
            rtol=1e-9, atol=1e-9, equal_nan=True,
        )  # fmt: skip


def test_chunk_size_bounds_what_the_model_decodes(linear_gaussian):
    sizes = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            sizes.append(z.shape[:-1].numel())
            pyro.sample("x", dist.Normal(z @ linear_gaussian.W.T, 1.0).to_event(1), obs=x)

    x = linear_gaussian.simulate(30, seed=0)
    log_likelihood(model, linear_gaussian.exact_guide, x, 40, chunk_size=70)
    assert max(sizes) <= 70
    assert sum(sizes) == 2 * 30 * 40  # the pilot's and the estimate's


def test_seed_decides_the_noise_and_the_global_state_is_left_alone(linear_gaussian):
    x = linear_gaussian.simulate(20, seed=9)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=2.0))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = log_likelihood(linear_gaussian.model, guide, x, 10, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = log_likelihood(linear_gaussian.model, guide, x, 10, seed=1)
    other = log_likelihood(linear_gaussian.model, guide, x, 10, seed=2)
    assert torch.equal(first.log_px, again.log_px)
    assert (first.log_px != other.log_px).all()


def test_noise_differs_between_blocks(linear_gaussian):
    """The same datum in every place: no two estimates alike, as in a peer's test loop."""
    x = linear_gaussian.simulate(1, seed=9).expand(250, -1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=2.0))
    result = log_likelihood(linear_gaussian.model, guide, x, 300, seed=1)
    assert len(result.log_px.unique()) == 250


def test_one_sample_has_no_standard_error(linear_gaussian):
    x = linear_gaussian.simulate(4, seed=0)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=2.0))
    result = log_likelihood(linear_gaussian.model, guide, x, 1)
    assert result.standard_error.isnan().all()
    assert result.elbo_standard_error.isnan().all()
    torch.testing.assert_close(result.log_px, result.elbo)


class _LiveElements(TorchDispatchMode):
    """The most tensor elements alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
            if id(tensor) in self.known:  # an operation in place
                continue
            self.known.add(id(tensor))
            self.live += tensor.numel()
            weakref.finalize(tensor, self._free, id(tensor), tensor.numel())
        self.peak = max(self.peak, self.live)
        return out

    def _free(self, tensor: int, numel: int) -> None:
        self.known.discard(tensor)
        self.live -= numel


def _peak(linear_gaussian, num_samples: int) -> int:
    """Elements alive at once, the pilot's tail and the curve's levels among them."""
    x = linear_gaussian.simulate(10, seed=0)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=1.3))
    with _LiveElements() as mode:
        result = log_likelihood(linear_gaussian.model, guide, x, num_samples)
    assert len(result.curve.num_samples) == (num_samples - 1).bit_length() + 1
    return mode.peak


def test_memory_does_not_grow_with_the_number_of_samples(linear_gaussian):
    assert _peak(linear_gaussian, 40 * SAMPLE_BLOCK) < 1.1 * _peak(linear_gaussian, 1000)


@pytest.mark.slow
def test_memory_at_a_hundred_thousand_samples(linear_gaussian):
    """Within 10 % of that at a thousand."""
    peaks = [_peak(linear_gaussian, K) for K in (10**3, 10**5)]
    assert peaks[1] < 1.1 * peaks[0], peaks


def test_weights_far_below_zero_do_not_underflow(linear_gaussian):
    """exp(−2000) is 0 in every dtype; log p̂ is not −∞."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z - 60.0, 1.0).expand(z.shape), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))

    result = log_likelihood(model, guide, torch.full((3, 1), 10.0), 100)
    assert torch.isfinite(result.log_px).all()
    assert (result.log_px < -1500).all()


def test_a_weight_of_zero_is_no_error():
    """A z outside the likelihood's reach has log w = −∞; the others carry the estimate.

    The ELBO is −∞, in one block of samples as in many.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(0.0, 2.0))
            inside = torch.where(z < 1, 0.0, -math.inf)
            data = dist.Delta(x[:, 0].expand(z.shape), log_density=inside)
            pyro.sample("x", data, obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(0.0, 2.0).expand([len(x)]))

    result = log_likelihood(model, guide, torch.zeros(5, 1), 4000, seed=1)
    torch.testing.assert_close(
        result.log_px, torch.full((5,), math.log(0.5), dtype=torch.float64), rtol=0, atol=0.07
    )
    assert (result.standard_error < 0.03).all()
    for num_samples in (100, 300, 4000):
        few = log_likelihood(model, guide, torch.zeros(5, 1), num_samples)
        assert (few.elbo == -math.inf).all()
        assert torch.isfinite(few.log_px).all()


def test_infinite_terms_keep_their_sign_over_blocks():
    """Where the prior's density is 0, KL is +∞ and the ELBO −∞, in one block as in three."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0, validate_args=False))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(0.0, 1.1).expand([len(x)]))

    for num_samples in (100, 300):
        result = log_likelihood(model, guide, torch.zeros(5, 1), num_samples)
        assert (result.kl == math.inf).all()
        assert (result.elbo == -math.inf).all()
        assert torch.isfinite(result.reconstruction).all()


def test_errors_of_a_bad_guide_are_called_understated():
    """Twenty latents, q the prior: log p(x) is missed by far more than error and bias say."""
    sigma = 0.3

    def prior_guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(20), x.new_ones(20)).to_event(1))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(20), x.new_ones(20)).to_event(1))
            pyro.sample("x", dist.Normal(z, sigma).to_event(1), obs=x)

    generator = torch.Generator().manual_seed(0)
    x = 1.04 * torch.randn(30, 20, generator=generator, dtype=torch.float64)
    exact = dist.Normal(0.0, math.sqrt(1 + sigma**2)).log_prob(x).sum(-1)
    result = log_likelihood(model, prior_guide, x, 1000)
    missed = exact - result.log_px
    assert (missed > 10 * result.standard_error - result.bias).all()
    assert result.understated.all()
    assert (result.bias >= -0.5).all()


def test_errors_of_a_good_guide_are_not(linear_gaussian):
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=1.3))
    x = linear_gaussian.simulate(50, seed=0)
    assert not log_likelihood(linear_gaussian.model, guide, x, 1000).understated.any()


def test_errors_of_weights_without_a_variance_are_called_understated():
    """p(z|x) = N(0, 1), q = N(0, v): w has the tail's shape k = 1 − v, 0.7 at 0.3, 0.2 at 0.8.

    200 data, K = 3,000, seed 0. Of some with k̂ > ½ the error is small, and is a limit by k̂ alone.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(variance: float):
        def draw(x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x.new_zeros(()), variance**0.5))

        return draw

    x = torch.zeros(200, dtype=torch.float64)
    heavy, light = (log_likelihood(model, guide(v), x, 3000) for v in (0.3, 0.8))
    by_k = heavy.pareto_k > 0.5
    assert 0.5 < by_k.double().mean() < 1
    small = heavy.standard_error <= 30**-0.5
    assert (by_k & small & ~heavy.flagged).any()
    assert torch.equal(heavy.understated, by_k | ~small)
    assert not light.understated.any()


def test_one_draw_has_no_error_to_trust(linear_gaussian):
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=1.3))
    result = log_likelihood(linear_gaussian.model, guide, linear_gaussian.simulate(5, seed=0), 1)
    assert result.standard_error.isnan().all()
    assert result.understated.all()


def _hierarchical(x: Tensor) -> None:
    """z₁ ~ N(0, 1), z₂ ~ N(z₁, 1), x ~ N(z₂, 1): x ~ N(0, 3) whatever the guide."""
    with pyro.plate("data", len(x), dim=-1):
        top = pyro.sample("top", dist.Normal(x.new_zeros(()), 1.0))
        bottom = pyro.sample("bottom", dist.Normal(top, 1.0))
        pyro.sample("x", dist.Normal(bottom, 1.0), obs=x[:, 0])


def _hierarchical_guide(variance: float):
    """q = p(bottom|x) p(top|bottom) with both variances times ``variance``."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            bottom = pyro.sample(
                "bottom", dist.Normal(2 / 3 * x[:, 0], math.sqrt(2 / 3 * variance))
            )
            pyro.sample("top", dist.Normal(bottom / 2, math.sqrt(variance / 2)))

    return guide


def test_hierarchical_pair_of_plain_functions():
    """Two latent sites: within four standard errors, k = max(0, 1 − v), seed 0."""
    x = torch.linspace(-3, 3, 40, dtype=torch.float64).unsqueeze(1)
    exact = dist.Normal(x.new_zeros(()), math.sqrt(3)).log_prob(x[:, 0])
    wide = log_likelihood(_hierarchical, _hierarchical_guide(1.4), x, 1000)
    assert ((wide.log_px - exact) / wide.standard_error).abs().max() < 4
    assert not wide.flagged.any()
    assert (wide.pareto_k < 0.2).all()
    narrow = log_likelihood(_hierarchical, _hierarchical_guide(0.1), x, 1000)
    assert narrow.flagged.double().mean() > 0.7
    # 40 k̂ of 1,000 draws: their mean has an error of 0.03, and is low by 0.07 (the logarithm).
    assert abs(float(narrow.pareto_k.mean()) - 0.9) < 0.15
    right = log_likelihood(_hierarchical, _hierarchical_guide(1.0), x, 1000)
    assert right.constant.all()
    torch.testing.assert_close(right.log_px, exact, rtol=0, atol=1e-9)


def test_k_hat_is_of_draws_that_the_estimate_does_not_see(linear_gaussian):
    """Another pilot, the same estimate to the bit; k̂ is uncorrelated with it, seed 4.

    k̂ of the estimate's own draws correlates with it by 0.5 over repeats of one datum:
    those that lack the largest weights look fine. 2,000 repeats, sd of a correlation 0.022.
    """
    repeats = linear_gaussian.simulate(1, seed=3).expand(2000, -1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=0.3))
    result = log_likelihood(linear_gaussian.model, guide, repeats, 200, seed=4)
    without = log_likelihood(linear_gaussian.model, guide, repeats, 200, seed=4, pilot_samples=0)
    for name in ("log_px", "standard_error", "ess", "elbo", "kl_standard_error"):
        assert torch.equal(getattr(result, name), getattr(without, name))
    assert 0.1 < result.flagged.double().mean() < 0.9
    correlation = torch.corrcoef(torch.stack([result.pareto_k, result.log_px]))[0, 1]
    assert abs(float(correlation)) < 4 * 0.022
    assert without.pareto_k.isnan().all()
    assert without.pilot_samples == 0
    assert without.flagged.all()


def test_without_k_hat_every_datum_is_flagged(linear_gaussian):
    x = linear_gaussian.simulate(5, seed=0)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(variance=1.3))
    for num_samples, pilot_samples in [(1, None), (1, 500), (20, None), (300, 0)]:
        result = log_likelihood(
            linear_gaussian.model, guide, x, num_samples, pilot_samples=pilot_samples
        )
        assert result.flagged.all()
    assert log_likelihood(linear_gaussian.model, guide, x, 300).threshold == pytest.approx(
        1 - 1 / math.log10(300)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_weights_are_exact_and_not_flagged(linear_gaussian, dtype):
    W, b = linear_gaussian.W.to(dtype), linear_gaussian.b.to(dtype)
    p = type(linear_gaussian)(W, b, linear_gaussian.sigma)
    x = p.simulate(7, seed=0)
    for num_samples, pilot_samples in [(2, None), (10, None), (300, None), (300, 0), (300, 1)]:
        result = log_likelihood(p.model, p.exact_guide, x, num_samples, pilot_samples=pilot_samples)
        assert result.constant.all()
        assert not result.flagged.any()
        assert (result.standard_error == 0).all()
        assert (result.bias == 0).all()
    assert (log_likelihood(p.model, p.exact_guide, x, 300).pareto_k == -math.inf).all()
    one = log_likelihood(p.model, p.exact_guide, x, 1)
    assert not one.constant.any()
    assert one.flagged.all()
    other = p.guide_of(p.diagonal_guide(variance=1.01))
    assert not log_likelihood(p.model, other, x, 300).constant.any()


def test_equal_weights_of_one_value_are_not_called_exact():
    """q(c = 1) = 1 − 10⁻⁹, p(c = 1|x) = ½: every draw has the same weight, and misses half."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(x.new_full((), 0.5)))
            pyro.sample("x", dist.Normal(0 * c, 1.0), obs=x[:, 0])

    def guide_of(q: float):
        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("c", dist.Bernoulli(x.new_full((len(x),), q)))

        return guide

    x = torch.zeros(6, 1, dtype=torch.float64)
    exact = dist.Normal(0.0, 1.0).log_prob(x[:, 0])
    lucky = log_likelihood(model, guide_of(1 - 1e-9), x, 500)
    assert (exact - lucky.log_px > 0.6).all()
    assert lucky.flagged.all()
    assert not lucky.constant.any()
    right = log_likelihood(model, guide_of(0.5), x, 500)
    assert right.constant.all()
    torch.testing.assert_close(right.log_px, exact, rtol=0, atol=1e-9)


def test_standard_error_against_the_bootstrap(linear_gaussian):
    """Delta method and 2,000 resamples of the same 1,000 weights: within 10 % a datum, seed 5.

    A bootstrap's sd from 2,000 resamples has an error of 1.6 %.
    """
    x = linear_gaussian.simulate(12, seed=5)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.5, variance=1.2))
    kept = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            fn = dist.Normal(z @ linear_gaussian.W.T + linear_gaussian.b, linear_gaussian.sigma)
            loc, scale = linear_gaussian.diagonal_guide(shift=0.5, variance=1.2)(x)
            log_q = dist.Normal(loc, scale).log_prob(z).sum(-1)
            log_p = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + fn.log_prob(x).sum(-1)
            kept.append(log_p - log_q)
            pyro.sample("x", fn.to_event(1), obs=x)

    result = log_likelihood(model, guide, x, 1000, pilot_samples=0, seed=5)
    weights = torch.cat(kept).exp().numpy()
    np.testing.assert_allclose(np.log(weights.mean(0)), result.log_px, atol=1e-9)
    counts = np.random.default_rng(0).multinomial(1000, np.full(1000, 1e-3), size=2000)
    bootstrap = np.log(counts @ weights / 1000).std(0)
    ratio = result.standard_error.numpy() / bootstrap
    assert np.abs(ratio - 1).max() < 0.1
    assert abs(ratio.mean() - 1) < 0.02


def _nan_model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z * math.nan, 1.0, validate_args=False), obs=x[:, 0])


def _unit_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number, at least 1"),
        ({"pilot_samples": -1}, "pilot_samples must be a whole number, at least 0"),
        ({"pilot_samples": 2.0}, "pilot_samples must be a whole number, at least 0"),
        ({"chunk_size": 0}, "chunk_size must be a whole number, at least 1"),
        ({"x": torch.zeros(0, 1)}, "expected data of shape"),
        ({"x": torch.zeros(())}, "expected data of shape"),
        ({}, "a log-weight is NaN"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    arguments = {"x": torch.zeros(2, 1), "num_samples": 3, **arguments}
    with pytest.raises(InputError, match=message) as caught:
        log_likelihood(_nan_model, _unit_guide, **arguments)
    assert "\n" not in str(caught.value)
