"""Blocks as GitHub-flavoured markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bench.report.document import Block, Bullets, Code, Column, Figure, Heading, Table, Text

# What would start markup inside a line. Underscores inside a word (mask_rcnn_r50) and brackets that no link
# target follows (1.23 [1.20, 1.26]) are plain text in GitHub's markdown, and stay readable in the source.
_MARKUP = re.compile(r"[\\`*~|$]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(\[:]|!(?=\[)|<|&(?=#?\w+;)")
_LINE_START = re.compile(r"^(?:[-+#>=]|\d+(?=[.)]))")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}


def escape(text: str) -> str:
    """Plain text so that markdown shows it as it is, inside a line or a table cell."""
    line = " ".join(text.split())
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], "\\" + match[0]), line)


def paragraph(text: str) -> str:
    """`escape`, for text that starts a line."""
    return _LINE_START.sub(_escape_line_start, escape(text))


def _escape_line_start(match: re.Match[str]) -> str:
    return match[0] + "\\" if match[0].isdigit() else "\\" + match[0]


def table(block: Table) -> str:
    """A pipe table: a header, the alignments, one line per row, all with the same number of cells."""
    header = [escape(column.title) for column in block.columns]
    alignments = [_alignment(column) for column in block.columns]
    rows = [[_cell(cell.text, cell.tone == "strong") for cell in row] for row in block.rows]
    lines = "\n".join(_table_line(cells) for cells in [header, alignments, *rows])
    return f"{paragraph(block.caption)}\n\n{lines}" if block.caption else lines


def _alignment(column: Column) -> str:
    return "---:" if column.numeric else "---"


def _cell(text: str, strong: bool) -> str:
    return f"**{escape(text)}**" if strong and text.strip() else escape(text)


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def code(block: Code) -> str:
    """A fenced block, fenced by more backticks than the text holds in a row."""
    longest = max((len(run) for run in re.findall(r"`+", block.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{block.language}\n{block.text}\n{fence}"


def _render(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {escape(text)}"
        case Text(text):
            return paragraph(text)
        case Bullets(items):
            return "\n".join(f"- {paragraph(item)}" for item in items)
        case Code():
            return code(block)
        case Table():
            return table(block)
        case Figure(name, alt):
            return f"![{escape(alt).replace(']', chr(92) + ']')}](figures/{name}.png)"


def render(blocks: Iterable[Block]) -> str:
    return "\n\n".join(_render(block) for block in blocks) + "\n"
