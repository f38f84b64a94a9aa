"""Exact arithmetic of token counts."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def root_ceil(total: int, keep: Fraction, i: int, n: int) -> int:
    """ceil(total · keep^(i/n)), exact: the least m with m^n ≥ total^n · keep^i."""
    goal = Fraction(total) ** n * keep**i
    m = int(total * float(keep) ** (i / n))
    while Fraction(m) ** n >= goal and m > 0:
        m -= 1
    while Fraction(m) ** n < goal:
        m += 1
    return m


def half_up(number: Fraction) -> int:
    """The nearest whole number, halves up."""
    return (2 * number.numerator + number.denominator) // (2 * number.denominator)


def shares(total: int, final: int, weights: Sequence[Fraction | int]) -> list[int]:
    """Counts from `total` to exactly `final`, what leaves shared out by weight.

    Raises:
        ZeroDivisionError: all weights are 0.
    """
    whole, so_far, found = Fraction(sum(weights)), Fraction(0), []
    for weight in weights:
        so_far += weight
        found.append(total - half_up((total - final) * so_far / whole))
    return found


def inflected(r: int, inflect: Fraction, steps: int) -> list[int]:
    """ToMe's r_i = int(least + step · i), least = int(r (1 − inflect)), most = 2 r − least."""
    least = int(r * (1 - inflect))
    step = Fraction(2 * r - 2 * least, max(steps - 1, 1))
    return [int(least + step * i) for i in range(steps)]
