"""From a data set on disk to the batches that every codebase of a comparison gets.

Two steps, both cached and both checksummed: `open_dataset` chooses the images and writes the COCO file of
just those; `prepare_batches` decodes, resizes, normalises and pads them once, outside of anything that is
timed.

What is done to an image, so that a codebase's own pipeline can be set to match:

* decoded by Pillow to RGB, EXIF orientation ignored (COCO's annotations are of the stored pixels);
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
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from bench import shapes
from bench.errors import BenchError, StorageError, did_you_mean
from bench.worker.api import Batch
from bench.worker.batches import (
    FORMAT_VERSION,
    MANIFEST,
    CorruptBatch,
    file_sha256,
    pack_batch,
    read_manifest,
    verify_file,
)
from bench.workload import IMAGENET_MEAN, IMAGENET_STD, MODELS, Input, ShortLong, Workload

PAD_MULTIPLE = 32  # of short/long batches: the coarsest stride of the feature pyramids
MIN_BOX_PX = 1.0
COUNTS = ("images", "objects", "crowds_left_out", "degenerate_boxes_dropped", "vanished_masks_dropped")

Json = dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """The images of a workload.

    images: folder that the file names are relative to. annotations: COCO file of exactly these images
    (crowds included), in the cache. image_ids: ascending. classes / category_ids: of the whole data set, by
    ascending id; the place of a name is its label. masks: every object has an outline. checksum: SHA-256 of
    annotations, images.
    """

    name: str
    split: str
    images: Path
    annotations: Path
    image_ids: tuple[int, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    masks: bool
    checksum: str


# -- opening ---------------------------------------------------------------------------------------------


def open_dataset(input: Input, task: str, cache: Path) -> Dataset:
    """The first ``input.images`` images of the split, by id, that have objects.

    ``task`` (``train…`` or another) chooses the default split. Raises BenchError that names the file.
    """
    default = ("train", "train2017") if task.startswith("train") else ("val", "val2017")
    return _open(input.dataset, input.split or default[input.dataset != "shapes"], input.images, cache)


def open_evaluation(workload: Workload, cache: Path) -> Dataset:
    """The images that the workload evaluates: the first ``eval_images`` of the split, by id, or all of them, with or
    without objects. Of shapes, which has no end, by default as many as ``input.images``.
    """
    shapes_only = workload.input.dataset == "shapes"
    split = workload.eval_split or ("val" if shapes_only else "val2017")
    count = workload.eval_images or (workload.input.images if shapes_only else None)
    return _open(workload.input.dataset, split, count, cache, empty_too=True)


def _open(dataset: str, split: str, count: int | None, cache: Path, *, empty_too: bool = False) -> Dataset:
    if dataset != "shapes":
        root = Path(dataset).expanduser()
        return _open_coco(root, split, count, cache, root.resolve().name, empty_too)
    if split not in shapes.SPLITS:
        raise BenchError(f"shapes has no split '{split}'", hint=did_you_mean(split, shapes.SPLITS))
    assert count is not None
    root = cache / f"shapes-v{shapes.VERSION}-{split}-{count}"
    _publish_folder(root, lambda folder: shapes.write(folder, split, count))
    return _open_coco(root, split, count, cache, "shapes", empty_too)


def _open_coco(
    root: Path, split: str, count: int | None, cache: Path, name: str, empty_too: bool = False
) -> Dataset:
    annotations, images = _coco_paths(root, split)
    coco = read_coco(annotations)
    subset = _subset(coco, count, annotations, empty_too)
    categories = subset["categories"]
    text = json.dumps(subset, sort_keys=True, separators=(",", ":"))
    checksum = _checksum(text, [images / image["file_name"] for image in subset["images"]])
    target = cache / "subsets" / checksum[:16] / f"instances_{split}.json"
    _publish_folder(
        target.parent,
        write=lambda folder: (folder / target.name).write_text(text),
        is_sound=lambda: target.is_file() and target.read_text() == text,
    )
    return Dataset(
        name=name,
        split=split,
        images=images,
        annotations=target,
        image_ids=tuple(image["id"] for image in subset["images"]),
        classes=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
        masks=all(a.get("segmentation") for a in subset["annotations"] if not a.get("iscrowd")),
        checksum=checksum,
    )


def _coco_paths(root: Path, split: str) -> tuple[Path, Path]:
    """The annotation file and the image folder of a split."""
    if not root.is_dir():
        raise BenchError(
            "no such data set folder",
            where=str(root),
            hint="input.dataset is `shapes` or a folder with annotations/instances_<split>.json and <split>/",
        )
    annotations = root / "annotations" / f"instances_{split}.json"
    if not annotations.is_file():
        known = [path.stem.removeprefix("instances_") for path in annotations.parent.glob("instances_*.json")]
        hint = (
            f"input.split: {did_you_mean(split, known)}"
            if known
            else f"{annotations.parent} has no instances_*.json"
        )
        raise BenchError(f"the data set has no split '{split}'", where=str(annotations), hint=hint)
    images = root / split
    if not images.is_dir():
        raise BenchError("no folder with the images of this split", where=str(images))
    return annotations, images


def read_coco(path: Path) -> Json:
    """A COCO instances file, checked by `check_coco`. Raises BenchError that names the file."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except ValueError as error:
        raise BenchError(f"not valid JSON: {error}", where=str(path)) from None
    return check_coco(content, str(path))


