"""Behaviour of a plugin when TensorRT calls it: results, types, shapes, and calls that are wrong.

Needs TensorRT's headers, named by TCOMPILE_TENSORRT_INCLUDE; is skipped where there are none.
"""

from __future__ import annotations

import ctypes
import re
from itertools import product

import numpy as np
import pytest

from benchmarks.gpu.cases import cases
from benchmarks.gpu.compare import problems
from tcompile.plugins.ops import OPS, find_op
from tcompile.plugins.shapes import evaluate
from tcompile.plugins.spec import KINDS, TokenOp
from tests.unit.plugins.plugin_probe import CProbe, Plugins, array, run_case, tensor

#: A legal call's numbers and the sizes of all names, for T=12.
NUMBERS = {"k": 5, "prefix": 2, "r": 4, "half": 6, "rest": 2}
SIZES = {"B": 2, "T": 12, "N": 12, "C": 8, "D": 8, "E": 3, "M": 7, "K": 5, **NUMBERS}
TYPES = {"data": "f16", "table": "bf16", "f32": "f32", "index": "i64"}


def shapes(op: TokenOp) -> tuple[tuple[int, ...], ...]:
    """A legal call's inputs."""
    sizes = dict(SIZES)
    if "Combine" in op.name:
        sizes["r"] = SIZES["T"] - SIZES["K"]
    return tuple(tuple(evaluate(d, sizes) for d in t.dims) for t in op.takes)


def described(op: TokenOp, types: dict[str, str]) -> tuple[list[CProbe], list[CProbe]]:
    given = shapes(op)
    made = op.shapes(given, NUMBERS)
    return (
        [tensor(s, types[t.kind]) for s, t in zip(given, op.takes, strict=True)],
        [tensor(s, types[t.kind]) for s, t in zip(made, op.gives, strict=True)],
    )


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_enqueue_agrees_with_numpy(library: Plugins, op: TokenOp) -> None:
    with np.errstate(all="ignore"):
        for case in cases(op, 24, seed=77):
            with library.plugin(op, case.numbers) as plugin:
                assert problems(case, run_case(library, plugin, case)) == [], str(case)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_types_and_formats_are_those_of_the_specification(library: Plugins, op: TokenOp) -> None:
    tensors = (*op.takes, *op.gives)
    with library.plugin(op, NUMBERS) as plugin:
        for data, table, index in product(KINDS["data"], ("f32", "f16"), KINDS["index"]):
            types = {"data": data, "table": table, "f32": "f32", "index": index}
            ins, outs = described(op, types)
            given = (ctypes.c_int32 * 8)(*[t.type for t in ins])
            made = (ctypes.c_int32 * 3)()
            assert library.probe.probe_types(plugin, len(ins), given, len(outs), made) == 0
            if not any(t.kind == "index" for t in op.takes):
                types["index"] = "i64"  # what only comes out is as ONNX has it
            ins, outs = described(op, types)
            assert [outs[i].type for i in range(len(outs))] == list(made[: len(outs)])
            for at, spec in enumerate(tensors):
                before = [tensor(t.dims[: t.rank], "f32") for t in (*ins, *outs)]
                for i, t in enumerate((*ins, *outs)):
                    before[i].type = t.type
                takes = [
                    kind
                    for kind in ("f32", "f16", "bf16", "i32", "i64", "fp8")
                    if _supports(library, plugin, op, before, at, kind, 0)
                ]
                first = not any(t.kind == spec.kind for t in tensors[:at])
                alone = spec.kind == "index" and at >= len(ins) and first
                want = ["i64"] if alone else KINDS[spec.kind] if first else [types[spec.kind]]
                assert sorted(takes) == sorted(want), (spec.name, types)
                for layout in (1, 2, 5):
                    assert not _supports(library, plugin, op, before, at, types[spec.kind], layout)


def _supports(
    library: Plugins,
    plugin: ctypes.c_void_p,
    op: TokenOp,
    before: list[CProbe],
    at: int,
    kind: str,
    layout: int,
) -> bool:
    asked = tensor((1,), kind, layout=layout)
    every = array([*before[:at], asked, *before[at + 1 :]])
    return bool(library.probe.probe_supports(plugin, at, len(op.takes), len(op.gives), every))


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_shapes_are_expressions_of_the_inputs(
    library: Plugins, op: TokenOp, symbolic: bool
) -> None:
    ins = [tensor(s, symbolic=symbolic) for s in shapes(op)]
    outs = array([tensor(()) for _ in op.gives])
    want = op.shapes(shapes(op), NUMBERS)
    with library.plugin(op, NUMBERS) as plugin:
        assert library.probe.probe_shapes(plugin, len(ins), array(ins), len(want), outs) == 0
        assert tuple(tuple(o.dims[: o.rank]) for o in outs[: len(want)]) == want
        if symbolic:  # a batch that is not known yet stays so
            assert all(o.symbolic for o in outs[: len(want)])


