"""What a person sees of a sweep: a line a run, a row a configuration, a verdict in words."""

__all__ = ["sweep_line", "sweep_tables", "sweep_verdict"]

from rich import box
from rich.table import Table
from rich.text import Text

from pyro_vae.comparability import describe
from pyro_vae.digits import at_least, digits_of, error_text
from pyro_vae.evaluation_tables import POINT, cells
from pyro_vae.sweep.plan import FACTORS
from pyro_vae.sweep.results import LEVEL, ConfigurationResult, Pair, Result, Results, Summary

_LABEL_WIDTH = 20  # of a configuration in a table, at least
_SCORE_COLUMNS = 7  # up to bits/dim
_MANY = 8  # more configurations than that have no room for labels of several lines

# What to think of scores on a split.
_SPLITS = {
    "train": "training data, which training saw,",
    "valid": "validation data, which chose the epoch,",
    "test": "test data",
}


def sweep_line(results: Results, result: Result) -> str:
    """Say in one line what became of a run."""
    run = result.run
    place = f"[{len(results.results)}/{len(results.plan.runs)}]"
    what = f"trained {result.seconds:.0f} s" if result.trained else "found"
    if result.scored and not result.trained:
        what += ", scored"
    line = f"{place} {run.configuration.label}, seed {run.seed}: "
    if result.failure is not None:
        return line + result.failure
    titles = {
        "elbo": "ELBO",
        "log_likelihood": f"IWAE-{results.plan.num_samples}",
        "log_evidence": "exact log p(x)",
    }
    if not run.configuration.has_bound:
        titles = {"reconstruction": POINT}
    shown = [what]
    for name, title in titles.items():
        if name in result.estimates:
            value, error, _, _ = cells(result.estimates[name])
            shown.append(f"{title} {value}" + ("" if error == "–" else f" ± {error} (draws)"))
    return line + ", ".join(shown)


def sweep_tables(results: Results, width: int) -> list[Table]:
    """Lay a sweep out, a row a configuration: in one table, or in two where one is too wide.

    Many configurations with long names get numbers, and a table of their names before.
    """
    rows = [_row(results, each) for each in results.configurations]
    heading, labels = _short_labels(results)
    fixed = {key: max(len(key), *(len(row[key]) for row in rows)) + 2 for key in rows[0]}
    room = width - sum(list(fixed.values())[:_SCORE_COLUMNS])
    tables = []
    if len(rows) > _MANY and max(map(len, labels)) + 2 > room:
        numbers = [f"#{i + 1}" for i in range(len(rows))]
        legend = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        legend.add_column("#", justify="right", no_wrap=True)
        legend.add_column(heading, overflow="fold")
        for number, label in zip(numbers, labels, strict=True):
            legend.add_row(number.removeprefix("#"), Text(label))
        tables, heading, labels = [legend], "#", numbers
    longest = max(map(len, [heading, *labels]))
    least = min(_LABEL_WIDTH, longest + 4)
    parts = [list(fixed)]
    if least + sum(fixed.values()) > width:
        parts = [list(fixed)[:_SCORE_COLUMNS], list(fixed)[_SCORE_COLUMNS:]]
    for keys in parts:
        # Never narrower than its numbers: a line too long loses no digit.
        needed = least + sum(fixed[key] for key in keys)
        widest = longest + 4 + needed - least
        table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.width = max(needed, min(width, widest))
        table.add_column(heading, overflow="fold", ratio=1)
        for key in keys:
            table.add_column(key, justify="right", no_wrap=True, width=fixed[key] - 2)
        for label, row in zip(labels, rows, strict=True):
            table.add_row(Text(label), *(row[key] for key in keys))
        tables.append(table)
    return tables


def _short_labels(results: Results) -> tuple[str, list[str]]:
    """Where one setting varies its name is the heading, and the labels are its values."""
    configs = [each.configuration.config for each in results.configurations]
    varying = [name for name in FACTORS if len({getattr(c, name) for c in configs}) > 1]
    labels = [each.label for each in results.configurations]
    if len(varying) != 1:
        return "", labels
    return varying[0], [label.removeprefix(f"{varying[0]}=") for label in labels]


def _row(results: Results, each: ConfigurationResult) -> dict[str, str]:
    mark = "†" if results.is_lower_bound(each.configuration) else ""
    value = {name: _summary_cells(summary)[0] for name, summary in each.summaries.items()}
    score = _summary_cells(each.summary) if each.summary else ["–"] * 4
    if each.summary:
        score[0] = f"{'exact ' if each.is_exact else ''}{score[0]}{mark}"
    seeds = len(each.finished)
    units = each.active_units

    def bound(name: str) -> str:
        return value[name] + mark if name in value else "–"

    return {
        "seeds": f"{seeds}/{seeds + each.num_failed}" if each.num_failed else f"{seeds}",
        "ELBO": bound("elbo"),
        f"IWAE-{results.plan.num_samples}": score[0],
        "± draws": score[1],
        "± data": score[2],
        "± seeds": score[3],
        "bits/dim": bound("bits_per_dim"),
        "KL": value.get("kl", "–"),
        "active": "–" if units is None else f"{units:.1f}".removesuffix(".0"),
        "parameters": f"{each.configuration.num_parameters:,}",
        "time": "–" if each.seconds is None else f"{each.seconds:.0f} s",
    }


