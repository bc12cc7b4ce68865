"""Region proposal network (Ren et al. 2015, arXiv:1506.01497) on the maps of a feature pyramid, or on a single one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.anchors import pyramid_anchors
from detectors.boxes import IGNORED, BoxCoder, clip, match_boxes
from detectors.cpu import linear, nms
from detectors.cpu.operators import MANY
from detectors.layers import Conv2d
from detectors.precision import full
from detectors.pyramid import Pyramid
from detectors.sampling import BalancedSampler
from detectors.structures import GroundTruth


class Proposals(NamedTuple):
    """Per image the proposals by falling score, padded: boxes [B, P, 4], valid bool [B, P], scores [B, P] or None."""

    boxes: Tensor
    valid: Tensor
    scores: Tensor | None = None

    @classmethod
    def from_boxes(cls, boxes: Sequence[Tensor]) -> Proposals:
        """Pad boxes [P_i, 4] of each image to the longest."""
        padded = nn.utils.rnn.pad_sequence(list(boxes), batch_first=True)
        counts = torch.tensor([len(image) for image in boxes]).to(padded.device, non_blocking=True)
        return cls(padded, torch.arange(padded.shape[1], device=padded.device) < counts[:, None])


class RPN(nn.Module):
    """Proposals from every level, and their loss.

    Settings and results as torchvision's ``RegionProposalNetwork``, or with others those of
    mmdet/models/dense_heads/rpn_head.py.

    The loss looks at ``sampler.size`` anchors per image of the many thousands that there are. So the dense pass
    that makes proposals, which gradients never enter, runs without autograd, and ``losses`` computes the head once
    more at the sampled positions alone. Gradients are the same; the backward pass of the dense 3×3 convolution and
    its stored activations are saved.

    Args:
        channels: of the pyramid.
        scales: sides of the square anchors of each level, in pixels.
        ratios: height over width of the anchors.
        pre_nms: proposals per level before the suppression of duplicates, (training, inference).
        post_nms: proposals per image after it, (training, inference).
        nms_threshold: overlap from which a proposal is a duplicate.
        positive_iou: overlap from which an anchor is an object's.
        negative_iou: overlap below which it is background.
        forced_iou: as for ``match``.
        forced_to_object: as for ``match``.
        least_positives: as in ``Conventions``.
        rounded_anchors: as for ``pyramid_anchors``.
        strides: as for ``pyramid_anchors``.
        inside_only: whether the loss ignores anchors that are partly outside their image.
        min_size: proposals not larger are dropped, in pixels.
        beta: of smooth L1, 0 for L1.
    """

    def __init__(
        self,
        channels: int,
        *,
        scales: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,)),
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (2000, 1000),
        nms_threshold: float = 0.7,
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        forced_iou: float = 0.0,
        forced_to_object: bool = False,
        least_positives: int = 0,
        rounded_anchors: bool = True,
        strides: tuple[int, ...] | None = None,
        inside_only: bool = False,
        min_size: float = 1e-3,
        beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        self.scales = scales
        self.ratios = ratios
        self.anchors_per_position = len(ratios) * len(scales[0])
        self.pre_nms = pre_nms
        self.post_nms = post_nms
        self.nms_threshold = nms_threshold
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.forced_iou = forced_iou
        self.forced_to_object = forced_to_object
        self.least_positives = least_positives
        self.rounded_anchors = rounded_anchors
        self.strides = strides
        self.inside_only = inside_only
        self.min_size = min_size
        self.beta = beta
        self.coder = BoxCoder()
        self.sampler = BalancedSampler(256, 0.5)
        self.conv = Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, self.anchors_per_position, 1)
        self.deltas = nn.Conv2d(channels, 4 * self.anchors_per_position, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def anchors(self, pyramid: Pyramid, image_size: tuple[int, int]) -> Tensor:
        """[N, 4], for a padded image of ``image_size`` (height, width)."""
        return pyramid_anchors(
            self.scales,
            self.ratios,
            pyramid.grids,
            image_size,
            pyramid.maps[0].device,
            rounded=self.rounded_anchors,
            strides=self.strides,
        )

    @torch.no_grad()
    def dense(self, pyramid: Pyramid) -> list[tuple[Tensor, Tensor]]:
        """Per level: objectness [B, H * W * A] (logits) and offsets [B, H * W * A, 4], in the order of the anchors."""
        weight = torch.cat([self.objectness.weight, self.deltas.weight])
        bias = torch.cat([self.objectness.bias, self.deltas.bias])
        count = self.anchors_per_position
        levels = []
        for feature in pyramid.maps:
            out = F.conv2d(F.relu_(self.conv(feature.detach())), weight, bias).permute(0, 2, 3, 1)
            batch_size = out.shape[0]
            levels.append(
                (out[..., :count].reshape(batch_size, -1), out[..., count:].reshape(batch_size, -1, 4))
            )
        return levels

    @torch.no_grad()
    def propose(self, pyramid: Pyramid, image_sizes: Tensor, image_size: tuple[int, int]) -> Proposals:
        """image_sizes: [B, 2] (height, width) without padding; image_size: with it."""
        anchors = self.anchors(pyramid, image_size)
        phase = 0 if self.training else 1
        boxes, scores, levels = [], [], []
        start = 0
        for level, (objectness, deltas) in enumerate(self.dense(pyramid)):
            count = objectness.shape[1]
            score, index = objectness.topk(min(self.pre_nms[phase], count), dim=1)
            chosen = deltas.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
            boxes.append(self.coder.decode(chosen, anchors[start : start + count][index]))
            scores.append(score)
            levels.append(torch.full_like(index[0], level))
            start += count
        found = clip(torch.cat(boxes, dim=1), image_sizes)
        score = full(torch.cat(scores, dim=1)).sigmoid()
        # What is too small stays, worse than all others: to drop it, the host would have to know how many there are.
        large = ((found[..., 2:] - found[..., :2]) > self.min_size).all(dim=-1)
        found, score = found.where(large.unsqueeze(-1), 0.0), score.where(large, -1.0)
        together = 1 if found.device.type == "cpu" else max(1, MANY["cuda"] // found.shape[1])
        limit = min(self.post_nms[phase], found.shape[1])
        kept = [
            self._suppress(*part, torch.cat(levels), limit)
            for part in zip(found.split(together), score.split(together), strict=True)
        ]
        return Proposals(*(torch.cat(one) for one in zip(*kept, strict=True)))

    def _suppress(self, boxes: Tensor, scores: Tensor, levels: Tensor, limit: int) -> tuple[Tensor, ...]:
        """The best of each image that are no duplicates, of [B, P, 4], [B, P] and levels [P]; fields of Proposals."""
        count, places = scores.shape
        number = torch.arange(count, device=boxes.device)
        groups = levels + (levels.max() + 1) * number[:, None]
        offered = boxes.flatten(0, 1), scores.flatten(), groups.flatten()
        if (
            boxes.device.type == "cpu" and not torch.compiler.is_compiling()
        ):  # it knows at once how many are left
            large = (offered[1] >= 0).nonzero().squeeze(1)
            kept = large[nms(*(one[large] for one in offered), self.nms_threshold)]
        else:
            kept = nms(*offered, self.nms_threshold)
        image = (kept // places).unsqueeze(1)
        rank = (image == number).cumsum(0).gather(1, image) - 1  # among the image's own
        slot = torch.where(rank < limit, image * limit + rank, count * limit).squeeze(1)
        table = torch.cat([boxes, scores.unsqueeze(-1)], dim=-1).flatten(0, 1)
        best = table.new_full((count * limit + 1, 5), -1.0)
        best[slot] = table[kept]
        best = best[:-1].view(count, limit, 5)
        valid = best[..., 4] >= 0
        return best[..., :4].where(valid.unsqueeze(-1), 0.0), valid, best[..., 4]

    def losses(
        self, pyramid: Pyramid, truth: GroundTruth, image_sizes: Tensor, image_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Binary cross-entropy of the sampled anchors' objectness and smooth L1 of the positive ones' offsets.

        Args:
            pyramid: maps of the images.
            truth: the objects of the batch.
            image_sizes: [B, 2], height and width without padding.
            image_size: height and width with padding.

        Returns:
            ``loss_objectness`` and ``loss_rpn_box_reg``, numbers in float32.
        """
        anchors = self.anchors(pyramid, image_size)
        inside = None
        if self.inside_only:
            limits = image_sizes.flip(-1).unsqueeze(1)
            inside = (anchors[:, :2] >= 0).all(-1) & (anchors[:, 2:] < limits).all(-1)
        index, role = match_boxes(
            truth,
            anchors,
            counted=inside,
            positive=self.positive_iou,
            negative=self.negative_iou,
            low_quality=True,
            forced_iou=self.forced_iou,
            forced_to_object=self.forced_to_object,
        )
        sample = self.sampler(role if inside is None else role.where(inside, IGNORED))
        objectness, deltas = (full(one) for one in self.at(pyramid, sample.index))
        anchors = anchors[sample.index]
        objects = index.gather(1, sample.index)
        boxes = truth.boxes.gather(1, objects.unsqueeze(-1).expand(-1, -1, 4))
        goal = self.coder.encode(torch.where(sample.positive.unsqueeze(-1), boxes, anchors), anchors)
        missing = (self.least_positives - sample.positive.sum(dim=1)).clamp(min=0)
        count = (sample.valid.sum() + missing.sum()).clamp(min=1)
        loss_objectness = F.binary_cross_entropy_with_logits(
            objectness,
            sample.positive.to(objectness.dtype),
            sample.valid.to(objectness.dtype),
            reduction="sum",
        )
        loss_deltas = F.smooth_l1_loss(deltas, goal, beta=self.beta, reduction="none").sum(-1)
        return {
            "loss_objectness": loss_objectness / count,
            "loss_rpn_box_reg": (loss_deltas * sample.positive).sum() / count,
        }

    def at(self, pyramid: Pyramid, index: Tensor) -> tuple[Tensor, Tensor]:
        """The head at some anchors only, with gradient. index: [B, S]. Returns objectness [B, S], offsets [B, S, 4].

        The 3×3 convolution is a matrix product with the 3×3 neighbourhoods of the anchors' positions, read from the
        pyramid's table; neighbours outside the map are zero.
        """
        position, anchor = index // self.anchors_per_position, index % self.anchors_per_position
        neighbours, inside = self._neighbours(pyramid, position)
        patches = F.embedding(neighbours, pyramid.table) * inside.unsqueeze(-1)
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)
        hidden = F.relu_(linear(patches.view(-1, weight.shape[1]), weight, self.conv.bias))
        objectness = linear(hidden, self.objectness.weight.flatten(1), self.objectness.bias)
        deltas = linear(hidden, self.deltas.weight.flatten(1), self.deltas.bias).unflatten(1, (-1, 4))
        row = torch.arange(len(hidden), device=hidden.device)
        anchor = anchor.flatten()
        return objectness[row, anchor].view(index.shape), deltas[row, anchor].view(*index.shape, 4)

    @staticmethod
    def _neighbours(pyramid: Pyramid, position: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table around positions [B, S], which are counted over the levels of one image.

        Returns rows [B, S, 9] and whether they are inside the map.
        """
        height, width, first = pyramid.geometry.unbind(-1)
        ends = (height * width).cumsum(0)
        level = torch.bucketize(position, ends, right=True)
        height, width, first = height[level], width[level], first[level]
        within = position - (ends[level] - height * width)
        y, x = within // width, within % width
        image = torch.arange(position.shape[0], device=position.device)[:, None]
        step = torch.arange(-1, 2, device=position.device)
        near_y = y.unsqueeze(-1) + step.repeat_interleave(3)
        near_x = x.unsqueeze(-1) + step.repeat(3)
        height, width = height.unsqueeze(-1), width.unsqueeze(-1)
        inside = (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        row = (first + image * height.squeeze(-1) * width.squeeze(-1)).unsqueeze(-1) + near_y * width + near_x
        return torch.where(inside, row, 0), inside
