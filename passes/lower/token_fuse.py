"""Nodes around token ops that a plugin does in the same pass, as calls of the ops that do so.

Native graphs are left alone: there these are views and small kernels that a compiler fuses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.domain import DOMAIN
from tcompile.core.graph import ints, is_const, producer, value
from tcompile.plugins.ops import add_functions


def fuse_calls(graph: gs.Graph) -> int:
    """Rewrite in place; returns how many calls are new. Bodies that nothing calls any more stay.

    - [prefix | patches at TcTopKTokens' index] is `TcSelectTokens`, whose `rows` take the whole
      stream apart in one gather: no slices, no joining.
    - The largest of cosines, a product of unit vectors and TopK of 1, is `TcPartnerTokens`: no
      matrix of cosines in memory.
    - Means over tokens that merge: see `combine`.
    """
    found = 0
    for node in list(graph.nodes):
        if node.op == "Concat" and not node.domain:
            found += _select(node)
        elif node.op == "TopK" and not node.domain:
            found += _partner(node, graph.outputs)
        elif node.op == "Div" and not node.domain:
            found += combine(graph, node)
    if found:
        graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
        graph.toposort(recurse_subgraphs=False, recurse_functions=False, mode="nodes")
        add_functions(graph)
    return found


def _select(node: gs.Node) -> int:
    """`node` joins a prefix and chosen patches of one stream."""
    if node.attrs.get("axis") != 1 or len(node.inputs) != 2:
        return 0
    head, gather = (producer(t) for t in node.inputs)
    if head is None or gather is None or gather.op != "TcGatherTokens":
        return 0
    tail, choice = (producer(t) for t in gather.inputs)
    if tail is None or choice is None:
        return 0
    first, rest = _part(head), _part(tail)
    if first is None or rest is None or head.inputs[0] is not tail.inputs[0]:
        return 0
    (start, prefix), (after, end) = first, rest
    x, index = head.inputs[0], gather.inputs[1]
    if start != 0 or after != prefix or prefix < 1 or x.shape is None or end < x.shape[1]:
        return 0
    if index is not choice.outputs[0]:
        return 0
    if choice.op == "TcTopKTokens" and choice.domain == DOMAIN:
        batch, count = index.shape
        rows = gs.Variable(f"{choice.name}/rows", np.int64, [batch, prefix + count])
        choice.op = "TcSelectTokens"
        choice.inputs.append(gs.Constant(f"{choice.name}/fixed", np.arange(prefix)))
        choice.outputs.append(rows)
        number = gs.Constant(f"{choice.name}/prefix", np.array([prefix], np.int64))
        choice.attrs["prefix"] = number
    elif choice.op != "TcSelectTokens" or value(choice.attrs["prefix"]).tolist() != [prefix]:
        return 0
    node.op, node.domain, node.attrs = "TcGatherTokens", DOMAIN, {}
    node.inputs = [x, choice.outputs[1]]
    return 1


def _part(node: gs.Node) -> tuple[int, int] | None:
    """(start, end) of a Slice of axis 1 without steps; None for anything else."""
    if node.op != "Slice" or not all(is_const(t) for t in node.inputs[1:]):
        return None
    starts, ends, axes, *steps = (ints(t) for t in node.inputs[1:])
    if axes != [1] or (steps and steps[0] != [1]):
        return None
    return starts[0], ends[0]


def _partner(node: gs.Node, outputs: Sequence[gs.Tensor]) -> int:
    """`node` is the best of each row of a product of unit vectors."""
    attrs = node.attrs
    best = is_const(node.inputs[1]) and ints(node.inputs[1]) == [1]
    product = producer(node.inputs[0])
    if not best or attrs.get("axis", -1) not in (-1, 2) or not attrs.get("largest", 1):
        return 0
    if product is None or product.op != "MatMul" or len(node.inputs[0].shape or ()) != 3:
        return 0
    a, across = product.inputs
    turned = producer(across)
    if turned is None or turned.op != "Transpose" or turned.attrs.get("perm") != [0, 2, 1]:
        return 0
    b = turned.inputs[0]
    if not (_is_unit(a) and _is_unit(b)) or a.shape[0] != b.shape[0]:
        return 0
    if any(asked is t for asked in outputs for t in node.outputs):
        return 0  # Somebody outside reads it as it is.
    similarity, place = (_squeezed(t) for t in node.outputs)
    if similarity is None or place is None:
        return 0
    for tensor in (similarity, place):
        tensor.inputs.clear()
    node.op, node.domain, node.attrs = "TcPartnerTokens", DOMAIN, {}
    node.inputs, node.outputs = [a, b], [place, similarity]
    return 1


def _squeezed(tensor: gs.Variable) -> gs.Variable | None:
    """Return what a [B, M, 1] tensor becomes without its last axis, where that is all it is read
    for; a new one where nothing reads it."""
    if not tensor.outputs:
        return gs.Variable(f"{tensor.name}_rows", tensor.dtype, tensor.shape[:2])
    if len(tensor.outputs) > 1:
        return None
    (user,) = tensor.outputs
    if user.op != "Squeeze" or _axes(user) not in ([2], [-1]):
        return None
    result: gs.Variable = user.outputs[0]
    return result


def _is_unit(tensor: gs.Tensor) -> bool:
    """Tell whether rows are divided by their lengths (or are zeros), as `Builder` writes it."""
    node = producer(tensor)
    while node is not None and (node.op == "TcGatherTokens" or _part(node) is not None):
        node = producer(node.inputs[0])
    if node is None or node.op != "Div":
        return False
    bound = producer(node.inputs[1])
    length = producer(bound.inputs[0]) if bound is not None and bound.op == "Max" else None
    if length is None or length.op != "ReduceL2" or length.inputs[0] is not node.inputs[0]:
        return False
    return _axes(length) in ([-1], [2])


def combine(graph: gs.Graph, node: gs.Node) -> int:
    """Make `node`, the last division of Σ w x/Σ w over groups, a call; 1 if it was one.

    own part [B, K, C] + one-hot [B, K, r] · what leaves [B, r, C], over the same sum of weights, or
    of ones: `TcCombineMeanTokens` or `TcCombinePlainTokens`. New sizes, where they are the sums of
    the same weights, come from the call too; owners stay as they were written, a gather.
    """
    parts = _sum(node.inputs[0])
    if parts is None:
        return 0
    own, hot, moved = parts
    slot = _slot(hot)
    kept, left = _weighted(own), _weighted(moved)
    if slot is None or kept is None or left is None or kept[1] is not left[1]:
        return 0
    (rows, weight), (others, _) = kept, left
    x, keep = rows.inputs
    if others.inputs[0] is not x or not _counts(node.inputs[1], hot, weight, rows, others):
        return 0
    source, batch = others.inputs[1], x.shape[0]
    count, tokens = keep.shape[1], x.shape[1]
    if count + source.shape[1] != tokens or (weight is None and not isinstance(batch, int)):
        return 0
    size = gs.Variable(f"{node.name}/size", np.float32, [batch, count])
    if weight is not None:
        found = _sizes(graph, hot, weight, rows, others)
        size = size if found is None else found
    owner = gs.Variable(f"{node.name}/owner", np.int64, [batch, count])
    ones = gs.Constant(f"{node.name}/ones", np.ones((1, tokens), np.float32))
    slots = gs.Constant(f"{node.name}/slots", np.arange(count))
    if weight is None:
        ones.values = np.ones((batch, tokens), np.float32)
    result = node.outputs[0]
    # Owners are not asked for: any indices of tokens do.
    given = [keep, keep, source, slot, slots]
    node.op = "TcCombinePlainTokens" if weight is None else "TcCombineMeanTokens"
    node.domain, node.attrs = DOMAIN, {}
    node.inputs = [x, ones, *given] if weight is None else [x, weight, weight, *given]
    node.outputs = [result, size, owner]
    return 1


def _sum(tensor: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor] | None:
    """(own, one-hot, moved) of own + one-hot · moved."""
    add = producer(tensor)
    product = producer(add.inputs[1]) if add is not None and add.op == "Add" else None
    if add is None or product is None or product.op != "MatMul":
        return None
    return add.inputs[0], product.inputs[0], product.inputs[1]


def _slot(hot: gs.Tensor) -> gs.Tensor | None:
    """slot [B, r] of the one-hot [B, K, r] in fp32 that is 1 where slot is 0, 1, … K − 1."""
    cast = producer(hot)
    equal = producer(cast.inputs[0]) if cast is not None and cast.op == "Cast" else None
    if equal is None or equal.op != "Equal" or not is_const(equal.inputs[1]):
        return None
    row, places = producer(equal.inputs[0]), value(equal.inputs[1])
    if row is None or row.op != "Unsqueeze" or _axes(row) != [1]:
        return None
    whole = (1, places.size, 1)
    if places.shape != whole or (places.reshape(-1) != np.arange(places.size)).any():
        return None
    return row.inputs[0]


def _weighted(tensor: gs.Tensor) -> tuple[gs.Node, gs.Tensor | None] | None:
    """(the gather, w) of x[index] or x[index] · w[index]."""
    node = producer(tensor)
    if node is not None and node.op == "TcGatherTokens":
        return node, None
    if node is None or node.op != "Mul":
        return None
    gather = producer(node.inputs[0])
    if gather is None or gather.op != "TcGatherTokens":
        return None
    weight = _column(node.inputs[1], gather.inputs[1])
    return None if weight is None else (gather, weight)


def _column(tensor: gs.Tensor, index: gs.Tensor) -> gs.Tensor | None:
    """w [B, T] of the column w[index] [B, n, 1]."""
    column = producer(tensor)
    taken = producer(column.inputs[0]) if column is not None and column.op == "Unsqueeze" else None
    if column is None or taken is None or _axes(column) != [2] or taken.op != "GatherElements":
        return None
    if taken.attrs.get("axis") != 1 or taken.inputs[1] is not index:
        return None
    found: gs.Tensor = taken.inputs[0]
    return found


def _counts(
    tensor: gs.Tensor, hot: gs.Tensor, weight: gs.Tensor | None, rows: gs.Node, others: gs.Node
) -> bool:
    """Tell whether a tensor [B, K, 1] is the sum of the weights of each group, of ones for None."""
    if weight is not None:
        parts = _sum(tensor)
        if parts is None or parts[1] is not hot:
            return False
        found = _column(parts[0], rows.inputs[1]), _column(parts[2], others.inputs[1])
        return found[0] is weight and found[1] is weight
    add = producer(tensor)
    if add is None or add.op != "Add" or not is_const(add.inputs[1]):
        return False
    many = producer(add.inputs[0])
    return (
        many is not None
        and many.op == "ReduceSum"
        and many.inputs[0] is hot
        and _axes(many) == [2]
        and value(add.inputs[1]).reshape(-1).tolist() == [1]
    )


def _sizes(
    graph: gs.Graph, hot: gs.Tensor, weight: gs.Tensor, rows: gs.Node, others: gs.Node
) -> gs.Variable | None:
    """Return what the graph has of the sums of the same weights as [B, K], taken from who writes
    it."""
    for node in graph.nodes:
        if node.op == "Squeeze" and node.outputs and _axes(node) == [2]:
            result = node.outputs[0]
            if any(result is t for t in graph.outputs):
                continue
            if _counts(node.inputs[0], hot, weight, rows, others):
                node.outputs.clear()
                found: gs.Variable = result
                return found
    return None


def _axes(node: gs.Node) -> list[int]:
    if "axes" in node.attrs:
        return [int(a) for a in node.attrs["axes"]]
    return ints(node.inputs[1]) if len(node.inputs) > 1 and is_const(node.inputs[1]) else []
