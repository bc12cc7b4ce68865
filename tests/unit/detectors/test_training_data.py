"""The order of training images, and what is done to them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from detectors import config as configs
from detectors import transforms
from detectors.coco import augmented
from detectors.jitter import paste_copies, scale_jitter, tight_box
from detectors.order import Draw, TrainingOrder
from detectors.schedule import make_schedule
from detectors.transforms import Sample
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("name", "iterations", "steps"),
    [
        ("1x", 12, (8, 11)),
        ("2x", 24, (16, 22)),
        ("20e", 20, (16, 19)),
        ("3x", 36, (27, 33)),
        ("120e", 120, (80, 110)),
    ],
)
def test_a_named_schedule_steps_as_its_codebase(name: str, iterations: int, steps: tuple[int, int]) -> None:
    config = configs.ScheduleConfig(name=name, warmup=4, warmup_factor=0.5)
    schedule = make_schedule(config, lr=0.02, iterations_per_epoch=10)
    assert schedule.iterations == 10 * iterations
    assert [schedule.lr_at(n) for n in (0, 2, 4)] == pytest.approx([0.01, 0.015, 0.02])
    for exponent, step in enumerate(steps):
        assert schedule.lr_at(10 * step - 1) == pytest.approx(0.02 * 0.1**exponent)
        assert schedule.lr_at(10 * step) == pytest.approx(0.02 * 0.1 ** (exponent + 1))


def test_every_image_is_drawn_once_in_an_epoch() -> None:
    ids = list(range(100, 123))
    is_wide = [number % 3 != 0 for number in ids]

    def draws(first: int, rank: int, ranks: int, batches: int) -> list[list[Draw]]:
        order = TrainingOrder(ids, is_wide, batch=4, seed=7, first=first, rank=rank, ranks=ranks)
        return list(itertools.islice(iter(order), batches))

    two_epochs = draws(0, 0, 1, 12)
    for epoch in (two_epochs[:6], two_epochs[6:]):
        seen = [draw.image_id for batch in epoch for draw in batch]
        assert set(seen) == set(ids)
        assert len(seen) == 24  # the last batch is filled up with one image
        assert sum(len({is_wide[draw.image_id - 100] for draw in batch}) == 2 for batch in epoch) <= 2
    assert two_epochs[:6] != two_epochs[6:]
    assert [draw.number for batch in two_epochs for draw in batch] == list(range(48))
    assert draws(8, 0, 1, 4) == two_epochs[8:]  # as if it had never stopped
    halves = [draws(5, rank, 2, 7) for rank in (0, 1)]
    assert [left + right for left, right in zip(*halves, strict=True)] == two_epochs[5:]


@pytest.mark.parametrize(
    ("decay", "expected"), [("cosine", [1, 0.853553, 0.5, 0.146447]), ("poly", [1, 0.5625, 0.25, 0.0625])]
)
def test_a_rate_falls_to_zero_at_the_end(decay: str, expected: list[float]) -> None:
    config = configs.ScheduleConfig(iterations=100, warmup=0, decay=decay, power=2)
    schedule = make_schedule(config, lr=2.0, iterations_per_epoch=1)
    assert [schedule.lr_at(iteration) / 2 for iteration in (0, 25, 50, 75)] == pytest.approx(
        expected, rel=1e-4
    )
    assert schedule.lr_at(99) < 0.01


def test_boxes_and_masks_follow_their_image_through_all_changes() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:50, 10:40] = 255
    mask = (image[None, :, :, 0] > 0).astype(np.uint8)
    sample = Sample(image, np.float32([[10, 20, 40, 50]]), np.array([3]), mask, mask[0])
    augment = configs.Augment(expand=2, crop=True, resize=configs.Resize(short=(48, 96), long=200), flip=0.5)
    shapes_seen = set()
    for seed in range(40):
        changed = augmented(sample, augment, (0, 0, 0), np.random.default_rng(seed))
        shapes_seen.add(changed.size)
        assert len(changed.boxes) == len(changed.labels) == len(changed.masks) == 1
        assert changed.masks.shape[1:] == changed.size
        bright = changed.image[:, :, 0] > 127
        assert (bright != changed.masks[0]).mean() < 0.05
        assert set(np.unique(changed.semantic)) <= {0, 1, 255}
        counted = changed.semantic != 255
        assert np.array_equal(changed.semantic[counted], changed.masks[0][counted])
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(changed.boxes[0], tight, atol=2.5)
    assert len(shapes_seen) > 10


def test_distorted_colours_stay_colours() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    results = [transforms.distort(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(one.dtype == np.uint8 and one.shape == image.shape for one in results)
    assert len({one.tobytes() for one in results}) > 10
    grey = np.full((4, 4, 3), 100, np.uint8)
    for seed in range(20):  # neither saturation nor hue can colour what is grey
        changed = transforms.distort(grey, np.random.default_rng(seed))
        assert (changed == changed[..., :1]).all()


def scene(height: int, width: int, *boxes: tuple[int, int, int, int], colour: int = 0) -> Sample:
    """Objects that fill their boxes, in colours of their own."""
    image = np.full((height, width, 3), colour, np.uint8)
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        masks[number, y1:y2, x1:x2] = 1
        image[y1:y2, x1:x2] = colour + 50 * (number + 1)
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes)), masks)


def test_jittered_objects_stay_with_their_pixels() -> None:
    sample = scene(60, 80, (10, 10, 50, 50), (60, 40, 80, 60))
    sizes = set()
    for seed in range(30):
        found = scale_jitter(sample, (0.3, 2.5), (64, 64), np.random.default_rng(seed))
        sizes.add(found.size)
        assert max(found.size) <= 64
        for box, label, mask in zip(found.boxes, found.labels, found.masks, strict=True):
            assert ((box >= 0) & (box <= [found.size[1], found.size[0]] * 2)).all()
            if mask.any():
                np.testing.assert_allclose(tight_box(mask), box, atol=1.5)
                inside = found.image[..., 0][mask == 1]
                assert np.median(inside) == 50 * (label + 1)
    assert len(sizes) > 5


def test_pasted_copies_hide_what_is_below() -> None:
    below = scene(60, 80, (10, 10, 50, 50), (0, 0, 8, 8), (60, 40, 80, 60))
    other = scene(50, 90, (0, 0, 30, 40), (82, 0, 90, 50), colour=100)  # the second is beyond the image below
    seen = set()
    for seed in range(20):
        found = paste_copies(below, other, np.random.default_rng(seed))
        seen.add(len(found.boxes))
        assert found.image.shape == below.image.shape
        assert not (found.masks.sum(axis=0) > 1).any()
        if len(found.boxes) == 3 and (found.image[5, 5] == 150).all():  # the small one is hidden
            assert found.labels.tolist() == [0, 2, 0]
            assert found.boxes.tolist() == [[10, 10, 50, 50], [60, 40, 80, 60], [0, 0, 30, 40]]
            assert found.masks[0].sum() == 1600 - 20 * 30
            assert (found.image[20, 20] == 150).all()
    assert seen == {3}
    assert (below.image[5, 5] == 100).all()  # the image itself is as it was


def test_jitter_needs_the_size_of_its_canvas(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = "model: {name: x}\ndata: {train: {annotations: a, images: b}}\noptimizer: {lr: 1}\nschedule: {name: 1x}\n"
    path.write_text(text + "output: o\naugment: {jitter: [0.1, 2]}\n")
    with pytest.raises(configs.ConfigError, match="yaml:6: jitter needs the size"):
        configs.load(path)
    loaded = configs.load(path, ["augment.resize.size=[512, 512]"])
    assert loaded.config.augment.jitter == (0.1, 2)


def test_the_config_of_the_guide_can_be_read(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "how-to" / "train-detectors.md").read_text()
    text = guide.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "mine.yaml").write_text(text)
    assert configs.load(tmp_path / "mine.yaml").config.checkpoint.best == "bbox"


def test_a_config_of_the_package_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shapes.yaml", "detectors/configs/shapes.yaml"):
        assert configs.load(name).config.model.name == "solov2_light_r50_fpn"
    with pytest.raises(configs.ConfigError, match=r"^shape.yaml: no such config; did you mean shapes.yaml\?"):
        configs.load("shape.yaml")
    (tmp_path / "shapes.yaml").write_text("extends: retinanet.yaml")  # one's own comes first
    with pytest.raises(configs.ConfigError, match=r"shapes.yaml:1: extends retinanet.yaml, which does not"):
        configs.load("shapes.yaml")
