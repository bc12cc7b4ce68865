"""What to train, read from YAML: every key is known, every value has its type, an error names file and line."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml

from detectors.transforms import IMAGENET_MEAN, IMAGENET_STD

Keys = tuple[str | int, ...]


class ConfigError(Exception):
    """Bad input: one message that says where (``config.yaml:12``) and what to do. Ends a command with code 2."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)


class Limit(NamedTuple):
    """The smallest value that is allowed, or, if ``open``, the largest that is not."""

    low: float
    open: bool = False
    high: float = math.inf


Count = Annotated[int, Limit(0)]
Positive = Annotated[int, Limit(1)]
PositiveFloat = Annotated[float, Limit(0, open=True)]
NonNegative = Annotated[float, Limit(0)]
Share = Annotated[float, Limit(0, high=1)]


# -- schema ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A model of ``detectors.list_models()`` and arguments of its building function (``frozen_stages``, …)."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """A folder in COCO layout: the file of annotations and the folder of images."""

    annotations: str
    images: str


@dataclass(frozen=True)
class Pixels:
    """How images become numbers: (value - mean) / std of each channel, 0..255; ``order``: of the channels."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    order: Literal["rgb", "bgr"] = "rgb"


@dataclass(frozen=True)
class Data:
    """``keep_empty``: whether images without objects are trained on. ``group_by_shape``: wide images are not put
    into a batch with tall ones. ``workers``: processes that load images, of each rank."""

    train: Split
    val: Split | None = None
    keep_empty: bool = False
    group_by_shape: bool = True
    workers: Count = 2
    pixels: Pixels = Pixels()


@dataclass(frozen=True)
class Resize:
    """``short``: the short side, drawn anew for each image if there are several, unless the long side would pass
    ``long``. Or ``size``: (height, width), whatever the image's ratio. In pixels."""

    short: tuple[Positive, ...] = (800,)
    long: Positive = 1333
    size: tuple[Positive, Positive] | None = None


@dataclass(frozen=True)
class Augment:
    """Changes to training images in the order in which they are made: colours, zoom out, crop, size, mirror.

    ``distort``: brightness, contrast, saturation and hue; ``expand``: onto a canvas of up to that many times the side;
    ``crop``: a part that keeps some overlap with an object (all three as SSD, Liu et al. 2016, section 2.2).
    """

    distort: bool = False
    expand: Annotated[float, Limit(1)] = 1.0
    crop: bool = False
    resize: Resize = Resize()
    flip: Share = 0.5


@dataclass(frozen=True)
class ScheduleConfig:
    """``name`` (1x, 2x, 20e, 3x, 120e), or ``iterations`` and ``steps``, after which the rate is divided by ten.

    ``warmup_factor``: of the rate at iteration 0, from which it grows linearly for ``warmup`` iterations.
    """

    name: Literal["1x", "2x", "20e", "3x", "120e"] | None = None
    iterations: Positive | None = None
    steps: tuple[Positive, ...] = ()
    warmup: Count = 500
    warmup_factor: Share = 0.001


@dataclass(frozen=True)
class ParameterRule:
    """Factors of rate and decay for the parameters whose name the regular expression ``match`` is found in."""

    match: str
    lr: NonNegative = 1.0
    weight_decay: NonNegative = 1.0


@dataclass(frozen=True)
class Optimizer:
    """SGD. ``lr`` is meant for batches of ``lr_for_batch`` images, and for others in proportion; without it, as it is.

    ``rules``: the first that matches a parameter's name counts, then those of the model. ``clip_norm``: limit of the
    norm of all gradients.
    """

    lr: PositiveFloat
    lr_for_batch: Positive | None = None
    momentum: Share = 0.9
    weight_decay: NonNegative = 1e-4
    clip_norm: PositiveFloat | None = None
    rules: tuple[ParameterRule, ...] = ()


@dataclass(frozen=True)
class Checkpoints:
    """Written every so many iterations and at the end; the last ``keep`` stay."""

    every: Positive = 1000
    keep: Positive = 3


@dataclass(frozen=True)
class Evaluate:
    """Evaluation on ``data.val``: at the end and, unless 0, ``every`` so many iterations; ``batch`` images at once."""

    every: Count = 0
    batch: Positive = 1
    resize: Resize = Resize()


@dataclass(frozen=True)
class Config:
    """``batch``: images of a step, all ranks together. ``ema``: decay of the averaged weights, which then are those
    that are evaluated. ``weights``: a checkpoint of ours, or any file of weights for the backbone alone
    (``checkpoint.load_backbone``). ``output``: folder of log and checkpoints."""

    model: Model
    data: Data
    optimizer: Optimizer
    schedule: ScheduleConfig
    output: str
    batch: Positive = 16
    augment: Augment = Augment()
    ema: Annotated[float, Limit(0, open=True, high=1)] | None = None
    weights: str | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: Count = 0
    log_every: Positive = 20
    checkpoint: Checkpoints = Checkpoints()
    evaluate: Evaluate = Evaluate()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Loaded(NamedTuple):
    """A config and where its values were written."""

    config: Config
    places: Mapping[Keys, str]

    def place(self, *keys: str | int) -> str:
        return _place(self.places, keys)


