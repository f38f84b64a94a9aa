"""Each token op: function body in ONNX Runtime against its numpy meaning, on many shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.gpu.cases import Case, cases
from benchmarks.gpu.compare import problems
from tcompile.core.domain import DOMAIN
from tcompile.plugins.ops import OPS, find_op
from tcompile.plugins.spec import MAX_TOKENS, TokenOp
from tests.support.onnx_models import plain_options

Arrays = tuple[np.ndarray[Any, Any], ...]


def run(case: Case, opset: int, op: TokenOp | None = None) -> Arrays:
    """Return what ONNX Runtime makes of the function body (of a changed op, where one is given)."""
    op = op or case.op
    names = [t.name for t in op.takes]
    infos = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape
        )
        for n, v in zip(names, case.inputs, strict=True)
    ]
    outs = [t.name for t in op.gives]
    attributes = {
        k: onnx.numpy_helper.from_array(np.asarray([v]), k) for k, v in case.numbers.items()
    }
    node = onnx.helper.make_node(op.name, names, outs, domain=DOMAIN, **attributes)
    graph = onnx.helper.make_graph(
        [node], "op", infos, [onnx.helper.make_empty_tensor_value_info(o) for o in outs]
    )
    model = onnx.helper.make_model(
        graph,
        functions=[op.function(opset)],
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(
        model.SerializeToString(), plain_options(), providers=["CPUExecutionProvider"]
    )
    feeds = dict(zip(names, case.inputs, strict=True))
    return tuple(np.asarray(a) for a in session.run(None, feeds))


def some(op: TokenOp, count: int, seed: int = 7) -> list[Case]:
    """Finite fp32 cases of moderate size, which is what a body is for."""
    found = (c for c in cases(op, 8 * count, seed, ("f32",)) if c.finite)
    small = (c for c in found if max(map(max, (a.shape for a in c.inputs))) < 1000)
    return [c for c, _ in zip(small, range(count), strict=False)]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_body_equals_reference(op: TokenOp) -> None:
    for i, case in enumerate(some(op, 40)):
        got = run(case, (13, 17, 18, 20, 23)[i % 5])
        assert not problems(case, got), str(case)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_shapes_of_the_specification_are_those_of_the_reference(op: TokenOp) -> None:
    for case in some(op, 10):
        want = op.reference(*case.inputs, **case.numbers)
        shapes = tuple(a.shape for a in case.inputs)
        assert op.shapes(shapes, case.numbers) == tuple(w.shape for w in want)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_equal_values_give_no_nan_and_no_duplicates(op: TokenOp) -> None:
    case = some(op, 1)[0]
    # Constant data, or all zero: every comparison is a tie.
    for fill in (1.0, 0.0):
        flat = tuple(
            np.full_like(v, fill)
            if v.dtype == np.float32 and t.name not in ("size", "weight")
            else v
            for t, v in zip(op.takes, case.inputs, strict=True)
        )
        got = run(replace(case, inputs=flat), 18)
        assert all(np.isfinite(g).all() for g in got)
    if op.name == "TcTopKTokens":
        assert (np.diff(got[0], axis=1) > 0).all()
    if op.name == "TcMatchTokens":
        both = np.sort(np.concatenate(got[:2], 1), 1)
        assert (both == np.arange(both.shape[1])).all()


def test_names_are_no_op_types_that_a_parser_knows() -> None:
    # Parsers match the bare op type and ignore the domain.
    known = {schema.name.lower() for schema in onnx.defs.get_all_schemas()}
    names = [op.name for op in OPS]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.startswith("Tc")
        assert name.lower() not in known


def test_merging_conserves_size_and_mass() -> None:
    case = next(c for c in some(find_op("TcMergeTokens"), 40) if c.style == "normal")
    y, size = run(case, 18)
    np.testing.assert_allclose(size.sum(1), case.inputs[1].sum(1))
    before = (case.inputs[0] * case.inputs[1][..., None]).sum(1)
    np.testing.assert_allclose((y * size[..., None]).sum(1), before, rtol=1e-4, atol=1e-4)


def test_large_values_do_not_overflow_when_merging() -> None:
    """fp16 activations of 300 and sizes above 218 overflow fp16 products; fp32 inside must not."""
    case = some(find_op("TcMergeTokens"), 1)[0]
    x, size, *rest = case.inputs
    big = (np.full_like(x, 300), np.full_like(size, 400), *rest)
    y, _ = run(replace(case, inputs=big), 18)
    np.testing.assert_allclose(y, 300, rtol=1e-6)


#: A mistake in a body: what is replaced in its text.
_MUTANTS = {
    "TcTopKTokens": ("largest: int = 1", "largest: int = 0"),
    "TcSelectTokens": ("moved = Add (index, ahead)", "moved = Identity (index)"),
    "TcGatherTokens": ("Unsqueeze (index, last)", "Unsqueeze (same, last)"),
    "TcTakeTokens": (
        "GatherElements <axis: int = 1> (size, rows)",
        "GatherElements <axis: int = 1> (size, same)",
    ),
    "TcUnmergeTokens": ("Where (lost, count, owner)", "Where (lost, zero, owner)"),
    "TcReturnTokens": ("Concat <axis: int = 1> (kept, x)", "Concat <axis: int = 1> (x, kept)"),
    "TcFuseTokens": ("(weight, index, zeros)", "(weight, index, as_float)"),
    "TcPartnerTokens": ("MatMul (unit_a, across)", "MatMul (a, across)"),
    "TcNearestTokens": ("Identity", "Identity"),
    "TcMatchTokens": ("(best, count)", "(low, count)"),
    "TcMatchAllTokens": ("b = Slice (unit, one", "b = Slice (metric, one"),
    "TcMergeTokens": ("total = Add (odd_size, arriving_size)", "total = Identity (odd_size)"),
    "TcMergeAllTokens": ("own = Mul (odd, odd_size)", "own = Identity (odd)"),
    "TcCombineMeanTokens": ("(weight, keep)", "(size, keep)"),
    "TcCombinePlainTokens": ("y = Div (sum, count)", "y = Div (sum, single)"),
    "TcCombineMlerpTokens": ("Max (own_length, longest_left)", "Min (own_length, longest_left)"),
    "TcCombineDropTokens": (
        "new_owner = Where (lost, owner, found)",
        "new_owner = Where (lost, zero, found)",
    ),
}
#: What a mutant needs besides, in front.
_SET_UP = {
    "TcGatherTokens": "  same = Abs (index)\n",
    "TcTakeTokens": "  same = Sub (rows, rows)\n",
    "TcMatchTokens": (
        "  best = Squeeze (edge, last)",
        "  best = Squeeze (edge, last)\n  low = Neg (best)",
    ),
}


def _wrong(op: TokenOp) -> str:
    """The body with its mistake."""
    old, new = _MUTANTS[op.name]
    before = _SET_UP.get(op.name, "")
    if isinstance(before, tuple):
        body, before = op.body.replace(*before), ""
    else:
        body = op.body
    if op.name == "TcNearestTokens":
        old, new = "(nearest, index, own)", "(nearest, index, none)"
        body = body.replace("  own = Add", "  none = Add (nothing, nothing)\n  own = Add")
    assert body.count(old) == 1
    return before + body.replace(old, new)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_mistake_in_a_body_is_caught(op: TokenOp) -> None:
    mutant = replace(op, body=_wrong(op))
    assert any(problems(case, run(case, 18, mutant)) for case in some(op, 20))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_mistake_in_a_reference_is_caught(op: TokenOp) -> None:
    def mistaken(*inputs: Any, **numbers: Any) -> Arrays:
        return tuple(
            np.roll(a, 1, axis=1) + (a.shape[1] == 1) for a in op.reference(*inputs, **numbers)
        )

    found = []
    for case in some(op, 20):
        right = run(case, 18)
        found += problems(replace(case, op=replace(op, reference=mistaken)), right)
    assert found


@pytest.mark.parametrize(
    ("name", "shapes", "numbers", "word"),
    [
        ("TcTopKTokens", ((1, 8),), {"k": 9}, "k<=T"),
        ("TcTopKTokens", ((1, MAX_TOKENS + 1),), {"k": 9}, "T<=16384"),
        ("TcTopKTokens", ((1, 8), (1, 8)), {"k": 2}, "1 inputs"),
        ("TcGatherTokens", ((2, 8, 4), (3, 5)), {}, "index"),
        ("TcGatherTokens", ((70000, 8, 4), (70000, 5)), {}, "batch of 70000"),
        ("TcGatherTokens", ((2, 8), (2, 5)), {}, "3 dimensions"),
        ("TcGatherTokens", ((2, 8, 0), (2, 5)), {}, "x is"),
        ("TcMatchTokens", ((1, 9, 4),), {"r": 2, "half": 4, "rest": 2}, "half==T-T/2"),
        ("TcMatchTokens", ((1, 9, 4),), {"r": 5, "half": 5, "rest": 0}, "1<=rest"),
        ("TcUnmergeTokens", ((1, 4, 2), (1, 9)), {"k": 5}, "k==K"),
    ],
)
def test_illegal_calls_are_named(
    name: str, shapes: tuple[tuple[int, ...], ...], numbers: dict[str, int], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        find_op(name).shapes(shapes, numbers)
