"""Facts that agree, by kind."""

from __future__ import annotations

from bench.judge.fact import Agreement, Fact, agreements, unknown


def test_facts_that_agree_are_told_by_kind_the_nearest_to_its_tolerance() -> None:
    facts = [
        Fact("loss in step 1", 1.0, 1.0, 0.01),
        Fact("loss in step 2", 2.0, 2.01, 0.01),
        Fact("loss after the timed blocks in step 1", 3.0, 4.0, 0.01),
        Fact("detections of image 7 in step 1 of rank 0", 3, 3),
        unknown("threads"),
    ]
    loss, detections = agreements(facts)
    assert (loss.fact, loss.baseline, loss.arm, loss.count) == ("loss", 2.0, 2.01, 2)
    assert detections == Agreement("detections", 3, 3, 0.0, 0.0, 1)
