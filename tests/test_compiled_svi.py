"""CompiledSVI, its graphs interpreted, against pyro.infer.SVI step for step; a few compiled."""

import itertools
import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

from pyro_vae import compiled_svi, products
from pyro_vae.annealing import Beta
from pyro_vae.capture import CaptureError
from pyro_vae.captured_program import capture_program
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.components import build
from pyro_vae.errors import InputError

D = torch.float64
X = torch.linspace(-2, 2, 6, dtype=D)
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(D)
    yield
    torch.set_default_dtype(torch.float32)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(pyro.param("w", torch.tensor(1.5)) * z, 1.0), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


def compiled(*args, **options):
    return CompiledSVI(*args, **{"compile": False, **options})


def pyros(model, guide, optim, loss, **_):
    """Pyro's own SVI, for a joint optimizer too."""
    return SVI(model, guide, optim, loss)


def train(make, batches, between=lambda step: None, seed=0):
    """Losses and final parameters of one training in a store of its own."""
    torch.manual_seed(seed)
    losses = []
    with pyro.get_param_store().scope():
        svi = make()
        for step, batch in enumerate(batches):
            between(step)
            args = batch if isinstance(batch, tuple) else (batch,)
            losses.append(float(svi.step(*args)))
        store = pyro.get_param_store()
        parameters = {k: v.detach().clone() for k, v in store.named_parameters()}
    return losses, parameters, svi


def assert_same(one, other, tolerance=TOLERANCE):
    assert one[0] == pytest.approx(other[0], rel=tolerance, abs=tolerance)
    assert one[1].keys() == other[1].keys()
    for name, value in other[1].items():
        torch.testing.assert_close(one[1][name], value, rtol=tolerance, atol=tolerance)


BATCHES = [X * (1 + 0.1 * i) for i in range(20)]


@pytest.fixture
def captures(monkeypatch):
    """The programs captured, one for each capture."""
    found = []

    def counted(*args, **options):
        found.append(capture_program(*args, **options))
        return found[-1]

    monkeypatch.setattr(compiled_svi, "capture_program", counted)
    return found


def per_parameter(name):
    return {"lr": 0.02 if name == "slope" else 0.001}


def enumerating():
    return TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, enumerating])
@pytest.mark.parametrize(
    "optim",
    [
        lambda: pyro.optim.Adam({"lr": 0.01}),
        lambda: pyro.optim.ClippedAdam({"lr": 0.01, "clip_norm": 0.5, "lrd": 0.99}),
        lambda: pyro.optim.AdagradRMSProp({}),
        lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
        lambda: pyro.optim.Adam(per_parameter),
        lambda: pyro.optim.Adam({"lr": 0.01}, {"clip_norm": 0.1}),
    ],
    ids=["adam", "clipped_adam", "adagrad_rmsprop", "momentum", "per_parameter", "clip_args"],
)
def test_twenty_steps_are_those_of_pyros_svi(optim, loss):
    run = {
        make: train(lambda make=make: make(model, guide, optim(), loss()), BATCHES)
        for make in (pyros, compiled)
    }
    assert run[compiled][2].engine == "compiled", run[compiled][2].reason
    assert_same(run[compiled], run[pyros])


def test_a_schedule_of_pyro_is_the_users_to_step():
    def run(make):
        scheduler = pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.05}, "gamma": 0.8}
        )

        def between(step):
            if step:
                scheduler.step()

        return train(lambda: make(model, guide, scheduler, Trace_ELBO()), BATCHES, between)

    assert_same(run(compiled), run(pyros))


def test_one_joint_optimizer_is_a_pyro_optimizer_a_parameter():
    """Adam has no state that parameters share."""
    joint = train(
        lambda: compiled(model, guide, lambda p: torch.optim.Adam(p, lr=0.01), Trace_ELBO()),
        BATCHES,
    )
    single = train(
        lambda: pyros(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()), BATCHES
    )
    assert_same(joint, single)


def test_the_gradient_is_clipped_by_its_global_norm():
    def run(engine):
        return train(
            lambda: compiled(model, guide, sgd, Trace_ELBO(), clip_norm=0.5, engine=engine),
            BATCHES,
        )

    one, other = run("compiled"), run("eager")
    assert_same(one, other)
    _, free, svi = train(lambda: compiled(model, guide, sgd, Trace_ELBO()), BATCHES[:1])
    start = {"w": 1.5, "slope": 0.3, "scale": float(np.log(0.7))}
    norm = sum((float(free[k]) - v) ** 2 for k, v in start.items()) ** 0.5 / 0.01
    assert float(svi.gradient_norm) == pytest.approx(norm, rel=1e-9)
    assert norm > 0.5
    clipped = train(lambda: compiled(model, guide, sgd, Trace_ELBO(), clip_norm=0.5), BATCHES[:1])[
        1
    ]
    for name, before in start.items():
        moved = (float(clipped[name]) - before) / (float(free[name]) - before)
        assert moved == pytest.approx(0.5 / norm, rel=1e-5)


# -- programs of many kinds


class Net(PyroModule):
    """Parameters of torch and of Pyro, batch norm, dropout, a buffer, a number."""

    def __init__(self):
        super().__init__("net")
        self.layer = nn.Linear(1, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.4)
        self.scale = PyroParam(torch.tensor(0.5), constraint=constraints.positive)
        self.offset = PyroParam(lambda: torch.randn(3))
        self.register_buffer("calls", torch.zeros(()))
        self.factor = 1.0

    def forward(self, x):
        self.calls += 1
        h = self.dropout(self.norm(self.layer(x[:, None])).tanh()) + self.offset
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            loc = self.factor * (z * h).sum(-1)
            pyro.sample("x", dist.Normal(loc, self.scale), obs=x)


