"""One small case for every op kind that has a transfer function: axes in, axes out.

Shapes are held against ONNX's own inference, so that no case tests what the op does not do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import ONE, Axes, Axis
from tcompile.analysis.facts import Facts
from tcompile.analysis.ops import OPS
from tcompile.core.graph import BATCH_SENTINEL
from tcompile.core.op_traits import BROADCASTS, ELEMENTWISE, READS_SHAPE, REDUCES, SPATIAL

B = ax.new("batch", 3, "batch")
H, W = ax.new("h", 4, "data"), ax.new("w", 6, "data")
N: Axis = H + W
C, D, HEADS = (
    ax.new("c", 8, "untracked"),
    ax.new("d", 5, "untracked"),
    ax.new("heads", 2, "untracked"),
)
CLS = ax.new("cls", 1, "fixed")
TOKENS = ax.concat([CLS, N])
PICKED = ax.new("picked", 7, "data")
OTHER = ax.new("other", 24, "data")
FREE = ax.new("batch", BATCH_SENTINEL, "batch")


@dataclass(frozen=True)
class Case:
    """inputs: axes of a live tensor, or the value of a constant. outputs: axes, or None where they
    cannot be told; `new` in place of an axis: one of that size that no live input has."""

    op: str
    inputs: Sequence[Axes | np.ndarray[Any, Any]]
    outputs: Sequence[Sequence[Axis | tuple[str, int]]] | None
    attrs: dict[str, Any] = field(default_factory=dict)
    what: str = ""
    conflict: bool = False

    @property
    def id(self) -> str:
        return f"{self.op}-{self.what}" if self.what else self.op


def new(size: int) -> tuple[str, int]:
    """An axis of the node's own."""
    return ("new", size)


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.asarray(values, dtype=np.int64)


def sizes(axes: Sequence[Axis | tuple[str, int]]) -> list[int]:
    return [int(a[1]) if a and isinstance(a[0], str) else ax.size(a) for a in axes]  # type: ignore[arg-type, call-overload]


STREAM: Axes = (B, TOKENS, C)
ROW: Axes = (TOKENS, C)
GRID: Axes = (B, C, H, W)
WEIGHT = np.zeros((8, 5), np.float32)
#: Ops whose input is no float, or whose inputs have rules of their own.
_BOOLEAN = {"And", "Or", "Xor", "Not"}
_NORMALISING = (
    *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    *("Softmax", "LogSoftmax", "LpNormalization"),
)
_CHANNELWISE = ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN")
_INTEGER = {"BitwiseAnd", "BitwiseOr", "BitwiseXor"}


def elementwise() -> Iterator[Case]:
    for op in sorted(ELEMENTWISE):
        attrs: dict[str, Any] = {"to": 1} if op == "Cast" else {}
        inputs: list[Any] = [STREAM]
        if op in ("QuantizeLinear", "DequantizeLinear"):
            inputs.append(np.float32(0.1))
        yield Case(op, inputs, [STREAM], attrs)
    yield Case("CumSum", [STREAM, np.asarray(1, np.int64)], [STREAM])


def broadcasting() -> Iterator[Case]:
    for op in sorted(BROADCASTS):
        inputs = [STREAM, (B, ONE, C), ROW] if op in ("Where", "Sum", "Mean") else [STREAM, ROW]
        yield Case(op, inputs, [STREAM])
    yield Case("Add", [(C,), STREAM], [STREAM], what="a row first")
    yield Case("Add", [(B, TOKENS, ONE), (ONE, C)], [STREAM], what="both grow")
    yield Case("Add", [(B, N, C), (B, OTHER, C)], [(B, N, C)], what="two axes", conflict=True)
    table = np.zeros((24, 1), np.float32)
    yield Case("Add", [(B, N, C), table], [(B, N, C)], what="a constant table")


def normalising() -> Iterator[Case]:
    over: Axes = (B, TOKENS, ONE)
    for op in _NORMALISING:
        inputs: list[Any] = [STREAM]
        if "Normalization" in op and op != "LpNormalization":
            inputs.append(np.ones(8, np.float32))
        yield Case(op, inputs, [STREAM], {"axis": -1})
    yield Case(
        "LayerNormalization",
        [STREAM, np.ones(8, np.float32)],
        [STREAM, over, over],
        {"axis": -1},
        "mean and deviation",
    )
    per_channel = np.ones(8, np.float32)
    for op in _CHANNELWISE:
        count = {"BatchNormalization": 4, "LRN": 0}.get(op, 2)
        attrs = {"LRN": {"size": 3}, "GroupNormalization": {"num_groups": 2}}.get(op, {})
        yield Case(op, [GRID, *[per_channel] * count], [GRID], attrs)


