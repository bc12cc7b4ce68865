"""From a decoded image and its objects to what a network takes: augment, resize, normalise, pad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]  # (height, width)


#: The class of pixels that do not count.
UNLABELLED = 255


class Sample(NamedTuple):
    """An image and its objects in its pixels.

    image: uint8 [h, w, 3], RGB. boxes: float32 [N, 4] (x1, y1, x2, y2). labels: int64 [N]. masks: uint8 [N, h, w], or
    None. semantic: uint8 [h, w], the class of each pixel, UNLABELLED for those that do not count, or None.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    semantic: np.ndarray | None = None

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]

    def only(self, chosen: np.ndarray) -> Sample:
        """With the objects that bool [N] says."""
        masks = None if self.masks is None else self.masks[chosen]
        return self._replace(boxes=self.boxes[chosen], labels=self.labels[chosen], masks=masks)


IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)


def short_long(old: Size, short: int, long: int) -> Size:
    """The size of the same ratio whose short side is ``short``, unless its long side would pass ``long``."""
    return _scaled(old, min(short / min(old), long / max(old)), (long, long))


def _scaled(old: Size, scale: float, limit: Size) -> Size:
    height, width = (
        max(1, min(most, int(side * scale + 0.5))) for side, most in zip(old, limit, strict=True)
    )
    return height, width


def resize_image(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Antialiased bilinear resize of uint8 [h, w, 3] to [H, W, 3]."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """Nearest-pixel resize of uint8 [h, w] to [H, W]."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(mask.shape, size, strict=True)
    )
    return mask[rows[:, None], columns]


# -- of image and objects --------------------------------------------------------------------------------------------


def resize(sample: Sample, size: Size) -> Sample:
    """The sample at another size."""
    scale = np.array([size[1] / sample.size[1], size[0] / sample.size[0]] * 2)
    masks = sample.masks
    if masks is not None:
        masks = np.array([resize_mask(mask, size) for mask in masks], np.uint8).reshape(-1, *size)
    boxes = (sample.boxes * scale).astype(np.float32)
    semantic = None if sample.semantic is None else resize_mask(sample.semantic, size)
    return Sample(resize_image(sample.image, size), boxes, sample.labels, masks, semantic)


def without_vanished(sample: Sample) -> Sample:
    """Without the objects whose mask has no pixel."""
    return sample if sample.masks is None else sample.only(sample.masks.any(axis=(1, 2)))


def mirror(sample: Sample) -> Sample:
    """Left and right exchanged."""
    x1, y1, x2, y2 = sample.boxes.T
    width = np.float32(sample.size[1])
    return sample._replace(
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        boxes=np.stack([width - x2, y1, width - x1, y2], axis=1),
        masks=None if sample.masks is None else np.ascontiguousarray(sample.masks[:, :, ::-1]),
        semantic=None if sample.semantic is None else np.ascontiguousarray(sample.semantic[:, ::-1]),
    )


def expand(sample: Sample, largest: float, fill: Sequence[float], random: np.random.Generator) -> Sample:
    """Half of the times, put the image somewhere on a larger canvas (SSD's zoom out).

    Args:
        sample: of any size.
        largest: the canvas is 1 to so many times as high and wide.
        fill: its colour, RGB.
        random: draws whether, how large and where.
    """
    if random.random() < 0.5:
        return sample
    ratio = random.uniform(1, largest)
    (height, width), objects = sample.size, len(sample.boxes)
    canvas_size = int(height * ratio), int(width * ratio)
    top = int(random.uniform(0, canvas_size[0] - height))
    left = int(random.uniform(0, canvas_size[1] - width))
    window = slice(top, top + height), slice(left, left + width)
    canvas = np.empty((*canvas_size, 3), np.uint8)
    canvas[:] = np.round(fill)
    canvas[window] = sample.image
    masks = sample.masks
    if masks is not None:
        masks = np.zeros((objects, *canvas_size), np.uint8)
        masks[:, *window] = sample.masks
    semantic = sample.semantic
    if semantic is not None:
        semantic = np.full(canvas_size, UNLABELLED, np.uint8)
        semantic[window] = sample.semantic
    return Sample(canvas, sample.boxes + np.float32([left, top] * 2), sample.labels, masks, semantic)


#: What the least covered object has to overlap with the crop, one of them at random; None leaves the image whole.
CROP_IOUS = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
CROP_TRIES = 50


def crop(sample: Sample, random: np.random.Generator) -> Sample:
    """A random part that overlaps every object by one of ``CROP_IOUS``; objects stay whose centre is inside.

    The part has at least 0.3 of each side and is no more than twice as long as wide (SSD; mmdetection's
    ``MinIoURandomCrop``).
    """
    while True:
        least = CROP_IOUS[random.integers(len(CROP_IOUS))]
        if least is None:
            return sample
        for _ in range(CROP_TRIES):
            part = _random_part(sample.size, random)
            if part is None or not len(sample.boxes):
                continue
            if _overlap(part, sample.boxes).min() < least:
                continue
            centre = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
            inside = ((centre > part[:2]) & (centre < part[2:])).all(axis=1)
            if inside.any():
                return cut(sample.only(inside), part)
        if not len(sample.boxes):
            return sample


def _random_part(size: Size, random: np.random.Generator) -> np.ndarray | None:
    height, width = (random.uniform(0.3 * side, side) for side in size)
    if not 0.5 <= height / width <= 2:
        return None
    top, left = random.uniform(0, size[0] - height), random.uniform(0, size[1] - width)
    part = np.array([left, top, left + width, top + height]).astype(int)
    return part if part[2] > part[0] and part[3] > part[1] else None