class NetGuide(PyroModule):
    def __init__(self):
        super().__init__("net_guide")
        self.layer = nn.Linear(1, 6)

    def forward(self, x):
        loc, scale = self.layer(x[:, None]).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def nets(seed=0):
    torch.manual_seed(seed)
    return Net(), NetGuide()


def run_nets(engine, between=lambda step, net, net_guide: None, batches=BATCHES, loss=Trace_ELBO):
    net, net_guide = nets()
    with pyro.get_param_store().scope():
        net.offset.sum()  # made here, so that its draw is none of a step's
    result = train(
        lambda: compiled(net, net_guide, pyro.optim.Adam({"lr": 0.01}), loss(), engine=engine),
        batches,
        lambda step: between(step, net, net_guide),
    )
    return result, net, net_guide


def assert_nets_same(between=lambda *_: None, **options):
    (one, net, _), (other, eager_net, _) = (
        run_nets(engine, between, **options) for engine in ("compiled", "eager")
    )
    assert one[2].engine == "compiled", one[2].reason
    assert_same(one, other)
    for name, buffer in eager_net.named_buffers():
        torch.testing.assert_close(dict(net.named_buffers())[name], buffer)
    return one[2], net


def test_buffers_are_updated_once_a_step_and_not_by_capture_or_check():
    _, net = assert_nets_same()
    assert int(net.norm.num_batches_tracked) == len(BATCHES)
    assert int(net.calls) == len(BATCHES)


def test_each_choice_of_training_flags_is_one_graph():
    def between(step, net, net_guide):
        if step in (5, 10, 15):
            net.train(step != 5)
            net.dropout.train(step == 15)

    svi, net = assert_nets_same(between)
    assert len(next(iter(svi._programs.values()))) == 3
    assert int(net.norm.num_batches_tracked) == len(BATCHES) - 5


def test_a_number_of_a_module_may_change():
    def between(step, net, net_guide):
        net.factor = 1.0 if step < 7 else 2.0

    assert_nets_same(between)


@pytest.mark.filterwarnings("ignore:weight was not registered:UserWarning")
def test_frozen_and_unfrozen_parameters():
    def between(step, net, net_guide):
        net.layer.weight.requires_grad_(not 5 <= step < 10)

    frozen = {}

    def watched(step, net, net_guide):
        between(step, net, net_guide)
        if step in (5, 10):
            frozen[step] = net.layer.weight.detach().clone()

    assert_nets_same(watched)
    assert torch.equal(frozen[5], frozen[10])


def test_loading_weights_mid_training():
    saved = {}

    def between(step, net, net_guide):
        if step == 5:
            saved["net"] = {k: v.clone() for k, v in net.state_dict().items()}
        if step == 12:
            net.load_state_dict(saved["net"])

    assert_nets_same(between)


@pytest.mark.parametrize("how", ["set_state", "load"])
def test_loading_into_pyros_store_mid_training(how, tmp_path):
    """Other leaves under the same names; what an optimizer knew of them goes on."""

    def run(engine):
        state = {}

        def between(step):
            store = pyro.get_param_store()
            if step == 5:
                state["file"] = tmp_path / engine
                state["all"] = {
                    "params": {k: v.detach().clone() for k, v in store._params.items()},
                    "constraints": dict(store._constraints),
                }
                store.save(state["file"])
            if step == 12 and how == "load":
                store.load(state["file"])
            elif step == 12:
                params = {k: v.clone().requires_grad_() for k, v in state["all"]["params"].items()}
                store.set_state({**state["all"], "params": params})

        return train(
            lambda: compiled(
                model, guide, lambda p: torch.optim.Adam(p, lr=0.01), Trace_ELBO(), engine=engine
            ),
            BATCHES,
            between,
        )

    one = run("compiled")
    assert one[2].engine == "compiled", one[2].reason
    assert_same(one, run("eager"))


def plain_programs():
    """Functions with pyro.module and random initial values."""
    torch.manual_seed(3)
    decoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def model(x, *, scale=1.0):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z)[:, 0], scale), obs=x)

    def guide(x, *, scale=1.0):
        loc = pyro.param("loc", lambda: torch.randn(2))
        root = pyro.param("root", lambda: torch.randn(2, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, root @ root.T + torch.eye(2)))

    return model, guide


@pytest.mark.parametrize("options", [{}, {"num_particles": 2, "vectorize_particles": True}],
                         ids=["random_initial_values", "guessed_nesting"])  # fmt: skip
def test_where_the_first_run_draws_more_noise_goes_on_after_it(options):
    """Plain functions with a module and random initial values; Pyro's guess of the plates."""

    def run(make):
        programs = plain_programs()
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            svi = make(*programs, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(**options))
            if make is pyros:
                svi.evaluate_loss(X)
            losses = [float(svi.step(x)) for x in BATCHES]
            return losses, dict(pyro.get_param_store().named_parameters()), svi

    one = run(compiled)
    assert one[2].engine == "compiled", one[2].reason
    assert_same(one, run(pyros))


def test_a_parameter_that_appears_later_is_refused_by_a_joint_optimizer_alone():
    switch = {"on": False}

    def with_late(x):
        loc = pyro.param("late", torch.tensor(0.1)) if switch["on"] else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + pyro.param("slope", torch.tensor(0.3)) * x, 0.7))

    def run(make, optim):
        def between(step):
            switch["on"] = step >= 5

        return train(lambda: make(model, with_late, optim(), Trace_ELBO()), BATCHES, between)

    def adam():
        return pyro.optim.Adam({"lr": 0.01})

    assert_same(run(compiled, adam), run(pyros, adam))
    with pytest.raises(InputError, match="parameter late appeared after training began"):
        run(compiled, lambda: sgd)


