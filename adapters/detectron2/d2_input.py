"""Batches in detectron2's form: from the harness, or from detectron2's own loader on the same files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Sampler

from adapters.common import EndlessBatches
from adapters.torch_common import TensorBatch
from bench.worker.api import Job


class Inputs(list):  # type: ignore[type-arg]
    """What detectron2's models take, one dictionary per image (``instances``, ``height`` and ``width`` of the file,
    ``image_id``), and its images, normalised and padded, which the models would make of ``image`` otherwise."""

    def __init__(self, records: Sequence[dict[str, Any]], images: ImageList) -> None:
        super().__init__(records)
        self.images = images

    @property
    def image_ids(self) -> list[int]:
        return [record["image_id"] for record in self]

    def to(self, device: torch.device) -> Inputs:
        records = [{**record, "instances": record["instances"].to(device)} for record in self]
        return Inputs(records, self.images.to(device))


def to_inputs(batch: TensorBatch) -> Inputs:
    """A shared batch. Its masks are bitmaps, detectron2's default are polygons."""
    records = []
    for i, (height, width) in enumerate(batch.original_sizes):
        instances = Instances(
            batch.image_sizes[i], gt_boxes=Boxes(batch.boxes[i]), gt_classes=batch.labels[i]
        )
        if batch.masks:
            instances.gt_masks = BitMasks(batch.masks[i].bool())
        records.append(
            {"instances": instances, "height": height, "width": width, "image_id": batch.image_ids[i]}
        )
    return Inputs(records, ImageList(batch.images, batch.image_sizes))


# -- detectron2's own loader ---------------------------------------------------------------------------------


class InOrder(Sampler):  # type: ignore[type-arg]
    """Indices of one rank's images, without end, in the order of the shared batches."""

    def __init__(self, batches: EndlessBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            yield from batch


def train_loader(job: Job, with_masks: bool, bgr: bool = False) -> Any:
    """``build_detection_train_loader`` with the DatasetMapper and the transforms of the base configuration but the
    flip; it yields lists of dictionaries."""
    records = dataset_records(job)
    size, batch_size = job.workload["input"]["size"], job.workload["batch_size"]
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[resize(size)],
        image_format="BGR" if bgr else "RGB",
        use_instance_mask=with_masks,
        instance_mask_format="bitmask" if has_run_lengths(records) else "polygon",
    )
    return build_detection_train_loader(
        records,
        mapper=mapper,
        sampler=InOrder(EndlessBatches(len(records), batch_size, job.rank, job.world_size)),
        total_batch_size=batch_size * job.world_size,
        aspect_ratio_grouping=False,  # it would change the order
        num_workers=job.workload["input"]["workers"],
    )


def dataset_records(job: Job) -> list[dict[str, Any]]:
    """The images of the workload in its order, as detectron2's datasets give them, with labels 0..K-1."""
    records = {
        record["image_id"]: record
        for record in load_coco_json(job.dataset["annotations"], job.dataset["images"])
    }
    label_of = {category: label for label, category in enumerate(job.category_ids)}
    chosen = [records[image_id] for image_id in job.dataset["image_ids"]]
    for record in chosen:
        for annotation in record["annotations"]:
            annotation["category_id"] = label_of[annotation["category_id"]]
    return chosen


def has_run_lengths(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an object's mask is no polygon (crowds, which never are, take no part)."""
    return any(
        isinstance(annotation.get("segmentation"), dict)
        for record in records
        for annotation in record["annotations"]
        if not annotation.get("iscrowd")
    )


def resize(size: Any) -> T.Augmentation:
    """Short and long side as every configuration has it; a fixed size with the ratio kept as `ResizeScale` does it."""
    if isinstance(size, Mapping):
        return T.ResizeShortestEdge(size["short"], size["long"])
    height, width = size
    return T.ResizeScale(min_scale=1, max_scale=1, target_height=height, target_width=width)


def preprocess(
    model: nn.Module, records: Sequence[dict[str, Any]], size: Any, memory_format: torch.memory_format
) -> Inputs:
    """Normalised, padded to the batch by the model's own ``preprocess_image``, then to a fixed size if there is one."""
    images = type(model).preprocess_image(model, records)
    tensor = images.tensor
    if not isinstance(size, Mapping):
        tensor = F.pad(tensor, [0, size[1] - tensor.shape[-1], 0, size[0] - tensor.shape[-2]])
    return Inputs(records, ImageList(tensor.contiguous(memory_format=memory_format), images.image_sizes))
