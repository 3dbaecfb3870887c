"""What every normal-like guide is held against."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_vae.networks import Encoder, mlp
from pyro_vae.objectives import Trace


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


@pytest.fixture
def make() -> Callable:
    """A guide of two latents on four inputs, its head well away from its start."""

    def make_guide(guide_class, latent_dim=2, **options):
        torch.manual_seed(0)
        body, features = mlp(hidden=(8,), activation="tanh").encoder((4,))
        guide = guide_class(Encoder(body, (4,), features), latent_dim, **options).double()
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter += 0.5 * torch.randn_like(parameter)
        return guide

    return make_guide


@pytest.fixture
def skewed(linear_gaussian):
    """A linear-Gaussian model, the columns of W far from orthogonal: Λ = [[10, 8], [8, 10]]."""
    W = torch.tensor([[1.0, 0.5], [0.8, 0.9], [-0.6, -0.2], [0.3, 0.8], [0.5, 0.7]]).double()
    return dataclasses.replace(linear_gaussian, W=W, sigma=0.5)


@pytest.fixture
def linear_guide() -> Callable:
    """A guide of two latents on five inputs, which the encoder passes on as they are."""

    def make_guide(guide_class, **options):
        torch.manual_seed(0)
        return guide_class(Encoder(nn.Flatten(), (5,), 5), 2, **options).double()

    return make_guide


@pytest.fixture
def mean_ratio() -> Callable[..., tuple[float, float]]:
    """Mean of h/q under q for one datum and its standard error, 1e5 draws of seed 1.

    h is the diagonal normal at q's mean with scale sd/1.3; its mean under q is 1.
    """

    def estimate(q, error: float = 0.0) -> tuple[float, float]:
        torch.manual_seed(1)
        with torch.no_grad():
            z = q.sample((100_000,))
            h = dist.Normal(q.mean, q.variance.sqrt() / 1.3).to_event(1)
            ratio = (h.log_prob(z) - q.log_prob(z.clone()) - error).exp().flatten()
        return float(ratio.mean()), float(ratio.std() / math.sqrt(len(ratio)))

    return estimate


@pytest.fixture
def broadcasts(x) -> Callable:
    """Under [7, 6] particles of 3 data the encoder sees 3 rows, and z has q's density."""

    def check(guide) -> None:
        rows = []
        guide.encoder.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
        plates = pyro.plate("outer", 7, dim=-3), pyro.plate("particles", 6, dim=-2)
        with poutine.trace() as tracer, torch.no_grad(), plates[0], plates[1]:
            guide(x)
        site = tracer.trace.nodes["z"]
        q = guide.posterior(x)
        assert rows == [3, 3]
        assert (q.batch_shape, q.event_shape) == ((3,), (2,))
        assert site["value"].shape == (7, 6, 3, 2)
        assert site["value"].unique(dim=0).shape[0] == 7
        log_prob = site["fn"].log_prob(site["value"])
        torch.testing.assert_close(log_prob, q.log_prob(site["value"]))
        assert q.sample((4,)).shape == (4, 3, 2)
        assert q.expand((6, 3)).sample((4,)).shape == (4, 6, 3, 2)

    return check


@pytest.fixture
def gradients_match(x) -> Callable:
    """d log q(z)/d parameter against central differences, and nonzero through the ELBO."""

    def check(guide) -> None:
        z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double()

        def log_q() -> Tensor:
            return guide.posterior(x).log_prob(z).sum()

        parameters = dict(guide.named_parameters())
        gradients = torch.autograd.grad(log_q(), list(parameters.values()))
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            for i in range(0, parameter.numel(), 3):
                difference = []
                for step in (1e-6, -2e-6):
                    with torch.no_grad():
                        parameter.view(-1)[i] += step
                    difference.append(float(log_q().detach()))
                with torch.no_grad():
                    parameter.view(-1)[i] += 1e-6
                expected = (difference[0] - difference[1]) / 2e-6
                assert float(gradient.view(-1)[i]) == pytest.approx(expected, rel=1e-5, abs=1e-6)

        def model(x: Tensor) -> None:
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                loc = torch.cat([z, z.tanh()], dim=-1)
                pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

        loss = Trace().differentiable_loss(model, guide, x)
        for name, parameter in parameters.items():
            (gradient,) = torch.autograd.grad(loss, [parameter], retain_graph=True)
            assert torch.isfinite(gradient).all(), name
            assert (gradient != 0).any(), name

    return check


@pytest.fixture
def survives_extremes() -> Callable:
    """log q of its own float32 samples, and the gradient, where the head gives ±1e4.

    All combinations of sign up to 4096, else that many drawn.
    """

    def check(guide_class, latent_dim: int, **options) -> None:
        outputs = guide_class(Encoder(nn.Flatten(), (1,), 1), latent_dim, **options)
        outputs = outputs.head.out_features
        guide = guide_class(Encoder(nn.Flatten(), (outputs,), outputs), latent_dim, **options)
        with torch.no_grad():
            guide.head.weight.copy_(torch.eye(outputs))
            guide.head.bias.zero_()
        if outputs <= 12:
            signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=outputs)))
        else:
            torch.manual_seed(0)
            signs = torch.randint(2, (256, outputs)) * 2.0 - 1
            signs[0] = 1.0
        values = (1e4 * signs).requires_grad_()
        torch.manual_seed(1)
        q = guide.posterior(values)
        z = q.rsample((2,))
        log_q = q.log_prob(z)
        assert torch.isfinite(z).all()
        assert torch.isfinite(log_q).all()
        assert torch.isfinite(q.mean).all()
        assert (q.variance > 0).all()
        (gradient,) = torch.autograd.grad(log_q.sum() + z.sum(), [values])
        assert torch.isfinite(gradient).all()

    return check


@pytest.fixture
def sampled_covariance() -> Callable:
    """Largest |sample covariance − Σ| of one datum in standard errors, 2e5 draws of seed 2.

    For a normal, var(S_ij) = (Σ_ii Σ_jj + Σ_ij²)/n.
    """

    def estimate(q, covariance: Tensor) -> float:
        torch.manual_seed(2)
        with torch.no_grad():
            z = q.sample((200_000,)).squeeze(1)
            diagonal = covariance.diagonal()
            error = ((torch.outer(diagonal, diagonal) + covariance**2) / len(z)).sqrt()
            return float(((z.T.cov() - covariance) / error).abs().max())

    return estimate


@pytest.fixture
def train() -> Callable:
    """SVI with Trace_ELBO on all data at once; Adam, its rate falling from 0.05 to 0.0005."""

    def run(model, guide, x, num_steps: int, num_particles: int = 4) -> None:
        torch.manual_seed(3)
        rate = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05, "betas": (0.9, 0.99)}}
        optim = pyro.optim.ExponentialLR({**rate, "gamma": 0.01 ** (1 / num_steps)})
        svi = SVI(model, guide, optim, Trace(num_particles))
        for _ in range(num_steps):
            svi.step(x)
            optim.step()

    return run
