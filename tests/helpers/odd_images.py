"""Twenty image files of the kinds that users have, with one COCO file of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "scratch"}, {"id": 21, "name": "dent"}, {"id": 300, "name": "label"}]
ORIENTATION = 0x0112
BROKEN = "cut off.jpg"
#: Turned by EXIF, with annotations of the stored pixels.
AS_STORED = "stored.jpg"
HEIGHT, WIDTH = 60, 80


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def transparent_palette(image: Image.Image) -> Image.Image:
    found = image.convert("P")
    found.info["transparency"] = 0
    return found


#: File name → the image as it is saved, from RGB.
KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "IMG_0001.JPG": lambda image: image,
    "img 2.jpg": lambda image: image,
    "Teil#3.png": lambda image: image,
    "Prüfling_4.jpeg": lambda image: image,
    "sub/10%.jpg": lambda image: image,
    "gray.png": lambda image: image.convert("L"),
    "gray.jpg": lambda image: image.convert("L"),
    "bits.png": lambda image: image.convert("1"),
    "cmyk.jpg": lambda image: image.convert("CMYK"),
    "deep.png": deep,
    "deep.tif": deep,
    "turned.jpg": lambda image: image,
    AS_STORED: lambda image: image,
    "upside down.jpg": lambda image: image,
    "palette.png": lambda image: image.convert("P"),
    "palette with transparency.png": transparent_palette,
    "rgba.png": lambda image: image.convert("RGBA"),
    "la.png": lambda image: image.convert("LA"),
    "bitmap.bmp": lambda image: image,
    BROKEN: lambda image: image,
}
TURNS = {"turned.jpg": 6, AS_STORED: 6, "upside down.jpg": 3}


def write(folder: Path, *, broken: bool = True) -> tuple[Path, Path]:
    """The COCO file and the folder of images; ``broken``: whether one of them is cut off."""
    images, annotations = [], []
    for number, (name, change) in enumerate(KINDS.items(), start=1001):
        random = np.random.default_rng(number)
        image = change(Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)))
        path = folder / "my photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[ORIENTATION] = TURNS.get(name, 1)
        image.save(path, **({"exif": exif} if name in TURNS else {}))
        if broken and name == BROKEN:
            path.write_bytes(path.read_bytes()[:-800])
        turned = name == "turned.jpg"
        height, width = (WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        box = [5, 10, 30, 40]
        x, y, w, h = box
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": CATEGORIES[number % 3]["id"],
                "bbox": box,
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
        )
    file = folder / "export 2026.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return file, folder / "my photos"
