"""The canonical models: names that mean the same work in every codebase."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CanonicalModel:
    """A model every codebase can be asked for.

    ``masks``: predicts instance masks. ``deterministic``: the loss does not depend on random sampling.
    ``reference``: the configuration whose definition is meant. ``gflops``: of one 512×512 image, forward, for the
    plan's rough estimate of time only (multiply and add counted separately).
    """

    name: str
    title: str
    masks: bool
    deterministic: bool
    reference: str
    gflops: float
    family: str = ""
    """Of a method that comes in sizes or variants of its own; else what stands before the backbone is the family."""


#: Backbone and neck → title, and its operations relative to R-50-FPN (for estimates).
BACKBONES = {
    "r50_caffe_c4": ("R-50-C4, caffe style", 1.6),
    "r50_c4": ("R-50-C4", 1.6),
    "r50_caffe_fpn": ("R-50-FPN, caffe style", 1.0),
    "r50_fpn": ("R-50-FPN", 1.0),
    "r101_caffe_fpn": ("R-101-FPN, caffe style", 1.4),
    "r101_fpn": ("R-101-FPN", 1.4),
    "x101_32x4d_fpn": ("X-101-32x4d-FPN", 1.4),
    "x101_64x4d_fpn": ("X-101-64x4d-FPN", 2.2),
    "hrnetv2p_w18": ("HRNetV2p-W18", 0.9),
    "hrnetv2p_w32": ("HRNetV2p-W32", 1.4),
    "hrnetv2p_w48": ("HRNetV2p-W48", 2.2),
}


def _family(
    method: str, title: str, gflops: float, *, masks: bool, deterministic: bool, without: tuple[str, ...] = ()
) -> list[CanonicalModel]:
    """A method on every backbone of the reference tables but those it is not published on."""
    return [
        CanonicalModel(
            f"{method}_{backbone}",
            f"{title} {backbone_title}",
            masks,
            deterministic,
            f"mmdet {method.replace('_', '-')} on {backbone_title}",
            round(gflops * scale, 1),
        )
        for backbone, (backbone_title, scale) in BACKBONES.items()
        if not backbone.startswith(without)
    ]


def _one(name: str, title: str, gflops: float, reference: str, *, masks: bool = False) -> CanonicalModel:
    return CanonicalModel(name, title, masks, True, reference, gflops)


def _sizes(
    method: str,
    title: str,
    gflops: dict[str, float],
    reference: str,
    *,
    masks: bool = False,
    deterministic: bool = True,
) -> list[CanonicalModel]:
    """A method that is published in sizes of its own."""
    return [
        CanonicalModel(f"{method}_{size}", f"{title}-{size}", masks, deterministic, reference, each, method)
        for size, each in gflops.items()
    ]


_HRNET = ("hrnetv2p",)
_C4 = ("r50_caffe_c4", "r50_c4")
_CAFFE = ("r50_caffe", "r101_caffe", "r50_c4")

MODELS: dict[str, CanonicalModel] = {
    model.name: model
    for model in (
        *_family("rpn", "RPN", 90.0, masks=False, deterministic=False, without=_HRNET),
        *_family("fast_rcnn", "Fast R-CNN", 110.0, masks=False, deterministic=False, without=(*_HRNET, "x101")),
        *_family("faster_rcnn", "Faster R-CNN", 120.0, masks=False, deterministic=False),
        *_family("mask_rcnn", "Mask R-CNN", 160.0, masks=True, deterministic=False),
        *_family("cascade_rcnn", "Cascade R-CNN", 150.0, masks=False, deterministic=False, without=("r50_c4",)),
        *_family(
            "cascade_mask_rcnn", "Cascade Mask R-CNN", 280.0, masks=True, deterministic=False, without=("r50_c4",)
        ),
        *_family("htc", "HTC", 320.0, masks=True, deterministic=False, without=_CAFFE),
        *_family("retinanet", "RetinaNet", 105.0, masks=False, deterministic=True, without=(*_HRNET, *_C4)),
        _one("fcos_r50_fpn", "FCOS R-50-FPN", 100.0,
             "torchvision fcos_resnet50_fpn; mmdet fcos_r50-caffe_fpn_gn-head_1x_coco"),
        _one("ssd300_vgg16", "SSD300 VGG16", 62.0, "torchvision ssd300_vgg16; mmdet ssd300_coco"),
        _one("ssd512_vgg16", "SSD512 VGG16", 180.0, "mmdet ssd512_coco"),
        _one("solov2_r50_fpn", "SOLOv2 R-50-FPN", 110.0, "mmdet solov2_r50_fpn_1x_coco", masks=True),
        _one("solov2_r101_fpn", "SOLOv2 R-101-FPN", 150.0, "mmdet solov2_r101_fpn_ms-3x_coco", masks=True),
        _one("solov2_light_r50_fpn", "SOLOv2-light R-50-FPN", 70.0,
             "mmdet solov2-light_r50_fpn_ms-3x_coco", masks=True),
        _one("solov2_light_r50_dcn_fpn", "SOLOv2-light R-50-DCN-FPN", 80.0,
             "mmdet solov2-light_r50-dcn_fpn_ms-3x_coco", masks=True),
        _one("solov2_light_r50_vd_fpn_dcn_512", "SOLOv2-light R-50-vd-DCN-FPN 512", 80.0,
             "PaddleDetection of 2020-12, configs/solov2/solov2_light_r50_vd_fpn_dcn_512_3x.yml", masks=True),
        _one("detr_r50", "DETR R-50", 45.0, "facebookresearch/detr detr_resnet50, with the losses of all layers"),
        _one("deformable_detr_r50", "Deformable DETR R-50", 70.0, "fundamentalvision/Deformable-DETR, single stage"),
        *_sizes("rtdetr", "RT-DETR", {"r18vd": 39.0, "r34vd": 59.0, "r50vd": 87.0, "r101vd": 166.0},
                "lyuwenyu/RT-DETR, rtdetr_pytorch", deterministic=False),
        *_sizes("rtdetrv2", "RT-DETRv2", {"r18vd": 39.0, "r34vd": 59.0, "r50vd": 87.0, "r101vd": 166.0},
                "lyuwenyu/RT-DETR, rtdetrv2_pytorch", deterministic=False),
        *_sizes("dfine", "D-FINE", {"n": 4.5, "s": 16.0, "m": 36.0, "l": 58.0, "x": 129.0},
                "Peterande/D-FINE", deterministic=False),
        _one("rfdetr_base", "RF-DETR base", 55.0, "roboflow/rf-detr, base"),
        _one("mask2former_swin_t", "Mask2Former Swin-T", 150.0, "facebookresearch/Mask2Former, instance", masks=True),
        *_sizes("rtmdet", "RTMDet", {"tiny": 10.0, "s": 19.0, "m": 50.0, "l": 103.0, "x": 181.0},
                "mmdet rtmdet_*_8xb32-300e_coco"),
        *_sizes("rtmdet_ins", "RTMDet-Ins", {"tiny": 15.0, "s": 28.0, "m": 68.0, "l": 135.0, "x": 232.0},
                "mmdet rtmdet-ins_*_coco", masks=True),
        *_sizes("yolox", "YOLOX", {"nano": 1.7, "tiny": 9.8, "s": 17.0, "m": 47.0, "l": 100.0, "x": 181.0},
                "Megvii-BaseDetection/YOLOX"),
    )
}  # fmt: skip
