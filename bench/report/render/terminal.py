"""Blocks on a terminal, through rich. Text from records is never read as rich markup.

Tables fit the width: columns go by their priority, ids lose their middle, numbers never wrap.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

import rich.box
import rich.table
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text as RichText

from bench.report.document import Block, Bullets, Code, Details, Figure, Heading, Table, Text, Tone
from bench.text_safety import for_terminal, shorten

STYLES: dict[Tone, str] = {"": "", "strong": "bold", "muted": "dim", "bad": "red"}
#: Blanks around each column, and the narrowest that a column of text becomes.
PADDING, NARROWEST = 2, 10
#: Lines of a text in a row.
MOST_LINES = 3
#: Longer tables are plain text.
MOST_STYLED = 500


def table(block: Table, width: int | None = None) -> rich.table.Table:
    """A table of at most `width` columns of the terminal where its numbers leave the room."""
    block = block if width is None else fit(block, width)
    result = rich.table.Table(
        title=RichText(for_terminal(block.caption)) if block.caption else None,
        title_justify="left",
        title_style="bold",
        box=rich.box.SIMPLE_HEAD,  # no lines between columns: the width is for the text
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    columns = range(len(block.columns))
    natural = sum(
        max(_width(block, index), cell_len(block.columns[index].title)) + PADDING for index in columns
    )
    narrow = width is not None and natural > width  # titles wrap between words, and numbers never
    for index, column in enumerate(block.columns):
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        title = RichText(for_terminal(column.title))
        result.add_column(
            title, justify=justify, overflow="fold", width=_width(block, index) if narrow else None
        )
    for row in block.rows:
        result.add_row(*(RichText(for_terminal(cell.text), style=STYLES[cell.tone]) for cell in row))
    return result


def _width(block: Table, index: int) -> int:
    """Of a column: its longest cell, or the longest word of its title."""
    words = max(map(cell_len, block.columns[index].title.split()), default=0)
    lines = (line for row in block.rows for line in for_terminal(row[index].text).split("\n"))
    return max([words, *map(cell_len, lines)])


def fit(block: Table, width: int, *, fold: bool = True) -> Table:
    """Columns of the highest priority number go first; then long texts take two lines, or lose their middle.

    Args:
        block: The table.
        width: Columns of the terminal.
        fold: Whether a row may have two lines.
    """
    block = block.compact()

    widths = [_width(block, index) for index in range(len(block.columns))]
    while sum(widths) + PADDING * len(widths) > width and any(column.priority for column in block.columns):
        worst = max(range(len(block.columns)), key=lambda index: block.columns[index].priority)
        del widths[worst]
        block = block.part([index for index in range(len(block.columns)) if index != worst], block.caption)
    texts = [index for index, column in enumerate(block.columns) if not column.numeric]
    while sum(widths) + PADDING * len(widths) > width and texts:
        longest = max(texts, key=lambda index: widths[index])
        if widths[longest] <= NARROWEST:
            break
        widths[longest] -= 1
    rows = tuple(
        tuple(
            replace(
                cell,
                text=(fold and not block.columns[index].prose and _folded(text, widths[index]))
                or _shortened(text, widths[index], at_end=block.columns[index].prose),
            )
            if index in texts and len(text := for_terminal(cell.text)) > widths[index]
            else cell
            for index, cell in enumerate(row)
        )
        for row in block.rows
    )
    return replace(block, rows=rows)


def _folded(text: str, width: int) -> str:
    """On at most `MOST_LINES`, with whole words; empty where that does not fit."""
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return (
        "\n".join(lines) if len(lines) <= MOST_LINES and max(map(cell_len, lines), default=0) <= width else ""
    )


def _shortened(text: str, width: int, *, at_end: bool) -> str:
    """At most so wide; of `ARM / BASELINE` each name loses its own middle."""
    arm, slash, base = text.partition(" / ")
    if not slash or at_end or width < NARROWEST:
        return shorten(text, width, at_end=at_end)
    room = width - len(slash)
    left = max(room // 2, room - len(base))
    return f"{shorten(arm, left)}{slash}{shorten(base, room - min(left, len(arm)))}"


def _renderables(block: Block, width: int) -> Iterable[RenderableType]:
    match block:
        case Heading(_, text):
            yield RichText(f"\n{for_terminal(text)}", style="bold")
        case Text(text):
            yield RichText(for_terminal(text))
        case Bullets():
            yield from (RichText(f"- {for_terminal(item)}") for item in block.texts)
        case Code(text, _):
            yield Padding(RichText(for_terminal(text), style="dim"), (0, 4))
        case Table():
            yield table(block, width)
        case Details(title, blocks):
            yield RichText(f"\n{for_terminal(title)}", style="bold")
            for inner in blocks:
                yield from _renderables(inner, width)
        case Figure():
            return


def _lines(block: Table) -> Iterator[str]:
    """A table without styles: rich takes a quarter of a millisecond for each row."""
    widths = [max(_width(block, index), cell_len(column.title)) for index, column in enumerate(block.columns)]
    rows = [[cell.text for cell in row] for row in block.rows]
    for row in [[column.title for column in block.columns], ["─" * width for width in widths], *rows]:
        line = []
        for text, width, column in zip(map(for_terminal, row), widths, block.columns, strict=True):
            blanks = " " * (width - cell_len(text))
            line.append(blanks + text if column.numeric else text + blanks)
        yield "  ".join(line).rstrip()


def show(blocks: Iterable[Block], console: Console | None = None) -> None:
    """Print blocks, by default to stdout; figures are left out."""
    console = console or Console()
    for block in blocks:
        if isinstance(block, Table) and len(block.rows) > MOST_STYLED:
            console.file.write("".join(f"{line}\n" for line in _lines(fit(block, console.width, fold=False))))
            continue
        for renderable in _renderables(block, console.width):
            console.print(renderable)
