"""`bench audit` and `bench run --strict` on arms of a codebase that cannot be observed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from bench.measure.process import LaunchSpec, WorkerGroup
from tests.conftest import Cli

TWO_THREADS: list[dict[str, Any]] = [
    {"codebase": "fake", "label": "slow"},
    {"codebase": "fake", "label": "two", "options": {"threads": 2}},
]


def test_audit_says_what_differs_and_keeps_nothing(cli: Cli) -> None:
    done = cli("audit", cli.recipe(arms=TWO_THREADS), "--adapters", "tests/fake", "--json")
    assert done.code == 0, done.err
    (verdict,) = done.json()
    assert verdict["verdict"] == "unequal"
    assert verdict["differences"] == [
        {"fact": "threads asked for", "baseline": 1, "arm": 2, "tolerance": 0.0}
    ]
    assert not cli.results.exists()


def test_codebase_without_observer_is_not_shown(cli: Cli) -> None:
    recipe = cli.recipe(arms=[{"codebase": "fake", "label": "slow"}, {"codebase": "fake", "label": "twin"}])
    done = cli("audit", recipe, "--adapters", "tests/fake")
    assert done.code == 0, done.err
    assert "not shown" in done.out
    assert cli("audit", recipe, "--adapters", "tests/fake", "--strict").code == 3


def test_audit_prints_verdicts_although_an_arm_failed(cli: Cli) -> None:
    broken = {"codebase": "fake", "label": "broken", "options": {"prepare": "raise"}}
    done = cli("audit", cli.recipe(arms=[*TWO_THREADS, broken]), "--adapters", "tests/fake", "--json")
    assert done.code == 4
    assert [one["arm"] for one in done.json()] == ["two"]
    assert "broken cannot be audited" in done.err


def test_strict_refuses_to_time_unequal_work(cli: Cli) -> None:
    done = cli.run(cli.recipe(arms=TWO_THREADS), "--strict")
    assert done.code == 4
    failed = cli.arm("two")
    assert failed["failure"]["reason"] == "audit"
    assert "threads asked for: 2, the baseline has 1" in failed["failure"]["message"]
    assert failed["blocks"] == 0
    assert cli.arm("slow")["blocks"] == 6


def test_a_group_that_was_killed_can_be_stopped(tmp_path: Path) -> None:
    with WorkerGroup(LaunchSpec(Path(sys.executable), "local", 1, {}, tmp_path / "log")) as group:
        group.start(60)
        group.kill()
        group.stop()  # what `shake` does: its stack ends before the arm is told to stop


TINY = """
import torch

class Tiny(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.conv, self.scale = torch.nn.Conv2d(3, 8, 3), scale

    def forward(self, images, targets=None):
        return {"loss": sum(self.scale * self.conv(image).square().mean() for image in images)}

def build(scale):
    return Tiny(scale)
"""


@pytest.mark.nightly
def test_arms_that_differ_a_little_are_watched_once_more(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    shared = {"codebase": "python", "model": "tiny:build", "source": str(tmp_path)}
    arms = [
        {**shared, "label": f"times-{scale}", "options": {"arguments": {"scale": scale}}}
        for scale in (1.0, 1.02)
    ]
    workload = {"task": "train", "frozen_stages": 0, "input": {"images": 4, "size": [64, 64]}}
    done = cli("audit", cli.recipe(arms=arms, workload=workload, baseline="times-1.0"), "--trust", "--json")
    assert done.code == 0, done.err
    (verdict,) = done.json()
    assert verdict["verdict"] == "unequal", verdict
    assert "not watched a second time" not in done.err
