"""In a few words, whose kernels run: for logs, reports and records."""

from __future__ import annotations

import torch

from detectors.cpu import library, products, switch


def describe(device: torch.device | str) -> str:
    """Whose kernels run on a device, as ``kernels:`` of a report's row.

    Args:
        device: where the model is.

    Returns:
        "torch", or what of this room stands in for torch's kernels.
    """
    if torch.device(device).type != "cpu" or switch.chosen() == "torch":
        return "torch"
    parts = ["deformable convolution"]
    if products.SPLIT_BY_LIBRARY:
        parts.insert(0, "oneDNN products")
    if library.available():
        parts.insert(0, "Winograd 3×3")
    return f"detectors ({', '.join(parts)})"
