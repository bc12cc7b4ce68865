"""Which tables, lists and figures a report has, in order: the answer first, the rest folded away."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from bench.judge.numbers import duration_text, ratio_text, significant
from bench.record.differences import named
from bench.report.accuracy_sections import accuracy_blocks
from bench.report.answer import headline, table_blocks
from bench.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Details,
    Figure,
    Heading,
    Table,
    Text,
)
from bench.report.latency import condition_blocks, energy_blocks, latency_blocks, serving_blocks
from bench.report.scaling import scaling_blocks
from bench.report.setting import setting_blocks
from bench.report.sweeps import SWEPT, sweep_blocks
from bench.report.tables import (
    LONGEST_REASON,
    effect_table,
    group_table,
    package_table,
    phase_table,
    software_table,
)
from bench.report.text import NOT_INTERLEAVED, TASKS, cell, counted, size_text, to_json, value_text
from bench.report.trust import seconds_of, trust_texts, warning_bullets, warnings_of
from bench.report.values import Group, Report, Row, RunReport, WithoutOperator

Figures = Mapping[str, Sequence[Figure]]

#: Lines and characters of a failure's log in a report; the file has all of it.
TAIL_LINES, TAIL_CHARACTERS = 20, 2000
#: Facts of one arm that differ, in order: what comes first explains most of what follows.
MOST_DIFFERENCES = 12


def report_blocks(report: Report, figures: Sequence[Figures]) -> list[Block]:
    """The report as blocks.

    Args:
        report: The values.
        figures: The drawn figures of each run, by kind.
    """
    names = list(dict.fromkeys(run.name for run in report.runs))
    several = len(report.runs) > 1
    blocks: list[Block] = [Heading(1, f"Benchmark report: {', '.join(names)}")]
    if several:
        blocks.append(
            Text("Several runs. Arms of different runs were not interleaved: no ratio here crosses runs.")
        )
    for number, (run, drawn) in enumerate(zip(report.runs, figures, strict=True)):
        if several:
            blocks.append(Heading(2, f"{run.name}, run {run.id}"))
        blocks += answer_blocks(run, drawn)
        if number == 0:
            blocks.append(
                Text("Filters, single steps, phases and downloads: the page index.html beside this file.")
            )
        blocks += detail_blocks(run, drawn)
    return blocks


def answer_blocks(run: RunReport, figures: Figures | None = None) -> Iterator[Block]:
    """What a reader came for: the sentences, the pivot table with its marks, one figure, the number of warnings."""
    yield Bullets(headline(run))
    yield Text(facts_line(run))
    yield from table_blocks(run)
    yield from (figures or {}).get("ratios", ())


def facts_line(run: RunReport) -> str:
    """Machine, date, design and status in one line."""
    launches = max((row.launches for row in run.rows), default=0)
    rounds = max((row.rounds for row in run.rows), default=0)
    parts = [
        machine_text(run.machine),
        ", ".join([run.started_utc[:10], *([duration_text(taken)] if (taken := seconds_of(run)) else [])]),
        counted(len(run.sessions), "session") if run.sessions else "",
        _design(launches, rounds) if launches else "",
        f"run {run.id}: {run.status}",
        counted(sum(1 for _ in warnings_of(run)), "warning"),
    ]
    return " · ".join(part for part in parts if part)


def _design(launches: int, rounds: int) -> str:
    """`3 launches × 6 rounds`, or `3 launches, 17 rounds in all`."""
    each, rest = divmod(rounds, launches)
    told = f", {counted(rounds, 'round')} in all" if rest else f" × {counted(each, 'round')}"
    return f"{counted(launches, 'launch')}{told}"


def detail_blocks(run: RunReport, figures: Figures) -> Iterator[Block]:
    """All that stands below the answer, the likelier questions first."""
    warnings = warning_bullets(run)
    trust: list[Block] = [*([warnings] if warnings.items else []), *map(Text, trust_texts(run))]
    sections: list[tuple[str, Iterable[Block]]] = [
        (f"Warnings ({len(warnings.items)})", trust),
        ("Equal work: what the audit saw", audit_blocks(run)),
        ("How to read the numbers", [Bullets(HOW_TO_READ)]),
        ("Results by workload", _result_blocks(run)),
        ("Setting: weights, types of numbers, threads, images", setting_blocks(run)),
        ("Accuracy", accuracy_blocks(run, figures.get("accuracy", ()))),
        ("Max memory", figures.get("memory", ())),
        ("Phases of a step", _phase_blocks(run, figures)),
        ("Latency of inference", latency_blocks(run)),
        ("Serving", serving_blocks(run)),
        (SWEPT, [*figures.get("sweep", ()), *sweep_blocks(run)]),
        ("Energy", energy_blocks(run)),
        ("The machine during the blocks", condition_blocks(run)),
        ("Effects of factors within a codebase", _effect_blocks(run)),
        ("Scaling over ranks", scaling_blocks(run)),
        ("Single steps", figures.get("steps", ())),
        ("Machine and software", machine_blocks(run)),
        ("Recipe as resolved", [Code(as_yaml(run.recipe), "yaml")]),
        ("Reproduce", reproduce_blocks(run)),
    ]
    for title, blocks in sections:
        folded = tuple(blocks)
        if folded:
            yield Details(title, folded)


HOW_TO_READ = (
    "Ratio: the throughput of an arm over that of its baseline in the same rounds; above 1 is faster. It is a "
    "geometric mean with a 95 % interval over sessions, launches and rounds. It is bold where the interval excludes "
    "1 and the work is equal.",
    "Detectable effect: the smallest one that this design and its noise would have shown in 80 % of such runs.",
    "Times are those of single steps, the slowest rank's; images/s and FPS are the images of a step over its time.",
    "Max memory: the largest over ranks and launches, without the launch in which the audit counted FLOPs if there "
    "are others. On a GPU it is what the framework allocated. On a CPU it is the peak resident set of the process, "
    "with what was resident before the model was built in parentheses.",
    "GFLOP/s: convolutions and matrix products as the audit counts them, over the median s/iter. In parentheses: "
    "their share of the most that any arm of the run reached on one product alone. Above 100 %, an algorithm such as "
    "Winograd's does fewer multiplications than are counted.",
)


# -- Equal work ----------------------------------------------------------------------------------------------

AUDIT_COLUMNS = (
    Column("workload"),
    Column("codebase"),
    Column("fact"),
    Column("baseline", True),
    Column("arm", True),
    Column("tolerance", True),
)


def audit_blocks(run: RunReport) -> Iterator[Block]:
    """The first facts that differ in each arm, then those that could not be observed in both arms."""
    rows: list[tuple[Cell, ...]] = []
    unknown: dict[str, list[str]] = {}
    notes: dict[str, list[str]] = {}
    for group, row in run.placed:
        differences = row.audit.differences if row.audit else ()
        more = len(differences) - MOST_DIFFERENCES
        for one in differences[:MOST_DIFFERENCES]:
            facts = (one.fact, value_text(one.baseline), value_text(one.arm), f"{one.tolerance:g}")
            rows.append((cell(group.title), cell(group.row_name(row)), *map(cell, facts)))
        if more > 0:
            said = f"{more} more: report.json has all", *[None] * 3
            rows.append((cell(group.title), cell(group.row_name(row)), *map(cell, said)))
        for told, texts in ((unknown, row.audit.unknown), (notes, row.audit.notes)) if row.audit else ():
            for text in texts:
                told.setdefault(text, []).append(group.place(row))
    if rows:
        yield Table(AUDIT_COLUMNS, tuple(rows))
    if unknown:
        yield Text("Not shown, because one of the two arms did not report it:")
        yield Bullets(tuple(f"{fact}: {named(arms)}" for fact, arms in unknown.items()))
    if notes:
        yield Text("What else the audit saw:")
        yield Bullets(tuple(f"{note}: {named(arms)}" for note, arms in notes.items()))


# -- Results -------------------------------------------------------------------------------------------------


def _result_blocks(run: RunReport) -> Iterator[Block]:
    for group in run.groups:
        yield Heading(3, group.title)
        yield from group_blocks(group)
    if run.unmeasured:
        yield Text(f"Planned but without a record: {', '.join(run.unmeasured)}.")


def group_blocks(group: Group) -> Iterator[Block]:
    """The table of a group, and below it what a cell has no room for."""
    yield group_table(group)
    base = group.base
    if base is None and len(group.rows) > 1:
        yield Text("No ratios: no arm of this group is the baseline.")
    elif base is not None and base.step_s is None:
        yield Text(f"No ratios: the baseline {group.row_name(base)} has no result.")
    for row in group.rows:
        name = group.row_name(row)
        if row.options:
            yield Text(
                f"Options of {name}: {', '.join(f'{key}={value}' for key, value in row.options.items())}."
            )
        if base is not None and row.ratio is not None:
            yield from (Text(without_text(group, row, one)) for one in row.without)
            if row.ratio.rounds < row.rounds:
                yield Text(
                    f"{name}: the ratio is over the {row.ratio.rounds} of its {row.rounds} rounds that both have."
                )
        if len(row.reason) > LONGEST_REASON:
            yield Text(f"{name} {row.status}: {row.reason[:TAIL_CHARACTERS]}")
        if row.log_tail:
            yield Text(f"End of the log of {name}{f' (all of it: {row.log})' if row.log else ''}:")
            yield Code(log_tail(row))


def log_tail(row: Row) -> str:
    return "\n".join(row.log_tail[-TAIL_LINES:])[-TAIL_CHARACTERS:]


def without_text(group: Group, row: Row, without: WithoutOperator) -> str:
    """How much of the ratio of a row is one operator's kernel."""
    assert group.base is not None
    assert row.ratio is not None
    text = (
        f"{without.operator.capitalize()} is {100 * without.baseline_share:.0f} % of a step of "
        f"{group.row_name(group.base)} and {100 * without.share:.0f} % of one of {group.row_name(row)}, in a profiled "
        f"step of each. Were there none, the ratio would be {significant(without.ratio, 2)} instead of "
        f"{ratio_text(row.ratio).partition(' ')[0]}"
    )
    if without.ratio_share is None:
        return f"{text}."
    return (
        f"{text}: {100 * without.ratio_share:.0f} % of it (of its logarithm) are this operator's kernels on this "
        "device, and say nothing about another one."
    )


