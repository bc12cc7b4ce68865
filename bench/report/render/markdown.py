"""Blocks as GitHub-flavoured markdown."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable

from bench.report.document import Block, Bullets, Code, Details, Figure, Heading, Table, Text
from bench.text_safety import visible

# What would start markup inside a line. Underscores inside a word (mask_rcnn_r50) and brackets that no link
# target follows (1.23 [1.20, 1.26]) are plain text in GitHub's markdown, and stay readable in the source.
_MARKUP = re.compile(r"[\\`*~|$]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(\[:]|!(?=\[)|<|&(?=#?\w+;)")
_LINE_START = re.compile(r"^(?:[-+#>=]|\d+(?=[.)]))")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}


def escape(text: str) -> str:
    """Plain text so that markdown shows it as it is, inside a line or a table cell."""
    line = visible(" ".join(text.split()))
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], "\\" + match[0]), line)


def paragraph(text: str) -> str:
    """`escape`, for text that starts a line."""
    return _LINE_START.sub(lambda m: f"{m[0]}\\" if m[0].isdigit() else f"\\{m[0]}", escape(text))


#: Columns that fit the width of a page on GitHub, and those that each part of a wider table begins with.
MOST_COLUMNS, KEYS = 7, ("workload", "codebase", "factor", "level")


def table(block: Table) -> str:
    """A pipe table, or several below each other where its columns do not fit."""
    keys = [at for at, column in enumerate(block.columns) if column.title in KEYS]
    others = [at for at in range(len(block.columns)) if at not in keys]
    if not keys or len(block.columns) <= MOST_COLUMNS:
        return _table(block)
    size = math.ceil(len(others) / math.ceil(len(others) / (MOST_COLUMNS - len(keys))))
    parts = (
        block.part([*keys, *others[at : at + size]], "" if at else block.caption)
        for at in range(0, len(others), size)
    )
    return "\n\n".join(map(_table, parts))


def _table(block: Table) -> str:
    """A header, the alignments, one line per row, all with the same number of cells."""
    header = [escape(column.title) for column in block.columns]
    alignments = ["---:" if column.numeric else "---" for column in block.columns]
    rows = [[_cell(cell.text, cell.tone == "strong") for cell in row] for row in block.rows]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in [header, alignments, *rows])
    return f"{paragraph(block.caption)}\n\n{lines}" if block.caption else lines


def _cell(text: str, strong: bool) -> str:
    return f"**{escape(text)}**" if strong and text.strip() else escape(text)


def code(block: Code) -> str:
    """A fenced block, fenced by more backticks than the text holds in a row."""
    longest = max((len(run) for run in re.findall(r"`+", block.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{block.language}\n{visible(block.text)}\n{fence}"


def _render(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {escape(text)}"
        case Text(text):
            return paragraph(text)
        case Bullets():
            return "\n".join(f"- {paragraph(item)}" for item in block.texts)
        case Code():
            return code(block)
        case Table():
            return table(block)
        case Figure():
            return _figure(block)
        case Details(title, blocks):
            inside = "\n\n".join(map(_render, blocks))
            return f"<details><summary>{html.escape(visible(title))}</summary>\n\n{inside}\n\n</details>"


def _figure(block: Figure) -> str:
    """As an image; a browser that is set to dark gets the dark one."""
    alt = escape(block.alt).replace("]", "\\]")
    if not block.dark:
        return f"![{alt}](figures/{block.name}.svg)"
    text = html.escape(visible(block.alt))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="figures/{block.name}-dark.svg">'
        f'<img src="figures/{block.name}.svg" alt="{text}"></picture>'
    )


def render(blocks: Iterable[Block], limit: int | None = None) -> str:
    """Markdown of all blocks.

    Args:
        blocks: The document.
        limit: Bytes that it may have. What is folded away is then cut, block by block, and says so.
    """
    parts: list[str] = []
    room = math.inf if limit is None else limit
    for block in blocks:
        part = _render(block)
        if limit is not None and isinstance(block, Details) and _bytes(part) > room:
            part = _render(_cut(block, int(room)))
        parts.append(part)
        room -= _bytes(part) + 2
    return "\n\n".join(parts) + "\n"


#: What stays free for the titles of sections that come after a long one, and for what says that they were cut.
SPARE = 3000


def _cut(block: Details, room: int) -> Details:
    """The first blocks of a section that fit, and a line in place of the others."""
    kept: list[Block] = []
    for inner in block.blocks:
        room -= _bytes(_render(inner)) + 2
        if room < SPARE:
            break
        kept.append(inner)
    missing = len(block.blocks) - len(kept)
    return Details(
        block.title, (*kept, Text(f"Left out here for length: {missing} of {len(block.blocks)} parts."))
    )


def _bytes(text: str) -> int:
    return len(text.encode())
