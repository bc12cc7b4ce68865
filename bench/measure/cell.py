"""One cell: launches of fresh workers, whose arms take turns, round by round."""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Iterator, Sequence

from bench.errors import StorageError
from bench.judge.audit import audit_run, doubtful
from bench.judge.pairs import baselines_of
from bench.measure.arm import MeasuredArm
from bench.measure.process import WorkerFailure
from bench.measure.serving import serve
from bench.measure.site import Site
from bench.recipe.plan import round_orders
from bench.record.samples import samples_columns


def run_cell(site: Site, arms: Sequence[MeasuredArm]) -> None:
    """Measure the rounds that are missing; arms that sleep in the kernel wait while one runs."""
    if not site.plan.measure.rounds:
        _audit_cell(site, arms)
        return
    measure, cell = site.plan.measure, arms[0].arm.cell
    planned = measure.launches * measure.rounds
    done, launch = rounds_done(site, arms)
    missing = planned - done
    try:
        # A session that was killed may have left all rounds but no facts about the arms: one launch more.
        while (missing > 0 and not site.out_of_time() and any(one.alive for one in arms)) or any(
            one.alive and not one.record.description for one in arms
        ):
            rounds = max(0, min(measure.rounds, missing))
            _run_launch(site, arms, launch, rounds)
            launch, missing = launch + 1, missing - rounds
            write_arms(site, arms, complete=missing <= 0)
    finally:
        with contextlib.suppress(StorageError):
            write_arms(site, arms, complete=missing <= 0 or site.out_of_time())
    if missing > 0 and site.out_of_time():
        site.warn(f"{cell}: time budget reached, {missing} of {planned} rounds missing")


def _audit_cell(site: Site, arms: Sequence[MeasuredArm]) -> None:
    """Describe and watch the arms of a cell; nothing is timed."""
    with contextlib.ExitStack() as stack:
        # While one is watched the next one starts; no more than these two need fit into memory.
        for begun in start_in_turn([one for one in arms if one.alive], 0, stack):
            begun.stop()
    _shake(site, arms, 0)
    write_arms(site, arms, complete=True)


def _shake(site: Site, arms: Sequence[MeasuredArm], launch: int) -> None:
    """Watch arms a second time whose values differ from their baseline's by as little as rounding may do."""
    living = {one.arm.id: one for one in arms if one.alive}
    baselines = baselines_of([one.record for one in living.values()], site.plan.baseline)
    for name, reference in baselines.items():
        if reference is None or reference.id == name or not doubtful(living[name].record, reference):
            continue
        for one in (living[name], living[reference.id]):
            if "shaken" not in one.record.audit:
                one.shake(launch)


def _run_launch(site: Site, arms: Sequence[MeasuredArm], launch: int, rounds: int) -> None:
    """Fresh workers for all arms of a cell, their rounds, and the passes of their own."""
    measure = site.plan.measure
    site.wait_until_quiet()
    with contextlib.ExitStack() as stack:
        # Nothing is timed before all are ready.
        list(start_in_turn([one for one in arms if one.alive], launch, stack))
        for one in arms:
            if one.alive:
                with one.failing(launch):
                    one.block(launch, round_=-1, position=0, steps=measure.warmup)
        if site.strict:
            refuse_unequal(site, arms, launch)
        seed = zlib.crc32(f"{arms[0].arm.cell}/{launch}/{arms[0].arm.workload.seed}".encode())
        disturbed = _take_rounds(site, arms, launch, rounds, 0, seed)
        if disturbed and measure.interleave:
            again = _take_rounds(site, arms, launch, disturbed, measure.rounds, seed + 1)
            site.disturbed[arms[0].arm.cell].append((disturbed, again))
        for one in arms:
            if one.alive:
                with one.failing(launch):
                    one.passes(launch)
                    if one.arm.workload.task == "serve":
                        one.record.served.extend(serve(one, launch))
                    one.look()
            one.stop()
    if not launch and not site.out_of_time():
        _shake(site, arms, launch)


def _take_rounds(
    site: Site, arms: Sequence[MeasuredArm], launch: int, rounds: int, first: int, seed: int
) -> int:
    """Measure so many rounds, numbered from `first`. Returns how many of them others disturbed."""
    disturbed = set()
    for round_, position, index in turns(site, len(arms), rounds, seed):
        if position == 0 and site.out_of_time():
            break
        if arms[index].alive:
            with arms[index].failing(launch):
                if arms[index].block(launch, first + round_, position, site.plan.measure.steps):
                    disturbed.add(round_)
    return len(disturbed)


def start_in_turn(
    arms: Sequence[MeasuredArm], launch: int, stack: contextlib.ExitStack
) -> Iterator[MeasuredArm]:
    """Start one arm while the one before it gets ready: importing a codebase and building a model take one processor.

    Gives each when it is ready, or has failed.
    """
    for begun, one in itertools.pairwise([None, *arms, None]):
        if one is not None:
            with one.failing(launch):
                one.begin(launch, stack)
        if begun is not None:
            if begun.alive:
                with begun.failing(launch):
                    begun.ready(launch, stack)
            yield begun


def turns(site: Site, arms: int, rounds: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """(round, position in the round, arm index) in the order of measuring."""
    orders = round_orders(arms, rounds, seed)
    if site.plan.measure.interleave:
        for round_, order in enumerate(orders):
            for position, index in enumerate(order):
                yield round_, position, index
    else:
        for position, index in enumerate(orders[0]):
            for round_ in range(rounds):
                yield round_, position, index


def refuse_unequal(site: Site, arms: Sequence[MeasuredArm], launch: int) -> None:
    """With `--strict`, an arm whose work is not its baseline's fails before it is timed."""
    verdicts = audit_run([one.record for one in arms if one.alive], site.plan.baseline)
    for one in arms:
        verdict = verdicts.get(one.arm.id)
        if one.alive and verdict is not None and verdict.differences:
            with one.failing(launch):
                differences = "; ".join(map(str, verdict.differences))
                raise WorkerFailure("audit", f"unequal work: {differences}", "audit")


def rounds_done(site: Site, arms: Sequence[MeasuredArm]) -> tuple[int, int]:
    """Rounds in which every living arm has a block, and the first launch number that is free."""
    wanted = {one.arm.id for one in arms if one.alive}
    ids = {one.arm.id for one in arms}
    seen: dict[tuple[int, int], set[str]] = {}
    last = -1
    for block in site.run.journal():
        if block.arm in ids:
            last = max(last, block.launch)
            if 0 <= block.round < site.plan.measure.rounds:  # later ones stand for disturbed ones
                seen.setdefault((block.launch, block.round), set()).add(block.arm)
    return sum(wanted <= found for found in seen.values()), last + 1


def write_arms(site: Site, arms: Sequence[MeasuredArm], *, complete: bool) -> None:
    """Store the records of arms with the samples that the journal has of them."""
    journal = site.run.journal()
    for one in arms:
        blocks = [block for block in journal if block.arm == one.arm.id]
        measured = [block for block in blocks if block.round >= 0]
        record = one.record
        record.launches = len({block.launch for block in measured})
        record.blocks = len(measured)
        record.steps = sum(block.steps for block in measured)
        if not one.alive:
            record.status = "failed"
        else:
            record.status = "ok" if complete and measured else "partial"
        site.run.write_arm(record, samples_columns(blocks))