def views() -> Iterator[Case]:
    yield Case("Reshape", [GRID, i64(3, 8, 24)], [(B, C, N)])
    yield Case("Reshape", [(B, TOKENS, C), i64(75, 8)], [(B + TOKENS, C)], what="batch and tokens")
    yield Case("Reshape", [(B, TOKENS, C), i64(3, 40, 5)], None, what="across")
    yield Case("Flatten", [GRID], [(B + C, N)], {"axis": 2})
    yield Case("Squeeze", [(B, ONE, TOKENS, C), i64(1)], [STREAM])
    yield Case("Squeeze", [(B, CLS, C), i64(1)], [(B, C)], what="a prefix token")
    yield Case("Unsqueeze", [STREAM, i64(0, 2)], [(ONE, B, ONE, TOKENS, C)])
    yield Case("Transpose", [STREAM], [(TOKENS, B, C)], {"perm": [1, 0, 2]})
    yield Case("Transpose", [STREAM], [(C, TOKENS, B)], what="reversed")


def intervals() -> Iterator[Case]:
    yield Case("Slice", [STREAM, i64(1), i64(99), i64(1)], [(B, N, C)], what="the patches")
    yield Case("Slice", [STREAM, i64(0), i64(1), i64(1)], [(B, CLS, C)], what="CLS")
    yield Case("Slice", [STREAM, i64(-24), i64(99), i64(-2)], [(B, N, C)], what="from the back")
    yield Case(
        "Slice", [STREAM, i64(0), i64(25), i64(1), i64(2)], [(B, new(13), C)], what="every other"
    )
    yield Case(
        "Slice",
        [STREAM, i64(-1), i64(-(1 << 40)), i64(1), i64(-1)],
        [(B, new(25), C)],
        what="backwards",
    )
    yield Case("Split", [STREAM, i64(1, 24)], [(B, CLS, C), (B, N, C)], {"axis": 1})
    yield Case("Concat", [(B, CLS, C), (B, N, C)], [STREAM], {"axis": 1}, "again")
    yield Case("Concat", [(B, N, C), (B, N, C)], [(B, N, new(16))], {"axis": 2}, "features")
    yield Case(
        "Concat",
        [np.zeros((3, 1, 8), np.float32), (B, N, C)],
        [(B, new(25), C)],
        {"axis": 1},
        "a constant token",
    )
    yield Case("Gather", [STREAM, np.asarray(0)], [(B, C)], {"axis": 1}, "a scalar")
    yield Case("Gather", [STREAM, i64(*range(1, 25))], [(B, N, C)], {"axis": 1}, "a run")
    yield Case("Gather", [STREAM, i64(3, 1, 2)], [(B, new(3), C)], {"axis": 1}, "others")
    yield Case("Expand", [(ONE, TOKENS, C), i64(3, 25, 8)], [(new(3), TOKENS, C)])
    yield Case(
        "Expand",
        [(ONE, ONE, C), i64(BATCH_SENTINEL, 1, 8)],
        [(FREE, ONE, C)],
        what="over the batch",
    )
    yield Case("Tile", [(ONE, TOKENS, C), i64(2, 1, 1)], [(new(2), TOKENS, C)])
    yield Case("ConstantOfShape", [i64(BATCH_SENTINEL, 2)], [(FREE, new(2))])
    yield Case("Pad", [GRID, i64(0, 0, 0, 0, 0, 0, 0, 0)], [GRID], what="nothing")
    yield Case("Pad", [GRID, i64(0, 0, 0, 1, 0, 0, 0, 2)], [(B, C, H, new(9))], what="a side")
    yield Case("Pad", [STREAM, i64(0, -1, 0, 0, 0, 0)], [(B, N, C)], what="cropped")


def products() -> Iterator[Case]:
    yield Case("MatMul", [STREAM, WEIGHT], [(B, TOKENS, new(5))], what="a weight")
    q, k = (B, HEADS, TOKENS, D), (B, HEADS, D, TOKENS)
    yield Case("MatMul", [q, k], [(B, HEADS, TOKENS, TOKENS)], what="logits")
    yield Case("MatMul", [(B, HEADS, TOKENS, TOKENS), q], [q], what="context")
    yield Case("MatMul", [(TOKENS, C), (C,)], [(TOKENS,)], what="a vector")
    yield Case("Gemm", [(TOKENS, C), WEIGHT], [(TOKENS, new(5))])
    yield Case(
        "Gemm",
        [(C, TOKENS), WEIGHT.T.copy()],
        [(TOKENS, new(5))],
        {"transA": 1, "transB": 1},
        "both turned",
    )
    yield Case("Einsum", [(B, H, W, C), (W, D, C)], [(B, H, W, D)], {"equation": "bhwc,wkc->bhwk"})
    yield Case("Einsum", [STREAM, STREAM], None, {"equation": "...nc,...nc->..."}, "dots")
    yield Case("Attention", [q, q, q], [q])
    kv = (B, HEADS, OTHER, D)
    yield Case("Attention", [q, kv, kv], [q], what="other keys")


