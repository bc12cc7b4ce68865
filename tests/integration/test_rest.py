"""`probe.rest`: what one arm leaves running must not be in the next arm's time."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest

from bench.worker import probe


def spin(stop: threading.Event, longest_s: float) -> None:
    """As a library's thread does, without Python's lock."""
    end_s = time.perf_counter() + longest_s
    while time.perf_counter() < end_s and not stop.is_set():
        hashlib.sha256(bytes(2**24))


def test_turn_ends_after_spinning_threads_have_stopped() -> None:
    never = threading.Event()
    spinning = threading.Thread(target=spin, args=(never, 0.3))
    spinning.start()
    assert probe.rest()
    assert not spinning.is_alive()


def test_codebase_whose_threads_never_stop_does_not_hold_up_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "LONGEST_REST_S", 0.1)
    stop = threading.Event()
    spinning = threading.Thread(target=spin, args=(stop, 60.0))
    spinning.start()
    try:
        assert not probe.rest()
        assert spinning.is_alive()
    finally:
        stop.set()
        spinning.join()
