"""A check finds adapter and code in the repository that the user is in."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.gate.checkouts import adapters_here, sources_here
from bench.recipe.codebases import BUILTIN, find_codebases
from bench.recipe.plan import Arm
from bench.recipe.workload import Workload


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def arms(*codebases: str, **known: Any) -> list[Arm]:
    return [Arm(name, name, name, {}, "all", Workload(), {}, {}, None, **known) for name in codebases]


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
    (source,) = sources_here(repository, codebases, arms("mine", "native"))
    assert (source.codebase.name, source.folder) == ("mine", Path())


def test_fork_of_a_known_codebase_is_found_by_its_package(repository: Path) -> None:
    add(repository, "mmdet/__init__.py")
    (source,) = sources_here(repository, find_codebases(), arms("mmdet", "native"))
    assert source.codebase.name == "mmdet"


def test_repository_without_any_of_them_says_what_to_do(repository: Path) -> None:
    with pytest.raises(BenchError, match="--source CODEBASE=PATH"):
        sources_here(repository, find_codebases(), arms("native"))


def test_project_itself_checks_its_own_codebase() -> None:
    assert adapters_here(BUILTIN) == []
    assert [one.codebase.name for one in sources_here(BUILTIN, find_codebases(), arms("native"))] == [
        "native"
    ]


def test_a_function_of_the_repository_is_its_source(repository: Path) -> None:
    add(repository, "src/mypkg/__init__.py")
    (source,) = sources_here(repository, find_codebases(), arms("python", model="mypkg.models:build"))
    assert (source.folder, source.configs_only) == (Path("src"), False)


def test_each_revision_measures_its_own_configuration(repository: Path, tmp_path: Path) -> None:
    add(repository, "configs/mine.py", "depth = 50\n")
    commit = [
        "git",
        "-C",
        str(repository),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "commit",
        "-qm",
        "one",
    ]
    subprocess.run(commit, check=True)
    (repository / "configs" / "mine.py").write_text("depth = 101\n")
    config = str(repository / "configs" / "mine.py")
    (source,) = sources_here(repository, find_codebases(), arms("mmdet", model=config))
    assert source.configs_only
    with source.checkout(source.commit("HEAD"), repository / "tree") as found:
        assert Path(str(found.config(config))).read_text() == "depth = 50\n"
        assert found.config("retinanet_r50_fpn") == "retinanet_r50_fpn"
        with pytest.raises(BenchError, match=r"configs/new\.py is not in revision"):
            found.config(str(repository / "configs" / "new.py"))


def test_one_codebase_from_two_folders_is_refused(repository: Path) -> None:
    add(repository, "old/mymodel.py")
    add(repository, "new/mymodel.py")
    both = [*arms("python", source=repository / "old"), *arms("python", source=repository / "new")]
    with pytest.raises(BenchError, match="arms of python come from old and new"):
        sources_here(repository, find_codebases(), both)
