"""SOLOv2 against plain loops written from its paper; tests/peers/test_solov2_vs_mmdet.py has it against mmdetection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors import Target, build, list_models, parameter_groups, solov2
from detectors.drop_block import DropBlock
from detectors.matrix_nms import keep_local_peaks, matrix_nms
from detectors.solov2 import GridHead, MaskFeatures, Prediction, SOLOv2, coordinates, mask_extents
from detectors.solov2_targets import Level, assign, quarter_masks

CLASSES = 3
LEVELS = (
    Level(8, (1, 24), 4),
    Level(6, (12, 48), 4),
    Level(5, (24, 96), 8),
    Level(4, (48, 192), 8),
    Level(2, (96, 512), 8),
)


def random_target(seed: int, size: tuple[int, int], objects: int = 12) -> Target:
    """Ellipses and parts of them of all extents, overlapping and at the border; one of them without a pixel."""
    random = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    boxes, masks = [], []
    for number in range(objects):
        w, h = (
            random.uniform(2, width) ** random.uniform(0.4, 1),
            random.uniform(2, height) ** random.uniform(0.4, 1),
        )
        x1, y1 = random.uniform(-0.2, 1) * width, random.uniform(-0.2, 1) * height
        inside = ((x - x1 - w / 2) / w) ** 2 + ((y - y1 - h / 2) / h) ** 2 < 0.25
        inside &= random.random() < 0.5 or (x + y) % 7 > 2  # some have holes
        box = np.clip([x1, y1, x1 + w, y1 + h], 0, [width, height] * 2)
        boxes.append(box)
        masks.append(inside & (number != objects // 2))
    return Target(
        torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
        torch.from_numpy(random.integers(0, CLASSES, objects)),
        torch.from_numpy(np.array(masks, dtype=np.uint8).reshape(-1, height, width)),
    )


def cells_in_a_loop(target: Target, level: Level) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Labels [S, S] and the pairs (cell, object), object by object and cell by cell."""
    one = np.float32
    height, width = target.masks.shape[1:]
    labels = np.full((level.cells, level.cells), CLASSES)
    pairs = []
    objects = (value.numpy() for value in (target.boxes, target.labels, target.masks))
    for number, (box, label, mask) in enumerate(zip(*objects, strict=True)):
        x1, y1, x2, y2 = box
        if not level.sizes[0] <= np.sqrt((x2 - x1) * (y2 - y1)) <= level.sizes[1] or not mask.any():
            continue
        rows, columns = mask.nonzero()
        spans = []
        for positions, extent, reach in (
            (rows, height, one(0.5) * (y2 - y1) * one(0.2)),
            (columns, width, one(0.5) * (x2 - x1) * one(0.2)),
        ):
            centre = one(positions.sum()) / one(len(positions))

            def cell(position: np.float32, extent: int = extent) -> int:
                return int(one(position / one(extent)) / one(1 / level.cells))

            low = max(0, cell(centre - reach), cell(centre) - 1)
            high = min(level.cells - 1, cell(centre + reach), cell(centre) + 1)
            spans.append(range(low, high + 1))
        for row in spans[0]:
            for column in spans[1]:
                labels[row, column] = label
                pairs.append((row * level.cells + column, number))
    return labels, pairs


@pytest.mark.parametrize("size", [(96, 160), (64, 64)])
@pytest.mark.parametrize("seed", range(6))
def test_every_object_is_learned_by_the_cells_that_a_loop_over_objects_finds(
    seed: int, size: tuple[int, int]
) -> None:
    target = random_target(seed, size)
    assigned = assign(target, LEVELS, CLASSES, size)
    first = found = 0
    for level in LEVELS:
        labels, pairs = cells_in_a_loop(target, level)
        last = first + level.cells**2
        assert np.array_equal(assigned.labels[first:last].numpy(), labels.flatten())
        here = (assigned.cell >= first) & (assigned.cell < last)
        cells = (assigned.cell[here] - first).tolist()
        assert list(zip(cells, assigned.object[here].tolist(), strict=True)) == pairs
        first, found = last, found + len(pairs)
    assert found == len(assigned.cell) > 10


def test_an_image_without_objects_or_pixels_has_no_positive_cell() -> None:
    empty = Target(
        torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]), torch.zeros(1, 64, 64, dtype=torch.uint8)
    )
    for target in (empty, random_target(0, (64, 64), objects=0)):
        assigned = assign(target, LEVELS, CLASSES, (64, 64))
        assert len(assigned.cell) == len(assigned.object) == 0
        assert (assigned.labels == CLASSES).all()


