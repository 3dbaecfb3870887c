"""The Student t prior: its density is scipy's, its samples have that density."""

import math

import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro_vae.models.priors.student_t import StudentT
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.errors import InputError

OPTIONS = [{}, {"df": 2.1}, {"df": 30.0, "scale": 0.7}]


def make(latent_dim=2, **options) -> StudentT:
    return StudentT(latent_dim=latent_dim, **options).double()


def reference(df=5.0, scale=1.0):
    return scipy.stats.t(df, 0, scale)


@pytest.mark.parametrize("options", OPTIONS)
def test_density_is_that_of_scipy(options):
    """To 1e-12, so that an option rounded to float32 would be seen."""
    z = torch.linspace(-30, 30, 26, dtype=torch.float64).reshape(13, 2)
    expected = reference(**options).logpdf(z.numpy()).sum(-1)
    got = make(**options)().log_prob(z)
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("df", [2.5, 30.0, 1e4, 1e6])
def test_float32_has_the_normalizer_of_float64(df):
    """log Γ in float32 would be off by 0.005 a dimension at ν = 1e4, and by 0.9 at 1e8."""
    z = torch.tensor([[0.0, 0.0], [0.5, -3.0]])
    expected = reference(df, 0.7).logpdf(z.numpy()).sum(-1)
    got = StudentT(latent_dim=2, df=df, scale=0.7)().log_prob(z)
    torch.testing.assert_close(got.double(), torch.from_numpy(expected), rtol=3e-6, atol=3e-6)


def test_mean_and_variance_are_those_of_the_density():
    p = make(1, df=7.0, scale=0.7)()

    def moment(power):
        return scipy.integrate.quad(
            lambda z: 2 * z**power * float(p.log_prob(torch.tensor([z]).double()).exp()),
            0,
            math.inf,
        )[0]

    assert moment(0) == pytest.approx(1, abs=1e-7)
    assert float(p.mean) == 0
    assert float(p.variance) == pytest.approx(moment(2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
def test_samples_have_the_density(options, dtype):
    """Kolmogorov–Smirnov in each coordinate, false alarm 1e-4 each, seed 0."""
    torch.manual_seed(0)
    z = StudentT(latent_dim=2, **options).to(dtype)().sample((20_000,))
    for d in range(2):
        assert scipy.stats.kstest(z[:, d].numpy(), reference(**options).cdf).pvalue > 1e-4


def test_coordinates_are_independent():
    """A χ² shared by the coordinates would correlate log|z_1| and log|z_2|; seed 1, four errors."""
    torch.manual_seed(1)
    z = make()().sample((20_000,)).abs().log()
    assert abs(float(z.T.corrcoef()[0, 1])) < 4 / math.sqrt(20_000)


def test_float32_stays_finite_at_extremes():
    z = torch.tensor([[-1e4, 1e4], [0.0, 1e-30]], requires_grad=True)
    log_prob = StudentT(latent_dim=2)().log_prob(z)
    expected = torch.from_numpy(reference().logpdf(z.detach().numpy()).sum(-1)).float()
    torch.testing.assert_close(log_prob.detach(), expected)
    log_prob.sum().backward()
    assert torch.isfinite(z.grad).all()


class NoReads(TorchDispatchMode):
    """Fails where a tensor's value is read, for which a GPU would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read"
        return func(*args, **(kwargs or {}))


def test_no_argument_is_checked_when_it_is_built():
    prior = StudentT(latent_dim=3)
    with NoReads():
        prior().expand((4,)).log_prob(torch.zeros(4, 3))
        with pytest.raises(AssertionError, match="a value was read"):
            dist.StudentT(prior.loc + 5.0)


def test_shapes_and_no_parameters():
    prior = StudentT(latent_dim=4)
    assert (prior().batch_shape, prior().event_shape) == ((), (4,))
    assert prior().expand((3,)).sample((2,)).shape == (2, 3, 4)
    assert prior().expand((3,)).variance.shape == (3, 4)
    assert not list(prior.parameters())
    assert not prior.state_dict()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"df": 2.0}, "df"), ({"df": -1.0}, "df"), ({"df": math.nan}, "df"), ({"df": math.inf}, "df"),
     ({"df": 1e8}, "df"), ({"df": True}, "df"), ({"df": "learned"}, "df"),
     ({"scale": 1e-50}, "scale"), ({"scale": 10**400}, "scale"),
     ({"scale": 0.0}, "scale"), ({"scale": -1.0}, "scale"), ({"scale": math.nan}, "scale"),
     ({"scale": math.inf}, "scale")],
)  # fmt: skip
def test_bad_arguments(options, name):
    with pytest.raises(InputError, match=f"student_t: {name}"):
        StudentT(latent_dim=2, **options)
