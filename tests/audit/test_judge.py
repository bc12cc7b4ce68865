"""Verdicts on records: what counts as a difference, what as not shown, and what explains it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from bench.judge.audit import Audit, audit, audit_run
from bench.judge.detections import matched
from bench.judge.observations import group_of, summary
from bench.judge.steps import constants, layers, losses, repeated
from bench.record.models import ArmRecord

IMAGE = {"shape": [3, 96, 128], "projection": [3.0, -4.0, 1.0], "norm": 200.0}
LAYER = {
    "norm": 10.0,
    "sum": 5.0,
    "rows": 64,
    "projection": [1.0, 2.0],
    "gradients": 32,
    "gradient_rows": 0,
}
STEP: dict[str, Any] = {
    "losses": {"cls": 1.0, "box": 0.5, "loss": 1.5},
    "flops": {"forward": {"float32": 1000}, "backward": {"float32": 2000}},
    "images": [IMAGE, IMAGE],
    "batches": [2],
    "rounded": {},
    "operators": {"forward": 500},
    "normalised": {"fixed": 100},
    "random_values": 0,
    "layers": {"head.classes.weight": LAYER},
    "gradient": {"head.classes": 2.0, "backbone.stages.1": 1.0},
    "update": {"head.classes": 2e-3, "backbone.stages.1": 1e-3},
    "momentum": {"head.classes": 2.0, "backbone.stages.1": 1.0},
    "average": {"head.classes": 0.9},
    "rule": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4},
}
SETTINGS = {"threads": 2, "matrix products": "highest", "convolutions": "highest", "TF32": False}
RANK: dict[str, Any] = {
    "steps": [copy.deepcopy(STEP) for _ in range(3)],
    "weights": {"head.classes.weight": 3.0, "backbone.stages.1.0.conv1.conv.weight": 4.0},
    "changed": {"head.classes": 100, "backbone.stages.1": 200},
    "after": SETTINGS,
    "randomness": [],
}


def arm(label: str, changes: dict[str, Any] | None = None, **fields: Any) -> ArmRecord:
    """``changes``: dotted path into the audit of rank 0 → value."""
    rank = copy.deepcopy(RANK)
    for path, value in (changes or {}).items():
        *outer, last = path.split("/")
        target: Any = rank
        for part in outer:
            target = target[int(part) if part.isdigit() else part]
        target[last] = value
    given = {"workload": {"model": "retinanet_r50_fpn"}, "audit": {"ranks": [rank]}, **fields}
    description = {"library": {"torch": "2"}, **given.pop("description", {})}
    return ArmRecord(
        id=label, codebase=label, label=label, cell="all", status="ok", description=description, **given
    )


def against_reference(changes: dict[str, Any], **fields: Any) -> Audit:
    return audit(arm("other", changes, **fields), arm("reference"))


def test_same_observations_are_equal() -> None:
    assert against_reference({}).verdict == "equal"


def test_unequal_loss_terms_are_named_by_what_they_are() -> None:
    mmdet = {"loss_rpn_bbox": 0.01, "loss_bbox": 0.145, "loss_cls": 3.3}
    detectron2 = {"loss_rpn_loc": 0.24, "loss_box_reg": 0.145, "loss_cls": 3.3}
    found = [one for one in losses(mmdet, detectron2, "", 1e-3) if one.name.startswith("loss_")]
    assert [one.name for one in found if one.distance] == ["loss_rpn_bbox (loss_rpn_loc)"]


def test_layers_that_give_zeros_only_are_equal() -> None:
    layer = {"rows": 4, "norm": 0.0, "largest": 0.0, "sum": 0.0, "projection": [0.0], "gradients": 0}
    found = layers({"layers": {"head.weight": layer}}, {"layers": {"head.weight": layer}}, "", 1e-3)
    assert all(fact.agrees for fact in found)


def test_a_learning_rate_of_zero_is_compared() -> None:
    still, moving = ({"rate": {"head": [rate, 0.0, rate, rate]}} for rate in (0.0, 0.1))
    assert all(fact.agrees for fact in constants(still, still, ""))
    assert not any(fact.agrees for fact in constants(still, moving, ""))


def test_loss_terms_of_the_same_names_are_compared_by_name() -> None:
    one, other = {"loss_bbox": 1.0, "loss_giou": 2.0}, {"loss_bbox": 2.0, "loss_giou": 1.0}
    found = [fact for fact in losses(one, other, "", 1e-3) if fact.name.startswith("loss_")]
    assert {fact.name: (fact.baseline, fact.arm) for fact in found} == {
        "loss_bbox": (1.0, 2.0),
        "loss_giou": (2.0, 1.0),
    }


@pytest.mark.parametrize(
    ("fact", "changes"),
    [
        ("total loss in step 3", {"steps/2/losses": {"cls": 1.003, "box": 0.5, "loss": 1.503}}),
        ("cls in step 2", {"steps/1/losses": {"cls": 1.01, "box": 0.49, "loss": 1.5}}),
        ("loss terms in step 1", {"steps/0/losses": {"cls": 1.5, "loss": 1.5}}),
        ("images that enter the network in step 2", {"steps/1/images": [IMAGE]}),
        ("content of image 1 in step 1", {"steps/0/images": [{**IMAGE, "projection": [3.1, -4.0, 1.0]}, IMAGE]}),
        ("shape of image 2 in step 1", {"steps/0/images": [IMAGE, {**IMAGE, "shape": [3, 95, 128]}]}),
        ("backward FLOPs in step 1", {"steps/0/flops/backward": {}}),
        ("share of forward FLOPs in bfloat16 in step 1", {"steps/0/flops/forward": {"bfloat16": 1000}}),
        ("values normalised by batch statistics in step 1", {"steps/0/normalised": {"batch": 100}}),
        ("values offered to random layers in step 1", {"steps/0/random_values": 100}),
        ("values of head.classes with a gradient in step 1",
         {"steps/0/layers/head.classes.weight": {**LAYER, "gradients": 16}}),
        ("output of head.classes in step 1",
         {"steps/0/layers/head.classes.weight": {**LAYER, "projection": [2.0, 1.0]}}),
        ("norm of the gradient in step 1", {"steps/0/gradient": {"head.classes": 2.1, "backbone.stages.1": 1.0}}),
        ("norm of the update of backbone.stages.1 in step 2",
         {"steps/1/update": {"head.classes": 2e-3, "backbone.stages.1": 0.0}}),
        ("norm of the momentum of head.classes in step 2", {"steps/1/momentum": {"backbone.stages.1": 1.0}}),
        ("weight of new values in the average of head.classes in step 2", {"steps/1/average": {}}),
        ("learning rate as the weights show it in step 3",
         {"steps/2/rule": {"lr": 0.0, "momentum": 0.9, "weight_decay": 1e-4}}),
        ("FLOPs of a batch seen before, to the first time",
         {"steps/2/flops": {"forward": {"float32": 500}, "backward": {"float32": 2000}}}),
        ("images per pass through the network in step 2", {"steps/1/batches": [1, 1]}),
        ("values rounded to bfloat16 in step 1", {"steps/0/rounded": {"bfloat16": 10}}),
        ("setting: convolutions", {"after": {**SETTINGS, "convolutions": "bf16"}}),
        ("parts of the model that changed", {"changed": {"head.classes": 100}}),
        ("threads after the steps", {"after": {**SETTINGS, "threads": 1}}),
        ("setting: matrix products", {"after": {**SETTINGS, "matrix products": "medium"}}),
        ("norm of the initial head.classes.weight",
         {"weights": {"head.classes.weight": 3.1, "backbone.stages.1.0.conv1.conv.weight": 4.0}}),
    ],
)  # fmt: skip
def test_each_observed_difference_is_named(fact: str, changes: dict[str, Any]) -> None:
    found = against_reference(changes)
    assert found.verdict == "unequal"
    assert any(difference.fact.startswith(fact) for difference in found.differences)


@pytest.mark.parametrize(
    ("fact", "description"),
    [
        ("parameters", {"parameters": 12}),
        ("score threshold", {"postprocess": {"score_threshold": 0.5}}),
        ("NMS IoU threshold", {"postprocess": {"nms_iou_threshold": 0.7}}),
        ("ground-truth objects", {"objects": 9}),
    ],
)
def test_what_a_codebase_says_counts_where_both_say_it(fact: str, description: dict[str, Any]) -> None:
    said = {
        "parameters": 10,
        "objects": 11,
        "postprocess": {"score_threshold": 0.05, "nms_iou_threshold": 0.5},
    }
    reference = arm("reference", description=said)
    found = audit(arm("other", description={**said, **description}), reference)
    assert [difference.fact for difference in found.differences] == [fact]
    assert audit(arm("silent"), reference).verdict == "equal"


def test_arm_that_was_not_observed_is_not_shown() -> None:
    found = audit(arm("other", audit={}), arm("reference"))
    assert (found.verdict, found.unknown) == ("not shown", ("observed steps",))


def test_arm_without_mapped_weights_is_never_equal() -> None:
    found = against_reference({"weights": {"own.name.weight": 3.0, "another.weight": 4.0}})
    assert found.verdict == "not shown"
    assert found.unknown == ("initial weights",)


def test_each_codebases_own_random_weights_are_not_shown() -> None:
    other = {"weights": {"head.classes.weight": 3.5, "backbone.stages.1.0.conv1.conv.weight": 4.0}}
    workload = {"model": "retinanet_r50_fpn", "weights": "random"}
    assert against_reference(other, workload=workload).verdict == "not shown"


def test_unknown_setting_of_one_arm_is_not_shown() -> None:
    found = against_reference(
        {"after": {"matrix products": "highest", "convolutions": "highest", "TF32": False}}
    )
    assert (found.verdict, found.unknown) == ("not shown", ("threads after the steps",))


def test_fewer_operations_with_the_same_results_are_a_note() -> None:
    flops = {"forward": {"float32": 1000}, "backward": {"float32": 1800}}
    fewer = {f"steps/{step}/flops": flops for step in range(3)}
    found = against_reference(fewer)
    assert found.verdict == "equal"
    assert "backward FLOPs in step 1: 1,800" in found.notes[0]
    assert "same results" in found.notes[0]
    other_loss = {**fewer, "steps/1/losses": {"cls": 1.1, "box": 0.5, "loss": 1.6}}
    assert against_reference(other_loss).verdict == "unequal"


def test_factor_explains_only_what_it_changes() -> None:
    without = {f"steps/{step}/average": {} for step in range(3)}
    other, reference = arm("other", without), arm("reference")
    assert audit(other, reference).verdict == "unequal"
    other.levels, reference.levels = {"workload.ema": False}, {"workload.ema": True}
    assert audit(other, reference).verdict == "equal"
    other.audit["ranks"][0]["steps"][0]["losses"]["cls"] = 2.0
    assert audit(other, reference).verdict == "unequal"


def test_randomness_switched_off_is_said() -> None:
    found = against_reference({"randomness": ["layers that drop values are switched off"]})
    assert found.notes == ("in the audit, layers that drop values are switched off",)


@pytest.mark.parametrize(("model", "loss", "verdict"), [
    ("retinanet_r50_fpn", 1.02, "equal"), ("retinanet_r50_fpn", 1.2, "unequal"),
    ("retinanet_r50_fpn drops", 1.2, "equal"), ("retinanet_r50_fpn drops", 1.5, "unequal"),
    ("faster_rcnn_r50_fpn", 1.2, "equal"), ("faster_rcnn_r50_fpn", 1.5, "unequal"),
])  # fmt: skip
def test_losses_of_timed_blocks_are_compared(model: str, loss: float, verdict: str) -> None:
    def timed(label: str, total: float) -> ArmRecord:
        losses = [{"launch": 0, "round": round_, "losses": {"cls": total}} for round_ in range(3)]
        dropping = {"randomness": ["layers that drop values are switched off"]} if "drops" in model else {}
        return arm(label, dropping, workload={"model": model.split()[0]}, losses=losses)

    assert audit(timed("other", loss), timed("reference", 1.0)).verdict == verdict


@pytest.mark.parametrize(
    ("counts", "differ"),
    [
        ({"network": (900, 400, 400), "post": (500, 200, 500)}, ()),  # preparations; fewer objects in between
        ({"network": (900, 400, 0), "post": (500, 200, 500)}, ("network",)),
        ({"network": (900, 400, 400), "post": (500, 200, 0)}, ("post",)),
    ],
)
def test_content_and_preparation_may_change_operators(
    counts: dict[str, tuple[int, ...]], differ: tuple[str, ...]
) -> None:
    plain, other = (
        [{"flops": {}, "operators": {phase: of[step] for phase, of in one.items()}} for step in range(3)]
        for one in ({"network": (400, 400, 400), "post": (300, 300, 300)}, counts)
    )
    found = [fact.name.split()[2] for fact in repeated(plain, other, "") if not fact.agrees]
    assert tuple(found) == differ


def test_threads_that_change_between_blocks_are_unequal() -> None:
    assert audit(arm("other", threads=[2]), arm("reference", threads=[2])).verdict == "equal"
    found = audit(arm("other", threads=[1, 2]), arm("reference", threads=[2]))
    assert found.differences[0].fact == "threads after the timed blocks"
    assert audit(arm("other", threads=[]), arm("reference", threads=[2])).verdict == "equal"


@pytest.mark.parametrize(("busy", "verdict"), [(0.9, "equal"), (1.2, "equal"), (1.9, "unequal")])
def test_more_busy_processors_than_threads_are_unequal(busy: float, verdict: str) -> None:
    one_thread = {"description": {"threads": 1}}
    reference = arm("reference", busy_processors=1.0, **one_thread)
    found = audit(arm("other", busy_processors=busy, **one_thread), reference)
    assert found.verdict == verdict
    if verdict == "unequal":
        assert str(found.differences[0]).startswith(
            "processors busy in timed blocks: 1.9, the baseline has 1"
        )


def test_sampling_models_may_differ_more_between_frameworks() -> None:
    workload = {"model": "faster_rcnn_r50_fpn"}
    other = {"steps/1/losses": {"cls": 1.02, "box": 0.5, "loss": 1.52}}
    reference = arm("reference", workload=workload)
    assert audit(arm("other", other, workload=workload), reference).verdict == "unequal"
    paddle = arm("other", other, workload=workload, description={"library": {"paddlepaddle": "3"}})
    assert audit(paddle, reference).verdict == "equal"


def test_only_arms_of_one_cell_are_compared() -> None:
    other = arm("other")
    other.cell = "elsewhere"
    assert audit_run([arm("reference"), other], {"codebase": "reference"}) == {}


def test_every_rank_is_compared() -> None:
    other, reference = arm("other"), arm("reference")
    for one in (other, reference):
        one.audit["ranks"] = [one.audit["ranks"][0], copy.deepcopy(one.audit["ranks"][0])]
    assert audit(other, reference).verdict == "equal"
    other.audit["ranks"][1]["steps"][1]["gradient"]["head.classes"] = 9.0
    assert "of rank 1 in step 2" in str(audit(other, reference).differences[0])


# -- detections ----------------------------------------------------------------------------------------------------


def found(count: int = 20, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 200, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 60, (count, 2))], axis=1)
    one = {"boxes": boxes, "scores": rng.uniform(0.1, 1, count), "labels": rng.integers(0, 3, count)}
    return {**one, **{name: change(one[name]) for name, change in changes.items()}}


@pytest.mark.parametrize(
    ("share", "changes"),
    [
        (1.0, {}),
        (1.0, {"boxes": lambda boxes: boxes + 0.2}),
        (0.0, {"boxes": lambda boxes: boxes + 9}),
        (0.0, {"scores": lambda scores: scores - 0.02}),
        (0.0, {"labels": lambda labels: labels + 1}),
        (1.0, {"scores": lambda scores: scores - 0.005}),
    ],
)
def test_detections_match_by_box_score_and_label(share: float, changes: dict[str, Any]) -> None:
    assert matched(found(), found(**changes))[0] == share


def test_missing_detections_lower_the_share() -> None:
    half = {name: values[:10] for name, values in found().items()}
    assert matched(found(), half)[0] == pytest.approx(2 / 3)
    assert matched(found(), {name: values[:0] for name, values in found().items()})[0] == 0
    assert matched(found(0), found(0))[0] == 1


def test_masks_of_another_size_do_not_match() -> None:
    masks = [[100, 100, 50, 10.0, 10.0]] * 20
    assert matched({**found(), "masks": masks}, {**found(), "masks": masks})[0] == 1
    smaller = [[50, 50, 13, 5.0, 5.0]] * 20
    assert matched({**found(), "masks": masks}, {**found(), "masks": smaller})[0] == 0
    assert matched({**found(), "masks": masks}, found())[0] == 0


# -- what is kept --------------------------------------------------------------------------------------------------


def test_summary_speaks_canonical_names_by_part() -> None:
    layers = {"cls.weight": LAYER, "conv1.weight": LAYER}
    step = {
        "layers": layers,
        "gradient": {"cls.weight": 3.0, "cls.bias": 4.0},
        "average": {"cls.weight": [0.9, 1.0, 4.0]},
    }
    weights = {"cls.weight": 3.0, "cls.more": 4.0}  # two tensors of a codebase that are one of ours
    names = {"cls.more": "head.classes.weight", "cls.weight": "head.classes.weight"}
    names |= {"cls.bias": "head.classes.bias", "conv1.weight": "neck.output.0.weight"}
    changed = {"cls.bias": 5, "cls.weight": 4, "cls.more": 4}
    kept = summary({"steps": [step], "weights": weights, "changed": changed}, names)
    assert kept["tensors"] == 2
    assert kept["named"] == "canonical"
    assert kept["weights"] == {"head.classes.weight": 5.0}
    assert kept["changed"] == {"head.classes": 13}
    assert list(kept["steps"][0]["layers"]) == ["head.classes.weight"]
    assert kept["steps"][0]["gradient"] == {"head.classes": 5.0}
    assert kept["steps"][0]["average"] == {"head.classes": [0.9, 2e-7, 0.9, 0.9]}


def test_parameters_belong_to_stages_and_layers() -> None:
    assert group_of("backbone.stages.2.0.conv1.conv.weight") == "backbone.stages.2"
    assert group_of("head.class_tower.3.weight") == "head.class_tower"


def closing(**changes: Any) -> dict[str, Any]:
    """An arm that was watched after its timed blocks, from its first weights."""
    rank = copy.deepcopy(RANK)
    return {"audit": {"ranks": [rank], "closing": [{**rank, "step": copy.deepcopy(STEP), **changes}]}}


def test_fewer_flops_after_timed_blocks_need_same_results() -> None:
    fewer = {"flops": {"forward": {"float32": 900}, "backward": {"float32": 2000}}}
    half = {**STEP, **fewer, "losses": {"cls": 0.5, "box": 0.5, "loss": 1.0}}
    done = arm("reference", **closing())
    assert audit(arm("other", **closing(step={**STEP, **fewer})), done).verdict == "equal"
    found = audit(arm("other", **closing(step={**STEP, **fewer}, steps=[half, half, half])), done)
    assert "total loss after the timed blocks in step 1" in {one.fact for one in found.differences}


@pytest.mark.parametrize("seen", [{}, {"step": STEP, "after": SETTINGS}])
def test_steps_after_timed_blocks_that_fail_show_nothing(seen: dict[str, Any]) -> None:
    other = arm("other", audit={"ranks": [copy.deepcopy(RANK)], "closing": [seen]})
    assert audit(other, arm("reference", **closing())).verdict == "not shown"


def test_optimizer_of_later_steps_is_compared() -> None:
    rule = {**STEP, "rule": {"lr": 2e-3, "momentum": 0.9, "weight_decay": 1e-4}}
    found = audit(arm("other", **closing(step=rule)), arm("reference", **closing()))
    assert [one.fact for one in found.differences] == [
        "learning rate as the weights show it after the timed blocks"
    ]


@pytest.mark.parametrize(
    ("fact", "changes"),
    [
        ("share of the momentum that the rule does not make in step 2",
         {"steps/1/rule": {**STEP["rule"], "unexplained": [0.0, 1.2]}}),
        ("norm of the statistics of backbone.stages.1 in step 1", {"steps/0/statistics": {"backbone.stages.1": 2.0}}),
        ("weight of new values in the average of statistics of backbone.stages.1 in step 2",
         {"steps/1/average of statistics": {"backbone.stages.1": 0.5}}),
        ("convolutions while computing in step 1", {"steps/0/settings": {"convolutions": ["highest", "bf16"]}}),
    ],
)  # fmt: skip
def test_what_newer_records_tell_is_compared(fact: str, changes: dict[str, Any]) -> None:
    plain = {
        "steps/1/rule": {**STEP["rule"], "unexplained": [0.0, 0.0]},
        "steps/0/settings": {"convolutions": ["highest"]},
    }
    reference = arm("reference", plain)
    assert audit(arm("same", plain), reference).verdict == "equal"
    assert [one.fact for one in audit(arm("other", {**plain, **changes}), reference).differences][-1:] == [
        fact
    ]


def test_phase_without_operators_is_not_shown() -> None:
    found = against_reference({"steps/0/operators": {"forward": 500, "ema": 3}})
    assert (found.verdict, found.unknown) == ("not shown", ("operators of the phase ema in step 1",))


@pytest.mark.parametrize(
    ("mode", "projection", "expected"),
    [
        ("shared", [3.3, -4.2, 1.0], "unequal"),
        ("pipeline", [3.3, -4.2, 1.0], "equal"),
        ("pipeline", [1.0, 3.0, -4.0], "unequal"),
    ],
)
def test_images_of_own_loaders_are_compared(mode: str, projection: list[float], expected: str) -> None:
    workload = {"model": "retinanet_r50_fpn", "input": {"mode": mode}}
    step = {**STEP, "images": [{**IMAGE, "projection": projection}, IMAGE]}
    reference = arm("reference", workload=workload, **closing())
    other = arm("other", workload=workload, **closing(step=step))
    assert audit(other, reference).verdict == expected
