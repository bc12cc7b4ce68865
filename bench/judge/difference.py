"""The difference in AP of two sets of detections, and how sure it is: images are drawn again, the same for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.judge.accuracy import evaluated
from bench.judge.results import IouType, read_sound
from bench.judge.steady import t_quantile

RECALLS = np.linspace(0, 1, 101)
ENOUGH_IMAGES = 50


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class, from the highest score to the lowest, and its objects.

    image: int64 [D], the place of each one's image. right, wrong: bool [10, D], at each IoU; neither of a
    detection that is ignored. objects: int64 [images], those of each image that are to be found.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Which detections are right: all that AP depends on, by image, so that images can be drawn again."""

    image_ids: tuple[int, ...]
    classes: tuple[ClassMatches, ...]


@dataclass(frozen=True)
class Resampled:
    """AP, and AP of sets of images drawn anew [replicates]: the same sets for the same number of images and seed."""

    image_ids: tuple[int, ...]
    value: float
    draws: NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """AP of one minus AP of the other, or one AP, with its interval in 95 % of the sets of images drawn anew."""

    value: float
    low: float
    high: float
    images: int

    @property
    def warning(self) -> str | None:
        """What makes the interval unsure; None for enough images."""
        if self.images >= ENOUGH_IMAGES:
            return None
        return f"{self.images} images say little about AP on others: use {ENOUGH_IMAGES} or more"

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def match(
    ground_truth: Path | Mapping[str, Any],
    detections: Path | Sequence[Mapping[str, Any]],
    iou_type: IouType,
    *,
    image_ids: Sequence[int] | None = None,
    backend: str = "hotcoco",
) -> Matches:
    """Detections matched with objects of all sizes, at most 100 of an image and class, as `evaluate` counts them."""
    sound = read_sound(ground_truth, detections, iou_type, image_ids)
    chosen = sound.chosen
    run = evaluated(sound, iou_type, backend)
    place = {number: at for at, number in enumerate(sound.chosen_numbers)}
    widest = (
        max(entry["aRng"][1] - entry["aRng"][0] for entry in run.evalImgs if entry) if run.evalImgs else 0
    )
    entries: dict[int, list[Any]] = {number: [] for number in range(1, len(sound.categories) + 1)}
    for entry in run.evalImgs:
        if entry and entry["aRng"][1] - entry["aRng"][0] == widest:
            entries[entry["category_id"]].append(entry)
    classes = []
    for of_class in entries.values():
        of_class.sort(key=lambda entry: place[entry["image_id"]])
        objects = np.zeros(len(chosen), np.int64)
        for entry in of_class:
            objects[place[entry["image_id"]]] = int(np.sum(~np.asarray(entry["gtIgnore"], bool)))
        images = [place[entry["image_id"]] for entry in of_class for _ in entry["dtScores"]]
        scores = np.array([score for entry in of_class for score in entry["dtScores"]], np.float64)
        order = np.argsort(-scores, kind="mergesort")  # the reference's order of equal scores

        def column(name: str, of_class: list[Any] = of_class, order: NDArray[Any] = order) -> Any:
            parts = [np.asarray(entry[name], np.float64).reshape(10, -1) != 0 for entry in of_class]
            return np.concatenate(parts, axis=1)[:, order] if parts else np.zeros((10, 0), bool)

        matched, ignored = column("dtMatches"), column("dtIgnore")
        image = np.array(images, np.int64)[order]
        classes.append(ClassMatches(image, matched & ~ignored, ~matched & ~ignored, objects))
    return Matches(chosen, tuple(classes))


def average_precision(matches: Matches, weights: NDArray[np.int64] | None = None) -> float:
    """AP (0.50:0.05:0.95) where image i occurs ``weights[i]`` times, once by default; NaN without any object.

    An image that occurs twice brings its detections and its objects twice. With weights of 1 this is the number of
    `evaluate`.
    """
    weights = np.ones(len(matches.image_ids), np.int64) if weights is None else weights
    values = []
    for one in matches.classes:
        objects = int(one.objects @ weights)
        if objects:
            values.append(_class_precision(one, weights[one.image], objects))
    return float(np.mean(values)) if values else float("nan")


def _class_precision(one: ClassMatches, counts: NDArray[np.int64], objects: int) -> float:
    """Mean over IoUs and 101 recalls of the best precision at that recall or a higher one."""
    right = np.cumsum(one.right * counts, axis=1, dtype=np.float64)
    wrong = np.cumsum(one.wrong * counts, axis=1, dtype=np.float64)
    precision = right / (right + wrong + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)  # recalls that are not reached
    recall = right / objects
    return float(np.mean([row[np.searchsorted(r, RECALLS)] for row, r in zip(padded, recall, strict=True)]))


def resampled(matches: Matches, *, replicates: int = 1000, seed: int = 0) -> Resampled:
    """AP of sets of as many images as there are, drawn with replacement.

    Args:
        matches: of the detections.
        replicates: sets of images drawn.
        seed: of the draws.
    """
    count = len(matches.image_ids)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=replicates)
    found = np.array([average_precision(matches, draw) for draw in draws])
    return Resampled(matches.image_ids, average_precision(matches), found)


def paired_difference(a: Resampled, b: Resampled) -> Difference:
    """AP of ``a`` minus AP of ``b`` on the same images, with a 95 % interval for other images.

    The sets of images are the same for both, so that what makes an image hard for everyone cancels out. Of the classes
    a set has no object of, neither side counts anything. How much AP differs from one training to the next is not in
    it.

    Raises:
        ValueError: for other images.
    """
    if a.image_ids != b.image_ids:
        raise ValueError("the two were evaluated on different images")
    return interval(Resampled(a.image_ids, a.value - b.value, a.draws - b.draws))


def interval(one: Resampled) -> Difference:
    """The value with a 95 % interval for other images: Student's t times the bootstrap's standard error.

    Returns:
        Its interval is NaN where no set of images has an object, and infinite with one image.
    """
    count, value = len(one.image_ids), one.value
    found = one.draws[np.isfinite(one.draws)]
    if count < 2 or found.size < 2:
        half_width = np.inf if found.size else np.nan
    else:  # a bootstrap of n images has (n - 1) / n of the variance
        error = float(found.std(ddof=1)) * np.sqrt(count / (count - 1))
        half_width = t_quantile(count - 1, 0.975) * error
    return Difference(value, value - half_width, value + half_width, count)
