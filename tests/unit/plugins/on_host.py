"""Runs a case on a library of kernels for the host; element types are stored as on a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from benchmarks.gpu.cases import Case
from benchmarks.gpu.library import Library
from tcompile.plugins.aot_kernels import aot_launch
from tcompile.plugins.spec import Array


def run_aot_on_host(raw: ctypes.CDLL, case: Case) -> tuple[Array, ...]:
    """Return what the ahead-of-time kernels, built for the host, make of a case; indices int64.

    Raises:
        ValueError: no single kernel can do it.
    """
    op, kinds = case.op, {**case.types, "index": "i64"}
    shapes = tuple(a.shape for a in case.inputs)
    launch = aot_launch(op, shapes, kinds, case.numbers)
    stored = [pack(a, kinds[t.kind]) for a, t in zip(case.inputs, op.takes, strict=True)]
    made = zip(op.shapes(shapes, case.numbers), op.gives, strict=True)
    results = [_unwritten(shape, kinds[t.kind]) for shape, t in made]
    addresses = [[a.ctypes.data for a in arrays] for arrays in (stored, results)]
    arguments = [*addresses[0], *launch.numbers, *addresses[1]]
    raw.tc_host_run(
        ctypes.cast(getattr(raw, launch.symbol), ctypes.c_void_p),
        (ctypes.c_uint32 * 3)(*launch.grid),
        ctypes.c_uint32(launch.block),
        ctypes.c_size_t(launch.shared),
        (ctypes.c_uint64 * len(arguments))(*arguments),
        ctypes.c_uint32(len(arguments)),
    )
    return tuple(unpack(a, kinds[t.kind]) for a, t in zip(results, op.gives, strict=True))


def _unwritten(shape: Sequence[int], of: str) -> Array:
    """Room for a result: what a kernel does not write must not look right."""
    raw = np.empty(tuple(shape), _storage(of))
    raw.view(np.uint8)[...] = 0x7B
    return raw


def run_on_host(library: Library, case: Case) -> tuple[Array, ...]:
    """Return what a library for the host makes of a case."""
    op, kinds = case.op, case.types
    stored = [pack(a, kinds[t.kind]) for a, t in zip(case.inputs, op.takes, strict=True)]
    call = library.call(op, [a.shape for a in case.inputs], kinds, case.numbers)
    results = [
        _unwritten(call.output[i].dims[: call.output[i].rank], kinds[tensor.kind])
        for i, tensor in enumerate(op.gives)
    ]
    size = library.workspace(op, call)
    workspace = np.full((size + 16,), 0x7B, np.uint8)
    start = -workspace.ctypes.data % 16
    # A view that ends where the workspace ends lets a sanitizer see what lies beyond.
    space = (workspace.ctypes.data + start, size) if size else (0, 0)
    library.launch(
        op, call, [a.ctypes.data for a in stored], [a.ctypes.data for a in results], space
    )
    return tuple(unpack(a, kinds[t.kind]) for a, t in zip(results, op.gives, strict=True))


def pack(x: Array, to: str) -> Array:
    """Numbers as an element type is stored; bf16 as uint16."""
    if to == "bf16":
        return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x).astype(_storage(to))


def unpack(x: Array, of: str) -> Array:
    """The reverse: float32 and int64."""
    if of == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.int64 if of in ("i32", "i64") else np.float32)


def _storage(of: str) -> np.dtype[np.generic]:
    names = {"f32": "f4", "f16": "f2", "bf16": "u2", "i32": "i4", "i64": "i8"}
    return np.dtype(names[of])
