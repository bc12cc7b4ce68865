"""The outcome of a check as people and CI systems read it: blocks, markdown, JUnit XML, GitHub annotations."""

from __future__ import annotations

import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gate.calibrate import Calibration
from bench.gate.check import Judgement, Result, change_text
from bench.gate.decide import FEWEST_LAUNCHES
from bench.gate.metrics import Metric
from bench.judge.numbers import significant
from bench.record.run import write_atomic
from bench.report.document import Block, Bullets, Column, Heading, Text, Tone
from bench.report.render import markdown
from bench.report.text import cell, table_of

TITLES = {
    "pass": "no regression",
    "fail": "REGRESSION",
    "inconclusive": "inconclusive",
    "error": "could not be measured",
}
TONES: dict[str, Tone] = {"fail": "bad", "inconclusive": "strong", "undecided": "strong"}

#: What XML 1.0 cannot hold, not even escaped.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def tolerance_text(metric: Metric) -> str:
    return f"{100 * metric.tolerance:g} %" if metric.relative else f"{metric.tolerance:g}"


def sentence(one: Judgement) -> str:
    """`native: s/iter +10.2 % [+8.1 %, +12.3 %] (worse), tolerance 2 %: worse than tolerated …`."""
    change, tolerance = change_text(one.metric, one.decision), tolerance_text(one.metric)
    return f"{one.name} {change}, tolerance {tolerance}: {one.decision.reason}"


def verdict(result: Result) -> str:
    """The outcome in one sentence, which every output begins with."""
    found = [one for one in result.comparisons if one.decision.state == result.state]
    if result.state == "error":
        return "Could not be measured. " + " ".join(result.errors[:1])
    told = "; ".join(f"{one.name} {change_text(one.metric, one.decision)}" for one in found[:3])
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    words = {
        "pass": "No regression beyond the tolerance",
        "fail": "Regression",
        "inconclusive": "Inconclusive",
    }
    return f"{words[result.state]}: {told}{more}."


#: More of its budget than this is no advice for a check.
MOST_BUDGETS = 50


def budget_advice(result: Result) -> str:
    """What would decide an inconclusive check; empty for another.

    The interval narrows with the root of the number of launches. What is asked for is that it ends before the
    tolerance, if the difference stays as it is.
    """
    if result.state != "inconclusive" or not result.elapsed_s:
        return ""
    shares = []
    for one in (one for one in result.comparisons if one.decision.state == "inconclusive"):
        found = one.decision
        half, distance = found.high - found.worsening, abs(one.metric.tolerance - found.worsening)
        if found.launches < FEWEST_LAUNCHES:  # nothing can be said of their spread
            shares.append(FEWEST_LAUNCHES / max(found.launches, 1))
        else:
            shares.append((half / distance) ** 2 if distance and math.isfinite(half) else math.inf)
    needed = max(2.0, 1.2 * max(shares, default=math.inf))
    if needed > MOST_BUDGETS:
        return (
            "No budget would decide it soon: the difference is about the tolerance. Another tolerance would."
        )
    return f"A budget of about {needed * result.elapsed_s:.0f} s would decide it (--budget-s), on a machine as quiet."


# -- people --------------------------------------------------------------------------------------------------


def blocks(result: Result) -> Iterator[Block]:
    """The outcome for a terminal, a summary or a comment."""
    yield Heading(3, f"bench check {result.recipe}: {TITLES[result.state]}")
    yield Text(verdict(result))
    if advice := budget_advice(result):
        yield Text(advice)
    machine = f" Machine: {result.machine}." if result.machine else ""
    yield Text(
        f"Head: {result.head}. Base: {result.base}. Compared: {result.how}; {result.elapsed_s:.0f} s.{machine}"
    )
    if result.comparisons:
        yield table_of(result.comparisons, COLUMNS)
    if result.errors or result.notes:
        yield Bullets((*result.errors, *result.notes))
    if result.command:
        yield Text(f"To repeat it: {result.command}")


def values_text(one: Judgement) -> str | None:
    """`0.214 s → 0.236 s`, base and head."""
    if one.values is None:
        return None
    unit, factor = UNITS.get(one.metric.name.partition(" ")[0], ("", 1.0))
    return " → ".join(f"{significant(value * factor)}{unit}" for value in one.values)


COLUMNS: dict[Column, Callable[[Judgement], Any]] = {
    Column("arm"): lambda one: one.arm,
    Column("metric"): lambda one: one.metric.name,
    Column("base → head", True, priority=2): values_text,
    Column("change [interval]", True): lambda one: change_text(one.metric, one.decision),
    Column("tolerance", True, priority=1): lambda one: tolerance_text(one.metric),
    Column("launches", True, priority=3): lambda one: one.decision.launches,
    Column("verdict", prose=True): lambda one: cell(
        f"{one.decision.state}: {one.decision.reason}", tone=TONES.get(one.decision.state, "")
    ),
}

#: By the first word of a metric's name: its unit, and how many of them the record's is.
UNITS = {"s/iter": (" s", 1.0), "max": (" MiB", 1 / 2**20), "FPS": ("", 1.0), "images/s": ("", 1.0)}


