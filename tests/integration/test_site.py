"""`bench site build`: an index of runs, latest reports, and histories with their changes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from bench.cli import main
from tests.helpers.browser import opened, violations
from tests.helpers.report_runs import MACHINE, arm, samples, write_run

EVIL = "<script>alert(1)</script>\x1b[2J"


def stored(results: Path, number: int, seconds: float, **more: Any) -> None:
    """One run of two arms; `native` is from another revision from run 10 on."""
    rng = np.random.default_rng(number)
    factor = float(np.exp(rng.normal(0, 0.01)))
    environment = {"git": {"revision": f"{'b' if number >= 10 else 'a'}{number:039d}"}}
    arms = [
        (arm("torchvision"), samples(1.3, rounds=2, seed=number)),
        (arm("native", environment=environment), samples(seconds * factor, rounds=2, seed=99 + number)),
    ]
    day = f"2026-10-{number + 1:02d}"
    write_run(results / "quickstart" / f"{day.replace('-', '')}T000000Z-{number:06x}", arms,
              started_utc=f"{day}T00:00:00Z", **more)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site")
    results = root / "results"
    for number in range(20):
        stored(results, number, 1.0 if number < 10 else 1.2)
    other = {**MACHINE, "cpu": {**MACHINE["cpu"], "model": EVIL}, "gpus": [EVIL]}
    stored(results, 20, 1.0, machine=other, warnings=[EVIL])
    torn = results / "quickstart" / "20261122T000000Z-000000"
    torn.mkdir()
    (torn / "run.json").write_text('{"id": ')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(root / "cache"))
        patch.setattr(sys, "argv", ["bench", "site", "build", str(results), "-o", str(root / "public")])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return root / "public"


def test_every_link_of_the_site_leads_to_a_page(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == 5, "an index, two histories, two reports"
    for page in (page for page in pages if "reports" not in page.parts):
        for link in re.findall(r'href="([^"]+)"', page.read_text()):
            path, _, anchor = link.partition("#")
            target = page.parent / path
            assert target.is_file(), link
            assert not anchor or f'id="{anchor}"' in target.read_text(), link


def test_a_change_is_named_with_its_size_and_revisions(site: Path) -> None:
    (series,) = (one for one in json.loads((site / "history.json").read_text()) if one["changes"])
    assert series["arm"] == "native"
    (change,) = series["changes"]
    assert change["direction"] == "regression"
    assert change["change"] == pytest.approx(0.2, abs=0.03)
    text = (site / "index.html").read_text()
    assert f"regression {100 * change['change']:+.1f} %" in text
    assert re.search(r"revisions a0\d+\.\.b0\d+", text)


def test_a_report_shows_the_history_of_its_recipe(site: Path, tmp_path: Path) -> None:
    results, run = site.parent / "results", "20261020T000000Z-000013"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
        arguments = ["bench", "report", run, "--results", str(results), "-o", str(tmp_path / "report")]
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    text = (tmp_path / "report" / "index.html").read_text()
    section = text.partition('<section id="history">')[2].partition('<section id="notes">')[0]
    assert "20 runs of quickstart" in section, "the other machine's run is no part of it"
    assert "1 series changed for good" in section
    assert re.search(r"regression \+\d", section)


def test_machines_are_never_joined(site: Path) -> None:
    counts = sorted(len(one["points"]) for one in json.loads((site / "history.json").read_text()))
    assert counts == [1] * 4 + [20] * 4


def test_a_torn_run_is_named_and_left_out(site: Path) -> None:
    assert len(json.loads((site / "runs.json").read_text())) == 22
    text = (site / "index.html").read_text()
    assert "20261122T000000Z-000000 is left out" in text
    assert str(site.parent) not in text, "a path of this machine"


def test_texts_of_records_stay_text(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert "<script>alert" not in page.read_text()
        assert "\x1b" not in page.read_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1366, 390])
def test_pages_of_the_site_are_accessible(browser: Browser, site: Path, width: int, theme: Any) -> None:
    for page in (site / "index.html", *(site / "history").iterdir()):
        tab = opened(
            browser, page, viewport={"width": width, "height": 844}, color_scheme=theme, bypass_csp=True
        )
        assert violations(tab) == []
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_no_runs_are_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "site", "build", str(tmp_path), "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "bench run" in capsys.readouterr().err
