"""The page of faults names tests that exist."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "reference" / "faults.md").read_text()
FAULTS = "".join(
    (ROOT / "tests" / "integration" / name).read_text()
    for name in ("test_faults.py", "test_machine_faults.py")
)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", PAGE))))
def test_a_test_that_the_page_names_exists(name: str) -> None:
    assert f"def {name}(" in FAULTS


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(tests/\S+\.py)`", PAGE))))
def test_a_file_that_the_page_names_exists(path: str) -> None:
    assert (ROOT / path).is_file()