# -- Sections ------------------------------------------------------------------------------------------------


def _phase_blocks(run: RunReport, figures: Figures) -> Iterator[Block]:
    tables = [table for task in TASKS if (table := phase_table(run.groups, task))]
    if not tables:
        return
    yield Text(
        "Median seconds per step of each phase, and its share of their sum. A pass of its own measures them and "
        "synchronises between phases, so the sum can differ from s/iter."
    )
    yield from figures.get("phases", ())
    yield from tables


def _effect_blocks(run: RunReport) -> Iterator[Block]:
    if run.effects:
        yield Text("Cost: the share of a step's time that the level takes; negative where it saves time.")
        yield effect_table(run)
        if not all(effect.interleaved for effect in run.effects):
            yield Text(NOT_INTERLEAVED)


def machine_blocks(run: RunReport) -> Iterator[Block]:
    """What was recorded of the machine, the data sets and the environments."""
    facts = {"machine": run.machine, "load_before": list(run.load_before), "load_after": list(run.load_after)}
    yield Code(
        as_yaml({**facts, "dataset": run.dataset, "bench": {"version": run.bench_version, **run.git}}), "yaml"
    )
    if run.software:
        yield software_table(run.software)


def package_blocks(run: RunReport) -> Iterator[Details]:
    """Packages that differ between the environments of the codebases, and all packages of each."""
    software = list(
        {(one.codebase, *one.installed.items()): one for one in run.software if one.installed}.values()
    )
    if len(software) > 1:
        yield Details("Packages that differ between codebases", (package_table(software),))
    for one in software:
        lists = "\n".join(f"{name}=={version}" for name, version in one.installed.items())
        yield Details(f"All {counted(len(one.installed), 'package')} of {one.title}", (Code(lists),))


