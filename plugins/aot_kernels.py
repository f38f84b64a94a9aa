"""The kernels as TensorRT's ahead-of-time plugins take them: PTX, and how one op is launched.

One kernel an op, no workspace; a kernel's arguments are the op's inputs (also those that it does
not read), int32 numbers, and its outputs. Shapes are static (TensorRT#4849), so that grid and
numbers are known when the engine is built. Indices are int64.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tcompile.plugins.matrix import CUDA, FLAGS, find_nvcc
from tcompile.plugins.spec import TokenOp

SOURCES = ("select", "gather", "fuse", "match", "merge")
#: `TcMatchTokens` by one block an image holds its pairs in shared memory.
MOST_PAIRS = 2048

_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
#: Of the kernels: threads of a block, rows that a block puts back, channels packs of fuse.
_MOVE, _RETURN_ROWS, _FUSE_COLUMNS, _SIDE, _WARPS = 256, 64, 4, 64, 8


@dataclass(frozen=True)
class AotLaunch:
    """A launch of an op.

    Attributes:
        symbol: of the kernel.
        source: which of `SOURCES` holds it.
        grid: blocks, x y z.
        block: threads.
        shared: bytes of dynamic shared memory.
        numbers: int32 arguments between inputs and outputs.
    """

    symbol: str
    source: str
    grid: tuple[int, int, int]
    block: int
    shared: int
    numbers: tuple[int, ...]


def aot_launch(
    op: TokenOp,
    shapes: tuple[tuple[int, ...], ...],
    types: Mapping[str, str],
    numbers: Mapping[str, int],
) -> AotLaunch:
    """Return how a call is launched.

    Args:
        shapes: of the inputs.
        types: kind of tensor (`data`, `table`) → element type.
        numbers: the attributes.

    Raises:
        ValueError: the call is not legal, or no single kernel can do it; says why.
    """
    known = op.bind(shapes, numbers)
    return _LAUNCHES[op.name](known, types)


def ptx(source: str, arch: str = "75", nvcc: str | None = None) -> str:
    """A source's kernels as PTX for this compute capability and newer ones.

    PTX for one older than 8.0 has no tensor cores for bf16.

    Raises:
        RuntimeError: there is no nvcc, or it fails.
    """
    with tempfile.TemporaryDirectory(prefix="tcompile-") as folder:
        made = Path(folder) / f"{source}.ptx"
        command = [
            nvcc or find_nvcc(),
            *FLAGS,
            f"-arch=compute_{arch}",
            "-ptx",
            str(CUDA / "aot" / f"{source}.cu"),
            "-o",
            str(made),
        ]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        if done.returncode:
            raise RuntimeError(f"nvcc cannot compile {source}.cu: {done.stderr[-2000:]}")
        return made.read_text(encoding="utf-8")


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _select(s: Mapping[str, int], types: Mapping[str, str]) -> AotLaunch:
    count = s["T"]
    items = next(
        i for i, most in ((1, 256), (2, 1024), (4, 4096), (8, 8192), (16, 1 << 14)) if count <= most
    )
    block = _up(_up(count, items), 32) * 32
    with_rows = "prefix" in s
    name = "select" if with_rows else "top_k"
    extra = (s["prefix"],) if with_rows else ()
    symbol = f"tc_aot_{name}_{types['data']}_{items}"
    return AotLaunch(symbol, "select", (s["B"], 1, 1), block, 0, (count, s["k"], *extra))


def _group(row_bytes: int) -> int:
    """Threads of a row: a power of two, at most one for each access of 16 bytes."""
    accesses = _up(row_bytes, 16) if row_bytes % 16 == 0 else _up(row_bytes, 4)
    return 1 << min(accesses.bit_length() - 1, 8)


def _gather(name: str, tokens: str, rows: str) -> Callable[..., AotLaunch]:
    def launch(s: Mapping[str, int], types: Mapping[str, str]) -> AotLaunch:
        size = s["C"] * _BYTES[types["data"]]
        group = _group(size)
        table = (s["E"] * _BYTES[types["table"]],) if "E" in s else ()
        grid = (_up(s[rows], _MOVE // group), s["B"], 1)
        numbers = (s[tokens], s[rows], size, group, *table)
        return AotLaunch(f"tc_aot_{name}", "gather", grid, _MOVE, 0, numbers)

    return launch


def _return(s: Mapping[str, int], types: Mapping[str, str]) -> AotLaunch:
    size = s["C"] * _BYTES[types["data"]]
    grid = (_up(s["N"], _RETURN_ROWS), s["B"], 1)
    return AotLaunch(
        "tc_aot_return", "gather", grid, _MOVE, 0, (s["N"], s["K"], size, _group(size))
    )


def _fuse(s: Mapping[str, int], types: Mapping[str, str]) -> AotLaunch:
    pack = 16 // _BYTES[types["data"]]
    grid = (_up(s["C"], _FUSE_COLUMNS * pack), s["B"], 1)
    return AotLaunch(f"tc_aot_fuse_{types['data']}", "fuse", grid, 256, 0, (s["T"], s["K"], s["C"]))


def _tiles(name: str, rows: str, *numbers: str) -> Callable[..., AotLaunch]:
    def launch(s: Mapping[str, int], types: Mapping[str, str]) -> AotLaunch:
        count = s["T"] - s["T"] // 2 if rows == "half" else s[rows]
        return AotLaunch(
            f"tc_aot_{name}_{types['data']}",
            "match",
            (_up(count, _SIDE), 1, s["B"]),
            128,
            0,
            tuple(s[n] for n in numbers),
        )

    return launch


def _match(s: Mapping[str, int], types: Mapping[str, str]) -> AotLaunch:
    if s["half"] > MOST_PAIRS:
        raise ValueError(
            f"TcMatchTokens ahead of time takes {2 * MOST_PAIRS} tokens at most, not "
            f"{s['T']}: use the plugin library"
        )
    power = 1 << (s["r"] - 1).bit_length()
    numbers = (s["T"], s["D"], s["r"], power)
    return AotLaunch(f"tc_aot_match_{types['data']}", "match", (s["B"], 1, 1), 128, 0, numbers)


def _rows_each(rows: int, batch: int) -> int:
    each = _WARPS
    while each < 64 and rows // (2 * each) * batch >= 512:
        each *= 2
    return each


def _merge(s: Mapping[str, int], types: Mapping[str, str]) -> AotLaunch:
    rest, leaving = (s["rest"], s["r"]) if "rest" in s else (0, s["T"] - s["T"] // 2)
    rows = rest + s["T"] // 2
    each = _rows_each(rows, s["B"])
    blocks = _up(rows, each)
    name = "merge" if "rest" in s else "merge_all"
    counts = (rest, leaving) if "rest" in s else ()
    return AotLaunch(
        f"tc_aot_{name}_{types['data']}",
        "merge",
        (blocks, s["B"], 1),
        256,
        2 * leaving,
        (s["T"], s["C"], *counts, blocks, each),
    )


def _combine(how: str) -> Callable[..., AotLaunch]:
    def launch(s: Mapping[str, int], types: Mapping[str, str]) -> AotLaunch:
        each = _rows_each(s["K"], s["B"])
        blocks = _up(s["K"], each)
        numbers = (s["T"], s["C"], s["K"], s["N"], blocks, each)
        return AotLaunch(
            f"tc_aot_combine_{how}_{types['data']}",
            "merge",
            (blocks + 1, s["B"], 1),
            256,
            2 * s["T"],
            numbers,
        )

    return launch


_LAUNCHES: Mapping[str, Callable[[Mapping[str, int], Mapping[str, str]], AotLaunch]] = {
    "TcTopKTokens": _select,
    "TcSelectTokens": _select,
    "TcGatherTokens": _gather("gather", "T", "K"),
    "TcTakeTokens": _gather("take", "N", "M"),
    "TcUnmergeTokens": _gather("unmerge", "K", "N"),
    "TcReturnTokens": _return,
    "TcFuseTokens": _fuse,
    "TcPartnerTokens": _tiles("partner", "M", "M", "N", "D"),
    "TcNearestTokens": _tiles("nearest", "T", "T", "K", "C"),
    "TcMatchTokens": _match,
    "TcMatchAllTokens": _tiles("match_all", "half", "T", "D"),
    "TcMergeTokens": _merge,
    "TcMergeAllTokens": _merge,
    "TcCombineMeanTokens": _combine("mean"),
    "TcCombinePlainTokens": _combine("plain"),
    "TcCombineMlerpTokens": _combine("mlerp"),
    "TcCombineDropTokens": _combine("drop"),
}
