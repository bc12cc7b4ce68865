"""Weights of backbones from checkpoints of other projects or of ours, and a report of what was taken."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from detectors.layers import FrozenBatchNorm2d
from detectors.weight_files import read_checkpoint

#: Where in a checkpoint the backbone may be: of torchvision's, detectron2's, mmdetection's detectors; from a wrapper.
PREFIXES = ("", "backbone.body.", "backbone.bottom_up.", "bottom_up.", "backbone.", "module.", "model.")


@dataclass(frozen=True)
class LoadReport:
    """What ``load_backbone`` did. Names of the backbone are our own, those of the checkpoint its own.

    matched: taken over. missing: of the backbone, but not in the checkpoint; they keep their values. unexpected: in the
    checkpoint, but not of the backbone. other_shape: in both, but of another shape; they keep their values.
    """

    layout: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shape: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the checkpoint had every weight, and of the right shape."""
        return not self.missing and not self.other_shape

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.other_shape)
        parts = [f"{self.layout}: matched {len(self.matched)} of {total}"]
        for title in ("missing", "other_shape", "unexpected"):
            names = getattr(self, title)
            if names:
                shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
                parts.append(f"{title.replace('_', ' ')} {len(names)} ({shown})")
        return "; ".join(parts)


def load_backbone(
    backbone: nn.Module, checkpoint: str | Path | Mapping[str, Tensor], *, bgr: bool = False
) -> LoadReport:
    """Copy the weights of a checkpoint into a backbone as far as their names and shapes agree.

    The checkpoint is a file (see ``read_checkpoint``) or its contents, in the names of torchvision, timm, mmdetection,
    detectron2, Caffe2 or our own, alone or as part of a detector. ``bgr``: it was trained on images in the order blue,
    green, red, as Caffe's were; the first convolution is turned around so that it takes red, green, blue.

    Raises ValueError when nothing in it is known.
    """
    state = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    own = {name: value for name, value in backbone.state_dict().items() if not is_counter(name)}
    layout, names = _best_layout(own, state)
    if not names:
        raise ValueError(f"no weight of the backbone found among {', '.join(list(state)[:5])}, …")
    matched, other_shape = [], []
    with torch.no_grad():
        for name, value in own.items():
            if name not in names:
                continue
            given = torch.as_tensor(state[names[name]])
            if given.shape != value.shape:
                other_shape.append(name)
                continue
            if bgr and value.ndim == 4 and value.shape[1] == 3:
                given = given.flip(1)
            value.copy_(given)
            matched.append(name)
        affine = _without_statistics(backbone, names) if layout == "caffe2" else []
    matched += affine
    known = {*matched, *other_shape}
    return LoadReport(
        layout,
        tuple(matched),
        missing=tuple(name for name in own if name not in known),
        unexpected=tuple(sorted(set(state) - set(names.values()) - {n for n in state if is_counter(n)})),
        other_shape=tuple(other_shape),
    )


def is_counter(name: str) -> bool:
    """Whether a buffer only counts the batches that normalisation has seen."""
    return name.endswith("num_batches_tracked")


def _best_layout(own: Iterable[str], state: Mapping[str, object]) -> tuple[str, dict[str, str]]:
    """The layout, and where in the checkpoint, that finds most names: its name, and theirs by our own."""
    best: tuple[str, dict[str, str]] = ("", {})
    for layout, rename in LAYOUTS.items():
        renamed = {name: theirs for name in own if (theirs := rename(name)) is not None}
        for prefix in PREFIXES:
            found = {name: prefix + theirs for name, theirs in renamed.items() if prefix + theirs in state}
            if len(found) > len(best[1]):
                best = (layout, found)
    return best


def _without_statistics(backbone: nn.Module, names: Mapping[str, str]) -> list[str]:
    """Caffe2 kept scale and shift only: mean 0, and a variance that together with ``eps`` is 1. Returns their names."""
    done = []
    for path, module in backbone.named_modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d) and f"{path}.weight" in names:
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.zero_()
            module.running_var.fill_(1 - module.eps)
            done += [f"{path}.running_mean", f"{path}.running_var"]
    return done


# -- our names to those of others, None for what they do not have --------------------------------------------------


def _block(name: str) -> tuple[int, int, str, str, str] | None:
    """Of a ResNet's bottleneck: stage and block from 0, layer ("conv1" … "shortcut"), "conv" or "norm", and value."""
    found = re.match(r"stages\.(\d)\.(\d+)\.(conv\d|shortcut)\.(conv|norm)\.(\w+)$", name)
    return (int(found[1]), int(found[2]), found[3], found[4], found[5]) if found else None


