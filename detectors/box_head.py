"""The second stage of Faster R-CNN: classify proposals and refine their boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.boxes import IGNORED, BoxCoder, clip, match_boxes
from detectors.cpu import linear, nms
from detectors.layers import Linear
from detectors.precision import full
from detectors.pyramid import Pyramid, roi_align
from detectors.rpn import Proposals
from detectors.sampling import BalancedSampler
from detectors.structures import Detections, GroundTruth

#: The label of a region that is none, which ``F.cross_entropy`` ignores.
PADDING = -100


class RoISample(NamedTuple):
    """Regions that the second stage learns from, all images together.

    boxes: [R, 4]. image: [R], the region's image; slot: [R], counts the image's regions.
    object: [R], index among the image's objects. is_object: bool [R], the region is an object's own box.
    labels: [R], the object's class, K for background, ``PADDING`` for none: only a CPU drops these, where they would
    cost time; elsewhere the host would have to wait for their number. goal: [R, 4], the object's box; the region itself
    for background.
    """

    boxes: Tensor
    image: Tensor
    slot: Tensor
    is_object: Tensor
    object: Tensor
    labels: Tensor
    goal: Tensor

    def positive(self, num_classes: int) -> Tensor:
        """Bool [R], whether a region has an object."""
        return (self.labels >= 0) & (self.labels < num_classes)


class BoxHead(nn.Module):
    """Two fully connected layers on 7×7 pooled features, then class scores and box offsets, by default of every class.

    Classes are 0..K-1 and background is K, the last. Settings and results as torchvision's ``RoIHeads`` with
    ``TwoMLPHead`` and ``FastRCNNPredictor``, or with others those of ``Shared2FCBBoxHead`` in
    mmdet/models/roi_heads/bbox_heads/convfc_bbox_head.py.

    Args:
        channels: of the pyramid.
        num_classes: without the background.
        hidden: width of both layers.
        pool_size: side of the pooled features.
        iou_threshold: overlap from which a region is an object's.
        score_threshold: lowest score of a detection.
        nms_threshold: overlap from which a detection is a duplicate.
        max_detections: of an image.
        class_agnostic: whether all classes share one box.
        coder_weights: as of ``BoxCoder``.
        forced: whether the regions that overlap an object most are its own if ``iou_threshold`` allows, though they
            may overlap another one more.
        min_size: detections not larger are dropped, in pixels.
        beta: of smooth L1, 0 for L1.
        samples: as for ``roi_align``.
        aligned: as for ``roi_align``.
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
        class_agnostic: bool = False,
        coder_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        forced: bool = False,
        min_size: float = 1e-2,
        beta: float = 1 / 9,
        samples: int = 2,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pool_size = pool_size
        self.iou_threshold = iou_threshold
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.boxes_per_region = 1 if class_agnostic else num_classes
        self.forced = forced
        self.min_size = min_size
        self.beta = beta
        self.samples = samples
        self.aligned = aligned
        self.coder = BoxCoder(coder_weights)
        self.sampler = BalancedSampler(512, 0.25)
        self._make_layers(channels, hidden)

    def _make_layers(self, channels: int, hidden: int) -> None:
        # A convolution over the whole pooled map, that is a linear layer; as a convolution its weight follows the
        # memory format of the features, and neither is ever rearranged.
        self.fc1 = nn.Conv2d(channels, hidden, self.pool_size)
        self.fc2 = Linear(hidden, hidden)
        self._make_predictors(hidden)
        for layer in (self.fc1, self.fc2):
            nn.init.zeros_(layer.bias)

    def _make_predictors(self, hidden: int) -> None:
        self.classes = Linear(hidden, self.num_classes + 1)
        self.deltas = Linear(hidden, 4 * self.boxes_per_region)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.classes, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Pyramid, boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classes and boxes of regions.

        Args:
            pyramid: maps of the images.
            boxes: [R, 4] in input pixels.
            image: int64 [R], the image of each region.

        Returns:
            Class logits [R, K + 1], and offsets [R, K, 4], or [R, 1, 4] where all classes share one box.
        """
        return self.predict(self.pool(pyramid, boxes, image))

    def pool(self, pyramid: Pyramid, boxes: Tensor, image: Tensor) -> Tensor:
        """[R, C, pool_size, pool_size]."""
        return roi_align(
            pyramid, boxes, image, size=self.pool_size, samples=self.samples, aligned=self.aligned
        )

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features [R, C, S, S] to class logits [R, K + 1] and offsets [R, K or 1, 4]."""
        weight = self.fc1.weight.permute(0, 2, 3, 1).flatten(1)
        hidden = F.relu_(linear(pooled.permute(0, 2, 3, 1).flatten(1), weight, self.fc1.bias))
        hidden = F.relu_(self.fc2(hidden))
        return self.classes(hidden), self.deltas(hidden).unflatten(1, (-1, 4))

    # -- training ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, proposals: Proposals, truth: GroundTruth) -> RoISample:
        """Proposals and the objects themselves, matched to the objects and sampled."""
        boxes = torch.cat([proposals.boxes, truth.boxes], dim=1)
        valid = torch.cat([proposals.valid, truth.valid], dim=1)
        index, role = match_boxes(
            truth,
            boxes,
            positive=self.iou_threshold,
            negative=self.iou_threshold,
            low_quality=self.forced,
            forced_iou=self.iou_threshold,
            forced_to_object=True,
        )
        sample = self.sampler(role.where(valid, IGNORED))
        boxes = boxes.gather(1, sample.index.unsqueeze(-1).expand(-1, -1, 4))
        index = index.gather(1, sample.index)
        labels = truth.labels.gather(1, index).masked_fill(~sample.positive, self.num_classes)
        labels = labels.masked_fill(~sample.valid, PADDING)
        goal = truth.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        goal = torch.where(sample.positive.unsqueeze(-1), goal, boxes)
        is_object = sample.index >= proposals.boxes.shape[1]
        taken = sample.valid if boxes.device.type == "cpu" else torch.ones(labels.shape, dtype=torch.bool)
        image, slot = (one.to(boxes.device, non_blocking=True) for one in taken.nonzero(as_tuple=True))
        return RoISample(
            boxes[image, slot],
            image,
            slot,
            is_object[image, slot],
            index[image, slot],
            labels[image, slot],
            goal[image, slot],
        )

    def losses(self, pyramid: Pyramid, sample: RoISample) -> dict[str, Tensor]:
        """Cross-entropy of the classes and smooth L1 of the positive regions' offsets, both per sampled region.

        Args:
            pyramid: maps of the images.
            sample: the regions to learn from.

        Returns:
            ``loss_classifier`` and ``loss_box_reg``, numbers in float32.
        """
        return self.losses_of(*self(pyramid, sample.boxes, sample.image), sample)

    def losses_of(self, logits: Tensor, deltas: Tensor, sample: RoISample) -> dict[str, Tensor]:
        """As ``losses``, from what ``forward`` gave for the sample's regions."""
        logits, deltas = full(logits), full(deltas)
        count = (sample.labels >= 0).sum().clamp(min=1)
        positive = sample.positive(self.num_classes)
        of_class = sample.labels.clamp(0, self.boxes_per_region - 1).view(-1, 1, 1).expand(-1, 1, 4)
        goal = self.coder.encode(sample.goal, sample.boxes)
        goal = torch.where(positive.unsqueeze(-1), goal, 0.0)
        loss_deltas = F.smooth_l1_loss(
            deltas.gather(1, of_class).squeeze(1), goal, beta=self.beta, reduction="none"
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
        return self.detections(*self(pyramid, boxes, image), boxes, image, image_sizes)

    def detections(
        self, logits: Tensor, deltas: Tensor, boxes: Tensor, image: Tensor, image_sizes: Tensor
    ) -> list[Detections]:
        """As ``detect``, from what ``forward`` gave for regions boxes [R, 4] of images [R]."""
        scores = full(logits).softmax(dim=-1)[:, :-1]
        region, label = (scores > self.score_threshold).nonzero(as_tuple=True)
        image = image[region]
        boxes = self.coder.decode(deltas[region, label.clamp(max=self.boxes_per_region - 1)], boxes[region])
        boxes = clip(boxes.unsqueeze(1), image_sizes[image]).squeeze(1)
        scores = scores[region, label]
        large = ((boxes[:, 2:] - boxes[:, :2]) > self.min_size).all(dim=1)
        found = []
        for index in range(len(image_sizes)):
            here = (large & (image == index)).nonzero().squeeze(1)
            keep = nms(boxes[here], scores[here], label[here], self.nms_threshold)
            keep = here[keep[: self.max_detections]]
            found.append(Detections(boxes[keep], scores[keep], label[keep]))
        return found