# -- reading ---------------------------------------------------------------------------------------------------------


def load(file: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """The config of a YAML file; ``overrides`` are ``key.of.key=value`` with a value in YAML.

    ``extends: other.yaml`` (beside the file) puts the file's keys over another's. Raises ConfigError.
    """
    content, places = _read(Path(file))
    for override in overrides:
        _override(content, places, override)
    config = _value(content, Config, (), places)
    for problem, keys in _contradictions(config):
        raise ConfigError(problem, _place(places, keys))
    return Loaded(config, places)


def from_dict(content: Mapping[str, Any]) -> Config:
    """What ``Config.as_dict`` gave, as a checkpoint keeps it. Raises ConfigError."""
    return _value(content, Config, (), {})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"


def _contradictions(config: Config) -> Iterable[tuple[str, Keys]]:
    schedule = config.schedule
    if (schedule.name is None) == (schedule.iterations is None):
        yield "give either name (1x, 2x, …) or iterations", ("schedule",)
    if schedule.name is not None and schedule.steps:
        yield f"{schedule.name} has steps of its own; give iterations instead of name", ("schedule", "steps")
    if list(schedule.steps) != sorted(set(schedule.steps)):
        yield "steps have to grow", ("schedule", "steps")
    for keys, resize in (
        (("augment", "resize"), config.augment.resize),
        (("evaluate", "resize"), config.evaluate.resize),
    ):
        if not resize.short:
            yield "short needs a length", (*keys, "short")
        elif resize.size is None and max(resize.short) > resize.long:
            yield f"the short side {max(resize.short)} is longer than the long one", (*keys, "long")
    if len(config.evaluate.resize.short) > 1:
        yield "evaluation takes one short side", ("evaluate", "resize", "short")


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
        raise ConfigError("no such config", str(file)) from None
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
    if not (file.parent / parent).is_file():
        raise ConfigError(f"extends {parent}, which does not exist", _place(places, ("extends",)))
    base, base_places = _read(file.parent / parent, (*below, file.resolve()))
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


def _value(value: Any, kind: Any, keys: Keys, places: Mapping[Keys, str]) -> Any:
    """A value of YAML as a value of the annotated type. Raises ConfigError."""

    def wrong(expected: str) -> ConfigError:
        name = ".".join(map(str, keys)) or "the config"
        return ConfigError(f"{name} is {expected}, not {value!r}", _place(places, keys))

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        number, limit = _value(value, arguments[0], keys, places), arguments[1]
        if not limit.low <= number <= limit.high or (limit.open and number == limit.low):
            raise wrong(_allowed(limit))
        return number
    if origin in (types.UnionType, typing.Union):
        (inner,) = (one for one in arguments if one is not type(None))
        return None if value is None else _value(value, inner, keys, places)
    if origin is Literal:
        if value not in arguments:
            hint = did_you_mean(value, arguments) if isinstance(value, str) else ""
            raise wrong(
                f"one of {', '.join(arguments)} ({hint})" if hint else f"one of {', '.join(arguments)}"
            )
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(items)
        if len(items) != len(arguments):
            raise wrong(f"a list of {len(arguments)}")
        return tuple(
            _value(item, one, (*keys, index), places)
            for index, (item, one) in enumerate(zip(items, arguments, strict=True))
        )
    if is_dataclass(kind):
        return _record(value, kind, keys, places)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise wrong("a mapping")
        return value
    if kind is float:
        return _float(value, wrong)
    if type(value) is not kind:
        raise wrong({int: "a whole number", bool: "true or false", str: "a text"}[kind])
    return value


def _record(value: Any, kind: type, keys: Keys, places: Mapping[Keys, str]) -> Any:
    known = {one.name: one for one in fields(kind)}
    if not isinstance(value, dict):
        name = ".".join(map(str, keys)) or "the config"
        raise ConfigError(f"{name} is a mapping with {', '.join(known)}", _place(places, keys))
    for key in value:
        if key not in known:
            raise ConfigError(
                f"unknown key '{key}'; {did_you_mean(str(key), known)}", _place(places, (*keys, str(key)))
            )
    for name, one in known.items():
        if name not in value and one.default is MISSING and one.default_factory is MISSING:
            raise ConfigError(f"'{'.'.join(map(str, (*keys, name)))}' is missing", _place(places, keys))
    hints = typing.get_type_hints(kind, include_extras=True)
    return kind(**{key: _value(item, hints[key], (*keys, key), places) for key, item in value.items()})


def _float(value: Any, wrong: Any) -> float:
    # YAML 1.1 reads 1e-4 as a text.
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise wrong("a number")
    return number


def _allowed(limit: Limit) -> str:
    low = f"more than {limit.low:g}" if limit.open else f"at least {limit.low:g}"
    return low if limit.high == math.inf else f"{low} and at most {limit.high:g}"
