import copy
import dataclasses
import warnings
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from pyro_vae.guides.diagonal_normal import DiagonalNormal
from pyro_vae.guides.full_rank_normal import FullRankNormal
from pyro_vae.guides.hierarchical import Hierarchical
from pyro_vae.guides.iaf import IAF
from pyro_vae.guides.low_rank_normal import LowRankNormal
from pyro_vae.guides.planar import Planar
from pyro_vae.guides.spline_flow import SplineFlow
from pyro_vae.guides.student_t import StudentT
from torch import nn

from pyro_vae.diagnosis._local import (
    _kept,
    best_outputs,
    local_guide,
    log_weight_draws,
    why_fixed,
)
from pyro_vae.errors import InputError
from pyro_vae.links import inverse_positive
from pyro_vae.networks import Encoder

FLOW = {"hidden": (8,)}
FAMILIES = {
    "diagonal_normal": (DiagonalNormal, {}),
    "full_rank_normal": (FullRankNormal, {}),
    "low_rank_normal": (LowRankNormal, {}),
    "student_t": (StudentT, {}),
    "iaf": (IAF, FLOW),
    "spline_flow": (SplineFlow, FLOW),
    "planar": (Planar, {}),
}


@pytest.fixture
def skewed(linear_gaussian):
    """Two latents, the columns of W far from orthogonal: Λ = [[10, 8], [8, 10]]."""
    W = torch.tensor([[1.0, 0.5], [0.8, 0.9], [-0.6, -0.2], [0.3, 0.8], [0.5, 0.7]]).double()
    return dataclasses.replace(linear_gaussian, W=W, sigma=0.5)


@pytest.fixture
def x(skewed):
    return skewed.simulate(6, seed=2)


def make(guide_class, num_inputs=5, size=2, **options):
    torch.manual_seed(0)
    encoder = Encoder(nn.Flatten(), (num_inputs,), num_inputs)
    return guide_class(encoder, size, **options).double()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gains_and_nothing_else_moves(skewed, x, name):
    guide_class, options = FAMILIES[name]
    guide = make(guide_class, **options)
    before = copy.deepcopy(guide.state_dict())
    state = torch.get_rng_state()
    best = best_outputs(skewed.model, guide, x, num_steps=60, num_particles=4, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in guide.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.requires_grad and p.grad is None for p in guide.parameters())
    assert "outputs" not in vars(guide)
    assert torch.equal(best.encoder, guide.outputs(x).detach())
    assert best.outputs.shape == best.halfway.shape == best.encoder.shape
    # The untrained encoder is nats below the best: every datum gains, on draws of its own.
    guides = [local_guide(guide, o) for o in (best.encoder, best.outputs)]
    draws = log_weight_draws(skewed.model, guides, x, 500, seed=1)
    gain = draws[1] - draws[0]
    assert bool(best.moved.all())
    assert bool((gain.mean(0) > 3 * gain.std(0) / 500**0.5).all())


@pytest.mark.parametrize("scale", ["amortized", "constant"])
def test_it_finds_the_mean_field_optimum(skewed, x, scale):
    """The optimum is μ = E[z|x], σ_i = Λ_ii^(−½); with constant scale only μ moves."""
    guide = make(DiagonalNormal, scale=scale)
    best = best_outputs(skewed.model, guide, x, num_steps=300, seed=0)
    q = guide.distribution(best.outputs)
    loc, precision = skewed.posterior(x).mean, skewed.precision
    if scale == "amortized":
        expected = precision.diagonal().rsqrt().expand(6, 2)
        torch.testing.assert_close(q.stddev, expected, rtol=0.05, atol=0)
    # 0.2 of q's standard deviations, where seed 0 ends at most 0.15 away; it begins 3 to 30 away.
    sd = precision.diagonal().rsqrt()
    assert float(((q.mean - loc) / sd).abs().max()) < 0.2
    assert float(((guide.distribution(best.encoder).mean - loc) / sd).abs().max()) > 3


