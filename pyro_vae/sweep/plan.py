"""What a sweep will run: every combination, checked before anything is trained."""

__all__ = ["FACTORS", "Configuration", "PlannedRun", "Plan", "plan_sweep"]

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae.comparability import Scored, common_measure
from pyro_vae.components import find
from pyro_vae.config import SPECS, Config
from pyro_vae.data import DataSplits, Split
from pyro_vae.data.values import MEASURES
from pyro_vae.errors import InputError
from pyro_vae.protocols import Facts
from pyro_vae.run_training import facts_of, start_run
from pyro_vae.runs import check_code, read_config
from pyro_vae.specs import Spec, parse_spec
from pyro_vae.training import TrainingError

# What a sweep takes lists of, in the order of its product.
FACTORS = (
    "model", "prior", "likelihood", "guide", "encoder", "decoder", "objective", "latent_dim",
    "beta",
)  # fmt: skip
# Where a run takes place; no other run for that.
_PLACE = ("device", "data_root", "code", "engine")
_NAME_LENGTH = 80


@dataclass(frozen=True)
class Configuration:
    """One combination of the lists, which the seeds repeat."""

    label: str
    """The settings that vary, as ``key=value``."""
    config: Config
    """Resolved, with the first seed."""
    facts: Facts
    num_parameters: int
    """How many numbers are trained in model and guide together."""
    has_bound: bool
    """Whether the guide has an ELBO; a point has a reconstruction alone."""
    data: DataSplits
    split: Split
    """What is scored."""


@dataclass(frozen=True)
class PlannedRun:
    """One configuration with one seed, and the folder it has or will have."""

    configuration: Configuration
    seed: int
    path: Path
    exists: bool

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.configuration.config.replace(seed=self.seed)


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked: each pair can be built and takes a step."""

    out: Path
    factors: dict[str, list[Any]]
    """The lists."""
    configurations: list[Configuration]
    seeds: int
    runs: list[PlannedRun]
    """Those that exist first; then every configuration of a seed before the next seed."""
    measure: str
    """The measure that all scores stand under."""
    split: str
    num_samples: int
    """K of IWAE-K."""
    chunk_size: int | None = None
    others: int = 0
    """How many runs the folder holds that are none of these."""


def plan_sweep(
    settings: Config,
    factors: Mapping[str, Sequence[Any]],
    out: Path,
    *,
    seeds: int = 5,
    split: str = "test",
    count: int | None = None,
    num_samples: int = 5000,
    chunk_size: int | None = None,
    on_check: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Plan a sweep, and refuse what cannot work before anything is trained.

    Every combination is built and takes one step in a folder of its own that is
    thrown away; all scores must be comparable; runs that the folder holds must
    have been trained with the same settings.

    Arguments:
        settings: what all runs share, and the factors that have no list.
        factors: name → values, of ``FACTORS``.
        out: the sweep's folder, new or to be continued.
        seeds: seeds 0 … seeds − 1 of each combination.
        split, count: what is scored: a split, or so many random data of it.
        num_samples, chunk_size: K of IWAE-K and how it is sliced.
        on_check: told (combinations checked, combinations in all), at 0 too.

    Raises:
        InputError: in one line, what does not fit.
    """
    least_one = {"--seeds": seeds, "--num-samples": num_samples, "--chunk-size": chunk_size}
    for name, value in least_one.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be 1 or more, got {value}")
    existing = _existing_runs(out)
    lists = {name: list(dict.fromkeys(factors[name])) for name in FACTORS if factors.get(name)}
    configs = _combinations(settings, lists)
    shared: dict[str, tuple[DataSplits, Facts, Split]] = {}
    configurations: list[Configuration] = []
    labels: dict[str, str] = {}
    on_check(0, len(configs))
    for i, config in enumerate(configs):
        label = _label(config, configs)
        try:
            resolved, data, num_parameters, has_bound = _dry_run(config)
        except InputError as error:
            raise InputError(f"{label}: {error}" if len(configs) > 1 else str(error)) from None
        same = labels.setdefault(_meaning(resolved), label)
        if same != label:
            raise InputError(f"{same} and {label} are one configuration; leave one out")
        if resolved.data not in shared:
            whole = data.split(split)
            scored = whole if count is None else whole.subset(count)
            shared[resolved.data] = (data, facts_of(data), scored)
        data, facts, scored = shared[resolved.data]
        configurations.append(
            Configuration(label, resolved, facts, num_parameters, has_bound, data, scored)
        )
        on_check(i + 1, len(configs))
    measure = common_measure(
        [Scored(c.config.likelihood, c.facts, c.split) for c in configurations]
    )
    runs = _place(configurations, existing, lists, seeds, out)
    others = len(existing.keys() - {run.path for run in runs})
    return Plan(
        out, lists, configurations, seeds, runs, measure, split, num_samples, chunk_size, others
    )


