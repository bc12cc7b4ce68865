"""What a verdict says beside its differences."""

from __future__ import annotations

import pytest

from bench.judge.audit import audit
from tests.audit.test_judge import arm


def test_flops_beside_rounding_are_said() -> None:
    reference = arm("reference")
    flops = {"forward": {"float32": 900}, "backward": {"float32": 2000}}
    fewer = {f"steps/{step}/flops": flops for step in range(3)}
    norms = {"steps/0/gradient": {"head.classes": 2.0, "backbone.stages.1": 1.02}}
    other = arm("other", {**fewer, **norms})
    for one, value in ((reference, 1.008), (other, 1.03)):
        shaken = {"steps/0/gradient": {"head.classes": 2.0, "backbone.stages.1": value}}
        one.audit["shaken"] = arm("shaken", {**(fewer if one is other else {}), **shaken}).audit["ranks"]
    found = audit(other, reference)
    assert found.verdict == "not shown"
    assert [one.partition(":")[0] for one in found.notes] == ["forward FLOPs in step 1"]
    assert found.notes[0].endswith("with results that differ by less than rounding does")


@pytest.mark.parametrize(
    ("busy", "other", "said"), [(0.4, 1.0, True), (0.9, 1.6, False), (0.4, 0.5, False), (None, 1.0, False)]
)
def test_arm_that_waits_is_said(busy: float | None, other: float, said: bool) -> None:
    found = audit(arm("other", busy_processors=busy), arm("reference", busy_processors=other))
    assert found.verdict == "equal"
    assert bool(found.notes) is said


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ({"flops": 0, "suppressed": 0, "operators": 40}, "equal"),
        ({"flops": 0, "suppressed": 0, "operators": 60}, "unequal"),
        ({"flops": 40, "suppressed": 0, "operators": 0}, "unequal"),
        ({"flops": 0, "suppressed": 5, "operators": 0}, "unequal"),
    ],
)
def test_work_that_no_step_is_timed_with_is_compared(done: dict[str, int], expected: str) -> None:
    nothing = {"flops": 0, "suppressed": 0, "operators": 0}
    found = audit(arm("other", {"steps/1/outside": done}), arm("reference", {"steps/1/outside": nothing}))
    assert found.verdict == expected
    converted = arm("other", {"converted": done}), arm("reference", {"converted": nothing})
    assert audit(*converted).verdict == expected


@pytest.mark.parametrize(("decay", "blur", "expected"), [(2e-4, 1e-8, "unequal"), (2e-4, 1e-4, "equal")])
def test_weight_decay_of_a_part_is_compared(decay: float, blur: float, expected: str) -> None:
    arms = (arm(str(one), {"steps/1/decay": {"neck": [one, blur]}}) for one in (decay, 1e-4))
    assert audit(*arms).verdict == expected
