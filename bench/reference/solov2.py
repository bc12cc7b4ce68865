"""The SOLOv2 log that this project grew from: one configuration in PaddleDetection and in an own implementation, what
the log shows, and what in it is not comparable.

Everything is computed from the log's text by the importers; nothing is typed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.importers import import_logs
from bench.importers.evaluation import COCO_METRICS
from bench.importers.events import BestMetric, Evaluation, Inference
from bench.importers.formats.paddle import OWN, PADDLE_2020
from bench.importers.render import inference_text
from bench.importers.section import Section, WallClock
from bench.importers.summary import LogSummary
from bench.report.document import Block, Bullets, Cell, Code, Column, Figure, Heading, Table, Text
from bench.report.text import cell

#: The window of the document: the lines of these two iterations.
FROM_ITER, TO_ITER = 20, 1000


@dataclass(frozen=True)
class Measured:
    """What the log shows of one codebase."""

    sections: Mapping[bool, Section]
    """With EMA, and without."""
    evaluations: Mapping[str, Evaluation]
    """After 20,000 steps, by task."""
    inference: tuple[Inference, ...]
    best: BestMetric | None

    def clock(self, ema: bool) -> WallClock:
        """By whole seconds, as the document has it."""
        clock = self.sections[ema].wall_clock
        assert clock is not None
        return clock.cut_to_seconds()

    @property
    def ema_loss(self) -> float:
        """The part of the throughput that EMA costs."""
        return 1 - self.clock(True).steps_per_s / self.clock(False).steps_per_s

    @property
    def ema_s(self) -> float:
        """Seconds that EMA adds to an iteration."""
        return self.clock(True).s_per_iter - self.clock(False).s_per_iter


@dataclass(frozen=True)
class Solov2Log:
    own: Measured
    paddle: Measured
    printed_s_per_iter: tuple[float | None, ...]
    """What PaddleDetection prints on the first line after its evaluation, and on the next."""

    @property
    def own_images(self) -> int:
        """Images that the own implementation evaluated: its total time over its time per image."""
        total_s = next(one.total_s for one in self.own.inference if one.total_s)
        return round(total_s / next(one.s_per_image for one in self.own.inference if one.s_per_image))

    def ratio(self, ema: bool) -> float:
        """Speed of the own implementation over PaddleDetection's."""
        return self.own.clock(ema).steps_per_s / self.paddle.clock(ema).steps_per_s


def read_solov2_log(path: Path) -> Solov2Log:
    """What the reference log shows, or an excerpt of it with all its measurements."""
    log = import_logs("auto", [path], from_iter=FROM_ITER, to_iter=TO_ITER).log
    resumed = next(one for one in log.sections if one.format == PADDLE_2020 and one.first > TO_ITER)
    printed = tuple(point.fields.s_per_iter for point in resumed.curve[:2])
    return Solov2Log(_measured(log, OWN), _measured(log, PADDLE_2020), printed)


def _measured(log: LogSummary, format: str) -> Measured:
    events = [placed.event for placed in log.found if placed.format == format]
    timed = [one for one in log.sections if one.format == format and one.wall_clock is not None]
    return Measured(
        sections={
            ema: next(one for one in timed if one.settings.get("use_ema") == str(ema))
            for ema in (True, False)
        },
        evaluations={event.task: event for event in events if isinstance(event, Evaluation)},
        inference=tuple(event for event in events if isinstance(event, Inference)),
        best=next((event for event in events if isinstance(event, BestMetric)), None),
    )


# -- The page ----------------------------------------------------------------------------------------------


def numeric(*titles: str) -> tuple[Column, ...]:
    return tuple(Column(title, True) for title in titles)


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def _speed_rows(log: Solov2Log, ema: bool) -> Iterator[tuple[Cell, ...]]:
    for name, codebase, ratio in (
        ("own implementation", log.own, percent(log.ratio(ema))),
        ("PaddleDetection", log.paddle, "100 %"),
    ):
        clock, printed = codebase.clock(ema), codebase.sections[ema].printed
        rate, images = printed.get("s_per_iter"), printed.get("images_per_s")
        yield (
            cell("on" if ema else "off"),
            cell(name),
            cell(f"{clock.steps} step / {clock.seconds} s"),
            cell(f"{clock.steps_per_s:.4f}", sort=clock.steps_per_s),
            cell(f"{clock.s_per_iter:.4f}", sort=clock.s_per_iter),
            cell(ratio),
            cell(f"{1 / rate.mean:.4f}" if rate else None),
            cell(f"{images.mean:.3f}" if images else None),
        )


def _cost_row(name: str, codebase: Measured) -> tuple[Cell, ...]:
    return (cell(name), cell(percent(codebase.ema_loss, 1)), cell(f"{codebase.ema_s:.3f}"))


def _metrics_row(name: str, task: str, evaluation: Evaluation) -> tuple[Cell, ...]:
    return (
        cell(name),
        cell(task),
        *(cell(f"{evaluation.metrics[metric]:.3f}") for metric in COCO_METRICS),
    )


