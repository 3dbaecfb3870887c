"""TraceEnum_ELBO by name: marked latents summed exactly, the others drawn as by trace."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.errors import InputError
from pyro_vae.objectives.trace import Trace
from pyro_vae.objectives.trace_enum import TraceEnum

X = torch.tensor([0.4, -1.0, 1.7], dtype=torch.float64)
P = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
Q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
MU = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Categorical(P), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(MU[c], 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("c", dist.Categorical(Q), infer={"enumerate": "parallel"})


def log_joint():
    return P.log() + dist.Normal(MU, 1.0).log_prob(X[:, None])


@pytest.mark.parametrize("num_particles", [1, 5])
def test_without_marked_latents_it_is_trace(linear_gaussian, num_particles):
    x = linear_gaussian.simulate(6, seed=1)
    diagonal = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.5, variance=0.6))
    losses = []
    for objective in (TraceEnum(num_particles), Trace(num_particles)):
        torch.manual_seed(0)
        losses.append(objective.loss(linear_gaussian.model, diagonal, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_marked_in_the_guide_it_is_the_elbo_without_noise(num_particles):
    exact = (Q * (log_joint() - Q.log())).sum()
    loss = TraceEnum(num_particles).loss(model, guide, X)
    assert loss == pytest.approx(-float(exact), rel=1e-12)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_marked_in_the_model_alone_it_is_the_evidence(num_particles):
    loss = TraceEnum(num_particles).loss(model, lambda x: None, X)
    assert loss == pytest.approx(-float(log_joint().logsumexp(-1).sum()), rel=1e-12)


def test_a_scale_of_both_programs_is_a_factor():
    """A subsampled plate's N/B too: outside the logarithm of the sum."""
    scale = poutine.scale(scale=4.0)
    loss = TraceEnum().loss(scale(model), scale(lambda x: None), X)
    assert loss == pytest.approx(-4 * float(log_joint().logsumexp(-1).sum()), rel=1e-12)


def test_a_scale_of_the_summed_latent_alone_is_refused_in_one_line():
    def scaled(x):
        with pyro.plate("data", len(x), dim=-1):
            with poutine.scale(scale=0.5):
                c = pyro.sample("c", dist.Categorical(P), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(MU[c], 1.0), obs=x)

    with pytest.raises(InputError, match=r"^trace_enum: latent site 'c'.*β has no") as error:
        TraceEnum().loss(scaled, lambda x: None, X)
    assert "\n" not in str(error.value)


def test_a_gradient_step_moves_both_programs():
    store = pyro.get_param_store()

    def learned_model(x):
        with poutine.condition(data={}):
            mu = pyro.param("mu", MU.clone())
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Categorical(P), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(mu[c], 1.0), obs=x)

    def learned_guide(x):
        logits = pyro.param("logits", Q.log().expand(3, 3).clone())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    svi = pyro.infer.SVI(learned_model, learned_guide, pyro.optim.Adam({"lr": 0.05}), TraceEnum())
    losses = [svi.step(X) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5
    assert not torch.equal(store["mu"].detach(), MU)
    assert math.isclose(losses[0], TraceEnum().loss(model, guide, X), rel_tol=1e-9)


def test_bad_number_of_particles():
    with pytest.raises(InputError, match="num_particles must be a whole number"):
        TraceEnum(0)
