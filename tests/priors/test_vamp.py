"""The VampPrior: the aggregated posterior where its pseudo-inputs are the data."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro_vae.guides.diagonal_normal import DiagonalNormal
from pyro_vae.models.priors._mixture import DiagonalNormalMixture, PosteriorMixture
from pyro_vae.models.priors.vamp import Vamp
from torch import nn

from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.networks import Encoder, mlp
from pyro_vae.run_training import start_run, train
from pyro_vae.runs import load_run

X = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4) ** 3


def make_guide(latent_dim=2) -> DiagonalNormal:
    torch.manual_seed(0)
    body, features = mlp(hidden=(8,), activation="tanh").encoder((4,))
    guide = DiagonalNormal(Encoder(body, (4,), features), latent_dim).double()
    with torch.no_grad():
        guide.head.weight *= 4  # posteriors that differ
        guide.head.bias[latent_dim:] = -2
    return guide


def make(guide, u) -> Vamp:
    return Vamp(
        guide.posterior, event_shape=(4,), data_sample=lambda n: u.clone(),
        components=len(u), init="data",
    ).double()  # fmt: skip


class FullRank(nn.Module):
    """q(z|x) = N(A x, L Lᵀ(x)): correlated, its scale a function of x."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.A = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))

    def posterior(self, x):
        lower = torch.tensor([[0.5, 0, 0], [0.4, 0.3, 0], [-0.3, 0.2, 0.6]], dtype=torch.float64)
        scale_tril = lower * (1 + x[:, 0] ** 2)[:, None, None]
        return dist.MultivariateNormal(x @ self.A.T, scale_tril=scale_tril)


def test_one_pseudo_input_at_the_datum_is_its_posterior():
    """log p(z) = log q(z|x): a KL of 0 for it."""
    guide = make_guide()
    q = guide.posterior(X[:1])
    torch.manual_seed(1)
    z = q.sample((50,))
    torch.testing.assert_close(make(guide, X[:1])().log_prob(z), q.log_prob(z))


def test_mean_kl_at_the_data_is_the_mutual_information():
    """(1/N) Σ_n KL(q_n ‖ p) = I(n; z) = log N − E_p(z) H(n|z), both sides by quadrature."""
    guide = make_guide(latent_dim=1)
    q, p = guide.posterior(X), make(guide, X)()
    z = torch.linspace(-15, 15, 30_001, dtype=torch.float64)
    log_q = q.log_prob(z[:, None, None]).detach()
    integrand = log_q.exp() * (log_q - p.log_prob(z[:, None]).detach()[:, None])
    kl = torch.trapezoid(integrand, z, dim=0).mean()

    centres, scales = q.mean.flatten().tolist(), q.stddev.flatten().tolist()
    posteriors = [scipy.stats.norm(m, s) for m, s in zip(centres, scales, strict=True)]

    def ambiguity(z):
        density = [posterior.pdf(z) for posterior in posteriors]
        return sum(density) / 4 * scipy.stats.entropy(density) if sum(density) > 0 else 0.0

    remaining = scipy.integrate.quad(ambiguity, -15, 15, points=sorted(centres), limit=500)[0]
    assert 0.2 < remaining < math.log(4) - 0.2
    assert float(kl) == pytest.approx(math.log(4) - remaining, abs=1e-7)


def test_density_is_the_mean_over_the_pseudo_inputs():
    guide = make_guide()
    p = make(guide, X)()
    assert isinstance(p, DiagonalNormalMixture)
    z = torch.randn(7, 6, 5, 2, generator=torch.Generator().manual_seed(7)).double()
    expected = guide.posterior(X).log_prob(z[..., None, :]).logsumexp(-1) - math.log(4)
    torch.testing.assert_close(p.log_prob(z), expected)


