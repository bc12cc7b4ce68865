"""COCO numbers in logs: the twelve lines of pycocotools, and what tools write in their own words."""

from __future__ import annotations

import json
import re
from typing import Any

from bench.importers.events import Evaluation

#: The twelve numbers in the order of pycocotools' summary.
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl")

_SUMMARY = re.compile(
    rb"Average (Precision|Recall) +\((?:AP|AR)\) @\[ *IoU=(0\.\d\d)(:0\.\d\d)? *\| *area= *(\w+) *\| *"
    rb"maxDets= *(\d+) *\] *= *(-?\d\.\d+)"
)
_TASK = re.compile(
    rb"Evaluate annotation type \*(\w+)\*|Evaluating (bbox|segm|proposal|keypoints)\b|IoU metric: (\w+)"
    rb"|Evaluation results for (\w+):|copypaste: Task: (\w+)"
)
_COPYPASTE_NAMES = re.compile(rb"copypaste: (AP[\w,@]*)$")
_COPYPASTE_VALUES = re.compile(rb"copypaste: ([\d.,-]+|nan[\d.,nan-]*)$")
_MM_PAIR = re.compile(
    rb"(?:coco/)?(bbox|segm|proposal|keypoints)_(mAP(?:_50|_75|_s|_m|_l)?|AR@\d+|AR_[sml]@\d+): (-?\d+\.\d+)"
)
_PAIR = re.compile(rb"(A[PR][\w@]*): (-?\d+(?:\.\d+)?|nan)")
#: Texts of which every line that `SummaryBlock` reads holds one.
HINTS = (b"Average ", b"Evaluat", b"IoU metric", b"copypaste")
_SIZES = {b"small": "s", b"medium": "m", b"large": "l"}
_MM_NAMES = {"mAP": "AP", "mAP_50": "AP50", "mAP_75": "AP75", "mAP_s": "APs", "mAP_m": "APm", "mAP_l": "APl"}


class SummaryBlock:
    """Collects the lines of one evaluation; ranks that write into one file may not mix within a block."""

    def __init__(self) -> None:
        self.task = ""
        self._metrics: dict[str, float] = {}
        self._names: list[str] = []

    def feed(self, line: bytes) -> Evaluation | None:
        """Take a line; return the evaluation that it completes."""
        if (match := _SUMMARY.search(line)) is not None:
            name = _summary_name(match)
            done = self.flush() if name in self._metrics else None
            self._metrics[name] = float(match[6])
            return self.flush() if name == "ARl" else done
        if (match := _TASK.search(line)) is not None:
            done = self.flush()
            self.task = next(group for group in match.groups() if group).decode("ascii", "replace")
            return done
        if (match := _COPYPASTE_NAMES.search(line)) is not None:
            self._names = match[1].decode("ascii", "replace").split(",")
        elif self._names and (match := _COPYPASTE_VALUES.search(line)) is not None:
            return self._percent(match[1])
        return None

    def flush(self) -> Evaluation | None:
        """What was collected, complete or not."""
        if not self._metrics:
            return None
        metrics, self._metrics = self._metrics, {}
        return Evaluation(self.task, metrics)

    def _percent(self, values: bytes) -> Evaluation | None:
        names, self._names = self._names, []
        try:
            numbers = [float(value) for value in values.split(b",")]
        except ValueError:
            return None
        if len(numbers) != len(names):
            return None
        return Evaluation(self.task, {name: n / 100 for name, n in zip(names, numbers, strict=True)})


def _summary_name(match: re.Match[bytes]) -> str:
    what, low, high, area, max_dets, _ = match.groups()
    short = "AP" if what == b"Precision" else "AR"
    if area in _SIZES:
        return short + _SIZES[area]
    if short == "AR":
        return f"AR@{int(max_dets)}"
    return "AP" if high else f"AP{int(float(low) * 100 + 0.5)}"


def mm_metrics(text: bytes) -> tuple[Evaluation, ...]:
    """`bbox_mAP: 0.3740, bbox_mAP_50: …` of mmcv and mmengine, one evaluation for each task of the line."""
    found: dict[str, dict[str, float]] = {}
    for task, name, value in _MM_PAIR.findall(text):
        key = name.decode("ascii")
        found.setdefault(task.decode("ascii"), {})[_MM_NAMES.get(key, _ar_name(key))] = float(value)
    return _evaluations(found)


def _ar_name(key: str) -> str:
    """AR@100, AR_s@1000 → AR@100, ARs."""
    return f"AR{key[3]}" if key.startswith("AR_") else key


def pair_metrics(task: str, text: bytes) -> Evaluation:
    """`AP: 0.374  AP50: 0.581 …`, as the project's own trainer prints it."""
    return Evaluation(task, {name.decode("ascii"): float(value) for name, value in _PAIR.findall(text)})


def json_metrics(line: bytes) -> tuple[Evaluation, ...]:
    """`"bbox_mAP": 0.374`, `"coco/bbox_mAP": 0.374` as fractions and `"bbox/AP": 37.4` in percent."""
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    found: dict[str, dict[str, float]] = {}
    for key, value in content.items():
        if type(value) is not float and type(value) is not int:
            continue
        name = key.removeprefix("coco/")
        task, percent, metric = name.partition("/")
        if percent and metric in COCO_METRICS:
            found.setdefault(task, {})[metric] = value / 100
        elif not percent:
            task, _, metric = name.partition("_")
            if metric in _MM_NAMES or metric.startswith("AR"):
                found.setdefault(task, {})[_MM_NAMES.get(metric, _ar_name(metric))] = float(value)
    return _evaluations(found)


def _evaluations(found: dict[str, dict[str, float]]) -> tuple[Evaluation, ...]:
    return tuple(Evaluation(task, metrics) for task, metrics in found.items())
