"""Real images at the size of a network's input, and the AP that `detectors` gets on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from detectors import config
from detectors.coco import CocoFolder
from detectors.eval import evaluate
from detectors.runtime import Ranks
from tests.conftest import SHARED

COCO_SMALL = SHARED / "data" / "coco_small"
SMALLEST = 64  # pixels of an object in the original


def of_network_size(folder: Path, short: int, *, square: bool = False) -> tuple[config.Split, int]:
    """The training images that have large objects, of a short side or square; how many classes."""
    content = json.loads((COCO_SMALL / "annotations" / "instances_train2017.json").read_text())
    found = [one for one in content["annotations"] if not one["iscrowd"] and min(one["bbox"][2:]) > SMALLEST]
    used = {one["category_id"] for one in found}
    images, annotations = [], []
    for image in content["images"]:
        extent = np.array([image["width"], image["height"]])
        wanted = np.array([short] * 2) if square else np.rint(extent * short / extent.min()).astype(int)
        objects = [one for one in found if one["image_id"] == image["id"]]
        if not objects:
            continue
        name, (width, height), scale = f"{image['id']}.png", wanted.tolist(), wanted / extent
        with Image.open(COCO_SMALL / "train2017" / image["file_name"]) as file:
            file.convert("RGB").resize((width, height)).save(folder / name)
        images.append({"id": image["id"], "file_name": name, "width": width, "height": height})
        for one in objects:
            outlines = [
                (np.reshape(part, (-1, 2)) * scale).flatten().tolist() for part in one["segmentation"]
            ]
            box = (np.array(one["bbox"]) * [*scale, *scale]).tolist()
            annotations.append({**one, "bbox": box, "segmentation": outlines, "area": box[2] * box[3]})
    categories = [one for one in content["categories"] if one["id"] in used]
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return config.Split(str(file), str(folder)), len(categories)


def our_ap(
    model: nn.Module, split: config.Split, resize: config.Resize, pixels: dict[str, Any], output: Path
) -> dict[str, dict[str, float]]:
    """COCO's numbers by task, of all images, one at a time, as `detectors.eval` gets them."""
    content = {
        "model": {"name": "faster_rcnn_r50_fpn"},  # is not looked at
        "data": {"train": split, "val": split, "workers": 0, "pixels": pixels},
        "optimizer": {"lr": 1.0},
        "schedule": {"iterations": 1},
        "output": str(output),
        "evaluate": {"batch": 1, "resize": resize},
    }
    folder = CocoFolder(split.annotations, split.images, masks=False)
    alone = Ranks(0, 1, torch.device("cpu"))
    found = evaluate(model, folder, config.from_dict(content), folder.category_ids, alone, output / "eval")
    assert found is not None
    return found.metrics
