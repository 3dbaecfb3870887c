"""The identities of the ELBO: functions that compute both sides, a datum.

The two sides come from different computations: other nodes of a quadrature, closed forms, or
draws. Guides and models have one or two real latent dimensions, unless both are exact.
"""

__all__ = ["Identity", "evidence_identity", "elbo_identity", "integral_elbo"]

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.closed_form import NoClosedForm, kl_divergence
from pyro_vae.errors import InputError
from pyro_vae.evaluation._cubature import Integral, integrate
from pyro_vae.evaluation.latent_space import (
    LatentSpace,
    Terms,
    draws_of,
    in_double,
    log_guide,
    log_terms,
)
from pyro_vae.evaluation.quadrature import log_evidence_by_quadrature, plane_of
from pyro_vae.execution import Program, execute
from pyro_vae.log_weights import check_data, log_weights, own_parameters
from pyro_vae.seeding import derive_seed, seeded


class Identity(NamedTuple):
    """Both sides of an identity, ``[B]`` each, float64, in nats."""

    left: Tensor
    right: Tensor
    left_error: Tensor
    """What quadrature may miss of it; 0 where it is exact."""
    right_error: Tensor
    """The same, or a standard error where the side is a mean over draws."""
    terms: dict[str, Tensor]
    """The parts of the sides by name, ``[B]``."""

    @property
    def gap(self) -> Tensor:
        """left − right."""
        return self.left - self.right

    @property
    def error(self) -> Tensor:
        """The errors of both sides together."""
        return self.left_error + self.right_error


@torch.no_grad()
def evidence_identity(
    model: Program, guide: Program, x: Tensor, *, tolerance: float = 1e-3, seed: int = 0
) -> Identity:
    """Return log p(x) = ELBO + KL(q(z|x) ‖ p(z|x)).

    Where the model has ``log_evidence`` and ``posterior``, log p(x|z) is quadratic in z, and
    ``closed_form`` has the KLs, all of it is exact, in any number of dimensions. With
    q = N(μ, L Lᵀ), E_q log p(x|z) is then the mean over the 2D points z = μ ± √D L e_d.
    Otherwise log p(x), E_q log p(x, z)/q(z|x) and ∫ q log(q/π) − q + π, π = p(z|x),
    are three quadratures.

    Terms: ``elbo`` and ``kl``.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), equation 1
        https://arxiv.org/abs/1312.6114

    Arguments:
        model, guide: Pyro programs of ``x``.
        x: ``[B, *event_shape]``.
        tolerance: of each quadrature, in nats.
        seed: of the draws that place its first cells.

    Raises:
        InputError: as ``log_evidence_by_quadrature``; the guide has no density at any z.
    """
    pair = _Pair(model, guide, x, tolerance, seed)
    with own_parameters(*pair.programs):
        exact = _exact_terms(pair)
        if exact is not None:
            log_px, elbo, kl = exact
            zero = torch.zeros_like(log_px)
            return Identity(log_px, elbo + kl, zero, zero, {"elbo": elbo, "kl": kl})
        evidence = log_evidence_by_quadrature(
            pair.model, pair.x, tolerance=tolerance, seed=seed, double=False
        )
        elbo_, elbo_error = pair.expectation("log_joint")

        def log_posterior(terms: Terms, data: Tensor) -> Tensor:
            return terms.log_joint - evidence.log_px[data]

        kl_, kl_error = pair.divergence(log_posterior)
    terms = {"elbo": elbo_, "kl": kl_}
    # π is off by the error of log p(x) where it is divided by it: ∂KL/∂log p(x) = 1 − ∫π = 0.
    return Identity(evidence.log_px, elbo_ + kl_, evidence.error, elbo_error + kl_error, terms)


@torch.no_grad()
def elbo_identity(
    model: Program, guide: Program, x: Tensor, *, tolerance: float = 1e-3, seed: int = 0
) -> Identity:
    """Return ELBO = E_q log p(x|z) − KL(q(z|x) ‖ p(z)).

    The left side is one quadrature, ∫ q (log p(x, z) − log q) dz. On the right the KL is in
    closed form where ``closed_form`` has it, else ∫ q log(q/p) − q + p.

    Terms: ``reconstruction`` and ``kl``. Arguments and errors as for ``evidence_identity``.
    """
    pair = _Pair(model, guide, x, tolerance, seed)
    with own_parameters(*pair.programs):
        elbo, elbo_error = pair.expectation("log_joint")
        reconstruction, error = pair.expectation("log_likelihood")
        kl = pair.closed_form_kl()
        kl_error = torch.zeros_like(error)
        if kl is None:
            kl, kl_error = pair.divergence(lambda terms, data: terms.log_prior)
    terms = {"reconstruction": reconstruction, "kl": kl}
    return Identity(elbo, reconstruction - kl, elbo_error, error + kl_error, terms)


