"""Seconds to a validation bound on static binarized MNIST, eager beside compiled training.

    python benchmarks/speed/end_to_end.py --data-root PATH [--bound -105]

``Trainer`` with a network 784-400-z20 (ReLU), batch 100, Adam 1e-3: the time from its
construction, compilation included, to the end of the first epoch whose validation ELBO (β = 1,
10,000 images, one draw each) reaches the bound. Data are loaded before. The engines train in
alternation, each seed once by each; where the draws are the same, as on a CPU, both pass the same
bounds at the same epochs, and "bounds differ by" says how nearly.
"""

import argparse
import os
import statistics
import sys
import time
from typing import Any

from _record import check_only, configured, environment, load, parser, results_file, save
from _side_by_side import quartiles, ratio

ENGINES = ("eager", "compiled")


def train(data: Any, engine: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train to the bound; return the seconds it took and the bounds on the way."""
    import torch

    import pyro_vae as pv
    from pyro_vae.assembly import build_pair
    from pyro_vae.run_training import facts_of
    from pyro_vae.seeding import seeded

    config = pv.Config(
        encoder=f"mlp(hidden=({options.hidden},))", latent_dim=options.latent_dim, seed=seed
    )
    device = torch.device(options.device)
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    with seeded(seed, "cpu"):
        model, guide = build_pair(config, facts_of(data), data.data_mean)
    trainer = pv.Trainer(
        model,
        guide,
        data,
        optimizer="adam(lr=0.001)",
        batch_size=options.batch,
        epochs=options.epochs,
        seed=seed,
        device=device,
        engine=engine,
    )
    reached = False

    def on_epoch(row: dict[str, Any]) -> None:
        nonlocal reached
        rows.append({**row, "wall": time.perf_counter() - started})
        reached = row["valid_elbo"] >= options.bound

    trainer.fit(on_epoch=on_epoch, stop=lambda: reached)
    return {
        "engine": engine,
        "seed": seed,
        "reached": reached,
        "seconds": rows[-1]["wall"],
        "training_seconds": rows[-1]["seconds"],
        "epochs": len(rows),
        "steps": rows[-1]["step"],
        "valid_elbo": [row["valid_elbo"] for row in rows],
        "standard_error": rows[-1]["valid_elbo_standard_error"],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import pyro_vae as pv

    data = pv.load_data(options.data, options.data_root)
    engines = [e for e in ENGINES if not options.only or e in options.only]
    runs = []
    for seed in range(options.repeats):
        for engine in engines if seed % 2 == 0 else engines[::-1]:
            runs.append(train(data, engine, seed, options))
            print_run(runs[-1])
    return {
        "cell": {"data": options.data, "hidden": options.hidden, "latent_dim": options.latent_dim,
                 "batch": options.batch, "bound": options.bound},
        **environment(options),
        "runs": runs,
    }  # fmt: skip


def print_run(run: dict[str, Any]) -> None:
    missed = "" if run["reached"] else "   BOUND NOT REACHED"
    print(f"  {run['engine']:9} seed {run['seed']}: {run['seconds']:7.1f} s, "
          f"{run['epochs']} epochs, {run['steps']} steps, ELBO {run['valid_elbo'][-1]:.2f} "
          f"± {run['standard_error']:.2f}{missed}", flush=True)  # fmt: skip


def show(record: dict[str, Any]) -> None:
    c = record["cell"]
    where = record["machine"].get("gpu") or record["machine"]["cpu"]
    where += f", {record['machine']['threads']} threads; {record['date']}"
    network = f"784-{c['hidden']}-z{c['latent_dim']}, batch {c['batch']}"
    print(f"\nseconds to a validation ELBO of {c['bound']} nats, {c['data']}, {network}; {where}")
    seconds: dict[str, list[float]] = {}
    for run in record["runs"]:
        if run["reached"]:
            seconds.setdefault(run["engine"], []).append(run["seconds"])
    for engine, values in seconds.items():
        low, high = quartiles(values)
        print(f"  {engine:9} {statistics.median(values):7.1f} s [{low:.1f}, {high:.1f}], "
              f"{len(values)} seeds")  # fmt: skip
    pairs = [[r for r in record["runs"] if r["seed"] == s] for s in range(len(record["runs"]))]
    pairs = [sorted(p, key=lambda r: r["engine"]) for p in pairs if len(p) == 2]
    reached = [p for p in pairs if p[0]["reached"] and p[1]["reached"]]
    if reached:
        found = ratio([p[0]["seconds"] for p in reached], [p[1]["seconds"] for p in reached])
        print("  compiled / eager: {:.2f} [{:.2f}, {:.2f}]".format(
            found["median"], *found["quartiles"]))  # fmt: skip
    for compiled, eager in pairs:
        both = zip(compiled["valid_elbo"], eager["valid_elbo"], strict=False)
        print(f"  seed {eager['seed']}: bounds differ by {max(abs(a - b) for a, b in both):.4f} "
              "nats at most")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    offered = parser(__doc__ or "", "end_to_end")
    offered.set_defaults(repeats=3)
    offered.add_argument("--data", default="binarized_mnist")
    offered.add_argument("--data-root", default=os.environ.get("PYRO_VAE_DATA"))
    offered.add_argument("--bound", type=float, default=-105.0, help="nats; default -105")
    offered.add_argument("--hidden", type=int, default=400)
    offered.add_argument("--latent-dim", type=int, default=20)
    offered.add_argument("--batch", type=int, default=100)
    offered.add_argument("--epochs", type=int, default=50, help="the most; default 50")
    options = offered.parse_args(arguments)
    check_only(options, ENGINES, offered)
    path = results_file(options)
    if options.show:
        for record in load(path):
            show(record)
        return 0
    with configured(options):
        record = measure(options)
        show(record)
        save(path, record)
    return int(not all(run["reached"] for run in record["runs"]))


if __name__ == "__main__":
    sys.exit(main())
