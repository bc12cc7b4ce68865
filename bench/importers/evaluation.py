"""Evaluations in logs: the summaries of pycocotools and LVIS, and what tools write in their own words.

-1.000 and nan are undefined values (no object of that size, say): they become None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from bench.importers.events import Evaluation
from bench.importers.format import NUMBER, json_or_nothing, pairs

#: The twelve numbers in the order of pycocotools' summary.
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl")
_KNOWN = re.compile(r"A[PR](?:\d\d|[smlrcf]|@\d{1,5})?")

_SUMMARY = re.compile(
    rb"Average (Precision|Recall) {1,9}\((?:AP|AR)\) {0,9}@\[ {0,9}IoU=(0\.\d\d)(:0\.\d\d)? {0,20}\| {0,9}"
    rb"area= {0,9}(\w{1,20}) {0,9}\| {0,9}maxDets= {0,9}(-?\d{1,6})(?: catIds= {0,9}(\w{1,9}))? {0,9}\] {0,9}= {0,9}"
    rb"(-?\d\.\d{3}|nan)(?!\d)"
)
_TASK = re.compile(
    rb"Evaluate annotation type \*(\w{1,40})\*|Evaluating (bbox|segm|proposal|keypoints)\b|IoU metric: (\w{1,40})"
    rb"|Evaluation results for (\w{1,40}):|(?:copypaste: |^)Task: (\w{1,40})$"
)
_COPYPASTE_NAMES = re.compile(rb"(?:copypaste: |^)(A[PR][\w@]{0,9}(?:, ?A[PR][\w@]{1,9})+)$")
_COPYPASTE_VALUES = re.compile(rb"(?:copypaste: |^)((?:-?\d+\.\d+|nan)(?:, ?(?:-?\d+\.\d+|nan))+)$")
_MM_COPYPASTE = re.compile(rb"(?:^|INFO - )(bbox|segm)_mAP_copypaste: ((?:-?\d\.\d{3} ?){6})$")
_CELL = re.compile(rb"[^|\s]{1,20}")
_MM_KEY = re.compile(
    r"(?:\w{1,40}/)?(bbox|segm|proposal|keypoints)_(mAP(?:_50|_75|_[sml])?|AP(?:50|75|[smlrcf])?|AR@\d{1,5}|AR_[sml]@\d{1,5})"
)
_BETWEEN = re.compile(rb", {0,9}|[ \t]{2,99}")
#: Texts of which every line that `SummaryBlock` reads holds one.
HINTS = (b"Average ", b"Evaluat", b"IoU metric", b"copypaste", b"Task: ", b"AP50")
_SIZES = {b"small": "s", b"medium": "m", b"large": "l", b"s": "s", b"m": "m", b"l": "l"}
_MM_NAMES = {"mAP": "AP", "mAP_50": "AP50", "mAP_75": "AP75", "mAP_s": "APs", "mAP_m": "APm", "mAP_l": "APl"}
_TASKS = {
    "box": "bbox",
    "mask": "segm",
    "masks": "segm",
    "keypoint": "keypoints",
    "box_proposals": "proposal",
}
#: Prefixes of mmengine's metrics, which are fractions.
_DATA_SETS = ("coco", "lvis")
#: Keys of a validation line that are no metric.
_NO_METRICS = re.compile(r"(?:.*/)?(?:data_time|time|lr|base_lr|memory|step|iter|epoch|grad_norm|.*loss.*)")


def defined(value: float, scale: int = 1) -> float | None:
    """A value of which ``scale`` is 1; None for those that stand for an undefined one."""
    return None if value == -1 or not math.isfinite(value) else value / scale


class SummaryBlock:
    """Collects the lines of one evaluation; ranks that write into one file may not mix within a block."""

    def __init__(self) -> None:
        self.task = ""
        self._metrics: dict[str, float | None] = {}
        self._names: list[str] = []

    def feed(self, line: bytes) -> Evaluation | None:
        """Take a line; return the evaluation that it completes."""
        if (match := _SUMMARY.search(line)) is not None:
            name = _summary_name(match)
            done = self.flush() if name in self._metrics else None
            self._metrics[name] = defined(float(match[7]))
            return self.flush() if name == "ARl" else done
        if (match := _TASK.search(line)) is not None:
            done = self.flush()
            self.task = _task(next(group for group in match.groups() if group))
            return done
        if (match := _MM_COPYPASTE.search(line)) is not None:
            values = zip(COCO_METRICS, map(float, match[2].split()), strict=False)
            metrics = {name: defined(value) for name, value in values}
            return Evaluation(_task(match[1]), metrics, "copypaste")
        return self._of_table(line)

    @property
    def waiting(self) -> bool:
        """The names of a table were read, its values were not."""
        return bool(self._names)

    def flush(self) -> Evaluation | None:
        """What was collected, complete or not."""
        if not self._metrics:
            return None
        metrics, self._metrics = self._metrics, {}
        return Evaluation(self.task, metrics)

    def _of_table(self, line: bytes) -> Evaluation | None:
        """Two lines, names and values in percent: `copypaste: AP,AP50,…` and `|  AP  | AP50 | …`."""
        if line.startswith(b"|"):
            cells = [cell.decode("ascii", "replace") for cell in _CELL.findall(line[:400])]
            if cells[:2] == ["AP", "AP50"]:
                self._names = cells
            elif self._names and (values := _numbers(cells)) is not None:
                return self._named(values, "table", percent=True)
        elif (match := _COPYPASTE_NAMES.search(line)) is not None:
            self._names = [name.strip() for name in match[1].decode("ascii").split(",")]
        elif self._names and (match := _COPYPASTE_VALUES.search(line)) is not None:
            # Detectron and maskrcnn-benchmark print fractions, detectron2 percent.
            values = _numbers(match[1].decode("ascii").split(","))
            percent = b"evaluation.testing" in line or any(value > 1 for value in values or ())
            return self._named(values, "copypaste", percent=percent)
        return None

    def _named(self, values: list[float] | None, kind: str, *, percent: bool) -> Evaluation | None:
        names, self._names = self._names, []
        if values is None or len(values) != len(names):
            return None
        scale = 100 if percent else 1
        metrics = {name: defined(value, scale) for name, value in zip(names, values, strict=True)}
        return Evaluation(self.task, metrics, kind)


def _numbers(cells: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None


def _task(name: bytes) -> str:
    text = name.decode("ascii", "replace")
    return _TASKS.get(text, text)


def _summary_name(match: re.Match[bytes]) -> str:
    what, low, high, area, max_dets, categories, _ = match.groups()
    short = "AP" if what == b"Precision" else "AR"
    if categories is not None and categories != b"all":
        return short + categories.decode("ascii", "replace")
    if area in _SIZES:
        return short + _SIZES[area]
    if area != b"all":
        return f"{short}({area.decode('ascii', 'replace')})"
    if not high or high[1:] == low:  # IoU=0.50:0.50 is not the mean over 0.50:0.95
        return f"{short}{int(float(low) * 100 + 0.5)}"
    return "AP" if short == "AP" else "AR" if max_dets == b"20" else f"AR@{int(max_dets)}"


def mm_metrics(text: bytes) -> tuple[Evaluation, ...]:
    """`bbox_mAP: 0.3740, bbox_mAP_50: …` of mmcv and mmengine, one evaluation for each task of the line; metrics that
    are not COCO's (`mAP: 0.6749` of VOC) by the names that are printed, blanks included."""
    values: dict[str, float] = {}
    for part in _BETWEEN.split(text):
        name, _, value = part.partition(b": ")
        if b": " in value:  # a copy whose blanks were collapsed
            values |= pairs(part)
        elif name and re.fullmatch(NUMBER, value):
            values[name.strip().decode("utf-8", "replace")] = float(value)
    return _named_metrics(values.items())


