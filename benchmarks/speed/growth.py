"""How the cost of a step grows with batch, latents, particles, prior and objective.

    python benchmarks/speed/growth.py [PART …] [--engine compiled|eager]

Parts: batch, latent_dim, num_particles (of IWAE), prior, objective, and data: how the time of an
IWAE-500 evaluation grows with the number of data. Each part varies one thing of a common setting:
784-400-z20 (ReLU), batch 100, N(0, I), Trace_ELBO, Adam; its values run side by side, and ratios
are to the first of them.

For ``vamp(components=500)`` the part ``prior`` prints what its matrix products predict. It runs
the encoder on 500 rows more, whose gradient also reaches the rows themselves, and log p(z) is a
product [B, 2 D] × [2 D, 500]. P is the time of all products of a step, forward and backward and
nothing else, by torch.mm into memory that is there. The prediction is

    t(standard_normal) × P(vamp)/P(standard_normal),

and, stricter, t(standard_normal) + P(vamp) − P(standard_normal), which lets nothing but the
products grow; Adam, which gets 500 × 784 parameters more, is in neither.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from _record import configured, environment, load, parser, results_file, save
from _side_by_side import Contestant, ratio, rows, side_by_side, table

COMPONENTS = 500
PRIORS = ("standard_normal", f"mixture(components={COMPONENTS})", f"vamp(components={COMPONENTS})",
          "flow")  # fmt: skip
OBJECTIVES = ("trace", "trace_mean_field", "closed_form", "sticking_the_landing",
              *(f"{name}(num_particles=5)" for name in ("iwae", "dreg", "renyi")))  # fmt: skip
PARTS: dict[str, tuple[Any, ...]] = {
    "batch": (20, 50, 100, 200, 500, 1000),
    "latent_dim": (2, 10, 20, 50, 100),
    "num_particles": (1, 2, 5, 10, 50),
    "prior": PRIORS,
    "objective": OBJECTIVES,
    "data": (10, 50, 100, 200, 500),
}
NUM_SAMPLES = 500


@dataclass(frozen=True)
class Setting:
    """What a step depends on; each part varies one field."""

    batch: int = 100
    latent_dim: int = 20
    num_particles: int | None = None
    prior: str = "standard_normal"
    objective: str = "trace"
    device: str = "cpu"
    engine: str = "compiled"
    hidden: tuple[int, ...] = (400,)

    def network(self) -> Any:
        from _networks import Network

        return Network(self.hidden, self.latent_dim, "relu")

    def loss(self) -> Any:
        from pyro_vae.components import build

        if self.num_particles is not None:
            return build("objective", f"iwae(num_particles={self.num_particles})")
        return build("objective", self.objective)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def step(setting: Setting, name: str) -> Contestant:
    """A training step of the workbench's pair, on ten batches in turn."""
    import pyro
    import torch
    from _networks import binary_images
    from _pyro_programs import workbench_pair
    from pyro.infer import SVI

    import pyro_vae as pv

    started = time.perf_counter()
    torch.manual_seed(0)
    model, guide = workbench_pair(setting.network(), None, setting.device, setting.prior)
    data = torch.tensor(binary_images(10 * setting.batch), device=setting.device)
    batches = itertools.cycle(data.split(setting.batch))
    with pyro.get_param_store().scope() as store:
        if setting.engine == "eager":
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), setting.loss())
        else:
            make = partial(torch.optim.Adam, lr=1e-3, fused=True)
            svi = pv.CompiledSVI(model, guide, make, setting.loss())

    def run() -> None:
        with pyro.get_param_store().scope(store):
            svi.step(next(batches))

    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    run()
    wait(setting.device)
    first = time.perf_counter() - started
    after = [*model.parameters(), *guide.parameters()]
    if any(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        raise RuntimeError(f"{name}: a step left a parameter as it was")
    if setting.engine != getattr(svi, "engine", "eager"):
        raise RuntimeError(f"{name}: steps are not compiled: {svi.reason}")
    return Contestant(name, run, partial(wait, setting.device), first)


def evaluation(num_data: int, device: str) -> Contestant:
    """IWAE-500 of so many data."""
    import torch
    from _networks import binary_images
    from _pyro_programs import workbench_pair

    import pyro_vae as pv

    started = time.perf_counter()
    model, guide = workbench_pair(Setting().network(), None, device)
    x = torch.tensor(binary_images(num_data), device=device)

    def run() -> None:
        pv.log_likelihood(model, guide, x, NUM_SAMPLES)

    run()
    wait(device)
    return Contestant(str(num_data), run, partial(wait, device), time.perf_counter() - started)


def products(setting: Setting) -> Callable[[], None]:
    """All matrix products of one step, forward and backward, and nothing else."""
    import torch

    vamp = setting.prior.startswith("vamp")
    net, B = setting.network(), setting.batch
    extra = COMPONENTS if vamp else 0
    shapes: list[tuple[tuple[int, int], tuple[int, int]]] = []

    def layer(rows: int, n: int, m: int, rows_with_gradient: int) -> None:
        shapes.append(((rows, n), (n, m)))  # y = x Wᵀ
        shapes.append(((m, rows), (rows, n)))  # ∂W = ∂yᵀ x
        if rows_with_gradient:
            shapes.append(((rows_with_gradient, m), (m, n)))  # ∂x = ∂y W

    for i, (n, m) in enumerate(itertools.pairwise(net.encoder_sizes)):
        layer(B + extra, n, m, extra if i == 0 else B + extra)
    for n, m in itertools.pairwise(net.decoder_sizes):
        layer(B, n, m, B)
    if vamp:
        layer(B, 2 * net.latent_dim, COMPONENTS, B)
    device = setting.device
    pairs = [(torch.randn(a, device=device), torch.randn(b, device=device)) for a, b in shapes]
    outs = [a.new_empty(len(a), b.shape[1]) for a, b in pairs]

    def run() -> None:
        for (a, b), out in zip(pairs, outs, strict=True):
            torch.mm(a, b, out=out)

    return run


def contestants(part: str, setting: Setting, options: argparse.Namespace) -> list[Contestant]:
    values = options.values or PARTS[part]
    kind = type(PARTS[part][0])
    found = []
    for value in map(kind, values):
        if options.only and str(value) not in options.only:
            continue
        if part == "data":
            found.append(evaluation(value, setting.device))
        else:
            found.append(step(replace(setting, **{part: value}), str(value)))
    if part == "prior":
        known = [c.name for c in found]
        for prior in (PRIORS[0], PRIORS[2]):
            if prior in known:
                run = products(replace(setting, prior=prior))
                found.append(Contestant(f"products of {prior}", run, partial(wait, setting.device)))
    return found


def predictions(timings: list[Any]) -> dict[str, Any]:
    """Ratios of the priors' steps to what they are held against, paired in rounds."""
    t = {timing.name: timing.seconds for timing in timings}
    normal, mixture, vamp = PRIORS[:3]
    found = {}
    if normal in t and mixture in t:
        found["mixture / standard_normal"] = ratio(t[mixture], t[normal])
    if normal in t and vamp in t:
        P, Q = t[f"products of {normal}"], t[f"products of {vamp}"]
        rounds = list(zip(t[normal], P, Q, strict=True))
        scaled = [step * q / p for step, p, q in rounds]
        added = [step + q - p for step, p, q in rounds]
        found["P(vamp) / P(standard_normal)"] = ratio(Q, P)
        found["vamp / (t × ratio of products)"] = ratio(t[vamp], scaled)
        found["vamp / (t + difference of products)"] = ratio(t[vamp], added)
    return found


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    setting = Setting(device=options.device, engine=options.engine)
    if part != "batch":
        setting = replace(setting, batch=options.batch)
    built = contestants(part, setting, options)
    if not built:
        raise SystemExit(f"--only {', '.join(options.only)}: no such {part}")
    timings = side_by_side(built, options.repeats, options.seconds)
    return {
        "cell": {"part": part, "engine": "" if part == "data" else options.engine},
        **environment(options),
        "rows": rows(timings, [timings[0].name]),
        "predictions": predictions(timings) if part == "prior" else {},
    }


def show(record: dict[str, Any]) -> None:
    where = record["machine"].get("gpu") or record["machine"]["cpu"]
    part, engine = record["cell"]["part"], record["cell"]["engine"]
    step_of = f"a step against {part}, {engine}"
    what = f"IWAE-{NUM_SAMPLES} against data" if part == "data" else step_of
    print(f"\n{what}; {where}, {record['machine']['threads']} threads; {record['date']}")
    print(table(record["rows"]), flush=True)
    for name, r in record["predictions"].items():
        print("  {}: {:.2f} [{:.2f}, {:.2f}]".format(name, r["median"], *r["quartiles"]))


def main(arguments: list[str] | None = None) -> int:
    offered = parser(__doc__ or "", "growth")
    offered.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    offered.add_argument("--engine", default="compiled", choices=["compiled", "eager"])
    offered.add_argument("--batch", type=int, default=100, help="of all parts but batch")
    offered.add_argument("--values", nargs="+", help="of the part, in place of the usual ones")
    options = offered.parse_args(arguments)
    for part in options.parts:
        if part not in PARTS:
            offered.error(f"unknown part {part!r}; valid: {', '.join(PARTS)}")
    path = results_file(options)
    if options.show:
        for record in load(path):
            show(record)
        return 0
    with configured(options):
        for part in options.parts:
            record = measure(part, options)
            show(record)
            save(path, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
