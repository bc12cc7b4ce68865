"""What a check says: the verdict first, both sides in numbers, and what to do when nothing could be decided."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from rich.console import Console

from bench.gate.check import Judgement, Result, change_text
from bench.gate.decide import Decision
from bench.gate.metrics import metric
from bench.gate.output import blocks, budget_advice, comment, job_link, verdict
from bench.report.render import terminal


def decision(state: str, worsening: float, low: float, high: float) -> Decision:
    return Decision(state, worsening, low, high, 0.01, 6, None, 0, "as the test says")  # type: ignore[arg-type]


def result(state: str, *found: Judgement) -> Result:
    return Result(
        "r", "main", "HEAD", "interleaved", state, 1, found,  # type: ignore[arg-type]
        elapsed_s=100.0, machine="a CPU", command="bench check r --base main",
    )  # fmt: skip


SLOWER = Judgement("native", metric("s/iter"), decision("fail", 0.1, 0.08, 0.12), (0.2, 0.22))


@pytest.mark.parametrize(
    ("name", "share", "text"),
    [
        ("s/iter", 0.1, "+10.0 % [+8.0 %, +12.0 %] (worse)"),
        ("FPS", 0.1, "-10.0 % [-12.0 %, -8.0 %] (worse)"),
        ("FPS", -5.45, "6.5× [6.4×, 6.5×] (better)"),
        ("AP", 0.01, "-0.0100 [-0.0300, +0.0100] (worse)"),
    ],
)
def test_change_is_that_of_the_metric_itself(name: str, share: float, text: str) -> None:
    assert change_text(metric(name), decision("fail", share, share - 0.02, share + 0.02)) == text


def test_one_launch_has_no_interval() -> None:
    text = change_text(metric("s/iter"), decision("inconclusive", 0.1, -math.inf, math.inf))
    assert text == "+10.0 % (worse; one launch: no interval)"


def test_comment_begins_with_the_verdict_and_has_both_sides() -> None:
    text = comment(result("fail", SLOWER), "https://example.org/job")
    assert verdict(result("fail", SLOWER)) == "Regression: native: s/iter +10.0 % [+8.0 %, +12.0 %] (worse)."
    assert text.index("Regression") < text.index("0.200 s → 0.220 s") < text.index("To repeat it")
    for word in ("a CPU", "bench check r --base main", "https://example.org/job"):
        assert word in text


def test_inconclusive_check_names_the_budget_that_would_do() -> None:
    near = Judgement("native", metric("s/iter"), decision("inconclusive", 0.01, -0.01, 0.03))
    assert "480 s" in budget_advice(result("inconclusive", near))  # half the width needs four times as long
    at = Judgement("native", metric("s/iter"), decision("inconclusive", 0.02, 0.0, 0.04))
    assert "Another tolerance" in budget_advice(result("inconclusive", at))
    assert not budget_advice(result("fail", SLOWER))
    one = replace(near.decision, launches=1, low=-math.inf)
    assert "720 s" in budget_advice(result("inconclusive", replace(near, decision=one)))  # for six launches


def test_link_to_the_job_is_of_github_only() -> None:
    names = {"GITHUB_SERVER_URL": "https://g", "GITHUB_REPOSITORY": "o/r", "GITHUB_RUN_ID": "7"}
    assert job_link(names) == "https://g/o/r/actions/runs/7"
    assert job_link({}) == ""


def test_table_of_a_check_fits_80_columns_unbroken(capsys: pytest.CaptureFixture[str]) -> None:
    name = "python-mypkg-models-build"
    one = Judgement(name, metric("s/iter"), decision("fail", 0.25, 0.2311, 0.2733), (0.0832, 0.105))
    mean = Judgement(name, metric("s/iter mean"), decision("fail", 0.25, 0.2311, 0.2733), (0.0832, 0.105))
    terminal.show(blocks(result("fail", one, mean)), Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    heading = next(i for i, line in enumerate(lines) if "change [interval]" in line)
    assert all(len(line) <= 80 for line in lines)
    for row in lines[heading + 2 : heading + 4]:
        assert "+25.0 % [+23.1 %, +27.3 %] (worse)  fail" in row
