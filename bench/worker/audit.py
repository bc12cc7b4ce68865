"""What an arm does in a few steps, observed by the harness's own hooks, not by what the codebase says of itself.

The steps run from the weights that the arm was given, on batches that nothing before has seen. The last step has the
images of the first one again, so that work which is skipped or remembered shows. Its annotations are others, so that
targets which are remembered show too. A framework's part (`Observer`) hands tensors over; what is made of them is the
same for every codebase, and small enough for a record.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import numpy as np

from bench.worker.api import Adapter, Batch, Observer
from bench.worker.change import Change, kept
from bench.worker.probe import finite_losses, found_in, phases_of
from bench.worker.sink import Facts, Projection, Sink, norm
from bench.worker.training import compose, images_of

STEPS = 3
#: The phase of what no step is timed with: converting batches, reading losses and detections.
OUTSIDE = "outside"


def audited_batches(batches: Sequence[Batch], steps: int = STEPS) -> List[Batch]:
    """The batches of the audited steps.

    Args:
        batches: The rank's shared batches; the weights may be calibrated on the first one.
        steps: Number of steps, at least 2.

    Returns:
        Batches other than the first one, then mirrored ones, and at the end the first of these with fewer objects.
    """
    unseen = list(batches[1:steps])
    for batch in batches[: steps - 1 - len(unseen)]:
        draw = [(int(image), True) for image in batch.image_ids]
        unseen.append(compose(draw, images_of([batch]), list(batch.images.shape[2:])))
    chosen = [unseen[step % len(unseen)] for step in range(steps - 1)]
    return [*chosen, without_an_object(chosen[0])]


def shaken(batch: Batch) -> Batch:
    """The batch with every value of its images moved by two units in its last place, up or down: so little that all
    which it changes is how the arm rounds from there on."""
    signs = np.random.RandomState(0).randint(0, 2, batch.images.shape).astype(np.float32) * 2 - 1
    return replace(batch, images=batch.images * (1 + signs * np.float32(2.0**-22)))


def without_an_object(batch: Batch) -> Batch:
    """The batch without the first object of each image that has several."""
    starts = [int(len(labels) > 1) for labels in batch.labels]

    def rest(values: Sequence[np.ndarray]) -> Tuple[np.ndarray, ...]:
        return tuple(one[start:] for one, start in zip(values, starts))

    return replace(batch, boxes=rest(batch.boxes), labels=rest(batch.labels), masks=rest(batch.masks))


# -- training ---------------------------------------------------------------------------------


def _train(adapter: Adapter, observer: Observer, source: Iterator[Any], count: int) -> Facts:
    change, project = Change(observer), Projection()
    steps = []
    for _ in range(count):
        sink = Sink(project)
        value: Any = None
        for name, call in phases_of(adapter, source):
            with observer.watching(name, sink):
                value = call(value)
            if name == "backward":
                change.after_backward()
        losses, outside = _beside(observer, finite_losses, adapter, value)
        steps.append({"losses": losses, "outside": outside, **sink.facts(), **change.after_step()})
    return {"steps": steps, "weights": change.first, "changed": change.changed}


# -- inference ---------------------------------------------------------------------------------


def _infer(adapter: Adapter, observer: Observer, source: Iterator[Any], count: int) -> Facts:
    project = Projection()
    weights = {name: norm(value) for name, value in observer.tensors("weights").items()}
    steps = []
    for _ in range(count):
        sink = Sink(project)
        value: Any = None
        for name, call in phases_of(adapter, source):
            with observer.watching(name, sink):
                value = call(value)
        detections, outside = _beside(observer, adapter.detections, *value)
        found = [found_in(one) for one in detections]
        steps.append({"detections": found, "outside": outside, **sink.facts()})
    return {"steps": steps, "weights": weights}


# -- both ---------------------------------------------------------------------------------


def _beside(observer: Observer, call: Callable[..., Any], *arguments: Any) -> Tuple[Any, Facts]:
    """What a call gives that no step is timed with, and the work that is done there."""
    sink = Sink(Projection())
    with observer.watching(OUTSIDE, sink):
        value = call(*arguments)
    flops = sum(sum(kind.values()) for kind in sink.flops.values())
    return value, {
        "flops": flops,
        "operators": sink.operators.get(OUTSIDE, 0),
        "suppressed": sum(sink.suppressed),
    }


@contextlib.contextmanager
def _observer(adapter: Adapter) -> Iterator[Any]:
    observer = adapter.observer()
    if observer is None:
        yield None
        return
    with observer.reproducible():
        yield observer


def _walk(adapter: Adapter, observer: Observer, batches: Sequence[Batch]) -> Facts:
    """Steps with these batches, each converted anew. ``converted``: the work of that."""
    walk = _train if adapter.job.training else _infer
    data, outside = _beside(observer, lambda: [adapter.convert(one) for one in batches])
    return {**walk(adapter, observer, iter(data), len(batches)), "converted": outside}


def audit(adapter: Adapter, batches: Sequence[Batch], shake: bool = False) -> Facts:
    """Take the audited steps with a prepared adapter, which is not to be timed afterwards.

    Args:
        adapter: One arm.
        batches: Its shared batches.
        shake: Take `shaken` ones, to see what rounding does to the facts of this arm.

    Returns:
        ``steps``: facts of each (see `Sink`, `Change`; ``losses`` or ``detections``); ``weights``: norms by name before
        the first step; ``changed``: sizes of the tensors that the steps changed; ``after``: settings of the framework
        after the last one; ``randomness``: what was made reproducible. Empty for a codebase that cannot be observed.
    """
    with _observer(adapter) as observer:
        if observer is None:
            return {}
        chosen = audited_batches(batches)
        facts = _walk(adapter, observer, [shaken(one) for one in chosen] if shake else chosen)
        return {**facts, "after": observer.settings(), "randomness": observer.randomness}


def keep(adapter: Adapter, state: str) -> None:
    """Write what a training arm is before its first step, for `look`; nothing where a codebase cannot."""
    with contextlib.suppress(NotImplementedError):
        adapter.save_state(state)
        with open(state, "rb+") as file:
            os.fsync(file.fileno())  # so that nothing is written while steps are timed


def look(adapter: Adapter, batches: Sequence[Batch], state: str, source: Iterator[Any]) -> Facts:
    """Take steps after the timed ones, watched: is the work still what the audit saw?

    Args:
        adapter: One arm.
        batches: Its shared batches.
        state: What `keep` wrote. It is removed.
        source: Where the timed steps took their batches from.

    Returns:
        ``step``: facts of one more of these steps, from where they came to. Then ``weights``, ``steps`` and
        ``changed`` as `audit` gives them: of the last two audited batches, from the state that was kept; in inference,
        which changes no weights, of the first one. ``way``: norms by name of what all steps since then did to
        the weights. ``after``: settings of the framework. Empty for a codebase that cannot be observed.
    """
    with _observer(adapter) as observer:
        if observer is None:
            return {}
        first, *others = audited_batches(batches)
        walk = _train if adapter.job.training else _infer
        seen = {"step": walk(adapter, observer, source, 1)["steps"][0], "after": observer.settings()}
        if not adapter.job.training:
            seen.update(_walk(adapter, observer, [first]))
        elif os.path.exists(state):
            end = kept({}, observer.tensors("weights"))
            adapter.load_state(state)
            os.remove(state)
            start = observer.tensors("weights")
            seen["way"] = {name: norm(value - start[name]) for name, value in end.items()}
            seen.update(_walk(adapter, observer, others))
        return seen
