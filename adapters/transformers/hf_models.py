"""The canonical models as configurations of transformers; the values are those of the published checkpoints."""

from __future__ import annotations

import re
from typing import Any

Changes = dict[str, Any]

#: Models that mask the padding, and whose boxes are relative to the image without it.
MASKED = ("detr", "conditional_detr", "deformable_detr", "dab-detr")
#: Models whose batch normalisation in the backbone can train; the others always freeze it.
FREE_NORMALISATION = ("rt_detr", "rt_detr_v2", "d_fine", "deimv2")
#: Models whose named losses are weighted already and sum up to the loss.
WEIGHTED_LOSSES = FREE_NORMALISATION


def by_kind(losses: dict[str, Any]) -> dict[str, Any]:
    """Loss terms with one for all layers of the decoder, as PaddleDetection has them."""
    found: dict[str, Any] = {}
    for name, value in losses.items():
        name = re.sub(r"_(aux|dn)_\d+$", r"_\1", name)
        found[name] = found[name] + value if name in found else value
    return found


def _resnet_vd(layer: str, depths: list[int], widths: list[int]) -> Changes:
    return {
        "model_type": "rt_detr_resnet",
        "layer_type": layer,
        "depths": depths,
        "hidden_sizes": widths,
        "out_indices": [2, 3, 4],
    }


def _hgnet(stem: list[int], ins: list[int], mids: list[int], outs: list[int], **changes: Any) -> Changes:
    return {
        "model_type": "hgnet_v2",
        "stem_channels": stem,
        "stage_in_channels": ins,
        "stage_mid_channels": mids,
        "stage_out_channels": outs,
        "hidden_sizes": outs,
        "out_indices": [2, 3, 4],
        **changes,
    }


_BASIC = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5}
_R18 = {
    "backbone_config": _resnet_vd("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    "decoder_layers": 3,
    **_BASIC,
}
_R34 = {
    "backbone_config": _resnet_vd("basic", [3, 4, 6, 3], [64, 128, 256, 512]),
    "decoder_layers": 4,
    **_BASIC,
}
_R101 = {
    "backbone_config": _resnet_vd("bottleneck", [3, 4, 23, 3], [256, 512, 1024, 2048]),
    "encoder_hidden_dim": 384,
    "encoder_ffn_dim": 2048,
    "decoder_in_channels": [384] * 3,
}
#: The smallest HGNetV2, B0, and what D-FINE's N and S share with it.
_B0 = {
    "stem": [3, 16, 16],
    "ins": [16, 64, 256, 512],
    "mids": [16, 32, 64, 128],
    "outs": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "use_learnable_affine_block": True,
}
_B2 = {
    "stem": [3, 24, 32],
    "ins": [32, 96, 384, 768],
    "mids": [32, 64, 128, 256],
    "outs": [96, 384, 768, 1536],
    "stage_numb_of_layers": [4, 4, 4, 4],
    "use_learnable_affine_block": True,
}
_B4 = {
    "stem": [3, 32, 48],
    "ins": [48, 128, 512, 1024],
    "mids": [48, 96, 192, 384],
    "outs": [128, 512, 1024, 2048],
}
_B5 = {
    "stem": [3, 32, 64],
    "ins": [64, 128, 512, 1024],
    "mids": [64, 128, 256, 512],
    "outs": [128, 512, 1024, 2048],
    "stage_num_blocks": [1, 2, 5, 2],
}
_POINTS = {"decoder_n_points": [3, 6, 3]}

#: Canonical name → (model type of transformers, fields that differ from the type's defaults).
CONFIGS: dict[str, tuple[str, Changes]] = {
    "detr_r50": ("detr", {"auxiliary_loss": True}),
    "deformable_detr_r50": ("deformable_detr", {"auxiliary_loss": True}),
    "rtdetr_r18vd": ("rt_detr", _R18),
    "rtdetr_r34vd": ("rt_detr", _R34),
    "rtdetr_r50vd": ("rt_detr", {}),
    "rtdetr_r101vd": ("rt_detr", _R101),
    "rtdetrv2_r18vd": ("rt_detr_v2", _R18),
    "rtdetrv2_r34vd": ("rt_detr_v2", _R34),
    "rtdetrv2_r50vd": ("rt_detr_v2", {}),
    "rtdetrv2_r101vd": ("rt_detr_v2", _R101),
    "dfine_n": (
        "d_fine",
        {
            "backbone_config": {**_hgnet(**_B0), "out_indices": [3, 4]},
            "encoder_in_channels": [512, 1024],
            "encoder_hidden_dim": 128,
            "encoder_ffn_dim": 512,
            "encode_proj_layers": [1],
            "feat_strides": [16, 32],
            "hidden_expansion": 0.34,
            "depth_mult": 0.5,
            "d_model": 128,
            "decoder_in_channels": [128, 128],
            "decoder_ffn_dim": 512,
            "decoder_layers": 3,
            "decoder_n_points": [6, 6],
            "num_feature_levels": 2,
        },
    ),
    "dfine_s": (
        "d_fine",
        {
            "backbone_config": _hgnet(**_B0),
            "encoder_in_channels": [256, 512, 1024],
            "hidden_expansion": 0.5,
            "depth_mult": 0.34,
            "decoder_layers": 3,
            **_POINTS,
        },
    ),
    "dfine_m": (
        "d_fine",
        {
            "backbone_config": _hgnet(**_B2),
            "encoder_in_channels": [384, 768, 1536],
            "depth_mult": 0.67,
            "decoder_layers": 4,
            **_POINTS,
        },
    ),
    "dfine_l": ("d_fine", {"backbone_config": _hgnet(**_B4), **_POINTS}),
    "dfine_x": (
        "d_fine",
        {
            "backbone_config": _hgnet(**_B5),
            "encoder_hidden_dim": 384,
            "encoder_ffn_dim": 2048,
            "decoder_in_channels": [384] * 3,
            **_POINTS,
        },
    ),
    "rfdetr_base": ("rf_detr", {}),
    "mask2former_swin_t": (
        "mask2former",
        {
            "backbone_config": {
                "model_type": "swin",
                "depths": [2, 2, 6, 2],
                "drop_path_rate": 0.3,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            }
        },
    ),
}
