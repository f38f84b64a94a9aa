"""Values that follow from how many tokens there are: sums over tokens, and what divides them.

A sum over tokens grows with their number. Each tensor gets a *degree*: 1 for a sum over tokens, 2
for its square, 0 for what does not grow. A literal that is the number of tokens (N, N − 1, 1/N, √N,
N/(N − 1), the sum of a constant mask) brings the degree back to 0, and has to follow the tokens
that are left: a `Rescale`. A sum whose degree comes back to 0 by itself (a ratio of two sums, a
LayerNorm) needs nothing. Where a sum meets something else, fewer tokens would change its scale
without a trace: the node that sums is `unresolved`, which forbids dropping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import transfer as tf
from tcompile.analysis.effects import Dim, Dims, Factor, Rescale, Summed, Vector, locate
from tcompile.analysis.facts import Facts
from tcompile.analysis.literals import LARGEST, close, explain, negligible, uniform
from tcompile.analysis.space import TokenSpace
from tcompile.core.graph import attr, is_const, reduced_axes, shape, value

#: Ops in which a number means a value, not a size.
_ARITHMETIC = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Where", "Clip", "Sum", "Mean"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "PRelu", "MatMul", "Gemm"),
    "Attention",
)
#: Ops over an axis that depend on all that is there, and of these the ones that do not count.
_NORMALISING = ("Softmax", "LogSoftmax", "LpNormalization")
_EXTREMES = ("ReduceMax", "ReduceMin")
_COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of a tensor.

    Attributes:
        degree: how it grows with the number of tokens.
        sums: the nodes that summed or averaged over tokens on the way to it.
        pooled: whether it is a statistic over tokens, which all positions share.
        weights: [n] the constant mask it was multiplied by, token by token.
        scales: the nodes that multiplied it by a literal, which a sum that follows may explain.
    """

    degree: Fraction = Fraction(0)
    sums: frozenset[str] = frozenset()
    pooled: bool = False
    weights: Vector | None = None
    scales: tuple[tuple[str, float], ...] = ()


_PLAIN = Value()


@dataclass
class Counts:
    """The result.

    Attributes:
        values: tensor → what is known of it, where that is not nothing.
        summed: node that sums, averages or takes shares over tokens → what it runs over.
        rescales: node → how what it gives follows the number of tokens.
        unresolved: node that sums over tokens → the node that reads the sum as it is.
        sized: nodes that read a number computed from how many tokens there are, unexplained.
        doubts: node whose literal may be a count, or may not → what it does.
        beside: tensor that is computed from what was taken over all tokens of a mask or the like
            → the node on the way that could not weigh merged tokens; empty where all can.
    """

    values: dict[str, Value] = field(default_factory=dict)
    summed: dict[str, Summed] = field(default_factory=dict)
    rescales: dict[str, Rescale] = field(default_factory=dict)
    unresolved: dict[str, str] = field(default_factory=dict)
    sized: set[str] = field(default_factory=set)
    doubts: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)

    def of(self, tensor: gs.Tensor) -> Value:
        return self.values.get(tensor.name, _PLAIN)


def find_counts(graph: gs.Graph, facts: Facts, space: TokenSpace) -> Counts:
    """Follow every value that grows with the number of tokens, whoever cuts where."""
    counter = _Counter(facts, space)
    for node in graph.nodes:
        counter.visit(node)
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
    if node.op == "Einsum":
        return tf.einsum_contracted(node)
    return []


