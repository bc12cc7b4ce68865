"""Train a model: ``python -m detectors.train CONFIG``; with ``torchrun -m detectors.train CONFIG`` on several devices.

Log lines are described in the README. The log goes to ``<output>/train.log``, checkpoints into the same folder;
``--resume`` goes on from the last of them and, on one thread, ends with the very weights of a training that never
stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from detectors import config as configs
from detectors import cpu, runtime, training_state
from detectors.coco import AugmentedCoco, BadImage, Batch, CocoFolder, Collate, Prepare
from detectors.config import Config, ConfigError, Loaded, Optimizer
from detectors.ema import EMA
from detectors.eval import check_views, evaluate
from detectors.meter import Meter, Records
from detectors.order import TrainingOrder, repeated
from detectors.parameter_rules import Rule, parameter_groups
from detectors.runtime import Failed, Ranks, log
from detectors.schedule import Schedule, make_schedule
from detectors.structures import Target

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: What may change when a training goes on without a word about it.
UNIMPORTANT = (
    "output",
    "log_every",
    "checkpoint.",
    "evaluate.",
    "data.val",
    "data.workers",
    "device",
    "records",
)


class Losses(nn.Module):
    """The model's losses as one ``forward``, which is what DistributedDataParallel can wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, image_sizes: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The model's ``losses``."""
        return self.model.losses(images, image_sizes, targets)


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Let the random numbers of a step follow from its number, so that there is no generator to store."""
    first, second = np.random.SeedSequence((seed, iteration, rank)).generate_state(2, np.uint32).tolist()
    torch.manual_seed((first << 32 | second) >> 1)


def optimizer_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Trainable parameters by rule; ``lr_factor`` of a group is what the schedule's rate is multiplied with.

    Raises ValueError for a rule that fits no trainable parameter, which is a mistake in its expression.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for rule in optimizer.rules:
        if not any(re.search(rule.match, name) for name in names):
            raise ValueError(f"{rule.match!r} is found in no trainable parameter's name")
    rules = [Rule(*astuple(rule)) for rule in optimizer.rules]
    groups = parameter_groups(model, lr=1.0, weight_decay=optimizer.weight_decay, rules=rules)
    return [{**group, "lr_factor": group["lr"]} for group in groups]