def test_data_do_not_mix(skewed, x):
    """A datum's first search is its own: others beside it change nothing but the noise."""
    guide = make(DiagonalNormal)
    far = torch.cat([x[:3], 100 * x[3:]])
    options = {"num_steps": 20, "second_start": False, "seed": 0}
    one, other = (best_outputs(skewed.model, guide, y, **options) for y in (x, far))
    torch.testing.assert_close(one.outputs[:3], other.outputs[:3])


def test_the_best_is_kept(skewed, x):
    """At the optimum a search of four steps with a wild rate loses: the encoder's stay."""
    encoder = make(DiagonalNormal)
    best = best_outputs(skewed.model, encoder, x, num_steps=300, seed=0).outputs
    guide = local_guide(encoder, best)
    guide.outputs = lambda x: best[: len(x)]
    wild = best_outputs(skewed.model, guide, x, num_steps=4, learning_rate=3.0, seed=0)
    assert not bool(wild.moved.any())
    assert torch.equal(wild.outputs, best)
    assert torch.equal(wild.halfway, best)


@pytest.mark.parametrize(("second_start", "total"), [(False, 8), (True, 10)])
def test_blocks_steps_and_seeds(skewed, second_start, total):
    """Blocks of 100 and of 1, which has no second start."""
    guide, x = make(DiagonalNormal), skewed.simulate(101, seed=3)
    steps, options = [], {"num_steps": 4, "second_start": second_start}
    one = best_outputs(
        skewed.model, guide, x, seed=0, on_step=lambda *s: steps.append(s), **options
    )
    assert steps == [(i, total) for i in range(1, total + 1)]
    assert torch.equal(best_outputs(skewed.model, guide, x, seed=0, **options).outputs, one.outputs)
    other = best_outputs(skewed.model, guide, x, seed=1, **options)
    assert not torch.equal(other.outputs, one.outputs)


def test_a_second_start_is_that_of_the_best_other_datum(skewed):
    """Outputs of datum 0 are the optimum of datum 1, and the other way round; 2 has no better.

    Four steps of no length to speak of stay where they start.
    """
    guide, x = make(DiagonalNormal), skewed.simulate(2, seed=2)[[0, 1, 1]]
    raw = inverse_positive(skewed.precision.diagonal().rsqrt())
    optimum = torch.cat([skewed.posterior(x).mean, raw.expand(3, 2)], dim=-1)
    said = torch.stack([optimum[1], optimum[0], optimum[1]])
    guide.outputs = lambda x: said[: len(x)]
    options = {"num_steps": 4, "learning_rate": 1e-6, "seed": 0}
    best = best_outputs(skewed.model, guide, x, **options)
    expected = torch.stack([optimum[0], optimum[1], optimum[1]])
    torch.testing.assert_close(best.outputs, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(best.halfway, expected, rtol=0, atol=1e-4)
    assert torch.equal(best.encoder, said)
    first = best_outputs(skewed.model, guide, x, second_start=False, **options)
    torch.testing.assert_close(first.outputs, said, rtol=0, atol=1e-4)


def test_scales_of_the_programs_are_taken_off(skewed, x):
    """β = 100 in the model would shrink q to the prior; log-weights have no β."""

    class Model(PyroModule):
        def forward(self, x):
            eye = torch.ones(2).double()
            with pyro.plate("data", x.shape[0], dim=-1):
                with pyro.poutine.scale(scale=100.0):
                    z = pyro.sample("z", dist.Normal(0 * eye, eye).to_event(1))
                law = dist.Normal(z @ skewed.W.T + skewed.b, skewed.sigma)
                pyro.sample("x", law.to_event(1), obs=x)

    guide = make(DiagonalNormal)
    scaled = best_outputs(Model("model"), guide, x, num_steps=30, seed=0)
    plain = best_outputs(skewed.model, guide, x, num_steps=30, seed=0)
    torch.testing.assert_close(scaled.outputs, plain.outputs)


class Top(nn.Module):
    """q(z2|z1) = N(a z1, s²)."""

    def __init__(self, a, s):
        super().__init__()
        self.a, self.s = a, s

    def forward(self, z1):
        return dist.Normal(self.a * z1, self.s).to_event(1)


def test_of_two_layers_the_first_moves():
    """z2 ~ N(0, 1), z1|z2 ~ N(z2, 1), x|z1 ~ N(z1, 1), and q(z2|z1) = p(z2|z1) = N(z1/2, ½).

    p(z1|x) = N(2x/3, 2/3): with the exact top, q(z1|x) is all that is left to find.
    """

    def model(x):
        zero, one = torch.zeros(1).double(), torch.ones(1).double()
        with pyro.plate("data", x.shape[0], dim=-1):
            z2 = pyro.sample("z2", dist.Normal(zero, one).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, one).to_event(1))
            pyro.sample("x", dist.Normal(z1, one).to_event(1), obs=x)

    guide = make(Hierarchical, num_inputs=1, size=(1, 1), hidden=(4,))
    guide.top = Top(0.5, 0.5**0.5)
    x = torch.tensor([[-2.0], [0.5], [3.0]]).double()
    best = best_outputs(model, guide, x, num_steps=300, seed=0)
    q = guide.distribution(best.outputs)
    torch.testing.assert_close(q.mean, 2 * x / 3, rtol=0, atol=0.02)
    torch.testing.assert_close(q.stddev, torch.full_like(x, (2 / 3) ** 0.5), rtol=0.02, atol=0)
    draws = log_weight_draws(model, [local_guide(guide, best.outputs)], x, 200, seed=1)[0]
    exact = dist.Normal(0.0, 3**0.5).log_prob(x).squeeze(-1)
    assert float((draws.mean(0) - exact).abs().max()) < 1e-3


