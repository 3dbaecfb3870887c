"""The command line: options in, the library called, tables and pictures out."""

__all__ = ["app"]

import contextlib
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import pyro_vae
from pyro_vae.config import Config, read_yaml
from pyro_vae.defaults import GRADIENT_REPEATS, VALUE_REPEATS
from pyro_vae.defaults import Settings as DiagnosisSettings
from pyro_vae.errors import InputError, suggest

if TYPE_CHECKING:
    from pyro_vae.sweep import Observer, Results
    from pyro_vae.training import Trainer

FIRST, MORE = "First", "More"  # panels of the help
ORDER = (
    "demo", "train", "evaluate", "sample",
    "sweep", "compare", "diagnose", "reconstruct", "traverse", "interpolate", "embed", "report",
    "list",
)  # fmt: skip


class _Commands(typer.core.TyperGroup):
    """The commands in the order in which most people need them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


# Whatever needs torch is imported by the command that needs it: help waits for none of it.
app = typer.Typer(
    name="pyro-vae",
    cls=_Commands,
    help="A workbench for variational autoencoders in Pyro.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False, markup=False, emoji=False)  # paths hold brackets and colons

DEFAULTS = Config()
COMPONENTS, TRAINING, PLACE = "Components", "Training", "Data, seed and place"
CORRUPT = "What the encoder sees in training, such as mask(rate=0.25); x itself is scored."
ENGINE = "compiled or eager; none compiles 5,000 steps or more."
PRECISION = "Of the steps' matrix products: float32, tf32 or bfloat16."
LISTS, SCORES = "What varies (repeat an option for a list)", "Scores"


def _setting(name: str, text: str, panel: str) -> Any:
    """An option that overrides one setting of ``Config``, or leaves it as it is."""
    default = getattr(DEFAULTS, name)
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=text,
        show_default="none" if default is None else str(default),
        rich_help_panel=panel,
    )


def _list(name: str, text: str) -> Any:
    """An option of a sweep that takes several values."""
    default = getattr(DEFAULTS, name)
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=text,
        show_default="none" if default is None else str(default),
        rich_help_panel=LISTS,
    )


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
SplitOption = Annotated[str, typer.Option("--split", help="train, valid or test.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the draws.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
DataRootOption = Annotated[
    str | None,
    typer.Option(
        "--data-root", help="Where data lie; else the run's own, $PYRO_VAE_DATA or the cache."
    ),
]
AllowCodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="Execute the run's component files from outside."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The PNG to write; else one in RUN/figures.")
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.print(f"pyro-vae {pyro_vae.__version__}")
        raise typer.Exit


@app.command(rich_help_panel=FIRST)
def train(
    data: Annotated[str | None, _setting("data", "Data set, see `pyro-vae list`.", PLACE)] = None,
    data_root: Annotated[
        str | None, _setting("data_root", "Where data lie; else $PYRO_VAE_DATA.", PLACE)
    ] = None,
    model: Annotated[str | None, _setting("model", "The generative program.", COMPONENTS)] = None,
    prior: Annotated[str | None, _setting("prior", "p(z).", COMPONENTS)] = None,
    likelihood: Annotated[str | None, _setting("likelihood", "p(x|z).", COMPONENTS)] = None,
    guide: Annotated[str | None, _setting("guide", "q(z|x).", COMPONENTS)] = None,
    encoder: Annotated[
        str | None, _setting("encoder", "Network of the encoder.", COMPONENTS)
    ] = None,
    decoder: Annotated[
        str | None,
        _setting("decoder", "Network of the decoder; none mirrors the encoder's.", COMPONENTS),
    ] = None,
    latent_dim: Annotated[int | None, _setting("latent_dim", "Size of z.", COMPONENTS)] = None,
    objective: Annotated[
        str | None,
        _setting("objective", "The estimator, such as trace(num_particles=5).", TRAINING),
    ] = None,
    beta: Annotated[float | None, _setting("beta", "β, the weight of the KL.", TRAINING)] = None,
    corrupt: Annotated[str | None, _setting("corrupt", CORRUPT, TRAINING)] = None,
    warm_up: Annotated[
        int | None, _setting("warm_up", "Epochs over which β grows from 0.", TRAINING)
    ] = None,
    optimizer: Annotated[
        str | None, _setting("optimizer", "A torch.optim optimizer.", TRAINING)
    ] = None,
    schedule: Annotated[
        str | None,
        _setting("schedule", "A torch.optim schedule, such as step_lr(step_size=10).", TRAINING),
    ] = None,
    clip_norm: Annotated[
        float | None, _setting("clip_norm", "Clip the gradient's global norm.", TRAINING)
    ] = None,
    batch_size: Annotated[int | None, _setting("batch_size", "Data a step.", TRAINING)] = None,
    epochs: Annotated[int | None, _setting("epochs", "Epochs at most.", TRAINING)] = None,
    max_steps: Annotated[int | None, _setting("max_steps", "Steps at most.", TRAINING)] = None,
    patience: Annotated[
        int | None,
        _setting("patience", "Stop after so many epochs without a better bound.", TRAINING),
    ] = None,
    seed: Annotated[int | None, _setting("seed", "Seed of weights and noise.", PLACE)] = None,
    device: Annotated[str | None, _setting("device", "auto, cpu or cuda.", PLACE)] = None,
    dtype: Annotated[str | None, _setting("dtype", "float32 or float64.", PLACE)] = None,
    engine: Annotated[str | None, _setting("engine", ENGINE, PLACE)] = None,
    precision: Annotated[str | None, _setting("precision", PRECISION, PLACE)] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A YAML file of these settings; options override it."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run folder to make; else runs/<data>-<n>.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue this run; --epochs may extend it.")
    ] = None,
    allow_code: AllowCodeOption = False,
    tensorboard: Annotated[
        bool, typer.Option(help="Write TensorBoard events where its package is installed.")
    ] = True,
) -> None:
    """Train a pair by SVI into a run folder.

    [bold]pyro-vae train --data mnist --latent-dim 20 --epochs 50 --out runs/mnist[/]

    Components are specs such as [bold]normal(scale=learned)[/]; quote them in the shell.
    """
    from pyro_vae.run_training import resume_run, start_run

    given = _given(locals())
    if resume is not None:
        if out is not None or config is not None:
            raise InputError("--resume continues a run as it was: leave out --out and --config")
        path = resume
        settings, _, trainer = resume_run(resume, given, allow_code=allow_code)
    else:
        settings = _settings(config, given)
        path = out or _next_folder(Path("runs"), settings.data)
        settings, _, trainer = start_run(settings, path)
    if trainer.finished:
        console.print(
            f"{path} is finished at epoch {trainer.progress.epoch}; to go on, give a larger "
            "--epochs, --max-steps or --patience",
            soft_wrap=True,
        )
        return
    _train(path, settings, trainer, tensorboard)


@app.command(rich_help_panel=MORE)
def sweep(
    prior: Annotated[list[str] | None, _list("prior", "p(z).")] = None,
    likelihood: Annotated[list[str] | None, _list("likelihood", "p(x|z).")] = None,
    guide: Annotated[list[str] | None, _list("guide", "q(z|x).")] = None,
    model: Annotated[list[str] | None, _list("model", "The generative program.")] = None,
    encoder: Annotated[list[str] | None, _list("encoder", "Network of the encoder.")] = None,
    decoder: Annotated[
        list[str] | None, _list("decoder", "Network of the decoder; none mirrors the encoder's.")
    ] = None,
    objective: Annotated[list[str] | None, _list("objective", "The estimator.")] = None,
    latent_dim: Annotated[list[int] | None, _list("latent_dim", "Size of z.")] = None,
    beta: Annotated[list[float] | None, _list("beta", "β, the weight of the KL.")] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=1,
            rich_help_panel=LISTS,
            help="Seeds 0 … n−1 of each; a verdict takes 5, chosen beforehand.",
        ),
    ] = 5,
    corrupt: Annotated[str | None, _setting("corrupt", CORRUPT, TRAINING)] = None,
    warm_up: Annotated[
        int | None, _setting("warm_up", "Epochs over which β grows from 0.", TRAINING)
    ] = None,
    optimizer: Annotated[
        str | None, _setting("optimizer", "A torch.optim optimizer.", TRAINING)
    ] = None,
    schedule: Annotated[
        str | None, _setting("schedule", "A torch.optim schedule.", TRAINING)
    ] = None,
    clip_norm: Annotated[
        float | None, _setting("clip_norm", "Clip the gradient's global norm.", TRAINING)
    ] = None,
    batch_size: Annotated[int | None, _setting("batch_size", "Data a step.", TRAINING)] = None,
    epochs: Annotated[int | None, _setting("epochs", "Epochs at most.", TRAINING)] = None,
    max_steps: Annotated[int | None, _setting("max_steps", "Steps at most.", TRAINING)] = None,
    patience: Annotated[
        int | None,
        _setting("patience", "Stop after so many epochs without a better bound.", TRAINING),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", rich_help_panel=SCORES, help="train, valid or test.")
    ] = "test",
    num_samples: Annotated[
        int,
        typer.Option(
            "--num-samples", "-K", rich_help_panel=SCORES, help="K, importance samples a datum."
        ),
    ] = 5000,
    count: Annotated[
        int | None,
        typer.Option(rich_help_panel=SCORES, help="Score a random subset of so many data."),
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(rich_help_panel=SCORES, help="How many z to decode at once."),
    ] = None,
    data: Annotated[
        str | None,
        _setting("data", "Data set; each likelihood gets the values it takes.", PLACE),
    ] = None,
    data_root: Annotated[
        str | None, _setting("data_root", "Where data lie; else $PYRO_VAE_DATA.", PLACE)
    ] = None,
    device: Annotated[str | None, _setting("device", "auto, cpu or cuda.", PLACE)] = None,
    dtype: Annotated[str | None, _setting("dtype", "float32 or float64.", PLACE)] = None,
    engine: Annotated[str | None, _setting("engine", ENGINE, PLACE)] = None,
    precision: Annotated[str | None, _setting("precision", PRECISION, PLACE)] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A YAML file of settings; options override it."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The sweep's folder, continued if it exists; else runs/sweep-<n>."
        ),
    ] = None,
) -> None:
    """Train combinations of components, several seeds, and compare.

    [bold]pyro-vae sweep --data mnist --prior standard_normal --prior mixture --out runs/priors[/]

    Repeat an option of the first panel to give it several values. The same command continues an
    interrupted sweep; what is there is never trained again, so that lists and seeds can grow.

    Writes sweep.json, sweep.csv and figures/sweep.png; they describe the lists of the last call.
    Which of two is better is said only where five seeds each leave no doubt.
    """
    from pyro_vae.sweep import FACTORS, Stopped, plan_sweep, run_sweep
    from pyro_vae.terminal import graceful_stop

    options = locals()
    lists = {name: options.pop(name) for name in FACTORS}
    settings = _settings(config, _given(options))
    if settings.seed:
        console.print(f"seed: {settings.seed} of '{config}' is not used; a sweep has seeds 0 … n−1")
    folder = out or _next_folder(Path("runs"), "sweep")
    with _checking() as on_check:
        plan = plan_sweep(
            settings,
            {name: values for name, values in lists.items() if values},
            folder,
            seeds=seeds,
            split=split,
            count=count,
            num_samples=num_samples,
            chunk_size=chunk_size,
            on_check=on_check,
        )
    again = "the same command" if out else f"the same command with --out '{folder}'"
    with graceful_stop() as stop, _eager_said():
        try:
            results = run_sweep(plan, _sweep_observer(len(plan.runs), stop))
        except Stopped:
            console.print(f"stopped; to go on: {again}", soft_wrap=True)
            raise typer.Exit(130) from None
    _show_sweep(results)
    if results.failures:
        raise typer.Exit(1)


@app.command("evaluate", rich_help_panel=FIRST)
def evaluate_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN [RUN_B]", help="A run folder, or two to compare.")
    ],
    split: SplitOption = "test",
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-K", help="K, importance samples a datum.")
    ] = 5000,
    adaptive: Annotated[
        bool,
        typer.Option("--adaptive", help="Data that k̂ flags again, by wider proposals or AIS."),
    ] = False,
    adaptive_all: Annotated[
        bool,
        typer.Option(
            "--adaptive-all", help="All data again: k̂ is blind to a mode that q never draws."
        ),
    ] = False,
    evidence: Annotated[
        str | None,
        typer.Option(
            "--evidence",
            help="log p(x) by other means too: best, exact, quadrature, ais. AIS takes seconds a "
            "datum; it needs no guide. See --count.",
            show_default="none",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Score a random subset of so many data, by a fixed seed.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="How many z to decode at once; memory, never the answer.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="best (validation epoch) or last, as training left them.")
    ] = "best",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data_root: DataRootOption = None,
    allow_code: AllowCodeOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="A JSON file for the difference of two runs.")
    ] = None,
) -> None:
    """Score a run: ELBO and log p(x) by IWAE-K, with their errors.

    k̂ tells on which data IWAE-K cannot be trusted. Written to RUN/evaluation/SPLIT.json, an entry
    a protocol, and drawn in RUN/figures: bound_curve.png, pareto_k.png.

    [bold]pyro-vae evaluate runs/a runs/b[/] scores both, and gives the difference of log p(x)
    paired over the data: of two trained networks, not of two priors.
    """
    from pyro_vae.evaluate_command import Options, evaluate_pair, evaluate_run
    from pyro_vae.runs import load_run

    if len(runs) > 2:
        raise InputError(f"evaluate takes one run, or two to compare, got {len(runs)}; see sweep")
    if out is not None and len(runs) == 1:
        raise InputError(
            "--out is for the difference of two runs; one is written to RUN/evaluation"
        )
    options = Options(
        split=split, num_samples=num_samples, count=count, chunk_size=chunk_size, seed=seed,
        adaptive="all" if adaptive_all else "flagged" if adaptive else None,
        evidence=evidence,
    )  # fmt: skip
    loaded = [
        load_run(run, allow_code=allow_code, device=device, weights=weights, data_root=data_root)
        for run in runs
    ]
    if len(loaded) == 1:
        evaluate_run(console, loaded[0], options)
    else:
        evaluate_pair(console, loaded[0], loaded[1], options, out)


@app.command(rich_help_panel=MORE)
def compare(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run folder; else --program.")
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option("--estimator", help="A spec, repeated for several; else the usual ones."),
    ] = None,
    particles: Annotated[str, typer.Option(help="K of the gradients, whole numbers.")] = "1,8,64",
    num_repeats: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Draws an estimator.",
            show_default=f"{VALUE_REPEATS}; of gradients {GRADIENT_REPEATS}",
        ),
    ] = None,
    split: SplitOption = "test",
    count: Annotated[
        int | None, typer.Option(min=1, help="A random subset of so many data.", show_default="100")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="best (validation epoch), last or untrained, as training began.")
    ] = "best",
    gradients: Annotated[bool, typer.Option(help="Compare gradients too.")] = True,
    textbook: Annotated[
        bool, typer.Option("--textbook", help="What the losses of tutorials optimize here.")
    ] = False,
    program: Annotated[
        Path | None,
        typer.Option("--program", help="Your own .py file with model and guide in it; executed."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Data set of --program.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data_root: DataRootOption = None,
    allow_code: AllowCodeOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; else RUN, or runs/compare-<n>.")
    ] = None,
) -> None:
    """Estimators of a bound: value, bias, gradients, cost.

    [bold]pyro-vae compare runs/mnist --estimator trace --estimator 'iwae(num_particles=10)'[/]

    Or of programs of your own: [bold]pyro-vae compare --program my_vae.py --data digits[/]

    Writes comparison.json, figures/estimators.png and figures/signal_to_noise.png.
    """
    from pyro_vae.compare_command import Options, check_specs, compare_subject, parse_particles
    from pyro_vae.comparison.subject import program_subject, run_subject

    options = Options(
        estimators=estimator or None, particles=parse_particles(particles),
        num_repeats=num_repeats, gradients=gradients, textbook=textbook, seed=seed,
    )  # fmt: skip
    check_specs(options.estimators)
    place: dict[str, Any] = {
        "split": split, "count": count, "device": device, "data_root": data_root,
    }  # fmt: skip
    if run is None:
        if program is None or data is None:
            raise InputError("give a run folder, or --program FILE.py with its --data")
        if weights != "best":
            raise InputError("--weights are a run's; a program has those that its file gives it")
        with program_subject(program, data, seed=seed, **place) as subject:
            compare_subject(console, subject, out or _next_folder(Path("runs"), "compare"), options)
        return
    if program is not None or data is not None:
        raise InputError("--program and --data go without a run folder, which has its own")
    subject = run_subject(run, weights=weights, allow_code=allow_code, **place)
    compare_subject(console, subject, out or run, options)


@app.command(rich_help_panel=MORE)
def diagnose(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run folder; else --program.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            help="gap, bounds, reliability, latents, calibration, checks, space: some of them.",
            show_default="all",
        ),
    ] = None,
    skip: Annotated[str | None, typer.Option("--skip", help="Leave these parts out.")] = None,
    count: Annotated[
        int, typer.Option(min=2, help="Random subsets of so many data, of the gap fewer.")
    ] = DiagnosisSettings.count,
    gap_count: Annotated[
        int, typer.Option(min=2, help="Of the gap, in training and test data each.")
    ] = DiagnosisSettings.gap_count,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-K", min=1, help="K of IWAE-K, whose k̂ are shown.")
    ] = DiagnosisSettings.num_samples,
    num_chains: Annotated[
        int, typer.Option(min=2, help="Chains of AIS, a datum.")
    ] = DiagnosisSettings.num_chains,
    num_temperatures: Annotated[
        int, typer.Option(min=2, help="Temperatures of AIS.")
    ] = DiagnosisSettings.num_temperatures,
    weights: Annotated[
        str, typer.Option(help="best (validation epoch) or last, as training left them.")
    ] = "best",
    program: Annotated[
        Path | None,
        typer.Option("--program", help="Your own .py file with model and guide in it; executed."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Data set of --program.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data_root: DataRootOption = None,
    allow_code: AllowCodeOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; else RUN, or runs/diagnose-<n>.")
    ] = None,
) -> None:
    """Where the ELBO loses log p(x), what latents carry, what fits.

    [bold]gap[/]: log p(x) − ELBO, what the guide's family costs and what its encoder.
    [bold]bounds[/]: how far AIS may fall short of log p(x), on data drawn from the model.
    [bold]reliability[/]: k̂ of IWAE-K.
    [bold]latents[/]: rate, mutual information, KL a dimension, collapse.
    [bold]calibration[/]: of q, on data drawn from the model.
    [bold]checks[/]: statistics of data against draws from the model.
    [bold]space[/]: whether it is complete and continuous; classification from z.

    Of programs of your own: [bold]pyro-vae diagnose --program my_vae.py --data digits[/]

    Writes diagnosis.json and figures; both hold the parts of the last call.
    """
    from pyro_vae.diagnose_command import (
        chosen_parts,
        diagnose_subject,
        program_subject,
        run_subject,
    )

    parts, asked = chosen_parts(only, skip), only is not None
    settings = DiagnosisSettings(
        count=count, gap_count=gap_count, num_samples=num_samples, num_chains=num_chains,
        num_temperatures=num_temperatures, seed=seed,
    )  # fmt: skip
    if run is None:
        if program is None or data is None:
            raise InputError("give a run folder, or --program FILE.py with its --data")
        if weights != "best":
            raise InputError("--weights are a run's; a program has those that its file gives it")
        with program_subject(
            program, data, seed=seed, device=device, data_root=data_root
        ) as subject:
            folder = out or _next_folder(Path("runs"), "diagnose")
            diagnose_subject(console, subject, folder, settings, parts, asked)
        return
    if program is not None or data is not None:
        raise InputError("--program and --data go without a run folder, which has its own")
    subject = run_subject(
        run, weights=weights, device=device, data_root=data_root, allow_code=allow_code
    )
    diagnose_subject(console, subject, out or run, settings, parts, asked)


@app.command(rich_help_panel=FIRST)
def sample(
    run: RunArgument,
    num_samples: Annotated[
        int, typer.Option(min=1, max=10_000, help="How many z of the prior.")
    ] = 64,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    allow_code: AllowCodeOption = False,
    out: OutOption = None,
) -> None:
    """Draw from the prior: the decoder's means beside draws of data.

    For a vamp prior its pseudo-inputs too.
    """
    from pyro_vae import gallery
    from pyro_vae.runs import load_run

    loaded = load_run(run, allow_code=allow_code, device=device)
    _say(gallery.draw_samples(loaded, num_samples, seed, out))
    if out is None and gallery.has_pseudo_inputs(loaded):
        _say(gallery.draw_pseudo_inputs(loaded))


@app.command(rich_help_panel=MORE)
def reconstruct(
    run: RunArgument,
    split: SplitOption = "test",
    count: Annotated[int, typer.Option(min=1, help="How many data.")] = 12,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data_root: DataRootOption = None,
    allow_code: AllowCodeOption = False,
    out: OutOption = None,
) -> None:
    """Data above their reconstructions from one z ~ q(z|x)."""
    from pyro_vae import gallery
    from pyro_vae.runs import load_run

    loaded = load_run(run, allow_code=allow_code, device=device, data_root=data_root)
    _say(gallery.draw_reconstructions(loaded, split, count, seed, out))


@app.command(rich_help_panel=MORE)
def traverse(
    run: RunArgument,
    dims: Annotated[
        str | None, typer.Option(help="Dimensions, such as 0,3,5; else the 10 most active.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="How many values a dimension.")] = 11,
    span: Annotated[
        float, typer.Option(min=0.0, help="How far to go, in standard deviations of the prior.")
    ] = 3.0,
    split: SplitOption = "test",
    datum: Annotated[
        int | None,
        typer.Option(min=0, help="Start at this datum's posterior mean, not the prior's."),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data_root: DataRootOption = None,
    allow_code: AllowCodeOption = False,
    out: OutOption = None,
) -> None:
    """What the decoder makes of each latent dimension moved alone."""
    from pyro_vae import gallery
    from pyro_vae.runs import load_run

    loaded = load_run(run, allow_code=allow_code, device=device, data_root=data_root)
    chosen = _whole_numbers(dims) if dims is not None else None
    _say(gallery.draw_traversals(loaded, split, chosen, steps, span, datum, seed, out))


@app.command(rich_help_panel=MORE)
def interpolate(
    run: RunArgument,
    split: SplitOption = "test",
    count: Annotated[int, typer.Option(min=1, help="How many pairs of data.")] = 6,
    steps: Annotated[int, typer.Option(min=2, help="How many z between them.")] = 9,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data_root: DataRootOption = None,
    allow_code: AllowCodeOption = False,
    out: OutOption = None,
) -> None:
    """The decoded line between the posterior means of two data."""
    from pyro_vae import gallery
    from pyro_vae.runs import load_run

    loaded = load_run(run, allow_code=allow_code, device=device, data_root=data_root)
    _say(gallery.draw_interpolation(loaded, split, count, steps, seed, out))


@app.command(rich_help_panel=MORE)
def embed(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw the latent spaces of several runs side by side.")
    ] = False,
    split: SplitOption = "test",
    count: Annotated[int, typer.Option(min=2, help="How many data at most.")] = 5000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data_root: DataRootOption = None,
    allow_code: AllowCodeOption = False,
    out: OutOption = None,
) -> None:
    """The latent map by label; several runs side by side.

    For two latents the decoder's manifold too.

    [bold]pyro-vae embed --compare runs/autoencoder runs/vae[/]

    With --compare one figure of several runs, with samples decoded from N(0, I) and the figures of
    completeness and continuity under each.
    """
    from pyro_vae import gallery
    from pyro_vae.runs import load_run

    if len(runs) > 1 and not compare:
        raise InputError("several runs are drawn side by side: embed --compare RUN RUN …")
    loaded = [
        load_run(path, allow_code=allow_code, device=device, data_root=data_root) for path in runs
    ]
    if compare:
        _say(gallery.draw_latent_comparison(loaded, split, count, seed, out))
        return
    _say(gallery.draw_embedding(loaded[0], split, count, seed, out))
    if out is None and gallery.is_plane(loaded[0]):
        _say(gallery.draw_manifold(loaded[0]))


@app.command(rich_help_panel=MORE)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    complete: Annotated[
        bool,
        typer.Option(
            "--complete", help="First score, compare and diagnose what is not yet; minutes."
        ),
    ] = False,
    split: SplitOption = "test",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data_root: DataRootOption = None,
    allow_code: AllowCodeOption = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The page; else RUN/report.html, of several beside them."),
    ] = None,
) -> None:
    """One page to send: what was trained, scores, pictures.

    [bold]pyro-vae report runs/a runs/b --out report.html[/]

    Self-contained, to be opened without a network. Several runs stand side by side, with the
    difference of each two over the same data. Holds the scores, the comparison and the diagnosis
    that are in the run folders, draws the rest, and lets the latents be explored.
    """
    from pyro_vae.report import check_place, subjects_of, write_report
    from pyro_vae.report_command import complete_run, default_place
    from pyro_vae.runs import load_run
    from pyro_vae.terminal import counting

    loaded = [
        load_run(path, allow_code=allow_code, device=device, data_root=data_root) for path in runs
    ]
    place = out or default_place(runs)
    check_place(place)
    subjects_of(loaded)
    for run in loaded:
        run.data.split(split)
        if complete:
            complete_run(console, run, seed, allow_code=allow_code)
    with counting(console, "report, parts") as on_topic:
        _say(write_report(loaded, place, split=split, seed=seed, on_topic=on_topic))


@app.command("list", rich_help_panel=MORE)
def list_command(
    kind: Annotated[
        str | None, typer.Argument(help="Only this kind: prior, likelihood, guide, ….")
    ] = None,
) -> None:
    """List every component with its arguments and one line."""
    from pyro_vae.components import names
    from pyro_vae.data import describe_data

    kinds = ("data", "prior", "likelihood", "guide", "model", "network", "objective", "corruption",
             "optimizer", "schedule")  # fmt: skip
    if kind is not None and kind not in kinds:
        raise InputError(f"unknown kind {kind!r}{suggest(kind, kinds)}")
    for each in kinds if kind is None else (kind,):
        table = Table(title=each, title_justify="left", title_style="bold", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(style="dim", ratio=1)
        table.add_column(ratio=2)
        for row in describe_data() if each == "data" else map(_described(each), names(each)):
            table.add_row(*row)
        console.print(table)


@app.command(rich_help_panel=FIRST)
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to make; else runs/demo-<n>.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs at most.")] = 300,
    num_samples: Annotated[int, typer.Option("--num-samples", "-K", min=1)] = 5000,
    diagnose: Annotated[
        bool, typer.Option(help="Compare estimators and diagnose, for the page.")
    ] = True,
    seed: SeedOption = 0,
) -> None:
    """Train on handwritten digits, score, draw, report: a minute or two.

    Two runs: eight latents to be scored, two latents to be seen as a map; and a page of both.
    """
    from pyro_vae import gallery
    from pyro_vae.evaluate_command import Options, evaluate_run
    from pyro_vae.report import write_report
    from pyro_vae.report_command import complete_run
    from pyro_vae.run_training import start_run
    from pyro_vae.runs import load_run

    folder = out or _next_folder(Path("runs"), "demo")
    settings = Config(
        data="digits(values=continuous)", likelihood="normal(scale=learned)", latent_dim=8,
        encoder="mlp(hidden=(256, 256))", batch_size=64, warm_up=20, epochs=epochs, patience=60,
        seed=seed, device="cpu", engine="eager",
    )  # fmt: skip
    pictures: list[Path] = []
    runs = []
    for dims in (8, 2):
        path = folder / f"latent-{dims}"
        console.print(f"\nA VAE of {dims} latents on handwritten digits, {path}", style="bold")
        config, _, trainer = start_run(settings.replace(latent_dim=dims), path)
        _train(path, config, trainer, tensorboard=False)
        run = load_run(path)
        evaluate_run(console, run, Options(num_samples=num_samples, seed=seed))
        pictures += [path / "figures" / "training.png", *gallery.draw_all(run, seed=seed)]
        if diagnose:
            console.print("comparing estimators and diagnosing, for the page …")
            complete_run(Console(quiet=True), run, seed, quick=True)
        runs.append(run)
    console.print("\nThe pictures:")
    for picture in pictures:
        console.print(f"  {picture}", soft_wrap=True)
    console.print("\nAll of it in a page, the latents to be explored:")
    console.print(f"  {write_report(runs, folder / 'report.html', seed=seed)}", soft_wrap=True)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings among a command's options that were given."""
    names = {field.name for field in dataclasses.fields(Config)}
    return {k: v for k, v in options.items() if k in names and v is not None}


