"""The order in which images are trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np


def repeated(image_ids: Sequence[int], shown: Sequence[Collection[int]], share: float) -> list[int]:
    """Image ids, those with rare categories several times (Gupta et al. 2019, arXiv:1908.03195, section 5.3).

    As mmdetection's ``ClassBalancedDataset``: an image comes as often as its rarest category asks for, rounded up.

    Args:
        image_ids: of N images.
        shown: the categories in each of them.
        share: of the images that show a category; one that fewer show, f, comes sqrt(share / f) times as often.

    Returns:
        At least N ids; each image's stand together.
    """
    images = Counter(category for categories in shown for category in set(categories))
    factors = {category: math.sqrt(share * len(image_ids) / count) for category, count in images.items()}
    often = [max([1, *(math.ceil(factors[one]) for one in categories)]) for categories in shown]
    return [image for image, times in zip(image_ids, often, strict=True) for _ in range(times)]


class Draw(NamedTuple):
    """An image of the training set, and the number of the draw, 0, 1, …, that its random changes follow from."""

    image_id: int
    number: int


class TrainingOrder:
    """The batches of an endless training, from a given iteration on.

    Every image once in each epoch, in an order that ``seed`` and the number of the epoch give.

    ``is_wide`` [N]: of the images; wide and tall ones are not mixed as long as there are enough of a kind. ``batch``:
    images of all ranks together, of which each takes an equal part. The last batch of an epoch is filled up with its
    first images.
    """

    def __init__(
        self,
        image_ids: Sequence[int],
        is_wide: Sequence[bool],
        *,
        batch: int,
        seed: int,
        first: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.image_ids = np.array(image_ids)
        self.is_wide = np.array(is_wide)
        self.batch = batch
        self.seed = seed
        self.first = first
        share = batch // ranks
        self.mine = slice(rank * share, (rank + 1) * share)

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every image has been drawn."""
        return -(-len(self.image_ids) // self.batch)

    def epoch(self, number: int) -> np.ndarray:
        """Image ids [batches, batch]."""
        random = np.random.default_rng((self.seed, number))
        order = random.permutation(len(self.image_ids))
        whole, rest = [], []
        for group in (order[self.is_wide[order]], order[~self.is_wide[order]]):
            full = len(group) - len(group) % self.batch
            whole.append(group[:full])
            rest.append(group[full:])
        missing = -len(order) % self.batch
        filled = np.concatenate([*whole, *rest, np.resize(order, missing)])
        batches = self.image_ids[filled].reshape(-1, self.batch)
        return batches[random.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[Draw]]:
        number, skip = divmod(self.first, self.batches_per_epoch)
        draw = self.first * self.batch
        while True:
            for batch in self.epoch(number)[skip:].tolist():
                draws = [Draw(image_id, draw + place) for place, image_id in enumerate(batch)]
                yield draws[self.mine]
                draw += self.batch
            number, skip = number + 1, 0
