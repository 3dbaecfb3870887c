"""What each component costs: a training step beside the same step with the default component.

    python benchmarks/components.py [--device cpu] [--rounds 15] [--out FILE]

Steps of the two run in turn in one process; printed is the median of their ratios and the
quartiles. A batch of 128 random images 28×28, 40 latents, an MLP of 256 units, float32.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import pyro
import torch

from pyro_vae.assembly import build_pair
from pyro_vae.components import build, find, names
from pyro_vae.config import Config
from pyro_vae.protocols import Facts

BATCH, EVENT, LEVELS = 128, (28, 28), 256
# Against which each is measured: the same data, the simplest component.
DEFAULTS = {"binary": "bernoulli", "levels": "binomial", "counts": "poisson",
            "continuous": "normal(scale=0.1)"}  # fmt: skip
VARIANTS = {
    "prior": ["flow(kind=affine_autoregressive)", "flow(kind=spline)"],
    "likelihood": ["normal(scale=per_pixel)"],
    "guide": [],
}
OTHER_MODELS = ("hierarchical", "exact_posterior")


def make_step(config: Config, measure: str, device: torch.device):
    """Return a function that takes one step and waits for the device."""
    levels = {"levels": LEVELS, "continuous": LEVELS}.get(measure)
    facts = Facts(EVENT, measure, num_levels=levels, dequantized=measure == "continuous")
    torch.manual_seed(0)
    u = torch.rand(BATCH, *EVENT)
    x = {"binary": (u < 0.3).float(), "levels": (u * LEVELS).floor(), "continuous": u,
         "counts": (u * 20).floor()}[measure].to(device)  # fmt: skip
    model, guide = build_pair(config, facts, u.mean(0))
    model.to(device), guide.to(device)
    loss = build("objective", "trace")
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-4)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        loss.differentiable_loss(model, guide, x).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return step


def compare(one: Config, other: Config, measure: str, device: torch.device, rounds: int):
    """Return the quartiles of one's time over the other's, and the other's median in seconds."""
    steps = [make_step(config, measure, device) for config in (one, other)]
    with pyro.validation_enabled(False):
        for step in steps:
            for _ in range(3):
                step()
        pairs = [tuple(step() for step in steps) for _ in range(rounds)]
    quartiles = statistics.quantiles([a / b for a, b in pairs], n=4)
    return quartiles, statistics.median(b for _, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = []
    for kind in ("prior", "likelihood", "guide"):
        for spec in [*names(kind), *VARIANTS[kind]]:
            if spec in OTHER_MODELS:
                continue
            measure = find(kind, spec).constructor.measure if kind == "likelihood" else "binary"
            default = Config(latent_dim=40, encoder="mlp(hidden=(256,))")
            default = default.replace(likelihood=DEFAULTS[measure])
            config = default.replace(**{kind: spec})
            quartiles, seconds = compare(config, default, measure, device, options.rounds)
            rows.append(
                {"kind": kind, "component": spec, "beside": getattr(default, kind),
                 "ratio": quartiles[1], "quartiles": [quartiles[0], quartiles[2]],
                 "default_ms": 1000 * seconds}
            )  # fmt: skip
            row = rows[-1]
            print(f"{kind:10} {spec:36} {row['ratio']:6.2f} × {row['beside']}"
                  f"  [{quartiles[0]:.2f}, {quartiles[2]:.2f}]", flush=True)  # fmt: skip
    if options.out:
        record = {"device": options.device, "threads": torch.get_num_threads(),
                  "torch": torch.__version__, "rounds": options.rounds, "rows": rows}  # fmt: skip
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
