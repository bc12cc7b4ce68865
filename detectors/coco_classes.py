"""COCO's 80 classes: their ids, which go up to 90, and their names."""

from __future__ import annotations

from pathlib import Path

import yaml

_NAMES: dict[int, str] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
COCO_IDS = tuple(_NAMES)
COCO_NAMES = tuple(_NAMES.values())
