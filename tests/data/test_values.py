import math

import pytest
import torch

from pyro_vae.data.images import TensorImages
from pyro_vae.data.noise import seeded_ranks
from pyro_vae.data.splits import Split
from pyro_vae.data.values import Values, resolve_values


def all_levels(n, copies):
    raw = torch.arange(n).repeat(copies, 1)
    return raw.to(torch.uint8 if n <= 256 else torch.int32)


def draws(values, raw, fresh):
    split = Split(TensorImages(raw), None, values, seed=31)
    if not fresh:
        return split.scored()
    return next(split.batches(len(raw), torch.Generator().manual_seed(31)))


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("n", [3, 17, 256])
def test_dynamic_binarization_is_bernoulli_of_the_level(n, fresh):
    """Frequencies are l / (n−1): seed 31, within 4.5 standard errors for each of n levels."""
    count = 40_000 if n < 256 else 8_000
    x = draws(Values("binary", "dynamic", n), all_levels(n, count), fresh)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    p = torch.arange(n).double() / (n - 1)
    error = (p * (1 - p) / count).sqrt()
    assert ((x.double().mean(0) - p).abs() <= 4.5 * error).all()  # exact at levels 0 and n−1
    # Their sum is n/2; frequencies l/n would give (n−1)/2.
    total_error = math.sqrt(float((error**2).sum()))
    assert abs(float(x.double().mean(0).sum()) - n / 2) < 4 * total_error


@pytest.mark.parametrize("n", [3, 17, 256, 65536])
def test_every_rank_gives_exactly_the_bernoulli_probability(n):
    values = Values("binary", "dynamic", n)
    ranks = torch.arange(values.num_ranks, dtype=torch.int32)
    for level in {0, 1, n // 2, n - 2, n - 1}:
        raw = torch.full_like(ranks, level)
        assert values.draw(raw, ranks, torch.float64).sum() == level


@pytest.mark.parametrize("n", [2, 3, 17, 255, 256, 257, 65535, 65536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dequantized_values_lie_strictly_inside_their_cell(n, dtype):
    values = Values("continuous", "none", n)
    raw = torch.tensor([0, 1, n // 2, n - 2, n - 1])
    for rank in (0, 1, values.num_ranks // 2, values.num_ranks - 1):
        x = values.draw(raw, torch.full((5,), rank, dtype=torch.int32), dtype).double()
        assert (x > raw / n).all()
        assert (x < (raw + 1) / n).all()
    # Dividing by way of 1/n, as CUDA does, must not reach the edge either.
    top = torch.tensor(n - 1 + (values.num_ranks - 0.5) / values.num_ranks) * torch.tensor(1 / n)
    assert top < 1


@pytest.mark.parametrize("fresh", [False, True])
def test_dequantization_is_uniform_in_the_cell(fresh):
    x = draws(Values("continuous", "none", 17), all_levels(17, 20_000), fresh).double()
    u = (x * 17 - torch.arange(17)).flatten()
    count = len(u)
    assert abs(float(u.mean()) - 1 / 2) < 4 * math.sqrt(1 / 12 / count)  # seed 31
    assert abs(float((u**2).mean()) - 1 / 3) < 4 * math.sqrt(4 / 45 / count)


def test_threshold_is_at_half_of_the_top_level():
    values = Values("binary", "threshold", 256)
    x = values.draw(torch.tensor([0, 127, 128, 255], dtype=torch.uint8), None, torch.float32)
    assert x.tolist() == [0, 0, 1, 1]
    x = Values("binary", "threshold", 17).draw(torch.tensor([7, 8, 9]), None, torch.float32)
    assert x.tolist() == [0, 1, 1]  # 8/16 = ½ counts as one


def test_levels_are_floats_as_they_were():
    raw = all_levels(256, 1)
    assert draws(Values("levels", "none", 256), raw, fresh=False).tolist() == raw.tolist()


@pytest.mark.parametrize("fresh", [False, True])
def test_counts_are_floats_as_they_were_and_have_no_limit(fresh):
    raw = torch.tensor([[0, 1, 255, 256, 5000, 2**24 - 1, 2**24]], dtype=torch.int32)
    values = resolve_values("data", "counts", None, 2**24 + 1, False)
    assert values == Values("counts", "none", None)
    assert (values.num_ranks, values.dequantized) == (None, False)
    assert draws(values, raw, fresh).tolist() == raw.tolist()


@pytest.mark.parametrize(
    "values",
    [
        Values("binary", "dynamic", 17),
        Values("binary", "threshold", 17),
        Values("levels", "none", 17),
        Values("counts", "none", None),
        Values("continuous", "none", 17),
    ],
)
def test_expectation_is_the_mean_of_draws(values):
    raw = all_levels(17, 1)
    ids = torch.arange(40_000)
    ranks = values.num_ranks and seeded_ranks(5, ids, (17,), values.num_ranks)
    x = values.draw(raw.expand(len(ids), -1), ranks, torch.float64)
    error = x.std(0) / math.sqrt(len(ids))
    gap = (x.mean(0) - values.expectation(raw)[0]).abs()
    assert (gap <= 4.5 * error + 1e-12).all()  # seed 5
    assert values.expectation(raw).dtype == torch.float64


@pytest.mark.parametrize(
    ("asked", "resolved"),
    [
        ((None, None, 17, False), ("binary", "dynamic")),
        ((None, "none", 17, False), ("levels", "none")),
        ((None, "threshold", 17, False), ("binary", "threshold")),
        (("binary", None, 17, False), ("binary", "dynamic")),
        (("levels", None, 17, False), ("levels", "none")),
        (("continuous", "none", 17, False), ("continuous", "none")),
        (("counts", None, 17, False), ("counts", "none")),
        (("counts", "none", 256, True), ("counts", "none")),
        (("counts", None, 2, False), ("counts", "none")),
        (("counts", "none", 2, False), ("counts", "none")),
        ((None, None, 256, True), ("levels", "none")),
        ((None, "dynamic", 256, True), ("binary", "dynamic")),
        ((None, None, 2, False), ("binary", "none")),
        (("binary", "none", 2, False), ("binary", "none")),
        ((None, None, None, False), ("continuous", "none")),
    ],
)
def test_defaults(asked, resolved):
    values = resolve_values("data", *asked)
    assert (values.measure, values.binarize) == resolved
