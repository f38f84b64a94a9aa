"""Changes that break a model, or change what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tcompile.models.preprocess import PREPROCESS_KEY
from tests.support.bombs import BOMBS
from tests.support.fuzz_draft import Draft


def delete_node(d: Draft) -> str | None:
    node = d.node()
    if node is None:
        return None
    shape = d.shapes.get(node.output[0]) if node.output else None
    same = [i for i in node.input if shape is not None and d.shapes.get(i) == shape]
    d.graph.node.remove(node)
    if same:
        for other in d.graph.node:
            for i, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[i] = same[0]
    return f"{node.op_type} {node.name}"


def rewire(d: Draft) -> str | None:
    """Let an input read another tensor of the same shape (or of any, now and then)."""
    edge = d.edge()
    if edge is None:
        return None
    node, position, _ = edge
    shape = d.shapes[node.input[position]]
    loose = d.rng.random() < 0.1
    names = [n for n, s in d.shapes.items() if n != node.input[position] and (loose or s == shape)]
    if not names:
        return None
    old, node.input[position] = node.input[position], d.rng.choice(names)
    return f"{node.op_type} {node.name}: {old} -> {node.input[position]}"


def swap_inputs(d: Draft) -> str | None:
    node = d.node()
    if node is None or len(node.input) < 2:
        return None
    i, j = d.rng.sample(range(len(node.input)), 2)
    node.input[i], node.input[j] = node.input[j], node.input[i]
    return f"{node.op_type} {node.name}: {i} and {j}"


def change_attribute(d: Draft) -> str | None:
    found = [n for n in d.graph.node if n.attribute and n.op_type != "Constant"]
    if not found:
        return None
    node = d.rng.choice(found)
    attribute = d.rng.choice(list(node.attribute))
    value = helper.get_attribute_value(attribute)
    changed: Any
    if isinstance(value, int):
        changed = d.rng.choice([value + 1, value - 1, 0, 1, -1, 2, 7])
    elif isinstance(value, float):
        changed = d.rng.choice([0.0, -value, value * 2, 1e30, float("nan")])
    elif isinstance(value, list) and value and isinstance(value[0], int):
        changed = d.rng.choice(
            [
                value[::-1],
                d.rng.sample(value, len(value)),
                value[:-1],
                [*value, 1],
                [v + 1 for v in value],
            ]
        )
    elif isinstance(value, bytes):
        changed = d.rng.choice([b"", value[::-1], b"VALID", b"\xff\xfe"])
    else:
        return None
    name = attribute.name
    node.attribute.remove(attribute)
    if changed != [] and d.rng.random() < 0.9:
        node.attribute.append(helper.make_attribute(name, changed))
    return f"{node.op_type} {node.name}.{name}: {value!r} -> {changed!r}"


def change_integers(d: Draft) -> str | None:
    """One number of a constant of int64: a target shape, a bound, an axis."""
    holders = [t for t in d.graph.initializer if t.data_type == TensorProto.INT64]
    for node in d.graph.node:
        if node.op_type == "Constant":
            holders += [
                a.t
                for a in node.attribute
                if a.HasField("t") and a.t.data_type == TensorProto.INT64
            ]
    holders = [t for t in holders if prod(t.dims) > 0]
    if not holders:
        return None
    tensor = d.rng.choice(holders)
    value = numpy_helper.to_array(tensor).copy()
    where = d.rng.randrange(value.size)
    old = int(value.flat[where])
    value.flat[where] = d.rng.choice(
        [old + 1, old - 1, -old, 0, 1, -1, old * 2, 1 << 62, -(1 << 62)]
    )
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return f"{tensor.name}[{where}]: {old} -> {value.flat[where]}"


def change_weight(d: Draft) -> str | None:
    """An initializer of another shape or type, or with odd values in it."""
    if not d.graph.initializer:
        return None
    tensor = d.rng.choice(list(d.graph.initializer))
    if prod(tensor.dims) > 1 << 20:
        return None  # it says that it has more than it holds
    value = numpy_helper.to_array(tensor)
    how = d.rng.choice(["flat", "extra", "short", "double", "half", "int", "nan", "zero", "turn"])
    if how == "flat":
        value = value.reshape(-1)
    elif how == "extra":
        value = value[None]
    elif how == "short":
        value = value[: max(1, len(value) - 1)] if value.ndim else value
    elif how == "turn":
        value = value.T
    elif how == "nan":
        value = np.full_like(value, np.nan) if value.dtype.kind == "f" else value * 0
    elif how == "zero":
        value = value * 0
    else:
        kinds = {"double": np.float64, "half": np.float16, "int": np.int32}
        value = value.astype(kinds[how])
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    return f"{tensor.name} {how}"


def replace_op(d: Draft) -> str | None:
    groups: Sequence[Sequence[str]] = (
        ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Mean", "Sum"),
        ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "Identity", "Relu", "CumSum"),
        ("Erf", "Tanh", "Sigmoid", "Relu", "Neg", "Sqrt", "Not", "Shape", "NonZero", "Softplus"),
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ArgMax", "ReduceProd"),
        ("Reshape", "Expand", "Tile", "Unsqueeze", "Squeeze", "Flatten"),
        ("Gather", "GatherElements", "GatherND", "Scatter"),
        ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "NoSuchOperator"),
    )
    group = d.rng.choice(groups)
    node = d.node(*group)
    if node is None:
        return None
    old, node.op_type = node.op_type, d.rng.choice(group)
    return f"{old} {node.name} -> {node.op_type}"


def cut_off(d: Draft) -> str | None:
    """Half an export: the last nodes are gone, something in the middle is the output."""
    keep = d.rng.randrange(1, len(d.graph.node) + 1)
    del d.graph.node[keep:]
    last = d.graph.node[-1].output[0] if d.graph.node[-1].output else ""
    if d.rng.random() < 0.8:
        del d.graph.output[:]
        d.graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, None))
    return f"after {keep} nodes"


def lose_input(d: Draft) -> str | None:
    node = d.node()
    if node is None or not node.input:
        return None
    i = d.rng.randrange(len(node.input))
    if d.rng.random() < 0.5:
        node.input[i] = d.rng.choice(["", "no_such_tensor", node.output[0] if node.output else ""])
    else:
        del node.input[i]
    while node.input and not node.input[-1]:  # ONNX Runtime ends the process at some of these
        del node.input[-1]
    return f"{node.op_type} {node.name}: {i}"


def ask_for_much(d: Draft) -> str | None:
    """A few bytes that stand for more memory or time than there is."""
    change, _ = d.rng.choice(BOMBS)
    try:
        change(d.model)
    except StopIteration:  # no node of the op that it goes to
        return None
    return change.__name__


def odd_record(d: Draft) -> str | None:
    """What the file records of how images are prepared is no such record."""
    text = d.rng.choice(
        [
            "[" * 5_000,
            "9" * 5_000,
            '{"size": [0, -1]}',
            '{"size": [1e400, NaN]}',
            '{"labels": 7}',
            "\x00",
            '{"size": [8, 8], "mean": [], "std": {}}',
        ]
    )
    helper.set_model_props(d.model, {PREPROCESS_KEY: text})
    return text[:20]


DAMAGE = (
    delete_node,
    rewire,
    swap_inputs,
    change_attribute,
    change_integers,
    change_weight,
    replace_op,
    cut_off,
    lose_input,
    ask_for_much,
    odd_record,
)
