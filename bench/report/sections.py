"""Values → text: how numbers are written, and which tables, lists and figures a report has, in order."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.judge.ratio import Cost, Ratio
from bench.recipe.models import MODELS
from bench.recipe.schema import level_text
from bench.report import accuracy_values
from bench.report.document import Block, Bullets, Cell, Code, Column, Figure, Heading, Table, Text
from bench.report.text import (
    cell,
    cost_text,
    counted,
    design_text,
    detectable_cell,
    interval_text,
    mebibytes,
    on_off,
    ratio_cell,
    ratio_text,
    significant,
    size_text,
    spread_text,
)
from bench.report.values import (
    Group,
    MemoryUse,
    Report,
    Row,
    RunReport,
    Software,
    WithoutOperator,
    factor_name,
    trains,
)

Figures = Mapping[str, Sequence[Figure]]


def _memory_text(memory: MemoryUse) -> str:
    base = f" ({mebibytes(memory.baseline_bytes)})" if memory.baseline_bytes is not None else ""
    return mebibytes(memory.peak_bytes) + base


#: Characters of a failure's reason in a table; the whole of a longer one stands below it.
LONGEST_REASON = 120


def group_table(group: Group) -> Table:
    """The table of one group: one row per arm, a failed one with its reason in place of numbers."""
    training = trains(group.task)
    factors = [name for name in group.factors if name != "ema"]
    seconds, rate = Column("s/iter, median (p5–p95)", True), "images/s" if training else "FPS (images/s)"
    columns = (
        Column("codebase"),
        Column("version", optional=True),
        *(Column(factor_name(name)) for name in factors),
        Column("EMA", optional=True),
        *(Column(title, True, optional=True) for title in accuracy_values.TITLES.values()),
        *((seconds, Column(rate, True)) if training else (Column(f"{rate}, median (p5–p95)", True), seconds)),
        Column("max memory (MiB)", True, optional=True),
        Column("GFLOP/s (% of peak)", True, optional=True),
        Column("ratio to baseline [95 % interval]", True),
        Column("detectable effect (%)", True, optional=True),
        Column("launches × rounds", True),
        Column("audit", optional=True),
        Column("status"),
    )
    rows = []
    for row in group.rows:
        levels = (level_text(row.levels[name]) if name in row.levels else None for name in factors)
        rows.append(
            (
                cell(row.label, tone="strong" if row.is_baseline else ""),
                cell(", kernels: ".join(part for part in (row.version, row.kernels) if part)),
                *map(cell, levels),
                cell(on_off(row.ema)),
                *(_ap_cell(row.ap.get(kind)) for kind in accuracy_values.TITLES),
                *_timing_cells(row, training),
                cell(_memory_text(row.memory), sort=row.memory.peak_bytes) if row.memory else cell(None),
                _flops_cell(row),
                cell("1 (baseline)", sort=1.0) if row.is_baseline and row.step_s else ratio_cell(row.ratio),
                detectable_cell(row.ratio),
                cell(design_text(row.launches, row.rounds) if row.step_s else None),
                cell(row.verdict.text, tone="" if row.verdict.equal else "bad")
                if row.verdict
                else cell(None),
                _status_cell(row),
            )
        )
    return Table(columns, tuple(rows)).compact()


def _timing_cells(row: Row, training: bool) -> tuple[Cell, Cell]:
    """s/iter and images/s for training; for inference FPS comes first and carries the spread as well."""
    if row.step_s is None:
        return cell(None), cell(None)
    summary, images = row.step_s, row.images_per_step
    seconds = cell(spread_text(summary), sort=summary.median_s)
    rate = spread_text(summary, lambda one: images / one)
    if training:
        return seconds, cell(rate.partition(" ")[0], sort=summary.images_per_s)
    return cell(rate, sort=summary.images_per_s), seconds


def _ap_cell(ap: float | None) -> Cell:
    """In per cent, as COCO's is written."""
    return cell(None) if ap is None else cell(f"{100 * ap:.1f}", sort=ap)


