"""Ctrl-C (and Ctrl-\\, SIGTERM, SIGHUP) without losing what was just measured.

While a session holds interrupts, a signal waits; it is delivered as KeyboardInterrupt where the session allows it:
in the waits for a worker, never between an answer and its line in the journal. One that a library swallowed (a bare
`except:` around the import of something) is delivered again at the next place that allows it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
_handling = False
_held = False
_pending = False


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    global _pending
    _pending = True  # until the exception has left `allowed`
    if not _held:
        raise KeyboardInterrupt


def _deliver() -> None:
    global _pending
    if _pending:
        _pending = False
        raise KeyboardInterrupt


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Turn the signals into KeyboardInterrupt, as `held` and `allowed` say; inside another `handled`, nothing."""
    global _handling, _pending
    if _handling:
        yield
        return
    _handling, _pending = True, False
    # What whoever started this process ignores stays ignored: `nohup`, and jobs in the background of a script.
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, _on_signal) for number in heard}
    try:
        yield
    finally:
        _handling = False
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A signal that comes in here waits until `allowed`, or until the end of the block."""
    global _held
    before, _held = _held, True
    try:
        yield
    finally:
        _held = before
    if not _held:
        _deliver()


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Inside `held`: a signal, also one that waited, interrupts in here."""
    global _held, _pending
    before, _held = _held, False
    try:
        _deliver()
        yield
    except KeyboardInterrupt:
        _pending = False
        raise
    finally:
        _held = before
