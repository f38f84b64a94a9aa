"""Each token op: function body in ONNX Runtime against its numpy meaning, on many shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tcompile.plugins.ops import OPS
from tcompile.plugins.spec import DOMAIN, TokenOp

Case = tuple[tuple[np.ndarray[Any, Any], ...], dict[str, int]]


def _case(name: str, rng: np.random.Generator) -> Case:
    B, C = int(rng.integers(1, 4)), int(rng.integers(1, 20))
    T = int(rng.integers(4, 41))
    T -= T % 2 if "All" in name else 0
    x = rng.normal(size=(B, T, C)).astype(np.float32)
    scores = rng.normal(size=(B, T)).astype(np.float32)
    K = int(rng.integers(1, T))
    index = np.sort(np.argsort(scores, 1)[:, :K], 1)
    size = rng.integers(1, 9, (B, T)).astype(np.float32)
    half, odd = T - T // 2, T // 2
    r = int(rng.integers(1, half))
    order = np.stack([rng.permutation(half) for _ in range(B)])
    keep, source = np.sort(order[:, r:], 1), order[:, :r]
    target, slots = rng.integers(0, odd, (B, r)), np.arange(odd)
    cases: dict[str, Case] = {
        "TcTopKTokens": ((scores,), {"k": K}),
        "TcGatherTokens": ((x, index), {}),
        "TcFuseTokens": ((x, np.abs(scores), index), {}),
        "TcNearestTokens": ((x, index, np.arange(K)), {}),
        "TcMatchTokens": ((x,), {"r": r, "half": half, "rest": half - r}),
        "TcMatchAllTokens": ((x,), {}),
        "TcMergeTokens": ((x, size, keep, source, target, slots), {}),
        "TcMergeAllTokens": ((x, size, rng.integers(0, odd, (B, half)), slots), {}),
        "TcReturnTokens": (
            (
                x,
                rng.normal(size=(B, K, C)).astype(np.float32),
                index,
                np.arange(K),
                K + np.arange(T),
            ),
            {},
        ),
    }
    return cases[name]


def _run(op: TokenOp, case: Case, opset: int) -> list[np.ndarray[Any, Any]]:
    inputs, attributes = case
    names = [i.split()[0] for i in op.inputs]
    infos = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape
        )
        for n, v in zip(names, inputs, strict=True)
    ]
    outs = [o.split()[0] for o in op.outputs]
    node = onnx.helper.make_node(
        op.name,
        names,
        outs,
        domain=DOMAIN,
        **{k: onnx.numpy_helper.from_array(np.asarray([v]), k) for k, v in attributes.items()},
    )
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
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = dict(zip(names, inputs, strict=True))
    return [np.asarray(a) for a in session.run(None, feeds)]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_body_equals_reference(op: TokenOp) -> None:
    rng = np.random.default_rng(7)
    for opset in (13, 17, 18, 20, 23):
        for _ in range(4):
            case = _case(op.name, rng)
            inputs, attributes = case
            for got, want in zip(
                _run(op, case, opset), op.reference(*inputs, **attributes), strict=True
            ):
                assert got.shape == want.shape
                np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_equal_values_give_no_nan_and_no_duplicates(op: TokenOp) -> None:
    inputs, attributes = _case(op.name, np.random.default_rng(1))
    # Constant data, or all zero: every comparison is a tie.
    for fill in (1.0, 0.0):
        flat = tuple(
            np.full_like(v, fill) if v.ndim == 3 or op.name == "TcTopKTokens" else v for v in inputs
        )
        for got in _run(op, (flat, attributes), 18):
            assert np.isfinite(got).all()
    if op.name == "TcTopKTokens":
        index = _run(op, (flat, attributes), 18)[0]
        assert (np.diff(index, axis=1) > 0).all()
    if op.name == "TcMatchTokens":
        keep, source, _ = _run(op, (flat, attributes), 18)
        both = np.sort(np.concatenate([keep, source], 1), 1)
        assert (both == np.arange(both.shape[1])).all()


def test_names_are_no_op_types_that_a_parser_knows() -> None:
    # Parsers match the bare op type and ignore the domain.
    known = {schema.name.lower() for schema in onnx.defs.get_all_schemas()}
    for op in OPS:
        assert op.name.startswith("Tc")
        assert op.name.lower() not in known


def test_merging_conserves_size_and_mass() -> None:
    rng = np.random.default_rng(3)
    op = next(o for o in OPS if o.name == "TcMergeTokens")
    inputs, _ = _case(op.name, rng)
    y, size = _run(op, (inputs, {}), 18)
    np.testing.assert_allclose(size.sum(1), inputs[1].sum(1))
    before = (inputs[0] * inputs[1][..., None]).sum(1)
    np.testing.assert_allclose((y * size[..., None]).sum(1), before, rtol=1e-4, atol=1e-4)


def test_large_values_do_not_overflow_when_merging() -> None:
    """fp16 activations of 300 and sizes above 218 overflow fp16 products; fp32 inside must not."""
    op = next(o for o in OPS if o.name == "TcMergeTokens")
    inputs, _ = _case(op.name, np.random.default_rng(5))
    x, size, *rest = inputs
    big = (np.full_like(x, 300), np.full_like(size, 400), *rest)
    y, _ = _run(op, (big, {}), 18)
    np.testing.assert_allclose(y, 300, rtol=1e-6)
