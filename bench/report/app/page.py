"""The page of a report: one HTML file that needs no network and no other file.

The answer is in the HTML, for print, for screen readers and without JavaScript. The script adds filters, sorting and
drill-down, from one block of data. A content security policy allows only the scripts written here, and they show text
from records as text only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib import resources

from markupsafe import Markup, escape

from bench.report.answer import CHECKS, headline, legend, pivot_table
from bench.report.app.data import arm_ids, packed, page_data
from bench.report.document import Block, Bullets, Code, Details, Heading, Table, Text
from bench.report.export import bibtex
from bench.report.latency import condition_blocks, energy_blocks, latency_blocks, serving_blocks
from bench.report.render.page import hash_of, html_of, templates
from bench.report.sections import (
    HOW_TO_READ,
    as_yaml,
    audit_blocks,
    facts_line,
    machine_blocks,
    package_blocks,
    reproduce_blocks,
)
from bench.report.setting import setting_blocks
from bench.report.sweeps import SWEPT, sweep_blocks
from bench.report.trust import trust_texts, warning_bullets
from bench.report.values import Report, RunReport
from bench.text_safety import shorten, visible

#: The page's own script, in order.
SCRIPTS = ("core.js", "model.js", "grid.js", "views.js", "drawer.js", "main.js")
_STRESSED = re.compile(rf"((?:^(?:{'|'.join(CHECKS.values())})\b)|(?<![\d.–])\d[\d.]*×(?: \[[\d., –]+\])?)")
#: Rows of a table without JavaScript, and items of a list.
STATIC_ROWS = 60


def render_page(report: Report, history: Markup | str = "") -> str:
    """The page as text.

    Args:
        report: The values.
        history: A section on other runs of the recipe (`bench.site.build.history_section`).
    """
    own, vendor = own_script(), _resource("vendor/uPlot.iife.min.js")
    licence = _resource("vendor/uPlot.LICENSE.txt")
    vendor = f"/* {licence.strip()} */\n{vendor.strip()}\n"
    names = ", ".join(dict.fromkeys(run.name for run in report.runs))
    return (
        templates()
        .get_template("app.html.j2")
        .render(
            title=f"Benchmark report: {names}",
            description=shorten(report.runs[0].description, 400, at_end=True)
            if len(report.runs) == 1
            else "",
            runs=[_run(run, several=len(report.runs) > 1) for run in report.runs],
            history=history,
            notes=html_of(_notes(report)),
            style=Markup(_resource("style.css") + _resource("vendor/uPlot.min.css")),
            scripts=[Markup(vendor), Markup(own)],  # our own files, not data
            hashes=[hash_of(vendor), hash_of(own)],
            data=Markup(packed(page_data(report))),  # base64: no character of it can end the element
        )
    )


def own_script() -> str:
    """What this project wrote, as one script, minified where the library is installed."""
    body = "\n".join(map(_resource, SCRIPTS))
    script = f'"use strict";\n(() => {{\n{body}\n}})();\n'
    with contextlib.suppress(ImportError):  # an interpreter that `benchmarks.gpu` found may lack it
        import minify

        return str(minify.string("application/javascript", script))
    return script


def _run(run: RunReport, *, several: bool) -> dict[str, object]:
    """What of a run is in the HTML itself."""
    return {
        "title": f"{run.name}, run {run.id}" if several else "",
        "sentences": [_stressed(one) for one in headline(run)],
        "facts": facts_line(run).split(" · "),
        # The script draws both itself, and takes these away.
        "table": html_of(_static(run)),
        "marks": legend(run.rows),
    }


def _stressed(sentence: str) -> Markup:
    """A sentence with its outcome, or ratio and interval, in bold."""
    return Markup(_STRESSED.sub(r"<strong>\1</strong>", str(escape(visible(sentence)))))


def _static(run: RunReport) -> Iterator[Block]:
    """The ratios and what work differs, for readers without JavaScript."""
    if run.rows:
        yield pivot_table(run, STATIC_ROWS // 2)
    audit = tuple(_clipped(block) for block in audit_blocks(run))
    if audit:
        yield Details("Equal work: what the audit saw", audit)


def _notes(report: Report) -> Iterator[Block]:
    """Trust, machine, recipe and how to repeat it."""
    ids = arm_ids(report)
    for run in report.runs:
        if len(report.runs) > 1:
            yield Heading(2, f"Notes on {run.name}, run {run.id}")
        warnings = warning_bullets(run, ids)
        count = len(warnings.items)
        yield Heading(3, f"Warnings ({count})")
        yield _clipped(warnings) if count else Text("None.")
        if count > STATIC_ROWS:
            yield Text(f"{count - STATIC_ROWS} more are in report.json.")
        yield from map(Text, trust_texts(run))
        if run.unmeasured:
            yield Text(f"Planned but without a record: {', '.join(run.unmeasured[:STATIC_ROWS])}.")
        for title, blocks in (
            ("Setting: weights, types of numbers, threads, images", setting_blocks(run)),
            ("Latency of inference", latency_blocks(run)),
            ("Serving", serving_blocks(run)),
            (SWEPT, sweep_blocks(run)),
            ("Energy", energy_blocks(run)),
            ("The machine during the blocks", condition_blocks(run)),
        ):
            if clipped := tuple(map(_clipped, blocks)):
                yield Details(title, clipped)
        yield Details("How to read the numbers", (Bullets(HOW_TO_READ),))
        yield Heading(3, "Machine and software")
        yield Details("As recorded", tuple(machine_blocks(run)))
        yield from package_blocks(run)
        yield Details("Recipe as resolved", (Code(as_yaml(run.recipe), "yaml"),))
        yield Heading(3, "Reproduce")
        yield from reproduce_blocks(run)
        yield Details("Cite this run", (Code(bibtex(run)),))


def _clipped(block: Block) -> Block:
    if isinstance(block, Table) and len(block.rows) > STATIC_ROWS:
        caption = f"The first {STATIC_ROWS} of {len(block.rows)} rows; report.json has all."
        return Table(block.columns, block.rows[:STATIC_ROWS], caption)
    if isinstance(block, Bullets):
        return Bullets(block.items[:STATIC_ROWS], block.about[:STATIC_ROWS])
    return block


def _resource(name: str) -> str:
    return resources.files("bench.report.app").joinpath(name).read_text(encoding="utf-8")
