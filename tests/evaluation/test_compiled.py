"""Compiled weights against eager ones under the same seed; what cannot be compiled is eager."""

import itertools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae import cheap_forms
from pyro_vae.errors import InputError
from pyro_vae.evaluation import _compiled, log_likelihood
from pyro_vae.evaluation._compiled import _filled, _unfilled, chunk_shape

FIELDS = ("log_px", "standard_error", "ess", "elbo", "reconstruction", "kl", "pareto_k")


@pytest.fixture
def interpreted(monkeypatch):
    """Graphs are rewritten as for the compiler, and then interpreted, which takes no time."""
    import torch._inductor

    monkeypatch.setattr(torch._inductor, "compile", lambda module, inputs, options: module)
    monkeypatch.setattr(_compiled, "_kept", [])


@pytest.fixture
def captures(monkeypatch):
    """The models captured."""
    found = []
    capture_one = _compiled._capture

    def counted(model, *args):
        found.append(model)
        return capture_one(model, *args)

    monkeypatch.setattr(_compiled, "_capture", counted)
    return found


class Binary(PyroModule):
    """Two layers, tanh, Bernoulli pixels ``[4, 7]``; counts its runs in Python."""

    def __init__(self, body: nn.Module | None = None, dtype: torch.dtype = torch.float64):
        super().__init__("model")
        body = body or nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 28))
        self.body = body.to(dtype)
        self.shift = 0.0

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            logits = self.body(z.reshape(-1, 3)).reshape(*z.shape[:-1], 4, 7) + self.shift
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)


class Amortized(PyroModule):
    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__("guide")
        self.head = nn.Linear(28, 3).to(dtype)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.head(x.flatten(1)), 1.2).to_event(1))


def binary_pair(num_data: int = 130, dtype: torch.dtype = torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, guide = Binary(dtype=dtype), Amortized(dtype)
        x = (torch.rand(num_data, 4, 7) < 0.4).to(dtype)
    return model, guide, x


def two_latents():
    """z ~ N(0, 1), c one of three by z, summed out; w given both; plain functions, a parameter."""

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", x.new_tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            k = pyro.sample("k", dist.Categorical(logits=x.new_zeros(4)))
            logits = torch.stack([z, -z, 0 * z], dim=-1)
            c = pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            loc = z + c.to(x.dtype) - k.to(x.dtype)
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.StudentT(4.0, 0.4 * x, 1.0))
            pyro.sample("k", dist.Categorical(logits=x.new_tensor([0.4, 0.3, 0.2, 0.1])))

    return model, guide, torch.linspace(-3, 3, 130, dtype=torch.float64)


