"""Exact references, and many gradients a call: parameters repeated along the batch."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from pyro_vae.execution import Execution
from pyro_vae.objectives._per_datum import Call

Parameters = dict[str, Tensor]


class LinearPair:
    """Plain programs of a linear-Gaussian p and a linear q, one copy of them a repeat.

    p: z ~ N(0, I), x|z ~ N(W z + b, σ² I);  q(z|x) = N(A x + c, diag s²)

    Every parameter is a leaf with a leading dimension of ``repeats``, and the data are
    repeated as often: one backward pass gives as many independent gradients.
    """

    model_names = ("W", "b", "log_sigma")
    guide_names = ("A", "c", "log_s")

    def __init__(self, parameters: Parameters, x: Tensor, repeats: int):
        self.leaves = {
            name: value.expand(repeats, *value.shape).clone().requires_grad_()
            for name, value in parameters.items()
        }
        self.num_data, self.repeats = len(x), repeats
        self.x = x.repeat(repeats, 1)

    def row(self, name: str) -> Tensor:
        return self.leaves[name].repeat_interleave(self.num_data, 0)

    def model(self, x: Tensor) -> None:
        W, b, sigma = self.row("W"), self.row("b"), self.row("log_sigma").exp()
        zero = W.new_zeros(W.shape[-1])
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
            loc = torch.einsum("bdl,...bl->...bd", W, z) + b
            pyro.sample("x", dist.Normal(loc, sigma[:, None]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        loc = torch.einsum("bld,bd->bl", self.row("A"), x) + self.row("c")
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, self.row("log_s").exp()).to_event(1))

    def values(self, objective, seed: int) -> Tensor:
        """The bound, ``[repeats, num_data]``."""
        torch.manual_seed(seed)
        values = objective.per_datum(self.model, self.guide, self.x)
        return values.reshape(self.repeats, self.num_data)

    def gradients(self, objective, seed: int, wrap: Callable = lambda program: program):
        """Name → gradients of the bound summed over the data, ``[repeats, size]``."""
        torch.manual_seed(seed)
        loss = objective.differentiable_loss(wrap(self.model), wrap(self.guide), self.x)
        gradients = torch.autograd.grad(-loss, list(self.leaves.values()))
        return {
            name: g.reshape(self.repeats, -1)
            for name, g in zip(self.leaves, gradients, strict=True)
        }


class Chain:
    """A chain of two latents and a guide that draws z₂ after z₁, one copy of it a repeat.

    p(z₁) = N(0, 1), p(z₂|z₁) = N(0.8 z₁, 0.6²), p(x|z) = N(z₁ + z₂/2, 0.7²)
    q(z₁|x) = N(a x, s₁²), q(z₂|z₁, x) = N(g z₁ + h x, s₂²)
    """

    start = (0.5, 0.3, 0.2, math.log(0.8), math.log(0.7))  # a, g, h, log s₁, log s₂
    observed = 1.1

    def __init__(self, repeats: int):
        one = torch.ones(repeats, 1, dtype=torch.float64)
        self.leaves = [(value * one).requires_grad_() for value in self.start]
        self.x = self.observed * one

    def move_to_posterior(self) -> None:
        """q(z₁|x) q(z₂|z₁, x) = p(z₁, z₂|x): z₂ by x − z₁, z₁ by x|z₁ ~ N(1.4 z₁, 0.58)."""
        variance2 = 1 / (1 / 0.36 + 0.25 / 0.49)
        g, h = variance2 * (0.8 / 0.36 - 0.5 / 0.49), variance2 * 0.5 / 0.49
        variance1 = 1 / (1 + 1.96 / 0.58)
        exact = (variance1 * 1.4 / 0.58, g, h, math.log(variance1) / 2, math.log(variance2) / 2)
        with torch.no_grad():
            for leaf, value in zip(self.leaves, exact, strict=True):
                leaf.fill_(value)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(0.8 * z1, 0.6).to_event(1))
            pyro.sample("x", dist.Normal(z1 + z2 / 2, 0.7).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        a, g, h, log_s1, log_s2 = self.leaves
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(a * x, log_s1.exp()).to_event(1))
            pyro.sample("z2", dist.Normal(g * z1 + h * x, log_s2.exp()).to_event(1))

    def gradients(self, objective, seed: int) -> Tensor:
        torch.manual_seed(seed)
        loss = objective.differentiable_loss(self.model, self.guide, self.x)
        return torch.cat(torch.autograd.grad(-loss, self.leaves), dim=1)

    def exact_gradient(self, function: Callable) -> Tensor:
        """That of a function of log p(x, z) and log q(z|x) on a grid of (z₁, z₂), flat."""
        leaves = [leaf[0, 0].detach().clone().requires_grad_() for leaf in self.leaves]
        a, g, h, log_s1, log_s2 = leaves
        z1, z2 = torch.meshgrid(*(torch.linspace(-7, 7, 301).double(),) * 2, indexing="ij")
        x = self.x[0, 0]
        p = dist.Normal(0 * z1, 1.0).log_prob(z1) + dist.Normal(0.8 * z1, 0.6).log_prob(z2)
        p = p + dist.Normal(z1 + z2 / 2, 0.7).log_prob(x)
        q = dist.Normal(a * x, log_s1.exp()).log_prob(z1)
        q = q + dist.Normal(g * z1 + h * x, log_s2.exp()).log_prob(z2)
        return torch.stack(torch.autograd.grad(function(p.flatten(), q.flatten()), leaves))


class HeldTooLate(Call):
    """Holds the draws fixed after the run: z₂'s density was made from a live z₁."""

    def fixed_runs(self) -> tuple[Execution, Execution]:
        guide = self.run_guide()
        for site in guide.latent.values():
            site["value"] = site["value"].detach()
        return guide, self.run_model(guide)


