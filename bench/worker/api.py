"""What an adapter implements. One instance serves one arm, in one process per rank.

The worker owns the clock, the passes and the channel to the session; the adapter only says how this codebase does
each part of a step. Nothing here may import a deep-learning framework.
"""

from __future__ import annotations

import abc
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np


@dataclass(frozen=True)
class Job:
    """All an adapter needs to know, as the session resolved it (plain values, so that any Python can read them).

    ``workload``: the resolved workload of the recipe, as nested dictionaries (see ``bench.recipe.workload.Workload``).
    ``options``: this arm's own settings from the recipe (``arms: - codebase: native; options: {...}``).
    ``model``: what the codebase's ``adapter.yaml`` says of the model (its own name for it and so on).
    ``classes``: category names in label order. ``category_ids``: their ids in the dataset.
    ``dataset``: ``{"images": folder, "annotations": file, "image_ids": [...]}``, the same files for every codebase.
    ``evaluation``: of tasks that evaluate, the folder of the batches of one image each; else None. ``schedule``: of
    `train_eval`, ``{"path", "sha256"}`` of the images of each step; else None.
    ``weights``: an ``.npz`` in this codebase's own parameter names, or None for its own seeded initialisation.
    """

    workload: Mapping[str, Any]
    options: Mapping[str, Any]
    model: Mapping[str, Any]
    classes: Sequence[str]
    category_ids: Sequence[int]
    dataset: Mapping[str, Any]
    weights: Optional[str]
    batches: (
        str  # folder of the shared batches (bench.worker.batches.load_batches); there in every input mode
    )
    threads: int
    rank: int
    world_size: int
    scratch: str  # a folder of this worker's own, removed when the run ends
    evaluation: Optional[str] = None
    schedule: Optional[Mapping[str, str]] = None

    @property
    def training(self) -> bool:
        """Whether the workload takes training steps."""
        return self.workload["task"] in ("train", "train_eval")


@dataclass(frozen=True)
class Batch:
    """One batch as the harness prepared it; every codebase gets the same arrays.

    images: float32 [B, 3, H, W], RGB, normalised, padded with zeros right and bottom.
    image_sizes: int64 [B, 2], (height, width) of the resized image inside the padding.
    original_sizes: int64 [B, 2], (height, width) of the file.
    image_ids: int64 [B].
    boxes / labels / masks: per image, float32 [N, 4] (x1, y1, x2, y2) in input pixels, int64 [N] in 0..K-1,
    uint8 [N, H, W] in {0, 1}; crowd objects are left out.
    """

    images: np.ndarray
    image_sizes: np.ndarray
    original_sizes: np.ndarray
    image_ids: np.ndarray
    boxes: Tuple[np.ndarray, ...]
    labels: Tuple[np.ndarray, ...]
    masks: Tuple[np.ndarray, ...]

    @property
    def size(self) -> int:
        """Images of the batch."""
        return int(self.images.shape[0])


@dataclass(frozen=True)
class Detections:
    """What was found in one image, in pixels of the original file.

    boxes: float32 [N, 4] (x1, y1, x2, y2); scores: float32 [N]; labels: int64 [N] in 0..K-1;
    masks: bool [N, height, width] of the original image, or None for models without masks.
    """

    image_id: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: Optional[np.ndarray] = None


@dataclass
class Description:
    """What the equal-work audit compares (`describe`). Unknown facts stay None; extra ones go to ``extra``."""

    parameters: Optional[int] = None
    trainable_parameters: Optional[int] = None
    parameters_by_module: Dict[str, int] = field(default_factory=dict)
    trainable_by_module: Dict[str, int] = field(default_factory=dict)
    # Of convolutions and linear layers, multiply and add counted separately: of a forward pass, and of forward and
    # backward pass of a training step. Where the audit observes a codebase, the session takes them from there.
    forward_flops: Optional[int] = None
    training_flops: Optional[int] = None
    input_shape: Optional[List[int]] = None
    input_dtype: Optional[str] = None
    input_layout: Optional[str] = None
    objects: Optional[int] = None  # ground-truth objects of the batch, as the losses get them
    precision: Optional[str] = None
    optimizer: Optional[Dict[str, Any]] = None
    postprocess: Dict[str, Any] = field(default_factory=dict)
    loss_terms: List[str] = field(default_factory=list)  # as the FLOPs
    threads: Optional[int] = None
    library: Dict[str, Any] = field(default_factory=dict)  # versions and settings of the framework
    kernels: str = ""  # whose operator kernels run, where a codebase has a choice
    extra: Dict[str, Any] = field(default_factory=dict)


