"""The gallery of the documentation is what `detectors.predict` draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks import gallery
from tests.conftest import ROOT


@pytest.mark.nightly
def test_the_gallery_of_the_docs_can_be_made_again(tmp_path: Path) -> None:
    """Not the same pixels, since training rounds otherwise elsewhere, but the same scenes, and large objects found."""
    gallery.main([str(tmp_path)])
    with Image.open(tmp_path / "gallery.jpg") as made, Image.open(ROOT / "docs/assets/gallery.jpg") as shown:
        assert made.size == shown.size
    truth = COCO(tmp_path / "annotations" / "instances_train.json")
    found = json.loads((tmp_path / "pictures" / "detections.json").read_text())
    names = {image["file_name"]: number for number, image in truth.imgs.items()}
    of_truth = {image["id"]: names[image["file_name"]] for image in found["images"]}
    results = [{**one, "image_id": of_truth[one["image_id"]]} for one in found["annotations"]]
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[5] > 0.3  # AP of large objects; 0.55 when the picture was made
