"""Rewritten functions against float64, before and after compilation; what is not rewritten."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.capture import capture
from pyro_vae.cheap_forms import softplus, sum_of_bernoulli, tanh, with_cheap_forms

EPS = torch.finfo(torch.float32).eps
TINY = 1e-37  # below it float32 has fewer digits
EXTREMES = [math.inf, -math.inf, 1e30, -1e30, 20.0, math.nextafter(20.0, 30.0)]
# Fine near 0, where 2 σ(2h) − 1 cancels, and to where float32's e^h is 0.
POINTS = torch.cat(
    [
        torch.linspace(-110, 30, 400_001, dtype=torch.float64),
        torch.linspace(-0.3, 0.3, 100_001, dtype=torch.float64),
        10 ** torch.linspace(-37, 0, 10_001, dtype=torch.float64),
        torch.tensor(EXTREMES, dtype=torch.float64),
    ]
).float()


def targets(module):
    return [node.target for node in module.graph.nodes]


@pytest.fixture(scope="module", params=["interpreted", "compiled"])
def both(request):
    """softplus and tanh of a graph that was rewritten, in one compilation."""

    def function(h):
        return [nn.functional.softplus(h), h.tanh()]

    graph = capture(lambda: function(POINTS), [POINTS])
    rewritten = with_cheap_forms(graph.module)
    assert {softplus, tanh} <= set(targets(rewritten))
    return rewritten if request.param == "interpreted" else graph.compile()


@pytest.mark.parametrize(("index", "name", "ulps"), [(0, "softplus", 2), (1, "tanh", 5)])
def test_relative_errors(both, index, name, ulps):
    """softplus to 2 ε, tanh to 5 ε of themselves, however small they are."""
    exact = getattr(nn.functional, name)(POINTS.double())
    got = both(POINTS)[index].double()
    assert torch.equal(got.isnan(), exact.isnan())
    finite = exact.isfinite() & (exact.abs() > TINY)
    error = (got - exact)[finite].abs() / exact[finite].abs()
    assert error.max() <= ulps * EPS
    rest = ~finite
    assert ((got == exact) | ((got - exact).abs() <= TINY))[rest].all()


def test_nan_stays_nan():
    for function in (softplus, tanh):
        assert function(torch.tensor(math.nan)).isnan()


@pytest.mark.parametrize(
    "function",
    [
        lambda h: nn.functional.softplus(h, beta=2.0),
        lambda h: nn.functional.softplus(h, threshold=5.0),
        lambda h: h.log1p(),
        lambda h: h.sigmoid(),
    ],
)
def test_other_functions_are_kept(function):
    h = torch.rand(5)
    graph = capture(lambda: [function(h)], [h])
    assert with_cheap_forms(graph.module) is graph.module


def test_float64_keeps_its_functions():
    h = torch.randn(5, dtype=torch.float64)
    graph = capture(lambda: [h.tanh(), nn.functional.softplus(h)], [h])
    assert with_cheap_forms(graph.module) is graph.module


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_16_bits_are_kept(dtype):
    """A product of 16 factors of 2 is infinite in float16."""
    logits, x = torch.zeros(4, 16, dtype=dtype), torch.ones(4, 16, dtype=dtype)
    graph = capture(lambda: [_bernoulli(logits, x).reshape(4, -1).sum(-1)], [logits, x])
    assert with_cheap_forms(graph.module) is graph.module


def test_a_sum_in_another_dtype_is_kept():
    logits, x = torch.randn(4, 16), torch.ones(4, 16)
    wide = capture(
        lambda: [_bernoulli(logits, x).reshape(4, -1).sum(-1, dtype=torch.float64)], [logits, x]
    )
    assert with_cheap_forms(wide.module) is wide.module


def test_bernoulli_at_the_ends_and_of_soft_x():
    """As torch's own: at infinite logits, and x near 1 under large ones."""
    logits = torch.tensor([math.inf, -math.inf, math.inf, -math.inf, 1e4, 20.0])
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.9999, 0.999])
    expected = _bernoulli(logits, x)
    got = torch.stack([sum_of_bernoulli(*pair, [1]) for pair in zip(logits, x, strict=True)])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def _bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    return dist.Bernoulli(logits=logits, validate_args=False).log_prob(x)


@pytest.mark.parametrize("size", [1, 7, 23, 784])
@pytest.mark.parametrize("spread", [1e-3, 3.0, 1e4])
def test_sum_of_bernoulli(size, spread):
    """float64 to 1e-13; float32 no further from the truth than D ε nats and its sum's rounding."""
    generator = torch.Generator().manual_seed(size)
    logits = spread * torch.randn(3, 50, size, generator=generator, dtype=torch.float64)
    x = (torch.rand(50, size, generator=generator) < 0.3).double().expand_as(logits)
    expected = _bernoulli(logits, x).sum(-1)
    got = sum_of_bernoulli(logits, x, [3, 50, -1])
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-12)
    single = logits.float()
    expected = _bernoulli(single.double(), x).sum(-1)
    got = sum_of_bernoulli(single, x.float(), [3, 50, -1])
    eps = torch.finfo(torch.float32).eps
    assert ((got - expected).abs() <= eps * (size + 4 * expected.abs())).all()


def test_only_plain_sums_of_bernoulli_are_rewritten():
    logits, x = torch.randn(4, 3, 2, 5), torch.ones(3, 2, 5)
    weight = torch.full((5,), 2.0)
    mask = torch.tensor([True, False, True, True, False])
    cases = {
        "to_event(2)": (lambda: dist.Bernoulli(logits=logits).to_event(2).log_prob(x), True),
        "to_event(1)": (lambda: dist.Bernoulli(logits=logits).to_event(1).log_prob(x), True),
        "no event": (lambda: _bernoulli(logits, x), False),
        "masked": (
            lambda: dist.Bernoulli(logits=logits).mask(mask).to_event(1).log_prob(x),
            False,
        ),
        "weighted": (
            lambda: (
                -(
                    nn.functional.binary_cross_entropy_with_logits(
                        logits, x.expand_as(logits), pos_weight=weight, reduction="none"
                    )
                    .neg()
                    .reshape(4, 3, -1)
                    .sum(-1)
                )
            ),
            False,
        ),
        "twice": (
            lambda: (lambda p: p.reshape(4, 3, -1).sum(-1) + p.amax((-1, -2)))(
                _bernoulli(logits, x)
            ),
            False,
        ),
    }
    for name, (function, expected) in cases.items():
        graph = capture(lambda f=function: [f()], [logits, x])
        rewritten = with_cheap_forms(graph.module)
        assert (sum_of_bernoulli in targets(rewritten)) == expected, name
        assert sum_of_bernoulli not in targets(graph.module)  # the given graph is kept
        torch.testing.assert_close(rewritten(logits, x, *graph.lifted)[0], function(), msg=name)
