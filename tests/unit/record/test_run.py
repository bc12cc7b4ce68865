"""Run folders of strangers, torn by a kill, or of another version: read what is sound, name what is not."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.errors import BenchError, StorageError
from bench.recipe.workload import Workload
from bench.record.models import SCHEMA_VERSION, ArmRecord, Block, Losses, RankTimes, RunRecord
from bench.record.run import JOURNAL, Run
from bench.record.samples import SAMPLE_COLUMNS, samples_columns


def block(arm: str = "a", launch: int = 0, end_ns: int = 300) -> Block:
    ranks = [RankTimes(start_ns=[100, 200], end_ns=end_ns)]
    return Block(arm=arm, launch=launch, round=0, position=0, ranks=ranks)


def arm_record(**changes: Any) -> ArmRecord:
    values = {"id": "a", "codebase": "fake", "label": "a", "cell": "all", "status": "ok"}
    return ArmRecord(**{**values, "workload": Workload(model="retinanet_r50_fpn"), **changes})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of one arm with two launches."""
    run = Run(tmp_path / "run")
    run.write_record(
        RunRecord(
            id="x", recipe={"name": "r"}, started_utc="2026-01-01T00:00:00Z", bench_version="0", arms=["a"]
        )
    )
    blocks = [block(), block(launch=1)]
    for one in blocks:
        run.append_block(one)
    run.write_arm(arm_record(), samples_columns(blocks))
    return run


def change(path: Path, *keys: str, value: Any) -> None:
    """Set one value of a JSON file."""
    content = json.loads(path.read_text())
    target = content
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_a_removed_folder_is_said_to_be_lost(run: Run) -> None:
    shutil.rmtree(run.folder)
    with pytest.raises(StorageError, match="measure again") as error:
        run.append_block(block())
    assert "is kept" not in str(error.value)


# -- records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "value", "field"),
    [
        (("recipe", "name"), "../../victim", "recipe: not a name"),
        (("recipe", "name"), "/etc", "recipe: not a name"),
        (("id",), ".", "id: not a name"),
        (("arms",), ["../a"], "arms.0: not a name"),
        (("schema_version",), 99, "schema_version: schema 99 is unknown"),
        (("schema_version",), "new", "schema_version: "),
        (("started_utc",), None, "started_utc: "),
    ],
)
def test_broken_run_record_is_one_error(run: Run, keys: tuple[str, ...], value: Any, field: str) -> None:
    change(run.folder / "run.json", *keys, value=value)
    with pytest.raises(BenchError) as caught:
        run.record()
    assert field in caught.value.message
    assert caught.value.where == str(run.folder / "run.json")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("keys", "value", "field"),
    [
        (("id",), "..", "id: not a name"),
        (("id",), "b", "id: 'b' is not the name of the file"),
        (("cell",), "a/b", "cell: not a name"),
        (("workload", "batch_size"), "many", "workload.batch_size: "),
        (("workload",), None, "workload: "),
        (
            ("predictions",),
            {"path": "/etc/passwd", "images": 1, "detections": 1},
            "predictions.path: not a path",
        ),
        (("audit",), {"ranks": 5}, "audit.ranks: "),
        (("schema_version",), SCHEMA_VERSION + 1, "update it"),
    ],
)
def test_broken_arm_record_is_one_error(run: Run, keys: tuple[str, ...], value: Any, field: str) -> None:
    change(run.folder / "arms" / "a.json", *keys, value=value)
    with pytest.raises(BenchError) as caught:
        run.arms()
    assert field in caught.value.message
    assert caught.value.where == str(run.folder / "arms" / "a.json")


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"5", b"{", b"\xff\xfe", b"[" * 100_000, b'{"id": "\\ud800"}']
)
def test_file_that_is_no_record_is_an_error(run: Run, content: bytes) -> None:
    (run.folder / "run.json").write_bytes(content)
    with pytest.raises(BenchError, match="not a valid record"):
        run.record()


def test_records_of_the_first_schema_are_read(run: Run) -> None:
    for path in (run.folder / "run.json", run.folder / "arms" / "a.json"):
        change(path, "schema_version", value=1)
    change(
        run.folder / "run.json", "dataset", value={"shapes/val": {"path": "x", "images": 2, "checksum": "c"}}
    )
    change(run.folder / "run.json", "machine", value={"host": "x"})
    assert run.record().dataset["shapes/val"].images == 2
    assert run.arms()[0].workload.model == "retinanet_r50_fpn"


