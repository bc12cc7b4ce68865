"""RT-DETR, which PaddleDetection has since 2.7: a checkout brings it (`source`), the wheel 2.6.0 does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.worker.api import Batch

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of the shared batches

MISSING = (
    "PaddleDetection has RT-DETR since 2.7, and the wheel ends at 2.6.0: name a checkout of a later release "
    "(in a recipe `source: PATH`, in bench vs paddledet=PATH:MODEL)"
)


def rtdetr(
    workload: Mapping[str, Any],
    resnet: dict[str, Any],
    *,
    layers: int = 6,
    expansion: float = 1.0,
    width: int = 256,
) -> dict[str, Any]:
    """As `configs/rtdetr`: layers of the decoder, width and expansion of the hybrid encoder."""
    layer = {
        "name": "TransformerLayer",
        "d_model": width,
        "nhead": 8,
        "dim_feedforward": 1024 if width == 256 else 2048,
        "dropout": 0.0,
        "activation": "gelu",
    }
    return {
        "architecture": "DETR",
        "hidden_dim": 256,
        "use_focal_loss": True,
        "DETR": {
            "backbone": "ResNet",
            "neck": "HybridEncoder",
            "transformer": "RTDETRTransformer",
            "detr_head": "DINOHead",
            "post_process": "DETRPostProcess",
        },
        "ResNet": resnet,
        "HybridEncoder": {
            "hidden_dim": width,
            "use_encoder_idx": [2],
            "num_encoder_layers": 1,
            "encoder_layer": layer,
            "expansion": expansion,
        },
        "RTDETRTransformer": {
            "num_queries": 300,
            "feat_strides": [8, 16, 32],
            "num_levels": 3,
            "num_decoder_layers": layers,
            "dim_feedforward": 1024,
            "dropout": 0.0,
            "num_denoising": 100,
            "label_noise_ratio": 0.5,
            "box_noise_scale": 1.0,
            "learnt_init_query": False,
        },
        "DINOHead": {
            "loss": {
                "name": "DINOLoss",
                "loss_coeff": {"class": 1, "bbox": 5, "giou": 2},
                "aux_loss": True,
                "use_vfl": True,
                "matcher": {"name": "HungarianMatcher", "matcher_coeff": {"class": 2, "bbox": 5, "giou": 2}},
            }
        },
        "DETRPostProcess": {"num_top_queries": workload["max_detections"]},
    }


def unit_pixels(batch: Batch) -> np.ndarray:
    """Images float32 [B, 3, H, W] of 0..1, as RT-DETR takes them; the padding stays 0."""
    mean, std = (np.array(one, np.float32)[:, None, None] for one in (MEAN, STD))
    images = np.zeros_like(batch.images)
    for image, shared, (height, width) in zip(images, batch.images, batch.image_sizes):
        image[:, :height, :width] = (shared[:, :height, :width] * std + mean) / 255
    return images


def relative_boxes(batch: Batch) -> list[np.ndarray]:
    """Of each image [N, 4]: centre, width and height as parts of the padded input."""
    height, width = batch.images.shape[2:]
    found = []
    for boxes in batch.boxes:
        corners = boxes / np.array([width, height, width, height], np.float32)
        first, last = corners[:, :2], corners[:, 2:]
        found.append(np.concatenate([(first + last) / 2, last - first], axis=1))
    return found


def terms(losses: Mapping[str, float]) -> dict[str, float]:
    """Loss terms by the names that the adapter of transformers gives them; denoising has one for all layers."""
    found: dict[str, float] = {}
    for name, value in losses.items():
        name = name.replace("class", "vfl").replace("_aux_dn", "_dn")
        found[name] = found.get(name, 0.0) + value
    return found
