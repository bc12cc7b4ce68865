"""`task: serve`: MLPerf's load generator asks the arms, from the recipe to the page."""

from __future__ import annotations

import sys

import pytest

from bench.errors import BenchError
from bench.measure.serving import generator
from bench.record.run import Run
from tests.conftest import Cli
from tests.helpers.report_runs import rows_of

QUICK = {"seconds": 0.3, "p99_ms": 5000}  # met on a machine with other work


def test_arms_are_served_and_their_rates_reported(cli: Cli) -> None:
    pytest.importorskip("mlperf_loadgen")
    arms = [{"codebase": "fake", "label": "calm", "options": {"step_s": 0.01}},
            {"codebase": "fake", "label": "slow", "options": {"step_s": 0.03}},
            {"codebase": "fake", "label": "dying", "options": {"step_s": 0.01, "kill_at": 20}}]  # fmt: skip
    workload = {"task": "serve", "model": "faster_rcnn_r50_fpn", "batch_size": 2, "input": {"images": 4}}
    recipe = cli.recipe(workload=workload, arms=arms, baseline="calm",
                        measure={"launches": 1, "rounds": 2, "steps": 1, "serve": QUICK, "quiet": "off"})  # fmt: skip
    done = cli.run(recipe)
    assert done.code == 4, done.err  # one arm died while it served
    run = Run(cli.runs()[0])
    served = {arm.label: arm.served for arm in run.arms()}
    assert not served["dying"]
    for label, step_s in (("calm", 0.01), ("slow", 0.03)):
        single, offline, *rates = served[label]
        assert [one.scenario for one in (single, offline)] == ["SingleStream", "Offline"]
        assert len(rates) == 5
        assert 0 < single.samples_per_s < 1 / step_s
        assert single.p50_ms is not None
        assert single.p50_ms > 1e3 * step_s
        assert single.samples == pytest.approx(0.3 * single.samples_per_s, rel=0.2)
        assert any(one.within for one in rates)
        assert all(one.p99_bound_ms == 5000 for one in rates)
    report = cli.folder / "report"
    assert cli("report", run.folder, "-o", report).code == 0
    rows = rows_of((report / "report.md").read_text(), "Serving")
    assert [row["scenario"] for row in rows] == 2 * ["SingleStream", "Offline", "Server, p99 ≤ 5000 ms"]
    assert float(rows[0]["images/s"]) == pytest.approx(2 * float(rows[0]["requests/s"]), rel=0.01)
    assert "Server, p99" in (report / "index.html").read_text()
    assert "calm serves Faster R-CNN R-50-FPN" in " ".join(done.err.split())


def test_without_the_generator_serving_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(BenchError) as raised:
        generator()
    assert "detection-bench[serve]" in str(raised.value.hint)
