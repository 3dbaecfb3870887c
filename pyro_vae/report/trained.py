"""What was trained: components, settings, and the two programs drawn."""

__all__ = ["trained_topic", "training_topic"]

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pyro_vae import figures, gallery
from pyro_vae.report.content import Block, Topic, figure, note
from pyro_vae.report.markup import chart_svg
from pyro_vae.report.program import program_drawing
from pyro_vae.report.subject import Subject

_SETTINGS = (
    "model", "prior", "likelihood", "guide", "encoder", "decoder", "latent_dim", "objective",
    "beta", "warm_up", "corrupt", "optimizer", "schedule", "clip_norm", "batch_size", "precision",
    "dtype", "seed",
)  # fmt: skip


def trained_topic(subjects: Sequence[Subject]) -> Topic:
    """Say of each run what it is made of, a column each; what differs is marked."""
    rows = {label: [column[label] for column in map(_facts, subjects)] for label in _labels()}
    kept = {label: values for label, values in rows.items() if any(values)}
    table = _facts_table([subject.name for subject in subjects], kept)
    return Topic(
        "trained", "What was trained", [Block("", [table], wide=True), *_programs(subjects)]
    )


def training_topic(subjects: Sequence[Subject]) -> Topic:
    """Draw the curves of each training."""
    blocks = []
    for subject in subjects:
        rows = subject.run.rows
        if not rows:
            blocks.append(Block(subject.name, [note("no epoch was recorded")]))
            continue
        alt = f"Training curves of {subject.name}"
        drawn = chart_svg(figures.training_curves(rows), f"{subject.key}-training", alt)
        blocks.append(Block(subject.name, [figure(drawn, _told(rows))]))
    return Topic("training", "Training", blocks)


def _labels() -> list[str]:
    return ["data", *(_title(name) for name in _SETTINGS), "parameters of p", "parameters of q"]


def _title(name: str) -> str:
    words = {"beta": "β", "latent_dim": "size of z", "corrupt": "encoder's data corrupted by"}
    return words.get(name, name.replace("_", " "))


def _facts(subject: Subject) -> dict[str, str]:
    config = subject.run.config
    values = {_title(name): getattr(config, name) for name in _SETTINGS}
    values["warm up"] = f"{config.warm_up} epochs" if config.warm_up else None
    values["decoder"] = config.decoder or "the encoder's, mirrored"
    shown = {name: "" if value is None else _text(value) for name, value in values.items()}
    return {
        "data": gallery.named_data(config.data),
        **shown,
        "parameters of p": f"{_size(subject.run.model):,}",
        "parameters of q": f"{_size(subject.run.guide):,}",
    }


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(program: Any) -> int:
    return sum(parameter.numel() for parameter in program.parameters())


def _facts_table(names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Markup:
    head = Markup("").join(Markup("<th scope=col>{}</th>").format(name) for name in names)
    body = Markup("").join(_facts_row(label, values) for label, values in rows.items())
    return Markup(
        '<div class="table" tabindex="0"><table class="facts">'
        "<thead><tr><td></td>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(head, body)


def _facts_row(label: str, values: Sequence[str]) -> Markup:
    cells = Markup("").join(Markup("<td>{}</td>").format(value or "–") for value in values)
    mark = Markup(' class="differs"') if len(set(values)) > 1 else Markup("")
    return Markup("<tr{}><th scope=row>{}</th>{}</tr>").format(mark, label, cells)


def _programs(subjects: Sequence[Subject]) -> list[Block]:
    """The model and the guide of each run; once where those of all are the same."""
    drawn = [_drawn(subject) for subject in subjects]
    plain = [str(each).replace(s.key, "") for each, s in zip(drawn, subjects, strict=True)]
    if len(set(plain)) == 1:
        return [Block("", [drawn[0]], wide=True)]
    return [Block(subject.name, [each]) for subject, each in zip(subjects, drawn, strict=True)]


def _drawn(subject: Subject) -> Markup:
    run = subject.run
    x = run.to_device(run.data.test.scored(slice(0, 2)))
    parts = [
        figure(program_drawing(program, x, f"{subject.key}-{name}"), caption)
        for name, program, caption in (
            ("p", run.model, "p(x, z), the model"),
            ("q", run.guide, "q(z|x), the guide"),
        )
    ]
    return Markup('<div class="programs">{}</div>').format(Markup("").join(parts))


def _told(rows: Sequence[Mapping[str, Any]]) -> str:
    last = rows[-1]
    best = next((row["epoch"] for row in reversed(rows) if row.get("best")), last["epoch"])
    parts = [f"{last['epoch']} epochs", f"best epoch {best}"]
    if "step" in last:
        parts.insert(1, f"{last['step']:,} steps")
    if "seconds" in last:
        parts.append(f"{last['seconds']:.0f} s")
    if "engine" in last:
        parts.append(f"{last['engine']} steps")
    return ", ".join(parts)
