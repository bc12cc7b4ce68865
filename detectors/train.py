"""Train a model: ``python -m detectors.train CONFIG``; with ``torchrun -m detectors.train CONFIG`` on several devices.

Log lines are described in the README. The log goes to ``<output>/train.log``, checkpoints into the same folder;
``--resume`` goes on from the last of them and, on one thread, ends with the very weights of a training that never
stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from detectors import config as configs
from detectors import cpu, preflight, runtime, training_state
from detectors.coco import BadImage, CocoFolder
from detectors.config import ConfigError, Loaded
from detectors.eval import check_views, evaluate
from detectors.meter import Meter, Records
from detectors.runtime import Failed, Ranks, log
from detectors.schedule import make_schedule
from detectors.trainer import Trainer
from detectors.training_input import Images, read_images, start_model, training_batches

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


def train(loaded: Loaded, *, resume: bool = False) -> int:
    """Train as the config says; returns an exit code. Raises ConfigError and Failed."""
    config = loaded.config
    output = Path(config.output)
    before = training_state.checkpoints(output)
    if before and not resume:
        raise ConfigError(
            f"{output} holds {before[-1].name}; --resume goes on from it", loaded.place("output")
        )
    preflight.check(loaded, resumed=bool(before))
    state = training_state.read(before[-1]) if before else None
    with runtime.ranks(config.device) as ranks, runtime.logging_to(output / "train.log", first=ranks.first):
        preflight.check_ranks(loaded, ranks.count, ranks.device.type)
        cpu.use(config.kernels)
        log.info("kernels: %s", cpu.describe(ranks.device))
        images = read_images(loaded)
        if state is not None and state["category_ids"] != images.coco.category_ids:
            place = loaded.place("data", "train", "annotations")
            raise ConfigError(f"{before[-1]} was trained on other categories", place)
        trainer = _trainer(loaded, images, ranks, resumed=state is not None)
        first = 0
        if state is not None:
            for difference in training_state.differences(state["config"], config.as_dict()):
                if difference.startswith("optimizer.name"):
                    problem = f"{before[-1]} has the state of another optimizer: {difference}"
                    raise ConfigError(problem, loaded.place("optimizer", "name"))
                if not difference.startswith(UNIMPORTANT):
                    log.info("resumed with another setting: %s", difference)
            first = trainer.restore(state)
            log.info("resumed from %s", before[-1])
        with runtime.StopRequest().listening() as stop:
            return _run(trainer, images, first, stop)


def _trainer(loaded: Loaded, images: Images, ranks: Ranks, *, resumed: bool) -> Trainer:
    """The model and its trainer. Raises ConfigError for what does not fit the model."""
    config = loaded.config
    model = start_model(loaded, images.coco, ranks, resumed=resumed)
    if images.val is not None:
        check_views(model, loaded)
    lr = config.optimizer.lr
    if config.optimizer.lr_for_batch is not None:
        lr *= config.batch / config.optimizer.lr_for_batch
    epoch = -(-len(images.ids) // config.batch)
    schedule = make_schedule(config.schedule, lr=lr, iterations_per_epoch=epoch)
    try:
        trainer = Trainer(model.train(), config, schedule, ranks)
    except ValueError as error:
        raise ConfigError(str(error), loaded.place("optimizer", "rules")) from None
    trainable = sum(one.numel() for group in trainer.optimizer.param_groups for one in group["params"])
    log.info(
        "%s on %d x %s, %d images, %d classes, %d iterations of %d images, %.2f of %.2f million parameters trainable",
        config.model.name,
        ranks.count,
        ranks.device.type,
        len(images.ids),
        len(images.coco.category_ids),
        schedule.iterations,
        config.batch,
        trainable / 1e6,
        sum(one.numel() for one in model.parameters()) / 1e6,
    )
    return trainer


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


def _run(trainer: Trainer, images: Images, first: int, stop: runtime.StopRequest) -> int:
    """Train from iteration ``first`` on; returns an exit code. Raises Failed."""
    config, ranks, schedule, val = trainer.config, trainer.ranks, trainer.schedule, images.val
    output = Path(config.output)
    prepare = getattr(trainer.model, "prepare", None)
    batches = training_batches(images.coco, images.ids, config, ranks, first, prepare)
    meter = Meter(ranks, config.batch)
    records = Records(output, config.records if ranks.first else (), config.as_dict())
    save = partial(_save, trainer, images.coco, output)
    looks = Looks(trainer, images.coco.category_ids, records, save, first)
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
        self,
        trainer: Trainer,
        category_ids: Sequence[int],
        records: Records,
        save: Callable[..., None],
        first: int,
    ) -> None:
        self.trainer = trainer
        self.category_ids = category_ids
        self.records = records
        self.save = save
        self.output = Path(trainer.config.output)
        self.best, iteration = training_state.best(self.output)
        every = trainer.config.evaluate.every or trainer.schedule.iterations
        self.stale = max(0, first // every - iteration // every)  # evaluations since the best one

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
