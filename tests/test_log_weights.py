"""The one primitive: log p(x, z) − log q(z|x) of any pair, held against exact evidence."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.log_weights import log_weight_terms, log_weights


def test_exact_posterior_gives_the_evidence_for_every_draw(linear_gaussian):
    x = linear_gaussian.simulate(7, seed=0)
    log_w = log_weights(linear_gaussian.model, linear_gaussian.exact_guide, x, 5)
    assert log_w.shape == (5, 7)
    assert log_w.dtype == torch.float64
    torch.testing.assert_close(
        log_w, linear_gaussian.log_evidence(x).expand(5, 7), rtol=0, atol=1e-10
    )


def test_mean_weight_is_the_evidence(linear_gaussian):
    """E[w] = p(x): within four standard errors, seed 0; a factor of 1.02 would fail."""
    x = linear_gaussian.simulate(20, seed=1)
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.3, variance=1.5))
    torch.manual_seed(0)
    ratio = (
        log_weights(linear_gaussian.model, guide, x, 20_000) - linear_gaussian.log_evidence(x)
    ).exp()
    per_draw = ratio.mean(dim=1)
    error = per_draw.std() / math.sqrt(len(per_draw))
    assert error < 0.005
    assert abs(per_draw.mean() - 1) < 4 * error


def test_mean_log_weight_is_the_exact_elbo(linear_gaussian):
    x = linear_gaussian.simulate(20, seed=2)
    parameters = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)
    torch.manual_seed(1)
    log_w = log_weights(linear_gaussian.model, linear_gaussian.guide_of(parameters), x, 20_000)
    exact = linear_gaussian.elbo(x, *parameters(x))
    per_draw = (log_w - exact).mean(dim=1)
    error = per_draw.std() / math.sqrt(len(per_draw))
    assert error < 0.004
    assert abs(per_draw.mean()) < 4 * error


def test_terms_are_the_sites_log_densities(linear_gaussian):
    x = linear_gaussian.simulate(3, seed=3)
    torch.manual_seed(2)
    terms = log_weight_terms(linear_gaussian.model, linear_gaussian.exact_guide, x, 4)
    torch.manual_seed(2)
    z = linear_gaussian.posterior(x).sample((4,))
    expected = {
        "log_likelihood": dist.Normal(z @ linear_gaussian.W.T + linear_gaussian.b, 0.8)
        .log_prob(x)
        .sum(-1),
        "log_prior": dist.Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1),
        "log_guide": linear_gaussian.posterior(x).log_prob(z),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(terms, name), value)
    torch.testing.assert_close(terms.kl, terms.log_guide - terms.log_prior)


@pytest.mark.parametrize("where", ["scale", "subsampled plate"])
def test_scales_do_not_enter(linear_gaussian, where):
    """At N/B = 10 Pyro's RenyiELBO puts the plate's scale inside the logsumexp."""
    x = linear_gaussian.simulate(4, seed=4)
    eye = torch.ones(2, dtype=torch.float64)

    def body(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0 * eye, eye).to_event(1))
        loc = z @ linear_gaussian.W.T + linear_gaussian.b
        pyro.sample("x", dist.Normal(loc, linear_gaussian.sigma).to_event(1), obs=x)

    def model(x: Tensor) -> None:
        if where == "scale":
            with pyro.plate("data", 4, dim=-1), poutine.scale(scale=10.0):
                body(x)
        else:
            with pyro.plate("data", 40, subsample=torch.arange(4), dim=-1):
                body(x)

    log_w = log_weights(model, linear_gaussian.exact_guide, x, 3)
    torch.testing.assert_close(log_w, linear_gaussian.log_evidence(x).expand(3, 4))


def test_masks_are_respected(linear_gaussian):
    x = linear_gaussian.simulate(4, seed=4)
    mask = torch.tensor([True, False, True, False])

    def model(x: Tensor) -> None:
        with poutine.mask(mask=mask):
            linear_gaussian.model(x)

    terms = log_weight_terms(model, linear_gaussian.exact_guide, x, 3)
    assert (terms.log_likelihood[:, ~mask] == 0).all()
    assert (terms.log_prior[:, ~mask] == 0).all()
    assert (terms.log_likelihood[:, mask] != 0).all()


def test_two_latent_sites():
    """z1 ~ N(0, 1), z2 | z1 ~ N(z1, 1), x | z2 ~ N(z2, 1): x ~ N(0, 3)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z2, 1.0).expand(z2.shape), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            # z2 | x ~ N(2x/3, 2/3) and z1 | z2 ~ N(z2/2, 1/2)
            z2 = pyro.sample("z2", dist.Normal(2 * x[:, 0] / 3, math.sqrt(2 / 3)))
            pyro.sample("z1", dist.Normal(z2 / 2, math.sqrt(1 / 2)))

    x = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    log_w = log_weights(model, guide, x, 6)
    exact = dist.Normal(0.0, math.sqrt(3.0)).log_prob(x[:, 0])
    torch.testing.assert_close(log_w, exact.expand(6, 3), rtol=0, atol=1e-6)


