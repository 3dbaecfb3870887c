"""The losses of VAE tutorials as they are written, and the bound each of them optimizes."""

__all__ = [
    "sse_kl",
    "half_sse_kl",
    "mse_kl",
    "mse_loss_kl",
    "mse_loss_mean_kl",
    "bce_kl",
    "log_normalizer",
    "TextbookLoss",
    "TEXTBOOK_LOSSES",
]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from pyro_vae.errors import InputError


def sse_kl(x: Tensor, x_hat: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """‖x − x̂‖² + KL of each datum: the −ELBO of a normal decoder with σ² = ½, not with σ = 1.

    −log N(x; x̂, σ² I) = ‖x − x̂‖²/(2σ²) + (D/2) log 2πσ²

    At σ² = ½ the first term is ‖x − x̂‖² and the second (D/2) log π, hence

    loss = −ELBO(σ² = ½) − (D/2) log π

    and the gradients are the same. Reconstruction and KL are summed, over D dimensions of x
    and L of z. The KL of N(μ, diag exp log_var) to N(0, I) is written as in appendix B of
    Auto-Encoding Variational Bayes (Kingma & Welling, 2014) https://arxiv.org/abs/1312.6114

    Arguments:
        x: data ``[B, *event_shape]``.
        x_hat: decoded means ``[*, B, *event_shape]``, of any number of draws z ~ q(z|x).
        mu, log_var: q's mean and log-variance, ``[B, L]``.

    Returns:
        ``[*, B]``, in nats a datum.

    Raises:
        InputError: shapes that would broadcast.

    Example:
        >>> x, zero = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 4)
        >>> sse_kl(x, torch.zeros(1, 2), zero, zero)  # 1² + 3², and KL(N(0, I) ‖ N(0, I)) = 0
        tensor([10.])
    """
    return _squared_error(x, x_hat) + _kl(x, mu, log_var)


def half_sse_kl(x: Tensor, x_hat: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """½‖x − x̂‖² + KL of each datum: the −ELBO of a normal decoder with σ = 1.

    At σ² = 1, −log N(x; x̂, σ² I) = ½‖x − x̂‖² + (D/2) log 2π, hence

    loss = −ELBO(σ² = 1) − (D/2) log 2π

    Arguments, shapes and errors as for ``sse_kl``; ``[*, B]``, in nats a datum.
    """
    return 0.5 * _squared_error(x, x_hat) + _kl(x, mu, log_var)


def mse_kl(x: Tensor, x_hat: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """‖x − x̂‖²/D + KL of each datum, a mean over pixels: the −ELBO of σ² = D/2.

    ‖x − x̂‖²/D is ‖x − x̂‖²/(2σ²) at σ² = D/2, where (D/2) log 2πσ² = (D/2) log πD, hence

    loss = −ELBO(σ² = D/2) − (D/2) log πD

    Or, by taking out 1/D: loss = (1/D) (‖x − x̂‖² + D KL), which is 1/D of a β-VAE's loss at
    σ² = ½ and β = D, less a constant: loss = (1/D) (−ELBO(σ² = ½, β = D)) − ½ log π.
    On MNIST σ = √392 ≈ 19.8 for pixels in [0, 1]: no pixel is worth a latent.

    Arguments, shapes and errors as for ``sse_kl``; ``[*, B]``, in nats a datum.
    """
    return _squared_error(x, x_hat) / _num_dims(x) + _kl(x, mu, log_var)


def mse_loss_kl(x: Tensor, x_hat: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """``F.mse_loss(x_hat, x)`` + KL summed over the batch: the −ELBO of σ² = BD/2, summed.

    ``mse_loss`` averages over batch and pixels, Σ_b ‖x_b − x̂_b‖²/(BD), and each term is
    ‖x_b − x̂_b‖²/(2σ²) at σ² = BD/2, hence for a batch of B

    loss = Σ_b −ELBO_b(σ² = BD/2) − B (D/2) log πBD

    What is fitted depends on the batch size; as a β-VAE of σ² = ½ it has β = BD.

    Arguments and errors as for ``sse_kl``; returns ``[*]``, nats a batch.
    """
    return _pixel_mean(x, x_hat) + _kl(x, mu, log_var).sum(-1)


def mse_loss_mean_kl(x: Tensor, x_hat: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """``F.mse_loss(x_hat, x)`` + KL averaged over batch and latents: σ² = D/(2L).

    Per datum ‖x − x̂‖²/D + KL/L = (1/L) (‖x − x̂‖² L/D + KL), where ‖x − x̂‖² L/D is
    ‖x − x̂‖²/(2σ²) at σ² = D/(2L), hence for the mean over a batch

    loss = (1/L) (−ELBO(σ² = D/(2L)) − (D/2) log (πD/L))

    What is fitted depends on the number of latents; as a β-VAE of σ² = ½ it has β = D/L.

    Arguments and errors as for ``sse_kl``; returns ``[*]``, 1/L nats a datum.
    """
    return _pixel_mean(x, x_hat) + _kl(x, mu, log_var).mean(-1) / mu.shape[-1]


def bce_kl(x: Tensor, logits: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """Binary cross-entropy of grey pixels + KL: the −ELBO averaged over binarizations of x.

    BCE(x, λ) = −Σ_d x_d log λ_d + (1 − x_d) log(1 − λ_d),  λ = sigmoid(logits)

    is linear in x, and each pixel of a binarization b ~ Bernoulli(x) has the mean x_d, so that
    BCE(x, λ) = E_b −log Bernoulli(b; λ). With q(z|x) of the grey x, the same for all b,

    loss = E_b −ELBO(b; q(z|x)),  no constant

    It is no negative log-density of grey x: ∫ exp(−BCE(x, λ)) dx = Π_d 1/C(λ_d) ≤ 2^−D. The
    continuous Bernoulli is what normalizes it,

    loss = −ELBO(continuous Bernoulli) + E_q Σ_d log C(λ_d)

    and log C depends on the decoder: no constant, so gradient and optimum are others (for one
    pixel the best λ is x here; there it is the λ whose mean is x, farther from ½).

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019)
        https://arxiv.org/abs/1907.06845

    Arguments:
        x: data in [0, 1], ``[B, *event_shape]``.
        logits: of λ, ``[*, B, *event_shape]``.
        mu, log_var: as for ``sse_kl``.

    Returns:
        ``[*, B]``, in nats a datum.

    Raises:
        InputError: shapes that would broadcast.
    """
    _check_shapes(x, logits)
    target = x.expand_as(logits)
    entropy = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _sum_event(entropy, x) + _kl(x, mu, log_var)


# log(h coth h) = log cosh h − log(sinh h/h) = Σ_n c_n h²ⁿ, the difference of the two series.
_LOG_H_COTH = (1 / 3, -7 / 90, 62 / 2835, -127 / 18900, 146 / 66825)


def log_normalizer(logits: Tensor) -> Tensor:
    """Return log C(λ) of the continuous Bernoulli at λ = sigmoid(l), elementwise, in nats.

    C(λ) = 2 artanh(1 − 2λ)/(1 − 2λ) = l coth(l/2),  since 1 − 2λ = −tanh(l/2)

    It is log 2 at l = 0, the least, and log |l| far from it.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019), equation 9
        https://arxiv.org/abs/1907.06845

    Example:
        >>> log_normalizer(torch.tensor([0.0, 100.0]))  # log 2, log 100
        tensor([0.6931, 4.6052])
    """
    near = logits.abs() < 0.1
    square = (0.5 * logits.where(near, 0.0)).square()
    series = torch.zeros_like(logits)
    for c in reversed(_LOG_H_COTH):
        series = (series + c) * square
    # l coth(l/2) = |l| (1 + exp −|l|)/(1 − exp −|l|)
    a = logits.abs().where(~near, 1.0)
    far = torch.log(a / -torch.expm1(-a)) + torch.log1p(torch.exp(-a))
    return torch.where(near, math.log(2) + series, far)


@dataclass(frozen=True)
class TextbookLoss:
    """A loss as it is written, and the bound that it is: factor · (−ELBO) + constant a datum.

    D is the number of dimensions of x, B the batch size, L the number of latents.
    """

    name: str
    formula: str
    optimizes: str
    factor_formula: str
    constant_formula: str
    """Of one datum."""
    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    per: str = "datum"
    """``datum``, or what the function returns for a batch: its ``sum`` or its ``mean``."""
    variance: Callable[[int, int, int], float] | None = None
    """D, B, L → σ² of the normal likelihood at β = 1; None for the Bernoulli."""
    factor: Callable[[int], float] = lambda num_latents: 1.0
    """L → factor."""

    def constant(self, num_dims: int, batch_size: int, num_latents: int) -> float:
        """Return −factor · (D/2) log 2πσ², what the normal likelihood has and the loss has not."""
        if self.variance is None:
            return 0.0
        variance = self.variance(num_dims, batch_size, num_latents)
        return -self.factor(num_latents) * 0.5 * num_dims * math.log(2 * math.pi * variance)


TEXTBOOK_LOSSES = (
    TextbookLoss(
        name="sse_kl",
        formula="Σ(x − x̂)² + KL",
        optimizes="normal, σ² = ½, β = 1",
        factor_formula="1",
        constant_formula="−(D/2) log π",
        function=sse_kl,
        variance=lambda D, B, L: 0.5,
    ),
    TextbookLoss(
        name="half_sse_kl",
        formula="½ Σ(x − x̂)² + KL",
        optimizes="normal, σ² = 1, β = 1; or σ² = ½, β = 2",
        factor_formula="1",
        constant_formula="−(D/2) log 2π",
        function=half_sse_kl,
        variance=lambda D, B, L: 1.0,
    ),
    TextbookLoss(
        name="mse_kl",
        formula="mean over pixels (x − x̂)² + KL",
        optimizes="normal, σ² = D/2, β = 1; or σ² = ½, β = D",
        factor_formula="1",
        constant_formula="−(D/2) log πD",
        function=mse_kl,
        variance=lambda D, B, L: D / 2,
    ),
    TextbookLoss(
        name="mse_loss_kl",
        formula="mse_loss(x̂, x) + Σ_b KL",
        optimizes="normal, σ² = BD/2, β = 1; or σ² = ½, β = BD",
        factor_formula="1",
        constant_formula="−(D/2) log πBD",
        function=mse_loss_kl,
        per="sum",
        variance=lambda D, B, L: B * D / 2,
    ),
    TextbookLoss(
        name="mse_loss_mean_kl",
        formula="mse_loss(x̂, x) + mean over batch and latents KL",
        optimizes="normal, σ² = D/2L, β = 1; or σ² = ½, β = D/L",
        factor_formula="1/L",
        constant_formula="−(D/2L) log(πD/L)",
        function=mse_loss_mean_kl,
        per="mean",
        variance=lambda D, B, L: D / (2 * L),
        factor=lambda num_latents: 1 / num_latents,
    ),
    TextbookLoss(
        name="bce_kl",
        formula="Σ cross-entropy(x̂, x) + KL",
        optimizes="Bernoulli, β = 1, averaged over binarizations; no density of grey x",
        factor_formula="1",
        constant_formula="0",
        function=bce_kl,
    ),
)


def _squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """‖x − x̂‖² of each datum, ``[*, B]``."""
    _check_shapes(x, x_hat)
    return _sum_event((x - x_hat).square(), x)


def _pixel_mean(x: Tensor, x_hat: Tensor) -> Tensor:
    """``F.mse_loss(x_hat, x)`` of each draw, ``[*]``."""
    _check_shapes(x, x_hat)
    error = mse_loss(x_hat, x.expand_as(x_hat), reduction="none")
    return error.flatten(start_dim=error.dim() - x.dim()).mean(-1)


def _kl(x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """−½ Σ (1 + log σ² − μ² − σ²) of each datum, ``[B]``."""
    if mu.dim() != 2 or len(mu) != len(x) or mu.shape != log_var.shape:
        raise InputError(
            f"expected mu and log_var of shape [{len(x)}, latent_dim], got {list(mu.shape)} and "
            f"{list(log_var.shape)}"
        )
    return -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum(-1)


def _sum_event(values: Tensor, x: Tensor) -> Tensor:
    """Σ over the event dimensions of x ``[B, *event_shape]``: ``[*, B, *event]`` → ``[*, B]``."""
    return values.flatten(start_dim=values.dim() - x.dim() + 1).sum(-1)


def _num_dims(x: Tensor) -> int:
    return x[0].numel()


def _check_shapes(x: Tensor, decoded: Tensor) -> None:
    if decoded.shape[-x.dim() :] != x.shape:
        raise InputError(
            f"expected decoded data of shape [*, {', '.join(map(str, x.shape))}], that of x, "
            f"got {list(decoded.shape)}; reshape it, it must not broadcast"
        )
