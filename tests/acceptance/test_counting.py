"""The counting oracle (tests/oracles/present_walk.py) against PyTorch, and what it must not pass.

It is shown to be right where tokens leave a model inside PyTorch, whatever tcompile does; and then
tcompile is shown to be right, or to refuse, where a value follows from how many tokens there are,
from where they stand or from the other images of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tests.oracles.compare import infer
from tests.oracles.dense_file import File, InapplicableError, Tokens, feed_for
from tests.oracles.exports import once
from tests.oracles.merged import expected_merged
from tests.oracles.present import IllegalError
from tests.oracles.present_walk import Walk, outputs_of
from tests.oracles.weights import stir
from tests.support.judge import judge
from tests.support.onnx_models import to_onnx
from tests.support.respelling import MASK, MEANS, SPREADS, Writer, respell
from tests.support.spelled_vit import Cut, Place, Shape, SpelledViT, images, inside, spelled, write

#: Ops that see neighbours, of which the oracle says that it cannot tell, or that it is wrong.
NEIGHBOURS = ("average_pool", "depthwise_conv")
BEYOND = (*NEIGHBOURS, "last_of_cumsum")


def exported(shape: Shape, cache: Path) -> onnx.ModelProto:
    folder = cache / "spelled"
    folder.mkdir(exist_ok=True)
    name = f"{shape.place}-{shape.prefix}-{shape.rows}-{shape.batch}.onnx"
    return onnx.load(once(folder / name, lambda path: write(shape, path)))


def few(shape: Shape, keep: int = 10, seed: int = 0) -> np.ndarray:
    """[2, keep] patches, others in each image, ascending."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice(shape.rows**2, keep, replace=False) for _ in range(2)]
    return np.sort(np.stack(rows), axis=1)


def walked(
    model: onnx.ModelProto, shape: Shape, block: int = 1, mask: np.ndarray | None = None
) -> Mapping[str, np.ndarray]:
    """Outputs by the oracle, tokens leaving after an attention; rows are those of kept ones."""
    feed = feed_for(model)
    feed["image"] = images(shape)
    if MASK in feed:
        shown = np.ones_like(feed[MASK]) if mask is None else mask
        feed[MASK] = shown.astype(feed[MASK].dtype)
    file, tokens = File(model, feed), Tokens(shape.prefix, shape.rows**2)
    softmaxes = [i for i, node in enumerate(file.nodes) if node.op_type == "Softmax"]
    stream = file.stream(softmaxes[block], "attn")
    rows = tokens.full(few(shape))
    held = outputs_of(Walk(file, tokens, {stream: few(shape)}), file)
    found = {}
    for name, tensor in held.items():
        value, there = tensor.value, tensor.full
        if not there.all():
            value, there = (np.take_along_axis(x, rows[..., None], 1) for x in (value, there))
        assert there.all()
        found[name] = value
    return found


def close(found: Mapping[str, np.ndarray], shape: Shape) -> None:
    cut = Cut(1, "topk", torch.from_numpy(Tokens(shape.prefix, shape.rows**2).full(few(shape))))
    logits, tokens = spelled(shape).double()(torch.from_numpy(images(shape)).double(), cut)
    np.testing.assert_allclose(found["tokens"], tokens.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["logits"], logits.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MEANS if name not in BEYOND])
def test_the_oracle_counts_as_pytorch_does(name: str, cache: Path) -> None:
    turn = list(MEANS).index(name)
    places: tuple[Place, ...] = ("patches", "centre", "tokens", "gate")
    shape = Shape(places[turn % 4], (1, 0, 5)[turn % 3], batch=(2, None)[turn % 2])
    close(walked(respell(exported(shape, cache), MEANS[name]), shape), shape)


