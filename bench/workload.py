"""The canonical workload: what every codebase of a comparison has to do, in words no codebase owns.

Model names are those of the model zoos, `<method>_<backbone>_<neck>`, in lower case with underscores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255: the values of torchvision and mmdetection
IMAGENET_STD = (58.395, 57.12, 57.375)


class Strict(BaseModel):
    """Base of everything that is read from a recipe: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ShortLong(Strict):
    """Keep-ratio resize: the short side becomes `short` unless the long side would pass `long`."""

    short: Annotated[int, Field(ge=32)]
    long: Annotated[int, Field(ge=32)]


Extent = Annotated[int, Field(ge=32, le=4096)]


class Input(Strict):
    """Where the images come from and what shape they have when the model sees them."""

    mode: Literal["shared", "pipeline"] = "shared"
    """shared: the same decoded batches for every codebase; pipeline: each codebase's own loader on the same files."""
    dataset: str = "shapes"
    """`shapes` (generated) or a folder in COCO layout (`annotations/instances_<split>.json` and `<split>/`)."""
    split: str | None = None
    """Split to read; by default train2017 for training, val2017 for inference."""
    images: Annotated[int, Field(ge=1)] = 16
    """Number of images used: the first ones of the split, by id, that have objects."""
    size: tuple[Extent, Extent] | ShortLong = (512, 512)
    """[height, width]: fit with the ratio kept and pad right and bottom to exactly that; or short and long side."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Loader processes of a codebase's own pipeline."""


class Optimizer(Strict):
    """SGD, as all the reference configurations use it."""

    lr: Annotated[float, Field(ge=0)] = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises linearly from 0 (train_eval)."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Steps from which on the learning rate is a tenth of what it was before (train_eval)."""


class Workload(Strict):
    """The work of one arm. Two arms are comparable when their workloads are equal but for the factor compared."""

    task: Literal["train", "infer", "eval", "train_eval"] = "train"
    """train, infer: time steps. eval: infer, and AP of the weights. train_eval: ``steps`` steps, with AP on the way."""
    model: str
    """A canonical model name (`bench list models`)."""
    input: Input = Input()
    batch_size: Annotated[int, Field(ge=1)] = 2
    """Images per step and rank."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    frozen_stages: Annotated[int, Field(ge=-1, le=5)] = 1
    """Backbone stages without gradient: 0 none, 1 the stem and the first stage, … (-1 means 0)."""
    frozen_bn: bool = True
    """Batch normalisation uses fixed statistics and affine parameters, as in the R-CNN reference settings."""
    ema: bool = False
    """Keep an exponential moving average of the weights, updated in every step."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9998
    optimizer: Optimizer = Optimizer()
    weights: str = "transplant"
    """transplant: one seeded set of weights, the same in every codebase; random: each codebase's own seeded
    initialisation; else the path of a canonical `.npz`, in which `{model}` stands for the model, or a folder of runs:
    what the newest one in it left of a train_eval arm of this model in our own codebase."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.05
    max_detections: Annotated[int, Field(ge=1)] = 100
    steps: Annotated[int, Field(ge=1)] = 100
    """Steps of a train_eval arm."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps of a train_eval arm from one evaluation to the next; by default only after the last one."""
    eval_first: bool = False
    """Evaluate a train_eval arm before its first step, too: what it starts from."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Steps of a train_eval arm until it saves its state and another arm's turn comes; evaluations do the same."""
    eval_images: Annotated[int, Field(ge=1)] | None = None
    """Images evaluated, the first ones of the split by id, with or without objects; by default all of them."""
    eval_split: str | None = None
    """Split evaluated; by default val2017."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that a training image of a train_eval arm is mirrored (`input.mode: shared`)."""
    device: Literal["cpu", "cuda"] = "cpu"
    ranks: Annotated[int, Field(ge=1)] = 1
    """Processes, one per device; gradients are averaged over them."""
    seed: int = 0

    @property
    def trains(self) -> bool:
        return self.task in ("train", "train_eval")

    @property
    def evaluates(self) -> bool:
        return self.task in ("eval", "train_eval")

    @property
    def has_masks(self) -> bool:
        """Whether masks are predicted; of a codebase's own model that is not known, and not evaluated."""
        return self.model in MODELS and MODELS[self.model].masks

    def turns(self) -> list[int]:
        """Steps after which a train_eval arm saves its state and hands over to the next arm, the last one included."""
        ends = {self.steps}
        for every in (self.eval_every, self.checkpoint_every):
            ends |= set(range(every, self.steps, every)) if every else set()
        return sorted(ends)

    def evaluated_after(self, step: int) -> bool:
        if step == 0:
            return self.eval_first
        return step == self.steps or (self.eval_every is not None and step % self.eval_every == 0)


