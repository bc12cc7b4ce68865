"""RT-DETR of transformers to that of PaddleDetection (2.7 and later).

Both follow the authors' code, so names change. Paddle keeps linear layers as [in, out], and one matrix for query, key
and value. Its embedding of classes for denoising has no row for the background, which transformers keeps at 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

#: What a name of transformers is in PaddleDetection: each pattern is applied once, in this order.
RENAMES = (
    (r"^model\.backbone\.model\.embedder\.embedder\.0\.", "backbone.conv1.conv1_1."),
    (r"^model\.backbone\.model\.embedder\.embedder\.1\.", "backbone.conv1.conv1_2."),
    (r"^model\.backbone\.model\.embedder\.embedder\.2\.", "backbone.conv1.conv1_3."),
    (r"\.shortcut\.1\.", ".short.conv."),  # behind the pooling
    (r"\.shortcut\.", ".short."),
    (r"(^backbone|stages)(.*)\.convolution\.", r"\1\2.conv."),
    (r"(^backbone|stages)(.*)\.normalization\.", r"\1\2.norm."),
    (r"^model\.encoder_input_proj\.", "neck.input_proj."),
    (r"^model\.encoder\.aifi\.", "neck.encoder."),
    (r"^model\.encoder\.(.*)\.norm\.", r"neck.\1.bn."),
    (r"^model\.encoder\.", "neck."),
    (r"^model\.decoder_input_proj\.(\d)\.0\.", r"transformer.input_proj.\1.conv."),
    (r"^model\.decoder_input_proj\.(\d)\.1\.", r"transformer.input_proj.\1.norm."),
    (r"^model\.decoder\.class_embed\.", "transformer.dec_score_head."),
    (r"^model\.decoder\.bbox_embed\.", "transformer.dec_bbox_head."),
    (r"^model\.decoder\.query_pos_head\.", "transformer.query_pos_head."),
    (r"^model\.", "transformer."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^transformer(.*)\.final_layer_norm\.", r"transformer\1.norm3."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.mlp\.fc1\.", ".linear1."),
    (r"\.mlp\.fc2\.", ".linear2."),
    (r"\.running_mean$", "._mean"),
    (r"\.running_var$", "._variance"),
)
_BLOCK = re.compile(
    r"^model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d+)\.(layer\.\d|short(?:\.conv)?)\."
)


def _renamed(name: str, *, deep: bool) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
        if match := _BLOCK.match(name):
            stage, block, layer = f"res{int(match[1]) + 2}", int(match[2]), match[3]
            letter = f"b{block}" if deep and stage == "res4" and block else chr(ord("a") + block)
            layer = layer if layer.startswith("short") else f"branch2{'abc'[int(layer[-1])]}"
            name = f"backbone.{stage}.{stage}{letter}.{layer}.{name[match.end() :]}"
    return name


def to_paddledet(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights in the names and shapes of PaddleDetection."""
    converted: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if name.endswith(".num_batches_tracked"):
            continue
        if match := re.fullmatch(r"(.*\.self_attn\.)([qkv])_proj\.(weight|bias)", name):
            if match[2] != "q":
                continue
            parts = [state[f"{match[1]}{one}_proj.{match[3]}"] for one in "qkv"]
            own, value = f"{match[1]}in_proj_{match[3]}", np.concatenate(parts)
        else:
            own = name
        if own.endswith("denoising_class_embed.weight"):
            value = value[:-1]
        elif value.ndim == 2:
            value = np.ascontiguousarray(value.T)
        converted[_renamed(own, deep="101" in model)] = value
    return converted