def linear_parameters(p, A: Tensor, c: Tensor, s: Tensor) -> Parameters:
    log_sigma = torch.tensor(math.log(p.sigma), dtype=p.W.dtype)
    return {"W": p.W, "b": p.b, "log_sigma": log_sigma, "A": A, "c": c, "log_s": s.log()}


@pytest.fixture(scope="session")
def linear_pair() -> Callable:
    """(parameters, x, repeats) → ``LinearPair``."""
    return LinearPair


@pytest.fixture
def chain() -> Chain:
    """100 repeats."""
    return Chain(100)


@pytest.fixture(scope="session")
def held_too_late() -> Callable:
    """An objective at fixed draws → the same, its draws held after the guide has run."""

    def spoil(objective):
        spoiled = copy.copy(objective)
        spoiled.estimate = lambda call: objective.estimate(HeldTooLate(*call))
        return spoiled

    return spoil


@pytest.fixture(scope="session")
def near_posterior() -> Callable:
    """Parameters whose q is the posterior moved: variance × ``variance``, mean by ``shift`` sd."""

    def make(p, shift: float = 0.0, variance: float = 1.0) -> Parameters:
        covariance = torch.linalg.inv(p.precision)
        A = covariance @ p.W.T / p.sigma**2
        sd = covariance.diagonal().sqrt()
        return linear_parameters(p, A, -A @ p.b + shift * sd, math.sqrt(variance) * sd)

    return make


@pytest.fixture(scope="session")
def one_latent(linear_gaussian):
    """One latent, two dimensions of data."""
    W = torch.tensor([[0.9], [-0.5]], dtype=torch.float64)
    b = torch.tensor([0.2, -0.1], dtype=torch.float64)
    return replace(linear_gaussian, W=W, b=b, sigma=0.7)


@pytest.fixture(scope="session")
def two_data() -> Tensor:
    return torch.tensor([[0.8, 0.4], [-1.1, 0.9]], dtype=torch.float64)


@pytest.fixture(scope="session")
def normal_grid() -> Callable:
    """n → nodes ε and log-weights of Gauss–Hermite quadrature, E f(ε) = Σ exp(lw) f(ε)."""

    def make(size: int) -> tuple[Tensor, Tensor]:
        nodes, weights = hermegauss(size)
        log_weights = torch.tensor(weights).log() - 0.5 * math.log(2 * math.pi)
        return torch.tensor(nodes), log_weights

    return make


