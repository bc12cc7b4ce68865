"""MMDetection's configs: its own and the user's, set to what a workload decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmdet
from mmengine.config import Config

from adapters.common import near

PACKAGE = Path(mmdet.__file__).parent
#: In a checkout the configs stand beside the package.
CONFIGS = next(
    (one for one in (PACKAGE / ".mim" / "configs", PACKAGE.parent / "configs") if one.is_dir()), PACKAGE
)


def load_config(name: str, changes: Mapping[str, Any]) -> Config:
    """A config file, or one of the installed mmdet by its name or its path below `configs/`, changed by dotted keys as
    `--cfg-options`."""
    path = CONFIGS / f"{name.removesuffix('.py')}.py"
    if Path(name).is_file():
        path = Path(name)
    elif "/" not in name:
        path = next(CONFIGS.rglob(path.name), path)
    if not path.is_file():
        paths = [one.relative_to(CONFIGS).with_suffix("").as_posix() for one in CONFIGS.rglob("*.py")]
        known = paths if "/" in name else [one.rpartition("/")[2] for one in paths]
        raise ValueError(f"no file {name}, and no config of mmdet{near(name.removesuffix('.py'), known)}")
    try:
        config = Config.fromfile(path)
    except ImportError as error:
        what = error.__cause__ or error
        raise ValueError(f"{name}: {what}; the arm's `source` is the folder to import from") from error
    config.merge_from_dict(dict(changes))
    if "model" not in config:
        raise ValueError(f"{name} is a part of configs, not one with a model")
    return config


def adapt_config(model: Any, workload: Mapping[str, Any], classes: int) -> None:
    """Set in a model's config what the workload decides, and no downloads."""
    for part in _parts(model):
        if isinstance(part.get("init_cfg"), Mapping) and part["init_cfg"].get("type") == "Pretrained":
            part["init_cfg"] = None  # weights come from the workload
        if "num_classes" in part and "semantic" not in str(part.get("type", "")).lower():
            part["num_classes"] = classes
    backbone = model.backbone
    residual = any(name in backbone.type for name in ("ResNe", "Res2Net", "RegNet", "CSP"))
    shared_head = model.get("roi_head", {}).get("shared_head")  # the last stage of a C4 model
    for part in filter(None, (backbone, shared_head) if workload["frozen_bn"] is not None else ()):
        if residual or "norm_eval" in part or part.type == "HRNet":
            part.norm_eval = workload["frozen_bn"]
            norm = part.get("norm_cfg") or {"type": "BN"}
            if "BN" in norm["type"]:
                part.norm_cfg = {**norm, "requires_grad": not workload["frozen_bn"]}
    if workload["frozen_stages"] is not None and (residual or "frozen_stages" in backbone):
        # mmdetection's stage 0 is the stem alone, the workload's 0 is nothing.
        backbone.frozen_stages = max(workload["frozen_stages"], 0) or -1
    limits = {"score_thr": workload["score_threshold"], "max_per_img": workload["max_detections"]}
    test = model.get("test_cfg") or {}
    if "filter_thr" in test:  # SOLOv2: score_thr only chooses candidates, and at 0 takes 17 GB
        test.update(filter_thr=limits["score_thr"], max_per_img=limits["max_per_img"])
    else:
        final_stage(test).update(limits)


def own_input(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """What a config of the user's wants of its input: mean and std by channel, and the order of the channels."""
    return {
        "mean": list(preprocessor.get("mean") or (0.0, 0.0, 0.0)),
        "std": list(preprocessor.get("std") or (1.0, 1.0, 1.0)),
        "bgr": not preprocessor.get("bgr_to_rgb", False),
        "pad": float(preprocessor.get("pad_value", 0) or 0),
    }


def final_stage(test_cfg: Any) -> Any:
    """The part of a `test_cfg` that limits what is returned; a model that is only an RPN has that of its proposals."""
    return test_cfg.get("rcnn") or test_cfg.get("rpn") or test_cfg


def _parts(config: Any) -> Iterator[Any]:
    """All dictionaries of a nested config."""
    if isinstance(config, Mapping):
        yield config
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            yield from _parts(value)
