"""capture: what is refused and where, and that what is captured is no frozen branch."""

import contextlib
import copy
import random

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.capture import CaptureError, capture, same_values

X = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def graph_of(function, *inputs):
    """A graph of ``function``, given tensors that it reaches by itself."""
    return capture(lambda: [function(*inputs)], inputs)


# Programs that read a tensor where it could decide what follows.
READS = {
    "if": lambda x: x * 2 if x.sum() > 0 else x,
    "while": lambda x: [x := x / 2 for _ in iter(lambda: bool(x.norm() > 1), False)][-1],
    "item": lambda x: x * x.sum().item(),
    "item_of_a_constant_result": lambda x: x * (torch.tensor(2.0) * 3).item(),
    "float": lambda x: x * float(x[0]),
    "int": lambda x: x * int(x[0]),
    "bool": lambda x: x * bool(x[0]),
    "complex": lambda x: x * abs(complex(x[0])),
    "tolist": lambda x: x * sum(x.tolist()),
    "numpy": lambda x: x * x.numpy().sum(),
    "np.asarray": lambda x: x * np.asarray(x).sum(),
    "dlpack": lambda x: x * np.from_dlpack(x).sum(),
    "storage": lambda x: x * x.untyped_storage()[0],
    "deepcopy": copy.deepcopy,
    "print": lambda x: (str(x), x)[1],
    "format": lambda x: (f"{x.sum():.2f}", x)[1],
    "equal": lambda x: x if torch.equal(x, x + 1) else -x,
    "allclose": lambda x: x if torch.allclose(x, x + 1) else -x,
    "is_nonzero": lambda x: x if torch.is_nonzero(x[0]) else -x,
    "any": lambda x: x if any(x > 0) else -x,
    "all": lambda x: x if all(x > 0) else -x,
    "in": lambda x: x if 3.0 in x else -x,
    "max": lambda x: max(x[0], x[1]),
    "sorted": lambda x: sorted([x[0], x[1]])[0],
    "range": lambda x: x * sum(range(int((x > 0).sum()))),
    "slice": lambda x: x[: (x > 0).sum()].sum(),
    "index_of_a_list": lambda x: x * [1.0, 2.0][(x[0] > 0).long()],
    "arange": lambda x: torch.arange(x[0].abs() + 1),
    "full": lambda x: torch.full((2,), x[0]),
    "tensor_of_tensors": lambda x: torch.tensor([x[0], x[1]]),
    "as_tensor_of_tensors": lambda x: torch.as_tensor([[x[0]], [x[1]]]),
    "new_tensor_of_tensors": lambda x: x.new_tensor([x[0], 1.0]),
    "validated_distribution": lambda x: dist.Normal(x, x.exp(), validate_args=True).log_prob(x),
}
# Programs with a shape that the values of a tensor decide.
SHAPES = {
    "mask": lambda x: x[x > 0].sum(),
    "masked_select": lambda x: torch.masked_select(x, x > 0).sum(),
    "nonzero": lambda x: torch.nonzero(x > 0).sum(),
    "where": lambda x: torch.where(x > 0)[0].sum(),
    "unique": lambda x: torch.unique(x.detach()).sum(),
    "repeat_interleave": lambda x: torch.repeat_interleave(x, (x > 0).long() + 1).sum(),
    "bincount": lambda x: torch.bincount((x > 0).long()).sum(),
}
GENERATOR = np.random.default_rng(0)
FINE = {
    "where_of_three": lambda x: torch.where(x > 0, x.exp(), -x),
    "index_by_numbers": lambda x: x[torch.argsort(x)],
    "assign_by_mask": lambda x: x.clone().masked_fill_(x > 0, 0.5),
    "index_put": lambda x: torch.zeros_like(x).index_put((x > 0,), torch.tensor(1.0).double()),
    "iterate": lambda x: torch.stack([item * 2 for item in x]),
    "data": lambda x: x * x.data,
    "detach": lambda x: x * x.detach(),
    "sum_into_a_constant": lambda x: sum_into(torch.tensor(0.0, dtype=x.dtype), x),
    "sum_into_zeros": lambda x: sum_into(torch.zeros((), dtype=x.dtype), x),
    "constants": lambda x: x * torch.tensor([1.0, 2.0, 3.0]).double() * torch.Tensor([2.0]),
    "constant_read": lambda x: x * torch.tensor(2.0).item() * torch.tensor([3, 4]).tolist()[1],
    "shape": lambda x: x if len(x) == 3 else -x,
    "copy_of_a_tensor": lambda x: x * x.clone() * torch.empty_like(x).copy_(x),
    "solve": lambda x: torch.linalg.solve(torch.diag(x.abs() + 1), x),
    "searchsorted": lambda x: torch.searchsorted(torch.arange(3.0).double(), x).double(),
}


def sum_into(total, x):
    for item in x:
        total += item
    total *= 2
    return total * x


@pytest.mark.parametrize("name", READS)
def test_a_read_on_the_host_is_refused_with_its_place(name):
    with pytest.raises(
        CaptureError, match=r"reads a tensor's value|of the values of others"
    ) as error:
        graph_of(READS[name], X.clone())
    assert_here(error, READS[name])


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_depends_on_data_is_refused_with_its_place(name):
    with pytest.raises(CaptureError, match="a shape depends on the values") as error:
        graph_of(SHAPES[name], X.clone())
    assert_here(error, SHAPES[name])


