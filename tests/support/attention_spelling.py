"""Attention, written otherwise: products, normalisations over keys and views around them.

`PRODUCTS`, `NORMS` and `MIXES` compute the same as MatMul, Softmax and MatMul do; `OTHERS` are
other attentions: sink columns, learned keys, mixed heads, two maps. `respell` writes them into a
model in the place of its attentions. ONNX nodes are written here, not PyTorch, whose exporter folds
many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.fuzz_draft import shapes_of

Array = np.ndarray[Any, Any]


@dataclass
class Writer:
    """Nodes in the place of one attention.

    Attributes:
        heads, count, width: of its operands q [B, h, N, d], k [B, h, d, N], v [B, h, N, d].
        batch: a number, or 0 for a free one.
    """

    heads: int
    count: int
    width: int
    batch: int
    scope: str
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self.scope}/{len(self.nodes)}_{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        name = f"{self.scope}/{len(self.nodes)}_{kind}"
        names = [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"{self.scope}/const_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.asarray(values), np.int64)

    def random(self, *dims: int, scale: float = 0.5) -> str:
        self.seed += 1
        return self.const(np.random.default_rng(self.seed).standard_normal(dims) * scale)

    def reduce(self, kind: str, x: str, axis: int, keepdims: int = 1, opset: int = 17) -> str:
        if kind == "ReduceSum" or opset >= 18:
            return self.op(kind, x, self.ints(axis), keepdims=keepdims)
        return self.op(kind, x, axes=[axis], keepdims=keepdims)

    def softmax(self, x: str, axis: int = -1) -> str:
        return self.op("Softmax", x, axis=axis)

    def turn(self, x: str, *perm: int) -> str:
        return self.op("Transpose", x, perm=list(perm))

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(stop), self.ints(axis))

    def each(self, table: str, x: str, *dims: int) -> str:
        """A table [1, ...] for each image of x: [B, *dims]."""
        shape = self.op("Slice", self.op("Shape", x), self.ints(0), self.ints(1))
        return self.op("Expand", table, self.op("Concat", shape, self.ints(*dims), axis=0))


# ---- Q·Kᵀ ----------------------------------------------------------------------------------------


def _plain_product(w: Writer, q: str, k: str) -> str:
    return w.op("MatMul", q, k)


def _einsum(equation: str, q_turn: tuple[int, ...] = (), k_turn: tuple[int, ...] = ()) -> Any:
    def product(w: Writer, q: str, k: str) -> str:
        q = w.turn(q, *q_turn) if q_turn else q
        k = w.turn(k, *k_turn) if k_turn else k
        return w.op("Einsum", q, k, equation=equation)

    return product


def _summed_product(w: Writer, q: str, k: str) -> str:
    keys = w.turn(k, 0, 1, 3, 2)
    wide = w.op("Mul", w.op("Unsqueeze", q, w.ints(3)), w.op("Unsqueeze", keys, w.ints(2)))
    return w.reduce("ReduceSum", wide, 4, keepdims=0)


def _folded_product(w: Writer, q: str, k: str) -> str:
    """Heads in the batch."""
    q = w.op("Reshape", q, w.ints(-1, w.count, w.width))
    k = w.op("Reshape", k, w.ints(-1, w.width, w.count))
    product = w.op("MatMul", q, k)
    return w.op("Reshape", product, w.ints(-1, w.heads, w.count, w.count))


def _flipped_product(w: Writer, q: str, k: str) -> str:
    """Kᵀ first, as (K·Qᵀ)ᵀ."""
    product = w.op("MatMul", w.turn(k, 0, 1, 3, 2), w.turn(q, 0, 1, 3, 2))
    return w.turn(product, 0, 1, 3, 2)


def _scaled_apart(w: Writer, q: str, k: str) -> str:
    half, double = w.const(0.5), w.const(2.0)
    return w.op("MatMul", w.op("Mul", q, half), w.op("Mul", k, double))


PRODUCTS: Mapping[str, Callable[[Writer, str, str], str]] = {
    "matmul": _plain_product,
    "einsum": _einsum("bhid,bhdj->bhij"),
    "einsum_bqhd": _einsum("bqhd,bkhd->bhqk", (0, 2, 1, 3), (0, 3, 1, 2)),
    "einsum_bdhn": _einsum("bdhn,bdhm->bhnm", (0, 3, 1, 2), (0, 2, 1, 3)),
    "einsum_dots": _einsum("...qd,...dk->...qk"),
    "einsum_dots_mid": _einsum("b...qd,b...dk->b...qk"),
    "summed": _summed_product,
    "folded": _folded_product,
    "flipped": _flipped_product,
    "scaled": _scaled_apart,
}


# ---- over keys -----------------------------------------------------------------------------------


def _by_hand(w: Writer, x: str) -> str:
    power = w.op("Exp", x)
    return w.op("Div", power, w.reduce("ReduceSum", power, 3))


def _by_hand_max(w: Writer, x: str) -> str:
    power = w.op("Exp", w.op("Sub", x, w.reduce("ReduceMax", x, 3)))
    return w.op("Div", power, w.reduce("ReduceSum", power, 3))


def _by_hand_inverse(w: Writer, x: str) -> str:
    power = w.op("Exp", x)
    return w.op("Mul", power, w.op("Reciprocal", w.reduce("ReduceSum", power, 3)))


def _by_hand_unsqueezed(w: Writer, x: str) -> str:
    power = w.op("Exp", x)
    total = w.op("Unsqueeze", w.reduce("ReduceSum", power, 3, 0), w.ints(-1))
    return w.op("Div", power, total)


def _by_hand_clipped(w: Writer, x: str) -> str:
    power = w.op("Exp", w.op("Sub", x, w.reduce("ReduceMax", x, 3)))
    return w.op("Div", power, w.op("Max", w.reduce("ReduceSum", power, 3), w.const(1e-9)))


def _by_hand_epsilon(w: Writer, x: str) -> str:
    power = w.op("Exp", w.op("Sub", x, w.reduce("ReduceMax", x, 3)))
    return w.op("Div", power, w.op("Add", w.reduce("ReduceSum", power, 3), w.const(1e-12)))


def _of_logs(w: Writer, x: str) -> str:
    return w.op("Exp", w.op("LogSoftmax", x, axis=-1))


def _of_logsumexp(w: Writer, x: str) -> str:
    return w.op("Exp", w.op("Sub", x, w.reduce("ReduceLogSumExp", x, 3)))


def _shifted(w: Writer, x: str) -> str:
    return w.softmax(w.op("Sub", x, w.reduce("ReduceMax", x, 3)))


def _flattened(w: Writer, x: str) -> str:
    """As onnx.version_converter leaves a Softmax of opset 11."""
    soft = w.softmax(w.op("Flatten", x, axis=3))
    return w.op("Reshape", soft, w.op("Shape", x))


def _reshaped(w: Writer, x: str) -> str:
    soft = w.softmax(w.op("Reshape", x, w.ints(-1, w.count)))
    return w.op("Reshape", soft, w.ints(-1, w.heads, w.count, w.count))


def _turned(w: Writer, x: str) -> str:
    return w.turn(w.softmax(w.turn(x, 0, 1, 3, 2), axis=2), 0, 1, 3, 2)


def _turned_masked(w: Writer, x: str) -> str:
    """Scale and table inside a pair of Transposes."""
    x = w.op("Mul", w.turn(x, 0, 2, 3, 1), w.const(0.9))
    x = w.op("Add", x, w.random(w.count, w.count, 1))
    return w.turn(w.softmax(x, axis=2), 0, 3, 1, 2)


def _scaled_masked(w: Writer, x: str) -> str:
    x = w.op("Div", x, w.const(1.3))
    return w.softmax(w.op("Add", x, w.random(1, w.heads, w.count, w.count)))


NORMS: Mapping[str, Callable[[Writer, str], str]] = {
    "softmax": lambda w, x: w.softmax(x),
    "axis": lambda w, x: w.softmax(x, axis=3),
    "by_hand": _by_hand,
    "by_hand_max": _by_hand_max,
    "by_hand_inverse": _by_hand_inverse,
    "by_hand_unsqueezed": _by_hand_unsqueezed,
    "by_hand_clipped": _by_hand_clipped,
    "by_hand_epsilon": _by_hand_epsilon,
    "log": _of_logs,
    "logsumexp": _of_logsumexp,
    "shifted": _shifted,
    "flattened": _flattened,
    "reshaped": _reshaped,
    "turned": _turned,
    "turned_masked": _turned_masked,
    "scaled_masked": _scaled_masked,
}


# ---- ·V ------------------------------------------------------------------------------------------


def _plain_mix(w: Writer, p: str, v: str) -> str:
    return w.op("MatMul", p, v)


def _einsum_mix(equation: str, v_turn: tuple[int, ...] = (), turn: tuple[int, ...] = ()) -> Any:
    def mix(w: Writer, p: str, v: str) -> str:
        v = w.turn(v, *v_turn) if v_turn else v
        made = w.op("Einsum", p, v, equation=equation)
        return w.turn(made, *turn) if turn else made

    return mix


def _summed_mix(w: Writer, p: str, v: str) -> str:
    wide = w.op("Mul", w.op("Unsqueeze", p, w.ints(4)), w.op("Unsqueeze", v, w.ints(2)))
    return w.reduce("ReduceSum", wide, 3, keepdims=0)


def _flipped_mix(w: Writer, p: str, v: str) -> str:
    made = w.op("MatMul", w.turn(v, 0, 1, 3, 2), w.turn(p, 0, 1, 3, 2))
    return w.turn(made, 0, 1, 3, 2)


def _folded_mix(w: Writer, p: str, v: str) -> str:
    p = w.op("Reshape", p, w.ints(-1, w.count, w.count))
    v = w.op("Reshape", v, w.ints(-1, w.count, w.width))
    return w.op("Reshape", w.op("MatMul", p, v), w.ints(-1, w.heads, w.count, w.width))


MIXES: Mapping[str, Callable[[Writer, str, str], str]] = {
    "matmul": _plain_mix,
    "einsum": _einsum_mix("bhij,bhjd->bhid"),
    "einsum_bqhd": _einsum_mix("bhqk,bkhd->bqhd", (0, 2, 1, 3), (0, 2, 1, 3)),
    "einsum_dots": _einsum_mix("...qk,...kd->...qd"),
    "einsum_right": _einsum_mix("bhqk,bhdk->bhdq", (0, 1, 3, 2), (0, 1, 3, 2)),
    "summed": _summed_mix,
    "flipped": _flipped_mix,
    "folded": _folded_mix,
}


# ---- others --------------------------------------------------------------------------------------

Other = Callable[[Writer, str, str, str], str]


def _plus_one(w: Writer, q: str, k: str, v: str) -> str:
    power = w.op("Exp", w.op("MatMul", q, k))
    total = w.op("Add", w.const(1.0), w.reduce("ReduceSum", power, 3))
    return w.op("MatMul", w.op("Div", power, total), v)


def _plus_one_max(w: Writer, q: str, k: str, v: str) -> str:
    x = w.op("MatMul", q, k)
    largest = w.reduce("ReduceMax", x, 3)
    power = w.op("Exp", w.op("Sub", x, largest))
    one = w.op("Exp", w.op("Neg", largest))
    total = w.op("Add", w.reduce("ReduceSum", power, 3), one)
    return w.op("MatMul", w.op("Div", power, total), v)


def _sink(first: bool) -> Other:
    def sink(w: Writer, q: str, k: str, v: str) -> str:
        x = w.op("MatMul", q, k)
        column = w.each(w.random(1, w.heads, 1, 1), q, w.heads, w.count, 1)
        chances = w.softmax(w.op("Concat", *((column, x) if first else (x, column)), axis=3))
        kept = w.slice(chances, 3, int(first), w.count + first)
        return w.op("MatMul", kept, v)

    return sink


def _padded_sink(w: Writer, q: str, k: str, v: str) -> str:
    """Softmax-plus-one by a column of zeros that Pad makes and Split cuts off."""
    pads = w.ints(0, 0, 0, 1, 0, 0, 0, 0)
    chances = w.softmax(w.op("Pad", w.op("MatMul", q, k), pads))
    _, kept = w.ops("Split", 2, chances, w.ints(1, w.count), axis=3)
    return w.op("MatMul", kept, v)


def _padded_keys(w: Writer, q: str, k: str, v: str) -> str:
    keys = w.op("Pad", k, w.ints(0, 0, 0, 0, 0, 0, 0, 1))
    values = w.op("Pad", v, w.ints(0, 0, 0, 0, 0, 0, 1, 0))
    return w.op("MatMul", w.softmax(w.op("MatMul", q, keys)), values)


def _mean_key(w: Writer, q: str, k: str, v: str) -> str:
    """The mean of all keys is one more, with the mean of all values."""
    keys = w.op("Concat", k, w.reduce("ReduceMean", k, 3), axis=3)
    values = w.op("Concat", v, w.reduce("ReduceMean", v, 2), axis=2)
    return w.op("MatMul", w.softmax(w.op("MatMul", q, keys)), values)


def _learned_keys(zero: bool = False, first: bool = False) -> Other:
    """Rows of K and V that are weights, or zeros (add_zero_attn)."""

    def attend(w: Writer, q: str, k: str, v: str) -> str:
        scale = 0.0 if zero else 0.7
        key = w.each(w.random(1, w.heads, w.width, 2, scale=scale), q, w.heads, w.width, 2)
        value = w.each(w.random(1, w.heads, 2, w.width, scale=scale), q, w.heads, 2, w.width)
        keys = w.op("Concat", *((key, k) if first else (k, key)), axis=3)
        values = w.op("Concat", *((value, v) if first else (v, value)), axis=2)
        return w.op("MatMul", w.softmax(w.op("MatMul", q, keys)), values)

    return attend


def _biased_keys(w: Writer, q: str, k: str, v: str) -> str:
    """A table of logits for all keys, the learned ones among them; sinks of each query's own."""
    keys = w.op(
        "Concat", w.each(w.random(1, w.heads, w.width, 1), q, w.heads, w.width, 1), k, axis=3
    )
    x = w.op("Add", w.op("MatMul", q, keys), w.random(w.heads, w.count, w.count + 1))
    value = w.each(w.random(1, w.heads, 1, w.width), q, w.heads, 1, w.width)
    return w.op("MatMul", w.softmax(x), w.op("Concat", value, v, axis=2))


