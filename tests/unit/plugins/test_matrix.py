"""Every kernel compiles for every architecture, within its bounds; nvcc is all it takes."""

from __future__ import annotations

import os

import pytest

from benchmarks.gpu.cases import cases
from tcompile.plugins.aot_kernels import SOURCES as AOT
from tcompile.plugins.aot_kernels import aot_launch, ptx
from tcompile.plugins.matrix import (
    ARCHITECTURES,
    SOURCES,
    Need,
    beyond,
    compile_source,
    find_nvcc,
    read_needs,
    readable,
    table,
)
from tcompile.plugins.ops import OPS, find_op
from tests.unit.plugins.ptxas import assemble

_PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN2tc12merge_kernelI6__halfLi8ELNS_7CombineE2EEEvNS_6' \
for 'sm_87'
ptxas info    : Function properties for _ZN2tc12merge_kernel
    24 bytes stack frame, 20 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 24 bytes cumulative stack size, 32 bytes smem
ptxas info    : Compiling entry function 'tc_aot_gather' for 'sm_110'
ptxas info    : Function properties for tc_aot_gather
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 392 bytes cmem[0]
"""


#: All 1188 builds take minutes: `.ci/run` makes them once, by `python -m tcompile.plugins.matrix`.
everything = pytest.mark.skipif(
    "TCOMPILE_MATRIX" not in os.environ, reason="minutes of nvcc; TCOMPILE_MATRIX=all"
)


def _nvcc() -> None:
    try:
        find_nvcc()
    except RuntimeError as error:
        pytest.skip(str(error))


def test_what_ptxas_prints_is_read() -> None:
    assert list(read_needs(_PTXAS)) == [
        Need("merge_kernel<f16,8,mlerp>", "87", 64, 60, 24, 32),
        Need("tc_aot_gather", "110", 40, 0, 0, 0),
    ]


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_ZN2tc13select_kernelIfLi16EEEvPKT_NS_8IndexOutES4_iii", "select_kernel<f32,16>"),
        ("_ZN2tc13gather_kernelItLb1EEEvNS_6RowsInE", "gather_kernel<2B,1>"),
        ("_ZN2tc14partner_kernelI13__nv_bfloat16EEvNS_4SideIT_EE", "partner_kernel<bf16>"),
        ("_ZN2tc13finish_kernelENS_5BestsEii", "finish_kernel"),
        ("tc_aot_top_k_f16_4", "tc_aot_top_k_f16_4"),
    ],
)
def test_names_are_readable(mangled: str, name: str) -> None:
    assert readable(mangled) == name


def test_what_is_beyond_its_bound_is_named() -> None:
    fine = Need("select_kernel<f32,16>", "75", 64, 0, 0, 4224)
    assert beyond([fine]) == []
    many = Need("select_kernel<f32,16>", "75", 65, 0, 0, 4224)
    spilled = Need("gather_kernel<16B,0>", "90", 40, 8, 8, 0)
    large = Need("tc_aot_match_f32", "90", 40, 0, 0, 49153)
    assert [line.split(": ")[1] for line in beyond([many, spilled, large])] == [
        "65 registers, 64 at most",
        "8 bytes spilled, 0 at most",
        "49153 bytes of shared memory, 49152 at most",
    ]
    assert "| `select_kernel<f32,16>` | 65 | 4224 |" in table([many])


@everything
@pytest.mark.heavy
@pytest.mark.parametrize("source", SOURCES)
def test_every_kernel_for_every_architecture(source: str) -> None:
    _nvcc()
    needs = compile_source(source)
    kernels = {n.kernel for n in needs}
    assert len(needs) == len(kernels) * len(ARCHITECTURES)
    assert beyond(needs) == []


@everything
@pytest.mark.heavy
@pytest.mark.parametrize("source", AOT)
def test_kernels_ahead_of_time_are_taken_by_every_architecture(source: str) -> None:
    _nvcc()
    text = ptx(source)
    asked = {
        aot_launch(op, tuple(a.shape for a in case.inputs), case.types, case.numbers).symbol
        for op in OPS
        for case in cases(op, 30)
        if op.name != "TcMatchTokens" or case.numbers["half"] <= 2048
    }
    for arch in ARCHITECTURES:
        needs = assemble(text, arch)
        assert beyond(needs) == []
        assert needs
    assert all(f".visible .entry {symbol}(" in text for symbol in asked if _in(symbol, source))


def _in(symbol: str, source: str) -> bool:
    family = symbol.removeprefix("tc_aot_").split("_")[0]
    homes = {
        "top": "select",
        "select": "select",
        "fuse": "fuse",
        "partner": "match",
        "nearest": "match",
        "match": "match",
        "merge": "merge",
        "combine": "merge",
    }
    return homes.get(family, "gather") == source


def test_no_single_kernel_matches_too_many() -> None:
    numbers = {"r": 10, "half": 2050, "rest": 2040}
    with pytest.raises(ValueError, match="ahead of time takes 4096 tokens"):
        aot_launch(find_op("TcMatchTokens"), ((1, 4100, 8),), {"data": "f16"}, numbers)
