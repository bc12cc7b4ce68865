"""A run as tables for notebooks. The exports of the command line are the same tables."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.record.run import Run
from bench.report.answer import geometric_mean, headline, pivots, table_blocks
from bench.report.build import run_report
from bench.report.document import Block, Bullets
from bench.report.render import terminal
from bench.report.render.page import html_of
from bench.report.values import RunReport

if TYPE_CHECKING:
    import pandas as pd

#: Columns of `LoadedRun.ratios`.
RATIO_COLUMNS = (
    "workload", "arm", "codebase", "baseline", "s_per_iter", "images_per_s", "ratio", "low", "high", "launches",
    "rounds", "max_memory_mib", "memory_ratio", "ap", "verdict", "marks", "status", "reason",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """A run folder that is read once."""

    run: Run

    def __repr__(self) -> str:
        """Recipe, date, status and arms."""
        record, arms = self.run.record(), self.run.arms()
        counts = Counter(arm.codebase for arm in arms)
        ended = ", ".join(f"{number} {name}" for name, number in counts.items()) or "none ended"
        failed = sum(arm.status == "failed" for arm in arms)
        return (
            f"<run {record.id} of {record.recipe.get('name', record.recipe_path)}, {record.started_utc[:10]}, "
            f"{self.run.status_of(record)}: {len(record.arms)} arms ({ended}{f'; {failed} failed' if failed else ''})>"
        )

    @cached_property
    def report(self) -> RunReport:
        """All values of the report."""
        return run_report(self.run)

    def ratios(self) -> pd.DataFrame:
        """One row per arm that is no baseline.

        Returns:
            Columns `RATIO_COLUMNS`: times in seconds, memory in MiB, AP 0..1. A ratio above 1 is faster than the
            baseline; `verdict` says whether the work was equal, and `marks` what else a reader has to know.
        """
        import pandas as pd

        rows = []
        for one in pivots(self.report):
            row, ratio = one.row, one.row.ratio
            rows.append(
                (
                    one.group.title, row.arm, one.name, one.base_name,
                    row.step_s.median_s if row.step_s else None, row.step_s.images_per_s if row.step_s else None,
                    ratio.value if ratio else None, ratio.low if ratio else None, ratio.high if ratio else None,
                    row.launches, row.rounds, row.peak_mib, one.memory_ratio, row.headline_ap, row.verdict,
                    "".join(row.marks), row.status, row.reason,
                )
            )  # fmt: skip
        return pd.DataFrame(rows, columns=list(RATIO_COLUMNS))

    def geometric_mean(self) -> float | None:
        """Of the ratios of equal work; None without any."""
        mean = geometric_mean(self.report.rows)
        return None if mean is None else mean.value

    def samples(self) -> pd.DataFrame:
        """Every step of every arm that did not fail: column `arm`, and those of `bench.record.samples.SAMPLE_COLUMNS`.

        Raises:
            BenchError: The samples of an arm are damaged.
        """
        import pandas as pd

        frames = {arm.id: self.run.samples(arm.id) for arm in self.run.arms() if arm.status != "failed"}
        return (
            pd.concat(frames, names=["arm", None]).reset_index("arm") if frames else pd.DataFrame({"arm": []})
        )

    def audit(self, *, agreeing: bool = False) -> pd.DataFrame:
        """One row per fact that differs from the baseline's, or that could not be observed in both arms.

        Args:
            agreeing: Also a row for each kind of fact that agrees: the one that comes nearest to its tolerance.

        Returns:
            Columns arm, verdict, fact, baseline, value, tolerance; of a fact that is not shown, the last three are
            missing.
        """
        import pandas as pd

        rows: list[tuple[Any, ...]] = []
        for row in self.report.rows:
            agreed: tuple[Any, ...] = row.audit.agreed if row.audit and agreeing else ()
            for one in (*row.audit.differences, *agreed) if row.audit else ():
                rows.append((row.arm, row.verdict, one.fact, one.baseline, one.arm, one.tolerance))
            for fact in row.audit.unknown if row.audit else ():
                rows.append((row.arm, row.verdict, fact, None, None, None))
        return pd.DataFrame(rows, columns=["arm", "verdict", "fact", "baseline", "value", "tolerance"])

    def show(self) -> None:
        """Print the answer on a terminal, or show it inline in a notebook."""
        ipython: Any = sys.modules.get("IPython")  # where it is imported, a notebook may be running
        shell = ipython.get_ipython() if ipython else None
        if shell is not None and getattr(shell, "kernel", None) is not None:
            ipython.display.display(ipython.display.HTML(self._repr_html_()))
        else:
            terminal.show(self._blocks())

    def _blocks(self) -> list[Block]:
        return [Bullets(headline(self.report)), *table_blocks(self.report)]

    def _repr_html_(self) -> str:
        """The answer, as a notebook shows it."""
        return str(html_of(self._blocks()))
