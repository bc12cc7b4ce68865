"""The end of a log, as a record holds it."""

from __future__ import annotations

from pathlib import Path

from bench.measure.process import tail
from bench.text_safety import visible


def test_end_of_a_log_holds_no_escapes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes("one\n\x1b[2Jtwo \u202ethree\x9b31m\n".encode() + b"\xff\x00 ok\n")
    found = tail(log, lines=2)
    assert found == ["\\x1b[2Jtwo \\u202ethree\\x9b31m", "\ufffd\\x00 ok"]
    assert list(map(visible, found)) == found
    assert tail(tmp_path / "none") == []