def test_gradients_reach_pseudo_inputs_and_guide():
    """They are those of the posteriors taken one by one; no parameter is left out."""
    guide = make_guide()
    prior = make(guide, X)
    z = torch.randn(9, 2, generator=torch.Generator().manual_seed(2)).double()
    leaves = [prior.u, *guide.parameters()]
    got = torch.autograd.grad(prior().log_prob(z).sum(), leaves)
    terms = torch.stack([guide.posterior(u[None]).log_prob(z) for u in prior.u])
    expected = torch.autograd.grad(terms.logsumexp(0).sum(), leaves)
    for a, b in zip(got, expected, strict=True):
        assert (a != 0).any()
        torch.testing.assert_close(a, b)


def test_the_guide_is_no_part_of_the_prior():
    prior = make(make_guide(), X)
    assert [name for name, _ in prior.named_parameters()] == ["u"]
    assert list(prior.state_dict()) == ["u"]
    assert list(prior.modules()) == [prior]


@pytest.mark.parametrize("D", [1, 3])
def test_any_posterior_is_mixed(D, monkeypatch):
    """A full-rank normal against a float64 reference, one z a block and all in one."""
    guide = FullRank()
    prior = make(guide, X)
    z = torch.randn(7, D, 3, generator=torch.Generator().manual_seed(3)).double()
    q = guide.posterior(X)
    terms = [
        scipy.stats.multivariate_normal(m.numpy(), c.numpy()).pdf(z.numpy()) / 4
        for m, c in zip(q.mean.detach(), q.covariance_matrix, strict=True)
    ]
    expected = torch.from_numpy(sum(terms)).log().reshape(7, D)
    gradients = []
    for block in (1, 30, 2**22):
        monkeypatch.setattr("pyro_vae.models.priors._mixture._BLOCK", block)
        p = prior()
        assert isinstance(p, PosteriorMixture)
        got = p.log_prob(z)
        torch.testing.assert_close(got.detach(), expected)
        gradients.append(torch.autograd.grad(got.sum(), [prior.u, guide.A]))
    for one in gradients[1:]:
        for a, b in zip(one, gradients[0], strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["diagonal", "any"])
def test_mean_variance_and_samples_are_those_of_the_density(kind):
    """Moments and E log p(z) of 40,000 draws to four standard errors, seed 4."""
    guide = make_guide() if kind == "diagonal" else FullRank()
    p = make(guide, X)()
    torch.manual_seed(4)
    z = p.sample((200, 200)).flatten(0, 1)
    assert ((z.mean(0) - p.mean).abs() < 4 * p.stddev / 200).all()
    squares = (z - p.mean.detach()) ** 2
    assert ((squares.mean(0) - p.variance).abs() < 4 * squares.std(0) / 200).all()
    # E_p[h/p] = 1 for a narrow normal h: z and log_prob are of the same distribution.
    h = dist.Normal(p.mean.detach(), p.stddev.detach() / 3).to_event(1)
    ratio = (h.log_prob(z) - p.log_prob(z)).exp().detach()
    assert float(ratio.std()) < 20
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / 200


def picks(kind, K, n):
    """Which of K far-apart components n draws come from."""
    centres = 100.0 * torch.arange(K).double()[:, None]
    q = dist.Normal(centres, torch.ones_like(centres)).to_event(1)
    p = DiagonalNormalMixture(torch.zeros(K).double(), centres, torch.ones_like(centres))
    p = p if kind == "diagonal" else PosteriorMixture(q)
    torch.manual_seed(5)
    z = p.sample((n,))
    assert len(z.unique()) == n
    return (z / 100).round().long().flatten()


@pytest.mark.parametrize("kind", ["diagonal", "any"])
def test_components_are_drawn_at_random(kind):
    """χ² over the counts, false alarm 1e-4; few draws are not the first components."""
    assert scipy.stats.chisquare(picks(kind, 20, 10_000).bincount(minlength=20)).pvalue > 1e-4
    few = picks(kind, 1000, 30).tolist()
    assert max(few) >= 500
    assert few != sorted(few)


