"""Budgets of the page of a report: bytes, seconds until it is ready, elements, and time of a filter, by number of arms.

    python -m benchmarks.page

The arms are those of a small simulated run, repeated with other times. Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from bench.judge.audit import Audit
from bench.judge.fact import Agreement
from bench.report.app.page import render_page
from bench.report.build import run_report
from bench.report.values import Group, Report, Row, RunReport
from tests.helpers.report_runs import arm, judged, samples, write_run

#: Arms → bytes, seconds until ready, elements, milliseconds of a filter.
BUDGETS = {32: (250_000, 0.3, 3000, 50), 300: (400_000, 0.5, 5000, 50), 5000: (1_500_000, 1.5, 5000, 100)}
MODELS = ("faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn", "retinanet_r50_fpn", "fcos_r50_fpn", "solov2_r50_fpn")
CODEBASES = ("torchvision", "native", "mmdet", "paddledet")
#: Milliseconds of each text, the least of five: other work of the machine is no part of it.
FILTER = """() => {
  const texts = ["mask", "mask native", ""], query = document.getElementById("query");
  const once = (text) => {
    const start = performance.now();
    query.value = text;
    query.dispatchEvent(new Event("input"));
    return performance.now() - start;
  };
  const found = [1, 2, 3, 4, 5].map(() => texts.map(once));
  return texts.map((_, at) => Math.min(...found.map((one) => one[at])));
}"""


def small_run(folder: Path) -> RunReport:
    """20 arms of 12 steps each, with 100 facts that agree with the baseline's."""
    arms = []
    for k, model in enumerate(MODELS):
        for j, name in enumerate(CODEBASES):
            frame = samples(1 + 0.2 * j, launches=3, rounds=2, steps=2, warmup=0, seed=10 * k + j)
            arms.append((arm(name, {"model": model}), frame))
    agreed = tuple(
        Agreement(f"fact {number}", 1.0 + number, 1.01 + number, 0.01, 0.02, 3) for number in range(100)
    )
    audits = {record.id: Audit(record.id, "torchvision", agreed=agreed) for record, _ in arms}
    with judged(audits):
        return run_report(write_run(folder / "run", arms))


def scaled(row: Row, factor: float, number: int, rng: random.Random) -> Row:
    """The same arm, slower by a factor, with noise of its own."""
    assert row.step_s is not None
    seconds = tuple(value * factor * rng.uniform(0.95, 1.05) for value in row.trace.seconds)
    times = {name: getattr(row.step_s, name) * factor for name in ("median_s", "p5_s", "p95_s")}
    step_s = replace(row.step_s, **times, images_per_s=row.step_s.images_per_s / factor)
    ratio = row.ratio and replace(
        row.ratio, **{name: getattr(row.ratio, name) / factor for name in ("value", "low", "high")}
    )
    trace = replace(row.trace, seconds=seconds)
    return replace(row, arm=f"{row.arm}-{number}", trace=trace, ratio=ratio, step_s=step_s)


def repeated(run: RunReport, arms: int) -> Report:
    """A report of so many arms."""
    rng = random.Random(0)
    groups: list[Group] = []
    for number in range(arms // len(CODEBASES)):
        group = run.groups[number % len(run.groups)]
        rows = tuple(scaled(row, rng.uniform(0.5, 2), number, rng) for row in group.rows)
        groups.append(replace(group, rows=rows, levels={"seed": number}))
    return Report((replace(run, groups=tuple(groups)),))


def browse(browser: Browser, path: Path) -> tuple[float, int, float]:
    """Seconds until ready, elements, milliseconds of the slowest filter."""
    tab: Any = browser.new_page(viewport={"width": 1440, "height": 900})
    tab.goto(path.as_uri())
    tab.locator("html[data-ready]").wait_for(state="attached", timeout=120_000)
    ready_s = float(tab.evaluate("document.documentElement.dataset.ready")) / 1000
    elements = int(tab.evaluate("document.querySelectorAll('*').length"))
    return ready_s, elements, max(tab.evaluate(FILTER))


def look(browser: Browser, path: Path) -> None:
    """Screenshots beside the page, for somebody to look at: three widths, light and dark, and print."""
    for width in (1440, 1366, 390):
        for theme in ("light", "dark"):
            view: Any = {"width": width, "height": 844 if width == 390 else 768}
            tab: Any = browser.new_page(viewport=view, color_scheme=theme)
            tab.goto(path.as_uri())
            tab.locator("html[data-ready]").wait_for(state="attached", timeout=120_000)
            tab.screenshot(path=path.with_name(f"{path.stem}-{width}-{theme}.png"))
            tab.close()
    tab = browser.new_page()
    tab.goto(path.as_uri())
    tab.locator("html[data-ready]").wait_for(state="attached", timeout=120_000)
    tab.pdf(path=path.with_suffix(".pdf"), prefer_css_page_size=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="Keep the pages and screenshots of them in this folder.")
    output = parser.parse_args().output
    over = 0
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = output or Path(folder)
        pages.mkdir(parents=True, exist_ok=True)
        run = small_run(Path(folder))
        path = shutil.which("chromium") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for arms, budget in BUDGETS.items():
            start = time.process_time()
            text = render_page(repeated(run, arms))
            page = pages / f"{arms}.html"
            page.write_text(text)
            found = (len(text.encode()), *browse(browser, page))
            if output:
                look(browser, page)
            over += sum(value > most for value, most in zip(found, budget, strict=True))
            print(
                f"{arms} arms: {found[0]} bytes, rendered in {time.process_time() - start:.1f} CPU-s, "
                f"ready in {found[1]:.2f} s, {found[2]} elements, filter {found[3]:.0f} ms; budget {budget}"
            )
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
