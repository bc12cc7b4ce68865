"""Raw samples as tables."""

from __future__ import annotations

import itertools
from typing import Any

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
}


def samples_frame(blocks: list[dict[str, Any]]) -> pd.DataFrame:
    """Journal lines as a samples table.

    A block is ``{arm, launch, round, position, ranks: [{start_ns: [...], end_ns: int}, ...]}``; the duration of a
    step is from its start to the start of the next, of the last step to the end of the block.
    """
    rows: list[tuple[int, ...]] = []
    for block in blocks:
        for rank, times in enumerate(block["ranks"]):
            edges = [*times["start_ns"], times["end_ns"]]
            for step, (start, end) in enumerate(itertools.pairwise(edges)):
                rows.append(
                    (block["launch"], block["round"], block["position"], rank, step, start, end - start)
                )
    return pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS)).astype(SAMPLE_COLUMNS)


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
