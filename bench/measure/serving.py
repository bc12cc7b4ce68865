"""Serving: MLPerf's load generator asks a worker for one shared batch after another.

The generator makes the requests and takes their times here in the session, so the way to the worker and back counts
(some 0.1 ms). A worker answers one request at a time, in the order in which they come.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.measure.arm import MeasuredArm
from bench.measure.preflight import generator
from bench.measure.process import WorkerFailure
from bench.record.parts import Served
from bench.record.run import write_atomic

#: Rates that the search for the highest one tries.
PROBES = 5


def serve(one: MeasuredArm, launch: int) -> Iterator[Served]:
    """SingleStream, Offline and, with a bound, Server; the worker of the arm is warm.

    Args:
        one: An arm whose worker is ready.
        launch: From 0.

    Yields:
        What each scenario gave. Of Server one for every rate that was tried.

    Raises:
        WorkerFailure: The worker did not answer.
    """
    bound = one.site.plan.measure.serve.p99_ms
    one.site.listener.stage(one.arm, launch, "serve")
    single = _scenario(one, launch, "SingleStream")
    yield single
    offline = _scenario(one, launch, "Offline", offline_expected_qps=max(single.samples_per_s, 0.01))
    yield offline
    low, high, rate = 0.0, offline.samples_per_s, 0.8 * offline.samples_per_s
    for _ in range(PROBES if bound is not None else 0):
        found = _scenario(one, launch, "Server", server_target_qps=rate)
        yield found.model_copy(update={"asked_per_s": rate, "p99_bound_ms": bound})
        low, high = (rate, high) if found.within else (low, rate)
        rate = (low + high) / 2


def _scenario(one: MeasuredArm, launch: int, name: str, **chosen: float) -> Served:
    """Run one scenario and keep its summary in the run folder. ``chosen``: settings of the generator."""
    lg, asked = generator(), one.site.plan.measure.serve
    settings = lg.TestSettings()
    settings.scenario, settings.mode = getattr(lg.TestScenario, name), lg.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = round(1000 * asked.seconds), 1
    if asked.p99_ms is not None:
        settings.server_target_latency_ns = round(1e6 * asked.p99_ms)
        settings.server_target_latency_percentile = 0.99
    for key, value in chosen.items():
        setattr(settings, key, value)
    folder = one.site.scratch / "serving"
    folder.mkdir(exist_ok=True)
    assert one.prepared is not None
    batches = -(-len(one.prepared.dataset.image_ids) // one.arm.workload.batch_size)
    count = _asked(lg, settings, batches, lambda batch: one.request("respond", batch=batch), folder)
    text = (folder / "mlperf_log_summary.txt").read_text()
    rate = f"-{chosen['server_target_qps']:.4g}" if name == "Server" else ""
    target = one.site.run.folder / "serving" / f"{one.arm.id}-{launch}-{name}{rate}.txt"
    target.parent.mkdir(exist_ok=True)
    write_atomic(target, text, measured=True)
    return summary_of(text, launch=launch, scenario=name, samples=count)


def _asked(lg: Any, settings: Any, batches: int, answer: Callable[[int], object], folder: Path) -> int:
    """Let the generator ask, and answer here: a signal reaches Python in this thread only, so the generator has its
    own. Once an answer has failed the rest is acknowledged unanswered, for the generator has no way to stop.

    Returns:
        How many requests were answered.
    """
    waiting: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

    def issue(samples: Sequence[Any]) -> None:
        for one in samples:
            waiting.put((one.id, one.index))

    sut = lg.ConstructSUT(issue, lambda: None)
    library = lg.ConstructQSL(batches, batches, lambda _: None, lambda _: None)
    log, output = lg.LogSettings(), lg.LogOutputSettings()
    output.outdir, output.prefix, output.copy_summary_to_stdout = str(folder), "mlperf_log_", False
    log.enable_trace, log.log_output = False, output
    asking = threading.Thread(
        target=lg.StartTestWithLogSettings, args=(sut, library, settings, log), daemon=True
    )
    asking.start()
    failure: BaseException | None = None
    answered = 0
    while asking.is_alive() or not waiting.empty():
        with contextlib.suppress(queue.Empty):
            identity, batch = waiting.get(timeout=0.05)
            if failure is None:
                try:
                    answer(batch)
                    answered += 1
                except (WorkerFailure, KeyboardInterrupt) as error:
                    failure = error
            lg.QuerySamplesComplete([lg.QuerySampleResponse(identity, 0, 0)])
    asking.join()
    lg.DestroyQSL(library)
    lg.DestroySUT(sut)
    if failure is not None:
        raise failure
    return answered


_LINE = re.compile(r"^\s*\*?\s*(?P<name>[^:\n]+?)\s*:\s*(?P<value>\S+)\s*$", re.MULTILINE)
_RATES = ("Samples per second", "Completed samples per second", "QPS w/ loadgen overhead")


def summary_of(text: str, *, launch: int, scenario: str, samples: int) -> Served:
    """What the generator's summary says.

    Args:
        text: `mlperf_log_summary.txt`.
        launch: From 0.
        scenario: The generator's name of it.
        samples: Requests that were answered.

    Returns:
        Its numbers; a percentile that fewer requests were made for than it needs is None.
    """
    said = {match["name"]: match["value"] for match in _LINE.finditer(text)}

    def percentile(share: int) -> float | None:
        enough = samples * (100 - share) >= 100 and scenario != "Offline"
        return float(said[f"{share}.00 percentile latency (ns)"]) / 1e6 if enough else None

    within = said.get("Performance constraints satisfied")
    return Served(
        launch=launch,
        scenario=scenario,
        samples=samples,
        samples_per_s=next(float(said[name]) for name in _RATES if name in said),
        p50_ms=percentile(50),
        p90_ms=percentile(90),
        p99_ms=percentile(99),
        within=within.lower() == "yes" if within and scenario == "Server" else None,
        valid=said.get("Result is") == "VALID",
    )
