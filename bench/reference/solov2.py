"""The page on the SOLOv2 log that this project grew from: what it shows, and what in it is not comparable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.importers.evaluation import COCO_METRICS
from bench.importers.events import Evaluation
from bench.importers.render import inference_text
from bench.reference.reference import EmaCost, Pair, Solov2Log
from bench.report.document import Block, Bullets, Cell, Code, Column, Figure, Heading, Table, Text
from bench.report.text import cell


def numeric(*titles: str) -> tuple[Column, ...]:
    return tuple(Column(title, True) for title in titles)


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def _speed_rows(pair: Pair) -> Iterator[tuple[Cell, ...]]:
    for name, clock, section in (
        ("own implementation", pair.own, pair.own_section),
        ("PaddleDetection", pair.paddle, pair.paddle_section),
    ):
        rate = section.printed.get("s_per_iter")
        images = section.printed.get("images_per_s")
        yield (
            cell("on" if pair.ema else "off"),
            cell(name),
            cell(f"{clock.steps} step / {clock.seconds} s"),
            cell(f"{clock.steps_per_s:.4f}", sort=clock.steps_per_s),
            cell(f"{clock.s_per_iter:.4f}", sort=clock.s_per_iter),
            cell(percent(pair.ratio) if clock is pair.own else "100 %"),
            cell(f"{1 / rate.mean:.4f}" if rate else None),
            cell(f"{images.mean:.3f}" if images else None),
        )


def _cost_row(name: str, cost: EmaCost) -> tuple[Cell, ...]:
    return (cell(name), cell(percent(cost.throughput_loss, 1)), cell(f"{cost.s_per_iter:.3f}"))


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
            _cost_row("own implementation", log.own_ema_cost),
            _cost_row("PaddleDetection", log.paddle_ema_cost),
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
    speed = (*_speed_rows(log.with_ema), *_speed_rows(log.without_ema))
    columns = (
        Column("EMA"),
        Column("codebase"),
        *numeric(
            "between the lines of iterations 20 and 1000", "step/s", "s/iter", "of PaddleDetection's speed"
        ),
        *numeric("step/s as printed", "images/s as printed"),
    )
    yield Table(columns, speed)
    on, off = log.with_ema, log.without_ema
    yield Text(
        f"With EMA the own implementation runs at {on.own.steps_per_s:.4f} / {on.paddle.steps_per_s:.4f} "
        f"step/s = {percent(on.ratio)} of PaddleDetection's speed, without at {off.own.steps_per_s:.4f} / "
        f"{off.paddle.steps_per_s:.4f} = {percent(off.ratio)}. Seconds are differences of the lines' times "
        "cut to whole seconds, as the document computes them; with milliseconds the ratios are "
        f"{percent(on.paddle.exact_seconds / on.own.exact_seconds)} and "
        f"{percent(off.paddle.exact_seconds / off.own.exact_seconds)}. Printed rates are means over the two "
        "lines that the document shows; the own implementation prints none."
    )
    yield Figure("solov2", "Seconds per iteration of both codebases, EMA on and off")


def _result_blocks(log: Solov2Log) -> Iterator[Block]:
    yield Heading(2, "After 20,000 steps")
    rows = [
        _metrics_row("PaddleDetection", "mask", log.paddle.mask),
        _metrics_row("own", "mask", log.own.mask),
    ]
    if log.own.box is not None:
        rows.append(_metrics_row("own", "box", log.own.box))
    yield Table((Column("codebase"), Column("task"), *numeric(*COCO_METRICS)), tuple(rows))
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
            + (f"{log.own.box.metrics['AP']:.3f} " if log.own.box is not None else "")
            + "of the own implementation is of boxes drawn tightly around its masks. Only the two mask AP "
            f"({log.own.mask.metrics['AP']:.3f} and {log.paddle.mask.metrics['AP']:.3f}) are of one kind.",
            "PaddleDetection's batch_cost is a mean of the last 20 iterations: after the evaluation it "
            f"prints {log.polluted_s_per_iter:.2f} s, 20 iterations later {log.usual_s_per_iter:.2f} s. A "
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