@torch.no_grad()
def integral_elbo(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    num_samples: int = 1000,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Identity:
    """Return ∫ q(z|x) log [p(x, z)/q(z|x)] dz = E_q log w: a quadrature, and a mean over draws.

    Arguments:
        num_samples: K, at least 2, of the mean of ``log_weights``; ``right_error`` is its
            standard error.
        seed: of the draws too.

    Others, and errors, as for ``evidence_identity``.
    """
    check_data(x, num_samples)
    if num_samples < 2:
        raise InputError("integral_elbo needs num_samples ≥ 2 for a standard error, got 1")
    pair = _Pair(model, guide, x, tolerance, seed)
    with own_parameters(*pair.programs):
        elbo, error = pair.expectation("log_joint")
        with seeded(derive_seed(seed, "integral_elbo"), x.device):
            log_w = log_weights(pair.model, pair.guide, pair.x, num_samples).double()
    standard_error = log_w.std(0) / num_samples**0.5
    return Identity(elbo, log_w.mean(0), error, standard_error, {})


def _exact_terms(pair: "_Pair") -> tuple[Tensor, Tensor, Tensor] | None:
    """log p(x), the ELBO and KL(q ‖ p(z|x)) of a linear-Gaussian model, or None."""
    if not (hasattr(pair.model, "log_evidence") and hasattr(pair.model, "posterior")):
        return None
    q, p = pair.latent_sites()
    if len(q) != 1 or q.keys() != p.keys():
        return None
    (name,) = q
    try:
        kl = kl_divergence(q[name], pair.model.posterior(pair.x))
        kl_prior = kl_divergence(q[name], p[name])
    except NoClosedForm:
        return None
    reconstruction = _expected_quadratic(pair, name, q[name])
    if reconstruction is None:
        return None
    size = len(pair.x)
    elbo = reconstruction - kl_prior.double().expand(1, size)[0]
    return pair.model.log_evidence(pair.x).double(), elbo, kl.double().expand(1, size)[0]


def _expected_quadratic(pair: "_Pair", name: str, q: Any) -> Tensor | None:
    """E_q log p(x|z) of a normal q ``[1, B]``; None where it is not quadratic along L's columns.

    Of a quadratic, second differences grow as the square of their step.
    """
    L = getattr(q, "normal_factor", getattr(q, "scale_tril", None))
    L = torch.diag_embed(q.stddev) if L is None else L
    M = L.shape[-1]
    L = L.expand(*q.batch_shape, *L.shape[-2:])  # a declared factor may lack batch dimensions
    steps = M**0.5 * L.movedim(-1, 0)[:, 0]  # [M, B, D]
    points = torch.cat([0 * steps[:1], steps, -steps, 2 * steps, -2 * steps]) + q.mean[0]
    run = execute(pair.model, "model", len(points), (pair.x,), values={name: points})
    f = run.total([run.log_prob(site) for site in run.observed.values()]).double()
    center, (up, down, up2, down2) = f[0], f[1:].split(M)
    near, far = up + down - 2 * center, up2 + down2 - 2 * center
    if not torch.allclose(far, 4 * near, rtol=1e-6, atol=1e-6):
        return None
    return center + near.sum(0) / (2 * M)


class _Pair:
    """A model and a guide, in float64 where they are modules, with what integrals need."""

    def __init__(self, model: Program, guide: Program, x: Tensor, tolerance: float, seed: int):
        check_data(x, 1)
        self.programs, self.x = in_double((model, guide), x)
        self.model, self.guide = self.programs
        self.tolerance, self.seed = tolerance, seed
        self._space: LatentSpace | None = None

    @property
    def space(self) -> LatentSpace:
        if self._space is None:
            self._space = plane_of(self.model, self.x)
        return self._space

    def expectation(self, name: str) -> tuple[Tensor, Tensor]:
        """E_q of log p(x|z), or of log p(x, z) − log q(z|x), and its error, each ``[B]``."""
        terms, log_q = self._densities()

        def integrand(z: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
            q = log_q(z, data)
            g = getattr(terms(z, data), name)
            return q, (g - q if name == "log_joint" else g).unsqueeze(-1)

        result = self._integrate(integrand, [self._draws("guide")])
        return result.mean[:, 0], result.mean_error[:, 0]

    def divergence(self, log_density: Callable[[Terms, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """KL(q ‖ π) = ∫ q log(q/π) − q + π dz and its error, each ``[B]``; ∫ π = 1.

        The integrand is nowhere negative; it is taken under f = q + π, by which it is
        divided and whose integral is 2.
        """
        terms, log_q = self._densities()

        def integrand(z: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
            q, pi = log_q(z, data), log_density(terms(z, data), data)
            f = torch.logaddexp(q, pi)
            share = (q - f).exp()
            log_ratio = torch.where(share > 0, q - pi, 0.0)
            return f, (share * log_ratio - share + (pi - f).exp()).nan_to_num(0.0).unsqueeze(-1)

        result = self._integrate(integrand, [self._draws("model"), self._draws("guide")])
        total = result.log_integral.exp()
        kl = total * result.mean[:, 0]
        return kl, total * result.mean_error[:, 0] + kl * result.error

    def latent_sites(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """q and p, each site → distribution, ``batch_shape [1, B]``."""
        with seeded(self.seed, self.x.device):
            runs = (execute(self.guide, "guide", 1, (self.x,)),
                    execute(self.model, "model", 1, (self.x,)))  # fmt: skip
        q, p = ({name: site["fn"] for name, site in run.latent.items()} for run in runs)
        return q, p

    def closed_form_kl(self) -> Tensor | None:
        """KL(q ‖ p) of one latent site, ``[B]``; None where there is no closed form."""
        q, p = self.latent_sites()
        if len(q) != 1 or q.keys() != p.keys():
            return None
        (name,) = q
        try:
            kl = kl_divergence(q[name], p[name]).double()
        except NoClosedForm:
            return None
        return kl.expand(1, len(self.x))[0]

    def _densities(self) -> tuple[Callable[..., Terms], Callable[..., Tensor]]:
        return (
            log_terms(self.model, self.x, self.space),
            log_guide(self.guide, self.x, self.space),
        )

    def _draws(self, kind: str) -> Tensor:
        program = self.model if kind == "model" else self.guide
        seed = derive_seed(self.seed, "identities", kind)
        return draws_of(program, kind, self.x, self.space, seed)

    def _integrate(self, integrand: Any, draws: list[Tensor]) -> Integral:
        return integrate(integrand, draws, tolerance=self.tolerance, dtype=self.space.dtype)
