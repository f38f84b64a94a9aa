"""Illegal calls of the C interface: each is refused by name, none is run. See host_runner.py.

python host_refusals.py LIBRARY
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np

from benchmarks.gpu.library import CCall, KernelError, Library
from tcompile.plugins.ops import OPS, find_op
from tcompile.plugins.spec import TokenOp

_TYPES = {"data": "f16", "table": "f32", "f32": "f32", "index": "i64"}
#: op, shapes, types that differ, numbers, status, what the message holds.
_INFER = [
    ("TcTopKTokens", [(1, 8)], {}, {"k": 9}, 3, "TcTopKTokens: k<=T"),
    ("TcTopKTokens", [(1, 8)], {}, {"k": -1}, 3, "k is -1"),
    ("TcTopKTokens", [(1, 8)], {}, {"k": 0}, 2, "index would have a dimension k of 0"),
    ("TcTopKTokens", [(1, 16385)], {}, {"k": 9}, 3, "T<=16384"),
    ("TcTopKTokens", [(1, 8)], {"data": "i32"}, {"k": 2}, 1, "scores cannot be int32"),
    ("TcTopKTokens", [(8,)], {}, {"k": 2}, 2, "scores has 1 dimensions, not 2"),
    ("TcTopKTokens", [(0, 8)], {}, {"k": 2}, 2, "scores has a dimension of 0"),
    ("TcGatherTokens", [(2, 8, 4), (3, 5)], {}, {}, 2, "dimension 0 of index is 3, but B is 2"),
    ("TcGatherTokens", [(2, 8, 4), (2, 5)], {"index": "f32"}, {}, 1, "index cannot be fp32"),
    ("TcMatchTokens", [(1, 9, 4)], {}, {"r": 2, "half": 4, "rest": 2}, 3, "half==T-T/2"),
    ("TcMatchTokens", [(1, 9, 4)], {}, {"r": 5, "half": 5, "rest": 0}, 3, "1<=rest"),
    ("TcUnmergeTokens", [(1, 4, 2), (1, 9)], {}, {"k": 5}, 3, "k==K"),
    ("TcSelectTokens", [(1, 8), (3,)], {}, {"k": 2, "prefix": 2}, 2, "prefix is 2"),
]


def refused(library: Library) -> None:
    """Calls that tc_infer refuses, with a message."""
    for name, shapes, types, numbers, status, words in _INFER:
        got, text = 0, ""
        try:
            library.call(find_op(name), shapes, {**_TYPES, **types}, numbers)
        except KernelError as error:
            got, text = error.status, str(error)
        assert got == status, (name, shapes, numbers, got, text)
        assert words in text, text


def workspaces(library: Library) -> None:
    """What a call needs is enough for smaller ones: TensorRT runs them in the same memory."""
    rng = np.random.default_rng(0)
    asked = 0
    for _ in range(300):
        tokens, batch = int(rng.integers(4, 1500)), int(rng.integers(1, 130))
        fewer, less = int(rng.integers(4, tokens + 1)), int(rng.integers(1, batch + 1))
        for name in ("TcPartnerTokens", "TcNearestTokens", "TcMatchAllTokens", "TcMatchTokens"):
            # `half` says how many tokens a call of the last one has.
            few = tokens if name == "TcMatchTokens" else fewer
            small, large = (_workspace(library, name, *s) for s in ((less, few), (batch, tokens)))
            assert small <= large, (name, batch, tokens, less, fewer, small, large)
            asked += large > 0
    assert asked > 900


def _workspace(library: Library, name: str, batch: int, tokens: int) -> int:
    half = tokens - tokens // 2
    x = (batch, tokens, 8)
    shapes = {"TcPartnerTokens": [x, x], "TcNearestTokens": [x, (batch, half), (half,)]}
    numbers = {"TcMatchTokens": {"r": 1, "half": half, "rest": half - 1}}
    op = find_op(name)
    return library.workspace(
        op, library.call(op, shapes.get(name, [x]), _TYPES, numbers.get(name, {}))
    )


def launches(library: Library) -> None:
    """Calls that tc_launch refuses: pointers, workspace, and calls that were changed behind it."""
    op = find_op("TcMatchTokens")
    call = library.call(op, [(1, 40, 8)], _TYPES, {"r": 3, "half": 20, "rest": 17})
    x = np.zeros(40 * 8 + 8, np.float16)
    out = [np.zeros(n, np.int64) for n in (17, 3, 3)]
    space = np.zeros(library.workspace(op, call) + 16, np.uint8)
    start = space.ctypes.data + -space.ctypes.data % 16
    size = library.workspace(op, call)
    assert size > 0
    good, outputs = [x.ctypes.data], [o.ctypes.data for o in out]

    def expect(status: int, given: CCall, *arguments: object) -> None:
        got = 0
        try:
            library.launch(op, given, *arguments)  # type: ignore[arg-type]
        except KernelError as error:
            got = error.status
        assert got == status, (got, status)

    expect(0, call, good, outputs, (start, size))
    expect(4, call, [0], outputs, (start, size))
    expect(4, call, [good[0] + 1], outputs, (start, size))
    expect(4, call, good, [*outputs[:2], outputs[2] + 4], (start, size))
    expect(5, call, good, outputs, (0, 0))
    expect(5, call, good, outputs, (start, size - 1))
    expect(5, call, good, outputs, (start + 8, size))
    # An address that suits the element and no wider access is no fault.
    expect(0, call, [good[0] + 2], outputs, (start, size))
    call.field[0] = 30
    expect(3, call, good, outputs, (start, size))
    call.field[0] = 3
    call.output[0].dims[1] = 18
    expect(2, call, good, outputs, (start, size))
    call.output[0].dims[1] = 17
    call.output[1].type = 0
    expect(1, call, good, outputs, (start, size))
    assert library.raw.tc_launch(None, ctypes.byref(call), None, None, None, 0, None) == 7
    assert not library.op("TcNothing").value


def known(library: Library) -> None:
    """Every op of the specification is in the library, and no other."""
    names = {op.name for op in OPS}
    assert library.raw.tc_op_count() == len(names)
    for op in OPS:
        assert library.op(op.name).value, op.name
        assert isinstance(op, TokenOp)


if __name__ == "__main__":
    loaded = Library(Path(sys.argv[1]))
    for check in (known, refused, workspaces, launches):
        check(loaded)
