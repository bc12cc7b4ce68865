"""Files of strangers: no command of theirs is run, nothing is written elsewhere, and no terminal obeys them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bench.cli import main
from bench.text_safety import for_terminal
from tests.conftest import FAKE, Cli, Finished

#: Clipboard, title, cursor, colours, direction of text, 8-bit controls, and markup of rich.
ESCAPES = "\x1b]52;c;cm0=\x07\x1b]0;title\x07\x1b[2J\x1b[1A\u202e\u2066\x9b31m"
BRACKETS = "[/bold][red][link=file:///][x"
Bench = Callable[..., Finished]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    """`bench` in this process. Nothing that it prints may hold what a terminal obeys, or be a traceback."""

    def call(*arguments: str | Path) -> Finished:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert for_terminal(out + err) == out + err
        assert "Traceback" not in err
        return Finished(int(ended.value.code or 0), out, err)

    return call


def wicked(folder: Path, **changes: object) -> Path:
    """A recipe of the fake codebase with brackets wherever text may stand."""
    path = Cli(folder).recipe(
        description=BRACKETS,
        arms=[{"codebase": "fake", "label": f"slow {BRACKETS}"}, {"codebase": "fake", "label": "快速"}],
        baseline="快速",
        factors={"options.x": [BRACKETS]},
        **changes,
    )
    (folder / "[old]").mkdir()
    return path.rename(folder / "[old]" / f"{BRACKETS.replace('/', '')}.yaml")


# -- commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["PYTHONWARNINGS", "PYTHONPATH", "LD_PRELOAD", "BROWSER", "OMP_TOOL_LIBRARIES"]
)
@pytest.mark.parametrize("command", ["run", "audit", "check", "calibrate"])
def test_a_recipe_sets_no_variable_that_runs_programs(
    bench: Bench, tmp_path: Path, command: str, name: str
) -> None:
    proof = tmp_path / "proof"
    recipe = Cli(tmp_path).recipe(environment={"variables": {name: f"touch {proof}"}})
    more = ["--base", "HEAD"] if command == "check" else []
    done = bench(command, recipe, "--adapters", FAKE, *more)
    assert done.code == 2
    assert name in done.err
    assert "--allow-variables" in done.err
    assert not proof.exists()


def test_arm_sets_such_variables_only_when_user_allows_it(bench: Bench, tmp_path: Path) -> None:
    arm = {"codebase": "fake", "variables": {"PYTHONWARNINGS": "error", "OMP_PROC_BIND": "close"}}
    recipe = Cli(tmp_path).recipe(arms=[arm], baseline={})
    assert bench("run", recipe, "--adapters", FAKE, "--dry-run").code == 2
    done = bench("run", recipe, "--adapters", FAKE, "--dry-run", "--allow-variables")
    assert done.code == 0
    assert "variables of fake: PYTHONWARNINGS=error OMP_PROC_BIND=close" in done.out


def test_run_folder_of_stranger_sets_no_such_variable_on_resume(cli: Cli, bench: Bench) -> None:
    cli.run(cli.recipe(), "--quiet", "--set", "measure.rounds=1", "--set", "measure.launches=1")
    path = cli.runs()[0] / "run.json"
    record = json.loads(path.read_text())
    record["recipe"]["environment"]["variables"] = {"LD_PRELOAD": "/tmp/evil.so"}
    path.write_text(json.dumps(record))
    done = bench("run", "--resume", path.parent, "--adapters", FAKE)
    assert done.code == 2
    assert "LD_PRELOAD" in done.err


# -- terminals ---------------------------------------------------------------------------------------------------


def test_brackets_in_recipe_are_plain_text_in_lists_and_plans(bench: Bench, tmp_path: Path) -> None:
    recipe = wicked(tmp_path)
    listed = bench("list", "recipes", tmp_path / "[old]")
    assert listed.code == 0
    assert "[red]" in "".join(listed.out.split())
    done = bench("run", recipe, "--dry-run", "--adapters", FAKE)
    assert done.code == 0, done.err
    assert bench("run", recipe, "--dry-run", "--adapters", FAKE, "--json").code == 0


def test_escapes_in_a_recipe_are_refused_and_shown(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / f"a{ESCAPES.replace('/', '')}.yaml"
    path.write_text(f"name: t\ndescription: {json.dumps(ESCAPES)}\n")
    for arguments in (("run", path), ("audit", path), ("check", path, "--base", "HEAD"), ("calibrate", path)):
        done = bench(*arguments)
        assert done.code == 2
        assert "\\x1b]52" in done.err
    listed = bench("list", "recipes", tmp_path)
    assert listed.code == 0
    assert "not valid" in listed.out


def test_an_adapter_in_a_bracketed_folder_with_markup_is_listed(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "[old]" / "[red]"
    folder.mkdir(parents=True)
    content = yaml.safe_load((FAKE / "adapter.yaml").read_text())
    content |= {"name": BRACKETS, "missing": {"*": BRACKETS}}
    (folder / "adapter.yaml").write_text(yaml.safe_dump(content))
    for command in (("list", "codebases"), ("list", "models"), ("doctor",)):
        for adapters in (folder, tmp_path / "[old]"):
            assert bench(*command, "--adapters", adapters).code == 0


def test_escapes_in_a_run_folder_never_reach_the_terminal(cli: Cli, bench: Bench) -> None:
    cli.run(cli.recipe(), "--quiet", "--set", "measure.rounds=1", "--set", "measure.launches=1")
    folder = cli.runs()[0]
    evil = f"{BRACKETS} {ESCAPES}"
    run = json.loads((folder / "run.json").read_text())
    run["recipe"]["description"] = evil
    run["machine"]["cpu"]["model"] = evil
    run["warnings"] = [evil]
    (folder / "run.json").write_text(json.dumps(run))
    arm = json.loads((folder / "arms" / "fast.json").read_text())
    failure = {"reason": "crash", "message": evil, "stage": evil, "launch": 0, "log_tail": [evil]}
    arm |= {"label": evil, "failure": failure, "status": "failed", "codebase": evil, "warnings": [evil]}
    (folder / "arms" / "fast.json").write_text(json.dumps(arm))
    at = ("--results", cli.results)
    report = cli.folder / "report"
    assert bench("list", "runs", *at).code == 0
    assert bench("list", "runs", *at, "--json").code == 0
    assert bench("report", folder, "-o", report).code == 0
    assert bench("compare", f"{folder}:slow", f"{folder}:fast").code in (0, 2, 3)
    assert bench("history", *at, "-o", cli.folder / "history").code == 0
    bench("run", "--resume", folder, "--adapters", FAKE)


def test_escapes_in_names_of_files_never_reach_the_terminal(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / f"{ESCAPES}{BRACKETS.replace('/', '')}.json"
    path.write_text("{}")
    for arguments in (
        ("import", "auto", path),
        ("eval", path, path),
        ("run", path),
        ("run", "--resume", path),
        ("report", path),
        ("compare", path, path),
        ("check", path, "--baseline", path),
        ("data", "check", path),
        ("data", "sample", path, tmp_path / "new", "--images", "1"),
        ("env", "check", path),
    ):
        assert bench(*arguments).code == 2, arguments


def test_one_broken_record_hides_no_other_run(cli: Cli, bench: Bench) -> None:
    recipe = cli.recipe()
    cli.run(recipe, "--quiet", "--set", "measure.rounds=1", "--set", "measure.launches=1")
    broken = cli.runs()[0].parent / "20000101T000000Z-abcdef"
    broken.mkdir()
    (broken / "run.json").write_text('{"id": "../x"}')
    done = bench("list", "runs", "--results", cli.results, "--json")
    assert [row["status"][:5] for row in done.json()] == ["not a", "compl"]
    assert bench("run", recipe, "--dry-run", "--adapters", FAKE, "--results", cli.results).code == 0


def test_a_terminal_of_ascii_gets_escapes_not_a_traceback(tmp_path: Path) -> None:
    recipe = wicked(tmp_path)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C"}
    done = Cli(tmp_path)("run", recipe, "--dry-run", "--adapters", FAKE, env=environment)
    assert done.code == 0, done.err
    assert "\\u5feb" in done.out
