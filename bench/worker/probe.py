"""The measurements, the same for every codebase: blocks, phases, memory, predictions.

A block is `sync; t0; k steps; sync; t1`. A step lasts from its start to the start of the next one, so whatever the
codebase does in between (EMA, hooks, logging) is inside.
"""

from __future__ import annotations

import json
import math
import os
import resource
import threading
import time
import zlib
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np

from bench.worker.api import Adapter, Batch, Detections

Phase = Tuple[str, Callable[[Any], Any]]


class NonFiniteLoss(Exception):
    """A loss is NaN or infinite: what would be timed is no longer training."""


WHAT_TO_CHANGE = "; lower the learning rate (--set workload.optimizer.lr=1e-5), or start from trained weights"


def phases_of(adapter: Adapter, source: Iterator[Any]) -> List[Phase]:
    """The step as its phases in order; each takes what the one before returned.

    The last one returns the losses, or the arguments of `Adapter.detections`.
    """
    if not adapter.job.training:
        loaded: List[Any] = [None]

        def data(_: Any) -> Any:
            loaded[0] = adapter.load(next(source))
            return loaded[0]

        return [
            ("data", data),
            ("network", adapter.network),
            ("post", lambda raw: (adapter.postprocess(raw, loaded[0]), loaded[0])),
        ]

    def backward(losses: Any) -> Any:
        adapter.backward(losses)
        return losses

    def optimizer(losses: Any) -> Any:
        adapter.optimizer_step()
        return losses

    def ema(losses: Any) -> Any:
        adapter.ema_update()
        return losses

    phases: List[Phase] = [
        ("data", lambda _: adapter.load(next(source))),
        ("forward", adapter.forward),
        ("backward", backward),
        ("optimizer", optimizer),
    ]
    return [*phases, ("ema", ema)] if adapter.job.workload["ema"] else phases


def run_steps(phases: Sequence[Phase], steps: int, before: Callable[[], Any]) -> Any:
    """Run whole steps; `before` is called at the start of each. Returns what the last phase of the last returned."""
    calls = [call for _, call in phases]
    value = None
    for _ in range(steps):
        before()
        value = None  # the step before releases its losses where a training loop would
        for call in calls:
            value = call(value)
    return value


def run_block(
    adapter: Adapter, phases: Sequence[Phase], steps: int, settle: int = 0, found: Optional[int] = None
) -> Dict[str, Any]:
    """Time `steps` consecutive steps.

    `settle` steps run before them, untimed: they bring back the caches that the arms in between took.

    Returns:
        {start_ns: [k], end_ns} on the worker's monotonic clock, losses of the last step and detections of step
        ``found``, `Adapter.squares` after it (``done``; with ``later``, the processor time of reading all that to the
        block's own, and ``earlier``, of what ran before the block but for as much as its settling steps should take),
        threads of the framework now, and the processors that this process kept busy meanwhile.
    """
    infers = found is not None and not adapter.job.training
    early = (found or 0) + 1 if infers else 0
    marks: List[Any] = []
    rested_ns = _rested_ns.pop() if _rested_ns else time.process_time_ns()
    run_steps(phases, settle, before=lambda: None)
    adapter.synchronize()
    begin_cpu_ns, begin_ns = time.process_time_ns(), time.perf_counter_ns()
    chosen = run_steps(phases, early, before=lambda: marks.append(adapter.mark()))
    value = run_steps(phases, steps - early, before=lambda: marks.append(adapter.mark()))
    adapter.synchronize()
    end_ns, end_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
    starts_ns = adapter.marks_ns(marks)
    detections = adapter.detections(*chosen) if infers else []
    squares = adapter.squares() if adapter.job.training else {}
    losses = finite_losses(adapter, value)
    spent_ns = max(1, end_cpu_ns - begin_cpu_ns)
    squares["later"] = (time.process_time_ns() - end_cpu_ns) / spent_ns
    if adapter.job.workload["input"]["mode"] == "shared":  # loaders work while others are timed
        squares["earlier"] = max(0.0, (begin_cpu_ns - rested_ns) / spent_ns - settle / steps)
    # A device's clock has an origin of its own; the block starts when the host's clock says so.
    shift_ns = begin_ns - starts_ns[0]
    return {
        "start_ns": [int(start + shift_ns) for start in starts_ns],
        "end_ns": int(end_ns),
        "losses": losses,
        "done": {name: one for name, one in squares.items() if math.isfinite(one)},
        "found": [found_in(one) for one in detections],
        "threads": adapter.current_threads(),
        "busy_processors": spent_ns / max(1, end_ns - begin_ns),
    }


