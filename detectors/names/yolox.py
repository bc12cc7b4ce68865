"""The canonical names of YOLOX are those of its authors, and of pixeltable-yolox, which makes its weights.

`detectors` has no such model. The parts of mmdetection's are the same, under other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

MODELS = frozenset(f"yolox_{size}" for size in ("nano", "tiny", "s", "m", "l", "x"))

#: What a name is in mmdetection: each pattern is applied once, in this order.
RENAMES = (
    (r"^backbone\.backbone\.", "backbone."),
    (r"^backbone\.lateral_conv0\.", "neck.reduce_layers.0."),
    (r"^backbone\.reduce_conv1\.", "neck.reduce_layers.1."),
    (r"^backbone\.C3_p4\.", "neck.top_down_blocks.0."),
    (r"^backbone\.C3_p3\.", "neck.top_down_blocks.1."),
    (r"^backbone\.bu_conv2\.", "neck.downsamples.0."),
    (r"^backbone\.bu_conv1\.", "neck.downsamples.1."),
    (r"^backbone\.C3_n3\.", "neck.bottom_up_blocks.0."),
    (r"^backbone\.C3_n4\.", "neck.bottom_up_blocks.1."),
    (r"^head\.stems\.", "neck.out_convs."),
    (r"^head\.(cls|reg)_convs\.", r"bbox_head.multi_level_\1_convs."),
    (r"^head\.(cls|reg|obj)_preds\.", r"bbox_head.multi_level_conv_\1."),
    (r"\.m\.(\d+)\.", r".blocks.\1."),
    (r"\.dconv\.", ".depthwise_conv."),
    (r"\.pconv\.", ".pointwise_conv."),
)
_DARK = re.compile(r"^backbone\.dark(\d)\.")
#: Convolutions of a block that splits its channels; those of its bottlenecks, and of the pooling, keep their names.
_SPLIT = {"conv1": "main_conv", "conv2": "short_conv", "conv3": "final_conv"}


def supports(model: str) -> bool:
    """The models of ``MODELS``."""
    return model in MODELS


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: ARG001
    """The weights as they are."""
    return dict(state)


def to_mmdet(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights in the names of mmdetection."""
    split = {name[: -len("conv3.conv.weight")] for name in state if name.endswith(".conv3.conv.weight")}
    return {_renamed(name, split): value for name, value in state.items()}


def _renamed(name: str, split: set[str]) -> str:
    found = re.match(r"(.*\.)(conv[123])\.(.+)$", name)
    if found and found[1] in split:
        name = f"{found[1]}{_SPLIT[found[2]]}.{found[3]}"
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return _DARK.sub(lambda found: f"backbone.stage{int(found[1]) - 1}.", name)
