"""The SVI loop: what it optimizes, that it resumes exactly, and that trainings never meet."""

import dataclasses
import itertools
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.assembly import build_pair
from pyro_vae.components import build
from pyro_vae.config import Config
from pyro_vae.data import load_data
from pyro_vae.errors import InputError
from pyro_vae.evaluation import log_likelihood
from pyro_vae.objectives.trace import Trace
from pyro_vae.run_training import facts_of, start_run
from pyro_vae.seeding import seeded
from pyro_vae.training import Trainer, TrainingError

SMALL = Config(encoder="mlp(hidden=(16,))", latent_dim=3)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def make_trainer(data, config=SMALL, pair=None, **options):
    torch.manual_seed(0)
    model, guide = pair or build_pair(config, facts_of(data), data.data_mean)
    options = {"epochs": 2, "batch_size": 256, "seed": 5, **options}
    return Trainer(model, guide, data, objective=options.pop("objective", Trace()), **options)


def fit(trainer, **callbacks):
    rows = []
    finished = trainer.fit(on_epoch=rows.append, **callbacks)
    return rows, finished


def without_clock(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_raises_the_bound(digits):
    rows, finished = fit(make_trainer(digits, epochs=8, batch_size=64))
    assert finished
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["valid_elbo"] > rows[0]["valid_elbo"] + 5
    assert rows[-1]["step"] == 8 * math.ceil(1297 / 64)
    json.dumps(rows, allow_nan=False)


def test_the_training_bound_is_the_mean_over_data_not_over_batches(digits):
    """With a learning rate of 0, batches of 1,000 and 297: Σ loss/N, not the mean of two means."""
    trainer = make_trainer(digits, epochs=1, batch_size=1000, optimizer="sgd(lr=0)")
    losses = []
    step = trainer.svi.step

    def recorded(x):
        loss = step(x)
        losses.append((float(loss), len(x)))
        return loss

    trainer.svi.step = recorded
    rows, _ = fit(trainer)
    assert [count for _, count in losses] == [1000, 297]
    expected = -sum(loss for loss, _ in losses) / 1297
    mean_of_means = -sum(loss / count for loss, count in losses) / 2
    assert rows[0]["elbo"] == pytest.approx(expected, rel=1e-12)
    assert abs(expected - mean_of_means) > 1e-3


@pytest.mark.parametrize("interrupt_at", [1, 5, 6, 7, 13])
def test_a_stopped_training_continues_bit_for_bit(digits, interrupt_at):
    """Six steps an epoch: stopped inside, at the end of, and at the start of an epoch."""
    options = {
        "epochs": 3, "warm_up": 2, "schedule": "step_lr(step_size=1, gamma=0.5)", "clip_norm": 5.0,
    }  # fmt: skip
    whole = make_trainer(digits, **options)
    expected, _ = fit(whole)

    counter = itertools.count(1)
    first = make_trainer(digits, **options)
    rows, finished = fit(first, stop=lambda: next(counter) == interrupt_at)
    assert not finished
    state = first.state_dict()

    second = make_trainer(digits, **options)
    torch.manual_seed(12345)  # whatever the global generator was left at
    second.load_state_dict(state)
    more, finished = fit(second)
    assert finished
    assert without_clock(rows + more) == without_clock(expected)
    assert same(second.weights(), whole.weights())
    assert second.progress.best_epoch == whole.progress.best_epoch


def test_state_saved_inside_an_epoch_continues_bit_for_bit(digits):
    """As a checkpoint written by a callback, then a kill."""
    whole = make_trainer(digits, epochs=2)
    expected, _ = fit(whole)
    saved = {}

    def save(trainer):
        if trainer.progress.step == 4:
            saved.update(trainer.state_dict())

    fit(make_trainer(digits, epochs=2), on_step=save)
    resumed = make_trainer(digits, epochs=2)
    resumed.load_state_dict(saved)
    rows, _ = fit(resumed)
    assert without_clock(rows) == without_clock(expected)
    assert same(resumed.weights(), whole.weights())


def test_two_trainings_never_touch_each_other(digits):
    """In turns, step by step, each ends where it ends alone."""
    alone = [make_trainer(digits, seed=s, epochs=2) for s in (1, 2)]
    for trainer in alone:
        fit(trainer)
    together = [make_trainer(digits, seed=s, epochs=2) for s in (1, 2)]
    start = [trainer.weights() for trainer in together]
    while not all(trainer.finished for trainer in together):
        for trainer in together:
            if not trainer.finished:
                fit(trainer, stop=lambda: True)
    for before, trainer, reference in zip(start, together, alone, strict=True):
        assert same(trainer.weights(), reference.weights())
        moved = [k for k, v in trainer.weights().items() if not torch.equal(v, before[k])]
        assert moved == list(before)  # every weight moved
    assert not pyro.get_param_store().keys()


def test_the_callers_random_state_is_left_alone(digits):
    torch.manual_seed(3)
    trainer = make_trainer(digits, epochs=1)
    state = torch.get_rng_state()
    fit(trainer)
    assert torch.equal(torch.get_rng_state(), state)


def test_plain_functions_train(digits):
    """pyro.module and pyro.param, in the trainer's own store."""
    torch.manual_seed(0)
    decoder = nn.Linear(2, 64)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            logits = decoder(z).view(*z.shape[:-1], 8, 8)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(x):
        weight = pyro.param("weight", torch.zeros(64, 2))
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.flatten(1) @ weight, scale).to_event(1))

    trainer = make_trainer(digits, pair=(model, guide), epochs=6, optimizer="adam(lr=0.01)")
    before = trainer.weights()
    assert set(before) == {
        "param.weight", "param.scale", "param.decoder$$$weight", "param.decoder$$$bias"
    }  # fmt: skip
    rows, _ = fit(trainer)
    assert rows[-1]["valid_elbo"] > rows[0]["valid_elbo"] + 3
    assert all(not torch.equal(v, before[k]) for k, v in trainer.weights().items())
    assert not pyro.get_param_store().keys()


