import copy
import json
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_vae.axes import PALETTE
from pyro_vae.errors import InputError
from pyro_vae.gallery import display_range, some_data
from pyro_vae.generation import moments, posterior_mean
from pyro_vae.report import explorer
from pyro_vae.report.array_program import decode_array, run_program
from pyro_vae.report.explorer import _classes as classes_of
from pyro_vae.report.explorer import explorer_assets, explorer_data, explorer_html


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data and a component of a user's own."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    numbers = rng.normal(3.0, 2.0, (200, 6)).astype(np.float32)
    np.save(folder / "vectors.npy", numbers)
    images = rng.integers(0, 16, (200, 3, 8, 8)).astype(np.uint8)
    np.savez(folder / "colours.npz", x=images, labels=np.arange(200) % 30)
    (folder / "cauchy.py").write_text(
        textwrap.dedent("""
        import pyro.distributions as dist
        import torch
        from torch import nn
        __all__ = ["Cauchy"]
        class Cauchy(nn.Module):
            def __init__(self, latent_dim: int):
                super().__init__()
                self.register_buffer("loc", 2 * torch.ones(latent_dim))
            def forward(self):
                return dist.Cauchy(self.loc, 0.5).to_event(1)
        """)
    )
    return folder


def as_json(data):
    return json.loads(json.dumps(data, allow_nan=False))


def test_two_latents_have_a_map(small_run):
    run = small_run()
    data = as_json(explorer_data(run, map_count=100))
    x, labels = some_data(run, "test", 100, 0)
    z = posterior_mean(run.guide, x)
    assert (data["latent_dim"], data["event_shape"], data["display"]) == (2, [8, 8], [0, 1])
    np.testing.assert_array_equal(decode_array(data["map"]["z"]), z.numpy())
    names = [data["map"]["classes"][i]["name"] for i in data["map"]["index"]]
    assert names == [str(label) for label in labels.tolist()]
    colours = [group["colour"] for group in data["map"]["classes"]]
    assert colours == list(PALETTE)
    np.testing.assert_allclose(data["activity"], z.var(0, correction=0), rtol=1e-5)
    assert data["order"] == z.var(0).argsort(descending=True).tolist()
    assert data["normal"]
    assert not data["quantiles"]
    assert data["grid"] is None


def test_data_to_start_from_are_a_random_few_with_their_latents(small_run):
    run = small_run()
    data = as_json(explorer_data(run, split="valid", count=5, seed=3))
    x, labels = some_data(run, "valid", 5, 3)
    np.testing.assert_array_equal(decode_array(data["data"]["x"]), x.flatten(1).numpy())
    np.testing.assert_allclose(data["data"]["z"], posterior_mean(run.guide, x), rtol=1e-6)
    assert data["data"]["labels"] == [str(label) for label in labels.tolist()]


def test_the_decoder_of_the_data_is_the_runs(small_run):
    run = small_run()
    program = as_json(explorer_data(run))["program"]
    z = torch.tensor([[0.3, -1.2]])
    with torch.no_grad():
        want = run.model.decode(z).mean
    np.testing.assert_allclose(run_program(program, z[0]), want, atol=1e-5)


def test_the_same_run_gives_the_same_data(small_run):
    assert explorer_data(small_run(), map_count=50) == explorer_data(small_run(), map_count=50)
    assert explorer_data(small_run(), seed=1)["data"] != explorer_data(small_run())["data"]