def test_k_beyond_the_tokens_is_refused_while_building(library: Plugins) -> None:
    op = find_op("TcTopKTokens")
    out = array([tensor((2, 30), "i64")])
    with library.plugin(op, {"k": 30}) as plugin:
        shape = array([tensor((2, 12))])
        assert library.probe.probe_shapes(plugin, 1, shape, 1, out) != 0
        assert "TcTopKTokens: k<=T does not hold" in library.log()
        profile = array([tensor((-1, -1), bounds=((1, 12), (1, 40), (1, 50)))])
        assert library.probe.probe_configure(plugin, 1, profile, 1, out) != 0
        assert "k<=T does not hold (k=30 B=1 T=12) (min of the profile)" in library.log()
        many = array([tensor((1, 16385))])
        assert library.probe.probe_shapes(plugin, 1, many, 1, out) != 0
        assert "T<=16384 does not hold" in library.log()
        bare = array([tensor((2, 12), bounds=((), (), ()))])  # no profile: sizes of the network
        assert library.probe.probe_configure(plugin, 1, bare, 1, out) != 0
        assert "k<=T does not hold" in library.log()
        good = array([tensor((-1, 40), bounds=((1, 40), (4, 40), (8, 40)))])
        assert library.probe.probe_configure(plugin, 1, good, 1, out) == 0
        assert library.log() == ""


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_workspace_is_of_the_largest_call(library: Plugins, op: TokenOp) -> None:
    ins, outs = described(op, TYPES)
    with library.plugin(op, NUMBERS) as plugin:
        size = [
            library.probe.probe_workspace(plugin, len(ins), array(made), len(outs), array(outs))
            for made in (
                ins,
                [
                    tensor(
                        t.dims[: t.rank],
                        n,
                        bounds=(
                            tuple(t.dims[: t.rank]),
                            tuple(t.dims[: t.rank]),
                            tuple(
                                4 * d if i == 0 and s.dims[0] == "B" else d
                                for i, d in enumerate(t.dims[: t.rank])
                            ),
                        ),
                    )
                    for t, s, n in zip(
                        ins, op.takes, [TYPES[s.kind] for s in op.takes], strict=True
                    )
                ],
            )
        ]
    assert size[1] >= size[0]
    assert (size[1] > size[0]) == (size[0] > 0)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_bad_call_at_run_time_is_a_status_and_writes_nothing(
    library: Plugins, op: TokenOp
) -> None:
    ins, outs = described(op, TYPES)
    memory = [np.full(1 << 16, 0x5A, np.uint8) for _ in range(12)]
    from_ = (ctypes.c_void_p * 8)(*[m.ctypes.data for m in memory[: len(ins)]])
    to = (ctypes.c_void_p * 8)(*[m.ctypes.data for m in memory[8 : 8 + len(outs)]])
    counts = len(ins), len(outs)

    def run(given: list[CProbe], made: list[CProbe], pointers: object, words: str) -> None:
        status = library.probe.probe_run(
            plugin, counts[0], array(given), counts[1], array(made), pointers, to, None
        )
        said = library.log()
        assert status != 0
        assert said.startswith(f"1 {op.name}: ")
        assert re.search(words, said), said
        assert all((m == 0x5A).all() for m in memory)

    with library.plugin(op, NUMBERS) as plugin:
        assert (
            library.probe.probe_run(
                plugin, counts[0], array(ins), counts[1], array(outs), None, None, None
            )
            == 0
        )
        for i, spec in enumerate(op.takes):
            wrong = list(ins)
            wrong[i] = tensor((*ins[i].dims[: ins[i].rank], 1), TYPES[spec.kind])
            run(wrong, outs, None, f"{spec.name} has")
            run(wrong, outs, from_, f"{spec.name} has")
            wrong[i] = tensor(tuple(ins[i].dims[: ins[i].rank]), "fp8")
            run(wrong, outs, from_, f"{spec.name} cannot be")
            wrong[i] = tensor(tuple(ins[i].dims[: ins[i].rank]), TYPES[spec.kind], layout=1)
            run(wrong, outs, from_, f"{spec.name} is not dense")
        large = list(outs)
        large[0] = tensor((*outs[0].dims[: outs[0].rank - 1], 99), TYPES[op.gives[0].kind])
        run(ins, large, from_, f"{op.gives[0].name} has another shape")
        run(ins, outs, (ctypes.c_void_p * 8)(), "null")
        off = (ctypes.c_void_p * 8)(*[m.ctypes.data + 1 for m in memory[: len(ins)]])
        run(ins, outs, off, "not aligned")