def _own_sinks(w: Writer, q: str, k: str, v: str) -> str:
    """A sink of each query's own."""
    column = w.each(w.random(1, w.heads, w.count, 1), q, w.heads, w.count, 1)
    chances = w.softmax(w.op("Concat", w.op("MatMul", q, k), column, axis=3))
    return w.op("MatMul", w.slice(chances, 3, 0, w.count), v)


def _heads(w: Writer, x: str, how: str) -> str:
    matrix = np.eye(w.heads) + 0.2 * np.random.default_rng(w.seed).standard_normal((w.heads,) * 2)
    w.seed += 1
    if how == "einsum":
        return w.op("Einsum", x, w.const(matrix), equation="bhqk,hg->bgqk")
    if how == "conv":
        return w.op("Conv", x, w.const(matrix.T[..., None, None]), kernel_shape=[1, 1])
    return w.turn(w.op("MatMul", w.turn(x, 0, 2, 3, 1), w.const(matrix)), 0, 3, 1, 2)


def _talking(before: str, after: str, bias: bool = False) -> Other:
    def attend(w: Writer, q: str, k: str, v: str) -> str:
        x = w.op("MatMul", q, k)
        x = w.softmax(_heads(w, x, before) if before else x)
        x = _heads(w, x, after) if after else x
        if bias:
            x = w.op("Add", x, w.random(w.heads, 1, 1, scale=0.05))
        return w.op("MatMul", x, v)

    return attend