def _combinations(settings: Config, lists: dict[str, list[Any]]) -> list[Config]:
    """The product of the lists, each combination once, with the data its likelihood takes."""
    configs = []
    for values in itertools.product(*lists.values()):
        config = settings.replace(**dict(zip(lists, values, strict=True)), seed=0)
        configs.append(config.replace(data=_data_for(config)))
    return list({json.dumps(dataclasses.asdict(c)): c for c in configs}.values())


def _data_for(config: Config) -> str:
    """The data spec with the values of the likelihood's measure, unless it says which itself."""
    spec = parse_spec(config.data)
    measure = getattr(find("likelihood", config.likelihood).constructor, "measure", None)
    told = "values" in spec.arguments or spec.arguments.get("binarize") in ("dynamic", "threshold")
    if told or measure not in MEASURES:
        return config.data
    return str(Spec(spec.name, {**spec.arguments, "values": measure}))


def _dry_run(config: Config) -> tuple[Config, DataSplits, int, bool]:
    """Take one step of a run nobody keeps; return its settings, data, size and has_bound."""
    with tempfile.TemporaryDirectory() as folder:
        resolved, data, trainer = start_run(config, Path(folder) / "run")
    trainer.svi.engine = "eager"  # one step is sooner taken than compiled
    with contextlib.suppress(TrainingError):  # the run itself will say so, of each seed
        trainer.fit(stop=lambda: True)
    distinct = {id(p): p.numel() for p in trainer.optim.parameters.values()}
    has_bound = getattr(trainer.guide, "has_bound", True)
    return resolved, data, sum(distinct.values()), has_bound


def _label(config: Config, configs: list[Config]) -> str:
    """What tells this combination from the others; all of p and q where it is the only one."""
    varying = [name for name in FACTORS if len({getattr(c, name) for c in configs}) > 1]
    shown = varying or ["prior", "likelihood", "guide"]
    return ", ".join(f"{name}={getattr(config, name)}" for name in shown)


def _place(
    configurations: list[Configuration],
    existing: dict[Path, Config],
    lists: dict[str, list[Any]],
    seeds: int,
    out: Path,
) -> list[PlannedRun]:
    """Give each run its folder: the one that has its configuration, or a new one."""
    keys = {_key(config): path for path, config in reversed(existing.items())}
    _check_settings(existing, configurations)
    runs, taken = [], {path.name.casefold() for path in out.glob("*")}
    for seed in range(seeds):
        for configuration in configurations:
            config = configuration.config.replace(seed=seed)
            path = keys.get(_key(config))
            if path is not None:
                check_code(existing[path], True, path)
            else:
                names = _names(config, lists)
                path = out / next(name for name in names if name.casefold() not in taken)
                taken.add(path.name.casefold())
            runs.append(PlannedRun(configuration, seed, path, path in existing))
    return sorted(runs, key=lambda run: not run.exists)


