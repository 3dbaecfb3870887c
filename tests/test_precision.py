"""Networks in bfloat16 or TF32, densities and losses in float32."""

import contextlib

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from pyro_vae.assembly import build_pair
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.components import build, find, names
from pyro_vae.config import Config
from pyro_vae.errors import InputError
from pyro_vae.flows import Affine, AutoregressiveLayer, CouplingLayer
from pyro_vae.precision import full_precision, precision, without_autocast
from pyro_vae.protocols import Facts

EVENT = (4, 4)
FACTS = {
    "binary": Facts(EVENT, "binary"),
    "levels": Facts(EVENT, "levels", num_levels=16),
    "counts": Facts(EVENT, "counts"),
    "continuous": Facts(EVENT, "continuous", num_levels=16, dequantized=True),
}
DATA = {"binary": "digits", "levels": "digits(values=levels)", "counts": "counts",
        "continuous": "digits(values=continuous)"}  # fmt: skip
NEEDS = {
    ("model", "hierarchical"): {"guide": "hierarchical"},
    ("model", "linear_gaussian"): {"likelihood": "normal"},
    ("guide", "hierarchical"): {"model": "hierarchical"},
    ("guide", "exact_posterior"): {"model": "linear_gaussian", "likelihood": "normal"},
}
VARIANTS = {"vamp": "vamp(components=4)"}
EXTRA = [
    {"prior": "flow(kind=affine_autoregressive)"},
    {"prior": "flow(kind=spline)"},
    {"guide": "full_rank_normal", "prior": "vamp(components=4)"},
    {"encoder": "conv(channels=(4, 5), hidden=6)"},
    {"encoder": "gated_mlp(hidden=(8,))"},
]


def choices() -> list[dict[str, str]]:
    found = [
        {kind: VARIANTS.get(name, name), **NEEDS.get((kind, name), {})}
        for kind in ("prior", "likelihood", "guide", "model")
        for name in names(kind)
    ]
    return [*found, *EXTRA]


every_choice = pytest.mark.parametrize("choice", choices(), ids=lambda c: "-".join(c.values()))


def pair_and_data(choice: dict[str, str], dtype: str = "float32"):
    measure = find("likelihood", choice.get("likelihood", "bernoulli")).constructor.measure
    fields = {"encoder": "mlp(hidden=(8,))", **choice}
    config = Config(data=DATA[measure], latent_dim=3, dtype=dtype, **fields)
    torch.manual_seed(0)
    pair = build_pair(config, FACTS[measure], torch.full(EVENT, 0.4), lambda n: data(measure)[:n])
    return *pair, data(measure).to(getattr(torch, dtype))


def data(measure: str) -> torch.Tensor:
    u = torch.rand(50, *EVENT, generator=torch.Generator().manual_seed(1))
    return {
        "binary": (u < 0.4).float(), "levels": (u * 16).floor(), "counts": (u * 9).floor(),
        "continuous": u * 0.98 + 0.01,
    }[measure]  # fmt: skip