def _difference(w: Writer, q: str, k: str, v: str) -> str:
    one = w.softmax(w.op("MatMul", q, k))
    turned = w.op("Mul", q, w.const(np.linspace(-1, 1, w.width)))
    other = w.op("Mul", w.softmax(w.op("MatMul", turned, k)), w.const(0.4))
    return w.op("MatMul", w.op("Sub", one, other), v)


def _difference_split(w: Writer, q: str, k: str, v: str) -> str:
    """Two maps from the halves of one softmax, as pairs of heads."""
    q2 = w.op("Concat", q, w.op("Mul", q, w.const(np.linspace(-1, 1, w.width))), axis=1)
    chances = w.softmax(w.op("MatMul", q2, w.op("Concat", k, k, axis=1)))
    pairs = w.op("Reshape", chances, w.ints(-1, 2, w.heads, w.count, w.count))
    one, other = (w.op("Gather", pairs, w.const(i, np.int64), axis=1) for i in (0, 1))
    return w.op("MatMul", w.op("Sub", one, w.op("Mul", other, w.const(0.4))), v)


def _gated(kind: str, counted: bool) -> Other:
    """sigmoid(Q·Kᵀ)·V, relu(Q·Kᵀ)/N·V."""

    def attend(w: Writer, q: str, k: str, v: str) -> str:
        x = w.op(kind, w.op("MatMul", q, k))
        if counted:
            x = w.op("Div", x, w.const(float(w.count)))
        return w.op("MatMul", x, v)

    return attend


