"""`bench vs` and `bench init` from their command line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from bench.recipe.load import load_recipe
from tests.conftest import FAKE, ROOT, Cli

LESS = (
    "--size",
    "64",
    "--images",
    "2",
    "--launches",
    "1",
    "--rounds",
    "2",
    "--steps",
    "1",
    "--set",
    "measure.quiet=mark",
)


def test_vs_leaves_recipe_run_and_report(cli: Cli) -> None:
    recipe = cli.folder / "saved.yaml"
    arms = ("fake:faster_rcnn_r50_fpn", "fake:faster_rcnn_r50_fpn")
    done = cli("vs", *arms, *LESS, "--adapters", FAKE, "--save", recipe, "--results", cli.results,
               "-o", cli.folder / "report", "--set", "arms.1.options.step_s=0.02", "--json")  # fmt: skip
    assert done.code == 0, done.err
    document = done.json()
    assert document["recipe"] == str(recipe)
    assert document["report"] == str(cli.folder / "report" / "report.md")
    assert (cli.folder / "report" / "index.html").exists()
    assert [arm["id"] for arm in document["arms"]] == ["fake", "fake-2"]
    assert yaml.safe_load(recipe.read_text())["arms"][1]["options"] == {"step_s": 0.02}
    again = cli.run(recipe, "--dry-run", "--json")
    assert again.code == 0, again.err


def test_vs_refuses_what_cannot_be_measured(cli: Cli) -> None:
    done = cli(
        "vs", "fake:faster_rcnn_r50_fpn@nothing.npz", *LESS, "--adapters", FAKE, "--results", cli.results
    )
    assert done.code == 2
    assert "weights file not found" in done.err
    assert not cli.runs()


@pytest.mark.parametrize(
    ("option", "where"),
    [
        (("--set", "measure.rounds=no"), "--set measure.rounds=no"),
        (("--device", "gpu"), "--device"),
        (("--size", "12"), "--size 12"),
    ],
)
def test_wrong_option_is_named_and_the_recipe_stays(cli: Cli, option: tuple[str, str], where: str) -> None:
    recipe = cli.folder / "saved.yaml"
    recipe.write_text("mine")
    done = cli("vs", "native:retinanet_r50_fpn", *option, "--save", recipe, "--results", cli.results)
    assert (done.code, recipe.read_text()) == (2, "mine")
    assert done.err.startswith(f"error: {where}:")


def test_init_writes_a_recipe_that_can_be_run(cli: Cli) -> None:
    path = cli.folder / "mine.yaml"
    answers = (
        "--arm",
        "native:retinanet_r50_fpn",
        "--data",
        "shapes",
        "--task",
        "train",
        "--size",
        "640",
        "--batch",
        "2",
    )
    done = cli("init", path, *answers)
    assert done.code == 0, done.err
    assert "# " in path.read_text()
    workload = load_recipe(path).recipe.workload
    assert (workload.task, workload.batch_size, workload.input.size) == ("train", 2, (640, 640))
    assert cli("init", path, *answers).code == 2  # it exists


def test_resumed_run_takes_no_other_settings(cli: Cli) -> None:
    done = cli("run", "--resume", "latest", "--set", "measure.rounds=9")
    assert done.code == 2
    assert "is completed as it began" in done.err


PADDLE = """\
architecture: FasterRCNN
num_classes: 80
FasterRCNN:
  {backbone: ResNet, neck: FPN, rpn_head: RPNHead, bbox_head: BBoxHead, bbox_post_process: BBoxPostProcess}
ResNet: {depth: 18, norm_type: bn, freeze_at: 0, return_idx: [0,1,2,3], num_stages: 4}
FPN: {out_channel: 256}
RPNHead:
  anchor_generator:
    aspect_ratios: [0.5, 1.0, 2.0]
    anchor_sizes: [[32], [64], [128], [256], [512]]
    strides: [4, 8, 16, 32, 64]
  rpn_target_assign:
    batch_size_per_im: 256
    fg_fraction: 0.5
    negative_overlap: 0.3
    positive_overlap: 0.7
    use_random: True
  train_proposal:
    {min_size: 0.0, nms_thresh: 0.7, pre_nms_top_n: 2000, post_nms_top_n: 1000, topk_after_collect: True}
  test_proposal:
    {min_size: 0.0, nms_thresh: 0.7, pre_nms_top_n: 1000, post_nms_top_n: 1000}
BBoxHead:
  head: TwoFCHead
  roi_extractor: {resolution: 7, sampling_ratio: 0, aligned: True}
  bbox_assigner: BBoxAssigner
BBoxAssigner: {batch_size_per_im: 512, bg_thresh: 0.5, fg_thresh: 0.5, fg_fraction: 0.25, use_random: True}
TwoFCHead: {out_channel: 1024}
BBoxPostProcess:
  decode: RCNNBox
  nms: {name: MultiClassNMS, keep_top_k: 100, score_threshold: 0.05, nms_threshold: 0.5}
TrainReader: {batch_size: 2}
"""


@pytest.mark.nightly
def test_configuration_of_a_paddledetection_user_trains(cli: Cli) -> None:
    config = cli.folder / "mine.yml"
    config.write_text(PADDLE)
    done = cli("vs", f"paddledet:{config}", "torchvision:retinanet_resnet50_fpn_v2", "--task", "train", *LESS,
               "--set", "environment.threads=1",
               "--results", cli.results, "-o", cli.folder / "report", "--json")  # fmt: skip
    if "bench env create paddledet" in done.err:
        pytest.skip("no environment of paddledet")
    assert done.code == 0, done.err
    assert [one["verdict"] for one in done.json()["audit"]] == ["different models"]


def test_a_slip_in_an_answer_is_asked_again(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    slips = {"natve:retinanet_r50_fpn": "native:retinanet_r50_fpn", "": "", "nosuch": "shapes", "infr": "infer",
             "64x": "640", "0": "2"}  # fmt: skip
    answers = iter(answer for pair in slips.items() for answer in dict.fromkeys(pair))
    monkeypatch.setattr("typer.prompt", lambda *_, **__: next(answers))
    done = cli("init", cli.folder / "mine.yaml")
    assert done.code == 0, done.err
    for told in ("did you mean native?", "no such folder", "did you mean infer?", "--size 64x", "0 images"):
        assert told in done.err
    assert [arm.codebase for arm in load_recipe(cli.folder / "mine.yaml").recipe.arms] == ["native"]


def test_a_question_without_an_answer_is_bad_input(cli: Cli) -> None:
    done = subprocess.run([sys.executable, "-m", "bench", "init", cli.folder / "mine.yaml"], stdin=subprocess.DEVNULL,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 2  # 1 is a regression
