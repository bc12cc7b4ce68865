"""What training and evaluation share: ranks and devices, the log, signals, a config's model and data."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detectors import preflight, training_state
from detectors.c4 import whole_backbone
from detectors.checkpoint import LoadReport, load_backbone
from detectors.coco import CocoFolder
from detectors.coco_classes import COCO_IDS, COCO_NAMES
from detectors.config import ConfigError, Loaded, Model, Split
from detectors.foreign import WITHOUT_EPSILON, load_weights
from detectors.imagenet import imagenet_weights
from detectors.layers import FrozenBatchNorm2d
from detectors.registry import build
from detectors.weight_files import read_checkpoint

log = logging.getLogger("detectors")

MIB = 1024 * 1024
INTERRUPTED = 130
BAD_INPUT = 2
FAILED = 4


class Failed(Exception):
    """The work cannot go on, though the input was good: a loss that is no number, a full disk. Exit code 4."""


# -- ranks -----------------------------------------------------------------------------------------------------------


class Ranks(NamedTuple):
    """This process among ``count`` that train together (started by torchrun), and where it computes."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank writes log and checkpoints."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of values over all ranks."""
        return values if self.count == 1 else self._reduced(values, dist.ReduceOp.SUM) / self.count

    def largest(self, value: float) -> float:
        """The largest value of all ranks."""
        values = torch.tensor([value], dtype=torch.float64, device=self.device)
        return value if self.count == 1 else self._reduced(values, dist.ReduceOp.MAX).item()

    @staticmethod
    def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        values = values.clone()
        dist.all_reduce(values, operation)
        return values


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun's environment names, if any: nccl on CUDA, gloo elsewhere."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available", "device")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    count = int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
    if count == 1:
        yield Ranks(0, 1, place)
        return
    dist.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield Ranks(dist.get_rank(), count, place)
    finally:
        dist.destroy_process_group()


def max_memory_bytes(device: torch.device) -> int:
    """Highest allocated memory of the device since the start; on a CPU the highest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def synchronise(device: torch.device) -> None:
    """Wait for a device to have done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- log and signals -------------------------------------------------------------------------------------------------


def make_folder(folder: Path) -> None:
    """Make a folder for results if it is not there. Raises ConfigError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot be made: {error.strerror}", str(folder)) from None
    if not os.access(folder, os.W_OK):
        raise ConfigError("cannot be written to", str(folder))


@contextmanager
def logging_to(file: Path, *, first: bool) -> Iterator[None]:
    """Log to standard output and to the end of ``file``, from the first rank only."""
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if first:
        make_folder(file.parent)
        handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(file)]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


