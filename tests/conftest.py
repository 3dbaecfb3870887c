"""Fixtures every test shares, the linear-Gaussian ground truth first."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearGaussian:
    """z ~ N(0, I), x | z ~ N(W z + b, σ² I): evidence and posterior are exact.

    log p(x) = log N(x; b, W Wᵀ + σ² I);  p(z|x) = N(Λ⁻¹ Wᵀ (x − b)/σ², Λ⁻¹),  Λ = I + Wᵀ W/σ²
    """

    W: Tensor
    b: Tensor
    sigma: float

    @property
    def latent_dim(self) -> int:
        return self.W.shape[1]

    @property
    def precision(self) -> Tensor:
        eye = torch.eye(self.latent_dim, dtype=self.W.dtype)
        return eye + self.W.T @ self.W / self.sigma**2

    def log_evidence(self, x: Tensor) -> Tensor:
        eye = torch.eye(len(self.b), dtype=self.W.dtype)
        covariance = self.W @ self.W.T + self.sigma**2 * eye
        return dist.MultivariateNormal(self.b, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        loc = torch.linalg.solve(self.precision, self.W.T @ ((x - self.b) / self.sigma**2).T).T
        return dist.MultivariateNormal(loc, precision_matrix=self.precision)

    def elbo(self, x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """The exact ELBO of q = N(loc, diag scale²), no Monte Carlo.

        E_q log p(x|z) = log N(x; W loc + b, σ² I) − tr(W diag(scale²) Wᵀ)/(2σ²)
        KL(q ‖ p) = ½ Σ_d (loc_d² + scale_d² − 1 − log scale_d²)
        """
        fit = dist.Normal(loc @ self.W.T + self.b, self.sigma).log_prob(x).sum(-1)
        spread = (scale**2 * (self.W**2).sum(0)).sum(-1) / (2 * self.sigma**2)
        kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum(-1)
        return fit - spread - kl

    def model(self, x: Tensor) -> None:
        eye = torch.ones(self.latent_dim, dtype=self.W.dtype)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(0 * eye, eye).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T + self.b, self.sigma).to_event(1), obs=x)

    def exact_guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.posterior(x))

    def diagonal_guide(
        self, shift: float = 0.0, variance: float = 1.0
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """q at the posterior's mean + shift sd, its marginal variance times ``variance``."""

        def parameters(x: Tensor) -> tuple[Tensor, Tensor]:
            p = self.posterior(x)
            scale = p.variance.sqrt()
            return p.mean + shift * scale, math.sqrt(variance) * scale

        return parameters

    def guide_of(self, parameters: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable:
        def guide(x: Tensor) -> None:
            loc, scale = parameters(x)
            with pyro.plate("data", x.shape[0], dim=-1):
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

        return guide

    def simulate(self, num_data: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num_data, self.latent_dim, generator=generator, dtype=self.W.dtype)
        noise = torch.randn(num_data, len(self.b), generator=generator, dtype=self.W.dtype)
        return z @ self.W.T + self.b + self.sigma * noise


def make_linear_gaussian(latent_dim: int, data_dim: int, sigma: float, seed: int) -> LinearGaussian:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(data_dim, latent_dim, generator=generator, dtype=torch.float64)
    b = torch.randn(data_dim, generator=generator, dtype=torch.float64)
    return LinearGaussian(W, b, sigma)


@pytest.fixture(scope="session")
def linear_gaussian() -> LinearGaussian:
    """Two latents, five dimensions of data, W not orthogonal."""
    return make_linear_gaussian(latent_dim=2, data_dim=5, sigma=0.8, seed=1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real MNIST, static binarized MNIST and Frey faces, where they lie beside the checkout."""
    root = Path(__file__).parents[1] / ".." / "shared" / "data"
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip("no real data beside the checkout")
    return root.resolve()


@pytest.fixture(autouse=True)
def _global_state_unchanged() -> Iterator[None]:
    """Fail a test that leaves a global flag, a default dtype or a parameter behind."""
    pyro.clear_param_store()
    before = _global_state()
    yield
    assert _global_state() == before, "the test changed a global flag of torch or Pyro"
    pyro.clear_param_store()


def _global_state() -> dict[str, object]:
    return {
        "pyro validation": pyro.infer.util.is_validation_enabled(),
        "distribution validation": torch.distributions.Distribution._validate_args,
        "pyro distribution validation": dist.Distribution._validate_args
        if hasattr(dist.Distribution, "_validate_args")
        else None,
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "module_local_params": pyro.settings.get("module_local_params"),
    }