def test_a_subsampled_plate_scales_and_draws_as_in_pyro():
    data = torch.linspace(-3, 3, 30)

    def model(n):
        with pyro.plate("data", len(data), subsample_size=n) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * pyro.param("w", torch.tensor(1.0)), 1.0),
                        obs=data[index])  # fmt: skip

    def guide(n):
        with pyro.plate("data", len(data), subsample_size=n) as index:
            pyro.sample("z", dist.Normal(pyro.param("s", torch.tensor(0.2)) * data[index], 0.8))

    runs = [
        train(
            lambda make=make: make(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()),
            [(8,)] * 10 + [(4,)] * 5,
        )
        for make in (pyros, compiled)
    ]
    assert runs[1][2].engine == "compiled", runs[1][2].reason
    assert_same(runs[1], runs[0])


def discrete_model(x):
    probs = pyro.param("probs", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 0.5]))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[c], 1.0), obs=x)


def nothing(x):
    pass


def score_guide(x):
    logits = pyro.param("logits", torch.tensor([0.2, -0.1]))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Categorical(logits=logits + 0.1 * x[:, None]))


@pytest.mark.parametrize(
    ("programs", "loss"),
    [
        ((discrete_model, nothing), lambda: TraceEnum_ELBO(max_plate_nesting=1)),
        ((discrete_model, score_guide), lambda: Trace_ELBO()),
        ((discrete_model, score_guide), lambda: Trace_ELBO(
            num_particles=3, vectorize_particles=True, max_plate_nesting=1)),
        ((discrete_model, score_guide), lambda: Trace_ELBO(num_particles=3)),
        ((discrete_model, score_guide), lambda: build("objective", "trace_graph")),
    ],
    ids=["summed", "score", "vectorized", "particles", "trace_graph"],
)  # fmt: skip
def test_discrete_latents_and_particles(programs, loss):
    runs = [
        train(lambda make=make: make(*programs, pyro.optim.Adam({"lr": 0.01}), loss()), BATCHES)
        for make in (pyros, compiled)
    ]
    assert runs[1][2].engine == "compiled", runs[1][2].reason
    assert_same(runs[1], runs[0])


def test_an_enumerated_latent_of_probability_zero_is_left_out():
    """Pyro drops terms of probability 0 by a mask; log 0 must not reach the sum as 0 · ∞."""

    def guide(x):
        logits = pyro.param("logits", torch.tensor([0.2, -0.1]))
        with pyro.plate("data", len(x)):
            far = torch.where(x[:, None] > 0, torch.tensor([0.0, -torch.inf]), 0.0)
            c = dist.Categorical(logits=logits + far)
            pyro.sample("c", c, infer={"enumerate": "parallel"})

    runs = [
        train(
            lambda make=make: make(discrete_model, guide, pyro.optim.Adam({"lr": 0.01}),
                                   TraceEnum_ELBO(max_plate_nesting=1)),
            BATCHES,
        )
        for make in (pyros, compiled)
    ]  # fmt: skip
    assert all(np.isfinite(runs[0][0]))
    assert runs[1][2].engine == "compiled", runs[1][2].reason
    assert_same(runs[1], runs[0])


@pytest.mark.parametrize("make", [
    lambda: dist.transforms.affine_autoregressive(2, hidden_dims=[4]),
    lambda: dist.transforms.affine_coupling(2, hidden_dims=[4]),
    lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
    lambda: nn.TransformerEncoderLayer(2, 1, 4, batch_first=True),
], ids=["autoregressive", "coupling", "spectral_norm", "transformer"])  # fmt: skip
def test_flows_of_pyro_and_layers_of_torch_that_remember_what_they_did(make):
    def run(engine):
        torch.manual_seed(3)
        part = make()

        def q(x):
            pyro.module("part", part)
            h = torch.stack([x, x + 1], -1)
            flow = isinstance(part, dist.TransformModule)
            if not flow:
                h = part(h[:, None])[:, 0] if h.dim() == 2 else h
            base = dist.Normal(h, 0.7)
            with pyro.plate("data", len(x)):
                fn = dist.TransformedDistribution(base, [part]) if flow else base.to_event(1)
                pyro.sample("z", fn)

        def p(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

        return train(lambda: compiled(p, q, sgd, Trace_ELBO(), engine=engine), BATCHES[:6])

    one = run("compiled")
    assert one[2].engine == "compiled", one[2].reason
    assert_same(one, run("eager"))


@pytest.mark.parametrize("loss", [RenyiELBO, TraceGraph_ELBO])
def test_an_estimator_without_a_differentiable_loss_is_eager_and_says_so(loss):
    options = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}
    with pytest.warns(UserWarning, match=f"{loss.__name__} has no differentiable_loss"):
        run = train(
            lambda: compiled(model, guide, pyro.optim.Adam({"lr": 0.01}), loss(**options)), BATCHES
        )
    assert (run[2].engine, run[2].reason) == (
        "eager", f"{loss.__name__} has no differentiable_loss",
    )  # fmt: skip
    expected = train(
        lambda: pyros(model, guide, pyro.optim.Adam({"lr": 0.01}), loss(**options)), BATCHES
    )
    assert_same(run, expected)


# -- arguments


def general_model(x, options=None, *, weights=(), scale=1.0, other=None):
    factor = 1.0 if options is None else options["factor"] * options["tensors"][0].mean()
    for weight in weights:
        factor = factor * weight.mean()
    if other is not None:
        factor = factor + (other - x).abs().mean()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(factor * z * pyro.param("w", torch.tensor(1.0)), scale),
                    obs=x)  # fmt: skip