def traces(model, guide, x, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        of_guide = poutine.trace(guide).get_trace(x)
        of_model = poutine.trace(poutine.replay(model, trace=of_guide)).get_trace(x)
    for trace in (of_guide, of_model):
        trace.compute_log_prob()
    return of_guide, of_model


def sites(*found):
    return [
        site
        for trace in found
        for site in trace.nodes.values()
        if site["type"] == "sample" and isinstance(site["fn"], TorchDistributionMixin)
    ]


@every_choice
def test_draws_and_densities_are_float32(choice):
    """Densities have no matrix product in them that autocast takes: exactly the same without."""
    model, guide, x = pair_and_data(choice)
    with precision("bfloat16", "cpu"):
        found = sites(*traces(model, guide, x))
    assert len(found) >= 3
    for site in found:
        assert site["value"].dtype == torch.float32
        assert site["log_prob"].dtype == torch.float32
        assert torch.equal(site["fn"].log_prob(site["value"]), site["log_prob"])


@every_choice
def test_draws_are_exact(choice):
    """Given its parameters, a draw is the same with autocast and without."""
    model, guide, x = pair_and_data(choice)
    with precision("bfloat16", "cpu"):
        found = sites(traces(model, guide, x)[0])
    for site in found:
        if getattr(site["fn"], "transforms", None) or type(site["fn"]) is MultivariateNormal:
            continue  # a flow runs its networks again; the other is torch's own
        draws = []
        for name in ("bfloat16", "float32"):
            with torch.random.fork_rng(), precision(name, "cpu"):
                torch.manual_seed(4)
                draws.append(site["fn"].sample())
        assert torch.equal(*draws)


def log_weights(model, guide, x):
    of_guide, of_model = traces(model, guide, x)
    terms = {id(site): site["log_prob"] for site in sites(of_guide)}
    return sum(site["log_prob"] for site in sites(of_model)) - sum(terms.values())


@every_choice
@torch.no_grad()
def test_elbo_differs_by_the_rounding_of_the_networks(choice):
    """bfloat16 has 8 bits: each product is off by up to 2⁻⁸, some five of them in a row.

    One noise, seed 3; the norm over 50 data. A density in 16 bits would be off by 2⁻⁸ of
    terms that cancel.
    """
    model, guide, x = pair_and_data(choice)
    exact = log_weights(model, guide, x)
    with precision("bfloat16", "cpu"):
        rounded = log_weights(model, guide, x)
    error = (rounded - exact).norm() / exact.norm()
    assert 0 < error < 5 * 2**-8


@pytest.mark.parametrize("name", names("objective"))
def test_losses_and_gradients_of_every_objective_are_float32(name):
    choice = {"guide": "full_rank_normal"}
    model, guide, x = pair_and_data(choice)
    objective = build("objective", name)
    parameters = [*model.parameters(), *guide.parameters()]

    def run(kind):
        for parameter in parameters:
            parameter.grad = None
        with torch.random.fork_rng(), precision(kind, "cpu"), pyro.get_param_store().scope():
            torch.manual_seed(5)
            loss = torch.as_tensor(objective.loss_and_grads(model, guide, x))
        return loss, [p.grad for p in parameters if p.grad is not None]

    exact, _ = run("float32")
    loss, gradients = run("bfloat16")
    assert loss.dtype == torch.float32
    assert gradients
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert abs(float(loss) / float(exact) - 1) < 5 * 2**-8


@pytest.mark.parametrize("network", ["mlp(hidden=(8,))", "conv(channels=(4, 5), hidden=6)"])
def test_networks_hand_out_float32(network):
    model, guide, x = pair_and_data({"encoder": network})
    with precision("bfloat16", "cpu"):
        features = guide.encoder(x)
        params = model.decoder(torch.ones(2, 3))
        assert guide.encoder.body(x).dtype == torch.bfloat16
    assert features.dtype == params.dtype == torch.float32


@pytest.mark.parametrize("layer", [AutoregressiveLayer, CouplingLayer])
def test_networks_of_flows_hand_out_float32(layer):
    step = layer(0, latent_dim=4, hidden=(8,), elementwise=Affine())
    with precision("bfloat16", "cpu"):
        flow = step()
        stays = torch.ones(3, 4 if layer is AutoregressiveLayer else 2)
        assert flow.network(stays).dtype == torch.float32
        assert all(out.dtype == torch.float32 for out in flow.forward_and_log_det(torch.ones(3, 4)))


def test_an_exact_posterior_is_exact():
    """Its matrix products are no network's."""
    _, guide, x = pair_and_data(
        {"guide": "exact_posterior", "model": "linear_gaussian", "likelihood": "normal"}
    )
    expected = guide.posterior(x)
    with precision("bfloat16", "cpu"):
        found = guide.posterior(x)
    assert torch.equal(found.loc, expected.loc)
    assert torch.equal(found.scale_tril, expected.scale_tril)


def test_float64_is_left_alone():
    model, guide, x = pair_and_data({}, "float64")
    exact = log_weights(model, guide, x)
    with precision("bfloat16", "cpu"):
        assert torch.equal(log_weights(model, guide, x), exact)
    assert exact.dtype == torch.float64


def test_weights_updated_inside_the_context_are_used():
    """Autocast keeps the 16-bit copy of a weight, which an optimizer's step makes stale."""
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    with precision("bfloat16", "cpu"):
        before = layer(x)
        with torch.no_grad():
            layer.weight.add_(1.0)
        after = layer(x)
    assert torch.allclose((after - before).float(), torch.tensor(3.0), atol=0.1)


def test_trains_in_bfloat16():
    """A captured step under autocast is the eager one; weights and their state are float32."""
    choice = {"guide": "iaf", "prior": "flow"}

    def losses(name, engine):
        model, guide, x = pair_and_data(choice)
        with pyro.get_param_store().scope(), precision(name, "cpu"), torch.random.fork_rng():
            torch.manual_seed(6)
            svi = CompiledSVI(
                model,
                guide,
                lambda p: torch.optim.Adam(p, lr=1e-3),
                build("objective", "trace"),
                engine=engine,
                compile=False,
            )
            found = torch.stack([svi.step(x).double() for _ in range(10)])
            assert svi.engine == engine, svi.reason
            state = [s for of in svi.optimizer.state.values() for s in of.values()]
        assert all(tensor.dtype == torch.float32 for tensor in [*model.parameters(), *state])
        return found

    eager, captured = losses("bfloat16", "eager"), losses("bfloat16", "compiled")
    exact = losses("float32", "eager")
    assert torch.allclose(captured, eager, rtol=1e-5)
    error = (eager - exact).norm() / exact.norm()
    assert 0 < error < 5 * 2**-8


def test_full_precision_widens_only_16_bits():
    for dtype, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
        (torch.int32, torch.int32),
    ]:
        assert full_precision(torch.zeros(1, dtype=dtype)).dtype == expected
    x = torch.zeros(1)
    assert full_precision(x) is x