def _of_shares(made: Callable[[Writer, str, str, str], str]) -> Other:
    """What is made of the shares (w, shares, q, kᵀ) before they are summed."""

    def attend(w: Writer, q: str, k: str, v: str) -> str:
        return w.op("MatMul", made(w, w.softmax(w.op("MatMul", q, k)), q, k), v)

    return attend


def _sink_square(w: Writer, q: str, k: str, v: str) -> str:
    column = w.each(w.random(1, w.heads, 1, 1), q, w.heads, w.count, 1)
    chances = w.softmax(w.op("Concat", w.op("MatMul", q, k), column, axis=3))
    kept = w.slice(chances, 3, 0, w.count)
    return w.op("MatMul", w.op("Mul", kept, kept), v)


def _extreme(kind: str, joined: str) -> Other:
    """The largest or smallest share, as a gate of the result or an addend."""

    def attend(w: Writer, q: str, k: str, v: str) -> str:
        p = w.softmax(w.op("MatMul", q, k))
        return w.op(joined, w.op("MatMul", p, v), w.reduce(kind, p, 3))

    return attend


def _other_map(w: Writer, q: str, k: str) -> str:
    return w.softmax(w.op("MatMul", w.op("Mul", q, w.const(np.linspace(-1, 1, w.width))), k))


