"""Other codebases save and load all that their next training step depends on."""

from __future__ import annotations

import pytest

from bench.environments import python_of
from bench.errors import BenchError
from bench.recipe.codebases import find_codebases
from tests.conftest import Cli
from tests.helpers.runs import killed_and_resumed_alike

pytestmark = [pytest.mark.peers, pytest.mark.nightly]


def test_trainings_of_peers_killed_halfway_end_with_same_detections(
    cli: Cli,
) -> None:
    codebases = find_codebases()
    try:
        for name in ("mmdet", "paddledet"):
            python_of(codebases[name])
    except BenchError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    killed_and_resumed_alike(cli, ["mmdet", "paddledet"])
