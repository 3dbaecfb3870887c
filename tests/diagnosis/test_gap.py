"""Every number against the linear-Gaussian model, where all of them have closed forms."""

import dataclasses
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from pyro_vae.guides.delta import Delta
from pyro_vae.guides.diagonal_normal import DiagonalNormal
from torch import nn

from pyro_vae.components import build
from pyro_vae.diagnosis.gap import gap
from pyro_vae.errors import InputError
from pyro_vae.evaluation.evidence import LogEvidence, log_evidence
from pyro_vae.links import inverse_positive, positive
from pyro_vae.networks import Encoder

NUM_DATA = 20
FAST = {"num_steps": 150, "num_samples": 2500, "seed": 0}


class Model(PyroModule):
    """A linear-Gaussian model that knows its log p(x)."""

    def __init__(self, truth):
        super().__init__("model")
        self.truth = truth

    def forward(self, x):
        self.truth.model(x)

    def log_evidence(self, x):
        return self.truth.log_evidence(x)


class Shifted(PyroModule):
    """q at the posterior's mean + shift(x) [B, D], of scale Λ_ii^(−½) √variance."""

    def __init__(self, truth, shift, variance=1.0):
        super().__init__("guide")
        self.truth, self.shift, self.variance = truth, shift, variance
        self.weight = nn.Parameter(torch.zeros(()).double())

    def outputs(self, x):
        mean = self.truth.posterior(x).mean + self.shift(x) + self.weight
        scale = self.truth.precision.diagonal().rsqrt() * math.sqrt(self.variance)
        raw = inverse_positive(scale.to(mean), 1e-6)
        return torch.cat([mean, raw.expand_as(mean)], dim=-1)

    def distribution(self, outputs):
        loc, raw = outputs.chunk(2, dim=-1)
        return dist.Normal(loc, positive(raw)).to_event(1)

    def forward(self, x):
        q = self.distribution(self.outputs(x))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", q)


class ShiftedFull(Shifted):
    """The same shift, of the family of all normals: L = tril, with a diagonal that is positive."""

    def outputs(self, x):
        mean = self.truth.posterior(x).mean + self.shift(x)
        L = torch.linalg.cholesky(self.truth.precision.inverse())
        entries = [inverse_positive(L[0, 0]), L[1, 0], inverse_positive(L[1, 1])]
        return torch.cat([mean, torch.stack(entries).expand(len(x), 3)], dim=-1)

    def distribution(self, outputs):
        a, b, c = outputs[:, 2:].unbind(-1)
        zero = torch.zeros_like(a)
        rows = [torch.stack(r, dim=-1) for r in ((positive(a), zero), (b, positive(c)))]
        return dist.MultivariateNormal(outputs[:, :2], scale_tril=torch.stack(rows, dim=-2))


@pytest.fixture
def truth(linear_gaussian):
    """Two latents, the columns of W far from orthogonal: Λ = [[10, 8], [8, 10]]."""
    W = torch.tensor([[1.0, 0.5], [0.8, 0.9], [-0.6, -0.2], [0.3, 0.8], [0.5, 0.7]]).double()
    return dataclasses.replace(linear_gaussian, W=W, sigma=0.5)


@pytest.fixture
def x(truth):
    return truth.simulate(NUM_DATA, seed=2)


def shift(x):
    """δ of each datum, some 0.6 in each direction."""
    return 0.4 * x[:, :2]


def mean_field_gap(truth):
    """½ (Σ_i log Λ_ii − log det Λ)."""
    return float(truth.precision.diagonal().log().sum() - truth.precision.logdet()) / 2


def shift_gap(truth, shift):
    """½ δᵀ Λ δ of each datum."""
    return torch.einsum("bi,ij,bj->b", shift, truth.precision, shift) / 2


def check(estimate, exact, relative=0.02):
    """Within three standard errors, which are below a third of the tolerance, or nearly so."""
    assert abs(estimate.value - exact) < 3 * estimate.standard_error + 5e-4
    assert abs(estimate.value - exact) < relative * exact
    assert estimate.standard_error < relative / 2 * exact


