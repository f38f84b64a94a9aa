"""Effect rules: the edits of a node once its inputs carry fewer tokens, one short rule an op kind.

Each takes (walk, node) and returns edits, or raises `BarrierError` where tokens may not have left.
`joins` holds for every op: operands that meet along the token axis, side inputs and tensors that
still have every token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import onnx_graphsurgeon as gs

from tcompile.analysis import transfer as tf
from tcompile.analysis.count_state import uniform
from tcompile.analysis.effect_state import BarrierError, Walk
from tcompile.analysis.effects import (
    Bias,
    Edit,
    Pool,
    Reorder,
    SetGather,
    SetShape,
    SetSlice,
    SetSplit,
    Trim,
)
from tcompile.analysis.shares import shares_in
from tcompile.analysis.token_dims import Dim, Run, is_rest
from tcompile.analysis.transfer_grid import pad_bounds
from tcompile.core.graph import attr, is_const, reduced_axes, shape, value

NOT_KNOWN = "is not an op that tcompile knows how to carry tokens through"

EffectRule: TypeAlias = Callable[[Walk, gs.Node], list[Edit]]


def nothing(walk: Walk, node: gs.Node) -> list[Edit]:
    """Every token is treated alike: shapes follow by themselves."""
    return []


def unsupported(walk: Walk, node: gs.Node) -> list[Edit]:
    """An op that reads shapes: of tokens it would give another number."""
    raise BarrierError(NOT_KNOWN)


def set_shape(walk: Walk, node: gs.Node) -> list[Edit]:
    return [SetShape(tuple(d for d in walk.dims(node.outputs[0]) if d is not None))]


def tile(walk: Walk, node: gs.Node) -> list[Edit]:
    for before, after in zip(walk.dims(node.inputs[0]), walk.dims(node.outputs[0]), strict=True):
        if walk.has_patches(before) and before != after:
            raise BarrierError("repeats tokens")
    return []


def slice_(walk: Walk, node: gs.Node) -> list[Edit]:
    edits: list[Edit] = []
    source, out = node.inputs[0], node.outputs[0]
    for axis, (_, _, step) in (tf.slice_bounds(node) or {}).items():
        whole = walk.run(source, axis)
        # A Slice may take every position of the axis, of a grid as well.
        if whole is None or (step == 1 and shape(source)[axis] == shape(out)[axis]):
            continue
        dim, part = walk.dims(source)[axis], walk.dims(out)[axis]
        among = dim is not None and dim.others != (0, 0)
        if among and dim is not None and part == replace(dim, others=(0, 0)) and step == 1:
            edits.append(SetSlice(axis, whole, whole, dim.others))
            continue
        _needs_plain(walk, node, axis)
        if step != 1 or part is None or part.run is None or dim is None or dim.batch:
            raise BarrierError("takes particular patch tokens")
        edits.append(SetSlice(axis, whole, part.run))
    return edits


def _needs_plain(walk: Walk, node: gs.Node, axis: int) -> None:
    """The axis by itself holds every token of its run, one position each."""
    dims = walk.dims(node.inputs[0])
    dim = dims[axis]
    spread = axis + 1 < len(dims) and is_rest(dims[axis + 1])
    if dim is not None and dim.others != (0, 0):
        raise BarrierError("takes keys among which there are others than tokens")
    if dim is not None and dim.order:
        raise BarrierError("picks among tokens that are in another order")
    if dim is None or dim.part != "tokens" or spread:
        raise BarrierError("takes rows or columns of the grid of tokens")
    if dim.batch or dim.factor != 1:
        raise BarrierError("picks among tokens that are merged with another axis")


def split(walk: Walk, node: gs.Node) -> list[Edit]:
    axis = int(attr(node, "axis", 0)) % len(node.inputs[0].shape)
    whole = walk.run(node.inputs[0], axis)
    if whole is None:
        return []
    dim = walk.dims(node.inputs[0])[axis]
    if dim is not None and dim.others != (0, 0):
        return [_cut_off(walk, node, axis, dim)]
    _needs_plain(walk, node, axis)
    runs = [walk.dims(t)[axis] for t in node.outputs]
    parts = tuple(d.run for d in runs if d is not None and d.run is not None)
    if len(parts) != len(runs):
        raise BarrierError("takes particular patch tokens")
    return [SetSplit(parts)]


def _cut_off(walk: Walk, node: gs.Node, axis: int, dim: Dim) -> SetSplit:
    """Split what stands beside the tokens from them: `parts` is as many, or a run."""
    parts: list[Run | int] = []
    for out in node.outputs:
        part = walk.dims(out)[axis]
        if part is None or (part.run is not None and part.others != (0, 0)):
            raise BarrierError("takes some of the keys among which there are tokens")
        parts.append(part.run if walk.has_patches(part) and part.run else shape(out)[axis])
    if dim.run not in parts:
        raise BarrierError("takes particular patch tokens")
    return SetSplit(tuple(parts))


def gather(walk: Walk, node: gs.Node) -> list[Edit]:
    source, index, space = node.inputs[0], node.inputs[1], walk.space
    axis = int(attr(node, "axis", 0)) % len(source.shape)
    whole = walk.run(source, axis)
    if whole is None:
        return []
    order = space.orders.get(walk.facts.of(node.outputs[0])[axis])
    before = walk.dims(source)[axis]
    if order is not None and before is not None and before.order == "":
        if (before.part == "groups") != order.groups:
            raise BarrierError("puts tokens in another order than their groups'")
        return [Reorder(axis, order, whole)]
    _needs_plain(walk, node, axis)
    if not is_const(index) or len(index.shape) > 1:
        raise BarrierError("picks tokens by computed indices")
    if len(index.shape) == 1:
        part = walk.dims(node.outputs[0])[axis]
        if part is not None and part.run is not None and part.has_patches(space):
            return [SetGather(whole, part.run, ())]
    total = shape(source)[axis]
    positions = tuple(int(v) % total for v in value(index).reshape(-1))
    low = Run(whole.first, space.patch).size(space, 0)
    if any(low <= p < low + space.patches for p in positions):
        raise BarrierError("takes particular patch tokens")
    return [SetGather(whole, None, positions)]


def picks(walk: Walk, node: gs.Node) -> list[Edit]:
    """TopK among features leaves tokens as they are; all else picks tokens, or writes to them."""
    if node.op == "TopK":
        axis = int(attr(node, "axis", -1)) % len(node.inputs[0].shape)
        if walk.run(node.inputs[0], axis) is None:
            return []
        count, left = shape(node.inputs[0])[axis], shape(node.outputs[0])[axis]
        if left < count:
            raise BarrierError(
                f"keeps {left} of {count} tokens: from there on the model has dropped some itself"
            )
        raise BarrierError("puts tokens in the order of their values")
    what = "writes to tokens" if node.op.startswith("Scatter") else "picks tokens"
    raise BarrierError(f"{what} by computed indices")


def reduce(walk: Walk, node: gs.Node) -> list[Edit]:
    rank = len(node.inputs[0].shape)
    if node.op.startswith("Arg"):
        axes = [int(attr(node, "axis", 0)) % rank]
    else:
        axes = list(range(2, rank)) if node.op.startswith("Global") else reduced_axes(node)
    pooled = [a for a in axes if walk.run(node.inputs[0], a)]
    if not pooled:
        return []
    run = walk.run(node.inputs[0], pooled[0])
    _only_tokens(walk, node.inputs[0], pooled[0])
    if node.op in ("ReduceMax", "ReduceMin") and _of_shares(walk, node.inputs[0]):
        walk.no_merge(node, "takes an extreme of shares, which are larger for a merged token")
    if pooled != [i for i in range(rank) if walk.run(node.inputs[0], i)]:
        return _of_a_map(walk, node, pooled)
    _pools_all(walk, node, pooled)
    if node.op in ("ReduceMax", "ReduceMin", "GlobalMaxPool"):
        return []
    if node.op not in ("ReduceMean", "ReduceSum", "GlobalAveragePool") or run is None:
        raise BarrierError("is not meaningful on fewer tokens")
    if any(a not in pooled and shape(node.inputs[0])[a] > 1 for a in axes):
        walk.no_merge(node, "pools tokens together with another axis")
    return [_pool(walk, node, pooled[0], run)]


def _pool(walk: Walk, node: gs.Node, axis: int, run: Run, operand: int = 0) -> Pool:
    """The tokens are weighed by size after merging, where the axis is theirs alone."""
    dim = walk.dims(node.inputs[operand])[axis]
    if dim is not None and (dim.batch or dim.factor != 1):
        walk.no_merge(node, "pools tokens that are merged with another axis")
    return Pool(axis, run, operand)


def _of_a_map(walk: Walk, node: gs.Node, pooled: list[int]) -> list[Edit]:
    """A map of queries and keys, each a token axis of its own, taken together along one of them."""
    dims = walk.dims(node.inputs[0])
    held = [d for d in dims if walk.has_patches(d)]
    whole = all(d is not None and d.part == "tokens" and not d.order for d in held)
    known = ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceL1")
    if len(pooled) != 1 or not whole or node.op not in known:
        raise BarrierError("reduces rows or columns of the grid of tokens")
    if node.op not in known[:2]:
        walk.no_merge(node, "takes a map of queries and keys together along one of them")
    return []


def _of_shares(walk: Walk, tensor: gs.Tensor) -> bool:
    """Tell whether a tensor follows from the probabilities of a softmax over tokens."""
    return tensor.name in shares_in(tensor, walk.facts).names


def _only_tokens(walk: Walk, tensor: gs.Tensor, axis: int) -> None:
    """What is taken over tokens is not taken over learned keys and sinks besides."""
    dim = walk.dims(tensor)[axis]
    if dim is not None and dim.others != (0, 0):
        raise BarrierError("takes tokens together with learned keys or sinks")


def _pools_all(walk: Walk, node: gs.Node, pooled: list[int]) -> None:
    """Pooling groups must not keep their members apart: that would be a grid of its own."""
    dim = walk.dims(node.inputs[0])[pooled[0]]
    grouping = walk.space.grouping
    if dim is None or dim.part != "groups" or grouping is None:
        return
    for axis in walk.facts.of(node.inputs[0]):
        if axis and all(d in grouping.inner for d in axis):
            raise BarrierError("pools groups of tokens, their members apart")


def softmax(walk: Walk, node: gs.Node) -> list[Edit]:
    axis = int(attr(node, "axis", -1)) % len(node.inputs[0].shape)
    return _over_keys(walk, node, walk.run(node.inputs[0], axis))


def attention(walk: Walk, node: gs.Node) -> list[Edit]:
    keys, values = node.inputs[1:3]
    if walk.stage(keys) != walk.stage(values):
        raise BarrierError("has keys and values with different tokens")
    return _over_keys(walk, node, walk.run(keys, -2))


def _over_keys(walk: Walk, node: gs.Node, keys: Run | None) -> list[Edit]:
    if keys is None:
        return []
    core = walk.attentions.get(node.name)
    if core is None:
        walk.no_merge(node, "runs over tokens but is not an attention that tcompile recognises")
        return []
    if core.unweighed:
        walk.no_merge(node, f"cannot weigh merged tokens: {core.unweighed}")
        return []
    return [Bias(core)]


def contract(walk: Walk, node: gs.Node) -> list[Edit]:
    i, j = tf.contracted(node)
    places = [(0, i % len(node.inputs[0].shape)), (1, j % len(node.inputs[1].shape))]
    return _sum_along(walk, node, places)


def einsum(walk: Walk, node: gs.Node) -> list[Edit]:
    edits: list[Edit] = []
    terms, out = tf.einsum_terms(node)
    for letter in sorted(set("".join(terms)) - set(out)):
        places = [(k, term.index(letter)) for k, term in enumerate(terms) if letter in term]
        edits += _sum_along(walk, node, places)
    return edits


def _sum_along(walk: Walk, node: gs.Node, places: list[tuple[int, int]]) -> list[Edit]:
    """The operands' axes that a product sums along together: (operand, axis) each."""
    held = [(k, axis) for k, axis in places if walk.run(node.inputs[k], axis) is not None]
    if not held:
        return []
    first, axis = held[0]
    dim = walk.dims(node.inputs[first])[axis]
    core = next((a for a in walk.attentions.values() if a.mix == node.name), None)
    if core is None:
        _only_tokens(walk, node.inputs[first], axis)
    alike = [
        (k, i) for k, i in places if (k, i) not in held and uniform(node.inputs[k]) is not None
    ]
    if alike and len(held) == 1 and dim is not None and dim.run is not None:
        # A matrix of ones is a sum, one of 1/N a mean.
        if dim.batch or dim.factor != 1 or dim.part == "rest":
            raise BarrierError("sums over tokens merged with another axis")
        trims: list[Edit] = [Trim(k, i, dim) for k, i in alike]
        return [*trims, _pool(walk, node, axis, dim.run, first)]
    if len(held) == 1 and len(places) == 1 and dim is not None and dim.run is not None:
        return [_pool(walk, node, axis, dim.run, first)]
    beside = [k for k, _ in held if walk.beside(node.inputs[k])]
    if len(held) == 2 and len(beside) == 1 and dim is not None and dim.run is not None:
        # A mask as a row that multiplies tokens; the other operand is the tokens.
        operand, along = next(h for h in held if h[0] not in beside)
        return [_pool(walk, node, along, dim.run, operand)]
    others = [walk.dims(node.inputs[k])[i] for k, i in held[1:]]
    if (
        len(held) < len(places)
        or any(o is None or dim is None or _held(o) != _held(dim) for o in others)
        or len({walk.stage(node.inputs[k]) for k, _ in held}) > 1
    ):
        raise BarrierError("mixes tokens with a tensor that has other tokens")
    if core is None:
        walk.no_merge(node, "sums over tokens outside an attention that tcompile recognises")
    elif core.form == "sum":
        walk.no_merge(node, f"cannot weigh merged tokens: {core.unweighed}")
    return []


