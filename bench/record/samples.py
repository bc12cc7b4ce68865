"""Raw samples as tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.record.models import Block

if TYPE_CHECKING:  # pandas takes half a second: only the gate and the Python API pay it
    import pandas as pd

#: Columns of a samples table: one row per step and rank.
SAMPLE_COLUMNS = {
    "launch": "int32",  # 0-based
    "round": "int32",  # 0-based within the launch; -1 for the warm-up
    "position": "int32",  # place of the arm in the order of that round
    "rank": "int32",
    "step": "int32",  # 0-based within the block
    "start_ns": "int64",  # worker's monotonic clock at the start of the step
    "duration_ns": "int64",  # start of this step to start of the next (the last: to the end of the block)
    "batch": "int32",  # number of the batch; -1: not known
    "disturbed": "int8",  # 1: others took more of the processors than a quiet machine allows
}
#: What tables lacked before these columns came.
_DEFAULTS = {"batch": -1, "disturbed": 0}
#: Blocks of a launch that have to stay when the disturbed ones are left out.
MIN_QUIET_BLOCKS = 2

#: A table of more rows is no samples table; a few kilobytes of a crafted file can unpack to gigabytes.
MAX_ROWS = 20_000_000


Columns = dict[str, npt.NDArray[Any]]
"""The columns of a samples table, all of one length."""


def samples_columns(blocks: Sequence[Block]) -> Columns:
    """Journal lines as the columns of a samples table.

    The duration of a step is from its start to the start of the next, of the last step to the end of the block.
    """
    rows: list[tuple[int, ...]] = []
    for block in blocks:
        disturbed = int((block.taken_cores or 0.0) > block.allowed_cores)
        for rank, times in enumerate(block.ranks):
            edges = [*times.start_ns, times.end_ns]
            for step, (start, end) in enumerate(itertools.pairwise(edges)):
                batch = block.batches[step] if rank == 0 and step < len(block.batches) else -1
                place = (block.launch, block.round, block.position, rank, step)
                rows.append((*place, start, end - start, batch, disturbed))
    values = np.array(rows, dtype=np.int64).reshape(-1, len(SAMPLE_COLUMNS))
    return {name: values[:, index].astype(kind) for index, (name, kind) in enumerate(SAMPLE_COLUMNS.items())}


def write_columns(samples: Columns | pd.DataFrame, path: Path) -> None:
    """A samples table as a parquet file; by buffers, since `pa.array` imports pandas."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {str(name): np.ascontiguousarray(column) for name, column in samples.items()}
    arrays = {
        name: pa.Array.from_buffers(pa.from_numpy_dtype(one.dtype), one.size, [None, pa.py_buffer(one)])
        for name, one in columns.items()
    }
    pq.write_table(pa.table(arrays), path, compression="zstd")


def read_columns(path: Path) -> Columns:
    """A stored samples table as arrays.

    Raises:
        ValueError: the file is torn, or holds something else than samples.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise ValueError(f"{file.metadata.num_rows} rows")
            there = set(file.schema_arrow.names)
            kept = [name for name in SAMPLE_COLUMNS if name in there]
            table = file.read(columns=kept, use_threads=False)
        if any(not (pa.types.is_integer(one.type) or pa.types.is_floating(one.type)) for one in table.schema):
            raise ValueError("a column holds no numbers")
        columns = {name: _array(table.column(name)) for name in kept}
        for name, value in _DEFAULTS.items():
            columns.setdefault(name, np.full(table.num_rows, value, SAMPLE_COLUMNS[name]))
    except Exception as error:  # on a torn file pyarrow raises whatever its parts happen to raise
        raise ValueError(f"no samples table: {error}") from None
    if missing := set(SAMPLE_COLUMNS) - set(columns):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    return columns


def _array(column: Any) -> npt.NDArray[Any]:
    """A column of pyarrow without its `to_numpy`, which imports pandas; what is missing is not a number."""
    if column.null_count:
        column = column.cast("float64").fill_null(math.nan)
    return np.from_dlpack(column.combine_chunks())


def problem_of(samples: Columns) -> str | None:
    """What is wrong with the times of a table: a step has to take a positive, finite time."""
    durations = samples["duration_ns"].astype(float)
    wrong = ~(np.isfinite(durations) & (durations > 0))
    if not wrong.any():
        return None
    row = {name: column[int(np.argmax(wrong))] for name, column in samples.items()}
    place = f"launch {row['launch']:g}, round {row['round']:g}, step {row['step']:g}"
    return f"a step takes {row['duration_ns']:g} ns ({place})"


_BLOCK = ("launch", "round", "position")
_STEP = (*_BLOCK, "step")


def step_times(samples: Columns) -> Columns:
    """One row per step, warm-up included: a step of several ranks lasts as long as its slowest rank.

    Args:
        samples: A samples table.

    Returns:
        Columns launch, round, position, step, duration_ns, batch, disturbed, start_ns, in order of the first four.
    """
    rows, starts = _grouped(samples, _STEP)
    keys = {name: samples[name][rows[starts]] for name in _STEP}
    largest = ("duration_ns", "batch", "disturbed", "start_ns")
    if not starts.size:
        return {**keys, **{name: samples[name] for name in largest}}
    return {**keys, **{name: np.maximum.reduceat(samples[name][rows], starts) for name in largest}}


def block_columns(samples: Columns) -> Columns:
    """Seconds per step of each measured block: launch, round, position, steps, s_per_step.

    A step of several ranks lasts as long as its slowest rank (max over ranks), then the block is averaged. Disturbed
    blocks are left out where their launch has enough quiet ones.
    """
    steps = step_times(_quiet(samples))
    rows, starts = _grouped(steps, _BLOCK)
    sizes = np.diff(np.append(starts, rows.size))
    durations = steps["duration_ns"].astype(np.float64)[rows]
    sums = np.add.reduceat(durations, starts) if starts.size else durations
    keys = {name: steps[name][rows[starts]] for name in _BLOCK}
    return {**keys, "steps": sizes, "s_per_step": sums / sizes / 1e9}


def block_times(samples: pd.DataFrame) -> pd.DataFrame:
    """`block_columns` as a table."""
    import pandas as pd

    return pd.DataFrame(block_columns({str(name): column.to_numpy() for name, column in samples.items()}))


def _grouped(table: Columns, keys: Sequence[str]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows in order of the keys, and where in this order each group begins."""
    columns = [table[name] for name in keys]
    rows = np.lexsort(columns[::-1])
    changes = np.zeros(rows.size, bool)
    changes[:1] = True
    for column in columns:
        ordered = column[rows]
        changes[1:] |= ordered[1:] != ordered[:-1]
    return rows, np.flatnonzero(changes)


def _quiet(samples: Columns) -> Columns:
    """The measured steps, without the disturbed blocks of launches in which `MIN_QUIET_BLOCKS` others are left."""
    kept = samples["round"] >= 0
    disturbed = samples["disturbed"] != 0
    if (disturbed & kept).any():
        for launch in np.unique(samples["launch"]):
            own = samples["launch"] == launch
            if np.unique(samples["round"][own & kept & ~disturbed]).size >= MIN_QUIET_BLOCKS:
                kept &= ~(own & disturbed)
    return {name: column[kept] for name, column in samples.items()}
