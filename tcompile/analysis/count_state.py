"""Growth of values with the number of tokens: the state and the result of following it.

Also which literal is a count of tokens: N, N − 1, 1/N, √N, N/(N − 1), the sum of a mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.effects import Factor, Rescale, Summed, Vector
from tcompile.analysis.facts import Facts
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.token_dims import Dim, Dims, locate
from tcompile.core.graph import is_const, value


@dataclass(frozen=True, eq=False)
class Value:
    """The facts that are known of a tensor.

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

    def power(self, exponent: Fraction) -> Value:
        """The value raised to a power."""
        if self is PLAIN:
            return self
        return replace(self, degree=self.degree * exponent, weights=None, scales=())

    def times(self, other: Value) -> Value:
        """The product of two values."""
        if self is PLAIN or other is PLAIN:
            one = other if self is PLAIN else self
            return replace(one, pooled=False) if one.pooled and not one.degree else one
        mine, its = self.weights, other.weights
        return Value(
            self.degree + other.degree,
            self.sums | other.sums,
            self.pooled and other.pooled,
            mine if its is None else its if mine is None else None,
            self.scales + other.scales,
        )


#: Nothing is known.
PLAIN = Value()


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
        return self.values.get(tensor.name, PLAIN)


@dataclass
class Counter:
    """The state that the rules look at, and the result that they write to."""

    facts: Facts
    space: TokenSpace
    found: Counts = field(default_factory=Counts)
    _dims: dict[str, Dims] = field(default_factory=dict)

    def dims(self, name: str) -> Dims | None:
        """The dims of a tensor in terms of the token space; None where it has no axes yet."""
        known = self._dims.get(name)
        if known is None and name in self.facts.axes:
            known = self._dims[name] = locate(self.facts.axes[name], self.space)
        return known

    def dim(self, tensor: gs.Tensor, axis: int) -> Dim | None:
        """The dim along an axis, if the patches are in it."""
        self.facts.of(tensor)  # a constant gets axes when it is first asked for
        dim = (self.dims(tensor.name) or ())[axis]
        return dim if dim is not None and dim.has_patches(self.space) else None

    def tokens_along(self, dim: Dim) -> int:
        """The number of positions of a dim in the dense model, for one image."""
        return dim.size(self.space, self.space.patches, 1)

    def grows(self, value: Value, where: str) -> None:
        """Something reads a sum over tokens as it is."""
        if value.degree > 0:
            for node in value.sums:
                self.found.unresolved.setdefault(node, where)

    def explained(
        self,
        node: gs.Node,
        value: Value,
        literal: float,
        operand: int | None = None,
        inverse: bool = False,
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


#: Constants with more elements are not looked at: no scalar and no mask is as large.
LARGEST = 1 << 16
#: A constant that is added and no larger than this only keeps a divisor from being 0.
_EPSILON = 1e-3


def explain(
    literal: float, summed: Summed, space: TokenSpace, degree: Fraction, pooled: bool
) -> tuple[tuple[Factor, ...], Fraction] | None:
    """The factors of a literal that multiplies a sum over tokens; None where it is not a count.

    Args:
        summed: what the sum runs over.
        degree: how the sum grows with the number of tokens.
        pooled: whether it is a statistic over tokens, which all positions share.

    Returns:
        The factors of the literal, and the degree of the product.
    """
    for factors, after in _guesses(summed.weights is not None, degree, pooled):
        wanted = 1.0
        for factor in factors:
            base = summed.count(factor.base, space) + factor.offset
            if base <= 1 and factor.base == "size":
                wanted = 0.0
                break
            wanted *= max(base, 1e-30) ** float(factor.power)
        if wanted and wanted != 1 and close(literal, wanted):
            return factors, after
    return None


def _guesses(
    weighted: bool, degree: Fraction, pooled: bool
) -> Iterable[tuple[tuple[Factor, ...], Fraction]]:
    """The counts that a literal may be, each with the degree after it."""
    half, one = Fraction(1, 2), Fraction(1)
    bases: tuple[Literal["size", "weights"], ...] = ("weights", "size") if weighted else ("size",)
    if degree:
        towards = -1 if degree > 0 else 1
        for power in dict.fromkeys((abs(degree), one, half)):
            for base in bases:
                for offset in (0, -1):
                    yield (Factor(base, offset, towards * power),), degree + towards * power
    elif pooled:
        for power in (one, half):
            for sign in (1, -1):
                up, down = Factor("size", 0, sign * power), Factor("size", -1, -sign * power)
                yield (up, down), degree
        if weighted:
            yield (Factor("size", 0, one), Factor("weights", 0, -one)), degree
        yield (Factor("size", 0, one),), degree + 1


def close(literal: float, wanted: float) -> bool:
    """Equal as written in fp32, or rounded to fp16 once."""
    if abs(literal - wanted) <= 1e-6 * abs(wanted):
        return True
    half = float(np.float16(wanted)) if abs(wanted) < 6e4 else wanted
    if half == literal:
        return True
    inverse = 1 / wanted
    as_divisor = float(np.float16(inverse)) if abs(inverse) < 6e4 else inverse
    return as_divisor == 1 / literal


def uniform(tensor: gs.Tensor) -> float | None:
    """The number that a constant holds everywhere; None where it holds several."""
    if not is_const(tensor):
        return None
    dims = [int(d) for d in tensor.shape or ()]
    if 0 in dims or int(np.prod(dims)) > LARGEST:
        return None
    array = np.asarray(value(tensor))
    if array.dtype.kind not in "fiu":
        return None
    first = array.reshape(-1)[0]
    return float(first) if bool((array == first).all()) else None


def negligible(node: gs.Node, tensor: gs.Tensor) -> bool:
    """Return whether a constant adds nothing that matters to a sum."""
    number = uniform(tensor)
    if number is None:
        return False
    return number == 0 or (abs(number) <= (1 if node.op == "Max" else _EPSILON))
