"""Arms of different models: never equal, never hidden, with what each of them is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.judge.audit import audit, audit_sessions
from bench.record.models import RANDOM_WEIGHTS, ArmRecord
from bench.report.answer import geometric_mean, headline, outcome_blocks
from bench.report.build import run_report
from bench.report.render import markdown
from bench.report.tables import group_table
from tests.helpers.report_runs import arm, samples, write_run

SIZES = {"parameters": 20_000_000, "forward_flops": 5e9, "kernels": ""}


def of(codebase: str, model: str, **more: Any) -> ArmRecord:
    return arm(
        codebase, workload={"model": model, "task": "infer", "batch_size": 1}, description=SIZES, **more
    )


def test_other_name_or_other_file_is_another_model() -> None:
    mine, theirs = of("a", "mmdet://my.py", model_sha256="1"), of("b", "mmdet://my.py", model_sha256="2")
    assert audit(mine, theirs).verdict == "different models"
    assert audit(mine, of("b", "detectron2://my.yaml")).models == ("detectron2://my.yaml", "mmdet://my.py")
    assert audit(mine, of("b", "mmdet://my.py", model_sha256="1")).models is None
    assert audit(of("a", "mask_rcnn_r50_fpn"), of("b", "mask_rcnn_r50_fpn")).models is None


def test_factor_model_does_not_make_two_models_equal() -> None:
    first = arm("a", {"model": "mask_rcnn_r50_fpn"})
    assert audit(first, arm("a", {"model": "retinanet_r50_fpn"})).verdict == "different models"


def test_pooled_sessions_of_different_models_stay_different_models() -> None:
    arms = [of("a", "mmdet://my.py"), of("b", "detectron2://my.yaml")]
    assert audit_sessions([(arms, {"codebase": "a"})] * 2)["b"].verdict == "different models"


def test_report_has_both_models_beside_the_ratio(tmp_path: Path) -> None:
    arms = [
        (of("torchvision", "torchvision://x"), samples(1.0, noise=0.001)),
        (of("native", "faster_rcnn_r50_fpn"), samples(0.5, noise=0.001, seed=1)),
    ]
    run = write_run(tmp_path / "run", arms)
    report = run_report(run)
    (sentence,) = headline(report)
    assert "They are different models ◇; 20.0 M parameters, 5.00 GFLOPs against 20.0 M" in sentence
    (group,) = report.groups
    table = group_table(group)
    assert {"parameters (M)", "GFLOPs / image"} <= {column.title for column in table.columns}
    assert [row.marks for row in group.rows if not row.is_baseline] == [("◇",)]
    assert geometric_mean(group.rows) is None
    assert "◇ different models" in markdown.render(outcome_blocks(report))


def test_ap_of_random_weights_is_not_told(tmp_path: Path) -> None:
    arms = [
        (
            of("torchvision", "torchvision://x", warnings=[f"{RANDOM_WEIGHTS}: its AP says nothing"]),
            samples(1.0),
        ),
        (of("native", "faster_rcnn_r50_fpn"), samples(0.5, seed=1)),
    ]
    (sentence,) = headline(run_report(write_run(tmp_path / "run", arms)))
    assert f"against 20.0 M parameters, 5.00 GFLOPs, {RANDOM_WEIGHTS}" in sentence
