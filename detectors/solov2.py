"""SOLOv2 (Wang et al. 2020, arXiv:2003.10152): instance masks without boxes.

Each cell of a few grids says which class of object has its centre there, and gives the weights of a 1×1 convolution
that, applied to one mask feature map of the image, draws the object's mask. Results, losses and gradients are those
of mmdet/models/dense_heads/solov2_head.py (mmdetection 3.3.0) and of ppdet/modeling/heads/solov2_head.py and
losses/solov2_loss.py (PaddleDetection 2.6.0), which average the mask loss in two ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.deformable import DeformConvNorm
from detectors.drop_block import DropBlock
from detectors.layers import Conv2d, ConvNorm
from detectors.matrix_nms import keep_local_peaks, matrix_nms
from detectors.parameter_rules import Rule
from detectors.precision import full
from detectors.solov2_masks import (
    PIXELS_AT_ONCE,
    Prediction,
    by_cell,
    class_loss,
    draw_masks,
    mask_extents,
    mask_losses,
)
from detectors.solov2_targets import Level, assign, with_pairs
from detectors.structures import Detections, Target


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalisation in 32 groups."""
    return nn.GroupNorm(32, channels)


def coordinates(feature: Tensor) -> Tensor:
    """Positions x and y, from -1 to 1, [1, 2, H, W] for a feature [B, C, H, W]."""
    height, width = feature.shape[-2:]
    x = torch.linspace(-1, 1, width, dtype=feature.dtype, device=feature.device)
    y = torch.linspace(-1, 1, height, dtype=feature.dtype, device=feature.device)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).unsqueeze(0)


def with_coordinates(feature: Tensor, where: Tensor) -> Tensor:
    """[B, C, H, W] and coordinates [1, 2, H, W] to [B, C + 2, H, W], in the memory format of the feature.

    `torch.cat` keeps it only if all parts have it, and a convolution of another format than its weight's takes twice
    as long.
    """
    channels_last = feature.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    where = where.expand(len(feature), -1, -1, -1).contiguous(memory_format=memory_format)
    return torch.cat([feature, where], dim=1)


def double(feature: Tensor) -> Tensor:
    """[B, C, H, W] to [B, C, 2H, 2W]."""
    return F.interpolate(feature, scale_factor=2, mode="bilinear", align_corners=False)


def normal(*layers: nn.Module) -> None:
    """Weights of all convolutions in the layers from a normal distribution of 0.01, no bias."""
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class MaskFeatures(nn.Module):
    """One feature map of stride 4 from the pyramid's four levels of strides 4 to 32.

    Each level is convolved and doubled until it has stride 4 (the coarsest also sees where it is), and the sum of all
    goes through a 1×1 convolution.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        inputs = (
            [in_channels],
            [in_channels],
            [in_channels, channels],
            [in_channels + 2, channels, channels],
        )
        self.branches = nn.ModuleList(
            nn.ModuleList(ConvNorm(width, channels, 3, norm=group_norm) for width in widths)
            for widths in inputs
        )
        self.output = ConvNorm(channels, out_channels, 1, norm=group_norm)
        normal(self)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps [B, C, H / 4, W / 4] to [B, C, H / 32, W / 32] to [B, out_channels, H / 4, W / 4]."""
        finest, *coarser, coarsest = levels
        maps = [*coarser, with_coordinates(coarsest, coordinates(coarsest))]
        # The last doubling of the three coarser levels is one: interpolation of a sum is the sum of interpolations.
        total: Tensor | None = None
        for x, (*convs, last) in zip(maps, self.branches[1:], strict=True):
            for conv in convs:
                x = double(F.relu_(conv(x)))
            x = F.relu_(last(x))
            total = x if total is None else total + x
        assert total is not None
        (conv,) = self.branches[0]
        return F.relu_(self.output(double(total).add_(F.relu_(conv(finest)))))


