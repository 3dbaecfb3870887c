"""Values side by side: the exact ELBO, per-datum values of Pyro's estimators, identities."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.enum import get_importance_trace
from torch.distributions import kl_divergence

from pyro_vae import objectives
from pyro_vae.annealing import Beta
from pyro_vae.assembly import build_pair
from pyro_vae.comparison import compare_estimators, compare_values
from pyro_vae.comparison import per_datum as ways
from pyro_vae.comparison.per_datum import draw, per_datum
from pyro_vae.comparison.values import DEFAULT_ESTIMATORS
from pyro_vae.config import Config
from pyro_vae.data import load_data
from pyro_vae.errors import InputError
from pyro_vae.log_weights import log_weight_terms
from pyro_vae.protocols import Facts
from pyro_vae.seeding import seeded

EVENT = (3, 4)


def with_evidence(p):
    def model(x):
        return p.model(x)

    model.log_evidence = p.log_evidence
    return model


@pytest.fixture
def approximate(linear_gaussian):
    """Programs whose q is 0.3 sd and a factor 1.3 off, and 10 data."""
    guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=0.3, variance=1.3))
    return with_evidence(linear_gaussian), guide, linear_gaussian.simulate(10, seed=1)


def pair_of(dtype: str = "float64", **specs):
    """A pair of three latents on 3 × 4 binary pixels, well away from its start, and 7 data."""
    torch.manual_seed(0)
    options = {"encoder": "mlp(hidden=(8,))", "likelihood": "bernoulli", **specs}
    config = Config(latent_dim=3, dtype=dtype, **options)
    x = torch.rand(7, *EVENT, dtype=getattr(torch, dtype)).round()
    mean = torch.full(EVENT, 0.4)
    pair = build_pair(config, Facts(EVENT, "binary"), mean, lambda n: torch.rand(n, *EVENT).round())
    with torch.no_grad():
        for module in pair:
            for parameter in module.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return *pair, x


def by_label(rows):
    return {row.estimator: row for row in rows}


def accepted(rows):
    refused = {row.estimator: row.refusal for row in rows if row.refusal}
    assert not refused
    return by_label(rows)


class TestTruth:
    ELBOS = ("trace", "closed_form", "trace_mean_field", "trace_graph", "sticking_the_landing")

    def test_means_are_the_exact_elbo(self, approximate, linear_gaussian):
        """Within four standard errors over 60 draws of K = 4, seed 0."""
        model, guide, x = approximate
        parameters = linear_gaussian.diagonal_guide(shift=0.3, variance=1.3)(x)
        exact = float(linear_gaussian.elbo(x, *parameters).mean())
        estimators = [f"{name}(num_particles=4)" for name in self.ELBOS]
        rows = accepted(compare_estimators(model, guide, x, estimators=estimators, num_repeats=60))
        gap = exact - float(linear_gaussian.log_evidence(x).mean())
        for label, row in rows.items():
            assert abs(row.mean - exact) < 4 * row.standard_error < 0.5, label
            assert abs(row.bias - gap) < 4 * row.bias_standard_error, label

    def test_standard_errors_are_those_of_the_log_weights(self, approximate):
        """Of trace over 100 draws, against sd(log w) of 20,000: within 4 se, 28 %."""
        model, guide, x = approximate
        (row,) = compare_estimators(model, guide, x, estimators=["trace"], num_repeats=100)
        torch.manual_seed(5)
        spread = log_weight_terms(model, guide, x, 20_000).log_weight.mean(1).std()
        assert row.standard_error == pytest.approx(float(spread) / 10, rel=0.28)

    def test_bias_of_iwae_is_negative_and_shrinks(self, approximate, linear_gaussian):
        """q one sd off; four standard errors below zero at K = 1, 2 and 8, 30 draws, seed 0."""
        model, _, x = approximate
        guide = linear_gaussian.guide_of(linear_gaussian.diagonal_guide(shift=1.0, variance=1.3))
        estimators = [f"iwae(num_particles={K})" for K in (1, 2, 8)]
        rows = compare_estimators(model, guide, x, estimators=estimators, num_repeats=30)
        biases = [row.bias for row in rows]
        assert biases == sorted(biases)
        assert all(row.bias < -4 * row.bias_standard_error for row in rows)

    def test_exact_posterior_leaves_no_bias(self, linear_gaussian):
        """Every weight is p(x): all rows but the analytic KL's are log p(x) on every draw."""
        x = linear_gaussian.simulate(9, seed=2)
        log_px = linear_gaussian.log_evidence(x)
        result = compare_values(
            with_evidence(linear_gaussian), linear_gaussian.exact_guide, x, num_repeats=3
        )
        rows = accepted(result.rows)
        for label in set(rows) - {"closed_form", "trace_mean_field"}:
            row = rows[label]
            assert max(abs(row.bias), row.bias_standard_error) < 1e-10, label
            spread = float(log_px.std()) / 3
            assert row.data_standard_error == pytest.approx(spread, rel=1e-8), label
        assert (result.truth.method, result.truth.error) == ("exact", 0.0)
        assert result.truth.log_px == pytest.approx(float(log_px.mean()), abs=1e-12)

    def test_quadrature_where_the_model_does_not_know(self, approximate, linear_gaussian):
        _, guide, x = approximate
        result = compare_values(
            linear_gaussian.model, guide, x[:3], estimators=["trace"], num_repeats=2
        )
        log_px = float(linear_gaussian.log_evidence(x[:3]).mean())
        assert result.truth.method == "quadrature"
        assert 0 < result.truth.error < 1e-3
        assert abs(result.truth.log_px - log_px) < result.truth.error
        row = result.rows[0]
        expected = math.hypot(row.standard_error, result.truth.error)
        assert row.bias_standard_error == pytest.approx(expected)

    def test_unknown_with_three_latents(self):
        result = compare_values(*pair_of(), estimators=["trace"], num_repeats=2)
        assert result.truth is None
        assert result.rows[0].bias is None


