"""The commands, as a user meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import bench
from bench.cli import app
from bench.judge.ratio import pair, ratio
from bench.record.run import Run
from bench.record.samples import block_times
from tests.conftest import FAKE, ROOT, Cli

HEAVY = ("numpy", "pandas", "scipy", "matplotlib", "pydantic", "torch", "plotly", "pyarrow", "psutil", "yaml")


def test_help_answers_at_once_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['bench', '--help']\n"
        "from bench.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print(heavy, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    for command in ("run", "report", "compare", "list", "doctor", "audit", "env", "import", "eval"):
        assert command in done.stdout


@pytest.mark.parametrize(
    "command", [["run"], ["report"], ["compare"], ["list", "models"], ["env", "create"], ["import"]]
)
def test_every_command_explains_itself(cli: Cli, command: list[str]) -> None:
    done = cli(*command, "--help")
    assert done.code == 0
    assert "Usage" in done.out


def test_no_help_has_brackets_that_rich_swallows() -> None:
    def helps(command: Any) -> Iterator[str]:
        yield from (getattr(one, "help", None) or "" for one in command.params)
        if hasattr(command, "list_commands"):
            context = click.Context(command)
            for name in command.list_commands(context):
                yield from helps(command.get_command(context, name))

    found = list(helps(typer.main.get_command(app)))
    assert any("CODEBASE:MODEL@WEIGHTS" in text for text in found)
    assert [text for text in found if "[" in text] == []


def test_version(cli: Cli) -> None:
    assert cli("--version").out.strip() == "bench 0.1.0"


@pytest.mark.parametrize(
    "arguments",
    [
        ["rn"],
        ["run"],
        ["run", "nowhere.yaml"],
        ["report", "nothing"],
        ["run", "--nonsense"],
        ["list", "modles"],
        ["history", "--results", "nowhere"],
        ["run", "--resume", "latest", "--dry-run"],
        ["run", "quickstart", "--retry-failed", "--dry-run"],
        ["import", "some.log"],
        ["data", "check", "nowhere"],
    ],
)
def test_bad_arguments_end_with_code_2_and_one_message(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert done.err
    assert "Traceback" not in done.err


def test_listings_print_one_json_document(cli: Cli) -> None:
    models = cli("list", "models", "--json").json()
    row = next(row for row in models if row["model"] == "mask_rcnn_r50_fpn")
    assert row["native"] == row["torchvision"] == "train infer"
    assert {row["codebase"] for row in cli("list", "codebases", "--json").json()} >= {"native", "torchvision"}
    assert any(row["recipe"].endswith("quickstart.yaml") for row in cli("list", "recipes", "--json").json())
    assert cli("list", "runs", "--results", cli.results, "--json").json() == []


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("models", ["cascade_mask_rcnn", "torchvision", "transformers"]),
        ("codebases", ["transformers"]),
        ("recipes", ["native-vs-paddledet-solov2-full"]),
    ],
)
def test_lists_fit_80_columns_and_break_no_name(cli: Cli, what: str, names: list[str]) -> None:
    out = cli("list", what, env={"COLUMNS": "80"}).out
    assert max(len(line) for line in out.splitlines() if ": " not in line) <= 80, "but remedies below a table"
    assert all(name in out for name in names)


def test_what_a_codebase_lacks_comes_with_its_reason(cli: Cli) -> None:
    rows = {row["model"]: row for row in cli("list", "models", "--json").json()}
    for row in rows.values():
        for codebase in ("mmdet", "paddledet", "torchvision", "native"):
            assert row[codebase] != "–" or row["notes"].get(codebase), (row["model"], codebase)


def test_doctor_says_how_to_get_what_is_missing(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert done.code == 0, done.err
    findings = done.json()
    assert {"processor", "memory", "disk", "GPU", "native", "torchvision"} <= {f["what"] for f in findings}
    assert all(finding["fix"] for finding in findings if finding["state"] == "missing")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A results folder with one finished run of two fake arms, 20 and 10 ms a step."""
    cli = Cli(tmp_path_factory.mktemp("measured"))
    done = cli.run(cli.recipe())
    assert done.code == 0, done.err
    return cli


