"""Values that follow from how many tokens there are: sums over tokens, and what divides them.

A sum over tokens grows with their number. Each tensor gets a *degree*: 1 for a sum over tokens, 2
for its square, 0 for what does not grow. A literal that is the number of tokens (N, N − 1, 1/N, √N,
N/(N − 1), the sum of a constant mask) brings the degree back to 0, and has to follow the tokens
that are left: a `Rescale`. A sum whose degree comes back to 0 by itself (a ratio of two sums, a
LayerNorm) needs nothing. Where a sum meets something else, fewer tokens would change its scale
without a trace: the node that sums is `unresolved`, which forbids dropping.

How a value passes through an op is in its row in `analysis.ops`; here is only what holds for every
op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import transfer as tf
from tcompile.analysis.count_rules import opaque
from tcompile.analysis.count_state import PLAIN, Counter, Counts, Value, uniform
from tcompile.analysis.effects import Factor, Rescale, Summed
from tcompile.analysis.facts import Facts
from tcompile.analysis.ops import op_of
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.token_dims import Dim, is_rest
from tcompile.core.graph import attr, is_const, is_standard, reduced_axes, shape
from tcompile.core.op_traits import CALCULATES, COMPARES, PRODUCTS, REDUCES

#: Ops over an axis that depend on all that is there, and of these the ones that do not count.
_NORMALISING = ("Softmax", "LogSoftmax", "LpNormalization")
_EXTREMES = ("ReduceMax", "ReduceMin")


def find_counts(graph: gs.Graph, facts: Facts, space: TokenSpace) -> Counts:
    """Follow every value that grows with the number of tokens, whoever cuts where."""
    counter = Counter(facts, space)
    for node in graph.nodes:
        _visit(counter, node)
    for out in graph.outputs:
        counter.grows(counter.found.of(out), f"is the output '{out.name}'")
    return counter.found


def sums_over(node: gs.Node) -> list[tuple[int, int]]:
    """(operand, axis) that the node sums or averages along; axes count from the front."""
    if not node.inputs:
        return []
    rank = len(node.inputs[0].shape or ())
    if node.op in ("ReduceSum", "ReduceMean"):
        return [(0, a) for a in reduced_axes(node)]
    if node.op == "GlobalAveragePool":
        return [(0, a) for a in range(2, rank)]
    if node.op in ("MatMul", "Gemm"):
        i, j = tf.contracted(node)
        return [(0, i % rank), (1, j % len(node.inputs[1].shape))]
    return tf.einsum_contracted(node) if node.op == "Einsum" else []


def _visit(counter: Counter, node: gs.Node) -> None:
    values = [counter.found.of(t) for t in node.inputs]
    if node.op in CALCULATES and any(_sized(counter, t) for t in node.inputs):
        counter.found.sized.add(node.name)
    over = _over_tokens(counter, node) if is_standard(node) else []
    op = op_of(node)
    if over:
        result = _sum(counter, node, values, over)
    else:
        result = (opaque if op is None else op.counts)(counter, node, values)
    if is_standard(node):
        _beside(counter, node, bool(over))
    if result is not PLAIN:
        counter.found.values.update({out.name: result for out in node.outputs})


def _beside(counter: Counter, node: gs.Node, summed: bool) -> None:
    """Whatever is taken over all tokens of a mask, and what is computed from that."""
    if node.op in COMPARES:
        return  # a length that positions are held against is one of all tokens
    beside = counter.found.beside
    known = [beside[t.name] for t in node.inputs if t.name in beside]
    if summed:
        known.append(node.name if node.op in PRODUCTS else "")
    elif _takes_all(counter, node):
        known.append("" if node.op in _EXTREMES else node.name)
    for out in node.outputs if known else ():
        if out.name not in counter.facts.imaged:
            beside[out.name] = max(known)


def _takes_all(counter: Counter, node: gs.Node) -> bool:
    """Return whether it depends on all tokens at once, without being a sum of them."""
    if node.op in _NORMALISING:
        axes = [int(attr(node, "axis", -1))]
    elif node.op in REDUCES and not node.op.startswith("Arg"):
        axes = reduced_axes(node)
    else:
        return False
    rank = len(node.inputs[0].shape or ())
    return any(counter.dim(node.inputs[0], a % rank) is not None for a in axes)


def _sized(counter: Counter, tensor: gs.Tensor) -> bool:
    """Return whether a stored number was computed from how many tokens there are."""
    origin = counter.facts.sized.get(tensor.name)
    if not origin or counter.facts.is_live(tensor):
        return False
    if uniform(tensor) is None and (is_const(tensor) or int(np.prod(shape(tensor))) != 1):
        return False
    space = counter.space
    for name, axis, size in origin:
        known = counter.dims(name)
        if known is None:
            # Of a tensor that the normal form no longer has.
            if size in (space.total, space.patches):
                return True
            continue
        dim = known[axis] if axis < len(known) else None
        if dim is not None and dim.has_patches(space):
            return True
    return False


# ---- sums ----------------------------------------------------------------------------------------


def _over_tokens(counter: Counter, node: gs.Node) -> list[tuple[int, Dim]]:
    """(operand, dim) that it sums along and that holds patches of a tensor that is computed."""
    found = [
        (i, counter.dim(node.inputs[i], axis))
        for i, axis in sums_over(node)
        if not is_const(node.inputs[i])
    ]
    return [(i, dim) for i, dim in found if dim is not None and not is_rest(dim)]


def _sum(
    counter: Counter, node: gs.Node, values: Sequence[Value], over: list[tuple[int, Dim]]
) -> Value:
    operand, dim = over[0]
    one = values[operand]
    scales = list(one.scales)
    terms = 1
    if node.op in PRODUCTS:
        for i, other in enumerate(node.inputs[:2]):
            if i == operand:
                continue
            if not is_const(other):
                one = one.times(values[i])
                continue
            literal = uniform(other)
            if literal is None:
                return opaque(counter, node, values)  # the walk forbids it
            scales.append((node.name, literal))
    else:
        dims = shape(node.inputs[0])
        others = [a for _, a in sums_over(node) if not counter.dim(node.inputs[0], a)]
        terms = int(np.prod([dims[a] for a in others], dtype=np.int64))
    size = counter.tokens_along(dim)
    weights = one.weights if one.weights is None or len(one.weights) == size else None
    summed = Summed(dim, weights, terms)
    counter.found.summed[node.name] = summed
    mean = node.op in ("ReduceMean", "GlobalAveragePool")
    # A product of two tensors that have tokens still has rows of tokens, in an attention.
    result = Value(one.degree + (0 if mean else 1), one.sums | {node.name}, len(over) == 1)
    if mean and weights is not None and weights.any():
        # Without the weights, the mean of as many as there are: nothing to follow yet.
        return replace(result, weights=weights)
    if mean or result.degree <= 0:
        return result
    for name, scale in scales:
        explained = counter.explained(node, result, scale)
        if explained is not None:
            counter.found.sized.discard(name)
            result = explained
    total = summed.count("weights", counter.space)
    if result.degree > 0 and weights is not None and abs(total / terms - 1) < 1e-4 < size - 1:
        # Weights that sum to one: the mean of those that are left.
        factors = (Factor("weights", 0, Fraction(-1)),)
        counter.found.rescales[node.name] = Rescale(summed, factors)
        result = replace(result, degree=result.degree - 1)
    return result