class Observer(abc.ABC):
    """The harness's hooks into one framework, for the audit: it hands over what it sees, and judges nothing."""

    #: What `reproducible` changed, in words that a report can show; the same words for the same thing everywhere.
    randomness: Sequence[str] = ()

    @abc.abstractmethod
    def reproducible(self) -> ContextManager[None]:
        """Inside, samplers take the first candidates instead of random ones, and layers that drop values drop none."""

    @abc.abstractmethod
    def watching(self, phase: str, sink: Any) -> ContextManager[None]:
        """Inside, tell ``sink`` (`bench.worker.sink.Sink`) of every operation of a phase of the step."""

    @abc.abstractmethod
    def tensors(self, kind: str) -> Dict[str, np.ndarray]:
        """float32 arrays by the codebase's names of the parameters, which the next step may overwrite.

        Args:
            kind: ``weights`` (buffers of normalisation included), ``gradients`` (those that exist, unscaled),
                ``momentum``, or ``average`` (of the weights; empty without an EMA).
        """

    def settings(self) -> Dict[str, Any]:
        """Settings of the framework now: ``threads``, and what else decides how it computes."""
        return {}


class Adapter(abc.ABC):
    """Drives one codebase. Methods marked *timed* run inside the measured step and must not synchronise."""

    #: Version of the codebase; recorded.
    version: str = ""
    #: The import whose folder is the codebase's source; its git revision is recorded when it has one.
    package: str = ""

    def __init__(self, job: Job) -> None:
        self.job = job

    @staticmethod  # noqa: B027  (a codebase without models of its own has none to find)
    def find_model(name: str) -> None:
        """Look for a model by the codebase's own name of it, as a dry run does before any model is built.

        Raises:
            ValueError: There is none; the message says which names are near.
        """

    @abc.abstractmethod
    def prepare(self) -> None:
        """Build the model, load ``job.weights``, make optimizer and EMA. Seed everything from the workload."""

    @abc.abstractmethod
    def describe(self, data: Any) -> Description:
        """Facts about the work, for the audit. ``data`` is one converted batch."""

    def observer(self) -> Optional[Observer]:
        """What the audit sees this codebase by. None: nothing can be shown of it, and it is never called equal."""
        return None

    def current_threads(self) -> Optional[int]:
        """Threads that the framework computes with now. None: not known."""
        return None

    # -- input ---------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def convert(self, batch: Batch) -> Any:
        """The codebase's own form of a shared batch. Not timed: it happens once, before measuring."""

    def pipeline(self) -> Iterator[Any]:
        """*Timed.* An endless iterator over the codebase's own loader (``input: pipeline``)."""
        raise NotImplementedError(f"{type(self).__name__} has no pipeline input; use input.mode: shared")

    def load(self, data: Any) -> Any:
        """*Timed*, the last part of the data phase: move a batch to the device."""
        return data

    # -- training ------------------------------------------------------------------------------------------------

    def forward(self, data: Any) -> Any:
        """*Timed.* Clear gradients, run the model, return the losses in any form the next methods understand."""
        raise NotImplementedError

    def backward(self, losses: Any) -> None:
        """*Timed:* compute all gradients."""
        raise NotImplementedError

    def unaveraged(self) -> Optional[ContextManager[None]]:
        """Inside, gradients stay those of this rank. None: there is one rank, or the codebase cannot."""
        return None

    def optimizer_step(self) -> None:
        """*Timed:* update the weights."""
        raise NotImplementedError

    def ema_update(self) -> None:
        """*Timed.* Called when the workload asks for EMA."""
        raise NotImplementedError

    def squares(self) -> Dict[str, float]:
        """Sums of squares: of all ``weights``, and if there is one of ``average`` and ``momentum``. Not timed."""
        return {}

    def scale_learning_rate(self, factor: float) -> None:
        """Make every learning rate ``factor`` times its initial value, for the next step. Not timed."""
        raise NotImplementedError(
            f"{type(self).__name__} has no schedule; leave optimizer.warmup and milestones out"
        )

    def loss_values(self, losses: Any) -> Dict[str, float]:
        """The losses of a step as numbers. Called outside the timed region."""
        raise NotImplementedError

    # -- inference -----------------------------------------------------------------------------------------------

    def network(self, data: Any) -> Any:
        """*Timed.* From a loaded batch to raw predictions."""
        raise NotImplementedError

    def postprocess(self, raw: Any, data: Any) -> Sequence[Any]:
        """*Timed.* From raw predictions to final detections of each image, masks pasted at the original size."""
        raise NotImplementedError

    def detections(self, processed: Sequence[Any], data: Any) -> List[Detections]:
        """The result of ``postprocess`` as numpy arrays. Not timed."""
        raise NotImplementedError

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Inside, inference uses what the codebase would evaluate: the averaged weights, if it keeps any."""
        yield

    # -- device --------------------------------------------------------------------------------------------------

    def mark(self) -> Any:
        """*Timed.* A mark in time between two steps: the host's clock, or an event on the device's stream."""
        return time.perf_counter_ns()

    def marks_ns(self, marks: Sequence[Any]) -> List[int]:
        """The marks of one block on one clock, in nanoseconds. Called after ``synchronize``."""
        return list(marks)

    def synchronize(self) -> None:  # noqa: B027  (a CPU codebase has nothing to wait for)
        """Return when all submitted work is done."""

    def reset_device_memory_peak(self) -> None:  # noqa: B027
        """Start a new peak on the device; the host's peak is the worker's affair."""

    def device_memory(self) -> Dict[str, int]:
        """Peaks in bytes since the reset: ``allocated``, ``reserved``. Empty on CPU."""
        return {}

    def peak_flops_per_s(self) -> Dict[str, float]:
        """What this framework reaches here on operations that nothing but arithmetic limits.

        Returns:
            ``{"matrix product": FLOP/s, "convolution": FLOP/s}`` with the job's device, threads and precision. Empty:
            not known.
        """
        return {}

    def operator_seconds(self, step: Callable[[], None]) -> Dict[str, float]:  # noqa: ARG002  (nothing to look for)
        """Run one step under the framework's profiler.

        Returns:
            Seconds, by name, of each operator whose kernels differ so much between codebases and devices that a ratio
            can be theirs alone. Empty, without a step: the model has none.
        """
        return {}

    # -- state ---------------------------------------------------------------------------------------------------

    def save_weights(self, path: str) -> None:
        """Write all parameters and buffers as ``.npz`` in this codebase's own names."""
        raise NotImplementedError

    def save_state(self, path: str) -> None:
        """Write all that the next training step depends on (weights, momentum, EMA, random numbers), without pickles.

        A process that reads it by `load_state` takes the same step, to the bit on one thread.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot save its state, which task train_eval needs")

    def load_state(self, path: str) -> None:
        """Continue from what `save_state` of the same job wrote. Called after ``prepare``."""
        raise NotImplementedError(f"{type(self).__name__} cannot load a state, which task train_eval needs")

    def export(self, path: str) -> None:
        """Write the prepared model with its post-processing as an ONNX file (`bench export-model`).

        The graph takes one image of the workload's size, prepared as a shared batch is, float32 [1, 3, H, W], and gives
        boxes [N, 4] in pixels of the input, scores [N] and labels [N] in 0..K-1, or what another decoder of the adapter
        of ONNX files reads, whose name it notes in the file.
        """
        raise NotImplementedError("this codebase writes no ONNX; native, torchvision and transformers do")

    def close(self) -> None:  # noqa: B027
        """Release what would outlive the process (loader processes, process groups)."""