class Own(ELBO):
    """A user's: IWAE written over Pyro's traces, one sum over the batch."""

    def loss(self, model, guide, *args):
        loss = 0.0
        for p, q in self._get_traces(model, guide, args, {}):
            sites = [(1, s) for s in p.nodes.values()] + [(-1, s) for s in q.nodes.values()]
            log_weight = sum(sign * s["log_prob"] for sign, s in sites if s["type"] == "sample")
            loss -= float((log_weight.logsumexp(0) - math.log(self.num_particles)).sum())
        return loss

    def _get_trace(self, model, guide, args, kwargs):
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


class Coupled(Own):
    """One weight for the whole batch."""

    def loss(self, model, guide, *args):
        return -math.log1p(super().loss(model, guide, *args) ** 2)


def particles(K):
    return {"num_particles": K, "vectorize_particles": True, "max_plate_nesting": 1}


PYROS = {
    "trace": (lambda K: objectives.Trace(K), "elbo"),
    "trace_graph": (lambda K: objectives.TraceGraph(K), "elbo"),
    "trace_enum": (lambda K: objectives.TraceEnum(K), "elbo"),
    "trace_mean_field": (lambda K: objectives.TraceMeanField(K), "mean_field"),
    "Trace_ELBO in sequence": (lambda K: Trace_ELBO(num_particles=K), "elbo"),
    "TraceGraph_ELBO": (lambda K: TraceGraph_ELBO(**particles(K)), "elbo"),
    "TraceMeanField_ELBO": (lambda K: TraceMeanField_ELBO(**particles(K)), "mean_field"),
    "TraceEnum_ELBO": (
        lambda K: TraceEnum_ELBO(**particles(K), strict_enumeration_warning=False),
        "elbo",
    ),
    "pyro_renyi": (lambda K: objectives.PyroRenyi(num_particles=K), "iwae"),
    "RenyiELBO in sequence": (lambda K: RenyiELBO(alpha=0, num_particles=max(K, 2)), "iwae"),
    "a user's": (lambda K: Own(**particles(max(K, 2))), "iwae"),
}


def expected_of(kind, model, guide, x, K, seed=3):
    with seeded(seed):
        terms = log_weight_terms(model, guide, x, K)
    if kind == "mean_field":
        q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
        p = poutine.trace(model).get_trace(x).nodes["z"]["fn"]
        return terms.log_likelihood.mean(0) - kl_divergence(q, p)
    if kind == "elbo":
        return terms.log_weight.mean(0)
    return terms.log_weight.logsumexp(0) - math.log(K)


