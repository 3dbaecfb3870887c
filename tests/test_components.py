"""Discovery by name and by file, and building from what is on offer."""

import hashlib
import inspect
import sys
from pathlib import Path

import pyro_vae.models.priors
import pytest
import torch

from pyro_vae.components import MODULES, PACKAGES, build, find, names, source_hash
from pyro_vae.errors import InputError

EXPECTED = {
    "model": {"vae"},
    "prior": {"standard_normal"},
    "likelihood": {"bernoulli", "normal"},
    "guide": {"diagonal_normal"},
    "objective": {"trace", "trace_mean_field"},
    "network": {"conv", "gated_mlp", "mlp"},
    "optimizer": {"adam", "adamw", "adamax", "rmsprop", "sgd", "nadam", "adagrad"},
    "schedule": {
        "step_lr",
        "multi_step_lr",
        "exponential_lr",
        "cosine_annealing_lr",
        "cosine_annealing_warm_restarts",
        "one_cycle_lr",
        "linear_lr",
    },
}

PRIOR = '''
"""A prior of one's own."""
import pyro.distributions as dist
import torch
from torch import nn
{all}

class _Helper(nn.Module):
    pass


class Shifted(nn.Module):
    """N(loc, I)."""

    def __init__(self, latent_dim, loc=1.0):
        super().__init__()
        self.register_buffer("loc", torch.full((latent_dim,), float(loc)))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)


class Other(nn.Module):
    pass
'''