class GridHead(nn.Module):
    """Classes and mask kernels of the cells of each level's grid; all levels share the weights.

    ``convs``: convolutions before the last one, in the branch of the classes and in that of the kernels, which also
    sees where it is. ``deformable``: whether the last of these is, and ``deformable_bias`` whether that one has a bias.
    ``drop_block``: follows them while training.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        kernel_channels: int,
        *,
        convs: int,
        grids: Sequence[int],
        deformable: bool = False,
        deformable_bias: bool = False,
        drop_block: DropBlock | None = None,
    ) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.class_convs = _convs(in_channels, channels, convs)
        self.kernel_convs = _convs(in_channels + 2, channels, convs)
        if deformable:
            for branch in (self.class_convs, self.kernel_convs):
                branch[-1] = DeformConvNorm(channels, channels, norm=group_norm, bias=deformable_bias)
        self.drop_block = drop_block
        self.classes = Conv2d(channels, num_classes, 3, padding=1)
        self.kernels = Conv2d(channels, kernel_channels, 3, padding=1)
        normal(self)
        for module in self.modules():
            if isinstance(module, DeformConvNorm):
                module.reset_offset()
        nn.init.constant_(self.classes.bias, -math.log(99))  # a hundredth of all cells are positive

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Five maps of strides 4 to 64 to class logits [B, K, S, S] and kernels [B, D, S, S] of each level."""
        finest, *between, coarsest = levels
        finest = F.interpolate(finest, scale_factor=0.5, mode="bilinear", align_corners=False)
        coarsest = F.interpolate(coarsest, size=between[-1].shape[-2:], mode="bilinear", align_corners=False)
        classes, kernels = [], []
        for feature, cells in zip((finest, *between, coarsest), self.grids, strict=True):
            of_class = _resize(feature, cells)
            of_kernel = with_coordinates(of_class, _resize(coordinates(feature), cells))
            for conv in self.class_convs:
                of_class = F.relu_(conv(of_class))
            for conv in self.kernel_convs:
                of_kernel = F.relu_(conv(of_kernel))
            if self.drop_block is not None:
                of_class, of_kernel = self.drop_block(of_class), self.drop_block(of_kernel)
            classes.append(self.classes(of_class))
            kernels.append(self.kernels(of_kernel))
        return classes, kernels