class Fixed(DiagonalNormal):
    """A guide whose program makes nothing of its outputs."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", dist.Normal(x[:, :2] + self.head.bias[0], 1.0).to_event(1))


class Unreparameterized(dist.Normal):
    has_rsample = False


class Scored(DiagonalNormal):
    def distribution(self, outputs):
        q = super().distribution(outputs).base_dist
        return Unreparameterized(q.loc, q.scale).to_event(1)


def test_where_there_is_no_best(skewed, x):
    plain = skewed.guide_of(skewed.diagonal_guide())
    assert "outputs(x)" in why_fixed(skewed.model, plain, x)
    assert "does not draw by its outputs" in why_fixed(skewed.model, make(Fixed), x)
    assert "'z' of the guide is not reparameterized" in why_fixed(skewed.model, make(Scored), x)
    with pytest.raises(InputError, match="no best q for each datum: the guide does not draw"):
        best_outputs(skewed.model, make(Fixed), x)
    with pytest.raises(InputError, match="num_steps must be a whole number, at least 4, got 3"):
        best_outputs(skewed.model, make(DiagonalNormal), x, num_steps=3)


def test_a_draw_of_probability_zero_moves_nothing_out_of_reach(skewed, x):
    """Gradients that are not finite are taken as none; the datum keeps what the encoder says."""

    def model(x):
        eye = torch.ones(2).double()
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(0 * eye, eye).to_event(1))
            law = dist.Normal((z @ skewed.W.T + skewed.b) * torch.where(x > 1e3, torch.inf, 1.0), 1)
            pyro.sample("x", law.to_event(1), obs=x)

    guide = make(DiagonalNormal)
    bad = x.clone()
    bad[0] = 1e4
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        best = best_outputs(model, guide, bad, num_steps=20, seed=0)
    assert best.moved.tolist() == [False] + 5 * [True]
    assert bool(best.outputs.isfinite().all())


def test_an_end_inside_the_support_is_kept_where_the_encoder_draws_outside():
    """x = 0 under U(z − 1, z + 1): of q at 1 some draws have probability 0, of q at 0 none."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Uniform(z - 1, z + 1, validate_args=False), obs=x)

    class Guide:
        def distribution(self, outputs):
            return dist.Normal(outputs[:, 0], 0.1)

        def __call__(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", self.distribution(self.outputs(x)))

    x = torch.zeros(2, dtype=torch.float64)
    inside, outside = torch.zeros(2, 1).double(), torch.full((2, 1), 1.0).double()
    search = SimpleNamespace(
        model=model, guide=Guide(), x=x, outputs=inside, halfway=inside, encoder=outside
    )
    outputs, _, _, moved = _kept([search], 200, seed=0)
    assert moved.tolist() == [True, True]
    assert torch.equal(outputs, inside)
