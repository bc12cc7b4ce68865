"""The second stage of Faster R-CNN: classify proposals and refine their boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from detectors.boxes import IGNORED, BoxCoder, clip, match, pairwise_iou
from detectors.pyramid import Pyramid, roi_align
from detectors.rpn import Proposals
from detectors.sampling import BalancedSampler
from detectors.structures import Detections, GroundTruth

MIN_SIZE = 1e-2  # smaller detections are dropped


class RoISample(NamedTuple):
    """Regions that the second stage learns from, all images together.

    boxes: [R, 4]. image: [R], the region's image. object: [R], index among the image's objects.
    labels: [R], the object's class, K for background. goal: [R, 4], the object's box; the region itself for background.
    """

    boxes: Tensor
    image: Tensor
    object: Tensor
    labels: Tensor
    goal: Tensor


class BoxHead(nn.Module):
    """Two fully connected layers on 7×7 pooled features, then class scores and class-specific box offsets.

    Classes are 0..K-1 and background is K, the last. Settings and results as torchvision's ``RoIHeads`` with
    ``TwoMLPHead`` and ``FastRCNNPredictor``.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        hidden: int = 1024,
        pool_size: int = 7,
        iou_threshold: float = 0.5,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pool_size = pool_size
        self.iou_threshold = iou_threshold
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.sampler = BalancedSampler(512, 0.25)
        # A convolution over the whole pooled map, that is a linear layer; as a convolution its weight follows the
        # memory format of the features, and neither is ever rearranged.
        self.fc1 = nn.Conv2d(channels, hidden, pool_size)
        self.fc2 = nn.Linear(hidden, hidden)
        self.classes = nn.Linear(hidden, num_classes + 1)
        self.deltas = nn.Linear(hidden, 4 * num_classes)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc1, self.fc2, self.classes, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Pyramid, boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Regions boxes [R, 4] of images [R] to class logits [R, K + 1] and offsets [R, K, 4]."""
        pooled = roi_align(pyramid, boxes, image, size=self.pool_size)
        weight = self.fc1.weight.permute(0, 2, 3, 1).flatten(1)
        hidden = F.relu_(F.linear(pooled.permute(0, 2, 3, 1).flatten(1), weight, self.fc1.bias))
        hidden = F.relu_(self.fc2(hidden))
        return self.classes(hidden), self.deltas(hidden).unflatten(1, (-1, 4))

    # -- training ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, proposals: Proposals, truth: GroundTruth) -> RoISample:
        """Proposals and the objects themselves, matched to the objects and sampled."""
        boxes = torch.cat([proposals.boxes, truth.boxes], dim=1)
        valid = torch.cat([proposals.valid, truth.valid], dim=1)
        index, role = match(
            pairwise_iou(truth.boxes, boxes),
            truth.valid,
            positive=self.iou_threshold,
            negative=self.iou_threshold,
            low_quality=False,
        )
        sample = self.sampler(role.where(valid, IGNORED))
        boxes = boxes.gather(1, sample.index.unsqueeze(-1).expand(-1, -1, 4))
        index = index.gather(1, sample.index)
        labels = truth.labels.gather(1, index).masked_fill(~sample.positive, self.num_classes)
        goal = truth.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        goal = torch.where(sample.positive.unsqueeze(-1), goal, boxes)
        image, slot = sample.valid.nonzero(as_tuple=True)
        return RoISample(
            boxes[image, slot], image, index[image, slot], labels[image, slot], goal[image, slot]
        )

    def losses(self, pyramid: Pyramid, sample: RoISample) -> dict[str, Tensor]:
        """Cross-entropy of the classes, smooth L1 of the offsets of positive regions, both per sampled region."""
        logits, deltas = self(pyramid, sample.boxes, sample.image)
        count = max(1, len(sample.boxes))
        positive = sample.labels < self.num_classes
        of_class = sample.labels.clamp(max=self.num_classes - 1).view(-1, 1, 1).expand(-1, 1, 4)
        goal = self.coder.encode(sample.goal, sample.boxes)
        goal = torch.where(positive.unsqueeze(-1), goal, 0.0)
        loss_deltas = F.smooth_l1_loss(
            deltas.gather(1, of_class).squeeze(1), goal, beta=1 / 9, reduction="none"
        ).sum(-1)
        return {
            "loss_classifier": F.cross_entropy(logits, sample.labels, reduction="sum") / count,
            "loss_box_reg": (loss_deltas * positive).sum() / count,
        }

    # -- inference -----------------------------------------------------------------------------------------------

    def detect(self, pyramid: Pyramid, proposals: Proposals, image_sizes: Tensor) -> list[Detections]:
        """Detections of each image in input pixels, without masks."""
        image, slot = proposals.valid.nonzero(as_tuple=True)
        boxes = proposals.boxes[image, slot]
        logits, deltas = self(pyramid, boxes, image)
        scores = logits.softmax(dim=-1)[:, :-1]
        region, label = (scores > self.score_threshold).nonzero(as_tuple=True)
        image = image[region]
        boxes = self.coder.decode(deltas[region, label], boxes[region])
        boxes = clip(boxes.unsqueeze(1), image_sizes[image]).squeeze(1)
        scores = scores[region, label]
        large = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIZE).all(dim=1)
        found = []
        for index in range(len(proposals.boxes)):
            here = (large & (image == index)).nonzero().squeeze(1)
            keep = batched_nms(boxes[here], scores[here], label[here], self.nms_threshold)
            keep = here[keep[: self.max_detections]]
            found.append(Detections(boxes[keep], scores[keep], label[keep]))
        return found
