"""A browser for the tests of pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from playwright.sync_api import Page as Tab


def opened(browser: Browser, page: Path, hash_: str = "", **options: Any) -> Tab:
    """A page as it is, in a browser without network. An error of its script fails the test.

    Args:
        browser: The browser.
        page: The file, or the folder of a report.
        hash_: What follows its address.
        options: Of the context.
    """
    tab = browser.new_context(offline=True, **options).new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.goto((page / "index.html" if page.is_dir() else page).as_uri() + hash_)
    if page.is_dir():
        tab.locator("html[data-ready]").wait_for(state="attached")
    assert errors == []
    return tab


def violations(tab: Tab) -> list[tuple[str, str]]:
    """What axe-core finds: the rule, and the first element that breaks it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    return [(one["id"], one["nodes"][0]["html"]) for one in axe.run(tab).response["violations"]]
