"""The fused kernel called directly against ``optimizer.step()``, to the bit."""

import copy
import functools

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pyro_vae.fused_adam import step_by_fused_adam

SHAPES = [(7, 5), (5,), (), (3, 2, 2)]
NUM_STEPS = 6


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return [tensor.requires_grad_() for tensor in shapes]


def gradients(step, dtype=torch.float32):
    """One parameter has none in every other step."""
    generator = torch.Generator().manual_seed(1 + step)
    found = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return [None if step % 2 and i == 1 else g for i, g in enumerate(found)]


def by_torch(optimizer, leaves, slopes):
    for leaf, slope in zip(leaves, slopes, strict=True):
        leaf.grad = slope
    optimizer.step()
    for leaf in leaves:
        leaf.grad = None


def directly(optimizer, leaves, slopes):
    """As a training does: the optimizer's own step where the direct one declines."""
    taken = step_by_fused_adam(optimizer, leaves, slopes)
    if not taken:
        by_torch(optimizer, leaves, slopes)
    return taken


def groups(leaves):
    return [
        {"params": leaves[:2], "lr": 0.1},
        {"params": leaves[2:], "weight_decay": 0.3, "betas": (0.5, 0.9)},
    ]


MAKERS = {
    "adam": lambda p: Adam(p, lr=0.01, fused=True),
    "decayed": lambda p: Adam(
        p, lr=0.01, weight_decay=0.1, eps=1e-3, betas=(0.8, 0.95), fused=True
    ),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "adam_decoupled": lambda p: Adam(
        p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True, fused=True
    ),
    "groups": lambda p: Adam(groups(p), lr=0.02, fused=True),
}


def trained(step, make, dtype=torch.float32, between=lambda optimizer: None):
    leaves = parameters(dtype)
    optimizer = make(leaves)
    taken = []
    for i in range(NUM_STEPS):
        taken.append(step(optimizer, leaves, gradients(i, dtype)))
        between(optimizer)
    return leaves, optimizer, taken


def assert_equal(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        assert torch.equal(a, b)
        assert a.grad is None
    state, expected = (run[1].state_dict()["state"] for run in (one, other))
    assert state.keys() == expected.keys()
    for index, values in expected.items():
        for name, value in values.items():
            assert torch.equal(state[index][name], value), (index, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MAKERS)
def test_steps_are_the_optimizers_own(name, dtype):
    direct = trained(directly, MAKERS[name], dtype)
    assert_equal(direct, trained(by_torch, MAKERS[name], dtype))
    # The first makes the state.
    assert direct[2] == [False, *[True] * (NUM_STEPS - 1)]


def test_a_schedule_counts_and_sets_the_rate(recwarn):
    def scheduled(p):
        optimizer = MAKERS["adam"](p)
        optimizer.schedule = lr_scheduler.StepLR(optimizer, 2, 0.5)
        return optimizer

    def between(optimizer):
        optimizer.schedule.step()

    direct = trained(directly, scheduled, between=between)
    assert_equal(direct, trained(by_torch, scheduled, between=between))
    assert all(direct[2][1:])
    assert not recwarn


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Adam(p, lr=0.01),
        lambda p: Adam(p, lr=0.01, fused=True, amsgrad=True),
        lambda p: Adam(p, lr=0.01, fused=True, maximize=True),
        lambda p: Adam(p, lr=torch.tensor(0.01), fused=True),
        lambda p: RAdam(p, lr=0.01),
        lambda p: SGD(p, lr=0.01, fused=True),
        type("Mine", (Adam,), {"step": lambda self, closure=None: None}),
    ],
    ids=["not_fused", "amsgrad", "maximize", "tensor_lr", "radam", "sgd", "subclass"],
)
def test_other_optimizers_step_themselves(make):
    direct = trained(directly, make)
    assert not any(direct[2])
    assert_equal(direct, trained(by_torch, make))


def test_hooks_are_called():
    called = []
    leaves = parameters()
    optimizer = MAKERS["adam"](leaves)
    directly(optimizer, leaves, gradients(0))
    handle = optimizer.register_step_post_hook(lambda *_: called.append(1))
    assert not directly(optimizer, leaves, gradients(1))
    handle.remove()
    everywhere = register_optimizer_step_pre_hook(lambda *_: called.append(2))
    assert not directly(optimizer, leaves, gradients(2))
    everywhere.remove()
    assert directly(optimizer, leaves, gradients(4))
    assert called == [1, 2]


def test_another_step_is_called(monkeypatch):
    leaves = parameters()
    optimizer = MAKERS["adam"](leaves)
    directly(optimizer, leaves, gradients(0))
    monkeypatch.setattr(optimizer, "step", lambda: None, raising=False)
    before = copy.deepcopy(leaves)
    assert not directly(optimizer, leaves, gradients(2))
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))


def test_a_loaded_state_is_used():
    """``load_state_dict`` exchanges the moments; ``state.clear()`` drops them."""

    def reload(optimizer):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    assert_equal(
        trained(directly, MAKERS["adam"], between=reload), trained(by_torch, MAKERS["adam"])
    )

    def clear(optimizer: Optimizer):
        optimizer.state.clear()

    direct = trained(directly, MAKERS["adam"], between=clear)
    assert not any(direct[2])
    assert_equal(direct, trained(by_torch, MAKERS["adam"], between=clear))


def test_nothing_is_done_where_it_declines():
    """One parameter of two has no state: neither moves."""
    leaves = parameters()
    optimizer = MAKERS["adam"](leaves)
    by_torch(optimizer, leaves, gradients(1))  # without a gradient for the second
    before = [leaf.detach().clone() for leaf in leaves]
    assert not step_by_fused_adam(optimizer, leaves, gradients(2))
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


def test_the_decay_is_the_groups_own():
    """A state of AdamW loaded into Adam decays as AdamW does."""

    def loaded(p):
        optimizer = Adam(p, lr=0.01, weight_decay=0.1, fused=True)
        optimizer.load_state_dict(MAKERS["adamw"](p).state_dict())
        return optimizer

    direct = trained(directly, loaded)
    assert all(direct[2][1:])
    assert_equal(direct, trained(by_torch, loaded))
    assert_equal(direct, trained(by_torch, MAKERS["adamw"]))


def test_a_parameter_of_the_optimizers_owner_is_moved_too():
    leaves = parameters()
    own = torch.ones(3, requires_grad=True)
    optimizer = MAKERS["adam"]([*leaves, own])
    for step in range(3):
        own.grad = torch.ones(3)
        assert not step_by_fused_adam(optimizer, leaves, gradients(2 * step))
        by_torch(optimizer, leaves, gradients(2 * step))
    assert (own < 1).all()
    own.grad = None
    assert step_by_fused_adam(optimizer, leaves, gradients(0))


@pytest.mark.parametrize("wraps", [False, True])
def test_a_step_put_into_the_class_is_called(monkeypatch, wraps):
    leaves = parameters()
    optimizer = MAKERS["adam"](leaves)
    directly(optimizer, leaves, gradients(0))
    inner = Adam.step

    def step(self, closure=None):
        return None

    monkeypatch.setattr(Adam, "step", functools.wraps(inner)(step) if wraps else step)
    assert not step_by_fused_adam(optimizer, leaves, gradients(2))
    later = MAKERS["adam"](leaves)  # wraps the class's step once more
    later.state = optimizer.state
    assert not step_by_fused_adam(later, leaves, gradients(2))