def test_a_quarter_of_a_mask_is_the_rounded_mean_of_the_middle_pixels_also_where_it_does_not_divide() -> None:
    masks = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (3, 18, 24), dtype=np.uint8))
    quarter = quarter_masks(masks, (5, 6))
    for number in range(3):
        for row in range(5):
            for column in range(6):
                middle = masks[number, 4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3]
                assert quarter[number, row, column] == math.floor(middle.sum() / 4 + 0.5)


def matrix_nms_in_a_loop(
    masks: np.ndarray, labels: np.ndarray, scores: np.ndarray, kernel: str
) -> list[float]:
    """Equations 3 to 5 of the paper."""

    def iou(i: int, j: int) -> float:
        return (
            float((masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum())
            if labels[i] == labels[j]
            else 0.0
        )

    def f(value: float) -> float:
        return math.exp(-2.0 * value**2) if kernel == "gaussian" else 1 - value

    decayed = []
    for j in range(len(masks)):
        decay = 1.0
        for i in range(j):
            own = min((f(iou(k, i)) for k in range(i)), default=1.0)
            decay = min(decay, f(iou(i, j)) / own if own else math.inf)
        decayed.append(float(scores[j]) * decay)
    return decayed


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_matrix_nms_lowers_scores_as_the_papers_equations_say(kernel: str) -> None:
    target = random_target(4, (32, 48), objects=25)
    masks = target.masks[target.masks.sum(dim=(1, 2)) > 0].flatten(1)
    masks = torch.cat([masks, masks[:2]])  # duplicates
    labels = torch.cat([target.labels[: len(masks) - 2], target.labels[:2]])
    scores = torch.linspace(0.9, 0.1, len(masks))
    decayed = matrix_nms(masks.float(), labels, scores, kernel=kernel)
    expected = matrix_nms_in_a_loop(masks.numpy(), labels.numpy(), scores.numpy(), kernel)
    np.testing.assert_allclose(decayed.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (decayed < 0.99 * scores).sum() > 5
    assert len(matrix_nms(masks[:0].float(), labels[:0], scores[:0])) == 0


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_many_copies_of_one_mask_leave_one_and_no_nan(kernel: str) -> None:
    masks = torch.ones(5, 12)
    scores = matrix_nms(masks, torch.zeros(5, dtype=torch.int64), torch.full((5,), 0.8), kernel=kernel)
    assert scores[0] == pytest.approx(0.8)
    assert scores[1:].max() < 0.2
    with pytest.raises(ValueError, match="gaussian"):
        matrix_nms(masks, torch.zeros(5), torch.ones(5), kernel="hard")


def test_of_neighbouring_cells_only_the_best_keeps_its_score() -> None:
    scores = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    kept = keep_local_peaks(scores)
    for image, label, row, column in np.ndindex(2, 3, 7, 7):
        around = scores[image, label, max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1]
        own = scores[image, label, row, column]
        assert kept[image, label, row, column] == (own if own == around.max() else 0)


class Shrink(nn.Module):
    """Stands for backbone and pyramid: five maps of strides 4 to 64 from a convolution of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 5, stride=4, padding=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        finest = F.relu(self.conv(images))
        return [finest, *(F.avg_pool2d(finest, 2**level) for level in range(1, 5))]


def small_model(**settings: float) -> SOLOv2:
    torch.manual_seed(0)
    head = GridHead(32, 32, CLASSES, 32, convs=1, grids=[level.cells for level in LEVELS])
    return SOLOv2(Shrink(), nn.Identity(), MaskFeatures(32, 32, 32), head, LEVELS, **settings)


def scene() -> tuple[Tensor, Tensor, list[Target]]:
    images = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([[64, 128], [60, 90]]), [random_target(seed, (64, 128)) for seed in (1, 2)]


def test_the_mask_features_are_the_sum_of_all_levels_each_enlarged_on_its_own() -> None:
    model = small_model().mask_features
    maps = [torch.randn(2, 32, 16 // 2**level, 32 // 2**level) for level in range(4)]
    total = torch.zeros(())
    for level, convs in enumerate(model.branches):
        x = maps[level]
        if level == 3:
            x = torch.cat([x, coordinates(x).expand(2, -1, -1, -1)], dim=1)
        for conv in convs:
            x = F.relu(conv(x))
            if level > 0:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        total = total + x
    torch.testing.assert_close(model(maps), F.relu(model.output(total)))


@pytest.mark.parametrize("original", [(70, 41), (24, 100), (1, 1)])
def test_masks_at_the_original_size_are_those_of_the_two_interpolations_they_stand_for(
    original: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solov2, "PIXELS_AT_ONCE", 2 * original[0] * original[1])  # several turns
    masks = torch.rand(5, 8, 12, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(masks[None], scale_factor=4.0, mode="bilinear")[:, :, :30, :45]
    expected = F.interpolate(full, size=original, mode="bilinear")[0] > 0.5
    assert torch.equal(solov2._draw(masks, 0.5, (30, 45), original), expected)
    assert solov2._draw(masks[:0], 0.5, (30, 45), original).shape == (0, *original)


def test_no_convolution_has_to_change_the_memory_format_of_a_channels_last_image() -> None:
    model = small_model().to(memory_format=torch.channels_last)
    changed = []

    def note(name: str, x: Tensor) -> None:
        if not x.is_contiguous(memory_format=torch.channels_last):
            changed.append(name)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
    images = torch.randn(2, 3, 64, 128).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        model.predict(images)
    assert changed == []


def test_losses_are_those_of_a_loop_over_cells_and_objects() -> None:
    model = small_model()
    images, sizes, targets = scene()
    with torch.no_grad():
        predicted = model.predict(images)
        losses = model.losses(images, sizes, targets)
    dice, focal, positive = 0.0, 0.0, 0
    for image, target in enumerate(targets):
        goals = quarter_masks(target.masks, (16, 32))
        for index, level in enumerate(LEVELS):
            labels, pairs = cells_in_a_loop(target, level)
            positive += int((labels < CLASSES).sum())
            kernels = predicted.kernels[index][image].flatten(1)
            for cell, number in pairs:
                mask = torch.einsum("d,dhw->hw", kernels[:, cell], predicted.features[image]).sigmoid()
                goal = goals[number].float()
                overlap, area = 2 * (mask * goal).sum(), mask.square().sum() + goal.sum()
                dice += float(1 - overlap / (area + 0.002))
            scores = predicted.classes[index][image].sigmoid().double().numpy()
            for label, row, column in np.ndindex(*scores.shape):
                p = scores[label, row, column]
                hit = labels[row, column] == label
                focal -= 0.25 * (1 - p) ** 2 * math.log(p) if hit else 0.75 * p**2 * math.log(1 - p)
    assert positive > 20
    assert losses["loss_mask"].item() == pytest.approx(3 * dice / positive, rel=1e-4)
    assert losses["loss_cls"].item() == pytest.approx(focal / (positive + 1), rel=1e-4)


@pytest.mark.parametrize("empty", [[0], [0, 1]])
def test_images_without_objects_give_finite_losses_and_a_gradient_for_every_weight(empty: list[int]) -> None:
    """A weight without gradient would stop distributed training."""
    model = small_model()
    images, sizes, targets = scene()
    for image in empty:
        targets[image] = random_target(0, (64, 128), objects=0)
    losses = model.losses(images, sizes, targets)
    assert (losses["loss_mask"].item() == 0) == (len(empty) == 2)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def detections_in_a_loop(model: SOLOv2, raw: Prediction, image: int) -> list[tuple[float, int, Tensor]]:
    """Scores before suppression, labels and masks, cell by cell."""
    found = []
    for level, classes, kernels in zip(LEVELS, raw.classes, raw.kernels, strict=True):
        scores = keep_local_peaks(classes.sigmoid())[image]
        for label, row, column in np.ndindex(*scores.shape):
            score = float(scores[label, row, column])
            mask = torch.einsum("d,dhw->hw", kernels[image, :, row, column], raw.features[image]).sigmoid()
            inside = mask > 0.5
            if score > model.candidate_threshold and inside.sum() > level.min_area:
                found.append((score * float(mask[inside].mean()), label, mask))
    return sorted(found, key=lambda one: -one[0])


@torch.no_grad()
def test_detections_of_each_image_are_those_of_a_loop_over_its_cells() -> None:
    model = small_model(
        candidate_threshold=0.02, score_threshold=0.01, candidates=60, max_detections=15
    ).eval()
    model.head.classes.weight.mul_(40)
    model.head.kernels.weight.mul_(40)
    images, sizes, _ = scene()
    raw = model.network(images, sizes)
    original = [(80, 160), (60, 90)]
    for image, detections in enumerate(model.postprocess(raw, [(64, 128), (60, 90)], original)):
        candidates = detections_in_a_loop(model, raw, image)
        assert len(candidates) > 60
        best = candidates[:60]
        scores, labels = np.array([one[0] for one in best]), np.array([one[1] for one in best])
        binary = np.array([(one[2] > 0.5).numpy().flatten() for one in best])
        decayed = np.array(matrix_nms_in_a_loop(binary, labels, scores, "gaussian"))
        order = [j for j in np.argsort(-decayed, kind="stable") if decayed[j] >= 0.01][:15]
        assert 3 < len(order) == len(detections.scores)
        np.testing.assert_allclose(detections.scores.numpy(), decayed[order], rtol=1e-4)
        assert detections.labels.tolist() == labels[order].tolist()
        height, width = ((64, 128), (60, 90))[image]
        for j, mask, box in zip(order, detections.masks, detections.boxes.tolist(), strict=True):
            full = F.interpolate(best[j][2][None, None], size=(64, 128), mode="bilinear")[
                ..., :height, :width
            ]
            drawn = F.interpolate(full, size=original[image], mode="bilinear")[0, 0] > 0.5
            assert (mask != drawn).float().mean() < 1e-3
            rows, columns = mask.nonzero().T.numpy()
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_an_image_without_its_padding_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="padded to a multiple of 32, not 64 × 100"):
        small_model().predict(torch.zeros(1, 3, 64, 100))


@torch.no_grad()
def test_an_image_in_which_nothing_is_found_has_detections_of_no_length() -> None:
    model = small_model(candidate_threshold=0.999).eval()
    images, sizes, _ = scene()
    for detections in model.postprocess(
        model.network(images, sizes), [(64, 128), (60, 90)], [(80, 160), (60, 90)]
    ):
        assert detections.boxes.shape == (0, 4)
        assert detections.masks.shape[0] == len(detections.scores) == len(detections.labels) == 0
    assert mask_extents(torch.zeros(1, 4, 4, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]


def test_it_learns_to_draw_the_objects_of_an_image() -> None:
    model = small_model()
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 8:40, 4:24] = 1
    masks[1, 36:60, 36:60] = 1
    target = Target(torch.tensor([[4.0, 8, 24, 40], [36, 36, 60, 60]]), torch.tensor([2, 0]), masks)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    images[0, 0] += 2 * masks[0]
    images[0, 1] += 2 * masks[1]
    sizes = torch.tensor([[64, 64]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model.losses(images, sizes, [target]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval().postprocess(model.network(images, sizes), [(64, 64)], [(64, 64)])
    for mask, label in zip(masks.bool(), target.labels, strict=True):
        best = int((found.scores * (found.labels == label)).argmax())
        assert found.scores[best] > 0.3
        assert (found.masks[best] & mask).sum() > 0.8 * (found.masks[best] | mask).sum()


def test_rules_of_a_model_become_groups_of_the_optimizer() -> None:
    """PaddleDetection's slow backbone: .05 .05 .1 .15, offsets as fast as the rest, no decay on normalisation."""
    with torch.device("meta"):
        model = build("solov2_light_r50_vd_fpn_dcn_512")
        plain = build("solov2_light_r50_fpn")
    groups = parameter_groups(model, lr=0.01, weight_decay=1e-4)
    assert groups[0]["lr"] == 0.01
    assert groups[0]["weight_decay"] == 1e-4
    of = {id(p): (g["lr"] / 0.01, g["weight_decay"] / 1e-4) for g in groups for p in g["params"]}
    names = dict(model.named_parameters())
    assert len(of) == sum(len(group["params"]) for group in groups) == len(names)
    for name, factors in {
        "backbone.stem.0.conv.weight": (1, 1),
        "backbone.stem.2.norm.bias": (1, 0),
        "backbone.stages.0.0.conv1.conv.weight": (0.05, 1),
        "backbone.stages.1.0.shortcut.norm.weight": (0.05, 0),
        "backbone.stages.2.5.conv2.conv.weight": (0.1, 1),
        "backbone.stages.3.2.conv2.offset.weight": (1, 1),
        "backbone.stages.3.2.conv3.conv.weight": (0.15, 1),
        "neck.lateral.0.weight": (1, 1),
        "neck.output.3.bias": (2, 0),
        "head.kernel_convs.1.norm.weight": (1, 0),
        "head.classes.bias": (1, 1),
    }.items():
        assert of[id(names[name])] == pytest.approx(factors), name
    assert len(parameter_groups(plain, lr=0.01, weight_decay=1e-4)) == 1


def test_drop_block_takes_squares_away_while_training_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block, x = DropBlock(size=3, keep=0.9), torch.ones(4, 16, 24, 24)
    dropped = block(x)
    assert 0.08 < (dropped == 0).float().mean() < 0.12
    assert dropped.mean().item() == pytest.approx(1, abs=1e-4)
    missing = (dropped == 0).float()
    centres = F.avg_pool2d(F.pad(missing, (1, 1, 1, 1), value=1.0), 3, stride=1) == 1
    # All that is missing is part of a square of nine, of which some may be outside.
    assert torch.equal(F.max_pool2d(centres.float(), 3, stride=1, padding=1), missing)
    assert torch.equal(block.eval()(x), x)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("solov2_light_r50_fpn", 31.6),
        ("solov2_r50_fpn", 46.6),
        ("solov2_light_r50_dcn_fpn", 33.52),
        ("solov2_light_r50_vd_fpn_dcn_512", 33.536),
    ],
)
def test_models_of_the_registry_have_the_size_of_their_definition(name: str, millions: float) -> None:
    assert name in list_models()
    with torch.device("meta"):
        model = build(name, num_classes=80, frozen_bn=False)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.3)
