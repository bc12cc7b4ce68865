"""`bench check`, `calibrate` and `history` as a user or a CI system meets them, on a codebase that sleeps."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.errors import BenchError
from bench.gate import check, checkouts, history, metrics, output
from bench.gate.decide import Decision
from bench.gate.stored import MIN_SESSIONS, check_stored
from bench.record.models import ArmRecord, Block, RunRecord
from bench.record.run import Run
from bench.record.samples import samples_frame
from benchmarks.gate.checks import plant
from tests.conftest import FAKE, ROOT, Cli, Finished

MEASURE = {"warmup": 1, "steps": 1, "rounds": 4, "deadline_s": 20}
STEP_S = 0.03
"""Long enough for a busy machine to be a few per cent off."""
TOLERANCE = "s/iter=20%"


class Repository:
    """A codebase of its own in a git repository: the adapter, and the package `tinylib` in `src`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        adapter = folder / "adapter"
        adapter.mkdir(parents=True)
        text = (FAKE / "adapter.py").read_text()
        text = text.replace("import numpy as np", "import numpy as np\nimport tinylib")
        text = text.replace('version = "0"', 'version = "0"\n    package = "tinylib"')
        text = text.replace('options.get("step_s", 0.0)', "tinylib.STEP_S")
        (adapter / "adapter.py").write_text(text)
        described = (FAKE / "adapter.yaml").read_text()
        (adapter / "adapter.yaml").write_text(
            described.replace("name: fake", "name: tiny") + "preload: [numpy]\n"
        )
        self.git("init", "--quiet")
        self.commit("first", STEP_S)

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, name: str, step_s: float) -> None:
        package = self.folder / "src" / "tinylib"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(f"STEP_S = {step_s}  # {name}\n")
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", name)
        self.git("tag", name)

    def trees(self) -> list[str]:
        return self.git("worktree", "list").splitlines()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "cache"
    monkeypatch.setenv("BENCH_CACHE", str(folder))
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    assert not [path for path in folder.glob("worktrees/*") if path.is_dir()], "a work tree was left behind"


def tiny(cli: Cli, **measure: Any) -> Path:
    return cli.recipe(name="tiny", arms=["tiny"], baseline={}, measure={**MEASURE, **measure})


def checked(cli: Cli, repository: Repository, recipe: Path, *arguments: str | Path) -> Finished:
    return cli(
        "check", recipe, "--adapters", repository.folder / "adapter", "--source",
        f"tiny={repository.folder / 'src'}", "--results", cli.results, "--tolerance", TOLERANCE, *arguments,
    )  # fmt: skip


# -- two revisions -------------------------------------------------------------------------------------------


