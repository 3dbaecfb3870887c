"""IWAE-K log-likelihoods: this project's beside Pyro, pythae and the matrix products alone.

    python benchmarks/speed/likelihood.py [--network NAME] [--data N] [--num-samples K]
    python benchmarks/speed/likelihood.py --memory

N data of 784-200-200-z50 (tanh), K = 5,000 samples each, float32, untrained weights with scales
near 1. ``products`` are the decoder's matrix products for N × K rows and nothing else, in chunks of
the fastest size and into memory that is there already: once by ``torch.mm``, once, on a CPU, by
oneDNN's linear operator. ``ours`` draws, beside the K samples, the pilot for k̂, 1,000 more a
datum; ``ours_without_pilot`` does not. Pyro's RenyiELBO runs a datum at a time, all K vectorized,
and pythae's get_nll in its default batches of 100 samples and in those of the fastest size.
Before they are timed, all estimates of the mean log p(x) are printed and must agree.

``--memory``: peak memory against K, one process a number.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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

CHUNKS = (250, 500, 1000, 1600, 3200, 6400, 12800, 25600)
BATCHES = (100, 250, 500, 1000, 2500)
BASELINES = ("products_mm", "products_onednn", "ours")
MEMORY_SIZES = (500, 5_000, 50_000)
MEMORY_OF = ("ours", "pyro_renyi")


@dataclass(frozen=True)
class Setting:
    """A network with weights, data, and how many samples each gets."""

    network: Any
    layers: Any
    x: Any
    num_samples: int
    device: str


@dataclass(frozen=True)
class Evaluation:
    """One way to get log p(x)."""

    run: Callable[[], Any]
    """Returns the mean log p(x) in nats, or None for products alone."""
    note: str = ""


def make_setting(options: argparse.Namespace) -> Setting:
    import torch
    from _networks import NETWORKS, binary_images, initial_layers

    network = NETWORKS[options.network]
    layers = initial_layers(network)
    bias = layers[network.depth - 1][1]
    bias[network.latent_dim :] += math.log(math.e - 1)  # softplus of it is 1
    x = torch.tensor(binary_images(options.data), device=options.device)
    return Setting(network, layers, x, options.num_samples, options.device)


def ours(setting: Setting, **settings: Any) -> Evaluation:
    from _pyro_programs import workbench_pair

    import pyro_vae as pv

    model, guide = workbench_pair(setting.network, setting.layers, setting.device)

    def run() -> float:
        # So few data do not repay compiling once, and would be eager; many evaluations do.
        found = pv.log_likelihood(
            model, guide, setting.x, setting.num_samples, engine="compiled", **settings
        )
        return found.mean

    return Evaluation(run)


def pyro_renyi(setting: Setting) -> Evaluation:
    """A datum at a time: with all at once, all N × K decoded images stand in memory together."""
    import pyro
    from _pyro_programs import Tutorial
    from pyro.infer import RenyiELBO

    programs = Tutorial(setting.network, setting.layers, setting.device)
    loss = RenyiELBO(
        alpha=0, num_particles=setting.num_samples, vectorize_particles=True, max_plate_nesting=1
    )
    with pyro.get_param_store().scope() as store:
        pass

    def run() -> float:
        with pyro.get_param_store().scope(store):
            losses = [loss.loss(programs.model, programs.guide, x[None]) for x in setting.x]
        return -statistics.mean(losses)

    return Evaluation(run)


def pythae(setting: Setting, batch_size: int | None = 100) -> Evaluation:
    """pythae's VAE with the same weights; ``batch_size`` None takes the fastest."""
    import torch
    from _pythae_model import make_vae

    vae = make_vae(setting.network, setting.layers).to(setting.device)

    def run(size: int) -> float:
        with torch.no_grad():
            return float(vae.get_nll(setting.x, setting.num_samples, batch_size=size))

    sizes = [b for b in BATCHES if setting.num_samples % b == 0] or [setting.num_samples]
    size = batch_size or fastest(lambda b: partial(run, b), sizes, setting.device)
    return Evaluation(partial(run, size), f"batches of {size}")


