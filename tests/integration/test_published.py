"""The published numbers: every one of the document, none of our own making."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser

from bench.errors import BenchError
from bench.reference.page import generate_published, throughput_table
from bench.reference.published import PUBLISHED, load
from bench.reference.solov2 import Solov2Log, percent, read_solov2_log
from bench.report.figures import pareto_front
from tests.helpers.browser import opened, violations
from tests.helpers.model_zoo import LAYOUTS, read_tables, to_csv
from tests.helpers.report_runs import arm, samples, write_run

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT.parent / "shared" / "reference"
ZOO = REFERENCE / "mmdetection_model_zoo_zh.txt"
LOG = REFERENCE / "solov2_vs_paddledetection_2020-12-04.log.txt"
EXCERPT = PUBLISHED / "solov2_reference_log" / "excerpt.log.txt"

#: A number is a longest run of digits, with its decimals. The document has this many.
NUMBERS_IN_THE_DOCUMENT = 1039
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

needs_zoo = pytest.mark.skipif(not ZOO.exists(), reason=f"the model-zoo document is not at {ZOO}")
needs_log = pytest.mark.skipif(not LOG.exists(), reason=f"the reference log is not at {LOG}")


def _provenance() -> dict:
    return yaml.safe_load((PUBLISHED / "mmdetection_model_zoo" / "provenance.yaml").read_text())


def _csv_rows() -> dict[int, list[str]]:
    """Line of the document → cells, over all CSV files."""
    rows: dict[int, list[str]] = {}
    for layout in LAYOUTS:
        path = PUBLISHED / "mmdetection_model_zoo" / f"{layout.name}.csv"
        with path.open(newline="", encoding="utf-8") as file:
            header, *body = list(csv.reader(file))
        assert header == ["line", *layout.columns]
        for line, *cells in body:
            assert int(line) not in rows, f"line {line} is in two tables"
            rows[int(line)] = cells
    return rows


@needs_zoo
def test_every_number_of_the_document_is_kept() -> None:
    lines = ZOO.read_text(encoding="utf-8").splitlines()
    rows = _csv_rows()
    statements = {one["line"]: one for one in _provenance()["statements"]}
    assert not rows.keys() & statements.keys()
    counted = 0
    for index, line in enumerate(lines, 1):
        found = Counter(_NUMBER.findall(line))
        if index in rows:
            cells = rows[index]
            # A row that goes on with the type of the row above repeats it; a type holds no number.
            assert found == Counter(_NUMBER.findall(" ".join(cells))), f"line {index}: {line}"
        elif index in statements:
            assert statements[index]["zh"] == line.strip(), f"line {index}"
        else:
            assert not found, f"line {index} has numbers that are nowhere: {line}"
        counted += found.total()
    assert counted == NUMBERS_IN_THE_DOCUMENT


@needs_zoo
def test_csv_files_are_the_transcription_of_the_document() -> None:
    tables = read_tables(ZOO)
    for layout in LAYOUTS:
        path = PUBLISHED / "mmdetection_model_zoo" / f"{layout.name}.csv"
        assert path.read_text(encoding="utf-8") == to_csv(layout, tables[layout.name]), layout.name


@needs_zoo
def test_every_row_keeps_its_order_and_missing_values() -> None:
    text = ZOO.read_text(encoding="utf-8").splitlines()
    for line, cells in _csv_rows().items():
        printed = " ".join(cells)
        assert printed.endswith(text[line - 1].strip())


def test_all_baselines_of_the_model_zoo_are_there() -> None:
    counts = {
        layout.name: len(load(PUBLISHED / "mmdetection_model_zoo", layout.name).rows) for layout in LAYOUTS
    }
    assert counts == {
        "rpn": 14,
        "faster_rcnn": 20,
        "mask_rcnn": 20,
        "fast_rcnn": 20,
        "retinanet": 10,
        "cascade_rcnn": 14,
        "cascade_mask_rcnn": 14,
        "htc": 9,
        "ssd": 2,
        "comparison_performance": 10,
        "comparison_training_speed": 5,
        "comparison_inference_speed": 5,
        "comparison_training_memory": 5,
    }


def test_every_column_of_a_published_table_is_defined() -> None:
    for folder in PUBLISHED.iterdir():
        defined = yaml.safe_load((folder / "provenance.yaml").read_text())
        assert {"title", "document", "source", "hardware", "software", "statements"} <= defined.keys()
        for path in folder.glob("*.csv"):
            header = path.read_text(encoding="utf-8").splitlines()[0].split(",")
            assert set(header) <= defined["columns"].keys(), path


def test_detectron2s_throughput_comparison_is_the_published_one() -> None:
    table = load(PUBLISHED / "detectron2_benchmarks", "throughput")
    assert [row["Throughput (img/s)"] for row in table.rows] == [
        "62",
        "53",
        "53",
        "50",
        "39",
        "19",
        "14",
    ]
    shown = throughput_table(table)
    assert [row[5].text for row in shown.rows][:3] == ["1.000", "0.855", "0.855"]


def test_another_document_is_refused_and_not_half_read(tmp_path: Path) -> None:
    path = tmp_path / "other.txt"
    path.write_text("RPN\nBackbone Style Lr schd\nR-50 caffe 1x\n")
    with pytest.raises(BenchError, match="no table 'RPN'"):
        read_tables(path)


@needs_zoo
def test_a_row_with_a_lost_cell_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zoo.txt"
    path.write_text(
        ZOO.read_text().replace("R-50-C4 caffe 2x 2.2 0.17 20.3 52.2", "R-50-C4 caffe 2x 2.2 20.3 52.2")
    )
    with pytest.raises(BenchError, match="7 cells, not 8"):
        read_tables(path)


# -- The SOLOv2 log --------------------------------------------------------------------------------------------


@pytest.fixture(params=["excerpt", "document"])
def log(request: pytest.FixtureRequest) -> Solov2Log:
    if request.param == "document" and not LOG.exists():
        pytest.skip(f"the reference log is not at {LOG}")
    return read_solov2_log(EXCERPT if request.param == "excerpt" else LOG)


def test_the_reference_rates_come_out_of_the_log(log: Solov2Log) -> None:
    rates = [
        (clock.steps, clock.seconds, f"{clock.steps_per_s:.4f}")
        for ema in (True, False)
        for clock in (log.own.clock(ema), log.paddle.clock(ema))
    ]
    assert rates == [
        (980, 1644, "0.5961"),
        (980, 1247, "0.7859"),
        (980, 1437, "0.6820"),
        (980, 1226, "0.7993"),
    ]


def test_the_reference_ratios_come_out_of_the_log(log: Solov2Log) -> None:
    assert percent(log.ratio(True)) == "75.85 %"
    assert percent(log.ratio(False)) == "85.32 %"


def test_the_cost_of_ema_comes_out_of_the_log(log: Solov2Log) -> None:
    assert percent(log.own.ema_loss, 1) == "12.6 %"
    assert percent(log.paddle.ema_loss, 1) == "1.7 %"
    assert f"{log.own.ema_s:.3f} {log.paddle.ema_s:.3f}" == "0.211 0.021"


def test_accuracy_and_inference_rates_come_out_of_the_log(log: Solov2Log) -> None:
    evaluations = [log.own.evaluations["segm"], log.paddle.evaluations["segm"], log.own.evaluations["bbox"]]
    assert [one.metrics["AP"] for one in evaluations] == [0.239, 0.275, 0.242]
    assert [len(one.metrics) for one in evaluations] == [12, 12, 12]
    assert [one.fps for one in log.own.inference if one.fps is not None] == [4.9]
    assert [f"{one.batches_per_s:.3f}" for one in log.paddle.inference if one.batches_per_s] == ["6.465"]
    assert log.own_images == 4952
    assert log.paddle.best is not None
    assert (log.paddle.best.label, round(log.paddle.best.value, 3)) == ("box ap", 0.275)


def test_the_authors_own_figures_agree_with_ours(log: Solov2Log) -> None:
    clocks = [codebase.clock(ema) for codebase in (log.own, log.paddle) for ema in (True, False)]
    ours = {(str(one.steps), str(one.seconds), f"{one.steps_per_s:.4f}") for one in clocks}
    claims = re.findall(r"(\d+) ?steps? / (\d+) ?s = (\d\.\d{4})", EXCERPT.read_text())
    assert set(claims) == ours


@needs_log
def test_the_committed_excerpt_holds_only_lines_of_the_document() -> None:
    assert set(EXCERPT.read_text().splitlines()) <= set(LOG.read_text().splitlines())


# -- The report ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_published(tmp_path_factory.mktemp("reference")).parent


def test_the_report_prints_the_reference_figures(report: Path) -> None:
    text = (report / "solov2.md").read_text()
    for figure in (
        "980 step / 1644 s",
        "0.5961 / 0.7859 step/s = 75.85 %",
        "0.6820 / 0.7993 = 85.32 %",
        "12.6 %",
        "1.7 %",
        "| PaddleDetection | mask | 0.275 |",
        "| own | mask | 0.239 |",
        "| own | box | 0.242 |",
        "4.9 FPS",
        "6.465 batch/s",
    ):
        assert figure in text, figure


def test_the_report_has_every_row_of_the_model_zoo(report: Path) -> None:
    text = (report / "report.md").read_text()
    for layout in LAYOUTS:
        if layout.compares_codebases:
            continue
        for row in load(PUBLISHED / "mmdetection_model_zoo", layout.name).rows:
            shown = [
                "–" if cell == "-" else cell for cell in list(row.values())[:-1]
            ]  # the last one is an address, cut off
            assert f"| {' | '.join(shown)} |" in text


@pytest.mark.parametrize("width", [1366, 390])
def test_the_page_is_accessible_and_fits_a_phone(browser: Browser, report: Path, width: int) -> None:
    tab = opened(browser, report / "index.html", viewport={"width": width, "height": 844}, bypass_csp=True)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert violations(tab) == []


def test_every_figure_of_the_report_is_drawn(report: Path) -> None:
    text = (report / "report.md").read_text() + (report / "solov2.md").read_text()
    names = re.findall(r"\]\((figures/[\w-]+\.svg)\)", text)
    assert len(names) == 7
    for name in names:
        assert (report / name).stat().st_size > 5000


def test_measured_numbers_stand_apart_from_published_ones(tmp_path: Path, report: Path) -> None:
    arms = [(arm("torchvision"), samples(0.8)), (arm("mmdet"), samples(0.9))]
    folder = tmp_path / "results" / "quickstart" / "20261122T100000Z-abc"
    run = write_run(folder, arms, warnings=["the lid was shut"])
    text = generate_published(tmp_path / "out", measured=[run]).read_text()
    published, ours = text.split("## Measured by us, on different hardware")
    assert "torchvision" not in published
    assert "Test CPU @ 2.0 GHz" in ours
    assert "mmdet" in ours
    for part in ("Warnings (", "Equal work", "Recipe as resolved", "Machine and software"):
        assert f"<summary>{part}" in ours
    assert "] ?" in ours, "equal work is not shown, and the ratio says so"
    assert "no number below may be divided by one above" in ours
    assert "Measured by us" not in (report / "report.md").read_text()


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=30), st.booleans())
def test_a_pareto_front_leaves_out_the_beaten_points(points: list[tuple[float, float]], higher: bool) -> None:
    sign = 1 if higher else -1
    front = pareto_front(points, higher_x_is_better=higher)
    for x, y in set(points):
        beaten = any(sign * a >= sign * x and b >= y and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in front) == (not beaten)
