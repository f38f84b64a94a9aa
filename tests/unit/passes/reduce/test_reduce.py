"""The reduce pass on tiny graphs: structure, properties, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tcompile import pipeline
from tcompile.core.errors import ModelError, TcompileError, UsageError
from tcompile.core.schedule import Reduction, Schedule, Shape, Spec
from tcompile.passes.reduce.reducers.common import choose
from tcompile.planning.method_schedule import schedule_for
from tests.support.onnx_models import plain_options, to_onnx
from tests.support.tiny_vit import VitSpec, build_vit, random_weights, save_tiny_vit

METHODS = ("topk", "evit", "tome")


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return save_tiny_vit(tmp_path / "vit.onnx", VitSpec(depth=4), batch=None)


def run(graph: Any, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    model = to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(
        model.SerializeToString(), plain_options(), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return [np.asarray(a) for a in session.run(None, {name: images})]


def images(batch: int = 2, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(batch, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_attention_is_not_read_twice(vit: Path, method: str) -> None:
    """A second reader of a softmax would de-fuse it in TensorRT."""
    made = pipeline.reduce(vit, keep=0.6, method=method)
    dense = {n.name for n in made.dense.nodes if n.op == "Softmax"}
    for node in made.graph.nodes:
        if node.op == "Softmax" and node.name in dense:
            assert len(node.outputs[0].outputs) == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_dense_graph_is_left_alone(vit: Path, method: str) -> None:
    analysed = pipeline.read(vit)
    before = to_onnx(analysed.graph).SerializeToString()
    schedule = schedule_for(analysed, 0.5, method)
    pipeline.apply_schedule(analysed, schedule, "reduced")
    assert to_onnx(analysed.graph).SerializeToString() == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("pool", ["avg", "none"])
def test_constant_images_give_no_nan(tmp_path: Path, method: str, prefix: int, pool: Any) -> None:
    path = save_tiny_vit(tmp_path / "v.onnx", VitSpec(prefix=prefix, pool=pool), batch=None)
    made = pipeline.reduce(path, keep=0.5, method=method)
    for image in (np.zeros((2, 3, 32, 32), np.float32), np.full((2, 3, 32, 32), 300, np.float32)):
        assert all(np.isfinite(a).all() for a in run(made.graph, image) if a.dtype.kind == "f")


@pytest.mark.parametrize("method", METHODS)
def test_indices_owners_and_sizes_belong_together(tmp_path: Path, method: str) -> None:
    spec = VitSpec(prefix=2, pool="none", depth=4)
    path = save_tiny_vit(tmp_path / "v.onnx", spec, batch=None)
    made = pipeline.reduce(path, keep=0.45, method=method)
    outputs = dict(
        zip([o.name for o in made.graph.outputs], run(made.graph, images()), strict=True)
    )
    index = outputs["token_index"]
    kept = index[index >= 0].reshape(2, -1) if method != "evit" else index
    assert (index[:, :2] == [0, 1]).all()  # the prefix
    for row in kept:
        real = row[row >= 0]
        assert len(set(real)) == len(real)
        assert real.max() < spec.tokens
    if method == "tome":
        owner, size = outputs["token_owner"], outputs["token_size"]
        assert owner.shape == (2, spec.tokens)
        assert np.allclose(size.sum(1), spec.tokens)
        for b in range(2):
            # As many tokens belong to a slot as its size says; a representative owns itself.
            assert (np.bincount(owner[b], minlength=size.shape[1]) == size[b]).all()
            assert (owner[b][index[b]] == np.arange(index.shape[1])).all()
    if method == "topk":
        assert (np.diff(index, axis=1) > 0).all()


def test_restored_rows_are_those_of_the_owners(tmp_path: Path) -> None:
    path = save_tiny_vit(tmp_path / "v.onnx", VitSpec(pool="none"), batch=None)
    for method in METHODS:
        reduced = run(pipeline.reduce(path, keep=0.5, method=method).graph, images())
        restored = run(
            pipeline.reduce(path, keep=0.5, method=method, outputs="restored").graph, images()
        )
        assert restored[0].shape[1] == 17
        for b in range(2):
            rows = {row.tobytes() for row in reduced[0][b]}
            assert {row.tobytes() for row in restored[0][b]} <= rows


SHAPE = Shape(17, 1, 16, 4)


def step(site: str, keep: int, reducer: str = "topk") -> Reduction:
    return Reduction(site, None if reducer == "merge" else Spec("cls"), Spec(reducer), keep)


@pytest.mark.parametrize(
    ("shape", "steps", "words"),
    [
        (Shape(50, 1, 49, 4), [step("attn:1", 8)], "made for"),
        (SHAPE, [step("attn:9", 8)], "no site"),
        (SHAPE, [step("attn:1", 16)], "must keep fewer"),
        (SHAPE, [step("attn:1", 0)], "at least one"),
        (SHAPE, [step("attn:1", 8), step("attn:2", 9)], "must keep fewer"),
        (SHAPE, [step("attn:2", 8), step("attn:1", 6)], "out of order"),
        (SHAPE, [step("attn:1", 8), step("block:1", 6)], "already reduced"),
        (SHAPE, [step("attn:1", 12, "merge"), step("block:1", 8, "merge")], "already reduced"),
        (SHAPE, [step("attn:1", 1, "fuse")], "at least one token kept"),
        (SHAPE, [step("attn:1", 5, "merge")], "at most 8 of 16"),
        (SHAPE, [Reduction("attn:1", Spec("nosuch"), Spec("topk"), 8)], "unknown score"),
        (SHAPE, [Reduction("attn:1", Spec("cls"), Spec("nosuch"), 8)], "unknown reducer"),
        (SHAPE, [Reduction("attn:1", None, Spec("topk"), 8)], "needs a score"),
        (SHAPE, [Reduction("attn:1", None, Spec("merge", {"prop": True}), 8)], "not a parameter"),
        (SHAPE, [Reduction("attn:1", None, Spec("merge", {"prop_attn": "no"}), 8)], "not a truth"),
        (SHAPE, [Reduction("attn:1", Spec("cls", {"x": 1}), Spec("topk"), 8)], "it has: agg"),
        (SHAPE, [Reduction("attn:1", Spec("attn", {"x": 1}), Spec("topk"), 8)], "it has none"),
    ],
)
def test_schedules_that_do_not_fit(
    vit: Path, shape: Shape, steps: list[Reduction], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        pipeline.reduce(vit, schedule=Schedule("custom", shape, tuple(steps)))
    assert "\n" not in str(caught.value)


def test_large_sizes_do_not_overflow(tmp_path: Path) -> None:
    """All but a few tokens merge into one, with activations of 300."""
    path = save_tiny_vit(tmp_path / "v.onnx", VitSpec(image=128, depth=6, pool="avg"), batch=1)
    made = pipeline.reduce(path, method="tome:r=64")
    image = np.full((1, 3, 128, 128), 300, np.float32)
    assert np.isfinite(run(made.graph, image)[0]).all()


def test_an_error_names_the_model(tmp_path: Path) -> None:
    path = tmp_path / "nothing.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(TcompileError) as caught:
        pipeline.read(path)
    assert str(path) in str(caught.value)


def with_table(model: onnx.ModelProto, heads: int = 2, tokens: int = 17) -> onnx.ModelProto:
    """The ViT with a random [1, heads, tokens, tokens] added to the logits of every attention."""
    rng, nodes = np.random.default_rng(3), []
    for node in model.graph.node:
        if node.op_type == "Softmax":
            table = rng.normal(size=(1, heads, tokens, tokens)).astype(np.float32)
            name = f"table_{len(nodes)}"
            model.graph.initializer.append(onnx.numpy_helper.from_array(table, name))
            logits = f"{node.input[0]}_biased"
            nodes.append(onnx.helper.make_node("Add", [node.input[0], name], [logits], logits))
            node.input[0] = logits
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The ViT with a pair of Q and DQ before every operand of its products, sums and softmaxes."""
    stored = {"scale": np.asarray(0.02, np.float32), "zero": np.asarray(0, np.int8)}
    for name, array in stored.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    nodes = []
    for node in model.graph.node:
        for i, name in enumerate(
            node.input if node.op_type in ("MatMul", "Add", "Softmax") else ()
        ):
            q, dq = f"{node.name}_q{i}", f"{node.name}_dq{i}"
            for op, source, out in (("QuantizeLinear", name, q), ("DequantizeLinear", q, dq)):
                nodes.append(onnx.helper.make_node(op, [source, "scale", "zero"], [out], out))
            node.input[i] = dq
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("batch", [1, 2, None])
@pytest.mark.parametrize("change", [with_table, quantised])
def test_the_second_score_is_a_row_of_the_attention(
    tmp_path: Path, batch: int | None, change: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    """What the score recomputes is the CLS row itself, gathered table and rounding included."""
    spec = VitSpec(depth=4, pool="none")
    path = saved(change(build_vit(spec, random_weights(spec), batch=batch)), tmp_path / "m.onnx")
    steps = (step("attn:1", 12), step("attn:2", 6))
    made = pipeline.reduce(path, schedule=Schedule("custom", Shape(17, 1, 16, 4), steps))
    own = [n for n in made.dense.nodes if n.op == "Softmax"][2].name
    probabilities = next(n for n in made.graph.nodes if n.name == own).outputs[0]
    first = Schedule("custom", Shape(17, 1, 16, 4), steps[:1])
    before = run(pipeline.reduce(path, schedule=first).graph, images(batch or 2))[1]
    made.graph.outputs.append(probabilities)
    _, index, attention = run(made.graph, images(batch or 2))
    best = np.sort(np.argsort(-attention.mean(1)[:, 0, 1:], kind="stable")[:, :6])
    assert (index[:, 1:] == np.take_along_axis(before[:, 1:], best, 1)).all()


@pytest.mark.parametrize("batch", [1, 2, None])
@pytest.mark.parametrize("dims", [[], [3]])
def test_the_batch_is_that_of_the_images(
    tmp_path: Path, batch: int | None, dims: list[int]
) -> None:
    """Also where an input without one comes first."""
    spec = VitSpec(depth=4)
    model = build_vit(spec, random_weights(spec), batch=batch)
    x = images(batch or 2)
    expected = run(
        pipeline.reduce(saved(model, tmp_path / "a.onnx"), keep=0.5, method="topk").graph, x
    )
    flag = onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.FLOAT, dims)
    model.graph.input.insert(0, flag)
    path = saved(model, tmp_path / "b.onnx")
    made = pipeline.reduce(path, keep=0.5, method="topk")
    assert pipeline.inspect(path).batch == ("batch" if batch is None else batch)
    assert pipeline.inspect(path).flops == pipeline.inspect(tmp_path / "a.onnx").flops
    made.graph.inputs.pop(0)
    assert all((a == b).all() for a, b in zip(expected, run(made.graph, x), strict=True))


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, str(path))
    return path