@pytest.mark.parametrize("name", [n for n in MEANS if n.startswith("mask") and n != "mask_counted"])
def test_the_oracle_counts_what_a_mask_shows(name: str, cache: Path) -> None:
    """Counts of those that are left."""
    shape = Shape("patches", 1)
    model = respell(exported(shape, cache), MEANS[name])
    shown = np.ones((2, 16))
    shown[0, ::3] = shown[1, 1::4] = 0
    if MASK not in [info.name for info in model.graph.input]:
        shown[1] = shown[0]
        (stored,) = (t for t in model.graph.initializer if list(t.dims)[:2] == [1, 16])
        dtype = numpy_helper.to_array(stored).dtype
        mask = shown[:1].reshape(stored.dims).astype(dtype)
        stored.CopyFrom(numpy_helper.from_array(mask, stored.name))
    found = walked(model, shape, mask=shown)
    weight = np.take_along_axis(shown, few(shape), axis=1)[..., None]
    assert 0 < weight.sum() < weight.size
    mean = torch.from_numpy((found["tokens"][:, 1:] * weight).sum(1) / weight.sum(1))
    logits = spelled(shape).double().head(mean).numpy()
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SPREADS)
def test_the_oracle_counts_one_less(name: str, cache: Path) -> None:
    shape = Shape("std", list(SPREADS).index(name) % 2)
    close(walked(respell(exported(shape, cache), SPREADS[name], spread=True), shape), shape)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_the_oracle_does_not_guess(name: str, cache: Path) -> None:
    shape = Shape("patches")
    with pytest.raises(InapplicableError, match="window"):
        walked(respell(exported(shape, cache), MEANS[name]), shape)


def test_without_a_cut_the_oracle_computes_the_file(cache: Path) -> None:
    shape = Shape("gate", 5)
    model = respell(exported(shape, cache), MEANS["sum_over_shape"])
    file = File(model, {"image": images(shape)})
    held = outputs_of(Walk(file, Tokens(5, 16), {}), file)
    for name, value in infer(model, {"image": images(shape)}).items():
        np.testing.assert_allclose(held[name].value, value, rtol=0, atol=1e-5)


# ---- what must be right or refused ---------------------------------------------------------------

#: Where a change is made: the stream after the attention of a block, or the norm before its MLP.
Change = Callable[[onnx.ModelProto, str], list[onnx.NodeProto]]


