"""Changes that mix tokens, or look like it."""

from __future__ import annotations

from math import prod

import numpy as np

from tests.support.fuzz_draft import Draft


def permute_axis(d: Draft) -> str | None:
    """Roll, reverse, shuffle or repeat positions along an axis."""
    edge = d.edge(rank=2)
    if edge is None:
        return None
    axis = d.rng.randrange(len(edge[2]))
    size = edge[2][axis]
    if size < 2:
        return None
    order = list(range(size))
    how = d.rng.choice(["roll", "reverse", "shuffle", "repeat", "identity"])
    if how == "roll":
        order = order[1:] + order[:1]
    elif how == "reverse":
        order.reverse()
    elif how == "shuffle":
        d.rng.shuffle(order)
    elif how == "repeat":
        order = [d.rng.choice(order) for _ in order]
    if how == "reverse" and d.rng.random() < 0.5:
        ends = [d.constant(np.array([v])) for v in (-1, -(1 << 40), axis, -1)]
        d.insert(edge, d.make("Slice", "@", *ends))
    else:
        d.insert(edge, d.make("Gather", "@", d.constant(np.array(order)), axis=axis))
    return f"{edge[0].op_type} {edge[0].name}: {how} axis {axis}"


def add_table(d: Draft) -> str | None:
    """A constant with its own value at every position, added or multiplied."""
    edge = d.edge(rank=2)
    if edge is None or not prod(edge[2][1:]):
        return None
    dims = [1, *edge[2][1:]]
    for axis in range(1, len(dims)):
        if d.rng.random() < 0.3:
            dims[axis] = 1
    d.insert(edge, d.make(d.rng.choice(["Add", "Mul", "Sub"]), "@", d.floats(*dims)))
    return f"{edge[0].op_type} {edge[0].name}: {dims}"


def mix_axis(d: Draft) -> str | None:
    """Something that lets positions along an axis see each other."""
    edge = d.edge(rank=3)
    if edge is None:
        return None
    rank, rng = len(edge[2]), d.rng
    axis = rng.randrange(1, rank)
    how = rng.choice(
        ["softmax", "cumsum", "mean", "max", "norm", "matmul", "conv", "instance", "l2"]
    )
    if how == "softmax":
        d.insert(edge, d.make("Softmax", "@", axis=axis))
    elif how == "cumsum":
        d.insert(edge, d.make("CumSum", "@", d.constant(np.array(axis))))
    elif how in ("mean", "max"):
        op = "ReduceMean" if how == "mean" else "ReduceMax"
        if d.opset >= 18:
            pooled = d.make(op, "@", d.constant(np.array([axis])), keepdims=1)
        else:
            pooled = d.make(op, "@", axes=[axis], keepdims=1)
        d.insert(edge, pooled, d.make(rng.choice(["Add", "Sub"]), "@", pooled.output[0]))
    elif how == "norm":
        if not prod(edge[2][axis:]):
            return None
        d.insert(edge, d.make("LayerNormalization", "@", d.floats(*edge[2][axis:]), axis=axis))
    elif how == "l2":
        d.insert(edge, d.make("LpNormalization", "@", axis=axis, p=2))
    elif how == "matmul":
        size = edge[2][-2]
        if not size:
            return None
        d.insert(edge, d.make("MatMul", d.floats(size, size), "@"))
    elif how == "conv":
        size = edge[2][1]
        if rank != 3 or not size:
            return None
        weight = d.floats(size, 1, 3)
        d.insert(edge, d.make("Conv", "@", weight, group=size, kernel_shape=[3], pads=[1, 1]))
    else:
        size = edge[2][1]
        if not size:
            return None
        d.insert(edge, d.make("InstanceNormalization", "@", d.floats(size), d.floats(size)))
    return f"{edge[0].op_type} {edge[0].name}: {how} axis {axis}"


def cut_axis(d: Draft) -> str | None:
    """Leave positions out and pad them again, or hide some under zeros."""
    edge = d.edge(rank=2)
    if edge is None:
        return None
    axis = d.rng.randrange(len(edge[2]))
    size = edge[2][axis]
    if size < 3:
        return None
    at = d.rng.randrange(1, size)
    bounds = [d.constant(np.array([v])) for v in (0, at, axis)]
    if d.rng.random() < 0.5:
        one = d.make("Slice", "@", *bounds)
        rest = [d.constant(np.array([v])) for v in (at, 1 << 60, axis)]
        two = d.make("Slice", "@", *rest)
        parts = [one.output[0], two.output[0]]
        if d.rng.random() < 0.5:
            parts.reverse()
        d.insert(edge, one, two, d.make("Concat", *parts, axis=axis))
        return f"{edge[0].op_type} {edge[0].name}: cut and joined at {at}, axis {axis}"
    pads = [0] * (2 * len(edge[2]))
    pads[len(edge[2]) + axis] = size - at
    cut = d.make("Slice", "@", *bounds)
    d.insert(edge, cut, d.make("Pad", cut.output[0], d.constant(np.array(pads))))
    return f"{edge[0].op_type} {edge[0].name}: zeros from {at}, axis {axis}"


def regroup(d: Draft) -> str | None:
    """Views that keep the data: split an axis and join it again, or turn and turn back."""
    edge = d.edge(rank=2)
    if edge is None or edge[2].count(0) > 1:
        return None
    dims = [v or -1 for v in edge[2]]
    rank = len(dims)
    if d.rng.random() < 0.5:
        perm = d.rng.sample(range(rank), rank)
        there = d.make("Transpose", "@", perm=perm)
        back = perm if d.rng.random() < 0.2 else [perm.index(i) for i in range(rank)]
        d.insert(edge, there, d.make("Transpose", there.output[0], perm=back))
        return f"{edge[0].op_type} {edge[0].name}: turned by {perm}"
    axis = d.rng.randrange(rank)
    if dims[axis] < 4:
        return None
    factor = next((f for f in (2, 3, 5, 7) if dims[axis] % f == 0), dims[axis])
    split = [*dims[:axis], factor, dims[axis] // factor, *dims[axis + 1 :]]
    there = d.make("Reshape", "@", d.constant(np.array(split)))
    links = [there]
    if d.rng.random() < 0.4:  # and the order changes: windows, or a bug
        perm = list(range(rank + 1))
        perm[axis], perm[axis + 1] = perm[axis + 1], perm[axis]
        links.append(d.make("Transpose", there.output[0], perm=perm))
    links.append(d.make("Reshape", links[-1].output[0], d.constant(np.array(dims))))
    d.insert(edge, *links)
    return f"{edge[0].op_type} {edge[0].name}: through {split}"


TOKENS = (permute_axis, add_table, mix_axis, cut_axis, regroup)
