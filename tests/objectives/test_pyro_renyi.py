"""RenyiELBO by name: renyi on the same noise, and refused where Pyro's number is no bound."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO

from pyro_vae.errors import InputError
from pyro_vae.objectives.pyro_renyi import PyroRenyi
from pyro_vae.objectives.renyi import Renyi

ALPHAS = [-1.0, 0.0, 0.5, 2.0]


class Pair:
    """The linear-Gaussian p and a diagonal q: W and the shift of q are learned."""

    def __init__(self, p):
        self.p, self.x = p, p.simulate(6, seed=1)
        self.W = p.W.clone().requires_grad_()
        self.shift = torch.full((2,), 0.4, dtype=p.W.dtype, requires_grad=True)

    def model(self, x):
        zero = torch.zeros(2, dtype=x.dtype)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
            loc = z @ self.W.T + self.p.b
            pyro.sample("x", dist.Normal(loc, self.p.sigma).to_event(1), obs=x)

    def guide(self, x):
        p = self.p.posterior(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(p.mean + self.shift, p.variance.sqrt()).to_event(1))

    def run(self, objective, method="loss_and_grads"):
        torch.manual_seed(0)
        self.W.grad = self.shift.grad = None
        loss = getattr(objective, method)(self.model, self.guide, self.x)
        if method == "differentiable_loss":
            loss.backward()
            loss = loss.detach()
        return torch.as_tensor(float(loss)), self.W.grad, self.shift.grad


@pytest.fixture
def pair(linear_gaussian):
    return Pair(linear_gaussian)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_particles", [1, 6])
def test_is_renyi_on_the_same_noise(pair, alpha, num_particles):
    """Value and gradients of both methods; and Pyro's own, with its particles under a plate."""
    expected = pair.run(Renyi(alpha, num_particles))
    assert expected[2].abs().min() > 1e-3
    torch.testing.assert_close(pair.run(PyroRenyi(alpha, num_particles)), expected)
    torch.testing.assert_close(
        pair.run(PyroRenyi(alpha, num_particles), "differentiable_loss"), expected
    )
    loss = PyroRenyi(alpha, num_particles)
    assert pair.run(loss, "loss")[0] == pytest.approx(float(expected[0]))
    if num_particles > 1:
        own = RenyiELBO(alpha, num_particles, max_plate_nesting=1, vectorize_particles=True)
        torch.testing.assert_close(pair.run(own, "loss")[0], expected[0])


@pytest.mark.parametrize(("alpha", "expected"), [(-0.5, False), (0.0, True), (0.5, True)])
def test_says_whether_it_is_a_lower_bound(alpha, expected):
    assert PyroRenyi(alpha).is_lower_bound is expected


@pytest.mark.parametrize("alpha", [1, 1.0, True, "max", float("nan"), float("inf"), 1e7])
def test_bad_orders(alpha):
    with pytest.raises(InputError, match=r"^pyro_renyi: ") as error:
        PyroRenyi(alpha)
    assert "\n" not in str(error.value)


def test_a_latent_outside_the_plate_would_have_one_weight_for_all_data():
    """Pyro's own takes it: a looser bound, the same for 2 data as for 1,000, and no warning."""
    x = torch.zeros(3, dtype=torch.float64)

    def model(x):
        w = pyro.sample("w", dist.Normal(0 * x[0], 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0 * x[0], 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0 * x, 1.0))

    RenyiELBO(num_particles=2, max_plate_nesting=1, vectorize_particles=True).loss(model, guide, x)
    for method in ("loss", "loss_and_grads", "differentiable_loss"):
        with pytest.raises(InputError, match=r"^pyro_renyi: site 'w' stands outside"):
            getattr(PyroRenyi(), method)(model, guide, x)


def test_a_point_has_no_bound(pair):
    def point(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(pair.p.posterior(x).mean, event_dim=1))

    with pytest.raises(InputError, match=r"^pyro_renyi: latent site 'z' of the guide is a point"):
        PyroRenyi().loss(pair.model, point, pair.x)


def test_one_datum_under_one_particle(pair):
    pair.x = pair.x[:1]
    torch.testing.assert_close(pair.run(PyroRenyi(0.5, 1)), pair.run(Renyi(0.5, 1)))