def test_encoder_runs_once_a_datum(linear_gaussian):
    rows = []

    def guide(x: Tensor) -> None:
        rows.append(x.shape[0])
        linear_gaussian.exact_guide(x)

    log_weights(linear_gaussian.model, guide, linear_gaussian.simulate(6, seed=5), 50)
    assert rows == [6]


def _normal_site(name: str, **kwargs) -> Tensor:
    return pyro.sample(name, dist.Normal(0.0, 1.0), **kwargs)


def _latent_outside(x: Tensor) -> None:
    scale = _normal_site("w")
    with pyro.plate("data", len(x), dim=-1):
        z = _normal_site("z")
        pyro.sample("x", dist.Normal(z + scale, 1.0), obs=x[:, 0])


def _observed_outside(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        _normal_site("z")
    _normal_site("y", obs=torch.tensor(0.0))


def _undeclared_event(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = _normal_site("z")
        with pyro.plate("pixels", 2, dim=-3):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T[:, None])


def _extra_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = _normal_site("z") + _normal_site("w")
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def _nothing_observed(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        _normal_site("z")


def _guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        _normal_site("z")


def _guide_of_w_too(x: Tensor) -> None:
    _normal_site("w")
    _guide(x)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (_latent_outside, _guide_of_w_too, "latent site 'w' of the guide stands outside"),
        (_latent_outside, _guide, "latent site 'w' of the model stands outside the data plate"),
        (_observed_outside, _guide, "observed site 'y' of the model stands outside"),
        (_undeclared_event, _guide, r"site 'x' of the model: expected .* \.to_event"),
        (_extra_latent, _guide, "latent site 'w' is in the model but not in the guide"),
        (_nothing_observed, _guide, "no observed site"),
    ],
)
def test_a_site_without_a_weight_per_datum_is_named(model, guide, message):
    with pytest.raises(InputError, match=message):
        log_weights(model, guide, torch.zeros(3, 2), 4)


def test_bad_arguments(linear_gaussian):
    x = linear_gaussian.simulate(2, seed=0)
    for data, num_samples, message in [
        (x, 0, "at least 1, got 0"),
        (x, 1e3, "must be a whole number"),
        (x[:0], 1, r"expected data of shape \[B"),
        (x.numpy(), 1, "as a torch tensor, got ndarray"),
    ]:
        with pytest.raises(InputError, match=message):
            log_weights(linear_gaussian.model, linear_gaussian.exact_guide, data, num_samples)


