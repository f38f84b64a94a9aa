"""Count rules: how a value that grows with the number of tokens passes through an op.

Each takes (counter, node, the values of its inputs) and returns the value of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.count_state import LARGEST, PLAIN, Counter, Value, close, negligible, uniform
from tcompile.analysis.effects import Factor, Rescale, Summed
from tcompile.analysis.token_dims import is_rest
from tcompile.core.graph import attr, is_const, reduced_axes, shape, value

CountRule: TypeAlias = Callable[[Counter, gs.Node, Sequence[Value]], Value]


def opaque(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """An op that no sum may go through unscaled."""
    for one in values:
        counter.grows(one, f"{node.op} '{node.name}' reads the sum")
    return PLAIN


def linear(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """Linear in its first input."""
    return values[0]


def affine(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """A scale and a bias: probabilities stay shares."""
    return values[0] if values[0].degree < 0 else opaque(counter, node, values)


def forgets(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """Gives the same for any scale."""
    return PLAIN


def product(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """Mul and Div."""
    first, second = node.inputs[:2]
    inverse = node.op == "Div"
    for i, (tensor, other) in enumerate(((second, first), (first, second))):
        if not is_const(tensor) or is_const(other):
            continue
        here = 1 - i
        one = values[i]
        over = inverse and here == 0  # the literal is what is divided
        if over:
            one, inverse = one.power(Fraction(-1)), False
        literal = uniform(tensor)
        if literal is None:
            return one if over or inverse else _masked(counter, node, one, tensor)
        if literal == 0 or not np.isfinite(literal):
            return one
        number = 1 / literal if inverse else literal
        if number == 1:
            if int(np.prod(shape(tensor))) > 1:
                counter.found.sized.discard(node.name)  # ones for all tokens, such as a mask
            return one
        explained = counter.explained(node, one, number, here, inverse)
        if explained is not None:
            counter.found.sized.discard(node.name)
            return explained
        _doubt(counter, node, one, number)
        return replace(one, scales=(*one.scales, (node.name, number)))
    a, b = values[:2]
    return a.times(b.power(Fraction(-1)) if inverse else b)


def _masked(counter: Counter, node: gs.Node, one: Value, tensor: gs.Tensor) -> Value:
    """A multiplication by a constant for each token, such as a mask."""
    dims, out = shape(tensor), node.outputs[0]
    wide = [i for i, n in enumerate(dims) if n > 1]
    if len(wide) != 1 or int(np.prod(dims)) > LARGEST:
        return one
    if counter.dim(out, wide[0] + len(out.shape) - len(dims)) is None:
        return one
    mask = np.asarray(value(tensor), np.float64).reshape(-1)
    if one.weights is None:
        return replace(one, weights=mask)
    return replace(one, weights=one.weights * mask if len(one.weights) == len(mask) else None)


def _doubt(counter: Counter, node: gs.Node, value: Value, literal: float) -> None:
    """A mean over N tokens times 1/√N: a standard error, or something else. Logits times log N:
    a temperature that follows how many there are."""
    out, doubts = node.outputs[0], counter.found.doubts
    dims = [counter.dim(out, axis) for axis in range(len(out.shape))]
    for n in {counter.tokens_along(d) for d in dims if d is not None}:
        if n > 2 and close(literal, float(np.log(n))):
            doubts[node.name] = (
                f"multiplies by {literal:.4g}, which is the logarithm of {n}, the number of tokens"
            )
    if value.degree or not value.pooled:
        return
    for name in sorted(value.sums):
        total = counter.found.summed[name].count("size", counter.space)
        if close(literal, total**-0.5):
            doubts[node.name] = (
                f"multiplies a mean over {total:g} tokens by {literal:.4g}, which may or may "
                "not be one over the root of their number"
            )


def combined(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """Add, Max, Concat and the like: all that is not nothing must grow alike."""
    skip = 1 if node.op == "Where" else 0
    pairs = zip(node.inputs[skip:], values[skip:], strict=True)
    live = [v for t, v in pairs if not t.is_empty() and not negligible(node, t)]
    grown = [v for v in live if v.degree > 0]
    if not grown:
        least = min(live, key=lambda v: v.degree, default=PLAIN)
        if least.degree < 0:
            _uniform_share(counter, node, least)
            if node.name in counter.found.rescales or _shares_alone(counter, node, values):
                return least
            return PLAIN
        if live and all(v.pooled for v in live):
            return Value(sums=frozenset().union(*(v.sums for v in live)), pooled=True)
        return PLAIN
    first = grown[0]
    if len(grown) < len(live) or any(v.degree != first.degree for v in grown):
        for one in grown:
            counter.grows(one, f"{node.op} '{node.name}' joins the sum with something else")
        return PLAIN
    return Value(
        first.degree,
        frozenset().union(*(v.sums for v in grown)),
        all(v.pooled for v in grown),
        first.weights if all(v.weights is first.weights for v in grown) else None,
    )


def _shares_alone(counter: Counter, node: gs.Node, values: Sequence[Value]) -> bool:
    """Return whether shares meet nothing but shares, nothing at all, or a learned bias: numbers
    that a model stores of which not all are the same. All else sums to more over more tokens."""
    skip = 1 if node.op == "Where" else 0
    pairs = list(zip(node.inputs, values, strict=True))[skip:]
    return all(
        one.degree < 0
        or tensor.is_empty()
        or negligible(node, tensor)
        or (node.op in ("Add", "Sub") and is_const(tensor) and uniform(tensor) is None)
        for tensor, one in pairs
    )


def _uniform_share(counter: Counter, node: gs.Node, value: Value) -> None:
    """1/N that is added to probabilities of N tokens, or taken off."""
    for i, tensor in enumerate(node.inputs):
        literal = uniform(tensor)
        for name in sorted(value.sums) if literal else ():
            summed = counter.found.summed[name]
            wanted = summed.count("size", counter.space) ** float(value.degree)
            if close(abs(literal or 0.0), wanted):
                factors = (Factor("size", 0, value.degree),)
                counter.found.rescales[node.name] = Rescale(summed, factors, i)


def weighted(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """MatMul, Gemm, Einsum, Conv: linear in both, with a bias perhaps."""
    result = values[0]
    for one in values[1:2]:
        result = result.times(one)
    result = replace(result, weights=None) if result.weights is not None else result
    biased = len(node.inputs) > 2 and not node.inputs[2].is_empty()
    if biased and result.degree > 0 and not negligible(node, node.inputs[2]):
        counter.grows(result, f"{node.op} '{node.name}' adds a bias to the sum")
        return PLAIN
    return result


def root(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """Sqrt."""
    return values[0].power(Fraction(1, 2))


def reciprocal(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """Reciprocal."""
    return values[0].power(Fraction(-1))


def raised(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """Pow by a constant."""
    if values[0] is PLAIN:
        return PLAIN
    exponent = uniform(node.inputs[1])
    if exponent is None:
        return opaque(counter, node, values)
    return values[0].power(Fraction(exponent).limit_denominator(8))


def clipped(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """Clip that only keeps a divisor from being 0 (a count is at least 1)."""
    one = values[0]
    if one.degree <= 0:
        return one
    low, high = ([*node.inputs[1:3], None, None])[:2]
    lowest = attr(node, "min", None) if low is None or low.is_empty() else uniform(low)
    open_end = (high is None or high.is_empty()) and attr(node, "max", None) is None
    return one if open_end and (lowest is None or lowest <= 1) else opaque(counter, node, values)


def reduced(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """ReduceSum and its kin over other axes."""
    one = values[0]
    if node.op == "ReduceSumSquare":
        return one.power(Fraction(2))
    if node.op.startswith("ReduceLog") or node.op == "ReduceProd":
        return opaque(counter, node, values)
    if node.op == "ReduceSum" and one.pooled and one.degree > 0:
        dims = shape(node.inputs[0])
        more = int(np.prod([dims[a] for a in reduced_axes(node)]))
        for name in one.sums if more > 1 else ():
            old = counter.found.summed[name]
            if old.terms == 1:
                counter.found.summed[name] = Summed(old.dim, old.weights, more)
    return one


def chances(counter: Counter, node: gs.Node, values: Sequence[Value]) -> Value:
    """Softmax: over tokens its entries shrink as their number grows."""
    opaque(counter, node, values)
    axis = int(attr(node, "axis", -1)) % len(node.inputs[0].shape)
    dim = counter.dim(node.inputs[0], axis)
    if node.op != "Softmax" or dim is None:
        return PLAIN
    if is_rest(dim):
        return Value(Fraction(-1))
    counter.found.summed[node.name] = Summed(dim, None, 1)
    return Value(Fraction(-1), frozenset({node.name}))