def _flops_cell(row: Row) -> Cell:
    """FLOP/s of the step, and their share of what the machine can do."""
    if row.flops_per_step is None or row.step_s is None:
        return cell(None)
    rate = row.flops_per_step / row.step_s.median_s / 1e9
    share = f" ({100 * row.peak_share:.0f})" if row.peak_share is not None else ""
    return cell(f"{significant(rate)}{share}", sort=rate)


def _status_cell(row: Row) -> Cell:
    text = (
        f"{row.status}: {textwrap.shorten(row.reason, LONGEST_REASON, placeholder=' …')}"
        if row.reason
        else row.status
    )
    return cell(text, tone="bad" if row.status == "failed" else "muted" if row.status == "ok" else "")


def phase_table(groups: Iterable[Group], task: str) -> Table | None:
    """Seconds and share of each phase, a row per arm of this task; None when no arm has phases."""
    chosen = [(group, row) for group in groups if group.task == task for row in group.rows if row.phases]
    names = dict.fromkeys(phase.name for _, row in chosen for phase in row.phases)
    if not chosen:
        return None
    columns = [Column("workload"), Column("codebase")]
    for name in names:
        title = PHASE_TITLES.get(name, name)
        columns += [Column(f"{title} (s)", True), Column(f"{title} (%)", True)]
    rows = []
    for group, row in chosen:
        phases = {phase.name: phase for phase in row.phases}
        cells = [cell(group.title), cell(group.row_name(row))]
        whole_s = sum(phase.median_s for phase in row.phases)
        for name in names:
            if name in phases:
                phase = phases[name]
                cells += [
                    cell(_phase_text(phase.median_s, whole_s), sort=phase.median_s),
                    cell(f"{100 * phase.share:.1f}", sort=phase.share),
                ]
            else:
                cells += [cell(None), cell(None)]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows))


PHASE_TITLES = {"ema": "EMA", "post": "post-processing"}


def _phase_text(part_s: float, whole_s: float) -> str:
    """A part in the decimals that show the whole with four digits; less than the last of them is said so."""
    decimals = len(significant(whole_s, 4).partition(".")[2])
    return f"{part_s:.{decimals}f}" if part_s >= 10**-decimals else f"< {10**-decimals:.{decimals}f}"


def effect_table(run: RunReport) -> Table:
    columns = (
        Column("workload"),
        Column("codebase"),
        Column("factor"),
        Column("level"),
        Column("against"),
        Column("cost (% of a step) [95 % interval]", True),
        Column("throughput ratio [95 % interval]", True),
        Column("interleaved"),
    )
    rows = tuple(
        (
            cell(effect.group),
            cell(effect.label),
            cell(factor_name(effect.factor)),
            cell(level_text(effect.level)),
            cell(level_text(effect.reference)),
            _cost_cell(effect.cost),
            cell(ratio_text(effect.ratio), sort=effect.ratio.value),
            cell("yes" if effect.interleaved else "no"),
        )
        for effect in run.effects
    )
    return Table(columns, rows)


def _cost_cell(cost: Cost | None) -> Cell:
    if cost is None or not math.isfinite(cost.low):
        return cell(None)
    return cell(cost_text(cost), sort=cost.share)


def scaling_table(run: RunReport) -> Table:
    columns = (
        Column("workload"),
        Column("codebase"),
        Column("ranks", True),
        Column("images/s", True),
        Column("scaling efficiency (%) [95 % interval]", True),
        Column("against ranks", True),
        Column("interleaved"),
    )
    rows = []
    for item in run.scaling:
        value = item.efficiency
        rows.append(
            (
                cell(item.group),
                cell(item.label),
                cell(item.ranks, sort=item.ranks),
                cell(significant(item.images_per_s), sort=item.images_per_s),
                cell(interval_text(100 * value.value, 100 * value.low, 100 * value.high), sort=value.value),
                cell(item.reference_ranks, sort=item.reference_ranks),
                cell("yes" if item.interleaved else "no"),
            )
        )
    return Table(columns, tuple(rows))


