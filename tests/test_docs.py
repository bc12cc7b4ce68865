"""Every command and every recipe in the documentation works as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import make_plan
from tests.conftest import ROOT, SHARED, Cli

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def console_lines(path: Path) -> list[str]:
    """Commands of the ```console blocks, without the prompt."""
    blocks = re.findall(r"```console\n(.*?)```", path.read_text(), re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


COMMANDS = [(path.name, line) for path in DOCUMENTS for line in console_lines(path)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A results folder with one run, so that commands which read runs have something to read."""
    cli = Cli(tmp_path_factory.mktemp("docs"))
    assert cli.run(cli.recipe()).code == 0
    return cli


@pytest.mark.parametrize(("document", "line"), COMMANDS, ids=[f"{name}: {line}" for name, line in COMMANDS])
def test_a_command_of_the_documentation_works(workspace: Cli, document: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        return
    assert words[0] in ("bench", ".venv/bin/bench")
    if any(word.startswith("../shared") for word in words) and not SHARED.is_dir():
        pytest.skip(f"no {SHARED}")
    command, arguments = words[1], words[2:]
    if command == "env" and arguments[0] in ("create", "remove"):
        assert set(arguments[1:]) <= {*find_codebases(), "--all", "--group", "compiled-ops"}
        return
    if command == "run" and "--resume" in arguments:
        return  # tested with real interruptions in test_faults.py
    if command in ("run", "check", "audit", "calibrate"):  # measuring takes minutes: the plan must be valid
        arguments = ["--dry-run", *(word for word in arguments if word not in ("--dry-run", "--strict"))]
        command = "run"
    if command in ("report", "compare", "list", "run", "history"):
        if command != "list" or arguments[0] == "runs":
            arguments += ["--results", str(workspace.results)]
        if command == "report" and "-o" not in arguments:
            arguments += ["-o", str(workspace.folder / "report")]
    done = workspace(command, *arguments)
    assert done.code == 0, f"{document}: {line}\n{done.err}"


def test_the_recipe_that_explains_every_field_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    path = tmp_path / "recipe.yaml"
    path.write_text(block[1].replace("extends: quickstart.yaml", f"extends: {ROOT}/recipes/quickstart.yaml"))
    plan = make_plan(load_recipe(path, ["factors={ema: [off, on], batch_size: [1, 2]}"]), find_codebases())
    assert {arm.label for arm in plan.arms} == {"torchvision", "native compiled"}


def test_the_documents_name_no_file_of_the_project_that_is_not_there() -> None:
    folders = "bench|adapters|detectors|recipes|docs|tests|benchmarks"
    for path in DOCUMENTS:
        for name in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", path.read_text()):
            assert (ROOT / name).exists(), f"{path.name} names {name}"
