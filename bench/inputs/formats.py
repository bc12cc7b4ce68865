"""Folders of YOLO and of Pascal VOC as COCO files, by the library supervision.

* YOLO: a `*.yaml` with `names` and a folder of images for each split; labels are in the folder `labels` for `images`.
* Pascal VOC: `JPEGImages/`, `Annotations/` and `ImageSets/Main/<split>.txt`; or `<split>/` with images and XML.

Category ids are 1, 2, … in the order of YOLO's names, or of VOC's names by alphabet.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.errors import BenchError, did_you_mean
from bench.recipe import plain_yaml
from bench.record.run import write_atomic

Layout = Literal["yolo", "voc"]
INSTALL = "pip install 'detection-bench[data]', which brings supervision"


def layout_of(root: Path) -> Layout | None:
    """Whose layout a folder has; None for COCO's, or one that is not known."""
    if (root / "annotations").is_dir() and any((root / "annotations").glob("instances_*.json")):
        return None
    if _yolo_files(root):
        return "yolo"
    if any((root / "Annotations").glob("*.xml")) or any(root.glob("*/*.xml")):
        return "voc"
    return None


def splits_of(root: Path, layout: Layout) -> list[str]:
    """Names of the splits that a folder has."""
    if layout == "yolo":
        content = _yolo_content(root)[1]
        splits = [name for name in ("train", "val", "test") if content.get(name)]
        return splits if _yolo_images(root, content, "test") else [name for name in splits if name != "test"]
    lists = sorted(path.stem for path in (root / "ImageSets" / "Main").glob("*.txt") if "_" not in path.stem)
    return lists or sorted({path.parent.name for path in root.glob("*/*.xml")} - {"Annotations"})


def no_split(split: str, known: list[str], place: Path) -> BenchError:
    hint = f"input.split: {did_you_mean(split, known)}"
    return BenchError(f"the data set has no split '{split}'", where=str(place), hint=hint)


def as_coco(root: Path, layout: Layout, split: str, cache: Path) -> tuple[Path, Path]:
    """The COCO file (in the cache) of a split, and the folder of its images. Raises BenchError."""
    library = _library(root)
    names: set[str] | None = None
    try:
        if layout == "yolo":
            images, labels = _yolo_folders(root, split)
            found = library.from_yolo(str(images), str(labels), str(_yolo_files(root)[0]))
            classes = list(found.classes)
        else:
            images, labels, names = _voc_folders(root, split)
            found = library.from_pascal_voc(str(images), str(labels))
            classes = sorted(found.classes)
        content = _content(library, found, classes, names)
    except BenchError:
        raise
    except Exception as error:  # the library raises many kinds; of YOLO its messages name the file
        place = root if layout == "yolo" else _faulty_xml(labels) or root
        raise BenchError(f"not a data set of {layout.upper()}: {error}", where=str(place)) from None
    if layout == "yolo":
        _refuse_pixels(content, labels)
    text = json.dumps(content)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    target = cache / "formats" / f"{layout}-{split}-{key}.json"
    write_atomic(target, text)
    return target, images


