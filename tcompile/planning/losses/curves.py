"""A loss as a function of the token count, from a few counts at which it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A loss that never falls as tokens leave.

    Between two counts it is linear. Below the fewest, n₀, it is at(n₀) · g(n)/g(n₀) with the shape
    g(r) = (1 − r)²/r of the prior (`optimise.prior`), r the share of the patches that stay: a loss
    grows fastest where nobody measured, and a flat one would lure the planner there.

    Attributes:
        counts: [G] ascending, prefix included; the last is N.
        values: [G], the last 0.
        prefix: tokens that never leave.
    """

    counts: tuple[int, ...]
    values: tuple[float, ...]
    prefix: int

    def __call__(self, n: npt.ArrayLike) -> Floats:
        """The loss of going from N tokens to n, any shape."""
        wanted = np.asarray(n, np.float64)
        between = np.interp(wanted, self.counts, self.values)
        first = float(self.counts[0])
        if first == self.counts[-1]:
            return np.asarray(between)
        below = self.values[0] * self._shape(np.minimum(wanted, first)) / self._shape(first)
        return np.where(wanted < first, below, between)

    def _shape(self, n: npt.ArrayLike) -> Floats:
        left = np.maximum(np.asarray(n, np.float64) - self.prefix, 1.0)
        left = left / (self.counts[-1] - self.prefix)
        return np.asarray((1 - left) ** 2 / left)


def fitted(measured: Mapping[int, float], tokens: int, prefix: int) -> Curve:
    """The curve through losses at some counts: 0 at N, made monotone where noise made them fall.

    Args:
        measured: whole token count → loss, below `tokens`; any order.
        tokens: N.
    """
    counts = sorted(n for n in measured if n < tokens)
    falling = isotonic([measured[n] for n in counts])
    return Curve((*counts, tokens), (*np.maximum(falling, 0.0).tolist(), 0.0), prefix)


def isotonic(values: Sequence[float]) -> Floats:
    """The nearest sequence that never rises, by least squares: pool adjacent violators."""
    means: list[float] = []
    sizes: list[int] = []
    for value in values:
        means.append(float(value))
        sizes.append(1)
        while len(means) > 1 and means[-2] < means[-1]:
            size = sizes[-2] + sizes[-1]
            mean = (means[-2] * sizes[-2] + means[-1] * sizes[-1]) / size
            means[-2:], sizes[-2:] = [mean], [size]
    return np.repeat(np.array(means, np.float64), sizes)
