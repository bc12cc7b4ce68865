"""The tables of the model-zoo document (mmdetection 1.x, in its Chinese edition) as CSV files.

Every cell is kept as the document prints it, `-` included, with the number of its line. What the columns mean, on what
hardware and software the numbers were taken, and the statements around the tables are in
`results/published/mmdetection_model_zoo/provenance.yaml`. A header, a row or a table that is not the expected one is an
error: nothing is guessed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError, telling
from bench.reference.published import CODEBASES

_COMMON = ("Mem (GB)", "Train time (s/iter)", "Inf time (fps)")
_BOX = ("Backbone", "Style", "Lr schd", *_COMMON, "box AP", "Download")
_MASK = (*_BOX[:-1], "mask AP", "Download")

#: The document's word for each column that is not in English.
_WORDS = {
    "内存 (GB)": "Mem (GB)",
    "训练时间 (s/iter)": "Train time (s/iter)",
    "最短时间 (fps)": "Inf time (fps)",
    "类型": "Type",
}


@dataclass(frozen=True)
class Layout:
    """A table of the document: under which heading, with which columns."""

    name: str
    heading: str
    columns: tuple[str, ...]
    compares_codebases: bool = False


LAYOUTS = (
    Layout("rpn", "RPN", (*_BOX[:-2], "AR1000", "Download")),
    Layout("faster_rcnn", "Faster R-CNN", _BOX),
    Layout("mask_rcnn", "Mask R-CNN", _MASK),
    Layout("fast_rcnn", "Fast R-CNN (有预先计算的proposals)", (*_MASK[:2], "Type", *_MASK[2:])),
    Layout("retinanet", "RetinaNet", _BOX),
    Layout("cascade_rcnn", "Cascade R-CNN", _BOX),
    Layout("cascade_mask_rcnn", "Cascade Mask R-CNN", _MASK),
    Layout("htc", "混合任务级联(HTC)", _MASK),
    Layout("ssd", "SSD", ("Backbone", "Size", *_BOX[1:])),
    Layout("comparison_performance", "性能", ("Type", "Lr schd", *CODEBASES), True),
    Layout("comparison_training_speed", "训练速度", ("Type", *CODEBASES), True),
    Layout("comparison_inference_speed", "推理速度", ("Type", *CODEBASES), True),
    Layout("comparison_training_memory", "训练内存", ("Type", *CODEBASES), True),
)

_TYPE = re.compile(r"(RPN|Faster R-CNN|Mask R-CNN|Fast R-CNN(?: \(w/mask\))?) ")
#: Hardware in the headers of the comparison, some with the number of a footnote stuck to it (P1001 is P100, note 1).
_HARDWARE = re.compile(r" \([PV]100[12]?\)")


#: A row as the CSV file has it: its line in the document, from 1, and its cells.
ZooRow = tuple[str, ...]


def read_tables(path: Path) -> dict[str, list[ZooRow]]:
    """Layout name → rows. Raises BenchError when the document is not the one this was written for."""
    with telling("cannot read", path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    tables: dict[str, list[ZooRow]] = {}
    position = 0
    for layout in LAYOUTS:
        header = _find(lines, layout, position, path)
        tables[layout.name] = list(_rows(lines, header + 1, layout, path))
        position = header + 1 + len(tables[layout.name])
    return tables


def _find(lines: Sequence[str], layout: Layout, position: int, path: Path) -> int:
    """Index of the table's header: the first table line below its heading."""
    for heading in range(position, len(lines)):
        if lines[heading].strip() != layout.heading:
            continue
        for index in range(heading + 1, min(heading + 10, len(lines))):
            if _columns(lines[index]) == layout.columns:
                return index
    raise BenchError(
        f"no table '{layout.heading}' with the columns {', '.join(layout.columns)}",
        where=str(path),
        hint="this reads the model-zoo document of mmdetection 1.x (2019, Chinese edition) only",
    )


def _columns(header: str) -> tuple[str, ...]:
    text = _HARDWARE.sub("", header)
    for word, column in _WORDS.items():
        text = text.replace(word, column)
    names = sorted({name for layout in LAYOUTS for name in layout.columns}, key=len, reverse=True)
    found = re.findall("|".join(map(re.escape, names)), text)
    return tuple(found) if " ".join(found) == text.strip() else ()


def _rows(lines: Sequence[str], start: int, layout: Layout, path: Path) -> Iterator[ZooRow]:
    """Rows until the first line that is none."""
    kind = ""
    for index in range(start, len(lines)):
        text = lines[index].strip()
        cells: list[str] = []
        if layout.compares_codebases:
            if (match := _TYPE.match(text)) is not None:
                kind, text = match[1], text[match.end() :]
            elif not re.match(r"\dx ", text):
                return
            cells.append(kind)
        elif " model(" not in text and not text.endswith(" -"):
            return
        # `37.3 & 34.2 / 37.4 & 34.3` is one cell
        cells += [cell.replace("\0", " ") for cell in re.sub(r" ([&/]) ", "\0\\1\0", text).split()]
        if len(cells) != len(layout.columns):
            raise BenchError(
                f"{len(cells)} cells, not {len(layout.columns)}: {lines[index]!r}",
                where=f"{path}:{index + 1}",
            )
        yield str(index + 1), *cells


def to_csv(layout: Layout, rows: Sequence[ZooRow]) -> str:
    """A table as CSV; the first column is the line of the document."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("line", *layout.columns), *rows])
    return text.getvalue()
