"""A training step: this project's CompiledSVI beside Pyro, NumPyro and hand-written PyTorch.

    python benchmarks/speed/step.py [--network NAME] [--batch B] [--objective elbo|iwae]

784-400-z20 with ReLU and 784-200-200-z50 with tanh, N(0, I), a diagonal normal guide, Bernoulli
logits, float32, Adam with one learning rate; ten batches in memory, taken in turn. Every
contestant starts from the same weights. Before it is timed it is checked: its mean loss at the
start agrees with the others', and the same steps gain as much as they do others of the same
estimator. Compilation is in "first call", not in the times.
The bar is the faster of two hand-written compiled steps (on CUDA: three).
"""

import argparse
import importlib
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from _record import (
    Unavailable,
    check_only,
    configured,
    environment,
    load,
    parser,
    results_file,
    save,
    why_skipped,
)
from _side_by_side import Contestant, rows, side_by_side, table

NUM_BATCHES = 10
LEARNING_RATE = 1e-3
JUDGED = 200  # data
GAIN_TOLERANCE = 0.1
NETWORK_NAMES = ("784-400-z20", "784-200-200-z50")
# name: (module, function or class, arguments)
HAND = "_hand_written", "HandTrained"
OBJECTIVES: dict[str, dict[str, tuple[str, str, dict[str, Any]]]] = {
    "elbo": {
        "ours_trace": ("_pyro_programs", "ours_trace", {}),
        "ours_trace_mean_field": ("_pyro_programs", "ours_trace_mean_field", {}),
        "pyro": ("_pyro_programs", "eager", {}),
        "pyro_jit": ("_pyro_programs", "jit", {}),
        "numpyro": ("_numpyro_programs", "trace", {}),
        "numpyro_mean_field": ("_numpyro_programs", "trace_mean_field", {}),
        "hand_eager": (*HAND, {}),
        "hand_compiled": (*HAND, {"options": {}}),
        "hand_compiled_fallback": (*HAND, {"options": {"fallback_random": True}}),
        "hand_reduce_overhead": (*HAND, {"mode": "reduce-overhead"}),
    },
    "iwae": {
        "ours_iwae": ("_pyro_programs", "ours_iwae", {}),
        "pyro_renyi": ("_pyro_programs", "renyi", {}),
        "numpyro_renyi": ("_numpyro_programs", "renyi", {}),
        "hand_eager": (*HAND, {}),
        "hand_compiled": (*HAND, {"options": {}}),
        "hand_compiled_fallback": (*HAND, {"options": {"fallback_random": True}}),
        "hand_reduce_overhead": (*HAND, {"mode": "reduce-overhead"}),
    },
}
# Noisier gradients learn otherwise: those of a sampled log q(z|x) − log p(z).
SAMPLED_KL = ("ours_trace", "pyro", "pyro_jit", "numpyro")
CUDA_ONLY = ("hand_reduce_overhead",)
COMPILED = ("hand_compiled", "hand_compiled_fallback", "hand_reduce_overhead")
BASELINES = ("pyro", "pyro_renyi", "numpyro", "numpyro_mean_field", "numpyro_renyi")


@dataclass(frozen=True)
class Setting:
    """What every contestant is built from."""

    network: Any
    layers: Any
    batch: int
    num_particles: int | None
    device: str
    lr: float = LEARNING_RATE


def build(name: str, objective: str, setting: Setting, batches: Any) -> tuple[Any, float]:
    """Build a contestant and take its first loss; return it with the seconds that took.

    The loss is taken through the step's own program, so that this compiles it.
    """
    module, attribute, arguments = OBJECTIVES[objective][name]
    make: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    started = time.perf_counter()
    trained = make(setting, **arguments)
    trained.batches = [trained.put(x) for x in batches]
    trained.evaluate(trained.batches[0])
    return trained, time.perf_counter() - started


