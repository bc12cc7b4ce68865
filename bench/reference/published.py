"""Published tables as they lie in `results/published/`: a CSV file each, `provenance.yaml` beside them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench import shipped
from bench.errors import BenchError

PUBLISHED = shipped.ROOT / "results" / "published"
_HINT = "the published tables are part of the repository, not of the installed package"
ZOO, THROUGHPUT, SOLOV2 = "mmdetection_model_zoo", "detectron2_benchmarks", "solov2_reference_log"


@dataclass(frozen=True)
class Published:
    """A published table: its cells as printed, and where they are from."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    provenance: Mapping[str, Any]

    def records(self) -> Iterator[dict[str, str]]:
        for row in self.rows:
            yield dict(zip(self.columns, row, strict=True))


def load(folder: Path, name: str, title: str = "") -> Published:
    """The table `<folder>/<name>.csv`, without the column of line numbers. Raises BenchError."""
    path = folder / f"{name}.csv"
    try:
        header, *rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read: {error}", where=str(path), hint=_HINT) from None
    skip = 1 if header[0] == "line" else 0
    cells = tuple(tuple(row[skip:]) for row in rows)
    return Published(name, title or name, tuple(header[skip:]), cells, provenance(folder))


def number(text: str) -> float | None:
    """The value of a cell; None for `-`, and for a cell of several values (`25.9 / 34.6`)."""
    try:
        return float(text)
    except ValueError:
        return None


def provenance(folder: Path) -> Mapping[str, Any]:
    """Where the tables of a folder are from: document, hardware, software, columns, statements. Raises BenchError."""
    path = folder / "provenance.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BenchError(f"cannot read: {error}", where=str(path), hint=_HINT) from None
    if not isinstance(content, dict):
        raise BenchError("not a provenance file", where=str(path))
    return content