def software_table(software: Sequence[Software]) -> Table:
    columns = (
        Column("codebase"),
        Column("version", optional=True),
        Column("python", optional=True),
        Column("packages", optional=True),
        Column("variables", optional=True),
    )
    rows = []
    for item in software:
        packages = ", ".join(f"{name} {version}" for name, version in item.packages.items())
        others = item.package_count - len(item.packages)
        if others > 0:
            packages = f"{packages}{', ' if packages else ''}{others} more in the arm's record"
        rows.append(
            (
                cell(item.title if item.title == item.codebase else f"{item.codebase} ({item.title})"),
                cell(item.version),
                cell(item.python.split(" ")[0]),
                cell(packages),
                cell(", ".join(f"{name}={value}" for name, value in sorted(item.variables.items()))),
            )
        )
    return Table(columns, tuple(rows)).compact()


# -- Machine -------------------------------------------------------------------------------------------------


def _leaf(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


#: How values are written whose key ends so (units are in names).
UNITS: dict[str, Callable[[Any], str]] = {
    "_bytes": size_text,
    "_mhz": lambda value: f"{value:.4g} MHz",
    "_c": lambda value: f"{value:.4g} °C",
    "_w": lambda value: f"{value:.4g} W",
    "_percent": lambda value: f"{value:.4g} %",
}


def _words(value: Any, write: Callable[[Any], str] = _leaf) -> str:
    """Any recorded value in one line."""
    if isinstance(value, Mapping):
        pairs = (_fact(str(key), item, write) for key, item in value.items() if not _empty(item))
        return ", ".join(f"{name} {text}" for name, text in pairs)
    if isinstance(value, list | tuple):
        separator = "; " if any(isinstance(item, Mapping) for item in value) else ", "
        return separator.join(_words(item, write) for item in value)
    return write(value) if isinstance(value, int | float) and not isinstance(value, bool) else _leaf(value)


def _fact(key: str, value: Any, write: Callable[[Any], str] = _leaf) -> tuple[str, str]:
    """A key in words and its value with the unit that the key names."""
    suffix = next((suffix for suffix in UNITS if key.endswith(suffix)), "")
    return key.removesuffix(suffix).replace("_", " "), _words(value, UNITS.get(suffix, write))


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and len(value) == 0)


def machine_text(machine: Mapping[str, Any]) -> str:
    """The machine in one line, from what is known of it; empty when nothing is."""
    cpu, memory, system = (machine.get(name) or {} for name in ("cpu", "memory", "os"))
    gpus = [str(gpu.get("model") if isinstance(gpu, Mapping) else gpu) for gpu in machine.get("gpus") or []]
    cores = cpu.get("physical_cores") or cpu.get("logical_cores")
    parts = [
        str(cpu.get("model") or ""),
        counted(cores, "core") if cores else "",
        f"{size_text(memory['total_bytes'])} of memory" if memory.get("total_bytes") else "",
        ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)) or "no NVIDIA GPU",
        " ".join(str(system[key]) for key in ("distribution", "system", "release") if system.get(key)),
    ]
    return ", ".join(part for part in parts if part) if cpu else ""


def machine_table(run: RunReport) -> Table:
    """What was recorded of the machine, one line per fact; facts that could not be read are left out."""
    rows: list[tuple[Cell, Cell]] = []
    for key, value in run.machine.items():
        if _empty(value) or (key == "load_average" and run.load_before):
            continue
        if isinstance(value, Mapping):
            for name, text in (_fact(str(part), item) for part, item in value.items() if not _empty(item)):
                rows.append((cell(f"{key}: {name}"), cell(text)))
        else:
            name, text = _fact(str(key), value)
            rows.append((cell(name), cell(text)))
    if run.load_before:
        after = f"; after: {_words(run.load_after)}" if run.load_after else ""
        rows.append((cell("load average (1, 5, 15 min)"), cell(f"before: {_words(run.load_before)}{after}")))
    revision = str(run.git.get("revision") or "")
    dirty = " with uncommitted changes" if run.git.get("dirty") else ""
    rows.append(
        (cell("bench"), cell(f"{run.bench_version}{f', git {revision[:12]}{dirty}' if revision else ''}"))
    )
    return Table((Column("what"), Column("value")), tuple(rows))