def torchvision_name(name: str, first_of_shortcut: int = 0) -> str | None:
    """torchvision/models/resnet.py; also of ResNeXt, and timm's and mmdetection's."""
    if found := re.match(r"stem\.(conv|norm)\.(\w+)$", name):
        return f"{'conv1' if found[1] == 'conv' else 'bn1'}.{found[2]}"
    if (parts := _block(name)) is None:
        return None
    stage, block, layer, kind, value = parts
    if layer == "shortcut":
        layer = f"downsample.{first_of_shortcut + (kind == 'norm')}"
    elif kind == "norm":
        layer = layer.replace("conv", "bn")
    return f"layer{stage + 1}.{block}.{layer}.{value}"


def timm_vd_name(name: str) -> str | None:
    """timm/models/resnet.py with a deep stem and average-pool shortcuts (resnet50d): they come with more layers."""
    if found := re.match(r"stem\.(\d)\.(conv|norm)\.(\w+)$", name):
        layer, is_norm, value = int(found[1]) // 2, found[2] == "norm", found[3]
        return f"bn1.{value}" if is_norm and layer == 2 else f"conv1.{3 * layer + is_norm}.{value}"
    return torchvision_name(name, first_of_shortcut=1) if name.startswith("stages") else None


def detectron2_name(name: str) -> str | None:
    """detectron2/modeling/backbone/resnet.py."""
    if found := re.match(r"stem\.(conv|norm)\.(\w+)$", name):
        return f"stem.conv1.{'norm.' if found[1] == 'norm' else ''}{found[2]}"
    if (parts := _block(name)) is None:
        return None
    stage, block, layer, kind, value = parts
    return f"res{stage + 2}.{block}.{layer}.{'norm.' if kind == 'norm' else ''}{value}"


def caffe2_name(name: str) -> str | None:
    """Blobs of Detectron's models: `res2_0_branch2a_w` and, of its affine layer, `res2_0_branch2a_bn_s` and `_b`."""
    ends = {("conv", "weight"): "w", ("norm", "weight"): "bn_s", ("norm", "bias"): "bn_b"}
    if found := re.match(r"stem\.(conv|norm)\.(\w+)$", name):
        end = ends.get((found[1], found[2]))
        return None if end is None else f"{'conv1' if found[1] == 'conv' else 'res_conv1'}_{end}"
    if (parts := _block(name)) is None:
        return None
    stage, block, layer, kind, value = parts
    branch = "branch1" if layer == "shortcut" else f"branch2{'abc'[int(layer[-1]) - 1]}"
    end = ends.get((kind, value))
    return None if end is None else f"res{stage + 2}_{block}_{branch}_{end}"


def vgg_name(name: str) -> str | None:
    """torchvision/models/vgg.py (vgg16), where the layers of all stages are one list."""
    places = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    found = re.match(r"stages\.(\d)\.(\d)\.(weight|bias)$", name)
    return f"features.{places[int(found[1])][int(found[2])]}.{found[3]}" if found else None


def hrnet_name(name: str) -> str | None:
    """mmdet/models/backbones/hrnet.py and timm/models/hrnet.py, after the authors' own."""
    if found := re.match(r"stem\.(0|2)\.(conv|norm)\.(\w+)$", name):
        return f"{'conv' if found[2] == 'conv' else 'bn'}{int(found[1]) // 2 + 1}.{found[3]}"
    if name.startswith("stages.0."):
        return torchvision_name(name)
    found = re.match(r"stages\.(\d)\.(transition|exchanges)\.(.+)\.(conv|norm)\.(\w+)$", name)
    if found is None:
        return None
    stage, kind, value = int(found[1]), found[4], found[5]
    end = f"{int(kind == 'norm')}.{value}"
    if found[2] == "transition":  # a list by branch, where the new, last one is a list of convolutions
        branch = int(found[3]) if stage == 1 else stage
        return f"transition{stage}.{branch}.{'0.' if branch == stage else ''}{end}"
    exchange, part, first, second, last = found[3].split(".")
    begin = f"stage{stage + 1}.{exchange}"
    if part == "branches":
        layer = last if kind == "conv" else last.replace("conv", "bn")
        return f"{begin}.branches.{first}.{second}.{layer}.{value}"
    step = "" if int(second) > int(first) else f"{int(last) // 2}."  # from a coarser branch there is one step
    return f"{begin}.fuse_layers.{first}.{second}.{step}{end}"


def timm_name(name: str) -> str | None:
    """Timm's ``features_only``, as it is."""
    return name.removeprefix("body.") if name.startswith("body.") else None


def timm_classifier_name(name: str) -> str | None:
    """The same model of timm with its classifier, whose stages are lists."""
    found = timm_name(name)
    return None if found is None else re.sub(r"^(stages|layers|stem)_(\d+)", r"\1.\2", found)


LAYOUTS: dict[str, Callable[[str], str | None]] = {
    "torchvision": torchvision_name,
    "timm vd": timm_vd_name,
    "detectron2": detectron2_name,
    "caffe2": caffe2_name,
    "vgg": vgg_name,
    "hrnet": hrnet_name,
    "timm": timm_name,
    "timm classifier": timm_classifier_name,
    "detectors": str,  # as they are
}
