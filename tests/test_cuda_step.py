"""Steps that stay on the device: on the CPU by the same functions, on a GPU as CUDA graphs."""

import contextlib
import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.capture import capture
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.cuda_step import BadStep, update_if, why_host, written_by

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Recorder(TorchDispatchMode):
    """Every operator with the tensors and numbers it was called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the step waits for the device")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


def record(run, device):
    """What a CUDA graph is, on the CPU: the same operators at the same addresses.

    Python is not run again: its numbers, and which tensors it took, are those of the recording.
    """
    with Recorder() as recorder:
        run()

    def replay():
        for func, args, kwargs, recorded in recorder.calls:
            outputs = map(tree_leaves, (recorded, func(*args, **kwargs)))
            for kept, value in zip(*outputs, strict=True):
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != value.data_ptr():
                    kept.copy_(value)

    return replay


class OnDevice(CompiledSVI):
    """Takes the CPU for a device."""

    _devices = ("cpu", "cuda")
    _record = staticmethod(record)


class Unrecorded(OnDevice):
    """Stays on the device, without a graph."""

    _record = None


class Model(PyroModule):
    def __init__(self):
        super().__init__("model")
        self.decoder = nn.Linear(2, 5)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__("guide")
        self.norm = nn.BatchNorm1d(5)
        self.encoder = nn.Linear(5, 4)

    def forward(self, x):
        loc, raw = self.encoder(self.norm(x)).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def programs(device="cpu", dtype=torch.float64):
    torch.manual_seed(0)
    return Model().to(device, dtype), Guide().to(device, dtype)


def batch(size=20, device="cpu", dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 5, generator=generator, dtype=torch.float64).to(device, dtype)


def svi(kind, pair, optim, **options):
    return kind(*pair, optim, Trace_ELBO(), compile=False, **options)


def state(pair, optimizer=None):
    """Everything that a step changes."""
    found = {f"{i}.{k}": v for i, p in enumerate(pair) for k, v in p.state_dict().items()}
    found = {name: tensor.double() for name, tensor in found.items()}
    for i, of in enumerate(optimizer.state.values() if optimizer else ()):
        found |= {f"{i}.{k}": v for k, v in of.items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def same(a, b, rtol=0.0):
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).norm() <= rtol * b[name].norm(), name
    return True


def fused_adam(params):
    return torch.optim.Adam(params, lr=1e-2, fused=True)


def resumed(saved):
    def optim(params):
        optimizer = fused_adam(params)
        optimizer.load_state_dict(saved)
        return optimizer

    return optim


def rmsprop(params):
    return torch.optim.RMSprop(params, lr=1e-2, centered=True, momentum=0.5, weight_decay=0.1)


def radam(params):
    return torch.optim.RAdam(params, lr=1e-2)


OPTIMIZERS = pytest.mark.parametrize("optim", [fused_adam, rmsprop], ids=lambda o: o.__name__)


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope(), torch.random.fork_rng(), pyro.validation_enabled(False):
        yield


def run(kind, optim, steps=3, sizes=(20,), clip_norm=None):
    """Losses, norms and the final state of a few steps."""
    pair = programs()
    with pyro.get_param_store().scope():
        torch.manual_seed(2)
        it = svi(kind, pair, optim, clip_norm=clip_norm)
        found = []
        for step in range(steps):
            found += [it.step(batch(sizes[step % len(sizes)])), it.gradient_norm]
    return it, torch.stack(found), state(pair, it.optimizer)


@pytest.mark.parametrize(
    ("kind", "optim", "clip_norm"),
    [(OnDevice, fused_adam, 1.0), (Unrecorded, fused_adam, None), (Unrecorded, rmsprop, None)],
)
def test_steps_are_those_of_the_host(kind, optim, clip_norm):
    """Losses, norms, weights, state and buffers; the rate on the device has 24 bits."""
    options = {"steps": 5, "sizes": (7, 20, 20), "clip_norm": clip_norm}
    host, expected, after = run(CompiledSVI, optim, **options)
    it, found, on_device = run(kind, optim, **options)
    assert (it.engine, it.host_reason, it.graph_reason) == ("compiled", None, None)
    assert len(it._device_steps) == 2
    assert torch.allclose(found, expected, rtol=1e-6)
    same(on_device, after, rtol=1e-6)
    assert (it.num_steps, it.bad_step) == (host.num_steps, host.bad_step) == (5, None)


def test_groups_remain_the_users():
    """Checkpoints hold what the user gave: floats, and no flag of a recording."""
    it, _, _ = run(OnDevice, fused_adam)
    (group,) = it.optimizer.param_groups
    assert type(group["lr"]) is float
    assert group["capturable"] is False
    assert not hasattr(it.optimizer, "found_inf")
    assert all(leaf.grad is None for leaf in group["params"])


@pytest.mark.filterwarnings("ignore:Encountered")
@pytest.mark.parametrize(
    ("kind", "engine", "optim", "bad"),
    [
        (CompiledSVI, "eager", fused_adam, 0),
        (CompiledSVI, "eager", rmsprop, 2),
        (CompiledSVI, "compiled", fused_adam, 2),
        (OnDevice, "compiled", fused_adam, 0),
        (OnDevice, "compiled", fused_adam, 2),
        (Unrecorded, "compiled", rmsprop, 2),
    ],
)
def test_a_bad_step_changes_nothing_nor_does_any_after_it(kind, engine, optim, bad):
    """An infinite datum: infinite loss, gradients and batch statistics."""
    pair = programs()
    it = svi(kind, pair, optim, engine=engine)
    losses = []
    for step in range(5):
        x = batch()
        if step == bad:
            x[0, 0] = math.inf
            before = state(pair, it.optimizer if step else None)
        losses.append(it.step(x))
        if step >= bad:
            now = state(pair, it.optimizer if bad else None)
            same(now, before)
    assert it.bad_step == bad
    assert it.num_steps == bad
    assert [bool(loss.isfinite()) for loss in losses] == [step != bad for step in range(5)]


@pytest.mark.filterwarnings("ignore:Encountered")
@pytest.mark.parametrize(
    "hosts", [(True, False, False, False), (True, False, True, False), (False, False, True, True)]
)
def test_steps_of_host_and_device_are_counted_together(hosts):
    """Under a handler a step is Pyro's own; the fourth is bad, and none after it updates."""
    pair = programs()
    it = svi(OnDevice, pair, fused_adam)

    def step(x, on_host):
        with poutine.scale(scale=1.0) if on_host else contextlib.nullcontext():
            it.step(x)

    for host in hosts[:3]:
        step(batch(), host)
    before = state(pair, it.optimizer)
    step(batch() * math.inf, hosts[3])
    for host in (True, False):
        step(batch(), host)
    same(state(pair, it.optimizer), before)
    assert len(it._device_steps) == 1
    assert (it.bad_step, it.num_steps) == (3, 3)


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_bad_step_keeps_the_first(which):
    device = torch.device("cpu")
    record, good, bad = BadStep(device, count=7), torch.ones(()), torch.tensor(math.nan)
    assert record.read() is None
    assert record.record(good, good)
    assert not record.record(*((bad, good) if which == "loss" else (good, bad)))
    assert not record.record(good, good)
    assert not record.record(bad, bad)
    assert record.read() == 8