# -- The setting in words ------------------------------------------------------------------------------------


def setting(run: RunReport) -> tuple[str, ...]:
    """What was measured, in sentences made from the workloads of the arms and the recipe."""
    works = [row.workload for row in run.rows]
    if not works:
        return ()

    def values(*path: str) -> list[Any]:
        """Distinct values at a place of the workloads, in order."""
        found: dict[str, Any] = {}
        for work in works:
            value: Any = work
            for part in path:
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                found.setdefault(repr(value), value)
        return list(found.values())

    def either(*path: str) -> str:
        return " or ".join(level_text(value) for value in values(*path))

    tasks = " and ".join(TASKS.get(str(task), str(task)) for task in values("task"))
    models = ", ".join(MODELS[name].title if name in MODELS else str(name) for name in values("model"))
    sizes = " or ".join(map(_size_text, values("input", "size")))
    modes = " or ".join(INPUT_MODES.get(str(mode), str(mode)) for mode in values("input", "mode"))
    lines = [
        f"{tasks.capitalize()} of {models}.",
        f"Input: {modes}; the first {either('input', 'images')} images of {either('input', 'dataset')}, "
        f"{sizes}.",
        f"{either('batch_size')} images per step and rank, {either('precision')}, ranks: {either('ranks')}, "
        f"device: {either('device')}.",
    ]
    if any(trains(str(task)) for task in values("task")):
        frozen = " or ".join(_frozen_text(int(stages)) for stages in values("frozen_stages"))
        norms = " or ".join("fixed" if value else "trained" for value in values("frozen_bn"))
        ema = [level_text(on) for on in (True, False) if any(work.get("ema") is on for work in works)]
        decay = f" (decay {either('ema_decay')})" if "on" in ema else ""
        lines.append(
            f"SGD, learning rate {either('optimizer', 'lr')}, momentum {either('optimizer', 'momentum')}, "
            f"weight decay {either('optimizer', 'weight_decay')}; {frozen}; batch normalisation {norms}; "
            f"EMA {' or '.join(ema)}{decay}."
        )
    lines += _training_lines(run)
    if not all(trains(str(task)) for task in values("task")):
        lines.append(
            f"Inference is timed end to end (data, network, post-processing): score threshold "
            f"{either('score_threshold')}, at most {either('max_detections')} detections per image."
        )
    weights = " or ".join(WEIGHTS.get(str(name), f"from {name}") for name in values("weights"))
    lines.append(f"Weights: {weights} (seed {either('seed')}).")
    for label, options in dict.fromkeys((row.label, _words(row.options)) for row in run.rows if row.options):
        lines.append(f"Options of {label}: {options}.")
    lines += _measure_lines(run)
    if run.aa:
        lines.append("This is an A/A run: one arm against itself. Any difference is noise.")
    return tuple(lines)


def _training_lines(run: RunReport) -> Iterator[str]:
    """Of train_eval arms: how long, from what to what, and on which batches."""
    works = [row.workload for row in run.rows if row.workload.get("task") == "train_eval"]
    for work in works[:1]:
        optimizer = work["optimizer"]
        warmup = f"linear warm-up of the learning rate over {counted(optimizer['warmup'], 'step')}, "
        falls = f"a tenth of it from step {' and '.join(map(str, optimizer['milestones']))} on, "
        every = f"every {work['eval_every']} steps" if work.get("eval_every") else "after the last one"
        yield (
            f"{counted(work['steps'], 'step')}, evaluated {every}, {warmup if optimizer['warmup'] else ''}"
            f"{falls if optimizer['milestones'] else ''}"
            f"seed {work['seed']}; images in a new order each epoch, mirrored with probability {work['flip']:g} where "
            "input is shared. Every step is timed by itself, the first ones too."
        )


