"""AP of weights that torchvision trained and saved: its own forward pass and `detectors` agree on real images.

Each codebase reads the same files, makes its own batches, and is evaluated on all images. The images have the size of
the network's input already: the two codebases resize differently. Some are learned by heart, so that AP is not 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms.functional import to_tensor

from detectors import Detections, build, config
from detectors.eval import entries_of, evaluated, summary
from detectors.foreign import load_weights
from tests.helpers.models import few_layers
from tests.helpers.real_images import COCO_SMALL, of_network_size, our_ap

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not COCO_SMALL.is_dir(), reason=f"no real COCO images at {COCO_SMALL}"),
]

SSD_PIXELS = {"mean": (123, 117, 104), "std": (1, 1, 1)}  # of torchvision's SSD, of pixels from 0 to 255


def theirs_of(name: str, classes: int, short: int) -> nn.Module:
    """torchvision's model: a ResNet of one block a stage, or its own SSD."""
    if name == "ssd300_vgg16":
        return detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=classes + 1)
    dense = name == "retinanet_r50_fpn"
    more = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)} if dense else {}
    body = _resnet_fpn_extractor(ResNet(Bottleneck, [1, 1, 1, 1]), 5, **more)
    sizes = {"min_size": short, "max_size": 10 * short}
    if dense:
        return detection.RetinaNet(body, num_classes=classes, score_thresh=0.05, **sizes)
    made = {"faster_rcnn_r50_fpn": detection.FasterRCNN, "mask_rcnn_r50_fpn": detection.MaskRCNN}[name]
    return made(body, num_classes=classes + 1, box_batch_size_per_image=64, **sizes)


def learn(theirs: nn.Module, split: config.Split, first: int, images: int, steps: int, lr: float) -> None:
    """Steps with two images by torchvision's losses. ``first``: the number of the first class."""
    coco = COCO(split.annotations)
    ids = sorted(coco.cats)
    batches: list[tuple[list[Tensor], list[dict[str, Tensor]]]] = []
    for pair in np.array_split(sorted(coco.imgs)[:images], images // 2):
        pictures, targets = [], []
        for image in pair.tolist():
            found = coco.loadAnns(coco.getAnnIds(image))
            boxes = torch.tensor([one["bbox"] for one in found])
            labels = torch.tensor([ids.index(one["category_id"]) for one in found]) + first
            masks = torch.from_numpy(np.stack([coco.annToMask(one) for one in found]))
            boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
            targets.append({"boxes": boxes, "labels": labels, "masks": masks})
            pictures.append(to_tensor(Image.open(Path(split.images) / coco.imgs[image]["file_name"])))
        batches.append((pictures, targets))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=lr)
    theirs.train()
    for step in range(steps):
        loss = sum(theirs(*batches[step % len(batches)]).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 10.0)
        optimizer.step()


@torch.no_grad()
def ap_of_torchvision(theirs: nn.Module, split: config.Split, first: int, *, masks: bool) -> Any:
    coco = COCO(split.annotations)
    ids = sorted(coco.cats)
    results: dict[str, list[Any]] = {"bbox": [], "segm": []} if masks else {"bbox": []}
    for image in sorted(coco.imgs):
        picture = to_tensor(Image.open(Path(split.images) / coco.imgs[image]["file_name"]))
        (found,) = theirs.eval()([picture])
        pasted = found["masks"][:, 0] > 0.5 if masks else None
        detections = Detections(found["boxes"], found["scores"], found["labels"] - first, pasted)
        for task, entries in results.items():
            entries += entries_of(detections, image, ids, masks=task == "segm")
    return {task: summary(evaluated(split, entries, task)) for task, entries in results.items()}


@pytest.mark.parametrize(
    ("name", "short", "images", "steps", "lr"),
    [
        ("faster_rcnn_r50_fpn", 160, 8, 100, 5e-4),
        ("mask_rcnn_r50_fpn", 128, 4, 80, 5e-4),
        ("retinanet_r50_fpn", 128, 4, 150, 5e-4),
        ("ssd300_vgg16", 300, 4, 40, 1e-4),
    ],
)
def test_ap_of_torchvisions_weights_is_torchvisions(
    name: str, short: int, images: int, steps: int, lr: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    ssd, masks = name.startswith("ssd"), name.startswith("mask")
    split, classes = of_network_size(tmp_path, short, square=ssd)
    first = 0 if name.startswith("retina") else 1
    theirs = theirs_of(name, classes, short)
    learn(theirs, split, first, images, steps, lr)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")

    settings = {} if ssd else {"frozen_bn": False}
    with few_layers() if not ssd else torch.no_grad():
        ours = build(name, num_classes=classes, frozen_stages=0, **settings)
    if first == 0:
        ours.score_threshold = 0.05
    report = load_weights(ours, tmp_path / "theirs.pth")
    assert report.complete, str(report)
    resize = config.Resize(size=(300, 300)) if ssd else config.Resize(short=(short,), long=10 * short)
    found = our_ap(ours, split, resize, SSD_PIXELS if ssd else {}, tmp_path)
    expected = ap_of_torchvision(theirs, split, first, masks=masks)
    print(name, {task: (metrics["AP"], found[task]["AP"]) for task, metrics in expected.items()})
    assert set(found) == set(expected)
    for task, metrics in expected.items():
        assert metrics["AP"] > 0.01, "nothing was learned"
        assert found[task] == pytest.approx(metrics, abs=1e-3), task