def _existing_runs(out: Path) -> dict[Path, Config]:
    try:
        if (out / "config.yaml").exists():
            raise InputError(
                f"'{out}' is a run, and a sweep's folder holds runs; give another --out"
            )
        if not out.exists():
            return {}
        if not out.is_dir():
            raise InputError(f"'{out}' is no folder; give another --out")
        folders = sorted(path for path in out.iterdir() if (path / "config.yaml").is_file())
    except OSError as error:
        raise InputError(f"cannot use '{out}': {error.strerror}; give another --out") from None
    return {path: _read(path) for path in folders}


def _read(path: Path) -> Config:
    try:
        return read_config(path)[0]
    except InputError as error:
        raise InputError(f"{error}; move the folder away, or give another --out") from None


def _check_settings(existing: dict[Path, Config], configurations: list[Configuration]) -> None:
    """Refuse a folder of runs that were trained with other settings than these."""
    planned = configurations[0].config
    shared = [f.name for f in dataclasses.fields(Config)]
    shared = [name for name in shared if name not in (*FACTORS, *_PLACE, "seed")]
    for path, config in existing.items():
        for name in shared:
            one, other = getattr(config, name), getattr(planned, name)
            if name == "data":
                same = [c.config for c in configurations if _factors(c.config) == _factors(config)]
                one = config.data if same else _without_values(config.data)
                other = same[0].data if same else _without_values(planned.data)
            if one != other:
                raise InputError(
                    f"'{path}' was trained with {name}={one!r}, not {other!r}; give the settings "
                    "the sweep began with, or another --out"
                )


def _factors(config: Config) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in FACTORS)


def _without_values(data: str) -> str:
    spec = parse_spec(data)
    kept = {k: v for k, v in spec.arguments.items() if k not in ("values", "binarize")}
    return str(Spec(spec.name, kept))


def _meaning(config: Config) -> str:
    """The same for settings that say the same, defaults spelled out or not."""
    settings = json.loads(_key(config.replace(decoder=config.decoder or config.encoder)))
    for name in FACTORS:
        if name in SPECS:
            kind = "network" if name in ("encoder", "decoder") else name
            settings[name] = _spelled_out(kind, settings[name])
    return json.dumps(settings)


def _spelled_out(kind: str, text: str) -> list[str]:
    """A spec's name and all its arguments, the defaults among them."""
    spec = parse_spec(text)
    arguments = {**find(kind, spec).options, **spec.arguments}
    return [spec.name, *(f"{key}={_shown(arguments[key])}" for key in sorted(arguments))]


def _shown(value: Any) -> str:
    """1 is 1.0, and not True."""
    return repr(float(value)) if type(value) in (int, float) else repr(value)


def _key(config: Config) -> str:
    """What makes it the run that it is."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _PLACE}
    return json.dumps(settings)


def _names(config: Config, lists: dict[str, list[Any]]) -> Iterator[str]:
    """Names for its folder, the shortest first."""
    varying = [name for name in lists if len(lists[name]) > 1]
    yield _name(config, varying or ["prior", "likelihood"])
    yield _name(config, list(lists))
    digest = hashlib.sha256(_key(config).encode()).hexdigest()[:8]
    for suffix in itertools.chain([digest], (f"{digest}-{n}" for n in itertools.count(2))):
        yield f"{_name(config, varying)}-{suffix}"


def _name(config: Config, factors: list[str]) -> str:
    """The values of the factors and the seed, in letters that every file system has."""
    shown = []
    for key in factors:
        value = getattr(config, key)
        if key in SPECS and value is not None:
            spec = parse_spec(value)
            shown.append(str(Spec(Path(spec.name).stem, spec.arguments) if spec.is_path else spec))
        else:
            shown.append(f"{key} {value}")
    words = re.sub(r"[^A-Za-z0-9._]+", "-", " ".join(shown)).strip("-.")
    return f"{words[:_NAME_LENGTH].rstrip('-.') or 'run'}-seed{config.seed}"