TASKS = {
    "train": "training",
    "infer": "inference",
    "eval": "evaluation",
    "train_eval": "training and evaluation",
}
INPUT_MODES = {
    "shared": "the same decoded batches for every codebase, prepared outside the timed region",
    "pipeline": "each codebase's own loader on the same files",
}
WEIGHTS = {
    "transplant": "one seeded set, transplanted into every codebase",
    "random": "each codebase's own seeded initialisation",
}


def _size_text(size: Any) -> str:
    if isinstance(size, Mapping):
        return f"short side {size.get('short')}, long side at most {size.get('long')}, ratio kept"
    return f"fitted into {level_text(size)} (height x width) with the ratio kept, and padded"


def _frozen_text(stages: int) -> str:
    if stages <= 0:
        return "no backbone stage frozen"
    return f"backbone frozen up to stage {stages}"


def _measure_lines(run: RunReport) -> Iterator[str]:
    measure, environment = run.recipe.get("measure") or {}, run.recipe.get("environment") or {}
    if measure and {row.workload.get("task") for row in run.rows} == {"train_eval"}:
        if measure.get("interleave", True):
            yield "Arms take turns, from one saved state to the next, in an order that flips from turn to turn."
        else:
            yield "NOT interleaved: one arm after the other, so a drift of the machine is in the ratios."
    elif measure:
        order = (
            "rounds visit every arm, in an order that flips from round to round"
            if measure.get("interleave", True)
            else "NOT interleaved: one arm after the other, so a drift of the machine is in the ratios"
        )
        launches, rounds, steps, warmup = (
            counted(int(measure.get(name) or 0), thing)
            for name, thing in (
                ("launches", "launch"), ("rounds", "round"), ("steps", "step"), ("warmup", "warm-up step")
            )
        )  # fmt: skip
        settle = f" (after {measure['settle']} untimed)" if measure.get("settle") else ""
        yield (
            f"Planned: {launches} (fresh processes) of {rounds} of {steps}{settle}, after {warmup}; {order}."
        )
    threads, affinity = environment.get("threads"), environment.get("affinity")
    variables = environment.get("variables") or {}
    parts = [
        f"{counted(threads, 'thread')} per process" if threads else "",
        f"processors {_words(affinity)}" if affinity else "",
        ", ".join(f"{name}={value}" for name, value in variables.items()),
    ]
    if any(parts):
        yield f"Processes: {'; '.join(part for part in parts if part)}."


# -- The whole report ----------------------------------------------------------------------------------------


def report_blocks(
    report: Report, figures: Sequence[Figures], accuracies: Sequence[Sequence[Block]] = ()
) -> list[Block]:
    """The report as blocks; `figures` has the drawn figures of each run, in order, `accuracies` the section on it."""
    names = list(dict.fromkeys(run.name for run in report.runs))
    blocks: list[Block] = [Heading(1, f"Benchmark report: {', '.join(names)}")]
    if len(report.runs) > 1:
        blocks.append(
            Text("Several runs. Arms of different runs were not interleaved: no ratio here crosses runs.")
        )
    sections = accuracies or [()] * len(report.runs)
    for run, drawn, section in zip(report.runs, figures, sections, strict=True):
        blocks += run_blocks(run, drawn, shift=0 if len(report.runs) == 1 else 1, accuracies=section)
    return blocks


