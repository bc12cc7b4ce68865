"""Draw what a model finds: ``python -m detectors.predict CONFIG CHECKPOINT IMAGES… -o OUT``.

Images are files, folders, patterns such as `'photos/*.jpg'`, and videos where PyAV is installed. For each there is a
picture in OUT, and for all of them `detections.json` in COCO's form, with scores.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import nn

from detectors import config as configs
from detectors import cpu, image_files, runtime
from detectors.config import Config, ConfigError, Loaded
from detectors.eval import detect, entries_of
from detectors.pictures import draw
from detectors.structures import Detections

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm"}


class Predictor(NamedTuple):
    """A model and what its labels mean: ids and names of categories."""

    model: nn.Module
    category_ids: list[int]
    names: list[str]
    config: Config
    threshold: float

    def __call__(self, pixels: np.ndarray) -> Detections:
        """Detections in an image uint8 [h, w, 3] with a score of at least the threshold, best first."""
        (found,) = detect(self.model, [pixels], self.config)
        kept = found.scores >= self.threshold
        return Detections(*(None if value is None else value[kept] for value in found))


def load(loaded: Loaded, checkpoint: str, *, threshold: float = 0.3, averaged: bool = True) -> Predictor:
    """The model of ``runtime.trained``, which shows detections from a score on; arguments and errors as there."""
    return Predictor(*runtime.trained(loaded, checkpoint, averaged=averaged), loaded.config, threshold)


def files_of(patterns: Sequence[str]) -> list[Path]:
    """The images and videos that files, folders and patterns name, each once, in order.

    Raises:
        ConfigError: for one that names nothing, a file of another kind, or a video without PyAV.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            here = sorted(one for one in path.rglob("*") if one.suffix.lower() in IMAGES | VIDEOS)
        else:
            here = (
                [path]
                if path.is_file()
                else [Path(one) for one in sorted(glob.glob(pattern, recursive=True))]
            )
        if not here:
            raise ConfigError("no image or video", pattern)
        for one in here:
            if one.suffix.lower() not in IMAGES | VIDEOS:
                kinds = ", ".join(sorted(IMAGES))
                raise ConfigError(f"neither a video nor an image, whose name ends with {kinds}", str(one))
        found |= dict.fromkeys(here)
    if any(one.suffix.lower() in VIDEOS for one in found) and find_spec("av") is None:
        raise ConfigError("videos are read by PyAV; pip install av")
    return list(found)


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """The pixels of an image, or of every frame of a video.

    Raises:
        ConfigError: for a file that cannot be read.
    """
    try:
        if path.suffix.lower() in IMAGES:
            yield image_files.read(path)
            return
        import av

        with av.open(str(path)) as video:
            for frame in video.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except (OSError, ValueError, IndexError) as error:  # IndexError: a file without pictures
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"cannot be read: {told}", str(path)) from None


def predict(predictor: Predictor, files: Sequence[Path], output: Path) -> dict[str, Any]:
    """Detect in all files, write a picture of each and `detections.json` to a folder; returns its content.

    Raises:
        ConfigError: in the end, for files that cannot be read.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    broken: list[ConfigError] = []

    def drawn(path: Path) -> Iterator[np.ndarray]:
        for number, pixels in enumerate(frames_of(path)):
            found = predictor(pixels)
            height, width = pixels.shape[:2]
            name = path.name if path.suffix.lower() in IMAGES else f"{path.name}#{number}"
            images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
            annotations.extend(annotations_of(found, len(images), predictor.category_ids, len(annotations)))
            yield draw(pixels, found, predictor.names)

    for path, place in track(_places(files, output), console=Console(stderr=True), transient=True):
        try:
            if path.suffix.lower() in VIDEOS:
                _write_video(place, drawn(path), path)
            else:
                Image.fromarray(next(drawn(path))).save(place)
        except ConfigError as error:
            broken.append(error)
    categories = [
        {"id": number, "name": name}
        for number, name in zip(predictor.category_ids, predictor.names, strict=True)
    ]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (output / "detections.json").write_text(json.dumps(content))
    if broken:
        more = f"; nor can {len(broken) - 1} more" if len(broken) > 1 else ""
        rest = f"; the rest is in {output}" if images else ""
        raise ConfigError(f"{broken[0]}{more}{rest}")
    return content


def _places(files: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Where each file's picture goes; of two with one name the second gets a number."""
    taken: set[str] = set()
    places = []
    for path in files:
        ending = ".mp4" if path.suffix.lower() in VIDEOS else ".png"
        name, number = path.stem, 1
        while name + ending in taken:
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name + ending)
        places.append((path, output / (name + ending)))
    return places


def annotations_of(
    found: Detections, image_id: int, category_ids: Sequence[int], before: int
) -> list[dict[str, Any]]:
    """Detections of an image as annotations of COCO, with scores; ``before``: how many there are already."""
    boxes = entries_of(found, image_id, category_ids, masks=False)
    outlines: Sequence[dict[str, Any]] = [{}] * len(boxes)
    if found.masks is not None:
        outlines = entries_of(found, image_id, category_ids, masks=True)
    return [
        {
            "id": before + place,
            **box,
            "area": box["bbox"][2] * box["bbox"][3],
            "iscrowd": 0,
            **{key: value for key, value in outline.items() if key == "segmentation"},
        }
        for place, (box, outline) in enumerate(zip(boxes, outlines, strict=True), start=1)
    ]


def _write_video(place: Path, frames: Iterator[np.ndarray], source: Path) -> None:
    """A video of the frames, one by one, with the rate of the source. Raises ConfigError without a frame."""
    first = next(frames, None)
    if first is None:
        raise ConfigError("has no frame", str(source))
    import av

    with av.open(str(source)) as video:
        rate = video.streams.video[0].average_rate or 25
    with av.open(str(place), "w") as video:
        stream = video.add_stream("mpeg4", rate=rate)
        # The codec takes even sides.
        stream.height, stream.width = (side - side % 2 for side in first.shape[:2])
        for frame in itertools.chain([first], frames):
            cut = np.ascontiguousarray(frame[: stream.height, : stream.width])
            video.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
        video.mux(stream.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m detectors.predict", description="Draw what a model finds in images."
    )
    parser.add_argument("config", help="YAML, see detectors/configs")
    parser.add_argument("checkpoint", help="of detectors.train, or another codebase's with COCO's classes")
    parser.add_argument("images", nargs="+", help="files, folders, patterns; videos with PyAV")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of pictures and detections.json"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="lowest score that is shown, 0 to 1 [0.3]"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the config")
    parser.add_argument(
        "--not-averaged", action="store_true", help="the weights themselves, not their average"
    )
    given = parser.parse_args(arguments)
    try:
        if not 0 <= given.threshold <= 1:
            raise ConfigError(f"threshold must be between 0 and 1, got {given.threshold:g}")
        loaded = configs.load(given.config, given.set)
        cpu.use(loaded.config.kernels)
        files = files_of(given.images)
        runtime.make_folder(given.output)
        with runtime.ranks(loaded.config.device) as ranks:
            predictor = load(
                loaded, given.checkpoint, threshold=given.threshold, averaged=not given.not_averaged
            )
            predictor.model.to(ranks.device)
            content = predict(predictor, files, given.output)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return runtime.BAD_INPUT
    except KeyboardInterrupt:
        return runtime.INTERRUPTED
    print(f"{len(content['annotations'])} objects in {len(content['images'])} images: {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
