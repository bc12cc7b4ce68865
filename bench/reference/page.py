"""The report on published numbers: the model zoo's tables in their own layout, the comparisons of codebases with
ratios, figures, and the page on the SOLOv2 log that this project grew from.

    generate_published(Path("reports/reference"))

Everything comes from `results/published/` (transcribed tables, with their provenance, and an excerpt of the log).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.record.run import Run, write_atomic
from bench.reference.figures import SCATTERS, draw
from bench.reference.published import (
    BASELINES,
    CODEBASES,
    PUBLISHED,
    SOLOV2,
    THROUGHPUT,
    ZOO,
    Published,
    load,
    number,
    provenance,
)
from bench.reference.solov2 import numeric, read_solov2_log, solov2_blocks
from bench.report.build import run_report
from bench.report.document import Block, Bullets, Cell, Column, Figure, Heading, Table, Text
from bench.report.figures import save
from bench.report.render import markdown, page
from bench.report.sections import answer_blocks, detail_blocks
from bench.report.text import cell, table_of

_TEXT_COLUMNS = {"Backbone", "Style", "Type", "Lr schd"}


def generate_published(output: Path, measured: Sequence[Run] = ()) -> Path:
    """Write `report.md`, `solov2.md`, `index.html` and `figures/` into `output`; the path of `report.md`.

    ``measured``: runs of ours to be shown below the published numbers, under a heading of their own. Raises BenchError
    when a table or the log cannot be read.
    """
    zoo = {path.stem: load(path.parent, path.stem) for path in (PUBLISHED / ZOO).glob("*.csv")}
    throughput = load(PUBLISHED / THROUGHPUT, "throughput")
    log_provenance = provenance(PUBLISHED / SOLOV2)
    solov2 = read_solov2_log(PUBLISHED / SOLOV2 / "excerpt.log.txt")
    folder = output / "figures"
    for name, canvas in draw(zoo, throughput, solov2):
        save(canvas, folder, name)
    answer = _answer_blocks(throughput)
    tables = [*answer, *_comparison_blocks(zoo, throughput), *_zoo_blocks(zoo), *_measured_blocks(measured)]
    log_page = list(solov2_blocks(solov2, log_provenance))
    write_atomic(output / "report.md", markdown.render(tables))
    write_atomic(output / "solov2.md", markdown.render(log_page))
    write_atomic(
        output / "index.html", page.render([*tables, *(_deeper(block) for block in log_page)], folder)
    )
    return output / "report.md"


def _deeper(block: Block) -> Block:
    return Heading(block.level + 1, block.text) if isinstance(block, Heading) else block


# -- Tables as published -------------------------------------------------------------------------------------


def _source(provenance: Mapping[str, Any]) -> Bullets:
    return Bullets(
        (
            f"Source: {provenance['source']}",
            f"Hardware: {'; '.join(provenance['hardware'])}",
            f"Software: {'; '.join(provenance['software'])}",
        )
    )


def own_layout(table: Published) -> Table:
    """As the document has it; `-` is a missing value. Addresses of models are left out: the source cuts them off."""
    names = [name for name in table.columns if name != "Download"]
    columns = (Column(name, numeric=name not in _TEXT_COLUMNS) for name in names)
    return Table(tuple(columns), tuple(_own_cells(row, names) for row in table.rows))


def _own_cells(row: Mapping[str, str], names: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(
        cell(None) if row[name] == "-" else cell(row[name], sort=number(row[name])) for name in names
    )


def _answer_blocks(throughput: Published) -> Iterator[Block]:
    yield Heading(1, "Published numbers")
    rates = {row["Implementation"]: number(row["Throughput (img/s)"]) or 0.0 for row in throughput.rows}
    first, *others = sorted(rates, key=lambda name: -rates[name])
    told = ", ".join(f"{rates[first] / rates[name]:.2f}× {name}'s" for name in others)
    yield Text(f"Training of Mask R-CNN R-50-FPN by detectron2's comparison: {first}'s throughput is {told}.")
    yield Text(
        "These numbers were published by others, on other hardware and software than ours. They are shown "
        "as printed; only the ratio columns are computed here, each from two numbers of one table."
    )


def _zoo_blocks(zoo: Mapping[str, Published]) -> Iterator[Block]:
    source = zoo["rpn"].provenance
    yield Heading(2, "mmdetection model zoo")
    yield _source(source)
    yield Bullets(tuple(one["en"] for one in source["statements"] if one["line"] in _ZOO_SETTINGS))
    yield Heading(3, "Speed, memory and accuracy")
    yield Text(
        "A point is a row that has both numbers. A line joins the rows of one method that no other row of "
        "that method beats in both (the Pareto front). Left out: Fast R-CNN, whose time has no proposal "
        "stage in it, and rows whose speed the document does not give. C4 rows were trained with half the "
        "images per GPU, SSD has two speeds (drawn: batch 1). HTC's rows with X-101 need less memory than "
        "those with R-101; the document does not say why, so they are not to be compared with the others."
    )
    for what in SCATTERS:
        yield Figure(what.name, what.alt)
    for name, title in BASELINES.items():
        yield Heading(3, title)
        yield own_layout(zoo[name])
        yield from _table_notes(name, source)


#: Lines of the document that hold for all baselines.
_ZOO_SETTINGS = range(25, 40)


def _table_notes(name: str, provenance: Mapping[str, Any]) -> Iterator[Block]:
    lines = {"ssd": (191, 192, 193), "cascade_rcnn": (169,), "cascade_mask_rcnn": (169,)}.get(name, ())
    notes = tuple(one["en"] for one in provenance["statements"] if one["line"] in lines)
    if notes:
        yield Bullets(notes)


# -- Comparisons of codebases --------------------------------------------------------------------------------


def _ratio(a: str, b: str) -> Cell:
    """a / b of two printed numbers; missing when one is."""
    top, bottom = number(a), number(b)
    return cell(None) if top is None or bottom is None else cell(f"{top / bottom:.3f}", sort=top / bottom)


def _difference(a: float | None, b: float | None) -> Cell:
    return cell(None) if a is None or b is None else cell(f"{a - b:+.1f}", sort=a - b)


def with_ratios(table: Published, headers: Sequence[str], ratio: str, *, higher_is_better: bool) -> Table:
    """The three codebases and mmdetection's advantage over the other two: above 1 is better for mmdetection.

    ``ratio`` names the ratio to `{}`.
    """
    titles = (ratio.format("maskrcnn-benchmark"), ratio.format("Detectron"))
    rows = []
    for row in table.rows:
        ours, others = row["mmdetection"], (row["maskrcnn-benchmark"], row["Detectron"])
        ratios = (_ratio(ours, other) if higher_is_better else _ratio(other, ours) for other in others)
        rows.append((*_own_cells(row, ("Type", *CODEBASES)), *ratios))
    return Table((Column("Type"), *numeric(*headers), *numeric(*titles)), tuple(rows))


def _aps(text: str) -> tuple[float | None, ...]:
    """(box, mask) AP of `37.3 & 34.2`, of a caffe-style result where both styles are given."""
    caffe = text.split(" / ")[-1]
    values = [number(part) for part in caffe.split(" & ")]
    return (*values, None)[:2]


def performance_table(table: Published) -> Table:
    """As printed, and the difference of caffe-style mmdetection to both others in points of
    AP (AR1000 for RPN)."""
    rows = []
    for row in table.rows:
        ours = _aps(row["mmdetection"])
        differences = []
        for other in CODEBASES[:2]:
            theirs = _aps(row[other])
            differences += [_difference(a, b) for a, b in zip(ours, theirs, strict=True)]
        rows.append((*_own_cells(row, ("Type", "Lr schd", *CODEBASES)), *differences))
    columns = (
        Column("Type"),
        Column("Lr schd"),
        *numeric("Detectron", "maskrcnn-benchmark", "mmdetection (pytorch / caffe)"),
        *(
            Column(f"{part}, caffe − {other}", True, optional=True)
            for other in CODEBASES[:2]
            for part in ("box", "mask")
        ),
    )
    return Table(columns, tuple(rows)).compact()


def throughput_table(table: Published) -> Table:
    """detectron2's comparison, with each implementation's throughput over detectron2's and
    over mmdetection's."""
    rate = "Throughput (img/s)"
    by_name = {row["Implementation"]: row[rate] for row in table.rows}
    return table_of(
        table.rows,
        {
            Column("Implementation"): lambda row: row["Implementation"],
            Column("Framework"): lambda row: row["Framework"],
            Column("Revision"): lambda row: _own_cells(row, ["Revision"])[0],
            Column(rate, True): lambda row: cell(row[rate], sort=number(row[rate])),
            Column("s/iter at 16 images", True): lambda row: _ratio("16", row[rate]),
            Column("/ detectron2", True): lambda row: _ratio(row[rate], by_name["detectron2"]),
            Column("/ mmdetection", True): lambda row: _ratio(row[rate], by_name["mmdetection"]),
        },
    )


