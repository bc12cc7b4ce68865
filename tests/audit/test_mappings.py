"""Which models of which codebase can be given one set of weights; an arm of any other is never equal."""

from __future__ import annotations

import numpy as np
import pytest

from bench.inputs import weights
from bench.recipe.codebases import find_codebases
from bench.recipe.models import MODELS

torch = pytest.importorskip("torch")

import detectors  # noqa: E402

C4 = {f"{kind}_rcnn_r50_{neck}" for kind in ("faster", "mask") for neck in ("c4", "caffe_c4")}
SOLOV2 = {"solov2_r50_fpn", "solov2_r101_fpn", "solov2_light_r50_fpn", "solov2_light_r50_dcn_fpn"}
RCNN = {"faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn"}
MAPPED = {
    "torchvision": {*RCNN, "retinanet_r50_fpn", "fcos_r50_fpn", "ssd300_vgg16"},
    "detectron2": RCNN | C4,
    "paddledet": {*RCNN, *SOLOV2, "solov2_light_r50_vd_fpn_dcn_512", "retinanet_r50_fpn", "fcos_r50_fpn"},
}


@pytest.mark.parametrize("codebase", MAPPED)
def test_list_of_mapped_models_is_complete(codebase: str) -> None:
    offered = find_codebases()[codebase].models
    assert {model for model in MODELS if weights.supports(codebase, model)} == MAPPED[codebase]
    assert set(offered) >= MAPPED[codebase]


def test_mmdet_takes_every_model_that_it_offers_of_the_tables() -> None:
    without = {model for model in find_codebases()["mmdet"].models if not weights.supports("mmdet", model)}
    assert without & set(MODELS) == UNMAPPED_OF_MMDET


@pytest.mark.parametrize(
    ("codebase", "model"), [(c, m) for c, models in MAPPED.items() for m in sorted(models)]
)
def test_every_canonical_parameter_is_found_again(codebase: str, model: str) -> None:
    with torch.device("meta"):
        state = detectors.build(
            model, num_classes=3, **weights.source_options(codebase, model, {})
        ).state_dict()
    wanted = {name for name in state if not name.endswith("num_batches_tracked")}
    shapes = {name: torch.empty_like(state[name], device="cpu").numpy() for name in wanted}
    found = weights.canonical_names(codebase, model, shapes)
    assert set(found.values()) == wanted
    others = set(weights.to_codebase(codebase, model, shapes)) - set(found)
    assert all(name.endswith(("scale_reg", "conv_dcn.bias")) for name in others)


def test_c4_anchors_of_detectron2_are_ordered_by_size() -> None:
    rows = np.arange(15, dtype=np.float32)  # [ratio, size]
    ours = {"rpn.objectness.bias": rows, "rpn.deltas.bias": rows.repeat(4)}
    head = "proposal_generator.rpn_head"
    theirs = weights.to_codebase("detectron2", "faster_rcnn_r50_c4", ours)
    objectness = theirs[f"{head}.objectness_logits.bias"]
    assert objectness[:4].tolist() == [0, 5, 10, 1]
    assert theirs[f"{head}.anchor_deltas.bias"].tolist() == objectness.repeat(4).tolist()


UNMAPPED_OF_MMDET: set[str] = set()