def test_without_autocast():
    x = torch.ones(2, 2)
    with precision("bfloat16", "cpu"):
        with without_autocast():
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32


def tf32_settings() -> list[object]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    settings: list[object] = [s.fp32_precision for s in (matmul, cudnn.conv, cudnn.rnn)]
    for read in (lambda: matmul.allow_tf32, lambda: cudnn.allow_tf32,
                 torch.get_float32_matmul_precision):  # fmt: skip
        try:
            settings.append(read())
        except RuntimeError:
            settings.append("set by the newer flags")
    return settings


@pytest.mark.parametrize("start", ["torch's", "high", "medium", "newer", "no cudnn"])
def test_tf32_is_set_and_restored(start):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    untouched = tf32_settings()
    if start in ("high", "medium"):
        torch.set_float32_matmul_precision(start)
    elif start == "newer":
        matmul.fp32_precision = "tf32"
    elif start == "no cudnn":
        cudnn.allow_tf32 = False
    try:
        before = tf32_settings()
        with contextlib.suppress(KeyError), precision("tf32", "cuda"):
            inside = tf32_settings()
            raise KeyError
        assert inside[:5] == ["tf32", "tf32", "tf32", True, True]
        assert tf32_settings() == before
        with precision("float32", "cuda"):
            assert tf32_settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = True
        settings = (matmul, cudnn.conv, cudnn.rnn)
        for setting, name in zip(settings, untouched, strict=False):
            setting.fp32_precision = name
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert tf32_settings() == untouched


def test_refuses_what_the_device_cannot():
    with pytest.raises(InputError, match="tf32 needs a CUDA device, got cpu"):
        precision("tf32", "cpu")
    with pytest.raises(InputError, match="unknown precision 'bfloat'"):
        precision("bfloat", "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["tf32", "bfloat16"])
def test_precisions_on_a_gpu(name):
    """A product of 512 terms: exact in float64, off by 2⁻¹¹ or 2⁻⁹ a factor."""
    a = torch.randn(512, 512, generator=torch.Generator().manual_seed(7)).cuda()
    exact = a.double() @ a.double()
    with precision(name, "cuda"):
        error = (full_precision(a @ a).double() - exact).norm() / exact.norm()
    assert 1e-5 < error < (2e-3 if name == "tf32" else 1e-2)
    assert (a @ a - exact).norm() / exact.norm() < 1e-5
