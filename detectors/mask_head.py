"""The mask branch of Mask R-CNN (He et al. 2017, arXiv:1703.06870)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.box_head import RoISample
from detectors.cpu import crop_and_resize, linear
from detectors.layers import Conv2d
from detectors.precision import full
from detectors.pyramid import Pyramid, roi_align
from detectors.sampling import positions
from detectors.structures import Detections, Target


class MaskHead(nn.Module):
    """Four 3×3 convolutions on 14×14 pooled features, a 2×2 deconvolution, and one 28×28 mask per class.

    Only the mask of one class per region is ever needed, so only that one is computed; for 80 classes this saves 79
    of 80 parts of the last layer and its output. Settings and results as torchvision's ``MaskRCNNHeads`` and
    ``MaskRCNNPredictor``, or with others mmdet/models/roi_heads/mask_heads/fcn_mask_head.py.

    Args:
        channels: of the pyramid.
        num_classes: without the background.
        convs: how many 3×3 convolutions.
        hidden: channels of all layers.
        pool_size: side of the pooled features; a mask has twice that.
        samples: as for ``roi_align``.
        aligned: as for ``roi_align``.
        binary_targets: as ``binary`` for ``mask_targets``.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        convs: int = 4,
        hidden: int = 256,
        pool_size: int = 14,
        samples: int = 2,
        aligned: bool = False,
        binary_targets: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pool_size = pool_size
        self.samples = samples
        self.aligned = aligned
        self.binary_targets = binary_targets
        widths = [channels, *[hidden] * convs]
        self.convs = nn.ModuleList(Conv2d(width, hidden, 3, padding=1) for width in widths[:-1])
        self.upsample = nn.ConvTranspose2d(widths[-1], hidden, 2, stride=2)
        self.logits = nn.Conv2d(hidden, num_classes, 1)
        for layer in (*self.convs, self.upsample, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Pyramid, boxes: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """Regions boxes [R, 4] of images [R] with classes labels [R] to mask logits [R, 28, 28]."""
        return self.logits_of(self.convolve(self.pool(pyramid, boxes, image)), labels)

    def pool(self, pyramid: Pyramid, boxes: Tensor, image: Tensor) -> Tensor:
        """[R, C, pool_size, pool_size]."""
        return roi_align(
            pyramid, boxes, image, size=self.pool_size, samples=self.samples, aligned=self.aligned
        )

    def convolve(self, x: Tensor) -> Tensor:
        """Pooled features [R, C, S, S] to features of all layers' width."""
        for conv in self.convs:
            x = F.relu_(conv(x))
        return x

    def logits_of(self, x: Tensor, labels: Tensor) -> Tensor:
        """What the convolutions gave, [R, C, S, S], to logits of one class each, labels [R]: [R, 2 * S, 2 * S]."""
        # A 2×2 deconvolution of stride 2 does not overlap: it gives each pixel four of its own, by a matrix product.
        _, channels, size, _ = x.shape
        hidden = self.upsample.out_channels
        pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
        weight = self.upsample.weight.permute(2, 3, 1, 0).reshape(4 * hidden, channels)
        x = F.relu_(linear(pixels, weight, self.upsample.bias.repeat(4)))
        kernel = self.logits.weight.flatten(1)[labels].unsqueeze(-1)
        bias = self.logits.bias[labels].view(-1, 1, 1)
        x = torch.bmm(x.view(-1, 4 * size * size, hidden), kernel) + bias
        return x.view(-1, size, size, 2, 2).permute(0, 1, 3, 2, 4).reshape(-1, 2 * size, 2 * size)

    def losses(self, pyramid: Pyramid, sample: RoISample, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Binary cross-entropy of the positive regions' masks, each cut out of its object's.

        Args:
            pyramid: maps of the images.
            sample: the regions to learn from.
            targets: the objects of each image, with masks.

        Returns:
            ``loss_mask``, a number in float32; 0 without positive regions.
        """
        (positive,) = positions(sample.positive(self.num_classes))
        pooled = self.pool(pyramid, sample.boxes[positive], sample.image[positive])
        return self.losses_of(self.convolve(pooled), positive, sample, targets)

    def losses_of(
        self, x: Tensor, positive: Tensor, sample: RoISample, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """As ``losses``, from what the convolutions gave for the positive regions."""
        logits = full(self.logits_of(x, sample.labels[positive]))
        goal = mask_targets(
            targets,
            sample.boxes[positive],
            sample.image[positive],
            sample.object[positive],
            logits.shape[-1],
            binary=self.binary_targets,
        )
        return {"loss_mask": mask_loss(logits, goal)}

    def predict(self, pyramid: Pyramid, found: Sequence[Detections]) -> list[Detections]:
        """The detections with mask probabilities [N, 28, 28]."""
        boxes, image, labels = regions_of(found)
        return with_masks(found, full(self(pyramid, boxes, image, labels)).sigmoid())


def mask_loss(logits: Tensor, goal: Tensor) -> Tensor:
    """The mean binary cross-entropy of logits [R, M, M], 0 for no region: a graph has no branch for that."""
    return F.binary_cross_entropy_with_logits(logits, goal, reduction="sum") / max(logits.numel(), 1)


def regions_of(found: Sequence[Detections]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [R, 4], images [R] and labels [R] of the detections of all images."""
    if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
        torch._dynamo.graph_break()  # what follows is shaped by a sum of numbers that a graph does not know
    counts = [len(detections.boxes) for detections in found]
    boxes = torch.cat([detections.boxes for detections in found])
    labels = torch.cat([detections.labels for detections in found])
    image = torch.arange(len(found), device=boxes.device).repeat_interleave(
        torch.tensor(counts).to(boxes.device, non_blocking=True), output_size=sum(counts)
    )
    return boxes, image, labels


def with_masks(found: Sequence[Detections], masks: Tensor) -> list[Detections]:
    """The detections of all images with their masks [R, M, M]."""
    parts = masks.split([len(detections.boxes) for detections in found])
    return [detections._replace(masks=part) for detections, part in zip(found, parts, strict=True)]


@torch.no_grad()
def mask_targets(
    targets: Sequence[Target],
    boxes: Tensor,
    image: Tensor,
    objects: Tensor,
    size: int,
    *,
    binary: bool = False,
) -> Tensor:
    """Masks of objects [R] of images [R], cut out by boxes [R, 4] and resized to [R, size, size], in [0, 1].

    By RoIAlign on the mask, as torchvision's ``project_masks_on_boxes``. ``binary``: aligned, of boxes cut to the
    image, and cut at 0.5, as mmdet/structures/mask/mask_target.py.
    """
    counts = torch.tensor([0, *(len(target.boxes) for target in targets[:-1])])
    row = counts.cumsum(0).to(boxes.device, non_blocking=True)[image] + objects
    masks = torch.cat([target.masks for target in targets if target.masks is not None])
    if binary:
        height, width = masks.shape[1:]
        boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2).to(boxes, non_blocking=True))
    regions = torch.cat([row.unsqueeze(1).to(boxes.dtype), boxes], dim=1)
    cut = crop_and_resize(masks.unsqueeze(1).to(boxes.dtype), regions, size, aligned=binary)
    return (cut >= 0.5).to(boxes.dtype).squeeze(1) if binary else cut.squeeze(1)
