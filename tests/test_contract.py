"""The contract, held against every component that discovery finds."""

import math
import re
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.util import prune_subsample_sites
from torch import nn

from pyro_vae.annealing import Beta
from pyro_vae.assembly import build_pair
from pyro_vae.checkpoint import load_weights, save_weights
from pyro_vae.components import PACKAGES, build, find, names
from pyro_vae.config import Config
from pyro_vae.data import load_data
from pyro_vae.errors import InputError
from pyro_vae.log_weights import draw_latents, weigh
from pyro_vae.protocols import Facts, Guide, Likelihood, Prior
from pyro_vae.run_training import facts_of
from pyro_vae.specs import parse_spec
from pyro_vae.training import Trainer

EVENT = (4, 4)
FACTS = {
    "binary": Facts(EVENT, "binary"),
    "levels": Facts(EVENT, "levels", num_levels=16),
    "counts": Facts(EVENT, "counts"),
    "continuous": Facts(EVENT, "continuous", num_levels=16, dequantized=True),
}
DATA = {"binary": "digits", "levels": "digits(values=levels)", "counts": "counts",
        "continuous": "digits(values=continuous)"}  # fmt: skip

# Spec variants beside each component's defaults.
VARIANTS = {
    ("prior", "vamp"): ["vamp(components=4)", "vamp(components=4, init=data)"],
    ("prior", "flow"): ["flow(kind=affine_autoregressive)", "flow(kind=spline)"],
    ("likelihood", "normal"): ["normal(scale=0.5)", "normal(scale=per_pixel)"],
    ("likelihood", "laplace"): ["laplace(scale=0.5)", "laplace(scale=per_pixel)"],
    ("likelihood", "student_t"): ["student_t(scale=0.5)", "student_t(df=learned)"],
    ("likelihood", "beta"): ["beta(concentration=8.0)", "beta(concentration=learned)"],
    ("likelihood", "discretized_logistic"): [
        "discretized_logistic(scale=learned)",
        "discretized_logistic(scale=0.05)",
    ],
    ("likelihood", "negative_binomial"): [
        "negative_binomial(dispersion=0.5)",
        "negative_binomial(dispersion=per_pixel)",
    ],
    ("likelihood", "zero_inflated_negative_binomial"): [
        "zero_inflated_negative_binomial(dispersion=per_pixel)",
    ],
    ("guide", "diagonal_normal"): ["diagonal_normal(scale=constant)"],
    ("guide", "full_rank_normal"): ["full_rank_normal(scale=constant)"],
    ("model", "hierarchical"): ["hierarchical(latent_dims=(5, 3), hidden=7, activation=relu)"],
}
# What works only with a companion.
NEEDS = {
    ("model", "hierarchical"): {"guide": "hierarchical"},
    ("model", "linear_gaussian"): {"likelihood": "normal"},
    ("guide", "hierarchical"): {"model": "hierarchical"},
    ("guide", "exact_posterior"): {"model": "linear_gaussian", "likelihood": "normal"},
}


@dataclass(frozen=True)
class Case:
    """One choice of every component, as a config and its data."""

    prior: str = "standard_normal"
    likelihood: str = "bernoulli"
    guide: str = "diagonal_normal"
    encoder: str = "mlp(hidden=(8,))"
    model: str = "vae"

    def __str__(self) -> str:
        changed = [
            getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default
        ]
        return "-".join(changed) or "defaults"

    @classmethod
    def of(cls, kind: str, spec: str) -> "Case":
        """The defaults with one component, and what that one needs."""
        return cls(**{kind: spec, **NEEDS.get((kind, parse_spec(spec).name), {})})

    @property
    def measure(self) -> str:
        return find("likelihood", self.likelihood).constructor.measure

    def config(self, dtype: str) -> Config:
        return Config(data=DATA[self.measure], latent_dim=3, dtype=dtype, **asdict(self))

    def pair(self, dtype: str = "float64", seed: int = 0):
        torch.manual_seed(seed)
        mean = torch.full(EVENT, 0.4)
        sample = partial(self.data, "float32")
        return build_pair(self.config(dtype), FACTS[self.measure], mean, sample)

    def data(self, dtype: str = "float64", size: int = 5) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        u = torch.rand(size, *EVENT, generator=generator, dtype=getattr(torch, dtype))
        return {
            "binary": (u < 0.4).to(u), "levels": (u * 16).floor(), "counts": (u * 9).floor(),
            "continuous": u * 0.98 + 0.01,
        }[self.measure]  # fmt: skip


def specs(kind: str) -> list[str]:
    return [spec for name in names(kind) for spec in (name, *VARIANTS.get((kind, name), ()))]


