"""AP of weights that mmdetection trained and saved: both codebases get the same from the file, on real images.

Each reads the same files, makes its own batches, and is evaluated on all images, which have the size of the network's
input. Four are learned by heart, so that AP is not 0. The backbone is a ResNet of one block a stage, and SOLOv2 has
half of its cells a side.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco_mask

from detectors import build, solov2_models
from detectors.config import Resize
from detectors.eval import evaluated, summary
from detectors.foreign import load_weights
from tests.helpers.models import few_layers
from tests.helpers.real_images import COCO_SMALL, of_network_size, our_ap
from tests.peers.peer import Peer

pytestmark = [
    pytest.mark.peers,
    pytest.mark.nightly,
    pytest.mark.skipif(not COCO_SMALL.is_dir(), reason=f"no real COCO images at {COCO_SMALL}"),
]

SIDE = 128
GRIDS = (20, 18, 12, 8, 6)
TRAINED = """
from bench.worker.probe import predict as write_results
from mmengine.runner import save_checkpoint

module.Adapter(Job(**jobs["train"]))  # it chooses mmcv's kernels, which backbones import
from mmdet.models.backbones import ResNet

ResNet.arch_settings[50] = (ResNet.arch_settings[50][0], (1, 1, 1, 1))
torch.manual_seed(0)
adapter, data = make(jobs["train"])
optimizer = torch.optim.AdamW(adapter.model.parameters(), lr=jobs["lr"])
for number in range(jobs["steps"]):
    for group in optimizer.param_groups:  # without a slow start SOLOv2's masks saturate and learn nothing
        group["lr"] = jobs["lr"] * min(1, (number + 1) / 20)
    losses = adapter.compute_losses(data[number % 2])
    optimizer.zero_grad()
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(adapter.model.parameters(), 10.0)
    optimizer.step()
state = adapter.model.state_dict()
save_checkpoint({"meta": {}, "state_dict": state}, jobs["checkpoint"])
adapter, _ = make(jobs["infer"])
adapter.model.load_state_dict(state)
write_results(adapter, load_batches(jobs["infer"]["batches"], 0, 1), jobs["found"])
"""


def by_task(entries: list[dict[str, Any]], *, masks: bool) -> dict[str, list[dict[str, Any]]]:
    """COCO results with either a box or a mask."""
    if not masks:
        return {"bbox": entries}
    for one in entries:
        one["segmentation"] = coco_mask.frPyObjects(one["segmentation"], *one["segmentation"]["size"])
    return {
        task: [{key: value for key, value in one.items() if key != other} for one in entries]
        for task, other in (("bbox", "segmentation"), ("segm", "bbox"))
    }


@pytest.mark.parametrize(
    ("name", "steps", "options", "settings"),
    [
        ("fcos_r50_fpn", 150, {}, {"conventions": "mmdet"}),
        ("solov2_light_r50_fpn", 150, {"model.mask_head.num_grids": list(GRIDS)}, {}),
    ],
)
def test_ap_of_mmdetections_weights_is_mmdetections(
    name: str,
    steps: int,
    options: dict[str, Any],
    settings: dict[str, Any],
    mmdet: Peer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split, classes = of_network_size(tmp_path, SIDE, square=True)
    images = len(json.loads(Path(split.annotations).read_text())["images"])
    files = {"annotations": split.annotations, "images": split.images, "count": images}
    how = {"batch_size": 2, "frozen_bn": False, "frozen_stages": 0, "score_threshold": 0.05}
    options = {**mmdet.codebase.models[name].options.get("cfg_options", {}), **options}
    job = mmdet.job(name, input={**files, "size": (SIDE, SIDE)}, options={"cfg_options": options}, **how)
    jobs = {
        "train": job,
        "infer": {**job, "workload": {**job["workload"], "task": "infer"}},
        "steps": steps,
        "lr": 5e-4,
        "checkpoint": str(tmp_path / "theirs.pth"),
        "found": str(tmp_path / "found.json"),
    }
    mmdet.run(TRAINED, jobs)
    entries = by_task(json.loads((tmp_path / "found.json").read_text()), masks=name.startswith("solov2"))
    expected = {task: summary(evaluated(split, one, task)) for task, one in entries.items()}

    monkeypatch.setattr(solov2_models, "GRIDS", GRIDS)
    with few_layers():
        ours = build(name, num_classes=classes, frozen_stages=0, frozen_bn=False, **settings)
    ours.score_threshold = how["score_threshold"]
    report = load_weights(ours, tmp_path / "theirs.pth")
    assert report.complete, str(report)
    found = our_ap(ours, split, Resize(size=(SIDE, SIDE)), {}, tmp_path)
    print(name, {task: (metrics["AP"], found[task]["AP"]) for task, metrics in expected.items()})
    assert set(found) == set(expected)
    for task, metrics in expected.items():
        assert metrics["AP"] > 0.01, "nothing was learned"
        assert found[task] == pytest.approx(metrics, abs=1e-3), task
