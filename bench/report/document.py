"""A report as a list of blocks, before it is markdown, a page or lines on a terminal.

Every renderer walks the same blocks, so they cannot disagree on a number. All text is plain; renderers
escape it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.judge.numbers import MISSING
from bench.record.differences import named

Tone = Literal["", "strong", "muted", "bad"]


@dataclass(frozen=True)
class Cell:
    """``text`` is shown, ``sort`` orders rows (a number where the text shows one, else the text). ``link``: where
    it leads on a page."""

    text: str
    sort: float | None = None
    tone: Tone = ""
    link: str = ""

    @property
    def missing(self) -> bool:
        return self.text == MISSING


@dataclass(frozen=True)
class Column:
    """``title`` carries the unit. ``numeric``: aligned to the right. ``optional``: left out when no row has a
    value. ``priority``: where there is no room, columns go from the highest on; those of 0 stay."""

    title: str
    numeric: bool = False
    optional: bool = False
    priority: int = 0
    prose: bool = False
    """Sentences lose their end where there is no room; other texts their middle."""


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table '{self.caption}': a row has not one cell per column")

    def compact(self) -> Table:
        """The table without optional columns in which no row has a value."""
        keep = [
            index
            for index, column in enumerate(self.columns)
            if not column.optional or any(not row[index].missing for row in self.rows)
        ]
        return self.part(keep, self.caption)

    def part(self, keep: Sequence[int], caption: str) -> Table:
        """Some of its columns."""
        rows = tuple(tuple(row[index] for index in keep) for row in self.rows)
        return Table(tuple(self.columns[index] for index in keep), rows, caption)


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Link:
    """An arm that a line is about."""

    text: str
    arm: str


@dataclass(frozen=True)
class Bullets:
    """``about``: the arms of each item, named before it."""

    items: tuple[str, ...]
    about: tuple[tuple[Link, ...], ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The items as plain text."""
        arms = (named([one.text for one in links]) for links in self.about or [()] * len(self.items))
        return tuple(
            f"{names}: {item}" if names else item for names, item in zip(arms, self.items, strict=True)
        )


@dataclass(frozen=True)
class Code:
    text: str
    language: str = ""


@dataclass(frozen=True)
class Figure:
    """``figures/<name>.svg`` beside the report. ``alt`` says in words what it shows. ``dark``: there is a
    ``<name>-dark.svg`` too."""

    name: str
    alt: str
    dark: bool = False


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away below a title until a reader asks for them."""

    title: str
    blocks: tuple[Block, ...]


Block = Heading | Text | Bullets | Code | Table | Figure | Details
