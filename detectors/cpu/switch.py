"""Which kernels run on a CPU: this room's (``auto``) or torch's own (``torch``)."""

from __future__ import annotations

import torch
from torch import Tensor

#: What ``use`` takes.
KERNELS = ("auto", "torch")

_chosen = "auto"


def use(kernels: str) -> None:
    """Choose the kernels of this process.

    Args:
        kernels: "auto" for the kernels of this room where they are faster, "torch" for torch's everywhere.

    Raises:
        ValueError: for another word.
    """
    global _chosen
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be {' or '.join(KERNELS)}, got {kernels!r}")
    _chosen = kernels


def chosen() -> str:
    """What ``use`` was last given, at first "auto"."""
    return _chosen


def ours(*tensors: Tensor | None) -> bool:
    """Whether this room's kernels may run on these tensors now.

    They may not on another device, under autocast, while a model is exported or traced, nor under ``torch.func`` and
    forward-mode differentiation, which know torch's operators only.
    """
    if _chosen != "auto" or any(one is not None and one.device.type != "cpu" for one in tensors):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    return not (
        torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