def test_any_mixture_expands_to_a_batch():
    p = make(FullRank(), X)()
    q = p.expand((4,))
    assert (q.batch_shape, q.event_shape) == ((4,), (3,))
    z = q.sample((5,))
    assert z.shape == (5, 4, 3)
    torch.testing.assert_close(q.log_prob(z), p.log_prob(z))
    assert q.mean.shape == q.variance.shape == (4, 3)
    assert p.sample().shape == (3,)


def vamp(**options) -> Vamp:
    return Vamp(
        make_guide().float().posterior, **{"event_shape": (4,), "components": 300, **options}
    )


def test_starts_at_the_mean_plus_noise():
    """Within four standard errors of mean and of noise, seed of torch's generator 6."""
    mean = torch.tensor([0.0, 0.2, 0.5, 1.0])
    torch.manual_seed(6)
    u = vamp(data_mean=mean, noise=0.05).pseudo_inputs() - mean
    assert (u.mean(0).abs() < 4 * 0.05 / math.sqrt(300)).all()
    assert abs(float(u.std()) / 0.05 - 1) < 4 / math.sqrt(2 * 1200)


def test_starts_at_training_data():
    data = torch.randn(300, 4)
    prior = vamp(data_sample=lambda n: data[:n], init="data", data_mean=torch.ones(4))
    assert torch.equal(prior.pseudo_inputs(), data)


def test_levels_are_learned_in_units_of_their_range():
    """A learning rate moves levels as it moves [0, 1]; the guide sees levels."""
    data = torch.arange(12.0).reshape(3, 4)
    seen = []

    def posterior(x):
        seen.append(x.detach())
        return dist.Normal(x, 1.0).to_event(1)

    def start(measure, **options):
        given = {"event_shape": (4,), "components": 3, **options}
        return Vamp(posterior, measure=measure, unit=255.0, **given)

    prior = start("levels", data_sample=lambda n: data, init="data")
    torch.testing.assert_close(prior.u.detach(), data / 255)
    torch.testing.assert_close(prior.pseudo_inputs(), data)
    prior()
    torch.testing.assert_close(seen[-1], data)
    torch.testing.assert_close(
        start("levels", data_mean=data[0], noise=1e-7).pseudo_inputs(), data[:1].expand(3, 4),
        rtol=0, atol=1e-3,
    )  # fmt: skip


def moves(data, measure, noise):
    """How far 300 steps of 0.01 toward far data move, as a part of the way; three seen, by Adam."""
    target = data[-1]

    def posterior(u):
        return dist.Normal(u, target.std()).to_event(1)

    prior = Vamp(
        posterior, event_shape=(4,), data_mean=data.mean(0), data_sample=lambda n: data[:n],
        measure=measure, components=3, noise=noise, unit=float(data.std(0).mean()),
    )  # fmt: skip
    start = prior.pseudo_inputs()
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (-prior().log_prob(target)).backward()
        optimizer.step()
    return ((prior.pseudo_inputs() - start) / (target - start)).mean()


@pytest.mark.parametrize(
    ("measure", "scale"), [("continuous", 1e-3), ("continuous", 1.0), ("continuous", 1e4),
                           ("counts", 100.0), ("counts", 1e4)]
)  # fmt: skip
def test_pseudo_inputs_reach_data_of_any_scale(measure, scale):
    """In units of 1, 300 steps of 0.01 would go 3 of the 10,000."""
    generator = torch.Generator().manual_seed(8)
    data = 1 + torch.rand(500, 4, generator=generator)
    data[-1] = torch.tensor([2.0, 1.0, 2.0, 1.0])
    data = (scale * data).round() if measure == "counts" else scale * data
    assert 0.9 < float(moves(data, measure, noise=0.01)) < 1.1