class TestPerDatum:
    @pytest.mark.parametrize("K", [1, 5])
    @pytest.mark.parametrize("name", PYROS)
    def test_pyros_values_are_those_of_the_log_weights(self, name, K, approximate):
        model, guide, x = approximate
        make, kind = PYROS[name]
        objective = make(K)
        count = objective.num_particles
        with torch.no_grad():
            values = per_datum(objective, model, guide, x, draw(model, guide, x, count, seed=3))
            expected = expected_of(kind, model, guide, x, count)
        torch.testing.assert_close(values, expected.detach(), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("num_particles", [1, 4])
    @pytest.mark.parametrize("name", ["trace", "trace_graph", "trace_mean_field", "pyro_renyi"])
    def test_the_cheap_way_is_that_of_masking(self, name, num_particles, approximate, monkeypatch):
        model, guide, x = approximate
        objective = PYROS[name][0](num_particles)
        block = draw(model, guide, x, num_particles, seed=3)
        with monkeypatch.context() as patch:
            patch.setattr(ways, "_by_masking", None)  # which takes an evaluation a datum
            cheap = per_datum(objective, model, guide, x, block)
        monkeypatch.setattr(ways, "_way", lambda objective: None)
        masked = per_datum(objective, model, guide, x, block)
        torch.testing.assert_close(cheap, masked, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("name", ["trace", "trace_graph", "trace_enum", "trace_mean_field"])
    def test_without_the_plates_scale_and_a_common_one(self, name, approximate, linear_gaussian):
        """A plate of 40 that holds the 10 data, and all sites counted thrice."""
        x, pair = approximate[2], subsampled_pair(linear_gaussian)
        pair = tuple(poutine.scale(program, scale=3.0) for program in pair)
        block = draw(*pair, x, 5, seed=3)
        assert float(block.terms.factor) == 12
        values = per_datum(PYROS[name][0](5), *pair, x, block)
        z = block.guide.values["z"]
        joint = linear_gaussian.model
        trace = poutine.trace(poutine.condition(joint, {"z": z})).get_trace(x)
        fit, prior = (trace.nodes[site]["fn"].log_prob(v) for site, v in (("x", x), ("z", z)))
        q, p = block.guide.latent["z"]["fn"], trace.nodes["z"]["fn"]
        kl = kl_divergence(q, p) if name == "trace_mean_field" else q.log_prob(z) - prior
        torch.testing.assert_close(values, (fit - kl).mean(0), rtol=0, atol=1e-10)

    def test_discrete_latents_drawn_by_score_function(self):
        """Pyro's differentiable loss leaves their log q out; its loss, and this, do not."""
        x = torch.linspace(-1, 1, 6, dtype=torch.float64)
        for objective in (objectives.Trace(4), objectives.TraceGraph(4)):
            with torch.no_grad():
                block = draw(labelled, labels, x, 4, seed=1)
                values = per_datum(objective, labelled, labels, x, block)
            torch.testing.assert_close(values, block.terms.log_weight.mean(0))

    @pytest.mark.parametrize("K", [1, 3])
    def test_discrete_latents_summed_out(self, K):
        """Pyro refuses a scale a datum there: all data but one are masked."""
        x = torch.linspace(-1, 1, 5, dtype=torch.float64)
        block = draw(mixture, mixture_guide, x, K, seed=1)
        values = per_datum(TraceEnum_ELBO(num_particles=K), mixture, mixture_guide, x, block)
        z = block.guide.values["z"]
        joint = [
            dist.Normal(z + 2 * c, 1.0).log_prob(x) + math.log(p) for c, p in ((0, 0.2), (1, 0.8))
        ]
        q = dist.Normal(0.3 * x, 0.8).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
        torch.testing.assert_close(values, (torch.stack(joint).logsumexp(0) - q).mean(0))

    def test_what_couples_the_batch_has_no_value_a_datum(self, approximate):
        model, guide, x = approximate
        block = draw(model, guide, x, 2, seed=0)
        with pytest.raises(InputError, match="Coupled has no value a datum"):
            per_datum(Coupled(**particles(2)), model, guide, x, block)

    def test_values_that_do_not_sum_to_the_loss_are_refused(self, approximate, monkeypatch):
        """Each 1e-7 nats off, in float64."""
        for name in ("_by_scale_of_sums", "_by_masking"):
            way = getattr(ways, name)
            monkeypatch.setattr(ways, name, lambda *args, way=way: way(*args) + 1e-7)
        (row,) = compare_estimators(*approximate, estimators=["trace"], num_repeats=1)
        assert "no values sum to minus its loss" in row.refusal

    def test_programs_that_take_some_of_the_data_are_refused(self, approximate):
        model, guide, x = approximate
        (row,) = compare_estimators(
            lambda x: model(x[:5]), lambda x: guide(x[:5]), x, estimators=["iwae"], num_repeats=1
        )
        assert row.refusal.startswith("the data plate holds 5 of the 10 data")


def subsampled_pair(p):
    """A linear-Gaussian pair in a plate of 40 of which x is a subsample."""

    def model(x):
        zero = x.new_zeros(2)
        with pyro.plate("data", 40, subsample_size=len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
            pyro.sample("x", dist.Normal(z @ p.W.T + p.b, p.sigma).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 40, subsample_size=len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.2 * x[:, :2], 0.7).to_event(1))

    return model, guide


def labelled(x):
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.3)))
        pyro.sample("x", dist.Normal(c, 1.0), obs=x)