def test_beta_warm_up_grows_step_by_step(digits):
    seen = []
    trainer = make_trainer(digits, epochs=3, warm_up=2, beta=0.8, batch_size=256)
    trainer.fit(on_step=lambda t: seen.append(float(t._beta)))
    expected = [0.8 * min(1, (i + 1) / 12) for i in range(18)]
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
def test_beta_scales_the_kl_and_nothing_else(digits, beta):
    trainer = make_trainer(digits, beta=beta, epochs=1)
    x = digits.train.scored(slice(0, 50))
    torch.manual_seed(7)
    loss = float(trainer.svi.evaluate_loss(x))
    torch.manual_seed(7)
    q = trainer.guide.posterior(x)
    z = q.sample()
    fit_term = trainer.model.decode(z).log_prob(x).sum()
    kl = (q.log_prob(z) - trainer.model.prior().log_prob(z)).sum()
    assert loss == pytest.approx(float((beta * kl - fit_term).detach()), rel=1e-5)


def test_the_validation_bound_is_taken_at_beta_one(digits):
    plain, weighted = (make_trainer(digits, beta=beta) for beta in (1.0, 0.01))
    assert plain.validation_bound() == weighted.validation_bound()


def test_validation_bound_is_the_elbo_over_all_data(digits):
    """Against 200 independent draws of it, within four standard errors."""
    trainer = make_trainer(digits)
    bound, error = trainer.validation_bound()
    x = digits.valid.scored()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = [-Trace_ELBO().loss(trainer.model, trainer.guide, x) / len(x) for _ in range(200)]
    assert abs(bound - sum(draws) / 200) < 4 * error
    assert error < 1
    pyro.clear_param_store()


def test_clipping_bounds_the_joint_norm(digits):
    """SGD with lr 1 moves the weights by the clipped gradient: its global 2-norm is clip_norm."""
    trainer = make_trainer(digits, epochs=1, max_steps=1, optimizer="sgd(lr=1.0)", clip_norm=0.01)
    before = trainer.weights()
    fit(trainer)
    moved = torch.cat([(v - before[k]).flatten() for k, v in trainer.weights().items()])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


