"""Means over tokens, written otherwise: the same value, without ReduceMean.

`MEANS` maps a name to a function that writes the nodes; `SPREADS` does so for a variance with N - 1
(the mean of squares times N/(N - 1)). `respell` replaces every mean over axis 1 of [B, N, C] in a
model. ONNX nodes are written here, not PyTorch, whose exporter folds and changes many of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.oracles.dense_file import attribute_of

Array = np.ndarray[Any, Any]
#: Name of the mask that some spellings read, [B, N] of ones.
MASK = "mask"


@dataclass
class Writer:
    """Nodes that replace one mean over axis 1 of `x` [B, count, width].

    Attributes:
        image: name of the model's first input.
        inputs: graph inputs that are needed besides, by name.
    """

    x: str
    count: int
    width: int
    image: str
    scope: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    inputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self.scope}/{len(self.nodes)}_{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"{self.scope}/const_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.asarray(values), np.int64)

    def sum(self, x: str | None = None, axis: int = 1) -> str:
        """[B, 1, C]"""
        return self.op("ReduceSum", x or self.x, self.ints(axis), keepdims=1)

    def length(self, of: str | None = None, axis: int = 1) -> str:
        """The size of an axis as it is at run time, a scalar f32."""
        size = self.op("Gather", self.op("Shape", of or self.x), self.const(axis, np.int64))
        return self.op("Cast", size, to=TensorProto.FLOAT)

    def channels_first(self) -> str:
        """[B, C, N]"""
        return self.op("Transpose", self.x, perm=[0, 2, 1])

    def channels_last(self, x: str) -> str:
        return self.op("Transpose", x, perm=[0, 2, 1])

    def given(self, kind: int) -> str:
        """The mask, an input [B, N]."""
        self.inputs[MASK] = helper.make_tensor_value_info(MASK, kind, ["batch", self.count])
        return MASK


#: Writes the mean over axis 1 and returns its name, [B, 1, C].
Spelling = Callable[[Writer], str]


def sum_over_n(w: Writer) -> str:
    return w.op("Div", w.sum(), w.const(w.count))


def sum_times_inverse(w: Writer) -> str:
    return w.op("Mul", w.sum(), w.const(1 / w.count))


def inverse_first(w: Writer) -> str:
    return w.sum(w.op("Mul", w.x, w.const(1 / w.count)))


def divided_first(w: Writer) -> str:
    return w.sum(w.op("Div", w.x, w.const([w.count])))


def sum_over_shape(w: Writer) -> str:
    return w.op("Div", w.sum(), w.length())


def sum_over_sliced_shape(w: Writer) -> str:
    shape = w.op("Slice", w.op("Shape", w.x), w.ints(1), w.ints(2), w.ints(0))
    return w.op("Div", w.sum(), w.op("Cast", shape, to=TensorProto.FLOAT))


def sum_over_size(w: Writer) -> str:
    """N as elements over batch times channels."""
    size = w.op("Cast", w.op("Size", w.x), to=TensorProto.FLOAT)
    others = w.op("Mul", w.length(axis=0), w.length(axis=2))
    return w.op("Div", w.sum(), w.op("Div", size, others))


def sum_over_ones(w: Writer) -> str:
    """N as the sum of as many ones as there are elements."""
    ones = w.op("ConstantOfShape", w.op("Shape", w.x), value=_one())
    return w.op("Div", w.sum(), w.sum(ones))


def sum_over_expanded(w: Writer) -> str:
    """N as the sum of a one that was expanded."""
    ones = w.op("Expand", w.const([[[1.0]]]), w.op("Shape", w.x))
    return w.op("Div", w.sum(), w.sum(ones))


def ones_matmul(w: Writer) -> str:
    return w.op("Div", w.op("MatMul", w.const(np.ones((1, w.count))), w.x), w.const(w.count))


def averaging_matmul(w: Writer) -> str:
    return w.op("MatMul", w.const(np.full((1, 1, w.count), 1 / w.count)), w.x)


def matmul_from_the_right(w: Writer) -> str:
    weights = w.const(np.full((w.count, 1), 1 / w.count))
    return w.channels_last(w.op("MatMul", w.channels_first(), weights))


def matmul_with_a_vector(w: Writer) -> str:
    found = w.op("MatMul", w.const(np.ones(w.count)), w.x)
    return w.op("Unsqueeze", w.op("Div", found, w.const(w.count)), w.ints(1))


def einsum_over_n(w: Writer) -> str:
    found = w.op("Einsum", w.x, equation="bnc->bc")
    return w.op("Unsqueeze", w.op("Div", found, w.const(w.count)), w.ints(1))


def einsum_with_weights(w: Writer) -> str:
    weights = w.const(np.full(w.count, 1 / w.count))
    return w.op("Unsqueeze", w.op("Einsum", weights, w.x, equation="n,bnc->bc"), w.ints(1))


def einsum_with_ones(w: Writer) -> str:
    found = w.op("Einsum", w.x, w.const(np.ones(w.count)), equation="bnc,n->bc")
    return w.op("Unsqueeze", w.op("Mul", found, w.const(1 / w.count)), w.ints(1))


def grid_mean(w: Writer) -> str:
    """A mean over rows and columns, where the tokens are a square; else over all at once."""
    side = isqrt(w.count)
    rows = (side, side) if side * side == w.count else (1, w.count)
    grid = w.op("Reshape", w.x, w.ints(0, *rows, w.width))
    summed = w.op("ReduceSum", grid, w.ints(1, 2), keepdims=0)
    return w.op("Unsqueeze", w.op("Div", summed, w.const(w.count)), w.ints(1))


def pooled_sum(w: Writer) -> str:
    """A global average times N, over N: what a mean of a sum pool becomes."""
    mean = w.op("GlobalAveragePool", w.channels_first())
    total = w.op("Mul", mean, w.const(w.count))
    return w.channels_last(w.op("Div", total, w.const(w.count)))


def mask_constant(w: Writer) -> str:
    mask = w.const(np.ones((1, w.count, 1)))
    return w.op("Div", w.sum(w.op("Mul", w.x, mask)), w.sum(mask))


def mask_counted(w: Writer) -> str:
    """A stored mask of which the sum is stored, too."""
    mask = w.const(np.ones((1, w.count, 1)))
    return w.op("Div", w.sum(w.op("Mul", w.x, mask)), w.const([[[w.count]]]))


def mask_expanded(w: Writer) -> str:
    """As transformers writes it: a mask as wide as the features, and at least 1e-9 to divide by."""
    mask = w.op("Cast", w.const(np.ones((1, w.count)), np.int64), to=TensorProto.FLOAT)
    wide = w.op("Expand", w.op("Unsqueeze", mask, w.ints(2)), w.op("Shape", w.x))
    count = w.op("Clip", w.sum(wide), w.const(1e-9))
    return w.op("Div", w.sum(w.op("Mul", w.x, wide)), count)


def mask_given(w: Writer) -> str:
    mask = w.op("Unsqueeze", w.given(TensorProto.FLOAT), w.ints(2))
    return w.op("Div", w.sum(w.op("Mul", w.x, mask)), w.sum(mask))


def mask_of_integers(w: Writer) -> str:
    mask = w.op("Cast", w.given(TensorProto.INT64), to=TensorProto.FLOAT)
    wide = w.op("Unsqueeze", mask, w.ints(2))
    count = w.op("ReduceSum", mask, w.ints(1), keepdims=1)
    return w.op("Div", w.sum(w.op("Mul", w.x, wide)), w.op("Unsqueeze", count, w.ints(2)))


def mask_of_truths(w: Writer) -> str:
    """Where in place of a product, the count in integers."""
    mask = w.op("Unsqueeze", w.given(TensorProto.BOOL), w.ints(2))
    count = w.op("ReduceSum", w.op("Cast", mask, to=TensorProto.INT64), w.ints(1), keepdims=1)
    shown = w.op("Where", mask, w.x, w.const(0.0))
    return w.op("Div", w.sum(shown), w.op("Cast", count, to=TensorProto.FLOAT))


def mask_multiplied(w: Writer) -> str:
    """The mask as a row that multiplies: [B, 1, N] x [B, N, C]."""
    mask = w.op("Unsqueeze", w.given(TensorProto.FLOAT), w.ints(1))
    total = w.op("ReduceSum", mask, w.ints(2), keepdims=1)
    return w.op("Div", w.op("MatMul", mask, w.x), total)


def average_pool(w: Writer) -> str:
    found = w.op("AveragePool", w.channels_first(), kernel_shape=[w.count])
    return w.channels_last(found)


def depthwise_conv(w: Writer) -> str:
    kernel = w.const(np.full((w.width, 1, w.count), 1 / w.count))
    return w.channels_last(w.op("Conv", w.channels_first(), kernel, group=w.width))


def last_of_cumsum(w: Writer) -> str:
    total = w.op("CumSum", w.x, w.const(1, np.int64))
    last = w.op("Gather", total, w.ints(-1), axis=1)
    return w.op("Div", last, w.const(w.count))


MEANS: Mapping[str, Spelling] = {
    f.__name__: f
    for f in (
        sum_over_n,
        sum_times_inverse,
        inverse_first,
        divided_first,
        sum_over_shape,
        sum_over_sliced_shape,
        sum_over_size,
        sum_over_ones,
        sum_over_expanded,
        ones_matmul,
        averaging_matmul,
        matmul_from_the_right,
        matmul_with_a_vector,
        einsum_over_n,
        einsum_with_weights,
        einsum_with_ones,
        grid_mean,
        pooled_sum,
        mask_constant,
        mask_counted,
        mask_expanded,
        mask_given,
        mask_of_integers,
        mask_of_truths,
        mask_multiplied,
        average_pool,
        depthwise_conv,
        last_of_cumsum,
    )
}


# ---- a variance with N - 1: x are the squares, the result [B, 1, C] ------------------------------


def scaled_mean(w: Writer) -> str:
    """As PyTorch exports it."""
    mean = w.op("ReduceMean", w.x, axes=[1], keepdims=1)
    return w.op("Mul", mean, w.const(w.count / (w.count - 1)))


def scaled_twice(w: Writer) -> str:
    mean = w.op("ReduceMean", w.x, axes=[1], keepdims=1)
    return w.op("Div", w.op("Mul", mean, w.const(w.count)), w.const(w.count - 1))


def sum_over_n_less_one(w: Writer) -> str:
    return w.op("Div", w.sum(), w.const(w.count - 1))


def sum_over_shape_less_one(w: Writer) -> str:
    return w.op("Div", w.sum(), w.op("Sub", w.length(), w.const(1)))


def sum_over_difference(w: Writer) -> str:
    """N and 1 stored apart."""
    return w.op("Div", w.sum(), w.op("Sub", w.const(w.count), w.const(1)))


def ones_matmul_less_one(w: Writer) -> str:
    return w.op("MatMul", w.const(np.full((1, w.count), 1 / (w.count - 1))), w.x)


def length_over_root(w: Writer) -> str:
    """The length of the roots, over the root of N - 1, squared."""
    length = w.op("ReduceL2", w.op("Sqrt", w.x), axes=[1], keepdims=1)
    scaled = w.op("Div", length, w.const(np.sqrt(w.count - 1)))
    return w.op("Mul", scaled, scaled)


SPREADS: Mapping[str, Spelling] = {
    f.__name__: f
    for f in (
        scaled_mean,
        scaled_twice,
        sum_over_n_less_one,
        sum_over_shape_less_one,
        sum_over_difference,
        ones_matmul_less_one,
        length_over_root,
    )
}


# ---- in a model ----------------------------------------------------------------------------------


def respell(model: onnx.ModelProto, spelling: Spelling, *, spread: bool = False) -> onnx.ModelProto:
    """A copy of the model in which every mean over axis 1 of [B, N, C] is written otherwise.

    Args:
        spread: replace the product of such a mean and a constant instead, which is a variance.

    Raises ValueError where there is none.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    shapes = _shapes(copy)
    readers = {name: node for node in copy.graph.node for name in node.input}
    nodes: list[onnx.NodeProto] = []
    gone: list[str] = []
    done = 0
    for node in copy.graph.node:
        if node.name in gone:
            continue
        if not _averages(node, shapes) or (spread and readers[node.output[0]].op_type != "Mul"):
            nodes.append(node)
            continue
        end = node
        if spread:
            end = readers[node.output[0]]
            gone.append(end.name)
        _, count, width = shapes[node.input[0]]
        writer = Writer(node.input[0], count, width, copy.graph.input[0].name, f"respelled_{done}")
        found = spelling(writer)
        if not attribute_of(node, "keepdims", 1):
            found = writer.op("Squeeze", found, writer.ints(1))
        writer.nodes[-1].output[0] = end.output[0]
        nodes += writer.nodes
        copy.graph.initializer.extend(writer.stored)
        here = {info.name for info in copy.graph.input}
        for name, info in writer.inputs.items():
            if name not in here:
                dim = info.type.tensor_type.shape.dim[0]
                dim.CopyFrom(copy.graph.input[0].type.tensor_type.shape.dim[0])
                copy.graph.input.append(info)
        done += 1
    if not done:
        raise ValueError("no mean over tokens to write otherwise")
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    onnx.checker.check_model(copy, full_check=True)
    return copy


def _averages(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> bool:
    axes = list(attribute_of(node, "axes", []))
    return node.op_type == "ReduceMean" and axes == [1] and len(shapes.get(node.input[0], ())) == 3


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in (*inferred.graph.value_info, *inferred.graph.output)
    }


def _one() -> onnx.TensorProto:
    return helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
