"""Tables of block times for tests."""

from __future__ import annotations

import numpy as np
import pandas as pd


def table(seconds: np.ndarray) -> pd.DataFrame:
    """Block times [launches, rounds] as `bench.record.samples.block_times` gives them."""
    launches, rounds = seconds.shape
    launch, round_ = np.divmod(np.arange(launches * rounds), rounds)
    return pd.DataFrame(
        {"launch": launch, "round": round_, "position": 0, "steps": 5, "s_per_step": seconds.ravel()}
    )