class Trainer:
    """A model in training. ``step`` makes one step of it; nothing in a step reads a value back from the device."""

    def __init__(self, model: nn.Module, config: Config, schedule: Schedule, ranks: Ranks) -> None:
        self.model = model
        self.config = config
        self.schedule = schedule
        self.ranks = ranks
        self.dtype = DTYPES[config.precision]
        losses: nn.Module = Losses(model)
        if config.compile:
            losses = runtime.compiled(losses)
        # Statistics of batch normalisation stay each rank's own, as in detectron2 and mmdetection.
        how = {
            "broadcast_buffers": False,
            "gradient_as_bucket_view": True,
            "static_graph": config.optimizer.accumulate == 1,  # no_sync does not go with it
        }
        self.losses = DistributedDataParallel(losses, **how) if ranks.count > 1 else losses
        groups = optimizer_groups(model, config.optimizer)
        settings = config.optimizer
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, lr=schedule.lr, momentum=settings.momentum, fused=True)
            if settings.name == "sgd"
            else torch.optim.AdamW(groups, lr=schedule.lr, betas=settings.betas, fused=True)
        )
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "float16")
        self.ema = None if config.ema is None else EMA(model, config.ema)

    def step(self, iteration: int, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of the batch, before the step."""
        seed_step(self.config.seed, iteration, self.ranks.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr_at(iteration) * group["lr_factor"]
        losses = self.gradients(batch)
        if self.config.optimizer.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.optimizer.clip_norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return losses

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Add to the gradients (times the scale of float16), averaged over ranks; loss terms."""
        parts = batch.parts(self.config.optimizer.accumulate)
        found: list[dict[str, Tensor]] = []
        for place, part in enumerate(parts, start=1):
            # Ranks wait for each other's gradients after the last part only.
            alone = place < len(parts) and isinstance(self.losses, DistributedDataParallel)
            with self.losses.no_sync() if alone else contextlib.nullcontext():
                found.append(self._gradients(part, share=1 / len(parts)))
        return {name: torch.stack([one[name] for one in found]).mean(dim=0) for name in found[0]}

    def _gradients(self, batch: Batch, *, share: float) -> dict[str, Tensor]:
        """Of a part of a batch, whose loss counts by its ``share``."""
        autocast = torch.autocast(
            self.ranks.device.type, self.dtype, enabled=self.dtype is not torch.float32, cache_enabled=True
        )
        with autocast:
            losses = self.losses(batch.images, batch.sizes(), batch.targets)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self.scaler.scale(total * share if share < 1 else total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def evaluated_model(self) -> nn.Module:
        """The averaged model if there is one, else the model itself."""
        return self.model if self.ema is None else self.ema.model

    def state(self, iteration: int) -> training_state.State:
        """What a checkpoint holds after so many steps."""
        return training_state.state_of(
            iteration, self.model, self.optimizer, self.ema, self.scaler, self.config.as_dict()
        )

    def restore(self, state: training_state.State) -> int:
        """Go on from what ``state`` gave; returns the iteration to go on with."""
        return training_state.restore(state, self.model, self.optimizer, self.ema, self.scaler)


# -- putting it together ---------------------------------------------------------------------------------------------


def training_images(coco: CocoFolder, loaded: Loaded) -> list[int]:
    """The images to train on, rare ones several times. Raises ConfigError if there are none."""
    config = loaded.config
    chosen = [one for one in sorted(coco.files) if config.data.keep_empty or coco.has_objects(one)]
    if not chosen:
        raise ConfigError("no image has an object to learn", loaded.place("data", "train", "annotations"))
    shown = [{one["category_id"] for one in coco.objects[image]} for image in chosen]
    return repeated(chosen, shown, config.data.repeat)


def training_batches(
    coco: CocoFolder,
    image_ids: Sequence[int],
    config: Config,
    ranks: Ranks,
    first: int,
    prepare: Prepare | None = None,
) -> Iterator[Batch]:
    """This rank's share of the batches from iteration ``first`` on, without end. ``prepare``: see ``Collate``."""
    sizes = [coco.sizes[image_id] for image_id in image_ids]
    is_wide = [config.data.group_by_shape and width >= height for height, width in sizes]
    order = TrainingOrder(
        image_ids,
        is_wide,
        batch=config.batch,
        seed=config.seed,
        first=first,
        rank=ranks.rank,
        ranks=ranks.count,
    )
    workers = config.data.workers
    loader = DataLoader(
        AugmentedCoco(
            coco, config.augment, config.data.pixels, config.seed, skip_broken=config.data.skip_broken
        ),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=Collate(
            config.data.pixels,
            config.augment.resize,
            as_bytes=ranks.device.type == "cuda",
            prepare=prepare,
        ),
        pin_memory=ranks.device.type == "cuda",
        worker_init_fn=runtime.ignore_interrupts,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def start_model(loaded: Loaded, coco: CocoFolder, ranks: Ranks, *, resumed: bool) -> nn.Module:
    """The model as training starts with it, on its device: random, or with the weights of ``weights``.

    Raises:
        ConfigError: when ``weights`` do not fit, or random layers would never learn.
    """
    config = loaded.config
    torch.manual_seed(config.seed)
    model = runtime.build_model(loaded, len(coco.category_ids))
    coco.masks = runtime.uses_masks(model)
    if coco.masks:
        try:
            coco.require_outlines()
        except ValueError as error:
            raise ConfigError(str(error), loaded.place("data", "train", "annotations")) from None
    else:
        _refuse_masks(loaded)
    _semantic_maps(model, coco, loaded)
    if config.weights is not None and not resumed:
        runtime.begin_with(model, config.weights, loaded)
    if config.weights is None and not resumed and (frozen := runtime.frozen_names(model)):
        problem = f"{len(frozen)} weights are random and never learn, such as {frozen[0]}"
        hint = "set weights: imagenet or a file, or model.settings: {frozen_stages: 0, frozen_bn: false}"
        raise ConfigError(f"{problem}; {hint}", loaded.place("model"))
    model.to(ranks.device, memory_format=torch.channels_last)
    return runtime.synchronised(model, loaded, ranks)


def _refuse_masks(loaded: Loaded) -> None:
    """Raises ConfigError for what would be left out without a word, since the model has no masks."""
    config = loaded.config
    asked = {"augment": ("copy_paste", config.augment.copy_paste > 0)}
    asked["checkpoint"] = ("best", config.checkpoint.best == "segm")
    for place, (key, wanted) in asked.items():
        if wanted:
            raise ConfigError(f"{key} needs masks; {config.model.name} has none", loaded.place(place, key))


def _semantic_maps(model: nn.Module, coco: CocoFolder, loaded: Loaded) -> None:
    """Let the images come with classes of pixels if the model learns them. Raises ConfigError if there are none."""
    head = getattr(model, "semantic_head", None)
    if head is None:
        return
    folder = loaded.config.data.train.semantic
    name = loaded.config.model.name
    if folder is None:
        problem = f"{name} learns classes of pixels; set data.train.semantic to the folder of their maps"
        other = name.replace("htc_", "htc_without_semantic_", 1)
        raise ConfigError(f"{problem}, or take {other}", loaded.place("model", "name"))
    if not Path(folder).is_dir():
        raise ConfigError(f"no such folder: {folder}", loaded.place("data", "train", "semantic"))
    coco.semantic, coco.semantic_classes = Path(folder), head.classes.out_channels


def train(loaded: Loaded, *, resume: bool = False) -> int:
    """Train as the config says; returns an exit code. Raises ConfigError and Failed."""
    config = loaded.config
    output = Path(config.output)
    before = training_state.checkpoints(output)
    if before and not resume:
        raise ConfigError(
            f"{output} holds {before[-1].name}; --resume goes on from it", loaded.place("output")
        )
    state = training_state.read(before[-1]) if before else None
    with runtime.ranks(config.device) as ranks, runtime.logging_to(output / "train.log", first=ranks.first):
        if config.batch % (ranks.count * config.optimizer.accumulate):
            parts = f"{ranks.count} ranks in {config.optimizer.accumulate} parts each"
            raise ConfigError(f"{config.batch} images cannot be shared by {parts}", loaded.place("batch"))
        cpu.use(config.kernels)
        log.info("kernels: %s", cpu.describe(ranks.device))
        coco, image_ids, trainer = _prepare(loaded, ranks, resumed=state is not None)
        val = None
        if config.data.val is not None:
            check_views(trainer.model, loaded)
            val = runtime.coco_folder(loaded, "val")
            runtime.check_categories(coco.category_ids, val, loaded)
        first = 0
        if state is not None:
            if state["category_ids"] != coco.category_ids:
                place = loaded.place("data", "train", "annotations")
                raise ConfigError(f"{before[-1]} was trained on other categories", place)
            for difference in training_state.differences(state["config"], config.as_dict()):
                if not difference.startswith(UNIMPORTANT):
                    log.info("resumed with another setting: %s", difference)
            first = trainer.restore(state)
            log.info("resumed from %s", before[-1])
        with runtime.StopRequest().listening() as stop:
            return _run(trainer, coco, image_ids, val, first, stop)


def _prepare(loaded: Loaded, ranks: Ranks, *, resumed: bool) -> tuple[CocoFolder, list[int], Trainer]:
    """What to train on, its images, and the trainer."""
    config = loaded.config
    coco = runtime.coco_folder(loaded, "train")
    runtime.check_hook(loaded)
    image_ids = training_images(coco, loaded)
    model = start_model(loaded, coco, ranks, resumed=resumed)
    lr = config.optimizer.lr
    if config.optimizer.lr_for_batch is not None:
        lr *= config.batch / config.optimizer.lr_for_batch
    schedule = make_schedule(config.schedule, lr=lr, iterations_per_epoch=-(-len(image_ids) // config.batch))
    try:
        trainer = Trainer(model.train(), config, schedule, ranks)
    except (ValueError, re.error) as error:
        raise ConfigError(str(error), loaded.place("optimizer", "rules")) from None
    trainable = sum(one.numel() for group in trainer.optimizer.param_groups for one in group["params"])
    log.info(
        "%s on %d x %s, %d images, %d classes, %d iterations of %d images, %.2f of %.2f million parameters trainable",
        config.model.name,
        ranks.count,
        ranks.device.type,
        len(image_ids),
        len(coco.category_ids),
        schedule.iterations,
        config.batch,
        trainable / 1e6,
        sum(one.numel() for one in model.parameters()) / 1e6,
    )
    return coco, image_ids, trainer


def _save(
    trainer: Trainer, coco: CocoFolder, output: Path, iteration: int, *, best: float | None = None
) -> None:
    """Write a checkpoint, or that of the ``best`` AP. Raises Failed where that is impossible."""
    more = {"category_ids": coco.category_ids, "category_names": coco.category_names, "best": best}
    keep = trainer.config.checkpoint.keep
    try:
        path = training_state.save({**trainer.state(iteration), **more}, output, keep)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
        raise Failed(f"cannot write a checkpoint to {output}: {str(error).splitlines()[0]}") from None
    log.info("wrote %s", path)


def _run(
    trainer: Trainer,
    coco: CocoFolder,
    image_ids: Sequence[int],
    val: CocoFolder | None,
    first: int,
    stop: runtime.StopRequest,
) -> int:
    config, ranks, schedule = trainer.config, trainer.ranks, trainer.schedule
    output = Path(config.output)
    batches = training_batches(coco, image_ids, config, ranks, first, getattr(trainer.model, "prepare", None))
    meter = Meter(ranks, config.batch)
    records = Records(output, config.records if ranks.first else (), config.as_dict())
    save = partial(_save, trainer, coco, output)
    looks = Looks(trainer, coco.category_ids, records, save)
    for iteration in range(first, schedule.iterations):
        waiting = time.perf_counter()
        batch = next(batches).to(ranks.device)
        data_s = time.perf_counter() - waiting
        try:
            meter.add(trainer.step(iteration, batch), data_s)
        except RuntimeError:
            if stop.requested and not ranks.first:  # the first rank has stopped and is gone
                return runtime.INTERRUPTED
            raise
        done = iteration + 1
        last = done == schedule.iterations
        if done % config.log_every == 0 or last:
            log.info("%s", meter.line(done, schedule))
            records.add(done, meter.numbers)
            meter.reset()
        if stop.requested and ranks.first and not last:
            save(done)
            log.info("stopped after iteration %d; --resume goes on from here", done)
            return runtime.INTERRUPTED
        if done % config.checkpoint.every == 0 or last:
            if meter.count:
                meter.losses()  # weights of a loss that is no number are not worth keeping
            if ranks.first:
                save(done)
        due = config.evaluate.every and done % config.evaluate.every == 0
        if val is not None and (due or last):
            start_s = time.perf_counter()
            if looks.after(done, val) and not last:
                if ranks.first:
                    save(done)
                log.info("no better AP in %d evaluations: stopped after iteration %d", looks.stale, done)
                return 0
            meter.pause(time.perf_counter() - start_s)
    return 0


class Looks:
    """Evaluations on the way: their numbers, the checkpoint of the best, and when there is nothing to wait for."""

    def __init__(
        self, trainer: Trainer, category_ids: Sequence[int], records: Records, save: Callable[..., None]
    ) -> None:
        self.trainer = trainer
        self.category_ids = category_ids
        self.records = records
        self.save = save
        self.output = Path(trainer.config.output)
        self.best = training_state.best(self.output)
        self.stale = 0  # evaluations since the best one

    def after(self, done: int, val: CocoFolder) -> bool:
        """Evaluate after so many iterations; whether ``checkpoint.patience`` is at an end."""
        config, ranks = self.trainer.config, self.trainer.ranks
        model = self.trainer.evaluated_model()
        found = evaluate(model, val, config, self.category_ids, ranks, self.output / "eval")
        self.stale += 1
        task = config.checkpoint.best
        if found is not None:  # on the first rank
            self.records.add(done, found.numbers())
            if task in found.metrics and found.metrics[task]["AP"] > self.best:
                self.best, self.stale = found.metrics[task]["AP"], 0
                self.save(done, best=self.best)
        patience = config.checkpoint.patience
        return patience is not None and ranks.largest(float(ranks.first and self.stale >= patience)) > 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m detectors.train", description="Train a detector.")
    parser.add_argument("config", help="YAML, see detectors/configs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the config")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in the output folder"
    )
    given = parser.parse_args(arguments)
    try:
        return train(configs.load(given.config, given.set), resume=given.resume)
    except (ConfigError, BadImage) as error:
        print(f"error: {error}", file=sys.stderr)
        return runtime.BAD_INPUT
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return runtime.FAILED
    except KeyboardInterrupt:
        return runtime.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