@pytest.mark.parametrize("optim", [fused_adam, rmsprop, radam], ids=lambda o: o.__name__)
@pytest.mark.parametrize("good", [True, False])
def test_update_if(optim, good):
    pairs = []
    for steps in (2, 3):
        leaf = torch.nn.Parameter(torch.linspace(-1, 1, 4))
        optimizer = optim([leaf])
        for step in range(steps):
            leaf.grad = torch.full_like(leaf, math.nan if step == 2 and not good else 1.0 + step)
            if step < 2:
                optimizer.step()
            else:
                with torch.no_grad():
                    update_if(torch.tensor(good), optimizer)
        values = {"leaf": leaf.detach(), **optimizer.state[leaf]}
        pairs.append({name: value.clone() for name, value in values.items()})
    without, with_third = pairs
    if not good:
        same(with_third, without)
    else:
        changed = [not torch.equal(with_third[name], without[name]) for name in without]
        assert all(changed)


def test_schedules_act():
    """The rate is read at every step, though its number is the user's."""

    def trained(kind):
        pair = programs()
        with pyro.get_param_store().scope():
            torch.manual_seed(3)
            it = svi(kind, pair, fused_adam)
            it.step(batch())
            schedule = torch.optim.lr_scheduler.ExponentialLR(it.optimizer, 0.5)
            for _ in range(3):
                it.step(batch())
                schedule.step()
            rate = it.optimizer.param_groups[0]["lr"]
        return it, rate, state(pair)

    _, rate, expected = trained(CompiledSVI)
    it, found, after = trained(OnDevice)
    assert found == rate == 1e-2 / 8
    same(after, expected, rtol=1e-6)
    assert it._num_recorded == 2  # once more for the number that the schedule leaves in the group


