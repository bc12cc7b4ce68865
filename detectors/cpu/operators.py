"""torchvision's compiled operators, without its Python package.

``import torchvision`` brings models, data sets and torch._dynamo along, and with that triton: two seconds and 160 MiB
for each process (torchvision 0.29), of which a detector needs two operators. So the library is loaded as torchvision
itself loads it, and its operators are called as they are registered. `import torchvision`, before or after, does no
harm.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

#: Boxes of one `nms` from which it is faster to look at each group alone: its time grows with their square.
#: From torchvision's benchmarks, https://github.com/pytorch/vision/pull/8925.
MANY = {"cpu": 1_000, "cuda": 25_000}


def _load() -> None:
    found = importlib.util.find_spec("torchvision")  # does not import it
    folders = (found.submodule_search_locations if found else None) or []
    for library in (Path(folder) / name for folder in folders for name in ("_C_stable.so", "_C.so")):
        if library.exists():
            torch.ops.load_library(library)
            return
    import torchvision  # noqa: F401  # it knows where its library is, or says what is missing


_load()


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression within each group (a class, or a level of a pyramid).

    boxes: [N, 4] as x1, y1, x2, y2, not negative. scores: [N]. groups: int64 [N]. Returns the indices of the boxes
    kept, int64, by descending score: those that overlap none kept before them by more than ``threshold`` (IoU). The
    results are those of ``torchvision.ops.batched_nms``. Half precision, which autocast leaves scores in, is taken too.
    """
    suppress = torch.ops.torchvision.nms
    full = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes, scores = boxes.to(full), scores.to(full)
    if compiling := torch.compiler.is_compiling():
        import torchvision  # noqa: F401  # tells the shape of what is kept, on which a graph may not branch
    elif not len(boxes):
        return groups.new_empty(0)
    if compiling or len(boxes) <= MANY.get(boxes.device.type, MANY["cuda"]):
        # Groups are moved apart, so that boxes of different ones do not meet.
        apart = F.pad(boxes, (0, 0, 0, 1)).max() + 1  # of no boxes, too
        return suppress(boxes + (groups.to(boxes) * apart).unsqueeze(1), scores, threshold)
    kept = []
    for group in groups.unique():
        members = (groups == group).nonzero().squeeze(1)
        kept.append(members[suppress(boxes[members], scores[members], threshold)])
    index = torch.cat(kept).sort().values  # of equal scores the first box comes first
    return index[scores[index].argsort(descending=True, stable=True)]


def crop_and_resize(images: Tensor, regions: Tensor, size: int, *, aligned: bool) -> Tensor:
    """RoIAlign on images [N, C, H, W], of regions [R, 5] (image, x1, y1, x2, y2): [R, C, size, size]. No gradient.

    As ``torchvision.ops.roi_align`` with as many samples as a region has pixels.
    """
    return torch.ops.torchvision.roi_align(images, regions, 1.0, size, size, -1, aligned)