def test_a_slowdown_between_two_revisions_fails_the_check(cli: Cli, repository: Repository) -> None:
    repository.commit("slow", 1.5 * STEP_S)
    junit, comment, summary = (cli.folder / name for name in ("junit.xml", "comment.md", "summary.md"))
    environment = {**os.environ, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    done = cli(
        "check", tiny(cli), "--adapters", repository.folder / "adapter", "--source",
        f"tiny={repository.folder / 'src'}", "--results", cli.results, "--tolerance", TOLERANCE, "--base", "first",
        "--budget-s", "120", "--json", "--junit", junit, "--comment", comment, env=environment,
    )  # fmt: skip
    assert done.code == 1, done.err
    found, mean = done.json()["comparisons"]
    assert (found["metric"], mean["metric"]) == ("s/iter", "s/iter mean")
    assert found["state"] == "fail"
    assert 0.3 < found["worsening"] < 0.7
    assert found["alarm"] is not None  # and so confirmed by fresh launches
    assert found["launches"] >= 6
    suite = ET.parse(junit).getroot()
    assert suite.get("failures") == "2"
    assert suite.find(".//testcase/failure") is not None
    assert comment.read_text().startswith("<!-- bench-check:tiny -->")
    assert "REGRESSION" in summary.read_text()
    assert "::error title=bench check tiny%3A fail::tiny: s/iter" in done.err
    assert len(repository.trees()) == 1
    stored = Run(cli.runs()[-1]).record()
    assert stored.check is not None
    assert stored.check["state"] == "fail"
    first, slow = repository.git("rev-parse", "first"), repository.git("rev-parse", "slow")
    revisions = {arm.id: arm.environment.git.revision for arm in Run(cli.runs()[-1]).arms()}
    assert revisions == {"tiny-base": first, "tiny-head": slow}
    assert [arm.environment.preloaded for arm in Run(cli.runs()[-1]).arms()] == [["numpy"]] * 2


def test_an_innocent_commit_passes_the_check(cli: Cli, repository: Repository) -> None:
    """From inside the repository, where adapter and code are found."""
    repository.commit("innocent", STEP_S)
    junit = cli.folder / "junit.xml"
    done = cli(
        "check", tiny(cli), "--base", "first", "--results", cli.results, "--tolerance", TOLERANCE, "--budget-s", "120",
        "--json", "--junit", junit, cwd=repository.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "bench check" in done.json()["command"]
    assert len(done.json()["comparisons"][0]["values"]) == 2
    assert done.json()["state"] == "pass"
    root = ET.parse(junit).getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("2", "0", "0")


def test_budget_too_small_for_launches_is_inconclusive_and_no_pass(cli: Cli, repository: Repository) -> None:
    repository.commit("innocent", STEP_S)
    done = checked(cli, repository, tiny(cli), "--base", "first", "--budget-s", "1", "--json")
    assert done.code == 3, done.err
    assert done.json()["state"] == "inconclusive"
    assert "out of budget" in done.json()["comparisons"][0]["reason"]


def test_crashing_revision_is_no_pass_and_leaves_no_tree(cli: Cli, repository: Repository) -> None:
    package = repository.folder / "src" / "tinylib" / "__init__.py"
    package.write_text("raise RuntimeError('broken')\n")
    repository.git("commit", "--quiet", "--all", "--message", "broken")
    junit = cli.folder / "junit.xml"
    done = checked(cli, repository, tiny(cli), "--base", "first", "--junit", junit, "--json")
    assert done.code == 4
    assert "broken" in done.json()["errors"][0]
    assert ET.parse(junit).getroot().get("errors") == "1"
    assert len(repository.trees()) == 1


def test_an_interrupted_check_leaves_no_work_tree(cli: Cli, repository: Repository) -> None:
    started = cli.start(
        "check", tiny(cli), "--adapters", repository.folder / "adapter", "--source",
        f"tiny={repository.folder / 'src'}", "--results", cli.results, "--base", "first", "--json",
    )  # fmt: skip
    until = time.monotonic() + 60
    while not list(cli.results.glob("*/*/blocks.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=60)
    assert started.returncode == 130
    assert len(repository.trees()) == 1


def test_installed_package_in_place_of_revision_is_error(cli: Cli, repository: Repository) -> None:
    """Else every check would pass: both sides would measure the installed package."""
    adapter = repository.folder / "adapter" / "adapter.py"
    adapter.write_text(adapter.read_text().replace('package = "tinylib"', 'package = "yaml"'))
    repository.git("commit", "--quiet", "--all", "--message", "other package")
    done = checked(cli, repository, tiny(cli), "--base", "HEAD", "--json")
    assert done.code == 4
    assert "not the revision under check" in done.json()["errors"][0]


def test_an_unknown_revision_says_how_ci_gets_it(cli: Cli, repository: Repository) -> None:
    done = checked(cli, repository, tiny(cli), "--base", "v9")
    assert done.code == 2
    assert "unknown revision 'v9'" in done.err
    assert "fetch-depth: 0" in done.err


def test_source_that_recipe_does_not_measure_is_error(cli: Cli, repository: Repository) -> None:
    done = cli("check", cli.recipe(), "--adapters", FAKE, "--base", "HEAD", "--results", cli.results)
    assert done.code == 2
    assert "no arm of this recipe measures native" in done.err


def test_the_adapter_of_a_revision_comes_from_that_revision(repository: Repository, tmp_path: Path) -> None:
    from bench.recipe.codebases import load_codebase

    codebase = load_codebase(repository.folder / "adapter")
    source = checkouts.Source.of(codebase, repository.folder / "src")
    with source.checkout(source.commit("first"), tmp_path / "tree") as found:
        assert found.codebase.folder == (tmp_path / "tree" / "adapter").resolve()
        assert found.source == tmp_path / "tree" / "src"
    assert not (tmp_path / "tree").exists()


# -- stored runs ---------------------------------------------------------------------------------------------


def stored(
    results: Path,
    identity: str,
    seconds: dict[str, list[float]],
    *,
    cpu: str = "A",
    revision: str = "",
    recipe: str = "stored",
) -> Run:
    """A run folder whose arms have one block per launch, of so many seconds."""
    run = Run(results / recipe / identity)
    workload = {"model": "faster_rcnn_r50_fpn", "task": "train", "batch_size": 2, "ranks": 1, "device": "cpu"}
    started = f"2026-11-{1 + len(list(results.glob('*/*'))) % 28:02}T00:00:00Z"
    machine = {"cpu": {"model": cpu}}
    record = RunRecord(
        id=identity, recipe={"name": recipe}, started_utc=started, bench_version="0", machine=machine,
        arms=list(seconds), baseline={"codebase": "fixed"}, status="complete",
    )  # fmt: skip
    run.write_record(record)
    for arm, launches in seconds.items():
        blocks = [
            Block(arm=arm, launch=launch, round=0, position=0, ranks=[{"start_ns": [0], "end_ns": int(1e9 * value)}])
            for launch, value in enumerate(launches)
        ]  # fmt: skip
        environment = {"git": {"revision": revision}} if revision else {}
        run.write_arm(
            ArmRecord(id=arm, codebase=arm, label=arm, cell="all", workload=workload, status="ok",
                      environment=environment),
            samples_frame(blocks),
        )  # fmt: skip
    return run


STEADY = [1.0, 1.01, 0.99, 1.005, 0.995, 1.0]


def scaled(factor: float) -> list[float]:
    return [factor * value for value in STEADY]


def judged(head: Run, base: Run, cache: Path, reference: str | None = None) -> check.Result:
    results = base.folder.parent.parent
    return check_stored(head, base, metrics.Settings({}, 60), cache, results, reference)


def sessions(results: Path, arms: dict[str, float], **more: Any) -> Run:
    """As many stored runs as the spread between sessions needs; the first of them."""
    factors = [1 + 0.002 * (-1) ** index for index in range(MIN_SESSIONS)]
    runs = [
        stored(results, f"s{index}", {arm: scaled(factor * seconds) for arm, seconds in arms.items()}, **more)
        for index, factor in enumerate(factors)
    ]
    return runs[0]


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


# -- output for CI -------------------------------------------------------------------------------------------


def outcome(state: str, exit_code: int, **changes: Any) -> check.Result:
    decision = Decision(state, 0.1, 0.05, float("inf"), 0.001, 6, 3, 0, "because")  # type: ignore[arg-type]
    one = check.Judgement("tiny", metrics.metric("s/iter"), decision)
    result = check.Result("tiny", "one", "two", "interleaved", state, exit_code, (one,))  # type: ignore[arg-type]
    return replace(result, **changes)


def test_hostile_names_leave_the_xml_markdown_and_annotations_intact() -> None:
    hostile = "a<b>&\"'\x00\x1b]]>\n::error::| `x` \ud800"
    result = outcome("fail", 1, recipe=hostile, notes=(hostile,), errors=(hostile,))
    root = ET.fromstring(output.junit(result))
    assert root.find(".//failure") is not None
    assert all(line.startswith("::") and "\n" not in line for line in output.workflow_commands(result))
    assert "<b>" not in output.summary(result)
    assert "-->" not in output.comment(result).partition("\n")[0][4:-4]


@pytest.mark.parametrize(("exit_code", "kind"), [(0, "skipped"), (1, "failure"), (3, "error")])
def test_junit_shows_an_inconclusive_check_as_its_exit_code_does(exit_code: int, kind: str) -> None:
    root = ET.fromstring(output.junit(outcome("inconclusive", exit_code)))
    assert root.find(f".//testcase/{kind}") is not None


def test_the_json_of_an_open_interval_is_valid_json() -> None:
    text = json.dumps(outcome("fail", 1).as_json(), allow_nan=False)
    assert json.loads(text)["comparisons"][0]["high"] is None


@pytest.mark.parametrize("text", ["s/iter", "=3%", "s/iter=fast", "speed=3%", "s/iter=5", "AP=1"])
def test_a_mistyped_tolerance_is_an_error(text: str) -> None:
    with pytest.raises(BenchError):
        metrics.read_settings([text], 60)


def test_tolerance_for_metric_that_no_arm_has_is_error() -> None:
    settings = metrics.read_settings(["AP=0.001"], 60)
    with pytest.raises(BenchError, match="no arm of this recipe measures AP"):
        settings.refuse_unused(["train"])
    settings.refuse_unused(["train", "infer"])


@pytest.mark.parametrize(("choice", "code"), [("inconclusive", 3), ("pass", 0), ("fail", 1)])
def test_an_inconclusive_check_ends_as_the_user_chose(choice: str, code: int) -> None:
    settings = metrics.read_settings([], 60, choice)
    assert settings.exit_code("inconclusive") == code
    assert (settings.exit_code("pass"), settings.exit_code("fail")) == (0, 1)


# -- other metrics -------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_memory_and_cost_of_ema_are_judged_with_tolerance(cli: Cli, repository: Repository) -> None:
    recipe = cli.recipe(
        name="tiny", arms=["tiny"], baseline={"ema": False}, factors={"ema": [False, True]},
        measure={**MEASURE, "memory_steps": 1},
    )  # fmt: skip
    arguments = (
        "--tolerance",
        "max memory=10%",
        "--tolerance",
        "EMA cost=0.2",
        "--budget-s",
        "120",
        "--json",
    )
    done = checked(cli, repository, recipe, "--base", "first", *arguments)
    names = {one["name"] for one in done.json()["comparisons"]}
    assert names == {
        "tiny-ema-off: s/iter", "tiny-ema-off: s/iter mean", "tiny-ema-off: max memory",
        "tiny-ema-on: s/iter", "tiny-ema-on: s/iter mean", "tiny-ema-on: max memory", "tiny-ema-on: EMA cost",
    }  # fmt: skip
    assert done.code == 0, done.err


# -- calibration ---------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_calibration_is_stored_and_warns_of_check_that_cannot_succeed(
    cli: Cli, repository: Repository, cache: Path
) -> None:
    adapters = ("--adapters", repository.folder / "adapter", "--adapters", FAKE)
    arms = [{"codebase": "fake", "options": {"step_s": 0.01, "noise": 0.5}}]
    recipe = cli.recipe(arms=arms, baseline={}, measure=MEASURE)
    common = ("--results", cli.results, *adapters, "--json")
    done = cli("calibrate", recipe, "--launches", "4", "--budget-s", "30", *common)
    assert done.code == 0, done.err
    (found,) = done.json()
    assert found["noise"]["round_sd"] > 0.05
    assert found["false_alarms"]["checks"] == 300
    assert list(cache.glob(f"calibration/{found['machine']}/*.json"))
    assert not history.collect(cli.results)[0], "a run against itself is no history"
    from bench.cli import run
    from bench.gate import calibrate

    _, plan = run.plan_of(recipe, [], [FAKE])
    (warning,) = calibrate.impossible(plan, metrics.read_settings(["s/iter=0.5%"], 30), cache)
    assert "would pass equal revisions in only" in warning
    (warning,) = calibrate.impossible(plan, metrics.read_settings([], 1), cache)
    assert "6 to be confirmed" in warning


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


# -- the files that users copy -------------------------------------------------------------------------------


def action() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "actions" / "bench-check" / "action.yml").read_text())


def workflow() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "bench-check.example.yml").read_text())


