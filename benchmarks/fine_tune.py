"""From another codebase's checkpoint to one's own classes, and to pictures: `python -m benchmarks.fine_tune OUT`.

Ten real images, by the commands of `detectors` alone:

1. A Mask R-CNN learns them by heart, with COCO's 90 ids as classes, and is saved as a file of torchvision's, by
   torchvision: `OUT/theirs.pth`.
2. `detectors.predict` draws what it finds with that file: `OUT/gallery.jpg`.
3. `detectors.train` fine-tunes that file to three classes; the AP of each evaluation is in `OUT/three/metrics.csv`.

It says nothing about other images. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import Bottleneck, ResNet

from detectors import predict, train, training_state
from detectors.backbones.resnet import BLOCKS
from detectors.names import torchvision as names

#: Of COCO 2017, all under CC BY 2.0.
IMAGES = (73, 436, 459, 529, 599, 629, 129648, 196393, 352257, 358083)
THREE = ("person", "cat", "motorcycle")
SMALLEST = 32  # pixels; objects with a shorter side are crowds, which are neither learned nor counted
RESIZE = {"short": 192, "long": 256}


def write_annotations(source: Path, file: Path, wanted: tuple[str, ...] | None) -> None:
    """Of the ten images: with the wanted categories alone, or with a category for each of COCO's ids from 1 to 90."""
    content = json.loads(source.read_text())
    categories = content["categories"]
    if wanted is None:
        known = {one["id"]: one for one in categories}
        categories = [
            known.get(number, {"id": number, "name": f"unused {number}"}) for number in range(1, 91)
        ]
    else:
        categories = [one for one in categories if one["name"] in wanted]
    ids = {one["id"] for one in categories}
    annotations = [
        {**one, "iscrowd": int(one["iscrowd"] or min(one["bbox"][2:]) < SMALLEST)}
        for one in content["annotations"]
        if one["image_id"] in IMAGES and one["category_id"] in ids
    ]
    images = [one for one in content["images"] if one["id"] in IMAGES]
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))


def config(out: Path, coco: Path, name: str, iterations: int, **changes: Any) -> Path:
    """A config of `detectors.train` for the annotations `OUT/<name>.json`; its output is `OUT/<name>`."""
    split = {"annotations": str(out / f"{name}.json"), "images": str(coco / "train2017")}
    content = {
        "model": {"name": "mask_rcnn_r50_fpn", "settings": {"frozen_stages": 0, "frozen_bn": False}},
        "data": {"train": split, "val": split, "workers": 0},
        "augment": {"resize": RESIZE, "flip": 0},
        "optimizer": {"name": "adamw", "lr": 0.0005, "clip_norm": 10},
        "schedule": {"iterations": iterations, "warmup": 20, "decay": "cosine"},
        "batch": 4,
        "precision": "bfloat16",
        "device": "cpu",
        "checkpoint": {"every": 50, "keep": 1},
        "evaluate": {"batch": 5, "resize": RESIZE},
        "output": str(out / name),
        **changes,
    }
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def trained(path: Path) -> Path:
    """The last checkpoint of a config's training, which goes on where an earlier call ended."""
    output = Path(yaml.safe_load(path.read_text())["output"])
    begin = time.process_time()
    resume = ["--resume"] if training_state.checkpoints(output) else []
    if code := train.main([str(path), *resume]):
        raise SystemExit(code)
    print(f"{output.name}: {time.process_time() - begin:.0f} CPU s", flush=True)
    return training_state.checkpoints(output)[-1]


def save_as_torchvision(checkpoint: Path, file: Path) -> None:
    """Put our weights into torchvision's model, which has to know all of them, and save that."""
    state = training_state.weights(training_state.read(checkpoint))
    arrays = {name: value.numpy() for name, value in state.items()}
    converted = names.convert("mask_rcnn_r50_fpn", arrays)
    body = _resnet_fpn_extractor(ResNet(Bottleneck, list(BLOCKS[50])), 5)
    theirs = MaskRCNN(body, num_classes=91)  # maskrcnn_resnet50_fpn, but for tests that have fewer blocks
    theirs.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in converted.items()})
    torch.save(theirs.state_dict(), file)


def contact_sheet(
    folder: Path, file: Path, *, height: int = 210, columns: int = 5, most: int = 150_000
) -> None:
    """The pictures of a folder side by side, as a JPEG of at most so many bytes."""
    pictures = [Image.open(one) for one in sorted(folder.glob("*.png"))]
    pictures = [one.resize((round(one.width * height / one.height), height)) for one in pictures]
    rows = [pictures[first : first + columns] for first in range(0, len(pictures), columns)]
    width = max(sum(one.width for one in row) for row in rows)
    sheet = Image.new("RGB", (width, height * len(rows)), "white")
    for number, row in enumerate(rows):
        left = 0
        for picture in row:
            sheet.paste(picture, (left, number * height))
            left += picture.width
    for quality in range(90, 20, -5):
        sheet.save(file, quality=quality, optimize=True)
        if file.stat().st_size <= most:
            return


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, draw, fine-tune, and print the AP of each evaluation."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fine_tune", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--coco", type=Path, default=Path("../shared/data/coco_small"))
    parser.add_argument(
        "--iterations", type=int, nargs=2, default=(160, 40), help="of both trainings [160 40]"
    )
    given = parser.parse_args(arguments)
    out, data = given.output, given.coco
    out.mkdir(parents=True, exist_ok=True)
    source = data / "annotations" / "instances_train2017.json"
    for name, wanted in (("all", None), ("three", THREE)):
        write_annotations(source, out / f"{name}.json", wanted)
    learned = config(out, data, "all", given.iterations[0])
    theirs = out / "theirs.pth"
    save_as_torchvision(trained(learned), theirs)
    photos = [data / "train2017" / f"{number:012d}.jpg" for number in IMAGES]
    drawn = ["-o", str(out / "pictures"), "--threshold", "0.6"]
    if code := predict.main([str(learned), str(theirs), *map(str, photos), *drawn]):
        raise SystemExit(code)
    contact_sheet(out / "pictures", out / "gallery.jpg")
    trained(config(out, data, "three", given.iterations[1], weights=str(theirs), evaluate={
        "every": 10, "batch": 5, "resize": RESIZE,
    }))  # fmt: skip
    for row in csv.DictReader((out / "three" / "metrics.csv").open()):
        if row["name"] in ("bbox/AP", "segm/AP"):
            print(f"{row['iteration']} {row['name']} {float(row['value']):.3f}")


if __name__ == "__main__":
    main()
