"""Which literal is a count of tokens: N, N − 1, 1/N, √N, N/(N − 1), the sum of a mask.

See `counts`, which follows the sums that such a literal divides.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.effects import Factor, Summed
from tcompile.analysis.space import TokenSpace
from tcompile.core.graph import is_const, value

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