def _library(root: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it would rather have OpenCV, and needs it for nothing here
            from supervision import DetectionDataset
    except ImportError:
        raise BenchError(
            "folders of YOLO and Pascal VOC need a library", where=str(root), hint=INSTALL
        ) from None
    return DetectionDataset


def _content(library: Any, found: Any, classes: list[str], names: set[str] | None) -> dict[str, Any]:
    """COCO tables of a data set, of the images with these names, in an order of their own."""
    for objects in found.annotations.values():
        if objects.class_id is not None and len(objects):
            objects.class_id = np.array([classes.index(found.classes[one]) for one in objects.class_id])
            objects.data["iscrowd"] = np.zeros(len(objects), int)  # else a mask with a hole becomes a crowd
    paths = sorted(path for path in found.image_paths if names is None or Path(path).stem in names)
    ordered = library(classes, paths, {path: found.annotations[path] for path in paths})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "annotations.json"
        ordered.as_coco(annotations_path=str(file))
        content: dict[str, Any] = json.loads(file.read_text())
    wanted = ("id", "file_name", "height", "width")
    content["images"] = [{key: image[key] for key in wanted} for image in content["images"]]
    return {key: content[key] for key in ("images", "annotations", "categories")}


def _refuse_pixels(content: dict[str, Any], labels: Path) -> None:
    """A box of YOLO is in shares of its image, so its centre is in the image. Raises BenchError."""
    images = {image["id"]: image for image in content["images"]}
    for row in content["annotations"]:
        (x, y, w, h), image = row["bbox"], images[row["image_id"]]
        if not (0 <= x + w / 2 <= image["width"] and 0 <= y + h / 2 <= image["height"]):
            raise BenchError(
                "a box lies outside of its image",
                where=str(labels / Path(image["file_name"]).with_suffix(".txt")),
                hint="x, y, width and height of YOLO are shares of the image, from 0 to 1",
            )


# -- YOLO ------------------------------------------------------------------------------------------------


def _yolo_files(root: Path) -> list[Path]:
    """Files that name a folder of images."""
    paths = (path for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]) if path.is_file())
    texts = {path: path.read_text(errors="replace") for path in paths}
    return [path for path, text in texts.items() if re.search(r"^(train|val):", text, re.MULTILINE)]


def _yolo_content(root: Path) -> tuple[Path, dict[str, Any]]:
    file = _yolo_files(root)[0]
    content, _ = plain_yaml.parse(plain_yaml.text_of(file), str(file))
    if not isinstance(content, dict) or not isinstance(content.get("names"), list | dict):
        hint = "names: [first, second] or names: {0: first, 1: second}"
        raise BenchError("not a data file of YOLO: it has no names of classes", where=str(file), hint=hint)
    return file, content


def _yolo_images(root: Path, content: dict[str, Any], split: str) -> Path | None:
    """The folder of the images of a split; many exports name one for `test` and have none."""
    bases, given = (root / str(content.get("path", "")), root), str(content.get(split) or "")
    tried = [base / name for base in bases for name in (given, given.removeprefix("../")) if given]
    return next((path for path in tried if path.is_dir()), None)


def _yolo_folders(root: Path, split: str) -> tuple[Path, Path]:
    """Of the images and of the labels of a split. Raises BenchError."""
    file, content = _yolo_content(root)
    given = content.get(split)
    if not isinstance(given, str):
        raise no_split(split, splits_of(root, "yolo"), file)
    images = _yolo_images(root, content, split)
    if images is None:
        hint = "a list of images is not read: name their folder" if given.endswith(".txt") else None
        raise BenchError(f"{split}: no such folder: {given}", where=str(file), hint=hint)
    parts = list(images.parts)
    if "images" in parts:
        parts[-1 - parts[::-1].index("images")] = "labels"
    labels = Path(*parts)
    if not labels.is_dir():
        raise BenchError("no folder of labels beside the images", where=str(labels))
    return images, labels


# -- Pascal VOC ------------------------------------------------------------------------------------------


def _faulty_xml(labels: Path) -> Path | None:
    """The first file that is no XML, or has an object without a box."""
    from defusedxml.ElementTree import parse  # type: ignore[import-untyped]  # which the library brings

    for path in sorted(labels.glob("*.xml")):
        try:
            if any(one.find("bndbox") is None for one in parse(path).iter("object")):
                return path
        except Exception:
            return path
    return None


def _voc_folders(root: Path, split: str) -> tuple[Path, Path, set[str] | None]:
    """Of images and of XML, and the names of the split's images (None: all in the folder). Raises BenchError."""
    images, labels = root / "JPEGImages", root / "Annotations"
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    if images.is_dir() and labels.is_dir() and listed.is_file():
        lines = listed.read_text(errors="replace").splitlines()
        names = {line.split()[0] for line in lines if line.strip()}
        if absent := sorted(names - {path.stem for path in images.iterdir()}):
            raise BenchError(f"lists {absent[0]}, and there is no such image", where=str(listed))
        return images, labels, names
    if (root / split).is_dir() and any((root / split).glob("*.xml")):
        return root / split, root / split, None
    raise no_split(split, splits_of(root, "voc"), root)