def _held(dim: Dim) -> tuple[object, ...]:
    """What a dim holds along its tokens."""
    return dim.run, dim.order, dim.part, dim.others


def cumsum(walk: Walk, node: gs.Node) -> list[Edit]:
    raise BarrierError("accumulates over tokens")


def normalise(walk: Walk, node: gs.Node) -> list[Edit]:
    rank = len(node.inputs[0].shape)
    for axis in range(int(attr(node, "axis", -1)) % rank, rank):
        if walk.run(node.inputs[0], axis):
            raise BarrierError("normalises over tokens")
    return []


def along(walk: Walk, node: gs.Node) -> list[Edit]:
    if walk.run(node.inputs[0], int(attr(node, "axis", -1))):
        raise BarrierError("normalises over tokens")
    return []


def channelwise(walk: Walk, node: gs.Node) -> list[Edit]:
    if node.op != "BatchNormalization" or walk.run(node.inputs[0], 1):
        raise BarrierError("normalises over tokens")
    return []


def pad(walk: Walk, node: gs.Node) -> list[Edit]:
    """Keys of one value beside the tokens; whatever else tokens are padded with is a grid's."""
    bounds = pad_bounds(node)
    for axis, dim in enumerate(walk.dims(node.outputs[0])):
        if walk.run(node.inputs[0], axis) is None or (bounds and bounds[axis] == (0, 0)):
            continue
        others = dim.others if dim is not None and walk.has_patches(dim) else (0, 0)
        if attr(node, "mode", "constant") != "constant" or not bounds or bounds[axis] != others:
            raise BarrierError("needs the grid of tokens")
    return []


def grid(walk: Walk, node: gs.Node) -> list[Edit]:
    if any(walk.run(node.inputs[0], a) for a in range(len(node.inputs[0].shape))):
        raise BarrierError("needs the grid of tokens")
    return []


def spatial(walk: Walk, node: gs.Node) -> list[Edit]:
    runs = [walk.run(node.inputs[0], a) for a in range(len(node.inputs[0].shape))]
    if not any(runs):
        return []
    if node.op.startswith("Global") and not runs[1]:
        return reduce(walk, node)
    kept = walk.dims(node.inputs[0])[2:] == walk.dims(node.outputs[0])[2:]
    if node.op != "Conv" or runs[1] or not kept:
        raise BarrierError("needs the neighbourhood of each token")
    return []
