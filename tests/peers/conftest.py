"""Codebases in environments of their own; without them the tests are skipped and say how to make them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.environments import python_of
from bench.errors import BenchError
from bench.recipe.codebases import find_codebases
from tests.peers.peer import Peer
from tests.peers.ppdet import PADDLEDET, Bench


def peer(name: str, folder: Path) -> Peer:
    codebase = find_codebases()[name]
    try:
        return Peer(codebase, python_of(codebase), folder)
    except BenchError as error:
        pytest.skip(f"{error.message}; {error.hint}")


@pytest.fixture
def mmdet(tmp_path: Path) -> Peer:
    return peer("mmdet", tmp_path)


@pytest.fixture
def detectron2(tmp_path: Path) -> Peer:
    return peer("detectron2", tmp_path)


@pytest.fixture
def transformers(tmp_path: Path) -> Peer:
    return peer("transformers", tmp_path)


@pytest.fixture
def onnx(tmp_path: Path) -> Peer:
    return peer("onnx", tmp_path)


@pytest.fixture
def yolox(tmp_path: Path) -> Peer:
    return peer("yolox", tmp_path)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    try:
        python_of(PADDLEDET)
    except BenchError as error:
        pytest.skip(f"{error.message}; create it with: bench env create paddledet")
    return Bench(tmp_path)