def test_the_steps_of_the_example_workflow_work_as_written(cli: Cli, repository: Repository) -> None:
    """Runs every shell step of the action with the inputs' defaults, but for the installation."""
    repository.commit("innocent", STEP_S)
    used = next(
        step for step in workflow()["jobs"]["bench-check"]["steps"] if "bench-check" in step.get("uses", "")
    )
    inputs = {name: spec.get("default", "") for name, spec in action()["inputs"].items()}
    assert set(used["with"]) <= set(inputs)
    inputs |= {
        "recipe": str(tiny(cli)),
        "base": "first",
        "budget-s": "120",
        "tolerance": f"{TOLERANCE}\nmax memory=20%",
        "arguments": f"--adapters {repository.folder}/adapter --results {cli.results}",
        "source": f"tiny={repository.folder}/src",
        "output": str(cli.folder / "out"),
    }
    steps = [step for step in action()["runs"]["steps"] if "run" in step and step.get("id") != "install"]
    github_output, summary = cli.folder / "output", cli.folder / "summary.md"
    environment = {
        **os.environ, "GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(github_output),
        "GITHUB_STEP_SUMMARY": str(summary), "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    for step in steps:
        variables = {
            name: inputs[text.removeprefix("${{ inputs.").removesuffix(" }}")]
            for name, text in step.get("env", {}).items()
        }
        done = subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], capture_output=True, text=True,
                              cwd=ROOT, env={**environment, **variables}, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "no regression" in summary.read_text()
    assert ET.parse(cli.folder / "out" / "junit.xml").getroot().get("tests") == "3"
    assert (cli.folder / "out" / "comment.md").exists()
    assert "state=pass" in github_output.read_text()


