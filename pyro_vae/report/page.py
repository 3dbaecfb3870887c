"""A report: runs in, one page out that needs nothing else."""

__all__ = ["write_report", "report_html", "check_place"]

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pyro_vae import __version__
from pyro_vae.checkpoint import write_atomically
from pyro_vae.errors import InputError
from pyro_vae.gallery import named_data
from pyro_vae.report.content import Topic
from pyro_vae.report.explorer import explorer_assets
from pyro_vae.report.findings import diagnosis_topic, estimators_topic
from pyro_vae.report.pictures import explorer_topic, picture_topics
from pyro_vae.report.scores import differences_topic, scores_topic
from pyro_vae.report.subject import Subject, subjects_of
from pyro_vae.report.trained import trained_topic, training_topic
from pyro_vae.runs import Run

OnTopic = Callable[[int, int], None]
NUM_TOPICS = 8  # of what is counted while the page is made


def write_report(
    runs: Sequence[Run],
    path: Path,
    *,
    split: str = "test",
    seed: int = 0,
    on_topic: OnTopic = lambda done, total: None,
) -> Path:
    """Write a report of runs to ``path``, whole or not at all; return it.

    Scores, comparison and diagnosis are read from the run folders, and what is missing there is
    named with its command; pictures are drawn anew. Nothing in a run folder is changed. The same
    runs give the same bytes.

    Arguments:
        runs: one or several, shown side by side.
        path: the HTML file.
        split: whose data stand in the pictures.
        seed: of their draws.
        on_topic: told how many parts are done, of how many.

    Raises:
        InputError: a run given twice, an unknown split, a record that is damaged, a place that
            cannot be written.
    """
    check_place(path)
    html = report_html(runs, split=split, seed=seed, on_topic=on_topic)
    write_atomically(path, lambda file: file.write(html.encode(errors="replace")))
    return path


def report_html(
    runs: Sequence[Run],
    *,
    split: str = "test",
    seed: int = 0,
    on_topic: OnTopic = lambda done, total: None,
) -> str:
    """Return the page that ``write_report`` writes."""
    subjects = subjects_of(runs)
    for run in runs:
        run.data.split(split)
    topics = []
    for done, found in enumerate(_topics(subjects, split, seed)):
        on_topic(done + 1, NUM_TOPICS)
        topics += found
    style, script = explorer_assets()
    environment = Environment(
        loader=PackageLoader("pyro_vae.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        title=", ".join(subject.name for subject in subjects),
        data=", ".join(dict.fromkeys(named_data(run.config.data) for run in runs)),
        several=len(subjects) > 1,
        topics=topics,
        style=Markup(own + style),
        script=Markup(script),
        version=__version__,
    )


def _topics(subjects: Sequence[Subject], split: str, seed: int) -> Iterator[list[Topic]]:
    """The topics in their order, some at a time."""
    yield [trained_topic(subjects)]
    yield [training_topic(subjects)]
    yield [scores_topic(subjects)]
    differences = differences_topic(subjects)
    yield [] if differences is None else [differences]
    yield [explorer_topic(subjects, split, seed)]
    yield picture_topics(subjects, split, seed)
    yield [estimators_topic(subjects)]
    yield [diagnosis_topic(subjects)]


def check_place(path: Path) -> None:
    """Refuse a place that is none for a page, before any work.

    Raises:
        InputError: a folder, a file of another kind, or a file in the way.
    """
    if path.is_dir() or any(parent.is_file() for parent in path.parents):
        raise InputError(f"cannot write '{path}': expected the name of a file for the page")
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"cannot write '{path}': expected a name that ends in .html")
