"""Discrete latents: summed out where they are marked, drawn where the estimator can, else refused.

Every reference is a sum over the values of the discrete latent.
"""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_vae.annealing import Beta
from pyro_vae.components import build, find, names
from pyro_vae.errors import InputError
from pyro_vae.log_weights import log_weight_terms, log_weights
from pyro_vae.objectives._per_datum import PerDatum

ALL = names("objective")
OURS = [name for name in ALL if issubclass(find("objective", name).constructor, PerDatum)]
SUMS_OUT = [*OURS, "trace_enum"]
DRAWS = ["trace", "trace_graph", "trace_enum", "tvo", "reweighted_wake_sleep"]
PARALLEL = {"enumerate": "parallel"}
X = torch.tensor([-1.2, 0.4, 2.3, 0.1], dtype=torch.float64)
MU = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
P = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
# p(d|c) of a second discrete latent.
Q = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)
SHIFT = torch.tensor([-0.4, 0.6], dtype=torch.float64)


def learned(name, value):
    return pyro.param(name, lambda: value.clone())


def guide(x):
    loc = learned("slope", torch.tensor(0.5, dtype=torch.float64)) * x
    scale = pyro.param("scale", lambda: torch.tensor(0.8).double(), constraint=constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, scale))


def mixture(logits, loc, scale):
    component = dist.Normal(loc, scale)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), component)


def likelihood_enumerated(x):
    """c moves x alone."""
    mu, p = learned("mu", MU), learned("p", P.log())
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
        c = pyro.sample("c", dist.Categorical(logits=p), infer=PARALLEL)
        pyro.sample("x", dist.Normal(z + mu[c], 0.7), obs=x)


def likelihood_by_hand(x):
    mu, p = learned("mu", MU), learned("p", P.log())
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
        pyro.sample("x", mixture(p, z[..., None] + mu, 0.7), obs=x)


def prior_enumerated(x):
    """c moves z alone: a mixture of Gaussians for a prior."""
    mu, p = learned("mu", MU), learned("p", P.log())
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Categorical(logits=p), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(mu[c], 0.6))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def prior_by_hand(x):
    mu, p = learned("mu", MU), learned("p", P.log())
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", mixture(p, mu, torch.full_like(mu, 0.6)))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


class Joint(dist.TorchDistribution):
    """log of Σ_{c, d} p(c) p(d|c) p(z|c) p(x|z, d), as a density of x given z."""

    arg_constraints, support = {}, constraints.real

    def __init__(self, z, mu, p):
        self.z, self.mu, self.p = z, mu, p
        super().__init__(z.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Joint(self.z.expand(batch_shape), self.mu, self.p)

    def log_prob(self, x):
        c = self.p.log_softmax(-1)[:, None]
        z = dist.Normal(self.mu[:, None], 0.6).log_prob(self.z[..., None, None])
        fit = dist.Normal(self.z[..., None, None] + SHIFT, 0.7).log_prob(x[..., None, None])
        joint = (c + Q.log() + z + fit).flatten(-2).logsumexp(-1)
        return joint - dist.Normal(0.0, 1.0).log_prob(self.z)


def nested_enumerated(x):
    """Two discrete latents, d given c: c moves z, d moves x."""
    mu, p = learned("mu", MU), learned("p", P.log())
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Categorical(logits=p), infer=PARALLEL)
        d = pyro.sample("d", dist.Categorical(Q[c]), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(mu[c], 0.6))
        pyro.sample("x", dist.Normal(z + SHIFT[d], 0.7), obs=x)


def nested_by_hand(x):
    mu, p = learned("mu", MU), learned("p", P.log())
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
        pyro.sample("x", Joint(z, mu, p), obs=x)


PAIRS = {
    "likelihood": (likelihood_enumerated, likelihood_by_hand),
    "prior": (prior_enumerated, prior_by_hand),
    "nested": (nested_enumerated, nested_by_hand),
}


def value_and_gradient(name, model, guide_=guide, options="(num_particles=4)", seed=3):
    pyro.clear_param_store()
    torch.manual_seed(seed)
    value = build("objective", name + options).loss_and_grads(model, guide_, X)
    store = pyro.get_param_store()
    return torch.tensor([value]).double(), {n: p.grad for n, p in store.named_parameters()}


