"""`bench check` of stored runs, and `bench history`."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.gate import check, history, metrics, output
from bench.gate.stored import MIN_SESSIONS, check_stored
from bench.record.run import Run
from tests.conftest import FAKE, Cli
from tests.helpers.checks import MEASURE, scaled, sessions, stored

pytestmark = pytest.mark.usefixtures("cache")


def judged(head: Run, base: Run, cache: Path, reference: str | None = None) -> check.Result:
    results = base.folder.parent.parent
    return check_stored(head, base, metrics.Settings({}, 60), cache, results, reference)


def test_a_slower_stored_run_of_the_same_machine_fails(tmp_path: Path, cache: Path) -> None:
    base = sessions(tmp_path, {"tiny": 1.0})
    assert judged(stored(tmp_path, "c", {"tiny": scaled(1.0)}), base, cache).exit_code == 0
    assert judged(stored(tmp_path, "b", {"tiny": scaled(1.3)}), base, cache).exit_code == 1
    assert judged(stored(tmp_path, "d", {"tiny": [0.5, 1.5, 1.0]}), base, cache).exit_code == 3


def test_a_stored_run_is_inconclusive_without_enough_sessions(tmp_path: Path, cache: Path) -> None:
    base = stored(tmp_path, "a", {"tiny": scaled(1.0)})
    result = judged(stored(tmp_path, "b", {"tiny": scaled(1.3)}), base, cache)
    assert result.exit_code == 3
    assert "sessions" in result.comparisons[0].decision.reason


def test_times_of_another_machine_are_refused_without_a_reference_arm(tmp_path: Path, cache: Path) -> None:
    base = stored(tmp_path, "a", {"tiny": scaled(1.0)}, cpu="A")
    head = stored(tmp_path, "b", {"tiny": scaled(1.0)}, cpu="B")
    with pytest.raises(BenchError, match="different machines"):
        judged(head, base, cache)


def test_reference_arm_takes_the_speed_of_the_machine_out(tmp_path: Path, cache: Path) -> None:
    base = sessions(tmp_path, {"fixed": 2.0, "tiny": 1.0}, cpu="A")
    same = stored(tmp_path, "b", {"fixed": scaled(1.0), "tiny": scaled(0.5)}, cpu="B")
    result = judged(same, base, cache)
    assert result.exit_code == 0, [(one.metric.name, one.decision) for one in result.comparisons]
    assert "reference arm fixed" in output.summary(result)
    slower = stored(tmp_path, "c", {"fixed": scaled(1.0), "tiny": scaled(0.6)}, cpu="B")
    found, _ = judged(slower, base, cache).comparisons
    assert found.decision.state == "fail"
    assert found.decision.worsening == pytest.approx(0.2)


def test_two_stored_runs_are_judged_without_measuring(cli: Cli) -> None:
    sessions(cli.results, {"tiny": 1.0})
    stored(cli.results, "b", {"tiny": scaled(1.3)})
    done = cli("check", "b", "--baseline", "s0", "--results", cli.results)
    assert done.code == 1, done.err
    assert len(cli.runs()) == MIN_SESSIONS + 1


def test_a_closed_pipe_keeps_the_code_of_the_verdict(cli: Cli) -> None:
    sessions(cli.results, {"tiny": 1.0})
    stored(cli.results, "b", {"tiny": scaled(1.3)})
    process = cli.start("check", "b", "--baseline", "s0", "--results", cli.results)
    assert process.stdout is not None
    process.stdout.close()  # as `| head -0` does
    assert process.wait(timeout=120) == 1


def test_a_recipe_is_measured_and_judged_against_a_stored_run(cli: Cli) -> None:
    recipe = cli.recipe(measure={**MEASURE, "launches": 3}, arms=[{"codebase": "fake", "options": {"step_s": 0.02}}],
                        baseline={})  # fmt: skip
    assert cli.run(recipe).code == 0
    name = cli.runs()[-1].name
    arguments = ("--adapters", FAKE, "--results", cli.results, "--tolerance", "s/iter=200%", "--json")
    done = cli("check", recipe, "--baseline", name, *arguments)
    assert done.code == 3, done.err  # one session says nothing of the spread between sessions
    assert "machine of the same kind" in done.json()["how"]


# -- history -------------------------------------------------------------------------------------------------


def test_history_names_the_revisions_between_which_a_run_became_slower(cli: Cli) -> None:
    for index in range(16):
        factor = (1.0 if index < 9 else 1.2) * (1 + 0.002 * (-1) ** index)
        stored(cli.results, f"20261101T0000{index:02}Z", {"tiny": scaled(factor)}, revision=f"{index:x}" * 12)
    output = cli.folder / "history"
    done = cli("history", "--bisect", "--json", "--results", cli.results, "--output", output)
    assert done.code == 0, done.err
    (found,) = done.json()
    (change,) = found["changes"]
    assert change["direction"] == "regression"
    assert change["index"] == 9
    assert "888888888888..999999999999" in found["suspects"][0]
    (figure,) = (output / "figures").glob("*.svg")
    marks = [one.get("class") for one in ET.parse(figure).iter("{http://www.w3.org/2000/svg}path")]
    assert {"dots", "level", "change regression"} <= set(marks)
    assert "regression" in (output / "history.md").read_text()


def test_a_slow_month_of_the_machine_is_no_change(cli: Cli) -> None:
    for index in range(24):
        machine = (1.0 if index < 12 else 1.3) * (1 + 0.004 * (-1) ** index)
        arms = {"fixed": scaled(machine), "tiny": scaled(2 * machine * (1 + 0.002 * (index % 3)))}
        stored(cli.results, f"20261101T0000{index:02}Z", arms)
    found, _ = history.collect(cli.results)
    (tiny,) = (series for series in found if series.arm == "tiny")
    (fixed,) = (series for series in found if series.arm == "fixed")
    assert tiny.relative_to == "fixed"
    assert not tiny.changes
    assert fixed.changes  # nothing is left to compare it with
    done = cli("history", "--results", cli.results)
    assert "1 of 2 series changed" in done.out
    assert "tiny" not in done.out  # it did not change


def test_history_keeps_machines_apart_and_survives_a_damaged_run(cli: Cli) -> None:
    for index in range(8):
        name = f"20261101T0000{index:02}Z"
        stored(cli.results, name, {"tiny": scaled(1 + index % 2)}, cpu="AB"[index % 2])
    damaged = stored(cli.results, "20261101T000099Z", {"tiny": scaled(1.0)})
    (damaged.folder / "arms" / "tiny.json").write_text("{")
    found, notes = history.collect(cli.results)
    assert [len(one.points) for one in found] == [4, 4]
    assert not any(one.changes for one in found)
    assert len(notes) == 1
