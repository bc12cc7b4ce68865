"""Finding codebases: one broken plugin ends no command."""

from __future__ import annotations

import importlib.metadata
import os
import pwd
from pathlib import Path

import pytest

from bench.environments import cache_folder
from bench.errors import BenchError
from bench.recipe.codebases import ENTRY_POINT_GROUP, find_codebases, get_codebase


@pytest.mark.parametrize("broken", ["no.such.package", "broken_plugin"])
def test_a_broken_plugin_leaves_the_other_codebases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    (tmp_path / "broken_plugin").mkdir()
    (tmp_path / "broken_plugin" / "__init__.py").touch()
    (tmp_path / "broken_plugin" / "adapter.yaml").write_text("name: [\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = importlib.metadata.EntryPoint("x", broken, ENTRY_POINT_GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    if broken == "broken_plugin":
        with pytest.warns(UserWarning, match="left out"):
            found = find_codebases()
    else:
        found = find_codebases()
    assert "native" in found


def test_a_user_without_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "BENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert os.path.expanduser("~") == "~"
    with pytest.raises(FileNotFoundError, match="no home folder"):
        cache_folder()
    monkeypatch.setenv("BENCH_CACHE", "/x")
    assert cache_folder() == Path("/x")


def test_an_adapter_in_this_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter.yaml").write_text("name: mine\n")
    with pytest.raises(BenchError, match="unknown codebase 'mine'") as caught:
        get_codebase("mine", find_codebases())
    assert caught.value.hint == "its adapter is here: --adapters adapter"
