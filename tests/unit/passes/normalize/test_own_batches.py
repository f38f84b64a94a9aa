"""Inputs with batches of their own keep them; those that the graph makes meet are one.

The model scores each image against each text: a tiny ViT, the mean of word embeddings, and a
product, as contrastive models do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import tcompile
from tcompile.api.verify import verify
from tcompile.models.onnx_vit import (
    GraphWriter,
    VitSpec,
    patch_tokens,
    prefix_tokens,
    random_weights,
)
from tcompile.passes.normalize import normalize
from tcompile.runtime.samples import samples_for
from tcompile.runtime.signature import signature
from tests.oracles.masked import check_masked
from tests.support.onnx_models import to_onnx

SPEC = VitSpec(image=32, patch=8, width=32, depth=3, prefix=1)
WORDS, LENGTH = 50, 6
Dim = int | str | None


def contrastive(images: Dim, texts: Dim, *, text_first: bool = False) -> onnx.ModelProto:
    """`logits` [images, texts] and `texts` [texts, width]; a dim is a number, a name or unnamed."""
    w = GraphWriter({**random_weights(SPEC), "words": _draw(WORDS, SPEC.width)})
    x = prefix_tokens(
        w, SPEC, patch_tokens(w, SPEC, "image"), images if isinstance(images, int) else None
    )
    x = w.op("Add", x, w.weight("pos_embed"))
    for i in range(SPEC.depth):
        x = w.block(x, f"blocks.{i}", SPEC.tokens, SPEC.width, SPEC.heads)
    image = w.op("Gather", w.layer_norm(x, "norm"), w.const(0), axis=1)
    words = w.op("Gather", w.weight("words"), "text", axis=0)
    text = w.op("ReduceMean", words, axes=[1], keepdims=0)
    logits = w.op("MatMul", image, w.op("Transpose", text, perm=[1, 0]))
    return _model(
        w,
        {"image": [images, 3, SPEC.image, SPEC.image], "text": [texts, LENGTH]},
        {"logits": logits, "texts": text},
        reverse=text_first,
    )


def _draw(*dims: int) -> Any:
    return np.random.default_rng(7).standard_normal(dims).astype(np.float32)


def _model(
    w: GraphWriter, inputs: dict[str, list[Dim]], outputs: dict[str, str], *, reverse: bool = False
) -> onnx.ModelProto:
    for name, tensor in outputs.items():
        w.nodes.append(helper.make_node("Identity", [tensor], [name], name=f"out_{name}"))
    types = {"text": TensorProto.INT64}
    given = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), dims)
        for name, dims in inputs.items()
    ]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    weights = [numpy_helper.from_array(a, n) for n, a in w.initializers.items()]
    graph = helper.make_graph(w.nodes, "g", given[::-1] if reverse else given, made, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feed(images: int, texts: int) -> dict[str, Any]:
    rng = np.random.default_rng(10 * images + texts)
    return {
        "image": rng.standard_normal((images, 3, SPEC.image, SPEC.image)).astype(np.float32),
        "text": rng.integers(0, WORDS, (texts, LENGTH)),
    }


def run(model: onnx.ModelProto | Path, given: dict[str, Any]) -> dict[str, Any]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(source, options)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


def dims(infos: Any) -> dict[str, list[int | str]]:
    return {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in infos
    }


SIZES = [(2, 3), (1, 1), (3, 2), (1, 5)]


@pytest.mark.parametrize("names", [("image_batch", "text_batch"), ("b", "batch"), (None, None)])
def test_each_input_keeps_its_batch_and_its_name(
    names: tuple[str | None, str | None], tmp_path: Path
) -> None:
    source = contrastive(*names)
    path = tmp_path / "free.onnx"
    onnx.save(source, path)
    made = tcompile.reduce(path, method="topk", keep=0.5)
    normal, reduced = to_onnx(made.dense), to_onnx(made.graph)
    image, text = names[0] or "image_batch", names[1] or "text_batch"
    assert dims(reduced.graph.input) == {
        "image": [image, 3, SPEC.image, SPEC.image],
        "text": [text, LENGTH],
    }
    assert dims(reduced.graph.output) == {"logits": [image, text], "texts": [text, SPEC.width]}
    for images, texts in SIZES:
        given = feed(images, texts)
        for name, expected in run(source, given).items():
            np.testing.assert_allclose(run(normal, given)[name], expected, atol=2e-5)
        assert run(reduced, given)["logits"].shape == (images, texts)
    check_masked(source, reduced, made.schedule.to_json(), feed(2, 3))


def test_free_batches_reduce_like_fixed_ones(tmp_path: Path) -> None:
    for name, made in (("free", contrastive("i", "t")), ("fixed", contrastive(2, 3))):
        onnx.save(made, tmp_path / f"{name}.onnx")
    free = tcompile.reduce(tmp_path / "free.onnx", method="topk", keep=0.5)
    fixed = tcompile.reduce(tmp_path / "fixed.onnx", schedule=free.schedule)
    found, expected = (run(to_onnx(m.graph), feed(2, 3)) for m in (free, fixed))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5)


@pytest.mark.parametrize(
    ("images", "texts", "text_first"),
    [("image_batch", "text_batch", True), (1, 3, True), (2, 3, False), (1, "t", False)],
)
def test_builds_take_as_many_texts_as_the_model_did(
    images: Dim, texts: Dim, text_first: bool, tmp_path: Path
) -> None:
    source = contrastive(images, texts, text_first=text_first)
    path = tmp_path / "model.onnx"
    onnx.save(source, path)
    out = tmp_path / "artifact"
    made = tcompile.reduce(path, method="topk", keep=0.5)
    tcompile.build(path, target="cpu", schedule=made.schedule, output=out, force=True)
    given = feed(images if isinstance(images, int) else 2, texts if isinstance(texts, int) else 3)
    found, dense = run(out / "model.onnx", given), run(source, given)
    assert found["logits"].shape == dense["logits"].shape
    np.testing.assert_allclose(found["texts"], dense["texts"], atol=2e-5)
    np.testing.assert_allclose(
        found["logits"], run(to_onnx(made.graph), given)["logits"], atol=2e-5
    )
    assert verify(out).passed


def test_bundles_for_tensorrt_give_sizes_of_every_free_batch(tmp_path: Path) -> None:
    path, out = tmp_path / "free.onnx", tmp_path / "bundle"
    onnx.save(contrastive("i", "t"), path)
    tcompile.build(path, target="jetson-orin", method="topk", keep=0.5, output=out, force=True)
    script = (out / "build_engine.sh").read_text()
    for flag in ("--minShapes", "--optShapes", "--maxShapes"):
        line = next(part for part in script.split() if flag in part)
        assert "image:" in line
        assert "text:" in line


def test_samples_of_a_fixed_batch_of_texts_are_the_same_texts(tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    onnx.save(contrastive("n", 3), path)
    drawn = samples_for(signature(path), count=4)
    assert drawn.arrays["image"].shape == (4, 3, SPEC.image, SPEC.image)
    assert drawn.arrays["text"].shape == (4, 3, LENGTH)
    np.savez(tmp_path / "data.npz", **feed(5, 3))
    read = samples_for(signature(path), tmp_path / "data.npz")
    assert len(read) == 5
    assert (read.arrays["text"] == feed(5, 3)["text"]).all()


def joined(image: Dim, other: Dim, how: str) -> onnx.ModelProto:
    """Two inputs whose first dims meet."""
    inputs: dict[str, list[Dim]] = {"a": [image, 4, 4], "b": [other, 4, 4]}
    w = GraphWriter({})
    if how == "Add":
        y = w.op("Add", "a", "b")
    elif how == "Concat":
        y = w.op("Concat", "a", "b", axis=2)
    elif how == "MatMul":
        y = w.op("MatMul", "a", "b")
    elif how == "Einsum":
        y = w.op("Einsum", "a", "b", equation="bij,bjk->bik")
    elif how == "Expand":
        size = w.op("Gather", w.op("Shape", "b"), w.const([0]), axis=0)
        target = w.op("Concat", size, w.const([4, 4]), axis=0)
        y = w.op("Add", "a", w.op("Expand", w.const(_draw(1, 4, 4), "float32"), target))
    else:  # a Reshape of one to the size of the other
        y = w.op("Relu", w.op("Reshape", "a", w.op("Shape", "b")))
    return _model(w, inputs, {"y": y})


@pytest.mark.parametrize("how", ["Add", "Concat", "MatMul", "Einsum", "Expand", "Reshape"])
@pytest.mark.parametrize("names", [("n", "m"), (None, None)])
def test_batches_that_meet_are_one(names: tuple[str | None, str | None], how: str) -> None:
    source = joined(*names, how)
    found = to_onnx(normalize(source).graph)
    assert dims(found.graph.input) == {"a": ["batch", 4, 4], "b": ["batch", 4, 4]}
    for batch in (1, 2, 3, 5):
        given = {n: _draw(batch, 4, 4) for n in "ab"}
        np.testing.assert_allclose(run(found, given)["y"], run(source, given)["y"], atol=1e-5)


def test_of_three_batches_those_that_meet_are_joined() -> None:
    w = GraphWriter({})
    pair = w.op("Add", "a", "mask")
    flat = w.op("Reshape", pair, w.const([0, -1]))
    y = w.op("MatMul", flat, w.op("Transpose", "c", perm=[1, 0]))
    source = _model(w, {"c": ["k", 16], "a": ["n", 4, 4], "mask": ["m", 4, 4]}, {"y": y})
    found = to_onnx(normalize(source).graph)
    assert dims(found.graph.input) == {"c": ["k", 16], "a": ["n", 4, 4], "mask": ["n", 4, 4]}
    assert dims(found.graph.output) == {"y": ["n", "k"]}
    given = {"a": _draw(2, 4, 4), "mask": _draw(2, 4, 4), "c": _draw(3, 16)}
    np.testing.assert_allclose(run(found, given)["y"], run(source, given)["y"], atol=1e-5)


def test_a_number_of_pairs_is_computed_from_both_batches() -> None:
    """[images · texts, 1], divided by how many there are."""
    w = GraphWriter({})
    pairs = w.op("MatMul", "a", w.op("Transpose", "c", perm=[1, 0]))
    total = w.op("Cast", w.op("Size", pairs), to=TensorProto.FLOAT)
    flat = w.op("Reshape", pairs, w.const([-1, 1]))
    y = w.op("Div", flat, total)
    source = _model(w, {"a": ["n", 4], "c": ["k", 4]}, {"y": y})
    found = to_onnx(normalize(source).graph)
    assert dims(found.graph.output) == {"y": ["n*k", 1]}
    for n, k in ((2, 3), (5, 1), (3, 3)):
        given = {"a": _draw(n, 4), "c": _draw(k, 4)}
        np.testing.assert_allclose(run(found, given)["y"], run(source, given)["y"], atol=1e-5)
