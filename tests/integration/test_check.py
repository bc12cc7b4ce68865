"""`bench check`, `calibrate` and `history` as a user or a CI system meets them, on a codebase that sleeps."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.gate import checkouts, history, metrics
from bench.record.run import Run
from benchmarks.gate.checks import plant
from tests.conftest import FAKE, ROOT, Cli
from tests.helpers.checks import (
    MEASURE,
    STEP_S,
    TOLERANCE,
    Repository,
    checked,
    tiny,
)

pytestmark = pytest.mark.usefixtures("cache")


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


def test_a_junit_file_that_cannot_be_written_hides_no_verdict(cli: Cli, repository: Repository) -> None:
    done = checked(
        cli, repository, tiny(cli), "--base", "first", "--budget-s", "1", "--json", "--junit", cli.folder
    )
    assert done.code == 2
    assert done.json()["state"] == "inconclusive"
    assert "cannot be written" in done.err


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
    assert "no git checkout of a measured codebase" in done.err


def test_the_adapter_of_a_revision_comes_from_that_revision(repository: Repository, tmp_path: Path) -> None:
    from bench.recipe.codebases import load_codebase

    codebase = load_codebase(repository.folder / "adapter")
    source = checkouts.Source.of(codebase, repository.folder / "src")
    with source.checkout(source.commit("first"), tmp_path / "tree") as found:
        assert found.codebase.folder == (tmp_path / "tree" / "adapter").resolve()
        assert found.source == tmp_path / "tree" / "src"
    assert not (tmp_path / "tree").exists()


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