def as_yaml(values: Mapping[str, Any]) -> str:
    """Recorded values as YAML, without those that are empty."""
    filled = {key: value for key, value in values.items() if value not in (None, "", [], {}, ())}
    return yaml.safe_dump(to_json(filled), sort_keys=False, allow_unicode=True, width=100).rstrip()


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
        str(system.get("distribution") or system.get("system") or ""),
    ]
    return ", ".join(part for part in parts if part) if cpu else ""


def reproduce_blocks(run: RunReport) -> Iterator[Block]:
    """Commands, and where the raw data are."""
    yield Code("\n".join(reproduce(run)), "sh")
    folders = ", ".join(run.sessions or [run.folder])
    yield Text(
        f"Raw data: {folders} (run.json; arms/: one record per arm; samples/: every step, in Parquet; logs/: what "
        "the codebases printed). The values of this report as JSON: report.json."
    )


def reproduce(run: RunReport, group: Group | None = None) -> list[str]:
    """Shell lines that repeat the run, or one workload of it, and this report."""
    command = list(run.command) or ["bench", "run", run.recipe_path]
    if group is not None:
        told = {name: level for name, level in group.rows[0].levels.items() if name not in group.factors}
        for name, level in told.items():
            for at, word in enumerate(command):
                if word.startswith(f"factors.{name}=") and command[at - 1] == "--set":
                    del command[at - 1 : at + 1]
                    break
            command += ["--set", f"factors.{name}=[{json.dumps(level)}]"]
        if run.recipe.get("exclude"):  # it may name levels that are no longer there
            command += ["--set", "exclude=[]"]
    report = shlex.join(["bench", "report", *(run.sessions or [run.folder])])
    return [*_before(run), shlex.join(command), report]


def _before(run: RunReport) -> Iterator[str]:
    """The source, the environments and the data that a run needs."""
    if revision := str(run.git.get("revision") or ""):
        if run.git.get("dirty"):
            yield "# the tree had changes that are in no commit"
        origin = shlex.quote(str(run.git.get("origin") or ""))
        yield f"git clone {origin} bench && cd bench" if len(origin) > 2 else "# in a clone of bench"
        yield f"git checkout {shlex.quote(revision)}"
        yield 'make .venv/.installed && PATH="$PWD/.venv/bin:$PATH"'
    if others := sorted({one.codebase for one in run.software if one.own_environment}):
        yield shlex.join(["bench", "env", "create", *others])
    for one in run.software:
        if one.git.get("origin") and one.codebase != "native":
            yield f"# {one.codebase} is {one.git['origin']} at {one.git.get('revision')}".replace("\n", " ")
    for name, found in run.dataset.items():
        said = f"{name}: {counted(found.get('images', 0), 'image')}, checksum {str(found.get('checksum', ''))[:12]}"
        yield f"# data {' '.join(said.split())}"
    if taken := seconds_of(run):
        yield f"# takes about {duration_text(taken)} on a machine like this one"