def labels(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("c", dist.Bernoulli(x.sigmoid()))


def mixture(x):
    probs = x.new_tensor([0.2, 0.8])
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        c = pyro.sample("c", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z + 2 * c.to(x), 1.0), obs=x)


def mixture_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.3 * x, 0.8))


class TestNoise:
    NAMES = (
        "trace", "closed_form", "trace_mean_field", "trace_graph", "trace_enum", "iwae", "dreg",
        "sticking_the_landing", "renyi", "pyro_renyi", "reweighted_wake_sleep", "tvo",
    )  # fmt: skip

    @pytest.mark.parametrize("K", [2, 3])
    def test_estimators_of_equal_k_weigh_the_same_draws(self, K, approximate):
        """What each run of the guide draws: one z for all twelve, another in the next repeat."""
        model, guide, x = approximate
        drawn = []

        def recording(x):
            with poutine.trace() as messenger:
                guide(x)
            drawn.append(messenger.trace.nodes["z"]["value"].detach())

        estimators = [f"{name}(num_particles={K})" for name in self.NAMES]
        accepted(compare_estimators(model, recording, x, estimators=estimators, num_repeats=2))
        drawn = [z for z in drawn if z.numel() == K * 20]
        assert len(drawn) > 2 * 2 * len(estimators) - 10
        assert len({tuple(z.flatten().tolist()) for z in drawn}) == 2

    def test_seed_decides_and_torchs_generator_is_left_alone(self, approximate):
        run = [
            compare_estimators(*approximate, estimators=["iwae"], num_repeats=2, seed=seed)[0]
            for seed in (1, 1, 2)
        ]
        assert run[0] == run[1]
        assert run[0].mean != run[2].mean
        state = torch.get_rng_state()
        compare_estimators(*approximate, num_repeats=1)
        assert torch.equal(state, torch.get_rng_state())

    def test_data_stream_through_in_blocks(self, linear_gaussian):
        """230 data in blocks of 100; every one is counted once."""
        x, steps = linear_gaussian.simulate(230, seed=3), []
        result = compare_values(
            with_evidence(linear_gaussian), linear_gaussian.exact_guide, x,
            estimators=["trace", "iwae"], num_repeats=2, on_step=lambda *step: steps.append(step),
        )  # fmt: skip
        assert steps == [(i, 6) for i in range(1, 7)]
        assert all(abs(row.bias) < 1e-10 for row in accepted(result.rows).values())

    def test_ordered_data_are_averaged_in_blocks(self, linear_gaussian):
        """Each datum ten times in a row: the error over data is larger by about √10."""
        x = linear_gaussian.simulate(10, seed=3).repeat_interleave(10, 0)
        pair = with_evidence(linear_gaussian), linear_gaussian.exact_guide
        errors = [
            compare_values(*pair, x, estimators=["trace"], num_repeats=1, ordered=ordered)
            .rows[0]
            .data_standard_error
            for ordered in (False, True)
        ]
        assert 2.9 < errors[1] / errors[0] < 3.5