def general_guide(x, *args, **kwargs):
    guide(x)


def arguments():
    """Calls of many kinds: a step each."""
    grid = torch.arange(24.0).reshape(6, 4) / 10
    return [
        ((X,), {}),
        ((X[:4],), {}),
        ((X[2:],), {}),
        ((grid[:, 1],), {}),  # strided
        ((grid[:, 2],), {}),
        ((grid.T[1],), {}),
        ((X[:1],), {}),
        ((X, {"factor": 2.0, "tensors": [X + 3]}), {}),
        ((X, {"factor": 2.5, "tensors": [X + 1]}), {}),
        ((X, {"factor": 2.5, "tensors": [X + 2]}), {}),
        ((X,), {"weights": (X + 3, X + 4), "scale": 2.0}),
        ((X,), {"scale": 0.5, "weights": (X + 4, X + 1)}),
        ((X,), {"other": X}),  # one tensor twice
        ((X * 2,), {"other": X}),  # and two
        ((X,), {"other": None}),
        ((X,), {}),
    ]


def test_arguments_of_many_kinds():
    def run(engine):
        torch.manual_seed(0)
        with pyro.get_param_store().scope(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_vae.compiled_svi.CAPTURES_AT_ONCE", 20)
            svi = compiled(
                general_model, general_guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(),
                engine=engine,
            )  # fmt: skip
            losses = []
            for args, kwargs in arguments():
                losses.append(float(svi.evaluate_loss(*args, **kwargs)))
                losses.append(float(svi.step(*args, **kwargs)))
            return losses, dict(pyro.get_param_store().named_parameters()), svi

    one = run("compiled")
    assert one[2].engine == "compiled", one[2].reason
    assert_same(one, run("eager"))


def test_a_transposed_batch_has_no_view_of_the_one_before():
    """reshape is a view of one and a copy of the other."""
    grid = torch.arange(12.0).reshape(3, 4) / 6

    def flat(x):
        model(x.reshape(-1))

    def flat_guide(x):
        guide(x.reshape(-1))

    def run(engine):
        return train(
            lambda: compiled(flat, flat_guide, sgd, Trace_ELBO(), engine=engine),
            [grid, grid.T.contiguous().T, grid + 1],
        )

    one = run("compiled")
    assert one[2].engine == "compiled", one[2].reason
    assert_same(one, run("eager"))


def test_a_batch_that_the_program_holds_too_is_two_things():
    held = X + 1

    def holding(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(held.mean(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def run(engine):
        return train(
            lambda: compiled(holding, guide, sgd, Trace_ELBO(), engine=engine),
            [held, *BATCHES[1:5], held],
        )

    assert_same(run("compiled"), run("eager"))


def test_objects_as_arguments_are_told_apart_though_one_takes_the_others_place():
    class Options:
        def __init__(self, scale):
            self.scale = scale

    def scaled(x, options):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, options.scale), obs=x)

    def run(engine):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return train(
                lambda: compiled(scaled, lambda x, options: guide(x), sgd, Trace_ELBO(),
                                 engine=engine),
                ((X, Options(1.0 + 0.1 * i)) for i in range(20)),
            )  # fmt: skip

    assert_same(run("compiled"), run("eager"))


def test_an_argument_that_requires_a_gradient_gets_it():
    x = X.clone().requires_grad_()
    with pytest.warns(UserWarning, match="an argument requires a gradient"):
        train(lambda: compiled(model, guide, sgd, Trace_ELBO()), [x])
    assert x.grad is not None


# -- what changes between steps


def test_a_beta_in_a_closure_gives_the_right_numbers_at_every_step():
    """What a graph of JitTrace_ELBO froze: refused as a constant that keeps changing."""
    beta = 0.0

    def annealed(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def between(step):
        nonlocal beta
        beta = 0.05 * (step + 1)

    def run(engine):
        return train(
            lambda: compiled(annealed, guide, sgd, Trace_ELBO(), engine=engine), BATCHES, between
        )

    with pytest.warns(UserWarning, match=r"keeps changing \(beta: 0\.\d+ → 0\.\d+\); give"):
        one = run("compiled")
    assert one[2].engine == "eager"
    assert_same(one, run("eager"))


def test_a_beta_that_is_a_tensor_costs_one_graph():
    def run(engine):
        beta = torch.tensor(0.0)

        def between(step):
            beta.fill_(0.05 * (step + 1))

        programs = Beta(beta)(model), Beta(beta)(guide)
        return train(
            lambda: compiled(*programs, sgd, Trace_ELBO(), engine=engine), BATCHES, between
        )

    one = run("compiled")
    assert (one[2].engine, one[2]._num_captures) == ("compiled", 1)
    assert_same(one, run("eager"))


def test_a_generator_that_the_program_holds_is_refused():
    """A coin that came up alike at the check would be tossed once."""
    coin = random.Random(0)

    def tossed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0 if coin.random() < 0.9 else 5.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.warns(UserWarning, match="draws from a random generator of Python or NumPy"):
        train(lambda: compiled(tossed, guide, sgd, Trace_ELBO()), BATCHES[:2])


def test_an_exchanged_tensor_is_seen():
    """The same name, another tensor."""
    held = {"noise": torch.tensor(1.0)}

    def noisy(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, held["noise"]), obs=x)

    def between(step):
        if step in (3, 6):
            held["noise"] = torch.tensor(1.0 + step)

    def run(engine):
        held["noise"] = torch.tensor(1.0)
        return train(
            lambda: compiled(noisy, guide, sgd, Trace_ELBO(), engine=engine), BATCHES[:9], between
        )

    assert_same(run("compiled"), run("eager"))


def test_a_parameter_of_another_dtype_or_shape_is_seen(captures):
    """``module.double()`` keeps the parameter and exchanges its numbers."""

    class Programs(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise = nn.Parameter(torch.zeros(1, dtype=torch.float32))

        def model(self, x):
            pyro.module("programs", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, self.noise.exp().mean()), obs=x)

    def run(engine):
        programs = Programs()

        def between(step):
            if step == 3:
                programs.double()
            if step == 6:
                programs.noise.data = torch.zeros(4)

        def make():
            return compiled(programs.model, guide, sgd, Trace_ELBO(), engine=engine)

        return train(make, BATCHES[:9], between)

    assert_same(run("compiled"), run("eager"), 1e-6)
    assert len(captures) == 3


@pytest.mark.parametrize("compile", [False, True])
def test_fused_optimizers_read_gradients_as_their_leaf_lies(compile, monkeypatch):
    """A leaf that is transposed, and a tall gradient of many data, computed as a wide one."""
    torch.set_default_dtype(torch.float32)
    if products._linear() is not None:
        monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    x = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))

    def decoder(z):
        start = torch.randn(200, 60, generator=torch.Generator().manual_seed(1)) / 20
        tall, lying = pyro.param("tall", start), pyro.param("lying", start.T.contiguous().T)
        return z @ (tall + lying).T

    def tall_model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(60), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def tall_guide(x):
        weight = pyro.param("weight", torch.zeros(200, 60))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 0.7).to_event(1))

    def run(engine, **options):
        def fused(p):
            return torch.optim.Adam(p, lr=0.01, **options)

        def make():
            args = tall_model, tall_guide, fused, Trace_ELBO()
            return CompiledSVI(*args, engine=engine, compile=compile)

        return train(make, [x] * 6)

    expected = run("eager", foreach=False)
    for engine in ("eager", "compiled"):
        got = run(engine, fused=True)
        assert got[2].engine == engine
        assert got[0] == pytest.approx(expected[0], rel=1e-4)
        for name, value in expected[1].items():
            # Adam makes much of a gradient that is rounding: of its steps of 0.01 a tenth.
            assert (got[1][name] - value).abs().max() < 0.006, name
            assert (got[1][name] - value).abs().mean() < 1e-4, name