@pytest.mark.parametrize(
    ("changes", "normal"),
    [
        ({"latent_dim": 1}, True),
        ({"latent_dim": 100}, True),
        ({"guide": "iaf(hidden=(8,))", "latent_dim": 3}, True),
        ({"prior": "vamp(components=3)", "latent_dim": 3}, False),
        ({"prior": "normal"}, True),
        ({"prior": "flow(hidden=(8,))"}, False),
        ({"model": "hierarchical(latent_dims=(5, 2))", "guide": "hierarchical"}, False),
        ({"model": "linear_gaussian", "likelihood": "normal(scale=0.5)", "latent_dim": 3,
          "data": "digits(values=continuous)"}, True),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else None,
)  # fmt: skip
def test_runs_of_other_components(small_run, changes, normal):
    run = small_run(**({"epochs": 1} | changes))
    data = as_json(explorer_data(run, map_count=60))
    mean, scale = moments(run.model.prior(), 0)
    assert data["latent_dim"] == len(mean) == len(data["activity"])
    assert sorted(data["order"]) == list(range(len(mean)))
    np.testing.assert_allclose(data["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(data["scale"], scale, rtol=1e-6)
    assert data["normal"] is normal
    assert (data["map"] is None) == (len(mean) != 2)
    assert data["program"] is not None


def test_an_expensive_posterior_mean_is_taken_of_fewer_data(monkeypatch, small_run):
    run = small_run(guide="iaf(hidden=(8,))", latent_dim=3, epochs=1)
    asked = []
    monkeypatch.setattr(explorer, "ENCODED_BY_DRAWS", 40)
    monkeypatch.setattr(
        explorer, "posterior_mean",
        lambda guide, x, seed: asked.append(len(x)) or posterior_mean(guide, x, seed=seed),
    )  # fmt: skip
    explorer_data(run, count=3)
    assert asked == [40, 3]


def test_a_convolution_comes_as_a_grid(small_run):
    run = small_run(encoder="conv(channels=(4,), hidden=8)", latent_dim=5, epochs=1)
    data = as_json(explorer_data(run))
    assert data["program"] is None
    assert data["grid"]["dims"] == data["order"][:3]
    assert data["grid"]["low"] == pytest.approx([-data["span"]] * 3)


def test_a_point_may_lie_far_from_the_prior(small_run):
    """An autoencoder's codes are not held to p(z): the map reaches 99 % of them."""
    run = small_run(guide="delta", beta=0.0, optimizer="adam(lr=0.05)", epochs=3)
    data = as_json(explorer_data(run))
    z = posterior_mean(run.guide, some_data(run, "test", 2000, 0)[0])
    assert data["span"] > 3
    outside = (z.abs() > data["span"]).double().mean(0)
    assert (outside <= 0.01).all()
    assert ((z.abs() > data["span"] - 0.5).double().mean(0) > 0.01).any()


def test_counts_are_shown_between_the_smallest_and_largest(small_run):
    run = small_run(data="digits(values=counts)", likelihood="poisson", epochs=1)
    low, high = display_range(run, some_data(run, "test", 2000, 0)[0])
    assert as_json(explorer_data(run))["display"] == [low, high]
    assert high > 10


def test_vectors_without_labels(small_run, files):
    run = small_run(data=str(files / "vectors.npy"), likelihood="normal", epochs=1)
    data = as_json(explorer_data(run, count=4))
    x = some_data(run, "test", 2000, 0)[0]
    assert data["event_shape"] == [6]
    assert data["display"] == [float(x.min()), float(x.max())]
    assert data["data"]["labels"] is None
    assert set(data["map"]) == {"z"}
    assert decode_array(data["data"]["x"]).shape == (4, 6)


def test_colour_images_of_many_labels(small_run, files):
    spec = f"{files / 'colours.npz'}(num_levels=16)"
    run = small_run(data=spec, likelihood="binomial", epochs=1)
    data = as_json(explorer_data(run))
    assert data["event_shape"] == [3, 8, 8]
    assert data["display"] == [0, 15]
    assert len(data["map"]["classes"]) == len(PALETTE)


def test_many_labels_are_binned():
    labels = np.array([0, 1, 29, 15, 14, 30, 3])
    found = classes_of(np.concatenate([labels, np.arange(30)]))
    assert found["index"][:7] == [0, 0, 9, 5, 4, 9, 1]
    assert found["classes"][9]["name"] == "27 … 30"
    assert len({group["colour"] for group in found["classes"]}) == 10


def test_a_prior_without_moments_is_centred_by_its_draws(small_run, files):
    run = small_run(prior=str(files / "cauchy.py"), latent_dim=3, epochs=1)
    data = as_json(explorer_data(run))
    assert data["quantiles"]
    np.testing.assert_allclose(data["mean"], 2.0, atol=0.1)
    half = 0.5 * np.tan(np.pi * 0.34)  # of the central 68 % of a Cauchy of scale ½
    np.testing.assert_allclose(data["scale"], half, rtol=0.3)
    assert data["program"] is not None


def test_what_cannot_be_explored_is_refused_in_a_line(small_run):
    run = small_run()
    with pytest.raises(InputError, match=r"no images to show"):
        explorer_data(replace(run, facts=replace(run.facts, event_shape=(5, 8, 8))))
    with pytest.raises(InputError, match=r"cannot be explored without 'prior'"):
        explorer_data(replace(run, model=torch.nn.ParameterList(), guide=run.guide))
    broken = copy.deepcopy(run.guide)
    broken.head.bias.data[:] = float("nan")
    with pytest.raises(InputError, match="posterior means are not finite"):
        explorer_data(replace(run, guide=broken))
    broken = copy.deepcopy(run.model)
    broken.decoder.body[-1].bias.data[:] = float("nan")
    with pytest.raises(InputError, match="mean is not finite"):
        explorer_data(replace(run, model=broken))
    broken.decoder.latent_dim = 7
    with pytest.raises(InputError, match="decoder expected z of shape"):
        explorer_data(replace(run, model=broken))
    del broken.decoder.body[-1]
    broken.decoder.latent_dim = 2
    with pytest.raises(InputError, match=r"run': latents cannot be decoded: shape"):
        explorer_data(replace(run, model=broken))


def test_html_holds_the_data_and_nothing_that_ends_a_script():
    html = explorer_html({"labels": ["</script><b>"], "a": 1})
    start, end = html.index(">{") + 1, html.index("</script>")
    assert json.loads(html[start:end]) == {"labels": ["</script><b>"], "a": 1}
    assert html.count("</script>") == 1


def test_assets_need_nothing_else():
    style, script = explorer_assets()
    for text in (style, script):
        assert "://" not in text
        assert "</" not in text
    assert "import " not in script
    rules = style.replace("\n", " ").split("{")
    selectors = [rule.split("}")[-1].strip() for rule in rules[:-1]]
    for selector in selectors:
        assert selector.startswith((".explorer", "@media", "@container", "/*"))
