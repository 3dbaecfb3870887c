"""Everything that a program takes from Python is watched, wherever it is kept."""

import functools
import random
import sys
import types
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.annealing import Beta
from pyro_vae.guards import watch

GLOBAL = 1.0
TENSOR = torch.ones(2)
loss = 0.0  # as a script's own variable, of the name of an attribute that programs mention


class Settings:
    kind = 1.0
    shared: ClassVar = {"a": 1}

    def __init__(self):
        self.alpha, self.beta, self.steps = 1.0, 2.0, 0

    @staticmethod
    def static():
        return GLOBAL

    @classmethod
    def of_class(cls):
        return cls.kind

    @property
    def both(self):
        return self.alpha + self.beta


@dataclass(slots=True)
class Slots:
    alpha: float = 1.0


class Indexed:
    def __init__(self):
        self.scale = 1.0

    def __getitem__(self, key):
        return self.scale * key


class Dropout(nn.Dropout):
    """torch's forward reads self.p, no code of this class does."""


def holder(**attributes):
    return types.SimpleNamespace(**attributes)


def closure_case():
    beta = 1.0

    def program():
        return beta

    def change():
        nonlocal beta
        beta = 2.0

    return program, change


def global_case():
    def program():
        return GLOBAL

    return program, lambda: globals().update(GLOBAL=GLOBAL + 1)


def case_of(held, read, change):
    """A program that reads from what it holds in a closure, and a change of that."""
    return (lambda: read(held)), (lambda: change(held))


def passed_on_case():
    """The attribute is mentioned by another function than the one that holds the object."""
    settings = Settings()

    def scaled(options):
        return options.beta

    return (lambda: scaled(settings)), (lambda: setattr(settings, "beta", 3.0))


def twice_case():
    """Two functions share an object and read different attributes of it."""
    settings = Settings()

    def first():
        return settings.alpha

    def second():
        return settings.beta

    return (lambda: first() + second()), (lambda: setattr(settings, "beta", 3.0))


def module_case():
    module = types.ModuleType("users_module")
    code = "RATE = 1.0\ndef inner():\n    return RATE\ndef outer():\n    return inner()"
    exec(code, vars(module))
    sys.modules["users_module"] = module
    scope = {"users_module": module}
    exec("def program():\n    return users_module.outer()", scope)
    return scope["program"], lambda: setattr(module, "RATE", 2.0)


def default_case():
    def program(scale=[1.0]):  # noqa: B006
        return scale[0]

    return program, lambda: program.__defaults__[0].__setitem__(0, 2.0)


def changes(name):
    return lambda held: setattr(held, name, 7.0)


CASES = {
    "closure": closure_case,
    "global": global_case,
    "passed_on": passed_on_case,
    "shared_object": twice_case,
    "module_function": module_case,
    "default_argument": default_case,
    "attribute": lambda: case_of(holder(beta=1.0), lambda h: h.beta, changes("beta")),
    "nested": lambda: case_of(
        holder(inner=holder(beta=1.0)), lambda h: h.inner.beta,
        lambda h: setattr(h.inner, "beta", 2.0),
    ),
    "deleted": lambda: case_of(holder(beta=1.0), lambda h: h.beta, lambda h: delattr(h, "beta")),
    "added": lambda: case_of(
        holder(beta=1.0), lambda h: getattr(h, "gamma", 1.0), changes("gamma"),
    ),
    "getattr": lambda: case_of(
        Settings(), lambda h: getattr(h, "be" + "ta"), changes("beta"),
    ),
    "class_attribute": lambda: case_of(
        Settings(), lambda h: h.kind, lambda h: setattr(Settings, "kind", Settings.kind + 1),
    ),
    "class_as_namespace": lambda: case_of(
        Settings, lambda h: h.kind, lambda h: setattr(Settings, "kind", Settings.kind + 1),
    ),
    "class_dict": lambda: case_of(
        Settings(), lambda h: h.shared["a"], lambda h: h.shared.update(a=h.shared["a"] + 1),
    ),
    "static_method": lambda: case_of(
        Settings(), lambda h: h.static(), lambda h: globals().update(GLOBAL=GLOBAL + 1),
    ),
    "class_method": lambda: case_of(
        Settings(), lambda h: h.of_class(), lambda h: setattr(Settings, "kind", Settings.kind + 1),
    ),
    "property": lambda: case_of(Settings(), lambda h: h.both, changes("alpha")),
    "bound_method": lambda: (
        lambda settings: (functools.partial(lambda f: f(), settings.of_class),
                          lambda: setattr(Settings, "kind", Settings.kind + 1))
    )(Settings()),
    "slots": lambda: case_of(Slots(), lambda h: h.alpha, changes("alpha")),
    "special_method": lambda: case_of(Indexed(), lambda h: h[1], changes("scale")),
    "dict_value": lambda: case_of({"b": 1.0}, lambda h: h["b"], lambda h: h.update(b=2.0)),
    "dict_key": lambda: case_of({"b": 1.0}, lambda h: sum(h.values()), lambda h: h.update(c=2.0)),
    "list_item": lambda: case_of([1.0, 2.0], lambda h: h[1], lambda h: h.__setitem__(1, 3.0)),
    "list_length": lambda: case_of([1.0], sum, lambda h: h.append(3.0)),
    "deque": lambda: case_of(deque([1.0, 2.0]), sum, lambda h: h.rotate(1)),
    "set": lambda: case_of({1.0}, sum, lambda h: (h.remove(1.0), h.add(2.0))),
    "array": lambda: case_of(np.ones(3), np.sum, lambda h: h.__setitem__(1, 3.0)),
    "tuple_of_lists": lambda: case_of(([1.0],), lambda h: h[0][0],
                                      lambda h: h[0].__setitem__(0, 2.0)),
    "partial": lambda: (lambda held: (functools.partial(lambda options: options["a"], held),
                                      lambda: held.update(a=2.0)))({"a": 1.0}),
    "number_of_another_type": lambda: case_of([1], sum, lambda h: h.__setitem__(0, 1.0)),
    "training_flag": lambda: case_of(nn.Dropout(), lambda h: h(TENSOR), lambda h: h.eval()),
    "dropout_rate": lambda: case_of(nn.Dropout(), lambda h: h(TENSOR), changes("p")),
    "rate_of_a_subclass": lambda: case_of(Dropout(), lambda h: h(TENSOR), changes("p")),
    "layer_appended": lambda: case_of(
        nn.ModuleList([nn.Tanh()]), lambda h: [f(TENSOR) for f in h],
        lambda h: h.append(nn.Tanh()),
    ),
    "layer_exchanged": lambda: case_of(
        nn.Sequential(nn.Linear(2, 2)), lambda h: h(TENSOR),
        lambda h: h.__setitem__(0, nn.Linear(2, 2)),
    ),
    "parameter_exchanged": lambda: case_of(
        nn.Linear(2, 2), lambda h: h(TENSOR),
        lambda h: setattr(h, "weight", nn.Parameter(torch.ones(2, 2))),
    ),
    "hook": lambda: case_of(
        nn.Linear(2, 2), lambda h: h(TENSOR),
        lambda h: h.register_forward_hook(lambda module, args, out: out * 2),
    ),
    "tensor_exchanged": lambda: case_of(
        {"t": torch.ones(2)}, lambda h: h["t"], lambda h: h.update(t=torch.ones(2)),
    ),
    "distribution": lambda: case_of(
        dist.Normal(0.0, 1.0), lambda h: h.sample(), lambda h: setattr(h, "loc", torch.ones(())),
    ),
    "beta": lambda: (lambda beta: (Beta(beta)(lambda: None), None))(torch.ones(())),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CASES if name != "beta"])