def check_start(trained: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Each contestant's mean loss a datum at the common start, on the same batch.

    It must agree with that of all others together within 5 standard errors, and vary.
    """
    found = {}
    for name, t in trained.items():
        x = t.batches[0]
        losses = [t.evaluate(x) / len(x) for _ in range(repeats)]
        found[name] = statistics.mean(losses), statistics.stdev(losses) / math.sqrt(repeats)
    checks = []
    for name, (mean, error) in found.items():
        others = [found[other] for other in found if other != name] or [(mean, error)]
        centre = statistics.mean(m for m, _ in others)
        its_error = math.sqrt(sum(e**2 for _, e in others)) / len(others)
        allowed = 5 * math.hypot(error, its_error) + 1e-5 * abs(mean)
        checks.append(
            {"name": name, "loss": mean, "standard_error": error, "of_the_others": centre,
             "agrees": abs(mean - centre) <= allowed, "varies": error > 0}
        )  # fmt: skip
    return checks


def check_learning(trained: dict[str, Any], setting: Setting, steps: int) -> dict[str, float]:
    """How many nats a datum ``steps`` steps gain each contestant.

    All are judged by one formula, on the same training data, by the same draws.
    """
    import torch
    from _hand_written import HandWritten

    x = torch.tensor(setting_batches(setting)).flatten(0, 1)[:JUDGED]

    def loss(layers: Any) -> float:
        judge = HandWritten(setting.network, layers, setting.num_particles)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            return float(judge(x)) / len(x)

    start = loss(setting.layers)
    gains = {}
    for name, t in trained.items():
        t.start()
        for i in range(steps):
            t.step(t.batches[i % NUM_BATCHES])
        t.wait()
        gains[name] = start - loss(t.layers())
    return gains


def check_gains(gains: dict[str, float]) -> dict[str, bool]:
    """Whether each gain is near the median of those with the same estimator.

    Of 20 steps, seeds alone make up to 4 %.
    """
    groups = [[n for n in gains if (n in SAMPLED_KL) == sampled] for sampled in (True, False)]
    agrees = {}
    for group in groups:
        for name in group:
            expected = statistics.median(gains[n] for n in group)
            agrees[name] = abs(gains[name] / expected - 1) < GAIN_TOLERANCE
    return agrees


def setting_batches(setting: Setting) -> Any:
    """Arrays [NUM_BATCHES, batch, 784]."""
    from _networks import binary_images

    return binary_images(NUM_BATCHES * setting.batch).reshape(NUM_BATCHES, setting.batch, -1)


def contestant(name: str, trained: Any, first_seconds: float) -> Contestant:
    turn = itertools.cycle(trained.batches)
    return Contestant(name, lambda: trained.step(next(turn)), trained.wait, first_seconds)


def cell(network: str, batch: int, objective: str, options: argparse.Namespace) -> dict[str, Any]:
    """Build, check and time all contestants of one cell; return its record."""
    from _networks import NETWORKS, initial_layers

    particles = options.num_particles if objective == "iwae" else None
    net = NETWORKS[network]
    setting = Setting(net, initial_layers(net), batch, particles, options.device)
    batches = setting_batches(setting)
    trained, first = {}, {}
    for name in OBJECTIVES[objective]:
        cuda_only = name in CUDA_ONLY and not options.device.startswith("cuda")
        if cuda_only or (options.only and name not in options.only):
            continue
        try:
            trained[name], first[name] = build(name, objective, setting, batches)
        except (ModuleNotFoundError, Unavailable) as error:
            print(f"skipped {name}: {why_skipped(error)}", flush=True)
    if not trained:
        return {}
    start = check_start(trained, options.check_repeats)
    for row in start:
        verdict = "" if row["agrees"] and row["varies"] else "   DISAGREES"
        print(f"  loss at the start {row['name']:24} {row['loss']:.3f} "
              f"± {row['standard_error']:.3f} nats/datum{verdict}")  # fmt: skip
    steps = options.check_steps
    gains = check_learning(trained, setting, steps)
    agrees = check_gains(gains)
    for name, gain in gains.items():
        wrong = "" if agrees[name] else "   DISAGREES"
        print(f"  {steps} steps gain {name:24} {gain:.3f} nats/datum{wrong}")
    contestants = [contestant(name, t, first[name]) for name, t in trained.items()]
    timings = side_by_side(contestants, options.repeats, options.seconds)
    compiled = [t for t in timings if t.name in COMPILED]
    bar = [min(compiled, key=lambda t: t.median).name] if compiled else []
    found = rows(timings, [*bar, *BASELINES])
    return {
        "cell": {"network": network, "batch": batch, "objective": objective},
        "num_particles": particles,
        "activation": net.activation,
        "bar": bar,
        **environment(options),
        "start": start,
        "check_steps": steps,
        "gains": gains,
        "rows": found,
    }


def show(record: dict[str, Any]) -> None:
    c, threads = record["cell"], record["machine"]["threads"]
    where = record["machine"].get("gpu") or f"{record['machine']['cpu']}, {threads} threads"
    print(f"\n{c['network']} ({record['activation']}), batch {c['batch']}, {c['objective']}"
          f"{record['num_particles'] or ''}; {where}; {record['date']}")  # fmt: skip
    print(table(record["rows"]), flush=True)


def main(arguments: list[str] | None = None) -> int:
    offered = parser(__doc__ or "", "step")
    offered.add_argument("--network", action="append", choices=NETWORK_NAMES)
    offered.add_argument("--batch", action="append", type=int)
    offered.add_argument("--objective", action="append", choices=list(OBJECTIVES))
    offered.add_argument("--num-particles", type=int, default=50, help="K of iwae; default 50")
    offered.add_argument("--check-steps", type=int, default=20)
    offered.add_argument("--check-repeats", type=int, default=16)
    options = offered.parse_args(arguments)
    check_only(options, {n: None for known in OBJECTIVES.values() for n in known}, offered)
    path = results_file(options)
    if options.show:
        for record in load(path):
            show(record)
        return 0
    cells = itertools.product(
        options.network or NETWORK_NAMES,
        options.batch or [20, 100, 500],
        options.objective or list(OBJECTIVES),
    )
    wrong = False
    with configured(options):
        import torch

        for network, batch, objective in cells:
            torch.compiler.reset()  # no cell counts against the recompilations of another
            record = cell(network, batch, objective, options)
            if not record:
                continue
            show(record)
            save(path, record)
            wrong |= not all(row["agrees"] and row["varies"] for row in record["start"])
            wrong |= not all(check_gains(record["gains"]).values())
    if wrong:
        print("contestants that disagree compute another thing: do not compare their times")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
