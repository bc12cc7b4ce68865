"""Does a model learn? Train it on 8 `shapes` scenes until it knows them. (On others: `benchmarks.held_out`.)

    python -m benchmarks.overfit                      # every method (on ResNet-50), until AP 0.90 on its 8 scenes
    python -m benchmarks.overfit mask_rcnn_r50_fpn    # one of them
    python -m benchmarks.overfit --coco ../shared/data/coco_tiny mask_rcnn_r50_fpn    # 8 real images instead

Prints a line of JSON per model: AP of boxes and masks, the goal and whether it was reached, iterations, CPU seconds.
Random weights (but for `--backbone`), nothing frozen. `--budget` bounds the CPU seconds of a model: one out of time is
reported as it is.

Objects with a side of less than `--smallest` pixels (of scenes of about 640 × 480) are made crowds, which are neither
learned nor counted: in an input scaled down to `--side` they have no pixels to be learned from. The second stages of
R-CNNs look at `--regions` per image rather than 512, most of which would be background here as well.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import detectors
from bench.inputs import shapes
from bench.inputs.dataset import open_dataset
from bench.recipe.workload import Input
from detectors import runtime
from detectors.box_head import BoxHead
from detectors.c4 import whole_backbone
from detectors.checkpoint import load_backbone
from detectors.coco import Batch, CocoFolder
from detectors.config import Augment, Config, Data, Evaluate, Model, Optimizer, Resize, ScheduleConfig, Split
from detectors.eval import evaluate
from detectors.rpn import RPN
from detectors.runtime import Ranks
from detectors.sampling import BalancedSampler
from detectors.solov2 import SOLOv2
from detectors.training_input import training_batches

GOAL = 0.90
#: Iterations at a lower rate. Without them AdamW's first steps, as large as its later ones, saturate SOLOv2's masks,
#: which then learn nothing any more.
WARM_UP = 20
ALONE = Ranks(0, 1, torch.device("cpu"))


def write_scenes(folder: Path, split: str, images: int, *, smallest: int) -> Split:
    """Scenes in COCO layout in which objects with a side of less than ``smallest`` pixels are crowds."""
    shapes.write(folder, split, images)
    annotations = folder / "annotations" / f"instances_{split}.json"
    make_crowds(annotations, annotations, smallest)
    return Split(str(annotations), str(folder / split))


def real_images(folder: Path, source: Path, images: int, *, smallest: int) -> Split:
    """The first images of COCO's training split in ``source`` that have larger objects; smaller ones are crowds."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").symlink_to((source / "train2017").resolve())
    annotations = Path("annotations") / "instances_train2017.json"
    make_crowds(source / annotations, folder / annotations, smallest)
    found = open_dataset(Input(dataset=str(folder), images=images), "train", folder)
    return Split(str(found.annotations), str(found.images))


def make_crowds(source: Path, target: Path, smallest: int, images: slice = slice(None)) -> None:
    """Annotations, of some ``images``, with objects that have a side of less than ``smallest`` pixels as crowds."""
    content = json.loads(source.read_text())
    content["images"] = content["images"][images]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in kept]
    for item in content["annotations"]:
        item["iscrowd"] = int(item["iscrowd"] or min(item["bbox"][2:]) < smallest)
    target.write_text(json.dumps(content))


def look_at_fewer_regions(model: nn.Module, regions: int, proposals: int | None = None) -> None:
    for module in model.modules():
        if isinstance(module, BoxHead):
            module.sampler = BalancedSampler(regions, 0.25)
        if isinstance(module, RPN) and proposals is not None:
            module.post_nms = module.post_nms[0], proposals


