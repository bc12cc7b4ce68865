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
}

#: A table of more rows is no samples table; a few kilobytes of a crafted file can unpack to gigabytes.
MAX_ROWS = 20_000_000


def samples_frame(blocks: Sequence[Block]) -> pd.DataFrame:
    """Journal lines as a samples table.

    The duration of a step is from its start to the start of the next, of the last step to the end of the block.
    """
    rows: list[tuple[int, ...]] = []
    for block in blocks:
        for rank, times in enumerate(block.ranks):
            edges = [*times.start_ns, times.end_ns]
            for step, (start, end) in enumerate(itertools.pairwise(edges)):
                rows.append((block.launch, block.round, block.position, rank, step, start, end - start))
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
            table: pd.DataFrame = file.read(columns=list(SAMPLE_COLUMNS)).to_pandas()
    except Exception as error:  # on a torn file pyarrow raises whatever its parts happen to raise
        raise ValueError(f"no samples table: {error}") from None
    if missing := set(SAMPLE_COLUMNS) - set(table.columns):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    if not all(np.issubdtype(dtype, np.number) for dtype in table.dtypes):
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

    A step of several ranks lasts as long as its slowest rank (max over ranks), then the block is averaged.
    """
    measured = samples[samples["round"] >= 0]
    keys = ["launch", "round", "position"]
    steps = measured.groupby([*keys, "step"], as_index=False)["duration_ns"].max()
    blocks = steps.groupby(keys)["duration_ns"].agg(["mean", "size"]).reset_index()
    timed: pd.DataFrame = blocks.assign(s_per_step=blocks["mean"] / 1e9, steps=blocks["size"])
    return timed[[*keys, "steps", "s_per_step"]]
