"""The canonical workload: what every codebase of a comparison has to do, in words no codebase owns.

Model names are those of the model zoos, `<method>_<backbone>_<neck>`, in lower case with underscores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bench.recipe.models import MODELS

#: A split is a part of names of files and folders.
SPLIT_NAME = r"^\w[\w.-]{0,99}$"
DEFAULT_IMAGES = 16
IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255: the values of torchvision and mmdetection
IMAGENET_STD = (58.395, 57.12, 57.375)


class Strict(BaseModel):
    """Base of everything that is read from a recipe: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ShortLong(Strict):
    """Keep-ratio resize: the short side becomes `short` unless the long side would pass `long`."""

    short: Annotated[int, Field(ge=32, le=4096)]
    """Pixels of the short side."""
    long: Annotated[int, Field(ge=32, le=4096)]
    """Most pixels of the long side."""

    @model_validator(mode="after")
    def _ordered(self) -> ShortLong:
        if self.short > self.long:
            raise ValueError(f"short is {self.short}, and the long side {self.long}")
        return self


Extent = Annotated[int, Field(ge=32, le=4096)]


class Input(Strict):
    """Where the images come from and what shape they have when the model sees them."""

    mode: Literal["shared", "pipeline"] = "shared"
    """shared: the same decoded batches for every codebase; pipeline: each codebase's own loader on the same files."""
    dataset: str = "shapes"
    """`shapes` (generated), or a folder: in COCO layout (`annotations/instances_<split>.json` and `<split>/`), of YOLO
    (`data.yaml`), or of Pascal VOC (`JPEGImages/`, `Annotations/`)."""
    annotations: str | None = None
    """Instead of `dataset`: a COCO file of any name, with any category ids. `images` is the folder of its files."""
    eval_annotations: str | None = None
    """What is evaluated beside `annotations`: another COCO file of the same folder; by default the same one."""
    split: Annotated[str, Field(pattern=SPLIT_NAME)] | None = None
    """Split to read; by default train2017 for training, val2017 for inference (train, val of YOLO and VOC)."""
    images: Annotated[int, Field(ge=1, le=10_000_000)] | Annotated[str, Field(min_length=1)] = DEFAULT_IMAGES
    """Number of images used: the first of the split, by id, that have objects. With `annotations`: their folder."""
    count: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Number of images used of `annotations`; by default 16, or all if there are fewer."""
    skip_broken: bool = False
    """Leave out images that cannot be read, or have another size than their annotations say, instead of stopping."""
    size: tuple[Extent, Extent] | ShortLong = (512, 512)
    """[height, width]: fit with the ratio kept and pad right and bottom to exactly that; or short and long side."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Loader processes of a codebase's own pipeline."""

    @model_validator(mode="after")
    def _own_files(self) -> Input:
        if (self.annotations is None) == isinstance(self.images, str):
            raise ValueError(
                "annotations and a folder of images go together: {annotations: FILE.json, images: FOLDER}"
            )
        if self.annotations is None and (self.count is not None or self.eval_annotations is not None):
            raise ValueError(
                "count and eval_annotations go with annotations; of a data set, images is the number"
            )
        if self.annotations is not None and (self.dataset != "shapes" or self.split is not None):
            raise ValueError("annotations stand instead of dataset and split")
        return self

    @property
    def wanted(self) -> int:
        """Images used at most."""
        return self.images if isinstance(self.images, int) else self.count or DEFAULT_IMAGES


class Devices(Strict):
    """What an arm runs on."""

    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Machines."""
    per_node: Annotated[int, Field(ge=1, le=1024)] = 1
    """Ranks of a machine, one per device."""
    global_batch: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Images per step of all ranks together: the same for every level of a factor shows strong scaling."""


class Optimizer(Strict):
    """SGD, as all the reference configurations use it."""

    lr: Annotated[float, Field(ge=0)] = 1e-3
    """Learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay."""
    warmup: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Steps in which the learning rate rises linearly from 0 (train_eval)."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Steps from which on the learning rate is a tenth of what it was before (train_eval)."""


#: Fields that say how a device computes the work; each sets the option of that name where a codebase has it.
SWITCHES = ("channels_last", "compile", "cudnn_benchmark", "tf32", "cuda_graphs")
CUDA_ONLY = frozenset(SWITCHES[2:])


