"""Data preparation: every codebase gets the same, right pixels, boxes and masks, or a clear error."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.errors import BenchError, StorageError
from bench.inputs import batches, dataset
from bench.recipe.workload import IMAGENET_MEAN, IMAGENET_STD, Input, ShortLong, Workload
from bench.worker.api import Batch
from bench.worker.batches import CorruptBatch, load_batches, read_manifest
from tests.conftest import SHARED
from tests.helpers.resizing import bilinear

COCO_TINY = SHARED / "data" / "coco_tiny"
needs_coco = pytest.mark.skipif(not COCO_TINY.exists(), reason=f"{COCO_TINY} is not there")

SQUARE = [[10, 10, 60, 10, 60, 50, 10, 50]]


def make_coco(root: Path, annotations: list[dict[str, Any]] | None = None, images: int = 5) -> Path:
    """A data set of `images` pictures (100 + 10 i wide, 80 high), one square object of category 7 in each."""
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    rng = np.random.default_rng(0)
    entries = []
    for number in range(images):
        pixels = rng.integers(0, 256, (80, 100 + 10 * number, 3), dtype=np.uint8)
        name = f"{number}.png"
        Image.fromarray(pixels).save(root / "train2017" / name)
        entries.append({"id": 30 - number, "file_name": name, "height": 80, "width": 100 + 10 * number})
    if annotations is None:
        annotations = [{"image_id": entry["id"]} for entry in entries]
    defaults = {
        "category_id": 7,
        "bbox": [10, 10, 50, 40],
        "segmentation": SQUARE,
        "iscrowd": 0,
        "area": 2000,
    }
    rows = [{"id": 1 + i, **defaults, **annotation} for i, annotation in enumerate(annotations)]
    categories = [{"id": 9, "name": "cat"}, {"id": 7, "name": "dog"}]
    content = {"images": entries, "annotations": rows, "categories": categories}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


def prepare(
    root: Path | str,
    cache: Path,
    *,
    images: int = 5,
    size: Any = (64, 64),
    model: str = "mask_rcnn_r50_fpn",
    **other: Any,
) -> tuple[dataset.Dataset, Path]:
    """Open and prepare; returns the data set and the folder of batches."""
    input = Input(dataset=str(root), images=images, size=size)
    opened = dataset.open_dataset(input, "train", cache)
    return opened, batches.prepare_batches(opened, Workload(model=model, input=input, **other), cache)


# -- opening ---------------------------------------------------------------------------------------------


def test_images_are_the_first_ones_by_id_that_have_objects(tmp_path: Path) -> None:
    root = make_coco(
        tmp_path / "d",
        [
            {"image_id": 27},
            {"image_id": 28, "iscrowd": 1},  # only a crowd
            {"image_id": 26, "bbox": [10, 10, 0.4, 40]},  # only a sliver
            {"image_id": 30},
            {"image_id": 29},
        ],
    )
    opened = dataset.open_dataset(Input(dataset=str(root), images=2), "train", tmp_path)
    assert opened.image_ids == (27, 29)
    assert (opened.name, opened.split, opened.images) == ("d", "train2017", root / "train2017")
    assert opened.category_ids == (7, 9)
    assert opened.classes == ("dog", "cat")
    subset = json.loads(opened.annotations.read_text())
    assert [image["id"] for image in subset["images"]] == [27, 29]
    assert {annotation["image_id"] for annotation in subset["annotations"]} == {27, 29}


def test_the_default_split_of_inference_is_the_validation_split(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "d")
    shutil.move(root / "train2017", root / "val2017")
    shutil.move(root / "annotations/instances_train2017.json", root / "annotations/instances_val2017.json")
    assert dataset.open_dataset(Input(dataset=str(root), images=1), "infer", tmp_path).split == "val2017"


def test_checksum_changes_with_annotation_and_with_pixel(
    tmp_path: Path,
) -> None:
    def checksum() -> str:
        return dataset.open_dataset(Input(dataset=str(root), images=2), "train", tmp_path / "cache").checksum

    root = make_coco(tmp_path / "d")  # of images 26..30, 26 and 27 are used, files 4.png and 3.png
    first = checksum()
    Image.new("RGB", (100, 80)).save(root / "train2017" / "0.png")
    assert checksum() == first
    pixels = np.array(Image.open(root / "train2017" / "4.png"))
    Image.fromarray(pixels).save(root / "train2017" / "4.png", compress_level=0)
    assert checksum() == first, "the same pixels packed by another zlib"
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(root / "train2017" / "4.png")
    second = checksum()
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace('"bbox": [10,', '"bbox": [11,'))
    assert len({first, second, checksum()}) == 3


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / "annotations" / "instances_train2017.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: shutil.rmtree(root), ["data set folder not found"]),
        (lambda root: shutil.rmtree(root / "train2017"), ["no folder with the images", "train2017"]),
        (
            lambda root: (root / "annotations/instances_train2017.json").rename(
                root / "annotations/instances_train17.json"
            ),
            ["no split 'train2017'", "did you mean train17"],
        ),
        (
            lambda root: (root / "annotations/instances_train2017.json").write_text('{"images": ['),
            ["instances_train2017.json", "not valid JSON"],
        ),
        (lambda root: (root / "train2017" / "4.png").unlink(), ["4.png", "cannot be read"]),
        (
            lambda root: (root / "train2017" / "4.png").write_bytes(b"\x89PNG broken"),
            ["4.png", "cannot be decoded"],
        ),
        (_edit(lambda c: c.pop("categories")), ["instances_train2017.json", "'categories'"]),
        (_edit(lambda c: c["annotations"][2].pop("bbox")), ["annotations entry 3 has no bbox"]),
        (_edit(lambda c: c["annotations"][2].update(bbox=[1, 2, 3])), ["annotation 3 has no box"]),
        (
            _edit(lambda c: c["annotations"][2].update(bbox=[1, 2, 3, float("nan")])),
            ["annotation 3 has no box"],
        ),
        (_edit(lambda c: c["annotations"][2].update(image_id=99)), ["annotation 3", "unknown image 99"]),
        (_edit(lambda c: c["annotations"][2].update(category_id=1)), ["annotation 3", "unknown category 1"]),
        (_edit(lambda c: c["annotations"][2].update(id=1)), ["annotations id 1 occurs twice"]),
        (_edit(lambda c: c["images"].pop()), ["unknown image"]),
        (_edit(lambda c: c["images"][4].update(width=0)), ["image 26 has no size: 0x80"]),
        (_edit(lambda c: c["images"][4].update(width=90)), ["4.png", "140x80", "90x80"]),
        (
            _edit(lambda c: c["annotations"][4].update(segmentation=[[1, 2]])),
            ["annotation 5", "no valid mask"],
        ),
        (
            _edit(lambda c: c["annotations"][4].update(segmentation={"size": [8, 8], "counts": [64]})),
            ["annotation 5", "size [8, 8]"],
        ),
        (_edit(lambda c: c["annotations"][4].update(segmentation=[])), ["mask_rcnn_r50_fpn needs masks"]),
    ],
)
def test_damaged_data_is_one_clear_error_that_names_the_place(
    tmp_path: Path, damage: Callable[[Path], Any], words: list[str]
) -> None:
    root = make_coco(tmp_path / "d")
    damage(root)
    with pytest.raises(BenchError) as error:
        prepare(root, tmp_path / "cache")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not list((tmp_path / "cache").glob("batches-*")), "a folder of batches is complete or not there"


def test_asking_for_too_many_images_says_how_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="6 images were asked for, 5 of 5 have objects"):
        dataset.open_dataset(Input(dataset=str(make_coco(tmp_path / "d")), images=6), "train", tmp_path)


def test_shapes_needs_no_data_and_names_its_splits(tmp_path: Path) -> None:
    train = dataset.open_dataset(Input(images=3), "train", tmp_path)
    val = dataset.open_dataset(Input(images=3), "infer", tmp_path)
    assert train.image_ids == val.image_ids == (1, 2, 3)
    assert len(train.classes) >= 6
    assert train.masks
    assert train.checksum != val.checksum
    assert dataset.open_dataset(Input(images=3), "train", tmp_path) == train
    with pytest.raises(BenchError, match="did you mean train"):
        dataset.open_dataset(Input(images=3, split="trian"), "train", tmp_path)


# -- batches ---------------------------------------------------------------------------------------------


def check_against_files(dataset: dataset.Dataset, batches: list[Batch]) -> int:
    """Compare every array with a computation from the source files; returns the number of objects."""
    coco = json.loads(dataset.annotations.read_text())
    images = {image["id"]: image for image in coco["images"]}
    objects = 0
    for batch in batches:
        assert batch.images.dtype == np.float32
        for i, image_id in enumerate(batch.image_ids):
            image = images[image_id]
            pixels = np.asarray(Image.open(dataset.images / image["file_name"]).convert("RGB"))
            height, width = batch.image_sizes[i]
            assert tuple(batch.original_sizes[i]) == pixels.shape[:2]
            restored = batch.images[i].transpose(1, 2, 0) * np.float32(IMAGENET_STD) + np.float32(
                IMAGENET_MEAN
            )
            assert np.abs(restored[:height, :width] - bilinear(pixels, height, width)).max() < 1.01
            assert not batch.images[i][:, height:].any()
            assert not batch.images[i][:, :, width:].any()
            kept = [a for a in coco["annotations"] if a["image_id"] == image_id and not a.get("iscrowd")]
            assert len(kept) == len(batch.boxes[i]) == len(batch.labels[i]) == len(batch.masks[i])
            for annotation, box, label, mask in zip(
                kept, batch.boxes[i], batch.labels[i], batch.masks[i], strict=True
            ):
                objects += 1
                assert dataset.category_ids[label] == annotation["category_id"]
                x, y, w, h = annotation["bbox"]
                sx, sy = width / image["width"], height / image["height"]
                expected = [x * sx, y * sy, min(x + w, image["width"]) * sx, min(y + h, image["height"]) * sy]
                assert box == pytest.approx(expected, abs=1e-3)
                assert mask.shape == batch.images.shape[2:]
                assert set(np.unique(mask)) == {0, 1}
                # COCO's boxes are those of the outline: the mask's own box agrees to within a source pixel.
                rows, columns = np.nonzero(mask)
                tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert tight == pytest.approx(box, abs=1 + 1.5 * max(sx, sy, 1))
    return objects


@pytest.mark.parametrize("size", [(200, 256), ShortLong(short=200, long=256)])
def test_pixels_boxes_and_masks_of_shapes_are_those_of_files(tmp_path: Path, size: Any) -> None:
    dataset, folder = prepare("shapes", tmp_path, images=5, size=size)
    batches = load_batches(str(folder), 0, 1)
    assert [batch.size for batch in batches] == [2, 2, 2]
    for batch in batches:
        if isinstance(size, ShortLong):
            assert all(side % 32 == 0 for side in batch.images.shape[2:])
            assert all(
                side - largest < 32
                for side, largest in zip(batch.images.shape[2:], batch.image_sizes.max(axis=0), strict=True)
            )
        else:
            assert batch.images.shape[2:] == size
    counts = read_manifest(str(folder))["counts"]
    assert counts["images"] == 5
    assert check_against_files(dataset, batches) >= counts["objects"] > 0  # one image fills up the last batch


@needs_coco
def test_pixels_boxes_and_masks_of_real_images_are_kept(tmp_path: Path) -> None:
    dataset, folder = prepare(COCO_TINY, tmp_path, images=12, size=(320, 320))
    batches = load_batches(str(folder), 0, 1)
    assert read_manifest(str(folder))["counts"]["images"] == 12
    assert len(dataset.classes) == 80
    assert check_against_files(dataset, batches) == read_manifest(str(folder))["counts"]["objects"] > 50


def test_crowds_slivers_and_vanished_masks_are_left_out_and_counted(tmp_path: Path) -> None:
    thin = {
        "size": [80, 140],
        "counts": [80 * 61, 80, 80 * 78],
    }  # one column, between two samples at 1/4 size
    root = make_coco(
        tmp_path / "d",
        [
            {"image_id": 26},
            {"image_id": 26, "iscrowd": 1, "segmentation": {"size": [80, 140], "counts": [80 * 140]}},
            {"image_id": 26, "bbox": [139.5, 10, 30, 30]},  # half a pixel is left inside
            {"image_id": 26, "bbox": [-20, -20, 15, 15]},  # outside
            {"image_id": 26, "bbox": [61, 0, 1, 80], "segmentation": thin},
            {"image_id": 26, "bbox": [-10, 20, 40, 500], "category_id": 9},  # partly outside: clipped
        ],
    )
    _, folder = prepare(root, tmp_path, images=1, size=(32, 35), batch_size=1)
    (batch,) = load_batches(str(folder), 0, 1)
    assert batch.image_sizes.tolist() == [[20, 35]]
    assert batch.boxes[0].tolist() == [[2.5, 2.5, 15, 12.5], [0, 5, 7.5, 20]]
    assert batch.labels[0].tolist() == [0, 1]
    assert read_manifest(str(folder))["counts"] == {
        "images": 1,
        "objects": 2,
        "crowds_left_out": 1,
        "degenerate_boxes_dropped": 2,
        "vanished_masks_dropped": 1,
    }


def test_boxes_stand_in_for_masks_that_are_not_used(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "d", [{"image_id": 26, "segmentation": None}])
    with pytest.raises(BenchError, match="needs masks"):
        prepare(root, tmp_path, images=1)
    _, folder = prepare(root, tmp_path, images=1, model="fcos_r50_fpn")
    assert read_manifest(str(folder))["masks"] == "filled boxes"


def test_ranks_share_images_evenly_and_last_batch_is_filled_up(tmp_path: Path) -> None:
    _, folder = prepare(make_coco(tmp_path / "d"), tmp_path, batch_size=2, ranks=2)
    of_rank = [[batch.image_ids.tolist() for batch in load_batches(str(folder), rank, 2)] for rank in (0, 1)]
    assert of_rank == [[[26, 27], [30, 26]], [[28, 29], [27, 28]]]
    assert read_manifest(str(folder))["counts"]["objects"] == 5, "an image that fills up is counted once"


def test_batches_are_prepared_once_and_again_only_when_parameter_changes(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "d")
    _, first = prepare(root, tmp_path)
    written = (first / "manifest.json").stat().st_mtime_ns
    assert prepare(root, tmp_path)[1] == first
    assert prepare(root, tmp_path, model="fcos_r50_fpn", ema=True, seed=5)[1] == first, (
        "the model is no part of it"
    )
    assert (first / "manifest.json").stat().st_mtime_ns == written
    others = [
        prepare(root, tmp_path, **change)[1]
        for change in ({"size": (64, 96)}, {"batch_size": 1}, {"images": 4})
    ]
    assert len({first, *others}) == 4


def test_flipped_byte_is_noticed_and_mended_by_next_run(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "d")
    _, folder = prepare(root, tmp_path)
    clean = load_batches(str(folder), 0, 1)
    path = folder / "batch-00001.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptBatch, match=r"batch-00001.npz: checksum"):
        load_batches(str(folder), 0, 1)
    path.unlink()
    with pytest.raises(CorruptBatch, match=r"batch-00001.npz: No such file"):
        load_batches(str(folder), 0, 1)
    assert prepare(root, tmp_path)[1] == folder
    again = load_batches(str(folder), 0, 1)
    assert all(np.array_equal(a.images, b.images) for a, b in zip(clean, again, strict=True))
    with pytest.raises(CorruptBatch, match=r"manifest.json"):
        load_batches(str(tmp_path), 0, 1)
    with pytest.raises(CorruptBatch, match=r"no batch for rank 7 of 8"):
        load_batches(str(folder), 7, 8)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    root = make_coco(tmp_path / "d")
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(StorageError, match=r"cannot write .*batches-.*: No space left on device"):
        prepare(root, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["subsets"]


def _prepare_in_a_process(root: Path, cache: Path, barrier: Any, folders: Any) -> None:
    barrier.wait()
    folders.put(prepare(root, cache)[1])


def test_two_sessions_that_prepare_the_same_data_agree(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "d")
    context = multiprocessing.get_context("fork")
    barrier, folders = context.Barrier(2), context.SimpleQueue()
    arguments = (root, tmp_path / "cache", barrier, folders)
    processes = [context.Process(target=_prepare_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert folders.get() == folders.get()
    assert len(list((tmp_path / "cache").iterdir())) == 2, (
        "subsets and one folder of batches, nothing temporary"
    )
    (folder,) = (tmp_path / "cache").glob("batches-*")
    assert len(load_batches(str(folder), 0, 1)) == 3