def agree(one, other, tolerance: float, of_shape: float | None = None) -> None:
    """``of_shape`` is for k̂, which fits the gaps between the largest weights."""
    for name in FIELDS:
        allowed = of_shape if of_shape and name == "pareto_k" else tolerance
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=allowed, atol=allowed, equal_nan=True
        )
    assert torch.equal(one.flagged, other.flagged)
    torch.testing.assert_close(
        one.curve.bound, other.curve.bound, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def both(model, guide, x, num_samples: int, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return (
            log_likelihood(model, guide, x, num_samples, engine=engine, seed=3, **kwargs)
            for engine in ("compiled", "eager")
        )


@pytest.mark.parametrize("chunk_size", [None, 7, 45, 260])
@pytest.mark.parametrize("pair", [binary_pair, two_latents])
def test_graph_gives_the_eager_answer(interpreted, captures, pair, chunk_size):
    """float64, to 1e-10; 130 data are a block and a part, 150 draws too."""
    model, guide, x = pair()
    num_samples = 20 if chunk_size in (7, 45) else 150
    agree(*both(model, guide, x, num_samples, chunk_size=chunk_size), 1e-10)
    assert captures == [model]


@pytest.mark.parametrize("num_data", [1, 3, 99])
def test_few_data(interpreted, captures, num_data):
    model, guide, x = binary_pair(num_data)
    agree(*both(model, guide, x, 30), 1e-10)
    assert captures == [model]


def test_exact_posterior_has_no_error_in_a_graph(linear_gaussian, interpreted, captures):
    x = linear_gaussian.simulate(130, seed=0)
    args = linear_gaussian.model, linear_gaussian.exact_guide, x, 150
    result = log_likelihood(*args, engine="compiled")
    exact = linear_gaussian.log_evidence(x)
    torch.testing.assert_close(result.log_px, exact, rtol=0, atol=1e-9)
    assert result.constant.all()
    assert len(captures) == 1


def test_compiled_gives_the_eager_answer(captures):
    """float32, compiled, to 5e-6 of each number; the next evaluation has the graph."""
    model, guide, x = binary_pair(dtype=torch.float32)
    before = torch.get_rng_state()
    agree(*both(model, guide, x, 150), 5e-6, of_shape=5e-5)
    assert torch.equal(torch.get_rng_state(), before)
    agree(*both(model, guide, x[:110], 150), 5e-6, of_shape=5e-5)
    assert captures == [model]


def test_a_graph_is_kept_while_the_model_is_what_it_was(interpreted, captures):
    model, guide, x = binary_pair(20)
    agree(*both(model, guide, x, 30), 1e-10)
    with torch.no_grad():
        model.body[0].weight.mul_(1.5)  # read anew at every call
    agree(*both(model, guide, x, 30), 1e-10)
    agree(*both(model, guide, x.flip(0), 30), 1e-10)
    assert len(captures) == 1
    model.shift = 0.5  # a constant of the graph
    agree(*both(model, guide, x, 30), 1e-10)
    model.body[0] = nn.Linear(3, 16).double()
    agree(*both(model, guide, x, 30), 1e-10)
    assert len(captures) == 3


def test_a_parameter_in_pyros_store_may_be_another(interpreted, captures):
    model, guide, x = two_latents()
    first, _ = both(model, guide, x, 30)
    pyro.clear_param_store()
    pyro.param("scale", torch.tensor(5.0, dtype=x.dtype), constraint=dist.constraints.positive)
    other, eager = both(model, guide, x, 30)
    agree(other, eager, 1e-10)
    assert len(captures) == 2
    assert abs(other.mean - first.mean) > 0.1


def test_modules_in_pyros_own_store_have_a_graph_of_their_own(interpreted, captures):
    """With a guide that is a function the model reads its parameters from the global store."""
    model, guide, x = binary_pair(20)
    agree(*both(model, guide, x, 30), 1e-10)
    agree(*both(model, lambda x: guide(x), x, 30), 1e-10)
    agree(*both(model, guide, x, 30), 1e-10)
    assert captures == [model, model]


def test_only_the_last_graphs_are_kept(interpreted, captures):
    """Two of them: the third model's drops the first."""
    pairs = [binary_pair(5) for _ in range(3)]
    for model, guide, x in [*pairs, pairs[2], pairs[1], pairs[0]]:
        log_likelihood(model, guide, x, 10, engine="compiled")
    models = [model for model, _, _ in pairs]
    assert captures == [*models, models[0]]
    assert len(_compiled._kept) == 2


class Branching(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h if h.sum() > 0 else -h


class Noisy(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.dropout(h, 0.5)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Branching(), r"reads a tensor's value, .*test_compiled\.py:\d+"),
        (Noisy(), "draws noise as it weighs"),
        (nn.BatchNorm1d(16), "changes its own tensors as it weighs"),
    ],
)
def test_what_is_no_graph_is_eager(interpreted, layer, reason):
    """With one warning, and the numbers of the eager engine, bit for bit."""
    _, guide, x = binary_pair()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Binary(nn.Sequential(nn.Linear(3, 16), layer, nn.Linear(16, 28)))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match=f"weights are eager, not compiled: .*{reason}") as caught:
        result = log_likelihood(model, guide, x, 150, engine="compiled")
    assert len(caught) == 1
    model.load_state_dict(state)
    eager = log_likelihood(model, guide, x, 150, engine="eager")
    assert torch.equal(result.log_px, eager.log_px)


