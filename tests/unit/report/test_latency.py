"""Percentiles of inference steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.report import figures
from bench.report.app.data import page_data
from bench.report.build import run_report
from bench.report.latency import percentile_ms
from bench.report.sweeps import SWEPT, Curve
from bench.report.values import Report
from tests.helpers.report_runs import arm, markdown_of, rows_of, samples, small, write_run


def test_percentiles_are_those_of_numpy_in_milliseconds() -> None:
    seconds = np.random.default_rng(0).exponential(0.1, 1000).tolist()
    for percentile in (50, 90, 99):
        assert percentile_ms(seconds, percentile) == pytest.approx(1e3 * np.percentile(seconds, percentile))


@pytest.mark.parametrize(
    ("steps", "known"), [(1, ()), (2, (50,)), (10, (50, 90)), (99, (50, 90)), (100, (50, 90, 99))]
)
def test_too_few_steps_show_no_percentile(steps: int, known: tuple[int, ...]) -> None:
    shown = tuple(one for one in (50, 90, 99) if percentile_ms([0.1] * steps, one) is not None)
    assert shown == known


def test_inference_has_a_row_of_latencies_and_training_none(tmp_path: Path) -> None:
    assert "Latency of inference" not in markdown_of(small(tmp_path / "train"))
    record = arm("onnx", workload={"task": "infer", "batch_size": 1})
    run = write_run(tmp_path / "infer", [(record, samples(0.5, rounds=10))])
    (row,) = rows_of(markdown_of(run), "Latency of inference")
    assert (row["images"], row["steps"]) == ("1", "120")  # the slower warm-up is left out
    latencies = [float(row[name]) for name in ("p50 (ms)", "p90 (ms)", "p99 (ms)", "longest (ms)")]
    assert latencies == sorted(latencies)
    assert 480 < latencies[0] < 520
    assert latencies[-1] < 600


def test_a_sweep_over_batches_names_where_it_is_flat(tmp_path: Path) -> None:
    assert SWEPT not in markdown_of(small(tmp_path / "one"))
    arms = [
        (arm("native", {"batch_size": batch}, workload={"task": "infer"}), samples(seconds, noise=0.001))
        for batch, seconds in ((1, 0.1), (2, 0.15), (4, 0.22), (8, 0.43))
    ]
    run = write_run(tmp_path / "sweep", arms)
    (row,) = rows_of(markdown_of(run), SWEPT)
    rates = [float(row[f"batch {batch}"]) for batch in (1, 2, 4, 8)]
    assert rates == pytest.approx([10, 13.3, 18.2, 18.6], rel=0.01)
    assert row["flat from batch"] == "4"
    (figure,) = figures.draw(run_report(run), tmp_path)["sweep"]
    assert figure.alt == "images/s of each arm by images of a step."
    assert "flat from here on" in (tmp_path / "sweep-batch_size.svg").read_text()


def test_a_sweep_over_resolutions_counts_pixels(tmp_path: Path) -> None:
    arms = []
    for side, seconds in ((100, 0.1), (200, 0.2), (400, 0.8)):
        named = {"id": f"native_size-{side}", "cell": f"size-{side}"}
        work = {"task": "infer", "input": {"size": [side, side]}}
        one = arm("native", {"size": [side, side]}, workload=work, **named)
        arms.append((one, samples(seconds, noise=0.001)))
    run = write_run(tmp_path / "sweep", arms)
    (row,) = rows_of(markdown_of(run), SWEPT)
    assert float(row["size 400x400"]) == pytest.approx(
        4 * 4 * 100**2 / 0.8 / 1e6 * arms[0][0].workload.batch_size, rel=0.01
    )
    assert row["flat from size"] == "200x200"
    figures.draw(run_report(run), tmp_path)
    assert "400x400" in (tmp_path / "sweep-size.svg").read_text()


def test_a_dip_ends_the_flat_part(tmp_path: Path) -> None:
    points = tuple((float(x), x, rate) for x, rate in ((1, 10.0), (2, 10.2), (4, 8.0), (8, 10.1)))
    assert Curve("a", "b", "native", points).flat == 3
    assert Curve("a", "b", "native", points[:2]).flat == 0


def test_a_rate_that_falls_at_the_end_is_nowhere_flat(tmp_path: Path) -> None:
    arms = [
        (arm("native", {"batch_size": batch}, workload={"task": "infer"}), samples(seconds, noise=0.001))
        for batch, seconds in ((1, 0.1), (2, 0.15), (4, 0.4))
    ]
    run = write_run(tmp_path / "sweep", arms)
    (row,) = rows_of(markdown_of(run), SWEPT)
    assert row["flat from batch"] == "–"
    report = run_report(run)
    assert figures.draw(report, tmp_path)["sweep"]
    assert page_data(Report((report,)))["sweeps"][0]["curves"][0][3] is None