def test_a_rate_of_the_users_own_is_read_at_every_step():
    rate = torch.tensor(1e-2)
    pair = programs()
    it = svi(OnDevice, pair, lambda p: torch.optim.Adam(p, lr=rate, fused=True))
    it.step(batch())
    before = state(pair)
    rate.zero_()
    it.step(batch())
    weights = [name for name in before if "weight" in name or "bias" in name]
    same({n: before[n] for n in weights}, {n: state(pair)[n] for n in weights})


def test_numbers_of_the_optimizer_that_change_are_recorded_anew():
    def trained(kind):
        pair = programs()
        with pyro.get_param_store().scope():
            torch.manual_seed(4)
            it = svi(kind, pair, fused_adam)
            for step in range(12):
                it.step(batch())
                it.optimizer.param_groups[0]["betas"] = (0.5 + 0.01 * step, 0.9)
        return it, state(pair)

    _, expected = trained(CompiledSVI)
    it, found = trained(OnDevice)
    same(found, expected, rtol=1e-6)
    assert it.graph_reason == "the optimizer's numbers keep changing"


def test_resumes_where_it_stopped():
    """Weights, buffers and state loaded into other objects, and into the same ones."""

    def steps(it, count):
        return [float(it.step(batch())) for _ in range(count)]

    pair = programs()
    it = svi(OnDevice, pair, fused_adam)
    steps(it, 2)
    saved = copy.deepcopy(it.optimizer.state_dict())
    weights = [copy.deepcopy(p.state_dict()) for p in pair]
    noise = torch.get_rng_state()
    expected = steps(it, 3)

    for program, values in zip(pair, weights, strict=True):
        program.load_state_dict(values)
    it.optimizer.load_state_dict(copy.deepcopy(saved))
    torch.set_rng_state(noise)
    assert steps(it, 3) == expected

    with pyro.get_param_store().scope():
        other = programs()
        for program, values in zip(other, weights, strict=True):
            program.load_state_dict(values)
        torch.set_rng_state(noise)
        assert steps(svi(OnDevice, other, resumed(saved)), 3) == expected


def test_two_trainings_interleaved():
    _, alone, _ = run(OnDevice, fused_adam)
    pairs = [programs(), programs()]
    stores = [pyro.get_param_store().scope() for _ in pairs]
    its, noise, found = [], [], [[], []]
    for store, pair in zip(stores, pairs, strict=True):
        with store:
            torch.manual_seed(2)
            its.append(svi(OnDevice, pair, fused_adam))
            noise.append(torch.get_rng_state())
    opened = [None, None]
    for _ in range(3):
        for i, it in enumerate(its):
            with pyro.get_param_store().scope(opened[i]) as opened[i]:
                torch.set_rng_state(noise[i])
                found[i] += [it.step(batch()), it.gradient_norm]
                noise[i] = torch.get_rng_state()
    for losses in found:
        assert torch.equal(torch.stack(losses), alone)


def test_a_recording_is_not_used_after_the_optimizers_state_was_exchanged():
    it = svi(OnDevice, programs(), fused_adam)
    it.step(batch())
    (step,) = it._device_steps.values()
    assert step.holds()
    it.optimizer.state = dict(it.optimizer.state)
    assert not step.holds()