class _Counter:
    """Visits nodes in execution order."""

    def __init__(self, facts: Facts, space: TokenSpace) -> None:
        self.facts, self.space = facts, space
        self.found = Counts()
        self._dims: dict[str, Dims] = {}

    # -- what a tensor is ------------------------------------------------------------------------

    def dim(self, tensor: gs.Tensor, axis: int) -> Dim | None:
        """The dim along an axis, if the patches are in it."""
        known = self._dims.get(tensor.name)
        if known is None:
            known = self._dims[tensor.name] = locate(self.facts.of(tensor), self.space)
        dim = known[axis]
        held = dim is not None and dim.run is not None and dim.run.patches(self.space)
        return dim if held else None

    def grows(self, value: Value, where: str) -> None:
        """Something reads a sum over tokens as it is."""
        if value.degree > 0:
            for node in value.sums:
                self.found.unresolved.setdefault(node, where)

    def visit(self, node: gs.Node) -> None:
        values = [self.found.of(t) for t in node.inputs]
        if node.op in _ARITHMETIC and any(self._sized(t) for t in node.inputs):
            self.found.sized.add(node.name)
        plain = node.domain in (None, "", "ai.onnx")
        over = self._over_tokens(node) if plain else []
        rule = _RULES.get(node.op) if plain else None
        if over:
            result = self._sum(node, values, over)
        elif rule is not None:
            result = rule(self, node, values)
        else:
            result = self.opaque(node, values)
        if plain:
            self._beside(node, bool(over))
        if result is _PLAIN:
            return
        for out in node.outputs:
            self.found.values[out.name] = result

    def _beside(self, node: gs.Node, summed: bool) -> None:
        """Whatever is taken over all tokens of a mask, and what is computed from that."""
        if node.op in _COMPARISONS:
            return  # a length that positions are held against is one of all tokens
        beside = self.found.beside
        known = [beside[t.name] for t in node.inputs if t.name in beside]
        if summed and node.op in ("MatMul", "Gemm", "Einsum"):
            known.append(node.name)
        elif summed:
            known.append("")
        elif self._takes_all(node):
            known.append("" if node.op in _EXTREMES else node.name)
        for out in node.outputs:
            if known and out.name not in self.facts.imaged:
                beside[out.name] = max(known)

    def _takes_all(self, node: gs.Node) -> bool:
        """Whether it depends on all tokens at once, without being a sum of them."""
        rank = len(node.inputs[0].shape or ()) if node.inputs else 0
        if node.op in _NORMALISING:
            axes = [int(attr(node, "axis", -1))]
        elif node.op in tf.REDUCTIONS.split() and not node.op.startswith("Arg"):
            axes = reduced_axes(node)
        else:
            return False
        return any(self.dim(node.inputs[0], a % rank) is not None for a in axes)

    def opaque(self, node: gs.Node, values: Sequence[Value]) -> Value:
        """An op that no sum may go through unscaled."""
        for one in values:
            self.grows(one, f"{node.op} '{node.name}' reads the sum")
        return _PLAIN

    def _sized(self, tensor: gs.Tensor) -> bool:
        """Whether a stored number was computed from how many tokens there are."""
        origin = self.facts.sized.get(tensor.name)
        if not origin or self.facts.is_live(tensor):
            return False
        if uniform(tensor) is None and (is_const(tensor) or int(np.prod(shape(tensor))) != 1):
            return False
        for name, axis, size in origin:
            known = self._dims.get(name)
            if known is None and name in self.facts.axes:
                known = self._dims[name] = locate(self.facts.axes[name], self.space)
            if known is None:
                if size in (self.space.total, self.space.patches):
                    return True  # of a tensor that the normal form no longer has
                continue
            dim = known[axis] if axis < len(known) else None
            if dim is not None and dim.run is not None and dim.run.patches(self.space):
                return True
        return False

    # -- sums ------------------------------------------------------------------------------------

    def _over_tokens(self, node: gs.Node) -> list[tuple[int, int, Dim]]:
        """What it sums along that holds patches of a tensor that is computed."""
        found = [
            (i, axis, self.dim(node.inputs[i], axis))
            for i, axis in sums_over(node)
            if not is_const(node.inputs[i])
        ]
        held = [(i, axis, dim) for i, axis, dim in found if dim is not None]
        return [h for h in held if h[2].part != "rest"]

    def _sum(
        self, node: gs.Node, values: Sequence[Value], over: list[tuple[int, int, Dim]]
    ) -> Value:
        operand, _, dim = over[0]
        one = values[operand]
        scales = list(one.scales)
        if node.op in ("MatMul", "Gemm", "Einsum"):
            for i, other in enumerate(node.inputs[:2]):
                if i == operand:
                    continue
                if is_const(other):
                    literal = uniform(other)
                    if literal is None:
                        return self.opaque(node, values)  # the walk forbids it
                    scales.append((node.name, literal))
                else:
                    one = _times(one, values[i])
            terms = 1
        else:
            dims = shape(node.inputs[0])
            tokens = {axis for i, axis in sums_over(node) if self.dim(node.inputs[i], axis)}
            terms = int(np.prod([dims[a] for _, a in sums_over(node) if a not in tokens] or [1]))
        size = dim.size(self.space, self.space.patches, 1)
        weights = one.weights if one.weights is None or len(one.weights) == size else None
        summed = Summed(dim, weights, terms)
        self.found.summed[node.name] = summed
        mean = node.op in ("ReduceMean", "GlobalAveragePool")
        # A product of two tensors that have tokens still has rows of tokens, in an attention.
        pooled = len(over) == 1
        result = Value(one.degree + (0 if mean else 1), one.sums | {node.name}, pooled)
        if mean and weights is not None and weights.any():
            # Without the weights, the mean of as many as there are: nothing to follow yet.
            return replace(result, weights=weights)
        if mean or result.degree <= 0:
            return result
        for name, scale in scales:
            explained = self._explained(node, result, scale, None, False)
            if explained is not None:
                self.found.sized.discard(name)
                result = explained
        total = summed.count("weights", self.space)
        if result.degree > 0 and weights is not None and abs(total / terms - 1) < 1e-4 < size - 1:
            # Weights that sum to one: the mean of those that are left.
            factors = (Factor("weights", 0, Fraction(-1)),)
            self.found.rescales[node.name] = Rescale(summed, factors)
            result = replace(result, degree=result.degree - 1)
        return result

    def _explained(
        self, node: gs.Node, value: Value, literal: float, operand: int | None, inverse: bool
    ) -> Value | None:
        """The value after a multiplication by a literal that is a count; None where it is not."""
        if np.dtype(node.outputs[0].dtype).kind != "f":
            return None  # integers cannot be multiplied by a ratio
        for name in sorted(value.sums):
            summed = self.found.summed[name]
            meaning = explain(literal, summed, self.space, value.degree, value.pooled)
            if meaning is None:
                continue
            if node.name in self.found.rescales:
                return None
            factors, degree = meaning
            self.found.rescales[node.name] = Rescale(summed, factors, operand, inverse)
            return replace(value, degree=degree)
        return None

    def _doubt(self, node: gs.Node, value: Value, literal: float) -> None:
        """A mean over N tokens times 1/√N: a standard error, or something else. Logits times log N:
        a temperature that follows how many there are."""
        out = node.outputs[0]
        dims = [self.dim(out, axis) for axis in range(len(out.shape))]
        for n in {d.size(self.space, self.space.patches, 1) for d in dims if d is not None}:
            if n > 2 and close(literal, float(np.log(n))):
                self.found.doubts[node.name] = (
                    f"multiplies by {literal:.4g}, which is the logarithm of {n}, the number of "
                    "tokens"
                )
        if value.degree or not value.pooled:
            return
        for name in sorted(value.sums):
            total = self.found.summed[name].count("size", self.space)
            if close(literal, total**-0.5):
                self.found.doubts[node.name] = (
                    f"multiplies a mean over {total:g} tokens by {literal:.4g}, which may or may "
                    "not be one over the root of their number"
                )

    # -- products --------------------------------------------------------------------------------

    def product(self, node: gs.Node, values: Sequence[Value]) -> Value:
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
                one, inverse = self.power(one, Fraction(-1)), False
            literal = uniform(tensor)
            if literal is None and over:
                return one
            if literal is None:
                return self._masked(node, one, tensor, inverse)
            if literal == 0 or not np.isfinite(literal):
                return one
            number = 1 / literal if inverse else literal
            if number == 1:
                if int(np.prod(shape(tensor))) > 1:
                    self.found.sized.discard(node.name)  # ones for all tokens, such as a mask
                return one
            explained = self._explained(node, one, number, here, inverse)
            if explained is not None:
                self.found.sized.discard(node.name)
                return explained
            self._doubt(node, one, number)
            return replace(one, scales=(*one.scales, (node.name, number)))
        a, b = values[:2]
        return _times(a, self.power(b, Fraction(-1)) if inverse else b)

    def _masked(self, node: gs.Node, one: Value, tensor: gs.Tensor, inverse: bool) -> Value:
        """A multiplication by a constant for each token, such as a mask."""
        if inverse:
            return one
        dims, out = shape(tensor), node.outputs[0]
        wide = [i for i, n in enumerate(dims) if n > 1]
        if len(wide) != 1 or int(np.prod(dims)) > LARGEST:
            return one
        axis = wide[0] + len(out.shape) - len(dims)
        if self.dim(out, axis) is None:
            return one
        mask = np.asarray(value(tensor), np.float64).reshape(-1)
        weights = (
            mask
            if one.weights is None
            else (one.weights * mask if len(one.weights) == len(mask) else None)
        )
        return replace(one, weights=weights)

    def power(self, one: Value, exponent: Fraction) -> Value:
        """The value raised to a power."""
        if one is _PLAIN:
            return one
        return replace(one, degree=one.degree * exponent, weights=None, scales=())

    # -- sums of operands ------------------------------------------------------------------------

    def combined(self, node: gs.Node, values: Sequence[Value]) -> Value:
        """Add, Max, Concat and the like: all that is not nothing must grow alike."""
        tensors = node.inputs[1:] if node.op == "Where" else node.inputs
        mine = values[1:] if node.op == "Where" else values
        pairs = [(t, v) for t, v in zip(tensors, mine, strict=True) if not t.is_empty()]
        live = [v for t, v in pairs if not negligible(node, t)]
        grown = [v for v in live if v.degree > 0]
        if not grown:
            least = min((v for v in live), key=lambda v: v.degree, default=_PLAIN)
            if least.degree < 0:
                self._uniform_share(node, least)
                return least  # probabilities with a bias
            pooled = bool(live) and all(v.pooled for v in live)
            sums = frozenset().union(*(v.sums for v in live)) if pooled else frozenset()
            return Value(sums=sums, pooled=True) if pooled else _PLAIN
        degree = grown[0].degree
        if len(grown) < len(live) or any(v.degree != degree for v in grown):
            for one in grown:
                self.grows(one, f"{node.op} '{node.name}' joins the sum with something else")
            return _PLAIN
        sums = frozenset().union(*(v.sums for v in grown))
        same = all(v.weights is grown[0].weights for v in grown)
        return Value(degree, sums, all(v.pooled for v in grown), grown[0].weights if same else None)

    def _uniform_share(self, node: gs.Node, value: Value) -> None:
        """1/N that is added to probabilities of N tokens, or taken off."""
        for i, tensor in enumerate(node.inputs):
            literal = uniform(tensor) if is_const(tensor) else None
            for name in sorted(value.sums) if literal else ():
                summed = self.found.summed[name]
                wanted = summed.count("size", self.space) ** float(value.degree)
                if close(abs(literal or 0.0), wanted):
                    factors = (Factor("size", 0, value.degree),)
                    self.found.rescales[node.name] = Rescale(summed, factors, i)

    def first(self, node: gs.Node, values: Sequence[Value]) -> Value:
        """Linear in its first input."""
        return values[0]

    def forgets(self, node: gs.Node, values: Sequence[Value]) -> Value:
        """Gives the same for any scale."""
        return _PLAIN

    def weighted(self, node: gs.Node, values: Sequence[Value]) -> Value:
        """MatMul, Gemm, Einsum, Conv: linear in both, with a bias perhaps."""
        product = values[0]
        for one in values[1:2]:
            product = _times(product, one)
        product = replace(product, weights=None) if product.weights is not None else product
        biased = len(node.inputs) > 2 and not node.inputs[2].is_empty()
        if biased and product.degree > 0 and not negligible(node, node.inputs[2]):
            self.grows(product, f"{node.op} '{node.name}' adds a bias to the sum")
            return _PLAIN
        return product

    def root(self, node: gs.Node, values: Sequence[Value]) -> Value:
        return self.power(values[0], Fraction(1, 2))

    def reciprocal(self, node: gs.Node, values: Sequence[Value]) -> Value:
        return self.power(values[0], Fraction(-1))

    def raised(self, node: gs.Node, values: Sequence[Value]) -> Value:
        """Pow by a constant."""
        if values[0] is _PLAIN:
            return _PLAIN
        exponent = uniform(node.inputs[1]) if is_const(node.inputs[1]) else None
        if exponent is None:
            return self.opaque(node, values)
        return self.power(values[0], Fraction(exponent).limit_denominator(8))

    def clipped(self, node: gs.Node, values: Sequence[Value]) -> Value:
        """Clip that only keeps a divisor from being 0 (a count is at least 1)."""
        one = values[0]
        if one.degree <= 0:
            return one
        low, high = ([*node.inputs[1:3], None, None])[:2]
        lowest = (
            attr(node, "min", None)
            if low is None or low.is_empty()
            else (uniform(low) if is_const(low) else None)
        )
        open_end = (high is None or high.is_empty()) and attr(node, "max", None) is None
        if open_end and (lowest is None or lowest <= 1):
            return one
        return self.opaque(node, values)

    def reduced(self, node: gs.Node, values: Sequence[Value]) -> Value:
        """ReduceSum and its kin over other axes."""
        one = values[0]
        if node.op == "ReduceSumSquare":
            return self.power(one, Fraction(2))
        if node.op.startswith("ReduceLog") or node.op == "ReduceProd":
            return self.opaque(node, values)
        if node.op == "ReduceSum" and one.pooled:
            dims = shape(node.inputs[0])
            more = int(np.prod([dims[a] for a in reduced_axes(node)]))
            for name in one.sums:
                old = self.found.summed[name]
                if one.degree > 0 and old.terms == 1 and more > 1:
                    self.found.summed[name] = Summed(old.dim, old.weights, more)
        return one

    def chances(self, node: gs.Node, values: Sequence[Value]) -> Value:
        """Softmax: over tokens its entries shrink as their number grows."""
        self.opaque(node, values)
        axis = int(attr(node, "axis", -1)) % len(node.inputs[0].shape)
        dim = self.dim(node.inputs[0], axis)
        if node.op == "Softmax" and dim is not None:
            if dim.part == "rest":
                return Value(Fraction(-1))
            self.found.summed[node.name] = Summed(dim, None, 1)
            return Value(Fraction(-1), frozenset({node.name}))
        return _PLAIN


