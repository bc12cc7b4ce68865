"""What a training begins with: its images, their batches, and the model on its device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from detectors import runtime
from detectors.coco import AugmentedCoco, Batch, CocoFolder, Collate, Prepare
from detectors.config import Config, ConfigError, Loaded
from detectors.order import TrainingOrder, repeated
from detectors.runtime import Ranks


class Images(NamedTuple):
    """What is learned from, ``ids`` with rare images several times, and what it is evaluated on."""

    coco: CocoFolder
    ids: list[int]
    val: CocoFolder | None


def read_images(loaded: Loaded) -> Images:
    """The annotations of a config. Raises ConfigError."""
    coco = runtime.coco_folder(loaded, "train")
    ids = training_images(coco, loaded)
    val = None
    if loaded.config.data.val is not None:
        val = runtime.coco_folder(loaded, "val")
        runtime.check_categories(coco.category_ids, val, loaded)
    return Images(coco, ids, val)


def training_images(coco: CocoFolder, loaded: Loaded) -> list[int]:
    """The images to train on, rare ones several times. Raises ConfigError if there are none."""
    config = loaded.config
    chosen = [one for one in sorted(coco.files) if config.data.keep_empty or coco.has_objects(one)]
    if not chosen:
        raise ConfigError("no image has an object to learn", loaded.place("data", "train", "annotations"))
    shown = [{one["category_id"] for one in coco.objects[image]} for image in chosen]
    return repeated(chosen, shown, config.data.repeat)


def training_batches(
    coco: CocoFolder,
    image_ids: Sequence[int],
    config: Config,
    ranks: Ranks,
    first: int,
    prepare: Prepare | None = None,
) -> Iterator[Batch]:
    """This rank's share of the batches from iteration ``first`` on, without end. ``prepare``: see ``Collate``."""
    sizes = [coco.sizes[image_id] for image_id in image_ids]
    is_wide = [config.data.group_by_shape and width >= height for height, width in sizes]
    order = TrainingOrder(
        image_ids,
        is_wide,
        batch=config.batch,
        seed=config.seed,
        first=first,
        rank=ranks.rank,
        ranks=ranks.count,
    )
    workers = config.data.workers
    loader = DataLoader(
        AugmentedCoco(
            coco, config.augment, config.data.pixels, config.seed, skip_broken=config.data.skip_broken
        ),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=Collate(
            config.data.pixels,
            config.augment.resize,
            as_bytes=ranks.device.type == "cuda",
            prepare=prepare,
        ),
        pin_memory=ranks.device.type == "cuda",
        worker_init_fn=runtime.ignore_interrupts,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def start_model(loaded: Loaded, coco: CocoFolder, ranks: Ranks, *, resumed: bool) -> nn.Module:
    """The model as training starts with it, on its device: random, or with the weights of ``weights``.

    Raises:
        ConfigError: when ``weights`` do not fit, or random layers would never learn.
    """
    config = loaded.config
    torch.manual_seed(config.seed)
    model = runtime.build_model(loaded, len(coco.category_ids))
    coco.masks = runtime.uses_masks(model)
    if coco.masks:
        try:
            coco.require_outlines()
        except ValueError as error:
            raise ConfigError(str(error), loaded.place("data", "train", "annotations")) from None
    else:
        _refuse_masks(loaded)
    _semantic_maps(model, coco, loaded)
    if config.weights is not None and not resumed:
        runtime.begin_with(model, config.weights, loaded)
    if config.weights is None and not resumed and (frozen := runtime.frozen_names(model)):
        problem = f"{len(frozen)} weights are random and never learn, such as {frozen[0]}"
        hint = "set weights: imagenet or a file, or model.settings: {frozen_stages: 0, frozen_bn: false}"
        raise ConfigError(f"{problem}; {hint}", loaded.place("model"))
    model.to(ranks.device, memory_format=torch.channels_last)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if config.sync_bn and ranks.count > 1 else model


def _refuse_masks(loaded: Loaded) -> None:
    """Raises ConfigError for what would be left out without a word, since the model has no masks."""
    config = loaded.config
    asked = {"augment": ("copy_paste", config.augment.copy_paste > 0)}
    asked["checkpoint"] = ("best", config.checkpoint.best == "segm")
    for place, (key, wanted) in asked.items():
        if wanted:
            raise ConfigError(f"{key} needs masks; {config.model.name} has none", loaded.place(place, key))


def _semantic_maps(model: nn.Module, coco: CocoFolder, loaded: Loaded) -> None:
    """Let the images come with classes of pixels if the model learns them. Raises ConfigError if there are none."""
    head = getattr(model, "semantic_head", None)
    if head is None:
        return
    folder = loaded.config.data.train.semantic
    name = loaded.config.model.name
    if folder is None:
        problem = f"{name} learns classes of pixels; set data.train.semantic to the folder of their maps"
        other = name.replace("htc_", "htc_without_semantic_", 1)
        raise ConfigError(f"{problem}, or take {other}", loaded.place("model", "name"))
    coco.semantic, coco.semantic_classes = Path(folder), head.classes.out_channels