def _settings(file: Path | None, given: dict[str, Any]) -> Config:
    """A file's settings, a run's own config.yaml among them, and over them what was given."""
    mapping = read_yaml(file) if file else {}
    if "facts" in mapping:  # a run's own, from before engines were recorded
        mapping.setdefault("engine", "eager")
    for key in ("facts", "content", "code"):
        mapping.pop(key, None)
    return Config.from_mapping({**mapping, **given}, str(file))


def _train(path: Path, config: Config, trainer: "Trainer", tensorboard: bool) -> None:
    """Train into the folder, with a display; say how to resume after an interruption."""
    from pyro_vae import gallery
    from pyro_vae.evaluation_tables import POINT, POINT_NOTE, TITLES
    from pyro_vae.run_training import train_run
    from pyro_vae.runs import read_rows
    from pyro_vae.terminal import TrainingDisplay, graceful_stop

    writer = _event_writer(path) if tensorboard else None

    def on_epoch(row: dict[str, Any]) -> None:
        display.on_epoch(row)
        if writer is not None:
            for name, value in row.items():
                if not isinstance(value, str):
                    writer.add_scalar(name, value, row["step"])

    with graceful_stop() as stop, _eager_said(), TrainingDisplay(console, trainer) as display:
        finished = train_run(
            path, config, trainer, on_epoch=on_epoch, on_step=display.on_step, stop=stop
        )
    if writer is not None:
        writer.close()
    progress = trainer.progress
    if not finished:
        console.print(
            f"stopped at step {progress.step}; to go on: pyro-vae train --resume '{path}'"
            + (" --allow-code" if config.code else ""),
            soft_wrap=True,
        )
        raise typer.Exit(130)
    gallery.draw_training(path, read_rows(path / "metrics.jsonl"))
    criterion = POINT if trainer.criterion == "reconstruction" else TITLES[trainer.criterion]
    console.print(
        f"{path}: {progress.epoch} epochs, {progress.step} steps, {progress.seconds:.0f} s; best "
        f"validation {criterion} {progress.best_bound:.2f} nats/datum at epoch "
        f"{progress.best_epoch}",
        soft_wrap=True,
    )
    if criterion == POINT:
        console.print(POINT_NOTE, soft_wrap=True)