def reductions() -> Iterator[Case]:
    for op in sorted(REDUCES):
        if op.startswith("Arg"):
            yield Case(op, [STREAM], [(B, C)], {"axis": 1, "keepdims": 0})
        else:
            yield Case(op, [STREAM, i64(1)], [(B, C)], {"keepdims": 0})
    yield Case("ReduceMean", [STREAM, i64(-1)], [(B, TOKENS, ONE)], what="kept")
    yield Case("ReduceMean", [GRID, i64(2, 3)], [(B, C)], {"keepdims": 0}, "the grid")
    yield Case("ReduceSum", [STREAM], [(ONE, ONE, ONE)], what="all")
    yield Case("ReduceSum", [STREAM], [STREAM], {"noop_with_empty_axes": 1}, "none")


def grids() -> Iterator[Case]:
    kernel, tiles = {"kernel_shape": [2, 2]}, {"kernel_shape": [2, 2], "strides": [2, 2]}
    coarse = [ax.coarse(H, 2), ax.coarse(W, 2)]
    assert None not in coarse
    halves = tuple(a for a in coarse if a is not None)
    for op in sorted(SPATIAL):
        if op == "Conv":
            patches = np.zeros((5, 8, 2, 2), np.float32)
            yield Case(op, [GRID, patches], [(B, new(5), new(2), new(3))], {"strides": [2, 2]})
            point = np.zeros((5, 8, 1, 1), np.float32)
            yield Case(op, [GRID, point], [(B, new(5), H, W)], what="1 x 1")
        elif op.startswith("Global"):
            yield Case(op, [GRID], [(B, C, ONE, ONE)])
        elif op == "Resize":
            empty = np.zeros(0, np.float32)
            yield Case(op, [GRID, empty, empty, i64(3, 8, 8, 12)], [(B, C, new(8), new(12))])
        else:
            yield Case(op, [GRID], [(B, C, new(3), new(5))], kernel, "overlapping")
            if op != "LpPool":
                yield Case(op, [GRID], [(B, C, *halves)], tiles, "tiles")
    yield Case("SpaceToDepth", [GRID], [(B, new(32), *halves)], {"blocksize": 2})
    depth = (B, C, H, W)
    for mode in ("DCR", "CRD"):
        yield Case(
            "DepthToSpace",
            [depth],
            [(B, new(2), new(8), new(12))],
            {"blocksize": 2, "mode": mode},
            mode,
        )


def picks() -> Iterator[Case]:
    """By computed indices: what they give runs over the indices."""
    for along, out in ((1, (B, new(5), C)), (-1, (B, TOKENS, new(5)))):
        yield Case("TopK", [STREAM, i64(5)], [out, out], {"axis": along}, str(along))
    index = (B, PICKED, C)
    yield Case("GatherElements", [STREAM, index], [index], {"axis": 1})
    unnamed = (B, ax.new("order", 7, "untracked"), C)
    yield Case("GatherElements", [STREAM, unnamed], [(B, new(7), C)], {"axis": 1}, "by chance")
    pairs = (B, PICKED, ONE)
    yield Case("GatherND", [STREAM, pairs], [index], {"batch_dims": 1})
    yield Case("ScatterElements", [STREAM, index, index], [STREAM], {"axis": 1})
    blank = np.zeros((3, 24, 8), np.float32)
    yield Case("ScatterElements", [blank, index, index], [(B, new(24), C)], {"axis": 1}, "blank")
    yield Case("ScatterND", [(TOKENS, C), (PICKED, ONE), (PICKED, C)], [(TOKENS, C)])


CASES = [
    *picks(),
    *elementwise(),
    *broadcasting(),
    *normalising(),
    *views(),
    *intervals(),
    *products(),
    *reductions(),
    *grids(),
]


