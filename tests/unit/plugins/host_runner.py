"""Runs cases on a library of kernels for the host, in a process of its own: a sanitizer ends it.

    python host_runner.py LIBRARY COUNT SEED OP...           against numpy
    python host_runner.py LIBRARY COUNT SEED OP... --hostile  indices are anything: it must survive
    python host_runner.py LIBRARY COUNT SEED OP... --aot      the ahead-of-time form, against numpy
    python host_runner.py LIBRARY COUNT SEED OP... --first    until the first that is wrong

Prints a line for each case that is wrong; exits with 1 if there was one.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from on_host import run_aot_on_host, run_on_host

from benchmarks.gpu.cases import Case, cases
from benchmarks.gpu.compare import problems
from benchmarks.gpu.library import Library
from tcompile.plugins.ops import find_op

#: Indices that no call should have.
_HOSTILE = (0, -1, 1, 2**15, 2**16, -(2**31), 2**31 - 1, 2**32, 2**32 + 1, 2**62, -(2**63))


def hostile(case: Case) -> Case:
    """The case with indices that lie anywhere."""
    rng = np.random.default_rng(case.seed)
    allowed = [n for n in _HOSTILE if case.types["index"] == "i64" or -(2**31) <= n < 2**31]
    inputs = tuple(
        np.where(rng.random(a.shape) < 0.5, rng.choice(allowed, a.shape), a)
        if a.dtype == np.int64
        else a
        for a in case.inputs
    )
    return replace(case, inputs=inputs)


def main(arguments: list[str]) -> Iterator[str]:
    """The lines to print."""
    path, (count, seed) = Path(arguments[0]), map(int, arguments[1:3])
    names = [name for name in arguments[3:] if not name.startswith("--")]
    if "--aot" in arguments:
        raw = ctypes.CDLL(str(path))
    else:
        library = Library(path)
        raw = library.raw
    for case in (c for name in names for c in cases(find_op(name), count, seed)):
        # Another order of threads each time.
        raw.tc_host_order(hash(case.seed) & 0xFFFF)
        if "--hostile" in arguments:
            run_on_host(library, hostile(case))
            continue
        try:
            got = run_aot_on_host(raw, case) if "--aot" in arguments else run_on_host(library, case)
        except ValueError as error:
            if "ahead of time" not in str(error):
                raise
        else:
            if found := problems(case, got):
                yield f"{case}: {'; '.join(found)}"
                if "--first" in arguments:
                    return


if __name__ == "__main__":
    np.seterr(all="ignore")
    lines = list(main(sys.argv[1:]))
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.exit(bool(lines))