class Workload(Strict):
    """The work of one arm. Two arms are comparable when their workloads are equal but for the factor compared."""

    task: Literal["train", "infer", "eval", "serve", "train_eval"] = "train"
    """train, infer: time steps. eval: infer, and AP of the weights. serve: infer, and requests that MLPerf's load
    generator makes. train_eval: ``steps`` steps, with AP on the way."""
    model: str = ""
    """A canonical model name (`bench list models`). Not needed where every arm names its own."""
    input: Input = Input()
    """Images and their size."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 2
    """Images per step and rank."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """float32, or the type of autocast (automatic mixed precision, amp). float64: all numbers, for an audit without
    rounding."""
    channels_last: bool | None = None
    """Images and weights in NHWC memory. null, as of the next four: as the codebase has it."""
    compile: bool | None = None
    """What torch.compile can take is compiled."""
    cudnn_benchmark: bool | None = None
    """On CUDA: cuDNN tries its kernels for each shape and keeps the fastest."""
    tf32: bool | None = None
    """On CUDA: products of float32 numbers in TF32."""
    cuda_graphs: bool | None = None
    """On CUDA: what is compiled is captured in CUDA graphs (`reduce-overhead` of torch.compile)."""
    frozen_stages: Annotated[int, Field(ge=-1, le=5)] | None = 1
    """Backbone stages without gradient: 0 none, 1 the stem and the first stage, … (-1 means 0). null: as the model's
    own configuration says."""
    frozen_bn: bool | None = True
    """Batch normalisation uses fixed statistics and affine parameters, as in the R-CNN reference settings. null: as
    the model's own configuration says."""
    ema: bool = False
    """Keep an exponential moving average of the weights, updated in every step."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9998
    """Decay of the average."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""
    weights: str = "transplant"
    """transplant: one seeded set of weights, the same in every codebase; random: each codebase's own seeded
    initialisation; else the path of a canonical `.npz`, in which `{model}` stands for the model, or a folder of runs:
    what the newest one in it left of a train_eval arm of this model in our own codebase."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Lowest score of a detection."""
    max_detections: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Most detections of an image."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """Steps of a train_eval arm."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps of a train_eval arm from one evaluation to the next; by default only after the last one."""
    eval_first: bool = False
    """Evaluate a train_eval arm before its first step, too: what it starts from."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Steps of a train_eval arm until it saves its state and another arm's turn comes; evaluations do the same."""
    eval_images: Annotated[int, Field(ge=1)] | None = None
    """Images evaluated, the first ones of the split by id, with or without objects; by default all of them."""
    eval_split: Annotated[str, Field(pattern=SPLIT_NAME)] | None = None
    """Split evaluated; by default val2017."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that a training image of a train_eval arm is mirrored (`input.mode: shared`)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the workers."""
    ranks: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes, one per device; gradients are averaged over them."""
    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Machines that the ranks are spread over evenly. `devices: {nodes: 2, per_node: 4}` sets both."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of weights, batches and sampling."""

    @model_validator(mode="before")
    @classmethod
    def _devices(cls, values: Any) -> Any:
        """`devices` as ranks and nodes; with `global_batch` the batch of a rank follows from them."""
        if not isinstance(values, Mapping) or "devices" not in values:
            return values
        rest = {name: value for name, value in values.items() if name != "devices"}
        devices = Devices.model_validate(values["devices"])
        ranks = devices.nodes * devices.per_node
        rest |= {"nodes": devices.nodes, "ranks": ranks}
        if devices.global_batch is not None:
            if devices.global_batch % ranks:
                raise ValueError(f"global_batch {devices.global_batch} is no multiple of {ranks} ranks")
            rest["batch_size"] = devices.global_batch // ranks
        return rest

    @model_validator(mode="after")
    def _even(self) -> Workload:
        if self.ranks % self.nodes:
            raise ValueError(f"{self.ranks} ranks cannot be spread evenly over {self.nodes} nodes")
        if self.task == "serve" and self.ranks > 1:
            raise ValueError("requests are served by one rank")
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs captures what is compiled: set compile too")
        return self

    @property
    def trains(self) -> bool:
        return self.task in ("train", "train_eval")

    @property
    def own_model(self) -> bool:
        """Whether the model is a codebase's own, not a canonical one."""
        return "://" in self.model

    @property
    def images_per_step(self) -> int:
        """Images of a step, of all ranks together."""
        return self.batch_size * self.ranks

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