@contextlib.contextmanager
def _eager_said() -> Iterator[None]:
    """Leave it to the display to say that steps are eager, and why."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "steps are eager", UserWarning)
        yield


def _event_writer(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(path / "tensorboard")


@contextlib.contextmanager
def _checking() -> Iterator[Callable[[int, int], None]]:
    """Follow the planning of a sweep: a bar on a terminal, elsewhere a line before it."""
    from pyro_vae.terminal import counting

    def on_check(done: int, total: int) -> None:
        show(done, total)
        if done == 0 and total > 1 and not console.is_terminal:
            console.print(f"checking {total} combinations …")

    with counting(console, "checking combinations") as show:
        yield on_check


def _sweep_observer(total: int, stop: Callable[[], bool]) -> "Observer":
    """A line a run; on a terminal a bar too, while it is trained and scored."""
    from pyro_vae import gallery
    from pyro_vae.runs import read_rows
    from pyro_vae.sweep import Observer, PlannedRun, Result, Results
    from pyro_vae.sweep_tables import sweep_line
    from pyro_vae.terminal import TrainingDisplay, counting
    from pyro_vae.training import Trainer

    done = 0

    def title(run: PlannedRun) -> str:
        label = run.configuration.label
        short = label if len(label) <= 40 else f"{label[:39]}…"
        return f"[{done + 1}/{total}] {short}, seed {run.seed}"

    def watch(run: PlannedRun, trainer: Trainer) -> TrainingDisplay:
        return TrainingDisplay(console, trainer, title(run))

    def on_result(results: Results, result: Result) -> None:
        nonlocal done
        done += 1
        rows = read_rows(result.run.path / "metrics.jsonl") if result.trained else []
        if rows and result.failure is None:
            gallery.draw_training(result.run.path, rows)
        console.print(sweep_line(results, result), soft_wrap=True)
        if rows and "reason" in rows[-1] and not console.is_terminal:  # no display said it
            console.print(f"  trained eagerly: {rows[-1]['reason']}", soft_wrap=True)

    following = {"watch": watch} if console.is_terminal else {}
    return Observer(
        count=lambda run: counting(console, title(run)), on_result=on_result, stop=stop, **following
    )


def _show_sweep(results: "Results") -> None:
    from pyro_vae import figures
    from pyro_vae.significance import mean_interval
    from pyro_vae.sweep_tables import sweep_tables, sweep_verdict

    plan = results.plan
    sets = " and ".join(dict.fromkeys(each.config.data for each in plan.configurations))
    title = f"{plan.out}, {plan.split}, {len(plan.configurations[0].split)} data of {sets}"
    console.print(f"\n{title}", style="bold", soft_wrap=True)
    for table in sweep_tables(results, console.width):
        console.print(table, width=max(console.width, table.width or 0), crop=False)
    for line in sweep_verdict(results):
        console.print(line, soft_wrap=True)
    console.print(f"{plan.out / 'sweep.json'}, sweep.csv", soft_wrap=True)
    scored = [each for each in results.configurations if each.scores]
    if scored:
        marks = ["†" if results.is_lower_bound(each.configuration) else "" for each in scored]
        figure = figures.sweep_scores(
            [
                f"{each.label}{mark}{', exact' if each.is_exact else ''}{each.selection}"
                for each, mark in zip(scored, marks, strict=True)
            ],
            [each.scores for each in scored],
            [mean_interval(each.scores) if each.has_enough else None for each in scored],
            quantity=f"{results.score_name}, nats per datum",
            note="† a lower bound on log P(level)" if any(marks) else "",
        )
        _say(figures.save(figure, plan.out / "figures" / "sweep.png"))


def _say(path: Path) -> None:
    console.print(str(path), soft_wrap=True)


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"expected whole numbers such as 0,3,5, got {text!r}") from None


def _described(kind: str) -> Any:
    from pyro_vae.components import find

    def row(name: str) -> tuple[str, str, str]:
        component = find(kind, name)
        options = component.options.items()
        hidden = ("foreach", "fused", "capturable", "differentiable", "maximize", "last_epoch")
        shown = [k if v is ... else f"{k}={v}" for k, v in options if k not in hidden]
        summary = "" if kind in ("optimizer", "schedule") else component.summary
        return name, ", ".join(shown), summary

    return row


def _next_folder(parent: Path, data: str) -> Path:
    """``parent/<name>-<n>`` with the first n that is free."""
    name = Path(data.partition("(")[0]).stem
    candidates = (parent / f"{name}-{n}" for n in itertools.count(1))
    return next(path for path in candidates if not path.exists())