def products(setting: Setting, onednn: bool = False) -> Evaluation:
    """The decoder's products of N × K rows, in chunks of the fastest size, without bias."""
    import torch

    weights = [torch.tensor(w, device=setting.device) for w, _ in decoder(setting)]
    total = len(setting.x) * setting.num_samples

    def make(chunk: int) -> Callable[[], None]:
        sizes = [min(chunk, total - start) for start in range(0, total, chunk)]
        z = torch.randn(min(chunk, total), weights[0].shape[1], device=setting.device)
        outs = [z.new_empty(len(z), w.shape[0]) for w in weights]

        def by_mm() -> None:
            for size in sizes:
                h = z[:size]
                for w, out in zip(weights, outs, strict=True):
                    h = torch.mm(h, w.t(), out=out[:size])

        def by_onednn() -> None:
            for size in sizes:
                h = z[:size]
                for w in weights:
                    h = torch.ops.mkldnn._linear_pointwise(h, w, None, "none", [], "")

        return by_onednn if onednn else by_mm

    if onednn and (setting.device != "cpu" or not torch.backends.mkldnn.is_available()):
        raise Unavailable("oneDNN is not available for this device")
    with torch.no_grad():
        chunk = fastest(make, [c for c in CHUNKS if c <= total] or [total], setting.device)

    once = make(chunk)

    def run() -> None:
        with torch.no_grad():
            once()

    return Evaluation(run, f"chunks of {chunk}")


def decoder(setting: Setting) -> Any:
    return setting.layers[setting.network.depth :]


def fastest(make: Callable[[int], Callable[[], Any]], sizes: list[int], device: str) -> int:
    """The size whose second call is the fastest."""
    seconds = {}
    for size in sizes:
        run = make(size)
        run()
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        seconds[size] = time.perf_counter() - started
    return min(seconds, key=lambda size: seconds[size])


def wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


