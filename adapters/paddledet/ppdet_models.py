"""The models as PaddleDetection configurations. The paddledet wheel carries none, so they are written here.

Values are those of PaddleDetection 2.6, ``configs/<method>/_base_/*.yml``, but for what the workload decides: classes,
frozen stages, frozen normalisation, score threshold and number of detections. Where it publishes no file for a
canonical backbone, its method stands on that backbone with nothing else changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ppdet_detr import rtdetr

Config = dict[str, Any]

SOLOV2_GRIDS = [40, 36, 24, 16, 12]
SSD_MAX_OBJECTS = 90  # `PadBox.num_max_boxes` of configs/ssd/_base_/ssd_reader.yml

#: Settings of ppdet's ResNet. Variant a: stride on the 1x1 convolution (caffe style), b: on the 3x3, d: average-pooled
#: shortcuts and a stem of three convolutions.
RESNETS: dict[str, Config] = {
    "r50": {"depth": 50, "variant": "b"},
    "r50_caffe": {"depth": 50, "variant": "a"},
    "r50_vd": {"depth": 50, "variant": "d"},
    "r101": {"depth": 101, "variant": "b"},
    "r101_caffe": {"depth": 101, "variant": "a"},
    "x101_32x4d": {"depth": 101, "variant": "b", "groups": 32, "base_width": 4},
    "x101_64x4d": {"depth": 101, "variant": "b", "groups": 64, "base_width": 4},
}
HRNETS: dict[str, int] = {"hrnetv2p_w18": 18, "hrnetv2p_w32": 32, "hrnetv2p_w48": 48}
FPN_BACKBONES = ("r50", "r50_caffe", "r101", "r101_caffe", "x101_32x4d", "x101_64x4d")


def resnet(workload: Mapping[str, Any], backbone: str, first_stage: int = 0, **changes: Any) -> Config:
    """``freeze_at`` counts from the first stage, which takes the stem with it: 0 freezes what frozen_stages 1 does."""
    return {
        **RESNETS[backbone],
        "norm_type": "bn",
        "freeze_norm": workload["frozen_bn"],
        "freeze_at": max(workload["frozen_stages"], 0) - 1,
        "return_idx": list(range(first_stage, 4)),
        "num_stages": 4,
        **changes,
    }


def multiclass_nms(workload: Mapping[str, Any], threshold: float, **changes: Any) -> Config:
    return {
        "name": "MultiClassNMS",
        "keep_top_k": workload["max_detections"],
        "score_threshold": workload["score_threshold"],
        "nms_threshold": threshold,
        **changes,
    }


RPN_TARGETS = {
    "batch_size_per_im": 256,
    "fg_fraction": 0.5,
    "negative_overlap": 0.3,
    "positive_overlap": 0.7,
    "use_random": True,
}
BOX_TARGETS = {
    "batch_size_per_im": 512,
    "bg_thresh": 0.5,
    "fg_thresh": 0.5,
    "fg_fraction": 0.25,
    "use_random": True,
}


def roi_align(resolution: int) -> Config:
    return {"resolution": resolution, "sampling_ratio": 0, "aligned": True}


def pyramid(workload: Mapping[str, Any], backbone: str) -> tuple[str, str, Config]:
    """Names of backbone and neck, and their settings: ResNet and ResNeXt with FPN, HRNet with HRFPN."""
    if backbone in HRNETS:
        hrnet = {
            "width": HRNETS[backbone],
            "freeze_norm": workload["frozen_bn"],
            "freeze_at": -1,  # ppdet's would cut the gradient of one output; the adapter freezes stages
            "return_idx": [0, 1, 2, 3],
        }
        return "HRNet", "HRFPN", {"HRNet": hrnet, "HRFPN": {"out_channel": 256, "share_conv": False}}
    return "ResNet", "FPN", {"ResNet": resnet(workload, backbone), "FPN": {"out_channel": 256}}


def rcnn(
    workload: Mapping[str, Any], *, backbone: str = "r50", masks: bool = False, cascade: bool = False
) -> Config:
    """Faster, Mask, Cascade and Cascade Mask R-CNN on a feature pyramid."""
    body, neck, settings = pyramid(workload, backbone)
    proposals = {"min_size": 0.0, "nms_thresh": 0.7}
    head = "CascadeHead" if cascade else "BBoxHead"
    features = "CascadeTwoFCHead" if cascade else "TwoFCHead"
    scale = 15.0 if cascade else 5.0  # of the last stage's box deltas
    architecture = "CascadeRCNN" if cascade else "MaskRCNN" if masks else "FasterRCNN"
    config: Config = {
        "architecture": architecture,
        architecture: {
            "backbone": body,
            "neck": neck,
            "rpn_head": "RPNHead",
            "bbox_head": head,
            "bbox_post_process": "BBoxPostProcess",
            **({"mask_head": "MaskHead", "mask_post_process": "MaskPostProcess"} if masks else {}),
        },
        **settings,
        "RPNHead": {
            "anchor_generator": {
                "aspect_ratios": [0.5, 1.0, 2.0],
                "anchor_sizes": [[32], [64], [128], [256], [512]],
                "strides": [4, 8, 16, 32, 64],
            },
            "rpn_target_assign": RPN_TARGETS,
            "train_proposal": {
                **proposals,
                "pre_nms_top_n": 2000,
                "post_nms_top_n": 2000 if cascade or body == "HRNet" else 1000,
                "topk_after_collect": True,
            },
            "test_proposal": {**proposals, "pre_nms_top_n": 1000, "post_nms_top_n": 1000},
        },
        head: {"head": features, "roi_extractor": roi_align(7), "bbox_assigner": "BBoxAssigner"},
        "BBoxAssigner": dict(BOX_TARGETS),
        features: {"out_channel": 1024},
        "BBoxPostProcess": {
            "decode": {
                "name": "RCNNBox",
                "prior_box_var": [scale * weight for weight in (2.0, 2.0, 1.0, 1.0)],
            },
            "nms": multiclass_nms(workload, 0.5),
        },
    }
    if cascade:
        config["BBoxAssigner"]["cascade_iou"] = [0.5, 0.6, 0.7]
    return {**config, **mask_head(convs=4, resolution=28)} if masks else config


def rcnn_c4(workload: Mapping[str, Any], *, masks: bool = False) -> Config:
    """Faster and Mask R-CNN R-50-C4: one feature map of stride 16, the last stage in the heads."""
    config = rcnn(workload, masks=masks)
    for unused in ("FPN", "TwoFCHead"):
        del config[unused]
    del config[config["architecture"]]["neck"]
    proposals = {"min_size": 0.0, "nms_thresh": 0.7, "topk_after_collect": False}
    return {
        **config,
        "ResNet": resnet(workload, "r50", return_idx=[2], num_stages=3),
        "RPNHead": {
            "anchor_generator": {
                "aspect_ratios": [0.5, 1.0, 2.0],
                "anchor_sizes": [32, 64, 128, 256, 512],
                "strides": [16],
            },
            "rpn_target_assign": RPN_TARGETS,
            "train_proposal": {**proposals, "pre_nms_top_n": 12000, "post_nms_top_n": 2000},
            "test_proposal": {**proposals, "pre_nms_top_n": 6000, "post_nms_top_n": 1000},
        },
        "BBoxHead": {
            "head": "Res5Head",
            "roi_extractor": roi_align(14),
            "bbox_assigner": "BBoxAssigner",
            "with_pool": True,
        },
        **(mask_head(convs=0, resolution=14) if masks else {}),
    }


def mask_head(*, convs: int, resolution: int) -> Config:
    """Without convolutions of its own the mask head works on the box head's features (C4)."""
    return {
        "MaskHead": {
            "head": "MaskFeat",
            "roi_extractor": roi_align(14),
            "mask_assigner": "MaskAssigner",
            "share_bbox_feat": convs == 0,
        },
        "MaskFeat": {"num_convs": convs, "out_channel": 256},
        "MaskAssigner": {"mask_resolution": resolution},
        "MaskPostProcess": {"binary_thresh": 0.5},
    }


