"""Training to a number of steps: the same augmented batches in the same order for every codebase, a schedule, a resume.

Which images make the batch of a step, and which of them are mirrored, was decided by the harness
(`prepare_schedule`); here the batches are put together from the prepared images, which takes no more
disk however many steps there are.
"""

from __future__ import annotations

import json
import time
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np

from bench.worker.api import Adapter, Batch
from bench.worker.batches import CorruptBatch, file_sha256
from bench.worker.probe import Phase, finite_losses, host_memory_bytes, reset_host_peak, run_steps

PAD_MULTIPLE = 32

#: A batch of the schedule: (image id, mirrored) of each image.
Draw = Sequence[Tuple[int, bool]]


def load_schedule(path: str, sha256: str) -> List[Draw]:
    """The batches of all steps, in order. Raises CorruptBatch unless it is the file that was written."""
    if file_sha256(path) != sha256:
        raise CorruptBatch(f"{path}: not the schedule that was written; delete it")
    with open(path, encoding="utf-8") as file:
        return [[(int(image), bool(flip)) for image, flip in batch] for batch in json.load(file)["batches"]]


def images_of(batches: Sequence[Batch]) -> Dict[int, Batch]:
    """Every image as a batch of its own, without the padding that its neighbours asked for."""
    single = {}
    for batch in batches:
        for index, image_id in enumerate(batch.image_ids):
            height, width = (int(side) for side in batch.image_sizes[index])
            single[int(image_id)] = Batch(
                images=batch.images[index : index + 1, :, :height, :width],
                image_sizes=batch.image_sizes[index : index + 1],
                original_sizes=batch.original_sizes[index : index + 1],
                image_ids=batch.image_ids[index : index + 1],
                boxes=(batch.boxes[index],),
                labels=(batch.labels[index],),
                masks=(batch.masks[index][:, :height, :width],),
            )
    return single


def mirrored(one: Batch) -> Batch:
    """Left and right exchanged, of a batch of one image without padding."""
    width = one.images.shape[3]
    x1, y1, x2, y2 = one.boxes[0].T
    return Batch(
        images=one.images[..., ::-1],
        image_sizes=one.image_sizes,
        original_sizes=one.original_sizes,
        image_ids=one.image_ids,
        boxes=(np.stack([width - x2, y1, width - x1, y2], axis=1).astype(np.float32),),
        labels=one.labels,
        masks=(one.masks[0][..., ::-1],),
    )


def compose(draw: Draw, images: Dict[int, Batch], size: Any) -> Batch:
    """The batch of one step: zeros right and bottom up to ``size`` ([height, width]), or where that is a short and a
    long side, up to the largest image rounded up to a multiple of 32."""
    chosen = [mirrored(images[image]) if flip else images[image] for image, flip in draw]
    height, width = (
        max(-(-one.images.shape[axis] // PAD_MULTIPLE) * PAD_MULTIPLE for one in chosen) for axis in (2, 3)
    )
    if not isinstance(size, dict):
        height, width = size

    def pad(array: np.ndarray) -> np.ndarray:
        missing = [(0, 0)] * (array.ndim - 2)
        return np.pad(array, [*missing, (0, height - array.shape[-2]), (0, width - array.shape[-1])])

    return Batch(
        images=np.concatenate([pad(one.images) for one in chosen]),
        image_sizes=np.concatenate([one.image_sizes for one in chosen]),
        original_sizes=np.concatenate([one.original_sizes for one in chosen]),
        image_ids=np.concatenate([one.image_ids for one in chosen]),
        boxes=tuple(one.boxes[0] for one in chosen),
        labels=tuple(one.labels[0] for one in chosen),
        masks=tuple(pad(one.masks[0]) for one in chosen),
    )


def learning_rate_factor(step: int, warmup: int, milestones: Sequence[int]) -> float:
    """What the learning rate is multiplied by in a step (from 0): a line from 0 up to 1 over the warm-up, a tenth
    after every milestone."""
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return float(factor * 0.1 ** sum(step >= milestone for milestone in milestones))


class SharedFeed:
    """Gives the data phase its batches. They are put together and converted before the step, outside of its time."""

    def __init__(self, adapter: Adapter, schedule: Sequence[Draw], images: Dict[int, Batch]) -> None:
        self._adapter, self._schedule, self._images = adapter, schedule, images
        self._data: Any = None

    def ready(self, step: int) -> None:
        """Have the batch of a step (from 0) at hand."""
        size = self._adapter.job.workload["input"]["size"]
        self._data = self._adapter.convert(compose(self._schedule[step], self._images, size))

    def __next__(self) -> Any:
        return self._data

    def __iter__(self) -> Iterator[Any]:
        return self


class OwnFeed:
    """Batches of the codebase's own loader, whose time belongs to the step."""

    def __init__(self, adapter: Adapter) -> None:
        self._batches = iter(adapter.pipeline())
        self._taken = 0

    def ready(self, step: int) -> None:
        """Leave out the batches of the steps before a resume; the loader's order is always the same."""
        while self._taken < step:
            next(self)

    def __next__(self) -> Any:
        self._taken += 1
        return next(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return self


class Trainer:
    """Trains one rank, and knows how many steps it has taken."""

    def __init__(
        self, adapter: Adapter, phases: Sequence[Phase], feed: Union[SharedFeed, OwnFeed], step: int = 0
    ) -> None:
        self.adapter = adapter
        self.phases = phases
        self.feed = feed
        self.step = step

    def train(self, steps: int) -> Dict[str, Any]:
        """Take steps, each timed by itself between two synchronisations: data (moving to the device, or the codebase's
        own loader), forward, backward, optimizer, EMA. What the harness does in between (putting the batch together,
        reading the losses) is left out of the times, which are handed over as if steps followed one another."""
        adapter, settings = self.adapter, self.adapter.job.workload["optimizer"]
        scheduled = bool(settings["warmup"] or settings["milestones"])
        losses: Dict[str, List[float]] = {}
        adapter.synchronize()
        reset_host_peak()
        adapter.reset_device_memory_peak()
        clock_ns = time.perf_counter_ns()
        starts_ns = []
        for _ in range(steps):
            if scheduled:
                factor = learning_rate_factor(self.step, settings["warmup"], settings["milestones"])
                adapter.scale_learning_rate(factor)
            self.feed.ready(self.step)
            adapter.synchronize()
            begin_ns = time.perf_counter_ns()
            value = run_steps(self.phases, 1, before=lambda: None)
            adapter.synchronize()
            starts_ns.append(clock_ns)
            clock_ns += time.perf_counter_ns() - begin_ns
            for name, loss in finite_losses(adapter, value).items():
                losses.setdefault(name, []).append(loss)
            self.step += 1
        device = {f"{name}_bytes": int(peak) for name, peak in adapter.device_memory().items()}
        return {
            "start_ns": starts_ns,
            "end_ns": clock_ns,
            "losses": losses,
            "memory": {"host_peak_bytes": host_memory_bytes("VmHWM"), **device},
        }
