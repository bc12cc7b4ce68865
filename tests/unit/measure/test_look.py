"""Steps that are watched after the timed ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.measure.arm import MeasuredArm
from bench.measure.process import WorkerFailure
from bench.record.models import ArmRecord


def test_arm_keeps_its_result_when_look_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    plan = SimpleNamespace(measure=SimpleNamespace(rounds=1))
    site: Any = SimpleNamespace(plan=plan, scratch=Path(), warn=said.append)
    workload: Any = {"model": "retinanet_r50_fpn"}
    audit: Any = {"ranks": [{"steps": []}]}
    record = ArmRecord(
        id="a", codebase="a", label="a", cell="all", status="ok", workload=workload, audit=audit
    )
    arm: Any = SimpleNamespace(id="a")
    one = MeasuredArm(arm, record, site)

    def request(*_: Any, **__: Any) -> Any:
        raise WorkerFailure("hang", "no answer", "look")

    monkeypatch.setattr(one, "request", request)
    with one.failing(0):
        one.look()
    assert record.failure is None
    assert record.audit["closing"] == [{}]
    assert said == ["a: not watched after the timed blocks: no answer"]
