"""Detectors with their post-processing as one graph: ``python -m detectors.export CONFIG CHECKPOINT -o model.onnx``.

A graph has shapes that do not depend on what is found: there are always as many detections as the model may give, best
first, and those that are none have score -1. Kernels of ``detectors.cpu`` are not part of it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision  # noqa: F401  # registers the shapes of its operators, which a graph has to know
from torch import Tensor, nn

from detectors import config as configs
from detectors import predict, preflight, runtime
from detectors.box_head import BoxHead
from detectors.cascade import CascadeRCNN
from detectors.config import ConfigError, Resize
from detectors.dense import DenseDetector
from detectors.fcos import FCOSHead
from detectors.mask_head import MaskHead
from detectors.pyramid import Pyramid, by_level
from detectors.rcnn import RCNN
from detectors.retinanet import RetinaNetHead
from detectors.ssd import SSD
from detectors.transforms import padded_size

#: Detections of a region detector that go into the suppression of duplicates.
CANDIDATES = 2000


class ExportableDense(nn.Module):
    """RetinaNet or FCOS for images of one size. ``forward`` takes float32 [1, 3, H, W]."""

    def __init__(self, model: DenseDetector, size: tuple[int, int]) -> None:
        """``size``: height and width of the images."""
        super().__init__()
        self.model = model.eval()
        self.size = size
        with torch.no_grad():
            anchors = model.output(torch.zeros(1, 3, *size)).anchors
        self.levels = len(anchors)
        for level, one in enumerate(anchors):
            self.register_buffer(f"anchors_{level}", one.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [N, 4], scores [N] and labels [N] in pixels of the input, N the most detections of an image."""
        model = self.model
        raw = model.head(model.neck(model.backbone(images)), self.size)
        found = []
        for level in range(self.levels):
            anchors = getattr(self, f"anchors_{level}")
            logits = raw.logits[level][0]
            scores = logits.sigmoid()
            if raw.quality is not None:
                quality = raw.quality[level][0].sigmoid().unsqueeze(1)
                scores = (scores * quality).sqrt() if model.ranked_by_quality else scores
            best, index = scores.flatten().topk(min(model.candidates, scores.numel()))
            anchor, label = index // logits.shape[1], index % logits.shape[1]
            passed = best > model.score_threshold
            if raw.quality is not None and not model.ranked_by_quality:
                best = best * quality[anchor, 0]
            boxes = model.head.decode(raw.deltas[level][0][anchor], anchors[anchor])
            found.append((boxes, torch.where(passed, best, -1.0), label))
        return self.best(*(torch.cat(part) for part in zip(*found, strict=True)))

    def best(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates [M] to the best that are no duplicates."""
        boxes = clipped(boxes, self.size)
        if not self.model.keep_empty:
            scores = torch.where((boxes[:, 2:] > boxes[:, :2]).all(dim=1), scores, -1.0)
        return best_of(boxes, scores, labels, self.model.nms_threshold, self.model.max_detections)


class ExportableSSD(ExportableDense):
    """SSD, whose classes, or levels, each have candidates of their own."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of ``ExportableDense``."""
        model = self.model
        raw = model.head(model.neck(model.backbone(images)), self.size)
        levels = [torch.cat([level[0] for level in raw.logits])]
        if model.candidates_per_level:
            levels = [level[0] for level in raw.logits]
        scores, places, labels, start = [], [], [], 0
        for level in levels:
            score = level.softmax(-1)[:, :-1]
            if model.candidates_per_level:
                best, index = score.flatten().topk(min(model.candidates, score.numel()))
                place, label = index // score.shape[1], index % score.shape[1]
            else:
                best, place = score.topk(min(model.candidates, len(score)), dim=0)
                label = torch.arange(score.shape[1]).expand_as(place)
            scores.append(best.flatten())
            places.append(place.flatten() + start)
            labels.append(label.flatten())
            start += len(level)
        score, place, label = (torch.cat(one) for one in (scores, places, labels))
        anchors = torch.cat([getattr(self, f"anchors_{level}") for level in range(self.levels)])
        deltas = torch.cat([level[0] for level in raw.deltas])
        boxes = model.head.decode(deltas[place], anchors[place])
        return self.best(boxes, torch.where(score > model.score_threshold, score, -1.0), label)


class ExportableRCNN(nn.Module):
    """Faster, Mask or Cascade R-CNN on a feature pyramid for images of one size. ``forward``: float32 [1, 3, H, W]."""

    def __init__(self, model: RCNN | CascadeRCNN, size: tuple[int, int]) -> None:
        """``size``: height and width of the images."""
        super().__init__()
        self.model = model.eval()
        self.size = size
        cascade = isinstance(model, CascadeRCNN)
        self.box_heads = list(model.box_heads) if cascade else [model.box_head]
        self.mask_heads = list(model.mask_heads) if cascade else [one for one in [model.mask_head] if one]
        with torch.no_grad():
            pyramid = model.features(torch.zeros(1, 3, *size))
            anchors = model.rpn.anchors(pyramid, size)
        self.register_buffer("anchors", anchors.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Boxes [N, 4], scores [N] and labels [N] in pixels of the input, N the most detections of an image.

        With mask heads, also the probabilities [N, 28, 28] within the boxes.
        """
        head = self.box_heads[-1]
        pyramid = self.model.features(images)
        regions, known = self.propose(pyramid)
        logits = []
        for one in self.box_heads:
            said, deltas = one.predict(pooled(pyramid, regions, one))
            logits.append(said)
            if one is not head:
                regions = clipped(one.coder.decode(deltas.squeeze(1), regions), self.size)
        scores = torch.stack(logits).mean(dim=0).softmax(dim=-1)[:, :-1]
        scores = torch.where(known.unsqueeze(1), scores, 0.0)
        best, index = scores.flatten().topk(min(CANDIDATES, scores.numel()))
        region, label = index // head.num_classes, index % head.num_classes
        chosen = deltas[region, label.clamp(max=head.boxes_per_region - 1)]
        boxes = clipped(head.coder.decode(chosen, regions[region]), self.size)
        large = ((boxes[:, 2:] - boxes[:, :2]) > head.min_size).all(dim=1)
        best = torch.where(large & (best > head.score_threshold), best, -1.0)
        found = best_of(boxes, best, label, head.nms_threshold, head.max_detections)
        return (*found, self.masks(pyramid, found[0], found[2])) if self.mask_heads else found

    def masks(self, pyramid: Pyramid, boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities [N, 28, 28] within the boxes: the mean of all mask heads'."""
        features = pooled(pyramid, boxes, self.mask_heads[0])
        logits = [one.logits_of(one.convolve(features), labels) for one in self.mask_heads]
        return torch.stack(logits).sigmoid().mean(dim=0)

    def propose(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Regions [P, 4], and whether each is one, bool [P]."""
        rpn = self.model.rpn
        boxes, scores, levels = [], [], []
        start = 0
        for level, (objectness, deltas) in enumerate(rpn.dense(pyramid)):
            count = objectness.shape[1]
            score, index = objectness[0].topk(min(rpn.pre_nms[1], count))
            boxes.append(rpn.coder.decode(deltas[0][index], self.anchors[start : start + count][index]))
            scores.append(score.sigmoid())
            levels.append(torch.full_like(index, level))
            start += count
        found = clipped(torch.cat(boxes), self.size)
        large = ((found[:, 2:] - found[:, :2]) > rpn.min_size).all(dim=1)
        score = torch.where(large, torch.cat(scores), -1.0)
        limit = min(rpn.post_nms[1], len(score))
        regions, kept, _ = best_of(found, score, torch.cat(levels), rpn.nms_threshold, limit)
        return regions, kept >= 0


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] cut to an image of height and width ``size``."""
    limit = torch.tensor([size[1], size[0]] * 2, dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def best_of(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``limit`` best boxes [N, 4] that are no duplicates within their group [N], filled up with scores of -1."""
    apart = boxes + (groups.to(boxes.dtype) * (boxes.max() + 1)).unsqueeze(1)
    kept = torch.ops.torchvision.nms(apart, scores, threshold)
    # How many there are is not known in a graph; where they are is.
    is_kept = torch.zeros_like(scores).index_fill(0, kept, 1.0) > 0
    best, index = torch.where(is_kept, scores, -1.0).topk(min(limit, len(scores)))
    return boxes[index], best, groups[index]


def pooled(pyramid: Pyramid, boxes: Tensor, head: BoxHead | MaskHead) -> Tensor:
    """Features [R, C, S, S] of regions [R, 4] of the only image."""
    image = torch.zeros_like(boxes[:, 0], dtype=torch.int64)
    return by_level(pyramid, boxes, image, size=head.pool_size, samples=head.samples, aligned=head.aligned)


def exportable(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A detector as a module of which a graph can be made.

    Args:
        model: RetinaNet, FCOS, SSD, or Faster, Mask or Cascade R-CNN on a feature pyramid.
        size: height and width of the images, normalised and padded, in pixels.

    Returns:
        A module from an image float32 [1, 3, H, W] to boxes [N, 4], scores [N] and labels [N], best first; scores of -1
        fill them up. With mask heads, also to probabilities [N, 28, 28] within the boxes.

    Raises:
        ValueError: for another model.
    """
    if isinstance(model, DenseDetector) and isinstance(model.head, RetinaNetHead | FCOSHead):
        return ExportableDense(model, size)
    if isinstance(model, SSD):
        return ExportableSSD(model, size)
    if type(model) is CascadeRCNN:
        return ExportableRCNN(model, size)
    plain = isinstance(model, RCNN) and type(model.mask_head) in (MaskHead, type(None))
    if plain and model.rpn is not None and model.neck is not None:
        return ExportableRCNN(model, size)
    raise ValueError(
        f"{type(model).__name__} cannot be exported yet; RetinaNet, FCOS, SSD, and Faster, Mask and Cascade R-CNN "
        "with FPN can"
    )


def export_program(model: nn.Module, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """The graph of ``exportable``, of operators of torch and torchvision only; arguments as there."""
    module = exportable(model, size).eval()
    with torch.no_grad():
        return torch.export.export(module, (torch.zeros(1, 3, *size),), strict=False)


def export_onnx(model: nn.Module, size: tuple[int, int], path: str | Path, names: Sequence[str] = ()) -> None:
    """Write the graph of ``exportable`` as ONNX, which needs the packages onnx and onnxscript.

    Args:
        model: as for ``exportable``.
        size: as for ``exportable``.
        path: of the file.
        names: of the classes, kept as the file's metadata ``names``, one a line.
    """
    program = torch.onnx.export(export_program(model, size), dynamo=True, verbose=False)
    assert program is not None
    if names:
        program.model.metadata_props["names"] = "\n".join(names)
    program.save(str(path))


def size_of(resize: Resize, asked: Sequence[int] | None = None) -> tuple[int, int]:
    """Height and width of the graph's image: those that are asked for, else those of a config's evaluation.

    Raises:
        ConfigError: for sides that a feature pyramid cannot halve five times, unless the config has that very size.
    """
    if asked is None:
        return resize.size or padded_size([(resize.short[0], resize.long)])
    size = (asked[0], asked[1])
    if size != resize.size and any(side < 32 or side % 32 for side in size):
        raise ConfigError(f"size must be multiples of 32, got {size[0]} {size[1]}")
    return size


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m detectors.export", description="Write a detector as ONNX."
    )
    parser.add_argument("config", help="YAML, see detectors/configs")
    parser.add_argument("checkpoint", help="as for detectors.predict")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file, model.onnx")
    parser.add_argument("--size", type=int, nargs=2, help="height and width [those of evaluate.resize]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the config")
    given = parser.parse_args(arguments)
    try:
        loaded = configs.load(given.config, given.set)
        size = size_of(loaded.config.evaluate.resize, given.size)
        preflight.check_packages(loaded, [("onnx", ()), ("onnxscript", ())])
        runtime.make_folder(given.output.parent)
        predictor = predict.load(loaded, given.checkpoint)
        logging.getLogger("onnx_ir").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch to torchvision
            export_onnx(predictor.model, size, given.output, predictor.names)
    except (ConfigError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return runtime.BAD_INPUT
    print(f"wrote {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