_COCO_TABLES = {
    "images": {"id", "file_name", "height", "width"},
    "annotations": {"id", "image_id", "category_id", "bbox"},
    "categories": {"id", "name"},
}


def check_coco(content: Any, where: str) -> Json:
    """The content of a COCO instances file whose tables, ids and boxes are sound.

    Raises BenchError that names the entry, with ``where`` as the place.
    """
    for table, keys in _COCO_TABLES.items():
        rows = content.get(table) if isinstance(content, Mapping) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise BenchError(f"not a COCO instances file: '{table}' is no list of objects", where=where)
        seen = set()
        for row in rows:
            if not row.keys() >= keys:
                absent = ", ".join(sorted(keys - row.keys()))
                raise BenchError(f"{table} entry {row.get('id', '?')} has no {absent}", where=where)
            key = row["id"]
            if not isinstance(key, int):
                raise BenchError(f"{table} entry {key}: an id is a whole number", where=where)
            if key in seen:
                raise BenchError(f"{table} id {key} occurs twice", where=where)
            seen.add(key)
    for image in content["images"]:
        if not all(isinstance(image[side], int) and image[side] > 0 for side in ("height", "width")):
            raise BenchError(
                f"image {image['id']} has no size: {image['width']}x{image['height']}", where=where
            )
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for row in content["annotations"]:
        if row["image_id"] not in images:
            raise BenchError(f"annotation {row['id']} is of unknown image {row['image_id']}", where=where)
        if row["category_id"] not in categories:
            raise BenchError(
                f"annotation {row['id']} is of unknown category {row['category_id']}", where=where
            )
        if not is_box(row["bbox"]):
            raise BenchError(f"annotation {row['id']} has no box [x, y, w, h]: {row['bbox']}", where=where)
    return dict(content)


def is_number(value: Any) -> bool:
    """A finite number. ``value - value`` is 0 for these alone, and quick."""
    return isinstance(value, (float, int)) and value - value == 0


def is_box(value: Any) -> bool:
    """Four finite numbers, the last two (width and height) not negative."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    x, y, w, h = value
    return is_number(x) and is_number(y) and is_number(w) and is_number(h) and w >= 0 and h >= 0


def _subset(coco: Json, count: int | None, path: Path, empty_too: bool) -> Json:
    """The tables of the first ``count`` images (None: of all) that have an object to learn or to find, or, with
    ``empty_too``, of the first ones whatever they have."""
    by_image: dict[int, list[Json]] = {}
    for annotation in sorted(coco["annotations"], key=lambda a: a["id"]):
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    usable = []
    for image in sorted(coco["images"], key=lambda image: image["id"]):
        objects = [a for a in by_image.get(image["id"], ()) if not a.get("iscrowd")]
        if empty_too or any(_usable_box(annotation, image) is not None for annotation in objects):
            usable.append(image)
    if len(usable) < (count or 1):
        field = "eval_images" if empty_too else "input.images"
        raise BenchError(
            f"{count or 1} images were asked for, {len(usable)} of {len(coco['images'])} "
            f"{'are there' if empty_too else 'have objects'}",
            where=str(path),
            hint=f"{field}: {len(usable)} or less" if usable else None,
        )
    chosen = usable[:count]
    return {
        "images": chosen,
        "annotations": [annotation for image in chosen for annotation in by_image.get(image["id"], ())],
        "categories": sorted(coco["categories"], key=lambda category: category["id"]),
    }


def _checksum(annotations: str, images: Iterable[Path]) -> str:
    """Of a PNG the pixels count, since its bytes depend on the zlib that packed them; of other files the
    bytes, since decoding a JPEG differs between libraries."""
    digest = hashlib.sha256(annotations.encode())
    for path in images:
        try:
            digest.update(decode(path).tobytes() if path.suffix.lower() == ".png" else path.read_bytes())
        except OSError as error:
            raise BenchError(f"image cannot be read: {error.strerror or error}", where=str(path)) from None
    return digest.hexdigest()


def decode(path: Path) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 [H, W, 3], RGB. Raises BenchError that names the file."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise BenchError("image is missing", where=str(path)) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BenchError(f"image cannot be decoded: {error}", where=str(path)) from None


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


def _usable_box(annotation: Json, image: Json) -> NDArray[np.float64] | None:
    """(x1, y1, x2, y2) in pixels of the file, clipped to it; None when it is under a pixel wide or high."""
    x, y, w, h = annotation["bbox"]
    limits = (image["width"], image["height"], image["width"], image["height"])
    box = np.clip(np.array([x, y, x + w, y + h], np.float64), 0, limits)
    return box if min(box[2:] - box[:2]) >= MIN_BOX_PX else None


def object_mask(annotation: Json, image: Json) -> NDArray[np.uint8]:
    """The mask of an object at the size of its image, uint8 [H, W], from polygons or either form of RLE.

    An object without an outline gets its box, filled: only for models that do not use masks.
    """
    height, width = image["height"], image["width"]
    outline = annotation.get("segmentation")
    if not outline:
        x, y, w, h = annotation["bbox"]
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if isinstance(outline, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
    else:
        if list(outline["size"]) != [height, width]:
            raise ValueError(f"a mask of size {outline['size']} in an image of [{height}, {width}]")
        compressed = isinstance(outline["counts"], str | bytes)
        rle = outline if compressed else coco_mask.frPyObjects(outline, height, width)
    return np.asarray(coco_mask.decode(rle))


@dataclass(frozen=True)
class _Prepared:
    image_id: int
    original_size: tuple[int, int]
    pixels: NDArray[np.float32]  # [3, h, w]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]  # [N, h, w]
    counts: Mapping[str, int]  # see COUNTS


def _prepare_image(
    image: Json, annotations: Sequence[Json], dataset: Dataset, size: tuple[int, int] | ShortLong
) -> _Prepared:
    counts = dict.fromkeys(COUNTS, 0)
    path = dataset.images / image["file_name"]
    pixels = decode(path)
    old = pixels.shape[0], pixels.shape[1]
    if old != (image["height"], image["width"]):
        raise BenchError(
            f"image is {old[1]}x{old[0]}, its annotations say {image['width']}x{image['height']}",
            where=str(path),
        )
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
        try:
            mask = resize_mask(object_mask(annotation, image), height, width)
        except Exception as error:  # pycocotools raises bare Exceptions
            raise BenchError(
                f"annotation {annotation['id']}: no valid mask: {error}", where=str(dataset.annotations)
            ) from None
        if not mask.any():
            counts["vanished_masks_dropped"] += 1
            continue
        boxes.append(box * scale)
        labels.append(label_of[annotation["category_id"]])
        masks.append(mask)
    counts |= {"images": 1, "objects": len(boxes)}
    return _Prepared(
        image_id=image["id"],
        original_size=old,
        pixels=normalize(resize_image(pixels, height, width)),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        masks=np.array(masks, np.uint8).reshape(-1, height, width),
        counts=counts,
    )


# -- batches ---------------------------------------------------------------------------------------------


def _pad(array: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Zeros right and bottom of the last two axes."""
    missing = [(0, 0)] * (array.ndim - 2) + [(0, height - array.shape[-2]), (0, width - array.shape[-1])]
    return np.pad(array, missing)