def test_one_optimizer_holds_every_parameter(digits):
    trainer = make_trainer(digits)
    own = {id(p) for m in (trainer.model, trainer.guide) for p in m.parameters()}
    groups = trainer.optim.optimizer.param_groups
    assert len(groups) == 1
    assert {id(p) for p in groups[0]["params"]} == own


def test_max_steps_ends_in_the_middle_of_an_epoch(digits):
    rows, finished = fit(make_trainer(digits, epochs=10, max_steps=8))
    assert finished
    assert [row["step"] for row in rows] == [6, 8]


def test_more_steps_go_on_as_if_never_cut(digits):
    """Stopped by max_steps inside the second epoch, then given two epochs more."""
    whole = make_trainer(digits, epochs=4, max_steps=20)
    expected, _ = fit(whole)
    cut = make_trainer(digits, epochs=4, max_steps=8)
    rows, _ = fit(cut)
    assert [row["step"] for row in rows] == [6, 8]
    resumed = make_trainer(digits, epochs=4, max_steps=20)
    resumed.load_state_dict(cut.state_dict())
    assert resumed.progress.epoch == 1
    more, _ = fit(resumed)
    assert without_clock(rows[:1] + more) == without_clock(expected)
    assert same(resumed.weights(), whole.weights())
    assert same(resumed.best_weights, whole.best_weights)


def test_a_schedule_that_runs_out_is_refused_before_training(digits):
    with pytest.raises(InputError, match="schedule one_cycle_lr"):
        make_trainer(digits, epochs=5, schedule="one_cycle_lr(max_lr=0.1, total_steps=3)")


def test_patience_counts_from_the_end_of_the_warm_up(digits):
    """Nothing improves at a learning rate of 0: the first epoch stays the best."""
    options = {"epochs": 50, "optimizer": "sgd(lr=0)"}
    rows, _ = fit(make_trainer(digits, patience=3, **options))
    assert len(rows) == 1 + 3
    rows, _ = fit(make_trainer(digits, patience=3, warm_up=4, **options))
    assert len(rows) == 4 + 3


def test_best_weights_are_those_of_the_best_epoch(digits):
    snapshots = {}
    trainer = make_trainer(digits, epochs=4, optimizer="sgd(lr=1e-3)", batch_size=64)

    def on_epoch(row):
        snapshots[row["epoch"]] = (row["valid_elbo"], trainer.weights())

    trainer.fit(on_epoch=on_epoch)
    best = max(snapshots, key=lambda epoch: snapshots[epoch][0])
    assert trainer.progress.best_epoch == best
    assert trainer.progress.best_bound == snapshots[best][0]
    assert same(trainer.best_weights, snapshots[best][1])


def test_several_particles_are_a_mean(digits):
    """K = 50 and K = 1 estimate the same loss; a sum over particles would be 50 times it."""
    pair = build_pair(SMALL, facts_of(digits))
    x = digits.train.scored(slice(0, 100))
    torch.manual_seed(0)
    one = [Trace(1).loss(*pair, x) for _ in range(200)]
    many = Trace(50).loss(*pair, x)
    spread = torch.tensor(one).std().item()
    assert abs(many - sum(one) / 200) < 4 * spread * math.sqrt(1 / 50 + 1 / 200)


class _Guide(pyro.nn.PyroModule):
    """z ~ N(0, exp(s)); s is what the tests break."""

    has_density = True

    def __init__(self):
        super().__init__("guide")
        self.log_scale = nn.Parameter(torch.zeros(3))

    def posterior(self, x):
        loc = x.new_zeros(len(x), 3)
        return dist.Normal(loc, self.log_scale.exp(), validate_args=False).to_event(1)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.posterior(x))