@pytest.mark.parametrize("name", SUMS_OUT)
@pytest.mark.parametrize("where", PAIRS)
def test_summed_out_is_the_model_marginalized_by_hand(name, where):
    """Value and every gradient, on the same noise."""
    enumerated, by_hand = PAIRS[where]
    if name == "closed_form" and where != "likelihood":
        with pytest.raises(InputError, match=r"depends on one that is summed out.*no closed form"):
            build("objective", name).loss(enumerated, guide, X)
        return
    got, expected = value_and_gradient(name, enumerated), value_and_gradient(name, by_hand)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert {"mu", "p", "slope", "scale"} == got[1].keys()


@pytest.mark.parametrize("where", PAIRS)
def test_log_weights_sum_out(where):
    log_w = []
    for model in PAIRS[where]:
        torch.manual_seed(0)
        log_w.append(log_weights(model, guide, X, 5))
    torch.testing.assert_close(*log_w, rtol=1e-10, atol=1e-10)


def test_terms_of_a_mixture_prior_are_its_own():
    """log p(z) = log Σ_c p(c) p(z|c), and the rest is log p(x|z)."""
    terms = []
    for model in PAIRS["prior"]:
        torch.manual_seed(0)
        terms.append(log_weight_terms(model, guide, X, 5))
    torch.testing.assert_close(*terms, rtol=1e-10, atol=1e-10)


def masked_mixture(x):
    with pyro.plate("data", len(x), dim=-1), pyro.poutine.mask(mask=x > 0):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
        c = pyro.sample("c", dist.Categorical(P), infer=PARALLEL)
        pyro.sample("x", dist.Normal(z + MU[c], 0.7), obs=x)


def test_a_masked_datum_has_no_likelihood_when_c_is_summed_out():
    """Not the log of how many values c has."""
    terms = log_weight_terms(masked_mixture, guide, X, 3)
    torch.testing.assert_close(terms.log_likelihood[:, X <= 0], torch.zeros(3, 1).double())
    assert (terms.log_likelihood[:, X > 0] < -0.1).all()


def unmarked(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
        c = pyro.sample("c", dist.Categorical(P))
        pyro.sample("x", dist.Normal(z + MU[c], 0.7), obs=x)


@pytest.mark.parametrize("name", ALL)
def test_a_latent_of_the_model_that_nobody_draws(name):
    """Pyro warns, counts log p(c) of a draw from p, or fails by KeyError."""
    with pytest.raises(InputError, match=r"latent site 'c' is in the model but not") as error:
        build("objective", name).loss(unmarked, guide, X)
    assert "infer={'enumerate': 'parallel'}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in ALL if name not in SUMS_OUT])
def test_estimators_that_sum_nothing_out_say_so(name):
    for run in ("loss", "loss_and_grads", "differentiable_loss"):
        with pytest.raises(InputError, match=f"^{name}: latent site 'c'.*trace_enum$"):
            getattr(build("objective", name), run)(prior_enumerated, guide, X)


@pytest.mark.parametrize("name", SUMS_OUT)
def test_beta_has_no_meaning_for_a_latent_summed_out_of_the_likelihood(name):
    scale = Beta(torch.tensor(0.5))
    programs = scale(likelihood_enumerated), scale(guide)
    with pytest.raises(InputError, match=r"'c' of the model is summed out.*β has no mean") as error:
        build("objective", name).loss(*programs, X)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OURS)
def test_enumeration_by_draws_is_refused(name):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0 * x, 1.0))
            c = pyro.sample("c", dist.Categorical(P), infer={**PARALLEL, "num_samples": 5})
            pyro.sample("x", dist.Normal(z + MU[c], 0.7), obs=x)

    with pytest.raises(InputError, match="'c' of the model is marked for enumeration by num_samp"):
        build("objective", name).loss(model, guide, X)


@pytest.mark.parametrize("name", [n for n in SUMS_OUT if n != "closed_form"])
def test_a_guide_that_draws_nothing(name):
    """All latents summed out: every estimator is log p(x), exactly."""

    def model(x):
        mu = learned("mu", MU)
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(P), infer=PARALLEL)
            pyro.sample("x", dist.Normal(mu[c], 0.7), obs=x)

    exact = mixture(P.log(), MU, torch.full_like(MU, 0.7)).log_prob(X).sum()
    value, gradient = value_and_gradient(name, model, lambda x: None)
    assert float(value) == pytest.approx(-float(exact))
    mu = MU.clone().requires_grad_()
    loss = -mixture(P.log(), mu, torch.full_like(MU, 0.7)).log_prob(X).sum()
    torch.testing.assert_close(gradient["mu"], torch.autograd.grad(loss, mu)[0])


