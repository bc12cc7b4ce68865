"""Tools whose training lines are not read: how to know them, and what to do instead."""

from __future__ import annotations

import re

_RESULTS = "import results.csv, which the run's folder holds"
_MEASURE = "wrap it and let bench time it (docs/tutorial/wrap-your-codebase.md), or add a format"

#: A tool, a line of it, and what can be done.
_TOOLS = (
    (
        "the console of YOLOv5 to YOLO26",
        rb"Epoch +(?:GPU|gpu)_mem|\d+/\d+ +[\d.]+[GM] +[\d.]+ +[\d.]|Class +Images +(?:Instances|Labels|Targets) ",
        _RESULTS,
    ),
    (
        "the TensorFlow Object Detection API",
        rb".{0,90}(?:\bStep \d+ per-step time|global step \d+: loss =)",
        _MEASURE,
    ),
    ("darknet", rb"\d+: [\d.-]+, [\d.-]+ avg(?: loss)?, [\d.]+ rate", _MEASURE),
    ("PyTorch Lightning", rb"Epoch \d+: +\d+%\|.{0,80}(?:it/s|s/it|v_num)", _MEASURE),
    ("the Trainer of transformers", rb"\{'(?:train_|eval_)?(?:loss|runtime)': .{0,999}'epoch': ", _MEASURE),
    ("OpenPCDet", rb".{0,40}\bTrain: +\d+/\d+ \( *\d+%\) \[", _MEASURE),
    ("PaddleSeg or PaddleX", rb".{0,40}\[TRAIN\]\s+(?:epoch: |Epoch=)", _MEASURE),
    ("super-gradients (YOLO-NAS)", rb"Train epoch \d+: +\d+%|SUMMARY OF EPOCH \d", _MEASURE),
    ("YOLOv6", rb"Epoch +(?:lr +)?iou_loss ", _MEASURE),
    ("Keras", rb"\d+/\d+ \[[=>.]+\] - ", _MEASURE),
)
_LINE = re.compile(rb"\s{0,40}(?:" + b"|".join(b"(" + pattern + b")" for _, pattern, _ in _TOOLS) + b")")


def tool_of(line: bytes) -> str:
    """The tool that wrote a training line which no format reads; '' for any other line."""
    match = _LINE.match(line)
    return _TOOLS[match.lastindex - 1][0] if match is not None and match.lastindex else ""


def remedy(tool: str) -> str:
    """What to do instead."""
    return next(remedy for name, _, remedy in _TOOLS if name == tool)