def test_a_shifted_mean_is_amortization(truth, x):
    model, guide = Model(truth), Shifted(truth, shift)
    state = torch.get_rng_state()
    result = gap(model, guide, x, **FAST)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(pyro.get_param_store()) == 0
    assert guide.weight.grad is None
    assert guide.weight.requires_grad
    lost = shift_gap(truth, shift(x))
    check(result.amortization, float(lost.mean()))
    check(result.approximation, mean_field_gap(truth))
    check(result.total, float(lost.mean()) + mean_field_gap(truth))
    both = result.approximation.value + result.amortization.value
    assert both == pytest.approx(result.total.value, abs=1e-12)
    assert result.log_px.value == pytest.approx(float(truth.log_evidence(x).mean()))
    assert (result.log_px.standard_error, result.method, result.split) == (None, "exact", "test")
    # Over data: only ½ δᵀΛδ varies, and the noise of the draws, a few percent of it.
    over_data = float(lost.std()) / NUM_DATA**0.5
    assert result.amortization.data_standard_error == pytest.approx(over_data, rel=0.05)
    assert result.total.data_standard_error == pytest.approx(over_data, rel=0.1)
    assert result.note is None


def test_the_amortization_gap_is_a_paired_difference(truth, x):
    """Of 0.004 nats, which the difference of two independent ELBOs would not show."""
    result = gap(Model(truth), Shifted(truth, lambda x: 0.03 * shift(x)), x, num_steps=300, seed=0)
    lost = float(shift_gap(truth, 0.03 * shift(x)).mean())
    assert result.amortization.standard_error < 0.2 * result.elbo.standard_error
    assert abs(result.amortization.value - lost) < 3 * result.amortization.standard_error + 5e-4


def test_a_wrong_variance_is_amortization(truth, x):
    """KL gains ½ Σ_i v − 1 − log v of the variances v/Λ_ii."""
    result = gap(Model(truth), Shifted(truth, lambda x: 0 * shift(x), variance=0.3), x, **FAST)
    check(result.amortization, 0.3 - 1 - math.log(0.3))
    check(result.approximation, mean_field_gap(truth))


def test_of_all_normals_none_is_left(truth, x):
    """The family holds the posterior: at it every draw has the log-weight log p(x)."""
    result = gap(Model(truth), ShiftedFull(truth, lambda x: 0.3 * shift(x)), x, **FAST)
    check(result.amortization, float(shift_gap(truth, 0.3 * shift(x)).mean()))
    assert abs(result.approximation.value) < 3 * result.approximation.standard_error + 1e-3
    assert result.approximation.standard_error < 1e-3


def test_float32_and_evidence_of_ones_own(truth, x):
    single = dataclasses.replace(truth, W=truth.W.float(), b=truth.b.float())
    body = Encoder(nn.Flatten(), (5,), 5)
    guide = DiagonalNormal(body, 2)
    with torch.no_grad():  # the exact mean-field optimum, its mean shifted by (0.5, −0.5)
        precision = truth.precision
        A = torch.linalg.solve(precision, truth.W.T / truth.sigma**2)
        guide.head.weight.copy_(torch.cat([A, torch.zeros(2, 5)]))
        raw = inverse_positive(precision.diagonal().rsqrt())
        moved = -A @ truth.b + torch.tensor([0.5, -0.5]).double()
        guide.head.bias.copy_(torch.cat([moved, raw]))
    evidence = log_evidence(Model(truth), None, x)
    result = gap(single.model, guide.requires_grad_(False), x.float(), evidence=evidence, **FAST)
    # ½ δᵀ Λ δ = ½ · 0.25 · (10 − 8 − 8 + 10)
    check(result.amortization, float(shift_gap(truth, torch.tensor([[0.5, -0.5]]).double())))
    check(result.approximation, mean_field_gap(truth))


