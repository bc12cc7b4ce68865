"""What one-stage detectors share: one head on every level of a pyramid, the focal loss, and the way to detections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from detectors.boxes import clip
from detectors.cpu import nms
from detectors.parameter_rules import Rule
from detectors.precision import full, full_precision
from detectors.rcnn import to_original
from detectors.structures import Detections, GroundTruth, Target

#: Probability of an object that untrained class layers predict everywhere (Lin et al. 2017, section 4.1).
PRIOR = 0.01


class DenseOutput(NamedTuple):
    """What a head says at every anchor; lists are by level, finest first, and anchors A_i those of level i.

    logits: [B, A_i, K]. deltas: [B, A_i, 4]. quality: logits [B, A_i] of how far to trust the box, or None.
    anchors: [A_i, 4], the same for every image.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    quality: list[Tensor] | None
    anchors: list[Tensor]

    def in_full_precision(self) -> DenseOutput:
        """All but the logits, by far the largest, which the focal loss casts a level at a time."""
        quality = None if self.quality is None else [full(level) for level in self.quality]
        return self._replace(deltas=[full(level) for level in self.deltas], quality=quality)


class DenseHead(Protocol):
    """What ``DenseDetector`` asks of its head, which is a module."""

    classes: nn.Conv2d

    def __call__(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> DenseOutput:
        """image_size: (height, width) with padding."""

    def losses(self, output: DenseOutput, truth: GroundTruth) -> dict[str, Tensor]:
        """Loss terms of a batch."""

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """[..., 4] and [..., 4] to boxes [..., 4]."""


class DenseDetector(nn.Module):
    """RetinaNet or FCOS: a backbone, a pyramid, and a head on each of its levels.

    ``candidates``: how many of a level's scores, over all classes, go into the suppression of duplicates.
    ``ranked_by_quality``: a head's quality takes part in choosing them, as their geometric mean with it; else only the
    scores of what was chosen are multiplied by it. ``keep_empty``: boxes without area, of objects beyond the image, are
    detections too. ``clip_boxes``: boxes end at the edge of the image. Images and sizes are given as for ``RCNN``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: DenseHead,
        *,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
        candidates: int = 1000,
        ranked_by_quality: bool = True,
        keep_empty: bool = True,
        clip_boxes: bool = True,
        parameter_rules: Sequence[Rule] = (),
    ) -> None:
        super().__init__()
        self.parameter_rules = tuple(parameter_rules)
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.candidates = candidates
        self.ranked_by_quality = ranked_by_quality
        self.keep_empty = keep_empty
        self.clip_boxes = clip_boxes

    def output(self, images: Tensor) -> DenseOutput:
        """What the head says of images [B, 3, H, W]."""
        return self.head(self.neck(self.backbone(images)), (images.shape[2], images.shape[3]))

    def losses(self, images: Tensor, image_sizes: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:  # noqa: ARG002
        """Loss terms of a batch. Anchors in the padding are background like any other.

        Args:
            images: float32 [B, 3, H, W], normalised, padded right and bottom.
            image_sizes: int64 [B, 2], height and width of each without padding.
            targets: the objects of each image.

        Returns:
            A number for each term; their sum is what to minimise.
        """
        output = self.output(images)
        with full_precision(images.device):
            return self.head.losses(
                output.in_full_precision(), GroundTruth.from_targets(targets, images.device)
            )

    def network(self, images: Tensor, image_sizes: Tensor) -> DenseOutput:  # noqa: ARG002
        """What the head says, before any threshold; images and sizes as for ``losses``."""
        return self.output(images)

    def postprocess(
        self,
        raw: DenseOutput,
        image_sizes: Sequence[tuple[int, int]],
        original_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Detections in pixels of the original images; sizes are (height, width)."""
        raw = raw.in_full_precision()
        return [
            to_original(self._detect(raw, image, size), size, original)
            for image, (size, original) in enumerate(zip(image_sizes, original_sizes, strict=True))
        ]

    def candidates_of(self, raw: DenseOutput, image: int) -> Detections:
        """What of one image goes into the suppression of duplicates, boxes perhaps beyond the image."""
        found = []
        for level, anchors in enumerate(raw.anchors):
            quality = None if raw.quality is None else raw.quality[level][image]
            scores, anchor, labels = best_scores(
                raw.logits[level][image],
                quality if self.ranked_by_quality else None,
                threshold=self.score_threshold,
                limit=self.candidates,
            )
            if quality is not None and not self.ranked_by_quality:
                scores = scores * quality[anchor].sigmoid()
            boxes = self.head.decode(raw.deltas[level][image, anchor], anchors[anchor])
            found.append((boxes, scores, labels))
        return Detections(*map(torch.cat, zip(*found, strict=True)))

    def _detect(self, raw: DenseOutput, image: int, size: tuple[int, int]) -> Detections:
        """Detections of one image in input pixels."""
        boxes, scores, labels, _ = self.candidates_of(raw, image)
        if self.clip_boxes:
            edges = torch.tensor([size]).to(boxes.device, non_blocking=True)
            boxes = clip(boxes.unsqueeze(0), edges).squeeze(0)
        if not self.keep_empty:
            extended = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            boxes, scores, labels = boxes[extended], scores[extended], labels[extended]
        keep = nms(boxes, scores, labels, self.nms_threshold)[: self.max_detections]
        return Detections(boxes[keep], scores[keep], labels[keep])


def by_anchor(out: Tensor, values: int) -> Tensor:
    """A convolution's output [B, A * values, H, W] to [B, H * W * A, values]; a view if it is channels last."""
    return out.permute(0, 2, 3, 1).reshape(out.shape[0], -1, values)


def init_head(convolutions: Iterable[nn.Conv2d], classes: nn.Conv2d) -> None:
    """As Lin et al. 2017, section 4.1: small weights, and classes that start at ``PRIOR``."""
    for conv in (*convolutions, classes):
        nn.init.normal_(conv.weight, std=0.01)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    nn.init.constant_(classes.bias, logit(PRIOR))


def logit(probability: float) -> float:
    """The inverse of the sigmoid."""
    return math.log(probability / (1 - probability))


def best_scores(
    logits: Tensor, quality: Tensor | None, *, threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``limit`` largest scores above ``threshold`` of one level of one image, best first.

    logits: [A, K]. quality: logits [A] or None. A score is sigmoid(logits), or with a quality the geometric mean of
    both sigmoids. Returns scores, anchors and classes, each [N].

    Few of the many scores pass, so the logits that cannot are dropped before any score is computed.
    """
    flat = logits.flatten()
    index = torch.arange(len(flat), device=flat.device)
    least = threshold if quality is None else threshold**2
    if 0 < least < 1:
        # A little below, for the rounding of the sigmoid: the threshold itself is applied to scores.
        index = (flat > logit(least) - 1e-3).nonzero().squeeze(1)
    anchor = index.div(logits.shape[1], rounding_mode="floor")
    scores = full(flat[index]).sigmoid()
    if quality is not None:
        scores = (scores * quality[anchor].sigmoid()).sqrt()
    passed = (scores > threshold).nonzero().squeeze(1)
    scores, best = scores[passed].topk(min(limit, len(passed)))
    chosen = passed[best]
    return scores, anchor[chosen], index[chosen] % logits.shape[1]


# -- focal loss ----------------------------------------------------------------------------------------------------


def focal_loss(logits: Sequence[Tensor], labels: Tensor, weight: Tensor, *, alpha: float = 0.25) -> Tensor:
    """Sum over all anchors and classes of ``weight`` times the sigmoid focal loss with γ = 2 (Lin et al. 2017).

    Args:
        logits: by level, [B, A_i, K], of any precision. The loss is computed in float32.
        labels: int64 [B, sum of A_i] in 0..K-1, K for background.
        weight: of the same shape.
        alpha: share of the objects in the loss.

    Returns:
        A number.
    """
    sizes = [level.shape[1] for level in logits]
    with full_precision(labels.device):
        terms = [
            _FocalLoss.apply(full(level), *values, alpha)
            for level, *values in zip(
                logits, labels.split(sizes, dim=1), full(weight).split(sizes, dim=1), strict=True
            )
        ]
        return torch.stack(terms).sum()


class _FocalLoss(torch.autograd.Function):
    """The focal loss of one level, with p = sigmoid(x), in two formulas.

        background   (1 - α) p² softplus(x)           its slope   (1 - α) p² (2 (1 - p) softplus(x) + p)
        object       α (1 - p)² softplus(-x)          its slope   -α (1 - p)² (2 p softplus(-x) + 1 - p)

    Of the class scores of an anchor at most one is an object's. So everything is computed as background and that one
    replaced: there is no tensor of targets. The slope is computed along with the loss and is all that is kept, where
    autograd would keep a tensor for each factor; these are the largest tensors of a dense detector.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, labels: Tensor, weight: Tensor, alpha: float) -> Tensor:
        classes = logits.shape[-1]
        is_object = (labels < classes).unsqueeze(-1)
        index = labels.clamp(max=classes - 1).unsqueeze(-1)

        def replace(values: Tensor, of_object: Tensor) -> Tensor:
            """Put the object's value, relative to the factor 1 - α, in its place."""
            scaled = of_object * (alpha / (1 - alpha))
            return values.scatter_(-1, index, torch.where(is_object, scaled, values.gather(-1, index)))

        x = logits.gather(-1, index)
        p, rest, softplus = x.sigmoid(), (-x).sigmoid(), F.softplus(-x)
        loss_of_object = rest.square() * softplus
        slope_of_object = rest.square().mul_(2 * p * softplus + rest).neg_()

        p, softplus = logits.sigmoid(), F.softplus(logits)
        squared = p.square()
        slope = (1 - p).mul_(softplus).mul_(2).add_(p).mul_(squared)
        loss = replace(squared.mul_(softplus), loss_of_object).sum(-1)
        weight = weight * (1 - alpha)
        ctx.save_for_backward(replace(slope, slope_of_object), weight)
        return (loss * weight).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Any, ...]:
        slope, weight = ctx.saved_tensors
        return slope * (weight * gradient).unsqueeze(-1), None, None, None
