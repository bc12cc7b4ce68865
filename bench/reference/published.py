"""Published tables as they lie in `results/published/`: a CSV file each, `provenance.yaml` beside them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench import shipped
from bench.errors import telling

PUBLISHED = shipped.ROOT / "results" / "published"
_HINT = "the published tables are part of the repository, not of the installed package"
ZOO, THROUGHPUT, SOLOV2 = "mmdetection_model_zoo", "detectron2_benchmarks", "solov2_reference_log"

#: The model zoo's tables of baselines, with their titles.
BASELINES = {
    "rpn": "RPN",
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "fast_rcnn": "Fast R-CNN (with pre-computed proposals)",
    "retinanet": "RetinaNet",
    "cascade_rcnn": "Cascade R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "htc": "Hybrid Task Cascade (HTC)",
    "ssd": "SSD",
}
CODEBASES = ("Detectron", "maskrcnn-benchmark", "mmdetection")


@dataclass(frozen=True)
class Published:
    """A published table: its cells as printed, and where they are from."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    provenance: Mapping[str, Any]


def load(folder: Path, name: str) -> Published:
    """The table `<folder>/<name>.csv`, without the column of line numbers. Raises BenchError."""
    path = folder / f"{name}.csv"
    with telling("cannot read", path, _HINT), path.open(encoding="utf-8", newline="") as file:
        rows = tuple(csv.DictReader(file))
    for row in rows:
        row.pop("line", None)
    return Published(tuple(rows[0]), rows, provenance(folder))


def number(text: str) -> float | None:
    """The value of a cell; None for `-`, and for a cell of several values (`25.9 / 34.6`)."""
    try:
        return float(text)
    except ValueError:
        return None


def provenance(folder: Path) -> Mapping[str, Any]:
    """Where the tables of a folder are from: document, hardware, software, columns, statements. Raises BenchError."""
    path = folder / "provenance.yaml"
    with telling("cannot read", path, _HINT):
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content
