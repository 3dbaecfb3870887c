"""What a page is made of: topics, and under each a block a run."""

__all__ = ["Topic", "Block", "notes", "note", "figure"]

from collections.abc import Iterable
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Block:
    """What one run has to say of a topic."""

    heading: str
    """The run's name; empty where there is one run alone, or the block is of all."""
    parts: list[Markup]
    wide: bool = False
    """Whether it takes a row of its own beside no other."""


@dataclass(frozen=True)
class Topic:
    """A section of the page."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    lead: str = ""


def note(text: str) -> Markup:
    """A line that is no number but should not be overlooked, such as what is missing."""
    return Markup('<p class="note">{}</p>').format(text)


def notes(lines: Iterable[str]) -> Markup:
    """The lines below a table."""
    items = Markup("").join(Markup("<li>{}</li>").format(line) for line in lines if line)
    return Markup('<ul class="notes">{}</ul>').format(items) if items else Markup("")


def figure(drawn: Markup, caption: str = "") -> Markup:
    """A drawing with what is to be known of it."""
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else Markup("")
    return Markup("<figure>{}{}</figure>").format(drawn, below)
