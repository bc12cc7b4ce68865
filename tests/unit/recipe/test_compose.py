"""Recipes from a command line, arms with models of their own, and the code that a recipe names."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.errors import BenchError
from bench.recipe.codebases import find_codebases
from bench.recipe.compose import Asked, composed, misspelt, parse_arm, recipe_text, size_of
from bench.recipe.load import load_recipe
from bench.recipe.plan import Plan, make_plan, notes_of
from bench.recipe.trust import refuse_untrusted

CODEBASES = find_codebases()


def plan(folder: Path, content: dict[str, Any]) -> Plan:
    path = folder / "r.yaml"
    path.write_text(recipe_text(content))
    assert yaml.safe_load(path.read_text()) == content
    return make_plan(load_recipe(path), CODEBASES)


def with_arms(*arms: dict[str, Any]) -> dict[str, Any]:
    return {"name": "t", "workload": {"task": "train"}, "arms": list(arms)}


def test_one_canonical_model_is_equal_work(tmp_path: Path) -> None:
    asked = Asked(("native:mask_rcnn_r50_fpn", "torchvision:maskrcnn_resnet50_fpn"), task="train")
    found = plan(tmp_path, composed(asked, CODEBASES))
    assert {arm.workload.model for arm in found.arms} == {"mask_rcnn_r50_fpn"}
    assert [(arm.model, arm.baseline) for arm in found.arms] == [(None, "native")] * 2
    assert found.arms[0].workload.frozen_stages == 1


@pytest.mark.parametrize(
    ("arms", "chosen"),
    [
        (("mmdet:retinanet_r50_fpn", "native:retinanet_r50_fpn"), [{}, {"conventions": "mmdet"}]),
        (
            ("native:faster_rcnn_r50_fpn", "detectron2:faster_rcnn_r50_fpn"),
            [{"conventions": "paddledet"}, {}],
        ),
        (("native:retinanet_r50_fpn", "detectron2:retinanet_r50_fpn"), [{"conventions": "mmdet"}, {}]),
        (("native:fcos_r50_fpn", "detectron2:fcos_r50_fpn"), [{}, {}]),
        (("paddledet:solov2_r50_fpn", "native:solov2_r50_fpn"), [{}, {"conventions": "paddledet"}]),
        (("paddledet:faster_rcnn_r50_fpn", "native:faster_rcnn_r50_fpn"), [{}, {"conventions": "paddledet"}]),
        (("paddledet:fcos_r50_fpn", "native:fcos_r50_fpn"), [{}, {}]),
        (("torchvision:retinanet_r50_fpn", "native:retinanet_r50_fpn"), [{}, {}]),
        (("mmdet:retinanet_r50_fpn", "native:fcos_r50_fpn"), [{}, {}]),  # other work anyway
    ],
)
def test_conventions_are_those_of_the_other_codebase(
    arms: tuple[str, ...], chosen: list[dict[str, str]]
) -> None:
    content = composed(Asked(arms), CODEBASES)
    assert [arm.get("options", {}) for arm in content["arms"]] == chosen
    assert all(f"({key}: {value})" in content["description"] for it in chosen for key, value in it.items())


def test_recipe_without_these_options_is_noted(tmp_path: Path) -> None:
    content = composed(
        Asked(("mmdet:fcos_r50_fpn", "native:fcos_r50_fpn", "torchvision:fcos_r50_fpn")), CODEBASES
    )
    assert notes_of(plan(tmp_path, content), CODEBASES) == []
    del content["arms"][1]["options"]
    assert notes_of(plan(tmp_path, content), CODEBASES) == [
        "native beside mmdet: options: {conventions: mmdet} make its work the other's"
    ]


def test_models_of_their_own_keep_their_configuration(tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    config.touch()
    weights = tmp_path / "epoch_12.pth"
    asked = Asked((f"mmdet:{config}@{weights}", "torchvision:retinanet_resnet50_fpn_v2"), size="640")
    content = composed(asked, CODEBASES)
    mmdet, torchvision = plan(tmp_path, content).arms
    assert (mmdet.workload.model, mmdet.model, mmdet.weights) == (
        "mmdet://mine.py",
        str(config),
        str(weights),
    )
    assert torchvision.workload.model == "torchvision://retinanet_resnet50_fpn_v2"
    assert torchvision.model == "retinanet_resnet50_fpn_v2"
    assert mmdet.workload.frozen_bn is None
    assert mmdet.workload.frozen_stages is None
    assert mmdet.workload.task == "eval"  # it has weights, so AP is measured
    assert mmdet.workload.input.size == (640, 640)


def test_arms_of_one_codebase_get_labels_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "python").touch()
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch()
    arms = (
        "torchvision:ssd300_vgg16",
        f"torchvision={tmp_path}:ssd300_vgg16",
        f"torchvision={tmp_path / 'python'}:ssd300_vgg16",
        "torchvision=old:ssd300_vgg16",
        f"torchvision={tmp_path / 'venv'}:ssd300_vgg16",
        "torchvision:ssd300_vgg16",
    )
    content = composed(Asked(arms, size="300"), CODEBASES)
    labels = [arm["label"] for arm in content["arms"]]
    assert len(set(labels)) == len(arms)
    assert content["arms"][1]["source"] == str(tmp_path)
    assert content["arms"][2]["python"] == str(tmp_path / "python")
    assert content["arms"][3]["environment"] == "old"
    assert content["arms"][4]["python"] == str(tmp_path / "venv" / "bin" / "python")


def test_config_of_an_arm_goes_to_the_codebase_option(tmp_path: Path) -> None:
    arm = {"codebase": "mmdet", "model": "atss/atss_r50_fpn_1x_coco", "config": {"model.backbone.depth": 101}}
    assert plan(tmp_path, with_arms(arm)).arms[0].options == {"cfg_options": {"model.backbone.depth": 101}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("native", "is no arm"),
        ("natve:x", "unknown codebase 'natve'"),
        ("native:mask_rcn_r50_fpn", "did you mean mask_rcnn_r50_fpn"),
        ("mmdet:./nothing.py", "no file ./nothing.py"),
        ("mmdet:./my_cnfig.py", "did you mean my_config.py?"),
        ("mmdet=./fork:x.py", "no checkout and no interpreter ./fork"),
    ],
)
def test_wrong_arm_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_config.py").touch()
    with pytest.raises(BenchError) as caught:
        parse_arm(text, CODEBASES)
    assert words in str(caught.value)


def test_all_wrong_arms_are_named_at_once() -> None:
    with pytest.raises(BenchError, match=r"(?s)'natve'.*'torchvison'"):
        composed(Asked(("natve:x", "torchvison:y")), CODEBASES)


def test_a_file_name_alone_may_be_of_a_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolo11s.yaml").touch()
    assert parse_arm("detectron2:yolo11n.yaml", CODEBASES).model == "yolo11n.yaml"


def test_a_name_nearly_canonical_is_noted() -> None:
    arms = ("mmdet:faster_rcnn_r50_fnp", "torchvision:fasterrcnn_resnet50_fpn_v2", "native:retinanet_r50_fpn")
    assert list(misspelt(arms, CODEBASES)) == [
        "faster_rcnn_r50_fnp is taken for a name of mmdet's own; did you mean faster_rcnn_r50_fpn?"
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [("phtos", "did you mean photos?"), ("export.json", "--data export.json=FOLDER")],
)
def test_data_that_is_not_there_names_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "export.json").touch()
    with pytest.raises(BenchError) as caught:
        composed(Asked(("native:mask_rcnn_r50_fpn",), data=data), CODEBASES)
    assert words in str(caught.value)


def test_sizes_are_squares_or_two_sides() -> None:
    assert size_of("640") == size_of("640x640") == [640, 640]
    assert size_of("1333x800") == size_of("800X1333") == {"short": 800, "long": 1333}
    with pytest.raises(BenchError):
        size_of("big")


def test_a_coco_file_of_any_name_is_data(tmp_path: Path) -> None:
    asked = Asked(("native:retinanet_r50_fpn",), data=f"{tmp_path}/mine.json={tmp_path}/photos", images=7)
    (arm,) = plan(tmp_path, composed(asked, CODEBASES)).arms
    assert arm.workload.input.annotations == f"{tmp_path}/mine.json"
    assert (arm.workload.input.images, arm.workload.input.count) == (f"{tmp_path}/photos", 7)


def test_missing_model_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="give every arm a model"):
        plan(tmp_path, with_arms({"codebase": "native"}))


def test_factor_model_excludes_own_models(tmp_path: Path) -> None:
    content = with_arms({"codebase": "mmdet", "model": "x"}) | {"factors": {"model": ["mask_rcnn_r50_fpn"]}}
    with pytest.raises(BenchError, match="exclude each other"):
        plan(tmp_path, content)


def test_code_of_a_recipe_runs_once_it_is_trusted(tmp_path: Path) -> None:
    config, remembered = tmp_path / "mine.py", tmp_path / "trusted"
    config.write_text("a = 1")
    arms = plan(tmp_path, with_arms({"codebase": "mmdet", "model": str(config)})).arms
    with pytest.raises(BenchError, match="--trust") as caught:
        refuse_untrusted(arms, "r.yaml", remembered, trust=False)
    assert str(config) in str(caught.value)
    refuse_untrusted(arms, "r.yaml", remembered, trust=True)
    refuse_untrusted(arms, "r.yaml", remembered, trust=False)
    config.write_text("a = 2")
    with pytest.raises(BenchError, match="--trust"):
        refuse_untrusted(arms, "r.yaml", remembered, trust=False)


@pytest.mark.parametrize(
    "arm",
    [
        {"codebase": "native", "model": "mask_rcnn_r50_fpn", "python": "/x/python"},
        {"codebase": "native", "model": "mask_rcnn_r50_fpn", "source": "/x"},
        {"codebase": "detectron2", "model": "mask_rcnn_r50_fpn", "options": {"source": "/x"}},
        {"codebase": "python", "model": "mine.models:build"},
    ],
)
def test_every_way_to_name_code_needs_trust(tmp_path: Path, arm: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match="not part of bench"):
        refuse_untrusted(plan(tmp_path, with_arms(arm)).arms, "r", tmp_path / "t", trust=False)


def test_code_of_the_checkout_under_check_needs_no_trust(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").touch()
    (tmp_path / "other.py").touch()
    for model, trusted in (("mine:build", True), ("os:system", False), (str(tmp_path / "other.py"), False)):
        arms = plan(tmp_path, with_arms({"codebase": "python", "model": model})).arms
        with contextlib.nullcontext() if trusted else pytest.raises(BenchError, match="--trust"):
            refuse_untrusted(arms, "r", tmp_path / "t", trust=False, own=tmp_path / "own")


def test_a_config_named_by_the_workload_needs_trust_too(tmp_path: Path) -> None:
    recipe = with_arms("mmdet") | {"workload": {"model": f"mmdet://{tmp_path}/mine.py"}}
    with pytest.raises(BenchError, match="not part of bench"):
        refuse_untrusted(plan(tmp_path, recipe).arms, "r", tmp_path / "t", trust=False)


def test_names_of_a_zoo_need_no_trust(tmp_path: Path) -> None:
    arms = plan(tmp_path, with_arms({"codebase": "mmdet", "model": "atss/atss_r50_fpn_1x_coco.py"})).arms
    refuse_untrusted(arms, "r", tmp_path / "t", trust=False)
