"""Images with objects from a folder in COCO layout."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from detectors.structures import Target
from detectors.transforms import Size, resize_image, resize_mask


class Example(NamedTuple):
    """image: uint8 [h, w, 3], resized. target: in its pixels. original_size: (height, width) of the file."""

    image: np.ndarray
    target: Target
    original_size: Size
    image_id: int


class CocoDetection(Dataset[Example]):
    """Examples in the order of ``image_ids``; labels are places in ``category_ids``.

    Left out: crowds, objects less than a pixel wide or high, and, with ``masks``, objects of which the resized mask
    has no pixel. ``resized``: the new size for an old one.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        image_ids: Sequence[int],
        category_ids: Sequence[int],
        resized: Callable[[Size], Size],
        *,
        masks: bool,
    ) -> None:
        content = json.loads(Path(annotations).read_text())
        self.folder = Path(images)
        self.files = {image["id"]: image["file_name"] for image in content["images"]}
        self.objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd"):
                self.objects[annotation["image_id"]].append(annotation)
        self.image_ids = list(image_ids)
        self.labels = {category: label for label, category in enumerate(category_ids)}
        self.resized = resized
        self.masks = masks

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Example:
        image_id = self.image_ids[index]
        with Image.open(self.folder / self.files[image_id]) as file:
            pixels = np.asarray(file.convert("RGB"))
        old = (pixels.shape[0], pixels.shape[1])
        new = self.resized(old)
        target = self._target(self.objects[image_id], old, new)
        return Example(resize_image(pixels, new), target, old, image_id)

    def _target(self, objects: Sequence[dict[str, Any]], old: Size, new: Size) -> Target:
        boxes, labels, masks = [], [], []
        scale = np.array([new[1] / old[1], new[0] / old[0]] * 2)
        for item in objects:
            x, y, width, height = item["bbox"]
            box = np.clip([x, y, x + width, y + height], 0, [old[1], old[0]] * 2)
            if min(box[2:] - box[:2]) < 1:
                continue
            if self.masks:
                mask = resize_mask(object_mask(item["segmentation"], old), new)
                if not mask.any():
                    continue
                masks.append(mask)
            boxes.append(box * scale)
            labels.append(self.labels[item["category_id"]])
        return Target(
            torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)),
            torch.tensor(labels, dtype=torch.int64),
            torch.from_numpy(np.array(masks, np.uint8).reshape(-1, *new)) if self.masks else None,
        )


def object_mask(outline: Any, size: Size) -> np.ndarray:
    """uint8 [height, width] from COCO's polygons or run lengths, compressed or not."""
    if isinstance(outline, list):
        outline = coco_mask.merge(coco_mask.frPyObjects(outline, *size))
    elif isinstance(outline["counts"], list):
        outline = coco_mask.frPyObjects(outline, *size)
    return coco_mask.decode(outline)