def test_the_gitlab_example_is_valid_and_uses_options_that_exist(cli: Cli) -> None:
    job = yaml.safe_load((ROOT / "docs" / "how-to" / "gitlab-ci.example.yml").read_text())["bench-check"]
    command = next(line for line in job["script"] if line.startswith("bench check"))
    offered = cli("check", "--help", env={**os.environ, "COLUMNS": "200"}).out
    options = [word for word in command.split() if word.startswith("--")]
    assert options
    assert all(option in offered for option in options)


def test_the_commands_of_the_documents_have_options_that_exist(cli: Cli) -> None:
    texts = [
        (ROOT / "docs" / name).read_text()
        for name in ("how-to/gate-in-ci.md", "how-to/compare-with-a-stored-run.md")
    ]
    commands = [
        found for text in texts for found in re.findall(r"bench (check|calibrate|history)( [^`#\n]*)", text)
    ]
    assert len(commands) > 4
    environment = {**os.environ, "COLUMNS": "200"}
    offered = {name: cli(name, "--help", env=environment).out for name in ("check", "calibrate", "history")}
    for name, arguments in commands:
        for option in re.findall(r"--[a-z-]+", arguments):
            assert option in offered[name], f"bench {name} has no {option}"


def test_forked_launches_have_addresses_of_their_own() -> None:
    script = """
import os
from ctypes import addressof, c_char
from bench.worker.__main__ import displace_memory

for _ in range(6):
    if not os.fork():
        displace_memory()
        small, large = bytearray(100_000), bytearray(64 << 20)
        print(*(addressof(c_char.from_buffer(block)) for block in (small, large)), flush=True)
        os._exit(0)
    os.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heap, mapped = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert len(heap) == 6
    assert min(len(set(heap)), len(set(mapped))) >= 4


# -- the real thing ------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_the_detectors_of_each_revision_are_the_ones_that_run(cli: Cli) -> None:
    """A revision of this project whose `detectors` cannot be built fails on its side alone; too slow for a timing."""
    clone = cli.folder / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(clone)], check=True)
    broken = clone / "detectors" / "__init__.py"
    broken.write_text(broken.read_text() + "\nraise RuntimeError('planted')\n")
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", "-C", str(clone), *identity, "commit", "--quiet", "-am", "planted"], check=True)
    measure = {"warmup": 1, "steps": 1, "rounds": 1, "deadline_s": 240}
    recipe = cli.recipe(name="own", arms=["native"], baseline={}, measure=measure, environment={"threads": 1})
    done = cli(
        "check", recipe, "--source", f"native={clone}", "--base", "HEAD~1", "--results", cli.results, "--json"
    )
    assert done.code == 4, done.err
    assert done.json()["errors"] == ["native-head failed in prepare: RuntimeError: planted"]
    shutil.rmtree(clone)


@pytest.mark.nightly
@pytest.mark.parametrize(("slowdown", "state"), [(0.0, "pass"), (0.1, "fail")])
def test_slower_commit_fails_and_innocent_one_passes(cli: Cli, slowdown: float, state: str) -> None:
    """Real training steps, judged at a tolerance of 4 % beside whatever else the machine does (another test)."""
    clone = plant(cli.folder, slowdown, "detectors")
    done = cli(
        "check", ROOT / "recipes" / "check.yaml", "--source", f"native={clone}", "--base", "HEAD~1",
        "--results", cli.results, "--tolerance", "s/iter=4%", "--budget-s", "400", "--json",
    )  # fmt: skip
    assert done.json()["state"] == state, done.out
    shutil.rmtree(clone)
