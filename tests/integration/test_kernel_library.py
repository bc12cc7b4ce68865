"""The library in C is built safely, and what cannot be trusted is not loaded."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detectors.cpu import conv2d, library

PLAIN = ((1, 1), (1, 1), (1, 1), 1)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder for the library, and a process that has not loaded one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.built.cache_clear()
    yield tmp_path / "detectors"
    library.built.cache_clear()


def built(cache: Path) -> Path:
    assert library.built() is not None
    library.built.cache_clear()
    (place,) = cache.iterdir()
    return place


def refused(caplog: pytest.LogCaptureFixture, said: str) -> None:
    """No library, one warning that says why, and convolutions all the same."""
    caplog.clear()
    assert library.built() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert said in caplog.text
    x, weight = torch.randn(2, 128, 24, 24), torch.randn(128, 128, 3, 3)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(conv2d(x, weight, None, *PLAIN), torch.conv2d(x, weight, padding=1))


def test_folder_and_file_belong_to_the_user_alone(cache: Path) -> None:
    place = built(cache)
    assert place.stat().st_mode & 0o077 == 0
    assert cache.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("what", ["file", "folder", "parent"])
def test_what_others_can_write_is_not_loaded(
    cache: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = built(cache)
    path = {"file": place, "folder": cache, "parent": cache.parent}[what]
    path.chmod(0o777)
    try:
        refused(caplog, f"{path} can be written by others")
    finally:
        path.chmod(0o700)


def test_a_sticky_folder_above_is_fine(cache: Path) -> None:
    built(cache)
    cache.parent.chmod(0o1777)
    assert library.built() is not None


def test_another_users_file_is_not_loaded(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(cache)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    refused(caplog, "belongs to another user")


@pytest.mark.parametrize("length", [0, 10, 5_000, -1])
def test_a_truncated_library_is_not_loaded(
    cache: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    place = built(cache)
    content = place.read_bytes()
    place.unlink()  # it is loaded, and a process whose library has lost its end is killed when it ends
    place.write_bytes(content[:length])
    refused(caplog, "is damaged")


def test_a_missing_function_is_not_fatal(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "winograd.c"
    source.write_text(library.SOURCE.read_text().replace("detectors_weight_gradient(", "renamed("))
    monkeypatch.setattr(library, "SOURCE", source)
    refused(caplog, "detectors_weight_gradient")


def test_another_compiler_version_builds_another_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built(cache)
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nif [ "$1" = --version ]; then cat "$0.version"; else exec cc "$@"; fi\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    for version in ("1.0", "1.1"):
        Path(f"{compiler}.version").write_text(version)
        library.built.cache_clear()
        assert library.built() is not None
    assert len(list(cache.iterdir())) == 3


def test_a_compiler_that_hangs_is_left(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(command: list[str], **options: float) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    refused(caplog, "timed out")