def solov2_blocks(log: Solov2Log, provenance: Mapping[str, Any]) -> Iterator[Block]:
    """The page on the reference log: what it shows, and what in it cannot be compared."""
    yield Heading(1, "SOLOv2 in PaddleDetection and in an own implementation, December 2020")
    yield Bullets(
        (
            f"Source: {provenance['document']}; {provenance['source']}",
            f"Model: {provenance['model']}; hardware not stated",
            "Every number below is computed from the text of the log by bench.importers",
        )
    )
    yield from _speed_blocks(log)
    yield Heading(2, "What EMA costs")
    yield Table(
        (Column("codebase"), *numeric("loss of throughput", "seconds per iteration")),
        (
            _cost_row("own implementation", log.own),
            _cost_row("PaddleDetection", log.paddle),
        ),
    )
    yield Text(
        "Why, from reading both implementations: the own one copied every parameter from the device to the "
        "host in each step and averaged there in numpy; PaddleDetection averages in the graph."
    )
    yield from _result_blocks(log)
    yield from _doubt_blocks(log)
    yield Heading(2, "Reproduce")
    yield Code(
        "bench import auto results/published/solov2_reference_log/excerpt.log.txt --from-iter 20 "
        "--to-iter 1000\n"
        "bench report --published",
        "sh",
    )


def _speed_blocks(log: Solov2Log) -> Iterator[Block]:
    yield Heading(2, "Training speed")
    speed = (*_speed_rows(log, True), *_speed_rows(log, False))
    columns = (
        Column("EMA"),
        Column("codebase"),
        *numeric(
            "between the lines of iterations 20 and 1000", "step/s", "s/iter", "of PaddleDetection's speed"
        ),
        *numeric("step/s as printed", "images/s as printed"),
    )
    yield Table(columns, speed)
    speeds = {
        ema: f"{log.own.clock(ema).steps_per_s:.4f} / {log.paddle.clock(ema).steps_per_s:.4f}"
        for ema in (True, False)
    }
    exact = [
        percent(log.paddle.clock(ema).exact_seconds / log.own.clock(ema).exact_seconds)
        for ema in (True, False)
    ]
    yield Text(
        f"With EMA the own implementation runs at {speeds[True]} step/s = {percent(log.ratio(True))} of "
        f"PaddleDetection's speed, without at {speeds[False]} = {percent(log.ratio(False))}. Seconds are "
        "differences of the lines' times cut to whole seconds, as the document computes them; with "
        f"milliseconds the ratios are {exact[0]} and {exact[1]}. Printed rates are means over the two "
        "lines that the document shows; the own implementation prints none."
    )
    yield Figure("solov2", "Seconds per iteration of both codebases, EMA on and off")


def _result_blocks(log: Solov2Log) -> Iterator[Block]:
    yield Heading(2, "After 20,000 steps")
    rows = (
        _metrics_row("PaddleDetection", "mask", log.paddle.evaluations["segm"]),
        _metrics_row("own", "mask", log.own.evaluations["segm"]),
        _metrics_row("own", "box", log.own.evaluations["bbox"]),
    )
    yield Table((Column("codebase"), Column("task"), *numeric(*COCO_METRICS)), rows)
    yield Heading(2, "Inference")
    yield Table(
        (Column("codebase"), Column("as printed")),
        (
            (cell("own implementation"), cell("; ".join(map(inference_text, log.own.inference)))),
            (cell("PaddleDetection"), cell("; ".join(map(inference_text, log.paddle.inference)))),
        ),
    )


def _doubt_blocks(log: Solov2Log) -> Iterator[Block]:
    own_fps = next(one for one in log.own.inference if one.fps is not None)
    paddle_rate = next(one for one in log.paddle.inference if one.batches_per_s is not None)
    yield Heading(2, "What is not comparable")
    best = log.paddle.best
    label = f"'{best.label}' ({best.value:.4f})" if best is not None else "'box ap'"
    own, paddle = log.own.evaluations, log.paddle.evaluations
    polluted_s, usual_s = log.printed_s_per_iter
    yield Bullets(
        (
            f"{own_fps.fps:g} FPS and {paddle_rate.batches_per_s:.3f} batch/s do not span the same work: "
            "post-processing and the writing of results are inside one and outside the other, and the log "
            "does not state how many images a batch had. No ratio is given.",
            f"PaddleDetection evaluated {paddle_rate.batches} images, the own implementation "
            f"{log.own_images} (its total time over its time per image): only those that have ground truth. "
            "AP does not change by images without objects unless something is detected in them; the time "
            "does.",
            f"PaddleDetection prints its mask AP under the label {label}; the box AP "
            f"{own['bbox'].metrics['AP']:.3f} of the own implementation is of boxes drawn tightly around its "
            f"masks. Only the two mask AP ({own['segm'].metrics['AP']:.3f} and "
            f"{paddle['segm'].metrics['AP']:.3f}) are of one kind.",
            "PaddleDetection's batch_cost is a mean of the last 20 iterations: after the evaluation it "
            f"prints {polluted_s:.2f} s, 20 iterations later {usual_s:.2f} s. A "
            "wall-clock window must not hold an evaluation.",
            "PaddleDetection prints the median loss of 20 iterations, the own implementation that of one: "
            "the loss curves have different noise.",
            "The configuration has one name, the code differs: initialisation of the head, learning rate "
            "of the stem, weight decay of biases, and how the mask loss is computed.",
            "The log names no hardware, shows two lines per run and one run per setting: there is no "
            "interval around any of these ratios. It does not say whether the runs of 20,000 steps used "
            "EMA.",
        )
    )