def found_in(one: Detections) -> Dict[str, Any]:
    """Detections of one image in numbers of a few digits, the best first; of masks what `_mask` tells."""
    order = np.argsort(-one.scores, kind="stable")
    facts: Dict[str, Any] = {
        "image_id": int(one.image_id),
        "boxes": np.round(one.boxes[order].astype(np.float64), 1).tolist(),
        "scores": np.round(one.scores[order].astype(np.float64), 4).tolist(),
        "labels": [int(label) for label in one.labels[order]],
    }
    if one.masks is not None:
        facts["masks"] = [_mask(one.masks[index]) for index in order]
    return facts


def _mask(mask: np.ndarray) -> List[float]:
    """Height and width of the image, area, the centre of the pixels (row, column), and the length of the border."""
    rows, columns = np.nonzero(mask)
    centre = (rows.mean(), columns.mean()) if len(rows) else (0.0, 0.0)
    border = sum(int(np.count_nonzero(np.diff(mask, axis=axis))) for axis in (0, 1))
    return [*mask.shape, len(rows), *(round(float(value), 1) for value in centre), border]


LONGEST_REST_S = 1.0
#: Processor time of this process when it had rested.
_rested_ns: List[int] = []


def rest() -> bool:
    """Wait until no other thread of this process runs, and say whether it came to that.

    A codebase's threads may wait for their next work by spinning (Intel's OpenMP, which Paddle has, for 200 ms), on the
    processors of the arm whose turn is next.
    """
    end_s, rested = time.perf_counter() + LONGEST_REST_S, True
    while rested and _others_run():
        rested = time.perf_counter() <= end_s
        time.sleep(0.002)
    _rested_ns[:] = [time.process_time_ns()]
    return rested


def _others_run() -> bool:
    """Whether a thread is running or waits for a processor. Without /proc: no."""
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/stat") as stat:
                state = stat.read().rpartition(")")[2].split()[0]
            if state == "R" and int(thread) != threading.get_native_id():
                return True
    except OSError:  # also of a thread that has just ended
        pass
    return False


def finite_losses(adapter: Adapter, losses: Any) -> Dict[str, float]:
    """The losses of the last step as numbers; raises NonFiniteLoss."""
    if not adapter.job.training:
        return {}
    values = {name: float(value) for name, value in adapter.loss_values(losses).items()}
    bad = ["{} = {}".format(*item) for item in values.items() if not math.isfinite(item[1])]
    if bad:
        raise NonFiniteLoss("loss is not finite: " + ", ".join(bad) + WHAT_TO_CHANGE)
    return values


def phase_pass(adapter: Adapter, phases: Sequence[Phase], steps: int) -> Dict[str, List[float]]:
    """Seconds of each phase of each step, synchronised after every phase: a pass of its own, it slows the step."""
    seconds: Dict[str, List[float]] = {name: [] for name, _ in phases}
    for _ in range(steps):
        value = None
        adapter.synchronize()
        for name, call in phases:
            begin_ns = time.perf_counter_ns()
            value = call(value)
            adapter.synchronize()
            seconds[name].append((time.perf_counter_ns() - begin_ns) / 1e9)
    return seconds


def averaging_pass(adapter: Adapter, phases: Sequence[Phase], backward: Sequence[float]) -> List[float]:
    """By how much averaging gradients over the ranks lengthens each backward phase; empty for one rank."""
    apart = adapter.unaveraged() if adapter.job.training else None
    if apart is None:
        return []
    with apart:  # the next forward phase drops these gradients
        alone = phase_pass(adapter, phases[:3], len(backward))["backward"]
    return [both - own for both, own in zip(backward, alone)]


def operator_pass(adapter: Adapter, phases: Sequence[Phase]) -> Dict[str, float]:
    """Seconds of single operators in one step, and of all of it as `step`; empty when the adapter looks for none.

    A pass of its own: a profiler slows the step.
    """
    whole: Dict[str, float] = {}

    def step() -> None:
        begin_ns = time.perf_counter_ns()
        run_steps(phases, 1, before=lambda: None)
        adapter.synchronize()
        whole["step"] = (time.perf_counter_ns() - begin_ns) / 1e9

    return {**adapter.operator_seconds(step), **whole}


