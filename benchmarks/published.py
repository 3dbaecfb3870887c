"""Published results, reproduced: train, evaluate, record.

    python benchmarks/published.py --data-root PATH --out runs/published [altosaar] [gated]

Each setting trains through the command line (``pyro-vae train …``), for each of
its seeds, and is scored by IWAE-128 on all 10,000 test images; runs that are
already there are resumed or only scored. The table goes to the screen, the
evaluations to ``benchmarks/results/``.
"""

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

STATIC = ["--data", "binarized_mnist", "--device", "cpu", "--no-tensorboard", "--epochs", "200"]

SETTINGS = {
    # 784-256-256-z128, ReLU, RMSprop 1e-3 centered, batch 128, 65,000 steps:
    # github.com/altosaar/variational-autoencoder reports -97.10 for one run.
    "altosaar": (
        [
            *STATIC, "--encoder", "mlp(hidden=(256, 256))", "--latent-dim", "128",
            "--optimizer", "rmsprop(lr=1e-3, centered=True)", "--batch-size", "128",
            "--max-steps", "65000",
        ],
        (0, 1, 2),
    ),
    # The gated network of Tomczak & Welling (2018), with 30,000 steps of their schedule.
    "gated": (
        [
            *STATIC, "--encoder", "gated_mlp(hidden=(300, 300))", "--latent-dim", "40",
            "--optimizer", "adam(lr=5e-4)", "--batch-size", "100", "--warm-up", "10",
            "--max-steps", "30000",
        ],
        (0,),
    ),
}  # fmt: skip


def pyro_vae(*arguments: str) -> None:
    print("pyro-vae", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "pyro_vae", *arguments], check=True)


def reproduce(name: str, data_root: str, out: Path) -> None:
    options, seeds = SETTINGS[name]
    entries = []
    for seed in seeds:
        run = out / f"{name}-{seed}"
        if run.exists():
            pyro_vae("train", "--resume", str(run))
        else:
            own = ["--data-root", data_root, "--seed", str(seed), "--out", str(run)]
            pyro_vae("train", *options, *own)
        pyro_vae("evaluate", str(run), "-K", "128", "--device", "cpu", "--data-root", data_root)
        scored = json.loads((run / "evaluation" / "test.json").read_text())
        (entry,) = [e for e in scored if e["protocol"]["num_samples"] == 128]
        entries.append({"training_seed": seed, **entry})
    record = Path(__file__).parent / "results" / f"{name}.json"
    record.write_text(json.dumps(entries, indent=1) + "\n")
    for quantity in ("elbo", "log_likelihood"):
        values = [entry["estimates"][quantity]["value"] for entry in entries]
        summary = f"{name} {quantity}: {statistics.mean(values):.2f}"
        if len(values) > 1:
            summary += f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2f} over seeds"
        print(summary, [round(value, 2) for value in values])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="*", default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/published"))
    arguments = parser.parse_args()
    for name in arguments.settings:
        if name not in SETTINGS:
            parser.error(f"unknown setting {name!r}; valid: {', '.join(SETTINGS)}")
        reproduce(name, arguments.data_root, arguments.out)


if __name__ == "__main__":
    main()