def _dense_fpn() -> Config:
    """P3 to P7, the last two from P5 by strided convolutions."""
    return {
        "out_channel": 256,
        "spatial_scales": [0.125, 0.0625, 0.03125],
        "extra_stage": 2,
        "has_extra_convs": True,
        "use_c5": False,
    }


def retinanet(workload: Mapping[str, Any], *, backbone: str = "r50") -> Config:
    return {
        "architecture": "RetinaNet",
        "RetinaNet": {"backbone": "ResNet", "neck": "FPN", "head": "RetinaHead"},
        "ResNet": resnet(workload, backbone, first_stage=1),
        "FPN": _dense_fpn(),
        "RetinaHead": {
            "conv_feat": {
                "name": "RetinaFeat",
                "feat_in": 256,
                "feat_out": 256,
                "num_convs": 4,
                "norm_type": None,
                "use_dcn": False,
            },
            "anchor_generator": {
                "name": "RetinaAnchorGenerator",
                "octave_base_scale": 4,
                "scales_per_octave": 3,
                "aspect_ratios": [0.5, 1.0, 2.0],
                "strides": [8.0, 16.0, 32.0, 64.0, 128.0],
            },
            "bbox_assigner": {
                "name": "MaxIoUAssigner",
                "positive_overlap": 0.5,
                "negative_overlap": 0.4,
                "allow_low_quality": True,
            },
            "loss_class": {"name": "FocalLoss", "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
            "loss_bbox": {"name": "SmoothL1Loss", "beta": 0.0, "loss_weight": 1.0},
            "nms": multiclass_nms(workload, 0.5, nms_top_k=1000),
        },
    }


def fcos(workload: Mapping[str, Any], *, backbone: str = "r50") -> Config:
    return {
        "architecture": "FCOS",
        "FCOS": {"backbone": "ResNet", "neck": "FPN", "fcos_head": "FCOSHead"},
        "ResNet": resnet(workload, backbone, first_stage=1),
        "FPN": _dense_fpn(),
        "FCOSHead": {
            "fcos_feat": {
                "name": "FCOSFeat",
                "feat_in": 256,
                "feat_out": 256,
                "num_convs": 4,
                "norm_type": "gn",
                "use_dcn": False,
            },
            "fpn_stride": [8, 16, 32, 64, 128],
            "prior_prob": 0.01,
            "norm_reg_targets": True,
            "centerness_on_reg": True,
            "num_shift": 0.5,
            "fcos_loss": {
                "name": "FCOSLoss",
                "loss_alpha": 0.25,
                "loss_gamma": 2.0,
                "iou_loss_type": "giou",
                "reg_weights": 1.0,
            },
            "nms": multiclass_nms(workload, 0.6, nms_top_k=1000),
        },
    }


def ssd300(workload: Mapping[str, Any]) -> Config:
    return {
        "architecture": "SSD",
        "SSD": {"backbone": "VGG", "ssd_head": "SSDHead", "post_process": "BBoxPostProcess"},
        "VGG": {"depth": 16, "normalizations": [20.0, -1, -1, -1, -1, -1]},
        "SSDHead": {
            "anchor_generator": {
                "steps": [8, 16, 32, 64, 100, 300],
                "aspect_ratios": [[2.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0], [2.0]],
                "min_ratio": 20,
                "max_ratio": 90,
                "min_sizes": [30.0, 60.0, 111.0, 162.0, 213.0, 264.0],
                "max_sizes": [60.0, 111.0, 162.0, 213.0, 264.0, 315.0],
                "offset": 0.5,
                "flip": True,
                "min_max_aspect_ratios_order": True,
            }
        },
        "BBoxPostProcess": {
            "decode": {"name": "SSDBox"},
            "nms": multiclass_nms(workload, 0.45, nms_top_k=400, nms_eta=1.0),
        },
    }


def solov2(
    workload: Mapping[str, Any],
    *,
    backbone: str = "r50",
    channels: int = 512,
    convs: int = 4,
    kernel_channels: int = 256,
    scale_ranges: list[list[int]],
    resnet_changes: Mapping[str, Any] | None = None,
    head_changes: Mapping[str, Any] | None = None,
) -> Config:
    """``score_threshold`` of the workload is what a detection must keep after Matrix NMS; before it, category scores
    pass PaddleDetection's own 0.1, without which every cell of the grids would become a mask."""
    return {
        "architecture": "SOLOv2",
        "SOLOv2": {
            "backbone": "ResNet",
            "neck": "FPN",
            "solov2_head": "SOLOv2Head",
            "mask_head": "SOLOv2MaskHead",
        },
        "ResNet": resnet(workload, backbone, **(resnet_changes or {})),
        "FPN": {"out_channel": 256},
        "SOLOv2Head": {
            "seg_feat_channels": channels,
            "stacked_convs": convs,
            "num_grids": SOLOV2_GRIDS,
            "kernel_out_channels": kernel_channels,
            "solov2_loss": "SOLOv2Loss",
            "mask_nms": "MaskMatrixNMS",
            "score_threshold": 0.1,
            "mask_threshold": 0.5,
            **(head_changes or {}),
        },
        "SOLOv2MaskHead": {
            "mid_channels": 128,
            "out_channels": kernel_channels,
            "start_level": 0,
            "end_level": 3,
        },
        "SOLOv2Loss": {"ins_loss_weight": 3.0, "focal_loss_gamma": 2.0, "focal_loss_alpha": 0.25},
        "MaskMatrixNMS": {
            "update_threshold": workload["score_threshold"],
            "pre_nms_top_n": 500,
            "post_nms_top_n": workload["max_detections"],
        },
        # No part of a PaddleDetection model: the settings of its reader's Gt2Solov2Target.
        "bench_targets": {"num_grids": SOLOV2_GRIDS, "scale_ranges": scale_ranges, "coord_sigma": 0.2},
    }


def solov2_full(workload: Mapping[str, Any], *, backbone: str) -> Config:
    ranges = [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]]
    return solov2(workload, backbone=backbone, scale_ranges=ranges)


