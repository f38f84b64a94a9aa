"""Progress on stderr: a spinner for people, a line a stage for logs."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from tcompile.cli.common import quiet, verbose
from tcompile.core.errors import bounded
from tcompile.core.interrupt import checkpoint
from tcompile.core.progress import Progress

#: Seconds after which a log says again how far a stage is.
REPEAT = 60.0
#: Stages that a log has just named, which are not named again: two may take turns many times.
_NAMED = 4


@contextmanager
def progress() -> Iterator[Progress]:
    """A callback for lines of progress, shown on stderr: a spinner for people, with the time that
    is left; a line for each stage where stderr is not a terminal; with -v every line."""
    if quiet():
        yield _between_steps(lambda text: None)
    elif verbose():
        start = time.perf_counter()
        yield _between_steps(lambda text: _line(start, text))
    elif sys.stderr.isatty() and "NO_COLOR" in os.environ:
        with _one_line() as show:
            yield _between_steps(show)
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("starting") as status:
            left = _Left()
            yield _between_steps(
                lambda text: status.update(bounded(left.of(text)).replace("[", r"\["))
            )
    else:
        with _a_line_a_stage() as show:
            yield _between_steps(show)


@contextmanager
def _one_line() -> Iterator[Progress]:
    """A callback that writes over its last text, with no more than a carriage return."""
    left, length = _Left(), [0]

    def show(text: str) -> None:
        line = bounded(left.of(text))[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r{line.ljust(length[0])}")
        sys.stderr.flush()
        length[0] = len(line)

    try:
        yield show
    finally:
        sys.stderr.write(f"\r{' ' * length[0]}\r")


#: How far a step is, in its text.
_SHARE = re.compile(r"^(.*?)(\d+)\s?%")


class _Left:
    """Adds to the text of a step that says how far it is how long it still takes."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._step, self._start, self._first = clock, "", 0.0, 0

    def of(self, text: str) -> str:
        """The text, with the time that is left where it does not say that and it can be told."""
        found = None if " left" in text else _SHARE.match(text)
        if found is None:
            self._step = ""
            return text
        step, share, now = found[1], int(found[2]), self._clock()
        if step != self._step or share < self._first:
            self._step, self._start, self._first = step, now, share
        done = share - self._first
        if done < 3 or share >= 100:
            return text
        seconds = (now - self._start) * (100 - share) / done
        return f"{text}, about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _line(start: float, text: str) -> None:
    click.echo(f"[{time.perf_counter() - start:6.1f} s] {bounded(text)}", err=True)


#: How far a stage is: what follows the last colon of a text, if it is this.
_FAR = re.compile(r"(?:\w+ )?\d|.*\d (?:%|of \d)")


def _stage(text: str) -> str:
    """The stage that a text is about, without how far it is."""
    head, _, far = text.rpartition(": ")
    return head if head and _FAR.match(far) else text


@contextmanager
def _a_line_a_stage() -> Iterator[Progress]:
    """A callback that writes a line where a stage begins; every `REPEAT` seconds one that says how
    far it is, so that a log of a long job shows that it lives; and one at the end."""
    start, done = time.perf_counter(), threading.Event()
    named: deque[str] = deque(maxlen=_NAMED)
    current, left = [""], _Left()

    def show(text: str) -> None:
        current[0] = left.of(text)
        stage = _stage(text)
        if (key := re.sub(r"\d+", "#", stage)) not in named:
            named.append(key)
            _line(start, stage)

    def watch() -> None:
        while not done.wait(REPEAT):
            if current[0]:
                _line(start, current[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield show
    finally:
        done.set()
        thread.join()
    if named:
        _line(start, "done")


def _between_steps(show: Progress) -> Progress:
    """Stop there if Ctrl-C was pressed while no one listened."""

    def step(text: str) -> None:
        checkpoint()
        show(text)

    return step
