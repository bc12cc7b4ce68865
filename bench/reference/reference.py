"""What the reference log shows: one SOLOv2 configuration in PaddleDetection and in an own implementation.

Everything is computed from the log's text by the importers; nothing is typed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.importers import import_logs
from bench.importers.events import BestMetric, Evaluation, Inference
from bench.importers.formats.paddle import OWN
from bench.importers.formats.paddle import PADDLE_2020 as PADDLE
from bench.importers.section import Section, WallClock
from bench.importers.summary import Placed

#: The window of the document: the lines of these two iterations.
FROM_ITER, TO_ITER = 20, 1000


@dataclass(frozen=True)
class Pair:
    """Both codebases with EMA, or both without."""

    ema: bool
    own: WallClock
    paddle: WallClock
    own_section: Section
    paddle_section: Section

    @property
    def ratio(self) -> float:
        """Speed of the own implementation over PaddleDetection's."""
        return self.own.steps_per_s / self.paddle.steps_per_s


@dataclass(frozen=True)
class EmaCost:
    """What EMA costs in one codebase."""

    throughput_loss: float
    """1 - steps/s with EMA over steps/s without."""
    s_per_iter: float
    """Seconds that EMA adds to an iteration."""


@dataclass(frozen=True)
class After20000:
    """Evaluation and inference of one codebase after 20,000 steps, as it prints them."""

    mask: Evaluation
    box: Evaluation | None
    inference: tuple[Inference, ...]
    best: BestMetric | None


@dataclass(frozen=True)
class Solov2Log:
    with_ema: Pair
    without_ema: Pair
    own_ema_cost: EmaCost
    paddle_ema_cost: EmaCost
    own: After20000
    paddle: After20000
    own_images: int
    """Images that the own implementation evaluated: its total time over its time per image."""
    polluted_s_per_iter: float
    """The s/iter that PaddleDetection prints on the first line after its evaluation."""
    usual_s_per_iter: float
    """… and on the line after that one."""


def read_solov2_log(path: Path) -> Solov2Log:
    """Raises BenchError when the log is not the reference log, or an excerpt with all its measurements."""
    log = import_logs("auto", [path], from_iter=FROM_ITER, to_iter=TO_ITER).log

    def section(format: str, ema: bool) -> tuple[Section, WallClock]:
        for one in log.sections:
            if (
                one.format == format
                and one.settings.get("use_ema") == str(ema)
                and one.wall_clock is not None
            ):
                return one, one.wall_clock.cut_to_seconds()
        raise _missing(path, f"a run of {format} with use_ema = {ema}")

    def pair(ema: bool) -> Pair:
        (own_section, own), (paddle_section, paddle) = section(OWN, ema), section(PADDLE, ema)
        return Pair(ema, own, paddle, own_section, paddle_section)

    with_ema, without_ema = pair(True), pair(False)
    own, paddle = _after_20000(path, log.found, OWN), _after_20000(path, log.found, PADDLE)
    resumed = next((one for one in log.sections if one.format == PADDLE and one.first > TO_ITER), None)
    printed = [point.fields.s_per_iter for point in resumed.curve[:2]] if resumed is not None else []
    total_s = next((one.total_s for one in own.inference if one.total_s is not None), None)
    s_per_image = next((one.s_per_image for one in own.inference if one.s_per_image is not None), None)
    if len(printed) < 2 or printed[0] is None or printed[1] is None or not total_s or not s_per_image:
        raise _missing(path, "the lines after the evaluation")
    return Solov2Log(
        with_ema=with_ema,
        without_ema=without_ema,
        own_ema_cost=_ema_cost(with_ema.own, without_ema.own),
        paddle_ema_cost=_ema_cost(with_ema.paddle, without_ema.paddle),
        own=own,
        paddle=paddle,
        own_images=round(total_s / s_per_image),
        polluted_s_per_iter=printed[0],
        usual_s_per_iter=printed[1],
    )


def _ema_cost(on: WallClock, off: WallClock) -> EmaCost:
    return EmaCost(1 - on.steps_per_s / off.steps_per_s, on.s_per_iter - off.s_per_iter)


def _after_20000(path: Path, found: tuple[Placed, ...], format: str) -> After20000:
    events = [placed.event for placed in found if placed.format == format]
    evaluations = {event.task: event for event in events if isinstance(event, Evaluation)}
    if "segm" not in evaluations:
        raise _missing(path, f"a mask evaluation of {format}")
    return After20000(
        mask=evaluations["segm"],
        box=evaluations.get("bbox"),
        inference=tuple(event for event in events if isinstance(event, Inference)),
        best=next((event for event in events if isinstance(event, BestMetric)), None),
    )


def _missing(path: Path, what: str) -> BenchError:
    return BenchError(f"not the reference log: {what} is missing", where=str(path))