def test_a_change_is_seen(name):
    program, change = CASES[name]()
    guards = watch(program=program)
    assert guards.change() is None
    change()
    said = guards.change()
    assert said is not None
    assert not guards.hold()
    assert "\n" not in said
    assert watch(program=program).hold()


def test_what_changed_is_named():
    program, change = closure_case()
    guards = watch(program=program)
    change()
    assert guards.change() == "beta: 1.0 → 2.0"
    module = nn.Sequential(nn.Dropout())
    guards = watch(net=module)
    module[0].p = 0.1
    assert guards.change() == "net.0.p: 0.5 → 0.1"


@pytest.mark.parametrize(
    "change",
    [
        lambda held: setattr(held["settings"], "steps", 5),  # no code of the program reads it
        lambda held: globals().update(loss=loss + 1),  # an attribute of this name is read
        lambda held: held["tensor"].mul_(2),
        lambda held: held["module"].weight.data.mul_(2),
        lambda held: held.update(number=float("1.5")),  # an equal number, another object
        lambda held: held.update(name="na" + "me"[:2]),
    ],
)
def test_what_does_not_matter_is_no_change(change):
    held = {"settings": Settings(), "tensor": torch.ones(2), "module": nn.Linear(2, 2),
            "number": 1.5, "name": "name"}  # fmt: skip

    def program():
        return held["settings"].alpha, held["tensor"], held["module"].loss

    guards = watch(program=program)
    change(held)
    assert guards.change() is None


def test_tensors_are_found_wherever_they_are():
    module = nn.BatchNorm1d(2)
    inner = holder(deep=[{"t": torch.ones(1)}, (torch.ones(1),)])
    normal = dist.Normal(torch.zeros(1), 1.0)

    def program():
        return module(TENSOR), inner.deep, normal.sample()

    found = watch(program=program).tensors
    expected = [*module.parameters(), *module.buffers(), TENSOR, inner.deep[0]["t"],
                inner.deep[1][0], normal.loc]  # fmt: skip
    assert all(id(tensor) in found for tensor in expected)


def test_the_tensor_of_a_beta_is_found():
    beta = torch.ones(())
    assert id(beta) in watch(program=Beta(beta)(lambda: None)).tensors


@pytest.mark.parametrize(
    ("generator", "draw"),
    [(random.Random(0), lambda g: g.random()), (np.random.default_rng(0), lambda g: g.random()),
     (np.random.RandomState(0), lambda g: g.rand())],
)  # fmt: skip
def test_draws_of_a_generator_that_is_held_are_seen(generator, draw):
    guards = watch(program=lambda: draw(generator))
    before = guards.generator_states()
    assert before == guards.generator_states()
    draw(generator)
    assert before != guards.generator_states()


def test_of_a_large_container_the_length_alone_is_watched():
    held = [float(i) for i in range(2000)]
    guards = watch(program=lambda: sum(held))
    held[0] = 5.0
    assert guards.hold()
    held.append(1.0)
    assert guards.change() == "len(held): 2000 → 2001"


def test_objects_that_refer_to_each_other_are_walked_once():
    one, other = holder(), holder()
    one.other, other.one, one.own = other, one, [one]
    assert watch(program=lambda: one.other.one.own).hold()


def test_watching_keeps_alive_what_it_knows_by_identity():
    guards = watch(arguments=(holder(a=1.0),))
    assert guards.roots["arguments"][0].a == 1.0
