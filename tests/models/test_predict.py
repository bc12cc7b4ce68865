"""From a checkpoint to a picture: `python -m detectors.predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO

from detectors import Detections, build, calibrate, config, training_state
from detectors.eval import detect
from detectors.eval import main as evaluate
from detectors.pictures import as_pixels, colour_of, draw
from detectors.predict import files_of, main
from tests.helpers.models import few_layers

SETTINGS = {"frozen_stages": 0, "frozen_bn": False}


def content(name: str, folder: Path) -> dict[str, Any]:
    return {
        "model": {"name": name, "settings": SETTINGS},
        "data": {"train": {"annotations": "a", "images": "b"}},
        "optimizer": {"lr": 0.1},
        "schedule": {"name": "1x"},
        "evaluate": {"resize": {"short": 64, "long": 96}},
        "output": str(folder / "run"),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config, and a checkpoint of a model with random weights that finds many things."""
    folder = tmp_path_factory.mktemp("trained")
    with few_layers():
        model = build("mask_rcnn_r50_fpn", num_classes=2, **SETTINGS)
        calibrate(model, torch.randn(1, 3, 64, 96), torch.tensor([[64, 96]]))
        told = content("mask_rcnn_r50_fpn", folder)
        settings = config.from_dict(told).as_dict()
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        state = training_state.state_of(1, model, torch.optim.SGD(model.parameters()), None, scaler, settings)
        state |= {"category_ids": [3, 5], "category_names": ["cat", "red box"]}
        path = training_state.save(state, folder, 1)
    (folder / "config.yaml").write_text(yaml.safe_dump(told))
    return folder / "config.yaml", path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, shape in (("a.jpg", (50, 70, 3)), ("grey.png", (40, 60)), ("more/a.png", (60, 40, 4))):
        Image.fromarray(random.integers(0, 255, shape, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def run(trained: tuple[Path, Path], *arguments: str | Path) -> int:
    with few_layers():
        return main([*map(str, (*trained, *arguments))])


def test_a_folder_becomes_pictures_and_one_file_for_coco(
    trained: tuple[Path, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(trained, photos, "-o", output, "--threshold", "0.2") == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "a.png",
        "a_2.png",
        "detections.json",
        "grey.png",
    ]
    with Image.open(output / "a.png") as drawn, Image.open(photos / "a.jpg") as original:
        assert drawn.size == original.size
        assert (np.asarray(drawn) != np.asarray(original)).any()
    found = COCO(str(output / "detections.json"))
    assert [image["file_name"] for image in found.dataset["images"]] == ["a.jpg", "grey.png", "a.png"]
    assert found.cats == {3: {"id": 3, "name": "cat"}, 5: {"id": 5, "name": "red box"}}
    annotations = found.dataset["annotations"]
    assert len(annotations) > 3
    assert {one["image_id"] for one in annotations} == {1, 2, 3}
    assert all(one["score"] >= 0.2 for one in annotations)
    assert found.annToMask(annotations[0]).shape == (50, 70)
    assert f"{len(annotations)} objects in 3 images" in capsys.readouterr().out


def test_patterns_and_files_are_taken_once_each(photos: Path) -> None:
    found = files_of([f"{photos}/*.jpg", str(photos / "a.jpg"), f"{photos}/**/*.png"])
    assert found == [photos / "a.jpg", photos / "grey.png", photos / "more" / "a.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no image or video"),
        (["{photos}/notes.txt"], "notes.txt: neither a video nor an image"),
        (["{photos}/broken.jpg"], "broken.jpg: cannot be read"),
        (["{photos}", "--threshold", "2"], "threshold must be between 0 and 1, got 2"),
        (["{photos}", "--set", "model.name=mask_rcnn"], "did you mean"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    trained: tuple[Path, Path],
    photos: Path,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (photos / "broken.jpg").write_bytes(b"no jpeg")
    filled = [one.format(photos=photos) for one in arguments]
    assert run(trained, *filled, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_a_file_is_no_folder_for_pictures(
    trained: tuple[Path, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    assert run(trained, photos, "-o", tmp_path / "out") == 2
    assert "out: cannot be made: File exists" in capsys.readouterr().err


def test_a_broken_image_does_not_stop_the_others(
    trained: tuple[Path, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = next(photos.glob("*.jpg"))
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(whole.read_bytes()[:1000])
    assert run(trained, tmp_path / "a.jpg", tmp_path / "b.jpg", whole, "-o", tmp_path / "out") == 2
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [one["file_name"] for one in found["images"]] == [whole.name]
    error = capsys.readouterr().err
    assert "a.jpg: cannot be read: image file is truncated" in error
    assert "; nor can 1 more; the rest is in " in error


def test_a_checkpoint_of_torchvision_draws_cocos_classes(photos: Path, tmp_path: Path) -> None:
    from detectors.names import torchvision as names

    with few_layers():
        model = build("faster_rcnn_r50_fpn", num_classes=90)
        calibrate(model, torch.randn(1, 3, 64, 96), torch.tensor([[64, 96]]))
        state = names.convert(
            "faster_rcnn_r50_fpn", {key: one.numpy() for key, one in model.state_dict().items()}
        )
        torch.save(
            {key: torch.from_numpy(value.copy()) for key, value in state.items()}, tmp_path / "coco.pth"
        )
        told = content("faster_rcnn_r50_fpn", tmp_path)
        told["model"]["settings"] = {}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
    output = tmp_path / "out"
    trained = tmp_path / "config.yaml", tmp_path / "coco.pth"
    assert run(trained, photos / "a.jpg", "-o", output, "--threshold", "0.01") == 0
    found = json.loads((output / "detections.json").read_text())
    assert {one["id"]: one["name"] for one in found["categories"]}[90] == "toothbrush"
    assert found["annotations"]
    truth = f"data.val={{annotations: {output}/detections.json, images: {photos}}}"
    with few_layers():
        assert evaluate([*map(str, trained), "--set", truth, "--set", "data.workers=0"]) == 0
    assert max(json.loads((tmp_path / "run" / "eval" / "classes.json").read_text())["bbox"].values()) > 0.5


def test_a_video_is_drawn_frame_by_frame(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        import av
    except ImportError:
        (tmp_path / "a.mp4").write_bytes(b"")
        assert run(trained, tmp_path / "a.mp4", "-o", tmp_path / "out") == 2
        assert "pip install av" in capsys.readouterr().err
        return
    with av.open(str(tmp_path / "a.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=5)
        stream.width, stream.height = 64, 48
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:100])
    assert run(trained, tmp_path / "a.mp4", tmp_path / "b.mp4", "-o", tmp_path / "out") == 2
    assert "b.mp4: cannot be read" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 3
    with av.open(str(tmp_path / "out" / "a.mp4")) as video:
        assert [(frame.height, frame.width) for frame in video.decode(video=0)] == [(48, 64)] * 3


def test_images_of_any_kind_are_the_same_pixels(trained: tuple[Path, Path]) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (30, 40), np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    for one in (
        grey,
        grey[..., None],
        rgb,
        np.dstack([rgb, grey]),
        rgb / 255,
        (rgb / 255).astype(np.float32),
        Image.fromarray(grey),
        Image.fromarray(rgb),
        Image.fromarray(rgb).convert("RGBA"),
    ):
        assert np.array_equal(as_pixels(one), rgb)
    palette = as_pixels(Image.fromarray(rgb).convert("P"))
    assert palette.shape == rgb.shape
    with few_layers():
        model = build("faster_rcnn_r50_fpn", num_classes=2).eval()
        assert len(detect(model, [grey, Image.fromarray(rgb)], config.from_dict(content("x", Path())))) == 2


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((3, 40, 50), np.uint8), "expected an image [h, w]"),
        (np.zeros((0, 5, 3), np.uint8), "expected an image [h, w]"),
        (np.zeros((5, 5, 3), np.int64), "got int64"),
        (np.full((5, 5, 3), 200.0), "floats from 0 to 1, got 200 to 200"),
        (np.full((5, 5), np.nan), "floats from 0 to 1"),
        (Image.new("F", (4, 4)), "floating-point pixels"),
    ],
)
def test_what_is_no_image_is_named(image: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        as_pixels(image)
    assert said in str(caught.value)


def test_nothing_found_leaves_the_image_as_it_is() -> None:
    pixels = np.full((8, 9, 3), 7, np.uint8)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert np.array_equal(draw(pixels, nothing, []), pixels)


def test_of_two_masks_the_better_one_is_on_top() -> None:
    masks = torch.zeros(2, 80, 80, dtype=torch.bool)
    masks[0, 10:60, 10:60] = masks[1, 30:75, 30:75] = True
    boxes = torch.tensor([[10.0, 10, 60, 60], [30, 30, 75, 75]])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), masks)
    drawn = draw(np.full((80, 80, 3), 100, np.uint8), found, ["a", "b"])
    for place, label in ((55, 0), (70, 1)):  # both have the first
        assert drawn[place, place].tolist() == [(100 + part) // 2 for part in colour_of(label)]
