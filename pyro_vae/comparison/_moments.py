"""Running moments of gradients too many and too long to store, and what a mean differs by."""

__all__ = ["Sketch", "Moments", "Sample", "Average", "Distance", "distance"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH = 4096  # of a sketch; vectors up to it are kept as they are
NUM_BLOCKS = 64
SAMPLE_BLOCKS = 16  # of the sums of squares of a sample of the numbers


class Sketch:
    """A linear map of P numbers to at most 4,096 that keeps inner products on average.

    Each number is added to one bucket under a random sign: E⟨Sa, Sb⟩ = ⟨a, b⟩, with a
    variance of at most 2|a|²|b|²/4,096. Shorter vectors are left as they are.

    References:
        Finding Frequent Items in Data Streams (Charikar et al., 2002)
        https://doi.org/10.1007/3-540-45465-9_59

    Arguments:
        size: P.
        device: of the vectors.
        seed: of buckets and signs; sketches are comparable under one seed alone.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu", seed: int = 0):
        self.size = size
        self.width = min(size, WIDTH)
        self.sample = torch.arange(size, device=device)  # of the numbers, as many as ``width``
        generator = torch.Generator().manual_seed(seed)
        if size > WIDTH:
            self.bucket = torch.randint(WIDTH, (size,), generator=generator).to(device)
            self.sign = torch.randint(2, (size,), generator=generator).mul(2).sub(1).to(device)
            self.sample = torch.randperm(size, generator=generator)[:WIDTH].to(device)

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the sketch of ``vector`` ``[P]``."""
        if self.size == self.width:
            return vector
        return vector.new_zeros(WIDTH).index_add_(0, self.bucket, vector * self.sign)


@dataclass(frozen=True)
class Sample:
    """Sums over blocks of draws of a few of the P numbers, and of their squares."""

    chosen: Tensor
    """Which numbers, ``[width]``."""
    sizes: Tensor
    """Draws a block, ``[blocks]``."""
    sums: Tensor
    """``[blocks, width]``."""
    squares: Tensor
    """``[blocks, width]``."""

    def jackknife(self, statistic: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Return the standard error of ``statistic(mean, variance)``, a number.

        With T_b the statistic without block b of n_b draws and h_b = R/n_b, the variance is
        the mean over blocks of (T̃_b − Σ_b T̃_b/h_b)²/(h_b − 1), T̃_b = h_b T − (h_b − 1) T_b.

        References:
            Delete-m Jackknife for Unequal m (Busing et al., 1999)
            https://doi.org/10.1023/A:1008800423698
        """
        h = self.sizes.sum() / self.sizes
        whole = statistic(*self._moments(self.sizes.sum(), self.sums.sum(0), self.squares.sum(0)))
        sizes = self.sizes.sum() - self.sizes
        sums, squares = self.sums.sum(0) - self.sums, self.squares.sum(0) - self.squares
        without = [
            statistic(*self._moments(*each)) for each in zip(sizes, sums, squares, strict=True)
        ]
        pseudo = h * whole - (h - 1) * torch.stack(without)
        centre = (pseudo / h).sum()
        return math.sqrt(float(((pseudo - centre).square() / (h - 1)).mean()))

    @staticmethod
    def _moments(size: Tensor, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        mean = total / size
        return mean, (squares - size * mean.square()).clamp(min=0) / (size - 1)


@dataclass(frozen=True)
class Average:
    """The mean of R independent draws of a vector of P numbers, and how far off it is."""

    mean: Tensor
    """``[P]``, float64."""
    variance: Tensor
    """Of one draw, ``[P]``; zero for a vector that is known."""
    num_draws: int
    sketch: Tensor
    """Of ``mean``."""
    residuals: Tensor
    """Sketches of √n (block mean − mean) for blocks of n draws, ``[blocks, width]``."""
    increments: Tensor
    """What each draw from the second on adds to Σ (value − mean)², ``[R − 1]``."""
    sample: Sample

    @classmethod
    def exact(cls, vector: Tensor, sketch: Sketch) -> "Average":
        """Return a vector without error."""
        return cls._known(vector, sketch(vector))

    @classmethod
    def zero_like(cls, other: "Average") -> "Average":
        """Return 0, known."""
        return cls._known(torch.zeros_like(other.mean), torch.zeros_like(other.sketch))

    @classmethod
    def _known(cls, vector: Tensor, sketch: Tensor) -> "Average":
        none = sketch.new_zeros(0, len(sketch))
        sample = Sample(none[:, 0].long(), none[:, 0], none, none)
        return cls(vector, torch.zeros_like(vector), 1, sketch, none, none[:, 0], sample)

    @property
    def error(self) -> Tensor:
        """The variance of ``mean``, ``[P]``."""
        return self.variance / self.num_draws

    @property
    def total_variance_error(self) -> float:
        """The standard error of V = Σ_p ``variance``_p: sd(d)/√(R − 1), d the increments.

        d_r = (g_r − ḡ_{r−1})·(g_r − ḡ_r), r = 2 … R, have the mean V each, and their mean is
        its estimate. They are |Σ_i h_ri g_i|² of Helmert's contrasts h, orthonormal and
        orthogonal to 1: independent for normal draws, else Cov(d_r, d_s) = κ/(s (s − 1)) for
        r < s with κ = Σ_pq of the fourth cumulants of (g_p, g_p, g_q, g_q).
        """
        return float(self.increments.std()) / math.sqrt(len(self.increments))


class Moments:
    """Mean and variance of a stream of vectors ``[P]`` in float64, in memory of order P.

    Welford's recursion; beside it the sketched sums of up to 64 blocks of draws, from
    which the covariance enters errors, and of up to 4,096 of the numbers the sums of
    values and squares of up to 16 blocks, for what is not linear.

    Arguments:
        sketch: shared by everything that is to be compared.
        num_draws: R, at least 4: how many will come.
    """

    def __init__(self, sketch: Sketch, num_draws: int, device: torch.device | str = "cpu"):
        self.sketch = sketch
        self.num_draws = num_draws
        self.count = 0
        self.mean = torch.zeros(sketch.size, dtype=torch.float64, device=device)
        self.sum_squares = torch.zeros_like(self.mean)  # Σ (value − mean)²
        self.num_blocks = min(num_draws, NUM_BLOCKS)
        self.sums = self.mean.new_zeros(self.num_blocks, sketch.width)
        self.sizes = self.mean.new_zeros(self.num_blocks)
        self.increments = self.mean.new_zeros(num_draws)
        blocks = min(num_draws, SAMPLE_BLOCKS)
        empty = self.mean.new_zeros(blocks, sketch.width)
        self.sample = Sample(sketch.sample, empty[:, 0].clone(), empty, empty.clone())

    def update(self, vector: Tensor) -> None:
        """Take one draw."""
        vector = vector.double()
        block = self.count * self.num_blocks // self.num_draws
        self.sums[block] += self.sketch(vector)
        self.sizes[block] += 1
        self._update_sample(vector[self.sample.chosen])
        shift = vector - self.mean
        self.mean += shift / (self.count + 1)
        increment = shift * (vector - self.mean)
        self.sum_squares += increment
        self.increments[self.count] = increment.sum()
        self.count += 1

    def _update_sample(self, values: Tensor) -> None:
        sample = self.sample
        block = self.count * len(sample.sizes) // self.num_draws
        sample.sizes[block] += 1
        sample.sums[block] += values
        sample.squares[block] += values.square()

    def average(self) -> Average:
        """Return what all draws say."""
        mean = self.sums.sum(0) / self.count
        sizes = self.sizes[:, None]
        residuals = (self.sums - sizes * mean) / sizes.sqrt()
        variance = self.sum_squares.clamp(min=0) / (self.count - 1)
        increments = self.increments[1 : self.count]
        return Average(self.mean, variance, self.count, mean, residuals, increments, self.sample)


@dataclass(frozen=True)
class Distance:
    """|δ| between the expectations of two averages."""

    squared: float
    """An estimate of |δ|² that is unbiased, so that it may be negative."""
    null_variance: float
    """Of ``squared`` where δ = 0."""
    slope_variance: float
    """What δ adds to that: 4 δᵀΣδ, Σ the covariance of the difference of the means."""

    @property
    def value(self) -> float:
        """|δ|, 0 where its square is estimated negative."""
        return math.sqrt(max(0.0, self.squared))

    @property
    def standard_error(self) -> float:
        """Of ``value``, such that their ratio is a number of standard errors.

        Along δ the noise moves |δ|, by √(4 δᵀΣδ)/(2|δ|). Spread over many dimensions it
        moves |δ|², and |δ|²/sd(|δ|²) is what tells δ from 0: |δ| over sd(|δ|²)/|δ|.
        """
        spread = math.sqrt(self.slope_variance / 4 + self.null_variance)
        return spread / max(self.value, math.sqrt(spread)) if spread > 0 else 0.0


def distance(a: Average, b: Average) -> Distance:
    """Estimate |E a − E b| from independent draws of both.

    |δ|² ≈ |ā − b̄|² − tr V_a/R_a − tr V_b/R_b, without bias; its variance is, exactly,

    4 δᵀΣδ + 2 tr V_a²/(R_a(R_a − 1)) + 2 tr V_b²/(R_b(R_b − 1)) + 4 tr(V_a V_b)/(R_a R_b)

    with Σ = V_a/R_a + V_b/R_b, whatever the distribution of the draws.

    References:
        A Two-Sample Test for High-Dimensional Data (Chen & Qin, 2010), section 3
        https://doi.org/10.1214/09-AOS716
    """
    squared = (a.mean - b.mean).square().sum() - a.error.sum() - b.error.sum()
    null = 4 * _cross_trace(a, b)
    slope = 0.0
    for average in (a, b):
        null += 2 * _trace_of_square(average) / (average.num_draws * max(average.num_draws - 1, 1))
        slope += 4 * _along(average, a.sketch - b.sketch) / average.num_draws
    # Σ of the noise in ā − b̄ itself: E(ā − b̄)ᵀΣ(ā − b̄) = δᵀΣδ + tr Σ²
    return Distance(float(squared), null, max(0.0, slope - 2 * null))


def _along(average: Average, direction: Tensor) -> float:
    """dᵀVd, V the covariance of one draw."""
    projected = average.residuals @ direction
    return float(projected.square().sum()) / max(len(projected) - 1, 1)


def _cross_trace(a: Average, b: Average) -> float:
    """tr(V_a V_b)/(R_a R_b), without bias: the draws are independent."""
    if not (len(a.residuals) and len(b.residuals)):
        return 0.0
    squares = float((a.residuals @ b.residuals.T).square().sum())
    degrees = (len(a.residuals) - 1) * (len(b.residuals) - 1)
    return squares / degrees / (a.num_draws * b.num_draws)


def _trace_of_square(average: Average) -> float:
    """tr V² of one draw, without bias, and at least (tr V)²/P.

    From n residuals e with S = Σ e eᵀ/(n − 1), Q = Σ |e|⁴/(n − 1):
    (n − 1)/(n (n − 2)(n − 3)) ((n − 1)(n − 2) tr S² + (tr S)² − n Q). tr S² alone would
    add (tr V)²/n, most of it where there are more parameters than draws.

    References:
        Estimations for some functions of covariance matrix in high dimension under
        non-normality and its applications (Himeno & Yamada, 2014), Journal of Multivariate
        Analysis 130, 27
    """
    n, width = average.residuals.shape
    if n == 0:
        return 0.0
    gram = average.residuals @ average.residuals.T
    trace = float(gram.trace()) / (n - 1)
    trace_of_square = float(gram.square().sum()) / (n - 1) ** 2
    fourth = float(gram.diagonal().square().sum()) / (n - 1)
    unbiased = (n - 1) * (n - 2) * trace_of_square + trace**2 - n * fourth
    return max(unbiased * (n - 1) / (n * (n - 2) * (n - 3)), trace**2 / width)
