"""The static page: safe whatever a record says, complete on its own, and usable in a browser."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Page as Tab

from bench.record.models import Failure
from bench.report import generate
from tests.report_runs import arm, samples, write_run
from tests.test_report import tables_of

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags with their attributes, texts of scripts, and cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "script":
            self.scripts.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self._cell = tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self._cell = False

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self._cell:
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every text that can come from outside tries to break out of its place."""
    root = tmp_path_factory.mktemp("page")
    evil = Failure(reason="exception", message=EVIL, stage=EVIL, log=EVIL, log_tail=[EVIL, "</pre></code>"])
    arms = [
        (arm("torchvision"), samples(1.3, seed=1)),
        (arm("slow"), samples(2.6, seed=2)),
        (
            arm("evil", label=EVIL, description={"kernels": EVIL}, options={EVIL: EVIL}, warnings=[EVIL],
                environment={"python": EVIL, "packages": {EVIL: EVIL}, "variables": {EVIL: EVIL}}),
            samples(0.9, seed=3),
        ),
        (arm("broken", status="failed", failure=evil), samples(1.0)),
        (arm("torchvision", {"task": "infer"}), samples(0.5, seed=4)),
    ]  # fmt: skip
    run = write_run(
        root / "run", arms, warnings=[EVIL], machine={EVIL: EVIL, "gpus": [EVIL]}, command=["bench", EVIL],
        dataset={EVIL: {"path": EVIL}}, recipe_path=EVIL, git={"revision": EVIL},
        recipe={"name": "evil", "description": EVIL, "environment": {"variables": {EVIL: EVIL}}},
    )  # fmt: skip
    return generate([run], root / "report").parent


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text())


def test_nothing_in_a_record_becomes_a_tag_or_a_script(page: Page) -> None:
    assert len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    assert [cell for table in page.tables for row in table for cell in row if cell == EVIL], "shown as text"
    handlers = [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert handlers == []


def test_the_content_security_policy_allows_the_one_script_and_nothing_else(page: Page) -> None:
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_the_page_needs_no_network_and_no_other_file(page: Page, folder: Path) -> None:
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) >= 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    links = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert not re.search(r"@import|url\(", (folder / "index.html").read_text())


def test_figures_carry_their_words_for_who_cannot_see_them(page: Page) -> None:
    assert all(len(image["alt"]) > 10 for image in page.all("img"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(header.get("scope") == "col" for header in page.all("th"))
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_and_the_markdown_hold_the_same_tables(page: Page, folder: Path) -> None:
    assert page.tables == tables_of((folder / "report.md").read_text())


def test_figures_of_evil_labels_hold_no_script(folder: Path) -> None:
    for path in (folder / "figures").glob("*.svg"):
        assert "<script" not in path.read_text().lower(), path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium of this machine; playwright's own download is not needed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip(
                f"no Chromium ({', '.join(names)}, playwright install chromium): the page was not browsed"
            )
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture
def tab(browser: Browser, folder: Path) -> Tab:
    """The page as it is, under its own policy, in a browser without network. An error of its script fails the test."""
    tab = browser.new_context(offline=True).new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.goto((folder / "index.html").as_uri())
    assert errors == []
    return tab


def test_a_click_on_a_header_sorts_by_number(tab: Tab) -> None:
    """Missing values stay last."""
    table = tab.locator("table", has=tab.locator("th", has_text="s/iter")).first
    header = table.locator("th", has_text="s/iter").first

    def order() -> list[str]:
        return table.locator("tbody tr td:first-child").all_inner_texts()

    assert order() == ["torchvision", "slow", EVIL, "broken"]
    header.get_by_role("button").click()
    assert order() == [EVIL, "torchvision", "slow", "broken"]
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").click()
    assert order() == ["slow", "torchvision", EVIL, "broken"]
    assert header.get_attribute("aria-sort") == "descending"