def test_an_argument_in_the_memory_of_a_written_buffer_is_taken_eagerly():
    """From the first step on or later; the caller's data are never written to."""

    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", X.clone())

        def guide(self, x):
            slope = pyro.param("slope", torch.tensor(0.3))
            self.last.mul_(0.5)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(slope * x + self.last, 1.0))

    def run(engine, which):
        programs, data = Remembering(), torch.ones_like(X)
        inputs = {"buffer": programs.last, "view": programs.last.view(-1), "data": data}
        run = train(
            lambda: CompiledSVI(model, programs.guide, sgd, Trace_ELBO(), engine=engine),
            [inputs[name] for name in which],
        )
        return *run, programs.last.clone(), data

    for which in (["buffer", "data", "data"], ["data", "buffer", "data", "view", "data"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one, other = run("compiled", which), run("eager", which)
        assert_same(one, other)
        torch.testing.assert_close(one[3], other[3])
        assert torch.equal(one[4], torch.ones_like(X))


@pytest.mark.parametrize("which", ["arguments", "buffers", "numpy"])
def test_inputs_that_come_to_share_written_memory_are_taken_eagerly(which):
    """After the capture: an argument that is written, two buffers, two views of numpy's memory."""

    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", X.clone())
            self.register_buffer("other", X + 1)

        def guide(self, x, scratch):
            slope = pyro.param("slope", torch.tensor(0.3))
            scratch.mul_(0.5) if which == "arguments" else self.last.mul_(0.5)
            with pyro.plate("data", len(x)):
                loc = slope * x + self.last + self.other
                pyro.sample("z", dist.Normal(loc + scratch.sum(), 1.0))

    def run(engine):
        programs, numbers = Remembering(), np.linspace(-1.0, 1.0, 12)
        data, scratch = X.clone(), torch.zeros_like(X)
        if which == "numpy":
            programs.last = torch.from_numpy(numbers[:6])

        def between(step):
            if step == 2 and which == "buffers":
                programs.other.set_(programs.last)

        later = {"arguments": (data, data[:]), "numpy": (torch.from_numpy(numbers[3:9]), scratch)}
        batches = [(data, scratch)] * 2 + [later.get(which, (data, scratch))] * 2
        return train(
            lambda: CompiledSVI(
                lambda x, scratch: model(x), programs.guide, sgd, Trace_ELBO(), engine=engine
            ),
            batches,
            between,
        )

    assert_same(run("compiled"), run("eager"))


def test_a_sparse_argument_is_taken_eagerly():
    def dense_model(x):
        model(x.to_dense())

    def dense_guide(x):
        guide(x.to_dense())

    def run(engine):
        def make():
            return compiled(dense_model, dense_guide, sgd, Trace_ELBO(), engine=engine)

        return train(make, [X.to_sparse()] * 2)

    with pytest.warns(UserWarning, match="an argument is sparse"):
        one = run("compiled")
    assert_same(one, run("eager"))


@pytest.mark.parametrize("change", ["strides", "sign"])
def test_a_parameter_that_lies_otherwise_in_memory_is_seen(captures, change):
    other = {
        "strides": torch.full((12,), 0.5)[::2],
        "sign": torch.full((6,), -0.5j, dtype=torch.complex128).conj().imag,
    }[change]

    def weighted(x):
        w = pyro.param("w", torch.ones(6))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)

    def run(engine):
        def between(step):
            if step == 3:
                pyro.get_param_store()._params["w"].data = other.clone().set_(other)

        def make():
            return compiled(weighted, guide, lambda p: torch.optim.SGD(p, lr=0.0), Trace_ELBO(),
                            engine=engine)  # fmt: skip

        return train(make, BATCHES[:6], between)

    assert_same(run("compiled"), run("eager"))
    assert len(captures) == 2


def test_the_negative_bit_of_an_argument_is_seen():
    numbers = torch.complex(X, X + 1)

    def run(engine):
        def make():
            return compiled(model, guide, sgd, Trace_ELBO(), engine=engine)

        return train(make, [numbers.imag, numbers.conj().imag, numbers.imag])

    assert_same(run("compiled"), run("eager"))


def test_two_trainings_interleaved_in_stores_of_their_own_and_in_one():
    def trainer(name, engine):
        def one(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(pyro.param(name, torch.tensor(1.0)) * z, 1.0), obs=x)

        def other(x):
            slope = pyro.param(f"{name}_slope", torch.tensor(0.1))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(slope * x, 0.7))

        return compiled(one, other, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine=engine)

    def together(engine):
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            trainers = [trainer(name, engine) for name in "ab"]
            losses = [float(t.step(x)) for x in BATCHES for t in trainers]
            return losses, dict(pyro.get_param_store().named_parameters())

    def apart(engine):
        torch.manual_seed(0)
        trainers, stores = [trainer("a", engine) for _ in "ab"], []
        for _ in trainers:
            with pyro.get_param_store().scope() as store:
                stores.append(store)
        losses = []
        for x in BATCHES:
            for one, store in zip(trainers, stores, strict=True):
                with pyro.get_param_store().scope(store):
                    losses.append(float(one.step(x)))
        found = {}
        for index, store in enumerate(stores):
            with pyro.get_param_store().scope(store):
                for name, value in pyro.get_param_store().named_parameters():
                    found[f"{index}{name}"] = value
        return losses, found

    for way in (together, apart):
        assert_same(way("compiled"), way("eager"))