@pytest.fixture(scope="session")
def densities() -> Callable:
    """Parameters, x ``[N, D]``, z ``[G, N, L]`` → log p(x, z) and log q(z|x), ``[G, N]``."""

    def evaluate(parameters: Parameters, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        p = parameters
        zero = torch.zeros_like(z)
        prior = dist.Normal(zero, 1.0).log_prob(z).sum(-1)
        fit = dist.Normal(z @ p["W"].T + p["b"], p["log_sigma"].exp()).log_prob(x).sum(-1)
        q = dist.Normal(x @ p["A"].T + p["c"], p["log_s"].exp())
        return prior + fit, q.log_prob(z).sum(-1)

    return evaluate


@pytest.fixture(scope="session")
def mean_of_two(densities, normal_grid) -> Callable:
    """(bound, x) → parameters → E bound(log w₁, log w₂) of each datum, z = loc + s ε.

    80 × 80 nodes of Gauss–Hermite quadrature in (ε₁, ε₂); ``bound`` maps ``[2, *]`` to ``[*]``.
    """
    epsilon, log_node = normal_grid(80)
    weight = (log_node[:, None] + log_node[None]).exp()

    def of(bound: Callable, x: Tensor) -> Callable:
        def evaluate(p: Parameters) -> Tensor:
            z = x @ p["A"].T + p["c"] + p["log_s"].exp() * epsilon[:, None, None]
            log_p, log_q = densities(p, x, z)
            first, second = torch.broadcast_tensors(*((log_p - log_q)[i] for i in INDEX))
            return torch.einsum("ij,ijn->n", weight, bound(torch.stack([first, second])))

        return evaluate

    return of


INDEX = ((slice(None), None), (None, slice(None)))


@pytest.fixture(scope="session")
def exact_elbo(linear_gaussian) -> Callable:
    """Parameters, x → the ELBO of each datum, no Monte Carlo."""

    def evaluate(parameters: Parameters, x: Tensor) -> Tensor:
        p = parameters
        exact = replace(linear_gaussian, W=p["W"], b=p["b"], sigma=p["log_sigma"].exp())
        return exact.elbo(x, x @ p["A"].T + p["c"], p["log_s"].exp())

    return evaluate


@pytest.fixture(scope="session")
def exact_gradient() -> Callable:
    """A scalar function of parameters → its value and the gradient by name, flat."""

    def differentiate(function: Callable, parameters: Parameters) -> tuple[float, Parameters]:
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        value = function(leaves)
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        flat = {
            name: torch.zeros_like(leaf).flatten() if g is None else g.flatten()
            for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
        }
        return float(value.detach()), flat

    return differentiate


def standard_errors(samples: Tensor, reference: Tensor, variance: Tensor | float = 0.0) -> float:
    """Largest |mean − reference| over the entries, in standard errors; 0/0 is 0.

    Arguments:
        samples: ``[repeats, *]``.
        reference: what the means are held against.
        variance: that of the reference, where it is an estimate too.
    """
    error = (samples.var(0) / len(samples) + variance).sqrt()
    difference = (samples.mean(0) - reference).abs()
    floor = 1e-12 * (1 + reference.abs())
    return float(((difference - floor).clamp(min=0) / (error + floor)).max())


@pytest.fixture(scope="session")
def deviation() -> Callable:
    """Largest deviation of means from a reference, in standard errors."""
    return standard_errors


@pytest.fixture(scope="session")
def deviations() -> Callable:
    """Two tables, name → ``[repeats, size]`` or an exact ``[size]``: name → the deviation."""

    def compare(samples: Parameters, reference: Parameters) -> dict[str, float]:
        found = {}
        for name, rows in samples.items():
            other = reference[name]
            estimated = other.dim() == 2
            mean = other.mean(0) if estimated else other
            variance = other.var(0) / len(other) if estimated else 0.0
            found[name] = standard_errors(rows, mean, variance)
        return found

    return compare


@pytest.fixture
def keeps_one_value(linear_gaussian, near_posterior) -> Callable:
    """loss, differentiable_loss, loss_and_grads and per_datum agree on the same noise."""

    def check(objective) -> None:
        x = linear_gaussian.simulate(4, seed=3)
        for dtype, rel in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            parameters = near_posterior(linear_gaussian, 0.4, 1.3)
            pair = LinearPair({n: v.to(dtype) for n, v in parameters.items()}, x.to(dtype), 3)

            def run(method, pair=pair):
                torch.manual_seed(5)
                return method(pair.model, pair.guide, pair.x)

            loss = run(objective.loss)
            differentiable = run(objective.differentiable_loss)
            per_datum = run(objective.per_datum)
            assert isinstance(loss, float)
            assert math.isfinite(loss)
            assert differentiable.dtype == per_datum.dtype == dtype
            assert differentiable.requires_grad
            assert not per_datum.requires_grad
            assert per_datum.shape == (12,)
            assert float(differentiable.detach()) == pytest.approx(loss, rel=rel)
            assert run(objective.loss_and_grads) == pytest.approx(loss, rel=rel)
            assert -float(per_datum.sum()) == pytest.approx(loss, rel=rel)
            for name, leaf in pair.leaves.items():
                assert leaf.grad is not None, name
                assert leaf.grad.isfinite().all(), name
                (gradient,) = torch.autograd.grad(differentiable, [leaf], retain_graph=True)
                torch.testing.assert_close(leaf.grad, gradient)

    return check


@pytest.fixture
def lands_on_the_posterior(one_latent, two_data) -> Callable:
    """In pyro.infer.SVI, with plain functions and pyro.param: q(z|x) ends at p(z|x).

    p is held, one loc and scale a datum are free, from the prior's. 200 steps of Adam on 40
    copies of two data, its rate falling from 0.1 to 0.001; seed 0.
    """

    def check(objective, within: float) -> None:
        start = torch.zeros(2, 1, dtype=torch.float64)

        def guide(x: Tensor) -> None:
            loc = pyro.param("loc", start).repeat(40, 1)
            scale = pyro.param("scale", start + 1, constraint=dist.constraints.positive)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(loc, scale.repeat(40, 1)).to_event(1))

        torch.manual_seed(0)
        rate = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1, "betas": (0.9, 0.99)}}
        optim = pyro.optim.ExponentialLR({**rate, "gamma": 0.01 ** (1 / 200)})
        svi = pyro.infer.SVI(one_latent.model, guide, optim, objective)
        for _ in range(200):
            svi.step(two_data.repeat(40, 1))
            optim.step()
        p = one_latent.posterior(two_data)
        loc, scale = pyro.param("loc").detach(), pyro.param("scale").detach()
        assert float((loc - p.mean).abs().max()) < within
        assert float((scale - p.variance.sqrt()).abs().max()) < within

    return check