def _by_logits(w: Writer, q: str, k: str, v: str) -> str:
    """Shares times a gate of the same logits."""
    x = w.op("MatMul", q, k)
    return w.op("MatMul", w.op("Mul", w.softmax(x), w.op("Sigmoid", x)), v)


def _from_k(w: Writer, k: str) -> str:
    return w.op("Sigmoid", w.reduce("ReduceMean", k, 2))


#: Kinds of attention that do more with their shares than to sum them.
SHARES: Mapping[str, Other] = {
    "square": _of_shares(lambda w, p, q, k: w.op("Mul", p, p)),
    "two_maps": _of_shares(lambda w, p, q, k: w.op("Mul", p, _other_map(w, q, k))),
    "sink_square": _sink_square,
    "less_square": _of_shares(lambda w, p, q, k: w.op("Sub", p, w.op("Mul", p, p))),
    "threshold": _of_shares(
        lambda w, p, q, k: w.op("Where", w.op("Less", p, w.const(0.06)), w.const(0.0), p)
    ),
    "maximum_inside": _of_shares(lambda w, p, q, k: w.op("Mul", p, w.reduce("ReduceMax", p, 3))),
    "maximum_outside": _extreme("ReduceMax", "Mul"),
    "minimum_added": _extreme("ReduceMin", "Add"),
    "all_but_shares": _of_shares(lambda w, p, q, k: w.op("Sub", w.const(1.0), p)),
    "prefix_alone": _of_shares(
        lambda w, p, q, k: w.op("Where", w.const(np.arange(w.count) < 1, bool), p, w.const(0.05))
    ),
    "by_query": _of_shares(
        lambda w, p, q, k: w.op(
            "Where", w.op("Less", w.reduce("ReduceMean", q, 3), w.const(0.0)), *(p, w.const(0.05))
        )
    ),
    "shares_by_logits": _by_logits,
    "shares_by_gate": _of_shares(lambda w, p, q, k: w.op("Mul", p, _from_k(w, k))),
    "shares_or_nothing": _of_shares(
        lambda w, p, q, k: w.op("Where", w.op("Less", _from_k(w, k), w.const(0.5)), w.const(0.0), p)
    ),
    "shares_by_prefix": _of_shares(lambda w, p, q, k: w.op("Mul", p, w.slice(p, 3, 0, 1))),
}

