"""One arm's model as an ONNX file, written by the worker that would measure it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bench.environments import cache_folder
from bench.errors import BenchError
from bench.measure.prepare import prepare_all
from bench.measure.process import WorkerFailure
from bench.measure.session import fresh_arm, new_run
from bench.measure.site import Listener, Site
from bench.recipe.codebases import Codebase
from bench.recipe.load import LoadedRecipe
from bench.recipe.plan import Plan


def export_model(
    loaded: LoadedRecipe, plan: Plan, codebases: Mapping[str, Codebase], target: Path, listener: Listener
) -> None:
    """Write the model of the plan's first arm.

    Args:
        loaded: The recipe.
        plan: Its plan.
        codebases: The known ones, by name.
        target: The file.
        listener: Is told what happens.

    Raises:
        BenchError: The codebase writes no ONNX, or failed; the message holds its reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        run, record = new_run(loaded, plan, Path(folder), [])
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        site = Site(plan, run, record, codebases, cache_folder(), scratch, listener)
        one = fresh_arm(site, plan.arms[0])
        prepare_all(site, [one])
        if one.record.failure:
            raise BenchError(f"{one.arm.label}: {one.record.failure.message}")
        assert one.prepared is not None
        file = scratch / "model.onnx"
        try:
            site.write_once("export", one.arm, one.prepared, file)
        except WorkerFailure as error:
            lacking = "No module named 'onnx" in error.message
            hint = "pip install 'detection-bench[export]'" if lacking else None
            raise BenchError(f"{one.arm.label} was not exported: {error.message}", hint=hint) from None
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        target.write_bytes(file.read_bytes())
