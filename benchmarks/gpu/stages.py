"""What is measured, the most valuable first, and what of it fits into the time that is left."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FAMILIES = (
    "faster_rcnn_r50_fpn", "retinanet_r50_fpn", "mask_rcnn_r50_fpn", "fcos_r50_fpn", "solov2_light_r50_fpn",
    "ssd300_vgg16", "cascade_mask_rcnn_r50_fpn", "htc_r50_fpn",
)  # fmt: skip
TABLE = ("faster_rcnn_r50_fpn", "retinanet_r50_fpn", "mask_rcnn_r50_fpn", "fcos_r50_fpn")
SOLOV2 = "solov2_light_r50_vd_fpn_dcn_512"
#: Exit codes of the smoke test: this process cannot use the device any more, and another one can; there is none.
BROKEN, ABSENT = 75, 69
#: Seconds that an arm takes before any is measured: three starts of a worker, the audit, the rounds.
ARM_S = {"cuda": 45.0, "cpu": 30.0}


def recipes(device: str, codebases: Sequence[str]) -> list[dict[str, Any]]:
    """The recipes in the order of their value; on a CPU the first ones at toy size.

    `native` follows the conventions of the codebase that it is compared with. Numbers of float32 are not rounded to
    TF32, which is another rounding in each memory layout and would hide whether the work is equal.

    Args:
        device: cpu or cuda.
        codebases: The others than `native` that this machine can run.
    """
    toy = device == "cpu"
    switches = {"device": device, **({} if toy else {"tf32": False})}
    small = {"images": 2, "size": [128, 128] if toy else [512, 512]}
    large = {"images": 16, "size": {"short": 800, "long": 1333}}
    passes = {"launches": 1, "memory_steps": 1 if toy else 5, "phase_steps": 1 if toy else 5, "quiet": "off"}
    short = {"warmup": 1, "steps": 1, "rounds": 2, **passes}
    measure = {"warmup": 10, "steps": 10, "rounds": 5, **passes}

    def recipe(name: str, other: str, workload: dict[str, Any], measure: dict[str, Any]) -> dict[str, Any]:
        native = {
            "codebase": "native",
            **({} if other == "torchvision" else {"options": {"conventions": other}}),
        }
        return {
            "name": name if other == "torchvision" else f"{name}-{other}",
            "workload": {**switches, "model": TABLE[0], **workload},
            "arms": [other, native],
            "baseline": other,
            "measure": measure,
            **({"environment": {"threads": 1}} if toy else {}),
        }

    equal = [recipe("gpu-equal-work", one, {"batch_size": 1, "input": small}, short) for one in codebases]
    if toy:
        return equal

    def against_itself(name: str, factor: str, levels: list[Any], workload: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "workload": {**switches, **workload},
            "arms": ["native"],
            "factors": {factor: levels},
            "baseline": {"codebase": "native", factor: levels[0]},
            "measure": measure,
        }

    light = {
        "batch_size": 12,
        "input": {"images": 24, "size": [512, 512]},
        "frozen_bn": False,
        "weights": "random",
    }
    solov2 = against_itself("gpu-solov2-light", "ema", [False, True], {"model": SOLOV2, **light})
    two = {"model": TABLE[1], "input": large}
    half = against_itself("gpu-bfloat16", "precision", ["float32", "bfloat16"], two)
    compiled = against_itself("gpu-compile", "compile", [False, True], two)

    def table(name: str, models: Sequence[str], **work: Any) -> list[dict[str, Any]]:
        factors = {"factors": {"model": list(models)}}
        return [recipe(name, one, {"input": large, **work}, measure) | factors for one in codebases]

    infer: dict[str, Any] = {"task": "infer", "batch_size": 1}
    train, more = table("gpu-train", TABLE[:2]), table("gpu-train-more", TABLE[2:])
    inferred = [*table("gpu-infer", TABLE[:2], **infer), *table("gpu-infer-more", TABLE[2:], **infer)]
    return [*equal, train[0], solov2, *train[1:], half, more[0], *inferred, *more[1:], compiled]


def read(path: Path) -> list[dict[str, Any]]:
    """Results so far; a torn last line is none."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


class Budget:
    """What arms took so far, in this run and in earlier ones.

    Args:
        arm_s: What an arm takes before any was measured.
        file: Where the seconds of arms are kept, by recipe.
    """

    def __init__(self, arm_s: float, file: Path) -> None:
        self.arm_s, self.file = arm_s, file
        self.took: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}

    def expected_s(self, recipe: str, arms: int) -> float:
        """Of a cell: by the arms of this recipe; else by the longest of another; else the guess."""
        others = [statistics.median(one) for one in self.took.values()]
        own = self.took.get(recipe)
        return arms * (statistics.median(own) if own else max(others, default=self.arm_s))

    def note(self, recipe: str, arms: int, seconds: float) -> None:
        """Keep what a cell took."""
        self.took.setdefault(recipe, []).append(seconds / arms)
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.took))
        temporary.replace(self.file)