def _collate(prepared: Sequence[_Prepared], size: tuple[int, int] | ShortLong) -> Batch:
    sizes = [(item.pixels.shape[1], item.pixels.shape[2]) for item in prepared]
    height, width = padded_size(sizes, size)
    return Batch(
        images=np.stack([_pad(item.pixels, height, width) for item in prepared]),
        image_sizes=np.array(sizes, np.int64),
        original_sizes=np.array([item.original_size for item in prepared], np.int64),
        image_ids=np.array([item.image_id for item in prepared], np.int64),
        boxes=tuple(item.boxes for item in prepared),
        labels=tuple(item.labels for item in prepared),
        masks=tuple(_pad(item.masks, height, width) for item in prepared),
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

    From raw words of PCG64, as `bench.shapes`, so the same on every machine and with every version of numpy.
    """
    drawn: list[tuple[int, bool]] = []
    for epoch in itertools.count():
        if len(drawn) >= draws:
            return drawn[:draws]
        generator = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
        keys, coins = np.asarray(generator.random_raw(2 * len(image_ids)), np.uint64).reshape(2, -1)
        order = np.argsort(keys, kind="stable").tolist()
        mirrored = ((coins >> np.uint64(40)) < round(flip * 2**24)).tolist()
        drawn += [(image_ids[place], mirrored[place]) for place in order]
    raise AssertionError


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
    model = MODELS.get(workload.model)
    if model is not None and model.masks and not dataset.masks:
        raise BenchError(
            f"{workload.model} needs masks, and some objects have no segmentation",
            where=str(dataset.annotations),
        )
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


def _publish_folder(
    target: Path, write: Callable[[Path], object], is_sound: Callable[[], bool] = lambda: True
) -> None:
    """Have a folder that ``write`` fills: the one that is there if it ``is_sound``, else a new one.

    It appears whole or not at all. When two processes make it at once, the first one's is kept.
    """
    if target.exists():
        if is_sound():
            return
        shutil.rmtree(target, ignore_errors=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        write(temporary)
        temporary.chmod(0o755)  # mkdtemp's folders are for one user only
        temporary.rename(target)
    except OSError as error:
        if not target.exists():  # else another process has made it in the meantime
            raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    """Every file of the manifest is there and unchanged."""
    try:
        for entry in read_manifest(str(folder))["batches"]:
            verify_file(str(folder), entry)
    except CorruptBatch:
        return False
    return True


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
    for number, image_ids in enumerate(plan[: workload.ranks] if _first_only(workload) else plan):
        prepared = [_prepare_image(images[i], objects.get(i, []), dataset, size) for i in image_ids]
        counts |= {item.image_id: item.counts for item in prepared}
        batch = _collate(prepared, size)
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
