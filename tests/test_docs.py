"""Commands, recipes, links and names in the documentation are right as they stand."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bench.cli import COMMANDS as COMMAND_LINES
from bench.cli import app
from bench.errors import BenchError
from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import make_plan
from bench.record.samples import SAMPLE_COLUMNS
from bench.report.comparison import _has
from bench.report.values import MARKS
from tests.conftest import FAKE, ROOT, SHARED, Cli

PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "adapters/README.md", "detectors/README.md")
]
PAGES += sorted(ROOT.glob("adapters/*/README.md")) + sorted((ROOT / "docs").rglob("*.md"))
#: Pages of the notebook are records: their commands belong to the commits that they name.
GUIDES = [
    page for page in PAGES if not {"notebook", "adapters", "detectors"} & set(page.relative_to(ROOT).parts)
]
WRAP = ROOT / "docs" / "tutorial" / "wrap-your-codebase.md"

#: Commands in ```sh blocks are not executed here, for the reason of a pattern that fits.
NOT_EXECUTED = {
    r"\b(RUN|DIR|FILE|CONFIG|FORMAT|RECIPE|recipe\.yaml|my-comparison\.yaml)\b": "has a placeholder",
    r"path/to|ours.log|^bench eval instances.json": "has a placeholder",
    r"^make (wheels|gpu)": "fetches gigabytes, and takes them on a machine with a GPU",
    r"^bench env create .*--as": "installs another version; tests/integration/test_named_environments.py",
    r"^bench data sample": "needs a data set of the reader's; tests/integration/test_data_commands.py runs it",
    r"s3://|^(pip|ray|export) ": "needs a cluster or a bucket; tests/clusters and test_store.py run the commands",
    r"^bench check .*--source": "needs a checkout of another codebase; tests/test_check.py checks one",
    r"^bench (vs|export-model) .*model\.onnx": "needs the reader's weights; tests/peers/test_export_model.py runs it",
    r"^(python|from|for|write)": "trains for minutes; tests/models/test_train_cli.py runs the commands on less",
}


def reason(command: str) -> str:
    """Why a command is not executed here; empty where it is."""
    return next((why for pattern, why in NOT_EXECUTED.items() if re.search(pattern, command)), "")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def lines(page: Path, language: str) -> list[str]:
    """Commands of such blocks, without prompt and comment; a backslash at the end continues a line."""
    text = "".join(blocks(page, language)).replace("\\\n", " ")
    prompt = "$ " if language == "console" else ""
    found = [line.removeprefix(prompt) for line in text.splitlines() if line.startswith(prompt)]
    return [line.partition(" #")[0].strip() for line in found if line.strip()]


def commands_of(group: Any, name: str = "bench") -> Iterator[tuple[str, Any]]:
    """All commands below a group, with their names."""
    for word in group.list_commands(None):
        command = group.get_command(None, word)
        if hasattr(command, "list_commands"):
            yield from commands_of(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


CLI_COMMANDS = dict(commands_of(typer.main.get_command(app)))
EXAMPLES = [
    (f"{name} --help", line)
    for name, command in CLI_COMMANDS.items()
    for line in re.findall(r"^\$ (.*)", command.epilog or "", re.MULTILINE)
]
COMMANDS = {line: str(page.relative_to(ROOT)) for page in GUIDES for line in lines(page, "console")}
COMMANDS |= {line: name for name, line in EXAMPLES if line not in COMMANDS and not reason(line)}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A results folder with one run, so that commands which read runs have something to read."""
    cli = Cli(tmp_path_factory.mktemp("docs"))
    assert cli.run(cli.recipe()).code == 0
    return cli


def as_tested(words: list[str], workspace: Cli) -> list[str] | None:
    """Arguments of `bench` that check a command quickly; None where its words alone were checked."""
    command, rest = words[0], words[1:]
    if command in ("vs", "init", "export-model") or "mine.yaml" in rest:
        return None  # tests/integration/test_tutorials.py and test_vs.py run such lines
    if command == "env" and ("--as" in rest or rest[0] == "adopt"):
        return None  # tests/integration/test_named_environments.py
    if command == "env" and rest[0] in ("create", "remove", "check"):
        assert set(rest[1:]) <= {*find_codebases(), "--all", "--group", "compiled-ops"}
        return None
    if command == "run" and "--resume" in rest:
        return None  # tests/test_faults.py resumes after real interruptions
    if command == "run" and {"--skip-done", "--executor"} & set(rest):
        return [command, *rest, "--results", str(workspace.results)]
    if command in ("run", "check", "audit", "calibrate"):  # measuring takes minutes: the plan must be valid
        command, rest = "run", [rest[0], *settings_of(rest), "--dry-run", "--json"]
    if command in ("report", "compare", "export", "run", "history", "watch") or rest == ["runs"]:
        rest += ["--results", str(workspace.results)]
    if command == "compare":  # words that one arm of the quickstart has; the run here has other arms
        arms = make_plan(load_recipe(Path("quickstart")), find_codebases()).arms
        for place, name in enumerate(("slow", "fast")):
            words = rest[place].removeprefix("latest:").split(",")
            assert sum(all(_has(arm, word) for word in words) for arm in arms) == 1, rest[place]
            rest[place] = f"latest:{name}"
    if command == "watch":
        rest += ["--adapters", str(FAKE)]
    if command == "site":
        rest = ["build", str(workspace.results), "-o", str(workspace.folder / command)]
    if command in ("report", "history"):
        rest += ["-o", str(workspace.folder / command)]
    return [command, *rest]


