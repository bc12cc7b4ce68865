"""Speed and memory of COCO evaluators on one large set: 1,000 images, 36,000 objects, 80 classes, 100,000 detections.

Every evaluator runs in a fresh process on the same content, already parsed. Timed is all from there to the 12
numbers: indexing, loading the results, matching, accumulating. `bench` is `judge.accuracy.evaluate`, its checks of
every entry included; the others are the libraries alone. An evaluator whose numbers are not those of pycocotools is
said so. Memory is the peak of the resident set above what it was when the content had been parsed.

    python -m benchmarks.evaluators [--images N] [--repeats R]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.table import Table

OBJECTS_PER_IMAGE, DETECTIONS_PER_IMAGE, CLASSES = 36, 100, 80
HEIGHT, WIDTH = 480, 640
TARGETS = {"bbox": 30.0, "segm": 8.0}  # times as fast as pycocotools

Json = dict[str, Any]


# -- the set ---


def make_set(folder: Path, images: int) -> None:
    """Polygons of 16 corners as ground truth; their boxes and masks, moved by a few pixels, as detections, then boxes
    and masks anywhere up to 100 in an image. Sizes are spread evenly over their logarithm, 8 to 300 pixels."""
    rng = np.random.default_rng(0)
    truth: Json = {
        "images": [
            {"id": i, "file_name": "", "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)
        ],
        "categories": [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)],
        "annotations": [],
    }
    boxes: list[Json] = []
    masks: list[Json] = []
    for image in range(1, images + 1):
        categories = rng.integers(1, CLASSES + 1, OBJECTS_PER_IMAGE)
        outlines = [_outline(rng) for _ in categories]
        for category, outline in zip(categories, outlines, strict=True):
            encoded = _encode(outline)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image,
                    "category_id": int(category),
                    "bbox": [float(value) for value in coco_mask.toBbox(encoded)],
                    "area": float(coco_mask.area(encoded)),
                    "iscrowd": int(rng.random() < 0.01),
                    "segmentation": [outline.ravel().tolist()],
                }
            )
        for number in range(DETECTIONS_PER_IMAGE):
            known = number < OBJECTS_PER_IMAGE
            moved = outlines[number] + rng.normal(0, 3, (1, 2)) if known else _outline(rng)
            category = int(categories[number] if known else rng.integers(1, CLASSES + 1))
            encoded = _encode(moved)
            entry = {"image_id": image, "category_id": category, "score": float(rng.random())}
            boxes.append({**entry, "bbox": [float(value) for value in coco_mask.toBbox(encoded)]})
            mask = {"size": encoded["size"], "counts": encoded["counts"].decode()}
            masks.append({**entry, "segmentation": mask})
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "bbox.json").write_text(json.dumps(boxes))
    (folder / "segm.json").write_text(json.dumps(masks))


def _outline(rng: np.random.Generator) -> np.ndarray:
    """A star-shaped polygon, float64 [16, 2], in the image."""
    radius = np.exp(rng.uniform(np.log(4), np.log(150)))
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    radii = radius * rng.uniform(0.7, 1, 16)
    centre = rng.uniform((0, 0), (WIDTH, HEIGHT))
    points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.clip(points, 0, (WIDTH, HEIGHT))


def _encode(outline: np.ndarray) -> Json:
    return dict(coco_mask.merge(coco_mask.frPyObjects([outline.ravel().tolist()], HEIGHT, WIDTH)))


# -- the evaluators: content → the 12 numbers, −1 where not defined ---


def _with_bench(truth: Json, results: list[Json], iou_type: Any) -> list[float]:
    from bench.judge.accuracy import evaluate

    return [-1.0 if value is None else value for value in evaluate(truth, results, iou_type).metrics.values()]


def _with_library(
    coco_class: Any, evaluator_class: Any, truth: Json, results: list[Json], iou_type: str
) -> list[float]:
    coco = coco_class()
    coco.dataset = truth
    coco.createIndex()
    run = evaluator_class(coco, coco.loadRes(results), iou_type)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return [float(value) for value in run.stats[:12]]


def _with_hotcoco(truth: Json, results: list[Json], iou_type: str) -> list[float]:
    import hotcoco

    return _with_library(hotcoco.COCO, hotcoco.COCOeval, truth, results, iou_type)


def _with_pycocotools(truth: Json, results: list[Json], iou_type: str) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _with_library(COCO, COCOeval, truth, results, iou_type)


def _with_faster_coco_eval(truth: Json, results: list[Json], iou_type: str) -> list[float]:
    from faster_coco_eval import COCO, COCOeval_faster

    return _with_library(COCO, COCOeval_faster, truth, results, iou_type)


#: Name → the module it needs, and how to run it. The first is the reference.
EVALUATORS: dict[str, tuple[str, Callable[[Json, list[Json], Any], list[float]]]] = {
    "pycocotools": ("pycocotools", _with_pycocotools),
    "faster-coco-eval": ("faster_coco_eval", _with_faster_coco_eval),
    "hotcoco": ("hotcoco", _with_hotcoco),
    "bench": ("hotcoco", _with_bench),
}


# -- measuring ---


def _measure_here(name: str, folder: Path, iou_type: str) -> None:
    """In a process of its own: print one JSON line with seconds, bytes and numbers."""
    truth = json.loads((folder / "truth.json").read_text())
    results = json.loads((folder / f"{iou_type}.json").read_text())
    _, run = EVALUATORS[name]
    tiny = {**truth, "images": truth["images"][:1], "annotations": [dict(truth["annotations"][0])]}
    with _silence():
        run(tiny, [dict(results[0])], iou_type)  # imports are no evaluation; loading changes its input
        before_bytes = psutil.Process().memory_info().rss
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        numbers = run(truth, results, iou_type)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "bytes": peak_bytes - before_bytes, "numbers": numbers})
    )


@contextlib.contextmanager
def _silence() -> Any:
    """Evaluators print tables, some of them past `sys.stdout`."""
    kept = os.dup(1)
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(io.StringIO()):
        os.dup2(null.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _measure(name: str, folder: Path, iou_type: str) -> Json:
    command = [sys.executable, "-m", "benchmarks.evaluators", "--measure", name, str(folder), iou_type]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} on {iou_type} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(images: int, repeats: int, console: Console) -> None:
    """Measure and print. Repeats are interleaved, so that a drift of the machine falls on all; medians are shown."""
    names = [name for name, (module, _) in EVALUATORS.items() if importlib.util.find_spec(module)]
    for name in EVALUATORS.keys() - set(names):
        console.print(f"{name} is not installed, so not compared: pip install {name}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_set(folder, images)
        for iou_type, target in TARGETS.items():
            runs: dict[str, list[Json]] = {name: [] for name in names}
            for repeat in range(repeats):
                for name in names if repeat % 2 == 0 else reversed(names):
                    runs[name].append(_measure(name, folder, iou_type))
            console.print(_table(runs, iou_type, images, target))


def _table(runs: dict[str, list[Json]], iou_type: str, images: int, target: float) -> Table:
    def median(name: str, key: str) -> float:
        return float(statistics.median(run[key] for run in runs[name]))

    reference = "pycocotools"
    table = Table(
        title=f"{iou_type}: {images} images, {images * DETECTIONS_PER_IMAGE} detections; target {target:g}x"
    )
    for column in ("evaluator", "wall s", "cpu s", "times as fast", "memory MiB", "numbers"):
        table.add_column(column, justify="left" if column in ("evaluator", "numbers") else "right")
    for name in runs:
        equal = all(run["numbers"] == runs[reference][0]["numbers"] for run in runs[name])
        near = np.allclose(runs[name][0]["numbers"], runs[reference][0]["numbers"], atol=1e-4)
        table.add_row(
            name,
            f"{median(name, 'wall_s'):.2f}",
            f"{median(name, 'cpu_s'):.2f}",
            f"{median(reference, 'wall_s') / median(name, 'wall_s'):.1f}",
            f"{median(name, 'bytes') / 2**20:.0f}",
            "the same bits" if equal else "within 1e-4" if near else "DIFFERENT",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        name, folder, iou_type = options.measure
        _measure_here(name, Path(folder), iou_type)
    else:
        compare(options.images, options.repeats, Console(highlight=False))


if __name__ == "__main__":
    main()