def refused(call, *arguments, **keywords):
    with pytest.raises(InputError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def write(tmp_path, monkeypatch):
    before = set(sys.modules)

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("pyro_vae_component_"):
            del sys.modules[name]


@pytest.mark.parametrize("kind", EXPECTED)
def test_discovers_every_kind(kind):
    found = names(kind)
    assert set(found) >= EXPECTED[kind]
    assert found == sorted(found)
    for name in found:
        component = find(kind, name)
        assert component.name == name
        assert callable(component.constructor)
        assert name.isidentifier()
        assert name == name.lower()


@pytest.mark.parametrize("kind", [*PACKAGES, *MODULES])
def test_what_list_prints_of_our_own(kind):
    for name in names(kind):
        assert find(kind, name).summary.endswith(".")


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_files_stem_is_its_name(kind):
    for name in names(kind):
        assert Path(inspect.getfile(find(kind, name).constructor)).stem == name


@pytest.mark.parametrize("kind", ["optimizer", "schedule"])
def test_unsupported_ones_are_absent(kind):
    absent = {"lbfgs", "sparseadam", "muon", "optimizer", "lr_scheduler", "lambda_lr",
              "multiplicative_lr", "chained_scheduler", "sequential_lr", "reduce_lr_on_plateau",
              "reduce_lron_plateau"}  # fmt: skip
    assert not absent & set(names(kind))


def test_every_optimizer_listed_steps():
    for name in names("optimizer"):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = build("optimizer", name, params=[weight])
        weight.grad = torch.ones(3)
        optimizer.step()
        assert not torch.equal(weight.detach(), torch.ones(3)), name


def test_never_walks_the_package_path(tmp_path, monkeypatch):
    (tmp_path / "sneaky.py").write_text("raise SystemExit")
    monkeypatch.setattr(
        pyro_vae.models.priors, "__path__", [*pyro_vae.models.priors.__path__, str(tmp_path)]
    )
    assert "sneaky" not in names("prior")


def test_the_nearest_name_and_the_valid_ones():
    message = refused(find, "likelihood", "bernuolli")
    assert "did you mean 'bernoulli'" in message
    assert "normal" in message
    assert "did you mean" not in refused(find, "likelihood", "zzzz")
    assert find("prior", "standard-normal").name == "standard_normal"


def test_an_unknown_key_lists_the_valid_ones():
    message = refused(build, "network", "mlp(hiden=(3,))")
    assert "no argument 'hiden'; did you mean 'hidden'? Valid: activation, hidden" in message


def test_what_is_offered_is_not_an_option():
    message = refused(build, "prior", "standard_normal(latent_dim=3)", latent_dim=2)
    assert "no argument 'latent_dim'; it takes none" in message
    assert find("model", "vae").options == {"output_bias": "zero"}
    assert find("schedule", "step_lr").options["step_size"] is ...


def test_a_missing_argument_is_named():
    optimizer = build("optimizer", "sgd", params=[torch.zeros(1)])
    assert "schedule step_lr needs step_size=…" in refused(
        build, "schedule", "step_lr", optimizer=optimizer
    )
    assert "prior standard_normal needs latent_dim=…" in refused(build, "prior", "standard_normal")


def test_receives_only_what_it_asks_for():
    prior = build("prior", "standard_normal", latent_dim=3, encoder=None, num_levels=7)
    assert prior().event_shape == (3,)


WRONG = {
    ("optimizer", "adam(lr=-1)"): "Invalid learning rate: -1",
    ("optimizer", "adam(lr=abc)"): "lr must be like 0.001, got 'abc'",
    ("optimizer", "sgd(lr=None)"): "lr must be like 0.001, got None",
    ("optimizer", "adam(betas=0.9)"): "betas must be like (0.9, 0.999), got 0.9",
    ("optimizer", "adam(betas=(2, 3))"): "Invalid beta",
    (
        "likelihood",
        "normal(scale=(1, 2))",
    ): "scale must be a positive number, learned or per_pixel, got (1, 2)",
    ("likelihood", "normal(scale=-1)"): "scale must be positive",
    ("objective", "trace(num_particles=0)"): "num_particles must be a whole number",
    ("objective", "trace(num_particles=1.5)"): "num_particles must be a whole number",
    ("network", "mlp(activation=relo)"): "did you mean 'relu'",
    ("optimizer", "./adam.py"): "give the name of a torch.optim class",
}


@pytest.mark.parametrize(("kind", "spec"), WRONG)
def test_a_wrong_value_is_one_line(kind, spec):
    assert WRONG[kind, spec] in refused(build, kind, spec, params=[torch.zeros(1)])


@pytest.mark.parametrize("listed", ["", '__all__ = ["Shifted", "Other"]'])
def test_a_file_of_ones_own(write, listed):
    path = write(PRIOR.format(all=listed))
    component = find("prior", f"{path}(loc=2)")
    assert component.constructor.__name__ == "Shifted"
    assert component.options == {"loc": 1.0}
    prior = build("prior", f"{path}(loc=2)", latent_dim=3)
    assert prior().mean.tolist() == [2.0, 2.0, 2.0]
    assert "no argument 'locc'; did you mean 'loc'" in refused(
        build, "prior", f"{path}(locc=2)", latent_dim=3
    )


def test_all_decides_which_class(write):
    path = write(PRIOR.format(all='__all__ = ["Other"]'))
    assert find("prior", str(path)).constructor.__name__ == "Other"


def test_a_relative_path_and_a_home_path(write, tmp_path, monkeypatch):
    write(PRIOR.format(all=""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in ("mine.py", "./mine.py", "~/mine.py"):
        assert find("prior", spec).constructor.__name__ == "Shifted"


BAD_FILES = {
    "import nonexistent_xyz": "ModuleNotFoundError: No module named 'nonexistent_xyz'",
    "def f(:": "SyntaxError",
    "raise ValueError('two\\nlines')": "ValueError: two lines",
    "x = 1": "expected a class",
    "__all__ = []": "expected a class",
    "__all__ = ['Missing']": "expected a class",
    "__all__ = ['x']\nx = 1": "expected a class",
    "from torch.nn import Linear": "expected a class",  # imported, not its own
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_bad_file(write, text):
    before = set(sys.modules)
    assert BAD_FILES[text] in refused(find, "prior", str(write(text)))
    loaded = any(name.startswith("pyro_vae_component_") for name in set(sys.modules) - before)
    assert loaded == (BAD_FILES[text] == "expected a class")  # a failed import leaves nothing


def test_a_missing_file_a_folder_and_another_suffix(tmp_path):
    assert "no such file" in refused(find, "prior", str(tmp_path / "none.py"))
    (tmp_path / "folder.py").mkdir()
    assert "no such file" in refused(find, "prior", str(tmp_path / "folder.py"))
    assert "a .py file" in refused(find, "prior", str(tmp_path / "prior.txt"))


def test_source_hash(write):
    path = write("x = 1\n")
    expected = hashlib.sha256(b"x = 1\n").hexdigest()
    assert source_hash(f"{path}(a=1)") == (str(path.resolve()), expected)
    assert source_hash("mlp(hidden=(3,))") is None
    write("x = 2\n")
    assert source_hash(str(path))[1] != expected
    assert "no such file" in refused(source_hash, str(path.with_name("none.py")))
