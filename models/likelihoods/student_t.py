"""The Student-t likelihood of continuous data."""

__all__ = ["StudentT"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.checks import check_number
from pyro_vae.student_t import MAX_DF, LocationScaleT

from ._links import bounded_exp, inverse_bounded_exp
from ._scale import LocationScale


class StudentT(LocationScale):
    """Continuous data with heavy tails, a Student-t a dimension; the scale as for the normal.

    log p(x) = Σ_d log Γ((ν+1)/2) − log Γ(ν/2) − ½ log πν − log σ_d
               − ½ (ν+1) log(1 + (x_d − μ_d)²/(ν σ_d²))

    σ is the t's own scale; the standard deviation is σ √(ν/(ν−2)), which is
    finite as ν stays above 2. As ν → ∞ it is the normal. ``scale=<number>`` fixes
    σ; ``scale=learned`` learns one σ for all dimensions; with
    ``scale=per_pixel`` the decoder outputs μ_d and σ_d. Learned scales stay above
    ``floor``, 0.1 level for dequantized data: where a pixel is constant the
    likelihood has no maximum otherwise.

    Arguments:
        df: ν, a number above 2 to 1e6, or ``learned``: one for all dimensions, from
            5, as 2 + exp(raw) nearly, so that steps are relative and large ν are reached.
        scale: a positive number, ``learned`` or ``per_pixel``; in units of x.
        floor: the smallest learned σ; 0.1/num_levels, or 1e-3 of the spread of real data.
        num_levels: n, where x is (level + u)/n.
        data_scale: the standard deviation of real data, where a learned σ starts.

    Example:
        >>> p = StudentT(df=3.0, scale=0.5)(torch.zeros(1, 1))
        >>> p.log_prob(torch.tensor([0.5]))  # log(2/(π √3)) − log 0.5 − 2 log(1 + 1/3)
        tensor([-0.8831])
    """

    def __init__(
        self,
        df: float | str = 5.0,
        scale: float | str = "learned",
        floor: float | None = None,
        num_levels: int | None = None,
        data_scale: float | None = None,
    ):
        super().__init__("student_t", scale, floor, num_levels, data_scale)
        check_number("student_t", "df", df, 2, MAX_DF, ends="(]", words=("learned",))
        self.df = df
        if df == "learned":
            self.raw_df = nn.Parameter(torch.tensor(inverse_bounded_exp(3.0)))

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, P]``."""
        loc, scale = self.loc_and_scale(params)
        learned = self.df == "learned"
        df = 2 + bounded_exp(self.raw_df) if learned else params.new_full((), float(self.df))
        return LocationScaleT(df, loc, scale, validate_args=False)
