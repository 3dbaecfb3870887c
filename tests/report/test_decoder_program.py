import json

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.components import names
from pyro_vae.report import decoder_program as program_module
from pyro_vae.report.array_program import (
    BINARY,
    REDUCTIONS,
    UNARY,
    decode_array,
    encode_array,
    run_program,
)
from pyro_vae.report.decoder_program import decoder_program

MEASURES = {
    "bernoulli": "binary",
    **dict.fromkeys(("poisson", "negative_binomial", "zero_inflated_negative_binomial"), "counts"),
    **dict.fromkeys(("normal", "laplace", "student_t", "beta"), "continuous"),
    "continuous_bernoulli": "continuous",
}
VARIANTS = [
    "normal(scale=per_pixel)", "beta(concentration=learned)", "student_t(df=learned)",
    "discretized_logistic(scale=learned)", "negative_binomial(dispersion=per_pixel)",
]  # fmt: skip
ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "softplus")
NETWORKS = [
    "linear", "gated_mlp(hidden=(12,))", "gated_mlp(hidden=(12, 9))", "mlp(hidden=(12, 9))",
    *(f"mlp(hidden=(12,), activation={name})" for name in ACTIVATIONS),
]  # fmt: skip


class Model(nn.Module):
    """p(z) = N(0, I), p(x|z) = N(f(z), 1)."""

    def __init__(self, function, latent_dim=3):
        super().__init__()
        self.function = function
        self.loc = nn.Parameter(torch.zeros(latent_dim))

    def prior(self):
        return dist.Normal(self.loc, 1.0).to_event(1)

    def decode(self, z):
        mean = self.function(z)
        return dist.Normal(mean, 1.0).to_event(mean.dim() - 1)


def some_z(count=12, latent_dim=3, scale=2.0, seed=5):
    return scale * torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def decoded(model, z):
    return torch.stack([model.decode(each[None]).mean[0] for each in z]).double().numpy()


def assert_decodes(js_decoder, model, z=None, tolerance=2e-5):
    """Python's reference and the page's own, each at many z, to a part of the range of E[x|z]."""
    program = decoder_program(model)
    assert program is not None
    program = json.loads(json.dumps(program, allow_nan=False))
    z = some_z() if z is None else z
    want = decoded(model, z)
    spread = want.max() - want.min()
    assert spread > 0
    decode = js_decoder({"program": program})
    for run in (lambda point: run_program(program, point), decode):
        got = np.stack([np.asarray(run(point.numpy())).reshape(want.shape[1:]) for point in z])
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * spread)
    return program


@pytest.mark.parametrize("likelihood", [*names("likelihood"), *VARIANTS])
def test_every_likelihood(js_decoder, untrained_model, likelihood):
    measure = MEASURES.get(likelihood.partition("(")[0], "levels")
    program = assert_decodes(js_decoder, untrained_model(likelihood, measure))
    assert len(program["nodes"]) < 60


@pytest.mark.parametrize("network", NETWORKS)
def test_every_dense_network(js_decoder, untrained_model, network):
    assert_decodes(js_decoder, untrained_model(encoder=network))


@pytest.mark.parametrize("latent_dim", [1, 2, 40])
def test_any_number_of_latents(js_decoder, untrained_model, latent_dim):
    model = untrained_model(latent_dim=latent_dim)
    program = assert_decodes(js_decoder, model, some_z(latent_dim=latent_dim))
    assert program["latent_dim"] == latent_dim


def test_the_rare_branches_of_a_mean(js_decoder, untrained_model):
    """Far out, where softplus, its logarithm and the continuous Bernoulli take other branches."""
    for likelihood, measure in (("poisson", "counts"), ("continuous_bernoulli", "continuous")):
        assert_decodes(js_decoder, untrained_model(likelihood, measure), some_z(scale=30.0))


