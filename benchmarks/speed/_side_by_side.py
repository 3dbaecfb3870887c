"""Contestants timed in turn in one process: windows in alternation, medians, paired ratios."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Contestant:
    """Something to time."""

    name: str
    run: Callable[[], Any]
    """One unit of work; it may return before the device is done."""
    wait: Callable[[], None] = lambda: None
    """Returns once all work is done."""
    first_seconds: float = 0.0
    """What building it and its first call took: compilation, checks."""


@dataclass(frozen=True)
class Timing:
    """Seconds a call, one number a window."""

    name: str
    seconds: list[float]
    cores: float
    """Process time over wall time: how many cores it kept busy, in the median window."""
    calls: int
    """Calls a window."""
    first_seconds: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def side_by_side(contestants: list[Contestant], repeats: int, seconds: float) -> list[Timing]:
    """Time windows of about ``seconds`` each, every contestant once a round.

    A round takes the contestants in a new random order, so that none always follows the same
    one. A window of several calls begins after an untimed one, which fills the caches anew.
    """
    calls = {c.name: _calls(c, seconds) for c in contestants}
    windows: dict[str, list[tuple[float, float]]] = {c.name: [] for c in contestants}
    order = random.Random(0)
    for _ in range(repeats):
        for contestant in order.sample(contestants, len(contestants)):
            windows[contestant.name].append(_window(contestant, calls[contestant.name]))
    return [
        Timing(
            c.name,
            [wall for wall, _ in windows[c.name]],
            statistics.median(busy for _, busy in windows[c.name]),
            calls[c.name],
            c.first_seconds,
        )
        for c in contestants
    ]


def _calls(contestant: Contestant, seconds: float) -> int:
    wall, _ = _window(contestant, 1)
    calls = max(1, round(seconds / wall))
    if calls > 1:  # the first estimate is one of a cold call
        wall, _ = _window(contestant, max(1, calls // 4))
    return max(1, round(seconds / wall))


def _window(contestant: Contestant, calls: int) -> tuple[float, float]:
    """Return wall seconds a call and the cores kept busy."""
    if calls > 1:
        contestant.run()
        contestant.wait()
    busy, started = time.process_time(), time.perf_counter()
    for _ in range(calls):
        contestant.run()
    contestant.wait()
    wall = time.perf_counter() - started
    return wall / calls, (time.process_time() - busy) / wall


def quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def ratio(one: list[float], other: list[float]) -> dict[str, Any]:
    """The median of the rounds' ratios, with quartiles."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return {"median": statistics.median(ratios), "quartiles": quartiles(ratios)}


def rows(timings: list[Timing], baselines: list[str]) -> list[dict[str, Any]]:
    """A row a contestant: milliseconds a call, and ratios to each baseline that was timed."""
    known = {t.name: t for t in timings}
    found = []
    for t in timings:
        low, high = quartiles(t.seconds)
        ratios = {b: ratio(t.seconds, known[b].seconds) for b in baselines if b in known}
        found.append(
            {"name": t.name, "milliseconds": 1e3 * t.median, "quartiles": [1e3 * low, 1e3 * high],
             "fastest": 1e3 * min(t.seconds), "ratios": ratios, "cores": t.cores,
             "calls": t.calls, "first_seconds": t.first_seconds,
             "samples": [1e3 * s for s in t.seconds]}
        )  # fmt: skip
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Rows as text: medians [quartiles], ratios by columns."""
    baselines = list(dict.fromkeys(b for row in found for b in row["ratios"]))
    lines = [["", "ms", "[quartiles]", "cores", "first call s", *(f"× {b}" for b in baselines)]]
    for row in found:
        low, high = row["quartiles"]
        cells = [row["name"], f"{row['milliseconds']:.3f}", f"[{low:.3f}, {high:.3f}]",
                 f"{row['cores']:.1f}", f"{row['first_seconds']:.1f}"]  # fmt: skip
        for b in baselines:
            r = row["ratios"].get(b)
            spread = "" if r is None else "[{:.2f}, {:.2f}]".format(*r["quartiles"])
            cells.append("" if r is None else f"{r['median']:.2f} {spread}")
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )
