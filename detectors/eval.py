"""Evaluate a model: ``python -m detectors.eval CONFIG CHECKPOINT``.

Writes detections as COCO takes them (``bbox.json``, ``segm.json`` with run-length masks at image size) and the AP of
each class (``classes.json``). Logs AP and how long an image took: end to end, that is waiting for data + network +
post-processing up to pasted masks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.data import DataLoader

from detectors import config as configs
from detectors import cpu, preflight, runtime, training_state, views
from detectors.coco import BadImage, Batch, CocoFolder, Collate, Example, ResizedCoco, resized_size
from detectors.config import Config, ConfigError, Loaded, Split
from detectors.pictures import as_pixels
from detectors.runtime import Ranks, log
from detectors.structures import Detections, Target
from detectors.transforms import resize_image

#: The twelve numbers in the order of pycocotools' summary.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl")
#: Images between two lines of progress.
PROGRESS = 500

Results = dict[str, list[dict[str, Any]]]  # "bbox" and perhaps "segm" → entries of COCO's results format


class Seconds(NamedTuple):
    """Spent on all images of this rank: waiting for data, network, post-processing, run-length encoding."""

    data: float
    network: float
    postprocess: float
    encode: float


class Evaluation(NamedTuple):
    """metrics: task → name of ``METRICS`` → 0..1, or -1 where there is nothing to find. images: evaluated."""

    metrics: dict[str, dict[str, float]]
    images: int
    seconds: Seconds

    def numbers(self) -> dict[str, float]:
        """The metrics by names such as ``bbox/AP``."""
        return {f"{task}/{name}": value for task, of in self.metrics.items() for name, value in of.items()}


def evaluate(
    model: nn.Module,
    coco: CocoFolder,
    config: Config,
    category_ids: Sequence[int],
    ranks: Ranks,
    output: Path,
) -> Evaluation | None:
    """Detect in all images of ``coco`` and compare; results go to ``output``. None on all ranks but the first.

    ``category_ids``: those of the labels 0, 1, … that the model learned.
    """
    assert config.data.val is not None
    image_ids = sorted(coco.files)
    was_training = model.training
    model.eval()
    log.info("evaluating: 0/%d", len(image_ids))
    augmented = config.evaluate.scales or config.evaluate.mirror
    look = _detect_views if augmented else _detect
    results, seconds = look(model, coco, config, image_ids, category_ids, ranks)
    model.train(was_training)
    if ranks.count > 1:
        parts: list[Results] | None = [{}] * ranks.count if ranks.first else None
        dist.gather_object(results, parts)
        if parts is None:
            return None
        results = {task: [entry for part in parts for entry in part[task]] for task in results}
    log.info("evaluating: %d/%d", len(image_ids), len(image_ids))
    _log_speed(seconds, -(-len(image_ids) // ranks.count))
    metrics, by_class = {}, {}
    output.mkdir(parents=True, exist_ok=True)
    for task, entries in results.items():
        (output / f"{task}.json").write_text(json.dumps(entries))
        evaluator = evaluated(config.data.val, entries, task)
        metrics[task], by_class[task] = summary(evaluator), class_precisions(evaluator)
        values = "  ".join(f"{name}: {value:.3f}" for name, value in metrics[task].items())
        log.info("evaluation: %s  %s", task, values)
    (output / "classes.json").write_text(json.dumps(by_class, indent=1))
    return Evaluation(metrics, len(image_ids), seconds)


@torch.no_grad()
def _detect(
    model: nn.Module,
    coco: CocoFolder,
    config: Config,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    ranks: Ranks,
) -> tuple[Results, Seconds]:
    """Results of this rank's images."""
    batches = _batches(coco, config, image_ids[ranks.rank :: ranks.count], ranks.device)
    tasks = ("bbox", "segm") if runtime.uses_masks(model) else ("bbox",)
    results: Results = {task: [] for task in tasks}
    spent = np.zeros(len(Seconds._fields))
    done = 0
    ready = time.perf_counter()
    for batch in batches:
        batch = batch.to(ranks.device)
        times = [ready, _now(ranks.device)]
        raw = model.network(batch.images, batch.sizes())
        times.append(_now(ranks.device))
        found = model.postprocess(raw, batch.image_sizes, batch.original_sizes)
        times.append(_now(ranks.device))
        for image_id, detections in zip(batch.image_ids, found, strict=True):
            for task, entries in results.items():
                entries += entries_of(detections, image_id, category_ids, masks=task == "segm")
        ready = time.perf_counter()
        spent += np.diff([*times, ready])
        shown, done = done // PROGRESS, done + len(found)
        if done // PROGRESS > shown:
            log.info("evaluating: %d/%d", min(done * ranks.count, len(image_ids)), len(image_ids))
    return results, Seconds(*spent.tolist())


