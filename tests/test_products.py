import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import products
from pyro_vae.capture import capture
from pyro_vae.products import LARGE, LONG, with_fast_products

# [M, K] [K, N] of exactly LARGE multiplications, and one row less.
K, N = 200, 150
M = LARGE // (K * N)


@pytest.fixture(autouse=True)
def slow_mkl(monkeypatch):
    if products._linear() is None:
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)


def graph_of(function, *inputs):
    return make_fx(function)(*inputs)


def names(module):
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [M - 1, M])
def test_large_float32_products_alone_are_replaced(rows, dtype):
    a, b = torch.randn(rows, K, dtype=dtype), torch.randn(K, N, dtype=dtype)
    module = with_fast_products(graph_of(torch.mm, a, b))
    replaced = "pyro_vae.linear.default" in names(module)
    assert replaced == (rows == M and dtype == torch.float32)


def products_of_a_step(x, w, bias, g):
    """A layer's output, the gradient of its weight and that of its input, and a scaled product."""
    return (
        torch.addmm(bias, x, w.t()),
        g.t() @ x,
        g @ w,
        torch.addmm(g, x, w.t(), beta=0.5),
        torch.addmm(g, x, w.t()),
    )


def test_products_are_the_same_up_to_rounding_and_the_given_graph_is_kept():
    torch.manual_seed(0)
    inputs = torch.randn(M, K), torch.randn(N, K), torch.randn(N), torch.randn(M, N)
    module = graph_of(products_of_a_step, *inputs)
    before = names(module)
    fast = with_fast_products(module)
    assert names(module) == before
    assert names(fast).count("pyro_vae.linear.default") == 3  # a bias [N], scaled by 1, or none
    exact = products_of_a_step(*(t.double() for t in inputs))
    for got, want in zip(fast(*inputs), exact, strict=True):
        # sums of K terms of size 1: their rounding is about √K ε
        assert float((got - want).abs().max()) < 20 * K**0.5 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("num_data", [LONG - 1, LONG])
@pytest.mark.parametrize(("rows", "columns"), [(200, 150), (150, 200)])
def test_a_tall_gradient_of_many_data_is_computed_as_a_wide_one(num_data, rows, columns):
    """gᵀ x, [784, 400] say."""
    torch.manual_seed(0)
    g, x = torch.randn(num_data, rows), torch.randn(num_data, columns)
    module = with_fast_products(graph_of(lambda g, x: g.t() @ x, g, x))
    got = module(g, x)
    exact = g.double().t() @ x.double()
    assert (got - exact).abs().max() < 4 * num_data * torch.finfo(torch.float32).eps
    tall = num_data >= LONG and rows > columns
    assert ("aten.clone.default" in names(module)) == tall
    assert got.is_contiguous()  # as the product it stands for: an optimizer reads it so


@pytest.mark.parametrize("forgotten", [0, 1])
def test_a_product_of_a_factor_without_a_known_shape(forgotten):
    a, b = torch.randn(M, K), torch.randn(K, N)
    module = graph_of(torch.mm, a, b)
    factors = [node for node in module.graph.nodes if node.op == "placeholder"]
    del factors[forgotten].meta["tensor_meta"]
    assert "pyro_vae.linear.default" in names(with_fast_products(module))


def test_compiled_graph_calls_the_operator():
    x, w = torch.randn(M, K), torch.randn(K, N)
    compiled = capture(lambda: [(x @ w).relu().sum(0)], [x, w]).compile()
    assert "pyro_vae.linear.default" in names(with_fast_products(compiled.module))
    torch.testing.assert_close(compiled(x, w)[0], (x @ w).relu().sum(0), rtol=1e-4, atol=1e-3)


def test_other_processors_keep_their_graph(monkeypatch):
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: False)
    module = graph_of(torch.mm, torch.randn(M, K), torch.randn(K, N))
    assert with_fast_products(module) is module