def solov2_light_r50(workload: Mapping[str, Any]) -> Config:
    """PaddleDetection has no such file; the sizes are those of mmdetection's solov2-light_r50_fpn_ms-3x_coco."""
    return solov2(
        workload,
        channels=256,
        convs=2,
        kernel_channels=128,
        scale_ranges=[[1, 56], [28, 112], [56, 224], [112, 448], [224, 896]],
    )


def solov2_light_dcn(
    workload: Mapping[str, Any],
    *,
    backbone: str,
    resnet_changes: Mapping[str, Any] | None = None,
    head_changes: Mapping[str, Any] | None = None,
) -> Config:
    """Deformable convolutions in the backbone's last three stages and in the head's last convolution."""
    return solov2(
        workload,
        backbone=backbone,
        channels=256,
        convs=3,
        kernel_channels=128,
        scale_ranges=[[1, 64], [32, 128], [64, 256], [128, 512], [256, 2048]],
        resnet_changes={"dcn_v2_stages": [1, 2, 3], **(resnet_changes or {})},
        head_changes={"dcn_v2_stages": [2], **(head_changes or {})},
    )


def solov2_light_r50_vd_dcn_512(workload: Mapping[str, Any]) -> Config:
    """PaddleDetection of 2020-12, configs/solov2/solov2_light_r50_vd_fpn_dcn_512_3x.yml: DropBlock, slow backbone."""
    return solov2_light_dcn(
        workload,
        backbone="r50_vd",
        resnet_changes={"lr_mult_list": [0.05, 0.05, 0.1, 0.15]},
        head_changes={"drop_block": True},
    )