def test_an_inner_plate_is_refused_by_name():
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = _normal_site("z")
            with pyro.plate("pixels", x.shape[1], dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    with pytest.raises(InputError, match=r"at dim=-2.*to_event") as error:
        log_weights(model, _guide, torch.zeros(3, 2), 4)
    assert "\n" not in str(error.value)


class _Module(pyro.nn.PyroModule):
    def __init__(self, name: str, loc: float):
        super().__init__(name)
        self.loc = nn.Parameter(torch.tensor(loc))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            if self._pyro_name == "model":
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def test_modules_leave_the_global_store_alone_and_are_not_changed_by_it():
    x = torch.zeros(3, 1)
    pairs = [(_Module("model", loc), _Module("guide", loc)) for loc in (0.0, 5.0)]
    for (model, guide), loc in zip(pairs, (0.0, 5.0), strict=True):
        terms = log_weight_terms(model, guide, x, 500)
        assert not pyro.get_param_store().keys()
        assert model.loc == loc
        # q equals the prior: the two terms cancel exactly
        torch.testing.assert_close(terms.kl, torch.zeros_like(terms.kl))


def test_a_contradicting_global_store_is_refused():
    model, guide = _Module("model", 0.0), _Module("guide", 0.0)
    pyro.param("model.loc", torch.tensor(9.0))
    with pytest.raises(InputError, match=r"another 'model\.loc' than the module"):
        log_weights(model, guide, torch.zeros(2, 1), 1)


def test_plain_functions_use_the_global_store():
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    pyro.param("loc", torch.tensor(3.0))
    torch.manual_seed(0)
    terms = log_weight_terms(model, _guide, torch.zeros(2, 1), 1)
    torch.manual_seed(0)
    z = torch.randn(1, 2)
    torch.testing.assert_close(terms.log_prior, dist.Normal(3.0, 1.0).log_prob(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_the_datas(linear_gaussian, dtype):
    x = linear_gaussian.simulate(2, seed=0).to(dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), x.new_ones(())))
            pyro.sample("x", dist.Normal(z, x.new_ones(())), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, x.new_tensor(0.5).sqrt()))

    assert log_weights(model, guide, x, 3).dtype == dtype


def test_a_global_store_is_left_as_it_was(linear_gaussian):
    """Another module's values, under other names, are neither read nor changed."""
    store = pyro.get_param_store()
    pyro.param("other", torch.tensor(3.0))
    before = dict(store.named_parameters())
    log_weights(_Module("model", 0.0), _Module("guide", 0.0), torch.zeros(2, 1), 5)
    assert dict(store.named_parameters()) == before


def test_observed_sites_add_up_and_a_mask_of_one_leaves_the_others(linear_gaussian):
    """x and y given z; y is missing for the second datum."""
    x = torch.tensor([[0.4], [1.3]], dtype=torch.float64)
    seen = torch.tensor([True, False])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0 * x[:, 0], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])
            with poutine.mask(mask=seen):
                pyro.sample("y", dist.Normal(2 * z, 0.5), obs=x[:, 0])

    torch.manual_seed(0)
    terms = log_weight_terms(model, _guide, x, 4)
    torch.manual_seed(0)
    z = torch.randn(4, 2)
    fit = dist.Normal(z, 1.0).log_prob(x[:, 0])
    both = fit + dist.Normal(2 * z, 0.5).log_prob(x[:, 0])
    torch.testing.assert_close(terms.log_likelihood, torch.where(seen, both, fit).double())


def test_zero_weights_are_minus_infinity():
    """x ~ U(z − 1, z + 1): draws farther than 1 from x weigh nothing, and none is NaN."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = _normal_site("z")
            pyro.sample("x", dist.Uniform(z - 1, z + 1, validate_args=False), obs=x[:, 0])

    torch.manual_seed(0)
    log_w = log_weights(model, _guide, torch.zeros(1, 1), 1000)
    torch.manual_seed(0)
    inside = torch.randn(1000, 1).abs() < 1
    assert torch.equal(log_w.isfinite(), inside)
    assert (log_w[~inside] == -torch.inf).all()
    torch.testing.assert_close(log_w[inside], torch.full_like(log_w[inside], -math.log(2)))
