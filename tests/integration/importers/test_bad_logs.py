"""What is no log: errors, and any bytes."""

from __future__ import annotations

import gzip
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.importers import import_logs, render, to_json
from tests.helpers.logwriters import (
    COCO_BLOCK,
    EPOCH_LENGTH,
    EVALUATIONS,
    WRITERS,
    only,
    read,
    run,
    text,
)


def test_unknown_format_is_refused_with_beginning_of_the_file() -> None:
    with pytest.raises(BenchError) as error:
        read("once upon a time\n")
    assert "once upon a time" in str(error.value)
    assert "mmengine-json" in str(error.value)


def test_log_of_another_format_than_named_one_is_refused() -> None:
    with pytest.raises(BenchError, match="of the format 'mmdet2'"):
        read(text("ppdet", run(3)), "mmdet2")


def test_a_misspelt_format_is_met_with_the_right_name() -> None:
    with pytest.raises(BenchError, match="did you mean mmengine"):
        read("", "mmengin")


def test_file_that_is_not_there_is_error_for_user(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot read"):
        import_logs("auto", [tmp_path / "none.log"])


def test_a_damaged_gzip_file_is_an_error_for_the_user(tmp_path: Path) -> None:
    path = tmp_path / "train.log.gz"
    path.write_bytes(gzip.compress(text("mmdet2", run(500)).encode())[:-100])
    with pytest.raises(BenchError, match="cannot read"):
        import_logs("auto", [path])


def test_a_file_without_line_ends_does_not_fill_the_memory() -> None:
    with pytest.raises(BenchError, match="not a text log"):
        read(b"\0" * (1 << 25))


#: A line of each tool that is not read, from public logs.
FOREIGN = {
    "YOLOv5": "    70/1000      6.73G      1.081     0.4706      1.084         10        640: 100%|███| 16/16",
    "TensorFlow": "I0507 01:01:11.942076 140208909420352 model_lib_v2.py:676] Step 100 per-step time 22.002s loss=0.8",
    "darknet": " 5045: 0.872799, 0.996185 avg loss, 0.000261 rate, 0.466129 seconds, 242160 images, 0.14 hours left",
    "Lightning": "Epoch 0:  22%|██▏       | 4/18 [00:17<01:02,  4.47s/it, loss=10.072, v_num=193315]",
    "transformers": "{'loss': 2.1034, 'grad_norm': 12.2, 'learning_rate': 4.5e-05, 'epoch': 0.5}",
    "OpenPCDet": "2023-01-05 16:34:37,748   INFO  Train:    1/3 ( 33%) [   0/323 (  0%)]  Loss: 516.7 (517.)",
    "PaddleSeg": "2021-03-30 06:55:57 [INFO]\t[TRAIN] epoch: 1, iter: 20/500, loss: 2.0859, lr: 0.009657",
}


@pytest.mark.parametrize("tool", FOREIGN)
def test_log_of_a_known_stranger_is_refused_with_a_remedy(tool: str) -> None:
    with pytest.raises(BenchError, match=tool) as error:
        read(f"some words\n{FOREIGN[tool]}\n")
    assert "results.csv" in str(error.value) or "wrap it" in str(error.value)


def test_strangers_lines_in_a_log_that_is_read_are_counted() -> None:
    result = read(text("mmdet2", run(3)) + FOREIGN["Lightning"] + "\n")
    assert "not read: 1 lines of PyTorch Lightning: wrap it" in render(result)


# -- Fuzzing ---------------------------------------------------------------------------------------------------


def _survives(data: bytes) -> None:
    """Nothing but the documented error, and a summary that can be shown."""
    try:
        result = read(data)
    except BenchError:
        return
    render(result)
    to_json(result)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _survives(data)


def _seeds() -> list[bytes]:
    rows = [row for name in WRITERS for row in text(name, run(3)).splitlines()]
    rows += [
        *EVALUATIONS.values(),
        *COCO_BLOCK.splitlines(),
        "Evaluate annotation type *bbox*",
        "use_ema = True",
    ]
    rows += ["980step / 1644s = 0.5961 step/s", "copypaste: AP,AP50", "copypaste: 1,2", "", "heading:"]
    rows += [
        '{"bbox/AP": 1e999, "iteration": 3, "total_loss": 1}',
        '{"coco/bbox_mAP": ' + "9" * 400 + ', "step": 1}',
    ]
    return [row.encode() for row in rows]


def _mutated(rng: random.Random, seeds: Sequence[bytes], count: int) -> bytes:
    """Many lines: whole, cut, with bytes changed, two glued, with digits blown up."""
    junk = [
        b"9" * 30,
        b"nan",
        b"inf",
        b"-",
        b"1e309",
        b"\xff\xfe",
        b"\x1b[31m",
        b"\r",
        b"{",
        b"[",
        b'"',
        b": ",
        b"0",
    ]
    out = []
    for _ in range(count):
        line = rng.choice(seeds)
        kind = rng.random()
        at = rng.randrange(len(line) + 1)
        if kind < 0.2:
            line = line[:at]
        elif kind < 0.6:
            line = line[:at] + rng.choice(junk) + line[at + rng.randrange(4) :]
        elif kind < 0.7:
            line = line[:at] + rng.choice(seeds)
        elif kind < 0.8:
            line = line[at:]
        out.append(line)
    return b"\n".join(out)


@pytest.mark.nightly
def test_many_damaged_lines_raise_nothing_but_the_documented_error() -> None:
    rng, seeds = random.Random(20201204), _seeds()
    for _ in range(20):
        _survives(_mutated(rng, seeds, 10_000))


def test_some_damaged_lines_raise_nothing_but_the_documented_error() -> None:
    rng, seeds = random.Random(1), _seeds()
    for _ in range(10):
        _survives(_mutated(rng, seeds, 500))


def test_an_epoch_is_as_long_as_the_writers_say() -> None:
    lines = run(150, interval=20)
    section = only(read(text("mmdet2", lines)))
    assert section.last == 3000 == 3 * EPOCH_LENGTH
