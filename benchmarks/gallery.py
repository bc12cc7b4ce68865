"""The picture in the documentation of what a model finds: `python -m benchmarks.gallery OUT`.

A Mask R-CNN trains on six drawn scenes for a short time, and `detectors.predict` draws what it finds in them:
`OUT/gallery.jpg`. It says nothing about other images. What is finished is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from torch import nn

from bench.inputs import shapes
from benchmarks.fine_tune import config, contact_sheet, trained
from benchmarks.overfit import look_at_fewer_regions
from detectors import predict, runtime
from detectors.config import Loaded

SCENES, RESIZE = 6, {"short": 160, "long": 256}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the scenes, train, draw what is found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gallery", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--iterations", type=int, default=200)
    given = parser.parse_args(arguments)
    out = given.output
    if not (out / "train").is_dir():
        shapes.write(out, "train", SCENES)
    split = {"annotations": str(out / "annotations" / "instances_train.json"), "images": str(out / "train")}
    learned = config(
        out, out, "learned", given.iterations,
        data={"train": split, "workers": 0}, augment={"resize": RESIZE, "flip": 0}, batch=2,
        evaluate={"resize": RESIZE},
    )  # fmt: skip
    build_model = runtime.build_model

    def of_few_regions(loaded: Loaded, classes: int) -> nn.Module:
        model = build_model(loaded, classes)
        look_at_fewer_regions(model, 32, 50)
        return model

    drawn = ["-o", str(out / "pictures"), "--threshold", "0.5"]
    with patch.object(runtime, "build_model", of_few_regions):
        if code := predict.main([str(learned), str(trained(learned)), str(out / "train"), *drawn]):
            raise SystemExit(code)
    contact_sheet(out / "pictures", out / "gallery.jpg", height=240, columns=3)


if __name__ == "__main__":
    main()