class StopRequest:
    """Set by the first Ctrl-C or SIGTERM; a second one ends the process as usual.

    Only the first rank stops of itself. The others go on, since it needs them to finish its step, until it leaves them.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """While open, signals set ``requested``."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def ignore_interrupts(worker: int) -> None:  # noqa: ARG001
    """In a loader's process: Ctrl-C goes to all processes of a terminal, and the batch under way is still wanted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# -- from a config ---------------------------------------------------------------------------------------------------


def build_model(loaded: Loaded, num_classes: int) -> nn.Module:
    """Raises ConfigError for an unknown model or a setting that it does not have."""
    preflight.check_model(loaded)
    asked: Model = loaded.config.model
    try:
        model = build(asked.name, num_classes=num_classes, **asked.settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{asked.name}: {error}", loaded.place("model", "settings")) from None
    if getattr(model, "rpn", model) is None:
        problem = f"{asked.name} takes proposals, which a COCO folder does not hold; train it from Python"
        raise ConfigError(problem, loaded.place("model", "name"))
    return model


def compiled(losses: nn.Module) -> nn.Module:
    """The losses by ``torch.compile``."""
    # Numbers of objects and of proposals are values of tensors; without these each would end a graph.
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    torch._dynamo.config.capture_scalar_outputs = True
    return torch.compile(losses)


def uses_masks(model: nn.Module) -> bool:
    """Whether the model has a part for masks, and so learns from them."""
    parts = (part for name, part in model.named_children() if "mask" in name)
    return any(True for part in parts for _ in part.parameters())


def coco_folder(loaded: Loaded, name: str) -> CocoFolder:
    """The split ``data.<name>``, without masks. Raises ConfigError."""
    split: Split | None = getattr(loaded.config.data, name)
    if split is None:
        raise ConfigError(f"data.{name} is missing", loaded.place("data"))
    for key, exists in (
        ("annotations", Path(split.annotations).is_file()),
        ("images", Path(split.images).is_dir()),
    ):
        if not exists:
            kind = "file" if key == "annotations" else "folder"
            raise ConfigError(f"no such {kind}: {getattr(split, key)}", loaded.place("data", name, key))
    try:
        coco = CocoFolder(split.annotations, split.images, masks=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        place = loaded.place("data", name, "annotations")
        told = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ConfigError(f"not annotations in COCO's form: {told}", place) from None
    there = set(os.listdir(split.images))
    missing = [
        file for file in coco.files.values() if file not in there and not (coco.folder / file).is_file()
    ]
    if missing:
        problem = (
            f"{len(missing)} of {len(coco.files)} images are not in {split.images}, among them {missing[0]}"
        )
        raise ConfigError(problem, loaded.place("data", name, "images"))
    return coco


def take_weights(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Take all weights of a model of ours. Raises ConfigError if one does not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            f"weights of another model or setting: {str(error).splitlines()[1].strip()}", path
        ) from None


class Trained(NamedTuple):
    """A model with its weights, in evaluation mode, and what its labels mean: ids and names of categories."""

    model: nn.Module
    category_ids: list[int]
    names: list[str]


def trained(loaded: Loaded, checkpoint: str, *, averaged: bool = True) -> Trained:
    """The model of a config with the weights of a checkpoint.

    Args:
        loaded: the config of the model.
        checkpoint: of ours, or of torchvision, mmdetection, detectron2 or PaddleDetection with COCO's 80 classes.
        averaged: whether the averaged weights are taken, if there are some.

    Raises:
        ConfigError: when the checkpoint is not there or does not fit.
    """
    if not Path(checkpoint).is_file():
        raise ConfigError("no such checkpoint", checkpoint)
    if training_state.is_checkpoint(checkpoint):
        state = training_state.read(checkpoint)
        ids = state["category_ids"]
        names = state.get("category_names") or [str(one) for one in ids]
        model = build_model(loaded, len(ids))
        take_weights(model, training_state.weights(state, averaged=averaged), checkpoint)
    else:
        ids, names = list(COCO_IDS), list(COCO_NAMES)
        model = build_model(loaded, len(ids))
        try:
            report, _ = load_fitting(model, read_checkpoint(checkpoint), Path(checkpoint).stem)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(str(error).splitlines()[0], checkpoint) from None
        if not report.complete:
            raise ConfigError(f"not the weights of {loaded.config.model.name} on COCO: {report}", checkpoint)
    return Trained(model.to(memory_format=torch.channels_last).eval(), ids, names)


def begin_with(model: nn.Module, weights: str, loaded: Loaded) -> None:
    """Take the weights of ``weights``: "imagenet", or a file of a whole detector, ours or another's, or of a backbone.

    Raises:
        ConfigError: when there is no such file, nothing in it fits, or a layer that never learns is not in it.
    """
    place = loaded.place("weights")
    try:
        state = imagenet_weights(loaded.config.model.name) if weights == "imagenet" else _weights_in(weights)
        report, part = load_fitting(model, state, Path(weights).stem)
    except ConfigError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ConfigError(str(error).splitlines()[0], place) from None
    log.info("weights from %s, %s", weights, report)
    random = sorted(set(frozen_names(part)) & {*report.missing, *report.other_shape})
    if random:
        problem = f"{weights} has no weights for layers that never learn: {', '.join(random[:3])}"
        raise ConfigError(f"{problem}, …; lower frozen_stages", place)


def _weights_in(path: str) -> Mapping[str, Tensor]:
    if training_state.is_checkpoint(path):
        return training_state.weights(training_state.read(path))
    return read_checkpoint(path)


def load_fitting(
    model: nn.Module, state: Mapping[str, Tensor], file: str = ""
) -> tuple[LoadReport, nn.Module]:
    """Take the weights of a whole detector, else of a backbone.

    Args:
        model: made by ``build``.
        state: weights by name.
        file: the name of their file, by which torchvision's without an epsilon are known.

    Returns:
        The report, and the module that its names are of.

    Raises:
        ValueError: when nothing fits.
    """
    try:
        report = load_weights(model, state, epsilon=0.0 if file in WITHOUT_EPSILON else None)
        if 2 * len(report.matched) >= sum(1 for _ in model.backbone.parameters()):
            return report, model
    except ValueError:
        pass  # of no detector
    backbone = whole_backbone(model)
    return load_backbone(backbone, state), backbone


def frozen_names(module: nn.Module) -> list[str]:
    """Parameters that never learn, and the constants of frozen normalisation."""
    constants = [
        f"{path}.{name}"
        for path, part in module.named_modules()
        if isinstance(part, FrozenBatchNorm2d)
        for name, _ in part.named_buffers()
    ]
    return [*(name for name, one in module.named_parameters() if not one.requires_grad), *constants]


def check_categories(known: list[int], coco: CocoFolder, loaded: Loaded) -> None:
    """Raises ConfigError if the model knows categories that ``data.val`` does not have."""
    if unknown := sorted(set(known) - set(coco.category_ids)):
        place = loaded.place("data", "val", "annotations")
        raise ConfigError(f"the model knows categories that are not in this file: {unknown}", place)