@torch.no_grad()
def _detect_views(
    model: nn.Module,
    coco: CocoFolder,
    config: Config,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    ranks: Ranks,
) -> tuple[Results, Seconds]:
    """As ``_detect``, with several views of each image, one image at a time."""
    tasks = ("bbox", "segm") if runtime.uses_masks(model) else ("bbox",)
    results: Results = {task: [] for task in tasks}
    spent = np.zeros(len(Seconds._fields))
    for image_id in image_ids[ranks.rank :: ranks.count]:
        times = [time.perf_counter()]
        pixels = coco.image(image_id)
        times.append(time.perf_counter())
        found = detect_views(model, pixels, config)
        times += [_now(ranks.device)] * 2  # the post-processing of each view is part of it
        for task, entries in results.items():
            entries += entries_of(found, image_id, category_ids, masks=task == "segm")
        spent += np.diff([*times, time.perf_counter()])
    return results, Seconds(*spent.tolist())


@torch.no_grad()
def detect_views(model: nn.Module, image: np.ndarray | Image.Image, config: Config) -> Detections:
    """Detect in all views of an image that ``config.evaluate`` asks for.

    Args:
        model: on any device.
        image: as for ``detect``.
        config: what the model was trained with, and the views.

    Returns:
        Detections in the pixels of the image.

    Raises:
        ValueError: for a model whose detections cannot be joined.
    """
    suppression = views.suppression_of(model)
    pixels = as_pixels(image)
    found = []
    for resize in config.evaluate.views:
        view = replace(config, evaluate=replace(config.evaluate, resize=resize))
        found += detect(model, [pixels], view)
        if config.evaluate.mirror:
            found += [views.mirrored(one, pixels.shape[1]) for one in detect(model, [pixels[:, ::-1]], view)]
    return views.joined(found, *suppression)


def check_views(model: nn.Module, loaded: Loaded) -> None:
    """Raises ConfigError for views that are wanted of a model whose detections cannot be joined."""
    wanted = loaded.config.evaluate
    if wanted.scales or wanted.mirror:
        try:
            views.suppression_of(model)
        except ValueError as error:
            place = loaded.place("evaluate", "scales" if wanted.scales else "mirror")
            raise ConfigError(str(error), place) from None


def _now(device: torch.device) -> float:
    runtime.synchronise(device)
    return time.perf_counter()


def _batches(
    coco: CocoFolder, config: Config, image_ids: Sequence[int], device: torch.device
) -> DataLoader[Batch]:
    resized = partial(resized_size, resize=config.evaluate.resize)
    dataset = ResizedCoco(coco.without_objects(), image_ids, resized)
    return DataLoader(
        dataset,
        batch_size=config.evaluate.batch,
        num_workers=config.data.workers,
        collate_fn=Collate(config.data.pixels, config.evaluate.resize, as_bytes=device.type == "cuda"),
        pin_memory=device.type == "cuda",
        worker_init_fn=runtime.ignore_interrupts,
    )


@torch.no_grad()
def detect(model: nn.Module, images: Sequence[np.ndarray | Image.Image], config: Config) -> list[Detections]:
    """Detect in images, which are resized as ``config.evaluate`` says.

    Args:
        model: on any device.
        images: as ``pictures.as_pixels`` takes them: RGB, grey or with transparency, of Pillow or as arrays.
        config: what the model was trained with.

    Returns:
        Detections in the pixels of each image.

    Raises:
        ValueError: for an image of another shape or type.
    """
    images = [as_pixels(image) for image in images]
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    resized = [
        resize_image(image, resized_size(size, config.evaluate.resize))
        for image, size in zip(images, sizes, strict=True)
    ]
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    examples = [Example(image, nothing, size, 0) for image, size in zip(resized, sizes, strict=True)]
    batch = Collate(config.data.pixels, config.evaluate.resize)(examples).to(next(model.parameters()).device)
    return model.eval().postprocess(
        model.network(batch.images, batch.sizes()), batch.image_sizes, batch.original_sizes
    )


def load_model(checkpoint: str | Path, *, averaged: bool = True) -> tuple[nn.Module, Config, list[int]]:
    """The model of a checkpoint, ready to detect, what it was trained with, and the category ids of its labels."""
    state = training_state.read(checkpoint)
    config = configs.from_dict(state["config"])
    model = runtime.build_model(Loaded(config, {}), len(state["category_ids"]))
    runtime.take_weights(model, training_state.weights(state, averaged=averaged), str(checkpoint))
    return model.to(memory_format=torch.channels_last).eval(), config, state["category_ids"]


