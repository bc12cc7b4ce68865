"""The own loader of an adapter, and adapters outside of this repository."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.recipe import codebases
from bench.recipe.workload import Workload
from bench.worker.api import Batch, Job
from tests.conftest import Cli

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from tests.helpers.torch_arms import (  # noqa: E402
    TORCHVISION,
    load_adapter,
    make_batch,
    make_job,
    predict,
    prepared,
    train_step,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# -- its own loader --------------------------------------------------------------------------------------------


@pytest.fixture
def shapes_input(tmp_path: Path) -> tuple[Any, Any, list[Batch]]:
    """Three generated images as a data set and as the shared batches that bench makes of them."""
    from bench.inputs.batches import prepare_batches
    from bench.inputs.dataset import open_dataset
    from bench.worker.batches import load_batches

    workload = Workload(model="mask_rcnn_r50_fpn", input={"images": 3, "size": (96, 128), "mode": "pipeline"})
    dataset = open_dataset(workload.input, "train", tmp_path)
    batches = load_batches(str(prepare_batches(dataset, workload, tmp_path)), 0, 1)
    return workload, dataset, batches


@pytest.mark.parametrize("workers", [0, 1])
def test_the_own_loader_gives_the_shared_batches(
    shapes_input: tuple[Any, Any, list[Batch]], workers: int
) -> None:
    workload, dataset, batches = shapes_input
    job = make_job(
        workload.model,
        input={**workload.input.model_dump(), "workers": workers},
        dataset={
            "images": str(dataset.images),
            "annotations": str(dataset.annotations),
            "image_ids": list(dataset.image_ids),
        },
    )
    job = Job(**{**vars(job), "classes": dataset.classes, "category_ids": dataset.category_ids})
    adapter = load_adapter(TORCHVISION)(job)
    assert len(batches) == 2
    loaded = adapter.pipeline()
    for batch in [*batches, batches[0]]:
        own, shared = next(loaded), adapter.convert(batch)
        assert own.image_ids == shared.image_ids
        assert own.image_sizes == shared.image_sizes
        assert own.original_sizes == shared.original_sizes
        assert own.images.shape == shared.images.shape
        assert (own.images - shared.images).abs().max() < 0.05, "two of 255 levels"
        for field in ("boxes", "labels", "masks"):
            for mine, theirs in zip(getattr(own, field), getattr(shared, field), strict=True):
                torch.testing.assert_close(mine, theirs)
    adapter.close()


# -- the example of docs/tutorial/wrap-your-codebase.md ---------------------------------------------------------


DOCUMENT = codebases.BUILTIN.parent / "docs" / "tutorial" / "wrap-your-codebase.md"


def write_example(folder: Path) -> None:
    """The two files that the document shows, as a user would paste them."""
    blocks = dict(re.findall(r"^`(adapter\.\w+)`:\n\n```\w+\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S))
    assert set(blocks) == {"adapter.yaml", "adapter.py"}
    assert sum(len(text.splitlines()) for text in blocks.values()) < 80
    folder.mkdir()
    for name, text in blocks.items():
        (folder / name).write_text(text)


def test_the_adapter_shown_in_the_documents_trains_and_predicts(tmp_path: Path) -> None:
    folder = tmp_path / "example"
    write_example(folder)
    (codebase,) = [found for found in codebases.find_codebases([tmp_path]).values() if found.folder == folder]
    (model,) = codebase.models
    adapter = prepared(model, codebase=codebase, frozen_stages=0, ema=True)
    batch = make_batch(96, 128)
    values = train_step(adapter, adapter.convert(batch))
    assert len(values) >= 2
    assert all(np.isfinite(value) for value in values.values())
    adapter.ema_update()
    facts = adapter.describe(adapter.convert(batch))
    assert facts.parameters == sum(p.numel() for p in adapter.model.parameters())
    found = predict(
        prepared(model, codebase=codebase, frozen_stages=0, task="infer", score_threshold=0.001), batch
    )
    assert len(found[0].boxes)
    assert set(found[0].labels.tolist()) <= {0, 1}
    assert (found[0].boxes <= [256, 192, 256, 192]).all()


@pytest.mark.nightly
@pytest.mark.parametrize("found_as", ["folder", "entry point"])
def test_an_adapter_outside_this_repository_is_found_and_measured(cli: Cli, found_as: str) -> None:
    package = cli.folder / "site" / "tinyfcos_bench"
    package.parent.mkdir()
    write_example(package)
    options = {}
    if found_as == "entry point":  # what `pip install` of such a package leaves
        (package / "__init__.py").touch()
        info = cli.folder / "site" / "tinyfcos_bench-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinyfcos-bench\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[bench.adapters]\ntinyfcos = tinyfcos_bench\n")
        options["env"] = {**os.environ, "PYTHONPATH": str(package.parent)}
    arguments = ["--adapters", package] if found_as == "folder" else []
    workload = {"task": "train", "model": "tiny_fcos", "weights": "random", "frozen_stages": 0}
    recipe = cli.recipe(
        workload={**workload, "batch_size": 1, "input": {"images": 1, "size": [64, 64]}},
        arms=["tinyfcos"], baseline="tinyfcos", measure={"warmup": 1, "steps": 1, "rounds": 1, "launches": 1},
    )  # fmt: skip
    done = cli("run", recipe, "--results", cli.results, "--quiet", *arguments, **options)
    assert done.code == 0, done.err
    assert cli.arm("tinyfcos")["status"] == "ok"


def test_listing_an_adapter_reads_no_code_of_it() -> None:
    text = json.dumps(TORCHVISION.model_dump(mode="json", exclude={"folder"}))
    assert "fasterrcnn_resnet50_fpn" in text
