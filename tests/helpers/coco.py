"""Small COCO ground truths and detections, and pycocotools' own numbers of them."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bench.judge.accuracy import Evaluation

BACKENDS = ("hotcoco", "pycocotools")

Json = dict[str, Any]


def reference_stats(truth: Json, results: list[Json], iou_type: str) -> list[float]:
    """pycocotools itself, used as its README says, on copies of the files' content."""
    truth, results = copy.deepcopy(truth), copy.deepcopy(results)
    for annotation in truth["annotations"]:
        annotation.setdefault("iscrowd", 0)  # without it pycocotools raises KeyError
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(results), iou_type)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [float(value) for value in run.stats]


def stats(evaluation: Evaluation) -> list[float]:
    return [-1.0 if value is None else value for value in evaluation.metrics.values()]


def small_truth() -> Json:
    """Two images of 100 by 80, a 40 by 40 object of class 3 in the first one, none in the second."""
    square = [[10, 10, 50, 10, 50, 50, 10, 50]]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in (1, 2)],
        "categories": [{"id": 3, "name": "dog"}, {"id": 8, "name": "cat"}],
        "annotations": [
            {
                "id": 5,
                "image_id": 1,
                "category_id": 3,
                "bbox": [10, 10, 40, 40],
                "area": 1600,
                "segmentation": square,
            }
        ],
    }


def rle(box: list[int], height: int = 80, width: int = 100) -> Json:
    x, y, w, h = box
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    encoded = coco_mask.encode(mask)
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def hit(**changes: Any) -> Json:
    """The detection that is exactly right."""
    box = [10, 10, 40, 40]
    return {"image_id": 1, "category_id": 3, "bbox": box, "segmentation": rle(box), "score": 0.5, **changes}


def random_case(seed: int, iou_type: str) -> tuple[Json, list[Json]]:
    """Images with and without objects, crowds, all sizes, ties of scores, near and far detections, wrong classes."""
    rng = np.random.default_rng(seed)
    images = [{"id": int(i), "file_name": "", "width": 320, "height": 240} for i in rng.permutation(20) + 1]
    annotations: list[Json] = []
    results: list[Json] = []
    for image in images[:16]:
        for _ in range(rng.integers(1, 9)):
            w, h = np.exp(rng.uniform(np.log(4), np.log(200), 2))
            x, y = rng.uniform(0, 320 - w), rng.uniform(0, 240 - h)
            crowd = bool(rng.random() < 0.15)
            category = int(rng.choice([2, 5, 9]))
            corners = np.array([x, y, x + w, y, x + w * 0.8, y + h, x, y + h]).tolist()
            encoded = coco_mask.merge(coco_mask.frPyObjects([corners], 240, 320))
            outline: Any = {"size": [240, 320], "counts": encoded["counts"].decode()} if crowd else [corners]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [float(v) for v in (x, y, w, h)],
                    "area": float(coco_mask.area(encoded)),
                    "iscrowd": int(crowd),
                    "segmentation": outline,
                }
            )
            for _ in range(rng.integers(0, 4)):
                dx, dy, dw, dh = rng.normal(0, 0.1, 4)
                box = [float(v) for v in (x + dx * w, y + dy * h, w * (1 + dw / 2), h * (1 + dh / 2))]
                results.append({"image_id": image["id"], "category_id": category, "bbox": box})
    for image in images:  # everywhere, also where there is nothing
        for _ in range(rng.integers(0, 5)):
            box = [float(v) for v in rng.uniform(0, 150, 4)]
            results.append({"image_id": image["id"], "category_id": int(rng.choice([2, 5, 9])), "bbox": box})
    for row in results:
        row["score"] = float(np.round(rng.random(), 2))
        if iou_type == "segm":
            x, y, w, h = row.pop("bbox")
            corners = [x, y, x + w, y, x + w, y + h * 0.9, x, y + h]
            row["segmentation"] = coco_mask.merge(coco_mask.frPyObjects([corners], 240, 320))
            row["segmentation"]["counts"] = row["segmentation"]["counts"].decode()
    categories = [{"id": i, "name": str(i)} for i in (9, 2, 5, 7)]  # 7 never occurs
    return {"images": images, "categories": categories, "annotations": annotations}, results
