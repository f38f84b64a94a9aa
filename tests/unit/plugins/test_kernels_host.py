"""The CUDA kernels, compiled for the processor, against numpy under ASan and UBSan."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcompile.plugins.ops import OPS
from tests.unit.plugins.host_kernels import aot_library, changed, host_library, run, script  # noqa: F401

#: Of every op, shared out so that each test takes some seconds.
COUNT = 120
_GROUPS = {
    "select": (
        "TcTopKTokens",
        "TcSelectTokens",
        "TcGatherTokens",
        "TcTakeTokens",
        "TcUnmergeTokens",
        "TcReturnTokens",
        "TcFuseTokens",
    ),
    "partner": ("TcPartnerTokens",),
    "match": ("TcNearestTokens", "TcMatchTokens", "TcMatchAllTokens"),
    "merge": ("TcMergeTokens", "TcMergeAllTokens"),
    "combine": (
        "TcCombineMeanTokens",
        "TcCombinePlainTokens",
        "TcCombineMlerpTokens",
        "TcCombineDropTokens",
    ),
}


def test_every_op_is_in_a_group() -> None:
    assert sorted(n for g in _GROUPS.values() for n in g) == sorted(op.name for op in OPS)


@pytest.mark.heavy
@pytest.mark.parametrize("group", _GROUPS)
def test_kernels_equal_the_reference(host_library: Path, group: str) -> None:  # noqa: F811
    done = run(host_library, COUNT, 0, *_GROUPS[group])
    assert done.returncode == 0, done.stdout[:4000] + done.stderr[-4000:]


@pytest.mark.heavy
def test_any_index_is_survived(host_library: Path) -> None:  # noqa: F811
    done = run(host_library, 60, 1, *(op.name for op in OPS), "--hostile")
    assert done.returncode == 0, done.stdout[:4000] + done.stderr[-4000:]


@pytest.mark.heavy
def test_kernels_ahead_of_time_equal_the_reference(aot_library: Path) -> None:  # noqa: F811
    done = run(aot_library, 100, 2, *(op.name for op in OPS), "--aot")
    assert done.returncode == 0, done.stdout[:4000] + done.stderr[-4000:]


def test_illegal_calls_are_refused(host_library: Path) -> None:  # noqa: F811
    done = script("host_refusals.py", host_library)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


#: A mistake in a kernel: where, what, and the op that shows it.
_MUTANTS = {
    "zeros of two signs": ("select.cuh", "x == 0.0f ? 0.0f : x", "x", "TcTopKTokens"),
    "NaN is largest": ("select.cuh", "if (x != x) return 0;", "", "TcTopKTokens"),
    "a tie goes to the higher index": (
        "select.cuh",
        "(is_equal && equal < threshold.equal)",
        "(is_equal && equal >= threshold.equal)",
        "TcTopKTokens",
    ),
    "no barrier in a scan": (
        "device.cuh",
        "totals[warp] = inclusive;\n  __syncthreads();",
        "totals[warp] = inclusive;\n",
        "TcTopKTokens",
    ),
    "prefix forgotten": (
        "select.cuh",
        "prefix + before, prefix + first + i",
        "prefix + before, first + i",
        "TcSelectTokens",
    ),
    "rows beyond the end": ("gather.cuh", "if (row >= rows) return;", "", "TcGatherTokens"),
    "no owner is the last": (
        "gather.cuh",
        "kDropped ? index.plain(out, tokens) : index.at(out, tokens)",
        "index.at(out, tokens)",
        "TcUnmergeTokens",
    ),
    "a column too many": ("fuse.cuh", "if (out >= channels) continue;", "", "TcFuseTokens"),
    "what stays is fused too": (
        "fuse.cuh",
        "if (stays[i / 32] >> i % 32 & 1) continue;",
        "",
        "TcFuseTokens",
    ),
    "a tie goes to the higher partner": (
        "match.cuh",
        "if (v > value) {",
        "if (v >= value) {",
        "TcPartnerTokens",
    ),
    "a row read beyond its end": (
        "match.cuh",
        "row != nullptr && begin + k < width",
        "row != nullptr",
        "TcPartnerTokens",
    ),
    "equal pairs in any order": (
        "match.cuh",
        "key > other_key || (key == other_key && number < other)",
        "key > other_key || (key == other_key && number > other)",
        "TcMatchTokens",
    ),
    "sizes do not add up": (
        "merge.cuh",
        "size += t.size[image * t.count + i];",
        "",
        "TcMergeTokens",
    ),
    "no barrier after a list": (
        "merge.cuh",
        "list[before + __popc(votes & ((1u << lane) - 1))] = static_cast<uint16_t>(j);"
        "\n    __syncthreads();",
        "list[before + __popc(votes & ((1u << lane) - 1))] = static_cast<uint16_t>(j);\n",
        "TcMergeAllTokens",
    ),
    "an owner for the dropped": (
        "merge.cuh",
        "owner < 0 ? -1 : shared[owner]",
        "shared[owner < 0 ? 0 : owner]",
        "TcCombineDropTokens",
    ),
    "the shortest length": (
        "merge.cuh",
        "other > longest ||",
        "other < longest ||",
        "TcCombineMlerpTokens",
    ),
}


#: One of each source, and of each kind: a value, a bound, a barrier. Each is compiled by itself;
#: TCOMPILE_MATRIX=all takes every one.
_SOME = (
    *("NaN is largest", "no barrier in a scan", "rows beyond the end", "what stays is fused too"),
    *("a tie goes to the higher partner", "sizes do not add up"),
)


@pytest.mark.heavy
@pytest.mark.parametrize("mutant", _MUTANTS if os.environ.get("TCOMPILE_MATRIX") else _SOME)
def test_a_mistake_in_a_kernel_is_caught(
    host_library: Path,  # noqa: F811
    tmp_path: Path,
    mutant: str,
) -> None:
    file, old, new, name = _MUTANTS[mutant]
    library = changed(host_library, tmp_path, file, old, new)
    assert run(library, 100, 0, name, "--first").returncode != 0
