"""Blocks on a terminal, through rich. Text from records is never read as rich markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import rich.table
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text as RichText

from bench.report.document import Block, Bullets, Code, Figure, Heading, Table, Text, Tone

STYLES: dict[Tone, str] = {"": "", "strong": "bold", "muted": "dim", "bad": "red"}


def table(block: Table) -> rich.table.Table:
    result = rich.table.Table(
        title=RichText(_printable(block.caption)) if block.caption else None,
        title_justify="left",
        title_style="bold",
        box=rich.box.SIMPLE_HEAD,  # no lines between columns: the width is for the text
    )
    for column in block.columns:
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        result.add_column(RichText(_printable(column.title)), justify=justify, overflow="fold")
    for row in block.rows:
        result.add_row(*(RichText(_printable(cell.text), style=STYLES[cell.tone]) for cell in row))
    return result


def _printable(text: str) -> str:
    """Without control characters: a label cannot move the cursor or change colours."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)


def _renderables(block: Block) -> Iterable[RenderableType]:
    match block:
        case Heading(_, text):
            yield RichText(f"\n{_printable(text)}", style="bold")
        case Text(text):
            yield RichText(_printable(text))
        case Bullets(items):
            yield from (RichText(f"- {_printable(item)}") for item in items)
        case Code(text, _):
            yield Padding(RichText(_printable(text), style="dim"), (0, 4))
        case Table():
            yield table(block)
        case Figure():
            return


def show(blocks: Iterable[Block], console: Console | None = None) -> None:
    """Print blocks, by default to stdout; figures are left out."""
    console = console or Console()
    for block in blocks:
        for renderable in _renderables(block):
            console.print(renderable)
