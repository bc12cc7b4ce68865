"""Training to a number of steps: the arms of a cell take turns, and are evaluated on the way."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from bench.errors import StorageError
from bench.measure.arm import MeasuredArm
from bench.measure.cell import refuse_unequal, rounds_done, turns, write_arms
from bench.measure.process import WorkerFailure
from bench.measure.site import Site
from bench.recipe.plan import Arm
from bench.record.models import Losses


def run_training(site: Site, arms: Sequence[MeasuredArm]) -> None:
    """Train all arms of a cell from where they are, in turns."""
    _, launch = rounds_done(site, arms)
    cell = arms[0].arm.cell
    seed = zlib.crc32(
        f"{cell}/{arms[0].arm.workload.seed}".encode()
    )  # the same order after every interruption
    planned = max(len(one.arm.workload.turns()) for one in arms)
    try:
        with contextlib.ExitStack() as stack:
            if site.strict:
                for one in arms:
                    _start(one, launch, stack)
                refuse_unequal(site, arms, launch)
            for round_, position, index in turns(site, len(arms), planned, seed):
                if position == 0 and site.out_of_time():
                    site.warn(f"{cell}: time budget reached after {round_} of {planned} turns")
                    break
                one = arms[index]
                # Not before its turn: arms that are not interleaved need not all fit into memory.
                _start(one, launch, stack)
                if one.alive and one.group is not None:
                    with one.failing(launch):
                        _turn(one, launch, round_, position)
    finally:
        with contextlib.suppress(StorageError):
            for one in arms:
                write_arms(site, [one], complete=_trained(one))


def _start(one: MeasuredArm, launch: int, stack: contextlib.ExitStack) -> None:
    """A worker for an arm that has none and needs one, where its training was interrupted if it was."""
    if one.alive and one.group is None and not _trained(one):
        with one.failing(launch):
            one.begin(launch, stack)
            one.ready(launch, stack)
            _continue(one, launch)


def _steps_done(one: MeasuredArm) -> int:
    """Steps of an arm that are in the journal."""
    blocks = (block for block in one.site.run.journal() if block.arm == one.arm.id)
    return sum(block.steps for block in blocks)


def _trained(one: MeasuredArm) -> bool:
    """Nothing is left to do: the last step is evaluated, and its weights are kept where they are to be."""
    kept = not one.site.plan.measure.keep_checkpoints or _checkpoint(one).exists()
    return kept and any(found.step == one.arm.workload.steps for found in one.record.evaluations)


def _checkpoint(one: MeasuredArm) -> Path:
    return one.site.run.folder / "checkpoints" / f"{one.arm.id}.npz"


def _states(site: Site, arm: Arm, step: int) -> list[Path]:
    """The file of each rank that holds what the arm was after a step."""
    folder = site.run.folder / "state"
    return [(folder / f"{arm.id}-{step}-{rank}").resolve() for rank in range(arm.workload.ranks)]


def _continue(one: MeasuredArm, launch: int) -> None:
    """Load what the arm was after the last step of the journal, and evaluate it if a kill came between."""
    step = _steps_done(one)
    (one.site.run.folder / "state").mkdir(exist_ok=True)
    if step:
        paths = _states(one.site, one.arm, step)
        if lost := [path for path in paths if not path.exists()]:
            raise WorkerFailure("environment", f"cannot go on after step {step}: {lost[0]} is gone", "load")
        one.request("load", by_rank=[{"state": str(path)} for path in paths], step=step)
    if one.arm.workload.evaluated_after(step):
        _evaluate(one, launch, step)


def _turn(one: MeasuredArm, launch: int, round_: int, position: int) -> None:
    """The steps of one turn of an arm, unless an earlier session took them, and the evaluation after them."""
    site, arm = one.site, one.arm
    edges = [0, *arm.workload.turns()]
    if round_ + 1 >= len(edges) or edges[round_] != _steps_done(one):
        return
    begin, end = edges[round_ : round_ + 2]
    by_rank = [{"state": str(path)} for path in _states(site, arm, end)]
    replies = one.request("train", by_rank=by_rank, steps=end - begin)
    losses = replies[0]["losses"]
    one.keep_block(launch, round_, position, replies, losses=losses)
    if begin:
        for path in _states(site, arm, begin):
            path.unlink(missing_ok=True)
    # The first step's as well: it is that of the same weights and images, whatever training makes of them.
    for step in dict.fromkeys((end - begin - 1,) if begin else (0, end - 1)):
        at_step = {name: values[step] for name, values in losses.items()}
        entry = Losses(launch=launch, round=round_, step=begin + step, losses=at_step)
        one.record.losses.append(entry)
    one.note_memory(launch, replies)
    one.show_block(launch, round_, replies, end - begin)
    if arm.workload.evaluated_after(end):
        _evaluate(one, launch, end)


def _evaluate(one: MeasuredArm, launch: int, step: int) -> None:
    """Evaluate what a kill has not left evaluated; after the last step keep the weights, and no more."""
    if not any(found.step == step for found in one.record.evaluations):
        one.evaluate(launch, step)
        write_arms(one.site, [one], complete=False)
    if step < one.arm.workload.steps:
        return
    if one.site.plan.measure.keep_checkpoints:
        path = _checkpoint(one)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}").resolve()
        # Every rank answers; the first one's weights are those of all.
        others = (one.site.scratch / f"{rank}.npz" for rank in range(1, one.arm.workload.ranks))
        one.request("save", by_rank=[{"path": str(target)} for target in (temporary, *others)])
        os.replace(temporary, path)
    one.stop()
    for path in _states(one.site, one.arm, step):
        path.unlink(missing_ok=True)
