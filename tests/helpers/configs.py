"""Configs of `detectors` for tests that load no file."""

from __future__ import annotations

from detectors.config import Config, Data, Model, Optimizer, ScheduleConfig, Split


def plain_config() -> Config:
    split = Split("annotations.json", "images")
    return Config(Model("given"), Data(split, split), Optimizer(1.0), ScheduleConfig(iterations=1), "output")