def broken_estimate(objective_class):
    """An objective 1e-3 nats off, in value and loss alike."""
    estimate = objective_class.estimate

    def wrong(self, call):
        result = estimate(self, call)
        return result._replace(value=result.value + 1e-3)

    return "estimate", wrong


def broken_trace(objective_class):
    """One of Pyro's that weighs the model 1.001-fold."""
    get_trace = objective_class._get_trace

    def wrong(self, model, guide, args, kwargs):
        return get_trace(self, poutine.scale(model, scale=1.001), guide, args, kwargs)

    return "_get_trace", wrong


def broken_densities(objective_class):
    """One of Pyro's that refuses a scale, its densities of x 1.001-fold."""
    get_trace = objective_class._get_trace

    def wrong(self, model, guide, args, kwargs):
        traces = get_trace(self, model, guide, args, kwargs)
        site = traces[0].nodes["x"]
        site["log_prob"] = 1.001 * site["log_prob"]
        return traces

    return "_get_trace", wrong


BREAKS = {
    "trace": (objectives.Trace, broken_trace, {"trace − closed_form", "trace = "}),
    "closed_form": (
        objectives.ClosedFormELBO, broken_estimate, {"trace − closed_form", "trace_mean_field = "},
    ),
    "trace_graph": (objectives.TraceGraph, broken_trace, {"trace_graph = "}),
    "sticking": (objectives.StickingTheLanding, broken_estimate, {"sticking_the_landing = "}),
    "iwae": (objectives.IWAE, broken_estimate, {"iwae(num_particles=10) = "}),
    "dreg": (objectives.DReG, broken_estimate, {"dreg(num_particles=10) = "}),
    "renyi": (
        objectives.Renyi, broken_estimate,
        {"renyi(alpha=0.5, num_particles=10) = ", "renyi(alpha=-1, num_particles=10) = "},
    ),
    "pyro_renyi": (
        objectives.PyroRenyi, broken_densities, {"pyro_renyi(num_particles=10) = "},
    ),
    "rws": (
        objectives.ReweightedWakeSleep, broken_estimate,
        {"reweighted_wake_sleep(num_particles=10) = "},
    ),
}  # fmt: skip


PAIRS = {
    "diagonal": {},
    "constant scale": {"guide": "diagonal_normal(scale=constant)"},
    "full rank": {"guide": "full_rank_normal"},
    "vamp": {"prior": "vamp(components=4)"},
    "iaf": {"guide": "iaf"},
    "hierarchical": {"model": "hierarchical", "guide": "hierarchical"},
}


class TestChecks:
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    @pytest.mark.parametrize("name", PAIRS)
    def test_all_hold(self, name, dtype):
        model, guide, x = pair_of(dtype, **PAIRS[name])
        result = compare_values(model, guide, x, num_repeats=1)
        rows = by_label(result.rows)
        assert {label for label in rows if rows[label].refusal} <= {
            "closed_form",
            "trace_mean_field",
        }
        assert not [check for check in result.checks if not check.holds]
        assert len(result.checks) >= 11
        known = rows["closed_form"].refusal is None
        assert result.reference == ("closed_form" if known else "trace")
        assert known or name in ("full rank", "vamp", "iaf", "hierarchical")
        if dtype == "float64" and name != "hierarchical":  # whose log q is of order 10⁴
            assert all(check.tolerance < 1e-9 for check in result.checks)

    def test_the_identity_of_the_kl_comes_first(self):
        names = [check.name for check in compare_values(*pair_of(), num_repeats=1).checks]
        assert names[0].startswith("trace − closed_form = −(")
        assert "trace_mean_field = closed_form" in names
        only = compare_values(*pair_of(), estimators=["iwae"], num_repeats=1).checks
        assert only[1].name.startswith("trace(num_particles=10) − closed_form = −(")

    @pytest.mark.parametrize("name", BREAKS)
    def test_a_broken_estimator_is_named(self, name, monkeypatch):
        """1e-3 nats, or one thousandth of log p(x, z): its own identities fail and no others."""
        objective, breaks, expected = BREAKS[name]
        monkeypatch.setattr(objective, *breaks(objective))
        checks = compare_values(*pair_of(), num_repeats=1).checks
        failed = {check.name for check in checks if not check.holds}
        assert len(failed) == len(expected)
        assert all(any(each.startswith(start) for each in failed) for start in expected)

    def test_a_wrong_analytic_kl_of_pyros_is_named(self, monkeypatch):
        monkeypatch.setattr(
            "pyro.infer.trace_mean_field_elbo.kl_divergence",
            lambda q, p: 1.001 * kl_divergence(q, p),
        )
        checks = compare_values(*pair_of(), num_repeats=1).checks
        assert [c.name for c in checks if not c.holds] == ["trace_mean_field = closed_form"]

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_riemann_sum_outside_its_bounds_is_named(self, side, monkeypatch):
        estimate, sign = objectives.TVO.estimate, -1 if side == "left" else 1

        def wrong(self, call):
            result = estimate(self, call)
            return result._replace(value=result.value + (sign * 1e3 if self.side == side else 0.0))

        monkeypatch.setattr(objectives.TVO, "estimate", wrong)
        checks = compare_values(*pair_of(), num_repeats=1).checks
        (failed,) = (check for check in checks if not check.holds)
        assert "tvo" in failed.name
        assert ("side=right" in failed.name) == (side == "right")


