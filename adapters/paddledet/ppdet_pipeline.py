"""``input: pipeline``: ppdet's own data set and reader on the workload's files, the images in the harness's order.

Without augmentation, so that all codebases see the same pictures; the resize is ppdet's (OpenCV, not antialiased).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ppdet.data import transform
from ppdet.data.reader import TrainReader
from ppdet.data.source.coco import COCODataSet
from ppdet.data.transform.operators import BaseOperator, Resize
from ppdet_models import SSD_MAX_OBJECTS

from bench.worker.api import Job

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "is_scale": True}


class FitResize(Resize):
    """ppdet's keep-ratio resize to fit into [height, width]; its own would turn the limits with the image."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__(target_size=list(size), keep_ratio=True)
        self.size = size

    def apply(self, sample: dict[str, Any], context: Any = None) -> dict[str, Any]:
        height, width = sample["image"].shape[:2]
        scale = min(self.size[0] / height, self.size[1] / width)
        self.target_size = [min(height, width) * scale, max(height, width) * scale]
        return super().apply(sample, context)


class PadTo(BaseOperator):
    """Zeros right and bottom of the image [H, W, 3] and of the masks; ``im_shape`` stays that of the image."""

    def __init__(self, size: Sequence[int], is_input: bool) -> None:
        super().__init__()
        self.size = size
        self.is_input = is_input

    def apply(self, sample: dict[str, Any], context: Any = None) -> dict[str, Any]:  # noqa: ARG002
        height, width = sample["image"].shape[:2]
        bottom, right = self.size[0] - height, self.size[1] - width
        sample["image"] = np.pad(sample["image"], [(0, bottom), (0, right), (0, 0)])
        if "gt_segm" in sample:
            sample["gt_segm"] = np.pad(sample["gt_segm"], [(0, 0), (0, bottom), (0, right)])
        if self.is_input:  # SSD's boxes are fractions of the padded input
            sample["im_shape"] = np.array(self.size, np.float32)
        return sample


class KeepOriginalSize(BaseOperator):
    """ppdet drops the size of the file before the batch is made."""

    def apply(self, sample: dict[str, Any], context: Any = None) -> dict[str, Any]:  # noqa: ARG002
        sample["original_size"] = np.array([sample["h"], sample["w"]], np.int64)
        return sample


class OrderedBatches:
    """The batches of one rank as indices into the data set, once through."""

    def __init__(self, batches: Sequence[Sequence[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter([list(batch) for batch in self.batches])

    def __len__(self) -> int:
        return len(self.batches)


def transforms(
    job: Job, config: Mapping[str, Any], size: Any, masks: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """ppdet's sample and batch transforms in the order of its configurations; ``size`` as in the workload."""
    for operator in (FitResize, PadTo, KeepOriginalSize):
        setattr(transform, operator.__name__, operator)  # ppdet looks them up by name
    ssd, solov2 = config["architecture"] == "SSD", config["architecture"] == "SOLOv2"
    exact = not isinstance(size, Mapping)
    sample: list[dict[str, Any]] = [{"Decode": {}}, {"KeepOriginalSize": {}}]
    if job.training and masks and solov2:
        sample.append({"Poly2Mask": {}})
    if exact:
        sample.append({"FitResize": {"size": list(size)}})
    else:
        sample.append({"Resize": {"target_size": [size["short"], size["long"]], "keep_ratio": True}})
    sample.append({"NormalizeImage": IMAGENET})
    if exact:
        sample.append({"PadTo": {"size": list(size), "is_input": ssd}})
    if job.training and ssd:
        sample += [{"NormalizeBox": {}}, {"PadBox": {"num_max_boxes": SSD_MAX_OBJECTS}}]
    sample.append({"Permute": {}})
    batch: list[dict[str, Any]] = [] if exact else [{"PadBatch": {"pad_to_stride": 32}}]
    if job.training and solov2:
        batch.append({"Gt2Solov2Target": dict(config["bench_targets"])})
    if job.training and config["architecture"] == "FCOS":
        head = config["FCOSHead"]
        batch.append(
            {
                "Gt2FCOSTarget": {
                    "object_sizes_boundary": [64, 128, 256, 512],
                    "center_sampling_radius": 1.5,
                    "downsample_ratios": head["fpn_stride"],
                    "norm_reg_targets": head["norm_reg_targets"],
                }
            }
        )
    return sample, batch


def endless_batches(
    job: Job, config: Mapping[str, Any], size: Any, batches: Sequence[Sequence[int]], *, masks: bool
) -> Iterator[dict[str, Any]]:
    """Batches of the given image ids, again and again. Raises ValueError when ppdet's data set lacks an image."""
    fields = ["image", "gt_bbox", "gt_class", "is_crowd"] + (["gt_poly"] if masks else [])
    dataset = COCODataSet(
        dataset_dir="/",  # the paths are absolute
        image_dir=job.dataset["images"],
        anno_path=job.dataset["annotations"],
        data_fields=fields if job.training else ["image"],
        allow_empty=True,
    )
    sample_transforms, batch_transforms = transforms(job, config, size, masks)
    # SSD's ground truth has one shape and SOLOv2's and FCOS's are maps; the others keep a list of boxes per image.
    lists = config["architecture"] not in ("SSD", "SOLOv2", "FCOS")
    reader = TrainReader(
        sample_transforms,
        batch_transforms,
        batch_size=job.workload["batch_size"],
        shuffle=False,
        num_classes=len(job.classes),
        collate_batch=not (job.training and lists),
    )
    dataset.check_or_download_dataset()
    dataset.parse_dataset()
    place = {int(record["im_id"][0]): index for index, record in enumerate(dataset.roidbs)}
    if missing := sorted({image_id for batch in batches for image_id in batch} - set(place)):
        raise ValueError(f"PaddleDetection's COCODataSet has no image {missing[0]} ({len(missing)} missing)")
    if list(dataset.catid2clsid) != list(job.category_ids):
        raise ValueError("PaddleDetection numbers the categories in another order than the workload")
    order = OrderedBatches([[place[image_id] for image_id in batch] for batch in batches])
    reader(dataset, job.workload["input"]["workers"], batch_sampler=order)
    while True:
        for inputs in reader.dataloader:
            yield {key: value for key, value in inputs.items() if key != "curr_iter"}
