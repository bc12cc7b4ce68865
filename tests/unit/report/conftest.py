"""One report that the tests of reports share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.record.run import Run
from bench.report.write import generate
from tests.helpers.report_runs import equal_audits, judged, quickstart


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, str]:
    """The quickstart run, its report folder, and the markdown."""
    root = tmp_path_factory.mktemp("quickstart")
    run = quickstart(
        root / "results" / "quickstart" / "20261122T100000Z-abcd", warnings=["the laptop lid was shut"]
    )
    with judged(equal_audits(run)):
        path = generate([run], root / "report", every_figure=True)
    return run, path.parent, path.read_text()