def _summary_cells(summary: Summary) -> list[str]:
    """Value, ± draws, ± data, ± seeds, to the digits of the smallest."""
    digits = digits_of(summary[1:4])
    texts = [f"{summary.value:.{digits}f}", *(error_text(error, digits) for error in summary[1:4])]
    if summary.understated:
        texts[1] = at_least(texts[1])
    return texts


def sweep_verdict(results: Results) -> list[str]:
    """Say what the best configuration is better than, and what the numbers mean."""
    plan, configurations = results.plan, results.configurations
    shown = [pair for pair in results.pairs if pair.first is configurations[0]]
    lines = []
    if shown:
        first = shown[0].first
        lines.append(f"highest mean {results.score_name}: {first.label}{first.selection}")
    lines += [f"  vs {pair.second.label}: {_verdict(results, pair)}" for pair in shown]
    if any(pair.has_enough for pair in shown):
        lines.append(
            "Intervals are over seeds (Welch's t, "
            f"{100 * LEVEL:.0f} % jointly for {results.comparisons} "
            f"{'pair' if results.comparisons == 1 else 'pairs'}), for a number of seeds chosen "
            f"beforehand, on these {_SPLITS[plan.split]} and with this training budget; they say "
            "nothing of longer training."
        )
    lines += _marks(results)
    if results.failures:
        lines.append(
            f"{len(results.failures)} of {len(results.results)} runs failed, for the reasons above "
            "and in sweep.json"
        )
    if plan.others:
        runs = (
            "1 other run in the folder is"
            if plan.others == 1
            else (f"{plan.others} other runs in the folder are")
        )
        lines.append(f"{runs} not part of these lists, nor of sweep.json and sweep.csv")
    bound = f"IWAE-{plan.num_samples}"
    lines.append(
        f"ELBO, {bound} (a lower bound on log p(x) in expectation) and KL in nats/datum, of "
        f"{describe(plan.measure)}; ± standard errors of {bound} over draws of z, over data, and "
        "over seeds (which contains that over draws); active: dimensions with "
        "Var_x(E_q[z|x]) > 0.01 Var_p(z)"
    )
    return lines


def _marks(results: Results) -> list[str]:
    """What the marks in the tables mean, those that are there."""
    configurations = results.configurations
    bound = f"IWAE-{results.plan.num_samples}"
    lines = []
    if any(results.is_lower_bound(each.configuration) for each in configurations):
        lines.append(
            "† a density of dequantized values, brought to the mass on levels by its Jacobian: a "
            "lower bound on log P(level), so bits/dim are an upper bound"
        )
    elif results.plan.measure == "dequantized":
        lines.append("bits/dim of dequantized values are an upper bound")
    if any(each.is_exact for each in configurations):
        lines.append(f"exact: log p(x) itself, in closed form, in place of {bound}")
    bounded = [each.summary for each in configurations if each.summary and not each.is_exact]
    if bounded and results.plan.num_samples == 1:
        lines.append("IWAE-1 is the ELBO; one draw a datum does not tell its error over draws")
    elif any(summary.understated for summary in bounded):
        lines.append(f"≥ few draws carry some estimates of {bound}: their error is a lower limit")
    for note in sorted({note for each in configurations for note in each.unit_notes}):
        labels = [each.label for each in configurations if note in each.unit_notes]
        whose = "" if len(labels) == len(configurations) else f" for {'; '.join(labels)}"
        lines.append(f"active units{whose}: {note}")
    if not all(each.configuration.has_bound for each in configurations):
        lines.append("– a guide that is a point has no bound on log p(x), so no place in a verdict")
    return lines


def _verdict(results: Results, pair: Pair) -> str:
    interval, winner = pair.verdict.interval, pair.verdict.winner
    digits = digits_of([interval.standard_error]) if interval else 2
    numbers = f"{pair.difference:+.{digits}f} nats"
    if interval and pair.has_enough:
        low, high = (f"{v:+.{digits}f}" for v in (interval.low, interval.high))
        numbers += f", interval [{low}, {high}]"
    if winner == "unresolved":
        return f"unresolved ({pair.verdict.reason}); {numbers}"
    better, other = pair.first, pair.second
    caveat = ""
    if results.is_lower_bound(other.configuration) > results.is_lower_bound(better.configuration):
        caveat = "; of its lower bound: its log P(level) may be higher"
    if _is_loose(results, other):
        caveat += (
            "; of its IWAE bound, which is loose here: its log p(x) may be higher (take a larger "
            "-K)"
        )
    return f"better by {numbers.removeprefix('+')}{caveat}"


def _is_loose(results: Results, each: ConfigurationResult) -> bool:
    """Whether IWAE-K may be far below log p(x): too few draws carry it."""
    understated = each.summary is not None and each.summary.understated
    return not each.is_exact and (understated or results.plan.num_samples == 1)