def host_memory_bytes(field: str) -> int:
    """`VmRSS` (resident set now) or `VmHWM` (its peak) of this process."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # no /proc: the peak since the start


def reset_host_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # then the peak is since the start of the process: an upper bound


def memory_pass(adapter: Adapter, phases: Sequence[Phase], steps: int) -> Dict[str, int]:
    """Peaks in bytes over some steps after one reset."""
    adapter.synchronize()
    reset_host_peak()
    adapter.reset_device_memory_peak()
    run_steps(phases, steps, before=lambda: None)
    adapter.synchronize()
    device = {f"{name}_bytes": int(value) for name, value in adapter.device_memory().items()}
    return {"host_peak_bytes": host_memory_bytes("VmHWM"), **device}


def run_length_encode(mask: np.ndarray) -> Dict[str, Any]:
    """A bool [h, w] mask in COCO's uncompressed RLE: column-major run lengths, the first one of zeros."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    edges = (
        np.flatnonzero(np.diff(np.concatenate(([False], flat, [False])))) if flat.size else np.zeros(0, int)
    )
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    return {"size": [int(side) for side in mask.shape], "counts": [int(count) for count in counts]}


#: A box may be narrower than nothing by rounding.
SLACK_PX = 1e-3


def coco_results(found: Detections, category_ids: Sequence[int]) -> List[Dict[str, Any]]:
    """Detections of one image as entries of a COCO results file (x, y, width, height)."""
    results = []
    for index in range(len(found.scores)):
        x1, y1, x2, y2 = (float(value) for value in found.boxes[index])
        label = int(found.labels[index])
        if not all(map(math.isfinite, (x1, y1, x2, y2, float(found.scores[index])))):
            raise ValueError(f"a detection of image {found.image_id} holds a number that is not finite")
        if x2 - x1 < -SLACK_PX or y2 - y1 < -SLACK_PX:
            raise ValueError(f"a box of image {found.image_id} has a negative size")
        if not 0 <= label < len(category_ids):
            raise ValueError(f"label {label} of image {found.image_id} is none of {len(category_ids)}")
        entry: Dict[str, Any] = {
            "image_id": int(found.image_id),
            "category_id": int(category_ids[label]),
            "bbox": [x1, y1, max(0.0, x2 - x1), max(0.0, y2 - y1)],
            "score": float(found.scores[index]),
        }
        if found.masks is not None:
            entry["segmentation"] = run_length_encode(found.masks[index])
        results.append(entry)
    return results


#: Predicted images whose detections the audit compares: those that AP is of may come from other work than is timed.
#: Which images they are follows from all ids, so that the first ones are no more likely than others.
COMPARED = 2


def _drawn(image: int) -> int:
    return zlib.crc32(b"%d" % image)


def predict(adapter: Adapter, batches: Iterable[Batch], path: str) -> Dict[str, Any]:
    """Detections of every image of the batches, each once, written as COCO results JSON.

    ``phases``: seconds of all of them in data (moving to the device), network and post-processing; ``seconds``: those
    and the conversion of batches and results; ``found``: detections of some images. With several ranks only the
    first one does it.
    """
    if adapter.job.rank:
        return {}
    results: List[Dict[str, Any]] = []
    seen: Set[int] = set()
    kept: Dict[int, Detections] = {}
    compared = 0 if adapter.job.training else COMPARED
    phases = dict.fromkeys(("data", "network", "post"), 0.0)

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        adapter.synchronize()
        start_ns = time.perf_counter_ns()
        value = call(*arguments)
        adapter.synchronize()
        phases[name] += (time.perf_counter_ns() - start_ns) / 1e9
        return value

    begin_ns = time.perf_counter_ns()
    with adapter.evaluation_weights():
        for batch in batches:
            data = timed("data", adapter.load, adapter.convert(batch))
            raw = timed("network", adapter.network, data)
            for found in adapter.detections(timed("post", adapter.postprocess, raw, data), data):
                image = int(found.image_id)
                if image not in {int(one) for one in batch.image_ids}:
                    raise ValueError(f"a detection of image {image}, which was not asked for")
                if image not in seen:  # the last batch may repeat images to be full
                    seen.add(image)
                    kept[image] = found
                    if len(kept) > compared:
                        del kept[max(kept, key=_drawn)]
                    results.extend(coco_results(found, adapter.job.category_ids))
    seconds = (time.perf_counter_ns() - begin_ns) / 1e9
    temporary = path + ".tmp"
    with open(temporary, "w") as file:
        json.dump(results, file)
    os.replace(temporary, path)
    counts = {"images": len(seen), "detections": len(results)}
    return {**counts, "seconds": seconds, "phases": phases, "found": [found_in(one) for one in kept.values()]}