CONTESTANTS: dict[str, Callable[[Setting], Evaluation]] = {
    "ours": ours,
    "ours_without_pilot": partial(ours, pilot_samples=0),
    "products_mm": products,
    "products_onednn": partial(products, onednn=True),
    "pyro_renyi": pyro_renyi,
    "pythae": pythae,
    "pythae_fastest_batch": partial(pythae, batch_size=None),
}


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Build, check and time all; return the record and whether the estimates agree."""
    setting = make_setting(options)
    evaluations, first, estimates = {}, {}, {}
    for name, make in CONTESTANTS.items():
        if options.only and name not in options.only:
            continue
        started = time.perf_counter()
        try:
            evaluations[name] = make(setting)
        except (ModuleNotFoundError, Unavailable) as error:
            print(f"skipped {name}: {why_skipped(error)}", flush=True)
            continue
        value = evaluations[name].run()
        wait(options.device)
        first[name] = time.perf_counter() - started
        if value is not None:
            estimates[name] = value
    tolerance = 5 * monte_carlo_error(setting)
    centre = statistics.median(estimates.values()) if estimates else math.nan
    agree = {name: abs(value - centre) <= tolerance for name, value in estimates.items()}
    for name, value in estimates.items():
        wrong = "" if agree[name] else "   DISAGREES"
        print(f"  mean log p(x) {name:22} {value:.4f} nats (± {tolerance / 5:.4f}){wrong}")
    contestants = [
        Contestant(name, e.run, partial(wait, options.device), first[name])
        for name, e in evaluations.items()
    ]
    timings = side_by_side(contestants, options.repeats, options.seconds)
    cell = {"network": options.network, "data": options.data, "num_samples": options.num_samples}
    return {
        "cell": {"kind": "time", **cell},
        **environment(options),
        "estimates": estimates,
        "monte_carlo_error": tolerance / 5,
        "notes": {name: e.note for name, e in evaluations.items() if e.note},
        "rows": rows(timings, list(BASELINES)),
    }, all(agree.values())


def monte_carlo_error(setting: Setting) -> float:
    """The standard error of one estimate of the mean, over draws."""
    from _pyro_programs import workbench_pair

    import pyro_vae as pv

    model, guide = workbench_pair(setting.network, setting.layers, setting.device)
    found = pv.log_likelihood(model, guide, setting.x, setting.num_samples, seed=1)
    return found.mean_monte_carlo_error


def peak(options: argparse.Namespace) -> None:
    """Print this process's peak memory in MiB before and after one evaluation."""
    import resource

    import torch

    def now() -> float:
        if options.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(options.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    few = argparse.Namespace(**{**vars(options), "num_samples": 10})
    name = options.only[0]
    CONTESTANTS[name](make_setting(few)).run()  # libraries, compiler and all that is there once
    evaluation = CONTESTANTS[name](make_setting(options))
    before = now()
    evaluation.run()
    print(before, now())


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory above that of K = 10, for each K in a process of its own."""
    found = []
    for name in options.only or MEMORY_OF:
        for num_samples in options.sizes or MEMORY_SIZES:
            command = [sys.executable, __file__, "--peak", "--only", name, "--device",
                       options.device, "--network", options.network, "--data", str(options.data),
                       "--num-samples", str(num_samples)]  # fmt: skip
            command += ["--threads", str(options.threads)] if options.threads else []
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"skipped {name}, K = {num_samples}: {done.stderr.strip().splitlines()[-1:]}")
                continue
            before, after = map(float, done.stdout.split()[-2:])
            found.append({"name": name, "num_samples": num_samples, "mebibytes": after - before,
                          "mebibytes_of_process": after})  # fmt: skip
            print_memory(found[-1:])
    cell = {"kind": "memory", "network": options.network, "data": options.data}
    return {"cell": cell, **environment(options), "rows": found}


def print_memory(found: list[dict[str, Any]]) -> None:
    for row in found:
        print(f"  {row['name']:12} K = {row['num_samples']:6}: {row['mebibytes']:8.1f} MiB above "
              f"K = 10, {row['mebibytes_of_process']:.0f} MiB in all", flush=True)  # fmt: skip


def show(record: dict[str, Any]) -> None:
    c = record["cell"]
    where = record["machine"].get("gpu") or record["machine"]["cpu"]
    where += f", {record['machine']['threads']} threads; {record['date']}"
    if c["kind"] == "memory":
        print(f"\npeak memory, {c['network']}, {c['data']} data; {where}")
        print_memory(record["rows"])
        return
    print(f"\nIWAE-{c['num_samples']}, {c['network']}, {c['data']} data; {where}")
    print(table(record["rows"]))
    print("; ".join(f"{name}: {note}" for name, note in record["notes"].items()), flush=True)


def main(arguments: list[str] | None = None) -> int:
    offered = parser(__doc__ or "", "likelihood")
    offered.add_argument("--network", default="784-200-200-z50")
    offered.add_argument("--data", type=int, default=8)
    offered.add_argument("-K", "--num-samples", type=int, default=5000)
    offered.add_argument("--memory", action="store_true", help="peak memory against K")
    offered.add_argument("--sizes", type=int, nargs="+", metavar="K", help="the K of --memory")
    offered.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = offered.parse_args(arguments)
    check_only(options, CONTESTANTS, offered)
    path = results_file(options)
    if options.show:
        for record in load(path):
            show(record)
        return 0
    with configured(options):
        if options.peak:
            peak(options)
            return 0
        record, agree = (memory(options), True) if options.memory else measure(options)
        if not options.memory:
            show(record)
        save(path, record)
    if not agree:
        print("contestants that disagree compute another thing: do not compare their times")
    return int(not agree)


if __name__ == "__main__":
    sys.exit(main())
