"""The textbook losses against the bounds that their docstrings name."""

import itertools
import math
from functools import cache

import pyro
import pytest
import torch
from pyro_vae.models.likelihoods.continuous_bernoulli import ContinuousBernoulli
from torch.nn.functional import mse_loss

import pyro_vae as pv
from pyro_vae import textbook
from pyro_vae.annealing import Beta
from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.objectives import ClosedFormELBO
from pyro_vae.protocols import Facts
from pyro_vae.seeding import derive_seed, seeded
from pyro_vae.textbook_table import textbook_table

D, B, L, K = 6, 5, 3, 4
EVENT = (2, 3)
REALS = Facts(EVENT, "continuous")
LOSSES = {loss.name: loss for loss in textbook.TEXTBOOK_LOSSES}


def make_pair(likelihood, facts=REALS, *, seed=0, dtype="float64", **components):
    torch.manual_seed(seed)
    options = {"encoder": "mlp(hidden=(8,), activation=tanh)", **components}
    config = Config(likelihood=likelihood, latent_dim=L, dtype=dtype, **options)
    return build_pair(config, facts)


def uniform(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def parameters(pair):
    return [p for program in pair for p in program.parameters()]


def written(name, pair, x, seed=2):
    """A loss as a tutorial writes it: x̂, μ and log σ² of the networks, z = μ + σ ε."""
    model, guide = pair
    q = guide.posterior(x).base_dist
    with seeded(seed):
        z = q.rsample((K,))
    p = model.decode(z).base_dist
    decoded = p.logits if name == "bce_kl" else p.mean
    return LOSSES[name].function(x, decoded, q.loc, 2 * q.scale.log())


def minus_elbo(pair, x, beta=1.0, seed=2):
    """Σ over the batch of −ELBO, by the workbench's estimator of the (model, guide) programs."""
    scale = Beta(torch.tensor(beta, dtype=torch.float64))
    model, guide = (scale(program) for program in pair) if beta != 1 else pair
    with seeded(seed), pyro.get_param_store().scope():
        return ClosedFormELBO(num_particles=K).differentiable_loss(model, guide, x)


def assert_same_loss(loss, expected, pair):
    """Values and gradients of every parameter of p and q agree to 1e-10."""
    assert abs(float(loss.detach() - expected.detach())) < 1e-10 * max(1, abs(float(loss.detach())))
    got = torch.autograd.grad(loss, parameters(pair), retain_graph=True)
    wanted = torch.autograd.grad(expected, parameters(pair), retain_graph=True)
    assert max(float(g.abs().max()) for g in wanted) > 1e-3
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


# σ², the factor of −ELBO, and what is left, Σ over a batch of B; L = 3, B = 5, D = 6.
NORMAL = {
    "sse_kl": (0.5, 1.0, -3 * math.log(math.pi)),
    "half_sse_kl": (1.0, 1.0, -3 * math.log(2 * math.pi)),
    "mse_kl": (3.0, 1.0, -3 * math.log(6 * math.pi)),
    "mse_loss_kl": (15.0, 1.0, -3 * math.log(30 * math.pi)),
    "mse_loss_mean_kl": (1.0, 1 / 3, -math.log(2 * math.pi)),
}


def total(name, value):
    """Σ over the batch of the loss a datum, averaged over draws."""
    per = LOSSES[name].per
    return {"datum": value.mean(0).sum(-1), "sum": value.mean(), "mean": B * value.mean()}[per]


@pytest.mark.parametrize("name", NORMAL)
def test_a_squared_error_is_the_elbo_of_the_sigma_it_names(name):
    """Value and gradients; the constant hangs on D, B and L alone, so no gradient knows it."""
    variance, factor, constant = NORMAL[name]
    x = uniform(B, *EVENT)
    pair = make_pair(f"normal(scale={math.sqrt(variance)!r})")
    expected = factor * minus_elbo(pair, x) + B * constant
    assert_same_loss(total(name, written(name, pair, x)), expected, pair)


BETA = {
    # β at σ² = ½ and the factor; half_sse_kl = ½ (SSE + 2 KL)
    "sse_kl": (1.0, 1.0),
    "half_sse_kl": (2.0, 1 / 2),
    "mse_kl": (6.0, 1 / 6),
    "mse_loss_kl": (30.0, 1 / 30),
    "mse_loss_mean_kl": (2.0, 1 / 6),
}


@pytest.mark.parametrize("name", BETA)
def test_the_same_loss_is_a_beta_vae_of_sigma_squared_one_half(name):
    """loss = factor · (−ELBO(σ² = ½, β) − (D/2) log π)."""
    beta, factor = BETA[name]
    x = uniform(B, *EVENT)
    pair = make_pair(f"normal(scale={math.sqrt(0.5)!r})")
    expected = factor * (minus_elbo(pair, x, beta) - B * 3 * math.log(math.pi))
    assert_same_loss(total(name, written(name, pair, x)), expected, pair)


def test_batch_losses_are_pytorchs_own_calls():
    """``F.mse_loss`` of one draw, the KL of the programs summed, or averaged over B and L."""
    x, x_hat = uniform(B, *EVENT), uniform(B, *EVENT, seed=3)
    mu, log_var = uniform(B, L, seed=4), uniform(B, L, seed=5)
    q = torch.distributions.Normal(mu, (0.5 * log_var).exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    for function, expected in (
        (textbook.mse_loss_kl, mse_loss(x_hat, x) + kl.sum()),
        (textbook.mse_loss_mean_kl, mse_loss(x_hat, x) + kl.mean()),
    ):
        torch.testing.assert_close(function(x, x_hat, mu, log_var), expected, rtol=1e-12, atol=0)
    per_datum = textbook.mse_kl(x, x_hat, mu, log_var)
    torch.testing.assert_close(per_datum.mean(), mse_loss(x_hat, x) + kl.sum() / B)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_would_broadcast_are_refused(name):
    """[B, 1, 6] against [B, 2, 3], and a decoder's [B, 6], by what was expected and what came."""
    x, mu = uniform(B, *EVENT), torch.zeros(B, L)
    for shape in ((B, 6), (B, 1, 3), (1, 2, 3)):
        with pytest.raises(InputError, match=r"expected decoded data of shape \[\*, 5, 2, 3\]"):
            LOSSES[name].function(x, torch.zeros(shape), mu, mu)
    for shape in ((1, L), (L,), (B, L + 1)):
        with pytest.raises(InputError, match=r"expected mu and log_var of shape \[5, latent_dim\]"):
            LOSSES[name].function(x, x, torch.zeros(shape), mu)


def binarizations(num_dims):
    bits = list(itertools.product((0.0, 1.0), repeat=num_dims))
    return torch.tensor(bits, dtype=torch.float64)


def test_cross_entropy_is_the_elbo_averaged_over_all_binarizations():
    """All 2⁴ binarizations b of each grey x, q(z | x) of the grey x; value and gradients."""
    model, guide = pair = make_pair("bernoulli", Facts((4,), "binary"))
    x = uniform(B, 4)
    bits = binarizations(4)
    weight = (x * bits[:, None] + (1 - x) * (1 - bits[:, None])).prod(-1)  # P(b), [16, B]
    torch.testing.assert_close(weight.sum(0), torch.ones(B, dtype=torch.float64))
    q = guide.posterior(x)
    with seeded(2):
        z = q.rsample((K,))
    log_px = model.decode(z).log_prob(bits[:, None, None, :])  # [16, K, B]
    kl = torch.distributions.kl_divergence(q.base_dist, model.prior().base_dist).sum(-1)
    expected = -(weight[:, None] * (log_px - kl)).sum(0)  # [K, B]
    loss = written("bce_kl", pair, x)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    assert_same_loss(loss.mean(0).sum(), expected.mean(0).sum(), pair)


def test_cross_entropy_of_one_binarization_is_the_elbo_of_binary_data():
    pair = make_pair("bernoulli", Facts(EVENT, "binary"))
    x = (uniform(B, *EVENT) < 0.4).double()
    assert_same_loss(total("bce_kl", written("bce_kl", pair, x)), minus_elbo(pair, x), pair)


def test_cross_entropy_misses_the_log_normalizer_of_the_continuous_bernoulli():
    """loss = −ELBO + E_q Σ log C(λ), and the second term has a gradient: it is no constant."""
    model, guide = pair = make_pair("continuous_bernoulli")
    x = uniform(B, *EVENT)
    q = guide.posterior(x)
    with seeded(2):
        logits = model.decode(q.rsample((K,))).base_dist.logits
    normalizer = textbook.log_normalizer(logits).sum((-1, -2)).mean(0).sum()
    loss = total("bce_kl", written("bce_kl", pair, x))
    assert_same_loss(loss, minus_elbo(pair, x) + normalizer, pair)
    (gradient,) = torch.autograd.grad(normalizer, logits)
    assert float(gradient.abs().min()) > 1e-6
    assert float((gradient * logits.detach()).min()) > 0  # C grows away from λ = ½


LOGITS = (-700.0, -40.0, -0.11, -0.1, -0.09, -1e-9, 0.0, 1e-4, 0.0999, 0.1001, 2.0, 36.0, 1e4)


def test_log_normalizer_at_any_logit():
    """Against the density of the continuous Bernoulli at 0, log p(0) = −softplus(l) + log C."""
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(logits)
    log_p0 = ContinuousBernoulli()(logits.unsqueeze(-1)).log_prob(zero)
    # softplus by logaddexp: torch's own is l from 20 on
    expected = log_p0 + torch.logaddexp(logits, zero)
    got = textbook.log_normalizer(logits)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    (slope,) = torch.autograd.grad(got.sum(), logits)
    (expected_slope,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-10, atol=1e-12)
    assert got.min() >= math.log(2)
    low = textbook.log_normalizer(logits.float())
    torch.testing.assert_close(low.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("logit", [-3.0, 0.0, 0.05, 1.5])
def test_cross_entropy_is_no_density_of_grey_x(logit):
    """∫ exp(−BCE) dx over [0, 1] = 1/C ≤ ½; Simpson's rule, 2,001 points."""
    x = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    zero = torch.zeros(len(x), 1, dtype=torch.float64)
    density = (-textbook.bce_kl(x, torch.full_like(x, logit), zero, zero)).exp()
    weight = torch.ones(2001, dtype=torch.float64)
    weight[1:-1:2], weight[2:-1:2] = 4, 2
    integral = float((weight * density).sum() / 6000)
    normalizer = float(textbook.log_normalizer(torch.tensor(logit, dtype=torch.float64)))
    assert integral == pytest.approx(math.exp(-normalizer), rel=1e-10)
    assert integral <= 0.5 + 1e-12


def test_cross_entropy_has_another_optimum_than_the_continuous_bernoulli():
    """For one pixel x = ¼ the best λ is ¼; there it is the λ whose mean is ¼, farther from ½."""
    x, zero = torch.full((1, 1), 0.25, dtype=torch.float64), torch.zeros(1, 1)
    best_of_density = ContinuousBernoulli().params_at(x[0]).squeeze()
    best = torch.logit(x).squeeze()
    for logit, extra in ((best, 0), (best_of_density, 1)):
        l = logit.clone().requires_grad_()  # noqa: E741
        loss = textbook.bce_kl(x, l.view(1, 1), zero, zero) - extra * textbook.log_normalizer(l)
        assert abs(float(torch.autograd.grad(loss.sum(), l)[0])) < 1e-9
    assert float(torch.sigmoid(best_of_density)) < 0.1


# The table.


MEASURES = {
    "bernoulli": Facts(EVENT, "binary"),
    "beta_binomial": Facts(EVENT, "levels", num_levels=16),
    "negative_binomial": Facts(EVENT, "counts"),
    "normal(scale=0.3)": Facts(EVENT, "continuous", num_levels=16, dequantized=True),
    "beta": Facts(EVENT, "continuous", num_levels=16, dequantized=True),
    "continuous_bernoulli": Facts(EVENT, "continuous"),
}


def data_of(measure, size=B):
    u = uniform(size, *EVENT)
    return {
        "binary": (u < 0.4).double(), "levels": (u * 16).floor(), "counts": (u * 9).floor(),
        "continuous": u,
    }[measure]  # fmt: skip


def rows_of(table):
    return {row.name: row for row in table}


@cache
def table_of(likelihood):
    facts = MEASURES[likelihood]
    pair = make_pair(likelihood, facts)
    return rows_of(textbook_table(*pair, data_of(facts.measure), num_samples=K, seed=7))


@pytest.mark.parametrize("likelihood", MEASURES)
def test_every_row_is_the_bound_it_names_whatever_the_measure(likelihood):
    rows = table_of(likelihood)
    assert list(rows) == list(LOSSES)
    for row in rows.values():
        assert (row.num_dims, row.batch_size, row.num_latents) == (D, B, L)
        if row.name in NORMAL:
            variance, factor, constant = NORMAL[row.name]
            assert row.sigma == pytest.approx(math.sqrt(variance), rel=1e-14)
            assert row.beta_at_half == pytest.approx(2 * variance, rel=1e-14)
            assert row.factor == pytest.approx(factor, rel=1e-14)
            assert row.constant == pytest.approx(constant, rel=1e-14)
            assert (row.log_normalizer, row.refusal) == (None, None)
        if row.refusal is None:
            assert row.largest_difference < 1e-12 * D * B
            assert row.loss == pytest.approx(row.from_elbo, rel=1e-12)
            assert row.standard_error > 0
            assert row.data_standard_error > 0
            assert row.count == B


def test_data_are_scaled_to_the_unit_interval():
    scaling = {likelihood: table_of(likelihood)["sse_kl"].scaling for likelihood in MEASURES}
    assert scaling == {
        "bernoulli": "x", "beta_binomial": "x/15", "negative_binomial": "(x − 0)/8",
        "normal(scale=0.3)": "x", "beta": "x", "continuous_bernoulli": "x",
    }  # fmt: skip


def test_the_tables_numbers_are_those_of_a_run_trained_with_that_sigma():
    """The same weights under ``normal(scale=σ)``: ``closed_form`` on the table's noise."""
    run = make_pair("normal(scale=0.3)")
    x = uniform(B, *EVENT)
    for row in textbook_table(*run, x, num_samples=K, seed=7):
        if row.sigma is None:
            continue
        model, guide = make_pair(f"normal(scale={row.sigma!r})", seed=9)
        model.load_state_dict(run.model.state_dict())
        guide.load_state_dict(run.guide.state_dict())
        elbo = -float(minus_elbo((model, guide), x, seed=derive_seed(7, "textbook")).detach()) / B
        _, factor, constant = NORMAL[row.name]
        assert row.elbo == pytest.approx(elbo, rel=1e-10)
        assert row.loss == pytest.approx(-factor * elbo + constant, rel=1e-10)
        # S/(2 · 0.3²) + β KL is proportional to S/(2σ²) + KL
        assert row.beta_at_model_sigma == pytest.approx(row.sigma**2 / 0.09, rel=1e-12)


def test_errors_over_draws_and_over_data_are_kept_apart():
    """From the losses of the four draws and five data themselves."""
    pair = make_pair("normal(scale=0.3)")
    x = uniform(B, *EVENT)
    losses = written("sse_kl", pair, x, seed=derive_seed(7, "textbook")).detach()
    row = rows_of(textbook_table(*pair, x, num_samples=K, seed=7))["sse_kl"]
    assert row.loss == pytest.approx(float(losses.mean()), rel=1e-12)
    over_draws = float(losses.mean(1).std()) / math.sqrt(K)
    over_data = float(losses.mean(0).std()) / math.sqrt(B)
    assert row.standard_error == pytest.approx(over_draws, rel=1e-10)
    assert row.data_standard_error == pytest.approx(over_data, rel=1e-10)


def test_cross_entropy_takes_the_decoders_own_logits_where_it_has_them():
    for likelihood in ("bernoulli", "continuous_bernoulli"):
        facts = MEASURES[likelihood]
        pair, x = make_pair(likelihood, facts), data_of(facts.measure)
        losses = written("bce_kl", pair, x, seed=derive_seed(7, "textbook"))
        mean = float(losses.mean().detach())
        assert table_of(likelihood)["bce_kl"].loss == pytest.approx(mean, rel=1e-12)
    row = table_of("continuous_bernoulli")["bce_kl"]
    loss = float(minus_elbo(pair, x, seed=derive_seed(7, "textbook")).detach()) / B
    assert row.loss - row.log_normalizer == pytest.approx(loss, rel=1e-10)
    assert row.log_normalizer > D * math.log(2)


def test_cross_entropy_of_levels_takes_the_logits_of_the_mean():
    """E[x|z]/(n − 1) of the beta-binomial is the λ that a tutorial's decoder would output."""
    model, guide = make_pair("beta_binomial", MEASURES["beta_binomial"])
    x = data_of("levels")
    q = guide.posterior(x).base_dist
    with seeded(derive_seed(7, "textbook")):
        x_hat = model.decode(q.rsample((K,))).mean / 15
    losses = textbook.bce_kl(x / 15, torch.logit(x_hat), q.loc, 2 * q.scale.log())
    mean = float(losses.mean().detach())
    assert table_of("beta_binomial")["bce_kl"].loss == pytest.approx(mean, rel=1e-9)


def test_cross_entropy_is_refused_outside_the_unit_interval():
    assert "takes data in [0, 1]" in table_of("negative_binomial")["bce_kl"].refusal
    row = table_of("normal(scale=0.3)")["bce_kl"]
    assert "takes a decoder of means in [0, 1]" in row.refusal
    assert (row.loss, row.elbo, row.standard_error, row.count) == (None, None, None, 0)


def test_real_data_and_the_runs_sigma_are_scaled_alike():
    """x in another unit: σ 0.3 of a range of 50, and a loss of the scaled residuals."""
    model, guide = make_pair("normal(scale=0.3)")
    x = 50 * uniform(B, *EVENT) - 10
    x.view(-1)[0], x.view(-1)[1] = -10, 40
    row = rows_of(textbook_table(model, guide, x, num_samples=K, seed=7))["sse_kl"]
    assert row.scaling == "(x − -10)/50"
    assert row.beta_at_model_sigma == pytest.approx(0.5 / (0.3 / 50) ** 2)
    q = guide.posterior(x).base_dist
    with seeded(derive_seed(7, "textbook")):
        x_hat = model.decode(q.rsample((K,))).mean
    losses = textbook.sse_kl(x / 50, x_hat / 50, q.loc, 2 * q.scale.log())
    assert row.loss == pytest.approx(float(losses.mean().detach()), rel=1e-10)


def test_mse_loss_names_the_sigma_of_the_runs_batch_size():
    """12 data in batches of 5: two full ones, σ² = 5 · 6/2; the table's −ELBO is over those."""
    pair = make_pair("normal(scale=0.3)")
    x = uniform(12, *EVENT)
    rows = rows_of(textbook_table(*pair, x, num_samples=K, batch_size=5, seed=7))
    assert (rows["sse_kl"].count, rows["mse_loss_kl"].count) == (12, 10)
    for name in ("mse_loss_kl", "mse_loss_mean_kl"):
        row = rows[name]
        assert row.sigma**2 == pytest.approx(NORMAL[name][0])
        assert row.constant == pytest.approx(NORMAL[name][2])
        assert row.largest_difference < 1e-12
        q = pair.guide.posterior(x).base_dist
        with seeded(derive_seed(7, "textbook")):
            x_hat = pair.model.decode(q.rsample((K,))).mean
        parts = [
            LOSSES[name].function(x[s], x_hat[:, s], q.loc[s], 2 * q.scale[s].log()).mean().detach()
            for s in (slice(0, 5), slice(5, 10))
        ]
        per_datum = float(sum(parts)) / (2 * 5 if name == "mse_loss_kl" else 2)
        assert row.loss == pytest.approx(per_datum, rel=1e-12)


def test_mnist_sigma_is_the_root_of_392():
    """D = 784, B = 128: σ ≈ 19.8 for a mean over pixels, 224 for mse_loss, not below 1."""
    facts = Facts((28, 28), "levels", num_levels=256)
    pair = make_pair("binomial", facts, dtype="float32")
    x = torch.randint(256, (128, 28, 28), generator=torch.Generator().manual_seed(0)).float()
    rows = rows_of(textbook_table(*pair, x, num_samples=2))
    assert rows["mse_kl"].sigma == pytest.approx(19.798989873)
    assert rows["mse_kl"].beta_at_half == 784
    assert rows["mse_loss_kl"].sigma == pytest.approx(224.0)
    assert rows["mse_loss_kl"].beta_at_half == 128 * 784
    assert rows["mse_kl"].scaling == "x/255"
    assert all(row.largest_difference < 1e-9 for row in rows.values())  # float32 networks


def test_the_table_is_decided_by_its_seed_and_leaves_the_generator_alone():
    pair, x = make_pair("normal(scale=0.3)"), uniform(B, *EVENT)
    state = torch.get_rng_state()
    tables = [textbook_table(*pair, x, num_samples=K, seed=s) for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert tables[0] == tables[1]
    assert tables[0][0].loss != tables[2][0].loss


def test_one_draw_or_one_datum_has_no_error_over_it():
    pair, x = make_pair("normal(scale=0.3)"), uniform(B, *EVENT)
    (row, *_) = textbook_table(*pair, x, num_samples=1)
    assert row.standard_error is None
    (row, *_) = textbook_table(*pair, x[:1], num_samples=K)
    assert row.data_standard_error is None


REFUSED = {
    "this guide is a CholeskyNormal": {"guide": "full_rank_normal"},
    "this guide is a Delta": {"guide": "delta"},
    "this prior is a DiagonalNormalMixture": {"prior": "mixture"},
    "this prior is a Laplace": {"prior": "laplace"},
    "this prior is a Marginal": {"model": "hierarchical", "guide": "hierarchical"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_other_guides_and_priors_are_refused_in_one_line(reason):
    pair = make_pair("normal(scale=0.3)", **REFUSED[reason])
    with pytest.raises(
        InputError, match=rf"a diagonal normal guide and the prior N\(0, I\); {reason}"
    ):
        textbook_table(*pair, uniform(B, *EVENT))


class Decoded:
    """A program with a prior and a decoder, p(x|z) given."""

    def __init__(self, prior, likelihood=None):
        self.prior = prior
        if likelihood is not None:
            self.decode = likelihood


def cauchy(z):
    return pyro.distributions.Cauchy(z.new_zeros(len(z), *EVENT), 1.0).to_event(2)


def test_other_refusals():
    pair, x = make_pair("normal(scale=0.3)"), uniform(B, *EVENT)
    prior = pair.model.prior
    table = textbook_table
    with pytest.raises(InputError, match="this guide has no 'posterior'"):
        table(pair.model, lambda x: None, x)
    with pytest.raises(InputError, match="this model has no 'decode'"):
        table(Decoded(prior), pair.guide, x)
    for loc, scale in ((0.1, 1.0), (0.0, 1.1)):
        learned = pyro.distributions.Normal(torch.full((L,), loc), scale).to_event(1)
        with pytest.raises(InputError, match="this prior is a normal of another mean or scale"):
            table(Decoded(lambda p=learned: p, cauchy), pair.guide, x)
    with pytest.raises(InputError, match="this likelihood has no finite one"):
        table(Decoded(prior, cauchy), pair.guide, x)
    with pytest.raises(InputError, match="batch_size must be a whole number, at least 1, got 0"):
        table(*pair, x, batch_size=0)
    with pytest.raises(InputError, match=r"x from 3\.0 to 3\.0 has no range"):
        table(*pair, 0 * x + 3)
    with pytest.raises(InputError, match=r"expected data of shape \[N, \*event_shape\], got \[5\]"):
        table(*pair, x[:, 0, 0])


# What the losses do to real data.


def train(name, x, num_steps):
    """Adam on the loss as written; returns the KL a datum, in nats, at the end."""
    facts = Facts((28, 28), "continuous")
    pair = make_pair("normal(scale=1.0)", facts, dtype="float32", encoder="mlp(hidden=(64,))")
    optimizer = torch.optim.Adam(parameters(pair), lr=3e-3)
    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(5)
    for _ in range(num_steps):
        batch = x[torch.randint(len(x), (100,), generator=generator)]
        q = pair.guide.posterior(batch).base_dist
        x_hat = pair.model.decode(q.rsample()).mean
        loss = LOSSES[name].function(batch, x_hat, q.loc, 2 * q.scale.log()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    q = pair.guide.posterior(x).base_dist
    standard = torch.distributions.Normal(0.0, 1.0)
    return float(torch.distributions.kl_divergence(q, standard).sum(-1).mean().detach())


def test_a_mean_over_pixels_collapses_the_posterior_on_real_digits(data_root):
    """2,000 random MNIST digits, L = 3. A linear decoder spends a latent on a direction only if
    the data's variance there exceeds σ² (Tipping & Bishop, 1999): the largest is near 5, above
    ½ and far below 392.
    """
    splits = pv.load_data("mnist(values=levels)", data_root)
    x = splits.train.subset(2000, seed=0).scored() / 255
    variances = torch.linalg.eigvalsh(x.flatten(1).T.cov())
    assert 0.5 < float(variances[-L]) < float(variances[-1]) < 784 / 2
    kept, collapsed = train("sse_kl", x, 300), train("mse_kl", x, 300)
    assert kept > 3
    assert collapsed < 0.01 * kept