def test_errors_of_ais_count(truth, x):
    ones = torch.ones(NUM_DATA).double()
    evidence = LogEvidence(
        truth.log_evidence(x), 0.3 * ones, -0.045 * ones, "ais", ones.cumsum(0) > 3
    )
    result = gap(Model(truth), Shifted(truth, shift), x, evidence=evidence, num_steps=8)
    own = 0.3 / NUM_DATA**0.5
    for part, elbo in ((result.total, result.elbo), (result.approximation, result.best_elbo)):
        assert part.standard_error == pytest.approx(math.hypot(own, elbo.standard_error))
        assert part.bias == pytest.approx(-0.045)
        assert part.understated
    assert result.log_px.standard_error == pytest.approx(own)
    assert result.amortization.standard_error < own
    assert result.amortization.bias is None
    assert not result.amortization.understated
    # Where the error is understated the bias is, too.
    assert "AIS falls short of log p(x) by at least 0.045 nats" in result.note
    assert "not trusted at 3 of 20 data" in result.note
    # Eight steps end nowhere near, and say so.
    assert "the search for the best q has not converged" in result.note
    assert result.residual.value > 2 * result.residual.standard_error


def test_a_bias_that_can_be_relied_on(truth, x):
    ones = torch.ones(NUM_DATA).double()
    evidence = LogEvidence(truth.log_evidence(x), 0.1 * ones, -0.005 * ones, "ais", ones > 0)
    result = gap(Model(truth), Shifted(truth, shift), x, evidence=evidence, **FAST)
    assert "by some 0.005 nats in expectation" in result.note
    assert "lower limits by as much" in result.note
    assert not result.total.understated


def test_a_small_residual_of_a_large_gap_is_told(truth, x):
    """A full-rank family has no approximation gap: what seems to be one is left by the search."""
    far = ShiftedFull(truth, lambda x: shift(x) + 2.5)
    result = gap(Model(truth), far, x, num_steps=160, num_samples=200, seed=0)
    residual = result.residual.value
    assert 0.05 * result.approximation.value < residual < 0.002 * result.total.value
    assert result.approximation.value > 3 * result.approximation.standard_error
    assert "the search for the best q has not converged" in result.note


def test_neighbours_that_are_alike(truth, x):
    """Sorted by what the shift grows with, the means of √20 blocks vary as the data do."""
    x = x[x[:, 0].argsort()]
    one, other = (
        gap(Model(truth), Shifted(truth, shift), x, num_steps=8, num_samples=100, ordered=ordered)
        for ordered in (False, True)
    )
    assert one.total.value == other.total.value
    assert other.total.data_standard_error > 1.3 * one.total.data_standard_error


class TwoModes(PyroModule):
    """z ~ N(0, 1), x|z ~ N(z² + z, ½²): at x a mode near z = −½ ± √(x + ¼), + the better one."""

    def forward(self, x):
        zero, one = torch.zeros(1).double(), torch.ones(1).double()
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(zero, one).to_event(1))
            pyro.sample("x", dist.Normal(z**2 + z, 0.5).to_event(1), obs=x[:, :1])


class OneMode(Shifted):
    """N(−½ ± √(x + ¼), s²): + and s = 0.12, or the worse − and s = 0.05, as x's second entry."""

    def outputs(self, x):
        x, worse = x[:, :1], x[:, 1:] > 0
        root = (x + 0.25).sqrt()
        scale = torch.where(worse, 0.05, 0.12).to(x)
        return torch.cat([torch.where(worse, -root, root) - 0.5, inverse_positive(scale)], dim=-1)


def two_modes_by_grid(x):
    """log p(x) and the ELBO of the best normal, in the better mode and in the worse one."""
    grid = torch.linspace(-8, 8, 20001).double()
    log_joint = lambda z, x: (  # noqa: E731
        dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z**2 + z, 0.5).log_prob(x)
    )
    log_px = log_joint(grid, x).logsumexp(-1) + math.log(16 / 20000)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)  # log p(x, z) is of degree 4
    e, w = torch.tensor(nodes), torch.tensor(weights) / math.sqrt(2 * math.pi)
    scale = torch.linspace(0.03, 0.4, 186).double()[:, None]
    best = []
    for sign in (1, -1):
        loc = sign * torch.linspace(0.5, 4, 701).double()[:, None, None]
        z = loc + scale * e
        entropy = scale[:, 0].log() + (1 + math.log(2 * math.pi)) / 2
        best.append(torch.stack([(log_joint(z, d) @ w + entropy).max() for d in x]))
    return log_px, *best


