"""Values that follow from how many tokens there are, at which place they stand and what is beside
them in the batch; and models with a second tower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.fuzz_draft import Draft
from tests.support.respelling import MASK, MEANS, SPREADS, Spelling, Writer, respell

Edge = tuple[onnx.NodeProto, int, list[int]]


def count_respelled(d: Draft) -> str | None:
    """Every mean over tokens is written otherwise; where there is none, one is put in."""
    name = d.rng.choice(sorted(MEANS))
    try:
        found = respell(d.model, MEANS[name])
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return count_inside(d)
    d.model = found
    return name


def count_inside(d: Draft) -> str | None:
    """A mean, a sum or a deviation over tokens, spelled in some way, is taken from an edge with
    tokens, multiplied onto it, or is an output."""
    edge = _tokens(d)
    if edge is None:
        return None
    source, (_, count, width) = edge[0].input[edge[1]], edge[2]
    spellings: dict[str, Spelling] = {**MEANS, **SPREADS, **_SUMS}
    name = d.rng.choice(sorted(spellings))
    w = Writer(source, count, width, d.graph.input[0].name, d.fresh("count"))
    found = spellings[name](w)
    d.graph.initializer.extend(w.stored)
    for info in w.inputs.values():
        if all(i.name != MASK for i in d.graph.input):
            info.type.tensor_type.shape.dim[0].CopyFrom(
                d.graph.input[0].type.tensor_type.shape.dim[0]
            )
            d.graph.input.append(info)
    how = d.rng.choice(["Sub", "Add", "Mul", "gate", "output"])
    if how == "output":
        at = list(d.graph.node).index(edge[0])
        for node in reversed(w.nodes):
            d.graph.node.insert(at, node)
        d.graph.output.append(helper.make_tensor_value_info(found, TensorProto.FLOAT, None))
    elif how == "gate":
        gate = d.make("Sigmoid", found)
        d.insert(edge, *w.nodes, gate, d.make("Mul", "@", gate.output[0]))
    else:
        d.insert(edge, *w.nodes, d.make(how, "@", found))
    return f"{_at(edge)}: {name}, {how}"


def _literal(value: float) -> Spelling:
    return lambda w: w.op("Div", w.sum(), w.const(value * w.count))


#: Sums that are no means: not counted at all, by half, by a number that is none.
_SUMS: dict[str, Spelling] = {
    "plain_sum": lambda w: w.sum(),
    "half_mean": _literal(2.0),
    "odd_sum": _literal(0.731),
    "unit_sum": lambda w: w.op("LpNormalization", w.sum(), axis=2, p=2),
    "length": lambda w: w.op("ReduceL2", w.x, axes=[1], keepdims=1),
    "root_mean_square": lambda w: w.op(
        "Sqrt", w.op("Div", w.op("ReduceSumSquare", w.x, axes=[1], keepdims=1), w.const(w.count))
    ),
    "largest": lambda w: w.op("ReduceMax", w.x, axes=[1], keepdims=1),
}


def permute_branch(d: Draft) -> str | None:
    """One branch has its tokens in another order: all, the patches only, two of them; for good, or
    until they are put back."""
    edge = _tokens(d)
    if edge is None:
        return None
    count, rng = edge[2][1], d.rng
    first = rng.choice([0, 0, 1])
    order = list(range(count))
    how = rng.choice(["all", "swap", "roll", "reverse", "rows"])
    if how == "all":
        rest = order[first:]
        rng.shuffle(rest)
        order[first:] = rest
    elif how == "swap":
        i, j = rng.sample(range(first, count), 2)
        order[i], order[j] = order[j], order[i]
    elif how == "roll":
        order[first:] = order[first + 1 :] + order[first : first + 1]
    elif how == "reverse":
        order[first:] = order[first:][::-1]
    else:
        side = int((count - first) ** 0.5)
        if side * side != count - first:
            return None
        order[first:] = np.reshape(order[first:], (side, side)).T.reshape(-1).tolist()
    there = d.make("Gather", "@", d.constant(np.array(order)), axis=1)
    if rng.random() < 0.3:
        halved = d.make("Mul", there.output[0], d.constant(np.float32(0.5)))
        back = d.constant(np.argsort(order))
        d.insert(edge, there, halved, d.make("Gather", halved.output[0], back, axis=1))
        return f"{_at(edge)}: {how} from {first}, and back"
    d.insert(edge, there)
    return f"{_at(edge)}: {how} from {first}"


def mix_batch(d: Draft) -> str | None:
    """Images of a batch see each other."""
    edge = d.edge(rank=2)
    if edge is None:
        return None
    how = d.rng.choice(
        ["mean", "max", "sum", "softmax", "norm", "best", "first", "slice", "cumsum", "flip", "std"]
    )
    join = d.rng.choice(["Add", "Sub", "Mul"])
    chain: Sequence[onnx.NodeProto]
    if how in ("mean", "max", "sum"):
        axes = d.constant(np.array([0]))
        op = {"mean": "ReduceMean", "max": "ReduceMax", "sum": "ReduceSum"}[how]
        given = ["@", axes] if how == "sum" or d.opset >= 18 else ["@"]
        chain = [d.make(op, *given, **({} if len(given) > 1 else {"axes": [0]}), keepdims=1)]
    elif how == "std":
        square = d.make("Mul", "@", "@")
        total = d.make("ReduceSum", square.output[0], d.constant(np.array([0])), keepdims=1)
        chain = [square, total, d.make("Sqrt", total.output[0])]
    elif how == "softmax":
        chain = [d.make("Softmax", "@", axis=0)]
    elif how == "norm":
        chain = [d.make("LpNormalization", "@", axis=0, p=2)]
    elif how == "best":
        best = d.make("ArgMax", "@", axis=0, keepdims=1)
        chain = [best, d.make("Cast", best.output[0], to=TensorProto.FLOAT)]
    elif how == "first":
        chain = [d.make("Gather", "@", d.constant(np.array([0])), axis=0)]
    elif how == "slice":
        chain = [d.make("Slice", "@", *(d.constant(np.array([v])) for v in (0, 1, 0)))]
    elif how == "cumsum":
        chain = [d.make("CumSum", "@", d.constant(np.array(0)))]
    else:
        ends = (d.constant(np.array([v])) for v in (-1, -(1 << 40), 0, -1))
        chain = [d.make("Slice", "@", *ends)]
    d.insert(edge, *chain, d.make(join, "@", chain[-1].output[0]))
    return f"{_at(edge)}: {how} along the batch, {join}"


def shape_constant(d: Draft) -> str | None:
    """A number made of the sizes of a tensor: of the batch, of the tokens, of all; cast to float,
    compared, taken modulo; multiplied, divided by, added or selected with."""
    edge = d.edge(rank=2)
    if edge is None:
        return None
    rng = d.rng
    of = rng.choice(["axis", "axis", "axis", "size"])
    axis = rng.randrange(len(edge[2]))
    if of == "size":
        links = [d.make("Size", "@")]
    else:
        sizes = d.make("Shape", "@")
        links = [sizes, d.make("Gather", sizes.output[0], d.constant(np.array(axis)))]
    how = rng.choice(["float", "modulo", "equal", "greater", "less one", "inverse"])
    if how == "modulo":
        by = d.constant(np.array(rng.choice([2, 3, 7])))
        links.append(d.make("Mod", links[-1].output[0], by))
    elif how in ("equal", "greater"):
        known = edge[2][axis] if edge[2][axis] else 2
        against = d.constant(np.array(known - (how == "greater")))
        op = "Equal" if how == "equal" else "Greater"
        links.append(d.make(op, links[-1].output[0], against))
    elif how == "less one":
        links.append(d.make("Sub", links[-1].output[0], d.constant(np.array(1))))
    links.append(d.make("Cast", links[-1].output[0], to=TensorProto.FLOAT))
    if how == "inverse":
        links.append(d.make("Div", d.constant(np.float32(1)), links[-1].output[0]))
    if how in ("modulo", "equal", "greater", "less one"):
        links.append(d.make("Add", links[-1].output[0], d.constant(np.float32(1))))
    join = rng.choice(["Mul", "Div", "Add"])
    d.insert(edge, *links, d.make(join, "@", links[-1].output[0]))
    return f"{_at(edge)}: {of} {axis}, {how}, {join}"


def second_tower(d: Draft) -> str | None:
    """The whole encoder once more: with the same weights or its own, for the same image, the image
    upside down or another image; its outputs beside the first's, or added or joined to them."""
    rng = d.rng
    if len(d.graph.node) > 400:
        return None
    image = d.graph.input[0].name
    source, links = image, []
    how = rng.choice(["same image", "upside down", "another image", "another image"])
    if how == "upside down":
        ends = (d.constant(np.array([v])) for v in (-1, -(1 << 40), 2, -1))
        links = [d.make("Slice", image, *ends)]
        source = links[0].output[0]
    elif how == "another image":
        second = onnx.ValueInfoProto()
        second.CopyFrom(d.graph.input[0])
        second.name = source = d.fresh("image")
        d.graph.input.append(second)
    own = rng.random() < 0.5
    stored = {t.name: t for t in d.graph.initializer}
    names = {image: source}
    if own:
        for name, tensor in list(stored.items()):
            if tensor.data_type != onnx.TensorProto.FLOAT:
                continue  # a damaged one may not be readable
            value = onnx.numpy_helper.to_array(tensor)
            if value.size > 8:
                names[name] = d.constant(value * np.float32(0.9))
    tail = d.fresh("tower")
    for node in d.graph.node:
        for name in node.output:
            if name:
                names[name] = f"{name}/{tail}"
    copies = []
    for node in d.graph.node:
        if any(a.HasField("g") for a in node.attribute):
            return None
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}/{tail}"
        for i, name in enumerate(copy.input):
            copy.input[i] = names.get(name, name)
        for i, name in enumerate(copy.output):
            copy.output[i] = names.get(name, name)
        copies.append(copy)
    first = d.graph.output[0]
    join = rng.choice(["apart", "Add", "Concat", "Mul"])
    if join == "apart":
        out = onnx.ValueInfoProto()
        out.CopyFrom(first)
        out.name = names.get(first.name, first.name)
        d.graph.node.extend([*links, *copies])
        d.graph.output.append(out)
    else:
        inner = d.fresh("joined")
        for node in d.graph.node:
            for i, name in enumerate(node.output):
                if name == first.name:
                    node.output[i] = inner
            for i, name in enumerate(node.input):
                if name == first.name:
                    node.input[i] = inner
        extra = {"axis": -1} if join == "Concat" else {}
        d.graph.node.extend([*links, *copies])
        d.graph.node.append(
            helper.make_node(join, [inner, names[first.name]], [first.name], **extra)
        )
        first.type.tensor_type.ClearField("shape")
    return f"{how}, {'own' if own else 'same'} weights, {join}"


def _tokens(d: Draft) -> Edge | None:
    """A random edge with tokens [B, N, C]."""
    for _ in range(20):
        edge = d.edge(rank=3)
        if edge is not None and len(edge[2]) == 3 and edge[2][1] > 2 and edge[2][2] > 2:
            return edge
    return None


def _at(edge: Edge) -> str:
    return f"{edge[0].op_type} {edge[0].name}"


FOLLOWING = (count_respelled, count_inside, permute_branch, mix_batch, shape_constant, second_tower)
