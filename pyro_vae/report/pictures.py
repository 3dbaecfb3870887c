"""What a run generates, and its latents to explore."""

__all__ = ["picture_topics", "explorer_topic"]

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from pyro_vae import gallery
from pyro_vae.errors import InputError
from pyro_vae.report.content import Block, Topic, figure, note
from pyro_vae.report.explorer import explorer_data, explorer_html
from pyro_vae.report.markup import picture_img
from pyro_vae.report.subject import Subject
from pyro_vae.runs import Run

UNTRAINED_PRIOR = "Trained at β = 0: the training knew nothing of p(z)."


class Drawing(NamedTuple):
    """What is drawn of a run, a split and a seed; None where it does not apply."""

    alt: str
    draw: Callable[[Run, str, int], Figure | None]
    of_prior: bool = False
    """Whether z are draws of p(z), or quantiles."""


def explorer_topic(subjects: Sequence[Subject], split: str, seed: int) -> Topic:
    """Let the reader move through the latents of each run."""
    blocks = []
    for subject in subjects:
        try:
            data = explorer_data(subject.run, split=split, seed=seed)
        except InputError as error:
            blocks.append(Block(subject.name, [note(str(error))]))
            continue
        blocks.append(Block(subject.name, [Markup(explorer_html(data))]))
    return Topic("explore", "Explore the latents", blocks)


def picture_topics(subjects: Sequence[Subject], split: str, seed: int) -> list[Topic]:
    """Draw samples, reconstructions, traversals, paths and maps, the runs side by side."""
    topics = []
    for key, title, *drawings in _TOPICS:
        blocks = [
            Block(
                subject.name,
                [part for each in drawings for part in _drawn(subject, each, split, seed)],
            )
            for subject in subjects
        ]
        topics.append(Topic(key, title, blocks))
    return topics


def _drawn(subject: Subject, drawing: Drawing, split: str, seed: int) -> list[Markup]:
    """A drawing, why there is none, or nothing where it does not apply."""
    try:
        drawn = drawing.draw(subject.run, split, seed)
    except InputError as error:
        return [note(str(error))]
    if drawn is None:
        return []
    caption = UNTRAINED_PRIOR if drawing.of_prior and subject.run.config.beta == 0 else ""
    return [figure(picture_img(drawn, f"{drawing.alt}, {subject.name}"), caption)]


def _pseudo_inputs(run: Run, split: str, seed: int) -> Figure | None:
    return gallery.pseudo_inputs(run) if gallery.has_pseudo_inputs(run) else None


def _manifold(run: Run, split: str, seed: int) -> Figure | None:
    return gallery.manifold(run) if gallery.is_plane(run) else None


_TOPICS = (
    (
        "samples",
        "Samples",
        Drawing(
            "Samples from the prior",
            lambda run, split, seed: gallery.samples(run, 64, seed),
            of_prior=True,
        ),
        Drawing("Pseudo-inputs of the prior", _pseudo_inputs),
    ),
    (
        "reconstructions",
        "Reconstructions",
        Drawing(
            "Data above their reconstructions",
            lambda run, split, seed: gallery.reconstructions(run, split, 12, seed),
        ),
    ),
    (
        "traversals",
        "Traversals",
        Drawing(
            "Each latent dimension moved alone",
            lambda run, split, seed: gallery.traversals(run, split, None, 11, 3.0, None, seed),
        ),
    ),
    (
        "interpolation",
        "Interpolation",
        Drawing(
            "Decoded lines between data",
            lambda run, split, seed: gallery.interpolation(run, split, 6, 9, seed),
        ),
    ),
    (
        "map",
        "Latent map",
        Drawing(
            "Posterior means of data",
            lambda run, split, seed: gallery.embedding(run, split, 5000, seed),
        ),
        Drawing("The decoder over the latent plane", _manifold, of_prior=True),
    ),
)