def _convs(in_channels: int, channels: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(
        ConvNorm(before, after, 3, norm=group_norm)
        for before, after in pairwise([in_channels, *[channels] * count])
    )


def _resize(feature: Tensor, cells: int) -> Tensor:
    return F.interpolate(feature, size=(cells, cells), mode="bilinear", align_corners=False)


class SOLOv2(nn.Module):
    """SOLOv2 on a backbone with a pyramid of five levels.

    All methods take images [B, 3, H, W], normalised and padded right and bottom to multiples of 32, and image_sizes
    int64 [B, 2], the (height, width) of each without padding.

    ``candidate_threshold``: lowest class score of a cell that is looked at (never 0: every candidate draws a mask).
    ``score_threshold``: lowest score after Matrix NMS, in which the ``candidates`` best take part.

    ``drawn_only``: the mask loss is the mean over all pairs of a cell and an object that has a pixel left at stride 4,
    as in PaddleDetection; else its sum over all pairs, divided by the number of positive cells, as in mmdetection.
    ``parameter_rules``: see ``parameter_groups``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        mask_features: MaskFeatures,
        head: GridHead,
        levels: Sequence[Level],
        *,
        candidate_threshold: float = 0.1,
        mask_threshold: float = 0.5,
        candidates: int = 500,
        nms_kernel: str = "gaussian",
        nms_sigma: float = 2.0,
        score_threshold: float = 0.05,
        max_detections: int = 100,
        drawn_only: bool = False,
        parameter_rules: Sequence[Rule] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.mask_features = mask_features
        self.head = head
        self.levels = tuple(levels)
        #: What a loader can do with targets of an image size, so that no step waits for a device.
        self.prepare = partial(with_pairs, levels=self.levels)
        self.num_classes = head.classes.out_channels
        self.candidate_threshold = candidate_threshold
        self.mask_threshold = mask_threshold
        self.candidates = candidates
        self.nms_kernel = nms_kernel
        self.nms_sigma = nms_sigma
        self.score_threshold = score_threshold
        self.max_detections = max_detections
        self.drawn_only = drawn_only
        self.parameter_rules = tuple(parameter_rules)

    def predict(self, images: Tensor) -> Prediction:
        """images: float32 [B, 3, H, W]. ValueError: H or W is no multiple of 32: maps are doubled, and added."""
        height, width = images.shape[2:]
        if height % 32 or width % 32:
            raise ValueError(
                f"SOLOv2 takes images padded to a multiple of 32, not {height} × {width}; "
                "image_sizes tells what is padding"
            )
        maps = self.neck(self.backbone(images))
        classes, kernels = self.head(maps)
        return Prediction(classes, kernels, self.mask_features(maps[:4]))

    # -- training --------------------------------------------------------------------------------------------

    def losses(self, images: Tensor, image_sizes: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:  # noqa: ARG002
        """Loss terms of a batch.

        Args:
            images: float32 [B, 3, H, W], normalised, padded right and bottom.
            image_sizes: int64 [B, 2], height and width of each without padding.
            targets: the objects of each image, with masks.

        Returns:
            A number for each term; their sum is what to minimise.
        """
        image_size = (images.shape[2], images.shape[3])
        assigned = assign(targets, self.levels, self.num_classes, image_size)
        predicted = self.predict(images)
        labels = torch.stack([one.labels for one in assigned])
        positive_cells = (labels < self.num_classes).sum()
        dice, drawn = mask_losses(predicted, assigned, targets)
        mask_loss = (dice * drawn).sum() if self.drawn_only else dice.sum()
        masks = drawn.sum() if self.drawn_only else positive_cells
        return {
            "loss_mask": 3.0 * mask_loss / masks.clamp(min=1),
            "loss_cls": class_loss(by_cell(predicted.classes), labels) / (positive_cells + 1),
        }

    # -- inference -------------------------------------------------------------------------------------------

    def network(self, images: Tensor, image_sizes: Tensor) -> Prediction:  # noqa: ARG002
        """What the network says, before any threshold; images and sizes as for ``losses``."""
        return self.predict(images)

    def postprocess(
        self,
        raw: Prediction,
        image_sizes: Sequence[tuple[int, int]],
        original_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Detections in pixels of the original images; sizes are (height, width).

        SOLOv2 predicts no boxes: those given are the extents of the masks, zeros where no pixel is left of one.
        """
        scores = by_cell([keep_local_peaks(full(logits).sigmoid()) for logits in raw.classes])
        kernels = by_cell(raw.kernels)
        found = []
        for image, (size, original) in enumerate(zip(image_sizes, original_sizes, strict=True)):
            cells, kept, labels = self._candidates(scores[image], kernels[image], raw.features[image])
            masks = self._masks(kernels[image, cells], raw.features[image])
            masks, kept, labels = self._best(masks, kept, labels)
            drawn = draw_masks(masks, self.mask_threshold, size, original)
            found.append(Detections(mask_extents(drawn), kept, labels, drawn))
        return found

    def _candidates(self, scores: Tensor, kernels: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best candidates of an image, best first.

        A score is the class's times the mean probability within the mask, which has to have some area. Masks of some
        candidates at a time: there can be thousands, and the few that are wanted afterwards are drawn again.

        Args:
            scores: [cells, K].
            kernels: [cells, D].
            features: [D, h, w].

        Returns:
            Cells [N], scores [N] and labels [N].
        """
        cell, label = (scores > self.candidate_threshold).nonzero(as_tuple=True)
        smallest = torch.cat([scores.new_full((level.cells**2,), level.min_area) for level in self.levels])
        areas, sums = [], []
        for some in kernels[cell].split(max(1, PIXELS_AT_ONCE // features[0].numel())):
            masks = self._masks(some, features)
            inside = masks > self.mask_threshold
            areas.append(inside.sum(dim=(1, 2)))
            sums.append(masks.mul_(inside).sum(dim=(1, 2)))  # in float32, as they are
        area = torch.cat(areas)
        large = (area > smallest[cell]).nonzero().squeeze(1)
        certainty = torch.cat(sums)[large] / area[large]
        score, order = (scores[cell[large], label[large]] * certainty).sort(descending=True)
        best = large[order[: self.candidates]]
        return cell[best], score[: self.candidates], label[best]

    def _masks(self, kernels: Tensor, features: Tensor) -> Tensor:
        """Kernels [N, D], features [D, h, w] to probabilities [N, h, w]."""
        return full(kernels @ features.flatten(1)).sigmoid_().unflatten(1, features.shape[1:])

    def _best(self, masks: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those candidates that Matrix NMS leaves a score, best first."""
        binary = (masks.flatten(1) > self.mask_threshold).to(masks.dtype)
        scores = matrix_nms(binary, labels, scores, kernel=self.nms_kernel, sigma=self.nms_sigma)
        scores, best = scores.sort(descending=True)
        best = best[: self.max_detections][scores[: self.max_detections] >= self.score_threshold]
        return masks[best], scores[: len(best)], labels[best]