def test_an_optimizer_that_reads_a_number_is_run_directly():
    it, _, _ = run(OnDevice, rmsprop, steps=2)
    assert it.graph_reason == "the step waits for the device"
    assert it.host_reason is None


@pytest.mark.parametrize("optim", [fused_adam, lambda p: torch.optim.SGD(p, 0.1, weight_decay=1.0)])
def test_a_parameter_with_a_gradient_in_some_steps_alone_is_the_hosts(optim):
    """Zeros take the place of its gradient, so that momentum and decay go on as in SVI."""

    def model(x, known):
        a, b = (pyro.param(name, torch.ones(5, dtype=x.dtype)) for name in "ab")
        with pyro.plate("data", len(x), dim=-1):
            loc = a if known else a + b
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def steps(kind):
        with pyro.get_param_store().scope():
            it = svi(kind, (model, lambda x, known: None), optim)
            losses = [float(it.step(batch(), known)) for known in (True, False, True, True, False)]
            return it, losses, pyro.param("b").detach().clone()

    it, losses, b = steps(OnDevice)
    assert it.host_reason == "parameter 'b' has a gradient in some steps alone"
    _, expected, right = steps(CompiledSVI)
    assert losses == pytest.approx(expected, rel=1e-6)  # a device's learning rate is a float32
    torch.testing.assert_close(b, right, rtol=1e-6, atol=1e-6)


def test_a_loss_that_is_held_is_not_overwritten():
    _, losses, _ = run(OnDevice, fused_adam)
    assert len(set(losses.tolist())) == len(losses)


def test_memory_that_moved_is_seen():
    """``module.to`` puts other memory under a parameter that stays the same object."""
    pair = programs()
    it = svi(OnDevice, pair, fused_adam)
    it.step(batch())
    (step,) = it._device_steps.values()
    assert step.holds()
    weight = pair[0].decoder.weight
    weight.data = weight.data.clone()
    assert not step.holds()


def test_autograd_learns_of_replays():
    pair = programs()
    it = svi(OnDevice, pair, fused_adam)
    it.step(batch())
    (step,) = it._device_steps.values()
    weight = pair[0].decoder.weight
    step._replay = lambda: None
    version = weight._version
    it.step(batch())
    assert weight._version > version


@pytest.fixture(scope="module")
def unrecorded():
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        return run(Unrecorded, fused_adam)


def frozen_noise(run, device):
    noise = torch.get_rng_state()

    def replay():
        torch.set_rng_state(noise)
        run()

    return replay


def no_step(run, device):
    return lambda: None


def stale_parameters(run, device):
    """A replay that counts, and gives what a step gave first."""
    run()
    return lambda: None


