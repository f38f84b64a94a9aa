"""Data-loader scripts: `load_data()` of a .py file, as polygraphy's `--data-loader-script`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from tcompile.core.errors import UsageError
from tcompile.core.files import regular_file
from tcompile.data.arrays import LABELS
from tcompile.data.base import ArrayItem, Source

_END = object()
#: The function that polygraphy looks for.
_FUNCTION = "load_data"


def script_source(path: Path, function: str = _FUNCTION) -> Source:
    """What a script yields: dicts of arrays by input name, a batch each, perhaps with `labels`.

    The script is the user's own program and is executed, with all that it may do: only because it
    was named, never because it was found. What it prints goes to stderr.

    Args:
        function: that of `SCRIPT:FUNCTION`.

    Raises:
        UsageError: (here) there is no such file; (in the pass) it fails, or yields something else.
    """
    path = regular_file(path)

    def items() -> Iterator[ArrayItem]:
        names: set[str] | None = None
        for batch in _batches(path, function):
            if not isinstance(batch, Mapping) or (names is not None and set(batch) != names):
                raise _not_dicts(path, function)
            names = set(batch)
            with _blamed(path):
                arrays = {str(n): np.atleast_1d(np.asarray(a)) for n, a in batch.items()}
            labels = arrays.pop(LABELS, None)
            yield ArrayItem(arrays, labels)
        if names is None:
            raise _not_dicts(path, function)

    return Source(str(path), items)


def _not_dicts(path: Path, function: str) -> UsageError:
    return UsageError(
        f"{function}() must yield dicts of arrays, all with the same names", where=str(path)
    )


def _batches(path: Path, function: str) -> Iterator[Any]:
    """What the function yields. stdout is for results: it is the script's only while it runs."""
    with _blamed(path), redirect_stdout(sys.stderr):
        load = runpy.run_path(str(path)).get(function)
        if not callable(load):
            raise UsageError(f"defines no {function}()", where=str(path))
        batches = iter(load())
    while True:
        with _blamed(path), redirect_stdout(sys.stderr):
            batch = next(batches, _END)
        if batch is _END:
            return
        yield batch


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Whatever the script raises becomes an error about it."""
    try:
        yield
    except (UsageError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        said = " ".join(f"{type(error).__name__} {error}".split())
        raise UsageError(f"fails: {said}", where=str(path)) from error