def _times(a: Value, b: Value) -> Value:
    """The product of two values."""
    if a is _PLAIN or b is _PLAIN:
        other = b if a is _PLAIN else a
        return replace(other, pooled=False) if other.pooled and not other.degree else other
    weights = a.weights if b.weights is None else b.weights if a.weights is None else None
    return Value(
        a.degree + b.degree, a.sums | b.sums, a.pooled and b.pooled, weights, a.scales + b.scales
    )


_Rule = Callable[[_Counter, gs.Node, Sequence[Value]], Value]


def _table() -> Mapping[str, _Rule]:
    groups: tuple[tuple[_Rule, str], ...] = (
        (
            _Counter.first,
            "Cast Identity Neg Abs Relu LeakyRelu PRelu Dropout Transpose Reshape "
            "Flatten Squeeze Unsqueeze Expand Tile Slice Split Gather Pad QuantizeLinear "
            "DequantizeLinear SpaceToDepth DepthToSpace AveragePool MaxPool GlobalMaxPool "
            "GlobalAveragePool Resize LpPool CumSum",
        ),
        (_Counter.product, "Mul Div"),
        (_Counter.combined, "Add Sub Max Min Sum Mean Where Concat"),
        (_Counter.weighted, "MatMul Gemm Einsum Conv"),
        (_Counter.root, "Sqrt"),
        (_Counter.reciprocal, "Reciprocal"),
        (_Counter.raised, "Pow"),
        (_Counter.clipped, "Clip"),
        (_Counter.chances, "Softmax LogSoftmax"),
        (_Counter.reduced, tf.REDUCTIONS.replace("ArgMax ArgMin ", "")),
        (
            _Counter.forgets,
            "LayerNormalization RMSNormalization SimplifiedLayerNormalization "
            "LpNormalization InstanceNormalization ArgMax ArgMin Sign Shape Size IsNaN IsInf "
            "Equal Greater GreaterOrEqual Less LessOrEqual And Or Not Xor ConstantOfShape",
        ),
    )
    return {op: rule for rule, ops in groups for op in ops.split()}


_RULES = _table()
