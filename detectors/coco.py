"""Images with objects from a folder in COCO layout: what is there, in which order it is trained on, batches of it."""

from __future__ import annotations

import copy
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from detectors import hook, image_files, transforms
from detectors.jitter import paste_copies, scale_jitter
from detectors.order import Draw
from detectors.structures import Target
from detectors.transforms import Sample, Size

if TYPE_CHECKING:  # a process that trains from Python needs no configs, nor pydantic's memory
    from detectors.config import Augment, Pixels, Resize


log = logging.getLogger("detectors")
#: Targets with what a model wants to know of them before they are on a device.
Prepare = Callable[[Sequence[Target], Size], list[Target]]


class Example(NamedTuple):
    """image: uint8 [h, w, 3], resized. target: in its pixels. original_size: (height, width) of the file."""

    image: np.ndarray
    target: Target
    original_size: Size
    image_id: int


class BadImage(Exception):
    """An image that cannot be read, or is not what the annotations say. The message is one line that names it."""

    def __init__(self, told: str) -> None:
        # A loader's process hands over its traceback, whose last line is the message.
        super().__init__(told.strip().splitlines()[-1].removeprefix(f"{__name__}.BadImage: "))


class CocoFolder:
    """The objects of the images of an annotation file, by image; labels are places in ``category_ids``.

    Crowds are left out, and objects less than a pixel wide or high.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        masks: bool,
        category_ids: Sequence[int] | None = None,
    ) -> None:
        """Read the annotations; images are read when they are asked for.

        Args:
            annotations: a file in COCO's form.
            images: the folder that its file names are in.
            masks: whether objects have masks. Without, their outlines are not looked at.
            category_ids: those of the labels 0, 1, …; by default all of the file, in ascending order.

        Raises:
            ValueError: for an annotation of an unknown image or category, or without a box; it names the annotation.
        """
        content = json.loads(Path(annotations).read_text())
        self.folder = Path(images)
        self.files: dict[int, str] = {image["id"]: image["file_name"] for image in content["images"]}
        self.sizes: dict[int, Size] = {
            image["id"]: (image["height"], image["width"]) for image in content["images"]
        }
        if category_ids is None:
            category_ids = sorted(category["id"] for category in content["categories"])
        self.category_ids = list(category_ids)
        known = {category["id"]: category.get("name", "") for category in content["categories"]}
        self.category_names = [known.get(one) or str(one) for one in category_ids]
        self.labels = {category: label for label, category in enumerate(category_ids)}
        self.masks = masks
        #: Folder of maps of classes of pixels, and how many classes there are. None: not wanted.
        self.semantic: Path | None = None
        self.semantic_classes = 0
        self.objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd"):
                self._check(annotation)
                self.objects[annotation["image_id"]].append(annotation)

    def _check(self, annotation: Mapping[str, Any]) -> None:
        """Raises ValueError, with the annotation's id, for what would stop a training in the middle."""
        told = f"annotation {annotation.get('id')}"
        if annotation["image_id"] not in self.files:
            raise ValueError(f"{told} is of image {annotation['image_id']}, which is not in the file")
        if annotation["category_id"] not in self.labels:
            raise ValueError(
                f"{told} has category {annotation['category_id']}, which is none of the categories"
            )
        box = annotation.get("bbox")
        if box is None:
            raise ValueError(f"{told} has no bbox")
        if len(box) != 4 or not np.isfinite(box).all():
            raise ValueError(f"{told} has a bbox of {box}, expected x, y, width and height")

    def require_outlines(self) -> None:
        """Raises ValueError, with the annotation's id, for an object without an outline to draw its mask from."""
        for annotation in (one for objects in self.objects.values() for one in objects):
            if not annotation.get("segmentation"):
                raise ValueError(
                    f"annotation {annotation.get('id')} has no segmentation, and the model learns masks"
                )

    def without_objects(self) -> CocoFolder:
        """The same images, for detection: nothing is spent on their annotations."""
        other = copy.copy(self)
        other.objects = defaultdict(list)
        return other

    def has_objects(self, image_id: int) -> bool:
        """Whether an image has an object of at least a pixel."""
        return any(_is_visible(_box(item, self.sizes[image_id])) for item in self.objects.get(image_id, ()))

    def image(self, image_id: int) -> np.ndarray:
        """The pixels of an image, by the rule of ``image_files``.

        Returns:
            uint8 [h, w, 3], RGB.

        Raises:
            BadImage: if it cannot be read as a whole, or has not the size that the annotations give it.
        """
        path = self.folder / self.files[image_id]
        try:
            pixels = image_files.read(path, self.sizes[image_id])
        except (OSError, ValueError) as error:
            raise BadImage(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
        size = pixels.shape[0], pixels.shape[1]
        if size != self.sizes[image_id]:
            height, width = self.sizes[image_id]
            raise BadImage(
                f"{path} is {size[1]} wide and {size[0]} high, turned as its EXIF says, "
                f"but {width} and {height} by the annotations"
            )
        return pixels

    def sample(self, image_id: int) -> Sample:
        """An image with its objects. Raises BadImage."""
        image = self.image(image_id)
        size = image.shape[0], image.shape[1]
        boxes, labels, masks = [], [], []
        for item in self.objects.get(image_id, ()):
            box = _box(item, size)
            if not _is_visible(box):
                continue
            boxes.append(box)
            labels.append(self.labels[item["category_id"]])
            if self.masks:
                masks.append(object_mask(item["segmentation"], size))
        return Sample(
            image,
            np.array(boxes, np.float64).reshape(-1, 4),
            np.array(labels, np.int64),
            np.array(masks, np.uint8).reshape(-1, *size) if self.masks else None,
            None if self.semantic is None else self._semantic(image_id, size),
        )

    def _semantic(self, image_id: int, size: Size) -> np.ndarray:
        """Classes of pixels from the PNG that is called as the image is. Raises BadImage."""
        assert self.semantic is not None
        path = (self.semantic / self.files[image_id]).with_suffix(".png")
        try:
            with Image.open(path) as file:
                classes = np.asarray(file)
        except (OSError, SyntaxError, ValueError) as error:
            raise BadImage(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
        if classes.dtype != np.uint8 or classes.shape != size:
            shape = f"{classes.dtype} of {list(classes.shape)}"
            raise BadImage(f"{path} is {shape}, expected one byte for each pixel of the image, {list(size)}")
        counted = classes[classes != transforms.UNLABELLED]
        if counted.size and counted.max() >= self.semantic_classes:
            raise BadImage(
                f"{path} has class {counted.max()}, the model has 0 to {self.semantic_classes - 1} and 255"
            )
        return classes


def _box(item: Mapping[str, Any], size: Size) -> list[float]:
    """(x1, y1, x2, y2) within the image."""
    x, y, width, height = item["bbox"]
    ends = ((x, size[1]), (y, size[0]), (x + width, size[1]), (y + height, size[0]))
    return [min(max(value, 0), limit) for value, limit in ends]


def _is_visible(box: Sequence[float]) -> bool:
    return box[2] - box[0] >= 1 and box[3] - box[1] >= 1


def object_mask(outline: Any, size: Size) -> np.ndarray:
    """uint8 [height, width] from COCO's polygons or run lengths, compressed or not."""
    if not outline:
        return np.zeros(size, np.uint8)
    if isinstance(outline, list):
        outline = coco_mask.merge(coco_mask.frPyObjects(outline, *size))
    elif isinstance(outline["counts"], list):
        outline = coco_mask.frPyObjects(outline, *size)
    return coco_mask.decode(outline)


def _example(sample: Sample, original_size: Size, image_id: int) -> Example:
    target = Target(
        torch.from_numpy(sample.boxes.astype(np.float32)),
        torch.from_numpy(sample.labels),
        None if sample.masks is None else torch.from_numpy(sample.masks),
        None if sample.semantic is None else torch.from_numpy(sample.semantic.astype(np.int64)),
    )
    return Example(sample.image, target, original_size, image_id)


class ResizedCoco(Dataset[Example]):
    """Examples in the order of ``image_ids``, without augmentation. ``resized``: the new size for an old one.

    Objects of which the resized mask has no pixel are left out too.
    """

    def __init__(self, coco: CocoFolder, image_ids: Sequence[int], resized: Callable[[Size], Size]) -> None:
        self.coco = coco
        self.image_ids = list(image_ids)
        self.resized = resized

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Example:
        image_id = self.image_ids[index]
        sample = self.coco.sample(image_id)
        resized = transforms.resize(sample, self.resized(sample.size))
        return _example(transforms.without_vanished(resized), sample.size, image_id)


class CocoDetection(ResizedCoco):
    """``ResizedCoco`` from the files themselves."""

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        image_ids: Sequence[int],
        category_ids: Sequence[int],
        resized: Callable[[Size], Size],
        *,
        masks: bool,
    ) -> None:
        coco = CocoFolder(annotations, images, masks=masks, category_ids=category_ids)
        super().__init__(coco, image_ids, resized)


# -- training --------------------------------------------------------------------------------------------------------


#: Images that are tried in the place of one that cannot be read.
SUBSTITUTES = 20


class AugmentedCoco(Dataset[Example]):
    """Training examples by ``Draw``.

    What is done to an image depends on ``seed`` and the draw alone: neither on the worker that does it nor on what
    was drawn before, so that training goes on as if it had never stopped.
    """

    def __init__(
        self, coco: CocoFolder, augment: Augment, pixels: Pixels, seed: int, *, skip_broken: bool = False
    ) -> None:
        """``skip_broken``: another image stands in for one that cannot be read."""
        self.coco = coco
        self.skip_broken = skip_broken
        self.augment = augment
        self.fill = pixels.mean if pixels.order == "rgb" else pixels.mean[::-1]
        self.seed = seed

    def __getitem__(self, draw: Draw) -> Example:
        random = np.random.default_rng((self.seed, draw.number))
        image_id, sample = self._sample(draw.image_id, random)
        changed = transforms.without_vanished(augmented(sample, self.augment, self.fill, random))
        if changed.masks is not None and random.random() < self.augment.copy_paste:
            usable = sorted(self.coco.files)
            _, other = self._sample(usable[random.integers(len(usable))], random)
            other = transforms.without_vanished(augmented(other, self.augment, self.fill, random))
            changed = paste_copies(changed, other, random)
        return _example(changed, sample.size, image_id)

    def _sample(self, image_id: int, random: np.random.Generator) -> tuple[int, Sample]:
        """The image that is asked for, or the first of some others that can be read."""
        for _ in range(SUBSTITUTES):
            try:
                return image_id, self.coco.sample(image_id)
            except BadImage as error:
                if not self.skip_broken:
                    raise
                log.warning("skipped: %s", error)
            usable = [one for one in sorted(self.coco.files) if self.coco.has_objects(one)]
            image_id = usable[random.integers(len(usable))]
        raise BadImage(f"{SUBSTITUTES} images in a row cannot be read, the last of them image {image_id}")


def augmented(sample: Sample, augment: Augment, fill: Sequence[float], random: np.random.Generator) -> Sample:
    """The sample after all changes of ``augment``; ``fill``: the colour of a canvas, RGB."""
    if augment.hook is not None:
        try:
            sample = hook.changed(sample, augment.hook, random)
        except ValueError as error:
            raise BadImage(str(error)) from None
    if augment.distort:
        sample = sample._replace(image=transforms.distort(sample.image, random))
    if augment.expand > 1:
        sample = transforms.expand(sample, augment.expand, fill, random)
    if augment.crop:
        sample = transforms.crop(sample, random)
    if augment.jitter is not None:
        assert augment.resize.size is not None
        sample = scale_jitter(sample, augment.jitter, augment.resize.size, random)
        return transforms.mirror(sample) if random.random() < augment.flip else sample
    short = augment.resize.short[random.integers(len(augment.resize.short))]
    sample = transforms.resize(sample, resized_size(sample.size, augment.resize, short))
    return transforms.mirror(sample) if random.random() < augment.flip else sample


def resized_size(old: Size, resize: Resize, short: int | None = None) -> Size:
    """``short``: which of the short sides it is, by default the first."""
    return resize.size or transforms.short_long(old, short or resize.short[0], resize.long)


class Batch(NamedTuple):
    """What a model takes.

    images: float32 [B, 3, H, W]; or uint8 as long as there is a ``scale``, mean and deviation of each channel; masks
    are ``transforms.as_bits`` then.
    image_sizes: without padding; original_sizes: of the files, both (height, width). targets: in pixels of the input,
    masks padded like it.
    """

    images: Tensor
    image_sizes: list[Size]
    original_sizes: list[Size]
    image_ids: list[int]
    targets: list[Target]
    scale: tuple[Sequence[float], Sequence[float]] | None = None

    def sizes(self) -> Tensor:
        """Sizes int64 [B, 2], on the device of the images."""
        return torch.tensor(self.image_sizes).to(self.images.device, non_blocking=True)

    def parts(self, count: int) -> list[Batch]:
        """The batch in so many of equal size."""
        size = len(self.images) // count
        parts = (slice(place * size, (place + 1) * size) for place in range(count))
        if count == 1:
            return [self]
        return [Batch(*(field[part] for field in self[:-1]), scale=self.scale) for part in parts]

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device, where bytes become normalised floats, and bits become masks."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        targets = [Target(*map(move, target)) for target in self.targets]
        images = self.images.to(device, non_blocking=True)
        if self.scale is not None:
            sizes = torch.tensor(self.image_sizes).to(device, non_blocking=True)
            images = transforms.normalised(images, sizes, *self.scale)
            targets = [
                _with_masks(one, partial(transforms.from_bits, width=images.shape[3])) for one in targets
            ]
        return self._replace(images=images, targets=targets, scale=None)

    def pin_memory(self) -> Batch:
        """The batch in memory that a device copies from without waiting."""
        targets = [
            Target(*(None if one is None else one.pin_memory() for one in target)) for target in self.targets
        ]
        return self._replace(images=self.images.pin_memory(), targets=targets)


class Collate:
    """Examples to one ``Batch``, padded right and bottom to a multiple of 32 unless all images have a given size.

    ``as_bytes``: pixels stay uint8 and masks bits, a quarter and an eighth of what has to be moved, until the batch is
    on its device. ``prepare``: the model's, of targets and the size of the padded image.
    """

    def __init__(
        self, pixels: Pixels, resize: Resize, *, as_bytes: bool = False, prepare: Prepare | None = None
    ) -> None:
        self.prepare = prepare
        self.pixels = pixels
        self.size = resize.size
        self.as_bytes = as_bytes

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """The batch of some examples."""
        sizes = [(example.image.shape[0], example.image.shape[1]) for example in examples]
        padded = self.size or transforms.padded_size(sizes)
        step = 1 if self.pixels.order == "rgb" else -1
        given = [example.image[:, :, ::step] for example in examples]
        mean, std = self.pixels.mean, self.pixels.std
        images = (
            transforms.byte_batch(given, padded)
            if self.as_bytes
            else transforms.normalised_batch(given, padded, mean=mean, std=std)
        )
        targets = [_padded(example.target, padded) for example in examples]
        if self.prepare is not None:
            targets = self.prepare(targets, padded)
        if self.as_bytes:
            targets = [_with_masks(one, transforms.as_bits) for one in targets]
        return Batch(
            images,
            sizes,
            [example.original_size for example in examples],
            [example.image_id for example in examples],
            targets,
            (mean, std) if self.as_bytes else None,
        )


def _padded(target: Target, size: Size) -> Target:
    semantic = target.semantic
    target = target._replace(semantic=None if semantic is None else transforms.pad_semantic(semantic, size))
    return _with_masks(target, partial(transforms.pad_masks, size=size))


def _with_masks(target: Target, change: Callable[[Tensor], Tensor]) -> Target:
    """The target with its masks changed, if it has some."""
    return target if target.masks is None else target._replace(masks=change(target.masks))