def _overlap(part: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of [4] with [N, 4]: [N]."""
    shared = np.minimum(part[2:], boxes[:, 2:]) - np.maximum(part[:2], boxes[:, :2])
    area = shared.clip(0).prod(axis=1)
    return area / ((part[2:] - part[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - area)


def cut(sample: Sample, part: np.ndarray) -> Sample:
    """A part (left, top, right, bottom) of a sample, whole numbers [4]; boxes are clipped to it."""
    left, top, right, bottom = part.tolist()
    boxes = np.clip(sample.boxes, [left, top] * 2, [right, bottom] * 2) - [left, top] * 2
    masks = None if sample.masks is None else sample.masks[:, top:bottom, left:right]
    semantic = None if sample.semantic is None else sample.semantic[top:bottom, left:right]
    image = sample.image[top:bottom, left:right]
    return Sample(image, boxes.astype(np.float32), sample.labels, masks, semantic)


def distort(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Other colours, uint8 [h, w, 3].

    Brightness, contrast, saturation and hue, each half of the times, contrast before or after the two last (SSD;
    strengths of mmdetection's ``PhotoMetricDistortion``).
    """
    x = pixels.astype(np.float32)
    if random.random() < 0.5:
        x += np.float32(random.uniform(-32, 32))
    contrast_first = random.random() < 0.5
    contrast = np.float32(random.uniform(0.5, 1.5) if random.random() < 0.5 else 1)
    if contrast_first:
        x *= contrast
    x = x.clip(0, 255)
    if random.random() < 0.5:
        x = _saturate(x, np.float32(random.uniform(0.5, 1.5)))
    if random.random() < 0.5:
        x = _turn_hue(x, random.uniform(-18, 18))
    if not contrast_first:
        x *= contrast
    return x.clip(0, 255).astype(np.uint8)


def _saturate(x: np.ndarray, factor: np.float32) -> np.ndarray:
    """HSV's saturation times ``factor``, at most 1; its hue and value stay."""
    value = x.max(axis=2, keepdims=True)
    chroma = value - x.min(axis=2, keepdims=True)
    most = value / np.maximum(chroma, np.float32(1e-6))  # with which the smallest channel becomes 0
    return value - (value - x) * np.minimum(factor, most)


def _turn_hue(x: np.ndarray, degrees: float) -> np.ndarray:
    hue, saturation, value = Image.fromarray(x.astype(np.uint8)).convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + round(degrees / 360 * 256)) % 256
    hue = Image.fromarray(turned.astype(np.uint8))
    return np.asarray(Image.merge("HSV", (hue, saturation, value)).convert("RGB")).astype(np.float32)


# -- batches ---------------------------------------------------------------------------------------------------------


def normalised_batch(
    images: Sequence[np.ndarray],
    size: Size,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Images as one batch, padded with zeros right and bottom. The pixels are never transposed.

    Args:
        images: uint8 [h_i, w_i, 3].
        size: height and width of the batch.
        mean: of each channel, 0..255.
        std: of each channel.

    Returns:
        float32 [B, 3, H, W], channels last in memory.
    """
    batch = torch.zeros((len(images), *size, 3))
    offset, scale = torch.tensor(mean), 1 / torch.tensor(std)
    for padded, image in zip(batch, images, strict=True):
        height, width = image.shape[:2]
        torch.sub(torch.from_numpy(np.array(image)), offset, out=padded[:height, :width]).mul_(scale)
    return batch.permute(0, 3, 1, 2)


def byte_batch(images: Sequence[np.ndarray], size: Size) -> Tensor:
    """Images uint8 [h_i, w_i, 3] as uint8 [B, 3, H, W], padded with zeros, channels last in memory."""
    batch = torch.zeros((len(images), *size, 3), dtype=torch.uint8)
    for padded, image in zip(batch, images, strict=True):
        padded[: image.shape[0], : image.shape[1]] = torch.from_numpy(np.array(image))
    return batch.permute(0, 3, 1, 2)


def normalised(images: Tensor, sizes: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What ``normalised_batch`` gives, of a ``byte_batch`` on any device.

    Args:
        images: uint8 [B, 3, H, W].
        sizes: int64 [B, 2], height and width without padding.
        mean: of each channel, 0..255.
        std: of each channel.

    Returns:
        float32 [B, 3, H, W], zeros in the padding.
    """
    offset, scale = (
        torch.tensor(one).to(images.device, non_blocking=True)[:, None, None]
        for one in (mean, [1 / value for value in std])
    )
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    inside = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
    return torch.where(inside.unsqueeze(1), images.sub(offset).mul_(scale), 0.0)


def padded_size(sizes: Sequence[Size], multiple: int = 32) -> Size:
    """The smallest size that holds all, each side a multiple of ``multiple``."""
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    return height, width


def pad_semantic(semantic: Tensor, size: Size) -> Tensor:
    """Classes of pixels [h, w] to [H, W], where the padding does not count."""
    below, beside = size[0] - semantic.shape[0], size[1] - semantic.shape[1]
    return F.pad(semantic, (0, beside, 0, below), value=UNLABELLED)


def pad_masks(masks: Tensor, size: Size) -> Tensor:
    """[N, h, w] to [N, H, W], zeros right and bottom."""
    return F.pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))


def as_bits(masks: Tensor) -> Tensor:
    """Masks uint8 [N, h, w] of zeros and ones, eight pixels of a row in a byte: uint8 [N, h, w / 8, rounded up]."""
    return torch.from_numpy(np.packbits(masks.numpy(), axis=-1))


def from_bits(packed: Tensor, width: int) -> Tensor:
    """What ``as_bits`` was given, of so many pixels in a row, on any device."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :width].contiguous()