def failing(run, device):
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (frozen_noise, "two replays are not what two steps are"),
        (no_step, "two replays are not what two steps are"),
        (stale_parameters, "two replays are not what two steps are"),
        (failing, "operation not permitted when stream is capturing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_recording_that_is_no_step_is_refused(broken, reason, unrecorded):
    class Broken(OnDevice):
        _record = staticmethod(broken)

    it, found, after = run(Broken, fused_adam)
    _, expected, right = unrecorded
    assert it.graph_reason == reason
    assert torch.equal(found, expected)
    same(after, right)


def test_what_the_host_has_to_do_is_said():
    pair = programs()
    it = svi(OnDevice, pair, pyro.optim.Adam({"lr": 1e-2}))
    it.step(batch())
    assert "pyro.optim" in it.host_reason
    it = svi(OnDevice, programs(), fused_adam)
    it.step(batch())
    (program,) = it._device_steps
    leaves = list(program.parameters.values())
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")

    def reason(optimizer, device=cuda, tensors=()):
        return why_host(program, optimizer, tensors, device)

    assert reason(torch.optim.SGD(leaves, lr=0.1)) == "SGD has no capturable=True"
    assert "is on cpu, the step on cuda:0" in reason(torch.optim.Adam(leaves))
    hooked = torch.optim.Adam(leaves)
    hooked.register_step_post_hook(lambda *_: None)
    assert reason(hooked) == "Adam has hooks on its step"
    different = torch.optim.Adam(leaves, differentiable=True)
    assert reason(different) == "Adam has differentiable=True"
    assert reason(torch.optim.Adam(leaves), cpu) is None


def test_what_a_graph_writes():
    buffer, held, x = torch.zeros(3), torch.ones(3), torch.ones(3)

    def through_a_view():
        buffer.view(3, 1)[1:].add_(1.0)
        return [x + held]

    def its_input():
        x.mul_(2.0)
        return [x + buffer]

    def nothing():
        y = x + held
        y.add_(buffer)
        return [y]

    written, inputs = written_by(capture(through_a_view, [x]))
    assert [tensor is buffer for tensor in written] == [True]
    assert not inputs
    assert written_by(capture(its_input, [x])) == ([], True)
    assert written_by(capture(nothing, [x])) == ([], False)


# On a GPU.


def cuda_svi(pair, optim=fused_adam, **options):
    return CompiledSVI(*pair, optim, Trace_ELBO(), **options)


def is_one_graph(it):
    assert (it.engine, it.host_reason, it.graph_reason) == ("compiled", None, None), (
        it.reason, it.host_reason, it.graph_reason)  # fmt: skip
    return True


def cuda_run(steps=6, seed=2, optim=fused_adam, sizes=(20,), **options):
    pair = programs("cuda", torch.float32)
    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[0]):
        torch.manual_seed(seed)
        it = cuda_svi(pair, optim, **options)
        losses = []
        for step in range(steps):
            losses.append(it.step(batch(sizes[step % len(sizes)], "cuda", torch.float32)))
    return it, torch.stack(losses).cpu().double(), state(pair, it.optimizer)


@gpu
@needs_gpu
@pytest.mark.parametrize(
    "optim",
    [fused_adam, rmsprop, radam, lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True)],
    ids=["fused_adam", "rmsprop", "radam", "foreach_adam"],
)
def test_cuda_graph_is_the_eager_step(optim):
    """Same seed, same GPU; sums in another order, six steps of float32."""
    it, losses, after = cuda_run(optim=optim)
    eager, expected, right = cuda_run(optim=optim, engine="eager")
    assert is_one_graph(it)
    assert torch.allclose(losses, expected, rtol=1e-4)
    weights = [name for name in right if "encoder" in name or "decoder" in name]
    same({n: after[n] for n in weights}, {n: right[n] for n in weights}, rtol=1e-2)
    assert it.num_steps == eager.num_steps == 6


@gpu
@needs_gpu
def test_cuda_replays_draw_afresh():
    """With rate 0 the noise alone tells losses apart; a seed gives its sequence again."""
    frozen = lambda p: torch.optim.Adam(p, lr=0.0, fused=True)  # noqa: E731
    it, first, _ = cuda_run(optim=frozen)
    _, again, _ = cuda_run(optim=frozen)
    _, other, _ = cuda_run(optim=frozen, seed=5)
    assert is_one_graph(it)
    assert len(set(first.tolist())) == len(first)
    assert torch.equal(first, again)
    assert not (first == other).any()


@gpu
@needs_gpu
def test_cuda_replays_advance_the_generator_as_steps_do():
    """A draw between two steps: neither repeats the other's noise."""

    def trained(engine):
        pair = programs("cuda", torch.float32)
        with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[0]):
            torch.manual_seed(6)
            it = cuda_svi(pair, engine=engine)
            found = []
            for _ in range(4):
                found.append(it.step(batch(20, "cuda", torch.float32)).double())
                found.append(torch.rand((), device="cuda").double())
        return torch.stack(found).cpu()

    assert torch.allclose(trained("compiled"), trained("eager"), rtol=1e-4)


