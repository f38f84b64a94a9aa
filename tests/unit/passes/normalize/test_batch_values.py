"""Values computed from the size of a free batch are right at every batch, or refused.

Each model is a tiny ViT with such a value on its residual stream after the first block. The source,
the normal form and the reduced model run at several batches. A reduced model must give what the
same model gives that was exported and reduced with that very batch fixed, where the value is a
plain constant; and what the source gives without the tokens that it dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import tcompile
from tcompile.core.errors import ModelError
from tcompile.models.onnx_vit import (
    GraphWriter,
    VitSpec,
    patch_tokens,
    prefix_tokens,
    random_weights,
)
from tcompile.passes.lower.precision import to_half
from tcompile.passes.normalize import normalize
from tests.oracles.masked import check_masked
from tests.support.onnx_models import to_onnx

SPEC = VitSpec(image=32, patch=8, width=32, depth=3, prefix=1)
BATCHES = (1, 2, 3, 5)
FLOAT = onnx.TensorProto.FLOAT
INT = onnx.TensorProto.INT64

Value = Callable[[GraphWriter, str], str]


def size_of(w: GraphWriter, x: str, rank: int = 0) -> str:
    """The batch as an integer, from the shape of the stream."""
    return w.op("Gather", w.op("Shape", x), w.const(0 if rank == 0 else [0]), axis=0)


def as_float(w: GraphWriter, x: str) -> str:
    return w.op("Cast", x, to=FLOAT)


def divided(w: GraphWriter, x: str) -> str:
    return w.op("Div", x, as_float(w, size_of(w, x)))


def modulo(w: GraphWriter, x: str) -> str:
    odd = w.op("Mod", size_of(w, x, 1), w.const([2]))
    return w.op("Mul", x, w.op("Add", as_float(w, odd), w.const(0.5, "float32")))


def size_as_divisor(w: GraphWriter, x: str) -> str:
    total = as_float(w, w.op("Size", "image"))
    return w.op("Mul", x, w.op("Div", w.const(3000.0, "float32"), total))


def alone(w: GraphWriter, x: str) -> str:
    one = w.op("Equal", size_of(w, x), w.const(1))
    return w.op("Where", one, x, w.op("Mul", x, w.const(0.5, "float32")))


def unlikely(w: GraphWriter, x: str) -> str:
    """A batch that one does not think of, which the model compares with."""
    three = w.op("Equal", size_of(w, x), w.const(3))
    return w.op("Mul", x, w.op("Add", as_float(w, three), w.const(1.0, "float32")))


def root(w: GraphWriter, x: str) -> str:
    return w.op("Div", x, w.op("Sqrt", as_float(w, size_of(w, x, 1))))


def at_most(w: GraphWriter, x: str) -> str:
    few = w.op("Min", size_of(w, x), w.const(2))
    return w.op("Mul", x, as_float(w, few))


def halved(w: GraphWriter, x: str) -> str:
    return w.op("Add", x, as_float(w, w.op("Div", size_of(w, x), w.const(2))))


def degrees(w: GraphWriter, x: str) -> str:
    """n − 1, as unbiased deviations divide by."""
    rest = w.op("Sub", w.op("Mul", size_of(w, x), w.const(3)), w.const(1))
    return w.op("Div", x, as_float(w, rest))


def numbered(w: GraphWriter, x: str) -> str:
    """Image k of the batch gets k added."""
    places = w.op("Range", w.const(0), size_of(w, x), w.const(1))
    column = w.op("Reshape", as_float(w, places), w.const([-1, 1, 1]))
    return w.op("Add", x, column)


def filled(w: GraphWriter, x: str) -> str:
    dims = w.op("Concat", size_of(w, x, 1), w.const([1, 1]), axis=0)
    half = onnx.numpy_helper.from_array(np.asarray([0.5], np.float32))
    return w.op("Mul", x, w.op("ConstantOfShape", dims, value=half))


def counted(w: GraphWriter, x: str) -> str:
    """As many ones as images, summed."""
    one = onnx.numpy_helper.from_array(np.asarray([1.0], np.float32))
    ones = w.op("ConstantOfShape", size_of(w, x, 1), value=one)
    return w.op("Div", x, w.op("ReduceSum", ones, keepdims=0))


def from_a_table(w: GraphWriter, x: str) -> str:
    table = w.const([0.5, 1.0, 2.0, 4.0], "float32")
    return w.op("Mul", x, w.op("Gather", table, w.op("Mod", size_of(w, x), w.const(4)), axis=0))


def expanded(w: GraphWriter, x: str) -> str:
    """Where(target == −1, 1, target), as PyTorch writes the target of an expand."""
    target = w.op("Concat", size_of(w, x, 1), w.const([-1, SPEC.width]), axis=0)
    missing = w.op("Equal", target, w.const(-1))
    full = w.op("Where", missing, w.const([1, 1, 1]), target)
    row = w.const(np.linspace(-1, 1, SPEC.width).reshape(1, 1, -1), "float32")
    return w.op("Add", x, w.op("Expand", row, full))


VALUES: list[Value] = [
    divided,
    modulo,
    size_as_divisor,
    alone,
    unlikely,
    root,
    at_most,
    halved,
    degrees,
    numbered,
    filled,
    counted,
    from_a_table,
    expanded,
]


def vit(value: Value, batch: int | None) -> onnx.ModelProto:
    """A ViT that gives its tokens, with the value on its stream."""
    w = GraphWriter(random_weights(SPEC))
    x = prefix_tokens(w, SPEC, patch_tokens(w, SPEC, "image"), batch)
    x = w.op("Add", x, w.weight("pos_embed"))
    for i in range(SPEC.depth):
        x = w.block(x, f"blocks.{i}", SPEC.tokens, SPEC.width, SPEC.heads)
        x = value(w, x) if i == 0 else x
    rows: int | str = "batch" if batch is None else batch
    tokens = w.layer_norm(x, "norm")
    return w.model(SPEC.image, {"tokens": (tokens, [rows, SPEC.tokens, SPEC.width])})


def images(batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    return {"image": rng.standard_normal((batch, 3, SPEC.image, SPEC.image)).astype(np.float32)}


def run(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return list(ort.InferenceSession(model.SerializeToString(), options).run(None, feed))


@pytest.mark.parametrize("value", VALUES, ids=lambda v: v.__name__)
def test_values_of_the_batch_are_right_at_every_batch(value: Value, tmp_path: Path) -> None:
    free = tmp_path / "free.onnx"
    source = vit(value, None)
    onnx.save(source, free)
    made = tcompile.reduce(free, method="topk", keep=0.5)
    assert made.schedule.reductions
    normal, reduced = to_onnx(made.dense), to_onnx(made.graph)
    onnx.checker.check_model(reduced, full_check=True)
    for batch in BATCHES:
        feed = images(batch)
        (expected,) = run(source, feed)
        np.testing.assert_allclose(run(normal, feed)[0], expected, atol=2e-5)
        if batch not in (1, 3):
            continue
        fixed = tmp_path / f"{batch}.onnx"
        onnx.save(vit(value, batch), fixed)
        same = to_onnx(tcompile.reduce(fixed, schedule=made.schedule).graph)
        for found, want in zip(run(reduced, feed), run(same, feed), strict=True):
            np.testing.assert_allclose(found, want, atol=2e-5)


@pytest.mark.parametrize("value", [divided, alone, numbered], ids=lambda v: v.__name__)
def test_reduced_models_agree_with_masked_attention(value: Value, tmp_path: Path) -> None:
    path = tmp_path / "free.onnx"
    onnx.save(vit(value, None), path)
    made = tcompile.reduce(path, method="topk", keep=0.5)
    for batch in (2, 3):
        schedule = made.schedule.to_json()
        check_masked(onnx.load(path), to_onnx(made.graph), schedule, images(batch))


def test_a_count_beyond_half_precision_divides_in_fp32(tmp_path: Path) -> None:
    """The size of 32 images is more than fp16 holds, and the batch has no bound."""
    path = tmp_path / "free.onnx"
    onnx.save(vit(lambda w, x: w.op("Div", x, as_float(w, w.op("Size", "image"))), None), path)
    made = tcompile.reduce(path, method="topk", keep=0.5)
    half = to_half(made.graph, fp32_nodes=made.fp32_nodes)
    sizes = {
        t.name
        for n in half.nodes
        if n.op == "Cast"
        for t in n.outputs
        if np.dtype(n.inputs[0].dtype).kind == "i"
    }
    (division,) = (n for n in half.nodes if n.op == "Div" and n.inputs[1].name in sizes)
    assert all(t.dtype == np.float32 for t in division.inputs)


def branching(w: GraphWriter, x: str) -> str:
    """If, with the stream as it is, or doubled."""

    def branch(name: str, op: str, *inputs: str) -> onnx.GraphProto:
        out = onnx.helper.make_tensor_value_info(name, FLOAT, None)
        return onnx.helper.make_graph([onnx.helper.make_node(op, inputs, [name])], name, [], [out])

    one = w.op("Equal", size_of(w, x), w.const(1))
    return w.op(
        "If",
        one,
        then_branch=branch("same", "Identity", x),
        else_branch=branch("twice", "Add", x, x),
    )


def shortened(w: GraphWriter, x: str) -> str:
    """As many features as images."""
    some = w.op("Slice", x, w.const([0]), size_of(w, x, 1), w.const([2]))
    return w.op("Add", x, w.op("ReduceMean", some, axes=[2]))


def cut_in_half(w: GraphWriter, x: str) -> str:
    """Features [B, N, C mod B + 1], which is a number of its own for each batch."""
    stop = w.op("Add", w.op("Mod", w.const([SPEC.width]), size_of(w, x, 1)), w.const([1]))
    some = w.op("Slice", x, w.const([0]), stop, w.const([2]))
    return w.op("Add", x, w.op("ReduceMean", some, axes=[2]))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (branching, "which branch If .* depends on the size of the batch"),
        (shortened, "shape of the output of Slice .* depends on the size of the batch"),
        (cut_in_half, "shape of the output of Slice .* depends on the size of the batch"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_node(
    value: Value, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "free.onnx"
    model = vit(value, None)
    onnx.save(model, path)
    with pytest.raises(ModelError, match=reason) as caught:
        tcompile.reduce(path, method="topk", keep=0.5)
    assert "--shape image=1,3,32,32" in str(caught.value)
    tcompile.reduce(path, method="topk", keep=0.5, shapes={"image": (1, 3, 32, 32)})


def test_only_what_is_the_same_for_every_batch_is_folded() -> None:
    """Equal to itself, and the number of tokens, are constants; the batch never is."""

    def value(w: GraphWriter, x: str) -> str:
        size = size_of(w, x)
        always = w.op("Equal", size, size)
        count = w.op("Gather", w.op("Shape", x), w.const(1), axis=0)
        scale = w.op("Where", always, as_float(w, count), as_float(w, size))
        return w.op("Div", x, scale)

    found = normalize(vit(value, None)).graph
    division = next(n for n in found.nodes if n.op == "Div")
    assert np.asarray(division.inputs[1].values).item() == SPEC.tokens
    stored = [t for t in found.tensors().values() if t.__class__.__name__ == "Constant"]
    assert not any(
        (np.asarray(t.values) % 7919 == 0).any()
        for t in stored
        if np.dtype(t.dtype).kind == "i" and 0 not in np.asarray(t.values)
    )


def test_outputs_that_are_the_batch_say_so_for_every_batch() -> None:
    """A shape, a size and a number computed from them, as outputs of the model."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
    g (float[n,3,4] x) => (int64[3] dims, int64 size, float mean, float[n,3,4] y) {
        y = Relu (x) dims = Shape (y) size = Size (y)
        count = Cast <to = 1> (size) one = Constant <value_float = 1.0> () mean = Div (one, count)
    }"""
    source = onnx.parser.parse_model(text)
    found = to_onnx(normalize(source).graph)
    onnx.checker.check_model(found, full_check=True)
    for batch in BATCHES:
        feed = {"x": np.ones((batch, 3, 4), np.float32)}
        for have, want in zip(run(found, feed), run(source, feed), strict=True):
            np.testing.assert_array_equal(have, want)


def test_a_table_that_the_batch_indexes_is_refused_where_it_may_be_too_short() -> None:
    """A row for each size of batch up to four: no one can say what the fifth gets."""

    def value(w: GraphWriter, x: str) -> str:
        table = w.const([0.5, 1.0, 2.0, 4.0], "float32")
        return w.op("Mul", x, w.op("Gather", table, size_of(w, x), axis=0))

    with pytest.raises(ModelError, match=r"size of the batch.*--shape image=1,3,32,32"):
        normalize(vit(value, None))
