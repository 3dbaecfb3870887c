"""TraceGraph_ELBO by name: the value of trace, and score terms with downstream costs."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.objectives.trace import Trace
from pyro_vae.objectives.trace_graph import TraceGraph

X = torch.tensor([0.4, -1.0, 1.7], dtype=torch.float64)


class Pair:
    """Two independent coins a datum, c1 and c2, each with an observation of its own."""

    def __init__(self, repeats, infer=None):
        self.logit = torch.zeros(repeats, 2, dtype=torch.float64, requires_grad=True)
        self.infer = infer or {}
        self.repeats, self.x = repeats, X.repeat(repeats)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            for i in range(2):
                c = pyro.sample(f"c{i}", dist.Bernoulli(torch.full_like(x, 0.3)))
                pyro.sample(f"x{i}", dist.Normal(2 * c, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            for i in range(2):
                logits = self.logit[:, i].repeat_interleave(len(X))
                pyro.sample(f"c{i}", dist.Bernoulli(logits=logits), infer=self.infer)

    def gradients(self, objective, seed):
        torch.manual_seed(seed)
        loss = objective.differentiable_loss(self.model, self.guide, self.x)
        return torch.autograd.grad(-loss, self.logit)[0]


def exact_gradient():
    """d/dl Σ_x E_q[log p(c, x) − log q(c)], the sum over c written out."""
    logit = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    c = torch.tensor([0.0, 1.0], dtype=torch.float64)
    log_p = dist.Bernoulli(0.3).log_prob(c) + dist.Normal(2 * c, 1.0).log_prob(X[:, None])
    log_q = dist.Bernoulli(logits=logit[:, None]).log_prob(c)
    elbo = (log_q.exp() * (log_p[:, None] - log_q)).sum()
    return torch.autograd.grad(elbo, logit)[0]


@pytest.mark.parametrize("num_particles", [1, 5])
def test_value_is_that_of_trace(linear_gaussian, num_particles):
    x = linear_gaussian.simulate(6, seed=1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.5, variance=0.6))
    losses = []
    for objective in (TraceGraph(num_particles), Trace(num_particles)):
        torch.manual_seed(0)
        losses.append(objective.loss(linear_gaussian.model, guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_gradient_is_unbiased_and_has_less_variance_than_trace(deviation):
    """c1's score carries no cost of c2; 4 standard errors over 4,000 draws, seed 0."""
    graph, trace = (Pair(4000).gradients(o, seed=0) for o in (TraceGraph(2), Trace(2)))
    assert deviation(graph, exact_gradient()) < 4
    assert deviation(trace, exact_gradient()) < 4
    assert (graph.var(0) < 0.8 * trace.var(0)).all()


def test_three_particles_have_a_third_of_the_variance():
    """A mean over particles, no sum; 3,000 draws, within 15 percent."""
    one, three = (Pair(3000).gradients(TraceGraph(k), seed=1) for k in (1, 3))
    torch.testing.assert_close(three.var(0) * 3, one.var(0), rtol=0.15, atol=0)


def test_loss_and_grads_is_the_gradient_of_the_differentiable_loss():
    pair = Pair(1)
    gradient = pair.gradients(TraceGraph(4), seed=2)
    torch.manual_seed(2)
    loss = TraceGraph(4).loss_and_grads(pair.model, pair.guide, pair.x)
    torch.testing.assert_close(pair.logit.grad, -gradient)
    torch.manual_seed(2)
    assert TraceGraph(4).loss(pair.model, pair.guide, pair.x) == pytest.approx(loss)


def test_a_baseline_keeps_the_mean_and_lowers_the_variance(deviation):
    """One that the guide declares; 4 standard errors over 4,000 draws, seed 3."""
    plain = Pair(4000).gradients(TraceGraph(), seed=3)
    value = torch.full((4000 * len(X),), -3.0, dtype=torch.float64)
    draws = Pair(4000, {"baseline": {"baseline_value": value}}).gradients(TraceGraph(), seed=3)
    assert deviation(draws, exact_gradient()) < 4
    assert (draws.var(0) < 0.5 * plain.var(0)).all()


def test_bad_number_of_particles():
    with pytest.raises(InputError, match="num_particles must be a whole number"):
        TraceGraph(0)
