"""Programs under K particles: what each site weighs a datum, and what has no weight at all."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.errors import InputError
from pyro_vae.execution import (
    check_no_points,
    check_same_latents,
    execute,
    own_scale,
    plate_scale,
)

X = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
P = torch.tensor([0.3, 0.7], dtype=torch.float64)
PARALLEL = {"enumerate": "parallel"}


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
        pyro.deterministic("twice", 2 * z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.5 * x, 0.8))


def test_sites_are_told_apart():
    """Latents, observations, plates; a deterministic value is none of them."""
    torch.manual_seed(0)
    run = execute(model, "model", 4, (X,))
    assert (list(run.latent), list(run.observed), list(run.enumerated)) == (["z"], ["x"], [])
    assert list(run.subsamples) == ["data"]
    assert (run.num_samples, run.num_data) == (4, 3)
    assert run.values["z"].shape == (4, 3)
    z = run.values["z"]
    torch.testing.assert_close(run.log_prob(run.observed["x"]), dist.Normal(z, 1.0).log_prob(X))
    at_zero = run.log_prob(run.latent["z"], torch.zeros(4, 3, dtype=X.dtype))
    torch.testing.assert_close(at_zero, torch.full_like(z, -0.5 * math.log(2 * math.pi)))


def test_values_stand_in_for_draws():
    value = torch.arange(6.0, dtype=X.dtype).reshape(2, 3)
    run = execute(model, "model", 2, (X,), values={"z": value}, num_data=3)
    assert torch.equal(run.values["z"], value)
    assert torch.equal(run.observed["x"]["fn"].mean, value)


def test_arguments_reach_the_program():
    def program(x, shift, *, scale):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x + shift, scale))

    fn = execute(program, "guide", 2, (X, 1.0), {"scale": 0.3}).latent["z"]["fn"]
    torch.testing.assert_close(fn.mean, (X + 1).expand(2, 3))
    torch.testing.assert_close(fn.stddev, torch.full((2, 3), 0.3, dtype=X.dtype))


def test_a_subsample_is_kept_and_given_on():
    def program(x):
        with pyro.plate("data", 20, subsample_size=3, dim=-1) as rows:
            pyro.sample("z", dist.Normal(rows.double(), 1.0))

    torch.manual_seed(1)
    drawn = execute(program, "guide", 2, (X,))
    again = execute(program, "guide", 2, (X,), values=drawn.subsamples)
    assert not torch.equal(drawn.subsamples["data"], torch.arange(3))
    assert torch.equal(drawn.subsamples["data"], again.subsamples["data"])
    assert torch.equal(again.latent["z"]["fn"].mean, drawn.latent["z"]["fn"].mean)
    assert plate_scale(drawn.latent["z"]) == pytest.approx(20 / 3)


@pytest.mark.parametrize("scale", [2.5, torch.tensor(2.5)])
def test_own_scale_is_that_of_no_plate(scale):
    def program(x):
        with pyro.plate("data", 21, subsample=torch.arange(3), dim=-1), poutine.scale(scale=scale):
            pyro.sample("z", dist.Normal(0 * x, 1.0))

    site = execute(program, "guide", 2, (X,)).latent["z"]
    assert plate_scale(site) == 7
    assert float(own_scale(site)) == pytest.approx(2.5)
    assert isinstance(own_scale(site), torch.Tensor) == isinstance(scale, torch.Tensor)


def test_without_a_scale_the_own_scale_is_exactly_one():
    """For every N/B up to 60: β is told from 1 by equality."""
    for size in range(3, 60):

        def program(x, size=size):
            with pyro.plate("data", size, subsample=torch.arange(3), dim=-1):
                pyro.sample("z", dist.Normal(0 * x, 1.0))

        assert own_scale(execute(program, "guide", 1, (X,)).latent["z"]) == 1


def test_marked_latents_are_summed_out_of_the_model_alone():
    def marked(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(P), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c.double(), 1.0), obs=x)

    run = execute(marked, "model", 2, (X,))
    assert (list(run.latent), list(run.enumerated)) == ([], ["c"])
    sites = [*run.enumerated.values(), *run.observed.values()]
    total = run.total([run.log_prob(site) for site in sites])
    fit = dist.Normal(torch.tensor([0.0, 1.0]).double(), 1.0).log_prob(X[:, None])
    torch.testing.assert_close(total.expand(2, 3), (P.log() + fit).logsumexp(-1).expand(2, 3))
    drawn = execute(marked, "guide", 2, (X,))
    assert (list(drawn.latent), list(drawn.enumerated)) == (["c"], [])


def test_a_total_of_nothing_is_zero():
    run = execute(lambda x: None, "guide", 4, (X,))
    total = run.total([])
    assert (total == 0).all()
    assert torch.broadcast_shapes(total.shape, (4, 3)) == (4, 3)


def outside(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    guide(x)


def observed_outside(x):
    model(x)
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))


def sequential_alone(x):
    """One site a datum in a Python loop: no dimension of data."""
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z{i}", dist.Normal(x[i], 1.0))


def other_size(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
    with pyro.plate("labels", 2, dim=-1):
        pyro.sample("y", dist.Normal(z[..., :2], 1.0), obs=x[:2])


def beside(dim):
    def program(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0 * x, 1.0))
            with pyro.plate("pixels", 2, dim=dim):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(2, *(1,) * (-dim - 2), 3))

    return program


def beside_and_marked(x):
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Categorical(P), infer=PARALLEL)
        with pyro.plate("pixels", 2, dim=-3):
            pyro.sample("x", dist.Normal(c.double(), 1.0), obs=x.expand(2, 1, 3))


def refuses_itself(x):
    raise InputError("the user's own line")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (outside, "latent site 'w' of the model stands outside the data plate"),
        (observed_outside, "observed site 'y' of the model stands outside the data plate"),
        (sequential_alone, "latent site 'z0' of the model stands outside the data plate"),
        (other_size, "observed site 'y' of the model stands in a data plate of 2, expected 3"),
        (beside(-2), "a plate of the program stands at dim=-2, where samples go"),
        (beside(-3), "site 'x' of the model: expected .*'pixels' at dim=-3.*to_event"),
        (beside_and_marked, "site 'x' of the model: expected .*'pixels' at dim=-3.*to_event"),
        (refuses_itself, "^the user's own line$"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_has_no_weight_a_datum_is_refused_in_one_line(program, message):
    """One line: without the table of shapes that Pyro adds to what a program raises."""
    with pytest.raises(InputError, match=message) as error:
        execute(program, "model", 4, (X,))
    assert "\n" not in str(error.value)


def test_an_error_of_the_program_is_its_own():
    def program(x):
        raise ValueError("not ours")

    with pytest.raises(ValueError, match="not ours") as error:
        execute(program, "model", 4, (X,))
    assert not isinstance(error.value, InputError)


def extra(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0 * x, 1.0))
        pyro.sample("w", dist.Poisson(1.0 + 0 * x))
        c = pyro.sample("c", dist.Bernoulli(0.5 + 0 * x))
        pyro.sample("x", dist.Normal(c, 1.0), obs=x)


def test_latents_of_one_program_are_named_and_the_countable_get_the_hint():
    run = execute(extra, "model", 1, (X,))
    with pytest.raises(InputError, match=r"'c' is in the model but not in the guide .*enumerate"):
        check_same_latents(run, {"z": 0, "w": 0})
    with pytest.raises(InputError, match=r"'w' is in the model but not .*take two that go"):
        check_same_latents(run, {"z": 0, "c": 0})
    with pytest.raises(InputError, match="'y' is in the guide but not in the model"):
        check_same_latents(run, {"z": 0, "c": 0, "w": 0, "y": 0})
    with pytest.raises(InputError, match="no observed site"):
        check_same_latents(execute(guide, "model", 1, (X,)), {"z": 0})


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_point_is_seen_through_its_wrappers(wrapped):
    def point(x):
        loc = x[:, None] if wrapped else x
        fn = dist.Delta(loc).to_event(1) if wrapped else dist.Delta(loc)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", fn)

    check_no_points(execute(guide, "guide", 2, (X,)))
    with pytest.raises(InputError, match="'z' of the guide is a Delta") as error:
        check_no_points(execute(point, "guide", 2, (X,)))
    assert "\n" not in str(error.value)


def test_masked_sites_have_density_one_and_marked_ones_keep_theirs():
    """Σ_c p(c) = 1 for a masked datum."""
    mask = torch.tensor([True, False, True])

    def marked(x):
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=mask):
            c = pyro.sample("c", dist.Categorical(P), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c.double(), 1.0), obs=x)

    run = execute(marked, "model", 1, (X,))
    sites = [*run.enumerated.values(), *run.observed.values()]
    total = run.total([run.log_prob(site) for site in sites])[0]
    assert float(total[1]) == pytest.approx(0.0, abs=1e-12)
    assert float(total[0]) < -0.5