def assert_here(error, function):
    line = getattr(function, "__code__", None)
    if line is not None and function.__module__ == __name__:
        assert str(error.value).endswith(f"{__file__}:{line.co_firstlineno}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FINE)
def test_what_decides_nothing_on_the_host_is_right_at_other_values(name):
    """Called twice: a constant that is changed in place is not changed for the next call."""
    graph = graph_of(FINE[name], X.clone())
    for values in (-X, X * 3, X.flip(0), X):
        for _ in range(2):
            (result,) = graph(values.clone())
            torch.testing.assert_close(result, FINE[name](values.clone()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_generators_of_python_and_numpy_are_refused(draw):
    """A number that they drew would be drawn once."""
    with pytest.raises(CaptureError, match="draws from a random generator of Python or NumPy"):
        graph_of(lambda x: x if draw() < 2 else -x, X.clone())


def test_draws_come_anew_from_torchs_generator():
    graph = graph_of(lambda x: x + torch.randn_like(x), X.clone())
    torch.manual_seed(1)
    expected = [X + torch.randn_like(X) for _ in range(2)]
    torch.manual_seed(1)
    for value in expected:
        assert torch.equal(graph(X)[0], value)
    assert not torch.equal(*expected)


def test_tensors_reached_without_being_given_are_read_anew():
    layer, held = nn.Linear(3, 1).double(), torch.ones(3).double()
    graph = graph_of(lambda x: layer(x * held), X.clone())
    assert {id(t) for t in graph.lifted} == {id(t) for t in (layer.weight, layer.bias, held)}
    with torch.no_grad():
        layer.weight.mul_(3), layer.bias.add_(1), held.mul_(2)
    torch.testing.assert_close(graph(X)[0], layer(X * held).detach())


def test_a_function_without_inputs():
    held = torch.ones(3)
    graph = capture(lambda: [held * 2, None, held + 1], [])
    held.add_(1)
    two, nothing, one = graph()
    assert (two.tolist(), nothing, one.tolist()) == ([4.0] * 3, None, [3.0] * 3)


def test_gradients_are_taken_inside_and_outputs_carry_none():
    x = X.clone().requires_grad_()

    def function():
        loss = (x.detach() * x).sum()  # d/dx = x and not 2x
        return [loss, *torch.autograd.grad(loss, [x])]

    loss, gradient = capture(function, [x])(X * 2)
    assert not loss.requires_grad
    torch.testing.assert_close(gradient, X * 2)


def test_weights_that_autocast_cast_before_are_no_constants():
    weight = torch.ones(2, 2, requires_grad=True)
    x = torch.ones(1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.mm(x, weight)  # the cast weight is kept
        graph = graph_of(lambda x: torch.mm(x, weight), x)
        assert [t is weight for t in graph.lifted] == [True]
        assert torch.is_autocast_cache_enabled()
        with torch.no_grad():
            weight.mul_(3)
        (result,) = graph(x)
    assert (result.dtype, result.tolist()) == (torch.bfloat16, [[6.0, 6.0]])


def test_a_part_without_autocast_stays_without():
    weight = torch.full((2, 2), 1 + 2**-10)

    def precise(x):
        with torch.autocast("cpu", enabled=False):
            return torch.mm(x, weight)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph = graph_of(precise, torch.ones(1, 2))
        (result,) = graph(torch.ones(1, 2))
    assert result.dtype == torch.float32
    assert result[0, 0] == 2 + 2**-9


def test_an_error_of_the_program_is_a_reason_in_one_line():
    def failing(x):
        raise ValueError("this\n and that")

    with pytest.raises(CaptureError, match=r"^this and that, .*test_capture.py:[0-9]+$"):
        graph_of(failing, X.clone())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_passes(error):
    def interrupted(x):
        raise error

    with pytest.raises(error):
        graph_of(interrupted, X.clone())
    assert not torch._C._len_torch_dispatch_stack()


def test_values_are_the_same_where_their_origin_is():
    """Within a capture; elsewhere their numbers decide."""
    beta, other = torch.tensor(0.5), torch.tensor(0.5)
    assert same_values(beta * 2, other * 2)
    assert not same_values(beta * 2, other * 3)
    pairs = {
        "origin": lambda x: (beta * 2 / 3, beta * 2 / 3),
        "masks": lambda x: (x.abs() > 0, x.abs() > 0),
    }
    for pair in pairs.values():
        graph_of(lambda x, pair=pair: x if same_values(*pair(x)) else -x, X.clone())
    unknown = {
        "tensors": lambda x: (beta * 2, other * 2),
        "numbers": lambda x: (beta * 2, beta * 3),
        "operators": lambda x: (beta + 2, beta * 2),
        "draws": lambda x: (torch.rand_like(x), torch.rand_like(x)),
        "changed": lambda x: ((one := x.clone()), one.clone().add_(1)),
    }
    for pair in unknown.values():
        with pytest.raises(CaptureError, match="reads a tensor's value"):
            graph_of(lambda x, pair=pair: x if same_values(*pair(x)) else -x, X.clone())


def test_pyros_functions_are_its_own_again_after_a_failure():
    import pyro.infer.trace_elbo as elbo
    import pyro.util

    before = elbo.torch_item, pyro.util.torch_isnan, pyro.util.torch_isinf
    for function in (READS["if"], lambda x: x):
        with contextlib.suppress(CaptureError):
            graph_of(function, X.clone())
        assert (elbo.torch_item, pyro.util.torch_isnan, pyro.util.torch_isinf) == before


def test_what_pyro_reads_stays_on_the_device_but_is_no_licence():
    """``.item()`` in the program is refused even where Pyro's own call sites are answered."""
    from pyro.infer.util import torch_item

    with pytest.raises(CaptureError):
        graph_of(lambda x: x * torch_item(x.sum()), X.clone())
    assert isinstance(torch_item(X.sum()), float)
    assert Tensor.item(X.sum()) == 2.0
