"""What to train, read from YAML: every key is known, every value has its type, an error names file and line."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from detectors.contradictions import contradictions
from detectors.transforms import IMAGENET_MEAN, IMAGENET_STD

Keys = tuple[str | int, ...]


class ConfigError(Exception):
    """Bad input: one message that says where (``config.yaml:12``) and what to do. Ends a command with code 2."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)


def _no_truth(value: Any) -> Any:
    """``true`` is no number, though pydantic takes it for 1."""
    if isinstance(value, bool):
        raise ValueError("must be a valid number")
    return value


def _listed(value: Any) -> Any:
    """One value stands for a list of it."""
    return value if isinstance(value, list | tuple) else [value]


checked = dataclass(frozen=True, config=ConfigDict(extra="forbid"))
Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], BeforeValidator(_listed)]
Number = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]
Count = Annotated[StrictInt, Field(ge=0)]
Positive = Annotated[StrictInt, Field(ge=1)]
PositiveFloat = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]


# -- schema ----------------------------------------------------------------------------------------------------------


@checked
class Model:
    """A model of ``detectors.list_models()`` and arguments of its building function (``frozen_stages``, …)."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@checked
class Split:
    """A folder in COCO layout: the file of annotations and the folder of images.

    ``semantic``: for models that learn classes of pixels, the folder of COCO's stuffthingmaps: a PNG for each image,
    called as it is, with a byte for each pixel, 255 for those that do not count.
    """

    annotations: str
    images: str
    semantic: str | None = None


@checked
class Pixels:
    """How images become numbers: (value - mean) / std of each channel, 0..255; ``order``: of the channels."""

    mean: tuple[Number, Number, Number] = IMAGENET_MEAN
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    order: Literal["rgb", "bgr"] = "rgb"


@checked
class Data:
    """Images and how they are loaded.

    ``keep_empty``: whether images without objects are trained on. ``group_by_shape``: wide images are not put into a
    batch with tall ones. ``workers``: processes that load images, of each rank. ``skip_broken``: a training image that
    cannot be read is replaced by another, with a warning, instead of ending the training. ``repeat``: images of
    categories that fewer than this share of images show are drawn more often (``order.repeated``).
    """

    train: Split
    val: Split | None = None
    keep_empty: StrictBool = False
    group_by_shape: StrictBool = True
    workers: Count = 2
    skip_broken: StrictBool = False
    repeat: Share = 0.0
    pixels: Pixels = Pixels()


@checked
class Resize:
    """The size of the network's images, in pixels.

    ``short``: the short side, drawn anew for each image if there are several, unless the long side would pass ``long``.
    Or ``size``: (height, width), whatever the image's ratio.
    """

    short: Many[Positive] = (800,)
    long: Positive = 1333
    size: tuple[Positive, Positive] | None = None


@checked
class Augment:
    """Changes to training images in the order in which they are made: colours, zoom out, crop, size, mirror.

    ``distort``: brightness, contrast, saturation and hue; ``expand``: onto a canvas of up to that many times the side;
    ``crop``: a part that keeps some overlap with an object (all three as SSD, Liu et al. 2016, section 2.2).
    ``jitter``: the least and the largest scale, such as [0.1, 2], of what then is cut or padded to ``resize.size``.
    ``copy_paste``: how often objects of another image are pasted in; for models with masks. ``hook``: changes of your
    own before all of these, such as ``augment.py:changes`` (``detectors.hook``).
    """

    hook: str | None = None
    distort: StrictBool = False
    expand: Annotated[Number, Field(ge=1)] = 1.0
    crop: StrictBool = False
    resize: Resize = Resize()
    jitter: tuple[PositiveFloat, PositiveFloat] | None = None
    copy_paste: Share = 0.0
    flip: Share = 0.5


@checked
class ScheduleConfig:
    """``name`` (1x, 2x, 20e, 3x, 120e), or ``iterations`` and ``steps``, after which the rate is divided by ten.

    ``warmup_factor``: of the rate at iteration 0, from which it grows linearly for ``warmup`` iterations. ``decay``:
    by steps, or to 0 at the end as a cosine, or as the share of iterations that is left to the power of ``power``.
    """

    name: Literal["1x", "2x", "20e", "3x", "120e"] | None = None
    iterations: Positive | None = None
    steps: Many[Positive] = ()
    warmup: Count = 500
    warmup_factor: Share = 0.001
    decay: Literal["step", "cosine", "poly"] = "step"
    power: PositiveFloat = 0.9


@checked
class ParameterRule:
    """Factors of rate and decay for the parameters whose name the regular expression ``match`` is found in."""

    match: str
    lr: NonNegative = 1.0
    weight_decay: NonNegative = 1.0


@checked
class Optimizer:
    """SGD or AdamW.

    ``lr`` is meant for batches of ``lr_for_batch`` images, and for others in proportion; without it, as it is.
    ``accumulate``: each rank's images of a step are learned from in so many parts, one after the other, which takes
    that much less memory; their losses are averaged. ``momentum`` is of SGD, ``betas`` of AdamW. ``rules``: the first
    that matches a parameter's name counts, then those of the model. ``clip_norm``: limit of the norm of all gradients.
    """

    lr: PositiveFloat
    name: Literal["sgd", "adamw"] = "sgd"
    lr_for_batch: Positive | None = None
    accumulate: Positive = 1
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Share = 0.9
    weight_decay: NonNegative = 1e-4
    clip_norm: PositiveFloat | None = None
    rules: Many[ParameterRule] = ()


@checked
class Checkpoints:
    """Written every so many iterations and at the end; the last ``keep`` stay.

    ``best``: of which task the evaluation with the highest AP is kept as ``best.pt``. ``patience``: training ends after
    so many evaluations without a better one.
    """

    every: Positive = 1000
    keep: Positive = 3
    best: Literal["bbox", "segm"] | None = None
    patience: Positive | None = None


@checked
class Evaluate:
    """Evaluation on ``data.val``: at the end and, unless 0, ``every`` so many iterations; ``batch`` images at once.

    Test-time augmentation: ``scales``, short sides beside that of ``resize``, and ``mirror``, each view mirrored too.
    """

    every: Count = 0
    batch: Positive = 1
    resize: Resize = Resize()
    scales: Many[Positive] = ()
    mirror: StrictBool = False

    @property
    def views(self) -> list[Resize]:
        """The sizes of an image that are looked at; one, without augmentation."""
        return [self.resize, *(replace(self.resize, short=(short,)) for short in self.scales)]


@checked
class Config:
    """A training.

    ``batch``: images of a step, all ranks together. ``ema``: decay of the averaged weights, which then are those that
    are evaluated. ``weights``: "imagenet", or a file: a checkpoint of ours, a detector of torchvision, mmdetection,
    detectron2 or PaddleDetection, or a backbone (``runtime.begin_with``). ``output``: folder of log and checkpoints.
    ``records``: numbers for plots: ``metrics.csv``, TensorBoard's, Weights & Biases'. ``kernels``: on a CPU those of
    ``detectors.cpu`` where they are faster, or torch's own everywhere. ``compile``: the losses by ``torch.compile``.
    ``sync_bn``: the statistics of batch normalisation that learns are those of all ranks; on CUDA devices.
    """

    model: Model
    data: Data
    optimizer: Optimizer
    schedule: ScheduleConfig
    output: str
    batch: Positive = 16
    augment: Augment = Augment()
    ema: Annotated[Number, Field(gt=0, le=1)] | None = None
    weights: str | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    kernels: Literal["auto", "torch"] = "auto"
    compile: StrictBool = False
    sync_bn: StrictBool = False
    seed: Count = 0
    log_every: Positive = 20
    records: Many[Literal["csv", "tensorboard", "wandb"]] = ("csv",)
    checkpoint: Checkpoints = Checkpoints()
    evaluate: Evaluate = Evaluate()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, from which ``from_dict`` makes the same config."""
        return asdict(self)