def _comparison_blocks(zoo: Mapping[str, Published], throughput: Published) -> Iterator[Block]:
    source = zoo["rpn"].provenance
    notes = {one["line"]: one["en"] for one in source["statements"]}
    yield Heading(2, "mmdetection, maskrcnn-benchmark and Detectron")
    yield _source(source)
    yield Text(f"{notes[276]} From the same document as the tables of the model zoo below.")
    yield Heading(3, "Performance")
    yield Text(notes[285])
    yield performance_table(zoo["comparison_performance"])
    yield Text(
        "Differences are points of AP (AR1000 for RPN) of mmdetection's caffe-style result, the "
        "like-for-like one; missing where the document gives no caffe-style result."
    )
    yield Text(notes[287])
    yield Heading(3, "Training speed (s/iter, lower is better)")
    hardware = ("Detectron (P100, note 1)", "maskrcnn-benchmark (V100)", "mmdetection (V100, note 2)")
    yield with_ratios(
        zoo["comparison_training_speed"], hardware, "speed, mmdetection / {}", higher_is_better=False
    )
    yield Bullets((notes[310], notes[311], _OTHER_GPU))
    yield Heading(3, "Inference speed (fps, higher is better)")
    hardware = ("Detectron (P100)", "maskrcnn-benchmark (V100)", "mmdetection (V100)")
    yield with_ratios(
        zoo["comparison_inference_speed"], hardware, "speed, mmdetection / {}", higher_is_better=True
    )
    yield Bullets((notes[314], _OTHER_GPU))
    yield Heading(3, "Training memory (GB, lower is better)")
    yield with_ratios(
        zoo["comparison_training_memory"], CODEBASES, "memory, {} / mmdetection", higher_is_better=False
    )
    yield Bullets((notes[332],))
    yield Figure(
        "codebases", "Training speed, inference speed and training memory of the three codebases, R-50-FPN"
    )
    yield Heading(2, "detectron2's throughput comparison")
    yield _source(throughput.provenance)
    yield Text(
        throughput.provenance["model"] + ". " + throughput.provenance["columns"]["Throughput (img/s)"] + "."
    )
    yield throughput_table(throughput)
    statements = throughput.provenance["statements"]
    yield Bullets(tuple(one["en"] for one in statements if one["kind"] in ("definition", "note")))
    yield Text(
        "s/iter at 16 images (8 GPUs × 2) is computed here from the throughput. It is not to be set beside "
        "the model zoo's s/iter: other servers, other versions, another window of iterations."
    )
    yield Figure("throughput", "Training throughput of Mask R-CNN R-50-FPN on 8 V100, seven implementations")


_OTHER_GPU = (
    "The ratio to Detectron compares a V100 with a P100: it is a ratio of codebases and of GPUs at once, "
    "as the document has it."
)


def _measured_blocks(runs: Sequence[Run]) -> Iterator[Block]:
    if not runs:
        return
    yield Heading(2, "Measured by us, on different hardware")
    yield Text(
        "The hardware, the software and the work differ from everything above: no number below may be "
        "divided by one above, and none is. Ratios are between arms of one run."
    )
    for run in runs:
        report = run_report(run)
        yield Heading(3, f"Run {run.folder.name}")
        yield from answer_blocks(report)
        yield from detail_blocks(report, {})
