"""What `import bench` offers to notebooks and scripts: the functions of the command line, with tables as results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cli.run import measure, plan_of
from bench.errors import ExitCode
from bench.measure import interrupts
from bench.record.run import Run, resolve_run
from bench.report.notebook import LoadedRun

Settings = Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class MeasuredRun(LoadedRun):
    """A run that was measured just now. ``exit_code``: that of `bench run`; 0, or 4 where an arm failed."""

    exit_code: int = 0


def run(
    recipe: str | Path,
    settings: Settings = (),
    *,
    results: str | Path = "results",
    adapters: Sequence[str | Path] = (),
    aa: bool = False,
    strict: bool = False,
    quiet: bool = False,
    allow_variables: bool = False,
    trust: bool = False,
) -> MeasuredRun:
    """Measure every arm of a recipe, as `bench run` does.

    Args:
        recipe: A file, or a name of `bench list recipes`.
        settings: Values of the recipe to change: `{"measure.rounds": 3}`, or `["measure.rounds=3"]`.
        results: Folder of the runs.
        adapters: Folders of adapters.
        aa: Measure the baseline against itself.
        strict: Refuse to time an arm whose work is unequal.
        quiet: Show no progress on standard error.
        allow_variables: Let the recipe set any environment variable of its workers.
        trust: Run the code that the recipe names outside this repository.

    Returns:
        The run. An arm that failed is a row with its reason; other arms are measured.

    Raises:
        BenchError: The recipe is wrong.
        KeyboardInterrupt: The run was interrupted; what was measured is kept for `bench run --resume`.
    """
    folders = [Path(one) for one in adapters]
    loaded, plan = plan_of(
        Path(recipe), _overrides(settings), folders, aa=aa, allow_variables=allow_variables, trust=trust
    )
    with interrupts.handled():
        outcome = measure(loaded, plan, Path(results), folders, quiet=quiet, strict=strict)
    if outcome.exit_code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt(f"complete it with: bench run --resume {outcome.run.folder}")
    return MeasuredRun(outcome.run, int(outcome.exit_code))


def load(name: str | Path, results: str | Path = "results") -> LoadedRun:
    """Open a stored run.

    Args:
        name: The folder of a run, its id, or `latest`.
        results: Folder of the runs, for an id and for `latest`.

    Raises:
        BenchError: There is no such run, or its record cannot be read.
    """
    found = Run(resolve_run(str(name), Path(results)))
    found.record()
    return LoadedRun(found)


def _overrides(settings: Settings) -> list[str]:
    """As `--set` takes them; values are YAML, of which JSON is a part."""
    if isinstance(settings, Mapping):
        return [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    return list(settings)