class TestRows:
    def test_differences_are_paired_at_equal_k(self, approximate):
        """trace(5) − closed_form(5) is the error of the KL: by hand, on the same draws."""
        model, guide, x = approximate
        result = compare_values(model, guide, x, estimators=["trace(num_particles=5)"])
        (row,) = result.rows
        assert result.reference == "closed_form"
        both = ["trace(num_particles=5)", "closed_form(num_particles=5)"]
        rows = compare_estimators(model, guide, x, estimators=both)
        assert row.difference == pytest.approx(rows[0].mean - rows[1].mean, abs=1e-12)
        assert row.difference_standard_error < 2 * row.standard_error + rows[1].standard_error
        assert 0 < abs(row.difference) < row.largest_difference
        assert rows[1].difference == rows[1].largest_difference == 0

    def test_refusals_are_rows(self):
        result = compare_values(*pair_of(prior="vamp(components=4)"), num_repeats=1)
        rows = by_label(result.rows)
        assert "no closed form" in rows["closed_form"].refusal
        assert rows["closed_form"].mean is rows["closed_form"].difference is None
        assert result.reference == "trace"
        assert rows["trace"].difference == 0
        assert rows["trace_mean_field"].analytic_kl == {"z": False}
        assert rows["trace_mean_field"].difference == pytest.approx(0, abs=1e-12)

    def test_pyros_own_exceptions_are_refusals(self, approximate):
        class Refusing(Own):
            def loss(self, *args):
                raise NotImplementedError("no such\nthing")

        estimators = ["trace", Refusing(), ("mine", Own(**particles(4)))]
        rows = compare_estimators(*approximate, estimators=estimators, num_repeats=2)
        assert [row.estimator for row in rows] == ["trace", "Refusing", "mine"]
        assert rows[1].refusal == "NotImplementedError: no such thing"
        assert rows[2].refusal is None
        assert rows[2].num_particles == 4
        assert not rows[2].is_lower_bound  # nothing is known of it

    def test_a_point_mass_has_no_row(self):
        rows = compare_estimators(*pair_of(guide="delta"), num_repeats=1)
        assert all("a point without a density" in row.refusal for row in rows)

    def test_latents_summed_out(self):
        """trace_enum joins the default list, and trace refuses what it would draw from p."""

        x = torch.linspace(-1, 2, 5, dtype=torch.float64)
        result = compare_values(mixture, mixture_guide, x, num_repeats=1)
        rows = by_label(result.rows)
        assert rows["trace_enum"].mean == pytest.approx(rows["sticking_the_landing"].mean)
        assert "'c' is in the model but not in the guide" in rows["trace"].refusal
        assert all(check.holds for check in result.checks)
        joint = torch.stack([dist.Normal(2.0 * c, 2**0.5).log_prob(x) for c in (0, 1)], -1)
        log_px = (joint + torch.tensor([0.2, 0.8]).double().log()).logsumexp(-1).mean()
        assert abs(result.truth.log_px - float(log_px)) < 1e-3

    def test_bounds_are_marked(self):
        rows = by_label(compare_estimators(*pair_of(), num_repeats=1))
        wrong = {"renyi(alpha=-1, num_particles=10)", "tvo(num_particles=10, side=right)"}
        assert {label for label, row in rows.items() if not row.is_lower_bound} == wrong
        assert list(rows) == list(DEFAULT_ESTIMATORS)

    @pytest.mark.parametrize(
        ("wrap", "is_bound"),
        [
            (Beta(torch.tensor(0.5, dtype=torch.float64)), False),
            (Beta(torch.tensor(2.0, dtype=torch.float64)), True),
            (poutine.scale(scale=0.5), True),  # of all sites alike: no β
        ],
    )
    def test_a_beta_below_one_is_no_bound(self, wrap, is_bound):
        model, guide, x = pair_of()
        (row,) = compare_estimators(
            wrap(model), wrap(guide), x, estimators=["trace"], num_repeats=1
        )
        assert row.is_lower_bound is is_bound

    @pytest.mark.parametrize(
        ("estimators", "message"),
        [
            (["iwea"], "did you mean 'iwae'"),
            (["iwae(num_particles=0)"], "num_particles must be a whole number"),
            (["trace", "trace"], "two estimators are called 'trace'"),
            ([], "expected at least one estimator"),
            ("trace", "expected estimators as a list"),
            ([objectives.Trace], "expected an estimator as a spec"),
        ],
    )
    def test_a_bad_spec_is_an_error(self, estimators, message, approximate):
        with pytest.raises(InputError, match=message):
            compare_estimators(*approximate, estimators=estimators, num_repeats=1)

    def test_objects_are_called_by_their_specs(self, approximate):
        estimators = [objectives.Renyi(-1.0, 4), objectives.IWAE(), Trace_ELBO(num_particles=2)]
        rows = compare_estimators(*approximate, estimators=estimators, num_repeats=1)
        assert [row.estimator for row in rows] == [
            "renyi(alpha=-1.0, num_particles=4)", "iwae", "Trace_ELBO(num_particles=2)",
        ]  # fmt: skip

    def test_plain_functions_with_parameters(self):
        """Initialized at random on the first run: the identities hold, and the store is kept."""

        def model(x):
            w = pyro.param("w", lambda: torch.randn(2, 4, dtype=torch.float64))
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ w, 1.0).to_event(1), obs=x)

        def guide(x):
            a = pyro.param("a", lambda: torch.randn(4, 2, dtype=torch.float64))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x @ a, 0.5).to_event(1))

        x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
        first = compare_values(model, guide, x, num_repeats=2)
        assert not [row for row in first.rows if row.refusal]
        assert len(first.checks) == 13
        assert all(check.holds for check in first.checks)
        before = {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
        assert compare_values(model, guide, x, num_repeats=2) == first
        after = dict(pyro.get_param_store().items())
        assert all(torch.equal(v, after[k]) and after[k].grad is None for k, v in before.items())

    def test_modules_keep_their_parameters_and_gradients(self):
        model, guide, x = pair_of()
        before = [p.detach().clone() for m in (model, guide) for p in m.parameters()]
        compare_estimators(model, guide, x, num_repeats=1)
        after = [p for m in (model, guide) for p in m.parameters()]
        assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
        assert not list(pyro.get_param_store().keys())

    def test_digits_in_float32(self):
        """Real data of 64 pixels: identities hold to float32, the bounds are in their order."""
        splits = load_data("digits")
        torch.manual_seed(0)
        config = Config(data="digits", likelihood="bernoulli", latent_dim=4)
        facts = Facts(splits.event_shape, "binary")
        model, guide = build_pair(config, facts, splits.train.mean)
        x = splits.test.scored(slice(0, 60))
        result = compare_values(model, guide, x, num_repeats=2)
        rows = accepted(result.rows)
        assert all(check.holds and check.largest < 1e-2 for check in result.checks)
        iwae, elbo = rows["iwae(num_particles=10)"], rows["trace"]
        assert elbo.mean < rows["tvo(num_particles=10)"].mean < iwae.mean < -20
