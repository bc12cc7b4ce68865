"""Several runs of one recipe, reported as sessions of one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import BenchError
from bench.judge.audit import audit_sessions
from bench.judge.ratio import pair, pooled
from bench.recipe.schema import Recipe
from bench.record.pool import PooledRun
from bench.record.run import Run
from bench.record.samples import block_times
from bench.report.app.data import page_data
from bench.report.app.page import render_page
from bench.report.build import run_report
from bench.report.text import to_json
from bench.report.values import Report
from tests.helpers.report_runs import CRASH, MACHINE, RATIO, arm, markdown_of, rows_of, samples, write_run

TITLE = "Faster R-CNN R-50-FPN, training"


def session(folder: Path, number: int, **more: Any) -> Run:
    """A run whose ratio is its own: sessions differ by 10 %, launches by little."""
    faster = (1.2, 1.3, 1.1)[number % 3]
    arms = [
        (arm("torchvision"), samples(1.0, noise=0.002, seed=2 * number)),
        (arm("native"), samples(1 / faster, noise=0.002, seed=2 * number + 1)),
    ]
    return write_run(folder / f"session-{number}", arms, **more)


def sessions(folder: Path, count: int = 3) -> list[Run]:
    return [session(folder, number) for number in range(count)]


def test_ratio_is_over_sessions_and_launches_are_numbered_through(tmp_path: Path) -> None:
    runs = sessions(tmp_path)
    row = run_report(PooledRun(runs)).rows[1]
    blocks = [[block_times(run.samples(name)) for name in ("native", "torchvision")] for run in runs]
    assert row.ratio == pooled([pair(*both) for both in blocks])
    assert row.ratio is not None
    assert (row.sessions, row.ratio.sessions, row.launches, row.rounds) == (3, 3, 9, 54)
    assert row.ratio.low < 1.1 < 1.3 < row.ratio.high, "two degrees of freedom between sessions"
    assert sorted(set(row.trace.launch)) == list(range(9))
    assert row.step_s is not None
    assert row.step_s.n == sum(run_report(run).rows[1].step_s.n for run in runs)  # type: ignore[union-attr]


def test_report_and_page_say_three_sessions(tmp_path: Path) -> None:
    run = PooledRun(sessions(tmp_path))
    text = markdown_of(run)
    assert " · 3 sessions · 9 launches × 6 rounds" in text
    assert rows_of(text, TITLE)[1]["launches × rounds"] == "9 × 6 in 3 sessions"
    command = text.split("bench report ")[1].split("\n")[0]
    assert all(one.folder.name in command for one in run.sessions)
    report = Report((run_report(run),))
    values = to_json(report)["runs"][0]
    assert len(values["sessions"]) == 3
    assert values["groups"][0]["rows"][1]["ratio"]["sessions"] == 3
    assert "3 sessions" in render_page(report)
    page = page_data(report)
    assert page["arms"]["sessions"] == [3, 3]
    assert page["strings"][page["arms"]["design"][1]] == "", "the page cannot pair sessions"
    assert rows_of(text, TITLE)[1][RATIO].startswith("1.2")


def test_one_run_reads_as_before(tmp_path: Path) -> None:
    report = run_report(session(tmp_path, 0))
    assert (report.sessions, report.rows[1].sessions) == ((), 1)


@pytest.mark.parametrize(
    ("problem", "more"),
    [
        (r"not a session of the recipe of session-0: measure\.steps: 4 → 8",
         {"recipe": {"name": "quickstart", "description": "Two codebases on generated images.",
                     "measure": {"launches": 3, "rounds": 6, "steps": 8, "warmup": 3, "interleave": True},
                     "environment": {"threads": 2}}}),
        ("a machine of another kind", {"machine": {**MACHINE, "cpu": {**MACHINE["cpu"], "model": "Other"}}}),
        ("other data than in session-0", {"dataset": {"shapes": {"checksum": "abd"}}}),
        ("other arms than in session-0: broken", {"planned": ["torchvision", "native", "broken"]}),
        ("not a session of the recipe of session-0: aa: False → True", {"aa": True}),
    ],
)  # fmt: skip
def test_runs_of_other_work_or_machines_are_refused(
    tmp_path: Path, problem: str, more: dict[str, Any]
) -> None:
    first, other = session(tmp_path, 0), session(tmp_path, 1, **more)
    with pytest.raises(BenchError, match=problem) as error:
        PooledRun([first, other])
    assert error.value.where == str(other.folder)
    assert "--apart" in (error.value.hint or "")


def test_settings_that_an_older_bench_did_not_know_part_no_sessions(tmp_path: Path) -> None:
    given = {"name": "quickstart", "workload": {}, "arms": ["torchvision", "native"]}
    recipe = Recipe.model_validate(given).model_dump(mode="json")
    old = copy.deepcopy(recipe)
    del old["measure"]["hold_weights"], old["workload"]["nodes"]
    for one in old["arms"]:
        del one["model"], one["python"]
    runs = [session(tmp_path, number, recipe=one) for number, one in enumerate((old, recipe))]
    assert PooledRun(runs).record().recipe == old
    recipe["measure"]["hold_weights"] = True
    with pytest.raises(BenchError, match="hold_weights: False → True"):
        PooledRun([runs[0], session(tmp_path, 2, recipe=recipe)])


def test_run_named_twice_is_refused(tmp_path: Path) -> None:
    run = session(tmp_path, 0)
    with pytest.raises(BenchError, match="named twice"):
        PooledRun([run, Run(run.folder)])


def test_arm_that_failed_in_a_session_keeps_the_others(tmp_path: Path) -> None:
    failed = arm("native", status="failed", failure=CRASH)
    broken = write_run(
        tmp_path / "session-1",
        [(arm("torchvision"), samples(1.0)), (failed, samples(1.0).head(0))],
    )
    row = run_report(PooledRun([session(tmp_path, 0), broken, session(tmp_path, 2)])).rows[1]
    assert (row.status, row.sessions, row.launches) == ("partial", 2, 6)
    assert "failed in session session-1: crash: worker exited with signal 11" in row.warnings


def test_other_packages_and_revisions_are_said(tmp_path: Path) -> None:
    runs = sessions(tmp_path, 2)
    native = next(one for one in runs[1].arms() if one.id == "native")
    native.environment.packages["torch"] = "2.15.0"
    runs[1].write_arm(native, runs[1].samples("native"))
    record = runs[1].record()
    record.git.revision = "other"
    record.warnings = ["the lid was shut"]
    runs[1].write_record(record)
    warnings = PooledRun(runs).record().warnings
    assert "session-1: the lid was shut" in warnings
    assert "the sessions ran with 2 revisions of bench" in warnings
    assert "session-1: native ran with other packages: torch: 2.14.1 → 2.15.0" in warnings


def test_work_is_equal_only_where_every_session_shows_it(tmp_path: Path) -> None:
    runs = sessions(tmp_path, 2)
    (unequal,) = (one for one in runs[1].arms() if one.id == "native")
    described = [(one.arms(), one.record().baseline) for one in runs]
    for arms, _ in described:
        for one in arms:
            one.description = {"parameters": 10}
    found = audit_sessions(described)["native"]
    assert found.unknown == ("observed steps, session 1", "observed steps, session 2")
    described[1][0][1].description = {"parameters": 20}
    found = audit_sessions(described)["native"]
    assert (found.verdict, found.differences[0].fact) == ("unequal", "parameters, session 2")
    assert unequal.id == "native"


def test_sessions_may_have_other_numbers_of_launches(tmp_path: Path) -> None:
    arms = [
        (arm(name), samples(seconds, launches=2, rounds=3, noise=0.01, seed=index))
        for index, (name, seconds) in enumerate((("torchvision", 1.0), ("native", 0.5)))
    ]
    run = PooledRun([session(tmp_path, 0), write_run(tmp_path / "short", arms)])
    ratio = run_report(run).rows[1].ratio
    assert ratio is not None
    assert (ratio.launches, ratio.rounds, ratio.sessions) == (5, 24, 2)
    assert ratio.value == pytest.approx(np.sqrt(1.2 * 2.0), rel=0.01), "every session counts alike"
