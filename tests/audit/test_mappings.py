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
RTDETR = {f"rtdetr_r{depth}vd" for depth in (18, 34, 50, 101)}
RCNN = {"faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn"}
MAPPED = {
    "torchvision": {*RCNN, "retinanet_r50_fpn", "fcos_r50_fpn", "ssd300_vgg16"},
    "detectron2": {*RCNN, *C4, "retinanet_r50_fpn", "fcos_r50_fpn"},
    "paddledet": {*RCNN, *SOLOV2, "solov2_light_r50_vd_fpn_dcn_512", "retinanet_r50_fpn", "fcos_r50_fpn"},
}


@pytest.mark.parametrize("codebase", MAPPED)
def test_list_of_mapped_models_is_complete(codebase: str) -> None:
    offered = find_codebases()[codebase].models
    mapped = {model for model in MODELS if weights.supports(codebase, model)}
    assert mapped - RTDETR == MAPPED[codebase]
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


def test_rtdetr_of_transformers_becomes_that_of_paddledetection() -> None:
    square, attention = np.arange(4, dtype=np.float32).reshape(2, 2), "model.decoder.layers.0.self_attn."
    ours = {
        "model.backbone.model.encoder.stages.2.layers.1.layer.0.convolution.weight": square.reshape(
            2, 2, 1, 1
        ),
        "model.backbone.model.encoder.stages.1.layers.0.shortcut.1.normalization.running_var": square[0],
        "model.encoder.pan_blocks.0.conv1.norm.running_mean": square[0],
        "model.denoising_class_embed.weight": square,
        **{f"{attention}{one}_proj.weight": square + place for place, one in enumerate("qkv")},
        "model.encoder.aifi.0.layers.0.final_layer_norm.bias": square[0],
        "model.decoder.layers.0.final_layer_norm.bias": square[0],
        "model.decoder.class_embed.2.weight": square,
    }
    found = weights.to_codebase("paddledet", "rtdetr_r101vd", ours)
    assert list(found) == [
        "backbone.res4.res4b1.branch2a.conv.weight",
        "backbone.res3.res3a.short.conv.norm._variance",
        "neck.pan_blocks.0.conv1.bn._mean",
        "transformer.denoising_class_embed.weight",
        "transformer.decoder.layers.0.self_attn.in_proj_weight",
        "neck.encoder.0.layers.0.norm2.bias",
        "transformer.decoder.layers.0.norm3.bias",
        "transformer.dec_score_head.2.weight",
    ]
    assert found["transformer.dec_score_head.2.weight"].tolist() == square.T.tolist()
    joined = found["transformer.decoder.layers.0.self_attn.in_proj_weight"]
    assert joined.tolist() == np.concatenate([square.T, square.T + 1, square.T + 2], axis=1).tolist()
    assert found["transformer.denoising_class_embed.weight"].tolist() == square[:1].tolist()
    named = weights.canonical_names("paddledet", "rtdetr_r101vd", ours)
    assert set(found) == set(named)
    assert (
        named["transformer.decoder.layers.0.self_attn.in_proj_weight"]
        == "model.decoder.layers.0.self_attn.in_proj_weight"
    )
    assert weights.to_codebase("transformers", "rtdetr_r18vd", ours)[
        "model.denoising_class_embed.weight"
    ].tolist() == [[0, 1], [0, 0]]
    assert weights.source_of("rtdetr_r18vd") == "transformers"
    assert weights.source_of("fcos_r50_fpn") == "native"


def test_yolox_of_its_authors_becomes_that_of_mmdetection() -> None:
    names = {
        "backbone.backbone.stem.conv.conv.weight": "backbone.stem.conv.conv.weight",
        "backbone.backbone.dark2.1.conv3.conv.weight": "backbone.stage1.1.final_conv.conv.weight",
        "backbone.backbone.dark2.1.m.0.conv1.bn.bias": "backbone.stage1.1.blocks.0.conv1.bn.bias",
        "backbone.backbone.dark5.1.conv2.conv.weight": "backbone.stage4.1.conv2.conv.weight",  # pooling
        "backbone.C3_p4.conv3.conv.weight": "neck.top_down_blocks.0.final_conv.conv.weight",
        "backbone.C3_p4.m.0.conv2.dconv.conv.weight": (
            "neck.top_down_blocks.0.blocks.0.conv2.depthwise_conv.conv.weight"
        ),
        "backbone.bu_conv2.pconv.bn.running_var": "neck.downsamples.0.pointwise_conv.bn.running_var",
        "head.stems.2.bn.weight": "neck.out_convs.2.bn.weight",
        "head.cls_convs.0.1.conv.weight": "bbox_head.multi_level_cls_convs.0.1.conv.weight",
        "head.obj_preds.1.bias": "bbox_head.multi_level_conv_obj.1.bias",
    }
    ours = {name: np.ones(2, dtype=np.float32) for name in names}
    assert list(weights.to_codebase("mmdet", "yolox_nano", ours)) == list(names.values())
    assert weights.canonical_names("mmdet", "yolox_nano", ours) == {own: name for name, own in names.items()}
    assert weights.source_of("yolox_nano") == "yolox"


UNMAPPED_OF_MMDET: set[str] = set()