def settings_of(words: list[str]) -> list[str]:
    return [word for at, word in enumerate(words) if word in ("--set", "--aa") or words[at - 1] == "--set"]


@pytest.mark.parametrize(("line", "page"), COMMANDS.items(), ids=COMMANDS)
def test_commands_work(
    workspace: Cli, page: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        return
    assert words[0] == "bench"
    if any(word.startswith("../shared") for word in words) and not SHARED.is_dir():
        pytest.skip(f"no {SHARED}")
    arguments = as_tested(words[1:], workspace)
    if arguments is not None:
        monkeypatch.chdir(ROOT)
        try:
            code = app(arguments, standalone_mode=False)
        except BenchError as error:
            pytest.fail(f"{page}: {line}\n{error}")
        shown = capsys.readouterr()
        if (
            "--json" in arguments and "--dry-run" in arguments
        ):  # what this machine lacks is no mistake of the page
            assert json.loads(shown.out)["arms"]
        else:
            assert not code, f"{page}: {line}\n{shown.err}"


def test_commands_not_executed_have_a_reason() -> None:
    for page in GUIDES:
        for line in lines(page, "sh"):
            assert reason(line), f"{page.name}: {line}"


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_help_of_bench_says_what_its_commands_say(name: str) -> None:
    command = typer.main.get_command(app).get_command(None, name)
    assert COMMAND_LINES[name][1] == (command.help or "").partition("\n")[0]


@pytest.mark.parametrize("name", CLI_COMMANDS)
def test_commands_have_examples(name: str) -> None:
    assert any(line.startswith(name) for where, line in EXAMPLES if where == f"{name} --help")


def recipes() -> list[tuple[str, str]]:
    found = [(page.stem, block) for page in GUIDES for block in blocks(page, "yaml")]
    return [(page, block) for page, block in found if block.startswith("name:") and "\narms:" in block]


@pytest.mark.parametrize(("page", "text"), recipes())
def test_recipes_are_valid(page: str, text: str, tmp_path: Path) -> None:
    for name, content in re.findall(
        r"^`(adapter\.yaml)`:\n\n```\w+\n(.*?)^```", WRAP.read_text(), re.M | re.S
    ):
        (tmp_path / name).write_text(content)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    assert make_plan(load_recipe(recipe, []), find_codebases([tmp_path])).arms


def test_files_named_exist() -> None:
    folders = "bench|adapters|detectors|recipes|docs|tests|benchmarks"
    for page in GUIDES:
        for name in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)(?:::\w+)*`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_links_lead_to_files() -> None:
    for page in PAGES:
        for link in re.findall(r"\[[^\]]*\]\(([^)\s#]+)[^)]*\)", page.read_text()):
            if "://" not in link and "codebases/" not in link:  # those pages are made with the site
                assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"


def names_in(source: Path) -> set[str]:
    """Functions and classes of a file, methods as Class.method."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = set()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, kinds):
            found.add(node.name)
            found |= {
                f"{node.name}.{inner.name}" for inner in getattr(node, "body", ()) if isinstance(inner, kinds)
            }
    return found


def test_functions_named_exist() -> None:
    named = [
        (page.name, *match)
        for page in GUIDES
        for match in re.findall(r"`([\w/]+\.py)::([\w.]+)`", page.read_text())
    ]
    assert len(named) >= 12
    for page, path, name in named:
        assert name in names_in(ROOT / path), f"{page} names {path}::{name}"


def test_fields_of_the_reference_are_explained() -> None:
    places = {
        match for page in GUIDES for match in re.findall(r"<!-- fields ([\w.]+):(\w+) -->", page.read_text())
    }
    assert len(places) >= 16
    for module, name in places:
        for field, facts in getattr(importlib.import_module(module), name).model_fields.items():
            assert facts.description or facts.exclude, f"{module}:{name}.{field}"


def test_columns_of_samples_are_those_of_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "run-folder.md").read_text().partition("## samples/")[2]
    assert dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE)) == SAMPLE_COLUMNS


def test_marks_of_reports_are_explained() -> None:
    text = (ROOT / "docs" / "explanation" / "equal-work.md").read_text()
    assert all(f"| {mark} | {meaning} |" in text for mark, meaning in MARKS.items())


def test_walk_takes_at_most_twelve_visits() -> None:
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    walk = text.partition("## A walk")[2].partition("\n## ")[0]
    visits = re.findall(r"^\d+\. ", walk, re.MULTILINE)
    assert 0 < len(visits) <= 12


def test_readme_fits_80_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 80


def test_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
