"""`bench run --until`: launches are added until the interval is narrow enough."""

from __future__ import annotations

import json

from bench.record.run import Run
from bench.report.build import run_report
from tests.conftest import Cli

MEASURE = {"warmup": 1, "steps": 1, "rounds": 2, "quiet": "off", "memory_steps": 0, "phase_steps": 0}


def test_launches_are_added_until_the_interval_is_narrow(cli: Cli) -> None:
    done = cli.run(cli.recipe(measure=MEASURE), "--until", "90%")
    assert done.code == 0, done.err
    assert len({block.launch for block in Run(cli.runs()[-1]).journal()}) == 4
    assert "launches are expected to give 90 %" in done.err


def test_launches_end_at_most_and_report_pays_for_looks(cli: Cli) -> None:
    arms = [
        {"codebase": "fake", "label": label, "options": {"step_s": 0.002, "noise": 0.5}}
        for label in ("slow", "fast")
    ]
    recipe = cli.recipe(measure=MEASURE, arms=arms)
    done = cli.run(recipe, "--until", "0.01%", "--set", "measure.launches=6")
    assert done.code == 0, done.err
    run = Run(cli.runs()[-1])
    assert len({block.launch for block in run.journal()}) == 6
    (ratio,) = (row.ratio for group in run_report(run).groups for row in group.rows if row.ratio)
    assert ratio.confidence == 1 - 0.05 / 2
    assert json.loads((run.folder / "run.json").read_text())["recipe"]["measure"]["until"] == 0.0001


def test_a_width_without_a_number_is_an_error(cli: Cli) -> None:
    assert cli.run(cli.recipe(), "--until", "narrow").code == 2
