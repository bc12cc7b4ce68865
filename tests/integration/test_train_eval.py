"""Accuracy beside speed: what a run trained and evaluated, and that a kill costs time and nothing else."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser

from bench.inputs.batches import epoch_orders
from bench.measure.prepare import _weights_file
from bench.measure.process import WorkerFailure
from bench.recipe.workload import Workload
from bench.record.models import ArmRecord, RunRecord
from bench.record.run import Run
from bench.worker.api import Batch
from bench.worker.batches import CorruptBatch
from bench.worker.training import compose, images_of, learning_rate_factor, load_schedule, mirrored
from tests.conftest import FAKE, Cli, Finished
from tests.helpers.browser import opened
from tests.helpers.runs import curves, killed_and_resumed_alike, resume, wait_for_blocks

WORK: dict[str, Any] = {
    "task": "train_eval",
    "model": "mask_rcnn_r50_fpn",
    "weights": "random",
    "input": {"images": 5, "size": [64, 64]},
    "steps": 9,
    "eval_every": 4,
    "checkpoint_every": 2,
    "eval_images": 4,
    "optimizer": {"warmup": 3, "milestones": [6]},
}
ARMS: list[dict[str, Any]] = [
    {"codebase": "fake", "label": label, "options": {"learns": learns, "step_s": 0.03}}
    for label, learns in (("slow", 0.5), ("fast", 3))
]


def trained(cli: Cli, *arguments: str | Path, **work: Any) -> Finished:
    recipe = cli.recipe(workload={**WORK, **work}, arms=ARMS, measure={"deadline_s": 60})
    return cli.run(recipe, *arguments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    cli = Cli(tmp_path_factory.mktemp("whole"))
    assert trained(cli).code == 0
    return cli.runs()[0]


# -- through the command line, with the fake codebase ---------------------------------------------------------


def test_run_records_ap_by_step_and_by_time(cli: Cli) -> None:
    done = trained(cli)
    assert done.code == 0, done.err
    (folder,) = cli.runs()
    arm = cli.arm("fast")
    assert [one["step"] for one in arm["evaluations"]] == [4, 8, 9]
    times = [one["train_s"] for one in arm["evaluations"]]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(Run(folder).samples("fast")["duration_ns"].sum() / 1e9)
    first, *_, last = (one["segm"]["metrics"]["AP"] for one in arm["evaluations"])
    assert 0 < first < last <= 1
    assert last > cli.arm("slow")["evaluations"][-1]["segm"]["metrics"]["AP"]
    truth = json.loads((folder / arm["evaluated"]["ground_truth"]).read_text())
    assert arm["evaluated"]["image_ids"] == [image["id"] for image in truth["images"]]
    assert arm["evaluated"]["checksum"] == Run(folder).record().dataset["shapes/val"].checksum
    assert arm["evaluations"][-1]["predictions"]["images"] == 4
    assert set(arm["evaluations"][-1]["predictions"]["phases"]) == {"data", "network", "post"}
    assert arm["input"] == {**cli.arm("slow")["input"], "seed": 0, "flip": 0.5}
    assert len(Run(folder).loss_curve("fast")["loss"]) == 9
    assert (folder / "checkpoints" / "fast.npz").exists()
    assert not list((folder / "state").iterdir())


def test_arms_take_turns_in_an_order_that_flips(whole: Path) -> None:
    order = [(block.round, block.arm) for block in Run(whole).journal()]
    rounds = [[arm for round_, arm in order if round_ == number] for number in range(5)]
    assert all(sorted(arms) == ["fast", "slow"] for arms in rounds)
    assert rounds[1] == rounds[0][::-1]
    assert [number for number, _ in order] == sorted(number for number, _ in order)


@pytest.mark.parametrize("blocks", [pytest.param(1, marks=pytest.mark.nightly), 7])
def test_killed_run_is_completed_with_same_losses_and_ap(cli: Cli, whole: Path, blocks: int) -> None:
    recipe = cli.recipe(workload=WORK, arms=ARMS, measure={"deadline_s": 60})
    process = cli.start("run", recipe, "--adapters", FAKE, "--results", cli.results)
    folder = wait_for_blocks(cli, blocks)
    process.kill()
    process.communicate()
    kept = Run(folder).journal()
    done = resume(cli, folder)
    assert done.code == 0, done.err
    assert Run(folder).journal()[: len(kept)] == kept
    assert curves(folder) == curves(whole)
    assert {arm.status for arm in Run(folder).arms()} == {"ok"}
    journal = Run(folder).journal()
    assert resume(cli, folder).code == 0  # nothing is left to do
    assert Run(folder).journal() == journal


@pytest.mark.nightly
def test_kill_before_the_last_evaluation_leaves_only_that(cli: Cli) -> None:
    trained(cli)
    (folder,) = cli.runs()
    whole = curves(folder)
    path = folder / "arms" / "fast.json"
    record = json.loads(path.read_text())
    del record["evaluations"][1:]
    path.write_text(json.dumps(record))
    assert "is gone" in resume(cli, folder).err  # its state was removed when it had ended
    lost = json.loads(path.read_text())["failure"]
    assert lost["reason"] == "environment"

    state = folder / "state" / "fast-9-0"  # as the kill would have left it
    with state.open("wb") as file, np.load(folder / "checkpoints" / "fast.npz"):
        np.savez(file, weight=9.0)
    (folder / "checkpoints" / "fast.npz").unlink()
    done = cli("run", "--resume", folder, "--retry-failed", "--adapters", FAKE, "--results", cli.results)
    assert done.code == 0, done.err
    evaluations = Run(folder).arms()[1].evaluations
    assert [one.step for one in evaluations] == [4, 9]
    assert evaluations[0].model_dump()["bbox"] == whole["fast"][1][0]["bbox"]
    assert (folder / "checkpoints" / "fast.npz").exists()


def test_codebase_that_fails_midway_keeps_its_evaluations(cli: Cli) -> None:
    arms = [
        ARMS[0],
        {**ARMS[1], "options": {"learns": 3, "nan_at": 9}},
    ]  # counted with the 4 images of step 4
    done = cli.run(cli.recipe(workload=WORK, arms=arms))
    assert done.code == 4
    assert cli.arm("fast")["failure"]["reason"] == "nan"
    assert [one["step"] for one in cli.arm("fast")["evaluations"]] == [4]
    assert [one["step"] for one in cli.arm("slow")["evaluations"]] == [4, 8, 9]


def test_task_eval_times_and_evaluates_the_same_images(cli: Cli) -> None:
    done = trained(cli, task="eval", batch_size=3)
    assert done.code == 0, done.err
    arm = cli.arm("fast")
    assert [one["step"] for one in arm["evaluations"]] == [None]
    assert arm["evaluations"][0]["predictions"]["images"] == 4
    assert arm["blocks"] > 0
    assert len(arm["evaluated"]["image_ids"]) == 4


def test_ranks_train_on_different_batches_and_the_first_one_predicts(cli: Cli) -> None:
    adapter = cli.folder / "ranked"  # started by torchrun: RANK is all that the fake codebase needs of it
    adapter.mkdir()
    (adapter / "adapter.py").write_text((FAKE / "adapter.py").read_text())
    text = (FAKE / "adapter.yaml").read_text().replace("name: fake\n", "name: fake\nlauncher: torchrun\n", 1)
    (adapter / "adapter.yaml").write_text(text)
    workload = {**WORK, "ranks": 2, "batch_size": 1, "steps": 4, "checkpoint_every": None}
    recipe = cli.recipe(workload=workload, arms=ARMS[:1], measure={"deadline_s": 120})
    done = cli("run", recipe, "--adapters", adapter, "--results", cli.results)
    assert done.code == 0, done.err
    assert [one["step"] for one in cli.arm("slow")["evaluations"]] == [4]
    assert len(Run(cli.runs()[0]).journal()[0].ranks) == 2


def test_the_report_puts_ap_beside_speed_and_draws_the_curves(
    cli: Cli, whole: Path, tmp_path: Path, browser: Browser
) -> None:
    done = cli("report", whole, "-o", tmp_path / "report")
    assert done.code == 0, done.err
    text = (tmp_path / "report" / "report.md").read_text()
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    (cell,) = document["runs"][0]["accuracy"]
    rows = {row["label"]: row for row in document["runs"][0]["groups"][0]["rows"]}
    fast = next(arm for arm in cell["arms"] if arm["label"] == "fast")
    assert rows["fast"]["ap"]["segm"] == fast["metrics"]["segm"]["AP"]
    difference = fast["differences"]["segm"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert difference["value"] == pytest.approx(
        fast["metrics"]["segm"]["AP"] - rows["slow"]["ap"]["segm"], abs=1e-9
    )
    assert fast["reached_s"] is not None
    assert cell["partings"] == [{"a": "slow", "b": "fast", "step": 1, "steps": 9}]
    for words in ("box AP", "mask AP", "time to AP", "FPS"):
        assert words in text
    page = (tmp_path / "report" / "index.html").read_text()
    (packed,) = re.findall(r'id="data" type="application/octet-stream">([^<]*)<', page)
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert [len(curve) for curve in data["arms"]["curve"]] == [
        len(arm["evaluations"]) for arm in cell["arms"]
    ]
    assert [len(losses) for losses in data["arms"]["losses"]] == [9, 9]
    assert [images for _, _, images in data["arms"]["interval"]] == [4, 4]
    low, high, _ = data["arms"]["interval"][1]
    assert low < rows["fast"]["ap"]["segm"] < high
    figures = opened(browser, tmp_path / "report").locator("#accuracy svg[role=img]")
    figures.nth(3).wait_for()
    assert [one.get_attribute("aria-label") for one in figures.all()] == [
        "AP (%) against images/s", "AP (%) against seconds of training", "total loss against step",
        "difference to slow against step",
    ]  # fmt: skip
    assert "figures/accuracy-tradeoff.svg" in text
    assert (tmp_path / "report" / "figures" / "accuracy-tradeoff.svg").stat().st_size > 1000


def test_training_starts_from_checkpoint_of_another(cli: Cli) -> None:
    assert trained(cli, steps=4).code == 0
    (first,) = cli.runs()
    arms = [{**arm, "weights": str(first / "checkpoints" / f"{arm['label']}.npz")} for arm in ARMS]
    work = {**WORK, "steps": 2, "eval_first": True}
    done = cli.run(cli.recipe(workload=work, arms=arms, measure={"deadline_s": 60}))
    assert done.code == 0, done.err
    second = cli.runs()[-1]
    assert [one["step"] for one in cli.arm("fast")["evaluations"]] == [0, 2]
    for before, after in zip(Run(first).arms(), Run(second).arms(), strict=True):
        assert after.evaluations[0].train_s == 0
        assert after.evaluations[0].bbox == before.evaluations[-1].bbox


def test_missing_weights_end_the_run_before_it_measures(cli: Cli) -> None:
    arms = [ARMS[0], {**ARMS[1], "weights": "nowhere.npz"}]
    done = cli.run(cli.recipe(workload={**WORK, "steps": 1}, arms=arms))
    assert done.code == 2
    assert "nowhere.npz" in done.err
    assert not Run(cli.runs()[-1]).journal()


def test_newest_checkpoint_of_model_is_found_in_folder_of_runs(tmp_path: Path) -> None:
    for name, model in (("1", "mask_rcnn_r50_fpn"), ("2", "mask_rcnn_r50_fpn"), ("3", "retinanet_r50_fpn")):
        folder = tmp_path / name
        (folder / "arms").mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "native.npz").touch()
        run = RunRecord(id=name, recipe={}, started_utc="", bench_version="", arms=["native"])
        arm = ArmRecord(
            id="native", codebase="native", label="native", cell="all", workload={"model": model}, status="ok"
        )
        (folder / "run.json").write_text(run.model_dump_json())
        (folder / "arms" / "native.json").write_text(arm.model_dump_json())
    work = Workload(model="mask_rcnn_r50_fpn")
    assert _weights_file(str(tmp_path), work) == tmp_path / "2" / "checkpoints" / "native.npz"
    assert _weights_file(str(tmp_path / "1"), work) == tmp_path / "1" / "checkpoints" / "native.npz"
    with pytest.raises(WorkerFailure, match="no weights of solov2_r50_fpn"):
        _weights_file(str(tmp_path), Workload(model="solov2_r50_fpn"))


def test_bad_steps_and_mixed_tasks_are_refused_with_place(cli: Cli) -> None:
    assert "steps" in trained(cli, steps=0).err
    factors = {"task": ["train", "train_eval"]}
    recipe = cli.recipe(
        workload=WORK, arms=ARMS, factors=factors, baseline={"codebase": "slow", "task": "train"}
    )
    done = cli.run(recipe)
    assert done.code == 2
    assert "compared only with train_eval arms" in done.err


# -- the same batches for everyone ----------------------------------------------------------------------------


def single(rng: np.random.Generator, image: int, height: int, width: int, objects: int) -> Batch:
    x1, y1 = rng.uniform(0, width / 2, objects), rng.uniform(0, height / 2, objects)
    boxes = np.stack([x1, y1, x1 + width / 3, y1 + height / 3], axis=1).astype(np.float32)
    return Batch(
        images=rng.standard_normal((1, 3, height, width)).astype(np.float32),
        image_sizes=np.array([[height, width]]),
        original_sizes=np.array([[height, width]]) * 2,
        image_ids=np.array([image]),
        boxes=(boxes,),
        labels=(rng.integers(0, 3, objects),),
        masks=(rng.integers(0, 2, (objects, height, width)).astype(np.uint8),),
    )


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_an_image_mirrored_twice_is_the_image(seed: int, height: int, width: int, objects: int) -> None:
    one = single(np.random.default_rng(seed), 1, height, width, objects)
    other = mirrored(mirrored(one))
    assert np.array_equal(other.images, one.images)
    assert np.array_equal(other.masks[0], one.masks[0])
    np.testing.assert_allclose(other.boxes[0], one.boxes[0], atol=1e-5)
    centre = mirrored(one).boxes[0]
    assert ((centre[:, 2] - centre[:, 0]) >= 0).all()


@pytest.mark.parametrize(("size", "shape"), [([64, 96], (64, 96)), ({"short": 40, "long": 80}, (64, 96))])
def test_a_batch_holds_its_images_and_nothing_else(size: Any, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    singles = [single(rng, 7, 40, 70, 2), single(rng, 9, 50, 20, 0)]
    images = images_of([compose([(7, False), (9, False)], {7: singles[0], 9: singles[1]}, [200, 200])])
    batch = compose([(9, True), (7, False)], images, size)
    assert batch.images.shape == (2, 3, *shape)
    assert batch.image_ids.tolist() == [9, 7]
    assert np.array_equal(batch.images[0, :, :50, :20], singles[1].images[0, :, :, ::-1])
    assert np.array_equal(batch.images[1, :, :40, :70], singles[0].images[0])
    assert not batch.images[0, :, 50:].any()
    assert not batch.images[0, :, :, 20:].any()
    assert [len(boxes) for boxes in batch.boxes] == [0, 2]
    assert batch.masks[0].shape == (0, *shape)


def test_every_epoch_has_every_image_once_in_own_order() -> None:
    ids = list(range(100, 150))
    drawn = epoch_orders(ids, 500, seed=3, flip=0.5)
    epochs = [drawn[start : start + 50] for start in range(0, 500, 50)]
    assert all(sorted(image for image, _ in epoch) == ids for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10
    assert 200 < sum(flip for _, flip in drawn) < 300
    assert drawn[:120] == epoch_orders(ids, 120, seed=3, flip=0.5)  # a longer training starts alike
    assert drawn != epoch_orders(ids, 500, seed=4, flip=0.5)
    assert not any(flip for _, flip in epoch_orders(ids, 100, seed=3, flip=0))
    assert all(flip for _, flip in epoch_orders(ids, 100, seed=3, flip=1))
    # The same on every machine and with every version of numpy.
    assert drawn[:4] == [(120, False), (128, True), (100, True), (131, True)]


def test_a_schedule_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    path.write_text('{"batches": [[[1, true]]]}')
    with pytest.raises(CorruptBatch, match="schedule"):
        load_schedule(str(path), "0" * 64)


def test_learning_rate_rises_in_warmup_and_falls_at_milestones() -> None:
    factors = [learning_rate_factor(step, warmup=4, milestones=[6, 8]) for step in range(10)]
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert factors == pytest.approx(expected)
    assert learning_rate_factor(0, warmup=0, milestones=[]) == 1


@given(st.integers(1, 50), st.none() | st.integers(1, 60), st.none() | st.integers(1, 60))
def test_turns_end_with_the_last_step_and_at_every_evaluation(steps: int, every: Any, saved: Any) -> None:
    work = Workload(model="m", task="train_eval", steps=steps, eval_every=every, checkpoint_every=saved)
    turns = work.turns()
    assert turns == sorted(set(turns))
    assert turns[-1] == steps
    assert {step for step in range(1, steps + 1) if work.evaluated_after(step)} <= set(turns)


# -- real codebases -------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_native_training_killed_halfway_ends_with_same_detections(
    cli: Cli,
) -> None:
    killed_and_resumed_alike(cli, ["native"])