@gpu
@needs_gpu
def test_cuda_schedules_and_annealed_tensors_act():
    def trained(engine):
        pair = programs("cuda", torch.float32)
        with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[0]):
            torch.manual_seed(7)
            it = cuda_svi(pair, engine=engine)
            losses = [it.step(batch(20, "cuda", torch.float32))]
            schedule = torch.optim.lr_scheduler.ExponentialLR(it.optimizer, 0.1)
            for step in range(4):
                pair[0].scale.fill_(1.0 + step)
                losses.append(it.step(batch(20, "cuda", torch.float32)))
                schedule.step()
        return it, torch.stack(losses).cpu().double(), state(pair)

    it, losses, after = trained("compiled")
    _, expected, right = trained("eager")
    assert is_one_graph(it)
    assert torch.allclose(losses, expected, rtol=1e-4)
    same({"w": after["0.decoder.weight"]}, {"w": right["0.decoder.weight"]}, rtol=1e-2)


@gpu
@needs_gpu
@OPTIMIZERS
def test_cuda_bad_step(optim):
    pair = programs("cuda", torch.float32)
    it = cuda_svi(pair, optim)
    for step in range(5):
        x = batch(20, "cuda", torch.float32)
        if step == 2:
            x[0, 0] = math.inf
            before = state(pair, it.optimizer)
        it.step(x)
    same(state(pair, it.optimizer), before)
    assert is_one_graph(it)
    assert (it.bad_step, it.num_steps) == (2, 2)


@gpu
@needs_gpu
def test_cuda_reads_nothing_back():
    pair = programs("cuda", torch.float32)
    it = cuda_svi(pair)
    x = batch(20, "cuda", torch.float32)
    it.step(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            it.step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert is_one_graph(it)


@gpu
@needs_gpu
def test_cuda_short_last_batch():
    it, losses, _ = cuda_run(sizes=(20, 20, 7))
    _, expected, _ = cuda_run(sizes=(20, 20, 7), engine="eager")
    assert is_one_graph(it)
    assert len(it._device_steps) == 2
    assert torch.allclose(losses, expected, rtol=1e-4)


@gpu
@needs_gpu
def test_cuda_resumes_bit_for_bit():
    """The first step of a process is a replay like every other."""
    whole, losses, after = cuda_run(steps=6)
    assert is_one_graph(whole)
    pair = programs("cuda", torch.float32)
    x = batch(20, "cuda", torch.float32)
    with torch.random.fork_rng(devices=[0]):
        torch.manual_seed(2)
        it = cuda_svi(pair)
        found = [it.step(x) for _ in range(3)]
        saved = copy.deepcopy(it.optimizer.state_dict())
        noise = torch.cuda.get_rng_state()
        with pyro.get_param_store().scope():
            other = copy.deepcopy(pair)
            torch.cuda.set_rng_state(noise)
            other_svi = cuda_svi(other, resumed(saved))
            found += [other_svi.step(x) for _ in range(3)]
    assert torch.equal(torch.stack(found).cpu().double(), losses)
    same(state(other, other_svi.optimizer), after)


@gpu
@needs_gpu
def test_cuda_two_trainings_interleaved():
    _, alone, _ = cuda_run(steps=3)
    x = batch(20, "cuda", torch.float32)
    pairs = [programs("cuda", torch.float32) for _ in range(2)]
    found, opened, noise, its = [[], []], [None, None], [None, None], []
    with torch.random.fork_rng(devices=[0]):
        for i, pair in enumerate(pairs):
            torch.manual_seed(2)
            its.append(cuda_svi(pair))
            noise[i] = torch.cuda.get_rng_state()
        for _ in range(3):
            for i, it in enumerate(its):
                with pyro.get_param_store().scope(opened[i]) as opened[i]:
                    torch.cuda.set_rng_state(noise[i])
                    found[i].append(it.step(x))
                    noise[i] = torch.cuda.get_rng_state()
    for losses in found:
        assert torch.equal(torch.stack(losses).cpu().double(), alone)


@gpu
@needs_gpu
def test_cuda_host_steps_say_why():
    sgd = lambda p: torch.optim.SGD(p, lr=1e-3)  # noqa: E731
    it, losses, _ = cuda_run(optim=sgd)
    _, expected, _ = cuda_run(optim=sgd, engine="eager")
    assert it.host_reason == "SGD has no capturable=True"
    assert torch.allclose(losses, expected, rtol=1e-4)
