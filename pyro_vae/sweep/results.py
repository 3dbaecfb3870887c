"""What a sweep found: a result a run, a summary a configuration, a verdict a pair."""

__all__ = ["Results", "Result", "ConfigurationResult", "Summary", "Pair", "summarize"]

import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, NamedTuple

from pyro_vae.checkpoint import write_atomically
from pyro_vae.comparability import describe
from pyro_vae.evaluation import Estimate
from pyro_vae.evaluation.active_units import ActiveUnits
from pyro_vae.significance import FEWEST_SEEDS, Verdict, judge
from pyro_vae.sweep.plan import FACTORS, Configuration, Plan, PlannedRun

LEVEL = 0.95
SCORES = ("elbo", "reconstruction", "kl", "log_likelihood", "log_evidence", "bits_per_dim")


@dataclass(frozen=True)
class Result:
    """A run: trained, scored, or failed."""

    run: PlannedRun
    trained: bool
    """Whether it was trained just now, not found."""
    scored: bool
    """Whether it was scored just now, not found."""
    seconds: float
    """Wall-clock time of its training steps."""
    estimates: dict[str, Estimate] = field(default_factory=dict)
    """Under the sweep's measure; a guide without a bound has a reconstruction alone."""
    units: ActiveUnits | None = None
    failure: str | None = None

    @property
    def score(self) -> Estimate | None:
        """What it is judged by: log p(x) where the model has it exactly, else IWAE-K."""
        return self.estimates.get("log_evidence", self.estimates.get("log_likelihood"))

    @property
    def is_new(self) -> bool:
        """Whether anything was done."""
        return self.trained or self.scored

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, numbers and strings."""
        configuration = self.run.configuration
        return {
            "run": self.run.path.name,
            "label": configuration.label,
            **{name: getattr(configuration.config, name) for name in FACTORS},
            "data": configuration.config.data,
            "seed": self.run.seed,
            "failure": self.failure,
            "lower_bound": configuration.facts.dequantized,
            "estimates": {k: dataclasses.asdict(e) for k, e in self.estimates.items()},
            "active_units": dataclasses.asdict(self.units) if self.units else None,
            "parameters": configuration.num_parameters,
            "seconds": self.seconds,
        }

    def to_row(self) -> dict[str, Any]:
        """Return one line of the CSV: plain numbers, None for what there is not."""
        row = self.to_json()
        del row["estimates"]
        for name in SCORES:
            estimate = self.estimates.get(name)
            row[name] = estimate and estimate.value
            row[f"{name}_standard_error"] = estimate and estimate.standard_error
            row[f"{name}_data_standard_error"] = estimate and estimate.data_standard_error
        likelihood = self.estimates.get("log_likelihood")
        row["errors_understated"] = likelihood and likelihood.understated
        row["active_units"] = self.units and self.units.count
        return row


class Summary(NamedTuple):
    """A mean over seeds and its errors, each kept apart."""

    value: float
    standard_error: float | None
    """Over draws of z, independent between seeds: √(Σ se²)/S."""
    data_standard_error: float | None
    """Over data, the same for all seeds: the mean of the seeds' errors, which is no less than the
    error of the mean."""
    seed_standard_error: float | None
    """Over seeds, sd/√S; it contains the error over draws. None for one seed."""
    understated: bool
    """Whether the error over draws is a lower limit."""


def summarize(estimates: Sequence[Estimate]) -> Summary:
    """Return the mean of one score over seeds."""
    count = len(estimates)
    values = [e.value for e in estimates]
    draws = [e.standard_error for e in estimates if e.standard_error is not None]
    data = [e.data_standard_error for e in estimates if e.data_standard_error is not None]
    return Summary(
        value=fmean(values),
        standard_error=math.hypot(*draws) / count if len(draws) == count else None,
        data_standard_error=fmean(data) if len(data) == count else None,
        seed_standard_error=stdev(values) / math.sqrt(count) if count > 1 else None,
        understated=any(e.understated for e in estimates),
    )


@dataclass(frozen=True)
class ConfigurationResult:
    """One configuration over its seeds."""

    configuration: Configuration
    results: list[Result]

    @property
    def label(self) -> str:
        """What tells it from the others."""
        return self.configuration.label

    @cached_property
    def finished(self) -> list[Result]:
        """The runs that have scores."""
        return [result for result in self.results if result.failure is None]

    @property
    def num_failed(self) -> int:
        """How many runs have none: diverged, or not scored."""
        return len(self.results) - len(self.finished)

    @cached_property
    def scores(self) -> list[float]:
        """What it is judged by, one a finished seed that has it; see ``Result.score``."""
        return [result.score.value for result in self.finished if result.score]

    @property
    def has_enough(self) -> bool:
        """Whether an interval over its seeds means something: five, and none failed."""
        return len(self.scores) >= FEWEST_SEEDS and not self.num_failed

    @property
    def selection(self) -> str:
        """How many seeds a mean is of, where some have failed."""
        return f" ({len(self.finished)} of {len(self.results)} seeds)" if self.num_failed else ""

    @property
    def is_exact(self) -> bool:
        """Whether the scores are log p(x) itself, and not IWAE-K."""
        return "log_evidence" in self.summaries

    @property
    def summary(self) -> Summary | None:
        """The mean of the scores, where there are any."""
        return self.summaries.get("log_evidence", self.summaries.get("log_likelihood"))

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        """Score → mean over the finished seeds."""
        found = {}
        for name in SCORES:
            estimates = [r.estimates[name] for r in self.finished if name in r.estimates]
            if estimates:
                found[name] = summarize(estimates)
        return found

    @property
    def active_units(self) -> float | None:
        """The mean count over seeds."""
        counts = [r.units.count for r in self.finished if r.units]
        known = [count for count in counts if count is not None]
        return fmean(known) if known and len(known) == len(counts) else None

    @property
    def unit_notes(self) -> set[str]:
        """What is to be known of the active units."""
        return {r.units.note for r in self.finished if r.units and r.units.note}

    @property
    def seconds(self) -> float | None:
        """The mean training time of the finished seeds."""
        return fmean(r.seconds for r in self.finished) if self.finished else None

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, numbers and strings."""
        return {
            "label": self.label,
            "seeds": [result.run.seed for result in self.finished],
            "failures": self.num_failed,
            "exact": self.is_exact,
            "lower_bound": self.configuration.facts.dequantized,
            "scores": {name: summary._asdict() for name, summary in self.summaries.items()},
            "active_units": self.active_units,
            "parameters": self.configuration.num_parameters,
            "seconds": self.seconds,
        }


