"""Bodies and their shapes; no probability here either."""

from math import prod

import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.networks import ACTIVATIONS, Decoder, Encoder, conv, gated_mlp, mlp

NETWORKS = {
    "mlp": mlp(hidden=(12, 7)),
    "mlp one layer": mlp(hidden=(5,), activation="tanh"),
    "gated_mlp": gated_mlp(hidden=(9, 6)),
    "conv": conv(channels=(3, 4), hidden=8),
    "conv one": conv(channels=(3,), hidden=8, activation="elu"),
}
SHAPES = [(28, 28), (32, 32), (3, 32, 32), (28, 20), (17,)]
CASES = [
    (name, shape) for name in NETWORKS for shape in SHAPES if "conv" not in name or len(shape) > 1
]
LATENT_DIM = 3


def make_encoder(network, shape, input_scale=1.0):
    body, features = network.encoder(shape)
    return Encoder(body, shape, features, input_scale=input_scale)


def make_decoder(network, shape, params_per_dim=1):
    body = network.decoder(LATENT_DIM, shape, params_per_dim)
    return Decoder(body, LATENT_DIM, shape, params_per_dim)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("params_per_dim", [1, 2])
def test_shapes_under_any_batch(name, shape, params_per_dim):
    encoder = make_encoder(NETWORKS[name], shape)
    decoder = make_decoder(NETWORKS[name], shape, params_per_dim)
    for batch in ((), (4,), (2, 4), (1, 2, 4), (0,)):
        assert encoder(torch.randn(*batch, *shape)).shape == (*batch, encoder.out_features)
        out = decoder(torch.randn(*batch, LATENT_DIM))
        assert out.shape == (*batch, *shape, params_per_dim)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_batch_dimensions_are_independent(name, shape):
    encoder = make_encoder(NETWORKS[name], shape).double()
    decoder = make_decoder(NETWORKS[name], shape, 2).double()
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    torch.testing.assert_close(encoder(x).flatten(0, 1), encoder(x.flatten(0, 1)))
    torch.testing.assert_close(encoder(x)[1, 2], encoder(x[1, 2]))
    z = torch.randn(2, 3, LATENT_DIM, dtype=torch.float64)
    torch.testing.assert_close(decoder(z).flatten(0, 1), decoder(z.flatten(0, 1)))
    torch.testing.assert_close(decoder(z)[1, 2], decoder(z[1, 2]))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_weight_is_used(name, shape):
    encoder, decoder = make_encoder(NETWORKS[name], shape), make_decoder(NETWORKS[name], shape, 2)
    (encoder(torch.randn(8, *shape)).square().sum()).backward()
    (decoder(torch.randn(8, LATENT_DIM)).square().sum()).backward()
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_shape_errors_say_what_was_expected_and_what_came(name):
    encoder, decoder = (
        make_encoder(NETWORKS[name], (28, 28)),
        make_decoder(NETWORKS[name], (28, 28)),
    )
    for x, got in ((torch.zeros(2, 28, 20), "[2, 28, 20]"), (torch.zeros(28), "[28]")):
        with pytest.raises(InputError) as caught:
            encoder(x)
        assert str(caught.value) == f"encoder expected x of shape [*, 28, 28], got {got}"
    for z, got in ((torch.zeros(2, 4), "[2, 4]"), (torch.tensor(0.0), "[]")):
        with pytest.raises(InputError) as caught:
            decoder(z)
        assert str(caught.value) == f"decoder expected z of shape [*, 3], got {got}"


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_parameters_of_a_dimension_are_independent(name, shape):
    """The P-th parameter is the P-th block of the output layer's bias, and of memory."""
    P = 3
    decoder = make_decoder(NETWORKS[name], shape, P)
    z = torch.randn(2, LATENT_DIM)
    before = decoder(z)
    bias = decoder.body[-1].bias
    with torch.no_grad():
        bias[len(bias) // P : 2 * len(bias) // P] += 10.0
    change = decoder(z) - before
    expected = torch.zeros_like(change)
    expected[..., 1] = 10.0
    torch.testing.assert_close(change, expected, atol=1e-5, rtol=0)
    for parameter in decoder(z).unbind(-1):
        assert parameter[0].is_contiguous()


@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("params_per_dim", [1, 2])
def test_output_bias(name, shape, params_per_dim):
    """With output weights of zero the decoder returns the wanted parameters, whatever z is."""
    decoder = make_decoder(NETWORKS[name], shape, params_per_dim)
    wanted = torch.randn(*shape, params_per_dim)
    decoder.set_output_bias(wanted)
    with torch.no_grad():
        decoder.body[-1].weight.zero_()
    if "conv" in name:  # a bias a channel: the mean over its pixels
        wanted = wanted.mean(dim=(-3, -2), keepdim=True).expand(wanted.shape)
    for batch in ((), (2, 4)):
        out = decoder(torch.randn(*batch, LATENT_DIM))
        torch.testing.assert_close(out, wanted.expand(out.shape))


def test_output_bias_of_a_layer_without_one():
    decoder = make_decoder(mlp(hidden=(4,)), (5,))
    decoder.body[-1].bias = None
    with pytest.raises(InputError, match="no bias to set"):
        decoder.set_output_bias(torch.zeros(5, 1))


def test_gated_layer_is_its_formula():
    """(W h + b) ⊙ sigmoid(V h + c)."""
    encoder = make_encoder(gated_mlp(hidden=(6,)), (4,))
    layer = next(m for m in encoder.body if isinstance(m, torch.nn.Linear))
    (W, V), (b, c) = layer.weight.chunk(2), layer.bias.chunk(2)
    x = torch.randn(5, 4)
    torch.testing.assert_close(encoder(x), (x @ W.T + b) * torch.sigmoid(x @ V.T + c))


def test_mlp_is_its_formula_and_the_decoder_mirrors_it():
    network = mlp(hidden=(6, 5), activation="softplus")
    linear = lambda body: [m for m in body if isinstance(m, torch.nn.Linear)]  # noqa: E731
    encoder, decoder = make_encoder(network, (2, 2)), make_decoder(network, (2, 2), 2)
    first, second = linear(encoder.body)
    x = torch.randn(3, 2, 2)
    hidden = torch.nn.functional.softplus(first(x.flatten(1)))
    torch.testing.assert_close(encoder(x), torch.nn.functional.softplus(second(hidden)))
    assert [layer.weight.shape[::-1] for layer in linear(encoder.body)] == [(4, 6), (6, 5)]
    assert [tuple(layer.weight.shape) for layer in linear(decoder.body)] == [
        (5, LATENT_DIM),
        (6, 5),
        (2 * prod((2, 2)), 6),
    ]


def test_input_scale_divides():
    encoder = make_encoder(mlp(hidden=(4,)), (5,), input_scale=16.0)
    plain = Encoder(encoder.body, (5,), 4)
    x = torch.rand(3, 5) * 16
    torch.testing.assert_close(encoder(x), plain(x / 16))


def test_real_data_enter_standardized():
    encoder = make_encoder(mlp(hidden=(4,)), (5,), input_scale=20.0)
    encoder.input_loc = 1000.0
    plain = Encoder(encoder.body, (5,), 4)
    x = 1000 + 20 * torch.randn(3, 5)
    torch.testing.assert_close(encoder(x), plain((x - 1000) / 20))


def test_counts_enter_by_their_logarithm():
    """log(1 + x); a pseudo-input below 0 enters as it is, and keeps a gradient."""
    body, features = mlp(hidden=(4,)).encoder((5,))
    encoder, plain = Encoder(body, (5,), features, log_input=True), Encoder(body, (5,), features)
    x = torch.tensor([[0.0, 1.0, 10.0, 1e4, 3.0]])
    torch.testing.assert_close(encoder(x), plain(torch.log(1 + x)))
    below = torch.full((1, 5), -0.5, requires_grad=True)
    torch.testing.assert_close(encoder(below), plain(below))
    assert (torch.autograd.grad(encoder(below).sum(), [below])[0] != 0).any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    encoder = make_encoder(mlp(hidden=(4,), activation=activation), (5,))
    assert torch.isfinite(encoder(100 * torch.randn(3, 5))).all()


def test_a_lone_width_serves():
    assert make_encoder(mlp(hidden=7), (5,)).out_features == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp(hidden=()), "mlp: hidden must be positive whole numbers, got ()"),
        (lambda: mlp(hidden=(8, 0)), "got (8, 0)"),
        (lambda: mlp(hidden=(8, -1)), "got (8, -1)"),
        (lambda: mlp(hidden=(2.5,)), "got (2.5,)"),
        (lambda: mlp(hidden="wide"), "got 'wide'"),
        (lambda: mlp(hidden=(True,)), "got (True,)"),
        (lambda: gated_mlp(hidden=0), "gated_mlp: hidden"),
        (lambda: conv(channels=(0,)), "conv: channels"),
        (lambda: conv(hidden=-1), "conv: hidden"),
        (lambda: mlp(activation="relo"), "unknown activation 'relo'; did you mean 'relu'?"),
        (lambda: conv(activation=3), "unknown activation 3"),
        (lambda: conv(channels=(4,) * 3).encoder((28, 20)), "divisible by 8, got 28×20"),
        (lambda: conv(channels=(4,) * 3).decoder(2, (28, 20), 1), "give fewer channels"),
        (lambda: conv().encoder((784,)), "[H, W] or [C, H, W], got [784]"),
        (lambda: conv().encoder((2, 3, 4, 5)), "got [2, 3, 4, 5]"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