OTHERS: Mapping[str, Other] = {
    **SHARES,
    "plus_one": _plus_one,
    "plus_one_max": _plus_one_max,
    "sink": _sink(first=False),
    "sink_first": _sink(first=True),
    "learned_keys": _learned_keys(),
    "learned_keys_first": _learned_keys(first=True),
    "zero_keys": _learned_keys(zero=True),
    "padded_sink": _padded_sink,
    "padded_keys": _padded_keys,
    "mean_key": _mean_key,
    "biased_keys": _biased_keys,
    "own_sinks": _own_sinks,
    "talking": _talking("matmul", "matmul"),
    "talking_einsum": _talking("einsum", "einsum"),
    "talking_conv": _talking("conv", "conv"),
    "talking_before": _talking("conv", ""),
    "talking_bias": _talking("matmul", "matmul", bias=True),
    "difference": _difference,
    "difference_split": _difference_split,
    "sigmoid": _gated("Sigmoid", counted=False),
    "relu_counted": _gated("Relu", counted=True),
}


# ---- in a model ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """An attention of a model: its nodes, and q, kᵀ, v and what stands between."""

    product: onnx.NodeProto
    between: tuple[onnx.NodeProto, ...]
    softmax: onnx.NodeProto
    mix: onnx.NodeProto


def places(model: onnx.ModelProto) -> list[Place]:
    """The attentions of a model in which they are MatMul, perhaps Mul, Softmax, MatMul."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type != "Softmax":
            continue
        between: list[onnx.NodeProto] = []
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in ("Mul", "Div"):
            between.insert(0, maker)
            maker = makers.get(maker.input[0])
        mixes = [n for n in model.graph.node if node.output[0] in n.input]
        if maker is None or maker.op_type != "MatMul" or [m.op_type for m in mixes] != ["MatMul"]:
            continue
        found.append(Place(maker, tuple(between), node, mixes[0]))
    return found


@dataclass(frozen=True)
class Spelling:
    """The names of the parts that an attention is written with; `other` in place of them all."""

    product: str = "matmul"
    norm: str = "softmax"
    mix: str = "matmul"
    other: str = ""

    def write(self, w: Writer, place: Place) -> str:
        q, k = place.product.input
        v = place.mix.input[1]
        if self.other:
            return OTHERS[self.other](w, q, k, v)
        logits = PRODUCTS[self.product](w, q, k)
        for node in place.between:
            logits = w.op(node.op_type, logits, node.input[1])
        return MIXES[self.mix](w, NORMS[self.norm](w, logits), v)


def respell(
    model: onnx.ModelProto,
    spelling: Spelling,
    blocks: range | None = None,
    *,
    scope: str = "attention",
    seed: int = 0,
) -> int:
    """Write attentions of a model otherwise, in place; returns how many.

    Args:
        blocks: which of those that are plain; all by default.
        scope: what the names of new nodes begin with.
        seed: of new weights.

    Raises:
        ValueError: their operands are not [B, h, N, d].
    """
    shapes = shapes_of(model)
    done = 0
    for number, place in enumerate(places(model)):
        if blocks is not None and number not in blocks:
            continue
        q = shapes.get(place.product.input[0], ())
        if len(q) != 4 or not all(isinstance(d, int) for d in q[1:]):
            raise ValueError(f"q is {q}")
        batch = q[0] if isinstance(q[0], int) else 0
        _, heads, count, width = (int(d) if isinstance(d, int) else 0 for d in q)
        w = Writer(heads, count, width, batch, f"{scope}_{number}", seed=seed + number)
        made = spelling.write(w, place)
        at = list(model.graph.node).index(place.mix)
        out = place.mix.output[0]
        for node in w.nodes:
            for i, name in enumerate(node.output):
                if name == made:
                    node.output[i] = out
        gone = [place.product, *place.between, place.softmax, place.mix]
        for node in reversed(w.nodes):
            model.graph.node.insert(at, node)
        for node in gone:
            model.graph.node.remove(node)
        model.graph.initializer.extend(w.stored)
        done += 1
    return done


def spelled(model: onnx.ModelProto, spelling: Spelling) -> onnx.ModelProto:
    """A checked copy of a model with all of its attentions written so."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    if not respell(copy, spelling):
        raise ValueError("no attention to write otherwise")
    onnx.checker.check_model(copy, full_check=True)
    return copy