def test_a_model_in_double_precision(js_decoder, untrained_model):
    model = untrained_model()
    want = decoded(model, some_z())
    program = decoder_program(model.double())
    model.float()
    decode = js_decoder({"program": program})
    got = np.stack([decode(z).reshape(8, 8) for z in some_z()])
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm1d(6), nn.Softmax(-1), nn.LogSoftmax(-1),
        nn.Mish(), nn.Hardswish(), nn.ReLU(inplace=True), nn.Dropout(), nn.PReLU(),
        nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 2), nn.Flatten()),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_layers_of_a_users_own(js_decoder, layer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(nn.Sequential(nn.Linear(3, 6), layer)).eval()
    assert_decodes(js_decoder, model)


W = torch.linspace(-2, 2, 24).reshape(4, 3, 2)
EXPRESSIONS = {
    "broadcast a column": lambda z: z[:, :, None] + W[0, 0],
    "broadcast in the middle": lambda z: W * z[:, None, :, None],
    "a scalar on the left": lambda z: 2.0 - z,
    "a scalar of the graph": lambda z: z / (1 + z.abs().max()),
    "weights": lambda z: torch.add(z, z.tanh(), alpha=3) - torch.sub(z, z[:, :1], alpha=0.5),
    "weighted addmm": lambda z: torch.addmm(W[2, :1], z, W[1], alpha=0.5, beta=2),
    "matrices": lambda z: torch.einsum("bi,kio->bko", z, W),
    "batched matrices": lambda z: torch.bmm(torch.stack([z, z.sin()], 1).repeat(4, 1, 1), W)[None],
    "slices": lambda z: torch.cat([z[:, ::2], z[:, -1:], z[:, :-1].flip(1)], 1),
    "select and stack": lambda z: torch.stack([z[:, -1], z[:, 0], z[:, 1] ** 2], -1),
    "split": lambda z: torch.cat(torch.split(z, [1, 2], dim=1)[::-1], 1),
    "permute": lambda z: (W[None] * z[:, None, :, None]).permute(0, 3, 1, 2),
    "transpose and flatten": lambda z: (W[0] * z[:, :, None]).transpose(1, 2).flatten(1),
    "sums": lambda z: (W * z[:, None, :, None]).sum((1, 3)) + z.sum() + W.sum() * z.sum(1, True),
    "means": lambda z: (W * z[:, None, :, None]).mean(2) + z.mean(),
    "largest and smallest": lambda z: torch.cat([z.amax(1, True), z.amin(1, True), z - z.min()], 1),
    "products": lambda z: z.prod(1, keepdim=True) * z,
    "variances": lambda z: torch.var_mean(z, dim=1, keepdim=True, correction=1)[0] + z,
    "comparisons": lambda z: torch.where((z > 0) & ~(z >= 1) | (z == 0), z, z.sin()),
    "bounds": lambda z: z.clamp(-0.5, 0.7) + z.clamp(max=0.1) + torch.maximum(z, z[:, :1]),
    "powers": lambda z: z.abs() ** 1.5 + 2.0**z + z**2 + z.abs().rsqrt() + z.reciprocal(),
    "precisions": lambda z: (z.double() + 1e-9).to(torch.float32) + (z > 0),
    "whole numbers": lambda z: torch.arange(3) * z + z.long(),
    "shapes alone": lambda z: torch.zeros_like(z) + z.new_ones(3) + torch.full((3,), 2.0) * z,
    "in place": lambda z: z.clone().mul_(2).add_(1),
    "nothing of z": lambda z: W[:1] + 0 * z.sum(),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_operators_broadcast_and_index_as_in_torch(js_decoder, name):
    assert_decodes(js_decoder, Model(EXPRESSIONS[name]))


@pytest.mark.parametrize("name", sorted([*UNARY, *BINARY, *REDUCTIONS]))
def test_each_operation_of_the_page_is_torchs(js_decoder, name):
    x = torch.tensor([[0.3, -0.7, 0.9, 2.5, -4.0, 0.0]])
    y = torch.tensor([[0.5], [-0.4], [0.0]])
    function = {"neg": torch.neg, "erf": torch.erf}.get(name) or getattr(torch, name)
    if name in REDUCTIONS:
        args, want = (x,), function(x, 1, keepdim=True)
    else:
        args = (x,) if name in UNARY else (x, y)
        want = function(*args)
    dtype = "bool" if want.dtype is torch.bool else "float32"
    node = {"op": name, "in": [0, 1][: len(args)], "shape": list(want.shape), "dtype": dtype}
    constants = [encode_array(y.numpy())]
    program = {"latent_dim": 6, "constants": constants, "nodes": [node], "output": 2}
    for got in (run_program(program, x[0]), js_decoder({"program": program})(x[0])):
        finite = want.isfinite().numpy().ravel()  # JSON has no infinity
        got = np.asarray(got, float).ravel()
        np.testing.assert_allclose(got[finite], want.numpy().ravel()[finite], rtol=3e-7, atol=1e-7)
        assert not np.isfinite(got[~finite]).any()


def branch(z):
    return z * 2 if float(z.detach().numpy().sum()) > 0 else z


def from_numpy(z):
    return z + torch.from_numpy(np.tanh(z.detach().numpy()))


def drawn_by_numpy(z):
    return z + float(np.random.default_rng().uniform())


def infinite(z):
    return z + 1 / torch.zeros(3)


REFUSED = {
    "a branch on z": branch,
    "a branch that the tracer sees": lambda z: z * 2 if z.sum() > 0 else z,
    "a computation outside torch": from_numpy,
    "a draw": lambda z: z + torch.randn(3),
    "a draw of another generator": drawn_by_numpy,
    "an operator that is not supported": lambda z: torch.cumsum(z, 1),
    "an infinite mean": infinite,
    "a rounded division": lambda z: torch.div(z, 2, rounding_mode="floor"),
    "an error": lambda z: z @ z,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_decoder_that_is_no_program_is_refused(name):
    model = Model(REFUSED[name])
    state = torch.get_rng_state()
    assert decoder_program(model) is None
    assert torch.equal(state, torch.get_rng_state())
    assert decoder_program(Model(lambda z: 2 * z)) is not None


def test_a_branch_is_found_by_the_other_z(monkeypatch):
    """Without them the branch taken at the first z would be written for all."""
    monkeypatch.setattr(program_module, "_check", lambda program, model, z: None)
    assert decoder_program(Model(branch)) is not None


def test_a_model_without_a_closed_form_mean_is_refused():
    class Draws(Model):
        def decode(self, z):
            p = dist.Normal(z, 1.0).to_event(1)
            return dist.TransformedDistribution(p, [dist.transforms.ExpTransform()])

    assert decoder_program(Draws(None)) is None
    assert decoder_program(nn.Linear(3, 3)) is None


def test_a_convolution_is_refused(untrained_model):
    assert decoder_program(untrained_model(encoder="conv(channels=(4,))")) is None


@pytest.mark.parametrize("limit", ["MAX_CONSTANTS", "MAX_NODES", "MAX_ELEMENTS"])
def test_a_program_has_limits(monkeypatch, untrained_model, limit):
    model = untrained_model()
    program = decoder_program(model)
    size = {
        "MAX_CONSTANTS": sum(4 * p.numel() for p in model.decoder.parameters()),
        "MAX_NODES": len(program["nodes"]),
        "MAX_ELEMENTS": sum(np.prod(node["shape"], dtype=int) for node in program["nodes"]),
    }[limit]
    monkeypatch.setattr(program_module, limit, size + 20)
    assert decoder_program(model) == program
    monkeypatch.setattr(program_module, limit, size - 1)
    assert decoder_program(model) is None


def test_the_model_is_left_as_it_was(untrained_model):
    model = untrained_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert decoder_program(model) is not None
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool", "uint8"])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 100])
def test_arrays_are_kept(js_decoder, dtype, size):
    array = np.random.default_rng(0).normal(0, 100, size).astype(dtype)
    record = encode_array(array)
    assert np.array_equal(decode_array(record), array)
    if size and dtype != "uint8":
        view = {"op": "view", "in": [1], "shape": [size], "dtype": dtype}
        program = {"latent_dim": 1, "constants": [record], "nodes": [view], "output": 2}
        assert np.array_equal(js_decoder({"program": program})([0.0]), array)