def run_blocks(
    run: RunReport, figures: Figures, shift: int = 0, accuracies: Sequence[Block] = ()
) -> Iterator[Block]:
    def heading(level: int, text: str) -> Heading:
        return Heading(level + shift, text)

    if shift:
        yield Heading(2, f"{run.name}, run {run.id}")
    if run.description:
        yield Text(run.description)
    ended = f", ended {run.ended_utc}" if run.ended_utc else ""
    yield Text(f"Run {run.id}: {run.status}, started {run.started_utc}{ended} (UTC).")
    yield heading(2, "Summary")
    yield Bullets(tuple(summary(run)))
    yield from figures.get("ratios", ())
    yield heading(2, "Machine and software")
    if machine_text(run.machine):
        yield Text(f"{machine_text(run.machine)}.")
    yield machine_table(run)
    if run.software:
        yield software_table(run.software)
    for name, facts in run.dataset.items():
        yield Text(f"Dataset {name}: {_words(facts)}.")
    yield heading(2, "Setting")
    yield Bullets(setting(run)) if run.rows else Text("No arm has a record.")
    yield heading(2, "Results")
    counts_flops = any(row.flops_per_step for row in run.rows)
    yield Bullets((*HOW_TO_READ, FLOPS_NOTE) if counts_flops else HOW_TO_READ)
    for group in run.groups:
        yield heading(3, group.title)
        yield from group_blocks(group)
    if run.unmeasured:
        yield Text(f"Planned but without a result: {', '.join(run.unmeasured)}.")
    yield from accuracies
    if figures.get("memory"):
        yield heading(2, "Max memory")
        yield from figures["memory"]
    tables = [table for task in TASKS if (table := phase_table(run.groups, task))]
    if tables:
        yield heading(2, "Phases of a step")
        yield Text(
            "Median seconds per step of each phase, and its share of their sum. Measured in a pass of its own "
            "that synchronises between phases, so the sum can differ from s/iter."
        )
        yield from tables
        yield from figures.get("phases", ())
    if run.effects:
        yield heading(2, "Effects of factors within a codebase")
        yield Text("Cost: the share of a step's time that the level takes; negative where it saves time.")
        yield effect_table(run)
        if not all(effect.interleaved for effect in run.effects):
            yield Text(NOT_INTERLEAVED)
    if run.scaling:
        yield heading(2, "Scaling over ranks")
        yield Text("Efficiency: images/s per rank over images/s per rank of the fewest ranks.")
        yield scaling_table(run)
        if not all(item.interleaved for item in run.scaling):
            yield Text(NOT_INTERLEAVED)
    if figures.get("steps"):
        yield heading(2, "Per-step times")
        yield from figures["steps"]
    yield heading(2, "Warnings")
    warnings = tuple(_warnings(run))
    yield Bullets(warnings) if warnings else Text("None.")
    yield heading(2, "Reproduce")
    yield Code(reproduce(run), "sh")
    yield Text(
        f"Raw data: {run.folder} (run.json; arms/: one record per arm; samples/: every step, in Parquet; logs/: "
        "what the codebases printed). The values of this report as JSON: report.json."
    )


HOW_TO_READ = (
    "Ratio: the throughput of an arm over that of its baseline (the codebase in bold) in the same rounds; above 1 is "
    "faster. It is a geometric mean with a 95 % bootstrap interval over launches and rounds, bold where the interval "
    "excludes 1. Detectable effect: the smallest one that this design and its noise would have shown in 80 % of such "
    "runs.",
    "Times are those of single steps, the slowest rank's; images/s and FPS are the images of a step over its time.",
    "Max memory: the largest over ranks and launches (without the one in which the audit counted FLOPs, if there are "
    "others); on a GPU what the framework allocated, on a CPU the peak resident set of the process, with what was "
    "resident before the model was built in parentheses.",
)


FLOPS_NOTE = (
    "GFLOP/s: convolutions and matrix products of the forward pass, and in training of the backward pass, as the audit "
    "counts them, over the median s/iter. In parentheses their share of the most that any arm of the run reached here "
    "on a matrix product or a convolution alone: the distance to the machine's limit, which an algorithm with fewer "
    "multiplications (Winograd's) moves."
)


NOT_INTERLEAVED = (
    "Where 'interleaved' says no, the two arms were measured one after the other: a drift of the machine "
    "between them is in the ratio, and not in its interval."
)


def summary(run: RunReport) -> Iterator[str]:
    """The answer in one line per group."""
    failed = sum(row.status == "failed" for row in run.rows)
    if failed or run.unmeasured:
        planned = len(run.rows) + len(run.unmeasured)
        missing = f" and {len(run.unmeasured)} have no result" if run.unmeasured else ""
        yield f"Of {planned} arms, {failed} failed{missing}."
    for group in run.groups:
        baseline = next((row for row in group.rows if row.is_baseline), None)
        ratios = [
            f"{group.row_name(row)}: {ratio_text(row.ratio)}{_without_words(row)}"
            for row in group.rows
            if row.ratio is not None
        ]
        if baseline is not None and ratios:
            yield f"{group.title}, throughput over that of {group.row_name(baseline)}: {'; '.join(ratios)}."
        else:
            yield f"{group.title}: no ratio."


