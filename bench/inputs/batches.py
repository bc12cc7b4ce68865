"""From a data set on disk to the batches that every codebase of a comparison gets.

Two steps, both cached and both checksummed: `open_dataset` chooses the images and writes the COCO file of
just those; `prepare_batches` decodes, resizes, normalises and pads them once, outside of anything that is
timed.

What is done to an image, so that a codebase's own pipeline can be set to match:

* decoded by Pillow to RGB, by the rule of `bench.inputs.pixels` for EXIF orientation, 16 bits, CMYK, palettes;
* resized as 8-bit pixels by Pillow's ``BILINEAR``, a triangle filter as wide as the scale, so antialiased
  when an image shrinks, as in detectron2's ``ResizeTransform`` (OpenCV's and torch's default bilinear do
  not antialias); the new size is ``floor(side * scale + 0.5)``, as in mmcv's ``rescale_size``;
* normalised with the ImageNet mean and standard deviation, then padded with zeros right and bottom;
* boxes clipped to the image, multiplied by new size / old size; an object whose clipped box is under one
  pixel of the file wide or high is dropped (mmdetection's ``CocoDataset`` asks this before clipping);
* masks rasterised at the original size by pycocotools, then sampled at the nearest pixel centre, row ``i``
  of ``n`` from row ``floor((i + ½) · height / n)`` (Pillow's ``NEAREST``); an object whose mask has no
  pixel left is dropped;
* crowds left out. All of these are counted in the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from bench.errors import BenchError
from bench.inputs.coco import Json, image_path, object_mask
from bench.inputs.dataset import Dataset, _is_complete, _publish_folder, _usable_box
from bench.inputs.pixels import decode
from bench.inputs.watched import watched
from bench.recipe.models import MODELS
from bench.recipe.workload import IMAGENET_MEAN, IMAGENET_STD, ShortLong, Workload
from bench.worker.api import Batch
from bench.worker.batches import FORMAT_VERSION, MANIFEST, file_sha256, pack_batch

PAD_MULTIPLE = 32  # of short/long batches: the coarsest stride of the feature pyramids
COUNTS = ("images", "objects", "crowds_left_out", "degenerate_boxes_dropped", "vanished_masks_dropped")


# -- one image -------------------------------------------------------------------------------------------


def resized_size(height: int, width: int, size: tuple[int, int] | ShortLong) -> tuple[int, int]:
    """(height, width) after the resize with the ratio kept, before padding."""
    if isinstance(size, ShortLong):
        scale = min(size.short / min(height, width), size.long / max(height, width))
        limit = (size.long, size.long)
    else:
        scale = min(size[0] / height, size[1] / width)
        limit = size
    new_height, new_width = (
        max(1, min(most, int(side * scale + 0.5))) for side, most in zip((height, width), limit, strict=True)
    )
    return new_height, new_width


def padded_size(sizes: Sequence[tuple[int, int]], size: tuple[int, int] | ShortLong) -> tuple[int, int]:
    """(height, width) of a batch of resized images."""
    if not isinstance(size, ShortLong):
        return size
    height, width = (-(-max(side) // PAD_MULTIPLE) * PAD_MULTIPLE for side in zip(*sizes, strict=True))
    return height, width


def resize_image(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Antialiased bilinear resize of uint8 [h, w, 3] to [height, width, 3]."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Nearest-pixel resize of uint8 [h, w] to [height, width], in integers, so exact everywhere."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(mask.shape, (height, width), strict=True)
    )
    return np.asarray(mask[rows[:, None], columns])


def normalize(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [H, W, 3] to float32 [3, H, W] with the ImageNet statistics."""
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    return ((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1)


def _prepare_image(
    image: Json, annotations: Sequence[Json], dataset: Dataset, size: tuple[int, int] | ShortLong
) -> tuple[Batch, Mapping[str, int]]:
    """A batch of one image, not padded, and its COUNTS."""
    counts = dict.fromkeys(COUNTS, 0)
    path = image_path(dataset.images, image)
    pixels = decode(path, (image["height"], image["width"]))
    old = pixels.shape[0], pixels.shape[1]
    height, width = resized_size(*old, size)
    scale = np.array([width / old[1], height / old[0]] * 2)
    label_of = {category: label for label, category in enumerate(dataset.category_ids)}
    boxes, labels, masks = [], [], []
    for annotation in annotations:
        if annotation.get("iscrowd"):
            counts["crowds_left_out"] += 1
            continue
        box = _usable_box(annotation, image)
        if box is None:
            counts["degenerate_boxes_dropped"] += 1
            continue
        mask = resize_mask(_sound_mask(annotation, image, dataset), height, width)
        if not mask.any():
            counts["vanished_masks_dropped"] += 1
            continue
        boxes.append(box * scale)
        labels.append(label_of[annotation["category_id"]])
        masks.append(mask)
    batch = Batch(
        images=normalize(resize_image(pixels, height, width))[None],
        image_sizes=np.array([(height, width)], np.int64),
        original_sizes=np.array([old], np.int64),
        image_ids=np.array([image["id"]], np.int64),
        boxes=(np.array(boxes, np.float32).reshape(-1, 4),),
        labels=(np.array(labels, np.int64),),
        masks=(np.array(masks, np.uint8).reshape(-1, height, width),),
    )
    return batch, {**counts, "images": 1, "objects": len(boxes)}


def _sound_mask(annotation: Json, image: Json, dataset: Dataset) -> NDArray[np.uint8]:
    try:
        return object_mask(annotation, image)
    except Exception as error:  # pycocotools raises bare Exceptions
        raise BenchError(
            f"annotation {annotation['id']}: no valid mask: {str(error).removeprefix('no valid mask: ')}",
            where=str(dataset.origin),
        ) from None


def check_objects(dataset: Dataset, model: str) -> None:
    """Whether batches can be made of the objects of a data set. Raises BenchError that names the annotation."""
    _refuse_without_masks(dataset, model)
    coco = json.loads(dataset.annotations.read_text())
    images = {image["id"]: image for image in coco["images"]}
    for row in watched(coco["annotations"], "checking outlines"):
        image = images[row["image_id"]]
        if not row.get("iscrowd") and _usable_box(row, image) is not None:
            _sound_mask(row, image, dataset)


def _refuse_without_masks(dataset: Dataset, model: str) -> None:
    if model in MODELS and MODELS[model].masks and not dataset.masks:
        raise BenchError(
            f"{model} needs masks, and some objects have no segmentation", where=str(dataset.origin)
        )


# -- batches ---------------------------------------------------------------------------------------------


def _pad(array: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Zeros right and bottom of the last two axes."""
    missing = [(0, 0)] * (array.ndim - 2) + [(0, height - array.shape[-2]), (0, width - array.shape[-1])]
    return np.pad(array, missing)


def _collate(single: Sequence[Batch], size: tuple[int, int] | ShortLong) -> Batch:
    """One batch of batches of one image."""
    sizes = np.concatenate([one.image_sizes for one in single])
    height, width = padded_size(sizes.tolist(), size)
    return Batch(
        images=np.concatenate([_pad(one.images, height, width) for one in single]),
        image_sizes=sizes,
        original_sizes=np.concatenate([one.original_sizes for one in single]),
        image_ids=np.concatenate([one.image_ids for one in single]),
        boxes=tuple(one.boxes[0] for one in single),
        labels=tuple(one.labels[0] for one in single),
        masks=tuple(_pad(one.masks[0], height, width) for one in single),
    )


def batch_plan(image_ids: Sequence[int], batch_size: int, ranks: int) -> list[tuple[int, ...]]:
    """Image ids of each batch, in order. Rank r of n uses batches r, r + n, …

    The first images fill up the last batches, so that every batch is full and every rank has as many as the
    others.
    """
    batches = -(-len(image_ids) // (batch_size * ranks)) * ranks
    ids = [image_ids[i % len(image_ids)] for i in range(batches * batch_size)]
    return [tuple(ids[i : i + batch_size]) for i in range(0, len(ids), batch_size)]


def epoch_orders(image_ids: Sequence[int], draws: int, seed: int, flip: float) -> list[tuple[int, bool]]:
    """(image id, mirrored) of so many draws: epoch after epoch every image once, in an order of its own.

    From raw words of PCG64, as `bench.inputs.shapes`, so the same on every machine and with every version of numpy.
    """
    drawn: list[tuple[int, bool]] = []
    for epoch in range(-(-draws // len(image_ids))):
        generator = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
        keys, coins = np.asarray(generator.random_raw(2 * len(image_ids)), np.uint64).reshape(2, -1)
        order = np.argsort(keys, kind="stable").tolist()
        mirrored = ((coins >> np.uint64(40)) < round(flip * 2**24)).tolist()
        drawn += [(image_ids[place], mirrored[place]) for place in order]
    return drawn[:draws]


def prepare_schedule(dataset: Dataset, workload: Workload, folder: Path) -> tuple[Path, str]:
    """The file (in ``folder``, the cache) that says which images make the batches of a train_eval arm, and its
    SHA-256. ``bench.worker.training.load_schedule`` reads it. Rank r of n uses batches r, r + n, …"""
    size = workload.batch_size
    draws = epoch_orders(
        dataset.image_ids, workload.steps * workload.ranks * size, workload.seed, workload.flip
    )
    batches = [draws[i : i + size] for i in range(0, len(draws), size)]
    content = {"dataset": dataset.checksum, "seed": workload.seed, "flip": workload.flip, "batches": batches}
    text = json.dumps(content, separators=(",", ":"))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    target = folder / "schedules" / sha256[:16] / "schedule.json"
    _publish_folder(
        target.parent,
        write=lambda temporary: (temporary / target.name).write_text(text),
        is_sound=lambda: target.is_file() and target.read_text() == text,
    )
    return target, sha256


def prepare_batches(dataset: Dataset, workload: Workload, folder: Path) -> Path:
    """The folder (in ``folder``, the cache) with the batches of a workload, made when it is not there yet.

    ``bench.worker.batches.load_batches`` reads it. ``manifest.json`` holds the parameters, per batch its
    file, SHA-256, image ids and shape, and the counts of images, objects and of what was left out. A folder
    appears complete or not at all, so processes may race for it. Raises BenchError for data that cannot be
    used.

    Where a codebase trains for long from its own loader, only the first batch of each rank is prepared, from which the
    work is described, and the order of all images is told: the disk does not have to hold a data set of batches.
    """
    _refuse_without_masks(dataset, workload.model)
    size = workload.input.size
    parameters: Json = {
        "dataset": dataset.checksum,
        "size": size.model_dump() if isinstance(size, ShortLong) else list(size),
        "batch_size": workload.batch_size,
        "ranks": workload.ranks,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "resize": "bilinear, antialiased",
        "pillow": PIL.__version__,
        "format": FORMAT_VERSION,
    }
    if _first_only(workload):
        parameters["batches"] = "the first of each rank"
    key = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
    target = folder / f"batches-{key}"
    _publish_folder(
        target,
        write=lambda temporary: _write_batches(dataset, workload, parameters, temporary),
        is_sound=lambda: _is_complete(target),
    )
    return target


def _first_only(workload: Workload) -> bool:
    return workload.task == "train_eval" and workload.input.mode == "pipeline"


def _write_batches(dataset: Dataset, workload: Workload, parameters: Json, folder: Path) -> None:
    coco = json.loads(dataset.annotations.read_text())
    images = {image["id"]: image for image in coco["images"]}
    objects: dict[int, list[Json]] = {}
    for annotation in coco["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    size = workload.input.size
    counts: dict[int, Mapping[str, int]] = {}  # by image: one that fills up a batch counts once
    entries = []
    plan = batch_plan(dataset.image_ids, workload.batch_size, workload.ranks)
    wanted = plan[: workload.ranks] if _first_only(workload) else plan
    for number, image_ids in enumerate(watched(wanted, "preparing batches")):
        prepared = [_prepare_image(images[i], objects.get(i, []), dataset, size) for i in image_ids]
        counts |= {i: of_image for i, (_, of_image) in zip(image_ids, prepared, strict=True)}
        batch = _collate([one for one, _ in prepared], size)
        path = folder / f"batch-{number:05d}.npz"
        np.savez(path, **pack_batch(batch))  # type: ignore[arg-type]
        entries.append(
            {
                "file": path.name,
                "sha256": file_sha256(str(path)),
                "image_ids": list(image_ids),
                "shape": list(batch.images.shape),
                "dtype": str(batch.images.dtype),
                "objects": [len(labels) for labels in batch.labels],
            }
        )
    manifest = {
        "format": FORMAT_VERSION,
        "parameters": parameters,
        "masks": "outlines" if dataset.masks else "filled boxes",
        "counts": {name: sum(of_image[name] for of_image in counts.values()) for name in COUNTS},
        "batches": entries,
    }
    if _first_only(workload):
        manifest["order"] = plan
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