#: Canonical name → the function that writes its configuration.
def rtdetr_resnet(workload: Mapping[str, Any], *, depth: int, **settings: Any) -> Config:
    return rtdetr(workload, resnet(workload, "r50_vd", first_stage=1, depth=depth), **settings)


MODELS: dict[str, Callable[[Mapping[str, Any]], Config]] = {
    "fcos_r50_fpn": fcos,
    "ssd300_vgg16": ssd300,
    "rtdetr_r18vd": partial(rtdetr_resnet, depth=18, layers=3, expansion=0.5),
    "rtdetr_r34vd": partial(rtdetr_resnet, depth=34, layers=4, expansion=0.5),
    "rtdetr_r50vd": partial(rtdetr_resnet, depth=50),
    "rtdetr_r101vd": partial(rtdetr_resnet, depth=101, width=384),
    "faster_rcnn_r50_c4": rcnn_c4,
    "mask_rcnn_r50_c4": partial(rcnn_c4, masks=True),
    "solov2_r50_fpn": partial(solov2_full, backbone="r50"),
    "solov2_r101_fpn": partial(solov2_full, backbone="r101"),
    "solov2_light_r50_fpn": solov2_light_r50,
    "solov2_light_r50_dcn_fpn": partial(solov2_light_dcn, backbone="r50"),
    "solov2_light_r50_vd_fpn_dcn_512": solov2_light_r50_vd_dcn_512,
    **{f"retinanet_{backbone}_fpn": partial(retinanet, backbone=backbone) for backbone in FPN_BACKBONES},
    **{
        f"{method}_{backbone}{'' if backbone in HRNETS else '_fpn'}": partial(
            rcnn, backbone=backbone, masks="mask" in method, cascade="cascade" in method
        )
        for method in ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
        for backbone in (*FPN_BACKBONES, *HRNETS)
    },
}


def merge(config: Config, changes: Mapping[str, Any]) -> Config:
    """``config`` with nested values replaced by those of ``changes``."""
    merged = dict(config)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def build_config(name: str, classes: int, workload: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """The configuration of one of `MODELS`; ``changes`` are those of the recipe. Raises ValueError for another name."""
    if name not in MODELS:
        raise ValueError(f"no PaddleDetection model '{name}' here; known: {', '.join(sorted(MODELS))}")
    return merge({"num_classes": classes, **MODELS[name](workload)}, changes)