def test_the_second_training_of_one_pair_in_another_store_has_its_own_parameters():
    svi = compiled(model, guide, sgd, Trace_ELBO())
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            runs.append(([float(svi.evaluate_loss(x)) for x in BATCHES[:3]],
                         dict(pyro.get_param_store().named_parameters())))  # fmt: skip
    assert_same(*runs)


# -- around the step


def test_a_handler_around_the_step_acts():
    def run(engine):
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            svi = compiled(model, guide, sgd, Trace_ELBO(), engine=engine)
            losses = [float(svi.step(X))]
            with poutine.scale(scale=0.5):
                losses.append(float(svi.step(X)))
            losses.append(float(svi.step(X)))
            return losses, dict(pyro.get_param_store().named_parameters()), svi

    one = run("compiled")
    assert one[2].engine == "compiled"
    assert_same(one, run("eager"))


def test_no_grad_around_the_step_trains_all_the_same():
    def run(engine):
        with torch.no_grad():
            return train(lambda: compiled(model, guide, sgd, Trace_ELBO(), engine=engine), BATCHES)

    one = run("compiled")
    assert_same(one, run("eager"))
    assert float(one[1]["slope"]) != 0.3


@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
def test_autocast_casts_the_weights_of_each_step(inside):
    """A weight that autocast keeps in half precision must not be the graph's constant."""
    torch.set_default_dtype(torch.float32)

    def run(engine):
        torch.manual_seed(0)
        layer = nn.Linear(1, 8)

        def wide(x):
            pyro.module("layer", layer)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                h = layer(z[:, None]).float().sum(-1)
                pyro.sample("x", dist.Normal(h, 1.0), obs=x)

        def narrow(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("s", torch.tensor(0.3)) * x, 0.7))

        losses = []
        with pyro.get_param_store().scope():
            svi = compiled(wide, narrow, lambda p: torch.optim.SGD(p, lr=0.05), Trace_ELBO(),
                           engine=engine)  # fmt: skip
            if inside:
                for x in BATCHES:
                    with torch.autocast("cpu", dtype=torch.bfloat16):
                        losses.append(float(svi.step(x.float())))
            else:
                with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
                    losses = [float(svi.step(x.float())) for x in BATCHES]
            return losses, dict(pyro.get_param_store().named_parameters()), svi

    one = run("compiled")
    assert one[2].engine == "compiled", one[2].reason
    assert_same(one, run("eager"), tolerance=1e-5)


def test_another_default_dtype_is_another_graph():
    def run(engine):
        def between(step):
            torch.set_default_dtype(torch.float32 if 3 <= step < 6 else D)

        return train(
            lambda: compiled(model, guide, sgd, Trace_ELBO(), engine=engine), BATCHES[:9], between
        )

    one = run("compiled")
    assert one[2].engine == "compiled", one[2].reason
    assert_same(one, run("eager"), tolerance=1e-6)


@pytest.mark.parametrize("validate", [False, True])
def test_validation_may_be_on_or_off(validate):
    with pyro.validation_enabled(validate):
        one = train(lambda: compiled(model, guide, sgd, Trace_ELBO()), BATCHES)
    assert one[2].engine == "compiled", one[2].reason
    assert_same(one, train(lambda: pyros(model, guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO()),
                           BATCHES))  # fmt: skip


# -- what must not happen