def cases() -> list[Case]:
    kinds = ("prior", "likelihood", "guide", "model")
    found = [Case.of(kind, spec) for kind in kinds for spec in specs(kind)]
    networks = ("mlp(hidden=(8, 6))", "gated_mlp(hidden=(8,))", "conv(channels=(4, 5), hidden=6)",
                "linear")  # fmt: skip
    return list(dict.fromkeys([*found, *(Case(encoder=network) for network in networks)]))


def draw_terms(model, guide, x, num_samples):
    """The terms of the log-weights, of a point's log-joint too."""
    return weigh(model, x, draw_latents(guide, x, num_samples, allow_points=True))


every_case = pytest.mark.parametrize("case", cases(), ids=str)


@every_case
def test_offers_what_the_protocols_ask(case):
    model, guide = case.pair()
    assert isinstance(model.prior, Prior)
    assert isinstance(model.likelihood, Likelihood)
    assert isinstance(guide, Guide)
    assert (model._pyro_name, guide._pyro_name) == ("model", "guide")


@every_case
def test_broadcasts_under_plates_to_the_left(case):
    """[7, 6] particles of 5 data, the encoder run once."""
    model, guide = case.pair()
    x = case.data()
    runs = []
    if hasattr(guide, "encoder"):
        guide.encoder.register_forward_hook(lambda module, args, out: runs.append(len(args[0])))

    def under_plates(program):
        def run(x):
            with pyro.plate("outer", 7, dim=-3), pyro.plate("particles", 6, dim=-2):
                program(x)

        return run

    guide_trace = poutine.trace(under_plates(guide)).get_trace(x)
    replayed = poutine.replay(under_plates(model), trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(x)
    guide_trace, model_trace = map(prune_subsample_sites, (guide_trace, model_trace))
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
        for name in trace.stochastic_nodes + trace.observation_nodes:
            site = trace.nodes[name]
            frames = {f.name: f.dim for f in site["cond_indep_stack"]}
            assert frames["data"] == -1
            assert site["log_prob"].shape == (7, 6, 5)
            if not site["is_observed"]:
                assert site["value"].shape[:3] == (7, 6, 5)
    assert model_trace.observation_nodes == ["x"]
    if hasattr(guide, "encoder"):  # a vamp's pseudo-inputs run through it too, 4 or 500
        assert runs.count(5) == 1


@every_case
def test_gradients_reach_every_parameter(case):
    model, guide = case.pair()
    torch.manual_seed(2)
    loss = build("objective", "trace").differentiable_loss(model, guide, case.data())
    named = [*model.named_parameters(), *guide.named_parameters()]
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    for (name, _), gradient in zip(named, gradients, strict=True):
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert (gradient != 0).any(), name


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept_throughout(case, dtype):
    model, guide = case.pair(dtype)
    expected = getattr(torch, dtype)
    for term in draw_terms(model, guide, case.data(dtype), 3):
        assert term.dtype == expected
        assert torch.isfinite(term).all()
    assert model.decode(model.prior().sample((2,))).sample().dtype == expected


@every_case
def test_save_and_load_keep_the_numbers(case, tmp_path):
    pair, other = case.pair(seed=0), case.pair(seed=1)
    x = case.data()
    both, loaded = map(nn.ModuleList, (pair, other))
    save_weights(tmp_path / "weights", both.state_dict(), {})
    loaded.load_state_dict(load_weights(tmp_path / "weights"))
    values = []
    for model, guide in (pair, other):
        torch.manual_seed(3)
        values.append(draw_terms(model, guide, x, 4))
    for a, b in zip(*values, strict=True):
        assert torch.equal(a, b)


@every_case
def test_a_seed_decides_weights_and_draws(case):
    def run(seed):
        model, guide = case.pair(seed=seed)
        torch.manual_seed(seed)
        return draw_terms(model, guide, case.data(), 4).log_weight

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@every_case
def test_a_datum_does_not_depend_on_its_neighbours(case):
    """The same z weighs the same alone and in a batch."""
    model, guide = case.pair()
    model.eval(), guide.eval()
    x = case.data()
    whole, alone = guide.posterior(x), guide.posterior(x[2:3])
    z = whole.sample()
    if guide.has_density:
        torch.testing.assert_close(whole.log_prob(z)[2:3], alone.log_prob(z[2:3]))
    p = model.decode(z)
    torch.testing.assert_close(p.log_prob(x)[2:3], model.decode(z[2:3]).log_prob(x[2:3]))


@every_case
def test_stays_finite_in_float32_at_large_decoder_outputs(case):
    model, _ = case.pair("float32")
    x = case.data("float32")
    for output in (-1e4, 1e4):
        params = torch.full((5, *EVENT, model.likelihood.params_per_dim), output).requires_grad_()
        log_prob = model.likelihood(params).log_prob(x)
        assert torch.isfinite(log_prob).all()
        (gradient,) = torch.autograd.grad(log_prob.sum(), params)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("spec", specs("prior"))
def test_prior_samples_have_the_priors_shape(spec):
    prior = Case(prior=spec).pair()[0].prior
    assert prior().sample((6,)).shape == (6, 3)
    assert prior().log_prob(prior().sample((6, 2))).shape == (6, 2)


# A pair that cannot work: the vamp prior is q at pseudo-inputs, and needs q's density at any z.
REFUSED = {("vamp", "planar"), ("vamp", "delta")}


@pytest.mark.parametrize("guide", specs("guide"))
def test_every_prior_works_with_every_guide_or_is_refused(guide):
    """A gradient step in float32, three particles: finite, or one line before training."""
    for prior in specs("prior"):
        case = replace(Case.of("guide", guide), prior=prior)
        pair = (parse_spec(prior).name, parse_spec(guide).name)
        alone = case.model == "linear_gaussian" and prior != "standard_normal"
        if pair in REFUSED or alone or (case.model == "hierarchical" and pair[0] == "vamp"):
            with pytest.raises(InputError, match=r"^(prior )?(vamp|linear_gaussian) ?") as error:
                case.pair("float32")
            assert "\n" not in str(error.value)
        else:
            assert_trains(case)


@pytest.mark.parametrize("likelihood", specs("likelihood"))
def test_every_likelihood_works_with_every_network(likelihood):
    for encoder in ("mlp(hidden=(8,))", "gated_mlp(hidden=(8,))", "conv(channels=(4,))", "linear"):
        assert_trains(Case(likelihood=likelihood, encoder=encoder))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_case
def test_every_component_trains_on_a_gpu(case):
    assert_trains(case, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", names("objective"))
def test_every_objective_trains_on_a_gpu(name):
    """With a β on the device too, where it takes one."""
    for objective in (f"{name}(num_particles=3)", name):
        assert_trains(Case(), "cuda", objective)
    if name not in WITHOUT_BETA:
        assert_trains(Case(), "cuda", name, Beta(torch.tensor(0.5, device="cuda")))


def assert_trains(
    case: Case, device: str = "cpu", objective: str = "trace(num_particles=3)", wrap=lambda p: p
) -> None:
    model, guide = case.pair("float32")
    model.to(device), guide.to(device)
    estimator = build("objective", objective)
    svi = pyro.infer.SVI(wrap(model), wrap(guide), pyro.optim.Adam({"lr": 0.001}), estimator)
    with pyro.get_param_store().scope():
        losses = [svi.step(case.data("float32").to(device)) for _ in range(2)]
    assert all(map(math.isfinite, losses)), case
    for program in (model, guide):
        assert all(bool(torch.isfinite(p).all()) for p in program.parameters()), case


WITHOUT_BETA = ("reweighted_wake_sleep", "tvo")
# What an estimator cannot do: objective → guide or prior → what its one line says.
HELD_Q = "needs log q|own draws"
NO_KL = "no closed form"
CANNOT = {
    **{
        (name, "delta"): "Delta|point"
        for name in names("objective")
        if name not in ("trace", "trace_enum", "trace_graph", "trace_mean_field")
    },
    **{
        (name, "hierarchical"): "in another order than the model"
        for name in ("closed_form", "trace_mean_field")
    },
    **{
        (name, "planar"): HELD_Q
        for name in ("dreg", "reweighted_wake_sleep", "sticking_the_landing", "tvo")
    },
}


@pytest.mark.parametrize("objective", names("objective"))
@pytest.mark.parametrize("kind", ["guide", "prior", "model"])
def test_every_objective_trains_every_pair_or_refuses_in_one_line(objective, kind):
    """Two gradient steps in float32: finite, or one line that names the reason."""
    for name in names(kind):
        case = Case.of(kind, name)
        reason = CANNOT.get((objective, name))
        try:
            assert_trains(case, objective=objective)
            refusal = None
        except InputError as error:
            refusal = str(error)
        if reason is not None:
            assert refusal is not None, f"{objective} takes {name}"
            assert re.search(reason, refusal)
        elif objective == "closed_form" and refusal is not None:
            assert re.search(NO_KL, refusal)
            assert name not in ("diagonal_normal", "standard_normal", "vae")
        else:
            assert refusal is None, f"{objective} and {name}: {refusal}"
        assert "\n" not in (refusal or "")


@pytest.mark.parametrize("name", names("objective"))
@pytest.mark.parametrize("plain", [False, True], ids=["modules", "functions"])
def test_objectives_work_in_a_users_own_svi(name, plain):
    """loss, differentiable_loss, loss_and_grads and elbo(model, guide); a pyro.optim optimizer."""
    modules = Case().pair()
    model, guide = map(as_function, modules) if plain else modules
    objective = build("objective", name)
    assert isinstance(objective, ELBO)
    x = Case().data()
    torch.manual_seed(0)
    loss = objective.loss(model, guide, x)
    assert isinstance(loss, float)
    torch.manual_seed(0)
    assert float(objective.differentiable_loss(model, guide, x).detach()) == pytest.approx(loss)
    torch.manual_seed(0)
    assert objective.loss_and_grads(model, guide, x) == pytest.approx(loss)
    if not plain:
        torch.manual_seed(0)
        assert float(objective(model, guide)(x).detach()) == pytest.approx(loss)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), objective)
    before = [p.detach().clone() for m in modules for p in m.parameters()]
    svi.step(x)
    after = [p for m in modules for p in m.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def as_function(module):
    """The same program as a plain function with pyro.module."""

    def program(x):
        return pyro.module(module._pyro_name, module)(x)

    return program


@pytest.mark.parametrize("name", names("objective"))
def test_every_objective_trains_and_resumes_in_the_trainer(name):
    """On digits in float32, stopped after 2 of 4 steps: bit for bit the training never stopped."""
    data = load_data("digits")

    def trainer():
        torch.manual_seed(0)
        config = Config(encoder="mlp(hidden=(8,))", latent_dim=3)
        model, guide = build_pair(config, facts_of(data), data.data_mean)
        beta = 1.0 if name in WITHOUT_BETA else 0.5
        options = {"epochs": 1, "max_steps": 4, "batch_size": 64, "seed": 1, "beta": beta}
        return Trainer(model, guide, data, objective=build("objective", name), **options)

    whole, first, second = trainer(), trainer(), trainer()
    assert whole.fit()
    first.fit(stop=lambda: first.progress.step == 2)
    second.load_state_dict(first.state_dict())
    assert second.fit()
    assert second.progress.loss_sum == whole.progress.loss_sum
    for a, b in zip(second.weights().values(), whole.weights().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", WITHOUT_BETA)
def test_the_trainer_refuses_a_beta_before_the_first_step(name):
    data = load_data("digits")
    config = Config(encoder="mlp(hidden=(8,))", latent_dim=3)
    model, guide = build_pair(config, facts_of(data), data.data_mean)
    for options in ({"beta": 0.5}, {"warm_up": 2}):
        with pytest.raises(InputError, match=f"^{name} has no β: leave out --beta and --warm-up"):
            Trainer(model, guide, data, objective=build("objective", name), **options)


@pytest.mark.parametrize("kind", [*PACKAGES, "network"])
def test_every_component_is_described(kind):
    for name in names(kind):
        component = find(kind, name)
        assert component.summary.endswith(".") or ":" in component.summary
        assert all(default is not ... for default in component.options.values())


@pytest.mark.parametrize("kind", PACKAGES)
def test_every_component_has_a_test_file(kind, request):
    folder = PACKAGES[kind].removeprefix("pyro_vae.").replace("models.", "")
    tests = request.config.rootpath / "tests" / folder
    for name in names(kind):
        assert (tests / f"test_{name}.py").is_file(), f"{kind} {name} has no test file"


@pytest.mark.parametrize("network", names("network"))
def test_output_bias_starts_the_decoder_at_the_data_mean(network):
    spec = {"conv": "conv(channels=(4,))"}.get(network, network)
    config = Case(encoder=spec).config("float64").replace(model="vae(output_bias=data_mean)")
    mean = torch.full(EVENT, 0.2)
    model, _ = build_pair(config, FACTS["binary"], mean)
    for parameter in model.decoder.body[-1].parameters():
        if parameter.dim() > 1:
            torch.nn.init.zeros_(parameter)
    pixels = model.decode(torch.randn(3, 3, dtype=torch.float64)).mean
    torch.testing.assert_close(pixels, torch.full((3, *EVENT), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("name", names("objective"))
def test_every_objective_says_which_kl_is_analytic(name):
    """Where q and p are normal those of ``closed_form`` and ``trace_mean_field``, else none."""
    model, guide = Case().pair()
    analytic = name in ("closed_form", "trace_mean_field")
    assert build("objective", name).analytic_kl(model, guide, Case().data()) == {"z": analytic}
