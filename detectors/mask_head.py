"""The mask branch of Mask R-CNN (He et al. 2017, arXiv:1703.06870)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align as crop_and_resize

from detectors.box_head import RoISample
from detectors.pyramid import Pyramid, roi_align
from detectors.structures import Detections, Target


class MaskHead(nn.Module):
    """Four 3×3 convolutions on 14×14 pooled features, a 2×2 deconvolution, and one 28×28 mask per class.

    Only the mask of one class per region is ever needed, so only that one is computed; for 80 classes this saves 79
    of 80 parts of the last layer and its output. Settings and results as torchvision's ``MaskRCNNHeads`` and
    ``MaskRCNNPredictor``.
    """

    def __init__(self, channels: int, num_classes: int, *, convs: int = 4, pool_size: int = 14) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pool_size = pool_size
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (*self.convs, self.upsample, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Pyramid, boxes: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """Regions boxes [R, 4] of images [R] with classes labels [R] to mask logits [R, 28, 28]."""
        x = roi_align(pyramid, boxes, image, size=self.pool_size)
        for conv in self.convs:
            x = F.relu_(conv(x))
        # A 2×2 deconvolution of stride 2 does not overlap: it gives each pixel four of its own, by a matrix product.
        regions, channels = x.shape[:2]
        size = self.pool_size
        pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
        weight = self.upsample.weight.permute(2, 3, 1, 0).reshape(4 * channels, channels)
        x = F.relu_(F.linear(pixels, weight, self.upsample.bias.repeat(4)))
        kernel = self.logits.weight.flatten(1)[labels].unsqueeze(-1)
        x = torch.bmm(x.view(regions, 4 * size * size, channels), kernel) + self.logits.bias[labels].view(
            -1, 1, 1
        )
        return x.view(-1, size, size, 2, 2).permute(0, 1, 3, 2, 4).reshape(-1, 2 * size, 2 * size)

    def losses(self, pyramid: Pyramid, sample: RoISample, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Binary cross-entropy of the positive regions' masks, each cut out of its object's."""
        positive = (sample.labels < self.num_classes).nonzero().squeeze(1)
        boxes, image = sample.boxes[positive], sample.image[positive]
        logits = self(pyramid, boxes, image, sample.labels[positive])
        if len(positive) == 0:
            return {"loss_mask": logits.sum() * 0}
        goal = mask_targets(targets, boxes, image, sample.object[positive], 2 * self.pool_size)
        return {"loss_mask": F.binary_cross_entropy_with_logits(logits, goal)}

    def predict(self, pyramid: Pyramid, found: Sequence[Detections]) -> list[Detections]:
        """The detections with mask probabilities [N, 28, 28]."""
        counts = [len(detections.boxes) for detections in found]
        boxes = torch.cat([detections.boxes for detections in found])
        labels = torch.cat([detections.labels for detections in found])
        image = torch.arange(len(found), device=boxes.device).repeat_interleave(
            torch.tensor(counts, device=boxes.device), output_size=sum(counts)
        )
        masks = self(pyramid, boxes, image, labels).sigmoid().split(counts)
        return [detections._replace(masks=mask) for detections, mask in zip(found, masks, strict=True)]


@torch.no_grad()
def mask_targets(
    targets: Sequence[Target], boxes: Tensor, image: Tensor, objects: Tensor, size: int
) -> Tensor:
    """Masks of objects [R] of images [R], cut out by boxes [R, 4] and resized to [R, size, size], in [0, 1].

    By RoIAlign on the mask, as torchvision's ``project_masks_on_boxes``.
    """
    counts = torch.tensor([0, *(len(target.boxes) for target in targets[:-1])])
    first = counts.cumsum(0).to(boxes.device, non_blocking=True)
    used, row = torch.unique(first[image] + objects, return_inverse=True)
    masks = torch.cat([target.masks for target in targets if target.masks is not None])
    regions = torch.cat([row.unsqueeze(1).to(boxes.dtype), boxes], dim=1)
    return crop_and_resize(masks[used].unsqueeze(1).to(boxes.dtype), regions, (size, size)).squeeze(1)
