"""Values of a config that do not go together, each right in itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectors.config import Config


def contradictions(config: Config) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is wrong, and the keys of the value that is."""
    schedule = config.schedule
    if (schedule.name is None) == (schedule.iterations is None):
        yield "give either name (1x, 2x, …) or iterations", ("schedule",)
    if schedule.name is not None and schedule.steps:
        yield f"{schedule.name} has steps of its own; give iterations instead of name", ("schedule", "steps")
    if schedule.decay != "step" and schedule.steps:
        yield f"{schedule.decay} has no steps; leave them out or take decay: step", ("schedule", "steps")
    if list(schedule.steps) != sorted(set(schedule.steps)):
        yield "steps have to grow", ("schedule", "steps")
    for keys, resize in (
        (("augment", "resize"), config.augment.resize),
        (("evaluate", "resize"), config.evaluate.resize),
    ):
        if not resize.short:
            yield "short needs a length", (*keys, "short")
        elif resize.size is None and max(resize.short) > resize.long:
            yield f"the short side {max(resize.short)} is longer than the long one", (*keys, "long")
    jitter = config.augment.jitter
    if jitter is not None and config.augment.resize.size is None:
        yield "jitter needs the size of the canvas: resize: {size: [1024, 1024]}", ("augment", "jitter")
    if jitter is not None and jitter[0] > jitter[1]:
        yield "the least scale is larger than the largest", ("augment", "jitter")
    if config.augment.hook is not None and config.data.train.semantic is not None:
        yield "a hook cannot change maps of classes of pixels", ("augment", "hook")
    if config.checkpoint.patience is not None and config.checkpoint.best is None:
        yield "patience needs to know what is best: bbox or segm", ("checkpoint", "patience")
    if config.evaluate.scales and config.evaluate.resize.size is not None:
        yield "scales are short sides, and resize has a size for all images", ("evaluate", "scales")
    if len(config.evaluate.resize.short) > 1:
        yield "evaluation takes one short side", ("evaluate", "resize", "short")
