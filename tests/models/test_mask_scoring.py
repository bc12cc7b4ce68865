"""Mask Scoring R-CNN, the example of CONTRIBUTING.md: the overlap it learns, and what that does to a score."""

from __future__ import annotations

import torch

from detectors import Detections, Target, build
from detectors.box_head import RoISample
from detectors.mask_scoring import MaskScoringHead, mask_iou, object_areas
from detectors.pyramid import Pyramid
from detectors.sampling import BalancedSampler

SIZE = 64


def pyramid() -> Pyramid:
    return Pyramid([torch.randn(1, 8, SIZE // stride, SIZE // stride) for stride in (4, 8, 16, 32)])


def head() -> MaskScoringHead:
    torch.manual_seed(0)
    return MaskScoringHead(8, 3, hidden=8, fc=16)


def test_the_overlap_counts_what_lies_outside_of_the_box() -> None:
    masks = torch.zeros(2, 28, 28, dtype=torch.bool)
    masks[:, :14] = True
    goal = torch.ones(2, 28, 28, dtype=torch.bool)
    boxes = torch.tensor([[0.0, 0, 28, 28], [0, 0, 56, 56]])
    # The object fills the box; the second one is twice as large as it.
    found = mask_iou(masks, goal, boxes, torch.tensor([28 * 28, 2 * 56 * 56]))
    torch.testing.assert_close(found, torch.tensor([1 / 2, 1 / 4]))


def test_areas_are_those_of_the_objects_of_each_image() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.uint8)
    masks[0, 0], masks[1, :2], masks[2] = 1, 1, 1
    targets = [
        Target(torch.zeros(1, 4), torch.zeros(1), masks[:1]),
        Target(torch.zeros(2, 4), torch.zeros(2), masks[1:]),
    ]
    image, objects = torch.tensor([1, 0, 1]), torch.tensor([1, 0, 0])
    assert object_areas(targets, image, objects).tolist() == [16, 4, 8]


def test_both_losses_reach_all_parameters() -> None:
    model = head()
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    masks[0, 10:40, 10:40] = 1
    targets = [Target(torch.tensor([[10.0, 10, 40, 40]]), torch.tensor([1]), masks)]
    boxes = torch.tensor([[8.0, 8, 42, 42], [0, 0, 20, 20]])
    zeros = torch.zeros(2, dtype=torch.int64)
    for labels in (torch.tensor([1, 3]), torch.tensor([3, 3])):  # 3 is the background
        sample = RoISample(
            boxes=boxes,
            image=zeros,
            slot=torch.arange(2),
            is_object=zeros.bool(),
            object=zeros,
            labels=labels,
            goal=boxes,
        )
        losses = model.losses(pyramid(), sample, targets)
        assert set(losses) == {"loss_mask", "loss_mask_iou"}
        model.zero_grad()
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_a_score_is_the_class_times_the_expected_overlap() -> None:
    model = head()
    with torch.no_grad():
        model.iou.weight.zero_()
        model.iou.bias.copy_(torch.tensor([0.25, 1.5, -1.0]))  # a product beyond 0..1 is cut
    boxes = torch.tensor([[0.0, 0, 30, 30], [10, 10, 50, 50], [20, 20, 60, 60]])
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 2]))
    with torch.no_grad():
        (scored,) = model.predict(pyramid(), [found])
    torch.testing.assert_close(scored.scores, torch.tensor([0.8, 0.225, 0.0]))
    assert scored.labels.tolist() == [1, 0, 2]
    assert torch.equal(scored.boxes, boxes[[1, 0, 2]])
    assert scored.masks.shape == (3, 28, 28)


def test_it_is_built_by_name_and_trains() -> None:
    model = build("ms_rcnn_r50_fpn", num_classes=3, frozen_bn=False)
    model.box_head.sampler = BalancedSampler(8, 0.25)
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    masks[0, 10:40, 10:40] = 1
    targets = [Target(torch.tensor([[10.0, 10, 40, 40]]), torch.tensor([1]), masks)]
    losses = model.losses(torch.randn(1, 3, SIZE, SIZE), torch.tensor([[SIZE, SIZE]]), targets)
    assert "loss_mask_iou" in losses
    sum(losses.values()).backward()
    assert model.mask_head.iou.weight.grad is not None
