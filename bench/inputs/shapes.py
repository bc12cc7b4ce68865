"""The embedded data set: scenes of textured shapes, the same pixels on every machine.

A scene is a background of gradients and several octaves of noise, with up to 15 objects in front, far ones
first, so that near ones hide parts of them. The class is the outline; colour, texture, size, rotation and
shading tell nothing about it. Masks are exact by construction: each pixel belongs to the last object
painted on it.

Determinism: random numbers are raw 64-bit words of PCG64 (a stream that numpy guarantees, unlike the
distributions of its Generator), one stream per split and image; all arithmetic is elementwise +, −, ×, ÷ and
comparison, which IEEE 754 rounds in one way only (no sin, exp, dot product or sum of floats). Images are PNG:
lossless, though their bytes depend on the zlib at hand. `VERSION` changes whenever a pixel or a mask would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from bench.inputs.watched import watched

VERSION = 2
SPLITS = {"train": 1, "val": 2}  # split → seed
MIN_VISIBLE = 0.4  # of an object, that nearer ones may not hide
MIN_AREA_PX = 40

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

_HALF_SQRT3 = 0.8660254037844386
# Normals of the five edges of a regular pentagon, one corner up (y points down).
_PENTAGON = (
    (0.0, 1.0), (0.9510565162951535, 0.3090169943749474), (0.5877852522924731, -0.8090169943749475),
    (-0.5877852522924731, -0.8090169943749475), (-0.9510565162951535, 0.3090169943749474),
)  # fmt: skip
_PENTAGRAM_INNER = 0.3090169943749474  # from its centre to its lines, for corners at 1


def _star(x: Float, y: Float) -> Mask:
    """A pentagram is where at most one of its five lines is crossed."""
    crossed = np.zeros(x.shape, np.int8)
    for a, b in _PENTAGON:
        crossed += np.float32(a) * x + np.float32(b) * y > _PENTAGRAM_INNER
    return crossed <= 1


def _heart(x: Float, y: Float) -> Mask:
    x, y = x * np.float32(1.15), y * np.float32(-1.15)  # the curve (x² + y² − 1)³ = x² y³ reaches out to 1.15
    inner = x * x + y * y - np.float32(1)
    return inner * inner * inner <= x * x * y * y * y


def _crescent(x: Float, y: Float) -> Mask:
    """A disc without the disc that covers its right half."""
    shifted = x - np.float32(0.5)
    return np.asarray((x * x + y * y <= 0.9) & (shifted * shifted + y * y > 0.5))


#: Class → whether a point of the plane is inside; the shape fills most of the unit disc.
CLASSES: dict[str, Callable[[Float, Float], Mask]] = {
    "disc": lambda x, y: x * x + y * y <= 0.9,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.72,
    "triangle": lambda x, y: np.maximum(abs(x) * np.float32(_HALF_SQRT3) - y * np.float32(0.5), y) <= 0.5,
    "star": _star,
    "ring": lambda x, y: abs(x * x + y * y - np.float32(0.6)) <= 0.3,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.26) & (np.maximum(abs(x), abs(y)) <= 0.9),
    "heart": _heart,
    "crescent": _crescent,
}


class _Random:
    """Uniform numbers from the raw words of PCG64."""

    def __init__(self, *seed: int) -> None:
        self._words = np.random.PCG64(np.random.SeedSequence(seed))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(self.uniforms(1)[0])

    def uniforms(self, count: int) -> Float:
        """float32 [count] in [0, 1), of 24 random bits each."""
        words: NDArray[np.uint64] = np.asarray(self._words.random_raw(count), np.uint64)
        return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def integer(self, low: int, high: int) -> int:
        """In low … high − 1."""
        return low + int(self.uniform() * (high - low))

    def colour(self) -> Float:
        """RGB, float32 [3] in 0..255."""
        return self.uniforms(3) * np.float32(255)


# -- pixels ----------------------------------------------------------------------------------------------


def _octave(random: _Random, height: int, width: int, cell: int) -> Float:
    """Random values on a grid of `cell` pixels, interpolated linearly: float32 [height, width] in [0, 1)."""
    rows, columns = height // cell + 2, width // cell + 2
    grid = random.uniforms(rows * columns).reshape(rows, columns)
    y, x = np.arange(height), np.arange(width)
    v, u = ((axis % cell).astype(np.float32) / np.float32(cell) for axis in (y, x))
    bands = grid[y // cell] * (1 - v)[:, None] + grid[y // cell + 1] * v[:, None]
    return np.asarray(bands[:, x // cell] * (1 - u) + bands[:, x // cell + 1] * u, np.float32)


def _noise(random: _Random, height: int, width: int, largest: int = 128, smallest: int = 2) -> Float:
    """Octaves of noise, each of half the size and 0.6 of the strength: float32 [height, width], 0..1."""
    total = np.zeros((height, width), np.float32)
    weight, strength, cell = np.float32(0), np.float32(1), largest
    while cell >= smallest:
        total += strength * _octave(random, height, width, cell)
        weight += strength
        strength *= np.float32(0.6)
        cell //= 2
    return np.asarray(total / weight, np.float32)


def _background(random: _Random, height: int, width: int) -> Float:
    """float32 [height, width, 3] in 0..255: two gradients of colour mixed by noise."""
    corners = random.uniforms(12).reshape(4, 3) * np.float32(200) + np.float32(25)
    y = (np.arange(height, dtype=np.float32) / np.float32(height))[:, None]
    x = (np.arange(width, dtype=np.float32) / np.float32(width))[None, :]
    mix = _noise(random, height, width)
    grain = (_noise(random, height, width, 16, 1) - np.float32(0.5)) * np.float32(60)
    channels = []
    for a, b, c, d in corners.T:
        first, second = a * (1 - y) + b * y, c * (1 - x) + d * x
        channels.append(first * (1 - mix) + second * mix + grain)
    return np.stack(channels, axis=-1)


def _texture(random: _Random, x: Float, y: Float, kind: int) -> Float:
    """Share of the second colour at each point, float32 in 0..1; x and y in units of the object's radius."""
    scale = np.float32(random.uniform(2, 5))
    u, v = x * scale, y * scale
    if kind == 0:  # plain
        pattern: NDArray[Any] = np.zeros(x.shape)
    elif kind == 1:  # stripes
        pattern = np.floor(u) % 2
    elif kind == 2:  # squares
        pattern = (np.floor(u) + np.floor(v)) % 2
    elif kind == 3:  # dots
        du, dv = u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5)
        pattern = du * du + dv * dv < 0.09
    else:  # clouds
        pattern = _noise(random, x.shape[0], x.shape[1], 16)
    return pattern.astype(np.float32)


