"""Transfer functions of ops that look at the grid: convolution, pooling, padding, blocks."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import ONE, Axis
from tcompile.analysis.facts import Facts, Result
from tcompile.core.graph import attr, ints, is_const, shape


def spatial(node: gs.Node, facts: Facts) -> Result:
    """Convolution, pooling, resizing: new positions; a 1×1 convolution keeps them, and pooling of
    tiles that do not overlap has one position for each tile."""
    source, out = facts.of(node.inputs[0]), shape(node.outputs[0])
    name = node.outputs[0].name
    keeps = node.op == "Conv" and _pointwise(node)
    channels = source[1] if node.op != "Conv" else ax.new(f"{name}/1", out[1], "untracked")
    if ax.size(channels) != out[1]:
        return None
    tiles = tiled_pool(node)
    positions: list[Axis] = []
    for i in range(2, len(out)):
        known = source[i] if keeps else None
        if tiles is not None:
            known = ax.coarse(source[i], tiles[i - 2])
        positions.append(ax.new(f"{name}/{i}", out[i], "data") if known is None else known)
    return [(source[0], channels, *positions)]


def tiled_pool(node: gs.Node) -> tuple[int, ...] | None:
    """The sides of the tiles of a pool whose tiles neither overlap nor leave gaps; else None."""
    if node.op not in ("AveragePool", "MaxPool") or len(node.outputs) != 1:
        return None
    kernel = tuple(int(k) for k in attr(node, "kernel_shape", ()))
    strides = tuple(int(s) for s in attr(node, "strides", (1,) * len(kernel)))
    plain = not any(attr(node, "pads", [0])) and attr(node, "auto_pad", "NOTSET") == "NOTSET"
    plain = plain and all(d == 1 for d in attr(node, "dilations", [1]))
    sides = shape(node.inputs[0])[2:]
    fits = all(n % k == 0 for n, k in zip(sides, kernel, strict=True))
    return kernel if kernel == strides and plain and fits else None


def pad(node: gs.Node, facts: Facts) -> Result:
    """Padding joins fixed positions before and after an axis; cropping slices it."""
    source = facts.of(node.inputs[0])
    bounds = pad_bounds(node)
    if bounds is None:
        return None
    found: list[Axis] = []
    for i, (axis, (before, after)) in enumerate(zip(source, bounds, strict=True)):
        length = ax.size(axis)
        kept = ax.sliced(axis, max(0, -before), length - max(0, -after))
        name = f"{node.outputs[0].name}/{i}"
        if not ax.tracked(axis):
            kept = (
                kept
                if ax.size(kept) == length + before + after
                else ax.new(name, length + before + after, "untracked")
            )
        elif before > 0 or after > 0:
            parts = [
                ax.new(f"{name}/pad{n}", n, "fixed") if n > 0 else ONE for n in (before, after)
            ]
            pieces = [p for part in (parts[0], kept, parts[1]) if part for p in ax.pieces(part)]
            kept = ax.from_pieces(pieces)
        found.append(kept)
    return [tuple(found)]


def pad_bounds(node: gs.Node) -> list[tuple[int, int]] | None:
    """(before, after) of each axis of a Pad by constants; None where they are computed."""
    rank = len(node.inputs[0].shape)
    if len(node.inputs) < 2 or not is_const(node.inputs[1]):
        return None
    pads = ints(node.inputs[1])
    axes = list(range(rank))
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        if not is_const(node.inputs[3]):
            return None
        axes = [a % rank for a in ints(node.inputs[3])]
    found = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        found[axis] = (pads[i], pads[i + len(axes)])
    return found


def blocks_to_depth(node: gs.Node, facts: Facts) -> Result:
    """SpaceToDepth and DepthToSpace: b×b neighbours move between the grid and the channels."""
    source, b = facts.of(node.inputs[0]), int(attr(node, "blocksize"))
    n, c, h, w = shape(node.inputs[0])
    if node.op == "SpaceToDepth":
        split, perm = [n, c, h // b, b, w // b, b], (0, 3, 5, 1, 2, 4)
    elif attr(node, "mode", "DCR") == "DCR":
        split, perm = [n, b, b, c // (b * b), h, w], (0, 3, 4, 1, 5, 2)
    else:
        split, perm = [n, c // (b * b), b, b, h, w], (0, 1, 4, 2, 5, 3)
    parts = ax.regroup(source, split)
    if parts is None:
        return None
    joined = ax.regroup([parts[p] for p in perm], shape(node.outputs[0]))
    return None if joined is None else [joined]


def _pointwise(node: gs.Node) -> bool:
    kernel = shape(node.inputs[1])[2:]
    flat = all(k == 1 for k in kernel) and all(s == 1 for s in attr(node, "strides", [1]))
    return flat and not any(attr(node, "pads", [0]))