def test_counts_start_at_their_mean_or_at_data():
    data = torch.tensor([[0.0, 1.0, 7.0, 4e4], [3.0, 0.0, 0.0, 1e5], [0.0, 0.0, 2.0, 9e4]])
    given = {"measure": "counts", "components": 3, "data_sample": lambda n: data[:n]}
    prior = vamp(init="data", **given)
    torch.testing.assert_close(prior.pseudo_inputs(), data)
    torch.testing.assert_close(prior.u.detach(), data.log1p())
    prior = vamp(data_mean=data.mean(0), noise=1e-6, **given)
    torch.testing.assert_close(
        prior.pseudo_inputs(), data.mean(0).expand(3, 4), rtol=1e-4, atol=1e-4
    )


def test_real_data_start_in_their_unit():
    """Noise of 1 % of the unit about the mean of each dimension; four standard errors, seed 9."""
    torch.manual_seed(9)
    mean = torch.tensor([0.0, 1e3, 2e3, 3e3])
    u = vamp(measure="continuous", data_mean=mean, unit=70.0).pseudo_inputs() - mean
    assert float(u.std()) == pytest.approx(0.7, rel=4 / math.sqrt(2400))


def test_a_saved_run_needs_no_data():
    for measure in ("binary", "continuous", "counts"):
        saved = vamp(measure=measure, unit=3.0, data_mean=torch.ones(4))
        loaded = vamp(measure=measure, unit=3.0)
        loaded.load_state_dict(saved.state_dict())
        assert torch.equal(loaded.pseudo_inputs(), saved.pseudo_inputs())


def test_a_run_on_real_data_is_rebuilt_with_its_unit(tmp_path):
    """Trained and loaded again without data: the same pseudo-inputs, scale and density."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", (1000 + 50 * rng.normal(size=(90, 3))).astype("float32"))
    config = Config(
        data=f"{tmp_path}/x.npy", prior="vamp(components=4)", likelihood="normal(scale=learned)",
        encoder="mlp(hidden=(4,))", latent_dim=2, epochs=1, device="cpu",
    )  # fmt: skip
    run, again = train(config, tmp_path / "run"), load_run(tmp_path / "run")
    for model in (run.model, again.model):
        assert model.prior.unit == pytest.approx(50, rel=0.2)
        assert model.likelihood.unit == model.prior.unit == run.facts.unit
    assert torch.equal(again.model.prior.pseudo_inputs(), run.model.prior.pseudo_inputs())
    z = torch.zeros(5, 2)
    assert torch.equal(again.model.prior().log_prob(z), run.model.prior().log_prob(z))


def test_too_few_training_data_are_told_by_the_prior(tmp_path):
    config = Config(prior="vamp(components=5000, init=data)", encoder="mlp(hidden=(4,))")
    expected = r"components=5000 training data, got \d+; give fewer components, or init=mean$"
    with pytest.raises(InputError, match=expected):
        start_run(config, tmp_path / "run")


def test_float32_stays_finite_at_extreme_posteriors():
    """Encoder outputs of ±1e4 as mean and raw scale."""
    guide = make_guide().float()
    nn.init.zeros_(guide.head.weight)
    for output in (-1e4, 1e4):
        nn.init.constant_(guide.head.bias, output)
        prior = Vamp(guide.posterior, event_shape=(4,), components=3)
        z = torch.tensor([[-1e4, 1e4], [0.0, 1.0]], requires_grad=True)
        log_prob = prior().log_prob(z)
        assert torch.isfinite(log_prob).all()
        log_prob.sum().backward()
        for tensor in (z, prior.u, *guide.parameters()):
            assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"components": 0}, "vamp: components"), ({"components": 2.5}, "vamp: components"),
     ({"init": "datum"}, "vamp: init"), ({"noise": 0.0}, "vamp: noise"),
     ({"noise": math.nan}, "vamp: noise"),
     ({"noise": 1e39}, "vamp: noise"), ({"noise": True}, "vamp: noise"),
     ({"components": 10**400}, "vamp: components"),
     ({"has_density": False}, "vamp: its density is that of q.* does not have; use a guide"),
     ({"init": "data", "data_sample": lambda n: torch.zeros(200, 4)}, "components=300.* got 200")],
)  # fmt: skip
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        vamp(**options)