def test_a_step_that_is_not_finite_updates_nothing_nor_does_any_after_it():
    @torch.no_grad()
    def run(engine):
        torch.manual_seed(0)
        with pyro.get_param_store().scope(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            svi = compiled(model, guide, sgd, Trace_ELBO(), engine=engine)
            with pyro.validation_enabled(False):
                for x in (X, X, X * torch.nan, X, X):
                    svi.step(x)
                    if x.isnan().any():
                        before = {k: v.clone() for k, v in
                                  pyro.get_param_store().named_parameters()}  # fmt: skip
            after = dict(pyro.get_param_store().named_parameters())
            assert all(torch.equal(before[k], after[k]) for k in after)
            assert all(v.isfinite().all() for v in after.values())
            return svi

    for engine in ("compiled", "eager"):
        svi = run(engine)
        assert (svi.bad_step, svi.num_steps, svi.engine) == (2, 2, engine)


def test_a_loss_that_needs_no_gradient_moves_nothing():
    def fixed(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 1.0))

    def fixed_model(x):
        pyro.param("unused", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def run(make):
        return train(
            lambda: make(fixed_model, fixed, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()),
            BATCHES[:3],
        )

    one = run(compiled)
    assert float(one[1]["unused"]) == 1.0
    assert_same(one, run(pyros))


def test_gradients_of_others_are_no_part_of_a_step():
    def run(engine, leftover):
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            svi = compiled(model, guide, sgd, Trace_ELBO(), engine=engine)
            for x in BATCHES[:4]:
                for leaf in pyro.get_param_store()._params.values():
                    leaf.grad = torch.full_like(leaf, 7.0) if leftover else None
                svi.step(x)
            return [], dict(pyro.get_param_store().named_parameters()), svi

    expected = run("eager", False)
    for engine in ("compiled", "eager"):
        one = run(engine, True)
        assert one[2].engine == engine
        assert_same(one, expected)


def test_optimizers_that_write_into_gradients_get_memory_of_their_own():
    """d(a + b)/da and d(a + b)/db are one expanded tensor; ClippedAdam clamps in place."""

    def summed(x):
        a = pyro.param("a", torch.zeros(3))
        b = pyro.param("b", torch.ones(3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("f", (a + b).sum() * 20)

    runs = [
        train(
            lambda make=make: make(
                summed, guide, pyro.optim.ClippedAdam({"lr": 0.01, "clip_norm": 1.0}), Trace_ELBO()
            ),
            BATCHES[:5],
        )
        for make in (pyros, compiled)
    ]
    assert runs[1][2].engine == "compiled", runs[1][2].reason
    assert_same(runs[1], runs[0])


def state_of_everything():
    store = pyro.get_param_store()
    return (
        torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()),  # noqa: NPY002
        {k: (id(v), v._version, v.requires_grad, v.grad) for k, v in store._params.items()},
        pyro.util.torch_isnan, pyro.util.torch_isinf, pyro.infer.trace_elbo.torch_item,
        pyro.infer.util.is_validation_enabled(), list(warnings.filters), torch.is_grad_enabled(),
        torch.is_autocast_cache_enabled(), torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(), len(poutine.runtime._PYRO_STACK),
    )  # fmt: skip


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, InputError])
@pytest.mark.parametrize("at", range(1, 5))
def test_capturing_leaves_global_state_alone_whatever_happens(error, at):
    """``at`` is the run of the model in which it happens: two to begin, the check, the trace."""
    runs = itertools.count(1)
    buffer = torch.zeros(3)

    def failing(x):
        pyro.param("w", torch.tensor(1.5))
        buffer.add_(1.0)
        torch.randn(3)
        random.random()
        model(x)
        if next(runs) == at and error is not None:
            raise error("stop")

    with pyro.get_param_store().scope():
        poutine.trace(model).get_trace(X), poutine.trace(guide).get_trace(X)
        before = state_of_everything()
        svi = compiled(failing, guide, sgd, Trace_ELBO())
        with pytest.raises(BaseException) as raised:  # noqa: PT011
            svi._capture("step", (X,), {}, [])
        expected = (
            CaptureError if error is None or (at == 4 and error is not KeyboardInterrupt) else error
        )
        assert raised.type is expected
        assert state_of_everything() == before
        assert not buffer.any()


class TwoNames(PyroModule):
    """Its layer is a child and ``pyro.module`` too, as in Pyro's tutorials: two names a leaf."""

    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[nn.Linear](1, 1)

    def forward(self, x):
        pyro.module("net", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.decoder(z[:, None])[:, 0], 1.0), obs=x)


@pytest.mark.parametrize("engine", ["compiled", "eager"])
@pytest.mark.parametrize("optim", [pyro.optim.SGD({"lr": 0.01}), sgd])
def test_a_parameter_of_two_names_is_stepped_once(optim, engine):
    def train_by(kind, optim, **options):
        torch.manual_seed(1)
        program = TwoNames()
        return train(lambda: kind(program, guide, optim, Trace_ELBO(), **options), BATCHES[:6])

    got = train_by(compiled, optim, engine=engine)
    assert got[2].reason is None
    assert {"decoder.weight", "net$$$weight"} <= got[1].keys()
    assert_same(got, train_by(SVI, pyro.optim.SGD({"lr": 0.01})))


def test_a_parameter_without_a_gradient_in_some_steps_moves_by_its_momentum():
    """A semi-supervised model: labels are inferred in every other step."""

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3) / 3), obs=y)
            loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
            pyro.sample("x", dist.Normal(y @ loc, 1.0), obs=x)

    def guide(x, y=None):
        weight = pyro.param("weight", torch.tensor([-0.3, 0.2, 0.4]))
        if y is None:
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.OneHotCategorical(logits=x[:, None] * weight))

    y = torch.eye(3)[torch.arange(len(X)) % 3]
    batches = [(x, y) if i % 2 else (x,) for i, x in enumerate(BATCHES[:12])]

    def train_by(kind):
        optim = pyro.optim.AdamW({"lr": 0.05, "weight_decay": 0.1})
        return train(lambda: kind(model, guide, optim, Trace_ELBO()), batches)

    for order in (batches, batches[1:]):
        batches = order
        got = train_by(compiled)
        assert got[2].reason is None
        assert_same(got, train_by(SVI))


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](1, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
        self.scale = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x):
        mean = self.linear(x[:, None])[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, self.scale), obs=x)