def test_what_is_written_is_read_again(run: Run) -> None:
    entry = Losses(launch=0, losses={"loss": math.nan, "bad\ud800": 1.0})
    run.write_arm(arm_record(losses=[entry]), samples_columns([block()]))
    (found,) = run.arms()
    assert found.losses[0].losses["loss"] is None
    assert len(found.losses[0].losses) == 2


def test_lists_of_numbers_take_one_line(run: Run) -> None:
    text = "[\n 1, \n2]"
    audit = {"ranks": [{"boxes": [[1.5, -2e-7], [3.0, 4.0]], "text": [text], "none": [None, 1.0]}]}
    run.write_arm(arm_record(audit=audit), samples_columns([block()]))
    assert run.arms()[0].audit == audit
    assert '"boxes": [[1.5,-2e-07],[3.0,4.0]],' in (run.folder / "arms" / "a.json").read_text()


# -- journal and samples ---------------------------------------------------------------------------------------


def test_journal_holds_whole_blocks_only(run: Run) -> None:
    path = run.folder / JOURNAL
    whole = path.read_bytes()
    strange = b'null\n5\n[]\n{}\n"x"\n{"arm": "a"}\n{"arm":"a","launch":0,"round":0,"position":0,"ranks":[]}\n\xff\n'
    path.write_bytes(strange + whole + whole[: len(whole) // 3])
    assert run.journal() == [block(), block(launch=1)]


def test_journal_cut_anywhere_is_read(run: Run) -> None:
    path = run.folder / JOURNAL
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert run.journal() in ([], [block()], [block(), block(launch=1)])


def test_block_with_losses_survives_the_journal(run: Run) -> None:
    trained = block().model_copy(update={"losses": {"loss": [1.0, math.nan], "bad\ud800": [1.0, 2.0]}})
    run.append_block(trained)
    assert len(run.journal()[-1].losses) == 2
    assert math.isnan(run.loss_curve("a")["loss"][1])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table"])
def test_torn_table_is_read_from_the_journal(run: Run, content: bytes) -> None:
    expected = run.samples("a")
    path = run.folder / "samples" / "a.parquet"
    path.write_bytes(content or path.read_bytes()[:-20])
    pd.testing.assert_frame_equal(run.samples("a"), expected)


def test_torn_table_without_a_journal_is_an_error(run: Run) -> None:
    (run.folder / JOURNAL).unlink()
    (run.folder / "samples" / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(BenchError, match=r"the journal has no samples of a"):
        run.samples("a")


@pytest.mark.parametrize("value", [0, -5, math.nan, math.inf])
def test_impossible_time_names_the_arm(run: Run, value: float) -> None:
    table = run.samples("a").astype({"duration_ns": float})
    table.loc[1, "duration_ns"] = value
    table.to_parquet(run.folder / "samples" / "a.parquet")
    with pytest.raises(BenchError, match=r": a: a step takes .* \(launch 0, round 0, step 1\)"):
        run.samples("a")


def test_impossible_time_in_the_journal_names_the_arm(run: Run) -> None:
    run.append_block(block(arm="b", end_ns=50))
    with pytest.raises(BenchError, match="b: a step takes -150 ns"):
        run.samples("b")


def test_table_of_other_columns_is_no_samples_table(run: Run) -> None:
    (run.folder / JOURNAL).unlink()
    pd.DataFrame({name: ["x"] for name in SAMPLE_COLUMNS}).to_parquet(run.folder / "samples" / "a.parquet")
    with pytest.raises(BenchError, match="holds no numbers"):
        run.samples("a")


def test_crafted_table_is_not_unpacked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.record.samples.MAX_ROWS", 3)
    (run.folder / JOURNAL).unlink()
    with pytest.raises(BenchError, match="4 rows"):
        run.samples("a")


def test_samples_of_a_path_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="not a name"):
        run.samples("../run")


# -- status ------------------------------------------------------------------------------------------------------


def test_run_without_its_session_was_killed(run: Run) -> None:
    assert run.record().status == "running"
    assert run.status() == "killed"
    with (run.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run.status() == "running"
    assert run.status() == "killed"


def test_ended_run_keeps_its_status(run: Run) -> None:
    change(run.folder / "run.json", "status", value="interrupted")
    assert run.status() == "interrupted"