@pytest.mark.parametrize("command", ["export", "report", "history", "site build"])
def test_output_that_cannot_be_written_is_bad_input(measured: Cli, command: str) -> None:
    (measured.folder / "taken").touch()
    where = [measured.results] if command == "site build" else ["--results", measured.results]
    done = measured(*command.split(), *where, "-o", measured.folder / "taken" / "there")
    assert done.code == 2
    assert done.err.startswith(f"error: {measured.folder / 'taken' / 'there'}")
    assert re.search(r": cannot be written: (Not a directory|File exists)\n$", done.err)


def test_ratio_in_report_is_one_that_was_measured(measured: Cli) -> None:
    run = Run(measured.runs()[-1])
    slow, fast = (block_times(run.samples(name)) for name in ("slow", "fast"))
    pairs = pair(fast, slow)
    expected = ratio(pairs.launch, pairs.log_ratio)
    assert 1.5 < expected.value < 2.5  # 20 ms against 10 ms, slept

    folder = measured.folder / "report"
    done = measured("report", "latest", "--results", measured.results, "-o", folder)
    assert done.code == 0, done.err
    assert Path(done.out.strip()) == folder / "report.md"
    rows = json.loads((folder / "report.json").read_text())["runs"][0]["groups"][0]["rows"]
    shown = next(row for row in rows if row["label"] == "fast")["ratio"]
    assert shown["value"] == pytest.approx(expected.value)
    assert shown["low"] == pytest.approx(expected.low)
    assert {path.stem for path in folder.glob("figures/*.svg")} >= {"ratios", "ratios-dark"}
    assert (folder / "index.html").exists()


def test_compare_prints_the_ratio_of_two_arms(measured: Cli) -> None:
    done = measured("compare", "latest:slow", "latest:fast", "--results", measured.results, "--json")
    assert done.code == 0, done.err
    (row,) = done.json()["rows"]
    assert 1.5 < row["ratio"]["value"] < 2.5
    assert row["interleaved"]
    assert "fast" in measured("compare", "latest:slow", "latest:fast", "--results", measured.results).out


def test_a_run_of_one_codebase_against_itself_finds_no_difference(cli: Cli) -> None:
    done = cli.run(cli.recipe(), "--aa", "--json")
    assert done.code == 0, done.err
    a, b = (arm["id"] for arm in done.json()["arms"])
    row = cli("compare", f"latest:{a}", f"latest:{b}", "--results", cli.results, "--json").json()["rows"][0]
    assert 0.8 < row["ratio"]["value"] < 1.25  # slept times on a shared machine


def test_estimate_uses_what_earlier_runs_of_same_work_took(measured: Cli) -> None:
    plan = measured.run(measured.recipe(), "--dry-run", "--json").json()
    assert {arm["estimate_from"] for arm in plan["arms"]} == {"a past run"}


def test_ema_phases_memory_and_predictions_are_measured(cli: Cli) -> None:
    recipe = cli.recipe(
        arms=[
            {
                "codebase": "fake",
                "label": "slow",
                "options": {"step_s": 0.005, "ema_s": 0.02, "memory_mb": 64},
            }
        ],
        factors={"task": ["train", "infer"], "ema": [True, False]},
        exclude=[{"task": "infer", "ema": True}],
    )
    assert cli.run(recipe).code == 0
    with_ema = cli.arm("slow-task-train-ema-on")
    assert [(one["launch"], one["described"]) for one in with_ema["memory"]] == [(0, True), (1, False)]
    assert list(with_ema["phases"]) == ["data", "forward", "backward", "optimizer", "ema"]
    assert min(with_ema["phases"]["ema"]) >= 0.02
    assert "ema" not in cli.arm("slow-task-train-ema-off")["phases"]
    memory = with_ema["memory"][0]
    assert memory["host_peak_bytes"] - memory["host_baseline_bytes"] >= 64 * 2**20

    infer = cli.arm("slow-task-infer-ema-off")
    assert list(infer["phases"]) == ["data", "network", "post"]
    predictions = json.loads((cli.runs()[-1] / infer["predictions"]["path"]).read_text())
    assert len(predictions) == infer["predictions"]["detections"] == 2
    assert predictions[0]["bbox"] == [1.0, 1.0, 2.0, 2.0]
    assert predictions[0]["segmentation"] == {"size": [4, 4], "counts": [5, 2, 2, 2, 5]}