def test_a_loss_that_is_not_finite_names_step_site_and_parameter(digits):
    model, _ = build_pair(SMALL, facts_of(digits))
    guide = _Guide()
    trainer = make_trainer(digits, pair=(model, guide), epochs=2)
    good = {}

    def break_it(trainer):
        if trainer.progress.step == 4:
            good.update(trainer.weights())
            with torch.no_grad():
                guide.log_scale[1] = math.nan

    with pytest.raises(TrainingError) as caught:
        trainer.fit(on_step=break_it)
    message = str(caught.value)
    assert "step 5 (epoch 1)" in message
    assert "site 'z' of the guide" in message
    assert "parameter 'guide.log_scale' is not finite" in message
    assert "\n" not in message
    for name, value in trainer.weights().items():  # the bad step changed nothing
        if name != "guide.log_scale":
            assert torch.equal(value, good[name])


def test_a_gradient_that_is_not_finite_changes_nothing(digits):
    """sqrt at 0: the loss is finite, its gradient is not."""
    model, _ = build_pair(SMALL, facts_of(digits))

    class Guide(_Guide):
        def posterior(self, x):
            loc = self.log_scale.abs().sqrt().expand(len(x), 3)
            return dist.Normal(loc, 1.0, validate_args=False).to_event(1)

    trainer = make_trainer(digits, pair=(model, Guide()), epochs=1)
    before = trainer.weights()
    with pytest.raises(TrainingError, match=r"step 1 .*gradient of parameter 'guide.log_scale'"):
        fit(trainer)
    assert same(trainer.weights(), before)


def test_an_infinite_loss_with_finite_gradients_changes_nothing(digits):
    model, guide = build_pair(SMALL, facts_of(digits))

    def impossible(x):
        q = guide.posterior(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)
            pyro.factor("nothing", x.new_full((len(x),), -math.inf), has_rsample=False)

    trainer = make_trainer(digits, pair=(model, impossible), epochs=1)
    before = trainer.weights()
    with pytest.raises(TrainingError, match=r"step 1 .*the loss is not finite: site 'nothing'"):
        fit(trainer)
    assert same(trainer.weights(), before)


def test_an_overflowing_gradient_names_the_largest(digits):
    """Each element is finite, the sum of squares is not."""
    model, _ = build_pair(SMALL, facts_of(digits))

    class Guide(_Guide):
        def posterior(self, x):
            loc = (1e25 * self.log_scale).sin().expand(len(x), 3)
            return dist.Normal(loc, 1.0, validate_args=False).to_event(1)

    trainer = make_trainer(digits, pair=(model, Guide()), epochs=1)
    with pytest.raises(TrainingError, match=r"the gradient of parameter 'guide.log_scale' reaches"):
        fit(trainer)


def test_a_programs_own_error_is_its_own(digits):
    model, guide = build_pair(SMALL, facts_of(digits))

    def buggy(x):
        if len(x) > 2:  # after the constructor's first run
            raise ValueError("my own bug")
        return guide(x)

    with pytest.raises(ValueError, match=r"^my own bug"):
        fit(make_trainer(digits, pair=(model, buggy), epochs=1))


class _Unnamed(pyro.nn.PyroModule):
    def __init__(self, observes):
        super().__init__()
        self.net = nn.Linear(3, 3)
        self.observes = observes

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.net(torch.zeros(3)), 1.0).to_event(1))
            if self.observes:
                logits = self.net(z)[..., :1, None].expand(*z.shape[:-1], 8, 8)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)


def test_programs_that_share_a_name_are_refused(digits):
    """In Pyro the model's weights would move by exactly 0."""
    with pytest.raises(InputError, match=r"model and guide share a name; name their roots"):
        make_trainer(digits, pair=(_Unnamed(True), _Unnamed(False)))