class Loaded(NamedTuple):
    """A config and where its values were written."""

    config: Config
    places: Mapping[Keys, str]

    def place(self, *keys: str | int) -> str:
        """File and line of a value, or of the nearest thing around it."""
        return _place(self.places, keys)


#: The configs that come with the package.
SHIPPED = Path(__file__).parent / "configs"

# -- reading ---------------------------------------------------------------------------------------------------------


def load(file: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """The config of a YAML file; ``overrides`` are ``key.of.key=value`` with a value in YAML.

    ``extends: other.yaml`` puts the file's keys over another's, beside the file or of ``detectors/configs``, where a
    file that is not there is looked for, too. Raises ConfigError.
    """
    content, places = _read(_or_shipped(Path(file)))
    for override in overrides:
        _override(content, places, override)
    config = _checked(content, places)
    for problem, keys in contradictions(config):
        raise ConfigError(problem, _place(places, keys))
    return Loaded(config, places)


def from_dict(content: Mapping[str, Any]) -> Config:
    """What ``Config.as_dict`` gave, as a checkpoint keeps it. Raises ConfigError."""
    return _checked(content, {})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint: the known names that are like one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"


def _or_shipped(file: Path, given: str = "") -> Path:
    """The file; or if it is not there the one of ``detectors/configs`` that was ``given`` by its name."""
    name = Path(given or file)
    shipped = SHIPPED / name.name
    by_name = name.parent in (Path(), Path("detectors/configs"))
    return shipped if by_name and not file.is_file() and shipped.is_file() else file


def _read(file: Path, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[Keys, str]]:
    """A file's content and what it extends, with the place of every value."""
    if file.resolve() in below:
        raise ConfigError("a config extends itself", str(file))
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None:
            _refuse_twice(node, file)
        content = None if node is None else loader.construct_document(node)
    except FileNotFoundError:
        hint = did_you_mean(file.name, (one.name for one in SHIPPED.glob("*.yaml")))
        raise ConfigError(f"no such config; {hint}", str(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read: {error}", str(file)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where) from None
    if not isinstance(content, dict):
        raise ConfigError("a config is a mapping with model, data, optimizer, schedule and output", str(file))
    places = dict(_places(node, file, ()))
    parent = content.pop("extends", None)
    if parent is None:
        return content, places
    if not isinstance(parent, str):
        raise ConfigError("extends is the path of one config", _place(places, ("extends",)))
    other = _or_shipped(file.parent / parent, parent)
    if not other.is_file():
        hint = did_you_mean(parent, (one.name for one in SHIPPED.glob("*.yaml")))
        raise ConfigError(f"extends {parent}, which does not exist; {hint}", _place(places, ("extends",)))
    base, base_places = _read(other, (*below, file.resolve()))
    return _merge(base, content), {**base_places, **places}


def _places(node: yaml.Node, file: Path, keys: Keys) -> Iterable[tuple[Keys, str]]:
    if keys not in ((),) or not isinstance(node, yaml.MappingNode):
        yield keys, f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _places(value, file, (*keys, str(key.value)))
            yield (*keys, str(key.value)), f"{file}:{key.start_mark.line + 1}"
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _places(item, file, (*keys, index))


def _refuse_twice(node: yaml.Node, file: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigError(f"'{key.value}' is given twice", f"{file}:{key.start_mark.line + 1}")
            seen.add(key.value)
            _refuse_twice(value, file)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, file)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _override(content: dict[str, Any], places: dict[Keys, str], override: str) -> None:
    key, equals, text = override.partition("=")
    where = f"--set {override}"
    if not key or not equals:
        raise ConfigError("expected key=value, as in --set optimizer.lr=0.01", where)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where) from None
    *outer, last = key.split(".")
    for name in outer:
        if not isinstance(content.get(name), dict):
            content[name] = {}
        content = content[name]
    content[last] = value
    places[tuple(key.split("."))] = where


def _place(places: Mapping[Keys, str], keys: Keys) -> str:
    """Where a value was written, or the nearest thing around it."""
    return next((places[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in places), "")


_CONFIG = TypeAdapter(Config)


def _checked(content: Mapping[str, Any], places: Mapping[Keys, str]) -> Config:
    """The config that YAML's values are. Raises ConfigError for the first that is wrong."""
    try:
        return _CONFIG.validate_python(content)
    except ValidationError as error:
        # An unknown key first: it is why another one is missing.
        first = min(error.errors(), key=lambda one: one["type"] != "unexpected_keyword_argument")
        problem, keys = _told(first["type"], first["msg"], first["loc"], first["input"], first.get("ctx", {}))
        raise ConfigError(problem, _place(places, keys)) from None


def _told(kind: str, said: str, keys: Keys, value: Any, context: Mapping[str, Any]) -> tuple[str, Keys]:
    """What pydantic found, in the words of a config, and where."""
    *outer, last = keys or ("the config",)
    name = ".".join(map(str, (*outer, last)))
    if kind == "unexpected_keyword_argument":
        return f"unknown key '{last}'; {did_you_mean(str(last), _fields_at(outer))}", keys
    if kind in ("missing", "missing_argument"):
        return f"'{name}' is missing", tuple(outer)
    if kind == "dataclass_type":
        return f"{name} must be a mapping with {', '.join(_fields_at(keys))}", keys
    said = said.removeprefix("Value error, ").replace("Input should be", "must be")
    hint = ""
    if kind == "literal_error" and isinstance(value, str):
        words = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        hint = f"; {did_you_mean(value, words)}" if difflib.get_close_matches(value, words) else ""
    return f"{name} {said}, got {value!r}{hint}", keys


def _fields_at(keys: Iterable[str | int]) -> list[str]:
    """The keys that a place of the config has."""
    kind: Any = Config
    for key in keys:
        if isinstance(key, str):
            annotation = kind.__pydantic_fields__[key].annotation
            kind = next(one for one in _classes(annotation) if hasattr(one, "__pydantic_fields__"))
    return list(kind.__pydantic_fields__)


def _classes(annotation: Any) -> Iterable[Any]:
    """The classes that an annotation such as ``Split | None`` is made of."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from _classes(part)
