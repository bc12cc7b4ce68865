"""A run as tables: for notebooks and for other tools."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pandas as pd
import pytest

import bench
from bench.api import load
from bench.errors import BenchError
from bench.record.run import Run
from bench.report.export import _LATEX, FORMATS, export
from bench.report.notebook import RATIO_COLUMNS
from bench.report.values import MARKS
from tests.helpers.report_runs import arm, samples, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    arms = [
        (arm("torchvision", description={"parameters": 7}), samples(1.0, noise=0.001, seed=1)),
        (
            arm("native", label="=cmd|'/c calc'!A1", description={"parameters": 7}),
            samples(0.5, noise=0.001, seed=2),
        ),
        (arm("mmdet", status="failed"), samples(1.0)),
    ]
    return write_run(tmp_path / "run", arms)


def text_of(run: Run, name: str) -> str:
    found = export(load(run.folder), name)
    assert isinstance(found, str)
    return found


def test_a_loaded_run_gives_ratios_samples_and_audit(run: Run) -> None:
    loaded = bench.load(run.folder)
    ratios = loaded.ratios()
    assert list(ratios.columns) == list(RATIO_COLUMNS)
    assert ratios["ratio"].iloc[0] == pytest.approx(2.0, rel=0.01)
    assert list(ratios["marks"]) == ["?", "✕"]
    assert len(loaded.samples()) == len(run.samples("torchvision")) * 2
    assert "observed steps" in set(loaded.audit()["fact"])
    assert (loaded.audit(agreeing=True)["fact"] == "parameters").sum() == 1
    assert repr(loaded) == (
        "<run run of quickstart, 2026-11-22, complete: 3 arms (1 torchvision, 1 native, 1 mmdet; 1 failed)>"
    )
    assert "<table>" in loaded._repr_html_()
    assert loaded.geometric_mean() is None, "nothing is shown to be equal"


def test_show_prints_the_answer_outside_a_notebook(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    bench.load(run.folder).show()
    assert "No ratio" not in (shown := capsys.readouterr().out)
    assert "Marks: ?" in shown


def test_show_is_inline_in_a_notebook(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    display = SimpleNamespace(HTML=str, display=shown.append)
    shell = SimpleNamespace(kernel="a kernel")
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    bench.load(run.folder).show()
    assert "<table>" in shown[0]


def test_unknown_names_of_the_package_are_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = bench.rum


def test_a_run_is_cited_in_bibtex(run: Run) -> None:
    text = text_of(run, "bibtex")
    assert text.startswith(
        "@misc{bench-run,\n  title = {{Benchmark run run of quickstart}},\n  year = {{2026}},\n"
    )
    assert text.count("{") == text.count("}")


def test_csv_holds_no_formula_and_every_row(run: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(text_of(run, "csv"))))
    assert rows[0]["codebase"] == "'=cmd|'/c calc'!A1"
    assert float(rows[0]["ratio"]) == pytest.approx(2.0, rel=0.01)
    assert (rows[1]["ratio"], rows[1]["status"]) == ("", "failed")


def test_latex_escapes_and_has_intervals(run: Run) -> None:
    text = text_of(run, "latex")
    assert text.count(r"\\") == 4
    assert r"\toprule" in text
    assert "[" in text.splitlines()[5]
    assert r"$\times$" in text


def test_services_get_seconds_of_measured_arms(run: Run) -> None:
    action = json.loads(text_of(run, "github-action-benchmark"))
    assert [one["value"] for one in action] == pytest.approx([1.0, 0.5], rel=0.01)
    bencher = json.loads(text_of(run, "bencher"))
    assert [one["latency"]["value"] for one in bencher.values()] == pytest.approx([1e9, 5e8], rel=0.01)


def test_an_unknown_format_gets_a_hint(run: Run) -> None:
    assert "markdown" in FORMATS
    with pytest.raises(BenchError, match="did you mean latex"):
        export(load(run.folder), "latx")


def test_parquet_holds_the_table_of_ratios(run: Run) -> None:
    found = export(load(run.folder), "parquet")
    assert isinstance(found, bytes)
    frame = pd.read_parquet(io.BytesIO(found))
    pd.testing.assert_frame_equal(frame, load(run.folder).ratios(), check_dtype=False)


def test_every_mark_can_be_printed_by_latex() -> None:
    assert set(MARKS) - {"?"} <= {mark for mark in MARKS if mark.translate(_LATEX) != mark}


def test_asv_gets_times_memory_and_null_for_failures(run: Run) -> None:
    found = json.loads(text_of(run, "asv"))
    names = found["result_columns"]
    rows = {name: dict(zip(names, row, strict=False)) for name, row in found["results"].items()}
    assert rows["torchvision.time"]["result"] == [pytest.approx(1.0, rel=0.01)]
    assert rows["mmdet.time"]["result"] == [None]
    assert rows["torchvision.peakmem"]["result"] == [1500 * 2**20]
    assert len(rows["torchvision.time"]["samples"][0]) == 72, "without the warm-up"
    assert found["version"] == 2
    assert found["date"] == 1795341600000


def test_junit_has_a_test_per_arm_and_errors(run: Run) -> None:
    suite = ElementTree.fromstring(text_of(run, "junit"))
    assert [case.get("name") for case in suite] == [arm.id for arm in run.arms()]
    assert (suite.get("tests"), suite.get("errors")) == ("3", "1")
    assert suite.find("testcase[@name='mmdet']/error") is not None


def test_mlflow_is_asked_for_by_name_where_it_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(BenchError, match="mlflow is not installed"):
        export(load(run.folder), "mlflow")


def test_mlflow_holds_every_measured_arm(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="optional: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    lines = text_of(run, "mlflow").splitlines()
    assert len(lines) == 2
    stored = mlflow.get_run(lines[1].split()[-1])
    assert stored.data.metrics["ratio"] == pytest.approx(2.0, rel=0.01)
    assert stored.data.tags["marks"] == "?"