def test_trained_plain_functions_are_scored_in_the_trainers_store(digits):
    def model(x):
        logit = pyro.param("logit", torch.zeros(8, 8))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            logits = logit + 0 * z[..., None, None]
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    trainer = make_trainer(digits, pair=(model, guide), epochs=5, optimizer="adam(lr=0.05)")
    rows, _ = fit(trainer)
    assert trainer.validation_bound()[0] == pytest.approx(rows[-1]["valid_elbo"])
    x = digits.valid.scored()
    with trainer.parameters():
        scored = log_likelihood(model, guide, x, 1).elbo.mean()
    assert float(scored) == pytest.approx(rows[-1]["valid_elbo"], abs=1e-3)
    assert not pyro.get_param_store().keys()


def test_the_validation_error_of_video_is_over_blocks(digits):
    ordered = dataclasses.replace(digits, ordered=True)
    trainers = [make_trainer(data) for data in (digits, ordered)]
    (bound, error), (same_bound, block_error) = (t.validation_bound() for t in trainers)
    assert bound == same_bound
    assert block_error != error


def test_weights_and_noise_have_seeds_of_their_own(tmp_path, digits):
    """The first noise of the training is not the stream the weights were drawn from."""
    _, _, trainer = start_run(SMALL.replace(device="cpu"), tmp_path / "run")
    first = next(trainer.guide.parameters()).detach().flatten()
    with seeded(trainer.seed):
        again = nn.Linear(64, 16).weight.detach().flatten()
    assert not torch.isclose(first[:16], again[:16]).any()


def test_a_program_without_parameters_is_refused(digits):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def model(x):
        guide(x)
        with pyro.plate("pixels", len(x), dim=-1):
            pyro.sample("x", dist.Bernoulli(x.new_full((8, 8), 0.5)).to_event(2), obs=x)

    with pytest.raises(InputError, match="neither model nor guide has a parameter"):
        make_trainer(digits, pair=(model, guide))


def test_programs_of_other_latents_are_refused_before_training(digits):
    model, _ = build_pair(SMALL, facts_of(digits))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal(pyro.param("loc", torch.zeros(3)), 1.0).to_event(1))

    with pytest.raises(InputError, match=r"latent site '\w' is in the (model|guide) but not in"):
        make_trainer(digits, pair=(model, guide))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(digits, dtype):
    trainer = make_trainer(digits, epochs=1, dtype=dtype)
    fit(trainer)
    assert {v.dtype for v in trainer.weights().values()} == {dtype}


@pytest.mark.parametrize(
    "optimizer",
    ["adam", "adamw(lr=1e-3)", "rmsprop(lr=1e-3, centered=True)", "sgd(lr=1e-3, momentum=0.9)",
     "adagrad", "adamax", "nadam", "radam", "adadelta"],
)  # fmt: skip
def test_any_torch_optimizer_trains_and_resumes(digits, optimizer):
    whole = make_trainer(digits, epochs=2, optimizer=optimizer)
    expected, _ = fit(whole)
    first = make_trainer(digits, epochs=1, optimizer=optimizer)
    fit(first)
    second = make_trainer(digits, epochs=2, optimizer=optimizer)
    second.load_state_dict(first.state_dict())
    rows, _ = fit(second)
    assert without_clock(rows) == without_clock(expected[1:])
    assert same(second.weights(), whole.weights())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_cuda_resumes(digits):
    whole = make_trainer(digits, epochs=2, device="cuda")
    expected, _ = fit(whole)
    first = make_trainer(digits, epochs=1, device="cuda")
    fit(first)
    second = make_trainer(digits, epochs=2, device="cuda")
    second.load_state_dict(first.state_dict())
    rows, _ = fit(second)
    assert rows[-1]["valid_elbo"] == pytest.approx(expected[-1]["valid_elbo"], rel=1e-4)
    assert {v.device.type for v in second.weights().values()} == {"cuda"}


