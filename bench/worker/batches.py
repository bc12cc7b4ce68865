"""Reading the shared batches that `bench.inputs.batches.prepare_batches` wrote, in any codebase's interpreter.

A folder holds ``manifest.json`` and one ``.npz`` per batch. Nothing is unpickled, and every file is checked
against the checksum in the manifest before it is used: all codebases work on the same bytes, or none does.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np

from bench.worker.api import Batch

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


class CorruptBatch(ValueError):
    """A prepared file is missing or is not what was written; the message names it."""


def file_sha256(path: str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def read_manifest(folder: str) -> Dict[str, Any]:
    """The manifest of a folder of batches. Raises CorruptBatch that names the file."""
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
    except (OSError, ValueError) as error:
        raise CorruptBatch(f"{path}: not a readable manifest ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_VERSION:
        raise CorruptBatch(f"{path}: not a manifest of format {FORMAT_VERSION}")
    return manifest


def image_order(folder: str) -> List[List[int]]:
    """Image ids of every batch, in order; of those, too, that were not prepared."""
    manifest = read_manifest(folder)
    return manifest.get("order") or [entry["image_ids"] for entry in manifest["batches"]]


def verify_file(folder: str, entry: Dict[str, Any]) -> str:
    """The path of one manifest entry, ``{"file", "sha256"}``, whose bytes were found to be right."""
    path = os.path.join(folder, entry["file"])
    try:
        found = file_sha256(path)
    except OSError as error:
        raise CorruptBatch(f"{path}: {error.strerror or error}") from error
    if found != entry["sha256"]:
        raise CorruptBatch(
            f"{path}: checksum {found[:12]}… instead of {entry['sha256'][:12]}…; "
            f"delete {folder}, it is prepared again by the next run"
        )
    return path


def pack_batch(batch: Batch) -> Dict[str, np.ndarray]:
    """A batch as the arrays of one ``.npz``: per-image arrays joined, with their counts; masks as bits."""
    return {
        "images": batch.images,
        "image_sizes": batch.image_sizes,
        "original_sizes": batch.original_sizes,
        "image_ids": batch.image_ids,
        "counts": np.array([len(labels) for labels in batch.labels], np.int64),
        "boxes": np.concatenate(batch.boxes),
        "labels": np.concatenate(batch.labels),
        "mask_bits": np.packbits(np.concatenate(batch.masks)),
    }


def unpack_batch(arrays: Dict[str, np.ndarray]) -> Batch:
    """The inverse of `pack_batch`."""
    counts = arrays["counts"]
    height, width = arrays["images"].shape[2:]
    total = int(counts.sum())
    masks = np.unpackbits(arrays["mask_bits"], count=total * height * width).reshape(total, height, width)
    ends = np.cumsum(counts)[:-1]

    def per_image(values: np.ndarray) -> Tuple[np.ndarray, ...]:
        return tuple(np.split(values, ends))

    return Batch(
        images=arrays["images"],
        image_sizes=arrays["image_sizes"],
        original_sizes=arrays["original_sizes"],
        image_ids=arrays["image_ids"],
        boxes=per_image(arrays["boxes"]),
        labels=per_image(arrays["labels"]),
        masks=per_image(masks),
    )


def load_batches(folder: str, rank: int, world_size: int) -> List[Batch]:
    """The batches of one rank: number ``rank``, ``rank + world_size``, … of the folder, checksums verified.

    Raises CorruptBatch that names the file that is missing or changed.
    """
    batches = list(each_batch(folder, rank, world_size))
    if not batches:
        raise CorruptBatch(f"{folder}: no batch for rank {rank} of {world_size}")
    return batches


def each_batch(folder: str, rank: int, world_size: int) -> Iterator[Batch]:
    """As `load_batches`, one at a time: for more images than fit into memory."""
    for entry in read_manifest(folder)["batches"][rank::world_size]:
        with np.load(verify_file(folder, entry), allow_pickle=False) as arrays:
            yield unpack_batch({name: arrays[name] for name in arrays.files})
