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

    Between two counts it is linear. Below the fewest, n₀, its odds grow as the prior does:
    v/(1 − v) ∝ g(r) = (1 − r)²/r (`optimise.prior`), r the share of the patches that stay. A loss
    that stayed flat where nobody measured would lure the planner there; distances and shares end
    at 1, so that g alone is far too steep. On zoo:glyphs (topk, evit), measured down to 0.5, 0.3 or
    0.2 of the patches, it is off by 0.08 to 0.10 at counts down to 0.05 on average, a straight line
    by 0.16 to 0.28, g cut off at 1 by 0.12 to 0.14.

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
        start = self.values[0]
        if start >= 1.0:
            return np.where(wanted < first, start, between)
        odds = start / (1 - start) * self._shape(np.minimum(wanted, first)) / self._shape(first)
        return np.where(wanted < first, odds / (1 + odds), between)

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