class _Canvas:
    """What has been painted so far, background first.

    pixels: float32 [H, W, 3]. owner: int16 [H, W], the number of the object that a pixel shows, 0 the
    background. whole, visible: pixels of each object when nothing hid it, and now; place 0 is the
    background.
    """

    def __init__(self, background: Float) -> None:
        self.pixels = background
        height, width, _ = background.shape
        self.owner = np.zeros((height, width), np.int16)
        self.whole = [height * width]
        self.visible = self.whole.copy()

    def paint(self, random: _Random, shape: str, radius: float, centre: tuple[float, float]) -> bool:
        """Put an object in front, unless it would be too small, or hide too much of another one."""
        height, width = self.owner.shape
        left, right = max(0, math.floor(centre[0] - radius)), min(width, math.ceil(centre[0] + radius))
        top, bottom = max(0, math.floor(centre[1] - radius)), min(height, math.ceil(centre[1] + radius))
        window = slice(top, bottom), slice(left, right)
        dx = ((np.arange(left, right) + 0.5 - centre[0]) / radius).astype(np.float32)[None, :]
        dy = ((np.arange(top, bottom) + 0.5 - centre[1]) / radius).astype(np.float32)[:, None]
        # Rotate by rational numbers (cosine and sine from the tangent of half the angle), then stretch.
        tangent, sign = random.uniform(-1, 1), 2 * random.integer(0, 2) - 1
        cosine = np.float32(sign * (1 - tangent * tangent) / (1 + tangent * tangent))
        sine = np.float32(2 * tangent / (1 + tangent * tangent))
        x = cosine * dx + sine * dy
        y = (cosine * dy - sine * dx) * np.float32(random.uniform(1, 1.5))
        inside = CLASSES[shape](x, y)
        area = int(np.count_nonzero(inside))
        hidden = np.bincount(self.owner[window][inside], minlength=len(self.whole)).tolist()
        left_over = [now - less for now, less in zip(self.visible, hidden, strict=True)]
        spoilt = (
            less and left < max(MIN_AREA_PX, MIN_VISIBLE * whole)
            for less, left, whole in zip(hidden[1:], left_over[1:], self.whole[1:], strict=True)
        )
        if area < MIN_AREA_PX or any(spoilt):
            return False
        self.owner[window][inside] = len(self.whole)
        self.whole.append(area)
        self.visible = [*left_over, area]
        texture = _texture(random, x, y, random.integer(0, 5))[..., None]
        light = np.float32(1) + np.float32(random.uniform(-0.35, 0.35)) * dx - np.float32(0.25) * dy
        colours = (random.colour() * (1 - texture) + random.colour() * texture) * light[..., None]
        self.pixels[window][inside] = colours[inside]
        return True