@dataclass(frozen=True)
class CanonicalModel:
    """A model every codebase can be asked for.

    ``masks``: predicts instance masks. ``deterministic``: the loss does not depend on random sampling.
    ``reference``: the configuration whose definition is meant. ``gflops``: of one 512×512 image, forward, for the
    plan's rough estimate of time only (multiply and add counted separately).
    """

    name: str
    title: str
    masks: bool
    deterministic: bool
    reference: str
    gflops: float


#: Backbone and neck → title, and its operations relative to R-50-FPN (for estimates).
BACKBONES = {
    "r50_caffe_c4": ("R-50-C4, caffe style", 1.6),
    "r50_c4": ("R-50-C4", 1.6),
    "r50_caffe_fpn": ("R-50-FPN, caffe style", 1.0),
    "r50_fpn": ("R-50-FPN", 1.0),
    "r101_caffe_fpn": ("R-101-FPN, caffe style", 1.4),
    "r101_fpn": ("R-101-FPN", 1.4),
    "x101_32x4d_fpn": ("X-101-32x4d-FPN", 1.4),
    "x101_64x4d_fpn": ("X-101-64x4d-FPN", 2.2),
    "hrnetv2p_w18": ("HRNetV2p-W18", 0.9),
    "hrnetv2p_w32": ("HRNetV2p-W32", 1.4),
    "hrnetv2p_w48": ("HRNetV2p-W48", 2.2),
}


def _family(
    method: str, title: str, gflops: float, *, masks: bool, deterministic: bool, without: tuple[str, ...] = ()
) -> list[CanonicalModel]:
    """A method on every backbone of the reference tables but those it is not published on."""
    return [
        CanonicalModel(
            f"{method}_{backbone}",
            f"{title} {backbone_title}",
            masks,
            deterministic,
            f"mmdet {method.replace('_', '-')} on {backbone_title}",
            round(gflops * scale, 1),
        )
        for backbone, (backbone_title, scale) in BACKBONES.items()
        if not backbone.startswith(without)
    ]


def _one(name: str, title: str, gflops: float, reference: str, *, masks: bool = False) -> CanonicalModel:
    return CanonicalModel(name, title, masks, True, reference, gflops)


_HRNET = ("hrnetv2p",)
_C4 = ("r50_caffe_c4", "r50_c4")
_CAFFE = ("r50_caffe", "r101_caffe", "r50_c4")

MODELS: dict[str, CanonicalModel] = {
    model.name: model
    for model in (
        *_family("rpn", "RPN", 90.0, masks=False, deterministic=False, without=_HRNET),
        *_family("fast_rcnn", "Fast R-CNN", 110.0, masks=False, deterministic=False, without=(*_HRNET, "x101")),
        *_family("faster_rcnn", "Faster R-CNN", 120.0, masks=False, deterministic=False),
        *_family("mask_rcnn", "Mask R-CNN", 160.0, masks=True, deterministic=False),
        *_family("cascade_rcnn", "Cascade R-CNN", 150.0, masks=False, deterministic=False, without=("r50_c4",)),
        *_family(
            "cascade_mask_rcnn", "Cascade Mask R-CNN", 280.0, masks=True, deterministic=False, without=("r50_c4",)
        ),
        *_family("htc", "HTC", 320.0, masks=True, deterministic=False, without=_CAFFE),
        *_family("retinanet", "RetinaNet", 105.0, masks=False, deterministic=True, without=(*_HRNET, *_C4)),
        _one("fcos_r50_fpn", "FCOS R-50-FPN", 100.0,
             "torchvision fcos_resnet50_fpn; mmdet fcos_r50-caffe_fpn_gn-head_1x_coco"),
        _one("ssd300_vgg16", "SSD300 VGG16", 62.0, "torchvision ssd300_vgg16; mmdet ssd300_coco"),
        _one("ssd512_vgg16", "SSD512 VGG16", 180.0, "mmdet ssd512_coco"),
        _one("solov2_r50_fpn", "SOLOv2 R-50-FPN", 110.0, "mmdet solov2_r50_fpn_1x_coco", masks=True),
        _one("solov2_r101_fpn", "SOLOv2 R-101-FPN", 150.0, "mmdet solov2_r101_fpn_ms-3x_coco", masks=True),
        _one("solov2_light_r50_fpn", "SOLOv2-light R-50-FPN", 70.0,
             "mmdet solov2-light_r50_fpn_ms-3x_coco", masks=True),
        _one("solov2_light_r50_dcn_fpn", "SOLOv2-light R-50-DCN-FPN", 80.0,
             "mmdet solov2-light_r50-dcn_fpn_ms-3x_coco", masks=True),
        _one("solov2_light_r50_vd_fpn_dcn_512", "SOLOv2-light R-50-vd-DCN-FPN 512", 80.0,
             "PaddleDetection of 2020-12, configs/solov2/solov2_light_r50_vd_fpn_dcn_512_3x.yml", masks=True),
    )
}  # fmt: skip