class Drawn:
    """p(c) = softmax(a), x|c ~ N(m_c, 1), q(c|x) = softmax(l_x): a copy of all of it a repeat."""

    def __init__(self, repeats, infer=None):
        self.infer = infer or {}
        start = {"a": P.log(), "m": MU, "l": 0.3 * torch.outer(X, MU)}
        self.leaves = {n: v.expand(repeats, *v.shape).clone() for n, v in start.items()}
        self.leaves = {n: v.requires_grad_() for n, v in self.leaves.items()}
        self.x = X.repeat(repeats)

    def rows(self, name):
        return self.leaves[name].repeat_interleave(len(X), 0)

    def model(self, x):
        a, m = self.rows("a"), self.rows("m")
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=a))
            loc = torch.take_along_dim(m.expand(*c.shape[:-1], *m.shape[-2:]), c[..., None], -1)
            pyro.sample("x", dist.Normal(loc[..., 0], 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            logits = self.leaves["l"].flatten(end_dim=1)
            pyro.sample("c", dist.Categorical(logits=logits), infer=self.infer)

    def log_joint_and_guide(self):
        """log p(c, x) and log q(c|x), ``[repeats, data, c]``."""
        a, m, logits = self.leaves["a"], self.leaves["m"], self.leaves["l"]
        fit = dist.Normal(m[:, None], 1.0).log_prob(X[:, None])
        return a.log_softmax(-1)[:, None] + fit, logits.log_softmax(-1)

    def gradients(self, loss):
        return torch.cat([g.flatten(1) for g in torch.autograd.grad(loss, self.leaves.values())], 1)

    def draws(self, spec, seed):
        torch.manual_seed(seed)
        loss = build("objective", spec).differentiable_loss(self.model, self.guide, self.x)
        return self.gradients(-loss)


def exact_elbo():
    pair = Drawn(1)
    log_p, log_q = pair.log_joint_and_guide()
    elbo = (log_q.exp() * (log_p - log_q)).sum()
    return float(elbo.detach()), pair.gradients(elbo)[0]


@pytest.mark.parametrize("spec", ["trace", "trace_graph", "trace_enum", "tvo(partitions=1)"])
def test_gradients_of_drawn_latents_are_those_of_the_elbo(spec, deviation):
    """Score terms, and a covariance: within 4 standard errors of the sum over c; 3,000 draws."""
    name, _, options = spec.partition("(")
    particles = f"{name}(num_particles=3{', ' + options if options else ')'}"
    draws = Drawn(3000).draws(particles, seed=1)
    assert deviation(draws, exact_elbo()[1]) < 4


@pytest.mark.parametrize("name", DRAWS)
def test_values_of_drawn_latents(name):
    """E of the estimator over K = 2 draws, all pairs of values enumerated; 4 standard errors."""
    pair = Drawn(20_000)
    objective = build("objective", f"{name}(num_particles=2)")
    log_p, log_q = (t[0].detach() for t in Drawn(1).log_joint_and_guide())
    log_w = log_p - log_q
    both = torch.stack(torch.broadcast_tensors(log_w[:, :, None], log_w[:, None]))
    probability = (log_q[:, :, None] + log_q[:, None]).exp()
    bounds = {
        "reweighted_wake_sleep": lambda f: f.logsumexp(0) - math.log(2),
        "tvo": lambda f: left_sum(f, getattr(objective, "betas", None)),
    }
    exact = (probability * bounds.get(name, lambda f: f.mean(0))(both)).sum((1, 2))
    torch.manual_seed(5)
    if isinstance(objective, PerDatum):
        values = objective.per_datum(pair.model, pair.guide, pair.x).reshape(-1, len(X))
        error = values.std(0) / math.sqrt(len(values))
        assert float(((values.mean(0) - exact).abs() / error).max()) < 4
    else:
        losses = [objective.loss(pair.model, pair.guide, pair.x) / 20_000 for _ in range(8)]
        losses = torch.tensor(losses)
        assert abs(float(losses.mean() + exact.sum())) < 4 * float(losses.std()) / math.sqrt(8)
        assert float(losses.std()) < 0.03


def left_sum(f, betas):
    betas = betas.double()
    total = 0.0
    for low, high in pairwise(betas):
        total = total + (high - low) * ((low * f).softmax(0) * f).sum(0)
    return total


def test_tvo_gradient_is_that_of_its_sum(deviation):
    """Σ_i Δ_i E_{π_i}[log w] enumerated; K = 1,000 leaves a bias below the error of 200 draws."""
    pair = Drawn(1)
    log_p, log_q = pair.log_joint_and_guide()
    betas = build("objective", "tvo").betas.double()
    total = 0.0
    for low, high in pairwise(betas):
        pi = (low * log_p + (1 - low) * log_q).softmax(-1)
        total = total + (high - low) * (pi * (log_p - log_q)).sum()
    exact = pair.gradients(total)[0]
    assert deviation(Drawn(200).draws("tvo(num_particles=1000)", seed=2), exact) < 4
    assert deviation(Drawn(200).draws("tvo(num_particles=1000)", seed=2), exact_elbo()[1]) > 20


def test_wake_updates_are_the_evidence_and_the_posteriors_cross_entropy(deviation):
    """p: ∇ log p(x); q: E_{p(c|x)} ∇ log q(c|x); K = 1,000, 200 draws, 4 standard errors."""
    pair = Drawn(1)
    log_p, log_q = pair.log_joint_and_guide()
    posterior = log_p.softmax(-1).detach()
    surrogate = log_p.logsumexp(-1).sum() + (posterior * log_q).sum()
    draws = Drawn(200).draws("reweighted_wake_sleep(num_particles=1000)", seed=3)
    assert deviation(draws, pair.gradients(surrogate)[0]) < 4


def test_a_sleep_update_follows_the_models_own_draws(deviation):
    """q: Σ_c p(c) ∇ log q(c|x̃), the guide's logits free of x̃; 4,000 draws."""
    pair = Drawn(1)
    log_q = pair.log_joint_and_guide()[1]
    surrogate = (P * log_q).sum()
    exact = torch.autograd.grad(surrogate, pair.leaves["l"])[0].flatten()
    draws = Drawn(4000).draws("reweighted_wake_sleep(insomnia=0)", seed=4)
    assert deviation(draws[:, -exact.numel() :], exact) < 4


def test_enumeration_in_the_guide_is_exact():
    """One run of trace_enum without noise: the ELBO and its gradient, to rounding."""
    for infer in (PARALLEL, {"enumerate": "sequential"}):
        pair = Drawn(1, infer)
        value, gradient = exact_elbo()
        objective = build("objective", "trace_enum")
        assert objective.loss(pair.model, pair.guide, X) == pytest.approx(-value)
        loss = objective.differentiable_loss(pair.model, pair.guide, X)
        torch.testing.assert_close(pair.gradients(-loss)[0], gradient)


@pytest.mark.parametrize("name", [name for name in ALL if name not in DRAWS])
@pytest.mark.parametrize("validate", [True, False])
def test_gradients_through_draws_that_have_none_are_refused_by_name(name, validate):
    """Whether or not Pyro validates; the estimators that take them are named."""
    pair = Drawn(1)
    with pyro.validation_enabled(validate):
        for run in ("loss_and_grads", "differentiable_loss"):
            with pytest.raises(InputError, match=f"^{name}: latent site 'c'") as error:
                getattr(build("objective", name), run)(pair.model, pair.guide, X)
            message = str(error.value)
            assert "trace_graph, tvo or reweighted_wake_sleep" in message
            assert "\n" not in message


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("closed_form", "trace_mean_field")])
def test_a_value_needs_no_gradient(name):
    """iwae, dreg and the like weigh discrete draws as any others, and take no gradient of them."""
    pair = Drawn(1)
    assert math.isfinite(build("objective", name).loss(pair.model, pair.guide, X))


@pytest.mark.parametrize("name", DRAWS)
def test_drawn_latents_train_beside_reparameterized_ones(name):
    """c and z in the guide: 40 steps raise the bound of a user's program, read with 2,000 draws."""

    def model(x):
        mu = learned("mu", MU - 1.0)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0 * x, 1.0))
            c = pyro.sample("c", dist.Categorical(P))
            pyro.sample("x", dist.Normal(z + mu[c], 0.5), obs=x)

    def both(x):
        loc = learned("slope", torch.tensor(0.5).double()) * x
        logits = learned("logits", torch.zeros(len(x), 3).double())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 0.8))
            pyro.sample("c", dist.Categorical(logits=logits))

    torch.manual_seed(0)
    svi = pyro.infer.SVI(
        model, both, pyro.optim.Adam({"lr": 0.03}), build("objective", f"{name}(num_particles=8)")
    )
    judge = build("objective", f"{name}(num_particles=2000)")
    before = judge.loss(model, both, X + 1)
    for _ in range(40):
        svi.step(X + 1)
    after = judge.loss(model, both, X + 1)
    assert after < before - 1.0