def group_blocks(group: Group) -> Iterator[Block]:
    """The table of a group, and below it what a cell has no room for."""
    yield group_table(group)
    baseline = next((row for row in group.rows if row.arm == group.baseline), None)
    if baseline is None and len(group.rows) > 1:
        yield Text("No ratios: no arm of this group is the baseline.")
    elif baseline is not None and baseline.step_s is None:
        yield Text(f"No ratios: the baseline {group.row_name(baseline)} has no result.")
    for row in group.rows:
        if row.verdict is not None and row.verdict.differences:
            yield Text(f"{group.row_name(row)}, {row.verdict.text}:")
            yield Bullets(row.verdict.differences)
    for row in group.rows:
        if baseline is not None and row.ratio is not None:
            names = group.row_name(baseline), group.row_name(row)
            yield from (Text(_without_text(*names, row.ratio, one)) for one in row.without)
    for row in group.rows:
        if row.ratio is not None and row.ratio.rounds < row.rounds:
            yield Text(
                f"{group.row_name(row)}: the ratio is over the {row.ratio.rounds} of its {row.rounds} rounds that the "
                "baseline has too."
            )
        if len(row.reason) > LONGEST_REASON:
            yield Text(f"{group.row_name(row)} {row.status}: {row.reason}")
        if row.log_tail:
            where = f" (all of it: {row.log})" if row.log else ""
            yield Text(f"End of the log of {group.row_name(row)}{where}:")
            yield Code("\n".join(row.log_tail))


def _without_words(row: Row) -> str:
    words = (f"{significant(one.ratio, 2)} without {one.operator}" for one in row.without)
    return f" ({', '.join(words)})" if row.without else ""


def _without_text(baseline: str, arm: str, ratio: Ratio, without: WithoutOperator) -> str:
    """How much of a ratio is one operator's kernel."""
    text = (
        f"{without.operator.capitalize()} is {100 * without.baseline_share:.0f} % of a step of {baseline} and "
        f"{100 * without.share:.0f} % of one of {arm}, in a profiled step of each. Were there none, the ratio would be "
        f"{significant(without.ratio, 2)} instead of {ratio_text(ratio).partition(' ')[0]}"
    )
    if without.ratio_share is None:
        return f"{text}."
    return (
        f"{text}: {100 * without.ratio_share:.0f} % of it (of its logarithm) are this operator's kernels on this "
        "device, and say nothing about another one."
    )


def _warnings(run: RunReport) -> Iterator[str]:
    if run.status != "complete":
        yield f"The run is {run.status}: what is missing may change the picture."
    if run.git.get("dirty"):
        yield "bench itself had uncommitted changes: the revision does not say exactly what ran."
    yield from run.warnings
    # A warning that many arms share (two few launches) is said once.
    where: dict[str, list[str]] = {}
    for group in run.groups:
        for row in group.rows:
            for warning in row.warnings:
                where.setdefault(warning, []).append(f"{group.title}: {group.row_name(row)}")
    count = len(run.rows)
    for warning, arms in where.items():
        if len(arms) == count and count > 1:
            yield f"All arms: {warning}"
        else:
            yield f"{'; '.join(arms)}: {warning}"


def reproduce(run: RunReport) -> str:
    """Shell lines that repeat the run and this report."""
    revision = str(run.git.get("revision") or "")
    lines = [f"git checkout {shlex.quote(revision)}"] if revision else []
    lines.append(shlex.join(run.command) if run.command else shlex.join(["bench", "run", run.recipe_path]))
    lines.append(shlex.join(["bench", "report", run.folder]))
    return "\n".join(lines)
