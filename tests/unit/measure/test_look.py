"""Steps that are watched after the timed ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.measure import cell
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


def watched(name: str, answer: Any, said: list[str], monkeypatch: pytest.MonkeyPatch) -> MeasuredArm:
    """An arm whose worker gives this answer to `audit`."""
    workload: Any = {"model": "retinanet_r50_fpn"}
    record = ArmRecord(id=name, codebase=name, label=name, cell="all", status="ok", workload=workload)
    plan = SimpleNamespace(baseline={"codebase": "a"})
    site: Any = SimpleNamespace(plan=plan, warn=said.append, deadline_s=1.0)
    arm: Any = SimpleNamespace(id=name)
    prepared: Any = SimpleNamespace(names=None)
    one = MeasuredArm(arm, record, site, prepared)

    def begin(*_: Any) -> None:
        one.group = SimpleNamespace(receive=lambda *_: [{}], stop=lambda: said.append(f"{name} ends"))  # type: ignore[assignment]

    def request(kind: str, **fields: Any) -> Any:
        assert (kind, fields) == ("audit", {"shake": True})
        if isinstance(answer, WorkerFailure):
            raise answer
        return [{"audit": answer}]

    monkeypatch.setattr(one, "begin", begin)
    monkeypatch.setattr(one, "request", request)
    return one


@pytest.mark.parametrize("differ", [True, False])
def test_only_arms_that_differ_a_little_are_shaken(differ: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    hang = WorkerFailure("hang", "no answer", "audit")
    arms = [
        watched(name, answer, said, monkeypatch)
        for name, answer in (("a", {"randomness": []}), ("b", hang), ("c", hang))
    ]
    monkeypatch.setattr(
        cell, "doubtful", lambda arm, baseline: differ and (arm.id, baseline.id) == ("b", "a")
    )
    cell._shake(arms[0].site, arms, 0)
    if not differ:
        assert said == []
        return
    assert arms[0].record.audit == {"shaken": [{"randomness": []}]}
    assert arms[1].record.audit == {}
    assert all(one.alive and one.group is None for one in arms)
    assert said == ["b: not watched a second time: no answer", "b ends", "a ends"]
