"""The native adapter: its own loader gives what the shared batches hold, and its weights survive a round trip."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.inputs.batches import prepare_batches
from bench.inputs.dataset import open_dataset
from bench.recipe import codebases
from bench.recipe.workload import Workload
from bench.worker.api import Job
from bench.worker.batches import load_batches
from detectors import cpu
from tests.helpers.models import few_layers, narrow_heads

NATIVE = codebases.load_codebase(codebases.BUILTIN / "native")
SIZE = (96, 128)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def make_adapter(
    cache: Path,
    task: str,
    weights: str | None = None,
    model: str = "mask_rcnn_r50_fpn",
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    workload = Workload(model=model, task=task, input={"size": SIZE, "images": 3}, batch_size=2, **settings)
    dataset = open_dataset(workload.input, "train", cache)
    job = Job(
        workload=workload.model_dump(mode="json"),
        options=options or {},
        model={"name": workload.model},
        classes=dataset.classes,
        category_ids=dataset.category_ids,
        dataset={
            "images": str(dataset.images),
            "annotations": str(dataset.annotations),
            "image_ids": dataset.image_ids,
        },
        weights=weights,
        batches=str(prepare_batches(dataset, workload, cache)),
        threads=1,
        rank=0,
        world_size=1,
        scratch=str(cache),
    )
    spec = importlib.util.spec_from_file_location("native_adapter", NATIVE.adapter_file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Adapter(job)


@pytest.fixture(autouse=True)
def few() -> Iterator[None]:
    with few_layers(), narrow_heads():
        yield


def test_the_own_loader_gives_what_the_shared_batches_hold(cache: Path) -> None:
    adapter = make_adapter(cache, "train")
    adapter.uses_masks = True
    loader = adapter.pipeline()
    batches = load_batches(adapter.job.batches, 0, 1)
    for batch in [*batches, batches[0]]:  # and again from the start
        expected, found = adapter.convert(batch), next(loader)
        torch.testing.assert_close(found.images, expected.images, rtol=0, atol=1e-5)
        assert found.images.is_contiguous(memory_format=torch.channels_last)
        assert found.image_ids == expected.image_ids
        assert found.image_sizes == expected.image_sizes
        assert found.original_sizes == expected.original_sizes
        for name in ("boxes", "labels", "masks"):
            for one, other in zip(getattr(found, name), getattr(expected, name), strict=True):
                torch.testing.assert_close(one, other)


def test_saved_weights_predict_the_same(cache: Path, tmp_path: Path) -> None:
    adapter = make_adapter(cache, "train", ema=True, optimizer={"lr": 1e-5})
    adapter.prepare()
    before = adapter.model.box_head.fc2.weight.clone()
    data = adapter.load(adapter.convert(load_batches(adapter.job.batches, 0, 1)[0]))
    losses = adapter.forward(data)
    adapter.backward(losses)
    adapter.optimizer_step()
    adapter.ema_update()
    assert all(np.isfinite(value) for value in adapter.loss_values(losses).values())
    assert not torch.equal(adapter.model.box_head.fc2.weight, before)

    path = str(tmp_path / "weights.npz")
    adapter.save_weights(path)
    loaded = make_adapter(cache, "infer", weights=path)
    loaded.prepare()
    averaged = adapter.averaged.model.state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in loaded.model.state_dict().items())
    found = loaded.detections(loaded.postprocess(loaded.network(data), data), data)
    assert [detections.image_id for detections in found] == data.image_ids
    for detections, size in zip(found, data.original_sizes, strict=True):
        assert len(detections.boxes) > 0
        assert detections.masks is not None
        assert detections.masks.shape == (len(detections.boxes), *size)


def test_lower_precision_trains_and_predicts_as_full(cache: Path, tmp_path: Path) -> None:
    weights = str(tmp_path / "weights.npz")
    maker = make_adapter(cache, "infer", model="retinanet_r50_fpn")
    maker.prepare()
    maker.save_weights(weights)
    losses, scores = {}, {}
    for precision in ("float32", "bfloat16"):
        adapter = make_adapter(
            cache, "train", weights=weights, model="retinanet_r50_fpn", precision=precision
        )
        adapter.prepare()
        data = adapter.load(adapter.convert(load_batches(adapter.job.batches, 0, 1)[0]))
        found = adapter.forward(data)
        adapter.backward(found)
        adapter.optimizer_step()
        losses[precision] = sum(adapter.loss_values(found).values())
        adapter = make_adapter(
            cache, "infer", weights=weights, model="retinanet_r50_fpn", precision=precision
        )
        adapter.prepare()
        detected = adapter.detections(adapter.postprocess(adapter.network(data), data), data)
        scores[precision] = np.concatenate([one.scores for one in detected]).mean()
    for values, tolerance in ((losses, 0.05), (scores, 0.1)):
        assert values["bfloat16"] == pytest.approx(values["float32"], rel=tolerance)
        assert values["bfloat16"] != values["float32"]


def test_the_same_seed_gives_the_same_weights(cache: Path) -> None:
    states = []
    for task in ("train", "infer"):
        adapter = make_adapter(cache, task)
        adapter.prepare()
        states.append(adapter.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("model", "options", "as_paddledetection"),
    [
        ("solov2_light_r50_fpn", {}, False),
        ("solov2_light_r50_fpn", {"conventions": "paddledet"}, True),
        ("solov2_light_r50_vd_fpn_dcn_512", {"conventions": "mmdet"}, True),  # there is no other
    ],
)
def test_solov2_has_the_mask_loss_of_its_conventions(
    cache: Path, model: str, options: dict[str, Any], as_paddledetection: bool
) -> None:
    built = make_adapter(cache, "train", model=model, options=options).build_model()
    assert built.drawn_only is as_paddledetection


def test_a_loaded_batch_of_solov2_has_its_pairs(cache: Path) -> None:
    adapter = make_adapter(cache, "train", model="solov2_light_r50_fpn")
    adapter.prepare()
    batch = adapter.convert(load_batches(adapter.job.batches, 0, 1)[0])
    loaded = adapter.load(batch)
    assert sum(one.shape[1] for one in loaded.pairs) > 10
    with torch.no_grad():
        losses, expected = adapter.compute_losses(loaded), adapter.compute_losses(batch)
    assert losses == expected


@pytest.mark.parametrize(("options", "told"), [({}, "detectors ("), ({"kernels": "torch"}, "torch")])
def test_an_arm_records_its_kernels(cache: Path, options: dict[str, str], told: str) -> None:
    adapter = make_adapter(cache, "infer", options=options, model="faster_rcnn_r50_fpn")
    try:
        adapter.prepare()
        batch = adapter.load(adapter.convert(load_batches(adapter.job.batches, 0, 1)[0]))
        assert adapter.describe(batch).kernels.startswith(told)
    finally:
        cpu.use("auto")
