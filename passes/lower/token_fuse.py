"""Nodes around token ops that a plugin does in the same pass, as calls of the ops that do so.

Native graphs are left alone: there these are views and small kernels that a compiler fuses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.domain import DOMAIN
from tcompile.core.graph import ints, is_const, producer, value
from tcompile.passes.lower.token_groups import combine
from tcompile.plugins.ops import add_functions


def fuse_calls(graph: gs.Graph) -> int:
    """Rewrite in place; returns how many calls are new. Bodies that nothing calls any more stay.

    - [prefix | patches at TcTopKTokens' index] is `TcSelectTokens`, whose `rows` take the whole
      stream apart in one gather: no slices, no joining.
    - The largest of cosines, a product of unit vectors and TopK of 1, is `TcPartnerTokens`: no
      matrix of cosines in memory.
    - Means over tokens that merge: see `token_groups`.
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
    axes = user.attrs.get("axes") or (ints(user.inputs[1]) if len(user.inputs) > 1 else [])
    if user.op != "Squeeze" or axes not in ([2], [-1]):
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
    axes = length.attrs.get("axes") or (ints(length.inputs[1]) if len(length.inputs) > 1 else [])
    return axes in ([-1], [2])
