"""What implementations of the R-CNN family do differently under one name: values, which builders hand to the layers."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Conventions:
    """How one codebase reads the papers. Sizes are in pixels; pairs are (training, inference).

    rounded_anchors: the corners of anchors at the origin are whole numbers.
    nominal_strides: a level's anchors are 4, 8, 16, … apart, not the image's size over the grid's rounded down.
    aligned: RoIAlign shifts regions by half a pixel, so that pixel centres are what it interpolates between.
    samples: RoIAlign's points per bin and axis; 0 for as many as the bin has pixels, rounded up.
    rpn_beta, box_beta: where smooth L1 turns from square to linear; 0 for L1.
    pre_nms, post_nms: proposals per level before, and per image after the suppression of duplicates.
    min_proposal, min_detection: boxes not larger than this on both sides are dropped.
    forced_iou: an object's best anchors become positive at this IoU or more, and
    forced_to_object: theirs is then this object, else the one that they overlap most themselves.
    least_positives: an image's anchors are averaged over as if at least so many were positive.
    binary_masks: what the mask branch learns is cut at 0.5, after a resize that is aligned and adaptive as above.
    grid_paste: a mask is interpolated at the image's pixel centres, else resized to whole pixels around its box.
    """

    rounded_anchors: bool
    nominal_strides: bool
    aligned: bool
    samples: int
    rpn_beta: float
    box_beta: float
    pre_nms: tuple[int, int]
    post_nms: tuple[int, int]
    min_proposal: float
    min_detection: float
    forced_iou: float
    forced_to_object: bool
    least_positives: int
    binary_masks: bool
    grid_paste: bool


#: torchvision 0.29, models/detection (fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn).
TORCHVISION = Conventions(
    rounded_anchors=True,
    nominal_strides=False,
    aligned=False,
    samples=2,
    rpn_beta=1 / 9,
    box_beta=1 / 9,
    pre_nms=(2000, 1000),
    post_nms=(2000, 1000),
    min_proposal=1e-3,
    min_detection=1e-2,
    forced_iou=0.0,
    forced_to_object=False,
    least_positives=0,
    binary_masks=False,
    grid_paste=False,
)

#: mmdetection 3.3, configs/_base_/models (faster-rcnn_r50_fpn, mask-rcnn_r50_fpn) and mmcv 2.1's RoIAlign.
MMDET = Conventions(
    rounded_anchors=False,
    nominal_strides=True,
    aligned=True,
    samples=0,
    rpn_beta=0.0,
    box_beta=0.0,
    pre_nms=(2000, 1000),
    post_nms=(1000, 1000),
    min_proposal=0.0,
    min_detection=0.0,
    forced_iou=0.3,
    forced_to_object=True,
    least_positives=1,
    binary_masks=True,
    grid_paste=True,
)

#: PaddleDetection 2.6, configs/_base_/models of the same, and modeling/proposal_generator/target.py: every object has
#: its best anchors, whose goals are the objects that they overlap most, and all images have as many anchors.
PADDLEDET = replace(MMDET, forced_iou=0.0, forced_to_object=False, least_positives=0)

#: What ``conventions`` of a building function may be; of SSD and FCOS the first two.
CONVENTIONS = {"torchvision": TORCHVISION, "mmdet": MMDET, "paddledet": PADDLEDET}


def conventions_named(name: str, *, no_paddledet: bool = False) -> Conventions:
    """Raises ValueError for a name that there is not, or not where it has ``no_paddledet``."""
    known = [*CONVENTIONS][: 2 if no_paddledet else None]
    if name not in known:
        raise ValueError(f"unknown conventions {name!r}; there are {', '.join(known)}")
    return CONVENTIONS[name]
