"""Twenty odd image files: in shared mode every codebase's first layer sees the same pixels."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.helpers import odd_images
from tests.peers.conftest import peer

pytestmark = [pytest.mark.peers, pytest.mark.nightly]


@pytest.mark.parametrize(
    ("codebase", "conventions"),
    [
        ("torchvision", "torchvision"),
        ("mmdet", "mmdet"),
        ("detectron2", "mmdet"),
        ("paddledet", "mmdet"),
    ],
)
def test_every_codebase_sees_the_same_pixels(
    cli: Cli, tmp_path: Path, codebase: str, conventions: str
) -> None:
    if codebase != "torchvision":
        peer(codebase, tmp_path)  # or skip
    file, images = odd_images.write(tmp_path)
    own = {"annotations": str(file), "images": str(images), "count": 19, "skip_broken": True}
    recipe = cli.recipe(
        name="odd",
        workload={
            "task": "infer",
            "model": "faster_rcnn_r50_fpn",
            "batch_size": 19,
            "input": {**own, "size": [64, 64]},
        },
        arms=[codebase, {"codebase": "native", "options": {"conventions": conventions}}],
        baseline="native",
        measure={"deadline_s": 300},
    )
    done = cli("audit", recipe, "--json")
    assert done.code == 0, done.err
    (verdict,) = done.json()
    assert verdict["verdict"] in ("equal", "unequal")
    told = [one["fact"] for one in verdict["differences"]] + verdict["unknown"]
    # Number, shapes and contents of the images; what is found in them is of the models' conventions.
    assert [fact for fact in told if "image" in fact and "detections" not in fact] == []
