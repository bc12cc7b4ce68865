"""Arms of torch codebases in this process, on batches of random pixels."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from bench.recipe import codebases
from bench.recipe.workload import Workload
from bench.worker.api import Batch, Job

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")


TORCHVISION = codebases.load_codebase(codebases.BUILTIN / "torchvision")
CLASSES = ["cat", "dog"]


def load_adapter(codebase: codebases.Codebase) -> Any:
    """The `Adapter` class of a folder, imported as the worker imports it."""
    spec = importlib.util.spec_from_file_location(f"adapter_{codebase.name}", codebase.adapter_file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Adapter


def input_size(model: str) -> tuple[int, int]:
    return (300, 300) if model == "ssd300_vgg16" else (96, 128)


def make_job(
    model: str,
    codebase: codebases.Codebase = TORCHVISION,
    *,
    weights: str | None = None,
    options: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    **workload: Any,
) -> Job:
    settings = {"input": {"size": input_size(model)}, **workload}
    offer = codebase.models[model]
    return Job(
        workload=Workload(model=model, **settings).model_dump(mode="json"),
        options={**offer.options, **(options or {})},
        model=offer.model_dump(),
        classes=CLASSES,
        category_ids=[3, 7],
        dataset=dataset or {},
        weights=weights,
        batches="",
        threads=1,
        rank=0,
        world_size=1,
        scratch="",
    )


def prepared(model: str, **settings: Any) -> Any:
    codebase = settings.get("codebase", TORCHVISION)
    adapter = load_adapter(codebase)(make_job(model, **settings))
    adapter.prepare()
    return adapter


def make_batch(height: int, width: int) -> Batch:
    """Two images, the second one lower than its padding; the files are twice as large."""
    rng = np.random.default_rng(0)
    sizes = np.array([[height, width], [height - 16, width]])
    images = rng.standard_normal((2, 3, height, width)).astype(np.float32)
    images[1, :, height - 16 :] = 0
    boxes = np.array([[20, 10, 80, 60], [70, 30, 110, 70]], np.float32)
    masks = np.zeros((2, height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    return Batch(
        images=images,
        image_sizes=sizes,
        original_sizes=2 * sizes,
        image_ids=np.array([11, 12]),
        boxes=(boxes, boxes[:1]),
        labels=(np.array([0, 1]), np.array([1])),
        masks=(masks, masks[:1]),
    )


def train_step(adapter: Any, data: Any) -> dict[str, float]:
    losses = adapter.forward(adapter.load(data))
    adapter.backward(losses)
    adapter.optimizer_step()
    values: dict[str, float] = adapter.loss_values(losses)
    return values


def predict(adapter: Any, batch: Batch) -> list[Any]:
    data = adapter.load(adapter.convert(batch))
    found: list[Any] = adapter.detections(adapter.postprocess(adapter.network(data), data), data)
    return found