class Pair(NamedTuple):
    """Two configurations and what is known of their difference."""

    first: ConfigurationResult
    second: ConfigurationResult
    verdict: Verdict

    @property
    def difference(self) -> float:
        """Of the means, first − second."""
        return fmean(self.first.scores) - fmean(self.second.scores)

    @property
    def has_enough(self) -> bool:
        """Whether an interval means something: five seeds a side, none of them failed."""
        return all(each.has_enough for each in (self.first, self.second))

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, numbers and strings."""
        winner = {"first": self.first.label, "second": self.second.label}.get(self.verdict.winner)
        interval = self.verdict.interval
        return {
            "first": self.first.label,
            "second": self.second.label,
            "better": winner,
            "unresolved": self.verdict.reason,
            "interval": interval._asdict() if interval else None,
        }


@dataclass(frozen=True)
class Results:
    """All that a sweep has found so far; a longer list makes another one."""

    plan: Plan
    results: list[Result]

    @cached_property
    def configurations(self) -> list[ConfigurationResult]:
        """The configurations that have runs, the highest mean score first, unscored last."""
        found = [
            ConfigurationResult(c, [r for r in self.results if r.run.configuration is c])
            for c in self.plan.configurations
        ]
        return sorted(
            (each for each in found if each.results),
            key=lambda each: -fmean(each.scores) if each.scores else math.inf,
        )

    @property
    def comparisons(self) -> int:
        """How many pairs of configurations have an interval, two seeds a side.

        All of them count, also where only those with the best one are shown:
        which one is best was read off the same numbers.
        """
        return max(1, math.comb(sum(len(each.scores) > 1 for each in self.configurations), 2))

    @cached_property
    def pairs(self) -> list[Pair]:
        """A verdict on every two configurations that have scores, the better mean first."""
        scored = [each for each in self.configurations if each.scores]
        count = self.comparisons
        return [
            Pair(one, other, _judge(one, other, count))
            for one, other in itertools.combinations(scored, 2)
        ]

    @property
    def score_name(self) -> str:
        """What the configurations are judged by, in words."""
        bound = f"IWAE-{self.plan.num_samples}"
        exact = [each.is_exact for each in self.configurations if each.scores]
        if not any(exact):
            return bound
        return "exact log p(x)" if all(exact) else f"{bound} or exact log p(x)"

    @property
    def failures(self) -> list[Result]:
        """The runs that failed."""
        return [result for result in self.results if result.failure is not None]

    def is_lower_bound(self, configuration: Configuration) -> bool:
        """Whether its log p(x) bounds the others' measure from below: dequantized among levels."""
        return self.plan.measure == "levels" and configuration.facts.dequantized

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, numbers and strings."""
        plan = self.plan
        first = plan.configurations[0]
        own = (*FACTORS, "data", "data_root", "device", "seed", "code")
        settings = {k: v for k, v in dataclasses.asdict(first.config).items() if k not in own}
        return {
            "protocol": {
                "data": first.config.data,
                "split": plan.split,
                "count": len(first.split),
                "num_samples": plan.num_samples,
                "weights": "best",
                "measure": describe(plan.measure),
                "training": settings,
            },
            "lists": plan.factors,
            "seeds": plan.seeds,
            "planned": len(plan.runs),
            "runs": [result.to_json() for result in self.results],
            "configurations": [each.to_json() for each in self.configurations],
            "level": LEVEL,
            "comparisons": self.comparisons,
            "pairs": [pair.to_json() for pair in self.pairs],
        }

    def write(self) -> None:
        """Write ``sweep.json`` and ``sweep.csv`` into the sweep's folder, whole or not at all.

        They describe the runs of the plan; others that the folder may hold have no place in them.
        """
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        write_atomically(self.plan.out / "sweep.json", lambda file: file.write(text.encode()))
        table = io.StringIO(newline="")
        rows = [result.to_row() for result in self.results]
        writer = csv.DictWriter(table, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        content = table.getvalue().encode()
        write_atomically(self.plan.out / "sweep.csv", lambda file: file.write(content))


def _judge(one: ConfigurationResult, other: ConfigurationResult, comparisons: int) -> Verdict:
    """Judge by the scores, unless some seeds have none: which ones fail is no accident."""
    verdict = judge(one.scores, other.scores, LEVEL, comparisons)
    failed = [
        f"{each.num_failed} of {len(each.results)} seeds of {each.label} failed"
        for each in (one, other)
        if each.num_failed
    ]
    if not failed:
        return verdict
    reason = f"{' and '.join(failed)}: the rest are a selection"
    return verdict._replace(winner="unresolved", reason=reason)
