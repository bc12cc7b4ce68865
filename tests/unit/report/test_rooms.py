"""Rooms of the report: numbers to text, figures and the gate do without the whole of it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPORT = Path(__file__).resolve().parents[3] / "bench" / "report"
WHOLE = {"sections", "write", "app.page", "outcome", "notebook"}


def imported(module: str, seen: set[str]) -> set[str]:
    """Modules of the report that a module imports, directly or not."""
    path = REPORT / f"{module.replace('.', '/')}.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bench.report"):
            prefix = (node.module or "").removeprefix("bench.report").strip(".")
            names = [prefix] if prefix and (REPORT / f"{prefix.replace('.', '/')}.py").exists() else [
                f"{prefix}.{one.name}".strip(".") for one in node.names
            ]  # fmt: skip
            for name in names:
                if name not in seen and (REPORT / f"{name.replace('.', '/')}.py").exists():
                    seen.add(name)
                    imported(name, seen)
    return seen


@pytest.mark.parametrize(
    "module", ["text", "document", "colours", "figures", "render.markdown", "render.terminal"]
)
def test_a_part_does_not_import_the_whole(module: str) -> None:
    assert not imported(module, set()) & WHOLE
    assert imported("write", set()) & WHOLE, "the walk finds what it looks for"


def test_importing_the_package_imports_nothing() -> None:
    tree = ast.parse((REPORT / "__init__.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_files_and_functions_are_short() -> None:
    for path in [*REPORT.rglob("*.py"), *REPORT.glob("app/*.js")]:
        lines = path.read_text().splitlines()
        assert len(lines) <= 450, path
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    assert (node.end_lineno or 0) - node.lineno < 60, (path, node.name)
