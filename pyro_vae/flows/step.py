"""One bijection of z, which remembers the log-determinant of its latest pair."""

__all__ = ["Step", "LocScale", "bounded", "state_of"]

from typing import NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform


def bounded(x: Tensor, limit: float = 3.0) -> Tensor:
    """Return limit · tanh(x/limit): x near zero, and never beyond ±limit.

    Example:
        >>> bounded(torch.tensor([-1e4, 0.0, 0.01]))
        tensor([-3.0000,  0.0000,  0.0100])
    """
    return limit * torch.tanh(x / limit)


def state_of(*tensors: Tensor) -> tuple[tuple[int, bool], ...]:
    """Return what an in-place change, or ``requires_grad_``, of a tensor would move."""
    return tuple((0 if t.is_inference() else t._version, t.requires_grad) for t in tensors)


class Step(Transform):
    """A bijection y = f(x) of vectors that knows log|det dy/dx| of its latest pair.

    Sampling leaves the pair behind, so that the density of one's own sample
    needs no inverse. The pair is not used where gradients are recorded and it was
    made under ``no_grad``, nor once one of its tensors has changed. At one's own
    sample the density depends on the parameters through x, not through y: for
    ∂log q/∂y alone, take the density at ``y.detach().requires_grad_()``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._pair: _Pair | None = None

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y = f(x) and log|det dy/dx|."""
        raise NotImplementedError

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x = f⁻¹(y) and log|det dy/dx|."""
        raise NotImplementedError(
            f"{type(self).__name__} has no inverse in closed form: its density is known at the "
            "latest sample only"
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return y = f(x)."""
        pair = self._usable_pair()
        if pair is None or pair.x is not x:
            pair = self._keep(x, *self.forward_and_log_det(x))
        return pair.y

    def _inv_call(self, y: Tensor) -> Tensor:
        pair = self._usable_pair()
        if pair is None or pair.y is not y:
            x, log_det = self.inverse_and_log_det(y)
            pair = self._keep(x, y, log_det)
        return pair.x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log|det dy/dx|, x without its last dimension."""
        pair = self._usable_pair()
        if pair is None or pair.x is not x or pair.y is not y:
            return self.forward_and_log_det(x)[1]
        return pair.log_det

    def _keep(self, x: Tensor, y: Tensor, log_det: Tensor) -> "_Pair":
        self._pair = _Pair(x, y, log_det, torch.is_grad_enabled(), state_of(x, y))
        return self._pair

    def _usable_pair(self) -> "_Pair | None":
        pair = self._pair
        if pair is None or (torch.is_grad_enabled() and not pair.has_grad):
            return None
        return pair if state_of(pair.x, pair.y) == pair.state else None


class _Pair(NamedTuple):
    x: Tensor
    y: Tensor
    log_det: Tensor
    has_grad: bool
    state: tuple[tuple[int, bool], ...]


class LocScale(Step):
    """y = loc + scale · x."""

    def __init__(self, loc: Tensor, scale: Tensor):
        super().__init__()
        self.loc, self.scale = loc, scale

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and Σ_d log scale_d."""
        y = self.loc + self.scale * x
        return y, self.scale.log().sum(-1).expand(y.shape[:-1])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and Σ_d log scale_d."""
        x = (y - self.loc) / self.scale
        return x, self.scale.log().sum(-1).expand(x.shape[:-1])
