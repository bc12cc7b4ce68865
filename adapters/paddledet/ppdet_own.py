"""A configuration file of the user's: PaddleDetection reads it, and a workload sets what it decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ppdet.core.workspace import _load_config_with_base
from ppdet_models import Config, merge

#: Parts of a configuration that are of PaddleDetection's own training loop.
LOOP = ("TrainReader", "EvalReader", "TestReader", "TrainDataset", "EvalDataset", "TestDataset", "LearningRate",
        "OptimizerBuilder", "pretrain_weights", "weights", "snapshot_epoch", "save_dir", "epoch")  # fmt: skip
#: Architectures whose ground truth the adapter makes.
TRAINED = ("FasterRCNN", "MaskRCNN", "CascadeRCNN", "RetinaNet", "FCOS", "SOLOv2", "SSD")


def read_config(path: str) -> Config:
    """A configuration file with what it extends. Raises ValueError where it has no model."""
    if not Path(path).is_file():
        raise ValueError(f"no configuration file {path}; the wheel of paddledet carries none by name")
    content = dict(_load_config_with_base(path))
    if content.get("architecture") is None:
        raise ValueError(f"{path} names no architecture: it is a part of configurations")
    return content


def own_config(path: str, classes: int, workload: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """The model of a configuration file.

    Args:
        path: The file; what it extends by `_BASE_` is read too.
        classes: Number of classes.
        workload: Of the recipe.
        changes: Of the user.

    Returns:
        What ppdet builds a model from.

    Raises:
        ValueError: It has no model, or one that cannot be trained here.
    """
    content = read_config(path)
    architecture = content["architecture"]
    if workload["task"] in ("train", "train_eval") and architecture not in TRAINED:
        raise ValueError(f"{architecture} is only timed in inference here; trained are {', '.join(TRAINED)}")
    reader = content.get("TrainReader") or {}
    config = {name: value for name, value in content.items() if name not in LOOP}
    config["num_classes"] = classes
    for part in _parts(config):
        if "nms_threshold" in part and "keep_top_k" in part:
            part.update(score_threshold=workload["score_threshold"], keep_top_k=workload["max_detections"])
    if architecture == "SOLOv2":
        config["bench_targets"] = _settings(reader, "Gt2Solov2Target")
    for name in ("ResNet", "HRNet"):
        if name in config and workload["frozen_bn"] is not None:
            config[name]["freeze_norm"] = workload["frozen_bn"]
    if "ResNet" in config and workload["frozen_stages"] is not None:
        config["ResNet"]["freeze_at"] = max(workload["frozen_stages"], 0) - 1
    return merge(config, changes)


def _settings(reader: Mapping[str, Any], operator: str) -> dict[str, Any]:
    """What a reader's operator is made with."""
    steps = [*(reader.get("sample_transforms") or []), *(reader.get("batch_transforms") or [])]
    found = next((step[operator] for step in steps if isinstance(step, Mapping) and operator in step), None)
    return dict(found or {})


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    """All mappings of a nested configuration."""
    if isinstance(config, dict):
        yield config
    children = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    for child in list(children):
        yield from _parts(child)