def halve_grids(model: SOLOv2) -> None:
    """The grids of 40 to 12 cells a side are for images of a short side of 450 or 800. Two thirds of the light model's
    work is in them, more of the full one's."""
    model.levels = tuple(replace(level, cells=level.cells // 2) for level in model.levels)
    model.head.grids = tuple(level.cells for level in model.levels)


def config_for(train: Split, val: Split, resize: Resize, *, batch: int) -> Config:
    """No augmentation, so that a scene looks the same each time; all of it on the CPU."""
    return Config(
        model=Model("given"),
        data=Data(train, val, workers=0, group_by_shape=False),
        optimizer=Optimizer(1.0),
        schedule=ScheduleConfig(iterations=1),
        output="",
        batch=batch,
        augment=Augment(resize=resize, flip=0.0),
        device="cpu",
        evaluate=Evaluate(batch=batch, resize=resize),
    )


def batches_of(coco: CocoFolder, config: Config) -> Iterator[Batch]:
    """Batches of the images that have objects, without end."""
    image_ids = [one for one in sorted(coco.files) if coco.has_objects(one)]
    return training_batches(coco, image_ids, config, ALONE, 0)


def keep_weights(module: nn.Module, file: Path) -> None:
    save_file({name: one.contiguous() for name, one in module.state_dict().items()}, file)


@dataclass(frozen=True)
class Fit:
    """ap: of ``bbox`` and perhaps ``segm``. goal: the AP in question."""

    ap: dict[str, float]
    goal: float
    iterations: int
    cpu_s: float
    wall_s: float

    @property
    def reached(self) -> bool:
        return self.ap.get("segm", self.ap["bbox"]) >= self.goal


def look(model: nn.Module, config: Config, folder: Path) -> dict[str, float]:
    """AP of ``bbox`` and perhaps ``segm`` in ``data.val``."""
    assert config.data.val is not None
    val = CocoFolder(config.data.val.annotations, config.data.val.images, masks=False)
    found = evaluate(model, val, config, val.category_ids, ALONE, folder)
    assert found is not None
    return {task: round(metrics["AP"], 4) for task, metrics in found.metrics.items()}


def fit(
    model: nn.Module,
    config: Config,
    folder: Path,
    *,
    iterations: int,
    lr: float,
    goal: float = GOAL,
    look_every: int,
    budget_cpu_s: float = math.inf,
    bfloat16: bool = False,
    keep: Path | None = None,
) -> Fit:
    """Train until the masks (without masks: the boxes) of ``data.val`` reach the goal, or ``iterations`` or the budget
    are over.

    By AdamW, its rate rising for some iterations and then falling with a cosine: the question is what the model can
    learn, and this is a short way that suits all of them. Looking at ``data.val`` counts in the times, being part of
    the price; it is in float32, training with ``bfloat16`` too. ``keep`` is where the weights of each look go.
    """
    coco = CocoFolder(
        config.data.train.annotations, config.data.train.images, masks=runtime.uses_masks(model)
    )
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4, fused=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, iterations, pct_start=WARM_UP / iterations, final_div_factor=2, cycle_momentum=False
    )
    batches = batches_of(coco, config)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    result: Fit | None = None
    for iteration in range(iterations):
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            losses = model.losses(batch.images, batch.sizes(), batch.targets)
        loss = torch.stack([one.float() for one in losses.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        rates.step()
        done = iteration + 1
        out_of_time = time.process_time() - cpu_s > budget_cpu_s
        if done % look_every and done < iterations and not out_of_time:
            continue
        result = Fit(
            look(model, config, folder),
            goal,
            done,
            round(time.process_time() - cpu_s, 1),
            round(time.perf_counter() - wall_s, 1),
        )
        line = f"# {done}: {result.ap}  loss {loss.item():.3f}  CPU s {result.cpu_s}"
        print(line, file=sys.stderr, flush=True)
        if keep:
            keep_weights(model, keep)
        if result.reached or out_of_time:
            break
    assert result is not None
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overfit", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("models", nargs="*", help="by default all that a COCO folder is enough for")
    parser.add_argument("--coco", type=Path, help="folder of COCO's layout: 8 images of its training split")
    parser.add_argument(
        "--backbone", type=Path, help="its weights (of benchmarks.held_out) rather than random ones"
    )
    parser.add_argument("--side", type=int, default=256, help="short side of the input (pixels)")
    parser.add_argument(
        "--smallest", type=int, default=32, help="side of the smallest object that counts (pixels)"
    )
    parser.add_argument("--regions", type=int, default=96, help="per image, of an R-CNN's second stage")
    parser.add_argument(
        "--proposals", type=int, help="per image, of an R-CNN when it detects; by default the model's 1000"
    )
    parser.add_argument(
        "--halve-grids", action="store_true", help="SOLOv2's have half as many cells a side, for small inputs"
    )
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--look-every", type=int, default=25, help="iterations between evaluations")
    parser.add_argument("--budget", type=float, default=math.inf, help="CPU seconds of a model")
    parser.add_argument(
        "--bfloat16", action="store_true", help="train with autocast; faster where it is native"
    )
    given = parser.parse_args()
    for name in given.models or trainable_models():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if given.coco:
                train = val = real_images(folder, given.coco, 8, smallest=given.smallest)
            else:
                train = val = write_scenes(folder / "seen", "train", 8, smallest=given.smallest)
            classes = len(json.loads(Path(train.annotations).read_text())["categories"])
            torch.manual_seed(0)
            model = detectors.build(name, num_classes=classes, frozen_stages=0, frozen_bn=False)
            look_at_fewer_regions(model, given.regions, given.proposals)
            if given.halve_grids and isinstance(model, SOLOv2):
                halve_grids(model)
            if given.backbone:
                print(f"# {load_backbone(whole_backbone(model), given.backbone)}", file=sys.stderr)
            found = fit(
                model,
                config_for(train, val, resize_for(name, given.side), batch=given.batch),
                folder / "results",
                iterations=given.iterations,
                lr=given.lr,
                look_every=given.look_every,
                budget_cpu_s=given.budget,
                bfloat16=given.bfloat16,
            )
        print(json.dumps({"model": name, **asdict(found), "reached": found.reached}), flush=True)


def trainable_models() -> list[str]:
    """Every method once, but for those that take proposals, or give nothing else."""
    return [
        name
        for name in detectors.list_models()
        if ("_r50_" in name or name.startswith("ssd")) and not name.startswith(("fast_rcnn", "rpn"))
        if "_caffe" not in name
    ]


def resize_for(model: str, side: int) -> Resize:
    """SSD takes images of one size only."""
    if found := re.match(r"ssd(\d+)_", model):
        return Resize(size=(int(found[1]), int(found[1])))
    return Resize(short=(side,), long=4 * side // 3)


if __name__ == "__main__":
    main()