def build(case: Case) -> tuple[gs.Node, Facts]:
    """The node of a case, its inputs as the analysis would know them."""
    facts = Facts()
    inputs: list[gs.Tensor] = []
    for i, given in enumerate(case.inputs):
        if isinstance(given, np.ndarray | np.generic):
            inputs.append(gs.Constant(f"c{i}", np.asarray(given)))
            continue
        dims = [ax.size(a) for a in given]
        inputs.append(gs.Variable(f"x{i}", np.float32, dims))
        facts.axes[f"x{i}"] = tuple(given)
        facts.live.add(f"x{i}")
    found = case.outputs if case.outputs is not None else [()]
    outputs = [gs.Variable(f"y{i}", np.float32, sizes(axes)) for i, axes in enumerate(found)]
    node = gs.Node(case.op, "node", dict(case.attrs), inputs, outputs)
    if case.outputs is None:
        outputs[0].shape = inferred(case, node)[0]
    return node, facts


def inferred(case: Case, node: gs.Node) -> list[list[int] | None]:
    """The shapes that ONNX infers for the node's outputs; None where it has none."""
    if not onnx.defs.has(case.op):
        return [None] * len(node.outputs)
    kind = np.bool_ if case.op in _BOOLEAN else np.int64 if case.op in _INTEGER else np.float32
    values = [t for t in node.inputs if isinstance(t, gs.Variable)]
    for i, tensor in enumerate(values):
        tensor.dtype = np.bool_ if case.op == "Where" and i == 0 else kind
        if case.op == "DequantizeLinear":
            tensor.dtype = np.uint8
    blank = [gs.Variable(t.name) for t in node.outputs]
    copy = gs.Node(case.op, "node", dict(case.attrs), list(node.inputs), blank)
    graph = gs.Graph([copy], values, blank, opset=24)
    model = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = 11
    result = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {
        o.name: [d.dim_value for d in o.type.tensor_type.shape.dim]
        for o in result.graph.output
        if o.type.tensor_type.HasField("shape")
    }
    return [shapes.get(t.name) for t in node.outputs]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_axes_in_axes_out(case: Case) -> None:
    node, facts = build(case)
    for tensor, dims in zip(node.outputs, inferred(case, node), strict=True):
        assert dims is None or list(tensor.shape) == dims, "the case is wrong about the op"
    result = OPS[case.op].transfer(node, facts)
    if case.outputs is None:
        assert result is None
        return
    assert result is not None
    known = {axis for name in facts.live for axis in facts.axes[name]}
    for found, expected in zip(result, case.outputs, strict=True):
        assert [ax.size(a) for a in found] == sizes(expected)
        for axis, wanted in zip(found, expected, strict=True):
            if wanted and wanted[0] == "new":
                assert axis not in known
            else:
                assert axis == wanted
    assert bool(facts.conflicts) == case.conflict


def test_every_op_has_a_case() -> None:
    assert {case.op for case in CASES} == set(OPS) - READS_SHAPE


# ---- what an axis looks like is not all that the rules say ---------------------------------------


def test_a_token_that_no_image_changes_is_fixed_where_it_is_joined() -> None:
    case = Case(
        "Concat", [np.zeros((3, 2, 8), np.float32), (B, N, C)], [(B, new(26), C)], {"axis": 1}
    )
    node, facts = build(case)
    (axes,) = OPS["Concat"].transfer(node, facts) or []
    assert [(p.size, p.fixed) for p in ax.pieces(axes[1])] == [(2, True), (24, False)]


def test_a_permutation_is_remembered() -> None:
    order = list(range(24))[::-1]
    node, facts = build(Case("Gather", [(B, N, C), i64(*order)], [(B, new(24), C)], {"axis": 1}))
    (axes,) = OPS["Gather"].transfer(node, facts) or []
    assert facts.permuted[axes[1][0].root] == (N, tuple(order))


def test_bounds_computed_at_run_time_are_unknown() -> None:
    node, facts = build(Case("Slice", [STREAM, i64(1), i64(25), i64(1)], [(B, N, C)]))
    node.inputs[1] = gs.Variable("start", np.int64, [1])
    assert OPS["Slice"].transfer(node, facts) is None


def test_space_to_depth_is_undone_by_depth_to_space() -> None:
    split = Case("SpaceToDepth", [GRID], [(B, new(32), new(2), new(3))], {"blocksize": 2})
    node, facts = build(split)
    (deep,) = OPS["SpaceToDepth"].transfer(node, facts) or []
    back = Case("DepthToSpace", [deep], [GRID], {"blocksize": 2, "mode": "DCR"})
    node, facts = build(back)
    assert OPS["DepthToSpace"].transfer(node, facts) == [GRID]