def test_several_ranks_are_measured_together_and_the_slowest_counts(cli: Cli) -> None:
    recipe = cli.recipe(arms=[{"codebase": "fake", "label": "slow", "options": {"step_s": 0.01}}])
    # The fake codebase is started by torchrun here: RANK is all that it needs of it.
    adapter = cli.folder / "ranked"
    adapter.mkdir()
    (adapter / "adapter.py").write_text((FAKE / "adapter.py").read_text())
    text = (FAKE / "adapter.yaml").read_text().replace("name: fake\n", "name: fake\nlauncher: torchrun\n", 1)
    (adapter / "adapter.yaml").write_text(text)
    done = cli(
        "run", recipe, "--adapters", adapter, "--results", cli.results, "--set", "workload.ranks=2",
        "--set", "workload.batch_size=1",
    )  # fmt: skip
    assert done.code == 0, done.err
    run = Run(cli.runs()[-1])
    samples = run.samples("slow")
    assert set(samples["rank"]) == {0, 1}
    measured = samples[samples["round"] >= 0]
    slowest = (
        measured.groupby(["launch", "round", "step"])["duration_ns"].max().groupby(["launch", "round"]).mean()
    )
    assert block_times(samples)["s_per_step"].tolist() == pytest.approx((slowest / 1e9).tolist())
    assert {memory.rank for memory in run.arms()[0].memory} == {0, 1}


def test_a_dry_run_measures_nothing_and_estimates_the_time(cli: Cli) -> None:
    done = cli.run(cli.recipe(), "--dry-run", "--json")
    assert done.code == 0, done.err
    plan = done.json()
    assert [arm["id"] for arm in plan["arms"]] == ["slow", "fast"]
    assert plan["estimate_s"] > 0
    assert not cli.results.exists()


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("1 / 0", 70, ["please report", "ZeroDivisionError"]),
        ("bytearray(1 << 62)", 2, ["out of memory", "ulimit -v"]),
    ],
)
def test_a_fault_of_bench_is_no_regression(fault: str, code: int, said: list[str]) -> None:
    script = (
        "import bench.cli.listing as listing, bench.cli as cli, sys\n"
        f"listing.find_codebases = lambda *_: {fault}\n"
        "sys.argv = ['bench', 'list', 'codebases']\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert all(words in done.stderr for words in said)


def test_a_file_that_cannot_be_read_is_bad_input(cli: Cli) -> None:
    done = cli("import", cli.folder)  # a folder
    assert done.code == 2, done.err


def test_a_closed_pipe_is_no_regression(cli: Cli) -> None:
    process = cli.start("list", "models")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0


def test_closed_streams_are_no_fault(cli: Cli) -> None:
    bench = f"{sys.executable} -m bench"
    for command, code in ((f"{bench} --version >&-", 0), (f"{bench} init {cli.folder}/r.yaml <&-", 2)):
        assert subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True).returncode == code


def test_run_from_python_is_that_of_the_command_line(cli: Cli) -> None:
    settings = {"measure.rounds": 2, "arms.1.options": {"raise_at": 1}}
    run = bench.run(cli.recipe(), settings, results=cli.results, adapters=[FAKE], quiet=True)
    assert run.exit_code == 4, "one arm failed"
    ratios = run.ratios().set_index("arm")
    assert ratios.loc["fast", "status"] == "failed"
    again = bench.load("latest", cli.results)
    assert again.run.folder == run.run.folder
    assert set(again.samples()["arm"]) == {"slow"}
    assert again.run.record().recipe["measure"]["rounds"] == 2


def test_watch_follows_a_run_of_another_process_to_its_end(cli: Cli) -> None:
    recipe = cli.recipe(measure={"quiet": "off", "warmup": 1, "steps": 2, "rounds": 60, "launches": 2})
    running = cli.start("run", recipe, "--adapters", FAKE, "--results", cli.results)
    deadline = time.monotonic() + 60
    while not cli.runs() and time.monotonic() < deadline:
        time.sleep(0.05)
    watched = cli("watch", "latest", "--every-s", "0.1", "--adapters", FAKE, "--results", cli.results)
    assert running.wait(timeout=60) == 0
    assert watched.code == 0, watched.err
    assert "[244/244, " in watched.err
    assert "ratio so far" in watched.err
    assert f"{cli.runs()[0]}: complete" in watched.out
    assert "fast / slow" in watched.out
