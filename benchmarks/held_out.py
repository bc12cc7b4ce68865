"""Does a model find objects in scenes that it never saw? Learn from some `shapes` scenes, and look at others.

    python -m benchmarks.held_out                       # Mask R-CNN and SOLOv2-light, until mask AP 0.50
    python -m benchmarks.held_out mask_rcnn_r50_fpn     # one of them
    python -m benchmarks.held_out --folder FOLDER       # keeps scenes and weights there, and takes them from there

A detector starts, as everywhere in the field, from a backbone that has learned to classify. There are no weights to
download for that here, so the backbone learns it first: which of the eight shapes is in the middle of a crop. The crops
are cut from the same scenes, so that nothing but these is ever seen. It costs 64 × 64 pixels an object, where the
detector needs a whole scene for three or four of them.

Everything is trained in bfloat16 (autocast), which takes half to two thirds of the time on a processor that has it.
Images are small, and so SOLOv2's grids have half as many cells a side.

Prints a line of JSON for the backbone (`accuracy`: of the classifier, in the other scenes) and one per model, as
`benchmarks.overfit` does. The scenes that say when to stop flatter a model a little: `ap_of_last` is of `--last` scenes
that are looked at once, when all is learned. Objects with a side of less than `--smallest` pixels (of scenes of about
640 × 480) do not count: they are made crowds. Those of `--learned` and more are learned: if all that do not count were
background, a model would have to tell an object by its size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

import detectors
from bench.inputs import shapes
from benchmarks.overfit import (
    batches_of,
    config_for,
    fit,
    halve_grids,
    keep_weights,
    look,
    look_at_fewer_regions,
    make_crowds,
    resize_for,
)
from detectors.coco import Batch, CocoFolder
from detectors.config import Augment, Config, Resize, Split
from detectors.solov2 import SOLOv2

GOAL = 0.50
CROP = 64
#: Of a scene. Smaller objects would be blown up to be classified.
SMALLEST_CROP = 32


def crops(batch: Batch, *, jitter: float) -> tuple[Tensor, Tensor]:
    """The objects of a batch with some of what is around them: float32 [N, 3, CROP, CROP], and labels [N].

    A window is 1.2 times the longer side of its object's box; ``jitter`` is by which share its place and size vary.
    """
    windows = []
    for target in batch.targets:
        centre = (target.boxes[:, :2] + target.boxes[:, 2:]) / 2
        half = (target.boxes[:, 2:] - target.boxes[:, :2]).amax(dim=1, keepdim=True) * 0.6
        centre = centre + half * jitter * (2 * torch.rand_like(centre) - 1)
        half = half * (1 + jitter * (2 * torch.rand_like(half) - 1))
        windows.append(torch.cat([centre - half, centre + half], dim=1))
    labels = torch.cat([target.labels for target in batch.targets])
    return roi_align(batch.images, windows, CROP, sampling_ratio=2, aligned=True), labels


def turned(images: Tensor) -> Tensor:
    """All of the images turned, mirrored, and with other colours: a shape stays the shape it is."""
    images = torch.rot90(images, int(torch.randint(4, ())), (2, 3))[:, torch.randperm(3)]
    return images.flip(3) if torch.rand(()) < 0.5 else images


def learn_to_classify(backbone: nn.Module, config: Config, *, iterations: int, lr: float) -> float:
    """Train the backbone with one linear layer on top of it; returns the accuracy on a batch of ``data.val``."""
    assert config.data.val is not None
    classifier = nn.Linear(backbone.out_channels[-1], len(shapes.CLASSES))
    parameters = [*backbone.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05, fused=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, iterations, pct_start=0.1, cycle_momentum=False
    )

    def logits(images: Tensor) -> Tensor:
        return classifier(backbone(images.contiguous(memory_format=torch.channels_last))[-1].mean(dim=(2, 3)))

    def scenes(where: Split) -> Iterator[Batch]:
        return batches_of(CocoFolder(where.annotations, where.images, masks=False), config)

    backbone.to(memory_format=torch.channels_last).train()
    train = scenes(config.data.train)
    right = seen = 0
    for iteration in range(1, iterations + 1):
        images, labels = crops(next(train), jitter=0.2)
        with torch.autocast("cpu", torch.bfloat16):
            scores = logits(turned(images)).float()
        loss = F.cross_entropy(scores, labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        right, seen = right + int((scores.argmax(dim=1) == labels).sum()), seen + len(labels)
        if iteration % 25 == 0:
            print(f"# classifier {iteration}: accuracy {right / seen:.3f}", file=sys.stderr, flush=True)
            right = seen = 0
    backbone.eval()
    images, labels = crops(next(scenes(config.data.val)), jitter=0.0)
    with torch.no_grad():
        right = int((logits(images).argmax(dim=1) == labels).sum())
    backbone.train()
    return right / len(labels)


def split(folder: Path, name: str, smallest: int, images: slice = slice(None)) -> Split:
    """Some scenes, by default all, of a split that `shapes` wrote, with objects that have a side of less than
    ``smallest`` pixels as crowds.
    """
    annotations = folder / f"{name}_{smallest}_from_{images.start or 0}.json"
    make_crowds(folder / name / "annotations" / f"instances_{name}.json", annotations, smallest, images)
    return Split(str(annotations), str(folder / name / name))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.held_out", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("models", nargs="*", default=["mask_rcnn_r50_fpn", "solov2_light_r50_fpn"])
    parser.add_argument("--folder", type=Path, help="of scenes and weights, made if it is not there")
    parser.add_argument("--scenes", type=int, default=3000, help="to learn from")
    parser.add_argument("--others", type=int, default=40, help="scenes to look at while it learns")
    parser.add_argument("--last", type=int, default=160, help="scenes to look at once, when it has learned")
    parser.add_argument("--side", type=int, default=160, help="short side of the detector's input (pixels)")
    parser.add_argument(
        "--smallest", type=int, default=96, help="side of the smallest object that counts (pixels)"
    )
    parser.add_argument(
        "--learned", type=int, default=48, help="side of the smallest object that is learned (pixels)"
    )
    parser.add_argument("--regions", type=int, default=32, help="per image, of an R-CNN's second stage")
    parser.add_argument("--classifying", type=int, default=700, help="iterations of the backbone alone")
    parser.add_argument("--classifying-lr", type=float, default=1e-3)
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--look-every", type=int, default=250, help="iterations between evaluations")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        for name, count in (("train", given.scenes), ("val", given.others + given.last)):
            if not (folder / name).exists():  # and then it is complete
                shutil.rmtree(part := folder / f"{name}.part", ignore_errors=True)
                shapes.write(part, name, count)
                part.rename(folder / name)

        others, last = slice(given.others), slice(given.others, None)
        to_classify = split(folder, "train", SMALLEST_CROP), split(folder, "val", SMALLEST_CROP, others)
        to_detect = split(folder, "train", given.learned), split(folder, "val", given.smallest, others)
        never_looked_at = split(folder, "val", given.smallest, last)

        def config(splits: tuple[Split, Split], resize: Resize, batch: int) -> Config:
            plain = config_for(*splits, resize, batch=batch)
            return dataclasses.replace(plain, augment=Augment(resize=resize, flip=0.5))

        for name in given.models:
            torch.manual_seed(0)
            model = detectors.build(name, num_classes=len(shapes.CLASSES), frozen_stages=0, frozen_bn=False)
            look_at_fewer_regions(model, given.regions)
            if isinstance(model, SOLOv2):
                halve_grids(model)
            weights = folder / "backbone.safetensors"
            if not weights.exists():
                begin = time.process_time()
                whole = config(to_classify, Resize(short=(480,), long=640), 32)
                accuracy = learn_to_classify(
                    model.backbone, whole, iterations=given.classifying, lr=given.classifying_lr
                )
                spent = round(time.process_time() - begin, 1)
                print(json.dumps({"model": "backbone", "accuracy": accuracy, "cpu_s": spent}), flush=True)
                keep_weights(model.backbone, weights)
            model.backbone.load_state_dict(load_file(weights))
            settings = config(to_detect, resize_for(name, given.side), given.batch)
            found = fit(
                model,
                settings,
                folder / "results",
                iterations=given.iterations,
                lr=given.lr,
                goal=GOAL,
                look_every=given.look_every,
                bfloat16=True,
                keep=folder / f"{name}.safetensors",
            )
            data = dataclasses.replace(settings.data, val=never_looked_at)
            ap_of_last = look(model, dataclasses.replace(settings, data=data), folder / "results")
            told = {"model": name, **asdict(found), "reached": found.reached, "ap_of_last": ap_of_last}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