def test_a_better_mode_that_the_encoder_knows_of_another_datum():
    x = torch.tensor([[3, 0], [3.05, 1], [4.5, 0], [4.55, 1], [6, 0], [6.05, 1]]).double()
    log_px, better, worse = two_modes_by_grid(x[:, :1])
    assert bool((better > worse + 1).all())
    ones = torch.ones(6).double()
    evidence = LogEvidence(log_px, 0 * ones, 0 * ones, "exact", ones > 0)
    model, guide = TwoModes("model"), OneMode(None, None)
    one, two = (
        gap(model, guide, x, evidence=evidence, second_start=second, num_steps=100, seed=0)
        for second in (False, True)
    )
    assert two.approximation.standard_error < 0.01
    # The search ends short of the optimum by some 1e-3 nats.
    exact = float((log_px - better).mean())
    assert abs(two.approximation.value - exact) < 3 * two.approximation.standard_error + 5e-3
    # Without it three of the six data stay in the worse mode, a nat of the mean away.
    stuck = float((log_px - torch.where(x[:, 1] > 0, worse, better)).mean())
    assert stuck > exact + 1
    assert abs(one.approximation.value - stuck) < 3 * one.approximation.standard_error + 5e-3
    # Halfway is of the search that won: no residual the size of the modes' difference.
    assert two.residual.value < 0.02


FILE = '''
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

__all__ = ["Mine"]


class Mine(PyroModule):
    """A normal of one scale."""

    has_density = True

    def __init__(self):
        super().__init__("guide")
        self.body = nn.Linear(5, 3).double()

    def outputs(self, x):
        return self.body(x)

    def distribution(self, outputs):
        return dist.Normal(outputs[:, :2], outputs[:, 2:].exp()).to_event(1)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.distribution(self.outputs(x)))
'''


def test_a_guide_of_ones_own_file(truth, x, tmp_path):
    """Of one scale s, s² = 2/tr Λ is best: the gap is ½ (2 log ½ tr Λ − log det Λ), Λ_ii alike."""
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    torch.manual_seed(0)
    guide = build("guide", str(path))
    with torch.no_grad():
        guide.body.weight *= 0.2
    result = gap(Model(truth), guide, x, num_steps=400, num_samples=2000, seed=0)
    best = math.log(float(truth.precision.trace()) / 2) - float(truth.precision.logdet()) / 2
    check(result.approximation, best)
    assert result.amortization.value > 1  # untrained


def test_guides_without_a_family(truth, x):
    parameters = truth.diagonal_guide(shift=1.0)
    result = gap(Model(truth), truth.guide_of(parameters), x, num_samples=2000)
    exact = truth.log_evidence(x) - truth.elbo(x, *parameters(x))
    check(result.total, float(exact.mean()))
    assert (result.best_elbo, result.approximation, result.amortization) == (None, None, None)
    assert result.residual is None
    assert result.note.startswith("no split of the gap: the guide does not tell its encoder's")


def test_what_has_no_gap(truth, x):
    model = Model(truth)
    point = Delta(Encoder(nn.Flatten(), (5,), 5), 2).double()
    with pytest.raises(InputError, match=r"this guide is a point.*take another guide"):
        gap(model, point, x)
    guide = truth.guide_of(truth.diagonal_guide())
    with pytest.raises(InputError, match="num_samples must be at least 2"):
        gap(model, guide, x, num_samples=1)
    with pytest.raises(InputError, match="evidence of the same 20 data, got that of 3"):
        gap(model, guide, x, evidence=log_evidence(model, None, x[:3]))