def after(model: onnx.ModelProto, op: str, number: int, change: Change) -> onnx.ModelProto:
    """The model with nodes put behind the first output of the `number`th op of this kind."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    at = [i for i, node in enumerate(copy.graph.node) if node.op_type == op][number]
    name = copy.graph.node[at].output[0]
    nodes = change(copy, name)
    for node in copy.graph.node[at + 1 :]:
        for i, read in enumerate(node.input):
            if read == name:
                node.input[i] = nodes[-1].output[0]
    for node in reversed(nodes):
        copy.graph.node.insert(at + 1, node)
    onnx.checker.check_model(copy)
    return copy


def stored(model: onnx.ModelProto, value: object, name: str) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def batch_mean(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceMean", [x], ["mean_"], axes=[0], keepdims=1),
        helper.make_node("Add", [x, "mean_"], ["mixed_"]),
    ]


def batch_max(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceMax", [x], ["max_"], axes=[0], keepdims=1),
        helper.make_node("Sub", [x, "max_"], ["mixed_"]),
    ]


def batch_softmax(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
    return [helper.make_node("Softmax", [x], ["mixed_"], axis=0)]


def batch_norm(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
    return [helper.make_node("LpNormalization", [x], ["mixed_"], axis=0, p=2)]


def batch_cumsum(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
    return [helper.make_node("CumSum", [x, stored(model, 0, "axis_")], ["mixed_"])]


def first_image(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", [x, stored(model, [0], "first_")], ["one_"], axis=0),
        helper.make_node("Sub", [x, "one_"], ["mixed_"]),
    ]


def sliced_image(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
    bounds = [stored(model, [v], f"bound_{i}") for i, v in enumerate((0, 1, 0))]
    return [
        helper.make_node("Slice", [x, *bounds], ["one_"]),
        helper.make_node("Add", [x, "one_"], ["mixed_"]),
    ]


def images_turned(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", [x, stored(model, [1, 0], "order_")], ["turned_"], axis=0),
        helper.make_node("Add", [x, "turned_"], ["mixed_"]),
    ]


NEIGHBOUR_IMAGES = (
    batch_mean,
    batch_max,
    batch_softmax,
    batch_norm,
    batch_cumsum,
    first_image,
    sliced_image,
    images_turned,
)


def tried(model: onnx.ModelProto, path: Path, method: str = "topk") -> str:
    """Return what comes of it; raises WrongError where a wrong model does."""
    path.write_bytes(model.SerializeToString())
    return judge(path, method).kind


@pytest.mark.parametrize("batch", [2, None], ids=["b2", "free"])
@pytest.mark.parametrize("change", NEIGHBOUR_IMAGES, ids=lambda change: change.__name__)
def test_images_that_see_each_other(
    change: Change, batch: int | None, cache: Path, tmp_path: Path
) -> None:
    plain = exported(Shape("patches", 1, batch=batch), cache)
    model = after(plain, "LayerNormalization", 3, change)
    for method in ("topk:block=0,site=block", "bypass"):
        assert tried(model, tmp_path / "model.onnx", method) in ("refused", "equal")


@pytest.mark.parametrize(("axis", "why"), [(0, "along the batch"), (1, "accumulates over tokens")])
def test_a_running_sum_is_refused_for_the_axis_it_has(
    axis: int, why: str, cache: Path, tmp_path: Path
) -> None:
    def change(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
        return [helper.make_node("CumSum", [x, stored(model, axis, "axis_")], ["mixed_"])]

    plain, path = exported(Shape("patches", 1, batch=2), cache), tmp_path / "model.onnx"
    onnx.save(after(plain, "LayerNormalization", 3, change), path)
    with pytest.raises(UsageError, match=why):
        pipeline.reduce(path, method="topk:block=0,site=block", keep=0.5)


def test_one_image_has_no_neighbours(cache: Path, tmp_path: Path) -> None:
    """Mixing along a batch of one changes nothing, and is no reason to refuse."""
    model = after(
        exported(Shape("patches", 1, batch=2), cache), "LayerNormalization", 3, batch_mean
    )
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 1
    for node in model.graph.node:  # the reshapes of the attention say 2
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.data_type == onnx.TensorProto.INT64:
                value = numpy_helper.to_array(attribute.t).copy()
                if value.ndim == 1 and value.size > 2 and value[0] == 2:
                    value[0] = 1
                    attribute.t.CopyFrom(numpy_helper.from_array(value))
    onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert tried(model, tmp_path / "model.onnx") == "equal"


def permuted(order: list[int]) -> Change:
    def change(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
        return [helper.make_node("Gather", [x, stored(model, order, "order_")], ["p_"], axis=1)]

    return change


def there_and_back(order: list[int]) -> Change:
    def change(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
        back = np.argsort(order)
        return [
            helper.make_node("Gather", [x, stored(model, order, "order_")], ["p_"], axis=1),
            helper.make_node("Relu", ["p_"], ["q_"]),
            helper.make_node("Gather", ["q_", stored(model, back, "back_")], ["r_"], axis=1),
        ]

    return change


def orders(shape: Shape) -> dict[str, list[int]]:
    """Orders of the patches behind the prefix."""
    p, n = shape.prefix, shape.tokens
    patches, rng = list(range(p, n)), np.random.default_rng(0)
    swapped = [*patches]
    swapped[1], swapped[2] = swapped[2], swapped[1]
    whole = np.arange(p, n).reshape(shape.rows, shape.rows)
    found = {
        "swapped": swapped,
        "reversed": patches[::-1],
        "rolled": patches[1:] + patches[:1],
        "shuffled": [int(v) for v in rng.permutation(patches)],
        "columns": [int(v) for v in whole.T.reshape(-1)],
    }
    return {name: [*range(p), *order] for name, order in found.items()}


#: Only one branch: the MLP's norm, or what the attention adds. All of it: the stream itself.
BRANCHES = {"mlp": ("LayerNormalization", 3), "attention": ("LayerNormalization", 2)}


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("order", sorted(orders(Shape("patches"))))
def test_a_branch_in_another_order(order: str, branch: str, cache: Path, tmp_path: Path) -> None:
    op, number = BRANCHES[branch]
    for prefix in (0, 1):
        shape = Shape("patches", prefix, batch=None)
        model = after(exported(shape, cache), op, number, permuted(orders(shape)[order]))
        for method in ("topk:block=0,site=block", "bypass")[: 2 - prefix]:
            assert tried(model, tmp_path / "model.onnx", method) in ("refused", "equal")


@pytest.mark.parametrize("order", sorted(orders(Shape("patches"))))
def test_an_order_that_is_undone(order: str, cache: Path, tmp_path: Path) -> None:
    shape = Shape("patches", len(order) % 2, batch=None)
    change = there_and_back(orders(shape)[order])
    model = after(exported(shape, cache), "LayerNormalization", 3, change)
    assert tried(model, tmp_path / "model.onnx") in ("refused", "equal")


def test_the_oracle_sees_an_order(cache: Path) -> None:
    shape = Shape("patches", 1, batch=None)
    plain = exported(shape, cache)
    for order in orders(shape).values():
        change = permuted(order)
        with pytest.raises(IllegalError, match="not the same"):
            walked(after(plain, "LayerNormalization", 3, change), shape)
        both = there_and_back(order)
        relu = after(
            plain, "LayerNormalization", 3, lambda m, x: [helper.make_node("Relu", [x], ["r_"])]
        )
        one, two = (walked(m, shape) for m in (after(plain, "LayerNormalization", 3, both), relu))
        np.testing.assert_allclose(one["logits"], two["logits"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("change", NEIGHBOUR_IMAGES, ids=lambda change: change.__name__)
def test_the_oracle_sees_neighbours(change: Change, cache: Path) -> None:
    shape = Shape("patches", 1, batch=None)
    with pytest.raises((IllegalError, AssertionError)):
        walked(after(exported(shape, cache), "LayerNormalization", 3, change), shape)


# ---- numbers made of sizes ----------------------------------------------------------------------

#: Index of the size that is read; op on it; join with the stream.
SIZES = {
    "batch": (0, None, "Div"),
    "batch-modulo": (0, "Mod", "Mul"),
    "batch-compared": (0, "Equal", "Add"),
    "batch-less-one": (0, "Sub", "Add"),
    "tokens": (1, None, "Div"),
    "tokens-modulo": (1, "Mod", "Add"),
    "tokens-compared": (1, "Greater", "Add"),
    "tokens-less-one": (1, "Sub", "Mul"),
    "all": (None, None, "Mul"),
}


def sized(name: str) -> Change:
    axis, op, join = SIZES[name]

    def change(model: onnx.ModelProto, x: str) -> list[onnx.NodeProto]:
        if axis is None:
            nodes = [helper.make_node("Size", [x], ["size_"])]
        else:
            nodes = [
                helper.make_node("Shape", [x], ["shape_"]),
                helper.make_node("Gather", ["shape_", stored(model, axis, "axis_")], ["size_"]),
            ]
        last = "size_"
        if op is not None:
            other = {"Mod": 3, "Equal": 2, "Greater": 15, "Sub": 1}[op]
            nodes.append(helper.make_node(op, [last, stored(model, other, "other_")], ["made_"]))
            last = "made_"
        nodes.append(helper.make_node("Cast", [last], ["number_"], to=onnx.TensorProto.FLOAT))
        return [*nodes, helper.make_node(join, [x, "number_"], ["sized_"])]

    return change


@pytest.mark.parametrize("name", SIZES)
def test_a_number_made_of_sizes(name: str, cache: Path, tmp_path: Path) -> None:
    """It is what it is at every batch, and follows the tokens; or the model is refused."""
    plain = exported(Shape("patches", 1, batch=None), cache)
    path = tmp_path / "model.onnx"
    path.write_bytes(after(plain, "LayerNormalization", 3, sized(name)).SerializeToString())
    for batch in (1, 2, 3):
        assert judge(path, "topk", batch=batch).kind in ("refused", "equal")


# ---- merging and fusing --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["merge", "fuse"])
@pytest.mark.parametrize("place", ["patches", "centre", "gate"])
def test_the_oracle_merges_as_pytorch_does(place: Place, kind: str, cache: Path) -> None:
    """One cut, decided by the reduced model; numbers by the oracle and by PyTorch."""
    shape = Shape(place, 1, batch=None)
    folder = cache / "spelled"
    exported(shape, cache)
    path = folder / f"{shape.place}-{shape.prefix}-{shape.rows}-{shape.batch}.onnx"
    score = None if kind == "merge" else {"name": "cls"}
    cut = {"site": "attn:1", "score": score, "reducer": {"name": kind}, "keep": 10}
    model = {"tokens": 17, "prefix": 1, "patches": 16, "blocks": 3}
    document = {"schema": 1, "method": "custom", "model": model, "reductions": [cut]}
    made = pipeline.reduce(path, schedule=document)
    feed, source = {"image": images(shape)}, onnx.load(path)
    places = {site.name: site.tensor for site in pipeline.read(path).analysis.sites}
    reduced = to_onnx(made.graph)
    wanted = expected_merged(File(source, feed), reduced, document, Tokens(1, 16), places)
    logits, tokens = inside(shape, cut, infer(reduced, feed))
    np.testing.assert_allclose(wanted["logits"], logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(wanted["tokens"], tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["tome", "evit"])
def test_merging_is_judged(method: str, cache: Path, tmp_path: Path) -> None:
    shape = Shape("gate", 1, batch=None)
    plain = exported(shape, cache)
    assert tried(plain, tmp_path / "model.onnx", method) == "equal"
    turned = after(plain, "LayerNormalization", 3, permuted(orders(shape)["reversed"]))
    assert tried(turned, tmp_path / "model.onnx", method) == "refused"
    mixed = after(plain, "LayerNormalization", 3, batch_mean)
    assert tried(mixed, tmp_path / "model.onnx", method) == "refused"


# ---- sums that nothing counts --------------------------------------------------------------------


def test_a_temperature_of_the_number_of_tokens(cache: Path, tmp_path: Path) -> None:
    plain, path = exported(Shape("patches", 1), cache), tmp_path / "model.onnx"
    for number, kind in ((17, "refused"), (18, "equal")):

        def sharper(model: onnx.ModelProto, x: str, number: int = number) -> list[onnx.NodeProto]:
            log = stored(model, np.float32(np.log(number)), "log_")
            return [helper.make_node("Mul", [x, log], ["sharper_"])]

        model = after(plain, "MatMul", 13, sharper)
        (at,) = (n for n in model.graph.node if "sharper_" in n.input)
        assert at.op_type in ("Mul", "Softmax")
        assert tried(model, path) == kind


def summed(model: onnx.ModelProto, keep: float = 1.0) -> onnx.ModelProto:
    """The last mean is a sum, of which `keep` is taken."""
    return respell(model, lambda w: w.op("Mul", w.sum(), w.const(keep)))


def test_a_sum_that_nothing_counts(cache: Path, tmp_path: Path) -> None:
    """The head reads a sum: with fewer tokens it is another one, and no count says by how much."""
    model = summed(exported(Shape("patches", 1), cache))
    with pytest.raises(IllegalError, match="nothing counts"):
        walked(model, Shape("patches", 1))
    for method in ("topk", "topk:site=output"):
        assert tried(model, tmp_path / "model.onnx", method) == "refused"


def test_a_sum_whose_scale_does_not_matter(cache: Path, tmp_path: Path) -> None:
    """A sum that is brought to length one is right as it is."""

    def unit(w: Writer) -> str:
        return w.op("LpNormalization", w.sum(), axis=2, p=2)

    model = respell(exported(Shape("patches", 1), cache), unit)
    assert tried(model, tmp_path / "model.onnx", "topk") in ("equal", "refused")


def second_of_two(w: Writer) -> str:
    """The count is the second result of a Split; the first is half of it."""
    mask = w.op("Unsqueeze", w.given(onnx.TensorProto.FLOAT), w.ints(2))
    both = w.op("Concat", w.op("Mul", mask, w.const(0.5)), mask, axis=2)
    first, second = f"{w.scope}/half", f"{w.scope}/whole"
    w.nodes.append(helper.make_node("Split", [w.sum(both), w.ints(1, 1)], [first, second], axis=2))
    return w.op("Div", w.sum(w.op("Mul", w.x, mask)), second)


def beside_the_batch(w: Writer) -> str:
    """A Slice with a step, as newer exporters write it: the batch is not made of the tokens."""
    shape = w.op("Shape", w.x)
    batch = w.op("Slice", shape, w.ints(0), w.ints(1), w.ints(0), w.ints(1))
    number = w.op("Cast", batch, to=onnx.TensorProto.FLOAT)
    mean = w.op("ReduceMean", w.op("Mul", w.x, number), axes=[1], keepdims=1)
    return w.op("Div", mean, number)


def in_integers(w: Writer) -> str:
    """A sum of integers, divided by N without a rest being kept: nothing a ratio could follow."""
    steps = w.op("Cast", w.op("Mul", w.x, w.const(1000.0)), to=onnx.TensorProto.INT64)
    whole = w.op("Div", w.sum(steps), w.const(w.count, np.int64))
    return w.op("Mul", w.op("Cast", whole, to=onnx.TensorProto.FLOAT), w.const(0.001))


SPELLINGS = {second_of_two: "equal", beside_the_batch: "equal", in_integers: "refused"}


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.__name__)
def test_counts_that_are_told_apart(
    spelling: Callable[[Writer], str], cache: Path, tmp_path: Path
) -> None:
    model = respell(exported(Shape("patches", 1, batch=2), cache), spelling)
    assert tried(model, tmp_path / "model.onnx", "topk") == SPELLINGS[spelling]


def test_counts_in_double(cache: Path, tmp_path: Path) -> None:
    """A stored mask that hides every third token, and as a number how many it shows."""
    found = {}
    for kind in (np.float32, np.float64):

        def shown(w: Writer, kind: type = kind) -> str:
            to = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
            mask = (np.arange(w.count) % 3 > 0).astype(kind).reshape(1, -1, 1)
            total = w.sum(w.op("Mul", w.op("Cast", w.x, to=to), w.const(mask, kind)))
            mean = w.op("Div", total, w.const([[[mask.sum()]]], kind))
            return w.op("Cast", mean, to=onnx.TensorProto.FLOAT)

        path = tmp_path / "model.onnx"
        path.write_bytes(
            respell(exported(Shape("patches", 1, batch=2), cache), shown).SerializeToString()
        )
        model = to_onnx(pipeline.reduce(path, keep=0.6, method="topk").graph)
        found[kind] = infer(model, feed_for(model))["logits"]
    np.testing.assert_allclose(found[np.float64], found[np.float32], rtol=0, atol=1e-5)


def test_sizes_that_do_not_add_up(cache: Path, tmp_path: Path) -> None:
    """DiffRate drops some tokens, merges others, and lets sizes grow by similarity: a sum over N is
    the mean all the same, and a sum that nothing counts is refused."""
    plain, found = exported(Shape("patches", 1, batch=2), cache), []
    path = tmp_path / "model.onnx"
    for model in (plain, *(respell(plain, MEANS[n]) for n in ("sum_over_n", "mask_counted"))):
        path.write_bytes(model.SerializeToString())
        reduced = to_onnx(pipeline.reduce(path, keep=0.5, method="diffrate").graph)
        found.append(infer(reduced, feed_for(reduced))["logits"])
    for logits in found[1:]:
        np.testing.assert_allclose(logits, found[0], rtol=0, atol=1e-5)
    assert tried(summed(plain), path, "tome") != "refused"
    assert tried(summed(plain), path, "diffrate") == "refused"


# ---- heads, as PyTorch spells them ---------------------------------------------------------------

#: (the model, its part of the normed tokens [B, n, C], a mask [B, n]) -> what the head reads.
Spelled = Callable[[Any, Tensor, Tensor], Tensor]
#: The same where sizes [B, n, 1] weigh the tokens that are left.
Right = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def weighted(x: Tensor, w: Tensor) -> Tensor:
    return (x * w).sum(1) / w.sum(1)


def standard_error(x: Tensor, s: Tensor) -> Tensor:
    n = s.sum(1)
    return (((x - weighted(x, s)[:, None]) ** 2 * s).sum(1) / (n - 1) / n).sqrt()


def masked_spread(x: Tensor, w: Tensor) -> Tensor:
    n = w.sum(1, keepdim=True)
    mean = (x * w).sum(1, keepdim=True) / n
    return ((x - mean) ** 2 * w).sum(1) / (n[:, 0] - 1)


def standard(w: Tensor, s: Tensor) -> Tensor:
    """Return what a mask has beyond its mean, over its deviation."""
    far = w - weighted(w, s)[:, None]
    return far / weighted(far**2, s)[:, None].sqrt()


def table(n: int) -> Tensor:
    return 1 + torch.arange(n)[None, :, None] / 7


def shares(x: Tensor, s: Tensor) -> Tensor:
    """[B, n, 1] that sum to one."""
    return (x[..., :1] + s.log()).softmax(1)


HEADS_SPELLED: dict[str, tuple[Spelled, Right]] = {
    "harmonic": (
        lambda m, x, k: 16 / (1 / (x.exp() + 1)).sum(1),
        lambda m, x, k, s: 1 / weighted(1 / (x.exp() + 1), s),
    ),
    "shares_times_n": (
        lambda m, x, k: (x[..., :1].softmax(1) * 16 * x).mean(1),
        lambda m, x, k, s: (shares(x, s) * x).sum(1),
    ),
    "shares_less_a_share": (
        lambda m, x, k: ((x[..., :1].softmax(1) - 1 / 16) * x).sum(1),
        lambda m, x, k, s: (shares(x, s) * x).sum(1) - weighted(x, s),
    ),
    "integers": (
        lambda m, x, k: (x > 0.1).sum(1).to(x) / 16,
        lambda m, x, k, s: weighted((x > 0.1).to(x), s),
    ),
    "grid": (
        lambda m, x, k: x.reshape(-1, 4, 4, 32).mean((1, 2)),
        lambda m, x, k, s: weighted(x, s),
    ),
    "standard_error": (lambda m, x, k: x.std(1) / 4, lambda m, x, k, s: standard_error(x, s)),
    "mask_product": (
        lambda m, x, k: ((k / k.sum(1, keepdim=True))[:, None] @ x)[:, 0],
        lambda m, x, k, s: weighted(x, k[..., None] * s),
    ),
    "mask_spread": (
        lambda m, x, k: masked_spread(x, k[..., None]),
        lambda m, x, k, s: masked_spread(x, k[..., None] * s),
    ),
    "mask_share": (
        lambda m, x, k: weighted(x, k[..., None]) + k.mean(1, keepdim=True),
        lambda m, x, k, s: weighted(x, k[..., None] * s) + weighted(k[..., None], s),
    ),
    "mask_counted": (
        lambda m, x, k: weighted(x, k[..., None]) * (k.sum(1, keepdim=True) + 1).log(),
        lambda m, x, k, s: weighted(x, k[..., None] * s) * ((k[..., None] * s).sum(1) + 1).log(),
    ),
    "mask_softmax": (
        lambda m, x, k: (k[..., None].softmax(1) * x).sum(1),
        lambda m, x, k, s: (shares(k[..., None], s) * x).sum(1),
    ),
    "mask_standard": (
        lambda m, x, k: (x * standard(k[..., None] * table(16), torch.ones(1, 16, 1))).mean(1),
        lambda m, x, k, s: weighted(x * standard(k[..., None] * m.rows, s), s),
    ),
    "mask_of_a_table": (
        lambda m, x, k: weighted(x, k[..., None] / k.sum(1)[:, None, None] * table(16)),
        lambda m, x, k, s: weighted(x, k[..., None] * m.rows * s),
    ),
}
#: What is refused where tokens are dropped, or merged, and why.
REFUSED = {
    ("standard_error", "topk"): "may or may not be one over the root",
    ("mask_spread", "topk"): "sums over tokens",
    ("shares_times_n", "merge"): "not an attention that tcompile recognises",
    ("shares_less_a_share", "merge"): "not an attention that tcompile recognises",
    ("mask_softmax", "merge"): "of all tokens of a mask",
}


class Headed(SpelledViT):
    """Images and a mask [B, 16] of the patches -> (logits, tokens)."""

    def __init__(self, name: str) -> None:
        super().__init__(Shape("patches", 1, batch=None))
        self.spell, self.right = HEADS_SPELLED[name]
        self.mask = self.rows = torch.ones(0)

    def forward(  # type: ignore[override]
        self, images: Tensor, mask: Tensor, cut: Cut | None = None
    ) -> tuple[Tensor, Tensor]:
        self.mask = mask
        self.cut = cut
        return super().forward(images, cut)

    def pooled(self, x: Tensor, size: Tensor | None) -> Tensor:
        if self.cut is None:
            return self.spell(self, x[:, 1:], self.mask)
        there = self.cut.index[:, 1:] - 1
        self.rows = table(16).to(x)[0][there]
        weight = torch.ones_like(x[..., 0]) if size is None else size
        return self.right(self, x[:, 1:], self.mask.gather(1, there), weight[:, 1:, None])


@pytest.mark.parametrize("name", HEADS_SPELLED)
def test_a_head_counts_what_is_left(name: str, tmp_path: Path) -> None:
    """Dropped or merged inside PyTorch, the head gives the same; or it is refused, and why."""
    model, path = Headed(name).eval().requires_grad_(False), tmp_path / "model.onnx"
    stir(model, seed=11)
    mask = np.ones((2, 16), np.float32)
    mask[0, ::3] = mask[1, 1::4] = 0
    feed = {"image": images(model.shape)} | ({"mask": mask} if "mask" in name else {})
    given = (torch.from_numpy(images(model.shape)), torch.from_numpy(mask))
    torch.onnx.export(
        model,
        given,
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image", "mask"],
        output_names=["logits", "tokens"],
        dynamic_axes={"image": {0: "batch"}, "mask": {0: "batch"}},
    )
    model.double()
    for kind in ("topk", "merge"):
        score = None if kind == "merge" else {"name": "cls"}
        cut = {"site": "attn:1", "score": score, "reducer": {"name": kind}, "keep": 10}
        shape = {"tokens": 17, "prefix": 1, "patches": 16, "blocks": 3}
        document = {"schema": 1, "method": "custom", "model": shape, "reductions": [cut]}
        why = REFUSED.get((name, kind))
        if why is not None:
            with pytest.raises(UsageError, match=why):
                pipeline.reduce(path, schedule=document)
            continue
        found = infer(to_onnx(pipeline.reduce(path, schedule=document).graph), feed)
        owner = torch.from_numpy(found["token_owner"]) if kind == "merge" else None
        done = Cut(1, kind, torch.from_numpy(found["token_index"]), owner)
        logits, tokens = model(*(t.double() for t in given), done)
        np.testing.assert_allclose(found["tokens"], tokens.numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["logits"], logits.numpy(), rtol=0, atol=1e-5)
