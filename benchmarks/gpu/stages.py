"""What is measured, the most valuable first, and what of it fits into the time that is left."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

FAMILIES = (
    "faster_rcnn_r50_fpn", "retinanet_r50_fpn", "mask_rcnn_r50_fpn", "fcos_r50_fpn", "solov2_light_r50_fpn",
    "ssd300_vgg16", "cascade_mask_rcnn_r50_fpn", "htc_r50_fpn",
)  # fmt: skip
TABLE = ("faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn", "retinanet_r50_fpn", "fcos_r50_fpn")
SOLOV2 = "solov2_light_r50_vd_fpn_dcn_512"


def recipes(device: str, codebases: Sequence[str]) -> list[dict[str, Any]]:
    """The recipes in the order of their value; on a CPU the same ones at toy size.

    Args:
        device: cpu or cuda.
        codebases: Those that this machine can run.
    """
    toy = device == "cpu"
    size: Any = [64, 64] if toy else {"short": 800, "long": 1333}
    models = list(TABLE[:1] if toy else TABLE)
    common = {"device": device, "input": {"images": 2 if toy else 16, "size": size}}
    measure = {"warmup": 1, "steps": 1, "rounds": 1} if toy else {"warmup": 10, "steps": 10, "rounds": 5}
    measure |= {
        "launches": 1,
        "memory_steps": 1 if toy else 5,
        "phase_steps": 1 if toy else 5,
        "quiet": "off",
    }
    compared = {"arms": list(codebases), "baseline": "torchvision", "measure": measure}
    if toy:
        compared["environment"] = {"threads": 1}
    small = [64, 64] if toy else [512, 512]
    solov2_size = [64, 64] if toy else [512, 512]
    found = [
        {
            "name": "gpu-equal-work",
            "workload": {**common, "model": models[0], "batch_size": 1, "input": {"images": 2, "size": small}},
            **compared,
        },
        {
            "name": "gpu-train",
            "workload": {**common, "model": models[0], "batch_size": 1 if toy else 2},
            **compared,
            "factors": {"model": models},
        },
        {
            "name": "gpu-solov2-light",
            "workload": {
                "device": device, "model": SOLOV2, "batch_size": 1 if toy else 12, "frozen_bn": False,
                "input": {"images": 1 if toy else 24, "size": solov2_size}, "weights": "random",
            },
            "arms": ["native"],
            "factors": {"ema": [False, True]},
            "baseline": {"codebase": "native", "ema": False},
            "measure": measure,
        },
        {
            "name": "gpu-infer",
            "workload": {**common, "task": "infer", "model": models[0], "batch_size": 1},
            **compared,
            "factors": {"model": models},
        },
    ]  # fmt: skip
    return found[:2] if toy else found


@dataclass
class Budget:
    """Seconds that are left, and how estimates turned out so far."""

    left_s: float
    reserve_s: float
    """For the table at the end."""
    ratios: list[float] = field(default_factory=list)
    """Seconds over estimate, of what was done."""

    def expected_s(self, estimate_s: float) -> float:
        """An estimate, corrected by how earlier ones turned out."""
        return estimate_s * (statistics.median(self.ratios) if self.ratios else 1.0)

    def fits(self, estimate_s: float) -> bool:
        """Whether something can be finished in the time that is left."""
        return self.expected_s(estimate_s) <= self.left_s - self.reserve_s

    def spend(self, seconds: float, estimate_s: float | None = None) -> None:
        """Note what something took."""
        self.left_s -= seconds
        if estimate_s:
            self.ratios.append(seconds / estimate_s)
