"""Two trained networks on the same data: the difference of log p(x), datum by datum."""

__all__ = ["paired_difference", "check_same_protocol", "PairedDifference", "LEVEL"]

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation.scores import PerDatum
from pyro_vae.standard_error import standard_error_of_mean

LEVEL = 0.95
# What of a protocol must be the same, and what it is called.
_LIKE = {
    "split": "split",
    "count": "number of data",
    "data": "data set",
    "content_hash": "content hash",
    "binarization": "binarization",
    "binarization_seed": "binarization seed",
    "weights": "weights",
    "num_samples": "K",
    "seed": "seed",
    "dtype": "dtype",
    "adaptive": "--adaptive",
}


@dataclass(frozen=True)
class PairedDifference:
    """The mean over data of log p_A(x) − log p_B(x), nats per datum, its errors apart."""

    count: int
    """How many data."""
    first: float
    """The mean of A."""
    second: float
    """The mean of B."""
    difference: float
    """first − second."""
    standard_error: float | None
    """Over draws, the data held fixed: an upper limit, whatever the noise that A and B share.
    None where one draw tells none; 0 of exact numbers."""
    data_standard_error: float | None
    """Over data, that over draws within it; over blocks of neighbours where data are ordered;
    None for one datum."""
    low: float | None
    """Of the interval over data, by default of 95 %."""
    high: float | None
    first_bias: float | None
    """What A's estimate misses of log p_A(x), estimated; 0 of an exact one, None for K = 1."""
    second_bias: float | None
    first_flagged: int
    """How many of A's data cannot be trusted."""
    second_flagged: int
    understated: bool
    """Whether standard_error is the sum of lower limits, and the biases are such."""
    is_exact: bool
    """Whether neither side is an estimate."""

    @property
    def bias(self) -> float | None:
        """Of the difference, as far as it is known: first_bias − second_bias."""
        if self.first_bias is None or self.second_bias is None:
            return None
        return self.first_bias - self.second_bias

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and words, the conclusions among them."""
        return dataclasses.asdict(self) | {
            "bias": self.bias,
            "winner": self.winner,
            "may_be_the_guides": self.may_be_the_guides,
        }

    @property
    def is_same(self) -> bool:
        """Whether A and B agree on every datum to the last bit."""
        return self.difference == 0 and self.data_standard_error in (0, None)

    @property
    def winner(self) -> str:
        """``first``, ``second``, or ``unresolved`` where the interval covers 0."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "unresolved"
        return "first" if self.difference > 0 else "second"

    @property
    def may_be_the_guides(self) -> bool:
        """Whether the lower side's estimate may miss as much as the difference.

        An IWAE estimate lies below log p(x). What the higher side misses would widen the
        difference; what the lower side misses closes it: where its bias is as large, or is
        not known, because some of its data are flagged, log p(x) need not differ.
        """
        if self.is_exact or self.difference == 0:
            return False
        bias, flagged = self.second_bias, self.second_flagged
        if self.difference < 0:
            bias, flagged = self.first_bias, self.first_flagged
        return bias is None or flagged > 0 or -bias >= abs(self.difference)


def paired_difference(
    a: PerDatum, b: PerDatum, *, ordered: bool = False, level: float = LEVEL
) -> PairedDifference:
    """Return the mean over data of log p_A(x_i) − log p_B(x_i), and its errors.

    d_i = log p̂_A(x_i) − log p̂_B(x_i),  d̄ = (1/N) Σ d_i,  d̄ ± t_{N−1} s_d/√N

    The noise of different data is independent: s_d/√N holds what the draws contribute, with
    whatever correlates A's draws with B's. Over draws alone the two are *not* independent,
    both are made from the noise of one seed. Their covariance may have either sign (where a
    latent of B is A's with its sign turned the errors of A and B are opposite, and adding them
    in quadrature understates that of d by up to √2), so that

    Var d_i ≤ (se_A,i + se_B,i)²,  standard_error² = (1/N²) Σ_i (se_A,i + se_B,i)²

    is an upper limit of it, by the Cauchy–Schwarz inequality. Estimates that agree on every
    datum to the last bit are one function of the same noise: 0 ± 0.

    This compares two trained networks. Of two priors or architectures it says nothing: networks
    trained from other seeds differ too, see ``significance.judge``.

    Arguments:
        a, b: of the same data, in the same order.
        ordered: neighbouring data depend on each other: errors over blocks of √N.
        level: of the interval, 1 − 0.05/m where m pairs are judged together.

    Raises:
        InputError: other numbers of data, or log p(x) that is not finite.
    """
    if a.log_px.shape != b.log_px.shape:
        raise InputError(
            f"expected two estimates of the same data, got {len(a.log_px)} and {len(b.log_px)}"
        )
    difference = (a.log_px - b.log_px).double()
    if not bool(difference.isfinite().all()):
        raise InputError("log p(x) of some datum is not finite: there is no difference to take")
    mean = float(difference.mean())
    error = standard_error_of_mean(difference, ordered)
    reach = None if error is None else _quantile(_freedom(len(difference), ordered), level) * error
    errors = _error(a) + _error(b)
    if torch.equal(a.log_px, b.log_px):
        errors = torch.zeros_like(errors)
    over_draws = float(errors.square().sum().sqrt() / len(errors))
    return PairedDifference(
        count=len(difference),
        first=float(a.log_px.mean()),
        second=float(b.log_px.mean()),
        difference=mean,
        standard_error=None if math.isnan(over_draws) else over_draws,
        data_standard_error=error,
        low=None if reach is None else mean - reach,
        high=None if reach is None else mean + reach,
        first_bias=_bias(a),
        second_bias=_bias(b),
        first_flagged=_flagged(a),
        second_flagged=_flagged(b),
        understated=_understated(a) or _understated(b),
        is_exact=a.standard_error is None and b.standard_error is None,
    )


def check_same_protocol(a: dict[str, Any], b: dict[str, Any], same_levels: bool = False) -> None:
    """Refuse to compare scores under unlike protocols, naming all that differs.

    The content decides which data they are: other names of equal bytes are the same data.

    Arguments:
        a, b: ``protocol`` of two evaluations.
        same_levels: the data are known to be the same levels, dequantized on one side.

    Raises:
        InputError: what differs, in one line.
    """
    ignored: Collection[str] = ()
    if same_levels:
        ignored = ("data", "content_hash")
    elif a.get("content_hash") == b.get("content_hash") is not None:
        ignored = ("data",)
    found = [
        f"{title} ({_shown(a.get(key))} and {_shown(b.get(key))})"
        for key, title in _LIKE.items()
        if key not in ignored and a.get(key) != b.get(key)
    ]
    if found:
        raise InputError(f"the two runs cannot be compared datum by datum: {', '.join(found)}")


def _error(side: PerDatum) -> Tensor:
    if side.standard_error is None:
        return torch.zeros_like(side.log_px)
    return side.standard_error


def _bias(side: PerDatum) -> float | None:
    if side.bias is None:
        return 0.0
    bias = float(side.bias.mean())
    return None if math.isnan(bias) else bias


def _flagged(side: PerDatum) -> int:
    return 0 if side.flagged is None else int(side.flagged.sum())


def _understated(side: PerDatum) -> bool:
    low = side.understated is not None and bool(side.understated.any())
    return low or _flagged(side) > 0


def _freedom(count: int, ordered: bool) -> int:
    return (math.isqrt(count) if ordered else count) - 1


def _quantile(freedom: int, level: float) -> float:
    """Student's t_ν of the two-sided level."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return -float(stdtrit(freedom, (1 - level) / 2))


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    is_hash = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:8] if is_hash else text
