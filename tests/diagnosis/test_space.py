"""The latent space against normal aggregated posteriors, and decoders whose paths are known."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from torch import nn

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.data import Split
from pyro_vae.data.images import TensorImages
from pyro_vae.data.values import Values
from pyro_vae.diagnosis import space
from pyro_vae.diagnosis.space import latent_draws, latent_space_report
from pyro_vae.errors import InputError
from pyro_vae.protocols import Facts


def split(x, labels=None):
    return Split(TensorImages(x.float()), labels, Values("continuous", "none", None), 0)


def randn(num, dim, seed):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """z ~ N(0, scale² I), decoded by any function; unless ``ends`` are what the prior draws."""

    def __init__(self, dim, scale=1.0, decoder=lambda z: z):
        super().__init__()
        self.dim, self.scale, self.decoder = dim, scale, decoder

    def prior(self):
        return dist.Normal(torch.zeros(self.dim), self.scale).to_event(1)

    def decode(self, z):
        return dist.Normal(self.decoder(z), 1.0).to_event(1)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)


class Guide(nn.Module):
    """q(z|x) = N(√(1 − s²) x, s² I): of x ~ N(0, I) the aggregated posterior is N(0, I)."""

    has_density = True

    def __init__(self, s):
        super().__init__()
        self.s, self.mean = s, math.sqrt(1 - s**2)

    def posterior(self, x):
        return dist.Normal(self.mean * x, self.s).to_event(1)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(x))


@pytest.mark.parametrize(("dim", "num_train"), [(2, 20), (2, 200), (8, 20), (8, 200)])
def test_the_share_is_95_percent_where_the_aggregated_posterior_is_the_prior(
    monkeypatch, dim, num_train
):
    """60 data sets, seeds 0 … 59: three standard errors, whatever the number of training data.

    The told errors are held against the spread of the values: 9 % of it is its standard error.
    That over draws holds the prior's, √(0.95 · 0.05/1000), and less than two thirds more.
    """
    monkeypatch.setattr(space, "PRIOR_DRAWS", 1000)
    monkeypatch.setattr(space, "DRAWS_A_DATUM", 10)
    found = []
    for seed in range(60):
        train, test = split(randn(num_train, dim, seed)), split(randn(300, dim, 1000 + seed))
        found.append(share_of(Model(dim), Guide(0.4), train, test, seed))
    value, draws, total = torch.tensor(found, dtype=torch.float64).T
    assert abs(float(value.mean()) - 0.95) < 3 * float(value.std()) / math.sqrt(60)
    assert float(total.square().mean().sqrt() / value.std()) == pytest.approx(1, abs=0.3)
    apart = math.sqrt(0.95 * 0.05 / 1000)
    assert 0.95 * apart < float(draws.mean()) < 1.67 * apart


def share_of(model, guide, train, test, seed):
    with torch.no_grad():
        share, *_ = space._share(
            model, guide, train, test, seed, False, torch.device("cpu"), torch.float32
        )
    return share.value, share.standard_error, share.data_standard_error


@pytest.mark.parametrize(
    ("scale", "s", "test_data", "train_data"),
    [(2.0, 0.9, 300, 100), (2.0, 0.5, 100, 100), (2.0, 0.3, 300, 50)],
    ids=["draws", "held-out subset", "training subset"],
)
def test_the_error_over_draws_is_the_spread_over_seeds(
    monkeypatch, scale, s, test_data, train_data
):
    """60 seeds on fixed data: the standard deviation's own error is 9 %.

    All of 300 held-out and 100 training data are taken, 100 of the former, 50 of 1,000.
    """
    monkeypatch.setattr(space, "PRIOR_DRAWS", 1000)
    monkeypatch.setattr(space, "TEST_DATA", test_data)
    monkeypatch.setattr(space, "TRAIN_DATA", train_data)
    monkeypatch.setattr(space, "DRAWS_A_DATUM", 5)
    train = split(randn(100 if train_data == 100 else 1000, 2, 0))
    test = split(randn(300, 2, 1))
    found = [share_of(Model(2, scale), Guide(s), train, test, seed) for seed in range(60)]
    value, draws, total = torch.tensor(found, dtype=torch.float64).T
    assert float(draws.square().mean().sqrt() / value.std()) == pytest.approx(1, abs=0.3)
    assert (total >= draws).all()


def test_a_prior_wider_than_the_data_lies_outside():
    """q(z) = N(0, I₂) under N(0, 2² I): |z|² < χ²₂ = 5.99 at 95 %, of 4 χ²₂ a share of 0.527.

    2,000 training data stand for q(z): 0.02 beside three standard errors. Seed 0.
    """
    train, test = split(randn(2000, 2, 0)), split(randn(2000, 2, 1))
    report = latent_space_report(Model(2, 2.0), Guide(0.5), train, test, seed=0)
    exact = 1 - math.exp(math.log(0.05) / 4)
    share = report.prior_near_posterior
    assert exact == pytest.approx(0.527, abs=0.001)
    assert 0.005 < share.data_standard_error < 0.03
    assert abs(share.value - exact) < 3 * share.data_standard_error + 0.02
    assert report.posterior_share == 0.95
    assert "2000 training data" in report.region
    assert "5000 prior draws" in report.region


def test_a_hole_in_the_prior_is_seen():
    """Data at ±4, q(z) = ½ N(−4, 1) + ½ N(4, 1): z within 1.96 of either holds 95 %."""
    sign = torch.randint(2, (2, 2000, 1), generator=torch.Generator().manual_seed(2)) * 8.0 - 4

    class Wide(Guide):
        def posterior(self, x):
            return dist.Normal(x, self.s).to_event(1)

    parts = (split(sign[i] + math.sqrt(0.75) * randn(2000, 1, 3 + i)) for i in (0, 1))
    share = latent_space_report(Model(1, 4.0), Wide(0.5), *parts).prior_near_posterior
    half = 1.959964
    exact = 2 * (norm.cdf((4 + half) / 4) - norm.cdf((4 - half) / 4))
    assert exact < 0.5
    assert abs(share.value - exact) < 3 * share.data_standard_error + 0.02


def test_the_error_of_ordered_data_is_that_of_blocks():
    held_out, prior = randn(400, 1, 4).sort(0).values.T, randn(2000, 1, 5).T
    held_out = held_out + 0.1 * randn(5, 400, 6)
    one, other = (space._share_inside(held_out[None], prior, o) for o in (False, True))
    assert one.value == other.value
    assert one.standard_error == other.standard_error
    assert other.data_standard_error > 2 * one.data_standard_error


def test_no_density_no_share():
    guide = Guide(0.5)
    guide.has_density = False
    report = latent_space_report(Model(2), guide, split(randn(50, 2, 6)), split(randn(50, 2, 7)))
    assert (report.prior_near_posterior, report.posterior_share, report.region) == (None,) * 3
    assert "no log q(z|x)" in report.notes[0]
    assert report.smoothness is not None


def segments(decoder, dim=2):
    return space._segments(Model(dim, decoder=decoder), 0, torch.device("cpu"))


def test_a_linear_decoder_walks_straight_and_steadily():
    W = randn(2, 5, 8)
    smooth, straight, told, notes = segments(lambda z: z @ W + 3)
    assert smooth.value == pytest.approx(1, abs=1e-5)
    assert straight.value == pytest.approx(1, abs=1e-6)
    assert (smooth.count, straight.count, notes) == (200, 200, [])
    assert told == "200 straight segments between prior draws, 20 equal steps each"


def test_a_decoder_of_one_jump_takes_all_in_one_step():
    smooth, straight, told, notes = segments(lambda z: (z[..., :1] > 0).float())
    assert smooth.value == pytest.approx(20)
    assert smooth.standard_error == 0
    assert straight.value == pytest.approx(1)
    # Half of the segments lie on one side: three standard errors of 200, √50 = 7.1.
    assert abs(smooth.count - 100) < 21
    assert told.startswith(f"{smooth.count} straight segments")
    assert f"{200 - smooth.count} of 200 segments left out" in notes[0]


def test_a_circle_is_walked_steadily_and_not_straight(monkeypatch):
    """Half a circle in 20 chords, 20 · 2 sin(π/40) long between ends 2 apart."""
    ends = torch.tensor([0.0, math.pi]).reshape(2, 1, 1).expand(2, 30, 1)
    model = Model(1, decoder=lambda z: torch.cat([z.cos(), z.sin()], -1))
    monkeypatch.setattr(space, "SEGMENTS", 30)
    monkeypatch.setattr(dist.Independent, "sample", lambda self, shape: ends)
    smooth, straight, *_ = space._segments(model, 0, torch.device("cpu"))
    assert smooth.value == pytest.approx(1, abs=1e-4)
    assert straight.value == pytest.approx(20 * math.sin(math.pi / 40), rel=1e-5)


def test_a_speed_that_grows_linearly_has_twice_the_mean_step_at_its_end(monkeypatch):
    """z² on 0 … 1: the k-th of n steps is (2k − 1)/n², the last 2 − 1/n mean steps."""
    ends = torch.tensor([0.0, 1.0]).reshape(2, 1, 1).expand(2, 30, 1)
    monkeypatch.setattr(dist.Independent, "sample", lambda self, shape: ends)
    monkeypatch.setattr(space, "SEGMENTS", 30)
    smooth, straight, *_ = space._segments(Model(1, decoder=lambda z: z**2), 0, torch.device("cpu"))
    assert smooth.value == pytest.approx(2 - 1 / 20, rel=1e-5)
    assert straight.value == pytest.approx(1)


def test_a_decoder_that_ignores_z_goes_nowhere():
    smooth, straight, told, notes = segments(lambda z: 0.1 + 0 * z)
    assert (smooth, straight, told) == (None, None, None)
    assert "the same along all segments" in notes[0]


def labelled(num, seed, distance):
    labels = torch.randint(2, (num,), generator=torch.Generator().manual_seed(seed))
    x = randn(num, 2, seed + 1)
    x[:, 0] += distance * labels
    return split(x, labels)


def probes(distance, guide=None, **options):
    train, test = (labelled(2000, seed, distance) for seed in (10, 20))
    device, dtype = torch.device("cpu"), torch.float32
    return space._probes(guide or Guide(0.5), train, test, 0, False, device, dtype)


def test_logistic_regression_reaches_the_bayes_rate():
    """Two normals δ = 2 apart: Φ(δ/2) = 0.841; three standard errors and 0.005 for the fit."""
    found, notes = probes(2.0)
    by = {(p.features, p.classifier): p.accuracy for p in found}
    for features in ("z", "x"):
        accuracy = by[features, "logistic regression"]
        assert accuracy.data_standard_error == pytest.approx(
            math.sqrt(0.841 * 0.159 / 2000), rel=0.05
        )
        assert abs(accuracy.value - norm.cdf(1.0)) < 3 * accuracy.data_standard_error + 0.005
        # One neighbour alone would be right for 0.77.
        assert 0.8 < by[features, "nearest neighbours"].value < accuracy.value + 0.02
    assert by["z", "most frequent label"].value == pytest.approx(0.5, abs=0.034)
    assert notes == [
        "classification: trained on 2000 and tested on 2000 data, 10 nearest neighbours"
    ]


def test_classifiers_are_fitted_to_the_training_data_alone():
    """Test labels turned around: what was learned is right for 1 − Φ(1.5) = 0.067 alone.

    Nine of ten training data have label 0, so that 0 is guessed for the one of ten of the test.
    """
    device, dtype = torch.device("cpu"), torch.float32
    train, test = labelled(500, 10, 3.0), labelled(500, 20, 3.0)
    turned = split(test.scored(), 1 - test.labels)
    found, _ = space._probes(Guide(0.5), train, turned, 0, False, device, dtype)
    for probe in found[1:]:
        assert probe.accuracy.value < 0.12, probe
    rare = torch.arange(500) % 10 == 0
    parts = (split(train.scored(), labels.long()) for labels in (rare, ~rare))
    found, _ = space._probes(Guide(0.5), *parts, 0, False, device, dtype)
    assert found[0].accuracy.value == pytest.approx(0.1)


def test_neighbours_alike_widen_all_errors_over_data():
    """Every held-out datum ten times in a row: about √10 of the error, in 20 blocks of 20."""
    train, few = labelled(300, 10, 2.0), labelled(40, 20, 2.0)
    test = split(few.scored().repeat_interleave(10, 0), few.labels.repeat_interleave(10))
    alone, blocks = (
        latent_space_report(Model(2), Guide(0.5), train, test, ordered=ordered)
        for ordered in (False, True)
    )
    one, other = alone.prior_near_posterior, blocks.prior_near_posterior
    assert other.value == one.value
    assert other.data_standard_error > 1.2 * one.data_standard_error
    assert len(alone.probes) == len(blocks.probes) == 5
    for one, other in zip(alone.probes, blocks.probes, strict=True):
        assert other.accuracy.value == one.accuracy.value
        ratio = other.accuracy.data_standard_error / one.accuracy.data_standard_error
        assert 1.8 < ratio < 5, one


def test_features_of_any_unit_are_standardized_for_logistic_regression():
    """One of two dimensions in units of 10⁻⁴ tells the labels apart: Φ(1) = 0.841."""
    parts = []
    for seed in (10, 20):
        part = labelled(1000, seed, 2.0)
        parts.append(split(part.scored() * torch.tensor([1e-4, 1.0]), part.labels))
    found, _ = space._probes(Guide(0.5), *parts, 0, False, torch.device("cpu"), torch.float32)
    accuracy = {(p.features, p.classifier): p.accuracy.value for p in found}
    for features in ("z", "x"):
        assert accuracy[features, "logistic regression"] > 0.8
        assert accuracy[features, "nearest neighbours"] < 0.65  # unscaled


def test_a_z_that_says_nothing_classifies_as_the_most_frequent_label():
    class Blind(Guide):
        def posterior(self, x):
            return dist.Normal(0 * x, 1.0).to_event(1)

    found, _ = probes(3.0, Blind(0.5))
    for probe in found:
        expected = 0.5 if probe.features == "z" else 0.93
        assert probe.accuracy.value == pytest.approx(expected, abs=0.034), probe


def test_an_accuracy_of_one_has_a_limit_beside_it():
    found, _ = probes(50.0)
    accuracy = next(p.accuracy for p in found if p.classifier == "nearest neighbours")
    assert accuracy.value == 1
    assert "0.0015" in accuracy.note  # 3/2000


def test_a_fit_that_does_not_converge_says_so():
    x = np.random.default_rng(0).normal(size=(200, 5))
    labels = (x[:, 0] > 0).astype(int)
    probe = space._probe(
        "x", "logistic regression", LogisticRegression(max_iter=1), [x, x], [labels, labels], False
    )
    assert probe.accuracy.note == "the fit did not converge"


def test_without_labels_there_is_no_classification():
    parts = split(randn(50, 2, 11)), split(randn(50, 2, 12))
    report = latent_space_report(Model(2), Guide(0.5), *parts)
    assert report.probes == []
    assert "classification: the data have no labels" in report.notes
    one = split(randn(50, 2, 11), torch.zeros(50, dtype=torch.long))
    found, notes = space._probes(Guide(0.5), one, one, 0, False, torch.device("cpu"), torch.float32)
    assert found == []
    assert "one label" in notes[0]


def functions():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.8 * x, 0.6).to_event(1))

    return model, guide


def test_plain_functions_have_the_share_alone():
    report = latent_space_report(*functions(), split(randn(300, 2, 13)), split(randn(300, 2, 14)))
    share = report.prior_near_posterior
    assert abs(share.value - 0.95) < 4 * share.data_standard_error
    assert report.smoothness is None
    assert any("without prior() and decode(z)" in note for note in report.notes)


def test_of_two_latents_it_is_the_one_next_to_the_data():
    facts = Facts((4,), "continuous")
    config = Config(
        model="hierarchical(latent_dims=(3, 2), hidden=(8,))", guide="hierarchical(hidden=(8,))",
        likelihood="normal", encoder="mlp(hidden=(8,))",
    )  # fmt: skip
    torch.manual_seed(0)
    pair = build_pair(config, facts)
    report = latent_space_report(*pair, split(randn(100, 4, 15)), split(randn(100, 4, 16)))
    assert report.notes[0] == "of z1, the layer next to the data"
    same = Config(
        model="hierarchical(latent_dims=(3, 3), hidden=(8,))", guide="hierarchical(hidden=(8,))",
        likelihood="normal", encoder="mlp(hidden=(8,))",
    )  # fmt: skip
    _, guide = build_pair(same, facts)
    assert space._layer(guide, randn(1, 4, 0)) == ["of z1, the layer next to the data"]
    assert 0 <= report.prior_near_posterior.value <= 1
    draws = latent_draws(*pair, randn(20, 4, 17), 50)
    assert draws.posterior.shape == draws.prior.shape == (50, 3)


def test_a_flow_is_scored_in_fewer_pairs():
    config = Config(likelihood="normal", guide="iaf(hidden=(8,))", latent_dim=2, dtype="float64")
    torch.manual_seed(0)
    pair = build_pair(config, Facts((4,), "continuous"))
    report = latent_space_report(*pair, split(randn(300, 4, 18)), split(randn(100, 4, 19)))
    assert "of 100 training data" in report.region
    assert "500 prior draws" in report.region


def test_a_flow_is_classified_from_the_mean_of_its_draws():
    config = Config(likelihood="normal", guide="iaf(hidden=(8,))", latent_dim=2)
    torch.manual_seed(0)
    _, guide = build_pair(config, Facts((2,), "continuous"))
    part = labelled(100, 30, 2.0)
    z = space._embedded(guide, part, 0, torch.device("cpu"), torch.float32)
    torch.manual_seed(1)
    q = guide.posterior(part.scored())
    draws = q.sample((2000,))
    # 100 draws and 2,000 of 100 data: four and a half standard errors.
    distance = (z - draws.mean(0)) / (draws.std(0) * math.sqrt(1 / 100 + 1 / 2000))
    assert float(distance.abs().max()) < 4.5
    assert float(distance.std()) == pytest.approx(1, rel=0.2)
    with torch.no_grad():
        found, notes = probes(2.0, guide)
    assert len(found) == 5
    assert notes[0].endswith("z the mean of 100 draws of q(z|x)")
    assert "trained on 2000 and tested on 1000 data" in notes[0]


@pytest.mark.parametrize("pair", [(Model(2), Guide(0.6)), functions()], ids=["modules", "plain"])
def test_draws_for_a_figure(pair):
    """2,000 of each, seed 3: means and variances within four standard errors of N(0, I)."""
    state = torch.get_rng_state()
    draws = latent_draws(*pair, randn(5000, 2, 20), 2000, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws.prior, latent_draws(*pair, randn(5000, 2, 20), 2000, seed=3).prior)
    for z in draws:
        assert z.shape == (2000, 2)
        assert float(z.mean(0).abs().max()) < 4 / math.sqrt(2000)
        assert float((z.var(0) - 1).abs().max()) < 4 * math.sqrt(2 / 2000)
    with pytest.raises(InputError, match="num must be"):
        latent_draws(*pair, randn(5, 2, 20), 0)


def test_seeds_and_the_global_generator():
    parts = split(randn(300, 2, 21)), split(randn(300, 2, 22))
    state = torch.get_rng_state()
    one, again, other = (
        latent_space_report(Model(2), Guide(0.5), *parts, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert one == again
    assert one.prior_near_posterior != other.prior_near_posterior
