"""The bottom-up guide: its joint density integrates to one, and its layers are what they say."""

import math

import torch
from pyro import poutine
from pyro_vae.guides.hierarchical import Hierarchical

from pyro_vae.networks import Encoder, mlp

X = torch.tensor([[0.5, -0.3], [1.2, 0.4]], dtype=torch.float64)


def make(dims=(1, 1)) -> Hierarchical:
    torch.manual_seed(0)
    body, features = mlp(hidden=(8,), activation="tanh").encoder((2,))
    return Hierarchical(Encoder(body, (2,), features), dims, hidden=(6,)).double()


def test_joint_density_integrates_to_one():
    guide = make()
    grid = torch.linspace(-12, 12, 801, dtype=torch.float64)
    z1, z2 = grid[:, None, None, None], grid[None, :, None, None]
    with torch.no_grad():
        log_q = guide.posterior(X).log_prob(z1) + guide.top(z1).log_prob(z2)
    total = log_q.flatten(0, 1).logsumexp(0) + 2 * math.log(24 / 800)
    assert (total.abs() < 1e-8).all()


def importance_ratio(guide, error=0.0):
    """Mean of h/q under q and its standard error, h(z1) h(z2|z1) narrower by 1.3 in each layer."""
    torch.manual_seed(1)
    with torch.no_grad():
        q1 = guide.posterior(X[:1])
        z1 = q1.sample((100_000,))
        q2 = guide.top(z1)
        z2 = q2.sample()
        log_h = 0.0
        for q, z in ((q1, z1), (q2, z2)):
            narrow = torch.distributions.Normal(q.mean, q.stddev / 1.3)
            log_h = log_h + narrow.log_prob(z).sum(-1)
        log_q = poutine.trace(poutine.condition(guide, {"z1": z1, "z2": z2})).get_trace(X[:1])
        log_q.compute_log_prob()
        total = sum(log_q.nodes[site]["log_prob"] for site in ("z1", "z2"))
    ratio = (log_h - total - error).exp().flatten()
    return float(ratio.mean()), float(ratio.std() / math.sqrt(len(ratio)))


def test_density_is_that_of_the_samples():
    """E_q[h/q] = 1 within four standard errors; a 2 % error in log q is seen."""
    guide = make()
    mean, error = importance_ratio(guide)
    assert abs(mean - 1) < 4 * error
    mean, error = importance_ratio(guide, error=0.02)
    assert abs(mean - 1) > 4 * error