def test_an_output_with_a_name_of_ours_is_refused(tmp_path: Path) -> None:
    spec = VitSpec(pool="none")
    model = build_vit(spec, random_weights(spec))
    model.graph.node[-1].output[0] = model.graph.output[0].name = "token_index"
    path = saved(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="'token_index' of its own"):
        pipeline.reduce(path, keep=0.5, method="topk")
    assert pipeline.reduce(path, keep=0.5, method="topk", outputs="restored")


@pytest.mark.parametrize(("op", "refused"), [("Tanh", True), ("Add", False)])
def test_rows_of_capped_logits_are_not_recomputed(tmp_path: Path, op: str, refused: bool) -> None:
    """`rowmean` has one factor for Q·Kᵀ: a mask beside it is left out, a cap would not fit."""
    model = build_vit(VitSpec(), random_weights(VitSpec()))
    mask = onnx.numpy_helper.from_array(np.zeros((1, 1, 1, 17), np.float32), "no_mask")
    model.graph.initializer.append(mask)
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Softmax":
            logits, made = node.input[0], f"{node.name}_{op}"
            inputs = [logits] if op == "Tanh" else [logits, "no_mask"]
            nodes.append(onnx.helper.make_node(op, inputs, [made], name=made))
            node.input[0] = made
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(tmp_path / "vit.onnx"))
    reductions = (Reduction("attn:1", Spec("rowmean"), Spec("topk"), 8),)
    schedule = Schedule("rowmean", Shape(17, 1, 16, 3), reductions)
    if refused:
        with pytest.raises(UsageError, match="caps its logits"):
            pipeline.reduce(tmp_path / "vit.onnx", schedule=schedule)
    else:
        pipeline.reduce(tmp_path / "vit.onnx", schedule=schedule)


@pytest.mark.parametrize(("count", "problem"), [(0, "no token of its own"), (3841, "3840")])
def test_a_choice_of_none_or_of_too_many(count: int, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        choose(SimpleNamespace(score="score"), count)  # type: ignore[arg-type]
