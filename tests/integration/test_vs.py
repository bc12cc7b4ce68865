"""`bench vs` and `bench init` from their command line."""

from __future__ import annotations

import yaml

from bench.recipe.load import load_recipe
from tests.conftest import FAKE, Cli

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
