"""Raw samples as tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from bench.record.models import Block

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


def samples_frame(blocks: Sequence[Block]) -> pd.DataFrame:
    """Journal lines as a samples table.

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
    return pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS)).astype(SAMPLE_COLUMNS)


def read_samples(path: Path) -> pd.DataFrame:
    """A stored samples table.

    Raises:
        ValueError: the file is torn, or holds something else than samples.
    """
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise ValueError(f"{file.metadata.num_rows} rows")
            kept = [name for name in SAMPLE_COLUMNS if name in file.schema_arrow.names]
            table: pd.DataFrame = file.read(columns=kept).to_pandas()
            for name, value in _DEFAULTS.items():
                if name not in kept:
                    table[name] = np.full(len(table), value, SAMPLE_COLUMNS[name])
    except Exception as error:  # on a torn file pyarrow raises whatever its parts happen to raise
        raise ValueError(f"no samples table: {error}") from None
    if missing := set(SAMPLE_COLUMNS) - set(table.columns):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    if not all(pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes):
        raise ValueError("a column holds no numbers")
    return table


def problem_of(samples: pd.DataFrame) -> str | None:
    """What is wrong with the times of a table: a step has to take a positive, finite time."""
    durations = samples["duration_ns"].to_numpy(dtype=float)
    wrong = ~(np.isfinite(durations) & (durations > 0))
    if not wrong.any():
        return None
    row = samples.iloc[int(np.argmax(wrong))]
    place = f"launch {row['launch']:g}, round {row['round']:g}, step {row['step']:g}"
    return f"a step takes {row['duration_ns']:g} ns ({place})"


def block_times(samples: pd.DataFrame) -> pd.DataFrame:
    """Seconds per step of each measured block: columns launch, round, position, steps, s_per_step.

    A step of several ranks lasts as long as its slowest rank (max over ranks), then the block is averaged. Disturbed
    blocks are left out where their launch has enough quiet ones.
    """
    measured = _quiet(samples[samples["round"] >= 0])
    keys = ["launch", "round", "position"]
    steps = measured.groupby([*keys, "step"], as_index=False)["duration_ns"].max()
    blocks = steps.groupby(keys)["duration_ns"].agg(["mean", "size"]).reset_index()
    timed: pd.DataFrame = blocks.assign(s_per_step=blocks["mean"] / 1e9, steps=blocks["size"])
    return timed[[*keys, "steps", "s_per_step"]]


def _quiet(measured: pd.DataFrame) -> pd.DataFrame:
    """Without the disturbed blocks of launches in which `MIN_QUIET_BLOCKS` others are left."""
    if not measured["disturbed"].any():
        return measured
    quiet = measured[measured["disturbed"] == 0]
    left = quiet.groupby("launch")["round"].nunique()
    enough = measured["launch"].map(left).fillna(0) >= MIN_QUIET_BLOCKS
    kept: pd.DataFrame = measured[(measured["disturbed"] == 0) | ~enough]
    return kept