def calibration_blocks(found: Sequence[Calibration]) -> Iterator[Block]:
    """What `bench calibrate` prints."""
    for one in found:
        seen, rate, advice = one.noise, one.false_alarms, one.suggestion
        yield Heading(3, f"{one.arm} on machine {one.machine}")
        tolerance = f"{100 * advice.tolerance:g} %" if advice.tolerance else "none of 20 % or less"
        yield Bullets(
            (
                f"noise of head ÷ base: {100 * seen.launch_sd:.2f} % between launches, {100 * seen.round_sd:.2f} % "
                f"between rounds ({seen.launches} launches, {seen.rounds} rounds in all)",
                f"mean of head against base: {100 * one.bias.mean:+.2f} % [{100 * one.bias.low:+.2f} %, "
                f"{100 * one.bias.high:+.2f} %], p = {one.bias.p_value:.2g} of no difference"
                + (": one side is slower, and would be so in a check" if one.bias.p_value < 0.01 else ""),
                f"a launch of {one.rounds} rounds takes {one.start_s + one.rounds * one.round_s:.1f} s",
                f"false alarms: {100 * rate.share:.1f} % [{100 * rate.low:.1f} %, {100 * rate.high:.1f} %] of "
                f"{rate.checks} checks replayed from these launches",
                f"at a tolerance of {100 * one.tolerance:g} % and a budget of {one.budget_s:.0f} s, "
                f"{_slowdown(one.smallest_slowdown)} is found in 95 % of checks (simulated normal noise of this size)",
                f"suggested for this budget: tolerance {tolerance}, {advice.rounds} rounds, up to "
                f"{advice.launches} launches; {_slowdown(advice.smallest_slowdown)} is then found in 95 % of checks",
            )
        )


def _slowdown(share: float) -> str:
    return f"a slowdown of {100 * share:.1f} %" if math.isfinite(share) else "no slowdown up to 100 %"


# -- CI systems ----------------------------------------------------------------------------------------------


def summary(result: Result) -> str:
    """Markdown for `$GITHUB_STEP_SUMMARY`."""
    return markdown.render(blocks(result))


def comment(result: Result, link: str = "") -> str:
    """Markdown for a pull request, with a link to the job that made it.

    The marker in its first line lets a workflow find and replace its comment.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "-", result.recipe)
    end = f"\n[The job, with logs and artifacts]({link})\n" if link else ""
    return f"<!-- bench-check:{name} -->\n{summary(result)}{end}"


def job_link(variables: Mapping[str, str]) -> str:
    """The page of the GitHub job that runs this; empty elsewhere."""
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    if not all(variables.get(name) for name in names):
        return ""
    server, repository, run = (variables[name] for name in names)
    return f"{server}/{repository}/actions/runs/{run}"


def workflow_commands(result: Result) -> list[str]:
    """GitHub workflow commands: an error per regression or failure, a warning per inconclusive comparison."""
    found = [_command("error", f"bench check {result.recipe}", error) for error in result.errors]
    for one in result.comparisons:
        if one.decision.state != "pass":
            level = "error" if one.decision.state == "fail" else "warning"
            found.append(_command(level, f"bench check {result.recipe}: {one.decision.state}", sentence(one)))
    return found + [_command("notice", f"bench check {result.recipe}", note) for note in result.notes]


def _command(level: str, title: str, message: str) -> str:
    """`::error title=…::…`, escaped as actions/toolkit `command.ts` does."""
    text = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    heading = title.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    heading = heading.replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={heading}::{text}"


def junit(result: Result) -> bytes:
    """JUnit XML: a test case per comparison. Inconclusive is an error, or skipped when it counts as a pass."""
    cases = list(_cases(result))
    counts = {
        f"{kind}s" if kind != "skipped" else kind: sum(case.find(kind) is not None for case in cases)
        for kind in ("failure", "error", "skipped")
    }
    attributes = {
        "name": "bench check",
        "tests": str(len(cases)),
        "time": f"{result.elapsed_s:.1f}",
        **{name: str(count) for name, count in counts.items()},
    }
    root = ET.Element("testsuites", attributes)
    suite = ET.SubElement(root, "testsuite", {**attributes, "name": _xml(f"bench check {result.recipe}")})
    properties = ET.SubElement(suite, "properties")
    for name in ("base", "head", "how", "run"):
        ET.SubElement(properties, "property", name=name, value=_xml(getattr(result, name)))
    suite.extend(cases)
    if result.notes:
        ET.SubElement(suite, "system-out").text = _xml("\n".join(result.notes))
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _cases(result: Result) -> Iterator[ET.Element]:
    suite = _xml(f"bench.gate.check.{result.recipe}")
    for number, error in enumerate(result.errors, 1):
        case = ET.Element("testcase", classname=suite, name=f"measurement {number}")
        ET.SubElement(case, "error", message=_xml(error), type="measurement")
        yield case
    for one in result.comparisons:
        case = ET.Element("testcase", classname=suite, name=_xml(one.name))
        text = _xml(sentence(one))
        if one.decision.state == "fail":
            ET.SubElement(case, "failure", message=text, type="regression")
        elif one.decision.state != "pass":
            kind = {0: "skipped", 1: "failure"}.get(result.exit_code, "error")
            ET.SubElement(case, kind, message=text, type="inconclusive")
        ET.SubElement(case, "system-out").text = text
        yield case


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def write(
    result: Result, junit_file: Path | None, comment_file: Path | None, step_summary: Path | None
) -> None:
    """The files that were asked for. GitHub's step summary is appended to, as other steps write to it."""
    if junit_file:
        write_atomic(junit_file, junit(result))
    if comment_file:
        write_atomic(comment_file, comment(result, job_link(os.environ)))
    if step_summary:
        with step_summary.open("a", encoding="utf-8") as file:
            file.write(summary(result) + "\n")
