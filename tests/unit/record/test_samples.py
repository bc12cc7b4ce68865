"""Tables of samples: the arrays give what pandas would."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.record.samples import block_times, samples_columns
from tests.helpers.report_runs import samples


@pytest.mark.parametrize("ranks", [1, 2])
def test_block_times_are_those_of_a_grouped_table(ranks: int) -> None:
    table = samples(1.0, launches=3, rounds=4, ranks=ranks, noise=0.3, seed=1)
    measured = table[table["round"] >= 0]
    keys = ["launch", "round", "position"]
    slowest = measured.groupby([*keys, "step"], as_index=False)["duration_ns"].max()
    expected = slowest.groupby(keys)["duration_ns"].agg(["mean", "size"]).reset_index()
    found = block_times(table.sample(frac=1, random_state=0))
    assert found[keys].equals(expected[keys])
    assert found["steps"].tolist() == expected["size"].tolist()
    np.testing.assert_allclose(found["s_per_step"], expected["mean"] / 1e9, rtol=1e-14)


def test_no_samples_give_no_blocks() -> None:
    found = block_times(pd.DataFrame(samples_columns([])))
    assert isinstance(found, pd.DataFrame)
    assert found.empty
    assert "s_per_step" in found