def _finish(pixels: Float) -> NDArray[np.uint8]:
    """uint8 pixels, edges softened by [1 2 1] in both directions, in integers."""
    image = np.pad(np.clip(pixels, 0, 255).astype(np.uint16), ((1, 1), (1, 1), (0, 0)), mode="edge")
    image = image[:-2] + 2 * image[1:-1] + image[2:]
    return ((image[:, :-2] + 2 * image[:, 1:-1] + image[:, 2:] + 8) // 16).astype(np.uint8)


# -- scenes ----------------------------------------------------------------------------------------------

_RADII = ((8.0, 16.0), (18.0, 48.0), (66.0, 150.0))  # nearly COCO's small, medium and large


@dataclass(frozen=True)
class Scene:
    """One image, uint8 [H, W, 3]; class names and masks of its objects, bool [N, H, W], without overlap.

    ``crowd``: a class, and the mask of a swarm of objects of it that is annotated as one crowd; or None.
    """

    pixels: NDArray[np.uint8]
    classes: tuple[str, ...]
    masks: Mask
    crowd: tuple[str, Mask] | None = None


def render(split: str, index: int, *, crowds: bool = False) -> Scene:
    """Scene number ``index`` of a split; it does not depend on how many others there are.

    With ``crowds``, every fourth scene also has a crowd region.
    """
    random = _Random(VERSION, SPLITS[split], index)
    width, height = 640 - 16 * random.integer(0, 7), 480 - 16 * random.integer(0, 7)
    if random.integer(0, 4) == 0:  # one in four is upright
        width, height = height, width
    canvas = _Canvas(_background(random, height, width))
    names = list(CLASSES)
    swarm_class = names[random.integer(0, len(names))]
    if crowds and index % 4 == 0:
        x, y = random.uniform(60, width - 60), random.uniform(60, height - 60)
        for _ in range(14):
            canvas.paint(random, swarm_class, 10, (x + random.uniform(-50, 50), y + random.uniform(-50, 50)))
    swarm = len(canvas.whole) - 1
    classes: list[str] = []
    wanted = random.integer(3, 16)
    centre = (0.0, 0.0)
    for _ in range(4 * wanted):  # an object that does not fit is replaced by another try
        if len(classes) == wanted:
            break
        shape = names[random.integer(0, len(names))]
        draw = random.uniform()
        radius = random.uniform(*_RADII[0 if draw < 0.3 else 1 if draw < 0.62 else 2])
        if classes and random.uniform() < 0.5:  # beside the one before, so that objects meet
            centre = centre[0] + random.uniform(-90, 90), centre[1] + random.uniform(-90, 90)
            centre = min(max(centre[0], 0), width), min(max(centre[1], 0), height)
        else:
            centre = random.uniform(0, width), random.uniform(0, height)
        if canvas.paint(random, shape, radius, centre):
            classes.append(shape)
    numbers = np.arange(swarm + 1, len(canvas.whole), dtype=np.int16)
    return Scene(
        pixels=_finish(canvas.pixels),
        classes=tuple(classes),
        masks=canvas.owner == numbers[:, None, None],
        crowd=(swarm_class, (canvas.owner > 0) & (canvas.owner <= swarm)) if swarm else None,
    )


def _annotation(number: int, image: int, name: str, mask: Mask, crowd: bool) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "id": number,
        "image_id": image,
        "category_id": list(CLASSES).index(name) + 1,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(np.count_nonzero(mask)),
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
        "iscrowd": int(crowd),
    }


def write(folder: Path, split: str, images: int, *, crowds: bool = False) -> None:
    """Write scenes 0 … images − 1 in COCO layout: ``annotations/instances_<split>.json``, ``<split>/*.png``.

    Boxes and areas are those of the visible masks; masks are run-length encoded; ids start at 1.
    """
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir()
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in watched(range(images), "drawing scenes"):
        scene = render(split, index, crowds=crowds)
        image = index + 1
        name = f"{image:06d}.png"
        Image.fromarray(scene.pixels).save(folder / split / name, compress_level=1)
        height, width = scene.pixels.shape[:2]
        entries.append({"id": image, "file_name": name, "height": height, "width": width})
        regions = [(name, mask, False) for name, mask in zip(scene.classes, scene.masks, strict=True)]
        if scene.crowd:
            regions.append((*scene.crowd, True))
        for region, mask, crowd in regions:
            annotations.append(_annotation(len(annotations) + 1, image, region, mask, crowd))
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    content = {
        "info": {"description": f"shapes, generator version {VERSION}", "split": split},
        "images": entries,
        "annotations": annotations,
        "categories": categories,
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