def pair_metrics(task: str, text: bytes) -> Evaluation:
    """`AP: 0.374  AP50: 0.581 …`, as the project's own trainer prints it."""
    known = {name: defined(value) for name, value in pairs(text).items() if _KNOWN.fullmatch(name)}
    return Evaluation(task, known, "line")


def json_metrics(line: bytes) -> tuple[Evaluation, ...]:
    """`"bbox_mAP": 0.374`, `"coco/bbox_mAP": 0.374` as fractions and `"bbox/AP": 37.4` in percent."""
    values = {key: value for key, value in json_or_nothing(line).items() if type(value) in (int, float)}
    percent: dict[str, dict[str, float | None]] = {}
    for key in list(values):
        task, slash, metric = key.partition("/")
        if slash and task not in _DATA_SETS and _KNOWN.fullmatch(metric):
            percent.setdefault(_task(task.encode()), {})[metric] = defined(values.pop(key), 100)
    if percent:
        iteration = values.get("iteration")
        at = int(iteration) if iteration is not None and 0 <= iteration < 10**9 else None
        return tuple(Evaluation(task, metrics, "line", at) for task, metrics in percent.items())
    return _named_metrics(values.items())


def _named_metrics(values: Iterable[tuple[str, float]]) -> tuple[Evaluation, ...]:
    found: dict[str, dict[str, float | None]] = {}
    unknown: dict[str, float | None] = {}
    for key, value in values:
        if (match := _MM_KEY.fullmatch(key)) is not None:
            name = _MM_NAMES.get(match[2], match[2])
            name = f"AR{name[3]}" if name.startswith("AR_") else name
            found.setdefault(match[1], {})[name] = defined(float(value))
        elif not _NO_METRICS.fullmatch(key) and not key.endswith("copypaste"):
            unknown[key] = defined(float(value))
    if not found and unknown:
        found[""] = unknown
    return tuple(Evaluation(task, metrics, "line") for task, metrics in found.items())


def coco_lists(line: bytes) -> tuple[Evaluation, ...]:
    """`"test_coco_eval_bbox": [12 numbers]` of DETR and its descendants."""
    content, found = json_or_nothing(line), []
    for key, values in content.items():
        prefix, marker, task = key.partition("test_coco_eval_")
        if marker and isinstance(values, list) and all(type(value) in (int, float) for value in values):
            at = epoch if type(epoch := content.get("epoch")) is int else None
            named = zip(COCO_METRICS, values, strict=False)
            name = _task(task.encode()) + (f" ({prefix.strip('_')})" if prefix else "")
            found.append(Evaluation(name, {one: defined(float(value)) for one, value in named}, "line", at))
    return tuple(found)