@pytest.mark.parametrize(("beta", "trained"), [(0.0, "reconstruction"), (1.0, "log_joint")])
def test_a_point_is_chosen_by_its_reconstruction_and_nothing_is_called_a_bound(
    digits, beta, trained
):
    """β = 0 is an autoencoder; at β = 1 training maximizes log p(x, z(x))."""
    torch.manual_seed(0)
    trainer = make_trainer(digits, SMALL.replace(guide="delta"), epochs=3, beta=beta)
    assert (trainer.criterion, trainer.training_criterion) == ("reconstruction", trained)
    rows, _ = fit(trainer)
    assert not any("elbo" in key for row in rows for key in row)
    assert trained in rows[0]
    assert rows[-1]["valid_reconstruction"] > rows[0]["valid_reconstruction"]
    x = digits.valid.scored()
    with torch.no_grad():
        z = trainer.guide.posterior(x).mean
        expected = trainer.model.decode(z).log_prob(x).double().mean()
    assert rows[-1]["valid_reconstruction"] == pytest.approx(float(expected), rel=1e-5)
    best = max(rows, key=lambda row: row["valid_reconstruction"])
    assert best["epoch"] == trainer.progress.best_epoch


def test_an_autoencoders_loss_is_minus_its_reconstruction(digits):
    """δ(z − μ(x)) at β = 0: Σ log p(x|μ(x)), whatever the prior."""
    gradients = {}
    for prior in ("standard_normal", "laplace"):
        config = SMALL.replace(guide="delta", prior=prior)
        torch.manual_seed(0)
        trainer = make_trainer(digits, config, beta=0.0)
        x = trainer._two_data()
        with trainer.parameters():
            loss = trainer.objective.differentiable_loss(trainer.svi.model, trainer.svi.guide, x)
            leaves = list(trainer.optim.parameters.values())
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        expected = -trainer.model.decode(trainer.guide.posterior(x).mean).log_prob(x).sum()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        gradients[prior] = [g for g in found if g is not None and bool(g.any())]
    for one, other in zip(*gradients.values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("objective", "key", "is_bound"),
    [
        ("trace", "elbo", True),
        ("trace_mean_field", "elbo", True),
        ("trace_graph", "elbo", True),
        ("trace_enum", "elbo", True),
        ("closed_form", "elbo", True),
        ("sticking_the_landing", "elbo", True),
        ("closed_form(free_bits=0.1)", "objective", True),
        ("iwae(num_particles=3)", "objective", True),
        ("dreg(num_particles=3)", "objective", True),
        ("renyi(alpha=0.5, num_particles=3)", "objective", True),
        ("renyi(alpha=-1, num_particles=3)", "objective", False),
        ("pyro_renyi(alpha=-1.0, num_particles=3)", "objective", False),
        ("tvo(num_particles=3)", "objective", True),
        ("tvo(num_particles=3, side=right)", "objective", False),
        ("reweighted_wake_sleep(num_particles=3)", "objective", True),
    ],
)
def test_only_an_elbo_is_called_one(digits, objective, key, is_bound):
    """Every objective trains; its own value has its own name, beside the validation ELBO."""
    trainer = make_trainer(digits, epochs=1, objective=build("objective", objective))
    rows, _ = fit(trainer)
    assert {"elbo", "objective"} & set(rows[0]) == {key}
    assert math.isfinite(rows[0][key])
    assert rows[0]["valid_elbo"] < 0
    assert trainer.is_lower_bound == is_bound


def test_below_beta_one_there_is_no_lower_bound(digits):
    assert not make_trainer(digits, beta=0.5).is_lower_bound
    assert make_trainer(digits, beta=2.0).is_lower_bound
    assert make_trainer(digits, warm_up=2).is_lower_bound  # at the last β
    assert not make_trainer(digits, SMALL.replace(guide="delta")).is_lower_bound


@pytest.mark.parametrize("name", ["tvo", "reweighted_wake_sleep"])
@pytest.mark.parametrize("options", [{"beta": 0.5}, {"warm_up": 2}])
def test_what_has_no_beta_is_refused_before_training(digits, name, options):
    with pytest.raises(InputError, match=f"{name} has no β: leave out --beta and --warm-up"):
        make_trainer(digits, objective=build("objective", name), **options)


def test_a_corruption_that_is_no_function_is_refused(digits):
    with pytest.raises(InputError, match="corruption must be a function of x"):
        make_trainer(digits, corruption="mask")