@pytest.mark.parametrize("make", [AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal])
def test_autoguides_and_priors_made_under_validation_are_captured(make):
    def train_by(kind):
        torch.manual_seed(1)
        with pyro.validation_enabled(True):
            program = Regression()
            autoguide = make(program)
        with pyro.get_param_store().scope() as store:
            autoguide(X)  # draws initial values, which a first step would
        optim = pyro.optim.Adam({"lr": 0.05})

        def svi():
            pyro.get_param_store().set_state(store)
            return kind(program, autoguide, optim, Trace_ELBO())

        return train(svi, BATCHES[:6])

    got = train_by(compiled)
    assert got[2].reason is None
    assert_same(got, train_by(SVI))


def test_labels_as_one_hot_vectors():
    def labelled(x, y):
        weight = pyro.param("labels", torch.tensor([0.1, 0.2, 0.3]))
        with pyro.plate("data", len(x)):
            shift = nn.functional.one_hot(y, 3).to(x) @ weight
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    def nothing(x, y):
        pass

    labels = torch.arange(len(X)) % 3

    def train_by(kind, optim):
        return train(lambda: kind(labelled, nothing, optim, Trace_ELBO()), [(X, labels)] * 3)

    got = train_by(compiled, sgd)
    assert got[2].reason is None
    assert_same(got, train_by(SVI, pyro.optim.SGD({"lr": 0.01})))
    with pytest.raises(RuntimeError, match="index 3 is out of bounds"):
        train(
            lambda: compiled(labelled, nothing, sgd, Trace_ELBO()), [(X, labels), (X, labels + 1)]
        )


@pytest.mark.filterwarnings("ignore:steps are eager:UserWarning")
def test_a_program_that_counts_its_runs_counts_steps_alone():
    def make():
        count, held = 0, {"count": 0}

        def counting(x):
            nonlocal count
            count += 1
            held["count"] += 1
            with pyro.poutine.scale(scale=min(1.0, 0.1 * count) * held["count"]):
                return guide(x)

        return counting, held

    def train_by(kind):
        counting, held = make()
        optim = pyro.optim.Adam({"lr": 0.05})
        return *train(lambda: kind(model, counting, optim, Trace_ELBO()), BATCHES[:6]), held

    got = train_by(compiled)
    assert "changes its own values" in got[2].reason
    assert got[3] == {"count": 6}
    assert_same(got, train_by(SVI))


@pytest.mark.parametrize(
    ("optim", "got"),
    [(torch.optim.LBFGS, "LBFGS; take Adam"), (lambda p: torch.optim.Adam, "got type")],
)
def test_what_is_no_optimizer_of_a_gradient_is_refused(optim, got):
    with pyro.get_param_store().scope(), pytest.raises(InputError, match=got):
        compiled(model, guide, optim, Trace_ELBO()).step(X)


def test_evaluate_loss_is_that_of_pyro_and_updates_nothing():
    def run(make):
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            svi = make(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            return [float(svi.evaluate_loss(x)) for x in BATCHES], dict(
                pyro.get_param_store().named_parameters()
            )

    one = run(compiled)
    assert_same(one, run(pyros))
    assert float(one[1]["slope"].detach()) == 0.3


# -- compiled by torch: the same numbers in another order of sums


def assert_compiled_same(one, other):
    assert one[2].engine == "compiled", one[2].reason
    assert_same(one, other, tolerance=1e-9)


@pytest.mark.parametrize(
    "objective", ["trace", "trace_mean_field", "iwae", "dreg", "closed_form", "tvo"]
)
def test_compiled_every_family_of_objectives(objective):
    """An annealed β where there is one; a score, a path, fixed draws, an analytic KL."""

    def run(**options):
        beta = torch.tensor(1.0)

        def between(step):
            beta.fill_(0.2 * (step + 1))

        programs = (model, guide) if objective == "tvo" else (Beta(beta)(model), Beta(beta)(guide))
        return train(
            lambda: CompiledSVI(
                *programs, sgd, build("objective", f"{objective}(num_particles=3)"),
                clip_norm=2.0, **options,
            ),
            BATCHES[:4],
            between,
        )  # fmt: skip

    assert_compiled_same(run(), run(engine="eager"))


def test_compiled_dropout_batch_norm_and_the_short_last_batch():
    batches = [X, X[:4], X * 2, X[2:]]

    def run(**options):
        net, net_guide = nets()
        with pyro.get_param_store().scope():
            net.offset.sum()
        result = train(lambda: CompiledSVI(net, net_guide, sgd, Trace_ELBO(), **options), batches)
        return result, dict(net.named_buffers())

    (one, buffers), (other, expected) = run(), run(engine="eager")
    assert_compiled_same(one, other)
    assert int(buffers["norm.num_batches_tracked"]) == len(batches)
    for name, buffer in expected.items():
        torch.testing.assert_close(buffers[name], buffer)


def test_compiled_evaluation():
    def run(**options):
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            svi = CompiledSVI(model, guide, sgd, Trace_ELBO(), **options)
            return [float(svi.evaluate_loss(x)) for x in BATCHES[:4]], {}, svi

    assert_compiled_same(run(), run(engine="eager"))
