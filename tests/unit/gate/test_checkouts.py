"""A check finds adapter and code in the repository that the user is in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.gate.checkouts import adapters_here, sources_here
from bench.recipe.codebases import BUILTIN, find_codebases


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def add(repository: Path, name: str, text: str = "") -> None:
    path = repository / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    subprocess.run(["git", "-C", repository, "add", name], check=True)


def test_adapter_of_the_repository_is_found_and_checked(repository: Path) -> None:
    add(
        repository,
        "ci/bench/adapter.yaml",
        "name: mine\ntitle: Mine\npackages: [mine]\nmodels: {}\nsource: ../..\n",
    )
    add(repository, "ci/bench/adapter.py")
    (folder,) = adapters_here(repository / "ci")
    codebases = find_codebases([folder])
    (source,) = sources_here(repository, codebases, {"mine", "native"})
    assert (source.codebase.name, source.folder) == ("mine", Path())


def test_fork_of_a_known_codebase_is_found_by_its_package(repository: Path) -> None:
    add(repository, "mmdet/__init__.py")
    (source,) = sources_here(repository, find_codebases(), {"mmdet", "native"})
    assert source.codebase.name == "mmdet"


def test_repository_without_any_of_them_says_what_to_do(repository: Path) -> None:
    with pytest.raises(BenchError, match="--source CODEBASE=PATH"):
        sources_here(repository, find_codebases(), {"native"})


def test_project_itself_checks_its_own_codebase() -> None:
    assert adapters_here(BUILTIN) == []
    assert [one.codebase.name for one in sources_here(BUILTIN, find_codebases(), {"native"})] == ["native"]