def entries_of(
    found: Detections, image_id: int, category_ids: Sequence[int], *, masks: bool
) -> list[dict[str, Any]]:
    """Detections of one image in COCO's results format: boxes (x, y, width, height), or masks as run lengths."""
    scores, labels = found.scores.tolist(), found.labels.tolist()
    if masks:
        assert found.masks is not None
        planes = np.asfortranarray(found.masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
        outlines = [
            {"size": rle["size"], "counts": rle["counts"].decode()} for rle in coco_mask.encode(planes)
        ]
        shapes = [{"segmentation": outline} for outline in outlines]
    else:
        x1, y1, x2, y2 = found.boxes.unbind(1)
        shapes = [{"bbox": box} for box in torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1).tolist()]
    return [
        {"image_id": image_id, "category_id": category_ids[label], **shape, "score": score}
        for shape, score, label in zip(shapes, scores, labels, strict=True)
    ]


def evaluated(split: Split, entries: list[dict[str, Any]], task: str) -> COCOeval | None:
    """Pycocotools' evaluation of all images of the split, None without entries. ``task``: bbox or segm."""
    if not entries:  # pycocotools raises IndexError
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(split.annotations)
        truth.dataset.setdefault("info", {})  # which loadRes wants, and not every file has
        evaluator = COCOeval(truth, truth.loadRes(entries), task)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def summary(evaluator: COCOeval | None) -> dict[str, float]:
    """COCO's numbers (``METRICS``)."""
    return (
        dict.fromkeys(METRICS, 0.0)
        if evaluator is None
        else dict(zip(METRICS, evaluator.stats.tolist(), strict=True))
    )


def class_precisions(evaluator: COCOeval | None) -> dict[str, float]:
    """AP of each category by its name, 0..1, or -1 for one without an object."""
    if evaluator is None:
        return {}
    names = {one["id"]: one.get("name", str(one["id"])) for one in evaluator.cocoGt.dataset["categories"]}
    found = evaluator.eval["precision"][
        :, :, :, 0, -1
    ]  # [thresholds, recalls, categories]: all areas, 100 detections
    means = {number: found[:, :, place] for place, number in enumerate(evaluator.params.catIds)}
    return {
        names[key]: float(each[each > -1].mean()) if (each > -1).any() else -1.0
        for key, each in means.items()
    }


def _log_speed(seconds: Seconds, images: int) -> None:
    """``images``: of the rank whose seconds these are."""
    each = Seconds(*(value / max(images, 1) for value in seconds))
    total = each.data + each.network + each.postprocess
    log.info("inference: %d images  s/image: %.4f  FPS: %.2f", images, total, 1 / max(total, 1e-9))
    log.info(
        "inference of one image took s: data %.4f  network %.4f  postprocess %.4f; encoding its results %.4f",
        *each,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m detectors.eval", description="COCO AP and speed of a model."
    )
    parser.add_argument("config", help="YAML, see detectors/configs")
    parser.add_argument("checkpoint", help="of detectors.train, or another codebase's with COCO's classes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the config")
    parser.add_argument(
        "--not-averaged", action="store_true", help="the weights themselves, not their average"
    )
    parser.add_argument("--output", type=Path, help="folder of the results; by default <output>/eval")
    given = parser.parse_args(arguments)
    try:
        return _run(given)
    except (ConfigError, BadImage) as error:
        print(f"error: {error}", file=sys.stderr)
        return runtime.BAD_INPUT
    except KeyboardInterrupt:
        return runtime.INTERRUPTED


def _run(given: argparse.Namespace) -> int:
    loaded = configs.load(given.config, given.set)
    config = loaded.config
    preflight.check_model(loaded)
    coco = runtime.coco_folder(loaded, "val")
    model, category_ids, _ = runtime.trained(loaded, given.checkpoint, averaged=not given.not_averaged)
    runtime.check_categories(category_ids, coco, loaded)
    check_views(model, loaded)
    output = given.output or Path(config.output) / "eval"
    with runtime.ranks(config.device) as ranks, runtime.logging_to(output / "eval.log", first=ranks.first):
        model.to(ranks.device)
        cpu.use(config.kernels)
        log.info("%s on %s", given.checkpoint, ranks.device)
        log.info("kernels: %s", cpu.describe(ranks.device))
        evaluate(model, coco, config, category_ids, ranks, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
