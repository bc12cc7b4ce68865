"""Tools whose training lines are not read: how to know them, and what to do instead."""

from __future__ import annotations

import re

_YOLO = "the console of YOLOv5 to YOLO26"
#: A tool, and a line of it.
_TOOLS = {
    _YOLO: rb"Epoch +(?:GPU|gpu)_mem|\d+/\d+ +[\d.]+[GM] +[\d.]+ +[\d.]"
    rb"|Class +Images +(?:Instances|Labels|Targets) ",
    "the TensorFlow Object Detection API": rb".{0,90}(?:\bStep \d+ per-step time|global step \d+: loss =)",
    "darknet": rb"\d+: [\d.-]+, [\d.-]+ avg(?: loss)?, [\d.]+ rate",
    "PyTorch Lightning": rb"Epoch \d+: +\d+%\|.{0,80}(?:it/s|s/it|v_num)",
    "the Trainer of transformers": rb"\{'(?:train_|eval_)?(?:loss|runtime)': .{0,999}'epoch': ",
    "OpenPCDet": rb".{0,40}\bTrain: +\d+/\d+ \( *\d+%\) \[",
    "PaddleSeg or PaddleX": rb".{0,40}\[TRAIN\]\s+(?:epoch: |Epoch=)",
    "super-gradients (YOLO-NAS)": rb"Train epoch \d+: +\d+%|SUMMARY OF EPOCH \d",
    "YOLOv6": rb"Epoch +(?:lr +)?iou_loss ",
    "Keras": rb"\d+/\d+ \[[=>.]+\] - ",
}
_LINE = re.compile(rb"\s{0,40}(?:" + b"|".join(b"(" + pattern + b")" for pattern in _TOOLS.values()) + b")")


def tool_of(line: bytes) -> str:
    """The tool that wrote a training line which no format reads; '' for any other line."""
    match = _LINE.match(line)
    return list(_TOOLS)[match.lastindex - 1] if match is not None and match.lastindex else ""


def remedy(tool: str) -> str:
    """What to do instead."""
    if tool == _YOLO:
        return "import results.csv, which the run's folder holds"
    return "wrap it and let bench time it (docs/tutorial/wrap-your-codebase.md), or add a format"
