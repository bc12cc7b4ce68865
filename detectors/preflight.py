"""What is refused before annotations are read or a model is built."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from detectors import hook
from detectors.config import ConfigError, Keys, Loaded
from detectors.imagenet import source_of
from detectors.registry import builder


def check_packages(loaded: Loaded, needed: Sequence[tuple[str, Keys]]) -> None:
    """Raises ConfigError for the first package that is not installed; with each, the keys that want it."""
    for package, keys in needed:
        if find_spec(package) is None:
            raise ConfigError(f"{package} is not installed; pip install {package}", loaded.place(*keys))


def check_model(loaded: Loaded) -> None:
    """Raises ConfigError for an unknown model, or one of a package that is not installed."""
    name, keys = loaded.config.model.name, ("model", "name")
    try:
        builder(name)
    except KeyError as error:
        raise ConfigError(str(error.args[0]), loaded.place(*keys)) from None
    check_packages(loaded, [("timm", keys)] if "_timm_" in name else [])


def check(loaded: Loaded, *, resumed: bool) -> None:
    """Raises ConfigError for what a training asks for and is not there, or is no regular expression.

    ``resumed``: the weights come from a checkpoint.
    """
    config = loaded.config
    check_model(loaded)
    check_packages(loaded, [(kind, ("records",)) for kind in config.records if kind != "csv"])
    if config.weights == "imagenet" and not resumed:
        check_packages(loaded, [(source_of(config.model.name)[0], ("weights",))])
    elif config.weights is not None and not resumed and not Path(config.weights).is_file():
        raise ConfigError(f"no such checkpoint: {config.weights}", loaded.place("weights"))
    semantic = config.data.train.semantic
    if semantic is not None and not Path(semantic).is_dir():
        raise ConfigError(f"no such folder: {semantic}", loaded.place("data", "train", "semantic"))
    for number, rule in enumerate(config.optimizer.rules):
        try:
            re.compile(rule.match)
        except re.error as error:
            problem = f"{rule.match!r} is not a regular expression: {error}"
            raise ConfigError(problem, loaded.place("optimizer", "rules", number)) from None
    if config.augment.hook is not None:
        try:
            hook.load(config.augment.hook)
        except ValueError as error:
            raise ConfigError(str(error), loaded.place("augment", "hook")) from None


def check_ranks(loaded: Loaded, count: int, device: str) -> None:
    """Raises ConfigError for what so many ranks on a kind of device cannot do."""
    config = loaded.config
    if config.batch % (count * config.optimizer.accumulate):
        parts = f"{count} ranks in {config.optimizer.accumulate} parts each"
        raise ConfigError(f"{config.batch} images cannot be shared by {parts}", loaded.place("batch"))
    if config.sync_bn and count > 1 and device != "cuda":
        raise ConfigError("sync_bn is for CUDA devices; on a CPU leave it out", loaded.place("sync_bn"))