@pytest.mark.parametrize(
    ("dtype", "error"),
    [(torch.float64, 1e-8), (torch.float32, 5e-5), (torch.float32, math.nan)],
)
def test_a_graph_of_something_else_is_refused(interpreted, monkeypatch, dtype, error):
    """log p(x|z), near −20 nats: in float32 an error of 1e-3 that all weights share is found."""
    right = cheap_forms.sum_of_bernoulli
    monkeypatch.setattr(cheap_forms, "sum_of_bernoulli", lambda *args: right(*args) * (1 + error))
    model, guide, x = binary_pair(20, dtype)
    with pytest.warns(UserWarning, match=r"compiled, log p\(x\|z\) is not what the model gives"):
        result = log_likelihood(model, guide, x, 30, engine="compiled")
    assert torch.equal(result.log_px, log_likelihood(model, guide, x, 30, engine="eager").log_px)


def test_handlers_around_an_evaluation_act(interpreted, captures):
    model, guide, x = binary_pair(20)
    with poutine.mask(mask=torch.tensor(False)):
        result = log_likelihood(model, guide, x, 10, engine="compiled")
    assert result.reconstruction.abs().max() == 0
    assert not captures


def test_auto_compiles_where_there_is_enough_to_weigh(interpreted, captures, monkeypatch):
    """(K + pilot) B D numbers: 30 + 30 draws of 20 data of 28 pixels."""
    model, guide, x = binary_pair(20)
    monkeypatch.setattr(_compiled, "COMPILED_FROM", {"cpu": 60 * 20 * 28 + 1})
    log_likelihood(model, guide, x, 30)
    assert not captures
    monkeypatch.setattr(_compiled, "COMPILED_FROM", {"cpu": 60 * 20 * 28})
    log_likelihood(model, guide, x, 30, engine="eager")
    assert not captures
    log_likelihood(model, guide, x, 30)
    assert captures == [model]


def test_an_unknown_engine_is_one_line():
    model, guide, x = binary_pair(2)
    with pytest.raises(InputError, match="engine must be one of auto, eager, compiled, got 'jit'"):
        log_likelihood(model, guide, x, 10, engine="jit")


def test_chunks_are_filled_up_and_nothing_is_lost():
    """Every draw of every datum is in the chunk, and comes back in its place."""
    for k, b, s, n in itertools.product([1, 4], [1, 5, 7], range(1, 29), range(1, 8)):
        if n > b or s > k * (b // n):
            continue
        value = torch.arange(s * n * 2.0).reshape(s, n, 2)
        filled = _filled(value, k, b)
        assert filled.shape == (k, b, 2)
        assert filled.is_contiguous()
        assert set(filled.flatten().tolist()) == set(value.flatten().tolist())
        assert torch.equal(_unfilled(filled[..., 0], s, n), value[..., 0])
        # The data that x holds for each place are those of its draws.
        data = _filled(torch.arange(n).unsqueeze(0), 1, b)[0]
        numbers = torch.arange(n).expand(s, n)
        assert torch.equal(_filled(numbers, k, b), data.expand(k, b))


@pytest.mark.parametrize(
    ("event_shape", "dtype", "arguments", "expected"),
    [
        ((784,), torch.float32, (128, 100, None), (32, 100)),  # 10 MiB are 3,343 images
        ((784,), torch.float64, (128, 100, None), (16, 100)),
        ((3, 64, 64), torch.float32, (128, 100, None), (2, 100)),
        ((3, 256, 256), torch.float32, (128, 100, None), (1, 13)),
        ((5,), torch.float32, (128, 100, None), (32, 100)),
        ((5,), torch.float32, (128, 100, 70), (1, 70)),
        ((5,), torch.float32, (128, 100, 1200), (12, 100)),  # 11 chunks of 12
        ((5,), torch.float32, (128, 100, 1000), (10, 100)),  # 13 chunks of 10
        ((5,), torch.float32, (128, 100, 5000), (43, 100)),  # 3 chunks of 43, not of 50
        ((5,), torch.float32, (10, 3, None), (10, 3)),
    ],
)
def test_shape_of_a_chunk(event_shape, dtype, arguments, expected):
    assert chunk_shape(torch.zeros(2, *event_shape, dtype=dtype), *arguments) == expected
