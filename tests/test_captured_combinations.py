"""The captured graph, interpreted, is the eager step: every component that discovery finds."""

import dataclasses
import re

import pyro
import pytest
import torch

from pyro_vae.annealing import Beta
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.components import build, names
from pyro_vae.errors import InputError
from pyro_vae.specs import parse_spec
from tests.test_contract import WITHOUT_BETA, Case, cases

TOLERANCE = 1e-10
OTHERS = [name for name in names("objective") if name != "trace"]
VARIANTS = [
    "closed_form(free_bits=0.3)", "renyi(alpha=max)", "renyi(alpha=1)", "tvo(side=right)",
    "reweighted_wake_sleep(insomnia=0.5)", "trace", "trace_graph",
]  # fmt: skip


def steps_of(case, objective, engine, beta=None, sizes=(5, 5, 5)):
    """[(loss, *gradients)] of steps on other batches, weights and noise each, and the trainer."""
    model, guide = case.pair()
    programs = (model, guide) if beta is None else (Beta(beta)(model), Beta(beta)(guide))
    seen = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            leaves = [p for group in self.param_groups for p in group["params"]]
            seen.append([None if p.grad is None else p.grad.clone() for p in leaves])
            return super().step(closure)

    svi = CompiledSVI(
        *programs, lambda p: Recorder(p, lr=0.02), build("objective", objective),
        clip_norm=3.0, engine=engine, compile=False,
    )  # fmt: skip
    outputs = []
    torch.manual_seed(5)
    with pyro.get_param_store().scope():
        for index, size in enumerate(sizes):
            if beta is not None:
                beta.fill_(0.3 * (index + 1))
            x = case.data(size=size).roll(index, -1)
            loss = svi.step(x)
            outputs.append((loss, *seen.pop()))
    return outputs, svi


def assert_captured(case, objective, beta=False):
    """Loss and gradients to 1e-10 at every step, or one refusal, the same eagerly."""
    tensors = [torch.tensor(0.5, dtype=torch.float64) if beta else None for _ in range(2)]
    try:
        expected, _ = steps_of(case, objective, "eager", tensors[0])
    except InputError as error:
        with pytest.raises(InputError, match=f"^{re.escape(str(error))}$"):
            steps_of(case, objective, "compiled", tensors[1])
        return False
    got, svi = steps_of(case, objective, "compiled", tensors[1])
    assert svi.engine == "compiled", svi.reason
    for step, (outputs, wanted) in enumerate(zip(got, expected, strict=True)):
        for one, other in zip(outputs, wanted, strict=True):
            if other is None:
                assert one is None or not one.any()
                continue
            scale = 1 + other.abs().max()
            assert (one - other).abs().max() <= TOLERANCE * scale, (step, one, other)
    return True


@pytest.mark.parametrize("case", cases(), ids=str)
def test_every_component_under_trace(case):
    """Every prior, likelihood, guide, model and network; data, weights, noise of three steps."""
    assert assert_captured(case, "trace(num_particles=2)")


@pytest.mark.parametrize("objective", VARIANTS)
def test_every_variant_of_an_objective(objective):
    assert assert_captured(Case(), objective)


@pytest.mark.parametrize("objective", [f"{name}(num_particles=2)" for name in OTHERS])
def test_every_objective_with_every_guide(objective):
    """Those that go through the guide in other ways than ``trace``: scores, paths, fixed draws."""
    took = [spec for spec in names("guide") if assert_captured(Case.of("guide", spec), objective)]
    assert "diagonal_normal" in took


@pytest.mark.parametrize("objective", ["dreg", "trace_mean_field", "trace_enum", "tvo"])
def test_every_prior_under_other_objectives(objective):
    took = [assert_captured(Case.of("prior", spec), objective) for spec in names("prior")]
    assert all(took)


@pytest.mark.parametrize("objective", names("objective"))
def test_an_annealed_beta_needs_no_other_graph(objective):
    if objective in WITHOUT_BETA:
        assert not assert_captured(Case(), objective, beta=True)
        return
    assert assert_captured(Case(), objective, beta=True)
    hierarchical = Case.of("model", "hierarchical")
    if objective not in ("closed_form", "trace_mean_field"):
        assert assert_captured(hierarchical, objective, beta=True)


@pytest.mark.parametrize("guide", ["iaf", "full_rank_normal", "hierarchical", "student_t"])
def test_learned_priors_with_structured_guides(guide):
    """What adds something to one at a time: both sides are flows, or share the encoder."""
    for prior in ("flow(kind=spline)", "mixture", "vamp(components=4)"):
        case = dataclasses.replace(Case.of("guide", guide), prior=prior)
        if parse_spec(prior).name == "vamp" and guide == "hierarchical":
            continue
        assert assert_captured(case, "iwae(num_particles=3)")
