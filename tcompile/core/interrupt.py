"""Ctrl-C that does not get lost.

A `KeyboardInterrupt` raised while C++ calls back into Python (an import, a logger) may be swallowed
there, and the work would go on to its end. So the handler also makes a note, and work that writes
something asks for it at points where stopping is safe. Only the command line installs the handler;
without it nothing here has any effect.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_received: int | None = None
_when = 0.0
#: Seconds in which a second signal is taken for impatience and does not break off the tidying up.
PATIENCE = 1.0


def checkpoint() -> None:
    """Raise `KeyboardInterrupt` if a signal asked for it and was not heard."""
    if _received is not None:
        raise KeyboardInterrupt


def received() -> int | None:
    """The signal that asked for an end, if one did."""
    return _received


@contextmanager
def listening() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `KeyboardInterrupt`, and take note of them, for the body."""
    global _received
    _received = None
    before = {}
    # Outside the main thread setting a handler is a ValueError: whoever calls us minds the signals.
    with suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    global _received, _when
    now = time.monotonic()
    again = _received is not None and now - _when < PATIENCE
    _received, _when = number, now
    if not again:
        raise KeyboardInterrupt
